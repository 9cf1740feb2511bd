"""A comparison with clean or with independent images as numbers and as a section of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..config.evaluate import EvaluateConfig
from ..metrics.fourier import resolution_angstrom
from ..metrics.gain import Verdict
from ..report.figures import draw_spectra
from ..report.html import Picture, Section
from ..spread import evenly_spread
from .comparison import DENOISED, FINE, RAW, Comparison, Result, Sources, score
from .figures import correlation_curves, gallery, histograms, spectra
from .names import figure_name, method_name
from .tasks import Found

# Columns of the gallery, by what is shown.
_SHOWN = {"particles": 6, "micrographs": 2}
# The largest side of a picture; of a larger micrograph its middle is shown.
_LARGEST_SHOWN_PX = 1024
_HALF = 0.5

GALLERY_SAYS = (
    "Each row has one grey scale. What was removed (raw − denoised) should look like noise: a particle in it "
    "is signal that was lost."
)


def sample_section(sources: Sources) -> Section:
    """A few images, evenly spread, before, after and beside what they are compared with, and their power."""
    rows = evenly_spread(len(sources.denoised), _SHOWN[sources.denoised.kind])
    shown = {
        RAW: sources.raw, DENOISED: sources.denoised, "clean": sources.reference, "twin": sources.twin
    }  # fmt: skip
    images = {name: _middle(of.read(rows).numpy()) for name, of in shown.items() if of is not None}
    figure = gallery(images, [f"row {row + 1}" for row in rows], sources.pixel_size_angstrom)
    pictures = [Picture("gallery", GALLERY_SAYS, figure)]
    if RAW in images:
        spectrum = Figure(figsize=(7.6, 3.6), layout="constrained")
        draw_spectra(
            spectrum.subplots(),
            images[RAW],
            images[DENOISED],
            pixel_size_angstrom=sources.pixel_size_angstrom,
        )
        caption = "Mean power by resolution of these images, and of what was removed."
        pictures.append(Picture("spectra_raw", caption, spectrum))
    return Section("Images", pictures=pictures)


def _middle(images: NDArray[np.float32]) -> NDArray[np.float32]:
    corner = [max(0, (side - _LARGEST_SHOWN_PX) // 2) for side in images.shape[-2:]]
    y, x = (slice(first, first + _LARGEST_SHOWN_PX) for first in corner)
    return images[:, y, x]


def against_clean(result: Result, sources: Sources, config: EvaluateConfig) -> Found:
    """Figures against the clean images: per image, and by Fourier ring."""
    numbers = {name: _per_image(found, sources) for name, found in result.reference.items()}
    gains = _gains(result.reference, sources)
    metrics = list(result.reference[DENOISED].values)
    rows = _table(metrics, numbers, gains)
    curves = {name: found.rings.correlation() for name, found in result.reference.items()}
    _add_curves(numbers, curves, sources, _HALF)
    pixel_size = sources.pixel_size_angstrom
    resolutions = {name: found["resolution_angstrom"] for name, found in numbers.items()}
    if pixel_size:
        cells = [f"{resolutions[name]:.2f} Å" for name in numbers]
        rows.append(("FRC falls below 0.5 at", *cells, *([""] if gains else [])))
    scale = {
        "reference": "full scale for PMSE, PSNR and SSIM is each clean image's span of grey values",
        "unit": "every image was stretched to 0 to 1 first, and full scale is 1",
    }.get(str(config.data_range), f"full scale for PMSE, PSNR and SSIM is {config.data_range}")
    circle = config.particle_diameter_angstrom
    within = f" Only pixels within a circle of {circle:g} Å count." if circle else ""
    notes = [
        *result.remarks,
        f"Mean over {len(sources.denoised)} images ± standard error over {_parts(sources)}; {scale}.{within}",
        "The affine figures are free of contrast and brightness: compare by them when methods scale "
        "differently. Mean squared error and what derives from it (PMSE, NMSE, PSNR) reward blur at low "
        "signal-to-noise ratios; the ring correlation says to which detail the images are true. These are "
        "figures for the kind of particle and noise that was tested, and for no other.",
    ]
    pictures = [
        _frc_picture("frc_clean", curves, result, sources, "clean", (_HALF,)),
        Picture(
            "spectra_clean",
            "Mean power by resolution. Where a method's error reaches the power of the clean images, what it "
            "shows there is no longer their detail.",
            spectra(result.reference, "clean", result.frequency, pixel_size, with_error=True),
        ),
    ]
    if metrics:
        of_metric = {
            metric: {name: result.reference[name].values[metric] for name in _two(result.reference)}
            for metric in metrics
        }
        pictures.append(Picture("histograms_clean", "Figures of the single images.", histograms(of_metric)))
    header = ("", *map(method_name, numbers), *(["denoised − raw"] if gains else []))
    verdict = verdict_of(result.reference, sources.groups, "clean")
    section = Section("Against the clean images", notes, header, rows, pictures, verdict)
    return {**numbers, "gain": gains}, section


def against_twin(result: Result, sources: Sources, config: EvaluateConfig) -> Found:
    """Figures against independent noisy images of the same particles."""
    numbers = {name: _per_image(found, sources) for name, found in result.twin.items()}
    gains = _gains(result.twin, sources)
    metrics = list(result.twin[DENOISED].values)
    rows = _table(metrics, numbers, gains)
    curves = {name: found.rings.correlation() for name, found in result.twin.items()}
    _add_curves(numbers, curves, sources, None)
    if result.noise_power is not None:
        rows += _unbiased_rows(result, result.noise_power, numbers, gains, sources, config)
    pixel_size = sources.pixel_size_angstrom
    kinds = {"correlation": "all detail", FINE: f"detail finer than {config.coarsest_angstrom:g} Å only"}
    notes = [
        *result.remarks,
        f"Mean over {len(sources.denoised)} images ± standard error over {_parts(sources)}. "
        + "; ".join(f"{figure_name(name)}: {kinds[name]}" for name in metrics)
        + ". No clean image is needed: the noise of the twin is independent of all that was denoised, so it "
        "adds nothing to a correlation on average. Values far below 1 are normal; what counts is the gain.",
        "A radial filter (a Gaussian, a Wiener filter) leaves the ring correlation as it is: only a curve "
        "above that of the raw images shows that more than the weight of the rings was changed. Ice and "
        "neighbouring particles are common to both images and count as signal here.",
    ]
    if result.noise_power is not None:
        notes.append(
            "The unbiased squared error takes the power of the twin's noise off, as its background shows it: "
            "its zero is only as good as that. Differences between methods do not depend on it. It needs "
            "both images on one grey scale; with the best scale, one factor for all images is fitted first."
        )
    if result.drift_px:
        largest = max(float(np.hypot(*shift)) for shift in result.drift_px.values())
        notes.append(
            f"The twins' drift was taken back micrograph by micrograph, {largest:.2f} px at most; the raw "
            "images alone said how far."
        )
    pictures = [
        _frc_picture("frc_twin", curves, result, sources, "twin", ()),
        Picture(
            "spectra_twin",
            "Mean power by resolution, of the twins' noise too.",
            spectra(result.twin, "twin", result.frequency, pixel_size, with_error=False),
        ),
        Picture(
            "histograms_twin",
            "Correlations of the single images with their twins.",
            histograms(
                {
                    metric: {name: result.twin[name].values[metric] for name in _two(result.twin)}
                    for metric in metrics
                }
            ),
        ),
    ]
    header = ("", *map(method_name, numbers), *(["denoised − raw"] if gains else []))
    found = {**numbers, "gain": gains, "drift_px": result.drift_px or None}
    verdict = verdict_of(result.twin, sources.groups, "independent")
    return found, Section("Against independent images", notes, header, rows, pictures, verdict)


def verdict_of(
    comparisons: Mapping[str, Comparison], groups: NDArray[np.int64], target: str
) -> Verdict | None:
    """Return in a sentence how denoised images, raw ones and the best classical denoiser correlate.

    Any blur is better than the raw images: good is only what beats the classical denoisers as well, image by
    image and by more than two standard errors over the `groups` that `score` goes by.
    """
    values = {
        name: of.values["correlation"] for name, of in comparisons.items() if "correlation" in of.values
    }
    if DENOISED not in values:
        return None
    found = {name: score(of, groups) for name, of in values.items()}
    cell = {name: _cell(of.mean, of.standard_error) for name, of in found.items()}
    text = f"Correlation with the {target} images: {cell[DENOISED]} for denoised ones"
    if found[DENOISED].mean < -2 * found[DENOISED].standard_error:
        return Verdict(f"{text}: they show the opposite. Is the contrast of both the same?", "bad")
    if RAW not in values:
        return Verdict(f"{text}. Give the raw images as well, to see the gain.", "note")
    text += f", {cell[RAW]} for raw ones"
    gain = score(values[DENOISED] - values[RAW], groups)
    if gain.mean < -2 * gain.standard_error:
        return Verdict(f"{text}: denoising lost signal.", "bad")
    baselines = [name for name in found if name not in (DENOISED, RAW)]
    if not baselines:
        return Verdict(f"{text}. Any blur gains here, too: --baselines gaussian shows how much.", "note")
    best = max(baselines, key=lambda name: found[name].mean)
    over = score(values[DENOISED] - values[best], groups)
    text += (
        f", {cell[best]} for the best of the classical denoisers, {method_name(best)}, from which the "
        f"denoised ones differ by {_cell(over.mean, over.standard_error, signed=True)}, image by image."
    )
    return Verdict(text, "good" if over.mean > 2 * over.standard_error else "note")


def _unbiased_rows(
    result: Result,
    noise_power: torch.Tensor,
    numbers: dict[str, dict[str, Any]],
    gains: dict[str, dict[str, float]],
    sources: Sources,
    config: EvaluateConfig,
) -> list[tuple[str, ...]]:
    """Add the unbiased squared errors to the numbers and gains, and return their rows of the table."""
    bands = {"unbiased_mse": result.frequency > 0}
    if sources.pixel_size_angstrom:
        bands["unbiased_mse_fine"] = result.frequency > 1 / config.coarsest_angstrom
    for label, inside in bands.items():
        for best_scale in (False, True):
            key = f"{label}_best_scale" if best_scale else label
            found = {
                name: comparison.rings.unbiased_error(noise_power, inside, best_scale=best_scale)
                for name, comparison in result.twin.items()
            }
            for name, (mean, drawn) in found.items():
                numbers[name][key] = {"mean": float(mean), "standard_error": float(drawn.std())}
            if RAW in found:
                mean, drawn = (of - raw for of, raw in zip(found[DENOISED], found[RAW], strict=True))
                gains[key] = {"mean": float(mean), "standard_error": float(drawn.std())}
    return _table([key for key in numbers[DENOISED] if key.startswith("unbiased")], numbers, gains)


def _per_image(comparison: Comparison, sources: Sources) -> dict[str, Any]:
    """Mean, standard error and spread of the figures of the single images, by metric."""
    summary: dict[str, Any] = {}
    for metric, values in comparison.values.items():
        found, finite = score(values, sources.groups), values[np.isfinite(values)]
        low, middle, high = np.percentile(finite, (5, 50, 95)) if len(finite) else (np.nan,) * 3
        summary[metric] = {
            "mean": found.mean,
            "standard_error": found.standard_error,
            "median": float(middle),
            "percentile_5": float(low),
            "percentile_95": float(high),
            "images": found.n_images,
        }
    return summary


def _gains(comparisons: Mapping[str, Comparison], sources: Sources) -> dict[str, dict[str, float]]:
    """Mean difference of the denoised from the raw images, image by image, with its standard error."""
    if RAW not in comparisons:
        return {}
    raw, denoised = comparisons[RAW].values, comparisons[DENOISED].values
    found = {metric: score(denoised[metric] - raw[metric], sources.groups) for metric in denoised}
    return {
        metric: {"mean": gain.mean, "standard_error": gain.standard_error} for metric, gain in found.items()
    }


def _table(
    metrics: list[str], numbers: Mapping[str, Mapping[str, Any]], gains: Mapping[str, Mapping[str, float]]
) -> list[tuple[str, ...]]:
    rows = []
    for metric in metrics:
        cells = [_cell(of[metric]["mean"], of[metric]["standard_error"]) for of in numbers.values()]
        if gains:
            gain = gains[metric]
            cells.append(_cell(gain["mean"], gain["standard_error"], signed=True))
        rows.append((figure_name(metric), *cells))
    return rows


def _cell(mean: float, error: float, *, signed: bool = False) -> str:
    """A mean and its error, with as many digits as the error allows."""
    if not np.isfinite(mean):
        return "not finite"
    sign = "+" if signed else ""
    if not np.isfinite(error):
        return f"{mean:{sign}.4g}"
    decimals = 4 if error <= 0 else min(8, max(0, 1 - int(np.floor(np.log10(error)))))
    return f"{mean:{sign}.{decimals}f} ± {error:.{decimals}f}"


def _add_curves(
    numbers: dict[str, dict[str, Any]],
    curves: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    sources: Sources,
    threshold: float | None,
) -> None:
    pixel_size, shape = sources.pixel_size_angstrom, sources.denoised.shape
    for name, (curve, error) in curves.items():
        numbers[name]["frc"] = curve.tolist()
        numbers[name]["frc_standard_error"] = error.tolist()
        if threshold is not None:
            found = resolution_angstrom(curve, shape, pixel_size or 1.0, threshold)
            numbers[name]["resolution_angstrom"] = float(found) if pixel_size else None


def _frc_picture(
    name: str,
    curves: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    result: Result,
    sources: Sources,
    target: str,
    thresholds: tuple[float, ...],
) -> Picture:
    figure = correlation_curves(
        curves,
        result.frequency,
        sources.pixel_size_angstrom,
        thresholds=thresholds,
        label=f"FRC with the {target} images",
    )
    caption = f"Ring correlation with the {target} images, all pairs pooled; bands: one standard error."
    return Picture(name, caption, figure)


def _two(comparisons: Mapping[str, Comparison]) -> list[str]:
    """Raw behind, denoised in front: more than two histograms cannot be told apart."""
    return [name for name in (RAW, DENOISED) if name in comparisons]


def _parts(sources: Sources) -> str:
    n = len(np.unique(sources.groups))
    if sources.micrographs is not None:
        return f"{n} micrographs" if n == len(set(sources.micrographs)) else f"{n} groups of micrographs"
    return "images" if n == len(sources.denoised) else f"{n} groups of images"
