"""How far off denoised particles are expected to be: for the reports, and as stacks of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..config.denoise import DenoiseOptions
from ..context.contexts import StackContexts
from ..imaging.normalise import circle_radius_px
from ..inference.denoiser import Denoiser
from ..inference.plan import StackPlan, free_name
from ..inference.summary import ErrorOf
from ..io.journal import Journal
from ..io.mrc import StackReader, StackWriter
from ..io.mrc_header import label_of_denoised
from ..job_context import JobContext

_BATCH = 16


def error_teller(
    denoiser: Denoiser, options: DenoiseOptions, contexts: StackContexts | None
) -> ErrorOf | None:
    """Return what tells the expected error of particles; None for a network that does not know it."""
    if not denoiser.tells_error:
        return None

    def error_of(
        images: NDArray[np.float32], stack: StackPlan, positions: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        radius = circle_radius_px(stack.shape, options.particle_diameter_angstrom, stack.pixel_size_angstrom)
        errors = np.empty_like(images)
        for begin in range(0, len(images), _BATCH):
            some = slice(begin, begin + _BATCH)
            places = [(stack.source, stack.indices[positions[some]])]
            errors[some] = denoiser.error(
                images[some],
                radius_px=radius,
                protein_dark=stack.protein_dark,
                context=None if contexts is None else partial(contexts.channels, places=places),
                finer=stack.finer,
            )
        return errors

    return error_of


def error_names(stacks: Sequence[StackPlan]) -> list[str]:
    """Names below the output folder of the stacks' errors: `particles_error.mrcs`.

    Names that a denoised stack has get a number.
    """
    taken = {stack.name for stack in stacks}
    paths = [PurePosixPath(stack.name) for stack in stacks]
    return [free_name(path.with_stem(f"{path.stem}_error"), taken) for path in paths]


def write_error_stacks(
    stacks: Sequence[StackPlan],
    error_of: ErrorOf | None,
    journal: Journal,
    output_dir: Path,
    context: JobContext,
) -> None:
    """Write the stacks of expected errors that are not there yet, if somebody knows the errors.

    Raises
    ------
    CryohushError
        See `write_error_stack`.
    """
    if error_of is None:
        context.log("warning: no stacks of errors: this model does not know the errors of such images")
        return
    for stack, name in zip(stacks, error_names(stacks), strict=True):
        if not journal.is_finished(name):
            context.log(f"expected errors of {stack.source.name}")
            write_error_stack(
                stack,
                output_dir / name,
                error_of,
                lambda: context.stop_if_asked("stopped while writing expected errors; --resume goes on"),
            )
            journal.finish(name)


def write_error_stack(
    stack: StackPlan, path: Path, error_of: ErrorOf, stop_if_asked: Callable[[], None]
) -> None:
    """Write the expected error of each image to a stack, on the images' grey scale.

    Raises
    ------
    MrcError
        If the stack cannot be read.
    OutputError
        If the errors cannot be written.
    """
    n = len(stack.indices)
    label = label_of_denoised("expected error")
    size = stack.pixel_size_angstrom
    with (
        StackReader(stack.source) as source,
        StackWriter(path, (n, *stack.shape), pixel_size_angstrom=size, label=label) as writer,
    ):
        for begin in range(0, n, _BATCH):
            stop_if_asked()
            positions = np.arange(begin, min(begin + _BATCH, n))
            images = source.read(stack.indices[positions])
            writer.write(error_of(images, stack, positions), unchecked=range(len(positions)))
