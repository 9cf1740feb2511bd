"""A simulation of particles or micrographs: from a configuration to images, STAR tables and a record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from ... import __version__
from ..config.micrographs import MicrographsConfig
from ..config.simulate import Output, ParticlesConfig
from ..errors import Aborted, ConfigurationError
from ..imaging.projection import Projector
from ..inference.devices import resolve_devices
from ..io.files import make_folder, sha256_of, write_json
from ..io.journal import RECORD_NAME, Journal, Undertaking
from ..io.mrc import StackWriter, WriterState, holds, write_mrc
from ..io.mrc_header import HEADER_BYTES
from ..job_context import QUIET, JobContext
from ..simulation.classes import ParticleClass, read_classes
from ..simulation.draws import ParticleDraws, draw_particles
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

CHECKPOINT_SECONDS = 5.0
# Images made at once by kind of device: few, so that a CPU's temporaries stay in its cache.
BLOCK_IMAGES = {"cpu": 8, "cuda": 128}


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
    """Simulate what the configuration is of, and tell of it in the log.

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
    return summary


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
    volumes = [_volume_name(number) for number in range(len(classes))]
    tables = [f"{output}.star" for output in config.outputs]
    stacks = [_stack_name(output) for output in config.outputs]
    undertaking = _undertaking(config, inputs, stacks, [*tables, *volumes, RECORD_NAME], device=device.type)
    with JobFolder(output_dir, undertaking, earlier, inputs=files, log=context.log) as folder:
        if folder.journal.is_complete:
            seconds = {"total": time.monotonic() - begin}
            return _summary(output_dir, tables, config.n_images, seconds, 0.0, was_complete=True)
        _check_room(config, folder)
        stream = _Stream(config, classes, draws, images, device, folder)
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
                {"number": k + 1, "name": one.name, "images": counts[k], "volume": _volume_name(k)}
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
    undertaking = _undertaking(config, inputs, made, results)
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


class _Stream:
    """Makes and writes the images block by block, one class after the other.

    Blocks begin where a class begins and every `BLOCK_IMAGES` further on: vectorised arithmetic rounds
    differently in another company, so a resumed run must make an image in the block that it belongs to.

    Attributes
    ----------
    first
        Images that an earlier process had finished.
    seconds
        Spent on `volumes`, `forming` and `writing`.
    """

    def __init__(
        self,
        config: ParticlesConfig,
        classes: Sequence[ParticleClass],
        draws: ParticleDraws,
        images: ParticleImages,
        device: torch.device,
        folder: JobFolder,
    ) -> None:
        self._config, self._classes, self._draws, self._images = config, classes, draws, images
        self._device, self._output_dir, self._journal = device, folder.path, folder.journal
        self._last_checkpoint = time.monotonic()
        self.first = config.n_images
        self.seconds = {"volumes": 0.0, "forming": 0.0, "writing": 0.0}

    def run(self, context: JobContext) -> None:
        """Make what is missing; see `simulate_particles`."""
        total = self._config.n_images
        with self._open_stacks() as stacks:
            self.first = min((writer.state.written for writer in stacks.values()), default=total)
            if self.first:
                context.log(f"{self.first} images are there already: going on with the rest")
            context.progress(self.first, total)
            for number, one in enumerate(self._classes):
                blocks = self._missing_blocks(number)
                if not blocks and self._journal.is_finished(_volume_name(number)):
                    continue
                context.log(f"class {number + 1} of {len(self._classes)}: {one.name}")
                projector = self._prepare(number)
                for block in blocks:
                    if context.should_stop():
                        self._checkpoint(stacks)
                        raise Aborted(
                            f"Stopped after {block[0]} of {total} images. Run again with --resume to go on."
                        )
                    self._make(projector, block, stacks)
                    context.progress(block[-1] + 1, total)
        for output in self._config.outputs:
            self._journal.finish(_stack_name(output))

    @contextlib.contextmanager
    def _open_stacks(self) -> Iterator[dict[Output, StackWriter]]:
        """The stacks that are not complete, each where it was left; they get their names together."""
        config = self._config
        with contextlib.ExitStack() as opened:
            yield {
                output: opened.enter_context(
                    StackWriter(
                        self._output_dir / _stack_name(output),
                        (config.n_images, config.box_px, config.box_px),
                        pixel_size_angstrom=config.pixel_size_angstrom,
                        label=f"cryohush {__version__}: simulated, {output}",
                        state=_state(config, output, self._output_dir, self._journal),
                    )
                )
                for output in config.outputs
                if not _is_whole(config, self._output_dir / _stack_name(output))
            }

    def _missing_blocks(self, number: int) -> list[list[int]]:
        members = (self._draws.structure == number).nonzero().flatten().tolist()
        size = BLOCK_IMAGES[self._device.type]
        blocks = [members[begin : begin + size] for begin in range(0, len(members), size)]
        return [block for block in blocks if block[-1] >= self.first]

    def _prepare(self, number: int) -> Projector:
        begin = time.monotonic()
        volume = self._classes[number].volume()
        write_mrc(self._output_dir / _volume_name(number), volume.numpy(), self._config.pixel_size_angstrom)
        self._journal.finish(_volume_name(number))
        projector = Projector(volume.to(self._device))
        self.seconds["volumes"] += time.monotonic() - begin
        return projector

    def _make(self, projector: Projector, block: list[int], stacks: dict[Output, StackWriter]) -> None:
        begin = time.monotonic()
        made = self._images.form(projector, block)
        formed = time.monotonic()
        for output, writer in stacks.items():
            # an interrupted run may have left one stack ahead of another, and either within a block
            writer.write(made[output].numpy()[max(0, writer.state.written - block[0]) :])
        if time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS:
            self._checkpoint(stacks)
        self.seconds["forming"] += formed - begin
        self.seconds["writing"] += time.monotonic() - formed

    def _checkpoint(self, stacks: dict[Output, StackWriter]) -> None:
        for output, writer in stacks.items():
            self._journal.record(_stack_name(output), writer.checkpoint())
        self._last_checkpoint = time.monotonic()


def _input_files(config: ParticlesConfig) -> list[Path]:
    files = [path for entry in config.structures for path in (entry.path, entry.model, entry.to)]
    files += [*(config.ctf.tables if config.ctf else ())]
    files += [path for kind in config.noise.components for path in (kind.spectrum, kind.images)]
    return list(dict.fromkeys(path for path in files if path is not None))


def _volume_name(number: int) -> str:
    return f"volume_{number + 1:03d}.mrc"


def _stack_name(output: Output) -> str:
    return f"{output}.mrcs"


def _is_whole(config: ParticlesConfig, stack: Path) -> bool:
    """Whether a stack is complete: it gets its name only then, which the journal may not know yet."""
    try:
        return stack.stat().st_size == HEADER_BYTES + 4 * config.n_images * config.box_px**2
    except OSError:
        return False


def _state(config: ParticlesConfig, output: Output, output_dir: Path, journal: Journal) -> WriterState | None:
    """What a stack can be gone on with from; None for its beginning."""
    state, path = journal.states.get(_stack_name(output)), output_dir / _stack_name(output)
    can_go_on = state is not None and holds(path, (config.box_px, config.box_px), "float32", state)
    return state if can_go_on else None


def _check_room(config: ParticlesConfig, folder: JobFolder) -> None:
    left = 0
    for output in config.outputs:
        if not _is_whole(config, folder.path / _stack_name(output)):
            state = _state(config, output, folder.path, folder.journal)
            left += config.n_images - (state.written if state else 0)
    folder.check_room(4 * config.box_px**2 * left, "ask for fewer outputs")
