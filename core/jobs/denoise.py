"""Denoising: from a table, stack or micrograph to denoised ones, their table and a record."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..config.denoise import DenoiseOptions
from ..errors import InputError, several
from ..inference.devices import LocalDevices, choose_precision, pixels_per_second, resolve_devices
from ..inference.inputs import check_options, look_at_inputs
from ..inference.plan import (
    ImageSet,
    StackPlan,
    chosen_images,
    plan_stacks,
    refuse_to_replace_inputs,
    source_files,
)
from ..inference.summary import Summary
from ..job_context import QUIET, JobContext
from ..models.weights import load_model
from ..progress import counted
from ..report import PDF_NAME, PNG_NAME, VIEWER_NAME
from .denoise_files import undertaking_of
from .denoise_plan import DenoisePlan, kind_of
from .folder import Earlier
from .job import BatchJob, Devices, JobSize

# Conspicuous images that are named one by one.
WARNINGS = 8


class DenoiseJob(BatchJob[Summary]):
    """Denoising of a table of particles or micrographs, a bare stack, or a single micrograph.

    The folder gets one file per input file, under its own name; `particles.star`, `micrographs.star`, or
    `particles.cs` and `particles.csg`, if the input was such a table; `cryohush.json`; and the journal from
    which a killed run goes on. An image that the table names several times is written once. Inputs are never
    written to.

    A run that goes on keeps each file whose source, images, their CTFs, options and model are still the same.
    So a table that has grown costs only what is new in it. (Images at the seams of what was done and what is
    new were computed in other batches than in one run on the whole table, which can change their last bit.)

    Parameters
    ----------
    source
        `.star`, `.cs`, `.mrcs` or `.mrc`.
    options
        What to do.
    root
        Folder that the table's image names are relative to; see `ParticleSet.read`.
    passthrough
        Files that complete a `.cs` file; see `ParticleSet.read`.
    """

    def __init__(
        self,
        source: str | Path,
        options: DenoiseOptions,
        *,
        root: Path | None = None,
        passthrough: Sequence[str | Path] = (),
    ) -> None:
        self.source, self.options, self._root, self._passthrough = source, options, root, passthrough

    def devices(self) -> LocalDevices:
        """See `Job`."""
        return LocalDevices(resolve_devices(self.options.device), self.options.threads)

    def plan(self, devices: Devices, context: JobContext) -> DenoisePlan:
        """See `Job`.

        Raises
        ------
        CryohushError
            As `run`; also where the input holds a file that cannot be denoised and `options.skip_bad` is off.
        """
        clock, options, log = (time.time(), time.monotonic()), self.options, context.log
        model = load_model(options.model)
        images, damaged, n_rows = self.images()
        stacks = self.stacks(images, model.trained_pixel_sizes_angstrom)
        notes = look_at_inputs(images, stacks, model.trained_pixel_sizes_angstrom)
        for fact in notes.facts:
            log(fact)
        if damaged:
            log(f"warning: {several(damaged, len(damaged) + len(stacks), 'files')} Their rows are left out.")
        for warning in notes.warnings:
            log(f"warning: {warning}")
        if options.limit is not None and options.limit < n_rows:
            noun = kind_of(images).removesuffix("s")
            log(f"a trial: only the first {options.limit} of {counted(n_rows, noun)}")
        undertaking = undertaking_of(images, stacks, model.sha256, devices.types, options)
        log(f"model {model.name}, SHA-256 {model.sha256[:16]}…")
        for path in source_files(images)[1:]:
            log(f"joined with {path}")
        plan = DenoisePlan(
            options, model, images, stacks, damaged, notes, devices, context, undertaking, clock
        )
        log(plan.describe())
        return plan

    def images(self) -> tuple[ImageSet, list[InputError], int]:
        """Read the source; see `chosen_images`."""
        return chosen_images(self.source, self.options, root=self._root, passthrough=self._passthrough)

    def stacks(
        self, images: ImageSet, trained_angstrom: tuple[float, float] | None = None
    ) -> list[StackPlan]:
        """Plan the stacks of the source, and check the options against them; see `plan_stacks`."""
        stacks = plan_stacks(
            images,
            self.options.protein,
            pixel_size_angstrom=self.options.pixel_size_angstrom,
            trained_angstrom=trained_angstrom,
        )
        check_options(self.options, stacks, images)
        return stacks

    def measure(self, output_dir: Path) -> JobSize:
        """See `Job`.

        Raises
        ------
        CryohushError
            As `run`, but for pixels, devices and the room on the disk.
        """
        load_model(self.options.model)
        images, _, _ = self.images()
        stacks = self.stacks(images)
        refuse_to_replace_inputs(images, stacks, output_dir)
        n_pixels = sum(len(stack.indices) * stack.shape[0] * stack.shape[1] for stack in stacks)
        tables = source_files(images) if images.has_table else []
        n_bytes = n_pixels * np.dtype(self.options.output_dtype).itemsize
        return JobSize(
            kind_of(images),
            sum(len(stack.indices) for stack in stacks),
            n_pixels,
            n_bytes + sum(path.stat().st_size for path in tables),
            list(dict.fromkeys([*source_files(images), *images.stacks])),
        )

    def forecast(self, size: JobSize, devices: LocalDevices) -> tuple[JobSize, float]:
        """See `Job`; the time is that of the network alone."""
        rate = _pixels_per_second(self.options.model, self.options.precision, devices.devices[0])
        return size, size.n_pixels / rate / (devices.threads if devices.on_cpu else 1)


@functools.cache
def _pixels_per_second(
    model: str, precision: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> float:
    module = load_model(model).module
    chosen, _ = choose_precision(device, precision)
    return pixels_per_second(module, device, chosen)


def run_denoise(
    source: str | Path,
    output_dir: str | Path,
    options: DenoiseOptions,
    context: JobContext = QUIET,
    *,
    root: Path | None = None,
    passthrough: Sequence[str | Path] = (),
    earlier: Earlier = "refuse",
) -> Summary:
    """Denoise, as `DenoiseJob` does it: on `options.device`."""
    job = DenoiseJob(source, options, root=root, passthrough=passthrough)
    return job.run(output_dir, context, earlier=earlier)


def denoise(
    source: str | Path,
    output_dir: str | Path,
    options: DenoiseOptions,
    context: JobContext = QUIET,
    *,
    way_back: str = "",
    **given: Any,
) -> Summary:
    """Run `run_denoise`, which takes whatever else is given, and report on it in the folder and the log.

    Parameters
    ----------
    way_back
        How to return to the raw images in the host that the job runs in; for the report.
    """
    summary = run_denoise(source, output_dir, options, context, **given)
    log = context.log
    done = counted(summary.n_images, summary.noun.removesuffix("s"))
    log(f"{done} in {summary.seconds['total']:.1f} s, {summary.speed}")
    if summary.skipped:
        log(f"{counted(len(summary.skipped), 'bad image')} went through unchanged: see {summary.record}")
    for problem, notes in summary.remarks_by_kind()[:WARNINGS]:
        first = f"{notes[0].stack}, image {notes[0].image}" if summary.kind == "particles" else notes[0].stack
        log(f"warning: {first}{f' and {len(notes) - 1} more' if len(notes) > 1 else ''}: {problem}")
    if summary.remarks:
        log(f"{counted(len(summary.remarks), 'conspicuous image')}: see {summary.record}")
    paths = [summary.table, *summary.parts] if summary.table else summary.stacks
    for path in (*paths, summary.record):
        log(f"wrote {path}")
    if summary.table is not None and summary.table.suffix == ".cs":
        log(f"wrote {summary.table.with_suffix('.csg')}, for cryoSPARC's job Import Result Group")
    from ..report.pdf import report_run

    # a run that was killed while it drew has all but this
    report = [summary.output_dir / name for name in (PDF_NAME, PNG_NAME, VIEWER_NAME)]
    if not summary.was_complete or not all(path.exists() for path in report):
        for path in report_run(summary, context.command or "", way_back=way_back):
            log(f"wrote {path}")
    return summary
