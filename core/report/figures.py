"""Pictures of raw, denoised and removed signal. Drawn on a `Figure` of the caller; nothing is ever shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from ..io.image_names import split_image_name
from ..metrics.fourier import radial_power_spectrum, ring_frequencies
from .text import fit, label
from .verdict import Filtered, low_pass

RAW_COLOUR, DENOISED_COLOUR, RESIDUAL_COLOUR = "0.55", "#1b4f9c", "#c8641b"
# The darkest and the brightest half per cent are clipped: one hot pixel must not turn a row grey.
CLIPPED_PERCENTILES = (0.5, 99.5)
# Of one panel: the middle nine tenths of its grey values, and as much again on either side.
MIDDLE_PERCENTILES, HEADROOM = (5.0, 50.0, 95.0), 2.0
# In a micrograph dark and bright side differ by no more than this: the rest is ice or carbon.
LOPSIDED = 3.0
BAR_LENGTHS = tuple(step * 10**power for power in range(4) for step in (1, 2, 5))
LABEL_SIZE, TITLE_SIZE = 8.0, 7.0
# Between images, of their width or height.
GAP = 0.04
Point = tuple[float, float]
Kind = Literal["particles", "micrographs"]
POWER = "power per pixel (grey value²)"


def grey_range(images: NDArray[np.float32]) -> tuple[float, float]:
    """Darkest and brightest grey value that is shown of `(n, y, x)` images: percentiles over all of them."""
    low, high = np.percentile(images, CLIPPED_PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def contrast(image: NDArray[np.float32], kind: Kind = "particles") -> tuple[float, float]:
    """Darkest and brightest grey value that is shown of one image `(y, x)`.

    They lie twice as far from the median as the 5th and the 95th percentile do, within the image's values:
    white noise is shown to 3.3 standard deviations. A particle may be small and stand out further: of its
    image only the darkest and the brightest half per cent are clipped. In a micrograph an ice crystal may not
    wash out the rest: neither side reaches three times as far as the other.
    """
    low, middle, high = np.percentile(image, MIDDLE_PERCENTILES)
    below, above = HEADROOM * (middle - low), HEADROOM * (high - middle)
    if kind == "particles":
        lowest, highest = np.percentile(image, CLIPPED_PERCENTILES)
        below, above = max(below, middle - lowest), max(above, highest - middle)
    elif below > 0 and above > 0:
        below, above = min(below, LOPSIDED * above), min(above, LOPSIDED * below)
    low, high = max(middle - below, float(image.min())), min(middle + above, float(image.max()))
    return float(low), float(high) if high > low else float(low) + 1.0


def bar_length(box: float) -> int:
    """Round length of a scale bar, at most 40 % of the box side and in the same unit."""
    return max((length for length in BAR_LENGTHS if length <= 0.4 * box), default=1)


class Row(NamedTuple):
    """Images `(n, y, x)` that are shown side by side, from black to white.

    Attributes
    ----------
    limits
        Darkest and brightest grey value: one pair for all of them, or a list of one for each.
    """

    label: str
    images: NDArray[np.float32]
    limits: tuple[float, float] | list[tuple[float, float]]


def comparison_rows(
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    filtered: Filtered | None,
    kind: Kind = "particles",
) -> dict[str, Row]:
    """Return what can be shown of images `(n, y, x)`: `raw`, `low-pass`, `denoised`, `residual`, `removed`.

    Each image has its own contrast, but for what was taken away: the residual is shown on the scale of the
    raw image, and `removed`, the residual after the plain filter, on that of the raw image after the same
    filter, both moved to their own medians. Lost signal, which noise hides in the one, shows in the other.

    Parameters
    ----------
    filtered
        The raw images after the plain filter; None where there is none, and then no `low-pass` and `removed`.
    """

    def row(text: str, images: NDArray[np.float32]) -> Row:
        return Row(text, images, [contrast(image, kind) for image in images])

    residual = raw - denoised
    rows = {"raw": row("raw", raw)}
    if filtered is not None:
        rows["low-pass"] = row(f"raw, plain\nlow-pass {filtered.name}", filtered.images)
    rows["denoised"] = row("denoised", denoised)
    rows["residual"] = Row("residual\n(raw − denoised)", residual, _moved(rows["raw"], residual))
    if filtered is not None:
        removed = low_pass(residual, filtered.cutoff)
        text = f"removed,\nlow-pass {filtered.name}"
        rows["removed"] = Row(text, removed, _moved(rows["low-pass"], removed))
    return rows


def montage_rows(
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    filtered: Filtered | None,
    kind: Kind = "particles",
) -> list[Row]:
    """Return those of `comparison_rows` that a montage shows: what was removed once, filtered if possible."""
    rows = comparison_rows(raw, denoised, filtered, kind)
    return [row for name, row in rows.items() if name != ("residual" if filtered is not None else "removed")]


def _moved(scale: Row, images: NDArray[np.float32]) -> list[tuple[float, float]]:
    """Return the limits of another row, for images about their own medians."""
    middles = [float(np.median(image)) for image in images]
    halves = [np.subtract(*limits_of(scale, number)[::-1]) / 2 for number in range(len(images))]
    return [(middle - half, middle + half) for middle, half in zip(middles, halves, strict=True)]


def draw_montage(
    figure: Figure | SubFigure,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    *,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
    filtered: Filtered | None = None,
) -> None:
    """Draw a column per image with the rows of `montage_rows`, and its title above each.

    Parameters
    ----------
    raw, denoised
        `(n, y, x)`, the same particles.
    titles
        One per image.
    pixel_size_angstrom
        For the scale bar, which is in pixels when this is None.
    filtered
        The raw images after the plain filter.
    """
    rows = montage_rows(raw, denoised, filtered)
    draw_rows(figure, rows, titles=titles, pixel_size_angstrom=pixel_size_angstrom)


def draw_side_by_side(
    figure: Figure | SubFigure,
    rows: Sequence[Row],
    number: int,
    *,
    columns: int,
    pixel_size_angstrom: float | None,
) -> None:
    """Draw one image of each of the rows of `montage_rows` side by side, with what it is above each."""
    lines = -(-len(rows) // columns)
    axes = figure.subplots(lines, columns, squeeze=False, gridspec_kw={"wspace": 0.03, "hspace": 0.1})
    for panel in axes.ravel():
        panel.set_axis_off()
    for panel, row in zip(axes.ravel(), rows, strict=False):
        panel.set_axis_on()
        _show(panel, row.images[number], limits_of(row, number))
        panel.set_title(row.label.replace("\n", " "), fontsize=LABEL_SIZE, pad=3)
    y, x = rows[0].images.shape[-2:]
    limits = axes[-1, 0].axis()
    _draw_scale_bar(axes[-1, 0], x, pixel_size_angstrom, (-0.5, 1.07 * y - 0.5))
    axes[-1, 0].axis(limits)  # else the image would shrink to make room for the bar


def limits_of(row: Row, number: int) -> tuple[float, float]:
    """Darkest and brightest grey value of one of the images."""
    return row.limits[number] if isinstance(row.limits, list) else row.limits


def _show(panel: Axes, image: NDArray[np.float32], limits: tuple[float, float]) -> None:
    # the first row on top, as RELION displays it
    panel.imshow(image, cmap="gray", vmin=limits[0], vmax=limits[1], interpolation="antialiased")
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)


def draw_rows(
    figure: Figure | SubFigure,
    rows: Sequence[Row],
    *,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
) -> None:
    """Draw rows of images below each other, with a title above each column and a scale bar below the first.

    Parameters
    ----------
    rows
        Of the same number of images, all of one size.
    titles
        One per column.
    pixel_size_angstrom
        For the scale bar, which is in pixels when this is None.
    """
    y, x = rows[0].images.shape[-2:]
    edges = figure.subplotpars
    wide = _inches(figure) * (edges.right - edges.left)
    tall = float(figure.bbox.height / figure.dpi) * (edges.top - edges.bottom)
    cell_wide, cell_tall = (
        side / (n + GAP * (n - 1)) for side, n in ((wide, len(titles)), (tall, len(rows)))
    )
    scale = min(cell_wide / x, cell_tall / y)
    # one panel in pixels of the images: one for each image takes longer than anything else in a report
    panel = figure.add_axes((edges.left, edges.bottom, edges.right - edges.left, edges.top - edges.bottom))
    panel.set_axis_off()
    # as one they would have the resolution of the page
    figure.figure.suppressComposite = True
    lefts = [(column * (1 + GAP) + 0.5) * cell_wide / scale - x / 2 for column in range(len(titles))]
    tops = [(number * (1 + GAP) + 0.5) * cell_tall / scale - y / 2 for number in range(len(rows))]
    for row, top in zip(rows, tops, strict=True):
        for column, (image, left) in enumerate(zip(row.images, lefts, strict=True)):
            extent = (left, left + x, top + y, top)
            low, high = limits_of(row, column)
            panel.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="antialiased", extent=extent)
        beside: dict[str, Any] = {"rotation": 90, "rotation_mode": "anchor", "ha": "center", "va": "bottom"}
        _write_beside(panel, row.label, (lefts[0], top + y / 2), (-4, 0), fontsize=LABEL_SIZE, **beside)
    for title, left in zip(titles, lefts, strict=True):
        text, above = column_title(title, 0.96 * cell_wide), (left + x / 2, tops[0])
        _write_beside(panel, text, above, (0, 3), fontsize=TITLE_SIZE, ha="center", linespacing=1.1)
    _draw_scale_bar(panel, x, pixel_size_angstrom, (lefts[0], tops[-1] + 1.07 * y))
    panel.set(xlim=(0, wide / scale), ylim=(tall / scale, 0), aspect="auto")


def _write_beside(panel: Axes, text: str, place: Point, points: Point, **style: Any) -> None:
    """Write a text so many points beside a place of a panel."""
    panel.annotate(text, place, points, textcoords="offset points", annotation_clip=False, **style)


def column_title(title: str, room: float) -> str:
    """Return a title of at most `room` inches; of `54@stack.mrcs` the number goes below the name."""
    number, name = split_image_name(title)
    lines = [name, f"no. {number}"] if number else [title]
    return "\n".join(label(fit(line, TITLE_SIZE, room)) for line in lines)


def _inches(figure: Figure | SubFigure) -> float:
    """Width of a figure or of a part of one."""
    return float(figure.bbox.width / figure.dpi)


def draw_spectra(
    axes: Axes,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    *,
    pixel_size_angstrom: float | None,
) -> None:
    """Draw the mean radial power spectra of raw and denoised `(n, y, x)` images and of their difference.

    Where the residual falls below the raw curve, signal was kept; where it runs along it, all was taken for
    noise.
    """
    frequency = ring_frequencies((raw.shape[-2], raw.shape[-1]), pixel_size_angstrom or 1.0).numpy()[1:]
    curves = (
        ("raw", raw, RAW_COLOUR),
        ("denoised", denoised, DENOISED_COLOUR),
        ("residual", raw - denoised, RESIDUAL_COLOUR),
    )
    for name, images, colour in curves:
        power = radial_power_spectrum(torch.from_numpy(images)).mean(0).numpy()[1:]
        axes.semilogy(frequency, power, color=colour, label=name, linewidth=1.4)
    unit = "1/Å" if pixel_size_angstrom else "1/px"
    axes.set_xlabel(f"spatial frequency ({unit})", fontsize=8)
    axes.set_ylabel(POWER, fontsize=8)
    axes.set_xlim(0.0, float(frequency[-1]))
    axes.tick_params(labelsize=7)
    axes.grid(color="0.9", linewidth=0.6)
    axes.legend(fontsize=8, frameon=False, loc="best")
    if pixel_size_angstrom:
        # The usual way to read a frequency. Marks closer to the left edge than one tenth would collide.
        resolutions = [d for d in (50, 30, 20, 15, 10, 8, 6, 5, 4, 3) if 0.1 <= 1 / d / frequency[-1] <= 1]
        top = axes.secondary_xaxis("top")
        top.set_xticks([1 / d for d in resolutions], [f"{d} Å" for d in resolutions])
        top.tick_params(labelsize=7)


def draw_gain(axes: Axes, bands: Sequence[Mapping[str, float | None]]) -> None:
    """Draw the gain over the raw images by resolution, two standard errors either way.

    1 is that of any low-pass filter.

    `bands`: `vars` of `metrics.gain.BandGain`, of those that could be measured and others.
    """
    measured = [band for band in bands if band["gain"] is not None]
    edges = [(1 / float(band["coarsest_angstrom"]), 1 / float(band["finest_angstrom"])) for band in measured]  # type: ignore[arg-type]
    places = [(low + high) / 2 for low, high in edges]
    gains = [float(band["gain"]) for band in measured]  # type: ignore[arg-type]
    axes.axhline(1.0, color=RAW_COLOUR, linewidth=1.2)
    axes.text(0.0, 1.0, " any low-pass filter", fontsize=7, color="0.35", va="bottom")
    axes.errorbar(
        places,
        gains,
        xerr=[(high - low) / 2 for low, high in edges],
        yerr=[2 * float(band["standard_error"] or 0.0) for band in measured],
        fmt="o",
        markersize=3.5,
        color=DENOISED_COLOUR,
        linewidth=1.2,
    )
    axes.set_xlim(0.0, 1.1 * max((high for _, high in edges), default=0.1))
    axes.set_xticks(
        places, [f"{b['coarsest_angstrom']:g}-{b['finest_angstrom']:g} Å" for b in measured], fontsize=7
    )
    axes.set_ylabel("gain in correlation\nover the raw images", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="0.9", linewidth=0.6)


def _draw_scale_bar(panel: Axes, box_px: int, pixel_size_angstrom: float | None, start: Point) -> None:
    """Draw a bar from a place below an image, where it hides nothing and needs no contrast."""
    length = bar_length(box_px * (pixel_size_angstrom or 1.0))
    length_px = length / (pixel_size_angstrom or 1.0)
    left, y = start
    bar: dict[str, Any] = {"color": "black", "linewidth": 2.5, "clip_on": False, "solid_capstyle": "butt"}
    panel.plot([left, left + length_px], [y, y], **bar)
    unit = "Å" if pixel_size_angstrom else "px"
    panel.text(
        left + length_px + 0.5 + 0.04 * box_px, y, f"{length} {unit}", fontsize=7, va="center", ha="left"
    )
