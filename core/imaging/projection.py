"""Projections of a volume by central slices of its Fourier transform."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_fourier_slice import extract_central_slices_rfft_3d


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """`(n, 3, 3)` rotation matrices, uniform on SO(3).

    A normalised Gaussian 4-vector is a uniform unit quaternion (Shoemake, Graphics Gems III, 1992).
    """
    w, x, y, z = torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1).unbind(1)
    return torch.stack(
        [
            *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ],
        dim=1,
    ).reshape(n, 3, 3)


def rotations_from_euler(rot_tilt_psi_degrees: Tensor) -> Tensor:
    """Rotation matrices of RELION's Euler angles, for `Projector`.

    Parameters
    ----------
    rot_tilt_psi_degrees
        `(..., 3)`: rlnAngleRot, rlnAngleTilt, rlnAnglePsi (ZYZ), degrees.

    Returns
    -------
    `(..., 3, 3)`: takes coordinates (x, y, z) of the image's frame to those of the volume, the transpose
    of RELION's `Euler_angles2matrix`.
    """
    rot, tilt, psi = torch.deg2rad(rot_tilt_psi_degrees).unbind(-1)
    return _about_z(rot) @ _about_y(tilt) @ _about_z(psi)


def _about_z(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], dim=-1).reshape(*angle.shape, 3, 3)


def _about_y(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, zero, s, zero, one, zero, -s, zero, c], dim=-1).reshape(*angle.shape, 3, 3)


class Projector:
    """Projects one volume many times: pads and transforms it once.

    Parameters
    ----------
    volume
        `(d, d, d)` (z, y, x), even d, rotation centre on voxel `d // 2`.
    pad_factor
        Zero padding before the transform; 2 keeps the error of trilinear slicing, corrected by sinc², small.
    """

    def __init__(self, volume: Tensor, pad_factor: int = 2) -> None:
        if volume.ndim != 3 or len(set(volume.shape)) != 1 or volume.shape[0] % 2:
            raise ValueError(f"a cubic volume of even side is needed, not {tuple(volume.shape)}")
        self.box_px = volume.shape[0]
        self._padded = self.box_px * pad_factor
        self._margin = (self._padded - self.box_px) // 2
        padded = torch.nn.functional.pad(volume.float(), [self._margin] * 6)
        # trilinear interpolation in Fourier space multiplies real space by sinc²
        sinc = torch.sinc(torch.fft.fftshift(torch.fft.fftfreq(self._padded, device=volume.device)))
        padded = padded / (sinc[:, None, None] * sinc[None, :, None] * sinc[None, None, :]) ** 2
        transform = torch.fft.rfftn(torch.fft.ifftshift(padded))
        self._transform = torch.fft.fftshift(transform, dim=(0, 1))

    def __call__(self, rotations: Tensor) -> Tensor:
        """`(..., 3, 3)` rotations to `(..., d, d)` projections, the sum of the voxels along z."""
        # cos 90° is -4e-8 in float32: without the tolerance half of such a slice is taken from the wrong side
        slices = extract_central_slices_rfft_3d(self._transform, rotations, rot_tolerance=1e-6)
        images: Tensor = torch.fft.irfft2(torch.fft.ifftshift(slices, dim=-2), s=(self._padded, self._padded))
        images = torch.fft.fftshift(images, dim=(-2, -1))
        inside = slice(self._margin, self._margin + self.box_px)
        return images[..., inside, inside].contiguous()
