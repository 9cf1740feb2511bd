"""How pure the blocks of noise are that `cryohush extract-noise` takes, by both of its methods, and how fast.

    python noise_blocks.py --micrographs STAR --picks FOLDER --particle-diameter A --structures FOLDER
                           --output DIR [--window-px 96] [--stride-px 24] [--model FILE] [--methods NAME ...]

Real micrographs: every particle has to be picked (FOLDER holds a coordinate file for each micrograph); a pick
is a disc of the particle's diameter. Contamination is found by a rule: micrographs blurred to 24 Å, less
their median over 600 Å, are darker than 6 robust standard deviations over an area of more than 40 Å radius;
discs of that area count. Look at `truth/`, where both are drawn, before you believe the figures.
Simulated micrographs: of the six structures that the networks never saw, with their true label maps.

For each method: blocks; share of them that touch a particle, and that touch contamination (a single pixel is
enough); mean share of a block's area that particles cover; and of all the windows that touch neither, how
many were taken. For label maps also the intersection over union of each class with the simulated truth.
Seconds are those of the processor, which other work on the machine hardly changes, for a micrograph of
4096 x 4096 px at 1 Å and blocks of 320 px every 160 px.
Writes noise_blocks.md and .json, and each run with its overlays.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.micrographs import MicrographsConfig
from cryohush.core.errors import InputError
from cryohush.core.io.columns import read_columns
from cryohush.core.io.coordinates import find_coordinates, read_coordinates
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.extract_noise import run_extract_noise
from cryohush.core.jobs.simulate import SimulateJob
from cryohush.core.noise.patches import count_in_windows
from cryohush.core.noise.segmentation import (
    CONTAMINATION,
    PARTICLE,
    class_overlap,
    confusion,
    labels_of_picks,
)
from cryohush.core.report.overlays import write_overlay

HELD_OUT = ("1bxn", "2cg9", "4zxb", "6cvm", "6xlu", "pdb7pbl")
# With even odds the label map is the most probable one, of which the intersection over union is usual.
METHODS: dict[str, dict[str, Any]] = {
    "segmentation": {"method": "segmentation"},
    "segmentation alone": {"method": "segmentation", "min_noise_probability": 0},
    "segmentation at even odds": {"method": "segmentation", "min_background": 0.5},
    "segmentation alone at even odds": {
        "method": "segmentation",
        "min_background": 0.5,
        "min_noise_probability": 0,
    },
    "similarity": {"method": "similarity"},
    "similarity at even odds": {"method": "similarity", "min_background": 0.5},
    "similarity as published": {
        "method": "similarity",
        "min_noise_probability": 0,
        "coarse_pixel_angstrom": 0,
    },
}
LARGE_PX, REPEATS = 4096, 2
BIN_ANGSTROM, BLUR_ANGSTROM, LEVEL_ANGSTROM = 12.0, 24.0, 600.0
DARKER_BY, LEAST_RADIUS_ANGSTROM = 6.0, 40.0


@dataclass(frozen=True)
class Truth:
    """A set of micrographs with a label map of each: by name in the table, `(y, x)` uint8."""

    table: Path
    labels: dict[str, Tensor]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    sets = {"real": real_truth(arguments), "simulated": simulated_truth(arguments)}
    found: dict[str, dict[str, Any]] = {}
    for kind, truth in sets.items():
        draw_truth(truth, arguments.output / "truth" / kind)
        for method in arguments.methods:
            folder = arguments.output / kind / method.replace(" ", "_")
            found[f"{kind}, {method}"] = measure(truth, method, folder, arguments)
            print(f"{kind}, {method}: {found[f'{kind}, {method}']}", flush=True)
    report(
        found,
        {method: seconds(sets["simulated"], method, arguments) for method in arguments.methods},
        arguments,
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Purity of extracted noise, by both methods.")
    parser.add_argument("--micrographs", type=Path, required=True, help="micrographs.star")
    parser.add_argument("--picks", type=Path, required=True, help="folder of coordinate files")
    parser.add_argument("--particle-diameter", type=float, required=True, metavar="A", help="Å")
    parser.add_argument("--structures", type=Path, required=True, help="folder with " + ", ".join(HELD_OUT))
    parser.add_argument("--simulated", type=int, default=6, help="micrographs to simulate (default: 6)")
    parser.add_argument("--window-px", type=int, default=96, help="default: 96")
    parser.add_argument("--stride-px", type=int, default=24, help="default: 24")
    parser.add_argument("--model", help="segmentation network (default: the shipped one)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of both")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def real_truth(arguments: argparse.Namespace) -> Truth:
    micrographs = MicrographSet.read(arguments.micrographs)
    labels = {}
    for index, path in enumerate(micrographs.stacks):
        pixel_size = micrographs.pixel_size_angstrom(index)
        picks = find_coordinates(arguments.picks, path)
        if picks is None or pixel_size is None:
            raise SystemExit(f"{path}: without picks or pixel size")
        image = read(path)
        labels[micrographs.stack_names[index]] = labels_of_picks(
            (image.shape[0], image.shape[1]),
            torch.from_numpy(read_coordinates(picks)),
            arguments.particle_diameter / 2 / pixel_size,
            torch.from_numpy(find_dark_discs(image, pixel_size)),
        )
    return Truth(arguments.micrographs, labels)


def find_dark_discs(image: NDArray[np.float32], pixel_size_angstrom: float) -> NDArray[np.bool_]:
    """Contamination by the rule above: `(y, x)`."""
    factor = max(1, round(BIN_ANGSTROM / pixel_size_angstrom))
    y, x = (side // factor * factor for side in image.shape)
    binned = image[:y, :x].reshape(y // factor, factor, x // factor, factor).mean((1, 3))
    unit = factor * pixel_size_angstrom
    blurred = ndimage.gaussian_filter(binned, BLUR_ANGSTROM / unit)
    blurred -= ndimage.median_filter(blurred, round(LEVEL_ANGSTROM / unit))
    spread = 1.4826 * np.median(np.abs(blurred - np.median(blurred)))
    regions, number = ndimage.label(blurred < -DARKER_BY * spread)
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    mask = np.zeros(image.shape, dtype=bool)
    for region in range(1, number + 1):
        where = regions == region
        radius = np.sqrt(where.sum() / np.pi)
        if radius * unit < LEAST_RADIUS_ANGSTROM:
            continue
        centre = (np.array(ndimage.center_of_mass(where)) + 0.5) * factor - 0.5
        mask |= (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= (radius * factor) ** 2
    return mask


def simulated_truth(arguments: argparse.Namespace) -> Truth:
    folder = arguments.output / "simulated-micrographs"
    files = [next(arguments.structures.glob(f"{name}.*")) for name in HELD_OUT]
    config = MicrographsConfig.model_validate(
        {
            "kind": "micrographs",
            "species": [{"structure": str(path)} for path in files],
            "micrographs": arguments.simulated,
            "seed": 7,
            "settings": {
                "shape_px": (1536, 1536),
                "pixel_size_angstrom": 1.5,
                "particles_per_square_micrometre": (300, 3000),
                "b_factor_square_angstrom": (80, 300),
            },
        }
    )
    table = folder / "micrographs.star"
    if not table.exists():
        SimulateJob(config).run(folder)
    micrographs = MicrographSet.read(table)
    labels = {
        name: torch.from_numpy(read(folder / "labels" / path.name)).to(torch.uint8)
        for name, path in zip(micrographs.stack_names, micrographs.stacks, strict=True)
    }
    return Truth(table, labels)


def read(path: Path) -> NDArray[np.float32]:
    with StackReader(path) as reader:
        return reader.read([0])[0]


def draw_truth(truth: Truth, folder: Path) -> None:
    """Pictures of the label maps that the blocks are judged by."""
    none = np.zeros((0, 2), dtype=np.int64)
    micrographs = MicrographSet.read(truth.table)
    for name, path in zip(micrographs.stack_names, micrographs.stacks, strict=True):
        write_overlay(folder / f"{path.stem}.png", read(path), truth.labels[name].numpy(), none, none, 1)


def measure(truth: Truth, method: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one method over a set and compare it with the truth."""
    options = options_of(
        method, arguments, window_px=arguments.window_px, stride_px=arguments.stride_px, min_blocks=1
    )
    try:
        summary = run_extract_noise(
            truth.table, folder, options, JobContext(log=print), earlier="replace", draw=write_overlay
        )
    except InputError as error:
        print(error)
        return {"blocks": 0, "explanation": str(error)}
    window, stride = arguments.window_px, arguments.stride_px
    taken = read_blocks(summary.table, window)
    touched_particles, touched_contamination, covered, free, free_taken = 0, 0, 0.0, 0, 0
    for name, labels in truth.labels.items():
        particle = count_in_windows(labels == PARTICLE, window, stride)
        contamination = count_in_windows(labels == CONTAMINATION, window, stride)
        is_free = (particle == 0) & (contamination == 0)
        free += int(is_free.sum())
        for y, x in taken.get(name, []):
            place = (y // stride, x // stride)
            touched_particles += bool(particle[place])
            touched_contamination += bool(contamination[place])
            covered += int(particle[place]) / window**2
            free_taken += bool(is_free[place])
    n = summary.n_blocks
    result = {
        "blocks": n,
        "touch_particle": touched_particles / n,
        "touch_contamination": touched_contamination / n,
        "mean_area_of_particles": covered / n,
        "free_windows": free,
        "free_windows_taken": free_taken / max(free, 1),
        "explanation": summary.explanation,
    }
    if (folder / "labels").exists():
        counts = torch.zeros(3, 3, dtype=torch.int64)
        micrographs = MicrographSet.read(truth.table)
        for name, path in zip(micrographs.stack_names, label_maps(folder, micrographs), strict=True):
            counts += confusion(torch.from_numpy(read(path)).to(torch.uint8), truth.labels[name])
        result["intersection_over_union"] = class_overlap(counts)
    return result


def options_of(method: str, arguments: argparse.Namespace, **given: Any) -> ExtractNoiseOptions:
    extra = dict(item.split("=", 1) for item in arguments.set)
    model = arguments.model if METHODS[method]["method"] == "segmentation" else None
    return ExtractNoiseOptions.model_validate(
        {"threads": arguments.threads, "model": model, **given, **extra, **METHODS[method]}
    )


def seconds(truth: Truth, method: str, arguments: argparse.Namespace) -> float:
    """Processor time of a large micrograph, the loading of networks included; the smaller of two."""
    path = arguments.output / "large.mrc"
    if not path.exists():
        first = read(MicrographSet.read(truth.table).stacks[0])
        repeats = -(-LARGE_PX // min(first.shape))
        with StackWriter(path, (1, LARGE_PX, LARGE_PX), pixel_size_angstrom=1.0, label="tiles") as writer:
            writer.write(np.tile(first, (repeats, repeats))[None, :LARGE_PX, :LARGE_PX])
    options = options_of(method, arguments, window_px=320, stride_px=160)
    taken = []
    for _ in range(REPEATS):
        begin = time.process_time()
        with contextlib.suppress(InputError):  # whether it finds a block or not
            run_extract_noise(path, arguments.output / "large", options, earlier="replace")
        taken.append(time.process_time() - begin)
    return min(taken)


def label_maps(folder: Path, micrographs: MicrographSet) -> list[Path]:
    """The written label maps, in the order of the micrographs."""
    written = {path.name: path for path in (folder / "labels").rglob("*.mrc")}
    return [written[path.name] for path in micrographs.stacks]


def read_blocks(table: Path, window_px: int) -> dict[str, list[tuple[int, int]]]:
    """First pixels (y, x) of the blocks of each micrograph."""
    blocks: dict[str, list[tuple[int, int]]] = {}
    name, y, x = "rlnMicrographName", "rlnCoordinateY", "rlnCoordinateX"
    columns = read_columns(table, (name,), (y, x), among=lambda part: part.name == "particles")
    assert columns is not None
    rows = zip(columns.text[name], columns.number[y], columns.number[x], strict=True)
    for micrograph, *centre in rows:
        origin = tuple(round(place) - window_px // 2 for place in centre)
        blocks.setdefault(micrograph, []).append((origin[0], origin[1]))
    return blocks


def report(
    found: dict[str, dict[str, Any]], timings: dict[str, float], arguments: argparse.Namespace
) -> None:
    lines: list[str] = [
        f"Windows of {arguments.window_px} px every {arguments.stride_px} px.",
        "",
        "| micrographs, method | blocks | touch a particle | touch contamination | area that particles cover "
        "| of the free windows, taken |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        if not one["blocks"]:
            lines.append(f"| {name} | 0 | | | | |")
            continue
        shares: Sequence[float] = (
            one["touch_particle"], one["touch_contamination"], one["mean_area_of_particles"],
            one["free_windows_taken"],
        )  # fmt: skip
        cells = " | ".join(f"{100 * share:.1f} %" for share in shares)
        lines.append(f"| {name} | {one['blocks']} | {cells} of {one['free_windows']} |")
    for name, one in found.items():
        if "intersection_over_union" in one:
            overlap = ", ".join(
                f"{kind} {value:.3f}" for kind, value in one["intersection_over_union"].items()
            )
            lines += ["", f"Intersection over union, {name}: {overlap}."]
    lines += ["", f"A micrograph of {LARGE_PX} x {LARGE_PX} px, {arguments.threads} threads:", ""]
    lines += ["| method | CPU s | micrographs per minute |", "|---|---|---|"]
    lines += [f"| {method} | {second:.1f} | {60 / second:.0f} |" for method, second in timings.items()]
    text = "\n".join(lines) + "\n"
    path = arguments.output / "noise_blocks"
    stored = json.dumps({"found": found, "seconds": timings}, indent=1)
    path.with_suffix(".json").write_text(stored + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print("\n" + text)


if __name__ == "__main__":
    main()
