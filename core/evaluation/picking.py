"""How well particles can be picked on denoised micrographs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..config.evaluate import PickingSection
from ..errors import InputError, StarError
from ..io.columns import read_columns
from ..metrics.image import region_signal_to_noise_ratio, region_variance_ratio
from ..report.html import Picture, Section
from .comparison import DENOISED, RAW
from .figures import picked_micrograph
from .image_rows import ImageRows
from .tasks import Check, Found

if TYPE_CHECKING:
    from ..metrics.picking import Picks


def picking(section: PickingSection, check: Check) -> Found:
    """Pick on denoised, and on raw, micrographs with plain pickers and count what agrees with the labels."""
    sets = {DENOISED: _micrographs(section.micrographs)}
    if section.raw is not None:
        sets[RAW] = _micrographs(section.raw)
        if len(sets[RAW]) != len(sets[DENOISED]):
            raise InputError(
                f"{len(sets[RAW])} micrographs, but {section.micrographs} has {len(sets[DENOISED])}.",
                path=section.raw,
            )
    names, pixel_size = (
        sets[DENOISED].titles(np.arange(len(sets[DENOISED]))),
        sets[DENOISED].pixel_size_angstrom,
    )
    if pixel_size is None:
        raise InputError("the pixel size is not known.", path=section.micrographs, remedy="Give a table.")
    labels = _labels(section, names)
    diameter = section.diameter_angstrom / pixel_size
    sign = -1 if section.protein == "dark" else 1
    numbers: dict[str, Any] = {"labels": sum(map(len, labels)), "diameter_px": diameter}
    rows, pictures = [], []
    for kind, micrographs in sets.items():
        picks, ratios = _pick(micrographs, labels, diameter, sign, check)
        scores = {name: _scores(found, labels, diameter) for name, found in picks.items()}
        means = {name: float(np.mean(values)) if values else None for name, values in ratios.items()}
        numbers[kind] = {
            "region_variance_ratio_db": means["variance ratio"],
            "region_contrast_db": means["mean contrast"],
            **scores,
        }
        for name, score in scores.items():
            shown = (score[key] for key in ("precision", "recall", "f1", "average_precision"))
            rows.append((f"{kind}, {name.replace('_', ' ')}", *(f"{value:.3f}" for value in shown)))
        for name, mean in means.items():
            if mean is not None:
                rows.append((f"{kind}, {name} of regions", f"{mean:.2f} dB", "", "", ""))
        title = f"{names[0]}, {kind}"
        figure = picked_micrograph(
            micrographs.read(np.array([0]))[0].numpy(),
            labels[0].numpy(),
            picks["blobs"][0].centres_px.numpy(),
            diameter / 2,
            title,
        )
        pictures.append(Picture(f"picks_{kind}", f"Blobs picked on {title}.", figure))
    return numbers, Section(
        "Picking",
        notes=[
            "Two pickers without training or templates, so that only contrast counts. Average precision "
            "needs no threshold: compare by it. A label set that left particles out makes right picks look "
            "wrong.",
            "Regions: a particle by the nearest empty place, in dB. The variance ratio is equation 5 of NT2C "
            "(raw micrographs have about 0), the mean contrast that of Topaz-Denoise. Both reward blur "
            "without limit: a flat background scores best, whatever was made of the particle.",
        ],
        header=("", "precision", "recall", "F1", "average precision"),
        rows=rows,
        pictures=pictures,
    )


def _pick(
    micrographs: ImageRows, labels: list[Tensor], diameter: float, sign: int, check: Check
) -> tuple[dict[str, list[Picks]], dict[str, list[float]]]:
    """The picks of each picker on each micrograph, and the ratios of all regions in dB."""
    from ..metrics.picking import pick_blobs, pick_by_mean_shift

    picks: dict[str, list[Picks]] = {"blobs": [], "mean_shift": []}
    ratios: dict[str, list[float]] = {"variance ratio": [], "mean contrast": []}
    for number, true in enumerate(labels):
        image = sign * micrographs.read(np.array([number]))[0]
        picks["blobs"].append(pick_blobs(image, diameter))
        picks["mean_shift"].append(pick_by_mean_shift(image, diameter))
        for values, more in zip(ratios.values(), _region_ratios(image, true, diameter), strict=True):
            values += more
        check()
    return picks, ratios


def _scores(picks: list[Picks], labels: list[Tensor], diameter: float) -> dict[str, float]:
    from ..metrics.picking import average_precision, score_picks

    each = [score_picks(p.centres_px, t, diameter / 2) for p, t in zip(picks, labels, strict=True)]
    total = sum(each[1:], each[0])
    return {
        "precision": total.precision, "recall": total.recall, "f1": total.f1,
        "average_precision": average_precision(picks, labels, diameter / 2), "picks": total.n_picks,
    }  # fmt: skip


def _micrographs(path: Path) -> ImageRows:
    rows = ImageRows(path)
    if rows.kind != "micrographs":
        raise InputError("expected micrographs, found particles.", path=path)
    return rows


def _region_ratios(image: Tensor, particles: Tensor, diameter_px: float) -> tuple[list[float], list[float]]:
    """Finite variance ratios and mean contrasts in dB of each particle and the nearest place without one."""
    from ..metrics.picking import nearest_background, square_regions

    side = max(4, int(diameter_px / 2))
    shape = (image.shape[0], image.shape[1])
    background, particle = nearest_background(shape, particles, diameter_px, side)
    if not len(particle):
        return [], []
    pairs = (
        list(square_regions(image, particles[particle], side)),
        list(square_regions(image, background, side)),
    )
    variances, contrasts = region_variance_ratio(*pairs), region_signal_to_noise_ratio(*pairs)
    return variances[variances.isfinite()].tolist(), contrasts[contrasts.isfinite()].tolist()


def _labels(section: PickingSection, names: list[str]) -> list[Tensor]:
    """`(n, 2)` (y, x) of the labelled particles of each micrograph, pixels from the first pixel's centre."""
    by_name: dict[str, list[tuple[float, float]]] = {}
    if section.labels.is_dir():
        for name in names:
            path = section.labels / f"{Path(name).stem}{section.label_suffix}"
            by_name[Path(name).stem] = [place for _, place in _coordinates(path)]
    else:
        for micrograph, place in _coordinates(section.labels):
            by_name.setdefault(Path(micrograph).stem, []).append(place)
    for name in names:
        if Path(name).stem not in by_name:
            raise InputError(f"no coordinates for {name}.", path=section.labels)
    return [torch.tensor(by_name[Path(name).stem]).reshape(-1, 2) for name in names]


def _coordinates(path: Path) -> list[tuple[str, tuple[float, float]]]:
    """Micrograph (empty where the file does not say it) and (y, x) of each row of a coordinate file."""
    name, x, y = "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY"
    found = read_columns(path, (name,), (x, y), optional=(name,))
    if found is None:
        raise StarError(f"no table with {x} and {y}.", path=path)
    names = found.text.get(name, [""] * len(found))
    return list(zip(names, zip(found.number[y], found.number[x], strict=True), strict=True))
