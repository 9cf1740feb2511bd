"""Commands whose results are files and pictures, not an output of their job: one frame for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError
from .guard import run_guarded, stop_signals
from .instance import Instance, Source
from .job import ExternalJob
from .place import Place, find_place
from .run import JobRequest, JobRun, connected_output, find_job_to_resume, open_job

# Options that are not named as the inputs that they fill.
OPTIONS = {"exposures": "micrographs"}


@dataclass(frozen=True)
class Request(JobRequest):
    """What the command line asks for.

    Attributes
    ----------
    outputs
        The output, as in `J42:particles`, for each input of the command; None where there is none.
    """

    outputs: Mapping[str, str | None]


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
    prepared = prepare_command(instance, project, command, place, sources)
    with stop_signals() as signals:
        if job is None:
            job = open_command(instance, project, str(request.workspace), command, request.command)
        run = JobRun(job, place, command.noun)
        work = CommandWork(run, command, sources, prepared, request.command)

        def do() -> None:
            folder = work.begin()
            if not place.is_shared:
                place.fetch(instance, project, prepared.names, run.say)
            result = run.do({**prepared.write(folder), "job": run.job.uid, "command": request.command})
            if not place.is_shared:
                run.send([path for path in sorted(folder.rglob("[!.]*")) if path.is_file()], folder)
            work.finish(result)

        return run_guarded(job, signals, do)


def find_outputs(
    instance: Instance, project: str, command: Command, texts: Mapping[str, str | None]
) -> dict[str, Source]:
    """Return the output for each input of a command that has one in `texts`; see `find_source`."""
    return {
        kind.name: instance.find_source(project, text, kind.data, kind.slots + kind.unconnected)
        for kind in command.inputs
        if (text := texts.get(kind.name))
    }


def prepare_command(
    instance: Instance, project: str, command: Command, place: Place, sources: Mapping[str, Source]
) -> Prepared:
    """Load the outputs and check what can be checked before a job is made.

    Raises
    ------
    CryohushError
        If something is wrong with them.
    """
    datasets = {
        kind.name: instance.load(project, sources[kind.name], kind.read(sources[kind.name]))
        for kind in command.inputs
        if kind.name in sources
    }
    return command.prepare(place, datasets)


def open_command(
    instance: Instance,
    project: str,
    workspace: str,
    command: Command,
    line: str,
    title: str | None = None,
    mark: str | None = None,
) -> ExternalJob:
    """Create the job; see `open_job`."""
    return open_job(instance, project, workspace, title or command.title, command.description, line, mark)


@dataclass(frozen=True)
class CommandWork:
    """The work on a job that there is, before and after that of the command.

    Attributes
    ----------
    run
        The job.
    command, sources, prepared
        What is done, to which outputs.
    line
        Who says so: the command line.
    """

    run: JobRun
    command: Command
    sources: Mapping[str, Source]
    prepared: Prepared
    line: str

    def begin(self) -> Path:
        """Start the job, and return its folder."""
        run = self.run
        folder = run.begin(self._connect, self.line)
        for line in (self.command.description, *self.prepared.remarks):
            run.say(line)
        return folder

    def finish(self, result: Mapping[str, Any]) -> None:
        """Show what was done: all but the end of the job."""
        self.run.show({text: Path(path) for text, path in result["plots"].items()})
        for line in result["lines"]:
            self.run.say(line)

    def _connect(self) -> None:
        for kind in self.command.inputs:
            if kind.name in self.sources:
                self.run.job.connect(kind.name, self.sources[kind.name], kind.slots, kind.title)


def _sources(
    instance: Instance, request: Request, command: Command, job: ExternalJob | None
) -> dict[str, Source]:
    """Return the output for each input, as the request names it, or as the job to go on with has it."""
    texts = dict(request.outputs)
    for kind in command.inputs:
        if job is not None and (found := connected_output(job, kind.name, texts.get(kind.name))):
            texts[kind.name] = found
        if kind.needed and not texts.get(kind.name):
            flag = OPTIONS.get(kind.name, kind.name)
            raise ConfigurationError(f"--{flag} is missing, as in --{flag} J42:{kind.name}.")
    if job is None:
        request.check_workspace(instance)
    return find_outputs(instance, request.project, command, texts)
