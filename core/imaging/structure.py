"""Atomic models to electrostatic potential on a grid.

References
----------
.. [1] Peng et al. (1996) Acta Cryst. A52, 257-276: electron scattering factors (the table of
   International Tables C, 4.3.2.2, as gemmi ships it).
.. [2] Fraser, MacRae & Suzuki (1978) J. Appl. Cryst. 11, 693-694: the solvent that an atom displaces
   as a Gaussian of the atom's volume.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

# Scattering factor at zero angle, in Å (sum of the four-Gaussian amplitudes of [1]).
_HYDROGEN_SCATTERING = 0.529
_WATER_SCATTERING = 3.041
# Vitreous ice of 0.93 g/cm3, molecules per Å3.
_ICE_NUMBER_DENSITY = 0.0311
# Mean volume of a non-hydrogen atom of protein with its hydrogens: 1.21 Å3/Da times 13.6 Da.
_ATOM_VOLUME_CUBIC_ANGSTROM = 16.5
_HYDROGENS_PER_ATOM = 1.0


@dataclass(frozen=True)
class Structure:
    """Atoms of a complex, centred on their centroid.

    Attributes
    ----------
    name
        The file's name without its extensions.
    model
        gemmi's model, without hydrogens, waters and alternative conformers.
    radius_angstrom
        Largest distance of an atom from the centroid.
    n_atoms
        Atoms kept.
    """

    name: str
    model: gemmi.Model
    radius_angstrom: float
    n_atoms: int


def read_structure(path: Path | str) -> Structure:
    """Read the first model of a PDB or mmCIF file, gzipped or not.

    Raises
    ------
    InputError
        The file cannot be parsed, or no atom is left.
    """
    path = Path(path)
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"expected a PDB or mmCIF file: {error}.", path=path) from error
    if len(structure) == 0:
        raise InputError("holds no model.", path=path, remedy="Give a file with ATOM records.")
    structure.remove_alternative_conformations()
    structure.remove_hydrogens()
    structure.remove_waters()
    model = structure[0]
    positions = np.array([atom.pos.tolist() for chain in model for residue in chain for atom in residue])
    if len(positions) == 0:
        raise InputError("holds no atoms.", path=path, remedy="Give a file with ATOM records.")
    positions -= positions.mean(0)
    atoms = (atom for chain in model for residue in chain for atom in residue)
    for atom, xyz in zip(atoms, positions, strict=True):
        atom.pos = gemmi.Position(*xyz)
    radius = float(np.linalg.norm(positions, axis=1).max())
    return Structure(path.name.split(".")[0], model, radius, len(positions))


def potential_map(structure: Structure, box_px: int, pixel_size_angstrom: float, b_factor: float) -> Tensor:
    """Electrostatic potential of a complex in vitreous ice, relative to the ice.

    Parameters
    ----------
    structure
        From `read_structure`.
    box_px
        Side of the cubic grid; the centroid lies on voxel `box_px // 2` of each axis.
    pixel_size_angstrom
        Å per voxel.
    b_factor
        Isotropic B in Å² given to every atom in place of the file's own (which are refined against
        very different data); it should be about `8 pixel_size_angstrom**2` or more, or the grid aliases.

    Returns
    -------
    `(z, y, x)` float32, protein positive, arbitrary linear scale common to all structures.

    Raises
    ------
    ValueError
        The complex does not fit into the box.
    """
    side = box_px * pixel_size_angstrom
    if 2 * structure.radius_angstrom > side:
        raise ValueError(
            f"{structure.name} has a diameter of {2 * structure.radius_angstrom:.0f} Å and does not fit "
            f"into {box_px} px of {pixel_size_angstrom:g} Å"
        )
    calculator = gemmi.DensityCalculatorE()
    calculator.d_min = 2 * pixel_size_angstrom
    calculator.grid.set_unit_cell(gemmi.UnitCell(side, side, side, 90, 90, 90))
    calculator.grid.set_size(box_px, box_px, box_px)
    centre = (box_px // 2) * pixel_size_angstrom
    positions: list[list[float]] = []
    for chain in structure.model:
        for residue in chain:
            for atom in residue:
                placed = atom.clone()
                placed.pos = gemmi.Position(atom.pos.x + centre, atom.pos.y + centre, atom.pos.z + centre)
                placed.b_iso, placed.occ = b_factor, 1.0
                placed.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
                calculator.add_atom_density_to_grid(placed)
                positions.append(placed.pos.tolist())
    potential = np.array(calculator.grid, dtype=np.float32).transpose(2, 1, 0)  # gemmi's axes are x, y, z
    solvent = _displaced_solvent(np.array(positions), box_px, pixel_size_angstrom, b_factor)
    return torch.from_numpy(np.ascontiguousarray(potential)) - solvent


def _displaced_solvent(
    positions: NDArray[np.float64], box_px: int, pixel_size_angstrom: float, b_factor: float
) -> Tensor:
    """Ice that the atoms displace, less the hydrogens that the model lacks (both of the atom's volume)."""
    # linear (cloud-in-cell) splat of equal weights, then one Gaussian filter in Fourier space
    scaled = positions[:, ::-1] / pixel_size_angstrom
    lower = np.floor(scaled).astype(np.int64)
    fraction = scaled - lower
    counts = np.zeros(box_px**3)
    for corner in np.ndindex(2, 2, 2):
        offset = np.array(corner)
        weight = np.prod(np.where(offset == 1, fraction, 1 - fraction), axis=1)
        index = np.ravel_multi_index(tuple(((lower + offset) % box_px).T), (box_px,) * 3)
        counts += np.bincount(index, weights=weight, minlength=box_px**3)
    frequency = torch.fft.fftfreq(box_px, pixel_size_angstrom)
    half = torch.fft.rfftfreq(box_px, pixel_size_angstrom)
    squared = frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + half[None, None, :] ** 2
    # [2]: exp(-pi r^2 / v^(2/3)) in real space, widened by the atoms' B
    envelope = torch.exp(-squared * (torch.pi * _ATOM_VOLUME_CUBIC_ANGSTROM ** (2 / 3) + b_factor / 4))
    transform = torch.fft.rfftn(torch.from_numpy(counts.reshape((box_px,) * 3).astype(np.float32)))
    per_atom = (
        _ICE_NUMBER_DENSITY * _WATER_SCATTERING * _ATOM_VOLUME_CUBIC_ANGSTROM
        - _HYDROGENS_PER_ATOM * _HYDROGEN_SCATTERING
    )
    blurred: Tensor = torch.fft.irfftn(transform * envelope, s=(box_px,) * 3)
    return blurred * (per_atom / pixel_size_angstrom**3)
