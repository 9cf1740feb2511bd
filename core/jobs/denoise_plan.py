"""A denoising run whose input was read and checked: how it begins in its folder, and how it finishes."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ..config.denoise import CONTEXT_NAME, DenoiseOptions
from ..context.contexts import StackContexts, load_contexts
from ..errors import InputError
from ..inference.denoiser import Denoiser, tells_error
from ..inference.devices import LocalDevices, Precision
from ..inference.engine import Choices, Task, choose, tiling
from ..inference.inputs import InputNotes
from ..inference.plan import ImageSet, StackPlan, source_files
from ..inference.stream import StreamResult, n_safely_written
from ..inference.summary import ErrorOf, Summary, read_samples, write_record
from ..io.journal import RECORD_NAME, Journal, Undertaking
from ..io.micrographs import MicrographSet
from ..io.mrc import WriterState
from ..io.mrc_header import label_of_denoised
from ..io.particles import ParticleSet
from ..job_context import JobContext
from ..models.weights import LoadedModel, Weights
from ..progress import counted
from .contexts import contexts_of
from .denoise_files import (
    refuse_changed_inputs,
    refuse_unwritable_names,
    split_files,
    split_tables,
    table_files,
    write_table,
)
from .denoise_parts import DenoiseWork
from .folder import JobFolder
from .job import Devices, Plan, placed
from .scores import scores_of
from .self_measurement import measure_gain, measure_gain_of_micrographs
from .trust import error_names, error_teller, write_error_stacks

# The journal's entry for what was chosen when the run began; no stack has an empty name.
_CHOICES = ""


def kind_of(images: ImageSet) -> Literal["particles", "micrographs"]:
    """Return what the images are."""
    return "micrographs" if isinstance(images, MicrographSet) else "particles"


@dataclass(frozen=True, eq=False)
class DenoisePlan(Plan[DenoiseWork, Summary]):
    """A denoising run whose input was read and checked; see `Plan`.

    Attributes
    ----------
    options, model
        What to do, and with what.
    images, stacks
        The input.
    damaged
        What is wrong with files whose rows were left out.
    notes
        What is to be said of the input.
    devices, context
        Where it calculates; whom to ask and tell.
    undertaking
        What it is going to make.
    clock
        When it began: seconds since 1970, and of the monotonic clock.
    """

    smaller = "write float16 (half the size)"

    options: DenoiseOptions
    model: LoadedModel
    images: ImageSet
    stacks: Sequence[StackPlan]
    damaged: Sequence[InputError]
    notes: InputNotes
    devices: Devices
    context: JobContext
    undertaking: Undertaking
    clock: tuple[float, float]

    @property
    def inputs(self) -> list[Path]:  # type: ignore[override]
        """The files that it reads."""
        return [*source_files(self.images), *self.images.stacks]

    @property
    def are_micrographs(self) -> bool:
        """Whether each stack is one whole micrograph."""
        return isinstance(self.images, MicrographSet)

    @property
    def n_images(self) -> int:
        """Images that are written, each once however often the table names it."""
        return sum(len(stack.indices) for stack in self.stacks)

    def describe(self) -> str:
        """Return what is denoised, in words."""
        if self.are_micrographs:
            shapes = Counter(stack.shape for stack in self.stacks)
            return ", ".join(f"{counted(n, 'micrograph')} of {_box(shape)} px" for shape, n in shapes.items())
        rows, files = counted(len(self.images), "particle"), counted(len(self.stacks), "stack")
        return f"{rows}, {counted(self.n_images, 'image')} in {files}"

    def undertaking_in(self, output_dir: Path) -> Undertaking:
        """See `Plan`."""
        return placed(self.undertaking, table_files(self.images)[:1], output_dir, self.images.root)

    def bytes_left(self, folder: JobFolder) -> int:
        """See `Plan`; of table, stacks and stacks of errors."""
        images, dtype = self.images, self.options.output_dtype
        left = sum(path.stat().st_size for path in source_files(images)) if images.has_table else 0
        for stack in self.stacks:
            done = n_safely_written(stack, folder.path, folder.journal, dtype)
            left += (len(stack.indices) - done) * stack.shape[0] * stack.shape[1] * np.dtype(dtype).itemsize
        if self.options.error_stacks and tells_error(self.model.module) and not self.are_micrographs:
            for stack, name in zip(self.stacks, error_names(self.stacks), strict=True):
                n = 0 if folder.journal.is_finished(name) else len(stack.indices)
                left += n * stack.shape[0] * stack.shape[1] * np.dtype(np.float32).itemsize
        return left

    def begin(self, folder: JobFolder) -> DenoiseWork:
        """See `Plan`; what the stacks know of their particles is found first."""
        model, options = self.model, self.options
        refuse_unwritable_names(self.images, self.stacks, folder.path)
        choices = self._choose(folder.journal)
        known = contexts_of(
            self.images,
            self.stacks,
            model,
            options,
            folder.path,
            parts=self.undertaking.parts,
            goes_on=folder.goes_on,
            log=self.context.log,
            stop_if_asked=lambda: self.context.stop_if_asked(
                "Stopped while a map was looked for. --resume begins anew."
            ),
        )
        task = Task(
            Weights.of(model),
            options,
            choices,
            self.stacks,
            self.are_micrographs,
            label_of_denoised(Path(model.name).name),
            known.contexts,
        )
        return DenoiseWork(task, folder.path, folder.journal, known.record)

    def _choose(self, journal: Journal) -> Choices:
        """Return precision and batch sizes: those that the journal holds, or new ones, which it then has."""
        devices, options, log = self.devices, self.options, self.context.log
        choices, reason = _recorded_choices(journal), "as when the run began"
        sizes = {} if choices is None else choices.batch_sizes
        shapes = [
            shape for shape in dict.fromkeys(stack.shape for stack in self.stacks) if shape not in sizes
        ]
        if shapes:
            if choices is not None:  # the table has grown by images of another size
                options = options.model_copy(update={"precision": choices.precision})
            more, why = devices.ask(choose, Weights.of(self.model), options, shapes, self.are_micrographs)
            if choices is None:
                choices, reason = more, why
            else:
                choices = Choices(choices.precision, {**sizes, **more.batch_sizes})
            sizes = choices.batch_sizes
            recorded = {
                "precision": choices.precision,
                "batch_sizes": [[y, x, size] for (y, x), size in sizes.items()],
            }
            journal.record(_CHOICES, WriterState(), recorded)
        assert choices is not None  # there is a shape
        log(f"device {', '.join(devices.names)}, precision {choices.precision} ({reason})")
        if self.are_micrographs:
            tilings = {tiling(self.model, shape): size for shape, size in sizes.items()}
            text = ", ".join(f"{_box(t.tile)} px with a margin of {t.border_px} px" for t in tilings)
            log(f"tiles of {text}")
        else:
            text = ", ".join(f"{size} images of {_box(shape)} px" for shape, size in sizes.items())
            log(f"batches of {text}")
        return choices

    def finish(self, folder: JobFolder, work: DenoiseWork | None) -> Summary:
        """See `Plan`; what the particles themselves say of the gain comes into the record."""
        images, stacks, output_dir = self.images, self.stacks, folder.path
        started, begin = self.clock
        options, choices = self.options, _recorded_choices(folder.journal)
        assert choices is not None  # made when the run began
        scores = None
        if work is None:
            result = StreamResult.recorded(stacks, folder.journal)
            gain, context_record, suspicious = _recorded_findings(output_dir)
            error_of = self._earlier_error_teller(choices.precision, context_record, output_dir)
        else:
            result, gain, context_record = work.result, self._measure_gain(work.task), work.context_record
            scores = scores_of(images, stacks, result.skipped, output_dir, options, self.context)
            suspicious = None if scores is None else int(scores.suspicious.sum())
            error_of = self._error_teller(choices.precision, work.task.contexts)
            if options.error_stacks:
                if error_of is not None and (options.blend or options.keep_above_angstrom is not None):
                    self.context.log(
                        "warning: the expected errors are those of the denoised images alone, without "
                        "the raw ones that --blend or --keep-above puts back"
                    )
                write_error_stacks(stacks, error_of, folder.journal, output_dir, self.context)
            refuse_changed_inputs(images, stacks, self.undertaking, options)
            write_table(images, stacks, output_dir, scores)
        table = table_files(images)
        summary = Summary(
            kind=kind_of(images),
            source=images.source,
            options=options,
            output_dir=output_dir,
            table=output_dir / table[0] if table else None,
            stacks=[output_dir / stack.name for stack in stacks],
            record=output_dir / RECORD_NAME,
            model=self.model,
            devices=self.devices.names,
            precision=choices.precision,
            batch_sizes={_box(shape): size for shape, size in choices.batch_sizes.items()},
            threads=self.devices.threads,
            n_rows=len(images),
            n_images=self.n_images,
            n_resumed=self.n_images - result.n_written,
            skipped=result.skipped,
            remarks=result.remarks,
            damaged=[str(error) for error in self.damaged],
            warnings=self.notes.warnings,
            pixel_sizes=self.notes.pixel_sizes,
            seconds={"total": time.monotonic() - begin, **result.seconds},
            samples=read_samples(
                stacks,
                output_dir,
                result.skipped,
                are_micrographs=self.are_micrographs,
                error_of=error_of,
            ),
            was_complete=work is None,
            suspicious=suspicious,
            parts=split_tables(images, options, output_dir),
            context=context_record,
            gain=gain,
        )
        if work is not None:
            write_record(summary, self.context.command, started)
            split = [] if scores is None else split_files(images, options)
            has_errors = options.error_stacks and error_of is not None
            errors = error_names(stacks) if has_errors else []
            folder.journal.complete([*(one.name for one in stacks), *table, *split, *errors, RECORD_NAME])
        return summary

    def _earlier_error_teller(
        self, precision: Precision, context_record: Mapping[str, Any], output_dir: Path
    ) -> ErrorOf | None:
        """`_error_teller` of a complete run; None where its contexts are gone."""
        try:
            contexts = load_contexts(output_dir / CONTEXT_NAME) if context_record.get("used") else None
        except InputError:
            return None
        return self._error_teller(precision, contexts)

    def _error_teller(self, precision: Precision, contexts: StackContexts | None) -> ErrorOf | None:
        """Return what tells the expected error of particles, on the first device of this process."""
        if self.are_micrographs:
            return None
        here = self.devices.devices[0] if isinstance(self.devices, LocalDevices) else torch.device("cpu")
        if here.type == "cpu" and precision == "fp16":
            precision = "fp32"
        denoiser = Denoiser(self.model.module, here, precision)
        return error_teller(denoiser, self.options, contexts)

    def _measure_gain(self, task: Task) -> dict[str, Any]:
        def stop_if_asked() -> None:
            self.context.stop_if_asked("stopped while measuring the gain; --resume goes on")

        model, options, precision = self.model, self.options, task.choices.precision
        if isinstance(self.images, ParticleSet):
            contexts = task.contexts
            found = measure_gain(self.images, self.stacks, model, options, precision, contexts, stop_if_asked)
        else:
            found = measure_gain_of_micrographs(self.stacks, model, options, precision, stop_if_asked)
        self.context.log(found["verdict"])
        return found


def _recorded_findings(output_dir: Path) -> tuple[dict[str, Any], dict[str, Any], int | None]:
    """Return gain, context and number of suspicious particles, as the record of a complete run says."""
    try:
        record = json.loads((output_dir / RECORD_NAME).read_bytes())
    except (OSError, ValueError):
        record = {}
    return record.get("gain", {}), record.get("context", {}), record.get("suspicious_particles")


def _recorded_choices(journal: Journal) -> Choices | None:
    recorded = journal.extras.get(_CHOICES)
    if recorded is None:
        return None
    return Choices(recorded["precision"], {(y, x): size for y, x, size in recorded["batch_sizes"]})


def _box(shape: tuple[int, int]) -> str:
    return f"{shape[1]}x{shape[0]}"
