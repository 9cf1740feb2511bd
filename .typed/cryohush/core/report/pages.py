"""The sections of a report as pages of a PDF, which RELION's GUI can show."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from ..io.files import writing
from .html import Section
from .pdf import FIRST_FACT, LINE_HEIGHT, PAGE_WIDTH, draw_text, fact_lines

_NOTE_LINE = 118
# Inches from the top of a page to its table, and from its left edge; the first column is twice as wide.
_FIRST_ROW, _LEFT, _MARGIN = 0.95, 0.66, 0.5
# Inches that the longest number with its error takes in the size of the text.
_CELL = 1.3


def write_pages(
    path: Path, headline: str, warning: str, facts: Mapping[str, str], sections: Sequence[Section]
) -> Path:
    """Write a PDF, replacing an earlier one: a page of facts, then a page per section and per figure.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    with writing(path) as part, PdfPages(part) as pages:
        lines = fact_lines(facts)
        height = FIRST_FACT + LINE_HEIGHT * (len(lines) + 2)
        cover = Figure(figsize=(PAGE_WIDTH, height))
        draw_text(cover, height, headline, lines, warning)
        pages.savefig(cover)
        for section in sections:
            pages.savefig(_text_page(section))
            for picture in section.pictures:
                pages.savefig(picture.figure)
    return path


def _text_page(section: Section) -> Figure:
    """The table of a section and what is to be said of it."""
    notes = [line for note in section.notes for line in (*textwrap.wrap(note, _NOTE_LINE), "")]
    table = [section.header, *section.rows] if section.rows else []
    height = _FIRST_ROW + LINE_HEIGHT * (len(table) + len(notes) + 1) + _MARGIN
    page = Figure(figsize=(PAGE_WIDTH, height))

    def write(inches: float, from_top: float, text: str, size: float, weight: str = "normal") -> None:
        page.text(inches / PAGE_WIDTH, 1 - from_top / height, text, fontsize=size, weight=weight, va="top")

    write(_LEFT, 0.4, section.title, 13, "bold")
    step = (PAGE_WIDTH - 2 * _LEFT) / (max(len(section.header), 1) + 1)
    size = min(8.0, 8.0 * step / _CELL)
    top = _FIRST_ROW
    for number, row in enumerate(table):
        for column, cell in enumerate(row):
            place = _LEFT + (0 if column == 0 else (column + 1) * step)
            write(place, top, cell, size, "bold" if number == 0 else "normal")
        top += LINE_HEIGHT
    top += LINE_HEIGHT
    for line in notes:
        write(_LEFT, top, line, 8)
        top += LINE_HEIGHT
    return page
