"""The power spectrum of the noise in a stack: what the microscope's CTF has no part in.

The background of particle images holds more than noise: ice and neighbours, which a second exposure would
show again. These were imaged through the CTF, and the detector's noise was not. In a ring in which the CTFs
of the images differ, the power of the background against the square of the CTF is a line, whose value at 0 is
the noise. Where CTFs are not known, only the floor of the finest rings is taken for noise.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..imaging.ctf import CtfParameters, ctf
from ..imaging.filters import FLOOR_RINGS, background_power, floor_of
from ..imaging.normalise import (
    background_mask,
    background_statistics,
    default_radius_px,
    normalise,
    usable,
)
from ..imaging.rings import brightness, hermitian_weight, ring_index, ring_mean

#: relative to the floor; a ring with less was filtered away
_LEAST_NOISE = 0.1
#: rings, as shares of the Nyquist frequency, in which the power beyond the noise is that of ice and
#: neighbours, and how much of it, over that of the noise, is plenty
_ICE_RINGS, _MUCH_ICE = (0.2, 0.55), 0.2
#: coarser ones, in which particles and ice are strongest
_COARSE_RINGS = (0.06, 0.2)
#: enough: standard deviation of CTF² in a ring, and standard error of the noise, relative to the power
_DIFFERING, _SURE = 0.1, 0.1
#: of `beyond_noise`: with less the background holds little beside noise
_EVEN = 0.5
_BLOCK = 256


def noise_spectrum(background: Tensor, nyquist: int, without_ctf: Tensor | None) -> Tensor:
    """`(rings,)` power of the noise.

    Parameters
    ----------
    background
        `(rings,)` power of the background; where it is less than the floor, it is noise.
    nyquist
        Number of the ring of the Nyquist frequency; rings beyond it are in the corners.
    without_ctf
        `(rings,)` of `unmodulated_power`, NaN where it is not known: there it lies on a line between its
        neighbours, and below the coarsest ring that is known it is the same. None is nowhere. It counts where
        coarse detail of the background is hardly above it: with much ice and many neighbours, as on all real
        micrographs seen so far, the floor is the better guess [1]_.

    References
    ----------
    .. [1] Measured on EMPIAR-10146 with another exposure: taken for noise there, it costs a fifth of the gain
       from 30 to 11 Å, see docs/evidence.md.
    """
    floor, (fine, _) = floor_of(background, nyquist), _rings(FLOOR_RINGS, nyquist)
    around = torch.nn.functional.pad(background[None], (2, 2), "replicate")
    smooth = around.unfold(1, 5, 1).mean(-1)[0]
    noise = smooth.clamp(_LEAST_NOISE * floor, floor)
    if without_ctf is not None and bool(without_ctf.isfinite().any()):
        rings = np.arange(len(noise))
        told = without_ctf.isfinite().numpy() & (rings < fine)
        places, values = np.append(rings[told], fine), np.append(without_ctf.numpy()[told], floor)
        known = torch.from_numpy(np.interp(rings, places, values)).float()
        coloured = torch.maximum(noise, torch.minimum(known, smooth))
        beyond = _beyond(background, coloured, _rings(_COARSE_RINGS, nyquist))
        noise = torch.lerp(noise, coloured, min(1.0, max(0.0, 2 - beyond)))
    noise[fine:] = floor
    return noise


def beyond_noise(background: Tensor, noise: Tensor, nyquist: int) -> float:
    """How much the background holds beyond the noise, 0 (nothing) to 1 (plenty), of `(rings,)` powers."""
    return min(1.0, _beyond(background, noise, _rings(_ICE_RINGS, nyquist)) / _MUCH_ICE)


def brightness_beside_noise(
    images: Tensor, optics: CtfParameters | None, pixel_size_angstrom: float
) -> float:
    """Mean power of `(n, y, x)` particles over that of their noise; 1 for noise alone.

    As `imaging.rings.brightness`, for which noise is white. Where the CTFs of square images tell that it is
    stronger at some frequencies, and the background holds little else, what is stronger is noise, too.
    """
    y, x = images.shape[-2:]
    if optics is None or y != x:
        return brightness(images)
    radius = default_radius_px((y, x))
    normalised, _, std = normalise(images, radius)
    chosen = usable(normalised, std)
    if not chosen.any():
        return brightness(images)
    normalised = normalised[chosen]
    background = background_power(normalised, radius)
    without_ctf = unmodulated_power(normalised, optics[chosen], pixel_size_angstrom, radius)
    noise = noise_spectrum(background, x // 2, without_ctf)
    if beyond_noise(background, noise, x // 2) > _EVEN:
        return brightness(images)
    power = torch.fft.rfft2(normalised, norm="ortho").abs().square().mean(0)
    weight = hermitian_weight((y, x))
    return float((weight * power).sum() / (weight * noise[ring_index((y, x))]).sum())


def _rings(shares: tuple[float, float], nyquist: int) -> tuple[int, int]:
    return int(shares[0] * nyquist), int(shares[1] * nyquist)


def _beyond(background: Tensor, noise: Tensor, rings: tuple[int, int]) -> float:
    first, last = rings
    return float((background[first:last] / noise[first:last] - 1).clamp_min(0).mean())


def unmodulated_power(
    images: Tensor, optics: CtfParameters, pixel_size_angstrom: float, radius_px: float
) -> Tensor:
    """`(rings,)` power of the background that does not follow the images' CTFs; NaN where they do not tell.

    Parameters
    ----------
    images
        `(n, y, x)`.
    radius_px
        Of the particle: what lies beyond is background.
    """
    shape = (images.shape[-2], images.shape[-1])
    mask = background_mask(shape, radius_px, images.device)
    powers, squares = [], []
    for some in torch.split(torch.arange(len(images)), _BLOCK):
        mean, _ = background_statistics(images[some], radius_px)
        background = (images[some] - mean[:, None, None]) * mask
        power = torch.fft.rfft2(background, norm="ortho").abs().square() / mask.float().mean()
        squared = ctf(optics[some], torch.full((len(some),), pixel_size_angstrom), shape[0]).square()
        powers.append(ring_mean(power, shape))
        squares.append(ring_mean(squared, shape))
    power, squared = torch.cat(powers).double(), torch.cat(squares).double()
    mean_power, mean_squared = power.mean(0), squared.mean(0)
    spread = (squared - mean_squared).square().mean(0)
    slope = ((squared - mean_squared) * power).mean(0) / spread.clamp_min(1e-12)
    noise = mean_power - slope * mean_squared
    left = (power - noise - slope * squared).square().mean(0)
    each = (left / len(power)).sqrt()
    error = each * (1 + mean_squared.square() / spread.clamp_min(1e-12)).sqrt()
    told = (spread.sqrt() > _DIFFERING) & (error < _SURE * mean_power) & (noise > 0)
    told &= slope > -3 * each / spread.clamp_min(1e-12).sqrt()
    return torch.minimum(noise, mean_power).where(told, torch.nan).float()
