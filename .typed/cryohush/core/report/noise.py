"""The page about an extraction of noise: `logfile.pdf` with what was taken where, and some of the blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import imread

from ..io.mrc import StackReader
from ..noise.summary import NoiseSummary
from . import PDF_NAME
from .figures import grey_range
from .pdf import FIRST_FACT, LINE_HEIGHT, PAGE_WIDTH, draw_text, fact_lines, save

# Overlays and blocks that are shown, evenly spread.
OVERLAYS, BLOCKS = 6, 12
OVERLAYS_HEIGHT, BLOCKS_HEIGHT = 5.4, 2.9
LOOK = (
    "Look at the overlays before you use the blocks: green frames are blocks that were taken, orange ones "
    "were rejected by their statistics; red is contamination and blue are particles, where a network "
    "labelled them."
)


def report_noise(summary: NoiseSummary, command: str) -> Path:
    """Write `logfile.pdf` beside the blocks, replacing that of an earlier run, and return its path.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    facts = {
        **summary.key_figures,
        "conspicuous": str(sum(count.remark is not None for count in summary.counts)),
        "command": command,
    }
    lines = fact_lines(facts)
    heights = (FIRST_FACT + LINE_HEIGHT * (len(lines) + 1), OVERLAYS_HEIGHT, BLOCKS_HEIGHT)
    page = Figure(figsize=(PAGE_WIDTH, sum(heights)))
    text, overlays, blocks = page.subfigures(3, 1, squeeze=False, height_ratios=heights)[:, 0]
    draw_text(text, heights[0], f"{summary.n_blocks} blocks of noise", lines, LOOK)
    _draw_overlays(overlays, summary.overlays)
    _draw_blocks(blocks, summary)
    return save(page, summary.record.parent / PDF_NAME, format="pdf", dpi=150)


def _draw_overlays(figure: SubFigure, paths: list[Path]) -> None:
    chosen = np.unique(np.linspace(0, len(paths) - 1, min(OVERLAYS, len(paths))).astype(int))
    axes = figure.subplots(2, OVERLAYS // 2, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.12}).flat
    for panel in axes:
        panel.axis("off")
    for panel, number in zip(axes, chosen, strict=False):
        panel.imshow(imread(paths[number]))
        panel.set_title(paths[number].stem[-30:], fontsize=6, pad=2)


def _draw_blocks(figure: SubFigure, summary: NoiseSummary) -> None:
    chosen = np.unique(np.linspace(0, summary.n_blocks - 1, BLOCKS).astype(int))
    with StackReader(summary.stack) as reader:
        images = reader.read(chosen)
    axes = figure.subplots(2, BLOCKS // 2, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05}).flat
    for panel in axes:
        panel.axis("off")
    for panel, image in zip(axes, images, strict=False):
        low, high = grey_range(image)
        panel.imshow(image, cmap="gray", vmin=low, vmax=high)
