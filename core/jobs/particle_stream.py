"""A simulated set of particles: its images are made and written block by block."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ..config.simulate import Output, ParticlesConfig
from ..errors import Aborted
from ..imaging.projection import Projector
from ..inference.devices import LocalDevices
from ..io.journal import Journal
from ..io.mrc import StackWriter, WriterState, holds, write_mrc
from ..io.mrc_header import HEADER_BYTES
from ..job_context import JobContext
from ..simulation.classes import read_classes
from ..simulation.draws import draw_particles
from ..simulation.particle_images import ParticleImages
from ..simulation.table import write_particle_table
from .folder import JobFolder
from .simulation_plan import SimulationPlan

CHECKPOINT_SECONDS = 5.0
# Images made at once by kind of device: few, so that a CPU's temporaries stay in its cache.
BLOCK_IMAGES = {"cpu": 8, "cuda": 128}


class ParticlesPlan(SimulationPlan["ParticleStream"]):
    """A set of particles: structures, tables and noise are read, and all images drawn; see `Plan`.

    The folder gets, for each output (`noisy`, `ctf_only`, `clean`), a stack and a STAR table for RELION 3.1
    and later, of which row i belongs to image i; `volume_001.mrc` and so on, the volume of each class; and
    `cryohush.json`. On one kind of device, the same configuration gives the same bytes, whether or not the
    run was interrupted.

    Raises
    ------
    InputError
        If a structure, table or stack cannot be read or used.
    ConfigurationError
        If a structure is larger than the box, a CTF finer than its pixels, a ratio cannot be had.
    """

    smaller = "ask for fewer outputs"

    def __init__(self, config: ParticlesConfig, device: torch.device, context: JobContext) -> None:
        clock = time.time(), time.monotonic()
        self.config, self.device = config, device
        self.classes = read_classes(config)
        self.draws = draw_particles(config, [one.share for one in self.classes])
        self.images = ParticleImages(config, self.draws, device)
        super().__init__(
            config,
            config.n_images,
            "images",
            parts=[stack_name(output) for output in config.outputs],
            tables=[f"{output}.star" for output in config.outputs],
            files=[volume_name(number) for number in range(len(self.classes))],
            device=device,
            context=context,
            clock=clock,
        )

    def bytes_left(self, folder: JobFolder) -> int:
        """See `Plan`; of the stacks."""
        config, left = self.config, 0
        for output in config.outputs:
            if not _is_whole(config, folder.path / stack_name(output)):
                state = _state(config, output, folder.path, folder.journal)
                left += config.n_images - (state.written if state else 0)
        return 4 * config.box_px**2 * left

    def begin(self, folder: JobFolder) -> ParticleStream:
        """See `Plan`."""
        return ParticleStream(self, folder)

    def write_tables(self, folder: JobFolder) -> dict[str, Any]:
        """See `SimulationPlan`."""
        config, classes = self.config, self.classes
        for output in config.outputs:
            write_particle_table(folder.path, output, config, self.draws, [one.name for one in classes])
        counts = torch.bincount(self.draws.structure, minlength=len(classes)).tolist()
        return {
            "seed": config.seed,
            "device": str(self.device),
            "contaminated_images": int(self.draws.contaminated.sum()),
            "classes": [
                {"number": k + 1, "name": one.name, "images": counts[k], "volume": volume_name(k)}
                for k, one in enumerate(classes)
            ],
            "tables": [f"{output}.star" for output in config.outputs],
        }


class ParticleStream:
    """Makes and writes the images block by block, one class after the other; see `Work`.

    Blocks begin where a class begins and every `BLOCK_IMAGES` further on: vectorised arithmetic rounds
    differently in another company, so a resumed run must make an image in the block that it belongs to.

    Attributes
    ----------
    n_made
        Images that an earlier process had not finished.
    seconds
        Spent on `volumes`, `forming` and `writing`.
    """

    def __init__(self, plan: ParticlesPlan, folder: JobFolder) -> None:
        self._config, self._classes, self._draws, self._images = (
            plan.config, plan.classes, plan.draws, plan.images,
        )  # fmt: skip
        self._device, self._output_dir, self._journal = plan.device, folder.path, folder.journal
        self._last_checkpoint = time.monotonic()
        self.n_made = 0
        self.seconds = {"volumes": 0.0, "forming": 0.0, "writing": 0.0}

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Make what is missing, on the device of the plan, which holds the noise."""
        total = self._config.n_images
        with self._open_stacks() as stacks:
            first = min((writer.state.written for writer in stacks.values()), default=total)
            self.n_made = total - first
            if first:
                context.log(f"{first} images are there already: going on with the rest")
            context.progress(first, total)
            for number, one in enumerate(self._classes):
                blocks = self._missing_blocks(number, first)
                if not blocks and self._journal.is_finished(volume_name(number)):
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
            self._journal.finish(stack_name(output))

    @contextlib.contextmanager
    def _open_stacks(self) -> Iterator[dict[Output, StackWriter]]:
        """The stacks that are not complete, each where it was left; they get their names together."""
        config = self._config
        with contextlib.ExitStack() as opened:
            yield {
                output: opened.enter_context(
                    StackWriter(
                        self._output_dir / stack_name(output),
                        (config.n_images, config.box_px, config.box_px),
                        pixel_size_angstrom=config.pixel_size_angstrom,
                        label=f"cryohush {__version__}: simulated, {output}",
                        state=_state(config, output, self._output_dir, self._journal),
                    )
                )
                for output in config.outputs
                if not _is_whole(config, self._output_dir / stack_name(output))
            }

    def _missing_blocks(self, number: int, first: int) -> list[list[int]]:
        members = (self._draws.structure == number).nonzero().flatten().tolist()
        size = BLOCK_IMAGES[self._device.type]
        blocks = [members[begin : begin + size] for begin in range(0, len(members), size)]
        return [block for block in blocks if block[-1] >= first]

    def _prepare(self, number: int) -> Projector:
        begin = time.monotonic()
        volume = self._classes[number].volume()
        write_mrc(self._output_dir / volume_name(number), volume.numpy(), self._config.pixel_size_angstrom)
        self._journal.finish(volume_name(number))
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
            self._journal.record(stack_name(output), writer.checkpoint())
        self._last_checkpoint = time.monotonic()


def volume_name(number: int) -> str:
    """Return the name of a class's volume."""
    return f"volume_{number + 1:03d}.mrc"


def stack_name(output: Output) -> str:
    """Return the name of an output's stack."""
    return f"{output}.mrcs"


def _is_whole(config: ParticlesConfig, stack: Path) -> bool:
    """Whether a stack is complete: it gets its name only then, which the journal may not know yet."""
    try:
        return stack.stat().st_size == HEADER_BYTES + 4 * config.n_images * config.box_px**2
    except OSError:
        return False


def _state(config: ParticlesConfig, output: Output, output_dir: Path, journal: Journal) -> WriterState | None:
    """What a stack can be gone on with from; None for its beginning."""
    state, path = journal.states.get(stack_name(output)), output_dir / stack_name(output)
    can_go_on = state is not None and holds(path, (config.box_px, config.box_px), "float32", state)
    return state if can_go_on else None
