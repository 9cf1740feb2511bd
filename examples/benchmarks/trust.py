"""How far the expected errors of a model can be trusted: beside the true ones, on structures held out.

    python trust.py --structures DIR --ctf-tables TABLE.npy ... --output OUT [--model general] [--names ...]
        [--context none|map] [--quick]

Stacks of simulated particles (real CTFs, crowding, uneven noise, empty images, as in the training of the
stack-aware networks), of each of the six held-out structures at three signal-to-noise ratios and two box
sizes, with the context of the stack, with a map of the particle (`--context map`), and without. Of each pixel
within the particle's circle the model tells the variance of its error.

- `true over expected`: mean squared error over the mean expected one, by cell;
- tenths: of all pixels sorted by the expected variance, mean squared error over the expected one in each;
- the line through the logarithms of both in the tenths: a calibration, if of other structures (`--names`);
- `images`: rank correlation of the expected with the true squared error of whole images of a cell.

Writes trust.json and trust.md to OUT.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from simulated_stacks import StackRanges, simulate_stack
from stack_context import BATCH, channels_of
from torch import Tensor
from user_tasks import HELD_OUT, structure_file

from cryohush.core.context.stack_context import circle, fit_context
from cryohush.core.context.stack_map import unasked
from cryohush.core.imaging.ctf import read_ctf_table
from cryohush.core.imaging.normalise import default_radius_px
from cryohush.core.models.weights import load_model
from cryohush.core.simulation.image_formation import make_projection_bank

SNRS, BOXES = (0.03, 0.1, 0.3), (64, 128)
IMAGES, SCORED = 1000, 200
FEWEST_SCORED = 50


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare expected with true errors.")
    parser.add_argument("--structures", type=Path, required=True)
    parser.add_argument("--ctf-tables", type=Path, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--model", default="general")
    parser.add_argument(
        "--names", nargs="+", default=HELD_OUT, help="structures, by the names of their files"
    )
    parser.add_argument(
        "--context",
        choices=("auto", "map", "none"),
        default="auto",
        help="map: with a map alone; none: without",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="one structure, one ratio, one box, 200 images")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    names, snrs, boxes, n, scored = arguments.names, SNRS, BOXES, IMAGES, SCORED
    if arguments.quick:
        names, snrs, boxes, n, scored = names[:1], snrs[1:2], boxes[:1], 200, FEWEST_SCORED
    tables = [read_ctf_table(path) for path in arguments.ctf_tables]
    network = load_model(arguments.model).module.bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    of_contexts = {"auto": ("context", "no context"), "map": ("map",), "none": ("no context",)}
    kinds = of_contexts[arguments.context]
    cells: dict[str, dict[str, Any]] = {}
    pools: dict[str, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in kinds}
    for number, name in enumerate(names):
        bank = make_projection_bank(
            [structure_file(arguments.structures, name)],
            box_px=128,
            volumes_per_structure=1,
            projections_per_volume=256,
            diameter_share=(0.4, 0.7),
            pixel_size_angstrom=(0.8, 6.0),
            generator=torch.Generator().manual_seed(number),
        )
        for box in boxes:
            for snr in snrs:
                ranges = replace(StackRanges(), snr=(snr, snr), no_ctf_probability=0.0)
                generator = torch.Generator().manual_seed(1000 * number + box + round(100 * snr))
                stack = simulate_stack([bank], tables, ranges, generator, box, n)
                found = judge(network, stack, scored, kinds)
                for kind, (expected, true) in found.items():
                    key = f"{name}, {box} px, SNR {snr:g}, {kind}"
                    of_images = spearmanr(expected.mean(1), true.mean(1)).statistic
                    cells[key] = {
                        "true over expected": float(true.mean() / expected.mean()),
                        "images": float(of_images),
                    }
                    pools[kind].append((expected.flatten(), true.flatten()))
                    print(key, cells[key], flush=True)
    deciles = {kind: of_deciles(parts) for kind, parts in pools.items()}
    text = markdown(cells, deciles)
    (arguments.output / "trust.md").write_text(text, encoding="utf-8")
    result = {"model": arguments.model, "cells": cells, "deciles": deciles}
    (arguments.output / "trust.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text)


def judge(network: Any, stack: Any, n: int, kinds: Sequence[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Expected and true squared errors, `(n, pixels)` within the circle, with and without context."""
    box = stack.noisy.shape[-1]
    radius = default_radius_px((box, box))
    noisy, optics = stack.noisy[:n], None if stack.optics is None else stack.optics[:n]
    inside = circle(box, radius) > 0.5
    found = {}
    for kind in kinds:
        channels = None
        if kind != "no context":
            context = fit_context(
                stack.noisy,
                stack.optics,
                pixel_size_angstrom=stack.pixel_size_angstrom,
                radius_px=radius,
                with_map=unasked if kind == "map" else None,
            )
            channels = channels_of(context, noisy, optics)
        expected, true = [], []
        for members in torch.arange(len(noisy)).split(BATCH):
            shown = noisy[members, None]
            if channels is not None:
                shown = torch.cat([shown, channels[members]], 1)
            with torch.inference_mode():
                image, log_variance = network.with_error(
                    shown.bfloat16().contiguous(memory_format=torch.channels_last)
                )
            expected.append(log_variance.float()[:, 0].exp()[:, inside])
            true.append((image.float()[:, 0] - stack.clean[members]).square()[:, inside])
        found[kind] = torch.cat(expected), torch.cat(true)
    return found


def of_deciles(parts: list[tuple[Tensor, Tensor]]) -> list[dict[str, float]]:
    expected, true = (torch.cat(values) for values in zip(*parts, strict=True))
    order = expected.argsort()
    return [
        {
            "expected": float(expected[tenth].mean()),
            "true": float(true[tenth].mean()),
            "true over expected": float(true[tenth].mean() / expected[tenth].mean()),
        }
        for tenth in order.tensor_split(10)
    ]


def markdown(cells: dict[str, dict[str, Any]], deciles: dict[str, list[dict[str, float]]]) -> str:
    lines = ["True over expected squared error in tenths of all pixels, by the expected one.", ""]
    lines += ["| | " + " | ".join(str(k) for k in range(1, 11)) + " |", "|---" * 11 + "|"]
    for kind, tenths in deciles.items():
        values = " | ".join(f"{tenth['true over expected']:.2f}" for tenth in tenths)
        lines.append(f"| {kind} | {values} |")
    for kind, tenths in deciles.items():
        expected, true = (np.log([tenth[name] for tenth in tenths]) for name in ("expected", "true"))
        slope, offset = np.polyfit(expected, true, 1)
        lines += ["", f"{kind}: log true = {offset:.2f} + {slope:.2f} log expected"]
    lines += ["", "By cell: median, and the middle four fifths of the cells.", ""]
    for kind in deciles:
        some = [cell for key, cell in cells.items() if key.endswith(f", {kind}")]
        for figure in ("true over expected", "images"):
            low, middle, high = np.quantile([cell[figure] for cell in some], [0.1, 0.5, 0.9])
            lines.append(f"- {kind}, {figure}: {middle:.2f} ({low:.2f} to {high:.2f}), {len(some)} cells")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
