"""`cryosparc_cryohush train`: a model for particles with poses, from the map that they were refined to."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..core.advice import USE
from ..core.config.load import validate
from ..core.config.training import TrainingConfig
from ..core.errors import ConfigurationError, HostError
from ..core.io.particles import ParticleSet
from .command import Command, Input, Prepared
from .models import FOLDER, find_model
from .outputs import PARTICLES, write_particles, write_table
from .place import Place
from .project import Project

DESCRIPTION = (
    "A denoiser for these particles, which learns the map that they were refined to, and with it what that "
    f"map has wrong. {USE}"
)
# cryoSPARC counts half sets from 0, RELION and this project from 1.
HALVES = {"A": 1, "B": 2}


def training(project: Project, values: Mapping[str, Any], half: Literal["A", "B"] | None) -> Command:
    """Return the training on particles and their map.

    Parameters
    ----------
    project
        Where they are; the inputs are `particles`, `volume` and `mask`.
    values
        Of a `TrainingConfig`. The section `reference` gets the particles and the map; `data` and `pairs`
        are left out.
    half
        Only particles of this half set (`alignments3D/split` 0 is A), and the map of this half.

    Raises
    ------
    ConfigurationError
        If the values make no sense.
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
        config = with_weights(config, project, place)
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
            return {"task": "train", "output": str(folder), "options": as_given(str(table))}

        def as_given(table: str) -> dict[str, Any]:
            # without the defaults: a network that nobody names is that of the weights to begin with
            options = config.model_dump(mode="json", exclude_unset=True)
            options["reference"]["particles"] = table
            return options

        names = list(dict.fromkeys([*names, *maps.values()]))
        return Prepared(names, write, check={"training": as_given("particles.cs")})

    _read_config(
        values, {"map": "map.mrc", "particles": "particles.cs"}, half
    )  # before anything is asked for
    title = f"Denoiser trained on {{source}}{f', half set {half}' if half else ''}"
    description = DESCRIPTION + model_line(values)
    return Command(title, description, FOLDER, "steps", inputs, prepare, trust=DESCRIPTION)


def model_line(values: Mapping[str, Any]) -> str:
    """Return what a description says of the model to begin with: no connection of the job shows it."""
    return f"\n\nModel to begin with: {values['initial_weights']}" if values.get("initial_weights") else ""


def with_weights(config: TrainingConfig, project: Project, place: Place) -> TrainingConfig:
    """Return the configuration with the file of the model to begin with, which may be a job's."""
    if config.initial_weights is None:
        return config
    initial = find_model(project, place, str(config.initial_weights))
    return config.model_copy(update={"initial_weights": Path(initial)})


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
    refuse_several_devices(config)
    return config


def refuse_several_devices(config: TrainingConfig) -> None:
    """
    Raises
    ------
    ConfigurationError
        The training is for more than one.
    """
    if config.optimisation.devices > 1 or config.optimisation.nodes > 1:
        raise ConfigurationError(
            "optimisation.devices: an external job trains on one device. For several, run cryohush train on "
            "the table in the folder of a job like this one."
        )
