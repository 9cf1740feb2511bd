"""Linear filters, and the gains of the radial ones that a denoiser has to beat.

All functions act on the last two dimensions of `(..., y, x)` tensors and run in torch on any device.
`mean_filter` and `gaussian_filter` work in real space with the borders mirrored; `low_pass` and
`radial_filter` work in Fourier space, where an image is periodic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .normalise import background_mask, background_statistics
from .rings import frequency_grid, ring_index, ring_mean

#: rings, as shares of the Nyquist frequency, whose power is that of the noise alone
FLOOR_RINGS = (0.7, 0.95)
# images that are transformed at a time, and lines of a transform that are filtered at a time
_BLOCK, _LINES = 64, 256
# Smallest and largest side of the squares of a micrograph in which its spectrum is measured.
_SQUARES_PX = 64, 512


def mean_filter(images: Tensor, width_px: int) -> Tensor:
    """Average `(..., y, x)` images over squares of odd side `width_px`.

    Raises
    ------
    ValueError
        When the width is even or not positive.
    """
    if width_px < 1 or width_px % 2 == 0:
        raise ValueError(f"the width of a mean filter must be an odd number of pixels, found {width_px}")
    return _separable(images, images.new_full((width_px,), 1.0 / width_px))


def gaussian_filter(images: Tensor, sigma_px: float) -> Tensor:
    """Blur `(..., y, x)` images with a Gaussian of standard deviation `sigma_px`, cut off at 4 sigma.

    The same as `scipy.ndimage.gaussian_filter` with its default borders.

    Raises
    ------
    ValueError
        When sigma is not positive.
    """
    if not sigma_px > 0:
        raise ValueError(f"the standard deviation of a Gaussian filter must be positive, found {sigma_px}")
    reach = int(4.0 * sigma_px + 0.5)
    position = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (position / sigma_px) ** 2)
    return _separable(images, kernel / kernel.sum())


def low_pass(
    images: Tensor, resolution_angstrom: float, pixel_size_angstrom: float, edge_rings: float = 2.0
) -> Tensor:
    """Remove from `(..., y, x)` images what is finer than `resolution_angstrom`.

    The gain falls from 1 to 0 as a raised cosine over `edge_rings` Fourier rings centred on the cut-off;
    0 gives a sharp edge.
    """
    shape = (images.shape[-2], images.shape[-1])
    rings_beyond = (frequency_grid(shape, images.device) - pixel_size_angstrom / resolution_angstrom) * min(
        shape
    )
    if edge_rings > 0:
        phase = (rings_beyond / edge_rings + 0.5).clamp(0.0, 1.0)
        gain = 0.5 + 0.5 * torch.cos(math.pi * phase)
    else:
        gain = (rings_beyond <= 0).to(images.dtype)
    return _apply_gain(images, gain)


def radial_filter(images: Tensor, ring_gain: Tensor) -> Tensor:
    """Multiply each Fourier ring of `(..., y, x)` images by its entry in `ring_gain` `(rings,)`."""
    shape = (images.shape[-2], images.shape[-1])
    return _apply_gain(images, ring_gain.to(images.device)[ring_index(shape, images.device)])


def apply_transfer(images: Tensor, transfer: Tensor) -> Tensor:
    """Multiply the transforms of `(..., y, x)` images by `transfer` `(..., y, x // 2 + 1)`, such as a CTF."""
    return _apply_gain(images, transfer)


def background_power(images: Tensor, radius_px: float) -> Tensor:
    """`(rings,)` mean power of the noise in `(n, y, x)` images, from outside the particle's circle.

    On the scale of `ring_mean` over `torch.fft.rfft2(images, norm="ortho")`: white noise of variance v has v
    in every ring. The circle's hole blurs the spectrum by about a ring, and what of the particle the CTF
    spreads beyond it counts as noise.
    """
    shape = (images.shape[-2], images.shape[-1])
    mask = background_mask(shape, radius_px, images.device)
    power = images.new_zeros(shape[0], shape[1] // 2 + 1)
    for block in torch.split(images, _BLOCK):
        mean, _ = background_statistics(block, radius_px)
        background = (block - mean[:, None, None]) * mask
        power += torch.fft.rfft2(background, norm="ortho").abs().square().sum(0)
    rings = ring_mean(power / len(images), shape) / mask.float().mean()
    rings[0] = rings[1]  # the mean was taken away
    return rings


def floor_of(power: Tensor, nyquist: int) -> float:
    """Power of the white noise, from `(rings,)` power of images or of their background."""
    first, last = (int(share * nyquist) for share in FLOOR_RINGS)
    return float(power[first:last].median())


def wiener_gain(noise_power: Tensor, total_power: Tensor) -> Tensor:
    """`(rings,)` Wiener gain `max(0, 1 - noise / total)`; `total_power` is that of signal plus noise.

    Where the total is estimated, a ring of little signal gets 0 as often as a small gain. That is no loss
    worth mending: an error e of a gain costs `e²` of the ring's total power, and for a total estimated on n
    images this is on average at most `2 / n` of the noise's power in a single coefficient, for each ring,
    however many coefficients it has. The cut at 0 only makes it less.
    """
    return (1.0 - noise_power / total_power.clamp_min(torch.finfo(total_power.dtype).tiny)).clamp_min(0.0)


def spectrum_of(image: Tensor) -> tuple[Tensor, int]:
    """Power spectrum of most of a micrograph `(y, x)` of mean 0, in which the rings of the CTF show.

    Returns
    -------
    spectrum
        `(rings,)`, to Nyquist, of squares of the micrograph, on the scale of `background_power`: the median
        over them, which contamination does not reach. The strongest coefficients of each ring do not count as
        such: with those of a pattern that repeats, as of a detector's lines or of a crystal, a filter would
        keep the noise of its whole ring.
    side_px
        Of the squares.
    """
    y, x = image.shape
    side = min(_SQUARES_PX[1], max(_SQUARES_PX[0], min(y, x) // 3), y, x) // 2 * 2
    window = torch.hann_window(side, device=image.device)
    window = window[:, None] * window
    # the last are those beyond Nyquist, in the corners, which are left out
    ring = ring_index((side, side), image.device).flatten().clamp_max(side // 2 + 1)
    order, counts = ring.argsort(), ring.bincount().tolist()
    spectra = []
    for squares in image.unfold(0, side, side // 2).unfold(1, side, side // 2):
        power = torch.fft.rfft2(squares * window, norm="ortho").abs().square().flatten(1)
        rings = power[:, order].split(counts, dim=1)
        spectra.append(torch.stack([_mean_without_outliers(ring) for ring in rings[:-1]], dim=1))
    return torch.cat(spectra).median(0).values / window.square().mean(), side


def averaged_with_wiener(
    estimate: Tensor, image: Tensor, share: float, begins_px: float, ends_px: float
) -> Tensor:
    """The mean of an estimate of a micrograph and its Wiener filter by `spectrum_of`, noise being white.

    Parameters
    ----------
    estimate, image
        `(y, x)`; the micrograph with a mean of 0.
    share
        Of the filtered micrograph at high frequencies, 0 to 1.
    begins_px, ends_px
        Periods, pixels, between which its share rises from 0, linearly in the frequency.
    """
    y, x = image.shape
    spectrum, side = spectrum_of(image)
    gain = wiener_gain(spectrum.new_tensor(floor_of(spectrum, side // 2)), spectrum)
    mean, filtered = torch.fft.rfft2(estimate), torch.fft.rfft2(image)
    columns = torch.fft.rfftfreq(x, device=image.device)
    lines = torch.fft.fftfreq(y, device=image.device)[:, None]
    for some, others, line in zip(*(each.split(_LINES) for each in (mean, filtered, lines)), strict=True):
        frequency = torch.hypot(line, columns)
        ring = torch.round(frequency * side).int().clamp_max(len(gain) - 1)
        weight = (frequency - 1 / begins_px) / (1 / ends_px - 1 / begins_px)
        some += share * weight.clamp(0, 1) * (gain[ring] * others - some)
    result: Tensor = torch.fft.irfft2(mean, s=(y, x))
    return result


def _mean_without_outliers(powers: Tensor) -> Tensor:
    """`(m,)` mean of each row of `(m, n)` powers of noise, by the weakest three quarters of it.

    Of the others it counts only that they are not weaker: the estimate of greatest likelihood, without bias,
    for the powers of noise, which are exponential (Epstein & Sobel, J. Am. Stat. Assoc. 48, 486 (1953)).
    """
    n = powers.shape[1]
    certain = n - n // 4
    limit = powers.kthvalue(certain, dim=1, keepdim=True).values
    total: Tensor = powers.minimum(limit).sum(1)
    return total / certain


def _apply_gain(images: Tensor, gain: Tensor) -> Tensor:
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(images) * gain, s=images.shape[-2:])
    return filtered


def _separable(images: Tensor, kernel: Tensor) -> Tensor:
    """Convolve both image dimensions with a symmetric odd `kernel`, borders mirrored about the pixel edge."""
    reach = kernel.numel() // 2
    result = images.reshape(-1, 1, *images.shape[-2:])
    for dimension, kernel_2d in ((-2, kernel[:, None]), (-1, kernel[None, :])):
        side = result.shape[dimension]
        # fold ... 2 1 0 | 0 1 2 ... back into the image, however far the kernel reaches
        source = torch.arange(-reach, side + reach, device=images.device) % (2 * side)
        source = torch.minimum(source, 2 * side - 1 - source)
        result = functional.conv2d(result.index_select(dimension, source), kernel_2d[None, None])
    return result.reshape(images.shape)
