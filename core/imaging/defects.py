"""What in an image is no noisy data: areas without noise (masks, padding) and outlying pixels.

A network that was trained on noise everywhere answers to what has none, or to a hot pixel, with artefacts far
around it. So both are found, filled with what the rest of the image looks like, and put back after it: areas
as they were, outlying pixels as bright or dark as the rest gets, so that they leave its grey scale to the
rest.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .rings import ring_index, ring_mean

# Second differences below this share of their usual size are rounding: neighbours lie on a line.
_FLAT_SHARE = 1e-3
# Noise has one flat pixel in a thousand; below this share there is nothing to look for.
_SUSPECT_SHARE = 4e-3
# Smaller areas do no harm.
_MIN_SHARE = 2e-3
# So many pixels of noise are flat where it is real numbers; otherwise the least flat share of an image tells.
_FLAT_BY_CHANCE, _LEAST_FLAT = 2e-3, 0.05
# Of a million images one may have a line of pixels that is flat by chance.
_CHANCE = 1e-6
# A sample of so many pixels gives medians to a per cent or so.
_SAMPLE_PX = 4096
_CELL_PX = 64
# For the first look: how far rows are apart, and what extreme pixels may be worth a second one.
_ROWS_APART, _SUSPECT = 8, 5.5
# A mask may fade out over so many pixels, in which there is less than this share of the usual noise.
_MAX_SOFT_EDGE_PX, _SOFT_EDGE_NOISE = 24, 0.8
# An outlier lies so many standard deviations beyond what is usual around it, a neighbour of one fewer.
_OUTLIER, _OUTLIER_NEIGHBOUR = 7.0, 3.0
_CANDIDATE = 6.0
# Around it means on the square at this distance, so that clusters of up to 5 x 5 px are outliers.
_RING_PX = 5
# So many of the 40 pixels there may be outliers, too: a line of up to three pixels' width crosses it twice.
_RING_OUTLIERS = 6
# The rim of what is outlying is so sharp, as a share of its height.
_SHARP = 0.75
# What is outlying is narrower.
_NARROW_PX, _TIP_PX = 6, 24
_CHUNK = 1 << 17
# With more of it outlying, the image is something else.
_MAX_OUTLIER_SHARE = 0.1
# The background of a masked particle is what is left outside its circle, or the outermost of what is left.
_MIN_BACKGROUND_SHARE = 0.1

_RING = [
    (y, x)
    for y in range(-_RING_PX, _RING_PX + 1)
    for x in range(-_RING_PX, _RING_PX + 1)
    if max(abs(y), abs(x)) == _RING_PX
]


@dataclass(frozen=True, eq=False)
class Defects:
    """Where images `(n, y, x)` hold no noisy data.

    Attributes
    ----------
    noise_free
        bool `(n, y, x)`: pixels of areas without noise.
    outlying
        bool `(n, y, x)`: outlying pixels elsewhere.
    """

    noise_free: Tensor
    outlying: Tensor

    @property
    def anywhere(self) -> Tensor:
        """bool `(n, y, x)`: either."""
        return self.noise_free | self.outlying


def find_defects(images: Tensor) -> Defects | None:
    """Find areas without noise and outlying pixels in images `(n, y, x)`; None where there are none at all.

    An area is without noise where at least a few neighbours along a row or a column lie on a straight line:
    masks, filled borders and gradients are, and so are borders that repeat the last row or column. Counts
    with few different values need longer lines. Where a mask has a soft edge, the edge belongs to the area.
    Contamination, carbon and gold beads are no outliers: what is larger than 5 px has its like around it, and
    smaller signal has no sharp rim.

    Images with NaN or infinite pixels are left alone.

    A look at some rows tells which images need a closer one, so that clean stacks lose no time.
    """
    suspects = torch.nonzero(_suspicious(images))[:, 0]
    if not len(suspects):
        return None
    noise_free = find_noise_free(images[suspects])
    # a saturated line or spot has no noise, and yet is outlying
    wide = None if noise_free is None else noise_free & ~_narrow(noise_free)
    outlying = find_outliers(images[suspects], wide)
    if noise_free is None and outlying is None:
        return None
    if noise_free is not None and outlying is not None:
        noise_free &= ~outlying
    found = Defects(*(torch.zeros_like(images, dtype=torch.bool) for _ in range(2)))
    if noise_free is not None:
        found.noise_free[suspects] = noise_free
    if outlying is not None:
        found.outlying[suspects] = outlying
    return found


def filled(images: Tensor, radius_px: float | None = None) -> Tensor:
    """Images `(n, y, x)` as a network is to see them: their defects filled, see `fill_defects`."""
    defects = find_defects(images)
    return images if defects is None else fill_defects(images, defects, radius_px)


def _suspicious(images: Tensor) -> Tensor:
    """bool `(n,)`: images that may have a defect, judged by every eighth row and by the extreme pixels."""
    if min(images.shape[1:]) < 8:
        return torch.zeros(len(images), dtype=torch.bool, device=images.device)
    rows = torch.cat([images[:, ::_ROWS_APART], images[:, -1:]], 1)
    means = rows.mean(2, keepdim=True)
    spread = 1.2533 * (rows - means).abs_().mean(2).median(1).values  # a hot row is only one of them
    level = means.flatten(1).median(1).values
    # amin and amax: aminmax takes ten times as long
    highest, lowest = images.amax((1, 2)), images.amin((1, 2))
    extreme = torch.maximum(highest - level, level - lowest) > _SUSPECT * spread
    above, here, below = images[:, :-2:_ROWS_APART], images[:, 1:-1:_ROWS_APART], images[:, 2::_ROWS_APART]
    along_y = above + below - 2.0 * here
    suspicious = extreme | _partly_flat(along_y) | _partly_flat(rows.diff(n=2, dim=2))
    return suspicious & torch.isfinite(highest) & torch.isfinite(lowest)


def _partly_flat(bends: Tensor) -> Tensor:
    bends = bends.abs_().flatten(1)
    return (bends <= _FLAT_SHARE * bends.mean(1, keepdim=True)).float().mean(1) > _SUSPECT_SHARE


def find_noise_free(images: Tensor) -> Tensor | None:
    """bool `(n, y, x)`: pixels of `images` in areas without noise; None without any."""
    found: Tensor | None = None
    for transposed in (False, True):
        lines = images.mT if transposed else images
        if lines.shape[-1] < 8:
            continue
        flat = _flat(lines)
        share = flat.float().mean((1, 2))
        for index in torch.nonzero(share > _SUSPECT_SHARE)[:, 0].tolist():
            area = _long_runs(flat[index])
            # a second difference is that of three pixels
            pixels = (
                functional.pad(area, (0, 2)) | functional.pad(area, (1, 1)) | functional.pad(area, (2, 0))
            )
            if found is None:
                found = torch.zeros_like(images, dtype=torch.bool)
            found[index] |= pixels.mT if transposed else pixels
    if found is None:
        return None
    found &= (found.float().mean((1, 2)) > _MIN_SHARE)[:, None, None]
    for index in torch.nonzero(found.flatten(1).any(1))[:, 0].tolist():
        found[index] = _with_soft_edge(images[index], found[index])
    return found if bool(found.any()) else None


def _narrow(area: Tensor) -> Tensor:
    """bool `(n, y, x)`: parts of areas that are far from any square of `_NARROW_PX` a side within them."""
    if min(area.shape[1:]) < _NARROW_PX:
        return area
    squares = functional.max_pool2d((~area).float(), _NARROW_PX, stride=1) == 0
    border = _NARROW_PX - 1
    wide = functional.max_pool2d(
        functional.pad(squares.float(), (border, border, border, border)), _NARROW_PX, stride=1
    )
    for _ in range(_TIP_PX if bool(squares.any()) else 0):  # along its tips
        wide = functional.max_pool2d(wide, 3, stride=1, padding=1) * area
    return area & (wide == 0)


def _with_soft_edge(image: Tensor, area: Tensor) -> Tensor:
    """Return an area without noise, bool `(y, x)`, grown by the pixels next to it that have little noise."""
    fine = (image - functional.avg_pool2d(image[None], 3, stride=1, padding=1)[0]).abs_()
    for _ in range(_MAX_SOFT_EDGE_PX):
        # anew each time: a wide edge makes up much of a particle's box, and the noise look less than it is
        usual = _sampled(fine.masked_fill(area, math.nan)[None]).nanmedian()
        grown = functional.max_pool2d(area[None].float(), 3, stride=1, padding=1)[0] > 0
        edge = grown & ~area
        if not bool(edge.any()) or not bool(fine[edge].median() < _SOFT_EDGE_NOISE * usual):
            break
        area = grown
    return area


def _flat(lines: Tensor) -> Tensor:
    """bool `(n, y, x - 2)`: whether a pixel and its neighbours along x lie on a line, but for rounding."""
    bend = lines[..., :-2] + lines[..., 2:]
    bend = bend.sub_(lines[..., 1:-1], alpha=2.0).abs_()
    sample = _sampled(bend).flatten(1)
    # nine tenths of an image may be without noise before its usual size is lost
    usual = sample.kthvalue(max(1, int(0.9 * sample.shape[1])), dim=1).values
    return bend <= (_FLAT_SHARE / 1.645 * usual)[:, None, None]


def _sampled(images: Tensor, max_px: int = _SAMPLE_PX) -> Tensor:
    step = max(1, int(math.sqrt(images.shape[1] * images.shape[2] / max_px)))
    return images[:, ::step, ::step]


def _long_runs(flat: Tensor) -> Tensor:
    """bool like `flat` `(y, x)`: what belongs to a run along x that is too long for chance."""
    chance = _chance_of_one_more(flat)
    if chance > 0.98:
        return torch.zeros_like(flat)
    return _runs(flat, max(3, math.ceil(math.log(_CHANCE / flat.numel()) / math.log(chance))))


def _chance_of_one_more(flat: Tensor) -> float:
    """How often a flat pixel of mere noise has a flat one beside it.

    Of real numbers one in a thousand, of counts with few values many. It is measured where an image `(y, x)`
    is least flat, so that an area without noise does not count.
    """
    y, x = flat.shape
    # small enough that some block of a small image, too, lies within the circle of a mask
    block = (max(1, min(8, y // 4)), max(1, min(16, (x - 1) // 4)))
    share = functional.avg_pool2d(flat[None, :, 1:].float(), block)[0].flatten()
    pairs = functional.avg_pool2d((flat[:, 1:] & flat[:, :-1])[None].float(), block)[0].flatten()
    noise = share <= share.kthvalue(max(1, int(_LEAST_FLAT * len(share)))).values
    n_flat, n_pairs = float(share[noise].mean()), float(pairs[noise].mean())
    return max(_FLAT_BY_CHANCE, n_flat, n_pairs / n_flat if n_flat > _FLAT_BY_CHANCE else 0.0)


def _runs(flat: Tensor, length: int) -> Tensor:
    """bool like `flat` `(y, x)`: members of runs of at least `length` along x."""
    if flat.shape[1] < length:
        return torch.zeros_like(flat)
    sums = functional.pad(flat.cumsum(1, dtype=torch.int32), (1, 0))
    whole = sums[:, length:] - sums[:, :-length] == length  # by the first member
    starts = functional.pad(
        functional.pad(whole, (length - 1, length - 1)).cumsum(1, dtype=torch.int32), (1, 0)
    )
    return starts[:, length:] - starts[:, :-length] > 0


def find_outliers(images: Tensor, noise_free: Tensor | None = None) -> Tensor | None:
    """bool `(n, y, x)`: single pixels, clusters and lines of `images` beyond all that is around them.

    None without any. Of `noise_free` pixels, bool `(n, y, x)`, none is an outlier.
    """
    if min(images.shape[1:]) <= 2 * _RING_PX:
        return None
    level, scale = _level_and_scale(images, noise_free)
    beyond = (images - level).abs_() > (_CANDIDATE * scale)[:, None, None]
    beyond &= (scale > 0)[:, None, None]
    if noise_free is not None:
        beyond &= ~noise_free
    if not bool(beyond.any()):
        return None
    found = _stand_out(images, beyond, scale, _OUTLIER)
    _leave_signal(images, found, level)
    found &= (found.float().mean((1, 2)) < _MAX_OUTLIER_SHARE)[:, None, None]
    if not bool(found.any()):
        return None
    around = functional.max_pool2d(found.float(), 3, stride=1, padding=1) > 0
    if noise_free is not None:
        around &= ~noise_free
    return found | _stand_out(images, around & ~found, scale, _OUTLIER_NEIGHBOUR)


def _level_and_scale(images: Tensor, noise_free: Tensor | None) -> tuple[Tensor, Tensor]:
    """Medians of squares of about 64 px, as `(n, y, x)`, and the robust spread about them, `(n,)`."""
    y, x = images.shape[1:]
    step = 4 if min(y, x) > 512 else 2 if min(y, x) > _CELL_PX else 1
    sample = images[:, ::step, ::step]
    if noise_free is not None:
        sample = sample.masked_fill(noise_free[:, ::step, ::step], math.nan)
    sides = [max(1, round(side * step / _CELL_PX)) for side in sample.shape[1:]]
    cell = [side // count for side, count in zip(sample.shape[1:], sides, strict=True)]
    whole = sample[:, : sides[0] * cell[0], : sides[1] * cell[1]]
    cells = whole.unfold(1, cell[0], cell[0]).unfold(2, cell[1], cell[1]).flatten(3)
    medians = cells.nanmedian(-1).values
    deviations = (cells - medians[..., None]).abs_().flatten(1)
    scale = 1.4826 * deviations.nanmedian(1).values
    # counts of which most are alike have no median deviation
    rare = deviations.nan_to_num(0.0).kthvalue(max(1, int(0.8 * deviations.shape[1])), dim=1).values / 1.2816
    scale = torch.where(scale > 0, scale, rare).nan_to_num(0.0)
    if noise_free is not None:
        overall = medians.flatten(1).nanmedian(1).values.nan_to_num(0.0)
        medians = torch.where(medians.isnan(), overall[:, None, None], medians)
    level: Tensor = functional.interpolate(medians[:, None], size=(y, x), mode="nearest")[:, 0]
    return level, scale


def _in_chunks(pixels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the places `n, y, x` where bool `(n, y, x)` is true, some hundred thousand at a time."""
    places = torch.nonzero(pixels)
    for begin in range(0, len(places), _CHUNK):
        n, y, x = places[begin : begin + _CHUNK].unbind(1)
        yield n, y, x


def _around(images: Tensor, n: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sorted values `(k, 40)` on the squares about pixels `(k,)`, mirrored at the borders."""
    offset_y, offset_x = torch.tensor(_RING, device=images.device).unbind(1)
    rows, columns = ((y[:, None] + offset_y).abs(), (x[:, None] + offset_x).abs())
    last_row, last_column = images.shape[1] - 1, images.shape[2] - 1
    rows, columns = last_row - (last_row - rows).abs(), last_column - (last_column - columns).abs()
    return images[n[:, None], rows, columns].sort(1).values


def _stand_out(images: Tensor, candidates: Tensor, scale: Tensor, limit: float) -> Tensor:
    """bool `(n, y, x)`: the candidates that lie `limit` times the scale beyond the pixels around them."""
    found = torch.zeros_like(candidates)
    for n, y, x in _in_chunks(candidates):
        around, values = _around(images, n, y, x), images[n, y, x]
        margin = limit * scale[n]
        low, high = around[:, _RING_OUTLIERS], around[:, -1 - _RING_OUTLIERS]
        found[n, y, x] = (values > high + margin) | (values < low - margin)
    return found


def _leave_signal(images: Tensor, found: Tensor, level: Tensor) -> None:
    """Take out of bool `(n, y, x)`, outlying pixels, those of compact strong signal, such as gold.

    What comes through lenses and a detector has no sharp rim: of the step over half of its height a pixel
    makes up half. A hot pixel, or a cluster of them, makes it at once, interpolated as well.
    """
    offsets = torch.arange(-_RING_PX, _RING_PX + 1, device=images.device)
    last_row, last_column = images.shape[1] - 1, images.shape[2] - 1
    for n, y, x in _in_chunks(found):
        rows = last_row - (last_row - (y[:, None] + offsets).abs()).abs()
        columns = last_column - (last_column - (x[:, None] + offsets).abs()).abs()
        height = (
            images[n[:, None, None], rows[:, :, None], columns[:, None, :]] - level[n, y, x][:, None, None]
        )
        height *= height[:, _RING_PX, _RING_PX].sign()[:, None, None]
        top = height.amax((1, 2))
        above = height > top[:, None, None] / 2
        step, number = torch.zeros_like(top), torch.zeros_like(top)
        for axis in (1, 2):
            crossing = above.diff(dim=axis)
            step += (height.diff(dim=axis).abs() * crossing).sum((1, 2))
            number += crossing.sum((1, 2))
        found[n, y, x] = step >= _SHARP * top * number


def fill_defects(images: Tensor, defects: Defects, radius_px: float | None = None) -> Tensor:
    """Return `images` `(n, y, x)` with what is no noisy data replaced by what the rest looks like.

    An outlying pixel gets the value of an ordinary one nearby; an area without noise gets noise with the
    level, the standard deviation and the radial power spectrum of the image's own background. Both depend on
    the image alone, not on the others that it is denoised with.

    Parameters
    ----------
    images
        `(n, y, x)`.
    defects
        Of these images.
    radius_px
        Radius, pixels, of the particle's circle, outside which background is; None takes the whole image.
    """
    filled = images.clone()
    for n, y, x in _in_chunks(defects.outlying):
        around = _around(images, n, y, x)
        ordinary = around.shape[1] - 2 * _RING_OUTLIERS
        which = _RING_OUTLIERS + (7919 * y + 104_729 * x) % ordinary  # as good as random
        filled[n, y, x] = around.gather(1, which[:, None])[:, 0]
    for index in torch.nonzero(defects.noise_free.flatten(1).any(1))[:, 0].tolist():
        # on the CPU, where sums have one order: the same image is filled alike each time
        filled[index] = _with_noise(filled[index].cpu(), defects.noise_free[index].cpu(), radius_px)
    return filled


def put_back(denoised: Tensor, raw: Tensor, defects: Defects) -> Tensor:
    """Return `denoised` `(n, y, x)` with what `raw` has in areas without noise and in outlying pixels.

    Outlying pixels are clipped to the range of all that is neither. A denoised image has little spread: one
    hot pixel would leave it a single grey wherever black and white are the smallest and the largest value.
    """
    shown = torch.where(defects.noise_free, raw, denoised)
    if not bool(defects.outlying.any()):
        return shown
    low = denoised.masked_fill(defects.anywhere, math.inf).amin((1, 2), keepdim=True)
    high = denoised.masked_fill(defects.anywhere, -math.inf).amax((1, 2), keepdim=True)
    return torch.where(defects.outlying, torch.minimum(torch.maximum(raw, low), high), shown)


def _with_noise(image: Tensor, area: Tensor, radius_px: float | None) -> Tensor:
    """Return `image` `(y, x)` with noise like that of its background in an area, bool `(y, x)`."""
    background = ~area if radius_px is None else _background(~area, radius_px)
    share = background.float()
    if radius_px is None:
        level = _smooth_level(image, share)
    else:
        level = torch.full_like(image, float(image[background].double().mean()))
    rest = (image - level) * share
    shape = (image.shape[0], image.shape[1])
    amplitude = ring_mean(torch.fft.rfft2(rest).abs().square(), shape).sqrt()
    amplitude[0] = amplitude[1]  # the level is filled in apart from the noise
    noise = torch.fft.irfft2(
        torch.fft.rfft2(white_noise(image, shape)) * amplitude[ring_index(shape)], s=shape
    )
    noise *= (rest.square().sum() / share.sum()).sqrt() / noise.std().clamp_min(1e-30)
    return torch.where(area, level + noise, image)


def _background(real: Tensor, radius_px: float) -> Tensor:
    """bool `(y, x)`: real pixels outside the circle, or the outermost ones, a tenth of the box at least."""
    y = torch.arange(real.shape[0], device=real.device) - real.shape[0] // 2
    x = torch.arange(real.shape[1], device=real.device) - real.shape[1] // 2
    distance = (y[:, None].square() + x[None, :].square()).float().sqrt()
    wanted = max(1, int(_MIN_BACKGROUND_SHARE * real.numel()))
    distances = distance[real].sort(descending=True).values
    limit = min(radius_px, float(distances[min(wanted, len(distances)) - 1]))
    return real & (distance >= limit)


def _smooth_level(image: Tensor, share: Tensor) -> Tensor:
    """Local mean of the real pixels, interpolated over what has none, for the uneven ice of micrographs."""
    cells = (-(-image.shape[0] // _CELL_PX), -(-image.shape[1] // _CELL_PX))
    weight = functional.adaptive_avg_pool2d(share[None], cells)
    total = functional.adaptive_avg_pool2d((image * share)[None], cells)
    overall = float(total.sum() / weight.sum())
    level = torch.where(weight > 0.1, total / weight.clamp_min(1e-6), torch.nan)
    while bool(level.isnan().any()) and not bool(level.isnan().all()):
        known = torch.cat([level.nan_to_num(0.0), (~level.isnan()).float()])
        total, weight = functional.avg_pool2d(known, 3, stride=1, padding=1)
        level = torch.where(level.isnan(), total / weight, level)
    level = level.nan_to_num(overall)
    out: Tensor = functional.interpolate(level[None], size=image.shape, mode="bilinear", align_corners=False)
    return out[0, 0]


def white_noise(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """White noise of `shape` `(y, x)` and sd 1 that the pixels of `image` `(y, x)`, on the CPU, seed."""
    seed = zlib.crc32(image.contiguous().numpy().data)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))
