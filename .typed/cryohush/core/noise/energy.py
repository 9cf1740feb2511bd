"""Whether a window of a micrograph holds more than noise: its local energy beside that of random phases.

Particles, and whatever else has edges, add energy between 25 and 100 Å, whatever their own size. How much of
it noise has in places, is known where nothing is (the background of a label map gives its level) and what
chance makes of it follows from surrogates: fields with the spectrum of the micrograph and random phases [1]_.
So the test needs no threshold but the probability to exceed.

References
----------
.. [1] Theiler et al. (1992) Physica D 58, 77-94. doi:10.1016/0167-2789(92)90102-S
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..imaging.filters import gaussian_filter
from ..imaging.rings import frequency_grid

# The band, to a standard deviation either way on a logarithmic scale, and how far its energy is averaged:
# about the correlation length of the band, which is where a corner of a particle stands out most.
BAND_ANGSTROM = (25.0, 100.0)
AVERAGED_ANGSTROM = 25.0
# Contamination, many times as strong, must neither ring into its surroundings nor shape the surrogates.
_CLIPPED_STD = 4.0
_LEAST_SURROGATE_WINDOWS, _MOST_SURROGATES = 400, 8
# With less background than that the level of the noise is not known.
_LEAST_BACKGROUND_SHARE, _LEAST_BACKGROUND_PX = 0.01, 200


def band(binned: Tensor, pixel_size_angstrom: float) -> Tensor:
    """`(y, x)` band of 25 to 100 Å of a micrograph with median 0 and robust standard deviation 1."""
    y, x = binned.shape
    reach = min(math.ceil(BAND_ANGSTROM[1] / pixel_size_angstrom), y - 1, x - 1)
    mirrored = functional.pad(binned.clamp(-_CLIPPED_STD, _CLIPPED_STD)[None], (reach,) * 4, mode="reflect")[
        0
    ]
    shape = (mirrored.shape[0], mirrored.shape[1])
    low, high = (pixel_size_angstrom / length for length in reversed(BAND_ANGSTROM))
    frequency = frequency_grid(shape, binned.device).clamp_min(torch.finfo(binned.dtype).tiny)
    octaves = torch.log(frequency / math.sqrt(low * high)) / (0.5 * math.log(high / low))
    transform = torch.fft.rfft2(mirrored) * torch.exp(-0.5 * octaves.square())
    filtered: Tensor = torch.fft.irfft2(transform, s=shape)
    return filtered[reach : reach + y, reach : reach + x]


def local_energy(values: Tensor, pixel_size_angstrom: float) -> Tensor:
    """Squares of `(y, x)` averaged by a Gaussian."""
    return gaussian_filter(values.square(), AVERAGED_ANGSTROM / pixel_size_angstrom)


def random_phases(values: Tensor, generator: torch.Generator) -> Tensor:
    """`(y, x)` Gaussian field with the power of `values` at each frequency."""
    shape = (values.shape[0], values.shape[1])
    white = torch.fft.rfft2(torch.randn(shape, generator=generator).to(values))
    phase = white / white.abs().clamp_min(torch.finfo(values.dtype).tiny)
    field: Tensor = torch.fft.irfft2(torch.fft.rfft2(values).abs() * phase, s=shape)
    return field


def noise_probabilities(
    binned: Tensor,
    background: Tensor,
    pixel_size_angstrom: float,
    rows: Tensor,
    columns: Tensor,
    window_px: int,
    generator: torch.Generator,
) -> Tensor:
    """How probable it is that a window of noise has so high a local energy somewhere, or a higher one.

    Of noise, 5 % of the windows have less than 0.05; one with a corner of a particle has next to nothing.

    Parameters
    ----------
    binned
        `(y, x)` micrograph with median 0 and robust standard deviation 1.
    background
        `(y, x)` mask, where nothing is: the mean energy there is that of the noise.
    pixel_size_angstrom
        Of `binned`.
    rows, columns
        First rows `(n,)` and columns `(m,)` of the windows in `binned`; those that reach beyond end there.
    window_px
        Side of a window in `binned`.
    generator
        Of the surrogates.

    Returns
    -------
    Tensor
        `(n, m)`; 0 where the background is too small to tell.
    """
    if int(background.sum()) < max(_LEAST_BACKGROUND_PX, _LEAST_BACKGROUND_SHARE * background.numel()):
        return torch.zeros(len(rows), len(columns), device=binned.device)
    values = band(binned, pixel_size_angstrom)
    energy = local_energy(values, pixel_size_angstrom)
    strongest = _strongest(energy / energy[background].mean(), window_px)[rows][:, columns]
    chance: list[Tensor] = []
    while len(chance) < _MOST_SURROGATES and sum(map(len, chance)) < _LEAST_SURROGATE_WINDOWS:
        surrogate = local_energy(random_phases(values, generator), pixel_size_angstrom)
        inside = _strongest(surrogate / surrogate.mean(), window_px)
        reach = [max(side - window_px + 1, 1) for side in surrogate.shape]
        step = max(1, window_px // 4)
        chance.append(inside[: reach[0] : step, : reach[1] : step].flatten())
    ordered = torch.cat(chance).sort().values
    weaker = torch.searchsorted(ordered, strongest.contiguous())
    return (len(ordered) - weaker + 1.0) / (len(ordered) + 1.0)


def _strongest(energy: Tensor, window_px: int) -> Tensor:
    """Largest value of `(y, x)` in the window that begins at each pixel, as far as it lies inside."""
    padded = functional.pad(energy, (0, window_px - 1, 0, window_px - 1), value=-torch.inf)
    # one dimension after the other: the cost is that of two lines instead of a square
    along_x = functional.max_pool2d(padded[None], (1, window_px), 1)
    strongest: Tensor = functional.max_pool2d(along_x, (window_px, 1), 1)[0]
    return strongest
