"""How much of what empty places show is no noise, but ice that another exposure shows again?

    python ice_in_noise.py --raw rest.star --twin frame.star --dose-ratio 41 --picks FOLDER
                           --particle-diameter A --output DIR

Methods that cut their noise out of empty places (NT2C, `cryohush extract-noise`) take all of it for noise.
The two tables list the same exposures, averages of different frames, so that their noise is independent.
Printed by band of frequency: the Fourier correlation of the two in windows that no labelled particle and no
contamination touches, and in boxes about the particles; and the share of the raw images' power that comes
back, which follows from that correlation when `--raw` has so many times the twin's dose. Writes scores.json
to DIR.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from noise_blocks import read
from noise_synthesis import empty_windows, not_overlapping
from torch import Tensor

from cryohush.core.io.coordinates import find_coordinates, read_coordinates
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.metrics.picking import square_regions
from cryohush.core.noise.patches import cut_blocks

BANDS_ANGSTROM = ((100.0, 40.0), (40.0, 21.0), (21.0, 12.0), (12.0, 6.0))


def main() -> None:
    arguments = parse_arguments()
    raw, twin = MicrographSet.read(arguments.raw), MicrographSet.read(arguments.twin)
    side = arguments.side_px
    pairs: dict[str, list[Tensor]] = {"empty": [], "particles": []}
    pixel_size = raw.pixel_size_angstrom(0)
    if pixel_size is None:
        raise SystemExit(f"{arguments.raw}: without pixel size")
    for index, (path, other) in enumerate(zip(raw.stacks, twin.stacks, strict=True)):
        images = [torch.from_numpy(read(name)) for name in (path, other)]
        windows = empty_windows(raw, index, arguments.picks, arguments.particle_diameter, side)
        origins = not_overlapping(windows, side)
        pairs["empty"].append(torch.stack([cut_blocks(image, origins, side) for image in images]))
        labelled = find_coordinates(arguments.picks, path)
        centres = torch.from_numpy(read_coordinates(labelled)) if labelled else torch.zeros(0, 2)
        pairs["particles"].append(torch.stack([square_regions(image, centres, side) for image in images]))
    places = {name: torch.cat(cut, 1) for name, cut in pairs.items()}
    found = {
        name: {band: agreement(cut, band, pixel_size) for band in BANDS_ANGSTROM}
        for name, cut in places.items()
    }
    lines = ["| | " + " | ".join(f"{low:g} to {high:g} Å" for low, high in BANDS_ANGSTROM) + " |"]
    lines.append("|---" * (len(BANDS_ANGSTROM) + 1) + "|")
    for name, bands in found.items():
        cells = [
            f"{value:.3f} / {100 * share(value, arguments.dose_ratio):.0f} %" for value in bands.values()
        ]
        lines.append(f"| {places[name].shape[1]} {name} | " + " | ".join(cells) + " |")
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {
        name: {f"{low:g}-{high:g}": value for (low, high), value in bands.items()}
        for name, bands in found.items()
    }
    (arguments.output / "scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How much of empty places another exposure shows again.")
    parser.add_argument("--raw", type=Path, required=True, help="micrographs (.star)")
    parser.add_argument("--twin", type=Path, required=True, help="the same exposures with independent noise")
    parser.add_argument(
        "--dose-ratio", type=float, required=True, help="dose of the raw ones over the twin's"
    )
    parser.add_argument("--picks", type=Path, required=True, help="folder of coordinate files")
    parser.add_argument("--particle-diameter", type=float, required=True, metavar="A", help="Å")
    parser.add_argument("--side-px", type=int, default=64, help="of a window (default: 64)")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def agreement(pairs: Tensor, band_angstrom: tuple[float, float], pixel_size_angstrom: float) -> float:
    """Fourier correlation of `(2, n, y, x)` in a band, over all images together."""
    side = pairs.shape[-1]
    window = torch.hann_window(side)
    centred = pairs - pairs.mean((-2, -1), keepdim=True)
    one, other = torch.fft.fft2(centred * window * window[:, None])
    frequency = torch.fft.fftfreq(side, pixel_size_angstrom)
    radius = torch.hypot(frequency, frequency[:, None])
    band = (radius >= 1 / band_angstrom[0]) & (radius < 1 / band_angstrom[1])
    one, other = one[:, band], other[:, band]
    return float(
        (one * other.conj()).real.sum() / (one.abs().square().sum() * other.abs().square().sum()).sqrt()
    )


def share(correlation: float, dose_ratio: float) -> float:
    """Share a of the raw power that comes back: correlation² (a + ratio (1 - a)) = a²; not below 0."""
    squared = max(correlation, 0.0) ** 2
    half = squared * (dose_ratio - 1) / 2
    return math.sqrt(half**2 + squared * dose_ratio) - half


if __name__ == "__main__":
    main()
