"""Distances between an image and its reference, per image, over the last two dimensions of `(..., y, x)`."""

from __future__ import annotations

import torch
from torch import Tensor


def correlation(images: Tensor, reference: Tensor) -> Tensor:
    """Pearson correlation of each image with its reference: `(...)`; 0 where either of them is constant."""
    a = images - images.mean((-2, -1), keepdim=True)
    b = reference - reference.mean((-2, -1), keepdim=True)
    norm = torch.sqrt(a.square().sum((-2, -1)) * b.square().sum((-2, -1)))
    product = (a * b).sum((-2, -1))
    return torch.where(norm > 0, product / norm, torch.zeros_like(product))


def mean_squared_error(images: Tensor, reference: Tensor) -> Tensor:
    """Mean squared difference of each image from its reference: `(...)`, in squared grey values."""
    return (images - reference).square().mean((-2, -1))


def normalised_mean_squared_error(images: Tensor, reference: Tensor) -> Tensor:
    """Mean squared error over the variance of the reference: `(...)`; a flat image of its mean has 1."""
    return mean_squared_error(images, reference) / reference.var((-2, -1), correction=0)


def affine_normalised_mean_squared_error(images: Tensor, reference: Tensor) -> Tensor:
    """Normalised error after the best grey scale `scale * image + offset` was fitted to each image: `(...)`.

    That fit leaves `1 - correlation²`, so the figure is blind to contrast and brightness.
    """
    return 1.0 - correlation(images, reference).square()


def peak_signal_to_noise_ratio(images: Tensor, reference: Tensor, data_range: float) -> Tensor:
    """`10 log10(data_range² / MSE)` of each image, in dB: `(...)`.

    `data_range` is the span of grey values that counts as full scale. It has no default: figures with
    different ranges cannot be compared.
    """
    return 10.0 * torch.log10(data_range**2 / mean_squared_error(images, reference))
