"""Band-limited resampling, low-pass filtering and shifting: what Fourier space does to volumes and images."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def resample_volume(volume: Tensor, ratio: float, box_px: int) -> Tensor:
    """Sample a volume anew at any pixel size, by its Fourier series.

    Exact for what both grids can hold: the finer frequencies of the source are cut off at the new Nyquist,
    and none are invented. Beyond the old box the volume is 0.

    Parameters
    ----------
    volume
        `(d, d, d)` (z, y, x), centre on voxel `d // 2`.
    ratio
        New pixel size over the old one.
    box_px
        Side of the new cube, centre on voxel `box_px // 2`.

    Returns
    -------
    `(box_px, box_px, box_px)` float32, in the source's units (values are kept, not sums).

    Raises
    ------
    ValueError
        When the ratio or the box is not positive, or the volume is no cube.
    """
    side = volume.shape[0]
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ValueError(f"a cubic volume is needed, not {tuple(volume.shape)}")
    if not (ratio > 0 and math.isfinite(ratio)) or box_px < 1:
        raise ValueError(f"a positive ratio and box are needed, not {ratio:g} and {box_px} px")
    if ratio == 1 and side == box_px:
        return volume.float()
    kernel = _dirichlet(side, ratio, box_px).to(volume.device, torch.float32)
    result = volume.float()
    for _ in range(3):  # the first axis becomes the last one: z, y and x in turn
        result = torch.tensordot(result, kernel, dims=([0], [1]))
    return result.contiguous()


def _dirichlet(side: int, ratio: float, box_px: int) -> Tensor:
    """`(box_px, side)` float64: at each new place, the Fourier series of a delta at each old one."""
    new = (torch.arange(box_px, dtype=torch.float64) - box_px // 2) * ratio + side // 2
    # below the coarser of the two Nyquist frequencies, in cycles per old box
    highest = math.floor(side / 2 * min(1.0, 1 / ratio) + 1e-9)
    order = torch.arange(1, highest + 1, dtype=torch.float64)
    weight = torch.full_like(order, 2.0)
    if highest and math.isclose(2 * highest * max(1.0, ratio), side):
        weight[-1] = 1.0  # Nyquist has no mirror image
    distance = new[:, None] - torch.arange(side, dtype=torch.float64)
    angle = 2 * math.pi / side * distance
    kernel = torch.ones_like(distance)
    for k, w in zip(order.tolist(), weight.tolist(), strict=True):
        kernel += w * torch.cos(k * angle)
    inside = (new > -0.5 - 1e-9) & (new < side - 0.5 + 1e-9)
    return kernel / side * inside[:, None]


def low_pass_volume(volume: Tensor, resolution_angstrom: float, pixel_size_angstrom: float) -> Tensor:
    """Remove from a volume `(z, y, x)` what is finer than `resolution_angstrom`.

    The gain falls from 1 to 0 as a raised cosine over two Fourier shells centred on the cut-off.

    Raises
    ------
    ValueError
        When the resolution or the pixel size is not positive.
    """
    if not (resolution_angstrom > 0 and pixel_size_angstrom > 0):
        raise ValueError(
            f"resolution and pixel size must be positive, found {resolution_angstrom} and "
            f"{pixel_size_angstrom} Å"
        )
    cut = pixel_size_angstrom / resolution_angstrom
    beyond = (volume_frequency(volume.shape, volume.device) - cut) * min(volume.shape)
    gain = 0.5 + 0.5 * torch.cos(math.pi * (beyond / 2 + 0.5).clamp(0.0, 1.0))
    filtered: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume.float()) * gain, s=volume.shape)
    return filtered


def volume_frequency(shape: torch.Size, device: torch.device | None = None) -> Tensor:
    """`(z, y, x // 2 + 1)` magnitude of the frequencies of `torch.fft.rfftn`, in cycles per voxel."""
    z, y = (torch.fft.fftfreq(n, device=device) for n in shape[:2])
    x = torch.fft.rfftfreq(shape[2], device=device)
    frequency: Tensor = (z[:, None, None] ** 2 + y[:, None] ** 2 + x**2).sqrt()
    return frequency


def fourier_resample(images: Tensor, box_px: int | tuple[int, int]) -> Tensor:
    """`(..., y, x)` images to `(..., box, box)`, or another (y, x), by cutting or padding their transform.

    Grey values are kept; the Nyquist frequency of the smaller grid, which has no sign, is left out.
    """
    old = (images.shape[-2], images.shape[-1])
    new = (box_px, box_px) if isinstance(box_px, int) else box_px
    if old == new:
        return images
    source = torch.fft.rfft2(images)
    target = source.new_zeros(*images.shape[:-2], new[0], new[1] // 2 + 1)
    rows, columns = ((min(sides) - 1) // 2 for sides in zip(old, new, strict=True))
    target[..., : rows + 1, : columns + 1] = source[..., : rows + 1, : columns + 1]
    if rows:
        target[..., -rows:, : columns + 1] = source[..., -rows:, : columns + 1]
    resampled: Tensor = torch.fft.irfft2(target, s=new)
    return resampled * (new[0] * new[1] / (old[0] * old[1]))


def shift_images(images: Tensor, shifts_px: Tensor) -> Tensor:
    """Move what is in each image, by fractions of a pixel too; the images are periodic.

    Parameters
    ----------
    images
        `(..., y, x)`.
    shifts_px
        `(..., 2)` (y, x), pixels towards larger indices. RELION's origin offsets are the negative of it.
    """
    shape = images.shape[-2:]
    shifted = torch.fft.rfft2(images) * shift_phases(shifts_px, (shape[0], shape[1]))
    result: Tensor = torch.fft.irfft2(shifted, s=shape)
    return result


def shift_phases(shifts_px: Tensor, shape: tuple[int, int]) -> Tensor:
    """`(..., y, x // 2 + 1)` factors on `torch.fft.rfft2` that move `(y, x)` images by `(..., 2)` pixels."""
    y = torch.fft.fftfreq(shape[0], device=shifts_px.device)[:, None]
    x = torch.fft.rfftfreq(shape[1], device=shifts_px.device)
    cycles = shifts_px[..., 0, None, None] * y + shifts_px[..., 1, None, None] * x
    return torch.polar(torch.ones_like(cycles), -2 * torch.pi * cycles)
