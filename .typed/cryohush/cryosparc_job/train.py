"""`cryosparc_cryohush train`: a model for particles with poses, from the map that they were refined to."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..core.config.load import validate
from ..core.config.training import TrainingConfig
from ..core.errors import ConfigurationError, HostError
from ..core.io.particles import ParticleSet
from .command import Command, Input, Prepared, Request, run_command
from .instance import Instance
from .job import find_job
from .kinds import PARTICLES, write_particles, write_table
from .place import Place

FOLDER, WEIGHTS = "training", "weights.safetensors"
PRESET = "reference"
DESCRIPTION = (
    "A denoiser for these particles, which learns the map that they were refined to, and with it what that "
    "map has wrong. What it has denoised is for looking and sorting, never for refinement or an FSC."
)
# cryoSPARC counts half sets from 0, RELION and this project from 1.
HALVES = {"A": 1, "B": 2}


def train(
    instance: Instance, request: Request, values: Mapping[str, Any], half: Literal["A", "B"] | None
) -> int:
    """Train on the particles and the map of two outputs in an external job; the exit status.

    Parameters
    ----------
    instance, request
        See `run_command`; the inputs are `particles`, `volume` and `mask`.
    values
        Of a `TrainingConfig`. The section `reference` gets the particles and the map; `data` and `pairs`
        are left out.
    half
        Only particles of this half set (`alignments3D/split` 0 is A), and the map of this half.

    Raises
    ------
    CryohushError
        If there is no job yet that could say what is wrong.
    """
    field = f"map_half_{half}" if half else "map"
    inputs = (
        Input("particles", "Particles with poses", "particle", ("blob", "ctf", "alignments3D"),
              also=("location",)),
        Input("volume", "Their map", "volume", ("map",), unconnected=(field,) if half else ()),
        Input("mask", "Mask", "mask", ("mask",), needed=False),
    )  # fmt: skip

    def prepare(place: Place, datasets: Mapping[str, Any]) -> Prepared:
        particles = datasets["particles"]
        maps = {"map": _path_of(datasets["volume"], field)}
        if "mask" in datasets:
            maps["mask"] = _path_of(datasets["mask"], "mask")
        config = _read_config(
            values,
            {**{entry: place.root / name for entry, name in maps.items()}, "particles": "particles.cs"},
            half,
        )
        if config.initial_weights is not None:
            initial = trained_model(instance, place, request.project, str(config.initial_weights))
            config = config.model_copy(update={"initial_weights": Path(initial)})
        with tempfile.TemporaryDirectory(prefix="cryohush-") as folder:
            table = Path(folder) / "particles.cs"
            names = write_table(PARTICLES, particles, table)
            if place.is_shared:
                ParticleSet.read(table, root=place.root).check_images()
        for name in maps.values():
            if place.is_shared and not (place.root / name).is_file():
                raise HostError(f"{place.root / name}: does not exist.")

        def write(folder: Path) -> dict[str, Any]:
            table = folder / "particles.cs"
            write_particles(particles, table, place.root)
            options = config.model_dump(mode="json")
            options["reference"]["particles"] = str(table)
            return {"task": "train", "output": str(folder), "options": options}

        return Prepared([*names, *maps.values()], write)

    title = f"Denoiser for particles{f' of half set {half}' if half else ''} (cryohush)"
    return run_command(instance, request, Command(title, DESCRIPTION, FOLDER, "steps", inputs, prepare))


def _path_of(dataset: Any, field: str) -> str:
    """Return the file of a map, relative to the project's directory."""
    names = list(dataset[f"{field}/path"])
    if len(names) != 1:
        raise HostError(f"expected one map, found {len(names)}.")
    return str(names[0]).removeprefix(">")


def _read_config(
    values: Mapping[str, Any], files: Mapping[str, Any], half: Literal["A", "B"] | None
) -> TrainingConfig:
    kept = {name: value for name, value in values.items() if name not in ("data", "pairs", "kind")}
    reference = {**(values.get("reference") or {}), **files, "half_set": HALVES[half] if half else None}
    config = validate({**kept, "reference": reference}, TrainingConfig, "training")
    if config.optimisation.devices > 1 or config.optimisation.nodes > 1:
        raise ConfigurationError(
            "optimisation.devices: an external job trains on one device. For several, run cryohush train on "
            "the particles.cs of a job like this one."
        )
    return config


def trained_model(instance: Instance, place: Place, project: str, name: str) -> str:
    """Return the weights that a job's name, as in `J57`, stands for; any other name as it is.

    Raises
    ------
    HostError
        If the job has not trained a model, or not finished.
    """
    if not re.fullmatch(r"J\d+", name):
        return name
    job = find_job(instance, project, name)
    status, weights = job.status(), f"{job.directory_name()}/{FOLDER}/{WEIGHTS}"
    path = place.root / weights
    if status == "completed" and not place.is_shared:
        path.unlink(missing_ok=True)  # may be of an earlier training in the same job
        place.fetch(instance, project, [weights], print)
    if status != "completed" or not path.is_file():
        raise HostError(
            f"{name} is {status} and has no {FOLDER}/{WEIGHTS}: expected a completed job of "
            "cryosparc_cryohush train."
        )
    return str(path)
