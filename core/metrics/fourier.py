"""Correlation and power by Fourier ring, and correlation within a band, of `(..., y, x)` images.

Rings are those of `imaging.filters.ring_index`: sharp, one Fourier pixel wide, from 0 to Nyquist. Each
coefficient of the full transform counts once, so the half transform that torch computes is weighted.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..imaging.filters import frequency_grid, hermitian_weight, ring_mean


def ring_frequencies(shape: tuple[int, int], pixel_size_angstrom: float) -> Tensor:
    """`(rings,)` frequency of each ring from 0 to Nyquist, in 1/Å."""
    side = min(shape)
    return torch.arange(side // 2 + 1) / (side * pixel_size_angstrom)


def radial_power_spectrum(images: Tensor) -> Tensor:
    """Mean power `|F|² / (y x)` of each image by ring: `(..., rings)`; white noise of variance v gives v."""
    shape = (images.shape[-2], images.shape[-1])
    power = torch.fft.rfft2(images).abs().square() / (shape[0] * shape[1])
    return ring_mean(power, shape)[..., : min(shape) // 2 + 1]


def fourier_ring_correlation(images: Tensor, reference: Tensor) -> Tensor:
    """Fourier ring correlation of each image with its reference: `(..., rings)`; 0 where a ring is empty."""
    cross, power_a, power_b = _ring_products(images, reference)
    return _ratio(cross, power_a * power_b)


def pooled_fourier_ring_correlation(images: Tensor, reference: Tensor) -> Tensor:
    """One curve `(rings,)` for all pairs of `(n, y, x)`.

    Products and powers are summed over the pairs before they are divided. The mean of the single curves would
    weigh each pair alike, however little it holds.
    """
    cross, power_a, power_b = (product.sum(0) for product in _ring_products(images, reference))
    return _ratio(cross, power_a * power_b)


def band_correlation(
    images: Tensor,
    reference: Tensor,
    pixel_size_angstrom: float,
    *,
    coarsest_angstrom: float = float("inf"),
    finest_angstrom: float = 0.0,
) -> Tensor:
    """Pearson correlation of each image with its reference within a band of resolutions: `(...)`.

    Only the frequencies strictly finer than `coarsest_angstrom` and not finer than `finest_angstrom` count.
    The defaults keep all but the mean, which gives `image.correlation`.
    """
    shape = (images.shape[-2], images.shape[-1])
    frequency = frequency_grid(shape, images.device) / pixel_size_angstrom
    inside = frequency > 1.0 / coarsest_angstrom
    if finest_angstrom > 0:
        inside &= frequency <= 1.0 / finest_angstrom
    weight = inside * hermitian_weight(shape, images.device)
    a, b = torch.fft.rfft2(images), torch.fft.rfft2(reference)
    cross = ((a * b.conj()).real * weight).sum((-2, -1))
    power_a = (a.abs().square() * weight).sum((-2, -1))
    power_b = (b.abs().square() * weight).sum((-2, -1))
    return _ratio(cross, power_a * power_b)


def _ring_products(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ring means `(..., rings)` of the cross product and of both powers, from 0 to Nyquist."""
    shape = (images.shape[-2], images.shape[-1])
    rings = min(shape) // 2 + 1
    a, b = torch.fft.rfft2(images, norm="ortho"), torch.fft.rfft2(reference, norm="ortho")
    cross = ring_mean((a * b.conj()).real, shape)[..., :rings]
    power_a = ring_mean(a.abs().square(), shape)[..., :rings]
    power_b = ring_mean(b.abs().square(), shape)[..., :rings]
    return cross, power_a, power_b


def _ratio(cross: Tensor, power_product: Tensor) -> Tensor:
    norm = power_product.sqrt()
    return torch.where(norm > 0, cross / norm, torch.zeros_like(cross))
