"""What a denoiser knows beyond any spectrum: correlation with independent images, ring by Fourier ring.

A filter that is the same for all images and depends on the frequency alone (blur, low-pass, Wiener) scales
whole rings, and leaves the correlation of a ring with an independent image as it was. So the ratio of the
denoised to the raw image's correlation there, the gain, is 1 for every such filter, and above 1 only where a
denoiser knows more.

Without an independent exposure one is made of the image itself [1]_: `y + a z` and `y - z / a` have
independent noise where `z` has the spectrum of the noise of `y`. If that spectrum is off by d, the two share
`d`, which counts as signal in both correlations: the gain is drawn towards 1 where the noise is stronger than
assumed.

References
----------
.. [1] Pang, Zheng, Quan & Ji (2021) CVPR, 2043-2052, doi:10.1109/CVPR46437.2021.00208: Recorrupted-to-
   Recorrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..imaging.noise import gaussian
from ..imaging.rings import hermitian_weight, ring_index

BANDS_ANGSTROM = ((65.0, 47.0), (39.0, 32.0), (28.0, 24.0), (21.5, 19.0), (17.5, 14.7), (14.0, 11.0))
#: all of what single particles usually show
WHOLE_BAND_ANGSTROM = (32.0, 11.0)
#: no band is finer
_FINEST_ANGSTROM = 11.0
_EDGE_SHARE = 0.047
#: images that are transformed at a time
_BLOCK = 32
#: a raw correlation has to be so many standard errors away from 0 for a gain over it
_SIGNIFICANT = 3.0
#: a gain or loss of less is none
_WORTH_NAMING = 0.01


@dataclass(frozen=True)
class BandGain:
    """The gain of a band.

    Attributes
    ----------
    coarsest_angstrom, finest_angstrom
        Its limits.
    raw
        Mean correlation of the raw images with the independent ones.
    gain, standard_error
        Ratio of the denoised images' mean correlation to it; NaN where `raw` is not significant.
    """

    coarsest_angstrom: float
    finest_angstrom: float
    raw: float
    gain: float
    standard_error: float


class RingGain:
    """Gains over raw images, with one independent image for each.

    Parameters
    ----------
    raw, twin
        `spectra` of images and of independent ones of the same particles.
    """

    def __init__(self, raw: Spectra, twin: Spectra) -> None:
        if raw.values.shape != twin.values.shape:
            shapes = tuple(raw.values.shape), tuple(twin.values.shape)
            raise ValueError(
                f"expected the spectra of two stacks of one shape, found {shapes[0]} and {shapes[1]}"
            )
        self._raw, self._twin = raw, twin

    def bands(self, denoised: Spectra) -> list[BandGain]:
        """The gain in each of `BANDS_ANGSTROM`."""
        return [
            _gain(denoised, self._raw, self._twin, band)
            for band in BANDS_ANGSTROM
            if bool(denoised.members(band).any())
        ]

    def whole(self, denoised: Spectra, band: tuple[float, float] = WHOLE_BAND_ANGSTROM) -> BandGain:
        """The gain over one wide band, with every ring brought to equal power first.

        So that the power of its rings, which a filter may change, does not matter.
        """
        return _gain(denoised.whitened(), self._raw.whitened(), self._twin.whitened(), band)


@dataclass(frozen=True, eq=False)
class Spectra:
    """What `RingGain` needs of images: a few hundred coefficients of each, however large they are.

    Attributes
    ----------
    values
        `(n, k)` coefficients of `rfft2`, of the particle's disc.
    weight
        `(k,)` how often each occurs in the full transform.
    ring
        `(k,)` Fourier ring of each, from 1.
    length_angstrom
        Of the shorter side of the box: ring r is at `length / r`.
    """

    values: Tensor
    weight: Tensor
    ring: Tensor
    length_angstrom: float

    def members(self, band: tuple[float, float]) -> Tensor:
        """`(k,)` whether each coefficient lies in a band, Å."""
        angstrom = self.length_angstrom / self.ring
        return (band[1] <= angstrom) & (angstrom <= band[0])

    @staticmethod
    def joined(parts: Sequence[Spectra]) -> Spectra:
        """Those of images of one kind, one after the other."""
        return replace(parts[0], values=torch.cat([part.values for part in parts]))

    def whitened(self) -> Spectra:
        """The same with equal power in all rings."""
        power = self.values.abs().square().mean(0) * self.weight
        n_rings = int(self.ring.max()) + 1 if len(self.ring) else 0
        sums, counts = (torch.zeros(n_rings).index_add_(0, self.ring, each) for each in (power, self.weight))
        mean = (sums / counts.clamp_min(1))[self.ring]
        return replace(self, values=self.values * mean.clamp_min(1e-30).rsqrt())


def spectra(images: Tensor, *, radius_px: float, pixel_size_angstrom: float) -> Spectra:
    """Transform `(n, y, x)` images, for `RingGain`.

    Parameters
    ----------
    radius_px
        Of the particle: the rest is masked, with a soft edge of 5 % of the box.
    """
    shape = (images.shape[-2], images.shape[-1])
    length = min(shape) * pixel_size_angstrom
    ring = ring_index(shape)
    kept = (ring >= 1) & (ring < min(shape) // 2) & (ring <= length / _FINEST_ANGSTROM)
    mask = _soft_disc(shape, radius_px)
    parts = []
    for block in torch.split(images, _BLOCK):
        centred = block.float() - block.float().mean((1, 2), keepdim=True)
        parts.append(torch.fft.rfft2(centred * mask, norm="ortho")[:, kept])
    weight = hermitian_weight(shape).expand(shape[0], -1)[kept]
    return Spectra(torch.cat(parts), weight, ring[kept], length)


def _gain(denoised: Spectra, raw: Spectra, twin: Spectra, band: tuple[float, float]) -> BandGain:
    before = _correlation(raw, twin, band)
    change = _correlation(denoised, twin, band) - before
    mean, root = float(before.mean()), len(before) ** 0.5
    gain = error = float("nan")
    if len(before) > 1 and mean > _SIGNIFICANT * float(before.std()) / root:
        gain, error = 1 + float(change.mean()) / mean, float(change.std()) / root / mean
    return BandGain(*band, mean, gain, error)


def _correlation(first: Spectra, second: Spectra, band: tuple[float, float]) -> Tensor:
    """`(n,)` correlation of each pair of images over the rings of a band."""
    chosen = first.members(band)
    a, b, weight = first.values[:, chosen], second.values[:, chosen], first.weight[chosen]
    cross = ((a * b.conj()).real * weight).sum(1)
    power = (a.abs().square() * weight).sum(1) * (b.abs().square() * weight).sum(1)
    correlation: Tensor = cross / power.clamp_min(1e-30).sqrt()
    return correlation


def recorrupted(
    images: Tensor, noise_power: Tensor, generator: torch.Generator, strength: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Two images of each, with independent noise: `y + a z` and `y - z / a`.

    Parameters
    ----------
    images
        `(n, y, x)`.
    noise_power
        `(rings,)` of the images' noise, as `ring_mean` of `rfft2(..., norm="ortho")` gives it.
    strength
        The factor a. The first has `1 + a²` times the noise: the smaller, the closer to what is denoised; the
        second `1 + 1 / a²` times.
    """
    shape = (images.shape[-2], images.shape[-1])
    last = len(noise_power) - 1
    amplitude = noise_power.clamp_min(0).sqrt()[ring_index(shape).clamp_max(last)]
    white = gaussian(images.shape, generator)
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=shape)
    return images + strength * noise, images - noise / strength


class Verdict(NamedTuple):
    """A sentence, and whether what it says is good, bad or neither."""

    text: str
    judgement: Literal["good", "note", "bad"]


def verdict(gains: Sequence[BandGain]) -> Verdict:
    """What a denoiser adds, in one sentence for the head of a report, and whether that is good."""
    sure = [band for band in gains if math.isfinite(band.gain) and math.isfinite(band.standard_error)]
    if not sure:
        text = "The images are too noisy, or too few, to tell whether denoising adds anything."
        return Verdict(text, "note")
    better = [band for band in sure if band.gain - 1 > max(2 * band.standard_error, _WORTH_NAMING)]
    worse = [band for band in sure if 1 - band.gain > max(2 * band.standard_error, _WORTH_NAMING)]
    finest = min(band.finest_angstrom for band in sure)
    tail = f"; nothing finer than {finest:g} Å could be measured."
    if worse:
        band = min(worse, key=lambda one: one.gain)
        where = f"between {band.coarsest_angstrom:g} and {band.finest_angstrom:g} Å"
        lost = f"loses {100 * (1 - band.gain):.0f} %" if band.gain > _WORTH_NAMING else "loses all"
        text = f"Denoising {lost} of the correlation {where}: prefer a low-pass filter{tail}"
        if band.gain < -max(2 * band.standard_error, _WORTH_NAMING):
            text = (
                f"What is denoised {where} is the opposite of what the images show there: do not use it, and "
                f"see whether the contrast is right (--protein){tail}"
            )
        return Verdict(text, "bad")
    if not better:
        return Verdict(f"Denoising adds nothing over a low-pass filter that could be measured{tail}", "note")
    lowest, highest = (100 * (pick(band.gain for band in better) - 1) for pick in (min, max))
    share = f"{lowest:.0f}" if round(lowest) == round(highest) else f"{lowest:.0f} to {highest:.0f}"
    limits = max(b.coarsest_angstrom for b in better), min(b.finest_angstrom for b in better)
    text = (
        f"By an estimate from these images alone, denoising adds {share} % to the correlation over any "
        f"low-pass filter between {limits[0]:g} and {limits[1]:g} Å{tail}"
    )
    return Verdict(text, "good")


def _soft_disc(shape: tuple[int, int], radius_px: float) -> Tensor:
    y, x = (torch.arange(side).float() - side // 2 for side in shape)
    edge = _EDGE_SHARE * min(shape)
    inside = (radius_px - torch.hypot(y[:, None], x[None])) / edge + 0.5
    return 0.5 - 0.5 * torch.cos(torch.pi * inside.clamp(0, 1))
