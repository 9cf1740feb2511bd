"""The page that a user opens first: `logfile.pdf`, and its pictures alone as `montage.png`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.figure import Figure, SubFigure
from numpy.typing import NDArray

from ..io.files import writing
from . import PDF_NAME, PNG_NAME
from .figures import draw_montage, draw_spectra

if TYPE_CHECKING:
    from ..inference.summary import Summary

# A4 is 8.27 x 11.69 inches: the page gets longer only when there is much to say in text.
PAGE_WIDTH, SPECTRA_HEIGHT = 8.27, 3.9
PICTURES_HEIGHT = {"particles": 4.0, "micrographs": 7.3}
LINE_HEIGHT, FIRST_FACT = 0.2, 2.15
WARNING_LINE, FACT_LINE = 108, 92
# Pictures side by side, and the width of one in the PNG, inches.
COLUMNS = {"particles": 6, "micrographs": 3}
PICTURE_WIDTH = {"particles": 1.3, "micrographs": 4.0}

TRUST = (
    "Look at, pick, sort and classify denoised particles. Refine, reconstruct, compute the FSC and deposit "
    "with the raw images: a denoiser adds what it has learnt, the same to both half sets, so a resolution "
    "measured on denoised images is no evidence."
)


def write_report(
    directory: Path,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    *,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
    headline: str,
    facts: Mapping[str, str],
    way_back: str = "",
    kind: Literal["particles", "micrographs"] = "particles",
) -> tuple[Path, Path]:
    """Write `logfile.pdf` and `montage.png`, replacing those of an earlier run.

    Parameters
    ----------
    directory
        Where to.
    raw, denoised
        `(n, y, x)`, the same images; none at all if none was denoised. The spectra are means over all, the
        montage shows a few, evenly spread.
    titles
        One per image.
    pixel_size_angstrom
        None when it is not known: scale bar and frequencies are then in pixels.
    headline
        First line of the page.
    facts
        What was done, as name and value.
    way_back
        How to return to the raw images in the host that the job ran in.
    kind
        What the images are: of micrographs fewer are shown, larger.

    Returns
    -------
    tuple of Path
        The PDF and the PNG.

    Raises
    ------
    OutputError
        When a file cannot be written.
    """
    lines = fact_lines(facts)
    heights = (FIRST_FACT + LINE_HEIGHT * (len(lines) + 1), PICTURES_HEIGHT[kind], SPECTRA_HEIGHT)
    page = Figure(figsize=(PAGE_WIDTH, sum(heights)))
    text, pictures, spectra = page.subfigures(3, 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_text(text, heights[0], headline, lines, " ".join(filter(None, (TRUST, way_back))))
    shown = np.unique(np.linspace(0, len(raw) - 1, COLUMNS[kind]).astype(int)) if len(raw) else np.arange(0)
    width = PICTURE_WIDTH[kind] * max(len(shown), 1) + 0.6
    height = 3 * PICTURE_WIDTH[kind] + 0.2
    # the scale bar hangs below the last picture
    below = 0.23 + 0.07 * PICTURE_WIDTH[kind]
    montage = Figure(figsize=(width, height + below))
    montage.subplots_adjust(0.5 / width, below / (height + below), 0.995, 1 - 0.22 / (height + below))
    pictures.subplots_adjust(0.12, 0.07, 0.95, 0.95)
    for figure in (montage, pictures):
        if not len(shown):
            figure.text(0.5, 0.5, f"none of the {kind} was denoised", ha="center", fontsize=8)
            continue
        draw_montage(
            figure,
            raw[shown],
            denoised[shown],
            titles=[titles[number] for number in shown.tolist()],
            pixel_size_angstrom=pixel_size_angstrom,
        )
    if len(raw):
        axes = spectra.add_axes((0.12, 0.2, 0.8, 0.6))
        axes.set_title(f"Power by resolution, mean of {len(raw)} {kind}", fontsize=9, pad=8)
        draw_spectra(axes, raw, denoised, pixel_size_angstrom=pixel_size_angstrom)
    return (
        save(page, directory / PDF_NAME, format="pdf"),
        save(montage, directory / PNG_NAME, format="png", dpi=150),
    )


def report_run(summary: Summary, command: str, *, way_back: str = "") -> tuple[Path, Path]:
    """Report a denoising run in its output directory; the rest as `write_report`."""
    samples = summary.samples
    return write_report(
        summary.output_dir,
        samples.raw,
        samples.denoised,
        titles=samples.titles,
        pixel_size_angstrom=samples.pixel_size_angstrom,
        headline=f"{summary.n_rows} denoised {summary.kind}",
        facts={**summary.facts(), **model_facts(summary.model.card), "command": command},
        way_back=way_back,
        kind=summary.kind,
    )


def model_facts(card: Mapping[str, Any]) -> dict[str, str]:
    """Return what a model's card says of the model and of what was measured with it, as far as it does."""
    return {name: in_words(card[name]) for name in ("description", "measured") if card.get(name)}


def in_words(value: Any) -> str:
    """Return a value of a model card, as read from YAML or JSON, as running text."""
    if isinstance(value, Mapping):
        return "; ".join(f"{str(name).replace('_', ' ')}: {in_words(entry)}" for name, entry in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    return "" if value is None else " ".join(str(value).split())


def fact_lines(facts: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the lines of the two columns; a value that is too long goes on below, without the name."""
    return [
        (name if number == 0 else "", line)
        for name, value in facts.items()
        for number, line in enumerate(textwrap.wrap(value, FACT_LINE, break_on_hyphens=False) or [""])
    ]


def draw_text(
    figure: Figure | SubFigure,
    height_inches: float,
    headline: str,
    lines: Sequence[tuple[str, str]],
    warning: str,
) -> None:
    """Draw the headline, the warning in a box, then the facts in two columns."""

    def write(x: float, inches_from_top: float, text: str, **style: Any) -> None:
        figure.text(x, 1 - inches_from_top / height_inches, text, va="top", **style)

    write(0.08, 0.45, headline, fontsize=14, weight="bold")
    write(
        0.09,
        0.95,
        textwrap.fill(warning, WARNING_LINE),
        fontsize=8.5,
        linespacing=1.4,
        bbox={"facecolor": "#fdf1dc", "edgecolor": "#d9a441", "boxstyle": "round,pad=0.6"},
    )
    for number, (name, line) in enumerate(lines):
        write(0.08, FIRST_FACT + LINE_HEIGHT * number, name, fontsize=8, color="0.35")
        write(0.25, FIRST_FACT + LINE_HEIGHT * number, line, fontsize=8)


def save(figure: Figure, path: Path, **options: Any) -> Path:
    """Write a figure, replacing an earlier file, and return its path.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    with writing(path) as part:
        figure.savefig(part, **options)
    return path
