"""How sure the search for blocks of noise has to be, chosen on simulated micrographs.

    python noise_thresholds.py --micrographs DIR --output DIR [--model FILE]

DIR is where `cryohush train segmentation` put `micrographs-held-out.safetensors`: micrographs of structures
that the network never saw, at its own pixel size, with their true label maps. For each pair of a least
probability of background and a least p-value: share of the windows of 144 Å, every 36 Å, that touch a
particle or contamination with a pixel, and share of the free windows that are taken. The pair that is chosen
takes most of those in which at most 1 % touch; chosen on all structures but one, it is tried on that one.
Writes noise_thresholds.json and .md.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from cryohush.core.models import SEGMENTERS
from cryohush.core.models.weights import load_model
from cryohush.core.noise.energy import noise_probabilities
from cryohush.core.noise.segmentation import BACKGROUND, SURELY_BACKGROUND, WORKING_PIXEL_SIZE_ANGSTROM

WINDOW_ANGSTROM, STRIDE_ANGSTROM = 144.0, 36.0
LEAST_BACKGROUND = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
LEAST_P_VALUE = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
MOST_TOUCHING = 0.01

Pair = tuple[float, float]
# Windows taken, windows taken that touch something, free windows, free windows taken.
Counts = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description="Thresholds of extracted noise, cross-validated.")
    parser.add_argument("--micrographs", type=Path, required=True, help="folder of a segmentation's training")
    parser.add_argument("--model", default="segmentation", help="default: the shipped one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = load_model(arguments.model, SEGMENTERS)
    structures = model.card["held_out_structures"]
    stored = load_file(arguments.micrographs / "micrographs-held-out.safetensors")
    number = len(stored) // 2
    counts: dict[str, dict[Pair, Counts]] = {}
    for index in range(number):
        name = structures[index * len(structures) // number]
        image, labels = (stored[f"{kind}_{index:05d}"] for kind in ("image", "labels"))
        for pair, found in count(model.module, image.float(), labels).items():
            of_structure = counts.setdefault(name, {})
            of_structure[pair] = of_structure.get(pair, np.zeros(4, dtype=np.int64)) + found
    report(counts, arguments.output / "noise_thresholds")


@torch.inference_mode()
def count(network: torch.nn.Module, image: Tensor, labels: Tensor) -> dict[Pair, Counts]:
    """What becomes of the windows of one micrograph with each pair of thresholds."""
    pixel = WORKING_PIXEL_SIZE_ANGSTROM
    window, stride = round(WINDOW_ANGSTROM / pixel), round(STRIDE_ANGSTROM / pixel)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(image[None, None])
    probability = logits[0].float().softmax(0)[BACKGROUND]
    touches = highest(labels != BACKGROUND, window, stride) > 0
    rows, columns = (torch.arange(side) * stride for side in touches.shape)
    chance = noise_probabilities(
        image,
        probability > SURELY_BACKGROUND,
        pixel,
        rows,
        columns,
        window,
        torch.Generator().manual_seed(1),
    )
    found = {}
    for least in LEAST_BACKGROUND:
        free = highest(probability <= least, window, stride) == 0
        for p_value in LEAST_P_VALUE:
            taken = free & (chance >= p_value)
            found[least, p_value] = np.array(
                [int(part.sum()) for part in (taken, taken & touches, ~touches, taken & ~touches)]
            )
    return found


def highest(mask: Tensor, window: int, stride: int) -> Tensor:
    return functional.max_pool2d(mask.float()[None], window, stride)[0]


def shares(counts: Counts) -> tuple[float, float]:
    """Share of the windows taken that touch something, and of the free ones that are taken."""
    return float(counts[1] / max(counts[0], 1)), float(counts[3] / max(counts[2], 1))


def choose(counts: dict[Pair, Counts]) -> Pair:
    """The pair that takes most, of those that are pure enough; else the purest."""
    pure = [pair for pair, found in counts.items() if shares(found)[0] <= MOST_TOUCHING]
    if not pure:
        return min(counts, key=lambda pair: shares(counts[pair])[0])
    return max(pure, key=lambda pair: shares(counts[pair])[1])


def report(counts: dict[str, dict[Pair, Counts]], path: Path) -> None:
    pairs = list(itertools.product(LEAST_BACKGROUND, LEAST_P_VALUE))
    lines = ["| least background | least p-value | touch something | of the free windows | worst structure |"]
    lines.append("|---|---|---|---|---|")
    together = {pair: sum(one[pair] for one in counts.values()) for pair in pairs}
    for pair in pairs:
        touching, taken = shares(together[pair])
        worst = max(counts, key=lambda name: shares(counts[name][pair])[0])
        share = shares(counts[worst][pair])[0]
        lines.append(
            f"| {pair[0]} | {pair[1]} | {100 * touching:.2f} % | {100 * taken:.0f} % | "
            f"{worst} {100 * share:.1f} % |"
        )
    lines += ["", f"Chosen on all: {choose(together)}.", ""]
    lines += [
        "| left out | chosen on the others | touch something | of the free windows |",
        "|---|---|---|---|",
    ]
    left_out = {}
    for name in counts:
        others = {pair: sum(one[pair] for other, one in counts.items() if other != name) for pair in pairs}
        chosen = choose(others)
        touching, taken = shares(counts[name][chosen])
        left_out[name] = {"chosen": chosen, "touching": touching, "free_windows_taken": taken}
        n = counts[name][chosen]
        lines.append(
            f"| {name} | {chosen} | {100 * touching:.2f} % of {n[0]} | {100 * taken:.0f} % of {n[2]} |"
        )
    text = "\n".join(lines) + "\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    stored = {f"{a} {p}": shares(found) for (a, p), found in together.items()}
    path.with_suffix(".json").write_text(
        json.dumps({"pairs": stored, "left_out": left_out}, indent=1) + "\n", encoding="utf-8"
    )
    print(text)


if __name__ == "__main__":
    main()
