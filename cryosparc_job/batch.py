"""Outputs of cryoSPARC's jobs as sources of a batch: each becomes an external job, from begin to end."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from ..core.config.batch import Source
from ..core.config.denoise import DenoiseOptions
from ..core.errors import ConfigurationError, HostError
from ..core.inference.books import Item
from ..core.inference.jobs import Result
from ..core.inference.summary import Summary
from .denoise import Denoising, open_denoising
from .guard import LAST_WORD_SECONDS, JobEnded, check_active, end_as_failed
from .instance import ConnectionLost, Instance
from .instance import Source as Output
from .job import ExternalJob, find_job
from .kinds import KINDS, MICROGRAPHS, PARTICLES, Kind, write_table
from .newest import find_marked, find_newest
from .place import Place, find_place
from .run import JobRun, new_mark
from .train import trained_model
from .work import describe_run

_KINDS = {kind.name: kind for kind in KINDS}


class CryosparcProjects:
    """The host of cryoSPARC's projects; see `Host`.

    What it remembers of a source: `project`, `workspace`, `input` (as `J42:particles`) and its `kind`, the
    `mark` in the description of its job, and the `job`, once there is one.

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
        self._running: dict[str, Denoising] = {}

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
        """Raise when there is no such workspace, nothing can be written, or a model is not yet trained."""
        project, options = item.details["project"], item.options
        if not isinstance(options, DenoiseOptions):
            raise ConfigurationError(
                f"job {item.job}: in cryoSPARC a batch only denoises. Run cryosparc_cryohush {item.job}."
            )
        self._instance.check_workspace(project, item.details["workspace"])
        model = trained_model(self._instance, _place(item), project, options.model)
        item.options = options.model_copy(update={"model": model})

    def open(self, item: Item) -> Path:
        """Make the job, or take up again the one that there is, and start it."""
        assert isinstance(item.options, DenoiseOptions)  # since `check`
        project, text = item.details["project"], item.details["input"]
        kind, place = _KINDS[item.details["kind"]], _place(item)
        source = self._instance.find_source(project, text, kind.data, [kind.slot])
        table, dataset = self._write_table(project, source, kind)
        job = self._job(item, kind)
        if job.status() == "completed":  # what was lost is only the note of it in the books
            folder = place.folder(job.directory_name())
        else:
            run = JobRun(job, place, kind.noun, echo=lambda line: None)
            work = Denoising(run, source, kind, place, dataset, table, item.options, self._command)
            self._running[item.name] = work
            folder = work.begin()
        item.source = folder / kind.table
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
        if isinstance(summary, Summary) and item.output is not None:
            self._complete(work, item.output, summary)
        else:
            stopped = item.state == "stopped"
            reason = item.error if stopped else f"{item.error} Then go on with: batch retry-failed."
            with contextlib.suppress(JobEnded):
                end_as_failed(
                    work.run.job, str(reason), patience_seconds=LAST_WORD_SECONDS if stopped else None
                )
        del self._running[item.name]

    def _complete(self, work: Denoising, folder: Path, summary: Summary) -> None:
        try:
            work.finish(folder, describe_run(summary, self._command, work.kind.way_back))
            work.run.job.complete()
        except ConnectionLost:
            raise
        except HostError:
            # refused because the user has ended the job: then that is the reason
            check_active(work.run.job)
            raise

    def _job(self, item: Item, kind: Kind) -> ExternalJob:
        """Return the job of a source, made if there is none: also when a driver was killed as it made it."""
        details = item.details
        project, workspace, mark = details["project"], details["workspace"], details["mark"]
        uid: str | None = details.get("job")
        if uid is None and mark not in self._new:
            uid = find_marked(self._instance, project, workspace, mark)
        if uid is not None:
            details["job"] = uid
            return find_job(self._instance, project, uid)
        job = open_denoising(
            self._instance, project, workspace, kind, self._command, title=item.alias, mark=mark
        )
        details["job"] = job.uid
        self._new.discard(mark)
        return job

    def _write_table(self, project: str, source: Output, kind: Kind) -> tuple[Path, Any]:
        """Return the table of an output for a run, and its rows."""
        table = Path(tempfile.mkdtemp(dir=self._folder)) / kind.table
        dataset = self._instance.load(project, source, [kind.slot])
        write_table(kind, dataset, table)
        return table, dataset


def _place(item: Item) -> Place:
    """Return where the files of a source are."""
    assert item.project is not None  # of this host's items
    return find_place(item.project, item.details["project"], item.details["input"].partition(":")[0], None)
