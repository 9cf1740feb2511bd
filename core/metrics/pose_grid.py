"""Orientations and shifts on a grid that refines into itself.

References
----------
.. [1] Górski et al. (2005) Astrophys. J. 622, 759-771, doi:10.1086/427976: HEALPix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..imaging.projection import rotations_from_euler


@dataclass(frozen=True)
class PoseGrid:
    """Orientations and shifts, all equally probable.

    Attributes
    ----------
    order
        HEALPix order [1]_: `12 * 4**order` directions times `6 * 2**order` in-plane angles, which are 60
        degrees apart at order 0, 7.5 at order 3, 3.75 at order 4, as in RELION.
    shifts_px
        `(s, 2)` (y, x), pixels.
    shift_step_px
        Spacing of the shifts; 0 with a single one, which is then never refined.
    """

    order: int
    shifts_px: Tensor
    shift_step_px: float

    @classmethod
    def centred(cls, order: int) -> PoseGrid:
        """Orientations without shifts."""
        return cls(order, torch.zeros(1, 2), 0.0)

    @classmethod
    def with_shifts(cls, order: int, radius_px: float, step_px: float) -> PoseGrid:
        """Orientations times the points of a square grid within a disc."""
        reach = int(radius_px / step_px)
        axis = torch.arange(-reach, reach + 1) * float(step_px)
        points = torch.cartesian_prod(axis, axis)
        return cls(order, points[points.norm(dim=1) <= radius_px + 1e-6], float(step_px))

    @property
    def n_in_plane(self) -> int:
        return 6 << self.order

    @property
    def n_orientations(self) -> int:
        return (12 << 2 * self.order) * self.n_in_plane

    def __len__(self) -> int:
        return self.n_orientations * len(self.shifts_px)

    def rotations(self, index: Tensor) -> Tensor:
        """`(n,)` numbers of orientations to `(n, 3, 3)` rotations, for `Projector`."""
        direction, turn = index // self.n_in_plane, index % self.n_in_plane
        cosine, rot = _healpix_centre(self.order, direction)
        rot, tilt = torch.rad2deg(rot), torch.rad2deg(cosine.acos())
        # At the poles rot and psi turn about one axis: only with psi counted from rot there do the directions
        # around a pole show the particle alike, so that the parts of a pose lie near it.
        face = direction // 4**self.order
        psi = (turn.double() + 0.5) * (360.0 / self.n_in_plane) + rot * (face // 4 - 1)
        degrees = torch.stack([rot, tilt, psi], dim=-1)
        return rotations_from_euler(degrees).float()

    def refined(self) -> PoseGrid:
        """The grid of half the spacing, whose points are the eight and four parts of each of this one's."""
        if self.shift_step_px == 0:
            return PoseGrid(self.order + 1, self.shifts_px, 0.0)
        quarter = self.shift_step_px / 4
        parts = torch.cartesian_prod(*[torch.tensor([-quarter, quarter])] * 2)
        shifts = (self.shifts_px[:, None] + parts).flatten(0, 1)
        return PoseGrid(self.order + 1, shifts, self.shift_step_px / 2)

    def orientation_parts(self, index: Tensor) -> Tensor:
        """`(n,)` orientations to the `(n, 8)` of the refined grid that they consist of."""
        direction, turn = index // self.n_in_plane, index % self.n_in_plane
        directions = 4 * direction[:, None, None] + torch.arange(4)[:, None]
        turns = 2 * turn[:, None, None] + torch.arange(2)
        return (directions * 2 * self.n_in_plane + turns).flatten(1)

    def shift_parts(self, index: Tensor) -> Tensor:
        """`(n,)` shifts to the `(n, 4)` of the refined grid that they consist of; `(n, 1)` without step."""
        if self.shift_step_px == 0:
            return index[:, None]
        return 4 * index[:, None] + torch.arange(4)


def _healpix_centre(order: int, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine of the polar angle and azimuth (radians) of HEALPix pixels in nested order, float64 [1]_."""
    side = 2**order
    face, inside = pixel // side**2, pixel % side**2
    along, across = torch.zeros_like(inside), torch.zeros_like(inside)
    for bit in range(order):
        along += ((inside >> (2 * bit)) & 1) << bit
        across += ((inside >> (2 * bit + 1)) & 1) << bit
    ring = (2 + face // 4) * side - along - across - 1  # from the north pole, counted from 1
    north, south = ring < side, ring > 3 * side
    quarter = torch.where(north, ring, torch.where(south, 4 * side - ring, side))  # pixels per quarter turn
    cap = 1 - quarter.double() ** 2 / (3 * side**2)
    belt = (2 * side - ring).double() * 2 / (3 * side)
    cosine = torch.where(north, cap, torch.where(south, -cap, belt))
    offset = torch.where(north | south, 0, (ring - side) & 1)
    column = torch.where(face // 4 == 1, 2 * (face % 4), 2 * (face % 4) + 1)
    place = (column * quarter + along - across + 1 + offset).div(2, rounding_mode="floor")
    azimuth = (place.double() - (offset + 1) * 0.5) * (torch.pi / 2) / quarter
    return cosine, azimuth
