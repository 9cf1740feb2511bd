"""What a batch can do to a source: the kinds of job, what each leaves behind, and how long it takes."""

from __future__ import annotations

import functools
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch

from ..config.denoise import DenoiseOptions
from ..config.extract_noise import ExtractNoiseOptions
from ..inference.devices import choose_precision, pixels_per_second
from ..inference.summary import Summary
from ..io.micrographs import MicrographSet
from ..job_context import JobContext
from ..jobs.denoise import RunSize, measure_run, run_denoise
from ..jobs.evaluate import Evaluation
from ..jobs.extract_noise import plan_search, run_extract_noise
from ..models.weights import load_model
from ..noise.finders import finder_of, load_noise_network
from ..noise.micrograph import Draw, extract_from
from ..noise.output import PARTS_FOLDER
from ..noise.summary import NoiseSummary
from .state import Item
from .workers import Pool

Options = TypeVar("Options", DenoiseOptions, ExtractNoiseOptions)


# Of the jobs `denoise`, `extract-noise` and `evaluate`.
Result = Summary | NoiseSummary | Evaluation


class JobKind(Protocol):
    """A kind of job; of each method a `CryohushError` belongs to the one source."""

    def measure(self, item: Item, output: Path) -> RunSize:
        """Check all that can be checked before the job, and say how large it is; nothing is written."""

    def forecast(
        self, item: Item, size: RunSize, device: torch.device, threads: int
    ) -> tuple[RunSize, float]:
        """Return the size as a trial on `device` shows it, and the seconds that the job takes there."""

    def run(self, item: Item, output: Path, pool: Pool, context: JobContext) -> Result:
        """Do the job, or what an earlier driver has left of it."""


class DenoiseJob:
    """Denoising, as `cryohush denoise` does it."""

    def measure(self, item: Item, output: Path) -> RunSize:
        """See `JobKind`."""
        options = _of_kind(item, DenoiseOptions)
        return measure_run(item.source, output, options, root=item.root, passthrough=item.passthrough)

    def forecast(
        self, item: Item, size: RunSize, device: torch.device, threads: int
    ) -> tuple[RunSize, float]:
        """See `JobKind`; the time is that of the network alone."""
        options = _of_kind(item, DenoiseOptions)
        rate = _pixels_per_second(options.model, options.precision, device)
        return size, size.n_pixels / rate / (threads if device.type == "cpu" else 1)

    def run(self, item: Item, output: Path, pool: Pool, context: JobContext) -> Summary:
        """See `JobKind`."""
        return run_denoise(
            item.source,
            output,
            _of_kind(item, DenoiseOptions),
            context,
            root=item.root,
            passthrough=item.passthrough,
            earlier="anew",
            devices=pool,
        )


class ExtractNoiseJob:
    """An extraction of noise, as `cryohush extract-noise` does it.

    Parameters
    ----------
    draw
        Writes the picture of a micrograph (`report.overlays.write_overlay`).
    """

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def measure(self, item: Item, output: Path) -> RunSize:
        """See `JobKind`; how many blocks there are cannot be known before."""
        options = _of_kind(item, ExtractNoiseOptions)
        load_noise_network(options)
        images = MicrographSet.read(item.source, root=item.root)
        tasks, _ = plan_search(images, options)
        n_pixels = sum(task.shape[0] * task.shape[1] for task in tasks)
        return RunSize(
            "micrographs",
            len(tasks),
            n_pixels,
            (n_pixels if finder_of(options).makes_labels else 0) + _block_bytes(tasks[0].window_px),
            list(dict.fromkeys([images.source, *images.stacks])),
        )

    def forecast(
        self, item: Item, size: RunSize, device: torch.device, threads: int
    ) -> tuple[RunSize, float]:
        """See `JobKind`; from a micrograph in the middle, searched twice: the first time sets up."""
        options = _of_kind(item, ExtractNoiseOptions)
        model = load_noise_network(options)
        tasks, _ = plan_search(MicrographSet.read(item.source, root=item.root), options)
        task = tasks[len(tasks) // 2]
        precision, _ = choose_precision(device, options.precision)
        finder = finder_of(options).make(model, device, precision, options)
        kept, seconds = 0, 0.0
        with tempfile.TemporaryDirectory(prefix="cryohush-") as folder:
            (Path(folder) / PARTS_FOLDER).mkdir()
            for _ in range(2):
                begin = time.perf_counter()
                kept = extract_from(task, finder, Path(folder), options, self._draw).kept
                seconds = time.perf_counter() - begin
        blocks = kept * len(tasks) * _block_bytes(task.window_px)
        at_once = threads if device.type == "cpu" else 1
        return replace(size, bytes=size.bytes + blocks), seconds * len(tasks) / at_once

    def run(self, item: Item, output: Path, pool: Pool, context: JobContext) -> NoiseSummary:
        """See `JobKind`."""
        return run_extract_noise(
            item.source,
            output,
            _of_kind(item, ExtractNoiseOptions),
            context,
            root=item.root,
            earlier="anew",
            draw=self._draw,
            devices=pool,
        )


def _block_bytes(window_px: int) -> int:
    return 4 * window_px**2


@functools.cache
def _pixels_per_second(
    model: str, precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> float:
    module = load_model(model).module
    chosen, _ = choose_precision(device, precision)
    return pixels_per_second(module, device, chosen)


def _of_kind(item: Item, kind: type[Options]) -> Options:
    assert isinstance(item.options, kind)  # of the item's job
    return item.options
