"""A job at work, whatever the command: made or found, begun, told of in its event log, its work done."""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.errors import ConfigurationError, HostError
from ..core.progress import ProgressText
from .guard import Watch
from .instance import ConnectionLost, Instance
from .job import ExternalJob, create_job, find_job
from .place import Place
from .worker import run_work

# Version 4 gets a new line each time.
PROGRESS_SECONDS, PROGRESS_SECONDS_4 = 5.0, 60.0


@dataclass(frozen=True)
class JobRequest:
    """What every command line that works on images of other jobs asks for.

    Attributes
    ----------
    project, workspace
        As in `P3`, `W1`; the workspace may be None if `resume` is not.
    resume
        The job to go on with, as in `J57`.
    scratch
        A folder to work in if the project's directory is not mounted here.
    command
        The command line, for the record.
    """

    project: str
    workspace: str | None
    resume: str | None
    scratch: Path | None
    command: str

    def check_workspace(self, instance: Instance) -> None:
        """
        Raises
        ------
        CryohushError
            None is named, or there is no such.
        """
        if self.workspace is None:
            raise ConfigurationError("--workspace is missing, as in --workspace W1.")
        instance.check_workspace(self.project, self.workspace)


def connected_output(job: ExternalJob, name: str, asked: str | None) -> str | None:
    """Return the output at an input of a job to go on with, as in `J42:particles`, if there is one.

    Raises
    ------
    ConfigurationError
        Another one is asked for.
    """
    found = None
    for pair in job.connections(name):
        found = ":".join(pair)
        if asked not in (None, found):
            raise ConfigurationError(f"{asked}: {job.uid} has {found}. Leave it out.")
        asked = found
    return found


def find_job_to_resume(instance: Instance, project: str, uid: str | None) -> ExternalJob | None:
    """Return the job to go on with, if one is named.

    Raises
    ------
    HostError
        If there is none of this name, or it is completed.
    """
    if uid is None:
        return None
    job = find_job(instance, project, uid)
    if job.status() == "completed":
        raise HostError(f"{job.uid} is completed: there is nothing to go on with.")
    return job


def new_mark() -> str:
    """Return what no other job has in its description."""
    return f"cryohush {__version__}, run {uuid.uuid4()}"


def open_job(
    instance: Instance,
    project: str,
    workspace: str,
    title: str,
    description: str,
    command: str,
    mark: str | None = None,
) -> ExternalJob:
    """Create the job of a command line and say its name; `mark` is a `new_mark`, if it has to be known."""
    mark = mark or new_mark()
    job = create_job(instance, project, workspace, title, f"{description}\n\n    {command}", mark)
    print(f"job {job.uid} of {project}", flush=True)
    return job


def _print(line: str) -> None:
    print(line, flush=True)


class JobRun:
    """A job that is being worked on: what is said and shown stops the work if the job is no longer wanted.

    Parameters
    ----------
    job
        As it was made or found.
    place
        Where its files go.
    noun
        What is counted in its line of progress.
    echo
        Gets what is said, besides the event log.
    """

    def __init__(
        self, job: ExternalJob, place: Place, noun: str, echo: Callable[[str], None] = _print
    ) -> None:
        self.job, self._place, self._noun, self._echo = job, place, noun, echo
        self.watch = Watch(job)
        self._progress: ProgressText | None = None
        self._shown = float("-inf")

    def begin(self, build: Callable[[], object], command: str) -> Path:
        """Bring the job, new or found, to where its work can begin, and return the folder for its files.

        Parameters
        ----------
        build
            Connects the inputs and adds the outputs, before the job is started.
        command
            The command line, for the event log.
        """
        directory = self.job.directory_name()
        if self.job.status() in ("failed", "killed"):
            try:
                self.job.start()
            except ConnectionLost:
                raise
            except HostError:
                self._place.clear(self.job, directory)
        build()
        self.job.start()
        folder = self._place.folder(directory)
        self.say(f"cryohush {__version__}, cryosparc-tools {self.job.instance.tools_version}: {command}")
        return folder

    def say(self, line: str, level: str = "text") -> None:
        """Echo a line, and write it into the event log if it can be reached and the job is still wanted."""
        self._echo(self.job.instance.redact(line))
        self.watch()
        with contextlib.suppress(ConnectionLost):
            self.job.log(line, level)

    def do(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Let a child do the work, and return its result."""

        def hear(message: dict[str, Any]) -> None:
            if "log" in message:
                self.say(message["log"])
            else:
                self.show_progress(message["done"], message["total"])

        self._progress = ProgressText(self._noun)
        return run_work(task, on_message=hear, on_tick=self.watch)

    def show_progress(self, done: int, total: int) -> None:
        """Renew the line of progress, unless that was a moment ago."""
        self._progress = self._progress or ProgressText(self._noun)
        text, now = self._progress(done, total), time.monotonic()
        pause = PROGRESS_SECONDS if self.job.instance.is_5 else PROGRESS_SECONDS_4
        if done < total and now - self._shown < pause:
            return
        self._shown = now
        self._echo(text)
        with contextlib.suppress(ConnectionLost):
            self.job.show_progress(text)

    def send(self, paths: Sequence[Path], folder: Path) -> None:
        """Send files below the folder into that of the job."""
        for path in paths:
            self.say(f"sending {path.name}")
            self.job.upload(path, f"{self._place.name}/{path.relative_to(folder).as_posix()}")

    def show(self, pictures: Mapping[str, Path], output: str | None = None) -> None:
        """Show pictures in the event log, and the first one on the job's card and that of its output.

        One that cannot be shown is no reason to fail.
        """
        shown = [functools.partial(self.job.log_plot, path, text) for text, path in pictures.items()]
        first = next(iter(pictures.values()), None)
        if first is not None:
            shown.append(functools.partial(self.job.set_images, output, first))
        for picture in shown:
            try:
                picture()
            except ConnectionLost:
                raise
            except HostError as error:
                self.say(str(error), "warning")
