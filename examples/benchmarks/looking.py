"""Looking: how far must a raw micrograph be blurred until one sees the particles as well as once denoised?

    python looking.py --structures DIR --output OUT [--topaz-python PYTHON] [--quick]

Micrographs as hard as those of hard_picking.py, without contamination, one of each of its particles, which
no model was trained on. Two observers:

- eye: the probability that a place on a particle's silhouette has more contrast (variance within a Gaussian
  of 15 Å) than one on the ice (area under the ROC curve): close to focus it is grain that shows an outline,
  not darkness;
- picker: the average precision of a picker of blobs (Laplacian of Gaussian).

Raw micrographs behind low-pass filters from 10 to 150 Å, beside denoised ones; `detail` is the correlation
with the noise-free micrograph between 60 and 20 Å. A filter's equal is the finest behind which the raw
micrographs give an observer as much as the denoised ones do.

Writes looking.json, looking.md and looking.png to OUT.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hard_picking import GENERAL, PIXEL_SIZE_ANGSTROM, TARGETS, hard_settings, target_species
from independent_pairs import topaz
from matplotlib.figure import Figure
from micrograph_pairs import denoise
from sklearn.metrics import roc_auc_score
from torch import Tensor
from user_tasks import RAW, TOPAZ, Cell, Cells, centres_of, summary, table, task_parser

from cryohush.core.imaging.filters import gaussian_filter, low_pass
from cryohush.core.metrics.fourier import band_correlation
from cryohush.core.metrics.picking import average_precision, pick_blobs
from cryohush.core.models.weights import load_model
from cryohush.core.simulation.micrograph import PARTICLE, SimulatedMicrograph, simulate_micrograph

CUT_OFFS_ANGSTROM = (10, 15, 20, 25, 30, 35, 40, 50, 60, 70, 80, 100, 120, 150)
FIGURES = {"AUC of contrast": "eye", "AP of blobs": "picker", "correlation, 60 to 20 Å": "detail"}
EYE_ANGSTROM = 15.0
PIXEL_STEP = 7
CROP_PX = 300


def main() -> None:
    parser = task_parser(__doc__, "one micrograph")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.set_defaults(repeats=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.targets, arguments.repeats = arguments.targets[1:2], 1
    cells = Cells("looking", {"model": arguments.model}, arguments.output)
    found = [
        cells(f"{name}, {repeat + 1}", lambda: cell(name, repeat, arguments))  # noqa: B023
        for name in arguments.targets
        for repeat in range(arguments.repeats)
    ]
    text = f"{len(found)} micrographs\n\n" + table(found, FIGURES) + "\n"
    for method in (TOPAZ, GENERAL):
        if method in found[0]:
            for title, figure in list(FIGURES.items())[:2]:
                equal = equal_filter(found, method, figure)
                told = "no low-pass filter reaches it" if equal is None else f"raw behind {equal} Å"
                text += f"{method}, {title}: {told}.\n"
    (arguments.output / "looking.md").write_text(text, encoding="utf-8")
    print(text)
    draw(found, pictures(arguments, equal_filter(found, GENERAL, "eye")), arguments.output / "looking.png")


def micrograph(name: str, repeat: int, folder: Path) -> tuple[SimulatedMicrograph, float]:
    """A micrograph without contamination, and the particle's diameter in pixels."""
    species = target_species(name, folder)
    settings = hard_settings(
        particles_per_square_micrometre=(1500.0, 2500.0),
        carbon_probability=0.0,
        discs_per_square_micrometre=0.0,
    )
    made = simulate_micrograph([species], settings, 2000 + repeat, list(TARGETS).index(name))
    return made, 1.8 * species.radius_px


def cell(name: str, repeat: int, arguments: argparse.Namespace) -> Cell:
    made, diameter_px = micrograph(name, repeat, arguments.structures)
    raw = -made.image[None]
    methods = {RAW: raw}
    methods |= {low(cut): low_pass(raw, cut, PIXEL_SIZE_ANGSTROM) for cut in CUT_OFFS_ANGSTROM}
    if arguments.topaz_python:
        methods[TOPAZ] = topaz(arguments.topaz_python, raw, "unet", arguments.threads, whole=True)
    methods[GENERAL] = denoise(load_model(arguments.model), raw, PIXEL_SIZE_ANGSTROM, "auto")
    return {method: seen(images[0], made, diameter_px) for method, images in methods.items()}


def low(cut_off_angstrom: float) -> str:
    return f"low-pass {cut_off_angstrom:g} Å"


def seen(image: Tensor, made: SimulatedMicrograph, diameter_px: float) -> dict[str, float]:
    """What the observers get from an image `(y, x)`, protein dark, of a micrograph."""
    picks = pick_blobs(-image, diameter_px, threshold=0.0)
    detail = band_correlation(
        -image[None], made.clean[None], PIXEL_SIZE_ANGSTROM, coarsest_angstrom=60.0, finest_angstrom=20.0
    )
    return {
        "eye": contrast_auc(image, made.labels == PARTICLE),
        "picker": average_precision([picks], [centres_of(made)], diameter_px / 2),
        "detail": float(detail),
    }


def contrast_auc(image: Tensor, particle: Tensor) -> float:
    """Probability of more local contrast on a particle than off it; one pixel in `PIXEL_STEP` counts."""
    sigma_px = EYE_ANGSTROM / PIXEL_SIZE_ANGSTROM
    mean, square = (gaussian_filter(values[None], sigma_px)[0] for values in (image, image.square()))
    contrast = square - mean.square()
    truth = particle.flatten()[::PIXEL_STEP].numpy()
    return float(roc_auc_score(truth, contrast.flatten()[::PIXEL_STEP].numpy()))


def equal_filter(cells: Sequence[Cell], method: str, figure: str) -> int | None:
    """The finest low-pass filter, Å, behind which raw micrographs give at least what the method gives."""
    having = [cell for cell in cells if method in cell]
    means = {name: row["mean"] for name, row in summary(having, figure).items()}
    reached = [cut for cut in CUT_OFFS_ANGSTROM if means[low(cut)] >= means[method]]
    return min(reached, default=None)


def pictures(arguments: argparse.Namespace, equal: int | None) -> dict[str, Tensor]:
    """A corner of the last micrograph, protein dark, each way."""
    made, _ = micrograph(arguments.targets[-1], 0, arguments.structures)
    raw = -made.image[None]
    cut = equal or 20
    shown = {
        RAW: raw,
        low(cut): low_pass(raw, cut, PIXEL_SIZE_ANGSTROM),
        GENERAL: denoise(load_model(arguments.model), raw, PIXEL_SIZE_ANGSTROM, "auto"),
        "noise-free": -made.clean[None],
    }
    return {name: image[0, :CROP_PX, :CROP_PX] for name, image in shown.items()}


def draw(cells: Sequence[Cell], images: dict[str, Tensor], path: Path) -> None:
    figure = Figure(figsize=(13, 7.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1))
    for panel, (title, name) in zip(upper.subplots(1, 3), FIGURES.items(), strict=True):
        rows = summary(cells, name)
        cuts = list(CUT_OFFS_ANGSTROM)
        panel.errorbar(
            cuts,
            [rows[low(cut)]["mean"] for cut in cuts],
            yerr=[rows[low(cut)]["error"] for cut in cuts],
            color="0.35",
            marker="o",
            markersize=3,
            label="raw behind a low-pass filter",
        )
        for method, colour in ((GENERAL, "#c8641b"), (TOPAZ, "#1b6ec8"), (RAW, "0.7")):
            # of other sets it is no comparison
            if method in rows and rows[method]["sets"] == len(cells):
                panel.axhline(rows[method]["mean"], color=colour, label=method)
        panel.set(xscale="log", xlabel="low-pass filter, Å", title=title)
        panel.set_xticks([10, 20, 40, 80, 150], ["10", "20", "40", "80", "150"])
        panel.minorticks_off()
        panel.margins(y=0.1)
    panel.legend(fontsize=8)
    for panel, (name, image) in zip(lower.subplots(1, len(images)), images.items(), strict=True):
        low_value, high_value = np.percentile(image.numpy(), (0.5, 99.5))
        panel.imshow(image.numpy(), cmap="gray", vmin=low_value, vmax=high_value)
        panel.set_title(name, fontsize=10)
        panel.set_axis_off()
    figure.savefig(path, dpi=64)


if __name__ == "__main__":
    main()
