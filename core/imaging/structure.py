"""Atomic models to electrostatic potential on a grid.

References
----------
.. [1] Peng et al. (1996) Acta Cryst. A52, 257-276: electron scattering factors (the table of
   International Tables C, 4.3.2.2, as gemmi ships it).
.. [2] Fraser, MacRae & Suzuki (1978) J. Appl. Cryst. 11, 693-694: the solvent that an atom displaces
   as a Gaussian of the atom's volume.
.. [3] Shang & Sigworth (2012) J. Struct. Biol. 180, 10-16: how strongly protein stands out from vitreous ice
   in the microscope, doi:10.1016/j.jsb.2012.04.021.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .resample import volume_frequency

# Scattering factor at zero angle, in Å (sum of the four-Gaussian amplitudes of [1]).
_HYDROGEN_SCATTERING = 0.529
_WATER_SCATTERING = 3.041
# Vitreous ice of 0.93 g/cm3, molecules per Å3.
_ICE_NUMBER_DENSITY = 0.0311
# Mean volume of a non-hydrogen atom of protein with its hydrogens: 1.21 Å3/Da times 13.6 Da.
_ATOM_VOLUME_CUBIC_ANGSTROM = 16.5
_HYDROGENS_PER_ATOM = 1.0
# Atoms with a B of 32 times the grid's squared spacing alias by 4 % of their potential, with 8 times by a
# third (measured against a fourfold grid).
_B_PER_SQUARED_SPACING = 32.0


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
    centroid_angstrom
        Where the centroid (x, y, z) lay in the file's frame, which a map may share.
    """

    name: str
    model: gemmi.Model
    radius_angstrom: float
    n_atoms: int
    centroid_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def positions_angstrom(self) -> NDArray[np.float64]:
        """`(n, 3)` x, y, z of the atoms relative to their centroid."""
        return _positions(self.model)


def read_structure(path: Path | str, assembly: str | None = None) -> Structure:
    """Read the first model of a PDB or mmCIF file, gzipped or not.

    Parameters
    ----------
    assembly
        The biological assembly to build, by the file's name for it, usually "1"; None takes the atoms as they
        are deposited.

    Raises
    ------
    InputError
        The file cannot be parsed, no atom is left, an element is unknown or has no scattering factors, a
        coordinate is not a number, or there is no such assembly.
    """
    path = Path(path)
    structure = _parse(path)
    if assembly is not None:
        names = [one.name for one in structure.assemblies]
        if assembly not in names:
            known = f"only {', '.join(names)}" if names else "none"
            raise InputError(f"has no assembly {assembly!r}, {known}.", path=path)
        structure.transform_to_assembly(assembly, gemmi.HowToNameCopiedChain.AddNumber)
    structure.remove_alternative_conformations()
    structure.remove_hydrogens()
    structure.remove_waters()
    model = structure[0]
    _check_elements(path, model)
    positions = _positions(model)
    if len(positions) == 0:
        raise InputError("holds no atoms.", path=path, remedy="Give a file with ATOM records.")
    if not np.isfinite(positions).all():
        raise InputError("has an atom whose coordinates are not numbers.", path=path)
    centroid = positions.mean(0)
    positions -= centroid
    for atom, xyz in zip(_atoms(model), positions, strict=True):
        atom.pos = gemmi.Position(*xyz)
    x, y, z = centroid.tolist()
    radius = float(np.linalg.norm(positions, axis=1).max())
    return Structure(path.name.split(".")[0], model, radius, len(positions), (x, y, z))


def _parse(path: Path) -> gemmi.Structure:
    try:
        structure = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"expected a PDB or mmCIF file: {error}.", path=path) from error
    if len(structure) == 0:
        raise InputError("holds no model.", path=path, remedy="Give a file with ATOM records.")
    return structure


def _atoms(model: gemmi.Model) -> Iterator[gemmi.Atom]:
    return (atom for chain in model for residue in chain for atom in residue)


def _positions(model: gemmi.Model) -> NDArray[np.float64]:
    return np.array([atom.pos.tolist() for atom in _atoms(model)], dtype=np.float64).reshape(-1, 3)


def _check_elements(path: Path, model: gemmi.Model) -> None:
    for chain in model:
        for residue in chain:
            for atom in residue:
                if atom.element.atomic_number == 0 or atom.element.c4322 is None:
                    raise InputError(
                        f"atom {atom.name!r} of residue {residue.name} {residue.seqid}, chain {chain.name}: "
                        f"the element {atom.element.name!r} has no electron scattering factors.",
                        path=path,
                        remedy="Correct the element column, or remove the atom.",
                    )


def potential_map(
    structure: Structure,
    box_px: int,
    pixel_size_angstrom: float,
    b_factor: float,
    *,
    offset_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Tensor:
    """Electrostatic potential of a complex in vitreous ice, relative to the ice.

    Times 47.88 V Å² (h² / 2π m e) it is in volt; `exposure.phase_shift` makes the electrons' phase of its
    projections.

    Parameters
    ----------
    structure
        From `read_structure`.
    box_px
        Side of the cubic grid; the centroid lies on voxel `box_px // 2` of each axis.
    pixel_size_angstrom
        Å per voxel. Atoms that are sharper than the grid can hold are put on one of half the spacing, which
        is then cut off at the Nyquist frequency of the wanted one.
    b_factor
        Isotropic B in Å² given to every atom in place of the file's own (which are refined against
        very different data).
    offset_angstrom
        Moves the centroid (x, y, z) off that voxel.

    Returns
    -------
    `(z, y, x)` float32 in Å of scattering factor per Å³, protein positive [1]_ [2]_ [3]_.

    Raises
    ------
    ValueError
        The complex does not fit into the box, or a size or B is impossible.
    """
    if not (pixel_size_angstrom > 0 and box_px > 0 and 0 <= b_factor < math.inf):
        raise ValueError(f"impossible: {box_px} px of {pixel_size_angstrom:g} Å, a B of {b_factor:g} Å²")
    side = box_px * pixel_size_angstrom
    positions = structure.positions_angstrom() + np.array(offset_angstrom)
    if 2 * structure.radius_angstrom > side or np.abs(positions).max() > side / 2:
        raise ValueError(
            f"{structure.name} has a diameter of {2 * structure.radius_angstrom:.0f} Å and does not fit "
            f"into {box_px} px of {pixel_size_angstrom:g} Å"
        )
    positions += (box_px // 2) * pixel_size_angstrom
    wanted = _B_PER_SQUARED_SPACING * pixel_size_angstrom**2
    finer = 1 if b_factor >= wanted else 2
    # too sharp even for the finer grid: blurred on it, and sharpened again once cut off at Nyquist
    blur = max(0.0, wanted / finer**2 - b_factor)
    fine_px, fine_size = finer * box_px, pixel_size_angstrom / finer
    atoms = _atoms_on_grid(structure.model, positions, b_factor + blur, fine_px, fine_size)
    transform = _crop(torch.fft.rfftn(atoms), box_px)
    transform *= fine_size**3 * torch.exp(_squared_frequency(box_px, pixel_size_angstrom) * (blur / 4))
    transform -= _displaced_solvent(positions, b_factor, box_px, pixel_size_angstrom, finer)
    volume: Tensor = torch.fft.irfftn(transform, s=(box_px,) * 3)
    return volume / pixel_size_angstrom**3


def _squared_frequency(box_px: int, pixel_size_angstrom: float) -> Tensor:
    """`(z, y, x // 2 + 1)`, 1/Å²."""
    return (volume_frequency(torch.Size((box_px,) * 3)) / pixel_size_angstrom) ** 2


def _crop(transform: Tensor, box_px: int) -> Tensor:
    """The frequencies of `rfftn` that a grid of `box_px` and equal length has."""
    fine_px, half = transform.shape[0], box_px // 2 + 1
    if fine_px == box_px:
        return transform
    kept = torch.cat([torch.arange(box_px - box_px // 2), torch.arange(fine_px - box_px // 2, fine_px)])
    return transform[kept[:, None, None], kept[:, None], torch.arange(half)]


def _atoms_on_grid(
    model: gemmi.Model,
    positions: NDArray[np.float64],
    b_factor: float,
    box_px: int,
    pixel_size_angstrom: float,
) -> Tensor:
    """The atoms in vacuum [1]_, positions relative to voxel 0."""
    side = box_px * pixel_size_angstrom
    calculator = gemmi.DensityCalculatorE()
    calculator.d_min = 2 * pixel_size_angstrom
    calculator.grid.set_unit_cell(gemmi.UnitCell(side, side, side, 90, 90, 90))
    calculator.grid.set_size(box_px, box_px, box_px)
    for atom, xyz in zip(_atoms(model), positions, strict=True):
        placed = atom.clone()
        placed.pos = gemmi.Position(*xyz)
        placed.b_iso, placed.occ = b_factor, 1.0
        placed.aniso = gemmi.SMat33f(0, 0, 0, 0, 0, 0)
        calculator.add_atom_density_to_grid(placed)
    potential = np.array(calculator.grid, dtype=np.float32).transpose(2, 1, 0)  # gemmi's axes are x, y, z
    return torch.from_numpy(np.ascontiguousarray(potential))


def _displaced_solvent(
    positions: NDArray[np.float64],
    b_factor: float,
    box_px: int,
    pixel_size_angstrom: float,
    finer: int,
) -> Tensor:
    """Transform of the ice that the atoms displace, less the hydrogens that the model lacks.

    Both have the atom's volume. They are put on a grid that is `finer`, and its interpolation is undone.
    """
    squared = _squared_frequency(box_px, pixel_size_angstrom)
    counts = _splat(positions * (finer / pixel_size_angstrom), finer * box_px)
    # [2]: exp(-pi r^2 / v^(2/3)) in real space, widened by the atoms' B
    width = math.pi * _ATOM_VOLUME_CUBIC_ANGSTROM ** (2 / 3) + b_factor / 4
    transform = _crop(torch.fft.rfftn(counts), box_px) * torch.exp(-squared * width)
    axis = torch.sinc(torch.fft.fftfreq(box_px) / finer) ** 2
    transform /= axis[:, None, None] * axis[:, None] * axis[: box_px // 2 + 1]
    return transform * (
        _ICE_NUMBER_DENSITY * _WATER_SCATTERING * _ATOM_VOLUME_CUBIC_ANGSTROM
        - _HYDROGENS_PER_ATOM * _HYDROGEN_SCATTERING
    )


def _splat(positions_px: NDArray[np.float64], box_px: int) -> Tensor:
    """`(z, y, x)` number of points (x, y, z), each shared linearly (cloud-in-cell) by its eight voxels."""
    scaled = positions_px[:, ::-1]
    lower = np.floor(scaled).astype(np.int64)
    fraction = scaled - lower
    counts = np.zeros(box_px**3)
    for corner in np.ndindex(2, 2, 2):
        offset = np.array(corner)
        weight = np.prod(np.where(offset == 1, fraction, 1 - fraction), axis=1)
        index = np.ravel_multi_index(tuple(((lower + offset) % box_px).T), (box_px,) * 3)
        counts += np.bincount(index, weights=weight, minlength=box_px**3)
    return torch.from_numpy(counts.reshape((box_px,) * 3).astype(np.float32))
