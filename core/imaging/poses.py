"""Poses: where a particle looks and where it lies, drawn at random or taken from a table."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..io.particles import ParticleSet
from ..io.poses import read_poses
from .projection import random_rotations
from .symmetry import symmetry_operators, to_asymmetric_unit


@dataclass(frozen=True)
class Poses:
    """Poses of n particles.

    Attributes
    ----------
    rotations
        `(n, 3, 3)` float32 from the image's frame (x, y, z) to the volume's, as `Projector` takes them.
    shifts_angstrom
        `(n, 2)` float32 (y, x): from pixel `box // 2` to the particle's centre, for `shift_images` after
        division by the pixel size.
    """

    rotations: Tensor
    shifts_angstrom: Tensor

    def __getitem__(self, index: Tensor) -> Poses:
        return Poses(self.rotations[index], self.shifts_angstrom[index])

    def __len__(self) -> int:
        return len(self.rotations)


def uniform_poses(
    n: int, generator: torch.Generator, *, symmetry: str = "C1", max_shift_angstrom: float = 0.0
) -> Poses:
    """Rotations uniform on SO(3), or on the part of it that a symmetric particle needs, and uniform shifts.

    Parameters
    ----------
    symmetry
        RELION's name of the point group; see `symmetry_operators`.
    max_shift_angstrom
        Shifts along y and x are uniform up to this distance either way.

    Raises
    ------
    ConfigurationError
        An unknown group.
    """
    operators = symmetry_operators(symmetry)
    rotations = random_rotations(n, generator)
    shifts = (2 * torch.rand(n, 2, generator=generator) - 1) * max_shift_angstrom
    return Poses(to_asymmetric_unit(rotations, operators), shifts)


def poses_of(particles: ParticleSet) -> Poses:
    """The poses of a STAR or `.cs` table.

    Raises
    ------
    InputError
        The table has no poses, or they are no numbers; `read_poses` says more.
    """
    table = read_poses(particles)
    return Poses(torch.from_numpy(table.rotations).float(), torch.from_numpy(table.shifts_angstrom).float())
