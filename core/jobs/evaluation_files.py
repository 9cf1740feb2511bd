"""What an evaluation writes: figures, a table of the images, the report as HTML and PDF, numbers as JSON."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ... import __version__
from ..advice import TRUST
from ..config.evaluate import EvaluateConfig
from ..evaluation.comparison import Result, Sources
from ..io.files import sha256_of
from ..io.journal import RECORD_NAME
from ..io.star import write_tables
from ..report import PDF_NAME
from ..report.html import Picture, Section, write_bytes, write_html
from ..report.pages import write_pages
from .folder import JobFolder

JSON_NAME, HTML_NAME, TABLE_NAME = "evaluation.json", "evaluation.html", "evaluation_images.star"
PNG_PREFIX = "evaluation_"
HEADLINE = "Evaluation of denoised images"
# Rows of each table of the report that a batch repeats.
_ROWS = 3


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found and wrote.

    Attributes
    ----------
    folder, names
        Where it wrote, and the names of all that it wrote.
    key_figures
        What it found, in words, by name; as all that follows, empty when nothing was left to do.
    telling
        The name of the most telling figure, if there is one.
    tables
        The tables of the report, each with its title and notes, as text in columns.
    pictures
        The names of the figures' PNG files, by what they show.
    """

    folder: Path
    names: list[str]
    key_figures: dict[str, str] = field(default_factory=dict)
    telling: str | None = None
    tables: list[str] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> list[Path]:
        """All that was written."""
        return [self.folder / name for name in self.names]

    @property
    def picture(self) -> Path | None:
        """The most telling figure, if there is one."""
        return None if self.telling is None else self.folder / self.telling


def summarise(folder: Path, names: list[str], sections: Sequence[Section]) -> Evaluation:
    """Return what is to be said of the sections of a report."""
    telling = next((section for section in sections if section.rows), sections[0])
    return Evaluation(
        folder,
        names,
        {
            f"{section.title}: {row[0]}": ", ".join(
                f"{name} {cell}" for name, cell in zip(section.header[1:], row[1:], strict=True) if cell
            )
            for section in sections
            for row in section.rows[:_ROWS]
        },
        _png_name(telling.pictures[0]) if telling.pictures else None,
        [
            "\n".join([section.title, *_columns([section.header, *section.rows]), *section.notes])
            for section in sections
            if section.rows
        ],
        {
            f"{section.title}. {picture.caption}": _png_name(picture)
            for section in sections
            for picture in section.pictures
        },
    )


def _png_name(picture: Picture) -> str:
    return f"{PNG_PREFIX}{picture.name}.png"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return [line.rstrip() for line in lines]


def write_evaluation(
    folder: JobFolder,
    facts: dict[str, str],
    record: dict[str, Any],
    sections: list[Section],
    sources: Sources | None,
    result: Result | None,
) -> list[str]:
    """Write all files and return their names; a JSON that is there, the last one, belongs to all others."""
    pictures = {_png_name(picture): picture for section in sections for picture in section.pictures}
    folder.add_files(list(pictures))
    files = [write_bytes(folder.path / name, picture.png) for name, picture in pictures.items()]
    if sources is not None and result is not None and (result.reference or result.twin):
        _write_image_table(folder.path / TABLE_NAME, result, sources.denoised.rows)
        files.append(folder.path / TABLE_NAME)
    files += [
        write_pages(folder.path / PDF_NAME, HEADLINE, TRUST, facts, sections),
        write_html(folder.path / HTML_NAME, HEADLINE, TRUST, facts, sections),
        write_bytes(folder.path / JSON_NAME, _json(record)),
    ]
    return [path.relative_to(folder.path).as_posix() for path in files]


def _write_image_table(path: Path, result: Result, rows: NDArray[np.intp]) -> None:
    """Figures of the single images, by row of the denoised table, so that the worst can be looked up."""
    columns: dict[str, list[str]] = {"row": [str(row + 1) for row in rows]}
    for target, comparisons in (("clean", result.reference), ("twin", result.twin)):
        for name, comparison in comparisons.items():
            for metric, values in comparison.values.items():
                columns[f"{name}_{metric}_{target}"] = [f"{value:.7g}" for value in values]
    write_tables(path, [("images", list(columns), zip(*columns.values(), strict=True))])


def _json(record: dict[str, Any]) -> bytes:
    """JSON knows no NaN and no infinity: what is not finite becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def describe_images(sources: Sources) -> str:
    """Return how many images there are, and their size."""
    y, x = sources.denoised.shape
    size = sources.pixel_size_angstrom
    scale = f"{size:g} Å/px" if size else "pixel size unknown: no figure is in Å"
    return f"{len(sources.denoised)} {sources.denoised.kind}, {x} x {y} px, {scale}"


def facts_of(
    config: EvaluateConfig, sources: Sources | None, command: str, started: float, seconds: float
) -> dict[str, str]:
    """Return what was done, as name and value."""
    facts = {}
    for name in ("denoised", "reference", "twin", "raw"):
        path = getattr(config, name)
        if path is not None:
            facts[name] = _provenance(path)
    if config.denoised is not None:
        record = config.denoised.parent / RECORD_NAME
        try:
            made = json.loads(record.read_text(encoding="utf-8"))
            facts["denoised by"] = (
                f"cryohush {made['version']}, model {made['model']['name']}, SHA-256 "
                f"{made['model']['sha256']}; {made['command']}"
            )
        except (OSError, ValueError, KeyError, TypeError):
            facts["denoised by"] = f"not known: there is no {RECORD_NAME} beside the images"
    if sources is not None:
        facts["images"] = describe_images(sources)
    return {
        **facts,
        "time": f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime(started))}, {seconds:.1f} s",
        "version": f"cryohush {__version__}, torch {torch.__version__}",
        "command": command,
    }


def _provenance(path: Path) -> str:
    """Path of an input; of a table its hash, of a stack, which may be huge, its size."""
    if path.suffix.lower() in (".star", ".cs"):
        return f"{path}, SHA-256 {sha256_of(path)}"
    return f"{path}, {path.stat().st_size} bytes"
