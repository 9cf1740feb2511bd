"""Pictures of an evaluation: curves by resolution, histograms, galleries, scatter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from ..metrics.image import affine_fit
from ..report.figures import DENOISED_COLOUR, POWER, RAW_COLOUR, RESIDUAL_COLOUR, Row, draw_rows, grey_range
from ..report.text import fit
from ..report.text import label as literal
from .comparison import DENOISED, RAW, Comparison
from .names import figure_name, method_name

#: Of baselines, in their order; raw and denoised images have the colours of all other reports.
_BASELINE_COLOURS = ("#3a8f5c", "#8f3a7c", "#b59a1e", "#2a9db0", "#7a5230", "#d0607a", "#5a5fb0")
_WIDTH = 7.6
_BINS = 40
# Inches: a single image must not fill several pages.
_LARGEST_PICTURE = 3.4
# Of the power that is shown, as a share of the highest.
_LOWEST_POWER = 1e-6


def colours(names: Sequence[str]) -> dict[str, str]:
    """One colour per kind of images."""
    fixed = {DENOISED: DENOISED_COLOUR, RAW: RAW_COLOUR}
    others = [name for name in names if name not in fixed]
    spare = {name: _BASELINE_COLOURS[number % len(_BASELINE_COLOURS)] for number, name in enumerate(others)}
    return {name: (fixed | spare)[name] for name in names}


def gallery(
    images: Mapping[str, NDArray[np.float32]], titles: Sequence[str], pixel_size_angstrom: float | None
) -> Figure:
    """Rows of images by label, with maps of what was removed and what is wrong where these can be made.

    `images` holds "denoised" and any of "raw", "clean", "twin", `(n, y, x)` each. The difference from the
    clean image is on its grey scale, after the best fit of the denoised one's.
    """
    rows = [Row(name, images[name], grey_range(images[name])) for name in images]
    denoised = images[DENOISED]
    if RAW in images:
        rows.append(_difference("raw − denoised", images[RAW] - denoised, images[RAW]))
    if "clean" in images:
        clean = torch.from_numpy(images["clean"])
        fitted = affine_fit(torch.from_numpy(denoised), clean)
        rows.append(_difference("fitted denoised\n− clean", (fitted - clean).numpy(), images["clean"]))
    side = min((_WIDTH - 0.5) / len(titles), _LARGEST_PICTURE)
    width = side * len(titles) + 0.5
    height = side * denoised.shape[-2] / denoised.shape[-1] * len(rows) + 0.55
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(0.45 / width, 0.3 / height, 0.995, 1 - 0.22 / height)
    draw_rows(figure, rows, titles=titles, pixel_size_angstrom=pixel_size_angstrom)
    return figure


def _difference(label: str, difference: NDArray[np.float32], scale: NDArray[np.float32]) -> Row:
    """A row of differences, centred, with the contrast of the images that they are a part of."""
    low, high = grey_range(scale)
    centre = float(difference.mean())
    return Row(label, difference, (centre - (high - low) / 2, centre + (high - low) / 2))


def frequency_axis(axes: Axes, frequency: NDArray[Any], pixel_size_angstrom: float | None) -> None:
    """Label the x axis of a curve by ring, with resolutions above it where the pixel size is known."""
    axes.set_xlabel(f"spatial frequency ({'1/Å' if pixel_size_angstrom else '1/px'})", fontsize=8)
    axes.set_xlim(0.0, float(frequency[-1]))
    axes.tick_params(labelsize=7)
    axes.grid(color="0.9", linewidth=0.6)
    if pixel_size_angstrom:
        shown: list[int] = []
        # marks nearer to each other than one twelfth of the axis would collide
        for d in (100, 50, 30, 20, 15, 12, 10, 8, 6, 5, 4, 3, 2):
            place = 1 / d / frequency[-1]
            if 1 / 12 <= place <= 1 and (not shown or place - 1 / shown[-1] / frequency[-1] >= 1 / 12):
                shown.append(d)
        top = axes.secondary_xaxis("top")
        top.set_xticks([1 / d for d in shown], [f"{d} Å" for d in shown])
        top.tick_params(labelsize=7)


def correlation_curves(
    curves: Mapping[str, tuple[Tensor, Tensor]],
    frequency: Tensor,
    pixel_size_angstrom: float | None,
    *,
    thresholds: Sequence[float],
    label: str,
) -> Figure:
    """Fourier ring or shell correlation by name, each with one standard error either side."""
    figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    x = frequency.numpy()[1:]
    # what matters most is drawn last, on top, and thinner: curves that coincide are all to be seen
    for number, (name, colour) in reversed(list(enumerate(colours(list(curves)).items()))):
        value, error = (part.numpy()[1:] for part in curves[name])
        axes.plot(x, value, color=colour, linewidth=1.2 + 0.8 * number, label=method_name(name))
        if np.isfinite(error).all():
            axes.fill_between(x, value - error, value + error, color=colour, alpha=0.2, linewidth=0)
    for threshold in thresholds:
        axes.axhline(threshold, color="0.4", linewidth=0.8, linestyle=":")
        axes.annotate(
            f"{threshold:g}",
            (1.0, threshold),
            (-3, 1),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            fontsize=7,
            color="0.4",
        )
    axes.axhline(0.0, color="0.7", linewidth=0.8)
    lowest = min(float(value[1:].min()) for value, _ in curves.values())
    # above 0, also where all correlations are below it, or none
    highest = max(1e-3, *(float(value[1:].max()) for value, _ in curves.values()))
    # noisy twins agree by a few hundredths at most: an axis up to 1 would show nothing
    axes.set_ylim(min(-0.05 * highest, 1.1 * lowest), 1.03 if thresholds else 1.1 * highest)
    axes.set_ylabel(label, fontsize=8)
    frequency_axis(axes, x, pixel_size_angstrom)
    lines, names = axes.get_legend_handles_labels()
    axes.legend(lines[::-1], names[::-1], fontsize=8, frameon=False)
    return figure


def spectra(
    comparisons: Mapping[str, Comparison],
    target: str,
    frequency: Tensor,
    pixel_size_angstrom: float | None,
    *,
    with_error: bool,
) -> Figure:
    """Mean radial power of all images, of what they are compared with and, with a clean one, of the error."""
    figure = Figure(figsize=(_WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    x = frequency.numpy()[1:]
    for name, colour in colours(list(comparisons)).items():
        sums = comparisons[name].rings
        n = float(sums.n.sum())
        cross, power, of_target = (
            part.sum(0).numpy()[1:] / n for part in (sums.cross, sums.power, sums.power_of_target)
        )
        axes.semilogy(x, _drawable(power), color=colour, linewidth=1.4, label=method_name(name))
        if with_error and name in (DENOISED, RAW):
            error = _drawable(power - 2 * cross + of_target)
            axes.semilogy(x, error, color=colour, linewidth=1.0, linestyle="--", label=f"error of {name}")
    axes.semilogy(x, _drawable(of_target), color=RESIDUAL_COLOUR, linewidth=1.4, label=target)
    # a filter that removes rings altogether would stretch the axis to the rounding errors
    lowest, highest = axes.get_ylim()
    axes.set_ylim(max(lowest, highest * _LOWEST_POWER), highest)
    axes.set_ylabel(POWER, fontsize=8)
    frequency_axis(axes, x, pixel_size_angstrom)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _drawable(power: NDArray[Any]) -> NDArray[Any]:
    """Leave out of a logarithmic curve what is 0 or, by rounding, below it."""
    return np.where(power > 0, power, np.nan)


def histograms(values: Mapping[str, Mapping[str, NDArray[np.float64]]]) -> Figure:
    """One panel per metric: how many images have which value, `values[metric][kind of images]`."""
    columns = min(3, len(values))
    lines = -(-len(values) // columns)
    figure = Figure(figsize=(_WIDTH, 1.9 * lines + 0.3), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel in panels[len(values) :]:
        panel.set_axis_off()
    for panel, (metric, of_kind) in zip(panels, values.items(), strict=False):
        finite = {name: found[np.isfinite(found)] for name, found in of_kind.items()}
        together = np.concatenate(list(finite.values()))
        panel.set_title(literal(figure_name(metric)), fontsize=8)
        panel.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        panel.tick_params(labelsize=6)
        if not len(together):
            continue
        low, high = np.percentile(together, (0.5, 99.5))
        edges = np.linspace(low, high if high > low else low + 1e-6 + abs(low) * 1e-3, _BINS + 1)
        for name, colour in colours(list(finite)).items():
            panel.hist(finite[name], edges.tolist(), color=colour, alpha=0.55, label=name)
    panels[0].legend(fontsize=6, frameon=False)
    panels[0].set_ylabel("images", fontsize=7)
    return figure


def error_histogram(values: Mapping[str, NDArray[np.float64]], label: str, edges: NDArray[Any]) -> Figure:
    """Histogram of one figure for each kind of images."""
    figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    for name, colour in colours(list(values)).items():
        axes.hist(values[name], edges.tolist(), color=colour, alpha=0.2)
        axes.hist(values[name], edges.tolist(), histtype="step", color=colour, linewidth=1.4, label=name)
    axes.set_xlabel(label, fontsize=8)
    axes.set_ylabel("images", fontsize=8)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=8, frameon=False)
    return figure


def scatter(points: Mapping[str, NDArray[np.float64]], labels: NDArray[Any]) -> Figure:
    """Images laid out in the plane, a panel for each kind, coloured by their true conformation."""
    side = min(_WIDTH / len(points), _LARGEST_PICTURE)
    figure = Figure(figsize=(side * len(points), side + 0.5), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False)[0]
    known = np.unique(labels)
    for panel, (name, place) in zip(panels, points.items(), strict=True):
        for number, label in enumerate(known):
            here = labels == label
            colour = f"C{number % 10}"
            panel.scatter(place[here, 0], place[here, 1], s=6, color=colour, label=str(label), linewidth=0)
        panel.set_title(name, fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.set_box_aspect(1)
    if len(known) <= 12:
        marks, names = panels[0].get_legend_handles_labels()
        figure.legend(
            marks,
            [literal(f"conformation {name}") for name in names],
            loc="outside lower center",
            ncols=min(len(names), 2 * len(points)),
            fontsize=7,
            frameon=False,
            markerscale=2,
        )
    return figure


def picked_micrograph(
    image: NDArray[np.float32], labels: NDArray[Any], picks: NDArray[Any], radius_px: float, title: str
) -> Figure:
    """A micrograph with labelled particles as circles and picks as crosses; coordinates are (y, x)."""
    ratio = image.shape[0] / image.shape[1]
    figure = Figure(figsize=(6.0, 6.0 * ratio + 0.4), layout="constrained")
    axes = figure.subplots()
    low, high = grey_range(image[None])
    axes.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    # points are 1/72 inch; the axes are about 5.9 inches wide
    across = 2 * radius_px * 5.9 * 72 / image.shape[1]
    axes.scatter(
        labels[:, 1], labels[:, 0], s=across**2, facecolors="none", edgecolors="#39d353", linewidth=1,
        label="labelled",
    )  # fmt: skip
    axes.scatter(picks[:, 1], picks[:, 0], s=30, marker="+", color="#ff5a36", linewidth=1.2, label="picked")
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    axes.set_axis_off()
    says = f"labelled (circles of {2 * radius_px:.0f} px) and picked (crosses)"
    # two lines: the name alone may be as wide as the micrograph
    axes.set_title(f"{literal(fit(title, 9.0, 5.9))}\n{says}", fontsize=9)
    return figure


def noise_figures(
    noise: NDArray[np.float32], output: NDArray[np.float32], frc: Sequence[float], frc_in: Sequence[float]
) -> Figure:
    """A few images of noise, what a model made of them, and whether two half sets of that agree."""
    figure = Figure(figsize=(_WIDTH, 4.6))
    pictures, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.3, 2.3))[:, 0]
    pictures.subplots_adjust(0.09, 0.12, 0.99, 0.9)
    rows = [Row("noise", noise, grey_range(noise)), Row("output", output, grey_range(output))]
    draw_rows(pictures, rows, titles=[str(i + 1) for i in range(len(noise))], pixel_size_angstrom=None)
    axes = below.add_axes((0.09, 0.22, 0.88, 0.68))
    ring = np.arange(len(frc))[1:]
    axes.plot(ring, frc_in[1:], color=RAW_COLOUR, label="averages of two halves of the noise")
    axes.plot(ring, frc[1:], color=DENOISED_COLOUR, label="of two halves of the outputs")
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_xlabel("Fourier ring (cycles per box)", fontsize=8)
    axes.set_ylabel("correlation", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    return figure
