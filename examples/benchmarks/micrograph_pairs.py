"""Score denoised micrographs against independent noisy micrographs of the same exposures.

    python micrograph_pairs.py --raw micrographs_rest.star --twin micrographs_frame.star --output DIR
        [--models general weights.safetensors ...] [--topaz-python PYTHON] [--align-twin]

The two tables list the same exposures in the same order, averages of different frames, so their noise is
independent. Only `--raw` is denoised. The score is the mean over micrographs of the correlation with twins,
once of all frequencies and once of those from 1/200 to 1/10 per Å: coarser ones hold the ice, which both
halves share, finer ones hardly any signal. --align-twin takes the drift between the halves back first.

The Gaussian filter is scanned on these very pairs: listed is the best that it can do, which no user without
the twin would get. "gain" is the difference from it, micrograph by micrograph, with the standard error of a
bootstrap over micrographs. Writes scores.md and scores.json to DIR.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from independent_pairs import BEST_GAUSSIAN, SIGMAS_ANGSTROM, topaz
from torch import Tensor

from cryohush.core.errors import InputError
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.devices import choose_precision
from cryohush.core.inference.micrographs import MicrographDenoiser
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.io.mrc import StackReader
from cryohush.core.metrics.fourier import band_correlation
from cryohush.core.metrics.independent import align_twin, bootstrap_score
from cryohush.core.models.weights import LoadedModel, load_model

COARSEST_ANGSTROM, FINEST_ANGSTROM = 200.0, 10.0
BANDS = {"all": (float("inf"), 0.0), "band": (COARSEST_ANGSTROM, FINEST_ANGSTROM)}


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

    def quality(sigma: float) -> float:
        return float(scores(gaussian_filter(raw, sigma / pixel_size), twin, pixel_size)["band"].mean())

    sigma = max(SIGMAS_ANGSTROM, key=quality)
    denoised[BEST_GAUSSIAN] = gaussian_filter(raw, sigma / pixel_size)
    if arguments.topaz_python:
        denoised["Topaz unet"] = topaz(arguments.topaz_python, raw, "unet", arguments.threads)
    for name in arguments.models:
        denoised[f"cryohush {Path(name).stem}"] = denoise(load_model(name), raw, arguments.precision)
    report(denoised, twin, pixel_size, sigma, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score denoised micrographs against independent ones.")
    parser.add_argument("--raw", type=Path, required=True, help="micrographs to denoise (.star)")
    parser.add_argument("--twin", type=Path, required=True, help="the same exposures with independent noise")
    parser.add_argument("--models", nargs="*", default=["general"], help="names or files (default: general)")
    parser.add_argument("--topaz-python", help="python of an environment with topaz-em 0.3.20")
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


def denoise(model: LoadedModel, images: Tensor, precision: Any) -> Tensor:
    """Denoise `(n, y, x)` micrographs, in which protein is dark, as `cryohush denoise` does."""
    device = torch.device("cpu")
    number_format, _ = choose_precision(device, precision, model.module)
    denoiser = MicrographDenoiser(Denoiser(model.module, device, number_format))
    return torch.from_numpy(np.stack([-denoiser.denoise(-image)[0] for image in images.numpy()]))


def scores(images: Tensor, twin: Tensor, pixel_size: float) -> dict[str, Tensor]:
    """Correlation of each micrograph with its twin `(n,)`, by band."""
    return {
        band: band_correlation(images, twin, pixel_size, coarsest_angstrom=coarsest, finest_angstrom=finest)
        for band, (coarsest, finest) in BANDS.items()
    }


def report(
    denoised: dict[str, Tensor], twin: Tensor, pixel_size: float, sigma: float, arguments: argparse.Namespace
) -> None:
    values = {name: scores(images, twin, pixel_size) for name, images in denoised.items()}
    rows: dict[str, dict[str, Any]] = {}
    lines = [
        f"Mean correlation with the independent micrograph, {len(twin)} micrographs"
        + (", drift between the halves taken back." if arguments.align_twin else "."),
        "",
        f"| | all | gain | {COARSEST_ANGSTROM:g} to {FINEST_ANGSTROM:g} Å | gain |",
        "|---|---|---|---|---|",
    ]
    for name, found in values.items():
        cells, rows[name] = [f"{name} (sigma {sigma:g} Å)" if name == BEST_GAUSSIAN else name], {}
        for band in BANDS:
            gain = bootstrap_score(found[band] - values[BEST_GAUSSIAN][band])
            cells += [f"{float(found[band].mean()):.4f}", f"{gain.mean:+.4f} ± {gain.standard_error:.4f}"]
            rows[name][band] = {
                "score": found[band].tolist(),
                "gain": gain.mean,
                "error": gain.standard_error,
            }
        lines.append("| " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    arguments.output.mkdir(parents=True, exist_ok=True)
    record = {"sigma_angstrom": sigma, "align_twin": arguments.align_twin, "rows": rows}
    (arguments.output / "scores.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "scores.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
