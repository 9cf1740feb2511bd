"""An evaluation from files to files: JSON, figures, an HTML report and `logfile.pdf`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel

from ... import __version__
from ..advice import TRUST
from ..config.evaluate import EvaluateConfig
from ..evaluation.comparison import Result, Sources, compare
from ..evaluation.model_section import model_figures
from ..evaluation.picking import picking
from ..evaluation.sections import against_clean, against_twin, sample_section
from ..evaluation.tasks import Found, clustering, half_maps, pose_accuracy
from ..inference.devices import available_threads
from ..inference.plan import source_files
from ..io.files import file_state, sha256_of
from ..io.journal import RANGES_FOLDER, RECORD_NAME, Undertaking
from ..job_context import QUIET, JobContext
from ..report import PDF_NAME
from ..report.html import Section, write_bytes, write_html
from ..report.pages import write_pages
from .folder import Earlier, JobFolder

JSON_NAME, HTML_NAME, TABLE_NAME = "evaluation.json", "evaluation.html", "evaluation_images.csv"
PNG_PREFIX = "evaluation_"
HEADLINE = "Evaluation of denoised images"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found and wrote.

    Attributes
    ----------
    numbers
        What `evaluation.json` holds.
    files
        All that was written.
    sections
        What the report shows; none when nothing was left to do.
    """

    numbers: dict[str, Any]
    files: list[Path]
    sections: list[Section]

    @property
    def tables(self) -> list[str]:
        """The tables of the report, each with its title and notes, as text in columns."""
        return [
            "\n".join([section.title, *_columns([section.header, *section.rows]), *section.notes])
            for section in self.sections
            if section.rows
        ]

    @property
    def pictures(self) -> dict[str, str]:
        """The names of the figures' PNG files, by what they show."""
        return {
            f"{section.title}. {picture.caption}": f"{PNG_PREFIX}{picture.name}.png"
            for section in self.sections
            for picture in section.pictures
        }


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines of text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)) for row in rows)
    return [line.rstrip() for line in lines]


def run_evaluate(
    config: EvaluateConfig, output_dir: Path, context: JobContext = QUIET, *, earlier: Earlier = "refuse"
) -> Evaluation:
    """Compute all that applies and write it to `output_dir`; nothing is written before all is computed.

    Parameters
    ----------
    config
        What is compared with what.
    output_dir
        Made if missing.
    context
        Whom to ask and tell.
    earlier
        What to do with an earlier evaluation in the directory; see `jobs.folder`.

    Raises
    ------
    InputError
        If a file cannot be read, holds NaN, or does not go together with the others.
    ConfigurationError, ModelError, DeviceError
        If something that was asked for cannot be done.
    OutputError
        If the directory is in use or cannot be written to.
    Aborted
        If `context.should_stop` said so.
    """
    started, begin = time.time(), time.monotonic()
    sources = Sources.open(config) if config.denoised else None
    undertaking, inputs = plan_evaluation(config, sources)
    with JobFolder(output_dir, undertaking, earlier, inputs=inputs, log=context.log) as folder:
        if folder.journal.is_complete:
            numbers = json.loads((output_dir / JSON_NAME).read_text(encoding="utf-8"))
            return Evaluation(numbers, [output_dir / name for name in folder.journal.results or ()], [])
        numbers, sections, result = _compute(config, sources, context)
        facts = _facts(config, sources, context.command or "", started, time.monotonic() - begin)
        record = {"facts": facts, "options": config.model_dump(mode="json"), **numbers}
        files = _write(folder, facts, record, sections, sources, result)
        folder.journal.complete([path.relative_to(output_dir).as_posix() for path in files])
    return Evaluation(record, files, sections)


def plan_evaluation(config: EvaluateConfig, sources: Sources | None) -> tuple[Undertaking, list[Path]]:
    """Return what an evaluation is going to make, and the files that it reads."""
    inputs = [path for path in paths_in(config) if path.is_file()]
    if sources is not None:
        for rows in (sources.denoised, sources.reference, sources.twin, sources.raw):
            if rows is not None:
                inputs += [*source_files(rows.table), *rows.table.stacks]
    inputs = list(dict.fromkeys(inputs))
    digest = hashlib.sha256()
    for path in inputs:
        digest.update(f"{file_state(path)}\n".encode(errors="surrogateescape"))
    options = config.model_dump(mode="json", exclude={"device", "threads"})
    fingerprint = {"version": __version__, "inputs": digest.hexdigest(), **options}
    files = (JSON_NAME, HTML_NAME, TABLE_NAME, PDF_NAME)
    return Undertaking("evaluate", fingerprint, {}, files, [RANGES_FOLDER]), inputs


def paths_in(section: BaseModel) -> Iterator[Path]:
    """Yield all paths of a configuration."""
    for _, value in section:
        if isinstance(value, Path):
            yield value
        elif isinstance(value, BaseModel):
            yield from paths_in(value)


def _compute(
    config: EvaluateConfig, sources: Sources | None, context: JobContext
) -> tuple[dict[str, Any], list[Section], Result | None]:
    """Return the numbers, the sections of the report, and the comparison of the images."""

    def check() -> None:
        context.stop_if_asked("Stopped. Nothing was written.")

    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads or available_threads())
    try:
        sections: list[Section] = []
        numbers: dict[str, Any] = {}
        result = None
        if sources is not None:
            context.log(f"{len(sources.denoised)} {sources.denoised.kind}, {_box(sources)}")
            for note in sources.notes:
                context.log(note)
            result = compare(sources, config, progress=context.progress, should_stop=context.should_stop)
            numbers["frequency"] = result.frequency.tolist()
            sections.append(sample_section(sources))
        for name, work in _tasks(config, sources, result, check).items():
            check()
            context.log(f"{name.replace('_', ' ')} …")
            numbers[name], section = work()
            sections.append(section)
        check()
    finally:
        torch.set_num_threads(threads)
    return numbers, sections, result


def evaluate(
    config: EvaluateConfig, output_dir: Path, context: JobContext = QUIET, *, earlier: Earlier = "refuse"
) -> Evaluation:
    """Run `run_evaluate`, and tell of it in the log."""
    evaluation = run_evaluate(config, output_dir, context, earlier=earlier)
    for path in evaluation.files:
        context.log(f"wrote {path}")
    return evaluation


def _tasks(
    config: EvaluateConfig, sources: Sources | None, result: Result | None, check: Callable[[], None]
) -> dict[str, Callable[[], Found]]:
    """Return all that is to be done after the images were compared, in the order of the report."""
    tasks: dict[str, Callable[[], Found]] = {}
    if sources is not None and result is not None:
        if result.reference:
            tasks["against_clean"] = lambda: against_clean(result, sources, config)
        if result.twin:
            tasks["against_twin"] = lambda: against_twin(result, sources, config)
        if config.clustering is not None:
            section = config.clustering
            tasks["clustering"] = lambda: clustering(section, sources)
        if config.pose is not None:
            poses = config.pose
            tasks["poses"] = lambda: pose_accuracy(poses, sources, check)
    if config.picking is not None:
        picks = config.picking
        tasks["picking"] = lambda: picking(picks, check)
    if config.half_maps is not None:
        maps = config.half_maps
        tasks["half_maps"] = lambda: half_maps(maps)
    if config.model is not None:
        model = config.model
        tasks["model"] = lambda: model_figures(model, sources, config.noise_images, config.device, check)
    return tasks


def _box(sources: Sources) -> str:
    y, x = sources.denoised.shape
    size = sources.pixel_size_angstrom
    return f"{x} x {y} px, " + (f"{size:g} Å/px" if size else "pixel size unknown: no figure is in Å")


def _facts(
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
        facts["images"] = f"{len(sources.denoised)} {sources.denoised.kind}, {_box(sources)}"
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


def _write(
    folder: JobFolder,
    facts: dict[str, str],
    record: dict[str, Any],
    sections: list[Section],
    sources: Sources | None,
    result: Result | None,
) -> list[Path]:
    """Write all files; the JSON comes last, so that one that is there belongs to all the others."""
    pictures = {
        f"{PNG_PREFIX}{picture.name}.png": picture for section in sections for picture in section.pictures
    }
    folder.add_files(list(pictures))
    files = [write_bytes(folder.path / name, picture.png) for name, picture in pictures.items()]
    if sources is not None and result is not None and (result.reference or result.twin):
        files.append(write_bytes(folder.path / TABLE_NAME, _image_table(result, sources.denoised.rows)))
    return [
        *files,
        write_pages(folder.path / PDF_NAME, HEADLINE, TRUST, facts, sections),
        write_html(folder.path / HTML_NAME, HEADLINE, TRUST, facts, sections),
        write_bytes(folder.path / JSON_NAME, _json(record)),
    ]


def _image_table(result: Result, rows: NDArray[np.intp]) -> bytes:
    """Figures of the single images, by row of the denoised table, so that the worst can be looked up."""
    columns: dict[str, Any] = {"row": rows + 1}
    for target, comparisons in (("clean", result.reference), ("twin", result.twin)):
        for name, comparison in comparisons.items():
            for metric, values in comparison.values.items():
                columns[f"{name} {metric} {target}"] = [f"{value:.7g}" for value in values]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def _json(record: dict[str, Any]) -> bytes:
    """JSON knows no NaN and no infinity: what is not finite becomes null."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: finite(entry) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return (json.dumps(finite(record), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
