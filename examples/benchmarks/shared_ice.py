"""How much of the grain between particles is ice that another exposure shows again, and how much is noise.

    python shared_ice.py --raw micrographs_rest.star --twin micrographs_frame.star --picks PICKS
        --diameter 130 --output DIR

The two tables list the same exposures in the same order, averages of different frames, so that their noise is
independent; `PICKS/<name>*.star` holds the particles' centres. The drift between the halves is taken back.
Windows of 64 px are sorted by the distance of their centre from the nearest particle's: empty ones hold no
particle, the others lie on one. For each kind and each Fourier ring the table has

- SSNR: what the mean power exceeds the noise by, in units of the noise, which is taken to be white;
- shared: the cross-spectrum with the twin by that excess. Where all of the excess is specimen that both
  halves show, it is the same number in every ring: the ratio of the halves' contrasts.

So a ring of empty windows with an SSNR above 0, and as much shared as the rings of the particles, is ice (or
protein too small or too broken to be picked) that a filter must keep to agree with the twin.
Writes shared_ice.md and shared_ice.json to DIR.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from micrograph_pairs import read_micrographs
from realism import read_centres
from scipy.spatial import KDTree
from torch import Tensor

from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.metrics.fourier import ring_products
from cryohush.core.metrics.independent import align_twin, white_noise_power

WINDOW_PX, STEP_PX = 64, 16
FINEST_ANGSTROM = 10.0


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    raw, pixel_size = read_micrographs(arguments.raw)
    twin, _ = read_micrographs(arguments.twin)
    twin, _ = align_twin(raw, twin, [str(number) for number in range(len(raw))])
    found: dict[str, list[tuple[Tensor, Tensor]]] = {"empty": [], "particle": []}
    for image, other, name in zip(raw, twin, MicrographSet.read(arguments.raw).stacks, strict=True):
        (picks,) = arguments.picks.glob(f"{name.stem}*.star")
        pair = torch.stack([image, other])
        for kind, chosen in sort_windows(
            (image.shape[0], image.shape[1]), read_centres(picks), arguments.diameter / 2 / pixel_size
        ).items():
            found[kind] += [
                (pair[0, y : y + WINDOW_PX, x : x + WINDOW_PX], pair[1, y : y + WINDOW_PX, x : x + WINDOW_PX])
                for y, x in chosen
            ]
    spectra = {kind: spectrum(pairs) for kind, pairs in found.items()}
    result = {
        "windows": {kind: len(pairs) for kind, pairs in found.items()},
        "resolution_angstrom": [WINDOW_PX * pixel_size / ring for ring in range(1, WINDOW_PX // 2 + 1)],
        **{
            kind: {"ssnr": ssnr.tolist(), "shared": shared.tolist()}
            for kind, (ssnr, shared) in spectra.items()
        },
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "shared_ice.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = markdown(result["windows"], WINDOW_PX * pixel_size, spectra)
    (arguments.output / "shared_ice.md").write_text(table, encoding="utf-8")
    print(table)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Ice between particles that independent exposures share.")
    parser.add_argument("--raw", type=Path, required=True, help="micrographs (.star)")
    parser.add_argument("--twin", type=Path, required=True, help="the same exposures with independent noise")
    parser.add_argument("--picks", type=Path, required=True, help="folder of coordinate STAR files")
    parser.add_argument("--diameter", type=float, required=True, help="of the particle, Å")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def sort_windows(
    shape: tuple[int, int], centres: np.ndarray, radius_px: float
) -> dict[str, list[tuple[int, int]]]:
    """Corners (y, x) of the windows that hold no part of a particle, and of those in the middle of one."""
    corners = [
        (y, x)
        for y in range(0, shape[0] - WINDOW_PX + 1, STEP_PX)
        for x in range(0, shape[1] - WINDOW_PX + 1, STEP_PX)
    ]
    distance, _ = KDTree(centres).query(np.array(corners) + WINDOW_PX / 2)
    # the corners of a window count for little behind the taper
    empty, inside = distance > radius_px + 0.375 * WINDOW_PX, distance < radius_px / 4
    return {
        kind: [corner for corner, taken in zip(corners, chosen, strict=True) if taken]
        for kind, chosen in (("empty", empty), ("particle", inside))
    }


def spectrum(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """SSNR and share of the excess that the twin shows, by ring from 1 on, of windows and their twins."""
    hann = torch.hann_window(WINDOW_PX, periodic=False)
    taper = hann[:, None] * hann[None, :]
    sums, noise = torch.zeros(2, WINDOW_PX // 2), torch.zeros(())
    for window, other in pairs:
        tapered = torch.stack([(part - part.mean()) * taper for part in (window, other)])
        cross, power, _ = ring_products(tapered[0], tapered[1])
        sums += torch.stack([cross, power])[:, 1:]
        noise += white_noise_power(tapered[:1])[0]
    excess = sums[1] - noise
    return excess / noise, sums[0] / excess


def markdown(windows: dict[str, int], side_angstrom: float, spectra: dict[str, tuple[Tensor, Tensor]]) -> str:
    kinds = list(spectra)
    lines = [
        "| resolution (Å) | " + " | ".join(f"SSNR, {kind} | shared, {kind}" for kind in kinds) + " |",
        "|---" * (1 + 2 * len(kinds)) + "|",
    ]
    for ring in range(1, int(side_angstrom / FINEST_ANGSTROM) + 1):
        cells = [
            f"{ssnr[ring - 1]:.2f} | {shared[ring - 1]:.3f}" if ssnr[ring - 1] > 0 else "0 | "
            for ssnr, shared in spectra.values()
        ]
        lines.append(f"| {side_angstrom / ring:.0f} | " + " | ".join(cells) + " |")
    counts = ", ".join(f"{count} {kind}" for kind, count in windows.items())
    return "\n".join([f"Windows: {counts}.", "", *lines, ""])


if __name__ == "__main__":
    main()
