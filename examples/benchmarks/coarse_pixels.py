"""Whether a network should see coarse pixels as they are or on a finer grid, by how bright they are.

    python coarse_pixels.py --structures DIR --ctf-table TABLE.npy --output DIR
        [--particles rest.star frame.star --micrographs rest.star frame.star]

Simulated particles (64 px) of structures that the shipped models never saw, from weak to strong signal: their
error, |estimate - clean|^2 over |clean|^2, as they are and on a grid twice as fine. Real particles and
micrographs with a second table of the same exposures whose noise is independent, binned to several pixel
sizes: their gain over the raw images in correlation with the second, from 64 Å to 2.2 pixels, all rings at
equal power. "brightness" is what the rule goes by (`imaging.rings.brightness`). Without context. Writes
coarse_pixels.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from test_set import Condition, find_structure, make_specimen, make_stack
from torch import Tensor

from cryohush.core.imaging.ctf import read_ctf_table
from cryohush.core.imaging.resample import fourier_resample
from cryohush.core.imaging.rings import brightness
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.micrograph_denoiser import MicrographDenoiser
from cryohush.core.inference.plan import COARSE_SHARE, read_images, sample
from cryohush.core.io.mrc import StackReader
from cryohush.core.metrics.gain import RingGain, spectra
from cryohush.core.models.weights import load_model

STRUCTURES = ("6xlu", "1bxn", "4zxb")
RATIOS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
PIXELS_ANGSTROM = (4.8, 6.0, 8.0, 12.0)
COARSEST_ANGSTROM, DISC_ANGSTROM = 64.0, 66.5

Denoise = Callable[[Tensor, int], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether coarse pixels should be seen on a finer grid.")
    parser.add_argument("--structures", type=Path, required=True, help="folder of PDB or mmCIF files")
    parser.add_argument("--ctf-table", type=Path, required=True, help="a table of real CTFs (.npy)")
    for kind in ("particles", "micrographs"):
        parser.add_argument(f"--{kind}", nargs=2, type=Path, metavar=("RAW", "TWIN"), help="two .star files")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    model = load_model("general")
    denoiser = Denoiser(model.module)
    coarsest = COARSE_SHARE * (model.trained_pixel_sizes_angstrom or (0.0, 6.0))[1]
    table = simulated(arguments, partial(of_particles, denoiser))
    for kind, denoise in (("particles", of_particles), ("micrographs", of_micrographs)):
        if getattr(arguments, kind):
            table += real(kind, *getattr(arguments, kind), partial(denoise, denoiser), coarsest)
    print(table)
    (arguments.output / "coarse_pixels.md").write_text(table, encoding="utf-8")


def of_particles(denoiser: Denoiser, images: Tensor, finer: int) -> Tensor:
    parts = [denoiser.denoise(some.numpy(), finer=finer)[0] for some in images.split(32)]
    return torch.from_numpy(np.concatenate(parts))


def of_micrographs(denoiser: Denoiser, images: Tensor, finer: int) -> Tensor:
    """Protein is dark in them."""
    whole = MicrographDenoiser(denoiser)
    return torch.from_numpy(np.stack([-whole.denoise(-image.numpy(), finer=finer)[0] for image in images]))


def simulated(arguments: argparse.Namespace, denoise: Denoise) -> str:
    table = read_ctf_table(arguments.ctf_table)
    size = argparse.Namespace(box=64, quick=True, stack=128, linear_images=1)
    lines = [
        "| structure, noise | SNR | brightness | error as it is | on a grid twice as fine |",
        "|---" * 5 + "|",
    ]
    for name in STRUCTURES:
        specimen = make_specimen(
            find_structure(arguments.structures, name), size, torch.Generator().manual_seed(1)
        )
        for noise in ("white, no CTF", "coloured, CTF"):
            for snr in RATIOS:
                condition = Condition(noise, snr, noise.startswith("coloured"))
                stack = make_stack(specimen, condition, table, torch.Generator().manual_seed(2))
                errors = [
                    float(
                        (denoise(stack.noisy, finer) - stack.clean).square().sum()
                        / stack.clean.square().sum()
                    )
                    for finer in (1, 2)
                ]
                lines.append(
                    f"| {name}, {noise} | {snr:g} | {brightness(stack.noisy):.2f} | {errors[0]:.3f} | "
                    f"{errors[1]:.3f} |"
                )
    return "\n".join(lines) + "\n"


def real(kind: str, raw_table: Path, twin_table: Path, denoise: Denoise, coarsest: float) -> str:
    """The gain on binned images of two tables that list the same exposures in the same order."""
    (raw, pixel_size), (twin, _) = (read_square(path) for path in (raw_table, twin_table))
    is_micrograph = kind == "micrographs"
    lines = [f"\n| real {kind} | brightness | gain as they are | on a finer grid |", "|---" * 4 + "|"]
    for wanted in PIXELS_ANGSTROM:
        side = round(raw.shape[-1] * pixel_size / wanted / 2) * 2
        angstrom = raw.shape[-1] * pixel_size / side
        some, others = fourier_resample(raw, (side, side)), fourier_resample(twin, (side, side))
        radius_px = 0.45 * side if is_micrograph else DISC_ANGSTROM / angstrom
        transform = partial(spectra, radius_px=radius_px, pixel_size_angstrom=angstrom)
        judge = RingGain(transform(some), transform(others))
        gains = [
            judge.whole(transform(denoise(some, finer)), (COARSEST_ANGSTROM, 2.2 * angstrom))
            for finer in (1, int(np.ceil(angstrom / coarsest)))
        ]
        cells = " | ".join(f"{gain.gain:.3f} ± {gain.standard_error:.3f}" for gain in gains)
        bright = brightness(sample(some.numpy(), is_micrograph=is_micrograph))
        lines.append(f"| {angstrom:.1f} Å | {bright:.2f} | {cells} |")
    return "\n".join(lines) + "\n"


def read_square(path: Path) -> tuple[Tensor, float]:
    """All images `(n, side, side)` of a table, a square of each, and their pixel size, Å."""
    images, parts = read_images(path), []
    for source in images.stacks:
        with StackReader(source) as reader:
            parts.append(torch.from_numpy(reader.read(range(reader.n_images))))
    side = min(min(part.shape[1:]) for part in parts)
    return torch.cat([part[:, :side, :side] for part in parts]), float(images.pixel_size_angstrom(0) or 1)


if __name__ == "__main__":
    main()
