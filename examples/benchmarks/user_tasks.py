"""What the benchmarks of users' tasks share: simulated sets, the ways to denoise, kept cells, and tables.

A benchmark is a set of cells, one for each structure (or mixture) and repeat, each with the figures of every
method. A finished cell is kept in DIR/<task>.json, and another run with that DIR goes on from there. What is
published is the mean over the cells, with its standard error; differences to raw images are taken within
cells, in which all methods see the same images.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import starfile
import torch
from independent_pairs import topaz
from pairs import write_stack
from processes import CRYOHUSH
from torch import Tensor

from cryohush.core.config.micrographs import MicrographSettings
from cryohush.core.imaging.ctf import CtfParameters
from cryohush.core.imaging.filters import low_pass
from cryohush.core.imaging.noise import image_generator
from cryohush.core.imaging.normalise import default_radius_px, normalise
from cryohush.core.imaging.projection import rotations_from_euler
from cryohush.core.imaging.structure import read_structure
from cryohush.core.io.image_names import split_image_name
from cryohush.core.io.mrc import StackReader
from cryohush.core.io.star import write_tables
from cryohush.core.metrics.picking import square_regions
from cryohush.core.models.weights import WEIGHTS_NAME, load_model
from cryohush.core.simulation.micrograph import SimulatedMicrograph, Species, simulate_micrograph

HELD_OUT = ("1bxn", "2cg9", "4zxb", "6cvm", "6xlu", "pdb7pbl")
"""Structures on which no shipped model was trained."""
RAW, LOW_PASS, TOPAZ = "raw", "low-pass", "Topaz"
ALONE, STACK = "general, each by itself", "general, with its stack"
SESSION, MAP = "trained on the session", "general, with a map"
UNTRAINED = (RAW, LOW_PASS, TOPAZ, ALONE, STACK)
METHODS = (*UNTRAINED, SESSION, MAP)
SESSION_STEPS = 150
"""Updates of `general` on the very images that it then denoises, with their stack."""

Cell = dict[str, dict[str, float]]
"""Figures by method and name."""
Keep = Callable[[str, Callable[[], Mapping[str, float]]], dict[str, float]]
"""`Cells.method` of a cell: a method's figures that an earlier run found, or made now."""


def task_parser(text: str | None, quick: str) -> argparse.ArgumentParser:
    """The options that all benchmarks of users' tasks have; `quick` says what --quick leaves."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0])
    parser.add_argument("--structures", type=Path, required=True, help="folder of PDB and mmCIF files")
    parser.add_argument(
        "--topaz-python", help="python of an environment with topaz-em 0.3.20; None: no Topaz"
    )
    parser.add_argument("--model", default="general", help="name or .safetensors file (default: general)")
    default = list(UNTRAINED)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=default, help="all but the last two")
    parser.add_argument("--repeats", type=count, default=2, help="of each, by another seed")
    parser.add_argument("--quick", action="store_true", help=f"a try of about a minute: {quick}")
    parser.add_argument("--threads", type=count, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True, help="folder; another run goes on with it")
    return parser


def count(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def asked_methods(arguments: argparse.Namespace) -> list[str]:
    """The methods to run: raw images always, with which all are compared; Topaz where there is one."""
    return [
        method
        for method in METHODS
        if method == RAW or (method in arguments.methods and (method != TOPAZ or arguments.topaz_python))
    ]


def structure_file(folder: Path, name: str) -> Path:
    """The file of a structure, whatever its format."""
    found = sorted(path for path in folder.iterdir() if path.name.split(".")[0] == name)
    if not found:
        raise SystemExit(f"{folder} has no structure {name}")
    return found[0]


class Cells:
    """Finished cells of a task, in DIR/<task>.json, with the settings that they were made with.

    A cell is finished when it has the `asked` methods; to one that lacks some these are added.

    Raises
    ------
    SystemExit
        The folder holds cells that were made with other settings, or with other weights of that name.
    """

    def __init__(
        self, task: str, settings: Mapping[str, Any], folder: Path, asked: Iterable[str] = ()
    ) -> None:
        self.asked = frozenset(asked)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{task}.json"
        self.record: dict[str, Any] = {"task": task, "settings": dict(settings), "cells": {}}
        if "model" in settings:
            self.record["model_sha256"] = load_model(settings["model"]).sha256
        self.begin = time.monotonic()
        if self.path.exists():
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["settings"] != json.loads(json.dumps(dict(settings))):
                raise SystemExit(f"{self.path} was made with other settings: give another --output")
            if kept.get("model_sha256") != self.record.get("model_sha256"):
                raise SystemExit(f"{self.path} was made with other weights: give another --output")
            self.record = kept

    def __call__(self, key: str, make: Callable[[], Cell]) -> Cell:
        """The cell of that name: the kept one, or made now."""
        cells: dict[str, Cell] = self.record["cells"]
        if self.lacks(key):
            begin = time.monotonic()
            kept = cells.get(key, {})
            made = {method: rounded(figures) for method, figures in make().items()}
            cells[key] = made | {method: kept[method] for method in kept if method not in made}
            self.unfinished.pop(key, None)
            self._write()
            now = time.monotonic()
            print(f"{now - self.begin:.0f} s: {key} in {now - begin:.0f} s", flush=True)
        return cells[key]

    def lacks(self, key: str) -> bool:
        """Whether there is no cell of that name, or one without some of the methods asked for."""
        return key not in self.record["cells"] or not self.asked <= self.record["cells"][key].keys()

    @property
    def unfinished(self) -> dict[str, Cell]:
        """Of cells that were not finished: what their methods gave."""
        found: dict[str, Cell] = self.record.setdefault("unfinished", {})
        return found

    def method(self, key: str, method: str, make: Callable[[], Mapping[str, float]]) -> dict[str, float]:
        """A method's figures of an unfinished cell: the kept ones, or made now. For cells that take long."""
        figures = self.unfinished.setdefault(key, dict(self.record["cells"].get(key, {})))
        if method not in figures:
            figures[method] = rounded(make())
            self._write()
        return figures[method]

    def _write(self) -> None:
        record = {name: value for name, value in self.record.items() if name != "unfinished" or value}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        part.replace(self.path)


def rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, NaN of fewer than two values."""
    array = np.array(values, dtype=np.float64)
    error = float(array.std(ddof=1) / math.sqrt(len(array))) if len(array) > 1 else math.nan
    return float(array.mean()), error


def summary(cells: Iterable[Cell], figure: str, reference: str = RAW) -> dict[str, dict[str, float]]:
    """Of a figure, for each method: mean, error, gain on the reference, and how many sets have it.

    The gain is NaN where the reference has no such figure.
    """
    cells = list(cells)
    rows = {}
    for method in cells[0]:
        having = [cell for cell in cells if figure in cell.get(method, {})]
        if having:
            mean, error = mean_and_error([cell[method][figure] for cell in having])
            gains = [cell[method][figure] - cell[reference].get(figure, math.nan) for cell in having]
            gain, gain_error = mean_and_error(gains)
            rows[method] = {
                "mean": mean,
                "error": error,
                "gain": gain,
                "gain_error": gain_error,
                "sets": len(having),
            }
    return rows


def table(cells: Iterable[Cell], figures: Mapping[str, str], reference: str = RAW) -> str:
    """Markdown: a row for each method; figures by the head of their column, with the gain in brackets."""
    cells = list(cells)
    columns = [summary(cells, figure, reference) for figure in figures.values()]
    lines = ["| | " + " | ".join(figures) + " |", "|---" * (len(figures) + 1) + "|"]
    for method in cells[0]:
        entries = []
        for column in columns:
            row = column.get(method)
            if row is None:
                entries.append("")
                continue
            text = f"{row['mean']:.3f}{plus_minus(row['error'])}"
            if method != reference and not math.isnan(row["gain"]):
                text += f" ({row['gain']:+.3f}{plus_minus(row['gain_error'])})"
            if row["sets"] < len(cells):
                text += f", {row['sets']} set{'s' if row['sets'] > 1 else ''}"
            entries.append(text)
        lines.append(f"| {method} | " + " | ".join(entries) + " |")
    return "\n".join(lines) + "\n"


def plus_minus(error: float, digits: int = 3) -> str:
    """What follows a figure: its error, and of one set nothing."""
    return "" if math.isnan(error) else f" ± {error:.{digits}f}"


@dataclass(frozen=True, eq=False)
class SimulatedParticles:
    """Boxes of particles on simulated micrographs, as a good picker centres them.

    Attributes
    ----------
    images
        `(n, y, x)`, protein white, normalised.
    optics
        Of their micrographs.
    species
        `(n,)` number of each one's structure.
    rotations, shifts_px
        `(n, 3, 3)`, and `(n, 2)` (y, x) of the particle off the box centre.
    """

    images: Tensor
    optics: CtfParameters
    species: Tensor
    rotations: Tensor
    shifts_px: Tensor


def imaging_settings(pixel_size_angstrom: float, radius_angstrom: float, **more: Any) -> MicrographSettings:
    """Micrographs of 1024 px with a fifth of their area under particles that do not overlap, 0.8 to 2 µm."""
    density = 0.2 / (math.pi * (radius_angstrom * 1e-4) ** 2)
    known: dict[str, Any] = {
        "shape_px": (1024, 1024),
        "pixel_size_angstrom": pixel_size_angstrom,
        "defocus_angstrom": (8000.0, 20000.0),
        "particles_per_square_micrometre": (density, density),
        "carbon_probability": 0.0,
        "discs_per_square_micrometre": 0.0,
        "min_distance": 1.0,
    }
    return MicrographSettings(**(known | more))


def simulate_particles(
    structures: Sequence[Path], n: int, box_px: int, diameter_share: float, seed: int
) -> tuple[SimulatedParticles, list[Species], float]:
    """n boxes of equal shares of structures; the largest fills that share of the box. And the pixel size."""
    largest = max(read_structure(path).radius_angstrom for path in structures)
    pixel_size = 2 * largest / (diameter_share * box_px)
    species = [Species.from_structure(path, pixel_size) for path in structures]
    generator = image_generator(seed, 0, "centring")
    parts: list[SimulatedParticles] = []
    while sum(len(part.images) for part in parts) < n:
        made = simulate_micrograph(species, imaging_settings(pixel_size, largest), seed, len(parts))
        truth = made.particles
        places = centres_of(made)
        picked = (places + 3 * torch.rand(places.shape, generator=generator) - 1.5).round()
        inside = ((picked >= box_px // 2) & (picked < 1024 - box_px // 2)).all(1)
        rotations = rotations_from_euler(torch.from_numpy(truth.euler_degrees).float())
        boxes = square_regions(made.image, picked[inside], box_px)
        parts.append(
            SimulatedParticles(
                normalise(boxes, default_radius_px((box_px, box_px)))[0],
                made.optics[torch.zeros(int(inside.sum()), dtype=torch.int64)],
                torch.from_numpy(truth.species)[inside],
                rotations[inside],
                (places - picked)[inside],
            )
        )
    names = ("images", "species", "rotations", "shifts_px")
    images, kinds, rotations, shifts = (
        torch.cat([getattr(part, name) for part in parts])[:n] for name in names
    )
    return (
        SimulatedParticles(
            images,
            CtfParameters.joined([part.optics for part in parts])[torch.arange(n)],
            kinds,
            rotations,
            shifts,
        ),
        species,
        pixel_size,
    )


def write_particles(
    path: Path,
    images: Tensor,
    pixel_size_angstrom: float,
    optics: CtfParameters,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> None:
    """`(n, y, x)` images, protein white, as `<path>.mrcs` and a table of RELION 3.1 of one optics group."""
    stack = path.with_suffix(".mrcs")
    write_stack(stack, images, pixel_size_angstrom)
    columns_of_all: dict[str, Sequence[Any]] = {
        "rlnImageName": [f"{number:06d}@{stack.absolute()}" for number in range(1, len(images) + 1)],
        "rlnOpticsGroup": [1] * len(images),
        "rlnDefocusU": optics.defocus_u_angstrom.tolist(),
        "rlnDefocusV": optics.defocus_v_angstrom.tolist(),
        "rlnDefocusAngle": optics.angle_degrees.tolist(),
        **(columns or {}),
    }
    group = {
        "rlnOpticsGroup": 1,
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnVoltage": float(optics.voltage_kv[0]),
        "rlnSphericalAberration": float(optics.cs_mm[0]),
        "rlnAmplitudeContrast": float(optics.amplitude_contrast[0]),
        "rlnImagePixelSize": pixel_size_angstrom,
        "rlnImageSize": images.shape[-1],
        "rlnImageDimensionality": 2,
    }
    rows = zip(*columns_of_all.values(), strict=True)
    write_tables(
        path.with_suffix(".star"),
        [("optics", list(group), [list(group.values())]), ("particles", list(columns_of_all), rows)],
    )


def read_stack(path: Path) -> Tensor:
    with StackReader(path) as reader:
        return torch.from_numpy(reader.read(range(reader.n_images)))


def denoised_by_each(table_path: Path, arguments: argparse.Namespace) -> dict[str, Tensor]:
    """The images of a table `<name>.star` and `<name>.mrcs`, raw and by each method, as users would run them.

    The low-pass filter cuts where the whole stack keeps as much variance as the stack-aware images have.
    """
    raw, folder = read_stack(table_path.with_suffix(".mrcs")), table_path.parent
    with StackReader(table_path.with_suffix(".mrcs")) as reader:
        pixel_size = float(reader.pixel_size_angstrom or 1)
    stack = cache(lambda: cryohush_denoise(table_path, folder / "stack", arguments))
    makers: dict[str, Callable[[], Tensor]] = {
        RAW: lambda: raw,
        LOW_PASS: lambda: low_pass_like(raw, stack(), pixel_size)[0],
        # Topaz was trained on micrographs, in which protein is dark
        TOPAZ: lambda: -topaz(arguments.topaz_python, -raw, "unet", arguments.threads),
        ALONE: lambda: cryohush_denoise(table_path, folder / "alone", arguments, ["--context", "none"]),
        STACK: stack,
        SESSION: lambda: cryohush_denoise(
            table_path,
            folder / "session",
            arguments,
            model=trained_on(table_path.with_suffix(".mrcs"), folder / "run", SESSION_STEPS),
        ),
        MAP: lambda: cryohush_denoise(table_path, folder / "map", arguments, ["--context", "map"]),
    }
    return {method: makers[method]() for method in asked_methods(arguments)}


def trained_on(stack: Path, output: Path, steps: int) -> Path:
    """Train `general` further on a stack of noisy images without truth; returns the weights."""
    optimisation = f"steps={steps} batch_size=8 learning_rate=1e-4 ema_decay=0.98"
    changes = [f"pairs.noisy={stack}", f"validate_every={steps}"]
    changes += [f"optimisation.{change}" for change in optimisation.split()]
    command = [*CRYOHUSH, "train", "recorrupted", "--output", str(output), "--overwrite"]
    run([*command, *(word for change in changes for word in ("--set", change))])
    return output / WEIGHTS_NAME


def cryohush_denoise(
    source: Path,
    output: Path,
    arguments: argparse.Namespace,
    more: Sequence[str] = (),
    *,
    model: Path | None = None,
) -> Tensor:
    """Run `cryohush denoise` on a table of one stack, and read what it made; by `model`, or the asked one."""
    weights = str(model or arguments.model)
    options = ["--model", weights, "--threads", str(arguments.threads), "--overwrite", *more]
    run([*CRYOHUSH, "denoise", str(source), "--output", str(output), *options])
    (stack,) = output.rglob(f"{source.stem}*.mrcs")
    return read_stack(stack)


def run(command: Sequence[str], cwd: Path | None = None) -> str:
    """Run a command to its end; shows what it said if it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise SystemExit(f"{command[0]}: no such program, needed for this benchmark") from None
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done.stdout


def relion_refine(folder: Path, options: Mapping[str, Any], more: Sequence[str] = ()) -> pandas.DataFrame:
    """What `relion_refine` says of each image of in.star after its last iteration, in their order.

    `options` and `more` are those of the task; CTF, scales and masks are the same for all.
    """
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    command = ["relion_refine", "--i", "in.star", "--o", "./run", *words, *more]
    command += ["--ctf", "--norm", "--scale", "--zero_mask", "--flatten_solvent", "--dont_check_norm"]
    run([*command, "--preread_images"], folder)
    data = starfile.read(folder / f"run_it{options['iter']:03d}_data.star")["particles"]
    return data.iloc[np.argsort([int(split_image_name(name)[0]) for name in data["rlnImageName"]])]


def shifts_of(data: pandas.DataFrame, pixel_size_angstrom: float) -> Tensor:
    """`(n, 2)` (y, x) by which RELION moves each image to its centre, pixels."""
    columns = ["rlnOriginYAngst", "rlnOriginXAngst"]
    return torch.tensor(data[columns].to_numpy()).float() / pixel_size_angstrom


def centres_of(made: SimulatedMicrograph) -> Tensor:
    """`(n, 2)` (y, x) of the particles of a micrograph, pixels."""
    return torch.from_numpy(np.stack([made.particles.y_px, made.particles.x_px], 1)).float()


def low_pass_like(raw: Tensor, like: Tensor, pixel_size_angstrom: float) -> tuple[Tensor, float]:
    """Raw images cut off where they keep the variance of others, and that resolution in Å."""
    wanted, coarse, fine = float(like.var((1, 2)).mean()), 40 * pixel_size_angstrom, 2 * pixel_size_angstrom
    for _ in range(12):
        middle = math.sqrt(coarse * fine)
        filtered = low_pass(raw, middle, pixel_size_angstrom)
        if float(filtered.var((1, 2)).mean()) > wanted:
            fine = middle
        else:
            coarse = middle
    return filtered, middle
