"""What a denoiser adds that is not in the images: particles in noise, detail of a structure it never saw.

A denoiser that knows particles can find them in pure noise, the same ones in every image, and two half sets
of such images then agree although there is nothing to agree on. These figures say how far a model goes so.
Where a known signal is needed, the images are simulated: clean projections plus noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..imaging.filters import radial_filter
from ..imaging.normalise import background_mask, default_radius_px
from ..imaging.rings import ring_mean
from .fourier import fourier_ring_correlation, pooled_fourier_ring_correlation
from .image import correlation, require_same_shape

#: `(n, y, x)` noisy images to as many denoised ones.
Denoise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PureNoiseFigures:
    """What came out of a denoiser that was given noise only; ideally nothing, so all of it near 0."""

    n_images: int
    #: mean variance of the outputs over mean variance of the inputs, both within each image
    variance_ratio: float
    #: mean correlation of an output with its own input: noise that was let through
    correlation_with_input: float
    #: mean correlation between the outputs of different images: what the model adds to all of them
    correlation_between_outputs: float
    #: the same between the inputs, for comparison
    correlation_between_inputs: float
    #: by ring, between the averages of the even and of the odd outputs; 1 is full agreement
    half_set_frc: list[float]
    #: the same of the inputs
    half_set_frc_of_input: list[float]
    #: mean variance of the outputs inside the circle of a particle over that outside: 1 is no particle
    centre_to_border_variance: float
    #: the same of the inputs
    centre_to_border_variance_of_input: float


def coloured_noise(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """`(n, y, x)` Gaussian noise with the mean radial power spectrum of the images `like` `(m, y, x)`.

    The spectrum of particles holds their signal, too: grains of the size of a particle, which is hard on a
    model. Empty patches of the same micrographs give that of the noise alone.
    """
    shape = (like.shape[-2], like.shape[-1])
    power = ring_mean(torch.fft.rfft2(like, norm="ortho").abs().square().mean(0), shape)
    return radial_filter(torch.randn(n, *shape, generator=generator), power.sqrt())


def pure_noise_figures(noise: Tensor, denoised: Tensor) -> PureNoiseFigures:
    """Compare `noise`, independent images `(n, y, x)`, with what a denoiser made of them.

    The noise may be white, coloured (`coloured_noise`) or real: empty patches of micrographs.

    Raises
    ------
    ValueError
        When there are fewer than four images (two for each half) or the shapes differ.
    """
    if noise.shape != denoised.shape or len(noise) < 4:
        raise ValueError(
            "expected at least 4 noise images and as many outputs of the same shape, "
            f"found {tuple(noise.shape)} and {tuple(denoised.shape)}"
        )
    variance_in = noise.var((-2, -1)).mean()
    return PureNoiseFigures(
        n_images=len(noise),
        variance_ratio=float(denoised.var((-2, -1)).mean() / variance_in),
        correlation_with_input=float(correlation(denoised, noise).mean()),
        correlation_between_outputs=mean_pairwise_correlation(denoised),
        correlation_between_inputs=mean_pairwise_correlation(noise),
        half_set_frc=half_set_frc(denoised).tolist(),
        half_set_frc_of_input=half_set_frc(noise).tolist(),
        centre_to_border_variance=centre_to_border_variance(denoised),
        centre_to_border_variance_of_input=centre_to_border_variance(noise),
    )


def centre_to_border_variance(images: Tensor) -> float:
    """Mean square of `(n, y, x)` images about their means, within a particle's circle over that beyond it.

    Structure in the middle of boxes that hold none is a particle that was made up. 0 where all is constant.
    """
    shape = (images.shape[-2], images.shape[-1])
    border = background_mask(shape, default_radius_px(shape), images.device)
    squared = (images - images.mean((-2, -1), keepdim=True)).square().mean(0)
    inside, outside = float(squared[~border].mean()), float(squared[border].mean())
    if outside == 0:
        return torch.inf if inside > 0 else 0.0
    return inside / outside


def mean_pairwise_correlation(images: Tensor) -> float:
    """Mean Pearson correlation over all pairs of different images of `(n, y, x)`.

    With images scaled to unit length the correlations of all pairs add up to `|sum|² - n`, so the cost is one
    pass. Constant images count as 0.
    """
    vectors = (images - images.mean((-2, -1), keepdim=True)).flatten(1).double()
    length = vectors.norm(dim=1, keepdim=True)
    unit = torch.where(length > 0, vectors / length, torch.zeros_like(vectors))
    n = len(images)
    pairs = unit.sum(0).square().sum() - unit.square().sum()
    return float(pairs / (n * (n - 1)))


def half_set_frc(images: Tensor) -> Tensor:
    """`(rings,)` Fourier ring correlation between the averages of the even and odd images of `(n, y, x)`.

    The mean grey value is taken out of each average, so ring 0 is 0.
    """
    halves = [half.mean(0) for half in (images[0::2], images[1::2])]
    first, second = (half - half.mean() for half in halves)
    frc = fourier_ring_correlation(first, second)
    frc[0] = 0.0
    return frc


@dataclass(frozen=True)
class UnseenStructureFigures:
    """How true a denoiser is to a structure that it never saw, by Fourier ring.

    Attributes
    ----------
    frc_of_output, frc_of_input
        Between the outputs, or the noisy images, and the clean ones, pooled over all images.
    power_of_output
        Power of the output over that of the clean images. Where the correlation is low it should be low too:
        power without correlation is invented detail.
    """

    frc_of_output: list[float]
    frc_of_input: list[float]
    power_of_output: list[float]


def unseen_structure_figures(denoise: Denoise, clean: Tensor, noise: Tensor) -> UnseenStructureFigures:
    """Compare with the truth what `denoise` makes of `clean + noise`, `(n, y, x)` each.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    require_same_shape(clean, noise)
    noisy = clean + noise
    output = denoise(noisy)
    power, truth = (
        ring_mean(torch.fft.rfft2(stack).abs().square().mean(0), (clean.shape[-2], clean.shape[-1]))
        for stack in (output, clean)
    )
    frc = pooled_fourier_ring_correlation(output, clean)
    return UnseenStructureFigures(
        frc_of_output=frc.tolist(),
        frc_of_input=pooled_fourier_ring_correlation(noisy, clean).tolist(),
        power_of_output=(power / truth)[: len(frc)].tolist(),
    )


@dataclass(frozen=True)
class MirroredMapFigures:
    """Mean correlation of the outputs with the clean images, for a map and for its mirror image."""

    original: float
    mirrored: float


def mirrored_map_figures(denoise: Denoise, clean: Tensor, noise: Tensor) -> MirroredMapFigures:
    """Does a model do as well on the mirrored map as on the one that it was trained on?

    A view from the other side is the mirror image, so a map and its mirror image have the same projections,
    and no single image shows the hand: there is none to invent. What only knows its training images in the
    poses that they were given in does worse on their mirror images; what denoises does not.

    Parameters
    ----------
    clean, noise
        `(n, y, x)` projections and what is added to them. Mirrored in x they are those of the mirrored map.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    require_same_shape(clean, noise)
    pairs = (clean, noise), (clean.flip(-1), noise.flip(-1))
    return MirroredMapFigures(*(float(correlation(denoise(c + n), c).mean()) for c, n in pairs))
