"""What denoising came to, in a sentence: which plain low-pass filter it resembles, and how closely."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log

import numpy as np
import torch
from numpy.typing import NDArray

from ..imaging.rings import frequency_grid
from ..metrics.fourier import ring_frequencies, ring_products

# Resolutions that are tried, from Nyquist to this share of the box's side, each 3 % coarser than the last.
COARSEST_SHARE, STEP = 0.25, 1.03
# Images that correlate better than this are called nearly the same.
ALIKE = 0.97
# And than this hardly.
UNLIKE = 0.1


@dataclass(frozen=True, eq=False)
class Filtered:
    """The raw images after that Gaussian low-pass filter that makes them most like the denoised ones.

    Attributes
    ----------
    images
        `(n, y, x)`.
    cutoff
        Frequency at which the filter passes half of the amplitude, in cycles per pixel.
    resolution
        The same as a length: Å, or pixels where no pixel size is known.
    unit
        `Å` or `px`.
    correlation
        With the denoised images, over all of them, their means left out.
    kept
        Share of the variance of the raw images that the denoised ones have.
    """

    images: NDArray[np.float32]
    cutoff: float
    resolution: float
    unit: str
    correlation: float
    kept: float

    def of(self, numbers: NDArray[np.int64]) -> Filtered:
        """The same filter with some of the images only."""
        return replace(self, images=self.images[numbers])

    @property
    def name(self) -> str:
        """The filter's resolution with its unit."""
        return f"{self.resolution:.3g} {self.unit}"

    @property
    def verdict(self) -> str:
        """What it says of the denoised images, in a sentence or two."""
        percent = f"{100 * self.kept:.2g}" if self.kept < 0.095 else f"{100 * self.kept:.0f}"
        kept = (
            f"Denoising kept {percent} % of the variance of the raw images."
            if self.kept <= 1
            else f"The denoised images have {percent} % of the variance of the raw ones: more, which is odd."
        )
        if self.correlation < UNLIKE:
            return (
                f"{kept} The result is like no plain low-pass of the raw images (a correlation of "
                f"{self.correlation:.2f} at best): look at the images before you use them."
            )
        most_like = (
            f"{kept} The result is most like a plain low-pass at {self.name}, with a correlation of "
            f"{self.correlation:.2f}"
        )
        if self.correlation >= ALIKE:
            return f"{most_like}: by that measure the two are nearly the same."
        return f"{most_like}: compare the two rows to see what the network does beyond that filter."


def like_low_pass(
    raw: NDArray[np.float32], denoised: NDArray[np.float32], pixel_size_angstrom: float | None
) -> Filtered | None:
    """Return the raw images `(n, y, x)` after the Gaussian low-pass most like the denoised ones.

    Of all filters `exp(-ln 2 (f / f0)²)` that with the highest correlation between filtered and denoised
    images, all of them together. Ring 0, the mean, does not count. None where there is nothing to compare.
    """
    if not len(raw) or min(raw.shape[-2:]) < 8:
        return None
    shape = (raw.shape[-2], raw.shape[-1])
    images = torch.from_numpy(np.ascontiguousarray(raw, dtype=np.float32))
    products = ring_products(images, torch.from_numpy(np.ascontiguousarray(denoised, dtype=np.float32)))
    # sums over the images; a ring holds coefficients in proportion to its radius
    number = torch.arange(products[0].shape[-1], dtype=torch.float64)
    cross, raw_power, power = (number * product.double().sum(0) for product in products)
    if not (0 < raw_power.sum() < inf and 0 < power.sum() < inf):
        return None
    frequency = ring_frequencies(shape, 1.0).double()
    steps = int(log(COARSEST_SHARE * min(shape) / 2) / log(STEP)) + 1
    cutoffs = 0.5 / STEP ** torch.arange(max(steps, 1), dtype=torch.float64)
    gain = torch.exp(-log(2) * (frequency / cutoffs[:, None]) ** 2)
    agreement = (gain * cross).sum(-1) / torch.sqrt((gain**2 * raw_power).sum(-1) * power.sum())
    best = int(agreement.argmax())
    cutoff = float(cutoffs[best])
    return Filtered(
        low_pass(images.numpy(), cutoff),
        cutoff,
        (pixel_size_angstrom or 1.0) / cutoff,
        "Å" if pixel_size_angstrom else "px",
        float(agreement[best]),
        float(power.sum() / raw_power.sum()),
    )


def low_pass(images: NDArray[np.float32], cutoff: float) -> NDArray[np.float32]:
    """Return images `(n, y, x)` after a Gaussian low-pass that halves the amplitude at `cutoff`, 1/px."""
    shape = (images.shape[-2], images.shape[-1])
    passed = torch.exp(-log(2) * (frequency_grid(shape) / cutoff) ** 2)
    spectra = torch.fft.rfft2(torch.from_numpy(np.ascontiguousarray(images))) * passed
    filtered: NDArray[np.float32] = torch.fft.irfft2(spectra, s=shape).numpy()
    return filtered


def kept_shares(raw: NDArray[np.float32], denoised: NDArray[np.float32]) -> NDArray[np.float64]:
    """`(n,)` share of the variance of each raw image that the denoised one has."""
    variance = raw.var(axis=(1, 2), dtype=np.float64)
    return np.asarray(
        denoised.var(axis=(1, 2), dtype=np.float64) / np.where(variance > 0, variance, 1.0), np.float64
    )
