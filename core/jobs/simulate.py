"""A simulation of particles or micrographs: from a configuration to images, STAR tables and a record."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from ... import __version__
from ..config.micrographs import MicrographsConfig
from ..config.simulate import ParticlesConfig
from ..errors import ConfigurationError
from ..inference.devices import resolve_devices
from ..io.files import make_folder, sha256_of, write_json
from ..io.journal import RECORD_NAME, Undertaking
from ..io.mrc import WriterState
from ..job_context import QUIET, JobContext
from ..report import PNG_NAME
from ..report.figures import Kind
from ..report.simulation import draw_simulation
from ..simulation.classes import read_classes
from ..simulation.draws import draw_particles
from ..simulation.micrograph import Species, simulate_micrograph
from ..simulation.micrograph_set import (
    COORDINATES_TABLE_NAME,
    TABLE_NAME,
    defocus_of,
    file_names,
    write_micrograph,
    write_set_tables,
)
from ..simulation.particle_images import ParticleImages
from ..simulation.table import write_particle_table
from .folder import Earlier, JobFolder
from .particle_stream import ParticleStream, check_room, stack_name, volume_name


@dataclass(frozen=True)
class SimulationSummary:
    """What a run wrote.

    Attributes
    ----------
    tables
        STAR files: one for each output, or that of the micrographs.
    record
        `cryohush.json`.
    n_images
        Of each stack, or of micrographs.
    seconds
        `total`, and of particles `volumes`, `forming` and `writing`.
    images_per_second
        Images that this process made, each in all outputs, per second of forming and writing.
    was_complete
        Whether nothing was left to do, and nothing was written.
    """

    tables: list[Path]
    record: Path
    n_images: int
    seconds: dict[str, float]
    images_per_second: float
    was_complete: bool = False


def simulate(
    config: ParticlesConfig | MicrographsConfig,
    output_dir: Path,
    context: JobContext = QUIET,
    *,
    device: str = "auto",
    earlier: Earlier = "refuse",
) -> SimulationSummary:
    """Simulate what the configuration is of, tell of it in the log, and draw some of it as `montage.png`.

    Raises
    ------
    CryohushError
        See `simulate_particles` and `simulate_micrographs`.
    """
    if isinstance(config, MicrographsConfig):
        if device not in ("auto", "cpu"):
            raise ConfigurationError(f"device {device}: micrographs are simulated on the CPU.")
        summary = simulate_micrographs(config, output_dir, context, earlier=earlier)
    else:
        on = resolve_devices(device)[0]
        context.log(f"device {on}")
        summary = simulate_particles(config, output_dir, context, device=on, earlier=earlier)
        context.log(
            f"{summary.n_images} images in {summary.seconds['total']:.1f} s; without the time for volumes, "
            f"{summary.images_per_second:.0f} per second"
        )
    for path in (*summary.tables, summary.record):
        context.log(f"wrote {path}")
    # a run that was killed while it drew has all but this
    if not summary.was_complete or not (output_dir / PNG_NAME).exists():
        context.log(f"wrote {_draw(config, output_dir)}")
    if isinstance(config, ParticlesConfig) and "ctf_only" in config.outputs:
        context.log("denoised images keep their CTF: compare them with ctf_only.star")
    return summary


def _draw(config: ParticlesConfig | MicrographsConfig, output_dir: Path) -> Path:
    kind: Kind
    if isinstance(config, MicrographsConfig):
        names = dict(zip(("noisy", "clean", "labels"), file_names(0), strict=False))
        pixel_size, kind = config.settings.pixel_size_angstrom, "micrographs"
    else:
        names = {output.replace("ctf_only", "CTF only"): stack_name(output) for output in config.outputs}
        pixel_size, kind = config.pixel_size_angstrom, "particles"
    files = {label: output_dir / name for label, name in names.items()}
    return draw_simulation(output_dir, files, pixel_size, kind)


def simulate_particles(
    config: ParticlesConfig,
    output_dir: Path,
    context: JobContext = QUIET,
    *,
    device: torch.device,
    earlier: Earlier = "refuse",
) -> SimulationSummary:
    """Simulate a set of particles.

    `output_dir` gets, for each output (`noisy`, `ctf_only`, `clean`), a stack and a STAR table for RELION
    3.1 and later, of which row i belongs to image i; `volume_001.mrc` and so on, the volume of each class;
    and `cryohush.json`. On one kind of device, the same configuration gives the same bytes, whether or not
    the run was interrupted.

    Raises
    ------
    InputError
        A structure, table or stack cannot be read or used.
    ConfigurationError
        A structure is larger than the box, a CTF finer than its pixels, a ratio that cannot be had.
    OutputError
        The directory holds another run, or the disk is full or too small.
    Aborted
        `context.should_stop` said so; the run can be resumed.
    """
    started, begin = time.time(), time.monotonic()
    classes = read_classes(config)
    draws = draw_particles(config, [one.share for one in classes])
    images = ParticleImages(config, draws, device)
    files = _input_files(config)
    inputs = {str(path): sha256_of(path) for path in files}
    volumes = [volume_name(number) for number in range(len(classes))]
    tables = [f"{output}.star" for output in config.outputs]
    stacks = [stack_name(output) for output in config.outputs]
    undertaking = _undertaking(
        config, inputs, stacks, [*tables, *volumes, RECORD_NAME, PNG_NAME], device=device.type
    )
    with JobFolder(output_dir, undertaking, earlier, inputs=files, log=context.log) as folder:
        if folder.journal.is_complete:
            seconds = {"total": time.monotonic() - begin}
            return _summary(output_dir, tables, config.n_images, seconds, 0.0, was_complete=True)
        check_room(config, folder)
        stream = ParticleStream(config, classes, draws, images, device, folder)
        stream.run(context)
        for output in config.outputs:
            write_particle_table(output_dir, output, config, draws, [one.name for one in classes])
        seconds = {"total": time.monotonic() - begin, **stream.seconds}
        rate = (config.n_images - stream.first) / max(seconds["forming"] + seconds["writing"], 1e-9)
        counts = torch.bincount(draws.structure, minlength=len(classes)).tolist()
        record = {
            **_record(config, inputs, context, started, seconds),
            "seed": config.seed,
            "device": str(device),
            "images_per_second": round(rate, 1),
            "images": config.n_images,
            "resumed_images": stream.first,
            "contaminated_images": int(draws.contaminated.sum()),
            "classes": [
                {"number": k + 1, "name": one.name, "images": counts[k], "volume": volume_name(k)}
                for k, one in enumerate(classes)
            ],
            "tables": tables,
        }
        write_json(output_dir / RECORD_NAME, record)
        folder.journal.complete([*stacks, *tables, *volumes, RECORD_NAME])
    return _summary(output_dir, tables, config.n_images, seconds, rate)


def simulate_micrographs(
    config: MicrographsConfig,
    output_dir: Path,
    context: JobContext = QUIET,
    *,
    earlier: Earlier = "refuse",
) -> SimulationSummary:
    """Simulate a set of micrographs with their truth; the files are those of `simulation.micrograph_set`.

    Every micrograph depends on the seed and its number alone.

    Raises
    ------
    ConfigurationError
        A particle is larger than the micrographs.
    InputError
        A structure cannot be read.
    OutputError
        The folder holds another run, or cannot be written.
    Aborted
        `context.should_stop` said so; the run can be resumed.
    """
    started, begin = time.time(), time.monotonic()
    settings = config.settings
    species = _read_species(config, context)
    structures = list(dict.fromkeys(entry.structure for entry in config.species))
    inputs = {str(path): sha256_of(path) for path in structures}
    names = {index: file_names(index) for index in range(config.micrographs)}
    made = [name for of_one in names.values() for name in of_one]
    results = [COORDINATES_TABLE_NAME, TABLE_NAME, RECORD_NAME]
    undertaking = _undertaking(config, inputs, made, [*results, PNG_NAME])
    with JobFolder(output_dir, undertaking, earlier, inputs=structures, log=context.log) as folder:
        journal, n = folder.journal, config.micrographs
        if journal.is_complete:
            seconds = {"total": time.monotonic() - begin}
            return _summary(output_dir, [TABLE_NAME], n, seconds, 0.0, was_complete=True)
        waiting = [index for index in names if not journal.is_finished(names[index][0])]
        n_resumed = n - len(waiting)
        context.progress(n_resumed, n)
        for done, index in enumerate(waiting, n_resumed):
            context.stop_if_asked(
                f"Stopped after {done} of {n} micrographs. Run again with --resume to go on."
            )
            simulated = simulate_micrograph(species, settings, config.seed, index)
            for name in names[index]:
                make_folder((output_dir / name).parent)
            write_micrograph(output_dir, index, simulated, settings.pixel_size_angstrom)
            facts = {"defocus": defocus_of(simulated), "particles": len(simulated.particles)}
            journal.record(names[index][0], WriterState(), facts)
            journal.finish(names[index][0], names[index])
            context.progress(done + 1, n)
        facts_of = [journal.extras[names[index][0]] for index in names]
        write_set_tables(output_dir, settings, [tuple(facts["defocus"]) for facts in facts_of])
        n_particles = sum(facts["particles"] for facts in facts_of)
        seconds = {"total": time.monotonic() - begin}
        record = {
            **_record(config, inputs, context, started, seconds),
            "micrographs": n,
            "resumed_micrographs": n_resumed,
            "particles": n_particles,
            "tables": [TABLE_NAME, COORDINATES_TABLE_NAME],
        }
        write_json(output_dir / RECORD_NAME, record)
        journal.complete([*made, *results])
        context.log(f"{n} micrographs with {n_particles} particles")
    return _summary(output_dir, [TABLE_NAME], n, seconds, len(waiting) / max(seconds["total"], 1e-9))


def _input_files(config: ParticlesConfig) -> list[Path]:
    files = [path for entry in config.structures for path in (entry.path, entry.model, entry.to)]
    files += [*(config.ctf.tables if config.ctf else ())]
    files += [path for kind in config.noise.components for path in (kind.spectrum, kind.images)]
    return list(dict.fromkeys(path for path in files if path is not None))


def _undertaking(
    config: BaseModel, inputs: dict[str, str], parts: Sequence[str], files: Sequence[str], device: str = "cpu"
) -> Undertaking:
    fingerprint = {
        "version": __version__,
        "config": config.model_dump(mode="json"),
        "inputs": inputs,
        "device": device,
    }
    return Undertaking("simulate", fingerprint, dict.fromkeys(parts, ""), files)


def _record(
    config: BaseModel, inputs: dict[str, str], context: JobContext, started: float, seconds: dict[str, float]
) -> dict[str, Any]:
    """What the records of particles and micrographs begin with."""
    return {
        "version": __version__,
        "command": context.command,
        "configuration": config.model_dump(mode="json"),
        "inputs": {path: {"sha256": digest} for path, digest in inputs.items()},
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
    }


def _summary(
    output_dir: Path,
    tables: Sequence[str],
    n_images: int,
    seconds: dict[str, float],
    rate: float,
    *,
    was_complete: bool = False,
) -> SimulationSummary:
    paths = [output_dir / name for name in tables]
    return SimulationSummary(paths, output_dir / RECORD_NAME, n_images, seconds, rate, was_complete)


def _read_species(config: MicrographsConfig, context: JobContext) -> list[Species]:
    """
    Raises
    ------
    ConfigurationError
        A particle is larger than the micrographs.
    """
    settings, species = config.settings, []
    for entry in config.species:
        kind = Species.from_structure(
            entry.structure, settings.pixel_size_angstrom, entry.share, assembly=entry.assembly
        )
        if kind.projector.box_px > min(settings.shape_px):
            raise ConfigurationError(
                f"settings.shape_px: {kind.name} needs {kind.projector.box_px} px, more than the "
                f"{min(settings.shape_px)} px of the micrographs."
            )
        context.log(f"{kind.name}: {2 * kind.radius_px * settings.pixel_size_angstrom:.0f} Å")
        species.append(kind)
    return species
