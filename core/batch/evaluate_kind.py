"""The kinds of job that a batch can do, with the pictures and reports that belong to them."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.batch import Job
from ..config.evaluate import EvaluateConfig
from ..errors import Aborted, ConfigurationError, CryohushError, HostError, InputError
from ..evaluation.comparison import Sources, compare
from ..inference.plan import source_files
from ..inference.summary import Summary
from ..io.files import writing_failed
from ..io.journal import RANGES_FOLDER
from ..job_context import JobContext
from ..jobs.denoise import RunSize
from ..jobs.evaluate import PNG_PREFIX, Evaluation, paths_in, plan_evaluation, run_evaluate
from ..jobs.folder import JobFolder
from ..models.weights import load_model
from ..noise.summary import NoiseSummary
from ..report.noise import report_noise
from ..report.overlays import write_overlay
from ..report.pdf import report_run
from .kinds import DenoiseJob, EvaluationSummary, ExtractNoiseJob, JobKind, Result
from .ranges import move_files, read_notes, write_notes
from .retry import Workload, do_parts, in_words
from .state import Item
from .workers import Pool

# What an evaluation writes: figures, a page, a PDF.
_REPORT_BYTES = 2**22
# A dry run compares images for so long to see how fast that is.
_TRIAL_SECONDS = 1.0
# Rows of each table of the report that a batch repeats.
_ROWS = 3


class EvaluateJob:
    """An evaluation, as `cryohush evaluate` does it: one worker does all of it, or all of it again."""

    def measure(self, item: Item, output: Path) -> RunSize:
        """See `JobKind`."""
        config = _config(item)
        if item.host == "file" and (item.root or item.passthrough):
            raise ConfigurationError("root and passthrough are not for evaluations. Leave them out.")
        for path in paths_in(config):
            if not path.exists():
                raise InputError("no such file.", path=path)
        if config.model is not None:
            load_model(config.model)
        sources = Sources.open(config)
        tables = (sources.denoised, sources.reference, sources.twin, sources.raw)
        n, (y, x) = len(sources.denoised), sources.denoised.shape
        return RunSize(
            "particles" if sources.denoised.kind == "particles" else "micrographs",
            n,
            n * y * x,
            _REPORT_BYTES,
            [path for rows in tables if rows for path in (*source_files(rows.table), *rows.table.stacks)],
        )

    def forecast(
        self, item: Item, size: RunSize, device: torch.device, threads: int
    ) -> tuple[RunSize, float]:
        """See `JobKind`; the time is that of comparing images, by the first few of them."""
        config, done = _config(item), 0
        begin = time.perf_counter()

        def progress(now: int, total: int) -> None:
            nonlocal done
            done = now

        def should_stop() -> bool:
            return done > 0 and time.perf_counter() - begin > _TRIAL_SECONDS

        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            compare(Sources.open(config), config, progress=progress, should_stop=should_stop)
        except Aborted:
            pass  # enough was seen
        finally:
            torch.set_num_threads(before)
        seconds = time.perf_counter() - begin
        return size, seconds * size.n_images / done if done else 0.0

    def run(self, item: Item, output: Path, pool: Pool, context: JobContext) -> EvaluationSummary:
        """See `JobKind`."""
        folders, notes = output.absolute() / RANGES_FOLDER, dict[str, Any]()
        attempt, config = folders, _config(item)

        def work(whole: _Whole) -> _Evaluation:
            nonlocal attempt
            attempt = folders / uuid.uuid4().hex
            return _Evaluation(config, attempt, context.command or "")

        def take(whole: _Whole) -> None:
            notes.update(read_notes(attempt))
            folder.add_files(notes["files"])
            move_files(notes["files"], attempt, output)

        whole = _Whole(item.n_images)
        undertaking, inputs = plan_evaluation(config, Sources.open(config) if config.denoised else None)
        with JobFolder(output, undertaking, "replace", inputs=inputs, log=context.log) as folder:
            try:
                failed = do_parts(
                    pool,
                    Workload(item.name, [whole], whole.n_images, work, evaluate_whole, take),
                    context.should_stop,
                    context.progress,
                )
            finally:
                # a worker that is still at it stops
                shutil.rmtree(folders, ignore_errors=True)
            if not failed:
                folder.journal.complete(notes["files"])
        for _, error in failed:
            raise error if isinstance(error, CryohushError) else HostError(in_words(error)) from error
        return EvaluationSummary(
            files=[output / name for name in notes["files"]],
            key_figures=notes["key_figures"],
            picture=notes["picture"] and output / notes["picture"],
            tables=notes["tables"],
            pictures=notes["pictures"],
        )


@dataclass(frozen=True)
class _Whole:
    """All images of an evaluation."""

    n_images: int
    name: str = "evaluation"

    def describe(self) -> str:
        return self.name


@dataclass(frozen=True)
class _Evaluation:
    """What a worker needs; one whose folder is gone stops."""

    config: EvaluateConfig
    folder: Path
    command: str


def evaluate_whole(work: _Evaluation, device: str, threads: int | None) -> None:
    """Evaluate into a folder of its own; for a worker.

    Raises
    ------
    CryohushError
        As `run_evaluate`; nothing stays behind.
    """
    config = work.config.model_copy(update={"device": device, "threads": threads})
    try:
        found = run_evaluate(
            config,
            work.folder,
            JobContext(should_stop=lambda: not work.folder.exists(), command=work.command),
        )
        telling = next((section for section in found.sections if section.rows), found.sections[0])
        picture = f"{PNG_PREFIX}{telling.pictures[0].name}.png" if telling.pictures else None
        notes = {
            "files": [str(path.relative_to(work.folder)) for path in found.files],
            "key_figures": _key_figures(found),
            "picture": picture,
            "tables": found.tables,
            "pictures": found.pictures,
        }
        try:
            write_notes(work.folder, notes)
        except OSError as error:
            raise writing_failed(work.folder, error) from error
    except BaseException:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise


def _key_figures(found: Evaluation) -> dict[str, str]:
    """The first rows of each table of the report."""
    return {
        f"{section.title}: {row[0]}": ", ".join(
            f"{name} {cell}" for name, cell in zip(section.header[1:], row[1:], strict=True) if cell
        )
        for section in found.sections
        for row in section.rows[:_ROWS]
    }


def _config(item: Item) -> EvaluateConfig:
    assert isinstance(item.options, EvaluateConfig)  # of the item's job
    return item.options


KINDS: Mapping[Job, JobKind] = {
    "denoise": DenoiseJob(),
    "extract-noise": ExtractNoiseJob(write_overlay),
    "evaluate": EvaluateJob(),
}


def report_result(result: Result, command: str, way_back: str = "") -> None:
    """Write the report of a job into its folder, as the job's own command does.

    Parameters
    ----------
    result
        What the job has left.
    command
        The command line.
    way_back
        How to return to the raw images in the host that the job ran in.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    if isinstance(result, Summary):
        report_run(result, command, way_back=way_back)
    elif isinstance(result, NoiseSummary):
        report_noise(result, command)
