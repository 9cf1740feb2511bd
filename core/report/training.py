"""The page about a training run: what it learnt from, how it went, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.image import imread

from . import PDF_NAME
from .pdf import FIRST_FACT, LINE_HEIGHT, PAGE_WIDTH, draw_text, fact_lines, save

PICTURE_HEIGHT = 4.0
CAPTIONS = {
    "curves.png": "Losses and scores",
    "validation.png": "What the model makes of images that it has never seen",
}

TRUST = (
    "The model has learnt what these particles look like, and puts it into every image that it is given. "
    "Refine, reconstruct, compute the FSC and deposit with the raw images. A lower error on held-out "
    "particles is agreement with the map that the model was taught, not with a truth."
)


def write_training_report(
    directory: Path, runs: Sequence[Path], *, headline: str, facts: Mapping[str, str]
) -> Path:
    """Write `logfile.pdf` with the facts, and the curves and validation pictures of each run's folder.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    lines = fact_lines(facts)
    pictures = [(run, name) for run in runs for name in CAPTIONS if (run / name).exists()]
    heights = [FIRST_FACT + LINE_HEIGHT * (len(lines) + 1), *[PICTURE_HEIGHT] * len(pictures)]
    page = Figure(figsize=(PAGE_WIDTH, sum(heights)))
    parts = page.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_text(parts[0], heights[0], headline, lines, TRUST)
    for part, (run, name) in zip(parts[1:], pictures, strict=True):
        axes = part.add_axes((0.06, 0.02, 0.88, 0.88))
        axes.imshow(imread(run / name), cmap="gray")
        axes.set_axis_off()
        where = f", {run.name}" if len(runs) > 1 else ""
        axes.set_title(CAPTIONS[name] + where, fontsize=9)
    return save(page, directory / PDF_NAME, format="pdf")
