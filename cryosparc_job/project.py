"""A project of an instance: its directory, and the jobs and outputs that can be found in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError, HostError
from .instance import ConnectionLost, Instance

# What cryoSPARC calls the type of external jobs.
EXTERNAL = "snowflake"
LISTED_JOBS = 100

# What the documents of projects, workspaces and jobs call those that are no longer there.
_GONE = ("deleted", "archived", "detached")
# Why an output may lack a slot.
_WITHOUT = {
    "blob": "Particles that were picked but not extracted have no images.",
    "alignments3D": "Particles get poses in a 3D refinement.",
    "ctf": "Particles get CTF parameters from their micrographs, when they are extracted.",
    "micrograph_blob_non_dw_AB": "Run Patch Motion Correction again with 'Output denoiser training data' on.",
    "map_half_A": "Maps have halves after a refinement with half sets.",
    "map_half_B": "Maps have halves after a refinement with half sets.",
}
# What to do about a job whose output is wanted and that is not completed.
_UNFINISHED = {
    "building": "queue it, and wait until it is completed.",
    "failed": "put right what its log says, and run it again.",
    "killed": "run it again.",
}


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


@dataclass(frozen=True)
class Output:
    """What a job says of one of its outputs.

    Attributes
    ----------
    kind, slots
        See `Source`.
    n_rows
        Particles, micrographs, …; None where the client does not say.
    """

    kind: str
    slots: tuple[str, ...]
    n_rows: int | None = None


@dataclass(frozen=True)
class Project:
    """A project, by its name, as in `P3`; each of its methods may raise a `HostError`."""

    instance: Instance
    uid: str

    def __str__(self) -> str:
        return self.uid

    def directory(self) -> Path:
        """Return where the server has the project.

        Raises
        ------
        HostError
            If there is no such project, or it is archived or detached.
        """
        instance = self.instance
        found = instance.call(f"find the project {self}", lambda: instance.client.find_project(self.uid))
        self._refuse_if_gone(self.uid, found)
        path = instance.call("find its directory", lambda: found.dir if instance.is_5 else found.dir())
        return Path(str(path))

    def is_there(self) -> bool:
        """Tell whether the server finds the project at this moment."""
        try:
            self.instance.call(
                f"find the project {self}",
                lambda: self.instance.client.find_project(self.uid),
                patience_seconds=0.0,
            )
        except HostError:
            return False
        return True

    def check_workspace(self, workspace: str) -> None:
        """Raise a HostError if there is no such workspace."""
        found = self.instance.call(
            f"find the workspace {workspace} of {self}",
            lambda: self.instance.client.find_workspace(self.uid, workspace),
        )
        self._refuse_if_gone(workspace, found)

    def _refuse_if_gone(self, name: str, found: Any) -> None:
        """Raise a HostError if a project, workspace or job is deleted, archived or detached."""
        facts = self.facts(found)
        if states := [state for state in _GONE if facts.get(state)]:
            raise HostError(f"{name} is {' and '.join(states)} in cryoSPARC.")

    def facts(self, found: Any) -> Mapping[str, Any]:
        """Return what the server says of a project, workspace or job."""
        facts: Mapping[str, Any] = vars(found.model) if self.instance.is_5 else found.doc
        return facts

    def find_job(self, uid: str) -> Any:
        """Return a job; raise a HostError if there is none of this name."""
        found = self.instance.call(
            f"find the job {uid} of {self}", lambda: self.instance.client.find_job(self.uid, uid)
        )
        self._refuse_if_gone(uid, found)
        return found

    def workspaces(self, job: Any) -> tuple[str, ...]:
        """Return the workspaces that a job is in."""
        return tuple(self.facts(job).get("workspace_uids", ()))

    def description(self, job: Any) -> str:
        """Return the description of a job."""
        return str(self.facts(job).get("description", ""))

    def outputs(self, job: Any) -> dict[str, Output]:
        """Return the outputs of a job."""
        if self.instance.is_5:
            return {
                name: Output(
                    output.type,
                    tuple(dict.fromkeys(result.name for result in output.results)),
                    output.num_items,
                )
                for name, output in job.model.spec.outputs.root.items()
            }
        return {
            group["name"]: Output(group["type"], tuple(result["name"] for result in group["contains"]))
            for group in job.doc["output_result_groups"]
        }

    def find_source(self, text: str, kind: str, slots: Sequence[str] = ()) -> Source:
        """Return the output that `J42:particles` means, or `J42` where only one of its outputs fits.

        Raises
        ------
        ConfigurationError
            If the text does not have this form.
        HostError
            If there is no such job or output, it is of another kind, lacks a slot, or has not finished.
        """
        job_uid, colon, output = text.partition(":")
        if not re.fullmatch(r"J\d+", job_uid) or (colon and not output):
            raise ConfigurationError(f"expected a job and its output as J42:particles, found {text!r}.")
        job = self.find_job(job_uid)
        outputs = self.outputs(job)
        if not colon:
            output = _only_fitting(job_uid, outputs, kind, slots)
        if output not in outputs:
            raise HostError(f"{job_uid} has no output {output!r}; its outputs: {_listed(outputs)}.")
        found = outputs[output]
        if found.kind != kind:
            raise HostError(f"{text} is of type {found.kind}, expected {kind}.")
        if job.status != "completed":
            remedy = _UNFINISHED.get(job.status, "wait until it is completed.")
            raise HostError(f"{job_uid} is {job.status}: {remedy}")
        missing = [slot for slot in slots if slot not in found.slots]
        if missing:
            why = "".join(f" {_WITHOUT[slot]}" for slot in missing if slot in _WITHOUT)
            raise HostError(f"{text} has no slot {', '.join(missing)}, only {', '.join(found.slots)}.{why}")
        return Source(job_uid, output, found.kind, found.slots, self.workspaces(job))

    def load(self, source: Source, slots: Sequence[str]) -> Any:
        """Return some slots of an output as a `cryosparc.dataset.Dataset`, in the order of its rows."""
        client = self.instance.client
        return self.instance.call(
            f"load {source}",
            lambda: client.find_job(self.uid, source.job).load_output(source.output, slots=list(slots)),
        )

    def download(self, name: str, path: Path) -> None:
        """Bring a file of the project's directory here."""
        self.instance.call(
            f"fetch {name}", lambda: self.instance.client.download_file(self.uid, name, str(path))
        )

    def age_of(self, name: str) -> str | None:
        """Return what changes when a file of the project is made anew: when its job was completed, as text.

        None if that cannot be known: the file is in no job's directory, or the job is running.
        """
        job_uid = name.partition("/")[0]
        if not re.fullmatch(r"J\d+", job_uid):
            return None
        try:
            facts = self.facts(self.find_job(job_uid))
        except ConnectionLost:
            raise
        except HostError:
            return None
        if facts.get("status") != "completed" or not facts.get("completed_at"):
            return None
        return f"{facts['completed_at']}, {facts.get('completed_count', 0)}"

    def newest_jobs(self, workspace: str | None = None, kind: str | None = None) -> Iterator[Any]:
        """Yield the jobs of the project, the newest first, at most a hundred.

        The client of version 4 lists none. There a job is whatever has a directory in that of the project, as
        far as it is mounted here.

        Parameters
        ----------
        workspace
            As in `W1`; without it, of all.
        kind
            Such as `extract_micrographs_multi`; without it, of all.
        """
        if self.instance.is_5:
            search = {} if kind is None else {"type": kind}
            jobs = self.instance.call(
                f"list the jobs of {self}",
                lambda: list(
                    islice(
                        self.instance.client.find_jobs(self.uid, workspace, order=-1, **search), LISTED_JOBS
                    )
                ),
            )
            yield from sorted(jobs, key=lambda job: int(job.uid[1:]), reverse=True)
            return
        found = (
            job
            for job in self._jobs_with_a_directory()
            if kind in (None, job.type) and workspace in (None, *self.workspaces(job))
        )
        yield from islice(found, LISTED_JOBS)

    def _jobs_with_a_directory(self) -> Iterator[Any]:
        names = [path.name[1:] for path in self.directory().glob("J*")]
        for number in sorted((int(name) for name in names if name.isdigit()), reverse=True):
            try:
                yield self.find_job(f"J{number}")
            except ConnectionLost:
                raise
            except HostError:  # of a job that was deleted
                continue

    def find_marked(self, workspace: str, mark: str) -> str | None:
        """Return the external job that has a mark in its description, as `J57`; a clone of it is another."""
        jobs = self.newest_jobs(workspace, EXTERNAL)
        marked = (job for job in jobs if mark in self.description(job))
        return next((job.uid for job in marked if not self.facts(job).get("cloned_from")), None)


def _only_fitting(job_uid: str, outputs: Mapping[str, Output], kind: str, slots: Sequence[str]) -> str:
    """Return the one output of a job that is of a kind and has some slots.

    Raises
    ------
    HostError
        If there is none, or there are several.
    """
    of_kind = [name for name, output in outputs.items() if output.kind == kind]
    fitting = [name for name in of_kind if set(slots) <= set(outputs[name].slots)]
    if len(fitting) == 1:
        return fitting[0]
    if len(fitting) > 1:
        raise HostError(
            f"{job_uid} has the outputs {', '.join(fitting)}: name one, as {job_uid}:{fitting[0]}."
        )
    if len(of_kind) == 1:
        return of_kind[0]  # what it lacks is said of it by name
    raise HostError(f"{job_uid} has no output of type {kind}; its outputs: {_listed(outputs)}.")


def _listed(outputs: Mapping[str, Output]) -> str:
    return ", ".join(f"{name} ({output.kind})" for name, output in outputs.items()) or "none"
