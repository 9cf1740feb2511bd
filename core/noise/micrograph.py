"""What an extraction of noise does with one micrograph."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.extract_noise import ExtractNoiseOptions
from ..errors import ImageError
from ..imaging.background import LARGEST_CONSTANT_SHARE, background_level, noise_statistics
from ..imaging.noise import image_generator
from ..inference.micrograph_denoiser import STREAK
from ..io.mrc import StackReader
from .finders import WindowFinder
from .output import LABELS_FOLDER, OVERLAYS_FOLDER, PARTS_FOLDER, STATISTICS, NoisePart, write_labels
from .patches import (
    BlockLimits,
    BlockStatistics,
    block_statistics,
    cut_blocks,
    excesses,
    ring_amplitudes,
    whiten,
)

_LIMITS = tuple(asdict(BlockLimits()))
# A spread below this share of the mean is rounding.
_CONSTANT_SPREAD = 1e-6

Draw = Callable[
    [Path, NDArray[np.float32], NDArray[np.uint8] | None, NDArray[np.int64], NDArray[np.int64], int], None
]


@dataclass(frozen=True)
class MicrographCounts:
    """What became of the windows of one micrograph.

    Attributes
    ----------
    micrograph
        Its name in the table.
    windows
        In all.
    excluded
        By the method: reason to number.
    rejected
        How many of the others exceed each limit; a block may exceed several.
    kept, beyond_cap
        Blocks written, and good ones that `max_per_micrograph` left out.
    best_similarity
        The similarity method's best, be it above the threshold or not.
    remark
        Why the micrograph was left out, or what is conspicuous about it.
    """

    micrograph: str
    windows: int = 0
    excluded: dict[str, int] | None = None
    rejected: dict[str, int] | None = None
    kept: int = 0
    beyond_cap: int = 0
    best_similarity: float | None = None
    remark: str | None = None


@dataclass(frozen=True)
class MicrographTask:
    """One micrograph to search.

    Attributes
    ----------
    index
        Among the set's files.
    path, name
        Of the file, and in the table.
    short_name
        Of the label map below its folder; `plan.output_names`.
    shape
        `(y, x)`.
    pixel_size_angstrom
        None if unknown.
    window_px, stride_px
        Side of the windows, and the distance between them.
    """

    index: int
    path: Path
    name: str
    short_name: str
    shape: tuple[int, int]
    pixel_size_angstrom: float | None
    window_px: int
    stride_px: int


def extract_from(
    task: MicrographTask,
    finder: WindowFinder,
    output_dir: Path,
    options: ExtractNoiseOptions,
    draw: Draw | None,
) -> MicrographCounts:
    """Search one micrograph and write its part, label map and picture."""
    with StackReader(task.path) as reader:
        raw = torch.from_numpy(reader.read([0])[0])
    image = raw.to(finder.device)
    problem, remark = _look_at(image)
    if problem is not None:
        if not options.skip_bad:
            raise ImageError(
                problem,
                path=task.path,
                remedy="Leave it out of the table, or give --skip-bad.",
            )
        return MicrographCounts(task.name, remark=problem)
    windows = finder.find(
        image if options.protein == "white" else -image,
        task.pixel_size_angstrom,
        task.window_px,
        task.stride_px,
    )
    candidates = windows.origins
    counts = MicrographCounts(
        task.name,
        windows=windows.n_windows,
        excluded=windows.excluded,
        rejected=dict.fromkeys(_LIMITS, 0),
        best_similarity=windows.best_similarity,
        remark=remark,
    )
    kept = torch.zeros(len(candidates), dtype=torch.bool)
    if len(candidates):
        blocks = cut_blocks(image, candidates, task.window_px)
        statistics = block_statistics(blocks)
        exceeded = excesses(statistics, _limits(options))
        good = ~torch.stack(list(exceeded.values())).any(0)
        kept = _chosen(good.cpu(), options, task.short_name)
        counts = replace(
            counts,
            rejected={name: int(which.sum()) for name, which in exceeded.items()},
            kept=int(kept.sum()),
            beyond_cap=int(good.sum()) - int(kept.sum()),
        )
        if counts.kept:
            part = _part_of(blocks, candidates, statistics, windows.similarity, kept, options)
            part.save(part_file(output_dir, task))
    labels = None if windows.labels is None else windows.labels.cpu().numpy()
    if labels is not None and task.pixel_size_angstrom is not None:
        write_labels(output_dir / LABELS_FOLDER / task.short_name, labels, task.pixel_size_angstrom)
    if draw is not None:
        origins = candidates.cpu().numpy()
        taken = kept.numpy()
        draw(
            overlay_file(output_dir, task),
            raw.numpy(),
            labels,
            origins[taken],
            origins[~taken],
            task.window_px,
        )
    return counts


def _look_at(image: Tensor) -> tuple[str | None, str | None]:
    """Why a micrograph cannot be used, and what is conspicuous about it."""
    mean = image.mean()
    if not torch.isfinite(mean):
        return "the micrograph holds NaN or infinite pixels.", None
    centred = image - mean
    noise = noise_statistics(centred - background_level(centred), centred)
    if not noise.std > _CONSTANT_SPREAD * abs(float(mean)) or noise.constant_share > LARGEST_CONSTANT_SHARE:
        return "the micrograph is constant, over half of its area or more.", None
    if noise.streak > STREAK:
        return None, (
            f"a row or column stands out by {noise.streak:.1f} standard deviations: a wrong gain reference?"
        )
    return None, None


def _limits(options: ExtractNoiseOptions) -> BlockLimits:
    return BlockLimits(**{name: getattr(options, f"max_{name}") for name in _LIMITS})


def _chosen(good: Tensor, options: ExtractNoiseOptions, name: str) -> Tensor:
    """`(n,)` the good ones, or as many of them as are allowed, drawn at random by the micrograph's name."""
    most = options.max_per_micrograph
    if most is None or int(good.sum()) <= most:
        return good
    places = good.nonzero()[:, 0]
    order = torch.randperm(
        len(places), generator=image_generator(options.seed, zlib.crc32(os.fsencode(name)), "blocks")
    )
    kept = torch.zeros_like(good)
    kept[places[order[:most]]] = True
    return kept


def _part_of(
    blocks: Tensor,
    origins: Tensor,
    statistics: BlockStatistics,
    similarity: Tensor | None,
    kept: Tensor,
    options: ExtractNoiseOptions,
) -> NoisePart:
    """The chosen blocks, normalised as the options say."""
    chosen = kept.to(blocks.device)
    blocks = blocks[chosen]
    columns = {name: getattr(statistics, name)[chosen] for name in STATISTICS if name != "similarity"}
    columns["similarity"] = (
        torch.zeros(len(blocks), device=blocks.device) if similarity is None else similarity[chosen]
    )
    amplitudes = torch.zeros(0)
    if options.normalisation != "none":
        blocks = (blocks - columns["mean"][:, None, None]) / columns["std"][:, None, None]
        if options.normalisation == "whiten":
            amplitudes = ring_amplitudes(blocks)
            blocks = whiten(blocks, amplitudes)
    return NoisePart(
        origins=origins[chosen].cpu().numpy(),
        blocks=blocks.cpu().numpy(),
        statistics=torch.stack([columns[name].double() for name in STATISTICS], 1).cpu().numpy(),
        amplitudes=amplitudes.cpu().numpy(),
    )


def part_file(output_dir: Path, task: MicrographTask) -> Path:
    """Where the blocks of a micrograph wait until all are found."""
    return (output_dir / PARTS_FOLDER / task.short_name).with_suffix(".npz")


def overlay_file(output_dir: Path, task: MicrographTask) -> Path:
    """Where the picture of a micrograph is."""
    return output_dir / OVERLAYS_FOLDER / PurePosixPath(task.short_name).with_suffix(".png")
