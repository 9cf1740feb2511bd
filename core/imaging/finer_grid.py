"""Images on a finer grid and back: coarse pixels brought to a size that a network was trained on."""

from __future__ import annotations

import torch
from torch import Tensor

from .defects import white_noise
from .resample import fourier_resample


def to_finer_grid(images: Tensor, factor: int) -> Tensor:
    """`(n, y, x)` images of background 0 and sd 1 on a grid with `factor` times as many pixels a side.

    The new frequencies hold white noise as strong as that of the old ones, since a network that knows noise
    at all frequencies takes its absence for signal. The result has an sd of 1 again, so that the image itself
    becomes `1 / factor` as strong. The noise depends on the image alone.
    """
    y, x = images.shape[-2:]
    shape = (factor * y, factor * x)
    fine = without_noise(images, factor)
    noise = torch.stack([white_noise(image.cpu(), shape) for image in images]).to(images.device)
    # the old frequencies end at half a cycle per old pixel, along x and along y
    rows = torch.fft.fftfreq(shape[0], device=images.device).abs() < 0.5 / factor
    columns = torch.fft.rfftfreq(shape[1], device=images.device) < 0.5 / factor
    transform = torch.fft.rfft2(noise)
    transform[:, rows[:, None] & columns[None, :]] = 0.0
    finer_noise: Tensor = torch.fft.irfft2(transform, s=shape)
    return fine + finer_noise


def without_noise(images: Tensor, factor: int) -> Tensor:
    """What `to_finer_grid` makes of images `(..., y, x)` that have no noise, such as estimates."""
    y, x = images.shape[-2:]
    return fourier_resample(images, (factor * y, factor * x)) / factor


def from_finer_grid(images: Tensor, factor: int) -> Tensor:
    """Bring what a network made of `to_finer_grid` back: `(n, factor y, factor x)` to `(n, y, x)`."""
    y, x = images.shape[-2:]
    return fourier_resample(images, (y // factor, x // factor)) * factor
