"""Error on stacks of structures never trained on, by the number of their images.

    python held_out_stacks.py --structures FOLDER --ctf-tables TABLE.npy ... --output DIR [--names 1bxn ...]

For each condition, box and number of images: mean squared error inside the particle's circle over the power
of the clean image there, of the network alone, of the model as it is used (with what the stack says), of the
same with a map of the particle found from the stack (`--map`), and of the covariance Wiener filter (through
the CTF where there is one), fitted to the same stack. The geometric mean over the structures is printed. A
context is found from 2,048 images at most: larger stacks give what 2,048 give. Goes on where it was stopped;
rows that are there get what they lack.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from simulated_stacks import PLAIN, SimulatedStack, StackRanges, simulate_stack
from stack_context import channels_of, run
from torch import Tensor

from cryohush.core.context.stack_context import MOST_IMAGES, StackContext, circle, fit_context
from cryohush.core.context.stack_map import unasked
from cryohush.core.imaging.ctf import CtfParameters, read_ctf_table
from cryohush.core.imaging.normalise import default_radius_px, normalise
from cryohush.core.models.weights import load_model
from cryohush.core.simulation.image_formation import ProjectionBank, make_projection_bank

HELD_OUT = ("1bxn", "4zxb", "6cvm", "6xlu")
SIZES = (300, 1000, MOST_IMAGES)
BOXES_PX = (64, 128)
JUDGED = 200
ALONE, OF_STACK = "network alone", ("with the stack", "with a map", "covariance Wiener filter")
_MAP = OF_STACK[1]
_VIEWS = 2048
_CTF = {"no_ctf_probability": 0.0}
#: name, signal-to-noise ratio per pixel, and what differs from white noise without CTF
CONDITIONS: tuple[tuple[str, float, dict[str, Any]], ...] = (
    ("white, no CTF", 0.1, {}),
    ("white, no CTF", 0.05, {}),
    ("white, no CTF", 0.02, {}),
    ("white, CTF", 0.05, _CTF),
    ("white, CTF, off centre", 0.05, {**_CTF, "shift_share": (0.05, 0.05)}),
    ("coloured, CTF", 0.05, {**_CTF, "noise_tilt": 0.3}),
    ("coloured, CTF, neighbours, ice", 0.05, {**_CTF, "noise_tilt": 0.3, "crowded_probability": 1.0,
                                              "ice_share": 0.2, "background_share": 0.1}),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--structures", type=Path, required=True, help="folder of PDB or mmCIF files")
    parser.add_argument("--ctf-tables", type=Path, nargs="+", required=True)
    parser.add_argument("--names", nargs="+", default=HELD_OUT)
    parser.add_argument("--boxes", type=int, nargs="+", default=BOXES_PX)
    parser.add_argument("--map", action="store_true", help="with a map, too, which takes hours")
    parser.add_argument("--model", default="general")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "held_out_stacks.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else []
    tables = [read_ctf_table(table) for table in arguments.ctf_tables]
    network = load_model(arguments.model).module.bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    wanted = (ALONE, *OF_STACK) if arguments.map else (ALONE, OF_STACK[0], OF_STACK[2])
    known = {(row["structure"], *key_of(row), row["images"]): row for row in rows}
    for name in arguments.names:
        cells = [(c, snr, box, differs) for box in arguments.boxes for c, snr, differs in CONDITIONS]
        open_cells = [
            cell
            for cell in cells
            if any(way not in known.get((name, *cell[:3], size), {}) for size in SIZES for way in wanted)
        ]
        bank = views_of(arguments.structures, name) if open_cells else None
        for condition, snr, box, differs in open_cells:
            assert bank is not None
            ranges = StackRanges(**{**PLAIN, **differs, "snr": (snr, snr)})
            stack = simulate_stack([bank], tables, ranges, torch.Generator().manual_seed(7), box, MOST_IMAGES)
            for size in SIZES:
                key = name, condition, snr, box, size
                if key not in known:
                    labels = ("structure", "condition", "snr", "box_px", "images")
                    rows.append(dict(zip(labels, key, strict=True)))
                    known[key] = rows[-1]
                missing = [way for way in wanted if way not in known[key]]
                known[key] |= errors_of(network, stack, box, size, missing)
                path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                print(known[key], flush=True)
    table = markdown(rows)
    print(table)
    (arguments.output / "held_out_stacks.md").write_text(table, encoding="utf-8")


def views_of(folder: Path, name: str) -> ProjectionBank:
    (path,) = (file for file in sorted(folder.iterdir()) if file.name.split(".")[0].lower() == name)
    return make_projection_bank(
        [path],
        box_px=max(BOXES_PX),
        volumes_per_structure=1,
        projections_per_volume=_VIEWS,
        diameter_share=(0.6, 0.6),
        pixel_size_angstrom=(0.8, 6.0),
        generator=torch.Generator().manual_seed(1),
    )


def errors_of(
    network: Any, stack: SimulatedStack, box: int, size: int, ways: Sequence[str]
) -> dict[str, float]:
    """NMSE of the first images by each way, of a stack of its first `size` images."""
    if not ways:
        return {}
    radius = default_radius_px((box, box))
    noisy, mean, std = normalise(stack.noisy, radius)
    clean = ((stack.clean - mean[:, None, None]) / std[:, None, None])[:JUDGED]
    judged, optics = noisy[:JUDGED], first(stack.optics, JUDGED)

    def context(*, with_map: bool) -> StackContext:
        return fit_context(
            noisy[:size],
            first(stack.optics, size),
            pixel_size_angstrom=stack.pixel_size_angstrom,
            radius_px=radius,
            with_map=unasked if with_map else None,
        )

    images = {}
    if ALONE in ways:
        images[ALONE] = run(network, judged, None)
    if set(ways) & {OF_STACK[0], OF_STACK[2]}:
        found = context(with_map=False)
        images[OF_STACK[0]] = run(network, judged, channels_of(found, judged, optics))
        images[OF_STACK[2]] = channels_of(replace(found, views=None), judged, optics)[:, 0]
    if _MAP in ways:
        images[_MAP] = run(network, judged, channels_of(context(with_map=True), judged, optics))
    return {way: nmse(images[way], clean, circle(box, radius)) for way in ways}


def first(optics: CtfParameters | None, n: int) -> CtfParameters | None:
    return None if optics is None else optics[:n]


def nmse(images: Tensor, clean: Tensor, mask: Tensor) -> float:
    error = ((images - clean) * mask).square().sum() / (clean * mask).square().sum()
    return round(float(error), 4)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A line for each condition: geometric means over the structures, the smallest of each size in bold."""

    def mean(key: tuple[Any, ...], way: str, size: int) -> float | None:
        same = [row for row in rows if key_of(row) == key and row["images"] == size]
        if not all(way in row for row in same):
            return None
        return math.exp(sum(math.log(row[way]) for row in same) / len(same))

    columns = [(way, size) for way in OF_STACK for size in SIZES]
    heads = [f"{way}, {size:,}" for way, size in columns]
    lines = [f"| | SNR | box / px | {ALONE} | " + " | ".join(heads) + " |", "|---" * (4 + len(heads)) + "|"]
    for key in dict.fromkeys(map(key_of, rows)):
        found = {(way, size): mean(key, way, size) for way, size in columns}
        alone = mean(key, ALONE, SIZES[0])
        cells = ["" if alone is None else f"{alone:.3f}"]
        for (_, size), value in found.items():
            others = [alone, *(found[way, size] for way in OF_STACK)]
            least = min(other for other in others if other is not None)
            text = "" if value is None else f"{value:.3f}"
            cells.append(f"**{text}**" if value == least else text)
        lines.append(f"| {key[0]} | {key[1]:g} | {key[2]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["condition"], row["snr"], row["box_px"]


if __name__ == "__main__":
    main()
