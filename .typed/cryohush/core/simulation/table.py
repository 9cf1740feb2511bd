"""The STAR table of a simulated stack, as RELION 3.1 and later read it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..config.simulate import CtfConfig, Output, ParticlesConfig
from ..io.star import write_tables
from .draws import ParticleDraws

_OPTICS_LABELS = (
    "rlnOpticsGroup",
    "rlnOpticsGroupName",
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnImageDimensionality",
)


def write_particle_table(
    output_dir: Path, output: Output, config: ParticlesConfig, draws: ParticleDraws, names: Sequence[str]
) -> Path:
    """Write `<output>.star` for `<output>.mrcs`, and return its path.

    Image names are relative to the working directory (RELION's project) where the output lies below it, and
    absolute elsewhere. RELION keeps the columns of cryohush's own, with a warning. The table of the `clean`
    images has no defocus, because they have no CTF.

    Parameters
    ----------
    names
        Of the classes.
    """
    n = len(draws)
    stack = _as_named(output_dir / f"{output}.mrcs")
    groups, optics_rows = _optics_groups(config, draws)
    origin = (-config.pixel_size_angstrom * draws.shift_px).tolist()
    kinds = [component.kind for component in config.noise.components]
    columns: dict[str, list[Any]] = {
        "rlnImageName": [f"{number:06d}@{stack}" for number in range(1, n + 1)],
        "rlnMicrographName": _micrograph_names(n, config.particles_per_micrograph),
        "rlnOpticsGroup": groups,
    }
    for name, k in (("rlnAngleRot", 0), ("rlnAngleTilt", 1), ("rlnAnglePsi", 2)):
        columns[name] = draws.rot_tilt_psi_degrees[:, k].tolist()
    columns["rlnOriginXAngst"] = [x for _, x in origin]
    columns["rlnOriginYAngst"] = [y for y, _ in origin]
    if draws.optics is not None and output != "clean":
        columns["rlnDefocusU"] = draws.optics.defocus_u_angstrom.tolist()
        columns["rlnDefocusV"] = draws.optics.defocus_v_angstrom.tolist()
        columns["rlnDefocusAngle"] = draws.optics.angle_degrees.tolist()
        columns["rlnPhaseShift"] = draws.optics.phase_shift_degrees.tolist()
    columns["rlnClassNumber"] = (draws.structure + 1).tolist()
    if config.half_sets:
        columns["rlnRandomSubset"] = draws.half_set.tolist()
    columns["rlnCryohushStructure"] = [names[k] for k in draws.structure.tolist()]
    columns["rlnCryohushNoise"] = ["+".join(kinds) if k < 0 else kinds[k] for k in draws.component.tolist()]
    columns["rlnCryohushSnr"] = draws.snr.tolist()
    columns["rlnCryohushContaminated"] = draws.contaminated.int().tolist()
    path = output_dir / f"{output}.star"
    rows = zip(*columns.values(), strict=True)
    write_tables(path, [("optics", _OPTICS_LABELS, optics_rows), ("particles", list(columns), rows)])
    return path


def _micrograph_names(n: int, n_per_micrograph: int) -> list[str]:
    """Dealt out in turn: neighbours in the stack are of one class, particles of one micrograph are not."""
    n_micrographs = -(-n // n_per_micrograph)
    return [f"simulated_{number % n_micrographs + 1:06d}.mrc" for number in range(n)]


def _optics_groups(config: ParticlesConfig, draws: ParticleDraws) -> tuple[list[int], list[tuple[Any, ...]]]:
    """The group of each image, and the rows of `data_optics`: what differs in voltage, Cs or contrast."""
    if draws.optics is None:
        defaults = CtfConfig()
        values = [(defaults.voltage_kv, defaults.cs_mm, defaults.amplitude_contrast)] * len(draws)
    else:
        optics = draws.optics
        microscope = torch.stack([optics.voltage_kv, optics.cs_mm, optics.amplitude_contrast], 1)
        values = [(kv, cs, contrast) for kv, cs, contrast in microscope.tolist()]
    distinct = {value: number for number, value in enumerate(dict.fromkeys(values), start=1)}
    rows = [
        (number, f"opticsGroup{number}", *value, config.pixel_size_angstrom, config.box_px, 2)
        for value, number in distinct.items()
    ]
    return [distinct[value] for value in values], rows


def _as_named(path: Path) -> str:
    """Relative to the working directory if it lies below (RELION's project), else absolute."""
    try:
        return path.absolute().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.absolute().as_posix()
