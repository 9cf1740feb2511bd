"""A figure of merit for each particle of a denoising run, and a table of those that look suspicious."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.denoise import SUSPICIOUS_BELOW, DenoiseOptions
from ..context.stack_context import circle, to_working_grid
from ..imaging.defects import Defects, fill_defects, find_defects
from ..imaging.normalise import circle_radius_px, normalise
from ..inference.plan import ImageSet, StackPlan
from ..inference.stream import ImageNote
from ..io.mrc import StackReader
from ..io.particles import ParticleSet
from ..io.star import rewrite
from ..job_context import JobContext
from ..metrics.ordinary import (
    N_FEATURES,
    figure_of_merit,
    image_features,
    squared_distances,
    turned_mean,
)
from ..progress import counted
from ..spread import evenly_spread

#: images of one kind below which a stack does not tell what is ordinary
FEWEST_IMAGES = 100
#: the mean image is that of so many, evenly spread
_OF_MEAN = 2048
_BATCH = 256


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of a run's particles.

    Attributes
    ----------
    of_row
        `(n,)` float32, for each row of the table: 0 to 1, see `metrics.ordinary`.
    """

    of_row: NDArray[np.float32]

    @property
    def suspicious(self) -> NDArray[np.bool_]:
        """`(n,)`: below `SUSPICIOUS_BELOW`."""
        return self.of_row < SUSPICIOUS_BELOW


def scores_of(
    images: ImageSet,
    stacks: Sequence[StackPlan],
    skipped: Iterable[ImageNote],
    output_dir: Path,
    options: DenoiseOptions,
    context: JobContext,
) -> Scores | None:
    """Score the particles of a finished run if that is wanted, and say what came of it.

    `skipped` are the images that could not be denoised.
    """
    if not options.score:
        return None
    if not isinstance(images, ParticleSet) or not images.has_table:
        context.log("warning: no scores: they need a table of particles")
        return None
    scores = score_particles(
        images,
        stacks,
        output_dir,
        options,
        frozenset((note.stack, note.image) for note in skipped),
        lambda: context.stop_if_asked("stopped while scoring; --resume goes on"),
    )
    if isinstance(scores, str):
        context.log(f"warning: no scores: {scores}")
        return None
    context.log(f"{int(scores.suspicious.sum())} of {counted(len(images), 'particle')} look suspicious")
    return scores


def score_particles(
    images: ParticleSet,
    stacks: Sequence[StackPlan],
    output_dir: Path,
    options: DenoiseOptions,
    unchanged: frozenset[tuple[str, int]],
    stop_if_asked: Callable[[], None],
) -> Scores | str:
    """Score the particles of a finished run, or say why there are no scores.

    Raw and denoised images are read once more, some at a time. Images of different sizes, pixel sizes or
    contrasts are judged apart.

    Parameters
    ----------
    unchanged
        Source and 1-based number of images that could not be denoised: their score is 0.
    stop_if_asked
        Called once for each batch.

    Raises
    ------
    MrcError
        If a stack cannot be read.
    """
    kinds: dict[tuple[object, ...], list[int]] = {}
    for number, stack in enumerate(stacks):
        kinds.setdefault(stack.kind, []).append(number)
    of_stack: dict[int, NDArray[np.float32]] = {}
    for numbers in kinds.values():
        chosen = [stacks[number] for number in numbers]
        of_image = _scores_of_kind(chosen, output_dir, options, unchanged, stop_if_asked)
        if isinstance(of_image, str):
            return of_image
        ends = np.cumsum([len(stack.indices) for stack in chosen])[:-1]
        of_stack |= dict(zip(numbers, np.split(of_image, ends), strict=True))
    of_row = np.empty(len(images), np.float32)
    positions = images.output_positions()
    for number, values in of_stack.items():
        rows = images.stack == number
        of_row[rows] = values[positions[rows]]
    return Scores(of_row)


def _scores_of_kind(
    stacks: Sequence[StackPlan],
    output_dir: Path,
    options: DenoiseOptions,
    unchanged: frozenset[tuple[str, int]],
    stop_if_asked: Callable[[], None],
) -> NDArray[np.float32] | str:
    """`(n,)` scores of all images of stacks of one kind, in order."""
    usable = np.concatenate(
        [[(str(stack.source), int(i) + 1) not in unchanged for i in stack.indices] for stack in stacks]
    ).astype(np.bool_)
    if usable.sum() < FEWEST_IMAGES:
        box = "x".join(map(str, stacks[0].shape[::-1]))
        return f"at least {FEWEST_IMAGES} particles of one kind are needed, found {usable.sum()} of {box} px"
    shape, pixel_size = stacks[0].shape, stacks[0].pixel_size_angstrom
    radius = circle_radius_px(shape, options.particle_diameter_angstrom, pixel_size)
    chosen = np.flatnonzero(usable)
    spread = chosen[evenly_spread(len(chosen), _OF_MEAN)]
    wanted = np.zeros(len(usable), np.bool_)
    wanted[spread] = True
    total, n = torch.zeros(()), 0
    for _, denoised, _ in _pairs(stacks, output_dir, wanted, radius):
        stop_if_asked()
        total, n = total + denoised.sum(0), n + len(denoised)
    mean_image = turned_mean((total / n)[None])
    inside, outside = _weights(mean_image, radius * mean_image.shape[-1] / shape[-1])
    features = torch.zeros(len(usable), N_FEATURES)
    for rows, denoised, raw in _pairs(stacks, output_dir, usable, radius):
        stop_if_asked()
        features[rows] = image_features(denoised, raw, inside, outside, mean_image)
    scores = np.zeros(len(usable), np.float32)
    scores[usable] = figure_of_merit(squared_distances(features[torch.from_numpy(usable)])).float().numpy()
    return scores


def _pairs(
    stacks: Sequence[StackPlan], output_dir: Path, wanted: NDArray[np.bool_], radius_px: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield numbers of images, and these denoised and raw on the raw background's scale, protein white."""
    begin = 0
    for stack in stacks:
        here = np.flatnonzero(wanted[begin : begin + len(stack.indices)])
        with StackReader(stack.source) as source, StackReader(output_dir / stack.name) as output:
            for first in range(0, len(here), _BATCH):
                places = here[first : first + _BATCH]
                raw = torch.from_numpy(source.read(stack.indices[places]))
                denoised = torch.from_numpy(output.read(places))
                denoised, raw = on_one_scale(denoised, raw, radius_px)
                if stack.protein_dark:
                    raw, denoised = -raw, -denoised
                yield torch.from_numpy(places + begin), to_working_grid(denoised), to_working_grid(raw)
        begin += len(stack.indices)


def on_one_scale(denoised: Tensor, raw: Tensor, radius_px: float) -> tuple[Tensor, Tensor]:
    """Denoised and raw images `(n, y, x)` with the raw background's mean at 0 and its spread at 1.

    Masks and outlying pixels are no feature of a particle: in the raw images they are filled as for the
    network, and the denoised ones, into which they were put back, have there what surrounds them.
    """
    defects = find_defects(raw)
    if defects is not None:
        raw = fill_defects(raw, defects, radius_px)
        nowhere = torch.zeros_like(defects.noise_free)
        denoised = fill_defects(denoised, Defects(nowhere, defects.outlying), radius_px)
    raw, mean, std = normalise(raw, radius_px)
    denoised = (denoised - mean[:, None, None]) / std.clamp_min(1e-12)[:, None, None]
    if defects is not None:
        denoised[defects.noise_free] = 0.0  # what noise is denoised to
    return denoised, raw


def _weights(image: Tensor, radius_px: float) -> tuple[Tensor, Tensor]:
    """Weights of the particle's circle, and of what lies beyond it, as far as it reaches."""
    side = image.shape[-1]
    beyond = min(radius_px + side / 16, 0.47 * side)
    return circle(side, radius_px), 1 - circle(side, beyond)


def keep_rows(source: Path, destination: Path, kept: NDArray[np.bool_]) -> None:
    """Write some rows of a `.star` table of particles, and all else of it, to another.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    left = iter(kept.tolist())
    rewrite(
        source,
        destination,
        lambda table: "rlnImageName" in table.labels,
        [],
        lambda tokens: [] if next(left) else None,
        before_rename=lambda: None,
    )
