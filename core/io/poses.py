"""Poses and CTF parameters of a particle set, row by row, from a STAR or `.cs` table, in RELION's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ..errors import CsError, InputError, StarError
from .cs import CsTable
from .optics import OpticsGroup
from .particles import ParticleSet
from .star import read_tables, unquote

PREMULTIPLIED = "rlnCtfDataAreCtfPremultiplied"
CHANGED_CTF = (PREMULTIPLIED, "rlnCtfDataArePhaseFlipped")
"""Columns that say that images are not as the microscope gave them."""
_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
_ORIGINS_PX = ("rlnOriginX", "rlnOriginY")  # before RELION 3.1
_DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
_OPTICS = {
    "rlnVoltage": "voltage_kv",
    "rlnSphericalAberration": "cs_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
}


@dataclass(frozen=True, eq=False)
class PoseTable:
    """Where each particle looks and lies.

    Attributes
    ----------
    rotations
        `(n, 3, 3)` float64: takes coordinates (x, y, z) of the image's frame to the volume's.
    shifts_angstrom
        `(n, 2)` float64 (y, x): from pixel `box // 2` of the image to the particle's centre.
    """

    rotations: NDArray[np.float64]
    shifts_angstrom: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CtfTable:
    """CTF parameters, each `(n,)` float64; underfocus positive, angles in degrees as in RELION."""

    defocus_u_angstrom: NDArray[np.float64]
    defocus_v_angstrom: NDArray[np.float64]
    angle_degrees: NDArray[np.float64]
    voltage_kv: NDArray[np.float64]
    cs_mm: NDArray[np.float64]
    amplitude_contrast: NDArray[np.float64]
    phase_shift_degrees: NDArray[np.float64]


def read_poses(particles: ParticleSet) -> PoseTable:
    """Read the orientations and shifts of a particle set.

    RELION's angles are its ZYZ Euler angles, its origin offsets point from the particle's centre to the
    image's. cryoSPARC's `alignments3D/pose` is a rotation vector whose right-hand rotation takes the image's
    frame to the volume's, and `alignments3D/shift` are RELION's origin offsets in pixels of
    `alignments3D/psize_A`.

    Raises
    ------
    StarError, CsError
        If the table has no poses, a value is no number, or the pixel size of shifts in pixels is unknown.
    InputError
        If the particles have no table.
    """
    if _source(particles).is_cs:
        return _of_rows(_poses_of_cs(CsTable(particles.source, particles.passthrough)), particles.kept)
    shifts = (*_ORIGINS, *_ORIGINS_PX)
    columns = particles.columns(number=(*_ANGLES, *shifts), optional=shifts).number
    angles = np.stack([columns[label] for label in _ANGLES], axis=1)
    rotations = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix()
    angstrom = set(_ORIGINS) <= columns.keys()
    x, y = (
        np.array(columns[label]) if label in columns else np.zeros(len(particles))
        for label in (_ORIGINS if angstrom else _ORIGINS_PX)
    )
    if not angstrom and (x.any() or y.any()):
        pixel_size = _per_row(particles, "pixel_size_angstrom", "pixel size")
        x, y = x * pixel_size, y * pixel_size
    return PoseTable(rotations, np.stack([-y, -x], axis=1))


def read_ctf(particles: ParticleSet) -> CtfTable:
    """Read the CTF parameters of a particle set, from its rows and optics groups.

    Raises
    ------
    StarError, CsError
        If the table has no CTF parameters, or a value is no number or impossible.
    InputError
        If the particles have no table.
    """
    if _source(particles).is_cs:
        table = CsTable(particles.source, particles.passthrough)
        ctf = _of_rows(_ctf_of_cs(table), particles.kept)
    else:
        more = ("rlnPhaseShift", *_OPTICS)
        found = particles.columns(number=(*_DEFOCUS, *more), optional=more).number
        columns = {label: np.array(values) for label, values in found.items()}
        rest = {
            name: columns[label] if label in columns else _per_row(particles, name, f"_{label}")
            for label, name in _OPTICS.items()
        }
        u, v, angle = (columns[label] for label in _DEFOCUS)
        phase = columns.get("rlnPhaseShift", np.zeros(len(particles)))
        ctf = CtfTable(u, v, angle, **rest, phase_shift_degrees=phase)
    _check_possible(particles, ctf)
    return ctf


_Rows = TypeVar("_Rows", PoseTable, CtfTable)


def changed_ctf(particles: ParticleSet, columns: Sequence[str] = CHANGED_CTF) -> tuple[str, int] | None:
    """Return which column says that the CTF of images was changed, and in which line; None if none does."""
    if particles.is_cs or not particles.has_table:
        return None
    for block in read_tables(particles.source):
        places = {block.labels.index(label): label for label in columns if label in block.labels}
        for line, _, tokens in block.rows() if places else ():
            for place, label in places.items():
                if tokens and unquote(tokens[place]) != "0":
                    return label, line
    return None


def _source(particles: ParticleSet) -> ParticleSet:
    if not particles.has_table:
        raise InputError(
            "a bare stack has no poses and no CTF.", path=particles.source, remedy="Give a table."
        )
    return particles


def _of_rows(table: _Rows, kept: NDArray[np.bool_] | None) -> _Rows:
    """The rows of a whole table that are in the set."""
    if kept is None:
        return table
    return replace(table, **{entry.name: getattr(table, entry.name)[kept] for entry in fields(table)})


def _per_row(particles: ParticleSet, attribute: str, what: str) -> NDArray[np.float64]:
    """A value of the optics groups for each row."""

    def of(group: OpticsGroup) -> float:
        value = getattr(group, attribute)
        if value is None:
            raise StarError(f"optics group {group.number} has no {what}.", path=particles.source)
        return float(value)

    values = {number: of(particles.optics[number]) for number in np.unique(particles.optics_group).tolist()}
    return np.array([values[number] for number in particles.optics_group.tolist()], dtype=np.float64)


def _cs_column(table: CsTable, name: str, shape: tuple[int, ...] = ()) -> NDArray[np.float64]:
    if name not in table.fields:
        raise CsError(f"no field {name}.", path=table.path, remedy="Give the passthrough file that holds it.")
    values: NDArray[Any] = table.column(name)
    if values.dtype.kind not in "fiu" or values.shape[1:] != shape:
        raise CsError(f"the field {name} has the unexpected type {table.fields[name]}.", path=table.path)
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(1)
    if bad.any():
        raise CsError(f"row {int(bad.argmax()) + 1}: {name} is not a number.", path=table.path)
    return values.astype(np.float64)


def _poses_of_cs(table: CsTable) -> PoseTable:
    vectors = _cs_column(table, "alignments3D/pose", (3,))
    pixel_size = _cs_column(table, "alignments3D/psize_A")
    shift = _cs_column(table, "alignments3D/shift", (2,)) * pixel_size[:, None]
    return PoseTable(Rotation.from_rotvec(vectors).as_matrix(), -shift[:, ::-1])


def _ctf_of_cs(table: CsTable) -> CtfTable:
    names = ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm", "amp_contrast", "phase_shift_rad")
    u, v, angle, kv, cs, contrast, phase = (_cs_column(table, f"ctf/{name}") for name in names)
    return CtfTable(u, v, np.rad2deg(angle), kv, cs, contrast, np.rad2deg(phase))


def _check_possible(particles: ParticleSet, ctf: CtfTable) -> None:
    if (found := why_impossible(ctf)) is not None:
        row, problem = found
        raise (CsError if particles.is_cs else StarError)(
            f"row {row + 1}: {problem}.", path=particles.source, line=int(particles.line[row]) or None
        )


def why_impossible(ctf: Any) -> tuple[int, str] | None:
    """Return the 0-based image whose CTF cannot be, and why; None if all can.

    `ctf` has the attributes of `CtfTable` up to `amplitude_contrast`, arrays or tensors.
    """
    names = ("voltage_kv", "cs_mm", "amplitude_contrast", "defocus_u_angstrom", "defocus_v_angstrom")
    kv, cs, contrast, u, v = (np.asarray(getattr(ctf, name), dtype=np.float64) for name in names)
    defocus = np.abs(u) + np.abs(v)
    for values, is_possible, expected in (
        (kv, (kv >= 10) & (kv <= 3000), "an acceleration voltage in kV"),
        (cs, (cs >= 0) & (cs <= 100), "a spherical aberration in mm"),
        (contrast, (contrast >= 0) & (contrast <= 1), "an amplitude contrast from 0 to 1"),
        (u, defocus <= 4e5, "a defocus in Å below 20 µm"),
        # none at all is possible, in simulated images
        (u, (defocus == 0) | (defocus >= 40), "a defocus in Å, not in µm"),
    ):
        if not is_possible.all():
            row = int(is_possible.argmin())
            return row, f"expected {expected}, found {values[row]:g}"
    return None
