"""Whether a network should see coarse pixels as they are or on a finer grid.

    python coarse_pixels.py --structures DIR --ctf-table TABLE.npy --output DIR
        [--particles rest.star frame.star --micrographs rest.star frame.star]

Stacks of `test_set.py` (64 px), from weak to strong signal: their error, |estimate - clean|^2 over |clean|^2,
and the error that the network expects over the one that it makes (root mean squares), as they are and on a
grid twice as fine. Simulated exposures at the dose of real ones, of a small and a large complex: the same of
boxes, the error of whole micrographs, and their gain over the raw images in correlation with the clean ones,
from 64 Å to 2.2 pixels, all rings at equal power. Real particles and micrographs with a second table of
the same exposures whose noise is independent, binned to several pixel sizes: their gain in correlation with
the second. "brightness" is `imaging.rings.brightness`, and of the stacks that beside their noise, coloured or
not (`context.noise_spectrum`), by which a job goes. No structure was used to train the shipped models, and no
image gets a context. Writes coarse_pixels.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from test_set import Condition, find_structure, make_specimen, make_stack
from torch import Tensor
from user_tasks import centres_of, imaging_settings, structure_file

from cryohush.core.context.noise_spectrum import brightness_beside_noise
from cryohush.core.imaging.ctf import read_ctf_table
from cryohush.core.imaging.resample import fourier_resample
from cryohush.core.imaging.rings import brightness
from cryohush.core.imaging.structure import read_structure
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.micrograph_denoiser import MicrographDenoiser
from cryohush.core.inference.plan import read_images
from cryohush.core.io.mrc import StackReader
from cryohush.core.metrics.gain import BandGain, RingGain, spectra
from cryohush.core.metrics.picking import square_regions
from cryohush.core.models.weights import load_model
from cryohush.core.simulation.micrograph import SimulatedMicrograph, Species, simulate_micrograph
from cryohush.core.spread import evenly_spread

STRUCTURES, EXPOSED = ("6xlu", "1bxn", "4zxb"), ("2cg9", "6xlu")
RATIOS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
EXPOSED_ANGSTROM, BINNED_ANGSTROM = (3.3, 4.2, 5.0, 6.0), (3.0, 3.6, 4.2, 4.8, 6.0, 8.0, 12.0)
# The finer grid is the coarsest, of two times or more, whose pixels are no larger.
FINE_ANGSTROM = 4.5
COARSEST_ANGSTROM, DISC_ANGSTROM = 64.0, 66.5
BOX_PX, BOXES = 64, 128

Denoise = Callable[[Tensor, int, float], Tensor]


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
    denoiser = Denoiser(load_model("general").module)
    ways = {"particles": partial(of_particles, denoiser), "micrographs": partial(of_micrographs, denoiser)}
    table = stacks(arguments, denoiser) + exposures(arguments, denoiser, ways)
    for kind, denoise in ways.items():
        if getattr(arguments, kind):
            table += real(kind, *getattr(arguments, kind), denoise)
    print(table)
    (arguments.output / "coarse_pixels.md").write_text(table, encoding="utf-8")


def of_particles(denoiser: Denoiser, images: Tensor, finer: int, angstrom: float = 0.0) -> Tensor:
    parts = [denoiser.denoise(some.numpy(), finer=finer)[0] for some in images.split(32)]
    return torch.from_numpy(np.concatenate(parts))


def of_micrographs(denoiser: Denoiser, images: Tensor, finer: int, angstrom: float) -> Tensor:
    """Protein is dark in them."""
    denoise = partial(MicrographDenoiser(denoiser).denoise, pixel_size_angstrom=angstrom, finer=finer)
    return torch.from_numpy(np.stack([-denoise(-image.numpy())[0] for image in images]))


def stacks(arguments: argparse.Namespace, denoiser: Denoiser) -> str:
    table = read_ctf_table(arguments.ctf_table)
    size = argparse.Namespace(box=BOX_PX, quick=True, stack=BOXES, linear_images=1)
    lines = [
        "| stack, noise | SNR | brightness | error, expected error as they are | on a finer grid |",
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
                cells = []
                for finer in (1, 2):
                    denoised = of_particles(denoiser, stack.noisy, finer)
                    told = expected_over_true(denoiser, stack.noisy, denoised - stack.clean, finer)
                    cells.append(f"{error_of(denoised, stack.clean):.3f}, {told:.2f}")
                bright = brightness_beside_noise(stack.noisy, stack.optics, stack.pixel_size_angstrom)
                start = f"| {name}, {noise} | {snr:g} | {bright:.2f} | "
                lines.append(start + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def exposures(arguments: argparse.Namespace, denoiser: Denoiser, ways: dict[str, Denoise]) -> str:
    """Errors and gains on simulated exposures, three of each."""
    lines = [
        "\n| simulated exposures | brightness | error, gain, expected error as they are | on a finer grid |",
        "|---" * 4 + "|",
    ]
    for name in EXPOSED:
        path = structure_file(arguments.structures, name)
        radius = read_structure(path).radius_angstrom
        for angstrom in EXPOSED_ANGSTROM:
            what = f"of {name}, {angstrom:g} Å"
            species, settings = [Species.from_structure(path, angstrom)], imaging_settings(angstrom, radius)
            made = [simulate_micrograph(species, settings, 100, number) for number in range(3)]
            whole = [torch.stack([getattr(one, name) for one in made]) for name in ("image", "clean")]
            sets = {
                "particles": [boxes_of(images, made) for images in whole],
                "micrographs": [-images for images in whole],
            }
            for kind, (noisy, clean) in sets.items():
                radius_px = 1.1 * radius / angstrom if kind == "particles" else 0.45 * noisy.shape[-1]
                cells = []
                for finer in (1, 2):
                    denoised = ways[kind](noisy, finer, angstrom)
                    gain = gain_of(denoised, noisy, clean, radius_px, angstrom)
                    cell = f"{error_of(denoised, clean):.3f}, {gain.gain:.3f}"
                    if kind == "particles":
                        cell += f", {expected_over_true(denoiser, noisy, denoised - clean, finer):.2f}"
                    cells.append(cell)
                lines.append(f"| {kind} {what} | {brightness(noisy):.2f} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + "\n"


def boxes_of(images: Tensor, made: Sequence[SimulatedMicrograph]) -> Tensor:
    """`(BOXES, BOX_PX, BOX_PX)` of particles, from all micrographs."""
    half, boxes = BOX_PX // 2, []
    for image, one in zip(images, made, strict=True):
        middles = centres_of(one).round()
        inside = ((middles >= half) & (middles < min(image.shape) - half)).all(1)
        boxes.append(square_regions(image, middles[inside], BOX_PX))
    every = torch.cat(boxes)
    return every[torch.from_numpy(evenly_spread(len(every), BOXES))]


def real(kind: str, raw_table: Path, twin_table: Path, denoise: Denoise) -> str:
    """The gain on binned images of two tables that list the same exposures in the same order."""
    (raw, pixel_size), (twin, _) = (read_square(path) for path in (raw_table, twin_table))
    lines = [f"\n| real {kind} | brightness | gain as they are | on a finer grid |", "|---" * 4 + "|"]
    for wanted in BINNED_ANGSTROM:
        side = round(raw.shape[-1] * pixel_size / wanted / 2) * 2
        angstrom = raw.shape[-1] * pixel_size / side
        some, others = fourier_resample(raw, (side, side)), fourier_resample(twin, (side, side))
        radius_px = 0.45 * side if kind == "micrographs" else DISC_ANGSTROM / angstrom
        finer = max(2, int(np.ceil(angstrom / FINE_ANGSTROM - 1e-9)))
        gains = [
            gain_of(denoise(some, grid, angstrom), some, others, radius_px, angstrom) for grid in (1, finer)
        ]
        cells = " | ".join(f"{gain.gain:.3f} ± {gain.standard_error:.3f}" for gain in gains)
        lines.append(f"| {angstrom:.1f} Å | {brightness(some):.2f} | {cells} |")
    return "\n".join(lines) + "\n"


def error_of(denoised: Tensor, clean: Tensor) -> float:
    """Squared error over squared signal, both about the mean of each image."""
    first, second = (images - images.mean((1, 2), keepdim=True) for images in (denoised, clean))
    return float((first - second).square().sum() / second.square().sum())


def expected_over_true(denoiser: Denoiser, noisy: Tensor, error: Tensor, finer: int) -> float:
    """Root mean square of the errors that a network expects over that of the true ones `(n, y, x)`."""
    parts = [torch.from_numpy(denoiser.error(some.numpy(), finer=finer)) for some in noisy.split(32)]
    return float((torch.cat(parts).square().mean() / error.square().mean()).sqrt())


def gain_of(denoised: Tensor, raw: Tensor, twin: Tensor, radius_px: float, angstrom: float) -> BandGain:
    transform = partial(spectra, radius_px=radius_px, pixel_size_angstrom=angstrom)
    judge = RingGain(transform(raw), transform(twin))
    return judge.whole(transform(denoised), (COARSEST_ANGSTROM, 2.2 * angstrom))


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
