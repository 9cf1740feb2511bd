"""Models of noise: what draws new pieces of it, and the critic that one of them is trained against.

A model of noise has `side_px` and `draw(n, generator)`, which returns `(n, y, x)` pieces of mean 0 and
variance 1 each: noise has no scale of its own here, the re-weighting (`noise.reweight`) gives it one.

References
----------
.. [1] Li et al. (2022) Bioinformatics 38, 2022-2029, section 2.1.2. doi:10.1093/bioinformatics/btac052
.. [2] Gulrajani et al. (2017) arXiv:1704.00028 (WGAN-GP).
.. [3] Grigoriu (1998) J. Eng. Mech. 124, 121-126: translation fields, Gaussian ones mapped point by point.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from ..imaging.noise import PowerSpectrum, coloured, gaussian

_DOUBLINGS = 5
# Of the convolutions on a field; with a last one that is not dilated they reach so far.
_DILATIONS = (1, 2, 4, 1)
_REACH = sum(_DILATIONS) + 1
# Gaussian deviates at which the pointwise map of a field is tabulated; half a million pixels reach about 4.8
_LARGEST_DEVIATE, _DEVIATES = 5.0, 201


class NoiseModel(Protocol):
    """What draws noise."""

    side_px: int

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """`(n, y, x)` float32, mean 0 and variance 1 each."""


class NoiseGenerator(nn.Module):
    """Generator of a WGAN-GP [1]_ [2]_: six transposed convolutions from a Gaussian vector to noise.

    The first makes a map of `side_px / 32` pixels a side, each of the others doubles it; with 128 px this is
    the network of the authors' program (latent vector of 100, widths 1024 to 64, batch normalisation).

    Differs from the authors' program: LeakyReLU in place of ReLU; a linear output and pieces of mean 0 and
    variance 1, because noise has no fixed range, in place of tanh and grey values between their extremes; one
    network for all sizes, where theirs has a layer more or less.

    Parameters
    ----------
    side_px
        Of a piece: a multiple of 32.
    width
        Channels before the last layer; each layer before has twice as many, up to 16 times.
    latent
        Length of the vector.
    """

    def __init__(self, side_px: int = 128, width: int = 64, latent: int = 100) -> None:
        super().__init__()
        self.side_px, self.latent = side_px, latent
        widths = [width * 2**level for level in reversed(range(_DOUBLINGS))]
        first = nn.ConvTranspose2d(latent, widths[0], _coarsest(side_px), bias=False)
        layers: list[nn.Module] = [first, nn.BatchNorm2d(widths[0]), nn.LeakyReLU(0.2)]
        for wide, narrow in pairwise(widths):
            up = nn.ConvTranspose2d(wide, narrow, 4, stride=2, padding=1, bias=False)
            layers += [up, nn.BatchNorm2d(narrow), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1))

    def inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """`(n, latent)` vectors to begin with, on the CPU."""
        return gaussian((n, self.latent), generator)

    def forward(self, latent: Tensor) -> Tensor:
        """`(n, latent)` to `(n, 1, y, x)`, mean 0 and variance 1 each."""
        return standardised(self.layers(latent[:, :, None, None]))

    @torch.inference_mode()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """`(n, y, x)` pieces, on the CPU; the network has to be in evaluation mode."""
        return _drawn(self, n, generator)


class FieldGenerator(nn.Module):
    """Generator of a WGAN-GP that begins with a Gaussian field, not with a vector, and makes it real noise.

    Convolutions add what the field lacks; the last one starts at 0, so that before the training the draws are
    those of the field. A piece of noise has almost as many degrees of freedom as pixels: a vector of some
    hundred numbers has to feign them, and the field has them from the start. No layer knows its place, and
    none is padded, so that noise is alike all over a piece.

    Differs from the authors' program [1]_ throughout; what trains it is the same.

    Parameters
    ----------
    side_px, measured_px
        As of `GaussianField`.
    width
        Channels.

    Attributes
    ----------
    field
        `GaussianField` of measured spectrum and histogram.
    """

    def __init__(self, side_px: int = 128, measured_px: int | None = None, width: int = 16) -> None:
        super().__init__()
        self.field = GaussianField(side_px, measured_px)
        self.side_px = side_px
        widths = [3, *[width] * len(_DILATIONS)]
        layers: list[nn.Module] = []
        for before, after, dilation in zip(widths, widths[1:], _DILATIONS, strict=False):
            layers += [nn.Conv2d(before, after, 3, dilation=dilation), nn.LeakyReLU(0.2)]
        last = nn.Conv2d(width, 1, 3)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(*layers, last)

    def inputs(self, n: int, generator: torch.Generator) -> Tensor:
        """`(n, 3, y, x)` a field larger than the piece, white noise, and one number for a whole piece."""
        side = self.side_px + 2 * _REACH
        field = self.field.fields(n, side, generator)
        whole = gaussian((n, 1, 1), generator).expand(n, side, side)
        return torch.stack([field, gaussian((n, side, side), generator), whole], 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """`(n, 3, y, x)` to `(n, 1, y, x)`, mean 0 and variance 1 each."""
        middle = slice(_REACH, _REACH + self.side_px)
        return standardised(inputs[:, :1, middle, middle] + self.layers(inputs))

    @torch.inference_mode()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """`(n, y, x)` pieces, on the CPU."""
        return _drawn(self, n, generator)


Generator = NoiseGenerator | FieldGenerator


def _drawn(network: Generator, n: int, generator: torch.Generator) -> Tensor:
    device = next(network.parameters()).device
    batches = torch.split(network.inputs(n, generator), 64)
    return torch.cat([network(batch.to(device))[:, 0].float().cpu() for batch in batches])


class NoiseCritic(nn.Module):
    """Critic of a WGAN-GP [1]_ [2]_: six convolutions with LeakyReLU, five of which halve the image.

    Differs from the authors' program: no instance normalisation, which would hide the spread of each channel
    from the critic (and a batch's normalisation has no place beside a gradient penalty [2]_).

    Parameters
    ----------
    side_px, width
        As of the generator.
    """

    def __init__(self, side_px: int = 128, width: int = 64) -> None:
        super().__init__()
        widths = [1, *(width * 2**level for level in range(_DOUBLINGS))]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, _coarsest(side_px)))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to scores `(n,)`."""
        score: Tensor = self.layers(x)
        return score.flatten()


class GaussianField(nn.Module):
    """A Gaussian field of a given radial spectrum, its values mapped one by one to a given histogram [3]_.

    `cryohush.core.noise.synthesis.fit_gaussian_field` measures all three tables; here they are those of white
    Gaussian noise.

    Parameters
    ----------
    side_px
        Of a piece. Fields are drawn twice as large, so that the opposite edges of a piece know nothing of
        each other.
    measured_px
        Side of the pieces that the spectrum was measured in; None is the same. Below one cycle of it the
        power is not known, and taken to be constant.

    Attributes
    ----------
    frequency, power
        `(k,)`: spectrum of the field before the map, to the corners of the transform; cycles per pixel.
    values
        What the Gaussian deviates `deviates()` are mapped to.
    """

    frequency: Tensor
    power: Tensor
    values: Tensor

    def __init__(self, side_px: int = 128, measured_px: int | None = None) -> None:
        super().__init__()
        self.side_px, measured_px = side_px, measured_px or side_px
        rings = round(measured_px / math.sqrt(2))  # to the corners of the transform, as measured
        self.register_buffer("frequency", torch.arange(1, rings + 1) / measured_px)
        self.register_buffer("power", torch.ones(rings))
        self.register_buffer("values", self.deviates())

    @staticmethod
    def deviates() -> Tensor:
        """Where the pointwise map is tabulated."""
        return torch.linspace(-_LARGEST_DEVIATE, _LARGEST_DEVIATE, _DEVIATES)

    @torch.inference_mode()
    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """`(n, y, x)` pieces, on the CPU."""
        return standardised(self.fields(n, self.side_px, generator))

    def fields(self, n: int, side_px: int, generator: torch.Generator) -> Tensor:
        """`(n, side_px, side_px)` of mean 0 and variance 1 in expectation, on the CPU."""
        spectrum = PowerSpectrum(self.frequency.cpu().double().numpy(), self.power.cpu().double().numpy())
        whole = (2 * side_px, 2 * side_px)
        power = spectrum.on_grid(whole)
        pieces = [coloured(gaussian(whole, generator), power)[:side_px, :side_px] for _ in range(n)]
        return self._mapped(torch.stack(pieces))

    def _mapped(self, field: Tensor) -> Tensor:
        """Linear interpolation in the table."""
        values = self.values.cpu()
        place = (field + _LARGEST_DEVIATE) * ((_DEVIATES - 1) / (2 * _LARGEST_DEVIATE))
        below = place.floor().clamp(0, _DEVIATES - 2).long()
        return torch.lerp(values[below], values[below + 1], (place - below).clamp(0, 1))


NOISE_MODELS: dict[str, Callable[..., nn.Module]] = {
    "noise_generator": NoiseGenerator,
    "field_generator": FieldGenerator,
    "gaussian_field": GaussianField,
}


def standardised(images: Tensor) -> Tensor:
    """Images `(..., y, x)` brought to mean 0 and variance 1 each; a constant one to 0."""
    centred = images - images.mean(dim=(-2, -1), keepdim=True)
    variance = centred.square().mean(dim=(-2, -1), keepdim=True)
    return centred * torch.rsqrt(variance + 1e-12)


def _coarsest(side_px: int) -> int:
    """
    Raises
    ------
    ValueError
        The side is no multiple of 32.
    """
    factor = 1 << _DOUBLINGS
    if side_px % factor or not side_px:
        raise ValueError(f"pieces of noise must have a multiple of {factor} px a side, not {side_px}")
    return side_px // factor
