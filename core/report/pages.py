"""The sections of a report as pages of a PDF, which RELION's GUI can show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .html import Section
from .paper import SMALL, Paper


def write_pages(
    path: Path,
    headline: str,
    warning: str,
    facts: Mapping[str, str],
    sections: Sequence[Section],
) -> Path:
    """Write a PDF, replacing an earlier one: the verdicts, then each section with its table and figures.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    paper = Paper(headline)
    for section in sections:
        if section.verdict is not None:
            paper.note(*section.verdict)
    paper.note(warning)
    for section in sections:
        paper.heading(section.title)
        if section.rows:
            paper.table(section.header, section.rows)
        for note in section.notes:
            paper.paragraph(note, SMALL)
        for picture in section.pictures:
            paper.figure(picture.figure, picture.caption)
    paper.heading("How it was made")
    paper.facts(facts)
    return paper.write(path)
