"""The noise of an electron micrograph: its distributions, its spectrum, and how much of it there is.

Fields of noise have expected mean 0 and variance 1 unless said otherwise, are drawn where the generator lives
and are a function of it alone. With `image_generator` on the CPU that makes the noise of an image a function
of the seed and the image's number: the same however a set is cut into chunks, and on whichever device it is
used. Training draws on its own device, where other numbers come from the same seed.

References
----------
.. [1] Matsumoto & Nishimura (1998) ACM Trans. Model. Comput. Simul. 8, 3-30: the Mersenne Twister.
.. [2] Bartlett (1948) Nature 161, 686-687: averaging periodograms.
.. [3] Devroye (1986) Non-Uniform Random Variate Generation, II.2.1: inversion, for Rayleigh's distribution.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .rings import frequency_grid, hermitian_weight, ring_mean

# Torch's CPU generator [1] is seeded by 32 bits: the higher ones are ignored.
_SEEDS = 2**32
# Odd, so that no two numbers below 2^32 get one seed; 2^32 over the golden ratio: neighbours lie apart.
_STRIDE = 0x9E3779B1


def image_generator(
    seed: int, number: int, purpose: str = "noise", device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the source of randomness of one image of a set.

    Parameters
    ----------
    seed
        Of the whole set.
    number
        Of the image, 0-based; two images of a set never share a state (up to 2^32 images).
    purpose
        What is drawn, so that e.g. other noise leaves the rest of the image as it was.
    device
        Where it is drawn; other kinds of device give other numbers.
    """
    offset = zlib.crc32(f"{seed}/{purpose}".encode())
    return torch.Generator(device).manual_seed((offset + number * _STRIDE) % _SEEDS)


def uniform(n: int, limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    """`(n,)` uniform between the limits."""
    return limits[0] + (limits[1] - limits[0]) * torch.rand(n, generator=generator, device=generator.device)


def log_uniform(n: int, limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    """`(n,)` whose logarithm is uniform between those of the limits, which are positive."""
    return torch.exp(uniform(n, (math.log(limits[0]), math.log(limits[1])), generator))


def gaussian(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """White Gaussian noise of mean 0 and variance 1."""
    return torch.randn(tuple(shape), generator=generator, device=generator.device)


def gamma(shape: Sequence[int], order: float, generator: torch.Generator) -> Tensor:
    """White gamma-distributed noise of that order (the distribution's shape), made mean 0 and variance 1.

    Its skewness is `2 / sqrt(order)`; order 1 is exponential (speckle), a large one nearly Gaussian.
    """
    # torch.distributions.Gamma draws from this too, but takes no generator
    values = torch._standard_gamma(torch.full(tuple(shape), float(order)), generator=generator)
    return values.sub_(order).div_(math.sqrt(order))


def rayleigh(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """White noise of Rayleigh's distribution (the modulus of complex Gaussian noise), mean 0, variance 1."""
    values = torch.empty(tuple(shape)).exponential_(generator=generator).mul_(2).sqrt_()  # [3]
    return values.sub_(math.sqrt(math.pi / 2)).div_(math.sqrt(2 - math.pi / 2))


def poisson(expected_counts: Tensor, generator: torch.Generator) -> Tensor:
    """Counts of electrons, Poisson-distributed about `expected_counts` (per pixel, of any shape).

    Raises
    ------
    ValueError
        An expected count is negative.
    """
    if bool((expected_counts < 0).any()):
        raise ValueError(f"expected counts must not be negative, found {float(expected_counts.min()):g}")
    return torch.poisson(expected_counts.cpu(), generator=generator).to(expected_counts.device)


def expected_counts(signal: Tensor, dose_per_pixel: float, snr: float, mask: Tensor | None = None) -> Tensor:
    """Expected electrons per pixel of an image that shot noise alone gives that signal-to-noise ratio.

    The shot noise of a mean of d electrons per pixel has variance d, so a signal of contrast c (its standard
    deviation inside the mask over the mean) has `snr = d c²`: dose and ratio fix the contrast.

    Parameters
    ----------
    signal
        `(y, x)`, on any scale, not constant; its mean over the image becomes the dose.
    dose_per_pixel
        Electrons per pixel.
    snr
        Wanted `signal_to_noise_ratio`.
    mask
        `(y, x)`, True inside; None is the whole image.

    Raises
    ------
    ValueError
        The contrast would have to be so high that a pixel expects less than no electron.
    """
    inside = signal if mask is None else signal[mask]
    contrast = math.sqrt(snr / dose_per_pixel) / inside.std(correction=0)
    expected = dose_per_pixel * (1 + contrast * (signal - signal.mean()))
    if bool((expected < 0).any()):
        raise ValueError(
            f"a signal-to-noise ratio of {snr:g} cannot be had from {dose_per_pixel:g} electrons per pixel: "
            "the contrast would exceed 100 %; give a higher dose or a lower ratio"
        )
    return expected


@dataclass(frozen=True, eq=False)
class PowerSpectrum:
    """Radial power of noise.

    Attributes
    ----------
    frequency
        `(k,)`, rising, cycles per pixel.
    power
        `(k,)`, not negative; the scale does not matter.
    """

    frequency: NDArray[np.float64]
    power: NDArray[np.float64]

    def on_grid(self, shape: tuple[int, int]) -> Tensor:
        """`(y, x // 2 + 1)` power on the grid of `rfft2`: 0 at zero frequency, mean 1 over all.

        Interpolated linearly; constant beyond the frequencies that are known.
        """
        return _on_grid(self, shape)


@lru_cache(maxsize=16)
def _on_grid(spectrum: PowerSpectrum, shape: tuple[int, int]) -> Tensor:
    power = np.interp(frequency_grid(shape).numpy(), spectrum.frequency, spectrum.power)
    power[0, 0] = 0
    weight = hermitian_weight(shape).numpy()
    return torch.from_numpy(power * (shape[0] * shape[1] / (power * weight).sum())).float()


def measure_spectrum(images: Tensor) -> PowerSpectrum:
    """Mean radial power of `(n, y, x)` images, from which each one's own mean was taken [2].

    Images of particles bear the particles' power too: give pieces of empty ice, or take micrographs.
    """
    shape = (images.shape[-2], images.shape[-1])
    centred = images - images.mean(dim=(-2, -1), keepdim=True)
    power = torch.stack([torch.fft.rfft2(image).abs().square() for image in centred]).mean(0)
    rings = ring_mean(power / (shape[0] * shape[1]), shape)[1:].double().numpy()
    return PowerSpectrum(np.arange(1, len(rings) + 1) / min(shape), rings)


def read_spectrum(path: Path | str) -> PowerSpectrum:
    """Read a text file with two columns: frequency (cycles per pixel, rising) and power.

    Raises
    ------
    InputError
        The file is not such a table.
    """
    try:
        table = np.loadtxt(path, ndmin=2)
    except (OSError, ValueError) as error:
        raise InputError(f"expected a table of frequency and power: {error}.", path=path) from error
    if table.shape[1] != 2 or len(table) < 2:
        raise InputError(
            f"expected two columns, frequency and power, found a table {table.shape}.", path=path
        )
    frequency, power = table.T
    if not (np.diff(frequency) > 0).all() or frequency[0] < 0:
        raise InputError("the first column must be rising frequencies in cycles per pixel.", path=path)
    if not np.isfinite(power).all() or (power < 0).any() or not (power > 0).any():
        raise InputError("the second column must be powers, finite and not negative.", path=path)
    return PowerSpectrum(frequency, power)


def coloured(white: Tensor, power: Tensor) -> Tensor:
    """Give white noise `(..., y, x)` a power spectrum `(y, x // 2 + 1)`, e.g. from `PowerSpectrum.on_grid`.

    The variance is multiplied by the mean power. Whatever the distribution of the white noise, a narrow
    spectrum makes the result more Gaussian: each pixel is then a sum of many.
    """
    shape = (white.shape[-2], white.shape[-1])
    field: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * power.sqrt(), s=shape)
    return field


def ice_power(transfer: Tensor, width: float) -> Tensor:
    """Power `(..., y, x // 2 + 1)` of the ice's structure behind the CTF, mean 1 over the full transform.

    Amorphous ice scatters less towards high frequency, here as a Gaussian; it lies before the lens, so it
    shows the rings of the CTF.

    Parameters
    ----------
    transfer
        `(..., y, x // 2 + 1)` CTF, times its envelope if there is one, of square images.
    width
        Frequency, cycles per pixel, at which the power has fallen to exp(-1/2).
    """
    box = transfer.shape[-2]
    frequency = frequency_grid((box, box), transfer.device)
    power = transfer.square() * torch.exp(-0.5 * (frequency / width) ** 2)
    weight = hermitian_weight((box, box), transfer.device)
    total: Tensor = (power * weight).sum(dim=(-2, -1), keepdim=True)
    return power * (box**2 / total)


def random_patch(source: Tensor, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Cut a piece of real noise `(y, x)` from a random place of a random image, turned or mirrored.

    It is brought to mean 0 and variance 1.

    Parameters
    ----------
    source
        `(n, y, x)` images of noise, at least as large as the piece.
    shape
        Of the piece; square, or it is not turned by 90 degrees.

    Raises
    ------
    ValueError
        The images are smaller than the piece, or the piece is constant.
    """
    room = [source.shape[axis - 2] - shape[axis] for axis in (0, 1)]
    if min(room) < 0:
        found = f"{source.shape[-1]} x {source.shape[-2]}"
        raise ValueError(f"pieces of {shape[1]} x {shape[0]} px do not fit into images of {found} px")

    def draw(stop: int) -> int:
        return int(torch.randint(stop, (1,), generator=generator, device=generator.device))

    image = source[draw(len(source))]
    top, left, turns, mirrored = draw(room[0] + 1), draw(room[1] + 1), draw(4), draw(2)
    patch = image[top : top + shape[0], left : left + shape[1]].float()
    patch = torch.rot90(patch, turns if shape[0] == shape[1] else 2 * (turns // 2))
    patch = patch.flip(-1) if mirrored else patch
    spread = patch.std(correction=0)
    if not spread > 0:
        raise ValueError(f"the piece at row {top}, column {left} of an image of noise is constant")
    return (patch - patch.mean()) / spread


def signal_to_noise_ratio(signal: Tensor, noise: Tensor, mask: Tensor | None = None) -> Tensor:
    """`(...)` signal-to-noise ratio of `(..., y, x)` images.

    Variance of the signal, as the microscope shows it (after CTF and envelope), inside the mask, by the
    variance of all noise over the whole image. Both are population variances.

    Parameters
    ----------
    signal, noise
        `(..., y, x)`.
    mask
        `(y, x)`, True inside; None is the whole image.
    """
    inside = signal.flatten(-2) if mask is None else signal[..., mask]
    return inside.var(dim=-1, correction=0) / noise.var(dim=(-2, -1), correction=0)


def scale_to_snr(signal: Tensor, noise: Tensor, snr: float | Tensor, mask: Tensor | None = None) -> Tensor:
    """Scale `noise` so that `signal_to_noise_ratio(signal, noise, mask)` is `snr`, exactly, in each image.

    Parameters
    ----------
    signal, noise
        `(..., y, x)`.
    snr
        Positive; one number, or one for each image `(...)`.
    mask
        `(y, x)`, True inside; None is the whole image.

    Raises
    ------
    ValueError
        A ratio that is not positive and finite, or a signal or noise that is constant: no factor gives the
        ratio then.
    """
    wanted = torch.as_tensor(snr, dtype=torch.float32, device=signal.device)
    if not bool((torch.isfinite(wanted) & (wanted > 0)).all()):
        raise ValueError("a signal-to-noise ratio must be positive and finite")
    found = signal_to_noise_ratio(signal, noise, mask)
    if not bool((torch.isfinite(found) & (found > 0)).all()):
        raise ValueError(
            "the signal inside the mask or the noise is constant: it has no signal-to-noise ratio"
        )
    return noise * (found / wanted).sqrt()[..., None, None]


def noise_of_ice_and_detector(
    frequency: Tensor, transfer: Tensor, *, tilt: float, largest_ice_share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Gaussian fields `(n, y, x)` whose variances add to 1: structure of the ice, with the rings of the CTF,
    and detector noise of a random smooth spectrum.

    Parameters
    ----------
    frequency
        `(y, x // 2 + 1)`, cycles per pixel.
    transfer
        `(n, y, x // 2 + 1)` CTF.
    tilt
        Amplitude (natural log of power) of each of the smooth random terms of the detector's spectrum.
    largest_ice_share
        The square of a uniform number times this is the ice's share of the variance.
    """
    n, box = transfer.shape[0], transfer.shape[1]
    if not tilt and not largest_ice_share:  # white noise alone, which needs no transform
        white = gaussian((n, box, box), generator)
        return torch.zeros_like(white), white / white.std(dim=(1, 2), keepdim=True)
    relative = (frequency / 0.5).clamp_max(1.0)
    log_power = torch.zeros(n, *frequency.shape, device=frequency.device)
    for order in (1, 2, 3):
        amplitude = tilt / order * gaussian((n, 1, 1), generator)
        log_power += amplitude * torch.cos(torch.pi * order * relative)
    # the ice scatters less towards high frequency; the width is drawn
    width = log_uniform(n, (0.04, 0.3), generator)[:, None, None]
    share = largest_ice_share * _squared_uniform(n, generator)
    ice = _field(torch.abs(transfer) * torch.exp(-0.25 * (frequency / width) ** 2), box, generator)
    detector = _field(torch.exp(log_power / 2), box, generator)
    return share.sqrt() * ice, (1 - share).sqrt() * detector


def smooth_background(n: int, box: int, largest_variance: float, generator: torch.Generator) -> Tensor:
    """`(n, y, x)` uneven ice: a gradient, and a Gaussian field of half a cycle to three cycles per box.

    The square of a uniform number times `largest_variance` is its variance.
    """
    cycles = frequency_grid((box, box), generator.device) * box
    width = uniform(n, (0.5, 3.0), generator)[:, None, None]
    field = _field(torch.exp(-0.25 * (cycles / width) ** 2) * (cycles > 0), box, generator)
    ramp = torch.linspace(-1, 1, box, device=generator.device) * 3**0.5  # unit variance
    angle = uniform(n, (0.0, 2 * torch.pi), generator)[:, None, None]
    gradient: Tensor = ramp[None, None, :] * angle.cos() + ramp[None, :, None] * angle.sin()
    mixed = uniform(n, (0.0, 1.0), generator)[:, None, None]
    variance = largest_variance * _squared_uniform(n, generator)
    return (variance * mixed).sqrt() * field + (variance * (1 - mixed)).sqrt() * gradient


def _squared_uniform(n: int, generator: torch.Generator) -> Tensor:
    return uniform(n, (0.0, 1.0), generator)[:, None, None] ** 2


def _field(amplitude: Tensor, box: int, generator: torch.Generator) -> Tensor:
    """`(n, box, box)` Gaussian fields of variance 1 each; `amplitude` is the root of their spectrum."""
    white = gaussian((len(amplitude), box, box), generator)
    field: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(box, box))
    return field.div_(field.std(dim=(1, 2), keepdim=True))
