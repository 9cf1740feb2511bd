"""An external job: what it is made of, what it shows, and how it ends."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import Aborted, HostError
from . import instance as requests
from .instance import Refused
from .project import Project, Source
from .record import Record

ACTIVE = ("running", "waiting")
# Between two looks at a job that seems to be ended: one odd answer shall not end hours of work.
CONFIRM_SECONDS = 5.0
# The reason of a failure travels in the address of its request, which may not be long.
_LONGEST_REASON = 2000
# Side of a picture on a card or in the log.
_PICTURE_PX = 1600
_DELETED, _NOT_FOUND = "deleted", 404

T = TypeVar("T")


class JobEnded(Aborted):
    """Somebody has cleared, killed or deleted the job in cryoSPARC."""


def create_job(project: Project, workspace: str, title: str, description: str, record: Record) -> ExternalJob:
    """Create an external job, once, however often the connection is lost.

    Parameters
    ----------
    project, workspace
        Where; the workspace as in `W1`.
    title, description
        As they are shown.
    record
        What it is made for; goes into the description.
    """
    instance = project.instance

    def arrived() -> Any:
        if not instance.is_5:
            raise HostError(
                "the answer was lost while a job was created. If there is a new one in the workspace, go on "
                "in it with --resume, else start again."
            )
        made = project.find_marked(workspace, record.mark)
        return None if made is None else instance.client.find_external_job(project.uid, made)

    text = f"{description}\n\n{record}"
    controller = instance.call(
        f"create a job in {project} {workspace}",
        lambda: instance.client.create_external_job(project.uid, workspace, title, text),
        arrived=arrived,
    )
    return ExternalJob(project, controller)


def find_job(project: Project, uid: str) -> ExternalJob:
    """Return an external job that there is.

    Raises
    ------
    HostError
        If there is none of this name, or it is not external.
    """
    client = project.instance.client
    found = project.instance.call(
        f"find the external job {uid} of {project}", lambda: client.find_external_job(project.uid, uid)
    )
    return ExternalJob(project, found)


class ExternalJob:
    """An external job; each of its methods may raise a `HostError`.

    Once it was started, a refusal is taken for something that may pass, unless the job was ended: then its
    methods raise `JobEnded`.

    Attributes
    ----------
    project, uid
        Where, and as in `J57`.
    was_started
        Whether it has been active: what no longer is, somebody else has ended.
    """

    def __init__(self, project: Project, controller: Any) -> None:
        self.project, self.instance, self._job = project, project.instance, controller
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
            f"{doing} {self.uid}",
            action,
            arrived=arrived,
            patience_seconds=patience_seconds,
            when_refused=self.check_wanted if self.was_started else None,
        )

    def status(self, patience_seconds: float | None = None) -> str:
        """Return `building`, `running`, `waiting`, `completed`, `killed`, `failed` or `deleted`."""

        def ask() -> str:
            self._job.refresh()
            return _DELETED if self.project.facts(self._job).get("deleted") else str(self._job.status)

        return self.instance.call(f"ask for the status of {self.uid}", ask, patience_seconds=patience_seconds)

    def check_wanted(self, patience_seconds: float | None = None) -> None:
        """Look whether the job was ended in cryoSPARC.

        What cannot be seen is no reason to end hours of work: only a state that says so, or that the server
        has the project and not the job, and each of them twice.

        Raises
        ------
        JobEnded
            If it was, since it was started.
        ConnectionLost
            If the server stays away.
        """
        seen = self._end_seen(patience_seconds)
        if seen is not None:
            time.sleep(CONFIRM_SECONDS)
            seen = self._end_seen(patience_seconds)
        if seen is not None:
            raise JobEnded(seen)

    def _end_seen(self, patience_seconds: float | None) -> str | None:
        """Return how the job looks to have been ended, if it does."""
        try:
            status = self.status(patience_seconds)
        except Refused as error:
            of_client_4 = not self.instance.is_5 and error.code == requests.INTERNAL_ERROR
            if (error.code == _NOT_FOUND or of_client_4) and self.project.is_there():
                return f"{self.uid} is no longer there ({error})"
            return None
        if status == _DELETED:
            return f"{self.uid} was deleted in cryoSPARC."
        if self.was_started and status not in ACTIVE:
            return f"{self.uid} was ended in cryoSPARC: its status is {status!r}. It stays as it is."
        return None

    def record(self) -> Record | None:
        """Return what the job says it was made for, or, of a clone, what the cloned one says."""
        self.status()
        facts = self.project.facts(self._job)
        found = Record.read(str(facts.get("description", "")))
        if found is None and facts.get("cloned_from"):
            original = find_job(self.project, str(facts["cloned_from"]))
            found = Record.read(original.description())
        return found

    def description(self) -> str:
        """Return the description, as it was when the job was last looked at."""
        return self.project.description(self._job)

    def set_record(self, record: Record) -> None:
        """Write into the description what the job is made for, unless it says so; version 4 cannot."""
        self.status()
        text = self.description()
        if not self.instance.is_5 or Record.read(text) == record:
            return
        text = f"{Record.without(text)}\n\n{record}".strip()
        self._call("describe", lambda: self._job.set_description(text))

    def is_clone(self) -> bool:
        """Tell whether it was cloned in cryoSPARC, as far as the client knows."""
        return bool(self.project.facts(self._job).get("cloned_from"))

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
    """Return a picture from the start, for each try anew; one that is large on a screen is made smaller."""
    from PIL import Image, UnidentifiedImageError

    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if max(picture.size) <= _PICTURE_PX:
                return io.BytesIO(data)
            picture.thumbnail((_PICTURE_PX, _PICTURE_PX))
            smaller = io.BytesIO()
            picture.save(smaller, "png")
    except (UnidentifiedImageError, OSError):
        return io.BytesIO(data)
    smaller.seek(0)
    return smaller
