"""An external job: what it is made of, what it shows, and how it ends."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import HostError
from .instance import Instance, Source
from .newest import find_marked

ACTIVE = ("running", "waiting")
# The reason of a failure travels in the address of its request, which may not be long.
_LONGEST_REASON = 2000

T = TypeVar("T")


def create_job(
    instance: Instance, project: str, workspace: str, title: str, description: str, mark: str
) -> ExternalJob:
    """Create an external job, once, however often the connection is lost.

    Parameters
    ----------
    project, workspace
        As in `P3`, `W1`.
    title, description
        As they are shown.
    mark
        Goes into the description, and into that of no other job.
    """

    def arrived() -> Any:
        if not instance.is_5:
            raise HostError(
                "the answer was lost while a job was created. If there is a new one in the workspace, go on "
                "in it with --resume, else start again."
            )
        made = find_marked(instance, project, workspace, mark)
        return None if made is None else instance.client.find_external_job(project, made)

    controller = instance.call(
        f"create a job in {project} {workspace}",
        lambda: instance.client.create_external_job(project, workspace, title, f"{description}\n\n{mark}"),
        arrived=arrived,
    )
    return ExternalJob(instance, project, controller)


def find_job(instance: Instance, project: str, uid: str) -> ExternalJob:
    """Return an external job that there is.

    Raises
    ------
    HostError
        If there is none of this name, or it is not external.
    """
    found = instance.call(
        f"find the external job {uid} of {project}", lambda: instance.client.find_external_job(project, uid)
    )
    return ExternalJob(instance, project, found)


class ExternalJob:
    """An external job; each of its methods may raise a `HostError`.

    Attributes
    ----------
    project, uid
        As in `P3`, `J57`.
    was_started
        Whether it has been active: what no longer is, somebody else has ended.
    """

    def __init__(self, instance: Instance, project: str, controller: Any) -> None:
        self.instance, self.project, self._job = instance, project, controller
        self.uid: str = controller.uid
        self.was_started = False

    def _call(
        self,
        doing: str,
        action: Callable[[], T],
        *,
        arrived: Callable[[], T | None] | None = None,
        patience_seconds: float | None = None,
    ) -> T:
        return self.instance.call(
            f"{doing} {self.uid}", action, arrived=arrived, patience_seconds=patience_seconds
        )

    def status(self, patience_seconds: float | None = None) -> str:
        """Return `building`, `running`, `waiting`, `completed`, `killed` or `failed`."""

        def ask() -> str:
            self._job.refresh()
            return str(self._job.status)

        return self._call("ask for the status of", ask, patience_seconds=patience_seconds)

    def directory_name(self) -> str:
        """Return the name of the job's directory in that of the project."""
        is_5 = self.instance.is_5
        found = self._call("find the directory of", lambda: self._job.dir if is_5 else self._job.dir())
        return Path(str(found)).name

    def connections(self, name: str) -> list[tuple[str, str]]:
        """Return the outputs, as job and name, that an input is connected to."""
        self.status()
        if self.instance.is_5:
            found = self._job.model.spec.inputs.root.get(name)
            return [(entry.job_uid, entry.output) for entry in found.connections] if found else []
        groups = [group for group in self._job.doc["input_slot_groups"] if group["name"] == name]
        return [(entry["job_uid"], entry["group_name"]) for group in groups for entry in group["connections"]]

    def _has_output(self, name: str) -> bool:
        self.status()
        if self.instance.is_5:
            return name in self._job.model.spec.outputs.root
        return any(group["name"] == name for group in self._job.doc["output_result_groups"])

    def connect(self, name: str, source: Source, slots: Sequence[str], title: str) -> None:
        """Connect an output to the input `name`, which is made, unless it is connected already."""
        pair = (source.job, source.output)

        def is_connected() -> bool | None:
            return pair in self.connections(name) or None

        if not is_connected():
            self._call(
                f"connect {source} to",
                lambda: self._job.connect(name, *pair, slots=list(slots), title=title) or True,
                arrived=is_connected,
            )

    def add_output(self, kind: str, name: str, slots: Sequence[str], passthrough: str, title: str) -> None:
        """Declare an output; what it does not hold itself comes from the input `passthrough`."""

        def exists() -> bool | None:
            return self._has_output(name) or None

        if not exists():
            self._call(
                f"add the output {name} to",
                lambda: bool(self._job.add_output(kind, name, list(slots), passthrough, title)) or True,
                arrived=exists,
            )

    def start(self) -> None:
        """Make the job a running one."""

        def is_active() -> bool | None:
            return self.status() in ACTIVE or None

        if not is_active():
            self._call("start", lambda: self._job.start("running") or True, arrived=is_active)
        self.was_started = True

    def clear(self) -> None:
        """Return the job to what it was before it ran; cryoSPARC empties its directory."""

        def is_cleared() -> bool | None:
            return self.status() == "building" or None

        self._call("clear", lambda: self._job.clear() or True, arrived=is_cleared)

    def save_output(self, name: str, uids: Any, fill: Callable[[Any], None]) -> None:
        """Save rows for an output.

        Parameters
        ----------
        name
            Of the output.
        uids
            Of the rows, in order.
        fill
            Given the dataset with the fields that the server expects, fills them.
        """
        dataset = self._call("ask for the fields of", lambda: self._job.alloc_output(name, uids))
        fill(dataset)
        self._call(
            f"save the output {name} of", lambda: self._job.save_output(name, dataset), arrived=lambda: None
        )

    def complete(self) -> None:
        """End the job as completed."""

        def is_completed() -> bool | None:
            return self.status() == "completed" or None

        self._call("complete", lambda: self._job.stop("") or True, arrived=is_completed)

    def fail(self, reason: str, patience_seconds: float | None = None) -> None:
        """End the job as failed, and say why in its event log."""
        text = self.instance.redact(reason)[:_LONGEST_REASON]
        if not self.instance.is_5:
            # its client says only that it has failed
            with contextlib.suppress(HostError):
                self.log(text, "error")

        def has_failed() -> bool | None:
            return self.status(patience_seconds) == "failed" or None

        self._call(
            "end",
            lambda: self._job.stop(text) or True,
            arrived=has_failed,
            patience_seconds=patience_seconds,
        )

    def log(self, text: str, level: str = "text", patience_seconds: float = 0.0) -> None:
        """Add a line to the event log."""
        text = self.instance.redact(text)
        self._call(
            "write to the log of", lambda: self._job.log(text, level=level), patience_seconds=patience_seconds
        )

    def show_progress(self, text: str) -> None:
        """Renew the line of progress in the event log; version 4 gets a new one."""
        name = {"name": "progress"} if self.instance.is_5 else {}
        self._call("write to the log of", lambda: self._job.log(text, **name), patience_seconds=0.0)

    def log_plot(self, path: Path, text: str) -> None:
        """Show a picture in the event log."""
        # the client leaves a file open that it has opened itself
        self._call("show a picture in", lambda: self._job.log_plot(_picture(path), text, formats=["png"]))

    def set_images(self, output: str | None, path: Path) -> None:
        """Show a picture on the job's card and on that of its output, if it has one; version 4 cannot."""
        if self.instance.is_5:
            self._call("set the picture of", lambda: self._job.set_tile_image(_picture(path)))
            if output is not None:
                self._call("set the picture of", lambda: self._job.set_output_image(output, _picture(path)))

    def upload(self, path: Path, target: str) -> None:
        """Send a file into the job's directory."""

        def send() -> None:
            self._job.mkdir(str(Path(target).parent), parents=True, exist_ok=True)
            with path.open("rb") as file:
                self._job.upload(target, file, overwrite=True)

        self._call(f"upload {target} to", send)


def _picture(path: Path) -> io.BytesIO:
    """Return a picture from the start, for each try anew."""
    return io.BytesIO(path.read_bytes())
