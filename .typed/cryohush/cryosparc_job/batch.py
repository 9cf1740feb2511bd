"""Outputs of cryoSPARC's jobs as sources of a batch: each becomes an external job, from begin to end."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.batch.kinds import EvaluationSummary, Result
from ..core.batch.state import Item
from ..core.config.batch import OPTIONS, Source
from ..core.config.denoise import DenoiseOptions
from ..core.config.evaluate import EvaluateConfig
from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.errors import ConfigurationError, HostError
from ..core.inference.summary import Summary
from ..core.noise.summary import NoiseSummary
from .command import Command, CommandWork, Prepared, find_outputs, open_command, prepare_command
from .denoise import Denoising, open_denoising
from .evaluate import ENTRIES, evaluation
from .extract_noise import extraction
from .guard import LAST_WORD_SECONDS, JobEnded, check_active, end_as_failed
from .instance import ConnectionLost, Instance
from .instance import Source as Output
from .job import ExternalJob, find_job
from .kinds import KINDS, MICROGRAPHS, PARTICLES, Kind, write_table
from .newest import find_marked, find_newest
from .place import FOLDER, Place, find_place
from .run import JobRun, new_mark
from .train import trained_model
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
        self._running: dict[str, Denoising | CommandWork] = {}

    def find(self, source: Source) -> list[Item]:
        """Return the one item of an output."""
        assert source.cryosparc is not None  # of this host
        instance, project = self._instance, source.cryosparc
        directory = instance.project_directory(project)
        find_place(directory, project, "", None)
        if source.newest is not None:
            text, kind = find_newest(instance, project, source.newest, source.workspace)
        else:
            kind = PARTICLES if source.particles else MICROGRAPHS
            text = source.particles or source.micrographs or ""
        found = instance.find_source(project, text, kind.data, [kind.slot])
        workspace = source.workspace or next(iter(found.workspaces), None)
        if workspace is None:
            raise ConfigurationError(f"{found.job} is in no workspace. Name one, as workspace: W1.")
        mark = new_mark()
        self._new.add(mark)
        table, _ = self._write_table(project, found, kind)
        return [
            Item(
                name=source.name or f"{project}_{found.job}_{found.output}",
                host="cryosparc",
                source=table,
                origin=f"{project} {text}",
                root=directory,
                project=directory,
                alias=source.title,
                details={
                    "project": project,
                    "workspace": workspace,
                    "input": text,
                    "kind": kind.name,
                    "mark": mark,
                },
            )
        ]

    def check(self, item: Item) -> None:
        """Raise when there is no such workspace, the images do not suit the job, or a model is not there."""
        project, options = item.details["project"], item.options
        self._instance.check_workspace(project, item.details["workspace"])
        if isinstance(options, DenoiseOptions):
            model = trained_model(self._instance, _place(item), project, options.model)
            item.options = options.model_copy(update={"model": model})
            return
        command = self._command_of(item)
        if item.details["kind"] != command.inputs[0].name:
            raise ConfigurationError(
                f"job {item.job}: expected an output with {command.noun}, found {item.details['input']} with "
                f"{_KINDS[item.details['kind']].noun}."
            )
        if isinstance(options, EvaluateConfig):
            item.details["outputs"] = _outputs(item, options)
        _, prepared = self._prepare(item, command)
        # the same outputs make the same tables
        folder = self._folder / "_".join([project, item.job, *_texts(item).values()])
        folder.mkdir(exist_ok=True)
        _settle(item, prepared.write(folder))

    def open(self, item: Item) -> Path:
        """Make the job, or take up again the one that there is, and start it."""
        return self._open_denoising(item) if item.job == "denoise" else self._open_command(item)

    def _open_denoising(self, item: Item) -> Path:
        assert isinstance(item.options, DenoiseOptions)  # of its job
        project, text = item.details["project"], item.details["input"]
        kind, place = _KINDS[item.details["kind"]], _place(item)
        source = self._instance.find_source(project, text, kind.data, [kind.slot])
        table, dataset = self._write_table(project, source, kind)

        def create(workspace: str, mark: str) -> ExternalJob:
            return open_denoising(
                self._instance, project, workspace, kind, self._command, title=item.alias, mark=mark
            )

        job = self._job(item, create)
        if job.status() == "completed":  # only the note of it in the batch's state was lost
            folder = place.folder(job.directory_name())
        else:
            run = JobRun(job, place, kind.noun, echo=lambda line: None)
            work = Denoising(run, source, kind, place, dataset, table, item.options, self._command)
            self._running[item.name] = work
            folder = work.begin()
        item.source = folder / kind.table
        return folder

    def _open_command(self, item: Item) -> Path:
        project, command = item.details["project"], self._command_of(item)
        place = _place(item, command.folder)
        sources, prepared = self._prepare(item, command)

        def create(workspace: str, mark: str) -> ExternalJob:
            return open_command(
                self._instance, project, workspace, command, self._command, title=item.alias, mark=mark
            )

        job = self._job(item, create)
        if job.status() == "completed":
            folder = place.folder(job.directory_name())
        else:
            run = JobRun(job, place, command.noun, echo=lambda line: None)
            work = CommandWork(run, command, sources, prepared, self._command)
            self._running[item.name] = work
            folder = work.begin()
        _settle(item, prepared.write(folder))
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
            self._complete(work, item.output, summary)
        else:
            stopped = item.state == "stopped"
            reason = item.error if stopped else f"{item.error} Then go on with: batch retry-failed."
            with contextlib.suppress(JobEnded):
                end_as_failed(
                    work.run.job, str(reason), patience_seconds=LAST_WORD_SECONDS if stopped else None
                )
        del self._running[item.name]

    def _complete(self, work: Denoising | CommandWork, folder: Path, summary: Result) -> None:
        try:
            self._finish(work, folder, summary)
            work.run.job.complete()
        except ConnectionLost:
            raise
        except HostError:
            # refused because the user has ended the job: then that is the reason
            check_active(work.run.job)
            raise

    def _finish(self, work: Denoising | CommandWork, folder: Path, summary: Result) -> None:
        if isinstance(work, Denoising):
            assert isinstance(summary, Summary)  # of its job
            work.finish(folder, describe_run(summary, self._command, work.kind.way_back))
        elif isinstance(summary, NoiseSummary):
            work.finish(describe_noise(summary, self._command))
        elif isinstance(summary, EvaluationSummary):
            work.finish(describe_evaluation(summary.tables, summary.pictures, folder))

    def _job(self, item: Item, create: Callable[[str, str], ExternalJob]) -> ExternalJob:
        """Return the job of a source, also one that a driver was killed over as it made it.

        If there is none, `create` makes it in a workspace, with a mark in its description.
        """
        details = item.details
        project, workspace, mark = details["project"], details["workspace"], details["mark"]
        uid: str | None = details.get("job")
        if uid is None and mark not in self._new:
            uid = find_marked(self._instance, project, workspace, mark)
        if uid is not None:
            details["job"] = uid
            return find_job(self._instance, project, uid)
        job = create(workspace, mark)
        details["job"] = job.uid
        self._new.discard(mark)
        return job

    def _command_of(self, item: Item) -> Command:
        """Return what the single command of the item's job does."""
        project, options = item.details["project"], item.options
        if isinstance(options, ExtractNoiseOptions):
            return extraction(self._instance, project, options)
        given = options.model_dump(exclude_unset=True)
        values = {name: value for name, value in given.items() if name not in ENTRIES.values()}
        return evaluation(self._instance, project, values)

    def _prepare(self, item: Item, command: Command) -> tuple[dict[str, Output], Prepared]:
        """Return the outputs that a command takes, and its work on them, checked."""
        project = item.details["project"]
        sources = find_outputs(self._instance, project, command, _texts(item))
        place = _place(item, command.folder)
        return sources, prepare_command(self._instance, project, command, place, sources)

    def _write_table(self, project: str, source: Output, kind: Kind) -> tuple[Path, Any]:
        """Return the table of an output for a run, and its rows."""
        table = Path(tempfile.mkdtemp(dir=self._folder)) / kind.table
        dataset = self._instance.load(project, source, [kind.slot])
        write_table(kind, dataset, table)
        return table, dataset


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


def _settle(item: Item, task: Mapping[str, Any]) -> None:
    """Let an item's run read the tables of a task."""
    options = OPTIONS[item.job](**task["options"])
    item.options = options
    source = options.denoised if isinstance(options, EvaluateConfig) else task["source"]
    item.source = Path(source or item.source)
