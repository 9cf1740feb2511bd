"""What a micrograph is apart from its particles: the uneven level of its ice, its noise, and its defects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .filters import gaussian_filter

# The level varies so slowly that one value per square of this side is enough; a median over so many squares
# either way is hardly pulled by contamination of up to about 300 px.
_CELL_PX, _MEDIAN_CELLS = 64, 9
# Side of the squares in which the noise is measured: most of them hold no contamination.
_BLOCK_PX = 64
# A square is deviant when its mean is so many standard deviations away, or its spread so many times as large.
_DEVIANT_LEVEL, _DEVIANT_SPREAD = 1.0, 1.25
# Pixels beyond this many standard deviations (contamination, hot pixels) do not make a streak.
_STREAK_CLIP = 3.0
_STREAK_NEIGHBOURS_PX = 16
_STREAK_LEAST_SHARE = 0.1

LARGEST_CONSTANT_SHARE = 0.4
"""With more squares of a micrograph constant, the noise that `noise_statistics` measures is not the noise."""


def background_level(image: Tensor) -> Tensor:
    """The level of the ice in an image `(y, x)`, undisturbed by particles and contamination.

    The running median over 9 x 9 squares of 64 px of the squares' means, smoothed and interpolated.
    """
    y, x = image.shape
    cells = functional.adaptive_avg_pool2d(image[None], (-(-y // _CELL_PX), -(-x // _CELL_PX)))[0]
    for dimension in (0, 1):  # mirrored about the edges, however few squares there are
        side, reach = cells.shape[dimension], _MEDIAN_CELLS // 2
        source = torch.arange(-reach, side + reach, device=image.device) % (2 * side)
        cells = cells.index_select(dimension, torch.minimum(source, 2 * side - 1 - source))
    windows = cells.unfold(0, _MEDIAN_CELLS, 1).unfold(1, _MEDIAN_CELLS, 1)
    smooth = gaussian_filter(windows.flatten(-2).median(-1).values, 1.0)
    level: Tensor = functional.interpolate(
        smooth[None, None], size=(y, x), mode="bicubic", align_corners=False
    )
    return level[0, 0]


@dataclass(frozen=True)
class NoiseStatistics:
    """The noise of a micrograph whose background level was removed.

    Attributes
    ----------
    std
        Standard deviation: the median over squares of 64 px, which contamination does not reach.
    deviant_share
        Share of the squares whose mean or spread stands out.
    constant_share
        Share of the squares that hold nothing but one value.
    streak
        How far the most conspicuous row or column stands out of its neighbours, in standard deviations.
    """

    std: float
    deviant_share: float
    constant_share: float
    streak: float


def noise_statistics(residual: Tensor, image: Tensor) -> NoiseStatistics:
    """Measure the noise of a micrograph `(y, x)`.

    Parameters
    ----------
    residual
        The micrograph less `background_level`.
    image
        The micrograph less its mean: its level may stand out, too.
    """
    side = min(_BLOCK_PX, *residual.shape)

    def block_means(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values[None], side)[0]

    mean = block_means(residual)
    # the mean square is as exact as the variance here: the residual has no offset to cancel
    spread = (block_means(residual.square()) - mean.square()).clamp_min(0.0).sqrt()
    std = float(spread.median())
    highest, lowest = (functional.max_pool2d(values[None], side) for values in (image, -image))
    constant_share = float((highest == -lowest).float().mean())
    if not std > 0:
        return NoiseStatistics(std, 0.0, constant_share, 0.0)
    level = block_means(image)
    deviant = (level - level.median()).abs() > _DEVIANT_LEVEL * std
    deviant |= spread > _DEVIANT_SPREAD * std
    clipped = (residual / std).clamp(-_STREAK_CLIP, _STREAK_CLIP)
    # squares on the edge of a contamination make steps that are no streaks
    ordinary = torch.ones_like(residual)
    y, x = (side * count for count in deviant.shape)
    ordinary[:y, :x] = (~deviant).to(residual.dtype).repeat_interleave(side, 0).repeat_interleave(side, 1)
    streak = max(_largest_step(_line_means(clipped, ordinary, dimension)) for dimension in (0, 1))
    return NoiseStatistics(std, float(deviant.float().mean()), constant_share, streak)


def _line_means(values: Tensor, weight: Tensor, dimension: int) -> Tensor:
    """Weighted means along a dimension; plain ones of lines that would hardly count, as a strong streak's."""
    total = weight.sum(dimension)
    few = total < _STREAK_LEAST_SHARE * values.shape[dimension]
    weighted = (values * weight).sum(dimension) / total.clamp_min(1.0)
    return torch.where(few, values.mean(dimension), weighted)


def _largest_step(line: Tensor) -> float:
    """Largest distance of a value of `(n,)` from the median of its neighbours."""
    reach = min(_STREAK_NEIGHBOURS_PX, len(line) - 1)
    padded = functional.pad(line[None, None], (reach, reach), mode="reflect")[0, 0]
    return float((line - padded.unfold(0, 2 * reach + 1, 1).median(-1).values).abs().max())
