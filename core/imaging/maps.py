"""Density maps: EMDB and other MRC maps as cubes, at any pixel size, and freed of all but the modelled atoms.

References
----------
.. [1] Cheng et al. (2015) J. Struct. Biol. 192, 146-150: the MRC2014 format. doi:10.1016/j.jsb.2015.04.002
.. [2] Pfab, Phan & Si (2021) PNAS 118, e2017525118: DeepTracer, which builds the model that the authors of
       the reference of this cleaning used. doi:10.1073/pnas.2017525118
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gemmi
import mrcfile
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, MrcError
from .resample import low_pass_volume, resample_volume, volume_frequency
from .structure import Structure, potential_map

MAP_SUFFIXES = (".mrc", ".map", ".mrc.gz", ".map.gz")
# A fitted model explains far more than this of its map, a misplaced one far less.
_SMALLEST_CORRELATION = 0.2
# The mask is 1 up to so far from an atom and falls to 0 over so much more.
_MASK_ANGSTROM, _EDGE_ANGSTROM = 3.0, 5.0
_EDGE_STEPS = 6


@dataclass(frozen=True)
class DensityMap:
    """A cubic map.

    Attributes
    ----------
    volume
        `(d, d, d)` (z, y, x) float32, even d, protein positive, rotation centre on voxel `d // 2`.
    pixel_size_angstrom
        Å per voxel.
    origin_angstrom
        Place (x, y, z) of the centre of voxel 0 in the frame of a fitted model.
    """

    volume: Tensor
    pixel_size_angstrom: float
    origin_angstrom: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def box_px(self) -> int:
        return self.volume.shape[0]

    @property
    def centre_angstrom(self) -> tuple[float, float, float]:
        """Place (x, y, z) of the rotation centre in the frame of a fitted model."""
        half = self.box_px // 2 * self.pixel_size_angstrom
        x, y, z = self.origin_angstrom
        return x + half, y + half, z + half


def read_map(path: Path | str) -> DensityMap:
    """Read an MRC or CCP4 map of any axis order and byte order, gzipped or not.

    A map that is no cube is padded to one, about its centre, with the median of its surface. The origin is
    the header's, or the start of its grid where the origin is not set.

    Raises
    ------
    MrcError
        The file cannot be read, is no volume, its axes are no permutation of x, y and z or not at right
        angles, its voxels are no cubes or have no size, or a value is NaN or infinite.
    """
    path = Path(path)
    data, header = _read(path)
    volume, start = _in_z_y_x(path, data, header)
    size = _pixel_size(path, header)
    origin = np.array([float(header["origin"][axis]) for axis in "xyz"])
    if not origin.any():
        origin = start[::-1] * size
    if not np.isfinite(volume).all():
        z, y, x = (int(k[0]) for k in np.nonzero(~np.isfinite(volume)))
        raise MrcError(f"voxel x {x}, y {y}, z {z} is {volume[z, y, x]}.", path=path)
    cube, before = _as_cube(torch.from_numpy(np.ascontiguousarray(volume, dtype=np.float32)))
    x, y, z = (origin - np.array(before[::-1]) * size).tolist()
    return DensityMap(cube, size, (x, y, z))


def _read(path: Path) -> tuple[NDArray[Any], Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of harmless flaws; those that matter raise
            with mrcfile.open(path, permissive=True) as mrc:
                if mrc.data is None:
                    raise MrcError("expected an MRC map, found no readable header or data.", path=path)
                data, header = mrc.data.copy(), mrc.header.copy()
    except (OSError, ValueError, EOFError) as error:
        raise MrcError(f"expected an MRC map: {error}.", path=path) from error
    if data.ndim != 3 or min(data.shape) < 2 or data.dtype.kind == "c" or int(header["ispg"]) >= 401:
        raise MrcError(f"expected one volume of real numbers, found {data.shape} {data.dtype}.", path=path)
    return data, header


def _in_z_y_x(path: Path, data: NDArray[Any], header: Any) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The data and the first grid point `(z, y, x)`, their axes put in order."""
    axes = [int(header[name]) for name in ("maps", "mapr", "mapc")]  # of sections, rows and columns
    if axes == [0, 0, 0]:  # not set by older programs
        axes = [3, 2, 1]
    if sorted(axes) != [1, 2, 3]:
        raise MrcError(
            f"expected columns, rows and sections along x, y and z (1, 2, 3) in some order, found "
            f"{axes[2]}, {axes[1]}, {axes[0]}.",
            path=path,
            remedy="Correct the header's MAPC, MAPR and MAPS.",
        )
    order = [axes.index(axis) for axis in (3, 2, 1)]
    start = np.array([int(header[name]) for name in ("nzstart", "nystart", "nxstart")], dtype=np.float64)
    return data.transpose(order), start[order]


def _pixel_size(path: Path, header: Any) -> float:
    cell = np.array([float(header["cella"][axis]) for axis in "xyz"])
    intervals = np.array([int(header[name]) for name in ("mx", "my", "mz")])
    angles = np.array([float(header["cellb"][name]) for name in ("alpha", "beta", "gamma")])
    if angles.any() and np.abs(angles - 90).max() > 0.01:
        raise MrcError(f"expected axes at right angles, found {angles.tolist()} degrees.", path=path)
    if not (np.isfinite(cell).all() and (cell > 0).all() and (intervals > 0).all()):
        raise MrcError(
            f"has no pixel size: a cell of {cell.tolist()} Å in {intervals.tolist()} steps.", path=path
        )
    sizes = cell / intervals
    if np.ptp(sizes) > 2e-3 * sizes.mean():
        raise MrcError(f"expected cubic voxels, found {sizes.tolist()} Å.", path=path)
    return float(f"{sizes.mean():.6g}")  # the header is single precision


def _as_cube(volume: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """An even cube with the centres `n // 2` on its own, and the voxels added before (z, y, x)."""
    side = max(volume.shape) + max(volume.shape) % 2
    z, y, x = (side // 2 - n // 2 for n in volume.shape)
    surface = torch.cat([volume.select(axis, end).flatten() for axis in range(3) for end in (0, -1)])
    cube = torch.full((side,) * 3, float(surface.median()))
    nz, ny, nx = volume.shape
    cube[z : z + nz, y : y + ny, x : x + nx] = volume
    return cube, (z, y, x)


def resampled(density: DensityMap, pixel_size_angstrom: float, box_px: int) -> DensityMap:
    """The map at another pixel size and box about the same centre.

    Raises
    ------
    ValueError
        The pixel size or box is not positive, or the box is odd.
    """
    if box_px < 2 or box_px % 2:
        raise ValueError(f"an even box is needed, not {box_px} px")
    volume = resample_volume(density.volume, pixel_size_angstrom / density.pixel_size_angstrom, box_px)
    half = box_px // 2 * pixel_size_angstrom
    x, y, z = (centre - half for centre in density.centre_angstrom)
    return DensityMap(volume, pixel_size_angstrom, (x, y, z))


def clean_map(
    density: DensityMap,
    structure: Structure,
    *,
    resolution_angstrom: float,
    amplitudes: Literal["map", "model"] = "map",
) -> DensityMap:
    """Free a map of structural noise (carbon, ice, density without atoms) by its fitted atomic model.

    With `amplitudes="map"` the map itself is kept within a soft mask about the atoms. With "model" the atoms'
    potential takes its place, as in the method whose authors built the atoms by DeepTracer [2]_; each Fourier
    shell is given the power of the masked map, so that grey scale and fall-off are still the map's.

    Parameters
    ----------
    density
        From `read_map`, in the frame of the model.
    structure
        From `read_structure`, fitted into the map: it is placed by its coordinates, never moved.
    resolution_angstrom
        Of the map: what is finer is removed.

    Raises
    ------
    InputError
        Atoms lie outside of the map, or model and map do not correlate: the model was not fitted into this
        map, or the header's origin is wrong.
    """
    size, box = density.pixel_size_angstrom, density.box_px
    x, y, z = np.subtract(structure.centroid_angstrom, density.centre_angstrom).tolist()
    remedy = "Give a model that was fitted into this map, and check the origin in the map's header."
    try:
        atoms = potential_map(structure, box, size, 8 * size**2, offset_angstrom=(x, y, z))
    except ValueError as error:
        raise InputError(
            f"atoms of the model {structure.name} lie outside of the map: their centre is {x:.0f}, {y:.0f}, "
            f"{z:.0f} Å away from its, in a box of {box * size:.0f} Å.",
            remedy=remedy,
        ) from error
    atoms = low_pass_volume(atoms, resolution_angstrom, size)
    volume = low_pass_volume(density.volume, resolution_angstrom, size)
    mask = _mask(structure, (x, y, z), box, size)
    correlation = float(torch.corrcoef(torch.stack([atoms[mask > 0], volume[mask > 0]]))[0, 1])
    if not correlation > _SMALLEST_CORRELATION:
        raise InputError(
            f"the model {structure.name} and the map correlate by only {correlation:.2f}.", remedy=remedy
        )
    outside = volume[mask == 0]
    background = float(outside.median()) if len(outside) else 0.0
    kept = (volume - background) * mask
    if amplitudes == "model":
        kept = _with_power_of(atoms, kept)
    return replace(density, volume=kept)


def _mask(
    structure: Structure, offset: tuple[float, float, float], box_px: int, pixel_size_angstrom: float
) -> Tensor:
    """Soft mask about the atoms: the mean of sharp ones whose radii make a raised cosine."""
    side = box_px * pixel_size_angstrom
    centre = box_px // 2 * pixel_size_angstrom
    placed = structure.model.clone()
    for chain in placed:
        for residue in chain:
            for atom in residue:
                atom.pos = atom.pos + gemmi.Position(*(centre + part for part in offset))
    total = np.zeros((box_px,) * 3, dtype=np.float32)
    for step in range(_EDGE_STEPS):
        grid = gemmi.FloatGrid(box_px, box_px, box_px)
        grid.set_unit_cell(gemmi.UnitCell(side, side, side, 90, 90, 90))
        share = math.acos(1 - 2 * (step + 0.5) / _EDGE_STEPS) / math.pi
        grid.mask_points_in_constant_radius(placed, _MASK_ANGSTROM + _EDGE_ANGSTROM * share, 1.0)
        total += np.array(grid, dtype=np.float32)
    return torch.from_numpy(np.ascontiguousarray(total.transpose(2, 1, 0))) / _EDGE_STEPS


def _with_power_of(volume: Tensor, other: Tensor) -> Tensor:
    """`volume` with the power of `other` in each Fourier shell."""
    side = volume.shape[0]
    shell = torch.round(volume_frequency(volume.shape) * side).long().flatten()
    power = torch.zeros(2, int(shell.max()) + 1, dtype=torch.float64)
    transforms = [torch.fft.rfftn(one) for one in (volume, other)]
    for row, transform in zip(power, transforms, strict=True):
        row.index_add_(0, shell, transform.abs().square().flatten().double())
    gain = (power[1] / power[0].clamp_min(1e-30)).sqrt().float()
    gain[power[0] <= 1e-12 * power[0].max()] = 0.0  # beyond the low-pass filter
    scaled = transforms[0] * gain[shell].reshape(transforms[0].shape)
    result: Tensor = torch.fft.irfftn(scaled, s=volume.shape)
    return result
