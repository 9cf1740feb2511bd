"""Patches of whole micrographs that are simulated as a session would have recorded them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..config.micrographs import MicrographSettings
from ..config.nt2c import SessionConfig, WholeMicrographs
from ..errors import ConfigurationError
from ..imaging.ctf import CtfParameters
from ..io.mrc import StackWriter
from ..job_context import JobContext
from ..simulation.micrograph import Species, simulate_micrograph

_LABEL = "NT2C: patches of simulated micrographs"


def write_session_patches(
    whole: WholeMicrographs,
    session: SessionConfig,
    structures: list[Path],
    optics: CtfParameters,
    pixel_size_angstrom: float,
    output_dir: Path,
    *,
    seed: int,
    context: JobContext,
) -> tuple[Path, Path]:
    """Return `noisy.mrcs` and `clean.mrcs`, protein white, row by row of one patch; kept if both are there.

    A micrograph is cut into patches side by side, from its corner.

    Parameters
    ----------
    structures
        One after the other, each micrograph shows one.
    optics
        Of the session's micrographs, one row each. After each structure in turn, the next row.
    seed
        It fixes everything about them.

    Raises
    ------
    ConfigurationError
        Micrographs smaller than a patch, or of a phase plate, which are not simulated whole.
    Aborted
        `context.should_stop` said so; the next call begins anew.
    """
    noisy_path, clean_path = output_dir / "noisy.mrcs", output_dir / "clean.mrcs"
    if noisy_path.exists() and clean_path.exists():
        return noisy_path, clean_path
    box = session.box_px
    per_micrograph = (whole.settings.shape_px[0] // box) * (whole.settings.shape_px[1] // box)
    if not per_micrograph:
        raise ConfigurationError(
            f"session.whole.settings.shape_px: {whole.settings.shape_px} holds no patch of session.box_px, "
            f"{box}."
        )
    if optics.phase_shift_degrees.any():
        raise ConfigurationError(
            "session.whole: micrographs of a phase plate are not simulated whole. Set it to null."
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    species = [Species.from_structure(path, pixel_size_angstrom) for path in structures]
    shape = (whole.count * per_micrograph, box, box)
    with (
        StackWriter(clean_path, shape, pixel_size_angstrom=pixel_size_angstrom, label=_LABEL) as clean_stack,
        StackWriter(noisy_path, shape, pixel_size_angstrom=pixel_size_angstrom, label=_LABEL) as noisy_stack,
    ):
        for number in range(whole.count):
            context.stop_if_asked("stopped while micrographs were simulated; --resume goes on")
            turn, kind = divmod(number, len(species))
            row = optics[torch.tensor([turn % len(optics)])]
            settings = session_settings(whole, session, row, pixel_size_angstrom)
            made = simulate_micrograph([species[kind]], settings, seed, number)
            noisy_stack.write(patches(made.image, box).numpy())
            clean_stack.write(patches(made.clean, box).numpy())
            context.log(f"{species[kind].name}: {number + 1} of {whole.count} simulated micrographs")
    return noisy_path, clean_path


def session_settings(
    whole: WholeMicrographs, session: SessionConfig, optics: CtfParameters, pixel_size_angstrom: float
) -> MicrographSettings:
    """What is drawn for a micrograph of this CTF, whose defocus varies as `session.imaging` says."""
    u, v = float(optics.defocus_u_angstrom), float(optics.defocus_v_angstrom)
    low, high = (scale * (u + v) / 2 for scale in session.imaging.defocus_scale)
    return whole.settings.model_copy(
        update={
            "pixel_size_angstrom": pixel_size_angstrom,
            "voltage_kv": float(optics.voltage_kv),
            "cs_mm": float(optics.cs_mm),
            "amplitude_contrast": float(optics.amplitude_contrast),
            "defocus_angstrom": (low, high),
            "astigmatism_angstrom": (abs(u - v), abs(u - v)),
        }
    )


def patches(image: Tensor, side_px: int) -> Tensor:
    """`(n, side, side)` of `(y, x)`, row by row; what is left at the far edges is not used."""
    tiles = image.unfold(0, side_px, side_px).unfold(1, side_px, side_px)
    return tiles.reshape(-1, side_px, side_px)
