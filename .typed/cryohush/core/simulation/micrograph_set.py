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

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray

from ..config.micrographs import MicrographsConfig
from ..errors import Aborted, ConfigurationError, OutputError
from ..io.files import writing, writing_failed
from ..io.star import write_tables
from .micrograph import SimulatedMicrograph, Species, simulate_micrograph

TABLE_NAME = "micrographs.star"
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


def simulate_micrographs(
    config: MicrographsConfig,
    output_dir: Path,
    *,
    log: Callable[[str], None] = print,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Write a set of micrographs with their truth, and return the path of its table.

    Every micrograph depends on the seed and its number alone.

    Raises
    ------
    ConfigurationError
        A particle is larger than the micrographs.
    InputError
        A structure cannot be read.
    OutputError
        The folder holds a set already, or cannot be written.
    Aborted
        `should_stop` said so.
    """
    table = output_dir / TABLE_NAME
    if table.exists():
        raise OutputError(f"{table}: is there already. Choose another output directory.")
    settings = config.settings
    species = []
    for entry in config.species:
        kind = Species.from_structure(
            entry.structure, settings.pixel_size_angstrom, entry.share, assembly=entry.assembly
        )
        if kind.projector.box_px > min(settings.shape_px):
            raise ConfigurationError(
                f"settings.shape_px: {kind.name} needs {kind.projector.box_px} px, more than the "
                f"{min(settings.shape_px)} px of the micrographs."
            )
        log(f"{kind.name}: {2 * kind.radius_px * settings.pixel_size_angstrom:.0f} Å")
        species.append(kind)
    try:
        for name in ("micrographs", "clean", "labels", "coordinates"):
            (output_dir / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(output_dir, error) from error
    rows: list[tuple[str | float | int, ...]] = []
    n_particles = 0
    for index in range(config.micrographs):
        if should_stop():
            raise Aborted(f"Stopped after {index} of {config.micrographs} micrographs.")
        simulated = simulate_micrograph(species, settings, config.seed, index)
        stem = f"mic_{index + 1:05d}"
        _write(output_dir, stem, simulated, settings.pixel_size_angstrom)
        n_particles += len(simulated.particles)
        rows.append((f"micrographs/{stem}.mrc", 1, *_defocus(simulated)))
        progress(index + 1, config.micrographs)
    pairs = [(row[0], f"coordinates/{Path(str(row[0])).stem}_manualpick.star") for row in rows]
    labels = ("rlnMicrographName", "rlnMicrographCoordinates")
    write_tables(output_dir / "coordinates.star", [("coordinate_files", labels, pairs)])
    pixel_size = settings.pixel_size_angstrom
    microscope = (settings.voltage_kv, settings.cs_mm, settings.amplitude_contrast)
    optics = [("opticsGroup1", 1, pixel_size, pixel_size, *microscope)]
    write_tables(table, [("optics", _OPTICS_LABELS, optics), ("micrographs", _MICROGRAPH_LABELS, rows)])
    log(f"{config.micrographs} micrographs with {n_particles} particles")
    return table


def _defocus(simulated: SimulatedMicrograph) -> tuple[float, float, float]:
    optics = simulated.optics
    return (
        float(optics.defocus_u_angstrom),
        float(optics.defocus_v_angstrom),
        float(optics.angle_degrees),
    )


def _write(folder: Path, stem: str, simulated: SimulatedMicrograph, pixel_size_angstrom: float) -> None:
    particles = simulated.particles[~simulated.particles.hidden]
    u, v, angle = _defocus(simulated)
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
        _write_mrc(folder / name / f"{stem}.mrc", values, pixel_size_angstrom)


def _write_mrc(path: Path, values: NDArray[Any], pixel_size_angstrom: float) -> None:
    with writing(path, values.nbytes) as part, mrcfile.new(part, values, overwrite=True) as file:
        file.voxel_size = pixel_size_angstrom
