"""Projections of a volume by central slices of its Fourier transform."""

from __future__ import annotations

from collections.abc import Sequence

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


def euler_from_rotations(rotations: Tensor) -> Tensor:
    """RELION's rot, tilt and psi `(..., 3)` in degrees of `(..., 3, 3)`: undoes `rotations_from_euler`.

    Where the tilt is 0 or 180 degrees rot and psi turn about one axis: rot is then 0.
    """
    sine = rotations[..., :2, 2].norm(dim=-1)
    tilt = torch.atan2(sine, rotations[..., 2, 2])
    pole = sine < 1e-6
    rot = torch.atan2(rotations[..., 1, 2], rotations[..., 0, 2]).masked_fill(pole, 0.0)
    psi = torch.atan2(rotations[..., 2, 1], -rotations[..., 2, 0])
    psi = torch.where(pole, torch.atan2(rotations[..., 1, 0], rotations[..., 1, 1]), psi)
    return torch.rad2deg(torch.stack([rot, tilt, psi], dim=-1))


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

    def slices(self, rotations: Tensor) -> Tensor:
        """`(n, 3, 3)` rotations to `(n, d, d // 2 + 1)` transforms of the projections, as `rfft2` gives them.

        Ten times faster than transforming the projections, because only the frequencies of the box are
        sampled and the padded image is never made. What interpolation leaves outside the box is then folded
        into it instead of cut off: a relative difference of about 2 % with twofold padding.
        """
        device = self._transform.device
        y, x = torch.fft.fftfreq(self.box_px, device=device), torch.fft.rfftfreq(self.box_px, device=device)
        y, x = (axis.flatten() for axis in torch.meshgrid(y, x, indexing="ij"))
        plane = torch.stack([x, y, torch.zeros_like(x)]) * self._padded
        # so many at once that the temporaries stay in the cache
        blocks = torch.split(rotations.float(), max(1, 2**15 // len(x)))
        values = torch.cat([self._interpolate((block @ plane).unbind(1)) for block in blocks])
        # the transform has its centre at the origin: move it to pixel d // 2
        row = torch.arange(self.box_px, device=device)[:, None]
        parity = 1 - 2 * ((row + torch.arange(self.box_px // 2 + 1, device=device)) % 2)
        return values.reshape(-1, *parity.shape) * parity

    def _interpolate(self, xyz: Sequence[Tensor]) -> Tensor:
        """Trilinear values of the padded transform, 0 beyond it, at frequencies in its own pixels."""
        half, side = self._padded // 2, self._padded
        # only x >= 0 is kept; the rest is its conjugate
        mirrored = xyz[0] < 0
        sign = 1.0 - 2.0 * mirrored
        x, y, z = (axis * sign for axis in xyz)
        outside = (x > half - 1) | (y.abs() > half - 1) | (z.abs() > half - 1)
        x, y, z = (axis.clamp(1 - half, half - 1) for axis in (x, y, z))
        corner_x, corner_y, corner_z = (axis.floor().clamp_max(half - 2) for axis in (x, y, z))
        x, y, z = x - corner_x, y - corner_y, z - corner_z
        corner = ((corner_z.long() + half) * side + corner_y.long() + half) * (half + 1) + corner_x.long()
        flat = self._transform.reshape(-1)
        values = torch.zeros_like(corner, dtype=flat.dtype)
        for dz, wz in ((0, 1 - z), (1, z)):
            for dy, wy in ((0, wz * (1 - y)), (1, wz * y)):
                start = corner + (dz * side + dy) * (half + 1)
                values += flat[start] * (wy * (1 - x)) + flat[start + 1] * (wy * x)
        return torch.where(mirrored, values.conj(), values).masked_fill_(outside, 0)
