"""A command at work: inputs found and checked, a job made, a child's result saved and shown."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.console import show
from ..core.errors import ConfigurationError, HostError, InputError, OutputError
from . import worker
from .command import OPTIONS, Command, Prepared
from .guard import run_guarded, stop_signals
from .job import ExternalJob, create_job
from .lock import Holder, JobBusy, Lock, this_program
from .place import Place, find_place
from .project import Project, Source
from .record import Record
from .run import JobRun


@dataclass(frozen=True)
class Request:
    """Where a command line wants its work to be done.

    Attributes
    ----------
    workspace
        Where a new job is made, as in `W1`; None if there is a job.
    outputs
        The output for each input of the command, as in `J42:particles`; None where there is none.
    record
        What the job is made for.
    job
        The job to work in, if there is one.
    scratch
        A folder to work in if the project's directory is not mounted here.
    title
        Of a new job, instead of the command's own.
    is_watched
        Whether `watch` does this.
    may_begin_anew
        See `Work`.
    """

    workspace: str | None
    outputs: Mapping[str, str | None]
    record: Record
    job: ExternalJob | None = None
    scratch: Path | None = None
    title: str | None = None
    is_watched: bool = False
    may_begin_anew: bool = True


def run_command(project: Project, request: Request, command: Command) -> int:
    """Do a command in an external job; the exit status.

    Raises
    ------
    CryohushError
        If there is no job yet that could say what is wrong.
    """
    with contextlib.ExitStack() as held:
        sources, place, prepared = _prepare(project, request, command, held)
        with stop_signals() as signals:
            job = request.job or open_command(
                project,
                str(request.workspace),
                command,
                sources[command.inputs[0].name],
                request.record,
                request.title,
            )
            run = JobRun(job, place, command.noun)
            line, anew = request.record.command_line, request.may_begin_anew
            work = Work(run, command, sources, prepared, line, anew)
            holder = Holder(this_program(), watched=request.is_watched)
            lock: Lock | None = None

            def do() -> None:
                nonlocal lock
                name = job.directory_name()
                lock = held.enter_context(place.lock(name))
                lock.note(holder)
                if request.job is not None and job.status() == "completed":
                    raise JobBusy(f"{job.uid} is completed: there is nothing to go on with.")
                if request.job is not None:
                    job.set_record(request.record)
                try:
                    work.do(place, lock)
                finally:
                    place.hand_over(name)

            code = run_guarded(job, signals, do)
            if lock is not None and code != 0 and signals.received is not None:
                lock.note(dataclasses.replace(holder, interrupted=True))
            if code == 0:
                place.drop(prepared.names)
            return code


def _prepare(
    project: Project, request: Request, command: Command, held: contextlib.ExitStack
) -> tuple[dict[str, Source], Place, Prepared]:
    """Find the inputs, and look for all that can be wrong before a job is made."""
    directory = project.directory()
    sources = _sources(project, request, command)
    scratch = request.scratch and request.scratch / project.instance.name
    first = sources[command.inputs[0].name].job
    try:
        place = find_place(directory, project.uid, first, scratch, command.folder)
    except OutputError:
        if command.needs_files:
            raise
        scratch = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="cryohush-")))
        place = find_place(directory, project.uid, first, scratch, command.folder)
    prepared = prepare_command(project, command, place, sources)
    if request.job is None and place.is_shared:
        place.check_space(prepared.n_bytes)
    if prepared.check is not None:
        worker.check(prepared.check)
    return sources, place, prepared


def _sources(project: Project, request: Request, command: Command) -> dict[str, Source]:
    """Return the output for each input, as the request names it, or as the job has it."""
    texts = dict(request.outputs)
    for kind in command.inputs:
        if request.job is not None and (found := connected_output(request.job, kind.name)):
            if texts.get(kind.name) not in (None, found, found.partition(":")[0]):
                raise ConfigurationError(f"{texts[kind.name]}: {request.job.uid} has {found}. Leave it out.")
            texts[kind.name] = found
        if kind.needed and not texts.get(kind.name):
            flag = OPTIONS.get(kind.name, kind.name)
            raise ConfigurationError(f"--{flag} is missing, as in --{flag} J42:{kind.name}.")
    if request.job is None:
        if request.workspace is None:
            raise ConfigurationError("--workspace is missing, as in --workspace W1.")
        project.check_workspace(request.workspace)
    return find_outputs(project, command, texts)


def connected_output(job: ExternalJob, name: str) -> str | None:
    """Return the output at an input of a job, as in `J42:particles`, if there is one.

    Raises
    ------
    HostError
        If there are several.
    """
    found = [":".join(pair) for pair in job.connections(name)]
    if len(found) > 1:
        raise HostError(
            f"{job.uid} has {len(found)} outputs at its input {name}: {', '.join(found)}. Leave one; each of "
            "the others takes a job of its own."
        )
    return found[0] if found else None


def find_outputs(project: Project, command: Command, texts: Mapping[str, str | None]) -> dict[str, Source]:
    """Return the output for each input of a command that has one in `texts`; see `find_source`."""
    return {
        kind.name: project.find_source(text, kind.data, kind.slots + kind.unconnected)
        for kind in command.inputs
        if (text := texts.get(kind.name))
    }


def prepare_command(
    project: Project, command: Command, place: Place, sources: Mapping[str, Source]
) -> Prepared:
    """Load the outputs and check what can be checked before a job is made.

    Raises
    ------
    CryohushError
        If something is wrong with them.
    """
    datasets = {
        kind.name: project.load(sources[kind.name], kind.read(sources[kind.name]))
        for kind in command.inputs
        if kind.name in sources
    }
    try:
        return command.prepare(place, datasets)
    except InputError as error:
        raise type(error)(_with_outputs_named(str(error), command, sources)) from error


def _with_outputs_named(text: str, command: Command, sources: Mapping[str, Source]) -> str:
    """Return a text that names outputs, `J42:particles`, instead of tables that were made to check them."""

    def name(found: re.Match[str]) -> str:
        return str(sources.get(found[1], sources[command.inputs[0].name]))

    made = rf"{re.escape(tempfile.gettempdir())}/cryohush-\w+/(\w+)\.(?:cs|star)(?:, line \d+)?"
    return re.sub(made, name, text)


def open_command(
    project: Project,
    workspace: str,
    command: Command,
    source: Source,
    record: Record,
    title: str | None = None,
) -> ExternalJob:
    """Create the job of a command, for an output, and say its name; see `create_job`."""
    title = title or command.title.replace("{source}", str(source))
    job = create_job(project, workspace, title, command.description, record)
    show(f"job {job.uid} of {project}")
    return job


@dataclass(frozen=True)
class Work:
    """The work on a job that there is, before and after that of the child.

    Attributes
    ----------
    run
        The job.
    command, sources, prepared
        What is done, to which outputs.
    line
        Who says so: the command line.
    may_begin_anew
        Whether what an earlier run with other options or input has left may be replaced.
    """

    run: JobRun
    command: Command
    sources: Mapping[str, Source]
    prepared: Prepared
    line: str
    may_begin_anew: bool = True

    def begin(self) -> Path:
        """Start the job, and return its folder."""
        folder = self.run.begin(self._build, self.line)
        for line in (self.command.trust, *self.prepared.remarks):
            if line:
                self.run.say(line)
        return folder

    def do(self, place: Place, lock: Lock) -> None:
        """Do all of it but the end of the job; `lock` is that of the job."""
        run, prepared = self.run, self.prepared
        folder = self.begin()
        result: Mapping[str, Any] = {"plots": {}, "lines": ()}
        if prepared.write is not None:
            if not place.is_shared:
                place.fetch(run.job.project, prepared.names, run.say)
            task = {
                **prepared.write(folder),
                "job": run.job.uid,
                "command": self.line,
                "anew": self.may_begin_anew,
            }
            result = run.do(task, lock)
            if not place.is_shared:
                files = [path for path in sorted(folder.rglob("[!.]*")) if path.is_file()]
                run.send(files, folder)
        self.finish(folder, result)

    def finish(self, folder: Path, result: Mapping[str, Any]) -> None:
        """Save the output and show what was done: all but the end of the job."""
        run, output = self.run, self.command.output
        if self.prepared.save is not None:
            self.prepared.save(run.job, folder, result)
        pictures = {text: Path(path) for text, path in result["plots"].items()}
        run.show(pictures, output.name if output else None)
        for line in result.get("warnings", ()):
            run.say(line, "warning")
        for line in result["lines"]:
            run.say(line)

    def _build(self) -> None:
        """Connect the inputs and add the outputs."""
        job, command = self.run.job, self.command
        pairs = [(kind, self.sources[kind.name]) for kind in self.command.inputs if kind.name in self.sources]
        for kind, source in (*pairs, *self.prepared.also):
            job.connect(kind.name, source, kind.slots, kind.title)
        for output in (*([] if command.output is None else [command.output]), *command.parts):
            passthrough = command.inputs[0].name
            job.add_output(output.data, output.name, output.slots, passthrough, output.title)
