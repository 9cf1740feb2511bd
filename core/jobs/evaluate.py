"""An evaluation from files to files: JSON, figures, an HTML report and `logfile.pdf`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ..config.base import files_in, paths_in
from ..config.evaluate import EvaluateConfig
from ..errors import Aborted, InputError
from ..evaluation.comparison import Result, Sources, compare
from ..evaluation.model_section import model_figures
from ..evaluation.picking import picking
from ..evaluation.sections import against_clean, against_twin, sample_section
from ..evaluation.tasks import Found, clustering, half_maps, pose_accuracy
from ..inference.devices import LocalDevices
from ..inference.plan import source_files
from ..io.files import digest_of, states_of
from ..io.journal import RANGES_FOLDER, Undertaking
from ..job_context import QUIET, JobContext
from ..models.precision import threads_kept
from ..models.weights import load_model
from ..report import PDF_NAME
from ..report.html import Section
from .evaluation_files import (
    HTML_NAME,
    JSON_NAME,
    TABLE_NAME,
    Evaluation,
    describe_images,
    facts_of,
    summarise,
    write_evaluation,
)
from .folder import Earlier, JobFolder
from .job import BatchJob, Devices, JobSize, Parts, Plan
from .parts import do_in_folder, move_files, own_folder, read_notes

# What an evaluation writes: figures, a page, a PDF.
_REPORT_BYTES = 2**22
# A forecast compares images for so long to see how fast that is.
_TRIAL_SECONDS = 1.0


class EvaluateJob(BatchJob[Evaluation]):
    """All that applies is computed and written to the folder; nothing is written before all is computed.

    Parameters
    ----------
    config
        What is compared with what.
    """

    # what it writes depends on what it finds: nothing of an earlier one is kept
    earlier_in_hosts = "replace"

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config

    def devices(self) -> LocalDevices:
        """See `Job`; the device of the options is for figures of the model alone."""
        return LocalDevices([torch.device("cpu")], self.config.threads)

    def plan(self, devices: Devices, context: JobContext) -> EvaluatePlan:
        """See `Job`.

        Raises
        ------
        InputError
            If a file cannot be read, or does not go together with the others.
        """
        clock = time.time(), time.monotonic()
        sources = Sources.open(self.config) if self.config.denoised else None
        inputs = _inputs(self.config, sources)
        undertaking = _undertaking(self.config, inputs)
        return EvaluatePlan(self.config, sources, context.command or "", inputs, undertaking, clock)

    def measure(self, output_dir: Path) -> JobSize:
        """See `Job`."""
        config = self.config
        for path in paths_in(config):
            if not path.exists():
                raise InputError("no such file.", path=path)
        if config.model is not None:
            load_model(config.model)
        sources = Sources.open(config)
        n, (y, x) = len(sources.denoised), sources.denoised.shape
        return JobSize(
            "particles" if sources.denoised.kind == "particles" else "micrographs",
            n,
            n * y * x,
            _REPORT_BYTES,
            _files_of(sources),
        )

    def forecast(self, size: JobSize, devices: LocalDevices) -> tuple[JobSize, float]:
        """See `Job`; the time is that of comparing images, by the first few of them."""
        config, done = self.config, 0
        begin = time.perf_counter()

        def progress(now: int, total: int) -> None:
            nonlocal done
            done = now

        def should_stop() -> bool:
            return done > 0 and time.perf_counter() - begin > _TRIAL_SECONDS

        with threads_kept(devices.cpu_threads), contextlib.suppress(Aborted):  # enough was seen
            compare(Sources.open(config), config, JobContext(progress, should_stop))
        seconds = time.perf_counter() - begin
        return size, seconds * size.n_images / done if done else 0.0


@dataclass(frozen=True, eq=False)
class EvaluatePlan(Plan["EvaluateWork", Evaluation]):
    """An evaluation whose tables were read and checked; see `Plan`.

    Attributes
    ----------
    config, sources
        What is compared with what; no sources where there are no denoised images.
    command
        The command line.
    inputs, undertaking
        The files that it reads; what it is going to make.
    clock
        When it began: seconds since 1970, and of the monotonic clock.
    """

    config: EvaluateConfig
    sources: Sources | None
    command: str
    inputs: Sequence[Path]
    undertaking: Undertaking
    clock: tuple[float, float]

    def bytes_left(self, folder: JobFolder) -> int:
        """See `Plan`."""
        return _REPORT_BYTES

    def begin(self, folder: JobFolder) -> EvaluateWork:
        """See `Plan`."""
        return EvaluateWork(self, folder)

    def finish(self, folder: JobFolder, work: EvaluateWork | None) -> Evaluation:
        """See `Plan`."""
        if work is None or work.found is None:
            return Evaluation(folder.path, list(folder.journal.results or ()))
        folder.journal.complete(work.found.names)
        return work.found


class EvaluateWork:
    """An evaluation, which one process does from begin to end, or again; see `Work`.

    Attributes
    ----------
    found
        What it found; None before it is done.
    """

    def __init__(self, plan: EvaluatePlan, folder: JobFolder) -> None:
        self._plan, self._folder = plan, folder
        self.found: Evaluation | None = None

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Compute all that applies, and write it."""
        config, sources, (started, begin) = self._plan.config, self._plan.sources, self._plan.clock
        numbers, sections, result = _compute(config, sources, devices.cpu_threads, context)
        facts = facts_of(config, sources, self._plan.command, started, time.monotonic() - begin)
        record = {"facts": facts, "options": config.model_dump(mode="json"), **numbers}
        names = write_evaluation(self._folder, facts, record, sections, sources, result)
        self.found = summarise(self._folder.path, names, sections)

    @contextlib.contextmanager
    def in_parts(self, part_bytes: int) -> Iterator[Parts[WholeEvaluation]]:
        """Yield all of it as one part."""
        plan = self._plan
        n_images = 0 if plan.sources is None else len(plan.sources.denoised)
        with own_folder(self._folder.path) as folder:
            whole = WholeEvaluation(plan.config, folder / "evaluation", plan.command, n_images)
            yield Parts(self._folder.path.name, [whole], 1, n_images, self._take, is_whole=True)

    def _take(self, part: WholeEvaluation) -> None:
        found = Evaluation(self._folder.path, **read_notes(part.folder))
        self._folder.add_files(found.names)
        move_files(found.names, part.folder, self._folder.path)
        self.found = found


@dataclass(frozen=True)
class WholeEvaluation:
    """All of an evaluation, for one worker; see `Part`.

    Attributes
    ----------
    config
        What is compared with what.
    folder
        What the worker's folder becomes.
    command
        The command line.
    n_images
        Number of images.
    """

    config: EvaluateConfig
    folder: Path
    command: str
    n_images: int
    name: str = "evaluation"

    def describe(self) -> str:
        """See `Part`."""
        return self.name

    def do(self, devices: LocalDevices) -> None:
        """Evaluate into the folder.

        Raises
        ------
        CryohushError
            As `EvaluateJob.run`; nothing stays behind.
        """
        device = ",".join(str(one) for one in devices.devices)
        config = self.config.model_copy(update={"device": device, "threads": devices.cpu_threads})

        def do(folder: Path) -> dict[str, Any]:
            context = JobContext(should_stop=lambda: not folder.exists(), command=self.command)
            found = vars(EvaluateJob(config).run(folder, context, devices=devices))
            return {name: value for name, value in found.items() if name != "folder"}

        do_in_folder(self.folder, do)


def _files_of(sources: Sources) -> list[Path]:
    """Return the files of all tables."""
    tables = (sources.denoised, sources.reference, sources.twin, sources.raw)
    return [
        path
        for rows in tables
        if rows is not None
        for path in (*source_files(rows.table), *rows.table.stacks)
    ]


def _inputs(config: EvaluateConfig, sources: Sources | None) -> list[Path]:
    """Return all files that an evaluation reads."""
    return list(dict.fromkeys([*files_in(config), *(_files_of(sources) if sources else ())]))


def _undertaking(config: EvaluateConfig, inputs: Sequence[Path]) -> Undertaking:
    options = config.model_dump(mode="json", exclude={"device", "threads"})
    fingerprint = {"version": __version__, "inputs": digest_of(states_of(inputs)), **options}
    files = (JSON_NAME, HTML_NAME, TABLE_NAME, PDF_NAME)
    return Undertaking("evaluate", fingerprint, {}, files, [RANGES_FOLDER])


def _compute(
    config: EvaluateConfig, sources: Sources | None, n_threads: int, context: JobContext
) -> tuple[dict[str, Any], list[Section], Result | None]:
    """Return the numbers, the sections of the report, and the comparison of the images."""

    def check() -> None:
        context.stop_if_asked("Stopped. Nothing was written.")

    sections: list[Section] = []
    numbers: dict[str, Any] = {}
    result = None
    with threads_kept(n_threads):
        if sources is not None:
            context.log(describe_images(sources))
            for note in sources.notes:
                context.log(note)
            result = compare(sources, config, context)
            for remark in result.remarks:
                context.log(f"warning: {remark}")
            numbers["warnings"] = result.remarks
            numbers["frequency"] = result.frequency.tolist()
            sections.append(sample_section(sources))
        for name, work in _tasks(config, sources, result, check).items():
            check()
            context.log(f"{name.replace('_', ' ')} …")
            numbers[name], section = work()
            if section.verdict is not None:
                context.log(section.verdict.text)
            sections.append(section)
        check()
    return numbers, sections, result


def _tasks(
    config: EvaluateConfig, sources: Sources | None, result: Result | None, check: Callable[[], None]
) -> dict[str, Callable[[], Found]]:
    """Return all that is to be done after the images were compared, in the order of the report."""
    tasks: dict[str, Callable[[], Found]] = {}
    if sources is not None and result is not None:
        if result.reference:
            tasks["against_clean"] = lambda: against_clean(result, sources, config)
        if result.twin:
            tasks["against_twin"] = lambda: against_twin(result, sources, config)
        if config.clustering is not None:
            section = config.clustering
            tasks["clustering"] = lambda: clustering(section, sources)
        if config.pose is not None:
            poses = config.pose
            tasks["poses"] = lambda: pose_accuracy(poses, sources, check)
    if config.picking is not None:
        picks = config.picking
        tasks["picking"] = lambda: picking(picks, check)
    if config.half_maps is not None:
        maps = config.half_maps
        tasks["half_maps"] = lambda: half_maps(maps)
    if config.model is not None:
        model = config.model
        tasks["model"] = lambda: model_figures(model, sources, config.noise_images, config.device, check)
    return tasks


def run_evaluate(
    config: EvaluateConfig, output_dir: Path, context: JobContext = QUIET, *, earlier: Earlier = "refuse"
) -> Evaluation:
    """Evaluate, as `EvaluateJob` does it."""
    return EvaluateJob(config).run(output_dir, context, earlier=earlier)


def evaluate(
    config: EvaluateConfig, output_dir: Path, context: JobContext = QUIET, *, earlier: Earlier = "refuse"
) -> Evaluation:
    """Run `run_evaluate`, and tell of it in the log."""
    evaluation = run_evaluate(config, output_dir, context, earlier=earlier)
    for path in evaluation.files:
        context.log(f"wrote {path}")
    return evaluation
