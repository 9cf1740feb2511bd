"""What a user opens first: `logfile.pdf`, its pictures alone as `montage.png`, and `view.html`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..advice import COMPANY, OF_MAP, TRUST
from ..metrics.gain import Verdict
from ..progress import counted
from ..spread import evenly_spread
from . import PDF_NAME, PNG_NAME, VIEWER_NAME
from .figures import Kind, draw_gain, draw_montage, draw_side_by_side, draw_spectra, montage_rows
from .html import write_bytes
from .paper import SMALL, TEXT_WIDTH, Paper
from .text import fit
from .verdict import Filtered, like_low_pass
from .viewer import write_viewer

if TYPE_CHECKING:
    from ..inference.stream import ImageNote
    from ..inference.summary import Summary

# Images that are shown: particles side by side, micrographs one after the other.
SHOWN = {"particles": 6, "micrographs": 3}
# Width of an image in the PNG, inches, and the room for labels left and above of the images.
PICTURE_WIDTH = {"particles": 1.3, "micrographs": 4.0}
LABEL_ROOM, TITLE_ROOM = 0.75, 0.36
SPECTRA_HEIGHT, GAIN_HEIGHT = 2.3, 2.1
# Images with something to be said of them: so many are named at the head of the page, and at its end.
FEW, NAMED = 2, 30


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
    kind: Kind = "particles",
    verdict: Verdict | None = None,
    total: int | None = None,
    remarks: Sequence[str] = (),
    error: NDArray[np.float32] | None = None,
    gain: Sequence[Mapping[str, float | None]] = (),
) -> tuple[Path, Path, Path]:
    """Write `logfile.pdf`, `montage.png` and `view.html`, replacing those of an earlier run.

    Parameters
    ----------
    directory
        Where to.
    raw, denoised
        `(n, y, x)`, the same images; none at all if none was denoised. The spectra are means over all, the
        montage shows a few, evenly spread.
    titles
        One per image: `number@stack` of a particle, the name of a micrograph.
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
    verdict
        What denoising came to, for the head of the page.
    total
        Images that these were chosen from, if there are more.
    remarks
        What is to be said of single images, a line each.
    error
        `(n, y, x)` expected standard error of each denoised pixel; for the viewer.
    gain
        What denoising adds, by band of resolution; see `figures.draw_gain`.

    Returns
    -------
    tuple of Path
        The PDF, the PNG and the viewer.

    Raises
    ------
    OutputError
        When a file cannot be written.
    """
    filtered = like_low_pass(raw, denoised, pixel_size_angstrom)
    shown = evenly_spread(len(raw), SHOWN[kind])
    low_pass = None if filtered is None else filtered.of(shown)
    parts = (raw[shown], denoised[shown], low_pass, [titles[number] for number in shown.tolist()])
    notes = [] if verdict is None else [verdict]
    if filtered is not None:
        notes.append(Verdict(filtered.verdict, "note"))
    if remarks:
        notes.append(Verdict(_summary_of(remarks), "bad"))
    notes.append(Verdict(" ".join(filter(None, (TRUST, way_back))), "note"))
    paper = Paper(headline)
    for note in notes:
        paper.note(*note)
    if not len(raw):
        paper.paragraph(f"None of the {kind} was denoised.")
    elif kind == "particles":
        _add_montage(paper, *parts, pixel_size_angstrom)
    else:
        _add_micrographs(paper, *parts, pixel_size_angstrom)
    if len(raw):
        paper.heading(
            f"Power by resolution, mean of {counted(len(raw), kind.removesuffix('s'))}", above=SPECTRA_HEIGHT
        )
        part = paper.picture(SPECTRA_HEIGHT)
        axes = part.add_axes((0.09, 0.16, 0.89, 0.7))
        draw_spectra(axes, raw, denoised, pixel_size_angstrom=pixel_size_angstrom)
    if any(band["gain"] is not None for band in gain):
        paper.heading("What denoising adds, by resolution", above=GAIN_HEIGHT)
        draw_gain(paper.picture(GAIN_HEIGHT).add_axes((0.09, 0.16, 0.89, 0.78)), gain)
    paper.heading("How it was made")
    paper.facts(facts)
    if len(remarks) > FEW:
        paper.heading("Images that need a look")
        for line in remarks[:NAMED]:
            paper.paragraph(line, SMALL)
        if len(remarks) > NAMED:
            paper.paragraph(f"… and {len(remarks) - NAMED} more: cryohush.json names them all.", SMALL)
    return (
        paper.write(directory / PDF_NAME),
        save(_montage(*parts, pixel_size_angstrom, kind), directory / PNG_NAME),
        write_viewer(
            directory / VIEWER_NAME,
            raw,
            denoised,
            titles=titles,
            pixel_size_angstrom=pixel_size_angstrom,
            kind=kind,
            headline=headline,
            notes=notes,
            total=total,
            filtered=filtered,
            error=error,
        ),
    )


def _name(note: ImageNote, kind: Kind) -> str:
    return note.stack if kind == "micrographs" else f"{note.image}@{note.stack}"


def _summary_of(remarks: Sequence[str]) -> str:
    """Return what stands at the head of a page about the images that need a look."""
    if len(remarks) <= FEW:
        return "Needs a look: " + " ".join(remarks)
    return f"{len(remarks)} images need a look: {PDF_NAME} lists them at its end."


def report_run(
    summary: Summary, command: str, *, way_back: str = "", warnings: Sequence[str] = ()
) -> tuple[Path, Path, Path]:
    """Report a denoising run in its output directory; the rest as `write_report`.

    Parameters
    ----------
    warnings
        What the user was warned of, besides what the summary has to say of single images.
    """
    samples = summary.samples
    notes = [("unchanged", note) for note in summary.skipped] + [
        ("denoised", note) for note in summary.remarks
    ]
    facts, judgement, kind = summary.facts(), summary.gain.get("judgement"), summary.kind
    gain = facts.pop("verdict", "")
    if gain and judgement is None:
        facts["gain"] = gain
    company = [COMPANY] * bool(summary.context.get("used")) + [OF_MAP] * bool(summary.context.get("map"))
    return write_report(
        summary.output_dir,
        samples.raw,
        samples.denoised,
        titles=samples.titles,
        pixel_size_angstrom=samples.pixel_size_angstrom,
        headline=counted(summary.n_rows, f"denoised {kind.removesuffix('s')}"),
        facts={**facts, "command": command},
        way_back=" ".join(filter(None, (*company, way_back))),
        kind=kind,
        verdict=None if judgement is None else Verdict(gain, judgement),
        total=summary.n_images,
        error=samples.error,
        gain=summary.gain.get("bands", ()),
        remarks=[
            *warnings,
            *(f"{_name(note, summary.kind)}, {what}: {note.problem}" for what, note in notes),
        ],
    )


def _add_montage(
    paper: Paper,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    filtered: Filtered | None,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
) -> None:
    """Put the columns of some particles on the page, all of them as wide as the text."""
    n_rows = 3 if filtered is None else 4
    side = (TEXT_WIDTH - LABEL_ROOM) / SHOWN["particles"]
    height = n_rows * side * raw.shape[1] / raw.shape[2] + TITLE_ROOM + 0.2
    part = paper.picture(height)
    right = (LABEL_ROOM + side * len(raw)) / TEXT_WIDTH
    part.subplots_adjust(LABEL_ROOM / TEXT_WIDTH, 0.2 / height, right, 1 - TITLE_ROOM / height)
    draw_montage(
        part, raw, denoised, titles=titles, pixel_size_angstrom=pixel_size_angstrom, filtered=filtered
    )


def _add_micrographs(
    paper: Paper,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    filtered: Filtered | None,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
) -> None:
    """Put some micrographs on pages: two images in a row, so that particles can be seen."""
    rows = montage_rows(raw, denoised, filtered, "micrographs")
    for number, title in enumerate(titles):
        tall = TEXT_WIDTH * raw.shape[1] / raw.shape[2] * -(-len(rows) // 2) / 2 + 0.6
        height = paper.fitting(min(tall, 8.6), least=0.7 * min(tall, 8.6), above=0.55)
        paper.heading(title, 10.0, height)
        part = paper.picture(height)
        part.subplots_adjust(0.0, 0.04, 1.0, 0.95)
        draw_side_by_side(part, rows, number, columns=2, pixel_size_angstrom=pixel_size_angstrom)


def write_montage(
    path: Path,
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    *,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
    kind: Kind,
) -> tuple[Path, str]:
    """Write the picture alone, of all images `(n, y, x)`; return its path and what is to be said of it."""
    filtered = like_low_pass(raw, denoised, pixel_size_angstrom)
    figure = _montage(raw, denoised, filtered, titles, pixel_size_angstrom, kind)
    return save(figure, path), filtered.verdict if filtered else ""


def _montage(
    raw: NDArray[np.float32],
    denoised: NDArray[np.float32],
    filtered: Filtered | None,
    titles: Sequence[str],
    pixel_size_angstrom: float | None,
    kind: Kind,
) -> Figure:
    """Return the picture alone: particles in columns, the images of a micrograph side by side."""
    if not len(raw):
        figure = Figure(figsize=(4.0, 1.0))
        figure.text(0.5, 0.5, f"none of the {kind} was denoised", ha="center", fontsize=8)
        return figure
    side, n_rows = PICTURE_WIDTH[kind], 3 if filtered is None else 4
    tall = side * raw.shape[1] / raw.shape[2]
    if kind == "particles":
        width, height = side * len(raw) + LABEL_ROOM, n_rows * tall + TITLE_ROOM + 0.2
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(LABEL_ROOM / width, 0.2 / height, 0.995, 1 - TITLE_ROOM / height)
        draw_montage(
            figure, raw, denoised, titles=titles, pixel_size_angstrom=pixel_size_angstrom, filtered=filtered
        )
        return figure
    rows = montage_rows(raw, denoised, filtered, "micrographs")
    figure = Figure(figsize=(side * n_rows, (tall + 0.75) * len(raw)))
    room = tall + 0.75
    for number, part in enumerate(figure.subfigures(len(raw), 1, squeeze=False)[:, 0]):
        part.subplots_adjust(0.005, 0.35 / room, 0.995, 1 - 0.4 / room)
        draw_side_by_side(part, rows, number, columns=n_rows, pixel_size_angstrom=pixel_size_angstrom)
        title = fit(titles[number], 9.0, side * n_rows * 0.98)
        part.text(0.005, 1 - 0.05 / room, title, fontsize=9, va="top", parse_math=False)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, replacing an earlier file, and return its path.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return write_bytes(path, buffer.getvalue())
