"""The kinds of job that a batch can do, with the pictures and reports that belong to them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from ..config.batch import Job
from ..config.evaluate import EvaluateConfig
from ..errors import Aborted, ConfigurationError, InputError
from ..evaluation.comparison import Sources, compare
from ..inference.plan import source_files
from ..inference.summary import Summary
from ..job_context import JobContext
from ..jobs.denoise import RunSize
from ..jobs.evaluate import Evaluation, paths_in, run_evaluate
from ..models.weights import load_model
from ..noise.summary import NoiseSummary
from ..report.noise import report_noise
from ..report.overlays import write_overlay
from ..report.pdf import report_run
from .kinds import DenoiseJob, ExtractNoiseJob, JobKind, Result
from .state import Item
from .workers import Pool

# What an evaluation writes: figures, a page, a PDF.
_REPORT_BYTES = 2**22
# A dry run compares images for so long to see how fast that is.
_TRIAL_SECONDS = 1.0


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

    def run(self, item: Item, output: Path, pool: Pool, context: JobContext) -> Evaluation:
        """See `JobKind`."""
        return run_evaluate(_config(item), output, context, earlier="replace", devices=pool)


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
