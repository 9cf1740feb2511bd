"""A cryoSPARC instance and its external jobs, alike through cryosparc-tools 4.7 and 5.0.

The client repeats nothing by itself (see `sign_in.connect`): what got lost on the way is repeated here, after
looking whether it had arrived.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import ConfigurationError, HostError

# How long a lost connection is worth waiting for, and the pauses between the tries.
PATIENCE_SECONDS = 600.0
# An error inside of the server passes, if it does, soon.
INTERNAL_ERROR, ERROR_PATIENCE_SECONDS = 500, 30.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 30.0

# What the documents of projects, workspaces and jobs call those that are no longer there.
_GONE = ("deleted", "archived", "detached")
# Why an output may lack a slot.
_WITHOUT = {
    "blob": "Particles that were picked but not extracted have no images.",
    "alignments3D": "Particles get poses in a 3D refinement.",
    "ctf": "Particles get CTF parameters from their micrographs, when they are extracted.",
    "map_half_A": "Maps have halves after a refinement with half sets.",
    "map_half_B": "Maps have halves after a refinement with half sets.",
}

T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """An output of a job that is the input of another.

    Attributes
    ----------
    job, output
        As in `J42:particles`.
    kind
        `particle`, `exposure`, `volume`, …
    slots
        Names of what it holds, those passed through included.
    workspaces
        That the job is in, as in `W1`.
    """

    job: str
    output: str
    kind: str
    slots: tuple[str, ...]
    workspaces: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.job}:{self.output}"


class Instance:
    """A signed-in client.

    Parameters
    ----------
    client
        From `sign_in.connect`.
    tools_version
        Version of cryosparc-tools.
    secrets
        What is cut out of every text that is shown.
    """

    def __init__(self, client: Any, tools_version: str, secrets: Sequence[str] = ()) -> None:
        self.client, self.tools_version, self._secrets = client, tools_version, tuple(secrets)
        self.is_5 = int(tools_version.partition(".")[0]) >= 5

    def close(self) -> None:
        """Close the connection, which the client leaves to the garbage collector."""
        if self.is_5:
            self.client.api._client.close()

    def redact(self, text: str) -> str:
        """Return a text without passwords."""
        for secret in self._secrets:
            text = text.replace(secret, "[…]")
        return text

    def call(
        self,
        doing: str,
        action: Callable[[], T],
        *,
        arrived: Callable[[], T | None] | None = None,
        patience_seconds: float | None = None,
    ) -> T:
        """Do something with the server, again and again while the connection is lost.

        Parameters
        ----------
        doing
            What is done, for messages.
        action
            One request, or several that may be repeated as a whole.
        arrived
            Asked before a repetition: the result, if the first try did arrive and only its answer was lost.
        patience_seconds
            How long to go on trying; `PATIENCE_SECONDS` without it.

        Raises
        ------
        HostError
            If the server refuses, or stays away.
        """
        began, patience = time.monotonic(), PATIENCE_SECONDS if patience_seconds is None else patience_seconds
        pause = FIRST_PAUSE_SECONDS
        while True:
            try:
                return action()
            except Exception as error:
                lost = lost_connection(error)
                if lost is None:
                    raise HostError(self.redact(f"cannot {doing}: {reason(error)}")) from error
                if getattr(error, "code", None) == INTERNAL_ERROR:
                    patience = min(patience, ERROR_PATIENCE_SECONDS)
                if time.monotonic() + pause > began + patience:
                    raise ConnectionLost(
                        self.redact(f"cannot {doing}: the connection is lost ({lost}).")
                    ) from error
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            if arrived is not None:
                found = self.call(f"see whether it was possible to {doing}", arrived)
                if found is not None:
                    return found

    def project_directory(self, project: str) -> Path:
        """Return where the server has the project.

        Raises
        ------
        HostError
            If there is no such project, or it is archived or detached.
        """
        found = self.call(f"find the project {project}", lambda: self.client.find_project(project))
        self._refuse_if_gone(project, found)
        return Path(str(self.call("find its directory", lambda: found.dir if self.is_5 else found.dir())))

    def check_workspace(self, project: str, workspace: str) -> None:
        """Raise a HostError if there is no such workspace."""
        found = self.call(
            f"find the workspace {workspace} of {project}",
            lambda: self.client.find_workspace(project, workspace),
        )
        self._refuse_if_gone(workspace, found)

    def _refuse_if_gone(self, name: str, found: Any) -> None:
        """Raise a HostError if a project, workspace or job is deleted, archived or detached."""
        facts = self._facts(found)
        if states := [state for state in _GONE if facts.get(state)]:
            raise HostError(f"{name} is {' and '.join(states)} in cryoSPARC.")

    def _facts(self, found: Any) -> Mapping[str, Any]:
        """Return what the server says of a project, workspace or job."""
        facts: Mapping[str, Any] = vars(found.model) if self.is_5 else found.doc
        return facts

    def find_job(self, project: str, uid: str) -> Any:
        """Return a job; raise a HostError if there is none of this name."""
        found = self.call(f"find the job {uid} of {project}", lambda: self.client.find_job(project, uid))
        self._refuse_if_gone(uid, found)
        return found

    def workspaces(self, job: Any) -> tuple[str, ...]:
        """Return the workspaces that a job is in."""
        return tuple(self._facts(job).get("workspace_uids", ()))

    def description(self, job: Any) -> str:
        """Return the description of a job."""
        return str(self._facts(job).get("description", ""))

    def find_source(self, project: str, text: str, kind: str, slots: Sequence[str] = ()) -> Source:
        """Return the output that `J42:particles` means.

        Raises
        ------
        ConfigurationError
            If the text does not have this form.
        HostError
            If there is no such job or output, it is of another kind, lacks a slot, or has not finished.
        """
        job_uid, colon, output = text.partition(":")
        if not colon or not job_uid[1:].isdigit() or job_uid[0] != "J" or not output:
            raise ConfigurationError(f"expected a job and its output as J42:particles, found {text!r}.")
        job = self.find_job(project, job_uid)
        outputs = self.outputs(job)
        if output not in outputs:
            found = ", ".join(f"{name} ({its_kind})" for name, (its_kind, _) in outputs.items()) or "none"
            raise HostError(f"{job_uid} has no output {output!r}; its outputs: {found}.")
        found_kind, found_slots = outputs[output]
        if found_kind != kind:
            raise HostError(f"{text} is of type {found_kind}, expected {kind}.")
        if job.status != "completed":
            raise HostError(f"{job_uid} is {job.status}: wait until it is completed.")
        missing = [slot for slot in slots if slot not in found_slots]
        if missing:
            why = "".join(f" {_WITHOUT[slot]}" for slot in missing if slot in _WITHOUT)
            raise HostError(f"{text} has no slot {', '.join(missing)}, only {', '.join(found_slots)}.{why}")
        return Source(job_uid, output, found_kind, found_slots, self.workspaces(job))

    def outputs(self, job: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Return type and slots of each output of a job."""
        if self.is_5:
            return {
                name: (output.type, tuple(dict.fromkeys(result.name for result in output.results)))
                for name, output in job.model.spec.outputs.root.items()
            }
        return {
            group["name"]: (group["type"], tuple(result["name"] for result in group["contains"]))
            for group in job.doc["output_result_groups"]
        }

    def load(self, project: str, source: Source, slots: Sequence[str]) -> Any:
        """Return some slots of an output as a `cryosparc.dataset.Dataset`, in the order of its rows."""
        return self.call(
            f"load {source}",
            lambda: self.client.find_job(project, source.job).load_output(source.output, slots=list(slots)),
        )

    def download(self, project: str, name: str, path: Path) -> None:
        """Bring a file of the project's directory here."""
        self.call(f"fetch {name}", lambda: self.client.download_file(project, name, str(path)))


class ConnectionLost(HostError):
    """The server did not answer, for as long as was waited."""


def lost_connection(error: BaseException) -> str | None:
    """Return what is wrong with the connection, or None if the server did answer."""
    if isinstance(error, UserWarning) and str(error).startswith("*** "):
        # the client's announcement of another try, made an error
        return reason(error.__context__ or error)
    if isinstance(error, ConnectionError | TimeoutError | http.client.HTTPException | urllib.error.URLError):
        return reason(error)
    code, kind = getattr(error, "code", None), type(error).__name__
    # version 4 gives each of its own errors the code 500
    passing = (500, 502, 503, 504) if kind == "APIError" else (502, 503, 504)
    if kind in ("APIError", "CommandError") and code in passing:
        return f"HTTP status {code}"
    return None


def reason(error: BaseException) -> str:
    """Return in one line what the client or the server says of an error."""
    data, code = getattr(error, "data", None), getattr(error, "code", None)
    if type(error).__name__ == "APIError":
        detail = data.get("detail", data) if isinstance(data, dict) else data
        text = f"HTTP status {code}" + (
            f", {detail if isinstance(detail, str) else json.dumps(detail)}" if detail else ""
        )
    else:
        # version 4 puts the name of the function and what it was given into the first line
        lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        text = lines[1] if type(error).__name__ == "CommandError" and len(lines) > 1 else lines[0]
    return text[:500].rstrip(".")
