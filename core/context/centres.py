"""Where in their images the particles of a stack lie.

Picked particles lie a few pixels beside the middle of their boxes, each its own way, which blurs what their
images have in common: the covariance, and the means of like views. Their mean image, the same in all
directions, tells how far. It is found together with the places, by expectation and maximisation: each image
takes the mean of all places, weighted by how well the mean image fits there.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..imaging.resample import shift_phases
from ..imaging.rings import ring_index, ring_mean

#: farthest place from the middle, and what its standard deviation along an axis is taken for at first, as
#: shares of the box
_REACH, _FIRST = 0.1, 0.025
#: smaller spreads are taken for this one, pixels
_LEAST_PX = 0.2
_ROUNDS = 8
_LEAST_CTF = 1e-3


@dataclass(frozen=True, eq=False)
class Centres:
    """What tells the places.

    Attributes
    ----------
    template
        `(rings,)` transform of the mean particle without CTF, over the power of the images.
    spread_px
        Standard deviation of the places along each axis.
    """

    template: Tensor
    spread_px: float

    def to_middle(self, transform: Tensor, own: Tensor) -> Tensor:
        """`(n, y, x // 2 + 1)` phases that bring particles to the middle of their images.

        Parameters
        ----------
        transform, own
            Of n images on a square grid of even side (`rfft2`), and their CTFs, or one that is 1.
        """
        box = transform.shape[-2]
        return shift_phases(-self.places(transform, own)[0], (box, box))

    def places(self, transform: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """Expected `(n, 2)` (y, x) of particles from the middle, pixels, and of their squares, `(n,)`."""
        box = transform.shape[-2]
        template = self.template[ring_index((box, box))] * _from_middle(box)
        return expected_places(transform * (own * template), self.spread_px)


def expected_places(product: Tensor, spread_px: float) -> tuple[Tensor, Tensor]:
    """Expected `(n, 2)` (y, x) of particles from the middle, pixels, and of their squares, `(n,)`.

    Parameters
    ----------
    product
        `(n, y, x // 2 + 1)` transforms of images times the conjugate of what they show without their noise,
        over its power.
    spread_px
        Standard deviation of the places along each axis.
    """
    box = product.shape[-2]
    near, grid = _grid(box)
    # the logarithm of the likelihood at each place, but for a constant
    fit = torch.fft.irfft2(product, s=(box, box))[:, near]
    squares = grid.square().sum(1)
    weight = (fit - squares / (2 * spread_px**2)).softmax(1)
    return weight @ grid, weight @ squares


def find_centres(transform: Tensor, own: Tensor, signal: Tensor, noise: Tensor) -> Centres:
    """The mean image of a stack, and how far from the middle it is found.

    Parameters
    ----------
    transform, own
        As of `Centres.to_middle`.
    signal, noise
        `(rings,)` power of the images without CTF, and of their noise.
    """
    box = transform.shape[-2]
    shape = (box, box)
    ring = ring_index(shape)
    squared = own.square().mean(0)
    power = ring_mean(squared * signal[ring] + noise[ring], shape)
    squared = ring_mean(squared, shape).clamp_min(_LEAST_CTF)
    seen = transform * own * _from_middle(box)
    places, spread = torch.zeros(len(transform), 2), _FIRST * box
    for _ in range(_ROUNDS):
        mean = ring_mean((seen * shift_phases(-places, shape)).real.mean(0), shape)
        centres = Centres(mean / squared / power, spread)
        places, squares = centres.places(transform, own)
        spread = max(_LEAST_PX, float((squares.mean() / 2).sqrt()))
    return Centres(centres.template, spread)


@lru_cache(maxsize=4)
def _from_middle(box_px: int) -> Tensor:
    """Factors on `rfft2` that bring the middle of a box to its first pixel."""
    rows, columns = torch.arange(box_px)[:, None], torch.arange(box_px // 2 + 1)
    return 1.0 - 2.0 * ((rows + columns) % 2)


@lru_cache(maxsize=4)
def _grid(box_px: int) -> tuple[Tensor, Tensor]:
    """Which pixels of a box are near its first one, cyclically, and their places `(places, 2)`."""
    axis = torch.fft.fftfreq(box_px, 1 / box_px)
    near = torch.hypot(axis[:, None], axis) <= _REACH * box_px
    return near, torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)[near]
