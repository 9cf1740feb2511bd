"""How well the pose of a particle can be read off an image, raw or denoised.

Images are matched with projections of a known map by normalised cross-correlation, and the poses found
compared with the true ones. Unlike a distance between images this asks whether the detail that tells views
apart survived: blur costs little in squared error and much here, and invented detail costs most.

Rotations `(..., 3, 3)` take coordinates of the image to those of the volume, as `Projector` takes them.
Shifts are (y, x) pixels by which the particle lies off the box centre; RELION's rlnOrigin is the opposite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from ..imaging.projection import Projector
from ..imaging.rings import frequency_grid, hermitian_weight
from ..imaging.symmetry import rotations_from_vectors
from .pose_grid import PoseGrid

_ORIENTATIONS_AT_ONCE = 512


@dataclass(frozen=True)
class Poses:
    """Poses of n images.

    Attributes
    ----------
    rotations
        `(n, 3, 3)`.
    shifts_px
        `(n, 2)` (y, x).
    correlation
        `(n,)` of each image with the projection in that pose, within the band that was matched; 1 where it is
        unknown.
    """

    rotations: Tensor
    shifts_px: Tensor
    correlation: Tensor


class PoseMatcher:
    """Finds the projection of a map that each image correlates with best.

    Parameters
    ----------
    volume
        `(d, d, d)`.
    grid
        Poses of the exhaustive search.
    refinements
        How often the best pose is then improved locally, at half the spacing each time.
    finest_ring
        Highest Fourier ring that counts; Nyquist by default. In raw images finer rings hold noise only.

    Notes
    -----
    The search costs 4 operations per Fourier coefficient, orientation and shift for each image. Correlation
    is the maximum of likelihood for white noise and an unknown contrast, so that nothing is assumed of the
    noise of a denoised image, nor of its scale. The mean grey value does not count.
    """

    def __init__(
        self, volume: Tensor, grid: PoseGrid, *, refinements: int = 3, finest_ring: int | None = None
    ) -> None:
        self.box_px = volume.shape[0]
        self.grid, self.refinements = grid, refinements
        self._projector = Projector(volume)
        shape = (self.box_px, self.box_px)
        ring = frequency_grid(shape) * self.box_px
        limit = self.box_px // 2 if finest_ring is None else finest_ring
        self._inside = ((ring > 0) & (ring <= limit)).flatten()
        # with the root of its weight on either side a product of half transforms is one of whole ones
        self._weight = hermitian_weight(shape).sqrt().expand(self.box_px, -1).flatten()[self._inside]
        y, x = torch.fft.fftfreq(self.box_px), torch.fft.rfftfreq(self.box_px)
        self._frequencies = torch.cartesian_prod(y, x)[self._inside]

    def __call__(self, images: Tensor, transfer: Tensor | None = None, *, at_once: int = 64) -> Poses:
        """Match `(n, y, x)` images.

        Parameters
        ----------
        images
            Of the box of the volume.
        transfer
            `(n, y, x // 2 + 1)` CTF of each image on the grid of `torch.fft.rfft2`, which the projections are
            multiplied by; None where the images carry none.
        at_once
            Images that are searched together; only memory depends on it.

        Raises
        ------
        InputError
            When the images are not of the volume's box.
        """
        if images.ndim != 3 or images.shape[1:] != (self.box_px, self.box_px):
            raise InputError(
                f"expected images (n, {self.box_px}, {self.box_px}), found {tuple(images.shape)}."
            )
        found = []
        for first in range(0, len(images), at_once):
            here = slice(first, first + at_once)
            data = self._coefficients(torch.fft.rfft2(images[here].float()))
            ctf = torch.ones(1, len(self._weight))
            if transfer is not None:
                ctf = transfer[here].float().flatten(1)[:, self._inside]
            found.append(self._refined(data, ctf, self._searched(data, ctf)))
        return Poses(
            *(torch.cat([getattr(part, name) for part in found]) for name in Poses.__dataclass_fields__)
        )

    def _coefficients(self, transform: Tensor) -> Tensor:
        return transform.flatten(1)[:, self._inside] * self._weight

    def _templates(self, index: Tensor) -> Tensor:
        return self._coefficients(self._projector.slices(self.grid.rotations(index)))

    def _phases(self, shifts_px: Tensor) -> Tensor:
        """`(..., pixels)` factors that take a shift `(..., 2)` back."""
        cycles = shifts_px @ self._frequencies.T
        return torch.polar(torch.ones_like(cycles), 2 * torch.pi * cycles)

    def _searched(self, data: Tensor, ctf: Tensor) -> Poses:
        """Best pose of the grid."""
        n, n_shifts = len(data), len(self.grid.shifts_px)
        centred = (data * ctf)[:, None] * self._phases(self.grid.shifts_px)
        rows = torch.view_as_real(centred).flatten(-2).flatten(0, 1)
        norm = data.abs().square().sum(1).sqrt()
        best = torch.full((n,), -torch.inf)
        shift, orientation = torch.zeros(n, dtype=torch.int64), torch.zeros(n, dtype=torch.int64)
        for index in torch.split(torch.arange(self.grid.n_orientations), _ORIENTATIONS_AT_ONCE):
            templates = torch.view_as_real(self._templates(index))
            power = ctf.square() @ templates.square().sum(-1).T
            product = (rows @ templates.flatten(1).T).reshape(n, n_shifts, -1)
            scores = (product / power.sqrt()[:, None]).flatten(1)
            largest, where = scores.max(1)
            better = largest > best
            best = torch.where(better, largest, best)
            shift = torch.where(better, where // len(index), shift)
            orientation = torch.where(better, index[where % len(index)], orientation)
        return Poses(
            self.grid.rotations(orientation), self.grid.shifts_px[shift], best / norm.clamp_min(1e-30)
        )

    def _refined(self, data: Tensor, ctf: Tensor, poses: Poses) -> Poses:
        """Improve each pose among its neighbours, with steps that are halved each time."""
        n = len(data)
        axis = torch.tensor([-1.0, 0.0, 1.0])
        turns, moves = torch.cartesian_prod(axis, axis, axis), torch.cartesian_prod(axis, axis)
        angle, step = 0.5 * math.radians(360 / self.grid.n_in_plane), 0.5 * self.grid.shift_step_px
        if step == 0:
            moves = torch.zeros(1, 2)
        norm = data.abs().square().sum(1).sqrt().clamp_min(1e-30)
        for _ in range(self.refinements):
            rotations = poses.rotations[:, None] @ rotations_from_vectors(angle * turns)
            shifts = poses.shifts_px[:, None] + step * moves
            templates = self._coefficients(self._projector.slices(rotations.flatten(0, 1)))
            templates = templates.reshape(n, len(turns), -1) * ctf[:, None]
            centred = data[:, None] * self._phases(shifts)
            product = (templates @ centred.conj().mT).real
            scores = product / templates.abs().square().sum(-1).sqrt()[..., None] / norm[:, None, None]
            largest, where = scores.flatten(1).max(1)
            every = torch.arange(n)
            poses = Poses(rotations[every, where // len(moves)], shifts[every, where % len(moves)], largest)
            angle, step = angle / 2, step / 2
        return poses


@dataclass(frozen=True)
class PoseErrors:
    """Errors of n poses, each `(n,)`.

    Attributes
    ----------
    angle_degrees
        Of the rotation that leads from the true orientation to the one found, 0 to 180.
    direction_degrees
        Between the two viewing directions, 0 to 180.
    shift_px
        Distance between the centres.
    """

    angle_degrees: Tensor
    direction_degrees: Tensor
    shift_px: Tensor

    def share_within(self, angle_degrees: float) -> float:
        """Share of the images whose orientation is right to this angle."""
        return float((self.angle_degrees <= angle_degrees).double().mean())


def pose_errors(found: Poses, true: Poses, symmetry: Tensor | None = None) -> PoseErrors:
    """Errors of the poses found; with a symmetric particle from the nearest of the equivalent true ones.

    Parameters
    ----------
    symmetry
        `(k, 3, 3)` of `imaging.symmetry.symmetry_operators`; None for an asymmetric particle.

    Raises
    ------
    InputError
        When there are not as many poses as true ones.
    """
    if len(found.rotations) != len(true.rotations):
        raise InputError(
            f"expected a true pose for each image, found {len(true.rotations)} for {len(found.rotations)}."
        )
    operators = torch.eye(3)[None] if symmetry is None else symmetry
    equivalent = operators.double() @ true.rotations[:, None].double()
    between = equivalent.mT @ found.rotations[:, None].double()
    trace = between.diagonal(dim1=-2, dim2=-1).sum(-1)
    nearest = trace.argmax(1)
    between = between[torch.arange(len(nearest)), nearest]
    # from the sine and the cosine: the arc cosine alone is blunt near 0
    skew = between - between.mT
    sine = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], -1).norm(dim=-1) / 2
    angle = torch.atan2(sine, (between.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2)
    direction = torch.atan2(between[:, :2, 2].norm(dim=-1), between[:, 2, 2])
    return PoseErrors(
        torch.rad2deg(angle),
        torch.rad2deg(direction),
        (found.shifts_px - true.shifts_px).double().norm(dim=-1),
    )
