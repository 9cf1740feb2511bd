"""The grid of frequencies of `torch.fft.rfft2`, its rings, and means over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frequency_grid(shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """`(y, x // 2 + 1)` magnitude of the frequencies of `torch.fft.rfft2`, in cycles per pixel."""
    y, x = shape
    rows = torch.fft.fftfreq(y, device=device)[:, None]
    columns = torch.fft.rfftfreq(x, device=device)[None, :]
    return torch.hypot(rows, columns)


def ring_index(shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """`(y, x // 2 + 1)` Fourier ring of each coefficient of `torch.fft.rfft2`, as int64.

    Ring `r` holds the frequencies that round to `r / min(y, x)` cycles per pixel. Ring `min(y, x) // 2` is
    Nyquist; those above it lie in the corners.
    """
    return torch.round(frequency_grid(shape, device) * min(shape)).long()


def hermitian_weight(shape: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """`(x // 2 + 1,)` how often each column of `torch.fft.rfft2` occurs in the full transform: 1 or 2."""
    x = shape[1]
    weight = torch.full((x // 2 + 1,), 2.0, device=device)
    weight[0] = 1.0
    if x % 2 == 0:
        weight[-1] = 1.0
    return weight


def ring_mean(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """`(..., rings)` mean of real `values` `(..., y, x // 2 + 1)` over the rings of images of `shape`."""
    ring = ring_index(shape, values.device).flatten()
    weight = hermitian_weight(shape, values.device).expand(shape[0], -1).flatten().to(values.dtype)
    rings = int(ring.max()) + 1
    sums = values.new_zeros(*values.shape[:-2], rings)
    sums.index_add_(-1, ring, values.flatten(-2) * weight)
    return sums / values.new_zeros(rings).index_add_(0, ring, weight)


# Noise has an end where a ring and all finer ones have less than this share of the power between a quarter
# and a half of their frequency. Detectors with the poorest transfer keep ten times as much.
_END_SHARE = 6e-3
# From here on: what is coarser is of particles and ice, whose power falls as steeply.
_FINE = 0.3
# Less than this share of what is coarse is rounding.
_ROUNDING_SHARE, _COARSE = 1e-7, 0.03


# The corners of the Fourier square, beyond Nyquist: cycles per pixel.
_CORNERS = 0.55
# They are empty, not white, with less than this share of the power of the last rings before Nyquist.
_EMPTY_SHARE, _LAST_RINGS = 0.1, (0.45, 0.5)


def brightness(images: Tensor) -> float:
    """Mean power of images `(n, y, x)` over that of their white noise; 1 for white noise alone.

    White noise is what there is in the corners of the Fourier square, where particles and ice have least.
    Each image has the same weight; those that are constant or not finite have none. 1 if none is left.
    """
    centred = images.double() - images.double().mean((1, 2), keepdim=True)
    spread = centred.square().mean((1, 2), keepdim=True).sqrt()
    sound = torch.isfinite(spread).flatten() & (spread > 0).flatten()
    if not sound.any():
        return 1.0
    shape = (images.shape[1], images.shape[2])
    power = torch.fft.rfft2(centred[sound] / spread[sound]).abs().square().mean(0)
    frequency, weight = frequency_grid(shape, images.device), hermitian_weight(shape, images.device)

    def mean(chosen: Tensor) -> float:
        share = weight.double() * chosen
        return float((share * power).sum() / share.sum())

    last = (frequency > _LAST_RINGS[0]) & (frequency <= _LAST_RINGS[1])
    floor = max(mean(frequency > _CORNERS), _EMPTY_SHARE * mean(last))
    return mean(torch.ones_like(last)) / floor if floor > 0 else math.inf


def noise_ends_at(images: Tensor) -> float | None:
    """Frequency, cycles per pixel, beyond which images `(n, y, x)` hold hardly anything; None without one.

    Detectors make noise at all frequencies. It is missing in images that were low-passed, blurred, brought to
    a finer grid or denoised.
    """
    n, y, x = images.shape
    if not n or min(y, x) < 32:
        return None
    window = torch.hann_window(y, device=images.device)[:, None] * torch.hann_window(x, device=images.device)
    centred = images - images.mean((1, 2), keepdim=True)
    centred = centred / centred.std((1, 2), keepdim=True).clamp_min(1e-30)
    power = torch.fft.rfft2(centred.double() * window).abs().square().mean(0)
    rings = ring_mean(power, (y, x))[: min(y, x) // 2 + 1]
    beyond = rings.flip(0).cummax(0).values.flip(0)  # the largest of each ring and all finer ones
    side = min(y, x)
    rounding = _ROUNDING_SHARE * float(rings[max(2, round(_COARSE * side)) :].max())
    for ring in range(round(_FINE * side), len(rings)):
        limit = max(_END_SHARE * float(rings[ring // 4 : ring // 2].median()), rounding)
        if float(beyond[ring]) < limit:
            return int((beyond < limit).nonzero()[0, 0]) / side
    return None
