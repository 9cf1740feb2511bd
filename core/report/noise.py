"""The page about an extraction of noise: `logfile.pdf` with what was taken where, and some of the blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import SubFigure
from matplotlib.image import imread

from ..io.mrc import StackReader
from ..noise.summary import NoiseSummary
from ..progress import counted
from ..spread import evenly_spread
from . import PDF_NAME
from .figures import contrast
from .paper import TEXT_WIDTH, Paper
from .text import fit

# Overlays and blocks that are shown, evenly spread, and how many side by side.
OVERLAYS, OVERLAYS_IN_ROW, BLOCKS, BLOCKS_IN_ROW = 6, 2, 12, 6
# Width of an overlay that is the only one, inches.
ALONE = 5.0
LOOK = (
    "Look at the overlays before you use the blocks: green frames are blocks that were taken, orange ones "
    "were rejected by their statistics; red is contamination and blue are particles, where a network "
    "labelled them."
)
NOTHING = (
    "No block was taken. In the pictures red is contamination, blue are particles, and orange frames are "
    "windows that were rejected by their statistics: a smaller window fits between what is in the way."
)


def report_noise(summary: NoiseSummary, command: str, warnings: Sequence[str] = ()) -> Path:
    """Write `logfile.pdf` beside the blocks, replacing that of an earlier run, and return its path.

    Parameters
    ----------
    warnings
        What the user was warned of, a line each.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    kept = [count.kept for count in summary.counts]
    verdict = (
        f"{counted(summary.n_blocks, 'block')} of {summary.window_px} x {summary.window_px} px out of "
        f"{sum(map(bool, kept))} of {counted(len(kept), 'micrograph')}. {summary.explanation}"
    )
    paper = Paper(f"{counted(summary.n_blocks, 'block')} of noise")
    paper.note(verdict, "good")
    for warning in dict.fromkeys((*summary.warnings, *warnings)):
        paper.note(warning, "bad")
    paper.note(LOOK)
    _add_overlays(paper, summary.overlays)
    if summary.n_blocks:
        _add_blocks(paper, summary)
    paper.heading("How it was made")
    paper.facts({**summary.key_figures, "command": command})
    return paper.write(summary.record.parent / PDF_NAME)


def report_failed_noise(directory: Path, problem: str, overlays: Sequence[Path], command: str) -> Path:
    """Write `logfile.pdf` of a search that found nothing: why, and what was in the way, in pictures.

    Parameters
    ----------
    problem
        What went wrong, as the user was told.
    overlays
        The pictures that the search has left.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    paper = Paper("No blocks of noise")
    paper.note(problem, "bad")
    if overlays:
        paper.note(NOTHING)
    _add_overlays(paper, overlays)
    paper.heading("How it was made")
    facts: Mapping[str, str] = {"command": command}
    paper.facts(facts)
    return paper.write(directory / PDF_NAME)


def _add_overlays(paper: Paper, paths: Sequence[Path]) -> None:
    chosen = evenly_spread(len(paths), OVERLAYS).tolist()
    pictures = [(paths[number], imread(paths[number])) for number in chosen]
    # one alone may be larger
    side = TEXT_WIDTH / OVERLAYS_IN_ROW - 0.08 if len(pictures) > 1 else ALONE
    for first in range(0, len(pictures), OVERLAYS_IN_ROW):
        row = pictures[first : first + OVERLAYS_IN_ROW]
        tall = max(side * picture.shape[0] / picture.shape[1] for _, picture in row)
        part = paper.picture(tall + 0.25)
        for number, (path, picture) in enumerate(row):
            left = number * (side + 0.16) / TEXT_WIDTH
            panel = part.add_axes((left, 0.0, side / TEXT_WIDTH, tall / (tall + 0.25)))
            panel.imshow(picture)
            panel.set_axis_off()
            part.text(left, 1.0, fit(path.stem, 7.0, side), fontsize=7, va="top", parse_math=False)


def _add_blocks(paper: Paper, summary: NoiseSummary) -> None:
    chosen = evenly_spread(summary.n_blocks, BLOCKS)
    with StackReader(summary.stack) as reader:
        images, pixel_size = reader.read(chosen), reader.pixel_size_angstrom
    side = f"{summary.window_px} px" + (f" ({summary.window_px * pixel_size:.4g} Å)" if pixel_size else "")
    lines = -(-len(images) // BLOCKS_IN_ROW)
    paper.heading(f"Some of the blocks, each {side} wide", above=lines * TEXT_WIDTH / BLOCKS_IN_ROW)
    part: SubFigure = paper.picture(lines * TEXT_WIDTH / BLOCKS_IN_ROW)
    axes = part.subplots(
        lines, BLOCKS_IN_ROW, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05}
    ).ravel()
    part.subplots_adjust(0.0, 0.0, 1.0, 1.0)
    for panel in axes:
        panel.set_axis_off()
    for panel, image in zip(axes, images, strict=False):
        low, high = contrast(image)
        panel.imshow(image, cmap="gray", vmin=low, vmax=high)
