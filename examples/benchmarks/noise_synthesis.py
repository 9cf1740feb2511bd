"""Which model of noise is closer to real noise: NT2C's WGAN-GP or a Gaussian field with its spectrum?

Blocks of noise come from `cryohush extract-noise`, one stack from the micrographs to learn from, another from
micrographs that only judge. Prints a table; `comparison.png` shows pieces, spectra and histograms::

    python examples/benchmarks/noise_synthesis.py --blocks A/noise.mrcs --held-back B/noise.mrcs --output DIR
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from cryohush.core.config.nt2c import SynthesiserConfig
from cryohush.core.noise.synthesis import fit_gaussian_field, pieces_of, read_blocks
from cryohush.core.training.synthesis import compare, train_generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--blocks", type=Path, required=True, help="stack of noise to learn from")
    parser.add_argument("--held-back", type=Path, required=True, help="stack of noise of other micrographs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--side-px", type=int, default=64, help="of a piece (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=320, help="of the generator (default: %(default)s)")
    parser.add_argument("--width", type=int, default=16, help="of the networks (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--critic-steps", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=5e-4, help="(default: %(default)s)")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)

    side = arguments.side_px
    known, held_back = read_blocks(arguments.blocks, side), read_blocks(arguments.held_back, side)
    config = SynthesiserConfig.model_validate(
        {
            "width": arguments.width,
            "critic_steps": arguments.critic_steps,
            "optimisation": {
                "steps": arguments.steps,
                "batch_size": arguments.batch_size,
                "learning_rate": arguments.learning_rate,
                "warmup_steps": 0,
                "ema_decay": 0.98,
                "precision": "32-true",
            },
            "validate_every": 40,
        }
    )
    network = train_generator(
        config,
        known,
        held_back,
        side,
        arguments.output,
        resume=True,
        log=print,
        should_stop=lambda: False,
    )
    generator = torch.Generator().manual_seed(0)
    field = fit_gaussian_field(pieces_of(known, side, 512, generator), generator)
    merits = compare(
        {"Gaussian field": field, "WGAN-GP": network},
        known,
        held_back,
        arguments.output,
        seed=0,
        log=lambda line: None,
    )
    print("| | spectrum, dB | histogram, sd | skewness | kurtosis | told apart | degrees of freedom |")
    print("|---|---|---|---|---|---|---|")
    for name, merit in merits.items():
        print(
            f"| {name} | {merit.spectrum_error_db:.2f} | {merit.histogram_distance:.4f} "
            f"| {merit.skewness:.3f} | {merit.kurtosis:.3f} | {100 * merit.two_sample_accuracy:.0f} ± "
            f"{100 * merit.two_sample_error:.0f} % | {merit.degrees_of_freedom:.0f} |"
        )
    merit = next(iter(merits.values()))
    print(
        f"| held-back real blocks | 0 | 0 | {merit.real_skewness:.3f} | {merit.real_kurtosis:.3f} | 50 % | "
        f"{merit.real_degrees_of_freedom:.0f} |"
    )


if __name__ == "__main__":
    main()
