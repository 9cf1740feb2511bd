"""A batch for its user's eyes: a table on the terminal, and `batch.html` over the whole plan."""

from __future__ import annotations

import base64
import html
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..advice import USE
from ..config.batch import Job
from ..errors import InputError
from ..io.files import write_text
from ..progress import counted
from ..report import PDF_NAME, PNG_NAME
from .state import Item, is_running, log_path, read_state

if TYPE_CHECKING:
    from .sources import Forecast

HTML_NAME = "batch.html"
_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto }
table { border-collapse: collapse; width: 100% }
td, th { padding: .35rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.done { color: #1a7f37 } .failed { color: #c0281c; font-weight: 600 } .stopped, .running { color: #9a6700 }
.trust { background: #fdf1dc; border: 1px solid #d9a441; border-radius: 6px; padding: .7rem 1rem }
img { max-width: 100%; border: 1px solid #ddd } h2 { margin: 2.2rem 0 .4rem } code { font-size: 90% }
"""
# What whoever looks at the results of each job has to know.
_SAYS: Mapping[Job, str] = {
    "denoise": USE,
    "extract-noise": "Green frames are blocks of noise that were taken, orange ones were rejected by their "
    "statistics; red is contamination and blue are particles, where a network labelled them.",
    "evaluate": "Figures of denoised images say nothing of the resolution of a map.",
}
_COLUMNS = ("source", "job", "state", "images", "of", "per second", "time", "problem")
_NUMBERS = range(3, 7)


def status_table(folder: Path) -> str:
    """Return how each source of a batch stands, as text; also while it runs.

    Raises
    ------
    InputError
        If there is no batch.
    """
    batch_state = _state(folder)
    items = [Item.from_json(entry) for entry in batch_state["items"]]
    running = is_running(folder)
    rows = [
        (
            item.name,
            item.job,
            item.state if running or item.state != "running" else "interrupted",
            f"{item.n_done}",
            f"{item.n_images}",
            _speed(item),
            _duration(_seconds(item, running)),
            item.error or "",
        )
        for item in items
    ]
    done = sum(item.n_done for item in items)
    total = sum(item.n_images for item in items)
    state = f"running ({batch_state['driver']})" if running else "not running"
    head = f"{folder}: {state}, {done} of {total} images, {_states(items)}"
    if running and batch_state["dashboard"]:
        head += f"\ndashboard {batch_state['dashboard']}"
    return f"{head}\n{_table([_COLUMNS, *rows], right=_NUMBERS)}"


def forecast_table(forecast: Forecast) -> str:
    """Return what a batch would do, as text."""
    rows = [
        (
            item.name,
            item.job,
            item.origin or str(item.source),
            size.kind,
            f"{size.n_images}",
            _bytes(size.bytes),
            str(item.output or "a new job"),
        )
        for item, size in zip(forecast.items, forecast.sizes, strict=True)
    ]
    images = sum(size.n_images for size in forecast.sizes)
    total = sum(size.bytes for size in forecast.sizes)
    return (
        _table([("source", "job", "input", "kind", "images", "output", "goes to"), *rows], right=range(4, 6))
        + f"\n{counted(len(rows), 'source')}, {counted(images, 'image')}, about {_bytes(total)} to be "
        f"written, about {_duration(forecast.seconds)} on devices like those of this machine, by short trials"
    )


def write_batch_report(folder: Path) -> Path:
    """Write `batch.html` from the batch's state: counts, speed, failures, and pictures before and after.

    Raises
    ------
    InputError
        If there is no batch.
    OutputError
        If it cannot be written.
    """
    batch_state = _state(folder)
    items = [Item.from_json(entry) for entry in batch_state["items"]]
    images, seconds = sum(item.n_done for item in items), sum(item.seconds for item in items)
    rows = "".join(_html_row(item) for item in items)
    head = "".join(
        f'<th class="number">{name}</th>' if number in _NUMBERS else f"<th>{name}</th>"
        for number, name in enumerate(_COLUMNS)
    )
    says = "".join(
        f'<p class="trust">{text}</p>'
        for job, text in _SAYS.items()
        if any(item.job == job for item in items)
    )
    text = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>cryohush batch</title>'
        f"<style>{_STYLE}</style></head><body><h1>cryohush batch</h1><p>{_states(items)}; {images} images; "
        f"{_duration(seconds)} of work on sources; cryohush {html.escape(batch_state['version'])}; "
        f"{time.strftime('%Y-%m-%d %H:%M', time.localtime(batch_state['updated']))}</p>"
        f"{says}<table><tr>{head}</tr>{rows}</table>"
        + "".join(_html_section(folder, item) for item in items)
        + "</body></html>\n"
    )
    path = folder / HTML_NAME
    write_text(path, text)
    return path


def _state(folder: Path) -> dict[str, Any]:
    batch_state = read_state(folder)
    if batch_state is None:
        raise InputError("no batch was run here.", path=folder)
    return batch_state


def _html_row(item: Item) -> str:
    name = html.escape(item.name)
    numbers = (str(item.n_done), str(item.n_images), _speed(item), _duration(item.seconds))
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return (
        f'<tr><td><a href="#{name}">{name}</a></td><td>{item.job}</td>'
        f'<td class="{item.state}">{item.state}</td>{cells}<td>{html.escape(item.error or "")}</td></tr>'
    )


def _html_section(folder: Path, item: Item) -> str:
    name = html.escape(item.name)
    lines = [
        f'<h2 id="{name}">{name}</h2><p>input <code>{html.escape(item.origin or str(item.source))}</code>'
    ]
    if item.output is not None:
        lines.append(f"<br>output <code>{html.escape(str(item.output))}</code>")
    links = [("log", log_path(folder, item.name))]
    if item.state == "done" and item.output is not None:
        links.append(("report", item.output / PDF_NAME))
    for text, path in links:
        if path.exists():
            lines.append(f'<br><a href="{html.escape(os.path.relpath(path, folder))}">{text}</a>')
    lines.append("</p>")
    if item.state != "done" or item.output is None:
        return "".join(lines)
    if item.key_figures:
        cells = [map(html.escape, pair) for pair in item.key_figures.items()]
        rows = "".join(f"<tr><td>{key}</td><td>{figure}</td></tr>" for key, figure in cells)
        lines.append(f"<table>{rows}</table>")
    picture = Path(item.picture) if item.picture else item.output / PNG_NAME
    if picture.exists():
        data = base64.b64encode(picture.read_bytes()).decode()
        lines.append(f'<img alt="{item.job}: {name}" src="data:image/png;base64,{data}">')
    return "".join(lines)


def _states(items: Sequence[Item]) -> str:
    counts: dict[str, int] = {}
    for item in items:
        counts[item.state] = counts.get(item.state, 0) + 1
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def _seconds(item: Item, running: bool) -> float:
    if item.state == "running" and running and item.begun:
        return time.time() - item.begun
    return item.seconds


def _speed(item: Item) -> str:
    return f"{item.images_per_second:.1f}" if item.images_per_second else ""


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return (
        f"{whole // 3600} h {whole % 3600 // 60} min"
        if whole >= 3600
        else f"{whole // 60} min {whole % 60} s"
    )


def _bytes(count: int) -> str:
    size, units = float(count), iter(("B", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    while size >= 1000 and unit != "PB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def _table(rows: Sequence[Sequence[str]], right: range) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
