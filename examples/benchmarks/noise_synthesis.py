"""Which model of noise is closer to real noise: NT2C's WGAN-GP or a Gaussian field with its spectrum?

    python noise_synthesis.py --micrographs STAR --picks FOLDER --particle-diameter A --output DIR
                              [--kinds wgan wgan_field] [--steps 1500]

The real noise is cut out where nobody picked a particle and no contamination shows (as noise_blocks.py finds
it), so that no error of `cryohush extract-noise` is in it. The models learn from every other micrograph; the
blocks of the others, which do not overlap, judge them. `gaussian` is the field alone; `wgan` the paper's
network, which starts with a vector; `wgan_field` starts with the field. "Other real blocks" are those learnt
from: no model can be closer.

Spectrum: rms over the rings. Histogram: Wasserstein distance of the pixels. Told apart: by a small network,
trained on half of the drawn and of the held-back blocks and asked about the other half, over four ways to
halve them (50 % is best). Degrees of freedom: one over the mean squared correlation of two blocks.
Writes scores.json, and for each model its weights, log and a picture; resumes.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from noise_blocks import find_dark_discs, read
from torch import Tensor

from cryohush.core.config.nt2c import SynthesiserConfig
from cryohush.core.io.coordinates import find_coordinates, read_coordinates
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.job_context import JobContext
from cryohush.core.models.synthesis import NoiseModel, standardised
from cryohush.core.noise.patches import count_in_windows, cut_blocks
from cryohush.core.noise.segmentation import labels_of_picks
from cryohush.core.noise.synthesis import (
    NoiseMerit,
    fit_gaussian_field,
    judge_noise,
    pieces_of,
    two_sample_accuracy,
)
from cryohush.core.training.synthesis import draw_comparison, train_generator

STRIDE_PX = 8
FIT_PIECES, HALVINGS = 512, 4


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    known, held_back = empty_places(arguments)
    print(f"{len(known)} blocks to learn from, {len(held_back)} to judge by", flush=True)
    draws = torch.Generator().manual_seed(0)
    field = fit_gaussian_field(pieces_of(known, arguments.side_px, FIT_PIECES, draws), draws)
    models: dict[str, NoiseModel] = {"Gaussian field": field}
    seconds: dict[str, float] = {}
    for kind in arguments.kinds:
        begin, folder = time.monotonic(), arguments.output / kind
        folder.mkdir(parents=True, exist_ok=True)
        models[f"WGAN-GP, {kind}"] = train_generator(
            training(kind, arguments),
            field,
            known,
            held_back,
            folder,
            resume=True,
            context=JobContext(log=lambda line: print(line, flush=True)),
        )
        seconds[kind] = time.monotonic() - begin
    drawn = {"other real blocks": apart(known, len(held_back))}
    drawn |= {name: model.draw(len(held_back), draws) for name, model in models.items()}
    draw_comparison({"held-back real blocks": held_back, **drawn}, arguments.output / "comparison.png")
    merits = {name: judge_noise(images, held_back) for name, images in drawn.items()}
    told = {name: told_apart(images, held_back) for name, images in drawn.items()}
    report(merits, told, seconds, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Models of noise beside real noise.")
    parser.add_argument("--micrographs", type=Path, required=True, help="micrographs.star")
    parser.add_argument("--picks", type=Path, required=True, help="folder of coordinate files")
    parser.add_argument("--particle-diameter", type=float, required=True, metavar="A", help="Å")
    parser.add_argument("--kinds", nargs="*", default=["wgan", "wgan_field"], help="default: both")
    parser.add_argument("--side-px", type=int, default=64, help="of a block (default: 64)")
    parser.add_argument("--steps", type=int, default=1500, help="of the generator (default: 1500)")
    parser.add_argument("--width", type=int, default=16, help="of the networks (default: 16)")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="default: 2e-4")
    parser.add_argument("--batch-size", type=int, default=32, help="default: 32")
    parser.add_argument("--critic-steps", type=int, default=5, help="default: 5")
    parser.add_argument("--precision", default="bf16-mixed", help="default: bf16-mixed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def training(kind: str, arguments: argparse.Namespace) -> SynthesiserConfig:
    return SynthesiserConfig.model_validate(
        {
            "kind": kind,
            "width": arguments.width,
            "critic_width": arguments.width,
            "critic_steps": arguments.critic_steps,
            "optimisation": {
                "steps": arguments.steps,
                "batch_size": arguments.batch_size,
                "learning_rate": arguments.learning_rate,
                "warmup_steps": 0,
                "ema_decay": 0.99,
                "precision": arguments.precision,
            },
            "validate_every": 100,
        }
    )


def empty_places(arguments: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Blocks `(n, y, x)` of every other micrograph, all there are, and of the others, none overlapping."""
    micrographs, side = MicrographSet.read(arguments.micrographs), arguments.side_px
    blocks: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index, path in enumerate(micrographs.stacks):
        image = torch.from_numpy(read(path))
        origins = empty_windows(micrographs, index, arguments.picks, arguments.particle_diameter, side)
        if index % 2:
            origins = not_overlapping(origins, side)
        blocks[index % 2].append(cut_blocks(-image, origins, side))
    return torch.cat(blocks[0]), standardised(torch.cat(blocks[1]))


def empty_windows(
    micrographs: MicrographSet, index: int, picks: Path, particle_diameter_angstrom: float, side_px: int
) -> Tensor:
    """First pixels `(n, 2)` (y, x) of windows that no labelled particle and no contamination touches."""
    path, pixel_size = micrographs.stacks[index], micrographs.pixel_size_angstrom(index)
    labelled = find_coordinates(picks, path)
    if labelled is None or pixel_size is None:
        raise SystemExit(f"{path}: without picks or pixel size")
    image = read(path)
    occupied = labels_of_picks(
        (image.shape[0], image.shape[1]),
        torch.from_numpy(read_coordinates(labelled)),
        particle_diameter_angstrom / 2 / pixel_size,
        torch.from_numpy(find_dark_discs(image, pixel_size)),
    )
    return (count_in_windows(occupied != 0, side_px, STRIDE_PX) == 0).nonzero() * STRIDE_PX


def not_overlapping(origins: Tensor, side_px: int) -> Tensor:
    """Of windows at `(n, 2)` each that touches none taken before it."""
    kept = origins[:0]
    for origin in origins:
        if bool(((kept - origin).abs() >= side_px).any(1).all()):
            kept = torch.cat([kept, origin[None]])
    return kept


def apart(blocks: Tensor, n: int) -> Tensor:
    """`n` blocks evenly from the whole stack, in which neighbours overlap."""
    return standardised(blocks[torch.linspace(0, len(blocks) - 1, n).long()])


def told_apart(drawn: Tensor, real: Tensor) -> tuple[float, float]:
    """Mean accuracy, and its standard error from what few blocks are judged, each a few times."""
    shares = []
    for seed in range(HALVINGS):
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        shares.append(two_sample_accuracy(drawn[order], real[order], seed)[0])
    return sum(shares) / len(shares), 0.5 / (2 * len(real)) ** 0.5


def report(
    merits: dict[str, NoiseMerit],
    told: dict[str, tuple[float, float]],
    seconds: dict[str, float],
    arguments: argparse.Namespace,
) -> None:
    settings = {name: str(value) for name, value in vars(arguments).items()}
    record: dict[str, Any] = {"settings": settings, "seconds": seconds}
    record["merits"] = {name: {**asdict(merit), "told_apart": told[name]} for name, merit in merits.items()}
    (arguments.output / "scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("| | spectrum, dB | histogram, sd | skewness | kurtosis | told apart | degrees of freedom |")
    print("|---|---|---|---|---|---|---|")
    for name, merit in merits.items():
        print(
            f"| {name} | {merit.spectrum_error_db:.2f} | {merit.histogram_distance:.4f} "
            f"| {merit.skewness:.3f} | {merit.kurtosis:.3f} "
            f"| {100 * told[name][0]:.0f} ± {100 * told[name][1]:.0f} % | {merit.degrees_of_freedom:.0f} |"
        )
    merit = next(iter(merits.values()))
    print(
        f"| held-back real blocks | 0 | 0 | {merit.real_skewness:.3f} | {merit.real_kurtosis:.3f} | 50 % | "
        f"{merit.real_degrees_of_freedom:.0f} |"
    )


if __name__ == "__main__":
    main()
