"""Correlation and power by Fourier ring or shell, resolution, and correlation within a band.

Rings of `(..., y, x)` images are those of `imaging.rings.ring_index`: sharp, one Fourier pixel wide, from 0
to Nyquist. Shells of `(d, d, d)` volumes are the same in three dimensions. Each coefficient of the full
transform counts once, so the half transform that torch computes is weighted.

References
----------
.. [1] Rosenthal & Henderson (2003) J. Mol. Biol. 333, 721-745, doi:10.1016/j.jmb.2003.07.013: 0.143.
.. [2] Chen et al. (2013) Ultramicroscopy 135, 24-35, doi:10.1016/j.ultramic.2013.06.004: the correlation that
   a mask makes, found with randomised phases and taken out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..imaging.rings import frequency_grid, hermitian_weight, ring_mean
from .image import require_same_shape

# Shells beyond the one from which phases are random that are left out of the correction: a mask mixes
# neighbouring shells, and just beyond that one the randomised maps still correlate through it.
_SHELLS_OF_TRANSITION = 2


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
    """FRC of each image with its reference: `(..., rings)` from 0 to Nyquist; 0 where a ring is empty.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    cross, power_a, power_b = ring_products(images, reference)
    return _ratio(cross, power_a * power_b)


def pooled_fourier_ring_correlation(images: Tensor, reference: Tensor) -> Tensor:
    """One curve `(rings,)` for all pairs of `(n, y, x)`.

    Products and powers are summed over the pairs before they are divided. The mean of the single curves would
    weigh each pair alike, however little it holds.
    """
    cross, power_a, power_b = (product.sum(0) for product in ring_products(images, reference))
    return _ratio(cross, power_a * power_b)


def ring_products(images: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ring means `(..., rings)` of the cross product and of both powers, from 0 to Nyquist.

    Their sums over many images are what pooled curves are made of, chunk by chunk.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    require_same_shape(images, reference)
    shape = (images.shape[-2], images.shape[-1])
    rings = min(shape) // 2 + 1
    a, b = torch.fft.rfft2(images, norm="ortho"), torch.fft.rfft2(reference, norm="ortho")
    cross = ring_mean((a * b.conj()).real, shape)[..., :rings]
    power_a = ring_mean(a.abs().square(), shape)[..., :rings]
    power_b = ring_mean(b.abs().square(), shape)[..., :rings]
    return cross, power_a, power_b


def fourier_shell_correlation(volume: Tensor, reference: Tensor) -> Tensor:
    """FSC of two volumes `(d, d, d)`: `(shells,)` from 0 to Nyquist; 0 where a shell is empty.

    Shells are counted as rings are, so `ring_frequencies((d, d), pixel_size)` gives their frequencies.

    Raises
    ------
    InputError
        When the volumes are not cubes of one size.
    """
    require_same_shape(volume, reference)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise InputError(f"expected cubic volumes (d, d, d), found {tuple(volume.shape)}.")
    side = volume.shape[0]
    axis = torch.fft.fftfreq(side, 1 / side, device=volume.device)
    half = torch.fft.rfftfreq(side, 1 / side, device=volume.device)
    radius = (axis[:, None, None].square() + axis[:, None].square() + half.square()).sqrt()
    shell = radius.round().long().flatten()
    weight = hermitian_weight((side, side), volume.device).expand(side, side, -1).flatten()
    a, b = (torch.fft.rfftn(v, norm="ortho").flatten() for v in (volume, reference))

    def total(values: Tensor) -> Tensor:
        sums = values.new_zeros(int(shell.max()) + 1).index_add_(0, shell, values * weight.to(values.dtype))
        return sums[: side // 2 + 1]

    return _ratio(total((a * b.conj()).real), total(a.abs().square()) * total(b.abs().square()))


def resolution_angstrom(
    curve: Tensor, shape: tuple[int, ...], pixel_size_angstrom: float, threshold: float = 0.143
) -> Tensor:
    """Resolution, Å, where correlation curves `(..., rings)` first fall below a threshold: `(...)`.

    Linear between the last ring above and the first below; Nyquist where a curve never falls below, infinite
    where it already does in ring 1. Ring 0, the mean, does not count.

    Parameters
    ----------
    curve
        Of `fourier_ring_correlation` or `fourier_shell_correlation`.
    shape
        Of the images or volumes.
    threshold
        0.143 between two halves of the data; 0.5 against a reference free of noise, where it stands for the
        same share of signal [1]_.
    """
    rings = curve[..., 1:]
    below = rings < threshold
    crosses = below.any(-1)
    first = torch.where(crosses, below.to(torch.int8).argmax(-1), rings.shape[-1] - 1)
    after = rings.gather(-1, first[..., None])[..., 0]
    before = rings.gather(-1, (first - 1).clamp_min(0)[..., None])[..., 0]
    # ring numbers count from 1
    ring = torch.where(crosses, first + (before - threshold) / (before - after), first + 1.0)
    resolution = min(shape[-2:]) * pixel_size_angstrom / ring
    return torch.where(below[..., 0], torch.full_like(resolution, math.inf), resolution)


@dataclass(frozen=True)
class MaskedCorrelation:
    """Correlation curves `(rings,)` of two masked half maps or half-set averages.

    Attributes
    ----------
    unmasked, masked
        Without and with the mask.
    randomised
        Masked, with the phases randomised from ring `randomised_from` up: what the mask alone makes.
    corrected
        `(masked - randomised) / (1 - randomised)` [2]_; as `masked` in the rings before
        `randomised_from` and in two more, where the mask still mixes both sides.
    """

    unmasked: Tensor
    masked: Tensor
    randomised: Tensor
    corrected: Tensor
    randomised_from: int


def masked_correlation(
    first: Tensor,
    second: Tensor,
    mask: Tensor,
    *,
    randomise_below: float = 0.8,
    n_draws: int = 10,
    generator: torch.Generator | None = None,
) -> MaskedCorrelation:
    """Ring or shell correlation within a mask, corrected for what the mask makes of noise [2]_.

    Parameters
    ----------
    first, second
        Two images `(y, x)` or two volumes `(d, d, d)`.
    mask
        Of the same shape, 0 to 1, with a soft edge.
    randomise_below
        The phases are randomised from the first ring where the unmasked correlation is below this.
    n_draws
        How often the phases are randomised; the mean counts. Differs from [2]_, where once is enough: a mask
        leaves a shell of a small box so few independent coefficients that one draw adds its own noise.
    generator
        For the phases; a fixed seed by default.

    Raises
    ------
    InputError
        When the shapes differ, are of neither kind, or the correlation never falls below `randomise_below`.
    """
    require_same_shape(first, second)
    require_same_shape(first, mask)
    correlate = fourier_ring_correlation if mask.ndim == 2 else fourier_shell_correlation
    unmasked = correlate(first, second)
    below = (unmasked[1:] < randomise_below).nonzero()
    if not len(below):
        raise InputError(
            f"the halves correlate by {randomise_below:g} and more up to Nyquist: no noise to randomise.",
            remedy="Use a smaller pixel size, or give halves that are independent.",
        )
    start = int(below[0]) + 1
    generator = generator or torch.Generator().manual_seed(0)
    masked = correlate(first * mask, second * mask)
    draws = [
        correlate(*(randomise_phases(half, start, generator) * mask for half in (first, second)))
        for _ in range(n_draws)
    ]
    randomised = torch.stack(draws).mean(0)
    true = (masked - randomised) / (1.0 - randomised)
    ring = torch.arange(len(masked), device=masked.device)
    corrected = torch.where(ring < start + _SHELLS_OF_TRANSITION, masked, true)
    return MaskedCorrelation(unmasked, masked, randomised, corrected, start)


def randomise_phases(values: Tensor, from_ring: int, generator: torch.Generator) -> Tensor:
    """Keep the amplitudes of an image `(y, x)` or volume `(z, y, x)`, and randomise phases from a ring up.

    The phases are those of white noise, so each coefficient and its conjugate still belong together.
    """
    axes = [torch.fft.fftfreq(side, 1 / min(values.shape)) for side in values.shape[:-1]]
    axes.append(torch.fft.rfftfreq(values.shape[-1], 1 / min(values.shape)))
    grid = torch.meshgrid(*axes, indexing="ij")
    radius = torch.stack(grid).square().sum(0).sqrt().round().to(values.device)
    transform = torch.fft.rfftn(values)
    noise = torch.fft.rfftn(torch.randn(values.shape, generator=generator).to(values))
    random = torch.polar(transform.abs(), noise.angle())
    kept = torch.where(radius < from_ring, transform, random)
    result: Tensor = torch.fft.irfftn(kept, s=values.shape)
    return result


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
    require_same_shape(images, reference)
    shape = (images.shape[-2], images.shape[-1])
    weight = band_weight(shape, pixel_size_angstrom, coarsest_angstrom, finest_angstrom, device=images.device)
    a, b = torch.fft.rfft2(images), torch.fft.rfft2(reference)
    cross = ((a * b.conj()).real * weight).sum((-2, -1))
    power_a = (a.abs().square() * weight).sum((-2, -1))
    power_b = (b.abs().square() * weight).sum((-2, -1))
    return _ratio(cross, power_a * power_b)


def band_weight(
    shape: tuple[int, int],
    pixel_size_angstrom: float,
    coarsest_angstrom: float,
    finest_angstrom: float,
    device: torch.device | None = None,
) -> Tensor:
    """`(y, x // 2 + 1)` how often a coefficient of `torch.fft.rfft2` occurs within a band: 0, 1 or 2.

    The band holds what is strictly finer than the coarsest and not finer than the finest resolution.
    """
    frequency = frequency_grid(shape, device) / pixel_size_angstrom
    inside = frequency > 1.0 / coarsest_angstrom
    if finest_angstrom > 0:
        inside &= frequency <= 1.0 / finest_angstrom
    return inside * hermitian_weight(shape, device)


def _ratio(cross: Tensor, power_product: Tensor) -> Tensor:
    norm = power_product.sqrt()
    return torch.where(norm > 0, cross / norm, torch.zeros_like(cross))
