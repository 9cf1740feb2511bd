"""What a denoiser makes of images that hold nothing.

A denoiser that knows particles can find them in pure noise, the same ones in every image, and two half sets
of such images then agree although there is nothing to agree on. These figures say how far a model goes so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .fourier import fourier_ring_correlation
from .image import correlation


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


def pure_noise_figures(noise: Tensor, denoised: Tensor) -> PureNoiseFigures:
    """Compare `noise`, independent images `(n, y, x)`, with what a denoiser made of them.

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
    )


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
