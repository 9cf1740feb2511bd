"""Blocks of pure noise: the windows that hold none, what is wrong with some of them, and their whitening."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..imaging.rings import hermitian_weight, ring_index

# Neighbours on either side that a row or column is compared with.
_STREAK_NEIGHBOURS = 2


def count_in_windows(mask: Tensor, window_px: int, stride_px: int) -> Tensor:
    """Number of True pixels of `mask` `(y, x)` in every window: `(rows, columns)` int32.

    Window (i, j) begins at pixel `(i, j) * stride_px`; only those that lie inside are there. A summed-area
    table makes it four look-ups per window, however large that is [1]_.

    References
    ----------
    .. [1] Crow (1984) SIGGRAPH, 207-212. doi:10.1145/800031.808600
    """
    sums = mask.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32)
    table = functional.pad(sums, (1, 0, 1, 0))
    end = table[window_px::stride_px]
    begin = table[: mask.shape[0] - window_px + 1 : stride_px]
    inside = end - begin
    return inside[:, window_px::stride_px] - inside[:, : mask.shape[1] - window_px + 1 : stride_px]


def cut_blocks(micrograph: Tensor, origins: Tensor, window_px: int) -> Tensor:
    """Cut `(n, window_px, window_px)` out of `(y, x)` at `origins` `(n, 2)` (y, x)."""
    # a view of all windows; indexing copies only the chosen ones
    windows = micrograph.unfold(0, window_px, 1).unfold(1, window_px, 1)
    return windows[origins[:, 0], origins[:, 1]]


@dataclass(frozen=True)
class BlockStatistics:
    """What tells good blocks of noise from bad ones; `(n,)` each.

    Attributes
    ----------
    mean, std
        In the micrograph's grey values.
    level
        Distance of the mean from the median over the micrograph's blocks, in the median standard deviation:
        contamination and thick ice.
    spread
        Standard deviation over the median of the micrograph's blocks.
    gradient
        Change of the best-fitting plane across the block, along its slope, in standard deviations.
    streak
        How far the most conspicuous row or column stands out of its neighbours, in standard errors of its
        mean: about 4 in white noise.
    deviation
        Distance of the farthest pixel from the mean, in standard deviations: hot pixels, X-rays.
    """

    mean: Tensor
    std: Tensor
    level: Tensor
    spread: Tensor
    gradient: Tensor
    streak: Tensor
    deviation: Tensor


def block_statistics(blocks: Tensor) -> BlockStatistics:
    """Statistics of the blocks `(n, y, x)` of one micrograph; `n` is at least 1."""
    mean = blocks.double().mean((1, 2)).to(blocks.dtype)
    centred = blocks - mean[:, None, None]
    variance = centred.square().mean((1, 2))
    std = variance.sqrt()
    # constant blocks have no spread to measure by, and fail on `spread` alone
    unit = std.clamp_min(torch.finfo(blocks.dtype).tiny)
    slope = torch.stack([_slope(centred, dimension) * (blocks.shape[dimension] - 1) for dimension in (1, 2)])
    streak = torch.stack([_largest_step(centred.mean(dimension)) for dimension in (2, 1)]).amax(0)
    middle = std.median().clamp_min(torch.finfo(blocks.dtype).tiny)
    return BlockStatistics(
        mean=mean,
        std=std,
        level=(mean - mean.median()) / middle,
        spread=std / middle,
        gradient=slope.square().sum(0).sqrt() / unit,
        streak=streak * blocks.shape[-1] ** 0.5 / unit,
        deviation=centred.abs().amax((1, 2)) / unit,
    )


def _slope(centred: Tensor, dimension: int) -> Tensor:
    """`(n,)` least-squares slope along a dimension: the plane's two slopes are independent of each other."""
    side = centred.shape[dimension]
    position = torch.arange(side, device=centred.device, dtype=centred.dtype) - (side - 1) / 2
    profile = centred.mean(3 - dimension)
    return (profile * position).sum(1) / position.square().sum()


def _largest_step(profile: Tensor) -> Tensor:
    """`(n,)` largest distance of a value of `(n, m)` from the median of itself and its neighbours."""
    reach = min(_STREAK_NEIGHBOURS, profile.shape[1] - 1)
    padded = functional.pad(profile[:, None], (reach, reach), mode="reflect")[:, 0]
    return (profile - padded.unfold(1, 2 * reach + 1, 1).median(-1).values).abs().amax(1)


@dataclass(frozen=True)
class BlockLimits:
    """The most that a block may have of each of `BlockStatistics`.

    Attributes
    ----------
    level, gradient, streak, deviation
        Largest values.
    spread
        Largest ratio, either way.
    """

    level: float = 0.5
    spread: float = 1.25
    gradient: float = 0.5
    streak: float = 7.0
    deviation: float = 10.0


def excesses(statistics: BlockStatistics, limits: BlockLimits) -> dict[str, Tensor]:
    """Which blocks exceed each limit, `(n,)` bool by the limit's name."""
    spread = statistics.spread
    return {
        "level": statistics.level.abs() > limits.level,
        # not <=: also what is not a number exceeds
        "spread": ~((spread <= limits.spread) & (spread * limits.spread >= 1)),
        "gradient": statistics.gradient > limits.gradient,
        "streak": statistics.streak > limits.streak,
        "deviation": statistics.deviation > limits.deviation,
    }


def ring_amplitudes(blocks: Tensor) -> Tensor:
    """`(rings,)` root of the mean power of the normalised blocks `(n, y, x)` in each Fourier ring.

    On the scale of `torch.fft.rfft2(norm="ortho")`, on which white noise of variance 1 has 1 everywhere.
    Ring 0, the mean that was taken away, has 1 as well.
    """
    shape = (blocks.shape[-2], blocks.shape[-1])
    power = torch.fft.rfft2(blocks, norm="ortho").abs().square().mean(0)
    ring = ring_index(shape, blocks.device).flatten()
    weight = hermitian_weight(shape, blocks.device).expand(shape[0], -1).flatten()
    rings = int(ring.max()) + 1
    total = power.new_zeros(rings).index_add_(0, ring, power.flatten() * weight)
    amplitude: Tensor = (total / power.new_zeros(rings).index_add_(0, ring, weight)).sqrt()
    amplitude[0] = 1.0
    return amplitude


def whiten(blocks: Tensor, amplitudes: Tensor) -> Tensor:
    """Divide each Fourier ring of blocks `(n, y, x)` by its amplitude `(rings,)`."""
    gain = 1 / amplitudes
    shape = (blocks.shape[-2], blocks.shape[-1])
    transform = torch.fft.rfft2(blocks) * gain.to(blocks)[ring_index(shape, blocks.device)]
    scaled: Tensor = torch.fft.irfft2(transform, s=shape)
    return scaled
