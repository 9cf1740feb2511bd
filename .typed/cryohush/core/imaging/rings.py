"""The grid of frequencies of `torch.fft.rfft2`, its rings, and means over them."""

from __future__ import annotations

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
