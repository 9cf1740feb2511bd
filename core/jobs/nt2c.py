"""NT2C's chain: from structures and micrographs to a denoiser that has learnt the session's own noise.

References
----------
.. [1] Li et al. (2022) Bioinformatics 38, 2022-2029, doi:10.1093/bioinformatics/btac052.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..config.extract_noise import ExtractNoiseOptions
from ..config.nt2c import Nt2cConfig, SessionConfig
from ..config.training import PairsConfig, SimulationConfig, TrainingConfig
from ..errors import ConfigurationError, StarError
from ..imaging.ctf import read_ctf_table
from ..imaging.structure import read_structure
from ..inference.devices import LocalDevices
from ..io.files import digest_of, states_of, write_json, writing
from ..io.journal import RECORD_NAME, Undertaking
from ..io.micrographs import MicrographSet
from ..job_context import QUIET, JobContext
from ..models import MODELS
from ..models.weights import load_model
from ..noise.finders import finder_of
from ..noise.synthesis import load_noise_model
from ..report import PDF_NAME
from ..training import supervised, synthesis
from ..training.data import find_structures
from ..training.nt2c import (
    References,
    coarse_config,
    fine_config,
    patch_references,
    simulated_references,
    simulation_config,
    write_pairs,
)
from ..training.run import inputs_of
from ..training.session_patches import write_session_patches
from .extract_noise import run_extract_noise
from .folder import JobFolder
from .job import Plan

_CTF_NAME = "ctf.npy"
# The file that each stage ends with.
_STAGES = (_COARSE, _BLOCKS, _COMPARISON, _PAIRS, _FINE) = (
    "coarse/weights.safetensors",
    "blocks/noise.mrcs",
    "synthesiser/comparison.png",
    "pairs/noisy.mrcs",
    "fine/weights.safetensors",
)
_CLEAN = "pairs/clean.mrcs"
_FOLDERS = ("coarse", "blocks", "synthesiser", "pairs", "fine")
# In radii of the structure: below it `imaging.simulate.make_projection_bank` takes larger pixels.
_SMALLEST_BOX = 2.1
_DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")


class Nt2cPlan(Plan["Chain", Path]):
    """The chain, which comes to the fine denoiser's weights; see `Plan`.

    The folder gets `ctf.npy` (the session's CTF parameters), `cryohush.json`, and a folder for each stage,
    each of which is skipped when the journal says that it was done:

    - `coarse/weights.safetensors`: a denoiser trained on simulated particles with the session's parameters,
      unless the configuration names one;
    - `blocks/noise.mrcs`: places where the micrographs that it denoised show nothing, or which a segmentation
      takes for background;
    - `synthesiser/`: a model of their noise, and how close it is to blocks that it has not seen;
    - `pairs/noisy.mrcs`, `pairs/clean.mrcs`: clean projections with drawn, re-weighted noise;
    - `fine/weights.safetensors`: the coarse denoiser trained on with these pairs.

    With `session.whole`, `coarse/patches/` holds patches of simulated micrographs, which take the place of
    simulated particles in the coarse training and in the pairs.

    Differs from the paper [1]_: patches have the size of the particles' box; and, but for
    `nt2c_published`, the denoiser is this package's, particles are simulated one by one, and clean images
    keep (simulated) ice.
    """

    def __init__(self, config: Nt2cConfig, context: JobContext) -> None:
        self.config, self.context = config, context
        self.inputs = inputs_of(config)
        self._settings = {"version": __version__, "config": config.model_dump(mode="json")}
        self._states = states_of(self.inputs)
        fingerprint = {**self._settings, "inputs": digest_of(self._states)}
        files = [_CTF_NAME, RECORD_NAME, PDF_NAME]
        self.undertaking = Undertaking("train", fingerprint, dict.fromkeys(_STAGES, ""), files, _FOLDERS)

    def begin(self, folder: JobFolder) -> Chain:
        """See `Plan`."""
        return Chain(self.config, folder)

    def finish(self, folder: JobFolder, work: Chain | None) -> Path:
        """See `Plan`."""
        if work is not None:
            folder.refuse_changed(self._states, _FINE)
            record = {"version": __version__, "command": self.context.command, **self._settings}
            write_json(folder.path / RECORD_NAME, record)
            folder.journal.complete([_FINE, RECORD_NAME])
        self.context.log(f"wrote {folder.path / _FINE}")
        return folder.path / _FINE


class Chain:
    """The stages, each of which begins where the one before has ended; see `Work`."""

    def __init__(self, config: Nt2cConfig, folder: JobFolder) -> None:
        self._config, self._folder, self._output_dir = config, folder, folder.path
        self._context = QUIET

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Do what is missing, on the devices of the configuration.

        Raises
        ------
        InputError
            If the table of micrographs cannot be used, or too few blocks of noise were found.
        CryohushError
            As in `training.supervised.train`.
        Aborted
            If `context.should_stop` said so; the chain can be resumed.
        """
        config, output_dir, session = self._config, self._output_dir, self._config.session
        # the progress of single stages would go up and down
        self._context = context = replace(context, progress=QUIET.progress)
        ctf_path, pixel_size = output_dir / _CTF_NAME, _pixel_size(session)
        tables: tuple[Path, ...] = ()
        if session.imaging.no_ctf_probability < 1 or session.whole is not None:
            with writing(ctf_path) as part, part.open("wb") as file:
                np.save(file, session_ctf(session.micrographs, session.box_px, pixel_size))
            tables = (ctf_path,)
        simulation = simulation_config(session, tables, pixel_size)
        if session.whole is None:
            _check_sizes(simulation)
        if config.coarse_model is not None:
            coarse = config.coarse_model
            context.log(f"stage 1 of 5, coarse denoiser: {coarse}")
        else:
            coarse = str(output_dir / _COARSE)
            if self._is_to_do(1, "coarse denoiser") and config.coarse is not None:
                data: SimulationConfig | PairsConfig = simulation
                if session.whole is not None:
                    data = PairsConfig(**self._patches(simulation), pair_by_order=True)
                self._train(coarse_config(config, data, config.coarse), Path(coarse))
                self._finish(1)

        blocks = output_dir / _BLOCKS
        if self._is_to_do(2, "blocks of noise"):
            options = self._extraction(coarse)
            summary = run_extract_noise(session.micrographs, blocks.parent, options, context, earlier="anew")
            context.log(f"{summary.n_blocks} blocks. {summary.explanation}")
            self._finish(2)

        folder = output_dir / "synthesiser"
        kind = "gaussian_field" if config.synthesiser.kind == "gaussian" else "noise_generator"
        if self._is_to_do(3, "model of the noise"):
            synthesis.train(
                config.synthesiser,
                blocks,
                session.box_px,
                folder,
                dark_protein=config.extraction.protein != "white",
                resume=True,
                context=context,
            )
            self._finish(3)

        noisy, clean = output_dir / _PAIRS, output_dir / _CLEAN
        if self._is_to_do(4, "re-weighted pairs"):
            noise = load_noise_model(folder / f"{kind}.safetensors")
            write_pairs(config, self._references(simulation), noise, pixel_size, noisy.parent)
            self._finish(4, _CLEAN)

        if self._is_to_do(5, "fine denoiser"):
            self._train(fine_config(config, noisy, clean, load_model(coarse)), output_dir / _FINE)
            self._finish(5)

    def _is_to_do(self, number: int, what: str) -> bool:
        done = self._folder.journal.is_finished(_STAGES[number - 1])
        self._context.stop_if_asked(f"stopped before stage {number}; run again with --resume to go on")
        self._context.log(f"stage {number} of 5, {what}{': done before' if done else ''}")
        return not done

    def _finish(self, number: int, *others: str) -> None:
        end = _STAGES[number - 1]
        self._folder.journal.finish(end, [end, *others])

    def _train(self, config: TrainingConfig, weights: Path) -> None:
        context = self._context
        supervised.train(config, weights.parent, resume=True, context=context)

    def _references(self, simulation: SimulationConfig) -> References:
        """Clean images and their simulated noisy ones: those of the coarse training, if there was one."""
        if self._config.session.whole is not None:
            patches = self._patches(simulation)
            return patch_references(patches["noisy"], patches["target"])
        folder = "coarse" if self._config.coarse_model is None else "pairs"
        projections = self._output_dir / folder / "projections-train.safetensors"
        projections.parent.mkdir(exist_ok=True)
        return simulated_references(self._config, simulation, projections, self._context.log)

    def _patches(self, simulation: SimulationConfig) -> dict[str, Path]:
        """The stacks of patches of simulated micrographs, made unless they are there."""
        session = self._config.session
        assert session.whole is not None
        noisy, target = write_session_patches(
            session.whole,
            session,
            find_structures(simulation, held_out=False),
            read_ctf_table(simulation.ctf_tables[0]),
            simulation.pixel_size_angstrom[0],
            self._output_dir / "coarse/patches",
            seed=self._config.seed,
            context=self._context,
        )
        return {"noisy": noisy, "target": target}

    def _extraction(self, coarse: str) -> ExtractNoiseOptions:
        """How blocks are extracted: by the coarse denoiser and in boxes of the particles, if left open."""
        options = self._config.extraction
        if finder_of(options).networks is MODELS:  # denoises the micrographs
            options = options.model_copy(update={"model": coarse})
        if options.window_px is None and options.window_angstrom is None:
            options = options.model_copy(update={"window_px": self._config.session.box_px})
        return options


def session_ctf(micrographs: Path, box_px: int, pixel_size_angstrom: float) -> NDArray[np.float32]:
    """CTF parameters of a table of micrographs, as rows that `imaging.ctf.read_ctf_table` reads.

    Raises
    ------
    StarError
        The table has no defocus, or its optics lack the microscope's parameters.
    """
    images = MicrographSet.read(micrographs)
    phase = "rlnPhaseShift"
    columns = images.columns(number=(*_DEFOCUS, phase), optional=(phase,))
    rows: list[list[float]] = []
    for row, (group, line) in enumerate(zip(images.optics_group.tolist(), columns.lines, strict=True)):
        optics = images.optics[group]
        fixed = (optics.voltage_kv, optics.cs_mm, optics.amplitude_contrast)
        known = [value for value in fixed if value is not None]
        if len(known) < len(fixed):
            raise StarError(
                "the optics lack voltage, spherical aberration or amplitude contrast.",
                path=micrographs,
                line=line,
                remedy="Give the micrographs of a CTF estimation job.",
            )
        shift = np.deg2rad(columns.number[phase][row]) if phase in columns.number else 0.0
        defocus = [columns.number[label][row] for label in _DEFOCUS]
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
