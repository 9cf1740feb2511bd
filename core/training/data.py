"""Batches of simulated pairs for the training loops."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config.training import SimulationConfig
from ..errors import ConfigurationError
from ..imaging.ctf import CtfParameters, read_ctf_table
from ..imaging.maps import MAP_SUFFIXES
from ..imaging.noise import image_generator, uniform
from ..noise.synthesis import read_blocks
from ..simulation.image_formation import ImagingRanges, ProjectionBank, make_projection_bank, simulate_pairs
from .cache import kept_tensors

_SUFFIXES = (".pdb", ".cif", ".ent", ".pdb.gz", ".cif.gz", ".ent.gz")

# What projections depend on, besides the structures and the seed.
_OF_PROJECTIONS = (
    "box_px",
    "volumes_per_structure",
    "projections_per_volume",
    "diameter_share",
    "pixel_size_angstrom",
    "map_resolution_angstrom",
)


class SimulatedParticles:
    """Endless pairs of noisy and clean particles, a fixed function of the seed and the batch number.

    Parameters
    ----------
    config
        The `data` section.
    held_out
        Whether to use the structures that are held out (validation) or the others (training).
    seed
        Seed of structures' poses, and with the batch number of every batch.
    cache
        File that keeps the projections between runs; made when absent, or made from anything else.
    log
        Called with progress lines.
    device
        Where projections lie and batches are made, by default the CPU. Kinds of device draw different
        numbers.
    projection_seed
        Seed of the projections; None is `seed`. With one that another training had, its cache is used.
    """

    def __init__(
        self,
        config: SimulationConfig,
        *,
        held_out: bool,
        seed: int,
        cache: Path,
        log: Callable[[str], None],
        device: torch.device | None = None,
        projection_seed: int | None = None,
    ) -> None:
        device = device or torch.device("cpu")
        self._seed, self._device = seed, device
        self._box_px = config.box_px
        self._other_boxes, self._other_box_probability = config.other_boxes_px, config.other_box_probability
        self._ranges = ImagingRanges(**config.imaging.model_dump())
        self._noise_blocks = None
        if config.noise_blocks is not None:
            # in micrographs protein is dark, in particles white
            blocks = -read_blocks(config.noise_blocks, max(config.box_px, *config.other_boxes_px, 0))
            self._noise_blocks = blocks.to(device)
        # without tables no image has a CTF, and these numbers do nothing
        tables = [read_ctf_table(path) for path in config.ctf_tables] or [CtfParameters(*torch.ones(7, 1))]
        self._optics = CtfParameters.joined(tables).to(device)
        files = find_structures(config, held_out=held_out)
        self.structures = [path.name.split(".")[0] for path in files]
        self.target = "clean"
        low, high = config.pixel_size_angstrom
        self.pixel_size_angstrom = low if low == high else None
        drawn: dict[str, Any] = {name: getattr(config, name) for name in _OF_PROJECTIONS}
        maps = find_maps(config, files)
        projection_seed = seed if projection_seed is None else projection_seed

        def project() -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(projection_seed)
            return vars(make_projection_bank(files, **drawn, maps=maps, generator=generator, log=log))

        sources = [*files, *maps.values()]
        kept = kept_tensors(cache, {**drawn, "seed": projection_seed}, sources, project, log)
        self._bank = ProjectionBank(**kept).to(device)

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy `(n, 1, y, x)`, clean `(n, 1, y, x)` and SNR `(n,)` of one batch.

        `n` is `size` for the usual box, more for smaller boxes and fewer for larger ones.
        """
        generator = image_generator(self._seed, number, "batch", self._device)
        box = self._box_px
        if self._other_boxes and uniform(1, (0.0, 1.0), generator).item() < self._other_box_probability:
            choice = torch.randint(len(self._other_boxes), (1,), generator=generator, device=self._device)
            box = self._other_boxes[int(choice)]
        size = max(1, size * self._box_px**2 // box**2)
        return simulate_pairs(
            self._bank, self._optics, self._ranges, size, generator, box, self._noise_blocks
        )


def find_structures(config: SimulationConfig, *, held_out: bool) -> list[Path]:
    """The training or the held-out files of `config.structures`, sorted by name; all when none is held out.

    Raises
    ------
    ConfigurationError
        A held-out name that does not exist, or nothing left to train on.
    """
    return structures_in(
        config.structures, config.held_out, "data", held_out=held_out and bool(config.held_out)
    )


def structures_in(folder: Path, names: Collection[str], section: str, *, held_out: bool) -> list[Path]:
    """The files of a folder that have one of the held-out names, or the others, sorted.

    `section` of the configuration says so.

    Raises
    ------
    ConfigurationError
        A name that does not exist, or no file is left.
    """
    files = sorted(path for path in folder.glob("*") if path.name.endswith(_SUFFIXES))
    unknown = sorted(set(names) - {path.name.split(".")[0] for path in files})
    if unknown:
        raise ConfigurationError(f"{section}.held_out names {', '.join(unknown)}, not in {folder}.")
    chosen = [path for path in files if (path.name.split(".")[0] in names) == held_out]
    if not chosen:
        kind = "held-out" if held_out else "training"
        raise ConfigurationError(f"{section}.structures: no {kind} PDB or mmCIF file in {folder}.")
    return chosen


def find_maps(config: SimulationConfig, structures: list[Path]) -> dict[str, Path]:
    """The map of each structure that has one, by the structure's name.

    Raises
    ------
    ConfigurationError
        `config.maps` holds no map of any of them.
    """
    if config.maps is None:
        return {}
    names = {path.name.split(".")[0] for path in structures}
    files = [path for path in sorted(config.maps.glob("*")) if path.name.lower().endswith(MAP_SUFFIXES)]
    found = {path.name.split(".")[0]: path for path in files if path.name.split(".")[0] in names}
    if not found:
        raise ConfigurationError(
            f"data.maps: {config.maps} holds no map (.mrc, .map, or these .gz) with the name of one of the "
            f"structures, {', '.join(sorted(names))}."
        )
    return found
