"""Outputs of cryoSPARC's jobs as sources of a batch: each becomes an external job, from begin to end."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from ..core.batch.state import Item
from ..core.config.batch import OPTIONS, Source
from ..core.config.denoise import DenoiseOptions
from ..core.config.evaluate import EvaluateConfig
from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.errors import ConfigurationError, HostError
from ..core.inference.summary import Summary
from ..core.jobs.kinds import Result
from ..core.noise.summary import NoiseSummary
from .command import Command, Prepared
from .denoise import denoising
from .evaluate import ENTRIES, evaluation
from .execution import Work, find_outputs, open_command, prepare_command
from .extract_noise import extraction
from .guard import LAST_WORD_SECONDS, end_as_failed
from .instance import Instance
from .job import ExternalJob, JobEnded, find_job
from .lock import Holder, this_program
from .outputs import KINDS, MICROGRAPHS, PARTICLES, find_newest, write_table
from .place import FOLDER, Place, find_place
from .project import Project
from .project import Source as Output
from .record import Record, new_mark
from .run import JobRun
from .source import CryosparcSource
from .work import describe_evaluation, describe_noise, describe_run

_KINDS = {kind.name: kind for kind in KINDS}
# Inputs of an evaluation that the options name, by their entries.
_OTHERS = {entry: name for name, entry in ENTRIES.items() if entry != "denoised"}


class CryosparcProjects:
    """The host of cryoSPARC's projects; see `Host`.

    What it remembers of a source: `project`, `workspace`, `input` (as `J42:particles`) and its `kind`, the
    `mark` in the description of its job, the `job`, once there is one, and of an evaluation the `outputs`
    that it compares.

    Parameters
    ----------
    instance
        Signed in.
    folder
        For tables, until there are jobs to have them.
    command
        The command line, for the records.
    """

    def __init__(self, instance: Instance, folder: Path, command: str) -> None:
        self._instance, self._folder, self._command = instance, folder, command
        self._new = set[str]()
        self._running: dict[str, Work] = {}
        # what is held for each of them: its lock
        self._held: dict[str, contextlib.ExitStack] = {}

    def find(self, source: Source) -> list[Item]:
        """Return the one item of an output."""
        assert isinstance(source, CryosparcSource)  # of this host
        project = Project(self._instance, source.cryosparc)
        directory = project.directory()
        find_place(directory, project.uid, "", None)
        if source.newest is not None:
            text, kind = find_newest(project, source.newest, source.workspace)
        else:
            kind = PARTICLES if source.particles else MICROGRAPHS
            text = source.particles or source.micrographs or ""
        found = project.find_source(text, kind.data, [kind.slot])
        workspace = source.workspace or next(iter(found.workspaces), None)
        if workspace is None:
            raise ConfigurationError(f"{found.job} is in no workspace. Name one, as workspace: W1.")
        mark = new_mark()
        self._new.add(mark)
        table = Path(tempfile.mkdtemp(dir=self._folder)) / kind.table
        write_table(kind, project.load(found, [kind.slot]), table)
        return [
            Item(
                name=source.name or f"{project}_{found.job}_{found.output}",
                host="cryosparc",
                source=table,
                origin=f"{project} {found}",
                root=directory,
                project=directory,
                alias=source.title,
                details={
                    "project": project.uid,
                    "workspace": workspace,
                    "input": str(found),
                    "kind": kind.name,
                    "mark": mark,
                },
            )
        ]

    def check(self, item: Item) -> None:
        """Raise when there is no such workspace, the images do not suit the job, or a model is not there."""
        project = self._project(item)
        project.check_workspace(item.details["workspace"])
        command = self._command_of(item)
        if item.details["kind"] != command.inputs[0].name:
            raise ConfigurationError(
                f"job {item.job}: expected an output with {command.noun}, found {item.details['input']} with "
                f"{_KINDS[item.details['kind']].noun}."
            )
        if isinstance(item.options, EvaluateConfig):
            item.details["outputs"] = _outputs(item, item.options)
        _, prepared = self._prepare(item, command)
        # the same outputs make the same tables
        folder = self._folder / "_".join([project.uid, item.job, *_texts(item).values()])
        folder.mkdir(exist_ok=True)
        _settle(item, prepared, folder)

    def open(self, item: Item) -> Path:
        """Make the job, or take up again the one that there is, and start it."""
        command = self._command_of(item)
        place = _place(item, command.folder)
        sources, prepared = self._prepare(item, command)
        job = self._job(item, command, sources[command.inputs[0].name])
        name = job.directory_name()
        with contextlib.ExitStack() as held:
            lock = held.enter_context(place.lock(name))
            lock.note(Holder(this_program()))
            if job.status() == "completed":  # only the note of it in the batch's state was lost
                folder = place.folder(name)
            else:
                run = JobRun(job, place, command.noun, echo=lambda line: None)
                work = Work(run, command, sources, prepared, self._command)
                self._running[item.name] = work
                held.callback(place.hand_over, name)
                self._held[item.name] = held.pop_all()
                folder = work.begin()
        _settle(item, prepared, folder)
        return folder

    def is_aborted(self, item: Item) -> bool:
        """Raise `JobEnded` when the user has killed, cleared or deleted the job; asked for now and then."""
        if item.name in self._running:
            self._running[item.name].run.watch()
        return False

    def tell(self, item: Item, line: str) -> None:
        """Write a line into the job's event log."""
        if item.name in self._running:
            self._running[item.name].run.say(line)

    def show_progress(self, item: Item) -> None:
        """Renew the line of progress in the event log."""
        if item.name in self._running:
            self._running[item.name].run.show_progress(item.n_done, item.n_images)

    def close(self, item: Item, summary: Result | None) -> None:
        """Save the output, show pictures and complete the job, or fail it, unless the user has ended it."""
        work = self._running.get(item.name)
        if work is None:
            return
        if summary is not None and item.output is not None:
            self._finish(work, item.output, summary)
            work.run.job.complete()
        else:
            stopped = item.state == "stopped"
            reason = item.error if stopped else f"{item.error} Then go on with: batch retry-failed."
            with contextlib.suppress(JobEnded):
                end_as_failed(
                    work.run.job, str(reason), patience_seconds=LAST_WORD_SECONDS if stopped else None
                )
        self._held.pop(item.name).close()
        del self._running[item.name]

    def _finish(self, work: Work, folder: Path, summary: Result) -> None:
        if isinstance(summary, Summary):
            way_back = _KINDS[work.command.inputs[0].name].way_back
            result = describe_run(summary, self._command, way_back)
        elif isinstance(summary, NoiseSummary):
            result = describe_noise(summary, self._command)
        else:
            result = describe_evaluation(summary.tables, summary.pictures, folder)
        work.finish(folder, result)

    def _job(self, item: Item, command: Command, source: Output) -> ExternalJob:
        """Return the job of a source, also one that a driver was killed over as it made it, or make it."""
        details, project = item.details, self._project(item)
        workspace, mark = details["workspace"], details["mark"]
        uid: str | None = details.get("job")
        if uid is None and mark not in self._new:
            uid = project.find_marked(workspace, mark)
        if uid is not None:
            details["job"] = uid
            job = find_job(project, uid)
            if mark not in job.description():
                raise HostError(
                    f"{uid} is not the job that this batch has made; its description lacks {mark}."
                )
            return job
        job = open_command(project, workspace, command, source, Record(self._command, mark), item.alias)
        details["job"] = job.uid
        self._new.discard(mark)
        return job

    def _project(self, item: Item) -> Project:
        return Project(self._instance, item.details["project"])

    def _command_of(self, item: Item) -> Command:
        """Return what the single command of the item's job does."""
        project, options = self._project(item), item.options
        if isinstance(options, DenoiseOptions):
            return denoising(project, _KINDS[item.details["kind"]], options)
        if isinstance(options, ExtractNoiseOptions):
            return extraction(project, options)
        given = options.model_dump(exclude_unset=True)
        return evaluation(project, {name: given[name] for name in given if name not in ENTRIES.values()})

    def _prepare(self, item: Item, command: Command) -> tuple[dict[str, Output], Prepared]:
        """Return the outputs that a command takes, and its work on them, checked."""
        project = self._project(item)
        sources = find_outputs(project, command, _texts(item))
        return sources, prepare_command(project, command, _place(item, command.folder), sources)


def _place(item: Item, name: str = FOLDER) -> Place:
    """Return where the files of a source are, and the results in a folder `name` of its job."""
    assert item.project is not None  # of this host's items
    job = item.details["input"].partition(":")[0]
    return find_place(item.project, item.details["project"], job, None, name)


def _texts(item: Item) -> dict[str, str]:
    """Return the output for each input of an item's job, as in `J42:particles`."""
    return {item.details["kind"]: item.details["input"], **item.details.get("outputs", {})}


def _outputs(item: Item, options: EvaluateConfig) -> dict[str, str]:
    """Return the outputs that the options of an evaluation name: entries that the engine takes for paths."""
    assert item.project is not None  # of this host's items
    paths = {name: getattr(options, entry) for entry, name in _OTHERS.items()}
    return {
        name: str(path.relative_to(item.project) if path.is_relative_to(item.project) else path)
        for name, path in paths.items()
        if path is not None
    }


def _settle(item: Item, prepared: Prepared, folder: Path) -> None:
    """Write an item's tables into a folder, and let its run read them."""
    assert prepared.write is not None  # of the commands of a batch
    task = prepared.write(folder)
    item.options = OPTIONS[item.job](**task["options"])
    source = item.options.denoised if isinstance(item.options, EvaluateConfig) else task["source"]
    item.source = Path(source or item.source)
