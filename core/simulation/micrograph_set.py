"""Simulated micrographs as files that RELION and cryoSPARC import, with their truth beside them.

::

    micrographs.star                    RELION 3.1: optics, and each micrograph's defocus
    coordinates.star                    which coordinate file belongs to which micrograph (RELION 4 and later)
    micrographs/mic_00001.mrc           protein dark, as in real micrographs
    clean/mic_00001.mrc                 the same without counting noise, on the same grey scale
    labels/mic_00001.mrc                mode 0: 0 background, 1 contamination, 2 particle
    coordinates/mic_00001_manualpick.star
                                        centres of the particles that no contamination hides, their class
                                        (1 is the first species), Euler angles and defocus

Names in the tables are relative to the folder. `micrographs.star` comes last: with it the set is complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..config.micrographs import MicrographSettings
from ..io.mrc import write_mrc
from ..io.star import write_tables
from .micrograph import SimulatedMicrograph

TABLE_NAME, COORDINATES_TABLE_NAME = "micrographs.star", "coordinates.star"
_OPTICS_LABELS = (
    "rlnOpticsGroupName",
    "rlnOpticsGroup",
    "rlnMicrographOriginalPixelSize",
    "rlnMicrographPixelSize",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
)
_MICROGRAPH_LABELS = (
    "rlnMicrographName",
    "rlnOpticsGroup",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
)
_COORDINATE_LABELS = (
    "rlnCoordinateX",
    "rlnCoordinateY",
    "rlnClassNumber",
    "rlnAngleRot",
    "rlnAngleTilt",
    "rlnAnglePsi",
    "rlnDefocusU",
    "rlnDefocusV",
    "rlnDefocusAngle",
)


def stem_of(index: int) -> str:
    """The name of a micrograph, by its 0-based number, without folder and suffix."""
    return f"mic_{index + 1:05d}"


def file_names(index: int) -> list[str]:
    """The files of a micrograph below the folder, itself first."""
    stem = stem_of(index)
    images = [f"{name}/{stem}.mrc" for name in ("micrographs", "clean", "labels")]
    return [*images, f"coordinates/{stem}_manualpick.star"]


def write_set_tables(
    folder: Path, settings: MicrographSettings, defocus: Sequence[tuple[float, float, float]]
) -> None:
    """Write the tables of a set whose micrographs have this defocus (u, v in Å, angle in degrees).

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    names = [file_names(index) for index in range(len(defocus))]
    pairs = [(of_one[0], of_one[-1]) for of_one in names]
    labels = ("rlnMicrographName", "rlnMicrographCoordinates")
    write_tables(folder / COORDINATES_TABLE_NAME, [("coordinate_files", labels, pairs)])
    pixel_size = settings.pixel_size_angstrom
    microscope = (settings.voltage_kv, settings.cs_mm, settings.amplitude_contrast)
    optics = [("opticsGroup1", 1, pixel_size, pixel_size, *microscope)]
    rows = [(of_one[0], 1, *values) for of_one, values in zip(names, defocus, strict=True)]
    write_tables(
        folder / TABLE_NAME,
        [("optics", _OPTICS_LABELS, optics), ("micrographs", _MICROGRAPH_LABELS, rows)],
    )


def defocus_of(simulated: SimulatedMicrograph) -> tuple[float, float, float]:
    """Defocus u and v in Å, and the angle of the astigmatism in degrees."""
    optics = simulated.optics
    return (
        float(optics.defocus_u_angstrom),
        float(optics.defocus_v_angstrom),
        float(optics.angle_degrees),
    )


def write_micrograph(
    folder: Path, index: int, simulated: SimulatedMicrograph, pixel_size_angstrom: float
) -> None:
    """Write the files of a micrograph; their folders must be there.

    Raises
    ------
    OutputError
        If one cannot be written.
    """
    stem = stem_of(index)
    particles = simulated.particles[~simulated.particles.hidden]
    u, v, angle = defocus_of(simulated)
    rows = [
        (x, y, int(kind) + 1, *euler, u + offset, v + offset, angle)
        for x, y, kind, euler, offset in zip(
            particles.x_px.tolist(),
            particles.y_px.tolist(),
            particles.species,
            particles.euler_degrees.tolist(),
            particles.defocus_offset_angstrom.tolist(),
            strict=True,
        )
    ]
    write_tables(folder / "coordinates" / f"{stem}_manualpick.star", [("", _COORDINATE_LABELS, rows)])
    for name, values in (
        ("labels", simulated.labels.numpy().astype(np.int8)),
        ("clean", -simulated.clean.numpy()),
        ("micrographs", -simulated.image.numpy()),
    ):
        write_mrc(folder / name / f"{stem}.mrc", values, pixel_size_angstrom)
