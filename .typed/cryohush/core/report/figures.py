"""Pictures of raw, denoised and removed signal. Drawn on a `Figure` of the caller; nothing is ever shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from ..metrics.fourier import radial_power_spectrum, ring_frequencies

RAW_COLOUR, DENOISED_COLOUR, RESIDUAL_COLOUR = "0.55", "#1b4f9c", "#c8641b"
ROWS = ("raw", "denoised", "residual\n(raw − denoised)")

TITLE_LENGTH = 22

# The darkest and the brightest half per cent are clipped: one hot pixel must not turn a row grey.
CLIPPED_PERCENTILES = (0.5, 99.5)
BAR_LENGTHS = tuple(step * 10**power for power in range(4) for step in (1, 2, 5))


def grey_range(images: NDArray[np.float32]) -> tuple[float, float]:
    """Darkest and brightest grey value that is shown of `(n, y, x)` images: percentiles over all of them."""
    low, high = np.percentile(images, CLIPPED_PERCENTILES)
    return float(low), float(high) if high > low else float(low) + 1.0


def bar_length(box: float) -> int:
    """Round length of a scale bar, at most 40 % of the box side and in the same unit."""
    return max((length for length in BAR_LENGTHS if length <= 0.4 * box), default=1)


def shorten(title: str) -> str:
    """Keep both ends of a title that is too long for its column: number and name of the stack."""
    return title if len(title) <= TITLE_LENGTH else f"{title[:7]}…{title[8 - TITLE_LENGTH :]}"


def draw_montage(
    figure: Figure | SubFigure,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    *,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
) -> None:
    """Draw a column per image, a row each for the raw image, the denoised one and their difference.

    The raw row has one grey scale for all its images and the residual row has the same one, so that the two
    can be compared by eye. The denoised row, whose contrast is far lower, has its own.

    Parameters
    ----------
    raw, denoised
        `(n, y, x)`, the same particles or parts of micrographs.
    titles
        One per image.
    pixel_size_angstrom
        For the scale bar, which is in pixels when this is None.
    """
    residual = raw - denoised
    raw_range = grey_range(raw)
    # The difference has lost the raw background level: its scale has the raw width, centred on its own mean.
    half_width, centre = (raw_range[1] - raw_range[0]) / 2, float(residual.mean())
    ranges = (raw_range, grey_range(denoised), (centre - half_width, centre + half_width))
    rows = [
        Row(label, images, limits)
        for label, images, limits in zip(ROWS, (raw, denoised, residual), ranges, strict=True)
    ]
    draw_rows(figure, rows, titles=titles, pixel_size_angstrom=pixel_size_angstrom)


class Row(NamedTuple):
    """Images `(n, y, x)` that are shown side by side on one grey scale, from black to white."""

    label: str
    images: NDArray[np.float32]
    limits: tuple[float, float]


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
    # squeeze=False: also one image gives a 2-D array of axes
    axes = figure.subplots(
        len(rows), len(titles), squeeze=False, gridspec_kw={"wspace": 0.04, "hspace": 0.04}
    )
    for number, row in enumerate(rows):
        for column, image in enumerate(row.images):
            panel = axes[number, column]
            # the first row on top, as RELION displays it
            low, high = row.limits
            panel.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            for spine in panel.spines.values():
                spine.set_visible(False)
        axes[number, 0].set_ylabel(row.label, fontsize=8)
    for column, title in enumerate(titles):
        axes[0, column].set_title(shorten(title), fontsize=7, pad=3)
    _draw_scale_bar(axes[-1, 0], rows[0].images.shape[-1], pixel_size_angstrom)


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
    axes.set_ylabel("mean power per pixel", fontsize=8)
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


def _draw_scale_bar(panel: Axes, box_px: int, pixel_size_angstrom: float | None) -> None:
    """Draw a bar below the panel, outside the image, where it hides nothing and needs no contrast."""
    length = bar_length(box_px * (pixel_size_angstrom or 1.0))
    length_px = length / (pixel_size_angstrom or 1.0)
    below = panel.get_xaxis_transform()
    panel.plot(
        [-0.5, length_px - 0.5], [-0.07, -0.07], color="black", linewidth=2.5, transform=below, clip_on=False,
        solid_capstyle="butt",
    )  # fmt: skip
    unit = "Å" if pixel_size_angstrom else "px"
    panel.text(
        length_px + 0.04 * box_px,
        -0.07,
        f"{length} {unit}",
        transform=below,
        fontsize=7,
        va="center",
        ha="left",
    )
