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
from ..core.inference.progress import ProgressText
from .guard import Watch, run_guarded, stop_signals
from .instance import ConnectionLost, Instance, Source
from .job import ExternalJob, create_job, find_job
from .place import Place, find_place
from .worker import run_work

# Version 4 gets a new line each time.
PROGRESS_SECONDS, PROGRESS_SECONDS_4 = 5.0, 60.0


# Options that are not named as the inputs that they fill.
OPTIONS = {"exposures": "micrographs"}


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes
    ----------
    project, workspace
        As in `P3`, `W1`; the workspace may be None if `resume` is not.
    outputs
        The output, as in `J42:particles`, for each input of the command; None where there is none.
    resume
        The job to go on with, as in `J57`.
    scratch
        A folder to work in if the project's directory is not mounted here.
    command
        The command line, for the record.
    """

    project: str
    workspace: str | None
    outputs: Mapping[str, str | None]
    resume: str | None
    scratch: Path | None
    command: str


@dataclass(frozen=True)
class Input:
    """An input of a command.

    Attributes
    ----------
    name, title
        Of the input; the option is `--name`, but for those of `OPTIONS`.
    data
        cryoSPARC's type.
    slots
        What is connected and read.
    unconnected
        What is read besides: the server need not know such slots by their names.
    also
        The same, where it is there.
    needed
        Whether the command does nothing without.
    """

    name: str
    title: str
    data: str
    slots: tuple[str, ...]
    unconnected: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    needed: bool = True

    def read(self, source: Source) -> list[str]:
        """Return the slots that are read of an output."""
        return [*self.slots, *self.unconnected, *(slot for slot in self.also if slot in source.slots)]


@dataclass(frozen=True)
class Prepared:
    """Work that nothing is wrong with as far as could be seen.

    Attributes
    ----------
    names
        Files that it reads, relative to the project's directory.
    write
        Given the folder to work in, writes its tables and returns the task for `work.main`. The task's result
        has the texts and files of `plots` and the `lines` for the event log.
    remarks
        What is to be said of the input.
    """

    names: Sequence[str]
    write: Callable[[Path], dict[str, Any]]
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Command:
    """A command whose results are files and pictures, not an output of the job.

    Attributes
    ----------
    title, description
        Of the job; the description is also said in its log.
    folder
        In the job's own, with all that the command writes.
    noun
        What is counted.
    inputs
        The first one says which images the work is about.
    prepare
        Given the place and the dataset of each input, checks what can be checked before a job is made.
    """

    title: str
    description: str
    folder: str
    noun: str
    inputs: Sequence[Input]
    prepare: Callable[[Place, Mapping[str, Any]], Prepared]


def run_command(instance: Instance, request: Request, command: Command) -> int:
    """Do a command in an external job; the exit status.

    Raises
    ------
    CryohushError
        If there is no job yet that could say what is wrong.
    """
    project = request.project
    directory = instance.project_directory(project)
    job = find_job_to_resume(instance, project, request.resume)
    sources = _sources(instance, request, command, job)
    place = find_place(
        directory, project, sources[command.inputs[0].name].job, request.scratch, command.folder
    )
    inputs = [kind for kind in command.inputs if kind.name in sources]
    datasets = {
        kind.name: instance.load(project, sources[kind.name], kind.read(sources[kind.name]))
        for kind in inputs
    }
    prepared = command.prepare(place, datasets)

    def connect() -> None:
        for kind in inputs:
            run.job.connect(kind.name, sources[kind.name], kind.slots, kind.title)

    def work() -> None:
        folder = run.begin(connect)
        run.say(f"cryohush {__version__}, cryosparc-tools {instance.tools_version}: {request.command}")
        for line in (command.description, *prepared.remarks):
            run.say(line)
        if not place.is_shared:
            place.fetch(instance, project, prepared.names, run.say)
        result = run.do({**prepared.write(folder), "job": run.job.uid, "command": request.command})
        if not place.is_shared:
            run.send([path for path in sorted(folder.rglob("[!.]*")) if path.is_file()], folder)
        run.show({text: Path(path) for text, path in result["plots"].items()})
        for line in result["lines"]:
            run.say(line)

    with stop_signals() as signals:
        if job is None:
            job = open_job(
                instance, project, str(request.workspace), command.title, command.description, request.command
            )
        run = JobRun(job, place, command.noun)
        return run_guarded(job, signals, work)


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


def _sources(
    instance: Instance, request: Request, command: Command, job: ExternalJob | None
) -> dict[str, Source]:
    """Return the output for each input, as the request names it, or as the job to go on with has it."""
    texts = dict(request.outputs)
    for kind in command.inputs:
        for pair in job.connections(kind.name) if job is not None else ():
            if texts.get(kind.name) not in (None, ":".join(pair)):
                raise ConfigurationError(
                    f"{texts[kind.name]}: {request.resume} has {':'.join(pair)}. Leave it out."
                )
            texts[kind.name] = ":".join(pair)
        if kind.needed and not texts.get(kind.name):
            flag = OPTIONS.get(kind.name, kind.name)
            raise ConfigurationError(f"--{flag} is missing, as in --{flag} J42:{kind.name}.")
    if job is None:
        if request.workspace is None:
            raise ConfigurationError("--workspace is missing, as in --workspace W1.")
        instance.check_workspace(request.project, request.workspace)
    return {
        kind.name: instance.find_source(request.project, text, kind.data, kind.slots + kind.unconnected)
        for kind in command.inputs
        if (text := texts.get(kind.name))
    }


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

    def begin(self, build: Callable[[], object]) -> Path:
        """Bring the job, new or found, to where its work can begin, and return the folder for its files.

        Parameters
        ----------
        build
            Connects the inputs and adds the outputs, before the job is started.
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
        return self._place.folder(directory)

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
