"""A simulated set of micrographs with their truth, made and written one by one."""

from __future__ import annotations

import time
from typing import Any

import torch

from ..config.micrographs import MicrographsConfig
from ..errors import ConfigurationError
from ..inference.devices import LocalDevices
from ..io.files import make_folder
from ..io.mrc import WriterState
from ..job_context import JobContext
from ..simulation.micrograph import SimulatedMicrograph, Species, simulate_micrograph
from ..simulation.micrograph_set import (
    COORDINATES_TABLE_NAME,
    TABLE_NAME,
    defocus_of,
    file_names,
    write_micrograph,
    write_set_tables,
)
from .folder import JobFolder
from .simulation_plan import SimulationPlan

# Of a pixel of the micrograph, of the one without noise, and of its label.
_BYTES_PER_PIXEL = 4 + 4 + 1


class MicrographsPlan(SimulationPlan["MicrographStream"]):
    """A set of micrographs whose structures were read; see `Plan`, and `simulation.micrograph_set` for files.

    Every micrograph depends on the seed and its number alone.

    Raises
    ------
    ConfigurationError
        If a particle is larger than the micrographs.
    InputError
        If a structure cannot be read.
    """

    smaller = "ask for fewer micrographs"

    def __init__(self, config: MicrographsConfig, context: JobContext) -> None:
        clock = time.time(), time.monotonic()
        self.config, self.species = config, _read_species(config, context)
        self.names = [file_names(index) for index in range(config.micrographs)]
        super().__init__(
            config,
            config.micrographs,
            "micrographs",
            parts=[name for of_one in self.names for name in of_one],
            tables=[TABLE_NAME],
            files=[COORDINATES_TABLE_NAME],
            device=torch.device("cpu"),
            context=context,
            clock=clock,
        )

    def waiting(self, folder: JobFolder) -> list[int]:
        """Return the micrographs that are not made yet."""
        return [index for index, names in enumerate(self.names) if not folder.journal.is_finished(names[0])]

    def bytes_left(self, folder: JobFolder) -> int:
        """See `Plan`."""
        y, x = self.config.settings.shape_px
        return len(self.waiting(folder)) * y * x * _BYTES_PER_PIXEL

    def begin(self, folder: JobFolder) -> MicrographStream:
        """See `Plan`."""
        return MicrographStream(self, folder)

    def write_tables(self, folder: JobFolder) -> dict[str, Any]:
        """See `SimulationPlan`."""
        facts_of = [folder.journal.extras[names[0]] for names in self.names]
        defocus = [tuple(facts["defocus"]) for facts in facts_of]
        write_set_tables(folder.path, self.config.settings, defocus)
        n_particles = sum(facts["particles"] for facts in facts_of)
        self.context.log(f"{len(facts_of)} micrographs with {n_particles} particles")
        return {"particles": n_particles, "tables": [TABLE_NAME, COORDINATES_TABLE_NAME]}


class MicrographStream:
    """Makes and writes the micrographs that are missing; see `Work`.

    Attributes
    ----------
    n_made
        How many there were to make.
    seconds
        Spent on `forming` and `writing`.
    """

    def __init__(self, plan: MicrographsPlan, folder: JobFolder) -> None:
        self._plan, self._folder, self._waiting = plan, folder, plan.waiting(folder)
        self.n_made = len(self._waiting)
        self.seconds = {"forming": 0.0, "writing": 0.0}

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Make what is missing."""
        config, n = self._plan.config, len(self._plan.names)
        context.progress(n - self.n_made, n)
        for done, index in enumerate(self._waiting, n - self.n_made):
            context.stop_if_asked(
                f"Stopped after {done} of {n} micrographs. Run again with --resume to go on."
            )
            begin = time.monotonic()
            simulated = simulate_micrograph(self._plan.species, config.settings, config.seed, index)
            formed = time.monotonic()
            self._write(index, simulated)
            self.seconds["forming"] += formed - begin
            self.seconds["writing"] += time.monotonic() - formed
            context.progress(done + 1, n)

    def _write(self, index: int, simulated: SimulatedMicrograph) -> None:
        folder, journal, names = self._folder.path, self._folder.journal, self._plan.names[index]
        for name in names:
            make_folder((folder / name).parent)
        write_micrograph(folder, index, simulated, self._plan.config.settings.pixel_size_angstrom)
        facts = {"defocus": defocus_of(simulated), "particles": len(simulated.particles)}
        journal.record(names[0], WriterState(), facts)
        journal.finish(names[0], names)


def _read_species(config: MicrographsConfig, context: JobContext) -> list[Species]:
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
