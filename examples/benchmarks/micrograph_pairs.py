"""Score denoised micrographs against independent noisy micrographs of the same exposures.

    python micrograph_pairs.py --raw micrographs_rest.star --twin micrographs_frame.star --output DIR
        [--models general NAME=weights.safetensors ...] [--topaz-python PYTHON] [--bm3d] [--align-twin]
        [--picks FOLDER --diameter ANGSTROM]

The two tables list the same exposures in the same order, averages of different frames, so their noise is
independent. Only `--raw` is denoised. The score is the mean over micrographs of the correlation with twins,
once of all frequencies and once of those from 1/200 to 1/10 per Å: coarser ones hold the ice, which both
halves share, finer ones hardly any signal. --align-twin takes the drift between the halves back first.

The Gaussian and the low-pass filter are scanned on these very pairs: listed is the best that they can do,
which no user without the twin would get. "gain" is the difference from the Gaussian, micrograph by
micrograph, with the standard error of a bootstrap over micrographs.

With labelled particles (`FOLDER/<micrograph>_manualpick.star`) the table also has two figures of pairs of a
particle and the nearest empty place, in dB: the variance ratio (equation 5 of NT2C) and the mean contrast
(Topaz-Denoise's). Both reward a flat background without limit, and neither is evidence alone. And pickers on
the denoised micrographs against the labels, within half a diameter: precision, recall and F1 at the threshold
that is best for each, and the average precision, which needs none. They are two of our own and, with
--topaz-python, Topaz's pretrained detector.

With simulated micrographs the twins may be the clean ones.
Writes scores.md and scores.json to DIR, and keeps there what BM3D and Topaz, which are slow, made of the
micrographs: another run with that DIR takes it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from independent_pairs import BEST_GAUSSIAN, CUT_OFFS_ANGSTROM, SIGMAS_ANGSTROM, topaz
from topaz_detector import detect
from torch import Tensor

from cryohush.core.classical.baselines import BASELINES
from cryohush.core.errors import InputError
from cryohush.core.imaging.filters import gaussian_filter, low_pass
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.devices import choose_precision
from cryohush.core.inference.micrograph_denoiser import MicrographDenoiser
from cryohush.core.io.coordinates import read_coordinates
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.io.mrc import StackReader
from cryohush.core.metrics.fourier import band_correlation
from cryohush.core.metrics.image import region_signal_to_noise_ratio, region_variance_ratio
from cryohush.core.metrics.independent import align_twin, bootstrap_score
from cryohush.core.metrics.picking import (
    Picks,
    average_precision,
    nearest_background,
    pick_blobs,
    pick_by_mean_shift,
    score_picks,
    square_regions,
)
from cryohush.core.models.weights import LoadedModel, load_model

COARSEST_ANGSTROM, FINEST_ANGSTROM = 200.0, 10.0
BANDS = {"all": (float("inf"), 0.0), "band": (COARSEST_ANGSTROM, FINEST_ANGSTROM)}
DETECTOR = "Topaz's detector"
PICKERS = {"Laplacian of Gaussian": pick_blobs, "mean shift": pick_by_mean_shift}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    raw, pixel_size = read_micrographs(arguments.raw)
    twin, twin_pixel_size = read_micrographs(arguments.twin)
    if raw.shape != twin.shape or pixel_size != twin_pixel_size:
        raise InputError("raw and twin must be of one size and pixel size.", path=arguments.twin)
    if arguments.align_twin:
        twin, _ = align_twin(raw, twin, [str(number) for number in range(len(raw))])
    denoised = {"raw": raw}

    def quality(images: Tensor) -> float:
        return float(scores(images, twin, pixel_size)["band"].mean())

    sigma = max(SIGMAS_ANGSTROM, key=lambda sigma: quality(gaussian_filter(raw, sigma / pixel_size)))
    cut_off = max(CUT_OFFS_ANGSTROM, key=lambda cut_off: quality(low_pass(raw, cut_off, pixel_size)))
    denoised[BEST_GAUSSIAN] = gaussian_filter(raw, sigma / pixel_size)
    denoised["best low-pass"] = low_pass(raw, cut_off, pixel_size)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.bm3d:
        bm3d = BASELINES["bm3d"]
        made = kept(arguments.output / "bm3d.npy", lambda: bm3d.denoise(raw, bm3d.default))
        denoised["BM3D"] = made
    if arguments.topaz_python:
        made = kept(
            arguments.output / "topaz.npy",
            lambda: topaz(arguments.topaz_python, raw, "unet", arguments.threads),
        )
        denoised["Topaz unet"] = made
    for model in arguments.models:
        name, _, path = model.rpartition("=")
        denoised[f"cryohush {name or path}"] = denoise(load_model(path), raw, pixel_size, arguments.precision)
    settings = {"sigma_angstrom": sigma, "cut_off_angstrom": cut_off}
    report(denoised, twin, pixel_size, settings, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score denoised micrographs against independent ones.")
    parser.add_argument("--raw", type=Path, required=True, help="micrographs to denoise (.star)")
    parser.add_argument("--twin", type=Path, required=True, help="the same exposures with independent noise")
    parser.add_argument(
        "--models", nargs="*", default=["general"], help="names, or NAME=FILE (default: general)"
    )
    parser.add_argument("--topaz-python", help="python of an environment with topaz-em 0.3.20")
    parser.add_argument("--bm3d", action="store_true", help="add BM3D: minutes for each micrograph")
    parser.add_argument("--picks", type=Path, help="folder of <micrograph>_manualpick.star")
    parser.add_argument("--diameter", type=float, help="of the particle, Å")
    parser.add_argument("--align-twin", action="store_true", help="take the drift between the halves back")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True, help="folder for scores.md and .json")
    return parser.parse_args()


def read_micrographs(path: Path) -> tuple[Tensor, float]:
    """Return all micrographs of a table `(n, y, x)` and their pixel size in Å."""
    table = MicrographSet.read(path)
    if len(set(table.check_images())) != 1:
        raise InputError("expected micrographs of one size.", path=path)
    pixel_size = table.pixel_size_angstrom(0)
    if pixel_size is None:
        raise InputError("the pixel size is not known.", path=path)
    images = []
    for stack in table.stacks:
        with StackReader(stack) as reader:
            images.append(reader.read([0])[0])
    return torch.from_numpy(np.stack(images)), pixel_size


def denoise(model: LoadedModel, images: Tensor, pixel_size: float, precision: Any) -> Tensor:
    """Denoise `(n, y, x)` micrographs, in which protein is dark, as `cryohush denoise` does."""
    device = torch.device("cpu")
    number_format, _ = choose_precision(device, precision)
    denoiser = MicrographDenoiser(Denoiser(model.module, device, number_format))
    denoised = [-denoiser.denoise(-image, pixel_size_angstrom=pixel_size)[0] for image in images.numpy()]
    return torch.from_numpy(np.stack(denoised))


def kept(path: Path, make: Callable[[], Tensor]) -> Tensor:
    """What an earlier run made, or make it."""
    if not path.exists():
        np.save(path, make().numpy())
    return torch.from_numpy(np.load(path))


def scores(images: Tensor, twin: Tensor, pixel_size: float) -> dict[str, Tensor]:
    """Correlation of each micrograph with its twin `(n,)`, by band."""
    return {
        band: band_correlation(images, twin, pixel_size, coarsest_angstrom=coarsest, finest_angstrom=finest)
        for band, (coarsest, finest) in BANDS.items()
    }


def read_labels(path: Path, folder: Path) -> list[Tensor]:
    """Return the labelled centres `(n, 2)` (y, x) in pixels of each micrograph of a table."""
    files = (folder / f"{stack.stem}_manualpick.star" for stack in MicrographSet.read(path).stacks)
    return [torch.from_numpy(read_coordinates(file)).float() for file in files]


#: figures of a particle and an empty place, by the column that holds them
REGION_RATIOS = {
    "variance ratio, dB": region_variance_ratio,
    "mean contrast, dB": region_signal_to_noise_ratio,
}


def region_ratios(images: Tensor, labels: list[Tensor], diameter_px: float) -> dict[str, float]:
    """Means in dB over pairs of a particle and the nearest empty place; protein is dark."""
    side = round(0.7 * diameter_px)
    inside: list[Tensor] = []
    outside: list[Tensor] = []
    for image, particles in zip(-images, labels, strict=True):
        shape = (image.shape[0], image.shape[1])
        centres, particle = nearest_background(shape, particles, diameter_px, side)
        inside += square_regions(image, particles[particle], side)
        outside += square_regions(image, centres, side)
    return {name: float(ratio(inside, outside).mean()) for name, ratio in REGION_RATIOS.items()}


def pickers(images: Tensor, pixel_size: float, arguments: argparse.Namespace) -> dict[str, list[Picks]]:
    """Places in each micrograph, by picker."""
    diameter_px = arguments.diameter / pixel_size
    found = {
        name: [
            picker(-image, diameter_px, **({"threshold": 0.0} if picker is pick_blobs else {}))
            for image in images
        ]
        for name, picker in PICKERS.items()
    }
    if arguments.topaz_python:
        python, threads = arguments.topaz_python, arguments.threads
        found[DETECTOR] = detect(images, pixel_size, arguments.diameter, python, threads)
    return found


def picking(found: list[Picks], labels: list[Tensor], diameter_px: float) -> list[float]:
    """Precision, recall, F1 at the threshold that is best for all micrographs, and average precision."""
    thresholds = torch.cat([picks.scores for picks in found]).quantile(torch.linspace(0, 0.95, 40))

    def at(threshold: float) -> Any:
        kept = [picks.centres_px[picks.scores >= threshold] for picks in found]
        scored = [score_picks(*pair, diameter_px / 2) for pair in zip(kept, labels, strict=True)]
        total = scored[0]
        for one in scored[1:]:
            total = total + one
        return total

    best = max((at(float(threshold)) for threshold in thresholds), key=lambda scored: scored.f1)
    in_order = [Picks(picks.centres_px, picks.scores) for picks in found]
    return [best.precision, best.recall, best.f1, average_precision(in_order, labels, diameter_px / 2)]


def report(
    denoised: dict[str, Tensor],
    twin: Tensor,
    pixel_size: float,
    settings: dict[str, float],
    arguments: argparse.Namespace,
) -> None:
    values = {name: scores(images, twin, pixel_size) for name, images in denoised.items()}
    labels = read_labels(arguments.raw, arguments.picks) if arguments.picks else None
    names = [*PICKERS, *([DETECTOR] if arguments.topaz_python else [])]
    head = ["", "all", "gain", f"{COARSEST_ANGSTROM:g} to {FINEST_ANGSTROM:g} Å", "gain"]
    head += [] if labels is None else [*REGION_RATIOS, *(f"{name}: P / R / F1 / AP" for name in names)]
    lines = [
        f"Mean correlation with the independent micrograph, {len(twin)} micrographs"
        + (", drift between the halves taken back." if arguments.align_twin else "."),
        "",
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
    ]
    rows: dict[str, dict[str, Any]] = {}
    for name, found in values.items():
        cells, rows[name] = [name], {}
        for band in BANDS:
            gain = bootstrap_score(found[band] - values[BEST_GAUSSIAN][band])
            cells += [f"{float(found[band].mean()):.4f}", f"{gain.mean:+.4f} ± {gain.standard_error:.4f}"]
            rows[name][band] = {
                "score": found[band].tolist(),
                "gain": gain.mean,
                "error": gain.standard_error,
            }
        if labels is not None:
            diameter_px = arguments.diameter / pixel_size
            ratios = region_ratios(denoised[name], labels, diameter_px)
            places = pickers(denoised[name], pixel_size, arguments)
            picked = {kind: picking(some, labels, diameter_px) for kind, some in places.items()}
            rows[name] |= {**ratios, **picked}
            cells += [f"{ratio:+.2f}" for ratio in ratios.values()]
            cells += [" / ".join(f"{value:.3f}" for value in found) for found in picked.values()]
        lines.append("| " + " | ".join(cells) + " |")
    record = {"settings": settings, "align_twin": arguments.align_twin, "rows": rows}
    table = "\n".join(lines) + "\n"
    (arguments.output / "scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "scores.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
