"""Background normalisation of particles, RELION's convention: mean 0 and sd 1 outside a circle."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.denoise import PARTICLE_SHARE_OF_BOX


def default_radius_px(shape: tuple[int, int]) -> float:
    """Radius, pixels, of the particle's circle in a box `(y, x)` when no diameter is known."""
    return PARTICLE_SHARE_OF_BOX / 2 * min(shape)


def circle_radius_px(
    shape: tuple[int, int], diameter_angstrom: float | None, pixel_size_angstrom: float | None
) -> float:
    """Radius, pixels, of the particle's circle in a box `(y, x)`, by its diameter where that can be used."""
    if diameter_angstrom is None or not pixel_size_angstrom:
        return default_radius_px(shape)
    return diameter_angstrom / pixel_size_angstrom / 2


def background_mask(shape: tuple[int, int], radius_px: float, device: torch.device | None = None) -> Tensor:
    """`(y, x)` True outside the circle of `radius_px` about the box centre.

    The centre is pixel `(y // 2, x // 2)`, as in RELION.

    Raises
    ------
    ValueError
        When the circle leaves fewer than 16 pixels outside: too few for a standard deviation.
    """
    y = torch.arange(shape[0], device=device, dtype=torch.float32) - shape[0] // 2
    x = torch.arange(shape[1], device=device, dtype=torch.float32) - shape[1] // 2
    mask = y[:, None] ** 2 + x[None, :] ** 2 > radius_px**2
    if int(mask.sum()) < 16:
        raise ValueError(
            f"a circle of radius {radius_px:g} px leaves fewer than 16 background pixels in a box of "
            f"{shape[1]} x {shape[0]} px"
        )
    return mask


def background_statistics(images: Tensor, radius_px: float) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each image outside the particle's circle.

    Parameters
    ----------
    images
        `(n, y, x)`.
    radius_px
        Radius of the circle, pixels.

    Returns
    -------
    mean, std
        `(n,)` each, float32; `std` is the population value.
    """
    mask = background_mask((images.shape[-2], images.shape[-1]), radius_px, images.device)
    weights = mask.to(torch.float32).flatten() / mask.sum()
    flat = images.flatten(1).float()
    # about a pixel's value first: raw counts (mean 1000, sd 1) keep their digits, and a constant image gets 0
    pivot = flat[:, :1]
    flat = flat - pivot
    mean = flat @ weights
    variance = (flat - mean[:, None]).square_() @ weights
    return mean + pivot[:, 0], variance.sqrt()


def normalise(images: Tensor, radius_px: float) -> tuple[Tensor, Tensor, Tensor]:
    """`(images - mean) / std` with the background's own mean and std; also returns these two, `(n,)`.

    An image whose background is constant cannot be scaled; its std is returned as 0 and the image
    only has its mean removed, so that callers can find and name it.
    """
    mean, std = background_statistics(images, radius_px)
    scale = torch.where(std > 0, std, torch.ones_like(std))
    return (images - mean[:, None, None]) / scale[:, None, None], mean, std


def usable(images: Tensor, std: Tensor) -> Tensor:
    """`(n,)` which of `(n, y, x)` images have no NaN or infinite pixel and a background with a spread.

    `std` `(n,)` is that of the background, as `normalise` returns it.
    """
    # a sum is far quicker than looking at each pixel
    return torch.isfinite(images.sum((1, 2)) + std) & (std > 0)


def denormalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The inverse of `normalise`."""
    scale = torch.where(std > 0, std, torch.ones_like(std))
    return images * scale[:, None, None] + mean[:, None, None]
