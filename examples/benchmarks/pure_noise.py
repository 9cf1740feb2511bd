"""Show what a model makes of images that hold nothing.

    python pure_noise.py --output FILE.json [--models general ...] [--spectrum particles.star]

Denoises pure noise, white and (with --spectrum) with the mean radial power spectrum of real particles, and
writes per model: output variance over input variance, correlation of the outputs with each other, and the
Fourier ring correlation between the averages of two independent halves. The spectrum of real particles
holds their signal, too, so that noise is hard on a model: it has grains of the size of a particle.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch
from pairs import denoise, read_particles
from torch import Tensor

from cryohush.core.metrics.hallucination import PureNoiseFigures, coloured_noise, pure_noise_figures
from cryohush.core.models.weights import load_model


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(arguments.seed)
    noises: dict[str, Tensor] = {}
    side = arguments.box
    if arguments.spectrum:
        images = read_particles(arguments.spectrum).images
        side = images.shape[-1]
    white = torch.randn(arguments.images, side, side, generator=generator)
    noises["white"] = white
    if arguments.spectrum:
        # the same draw as the white noise
        generator = torch.Generator().manual_seed(arguments.seed)
        noises["spectrum of the particles"] = coloured_noise(arguments.images, images, generator)
    result: dict[str, dict[str, object]] = {}
    for name in arguments.models:
        model = load_model(name)
        result[name] = {"sha256": model.sha256}
        for kind, noise in noises.items():
            figures = pure_noise_figures(noise, denoise(model, noise, arguments.device, arguments.precision))
            result[name][kind] = asdict(figures)
            print(f"{name}, {kind} noise: {sentence(figures)}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Show what a model makes of pure noise.")
    parser.add_argument("--models", nargs="+", default=["general"], help="names or files (default: general)")
    parser.add_argument("--spectrum", type=Path, help="particles (.star or .mrcs) whose spectrum to imitate")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument(
        "--box", type=int, default=128, help="side in pixels, without --spectrum (default: 128)"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True, help="JSON file")
    return parser.parse_args()


def sentence(figures: PureNoiseFigures) -> str:
    beyond = slice(4, len(figures.half_set_frc) // 2)
    output = torch.tensor(figures.half_set_frc[beyond]).mean()
    raw = torch.tensor(figures.half_set_frc_of_input[beyond]).mean()
    return (
        f"variance {figures.variance_ratio:.4f} of the input's, correlation between outputs "
        f"{figures.correlation_between_outputs:.4f} (inputs {figures.correlation_between_inputs:.4f}), "
        f"half-set FRC {output:.2f} (inputs {raw:.2f}) on average from ring 4 to half of Nyquist"
    )


if __name__ == "__main__":
    main()
