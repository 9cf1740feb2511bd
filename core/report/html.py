"""A report as one HTML file: its pictures are inside, and it asks nothing of the network."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from ..io.files import writing
from ..metrics.gain import Verdict

PNG_DOTS_PER_INCH = 110

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c }
body { max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid #eee; vertical-align: top }
th { font-weight: 600 } td { overflow-wrap: anywhere }
.note { background: #fdf1dc; border-left: 4px solid #d9a441; padding: .6rem 1rem }
.good { background: #e8f1e4; border-color: #6f9e5c } .bad { background: #fbe4e1; border-color: #c0503f }
.numbers { overflow-x: auto } .numbers td { white-space: nowrap }
figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto } figcaption { color: #555; font-size: .9rem }
"""


@dataclass(frozen=True)
class Picture:
    """A figure with its file name (without ending) and what it shows."""

    name: str
    caption: str
    figure: Figure

    @cached_property
    def png(self) -> bytes:
        """The figure as a PNG file, drawn once."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=PNG_DOTS_PER_INCH)
        # drawn again for paper all stays where it is: to find the places takes as long as to draw
        self.figure.set_layout_engine("none")
        return buffer.getvalue()


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes
    ----------
    title
        Its heading.
    notes
        What its figures can and cannot say, a paragraph each.
    header, rows
        A table; the first column names the row.
    pictures
        Figures.
    verdict
        What it comes to, for the head of the report.
    """

    title: str
    notes: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = field(default_factory=tuple)
    verdict: Verdict | None = None


def write_html(
    path: Path, headline: str, warning: str, facts: Mapping[str, str], sections: Sequence[Section]
) -> Path:
    """Write the report, replacing an earlier one, and return its path.

    Parameters
    ----------
    warning
        What the reader should know first.
    facts
        What was done, as name and value.

    Raises
    ------
    OutputError
        When the file cannot be written.
    """
    verdicts = [section.verdict for section in sections if section.verdict is not None]
    notes = [*verdicts, Verdict(warning, "note")]
    body = [f"<h1>{_text(headline)}</h1>"]
    body += [f'<p class="note {note.judgement}">{_text(note.text)}</p>' for note in notes]
    for section in sections:
        body.append(f"<h2>{_text(section.title)}</h2>")
        if section.rows:
            body.append(_table(section.header, section.rows))
        body += [f"<p>{_text(note)}</p>" for note in section.notes]
        body += [_picture(picture) for picture in section.pictures]
    body += ["<h2>How it was made</h2>", _table((), list(facts.items()))]
    document = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(headline)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    return write_bytes(path, document.encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a whole file or nothing, and return its path.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    with writing(path, len(content)) as part:
        part.write_bytes(content)
    return path


def _picture(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    caption = _text(picture.caption)
    return (
        f'<figure id="{_text(picture.name)}"><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "<tr>" + "".join(f"<th>{_text(cell)}</th>" for cell in header) + "</tr>" if header else ""
    lines = [
        f"<tr><th>{_text(row[0])}</th>" + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    ]
    table = f"<table>{head}{''.join(lines)}</table>"
    # on a narrow screen a wide table scrolls by itself; facts have no header, and their text is wrapped
    return f'<div class="numbers">{table}</div>' if header else table


def _text(text: str) -> str:
    return html.escape(text, quote=True)
