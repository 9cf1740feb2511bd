"""A whole simulated set of particles: from a configuration to stacks, STAR tables, volumes and a record."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import torch
from torch import Tensor

from ... import __version__
from ..config.simulate import Output, ParticlesConfig
from ..errors import Aborted, InputError, OutputError
from ..imaging.projection import Projector
from ..io.files import part_path, write_text, writing, writing_failed
from ..io.journal import JOURNAL_NAME, Journal
from ..io.mrc import StackWriter
from .classes import ParticleClass, read_classes
from .draws import ParticleDraws, draw_particles
from .particle_images import ParticleImages
from .table import write_particle_table

RECORD_NAME = "cryohush.json"
CHECKPOINT_SECONDS = 5.0
# Images made at once by kind of device: few, so that a CPU's temporaries stay in its cache.
BLOCK_IMAGES = {"cpu": 8, "cuda": 128}


@dataclass(frozen=True)
class SimulationSummary:
    """What a run wrote.

    Attributes
    ----------
    tables
        STAR files, one for each output.
    record
        `cryohush.json`.
    n_images
        Of each stack.
    seconds
        `total`, and of it `volumes`, `forming` and `writing`.
    images_per_second
        Images that this process made, each in all outputs, per second of forming and writing.
    """

    tables: list[Path]
    record: Path
    n_images: int
    seconds: dict[str, float]
    images_per_second: float


def simulate_particles(
    config: ParticlesConfig,
    output_dir: Path,
    *,
    device: torch.device,
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = lambda line: None,
    command: str | None = None,
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
        `should_stop` said so; the run can be resumed.
    """
    started, begin = time.time(), time.monotonic()
    classes = read_classes(config)
    draws = draw_particles(config, [one.share for one in classes])
    images = ParticleImages(config, draws, device)
    inputs = {str(path): _sha256(path) for path in _input_files(config)}
    fingerprint = {
        "version": __version__,
        "config": config.model_dump(mode="json"),
        "inputs": inputs,
        "device": device.type,
    }
    names = _file_names(config, len(classes))
    with _open_journal(output_dir, fingerprint, names, resume=resume, overwrite=overwrite) as journal:
        _check_free_space(config, output_dir, journal)
        stream = _Stream(config, classes, draws, images, device, output_dir, journal)
        stream.run(progress, should_stop, log)
        class_names = [one.name for one in classes]
        tables = [
            write_particle_table(output_dir, output, config, draws, class_names) for output in config.outputs
        ]
        seconds = {"total": time.monotonic() - begin, **stream.seconds}
        rate = (config.n_images - stream.first) / max(seconds["forming"] + seconds["writing"], 1e-9)
        counts = torch.bincount(draws.structure, minlength=len(classes)).tolist()
        record = {
            "version": __version__,
            "command": command,
            "configuration": config.model_dump(mode="json"),
            "inputs": {path: {"sha256": digest} for path, digest in inputs.items()},
            "seed": config.seed,
            "device": str(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "images_per_second": round(rate, 1),
            "images": config.n_images,
            "resumed_images": stream.first,
            "contaminated_images": int(draws.contaminated.sum()),
            "classes": [
                {"number": k + 1, "name": one.name, "images": counts[k], "volume": _volume_name(k)}
                for k, one in enumerate(classes)
            ],
            "tables": [table.name for table in tables],
        }
        write_text(output_dir / RECORD_NAME, json.dumps(record, indent=2) + "\n")
    return SimulationSummary(tables, output_dir / RECORD_NAME, config.n_images, seconds, rate)


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
        output_dir: Path,
        journal: Journal,
    ) -> None:
        self._config, self._classes, self._draws, self._images = config, classes, draws, images
        self._device, self._output_dir, self._journal = device, output_dir, journal
        self._last_checkpoint = time.monotonic()
        self.first = config.n_images
        self.seconds = {"volumes": 0.0, "forming": 0.0, "writing": 0.0}

    def run(
        self,
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
        log: Callable[[str], None],
    ) -> None:
        """Make what is missing; see `simulate_particles`."""
        total = self._config.n_images
        with self._open_stacks() as stacks:
            self.first = min((writer.state.written for writer in stacks.values()), default=total)
            if self.first:
                log(f"{self.first} images are there already: going on with the rest")
            progress(self.first, total)
            for number, one in enumerate(self._classes):
                blocks = self._missing_blocks(number)
                if not blocks and (self._output_dir / _volume_name(number)).exists():
                    continue
                log(f"class {number + 1} of {len(self._classes)}: {one.name}")
                projector = self._prepare(number)
                for block in blocks:
                    if should_stop():
                        self._checkpoint(stacks)
                        raise Aborted(
                            f"Stopped after {block[0]} of {total} images. Run again with --resume to go on."
                        )
                    self._make(projector, block, stacks)
                    progress(block[-1] + 1, total)
        for output in self._config.outputs:
            if output not in self._journal.finished:
                self._journal.finish(output)

    @contextlib.contextmanager
    def _open_stacks(self) -> Iterator[dict[Output, StackWriter]]:
        """The stacks that are not complete, each where it was left; they get their names together."""
        config, journal = self._config, self._journal
        with contextlib.ExitStack() as opened:
            yield {
                output: opened.enter_context(
                    StackWriter(
                        self._output_dir / f"{output}.mrcs",
                        (config.n_images, config.box_px, config.box_px),
                        pixel_size_angstrom=config.pixel_size_angstrom,
                        label=f"cryohush {__version__}: simulated, {output}",
                        state=journal.states.get(output),
                    )
                )
                for output in config.outputs
                # a run may be killed after the last renaming and before the journal knows of it
                if output not in journal.finished and not (self._output_dir / f"{output}.mrcs").exists()
            }

    def _missing_blocks(self, number: int) -> list[list[int]]:
        members = (self._draws.structure == number).nonzero().flatten().tolist()
        size = BLOCK_IMAGES[self._device.type]
        blocks = [members[begin : begin + size] for begin in range(0, len(members), size)]
        return [block for block in blocks if block[-1] >= self.first]

    def _prepare(self, number: int) -> Projector:
        begin = time.monotonic()
        volume = self._classes[number].volume()
        _write_volume(self._output_dir / _volume_name(number), volume, self._config.pixel_size_angstrom)
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
            self._journal.record(output, writer.checkpoint())
        self._last_checkpoint = time.monotonic()


def _input_files(config: ParticlesConfig) -> list[Path]:
    files = [path for entry in config.structures for path in (entry.path, entry.to)]
    files += [*(config.ctf.tables if config.ctf else ())]
    files += [path for kind in config.noise.components for path in (kind.spectrum, kind.images)]
    return list(dict.fromkeys(path for path in files if path is not None))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}.", path=path) from error
    return digest.hexdigest()


def _volume_name(number: int) -> str:
    return f"volume_{number + 1:03d}.mrc"


def _file_names(config: ParticlesConfig, n_states: int) -> list[str]:
    tables = [f"{output}.star" for output in config.outputs]
    stacks = [f"{output}.mrcs" for output in config.outputs]
    return [RECORD_NAME, *tables, *stacks, *(_volume_name(number) for number in range(n_states))]


def _open_journal(
    output_dir: Path, fingerprint: dict[str, Any], names: list[str], *, resume: bool, overwrite: bool
) -> Journal:
    """The journal of the run to go on with, or of a new one, with what an old run left cleared away."""
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(output_dir, error) from error
    path = output_dir / JOURNAL_NAME
    if resume and path.exists():
        return Journal.open(path, fingerprint, resume=True)
    if not overwrite:
        for name in (JOURNAL_NAME, *names):
            if (output_dir / name).exists():
                raise OutputError(
                    f"{output_dir} holds another run ({name}). Resume it (--resume), replace it "
                    "(--overwrite), or choose another directory."
                )
    journal = Journal.open(path, fingerprint, resume=False)
    for name in names:
        for old in (output_dir / name, part_path(output_dir / name)):
            old.unlink(missing_ok=True)
    return journal


def _check_free_space(config: ParticlesConfig, output_dir: Path, journal: Journal) -> None:
    left = sum(
        config.n_images - (journal.states[output].written if output in journal.states else 0)
        for output in config.outputs
        if output not in journal.finished
    )
    needed, free = 4 * config.box_px**2 * left, shutil.disk_usage(output_dir).free
    if needed > free:
        raise OutputError(
            f"{output_dir}: the disk is too small: {needed} bytes are needed, {free} are free. Free some "
            "space, choose another directory, or ask for fewer outputs."
        )


def _write_volume(path: Path, volume: Tensor, pixel_size_angstrom: float) -> None:
    with writing(path) as part, mrcfile.new(part, volume.numpy(), overwrite=True) as file:
        file.voxel_size = pixel_size_angstrom
