"""NT2C's chain: from structures and micrographs to a denoiser that has learnt the session's own noise.

References
----------
.. [1] Li et al. (2022) Bioinformatics 38, 2022-2029, doi:10.1093/bioinformatics/btac052.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..config.nt2c import Nt2cConfig, SessionConfig
from ..config.training import SimulationConfig
from ..errors import Aborted, ConfigurationError, OutputError, StarError
from ..imaging.structure import read_structure
from ..io.files import write_text
from ..io.micrographs import MicrographSet
from ..io.star import read_tables
from ..job_context import JobContext
from ..models.weights import load_model
from ..noise.synthesis import load_noise_model
from ..training import supervised, synthesis
from ..training.data import find_structures
from ..training.nt2c import coarse_config, fine_config, simulation_config, write_pairs
from .extract_noise import extract_noise

_RECORD = "nt2c.json"
# In radii of the structure: below it `imaging.simulate.make_projection_bank` takes larger pixels.
_SMALLEST_BOX = 2.1
_DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")


def train(
    config: Nt2cConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    log: Callable[[str], None] = print,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Run the chain and return the path of the fine denoiser's weights.

    `output_dir` gets `nt2c.json` (the configuration), `ctf.npy` (the session's CTF parameters), and a folder
    for each stage, each of which is skipped when what it ends with is there:

    - `coarse/weights.safetensors`: a denoiser trained on simulated particles with the session's parameters,
      unless the configuration names one;
    - `blocks/noise.mrcs`: places where the micrographs that it denoised show nothing, or which a segmentation
      takes for background;
    - `synthesiser/`: a model of their noise, and how close it is to blocks that it has not seen;
    - `pairs/noisy.mrcs`, `pairs/clean.mrcs`: clean projections with drawn, re-weighted noise;
    - `fine/weights.safetensors`: the coarse denoiser trained on with these pairs.

    Differs from the paper [1]_: the denoiser is this package's, patches have the size of the particles' box,
    micrographs are not simulated whole, and clean images keep (simulated) ice unless `pairs.ice_is_noise`.

    Raises
    ------
    OutputError
        The directory holds a chain and `resume` is off, or one of another configuration.
    InputError
        The table of micrographs cannot be used, or too few blocks of noise were found.
    CryohushError
        As of `training.supervised.train`.
    Aborted
        `should_stop` said so; the chain can be resumed.
    """
    _open_record(config, output_dir, resume=resume)
    part = JobContext(log=log, should_stop=should_stop)
    session = config.session
    ctf_path, pixel_size = output_dir / "ctf.npy", _pixel_size(session)
    tables: tuple[Path, ...] = ()
    if session.imaging.no_ctf_probability < 1:
        np.save(ctf_path, session_ctf(session.micrographs, session.box_px, pixel_size))
        tables = (ctf_path,)

    def stage(number: int, what: str, end: Path) -> bool:
        if should_stop():
            raise Aborted(f"stopped before stage {number}; run again with --resume to go on")
        log(f"stage {number} of 5, {what}{': done before' if end.exists() else ''}")
        return not end.exists()

    simulation = simulation_config(session, tables, pixel_size)
    _check_sizes(simulation)
    projections = output_dir / "coarse/projections-train.safetensors"
    if config.coarse_model is not None:
        coarse, projections = config.coarse_model, output_dir / "pairs" / projections.name
        log(f"stage 1 of 5, coarse denoiser: {coarse}")
    else:
        coarse = str(output_dir / "coarse/weights.safetensors")
        if stage(1, "coarse denoiser", Path(coarse)) and config.coarse is not None:
            run = coarse_config(config, simulation, config.coarse)
            supervised.train(run, Path(coarse).parent, resume=True, context=part)

    blocks = output_dir / "blocks/noise.mrcs"
    options = config.extraction
    if options.method == "similarity":
        options = options.model_copy(update={"model": coarse})
    if options.window_px is None and options.window_angstrom is None:
        options = options.model_copy(update={"window_px": session.box_px})
    if stage(2, "blocks of noise", blocks):
        summary = extract_noise(
            session.micrographs,
            blocks.parent,
            options,
            resume=True,
            start_anew_on_mismatch=True,
            should_stop=should_stop,
            log=log,
        )
        log(f"{summary.n_blocks} blocks. {summary.explanation}")

    folder = output_dir / "synthesiser"
    model = folder / (
        "gaussian_field.safetensors"
        if config.synthesiser.kind == "gaussian"
        else "noise_generator.safetensors"
    )
    if stage(3, "model of the noise", folder / "comparison.png"):
        synthesis.train(
            config.synthesiser,
            blocks,
            session.box_px,
            folder,
            dark_protein=options.protein != "white",
            resume=True,
            context=part,
        )

    noisy, clean = output_dir / "pairs/noisy.mrcs", output_dir / "pairs/clean.mrcs"
    if stage(4, "re-weighted pairs", noisy):
        write_pairs(config, simulation, load_noise_model(model), projections, noisy.parent, log)

    fine = output_dir / "fine/weights.safetensors"
    if stage(5, "fine denoiser", fine):
        run = fine_config(config, noisy, clean, load_model(coarse))
        supervised.train(run, fine.parent, resume=True, context=part)
    return fine


def session_ctf(micrographs: Path, box_px: int, pixel_size_angstrom: float) -> NDArray[np.float32]:
    """CTF parameters of a table of micrographs, as rows that `imaging.ctf.read_ctf_table` reads.

    Raises
    ------
    StarError
        The table has no defocus, or its optics lack the microscope's parameters.
    """
    images = MicrographSet.read(micrographs)
    rows: list[list[float]] = []
    for table in read_tables(micrographs):
        if "rlnMicrographName" not in table.labels or table.name == "optics":
            continue
        columns = [table.column(label) for label in _DEFOCUS]
        phase = table.labels.index("rlnPhaseShift") if "rlnPhaseShift" in table.labels else None
        for line, _, tokens in table.rows():
            if not tokens:
                continue
            optics = images.optics[int(images.optics_group[len(rows)])]
            fixed = (optics.voltage_kv, optics.cs_mm, optics.amplitude_contrast)
            known = [value for value in fixed if value is not None]
            if len(known) < len(fixed):
                raise StarError(
                    "the optics lack voltage, spherical aberration or amplitude contrast.",
                    path=micrographs,
                    line=line,
                    remedy="Give the micrographs of a CTF estimation job.",
                )
            shift = 0.0 if phase is None else np.deg2rad(float(tokens[phase]))
            defocus = [float(tokens[column]) for column in columns]
            rows.append([box_px, pixel_size_angstrom, *defocus, *known, shift])
    return np.array(rows, dtype=np.float32)


def _pixel_size(session: SessionConfig) -> float:
    """
    Raises
    ------
    StarError
        It is not known, or not one for all micrographs.
    """
    images = MicrographSet.read(session.micrographs)
    sizes = {images.pixel_size_angstrom(stack) for stack in range(len(images.stacks))}
    size = sizes.pop()
    if size is None or sizes:
        raise StarError(
            "expected one pixel size for all micrographs.",
            path=session.micrographs,
            remedy="Give the micrographs of one session, in a table with their optics.",
        )
    return size


def _check_sizes(simulation: SimulationConfig) -> None:
    """
    Raises
    ------
    ConfigurationError
        A structure does not fit into the box: it would be simulated with larger pixels than the session's.
    """
    side_angstrom = simulation.box_px * simulation.pixel_size_angstrom[0]
    for held_out in (False, True) if simulation.held_out else (False,):
        for path in find_structures(simulation, held_out=held_out):
            structure = read_structure(path)
            if _SMALLEST_BOX * structure.radius_angstrom > side_angstrom:
                raise ConfigurationError(
                    f"session.box_px: {structure.name} is {2 * structure.radius_angstrom:.0f} Å across, the "
                    f"box {side_angstrom:.0f} Å. Give a larger box, or take {path} away."
                )


def _open_record(config: Nt2cConfig, output_dir: Path, *, resume: bool) -> None:
    path = output_dir / _RECORD
    text = json.dumps({"version": __version__, "config": config.model_dump(mode="json")}, indent=2)
    if path.exists():
        if not resume:
            raise OutputError(
                f"{output_dir} holds another chain. Go on with it (--resume), or choose another directory."
            )
        if path.read_text(encoding="utf-8") != text:
            raise OutputError(f"{path} belongs to another configuration: choose another --output.")
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
