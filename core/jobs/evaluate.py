"""An evaluation from files to files: JSON, figures, an HTML report and `logfile.pdf`."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from ..inference.devices import LocalDevices
from ..inference.plan import source_files
from ..io.files import file_state, make_folder, sha256_of
from ..io.journal import RANGES_FOLDER, RECORD_NAME, Undertaking
from ..job_context import QUIET, JobContext
from ..report import PDF_NAME
from ..report.html import Picture, Section, write_bytes, write_html
from ..report.pages import write_pages
from .folder import Earlier, JobFolder
from .job import Devices
from .parts import do_in_folder, move_files, read_notes

JSON_NAME, HTML_NAME, TABLE_NAME = "evaluation.json", "evaluation.html", "evaluation_images.csv"
PNG_PREFIX = "evaluation_"
# Rows of each table of the report that a batch repeats.
_ROWS = 3
HEADLINE = "Evaluation of denoised images"


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

    @property
    def numbers(self) -> dict[str, Any]:
        """What `evaluation.json` holds."""
        numbers: dict[str, Any] = json.loads((self.folder / JSON_NAME).read_text(encoding="utf-8"))
        return numbers


def _evaluation(folder: Path, names: list[str], sections: Sequence[Section]) -> Evaluation:
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


def run_evaluate(
    config: EvaluateConfig,
    output_dir: Path,
    context: JobContext = QUIET,
    *,
    earlier: Earlier = "refuse",
    devices: Devices | None = None,
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
    devices
        Where to calculate, instead of on `config.threads` threads of this process.

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
    sources = Sources.open(config) if config.denoised else None
    undertaking, inputs = plan_evaluation(config, sources)
    with JobFolder(output_dir, undertaking, earlier, inputs=inputs, log=context.log) as folder:
        if folder.journal.is_complete:
            return Evaluation(output_dir, list(folder.journal.results or ()))
        work = EvaluateWork(config, sources, folder, context.command or "")
        (devices or LocalDevices([torch.device("cpu")], config.threads)).do(work, context)
        assert work.found is not None  # it is done
        folder.journal.complete(work.found.names)
    return work.found


class EvaluateWork:
    """An evaluation, which one process does from begin to end, or again; see `Work`.

    Attributes
    ----------
    found
        What it found; None before it is done.
    """

    title, name, is_whole, n_parts = "evaluation", "evaluation", True, 1

    def __init__(
        self, config: EvaluateConfig, sources: Sources | None, folder: JobFolder, command: str
    ) -> None:
        self._config, self._sources, self._folder, self._command = config, sources, folder, command
        self._ranges = folder.path.absolute() / RANGES_FOLDER
        self.n_images = 0 if sources is None else len(sources.denoised)
        self.waiting = [self]
        self.found: Evaluation | None = None

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Compute all that applies, and write it."""
        config, sources = self._config, self._sources
        started, begin = time.time(), time.monotonic()
        numbers, sections, result = _compute(config, sources, devices.cpu_threads, context)
        facts = _facts(config, sources, self._command, started, time.monotonic() - begin)
        record = {"facts": facts, "options": config.model_dump(mode="json"), **numbers}
        names = _write(self._folder, facts, record, sections, sources, result)
        self.found = _evaluation(self._folder.path, names, sections)

    @contextlib.contextmanager
    def in_parts(self, part_bytes: int) -> Iterator[EvaluateWork]:
        """Yield all of it; a worker that is still at it afterwards stops."""
        try:
            self._attempts = self._ranges / uuid.uuid4().hex
            make_folder(self._attempts)
            yield self
        finally:
            shutil.rmtree(self._ranges, ignore_errors=True)

    def describe(self) -> str:
        """See `Part`."""
        return self.name

    def order(self, part: EvaluateWork) -> EvaluateOrder:
        """See `Parts`."""
        return EvaluateOrder(self._config, self._attempts / self.name, self._command)

    def take(self, part: EvaluateWork) -> None:
        """See `Parts`."""
        folder = self._attempts / self.name
        found = Evaluation(self._folder.path, **read_notes(folder))
        self._folder.add_files(found.names)
        move_files(found.names, folder, self._folder.path)
        self.found = found


@dataclass(frozen=True)
class EvaluateOrder:
    """An evaluation with all that a worker needs to do it.

    Attributes
    ----------
    config
        What is compared with what.
    folder
        What the evaluation's own folder becomes.
    command
        The command line.
    """

    config: EvaluateConfig
    folder: Path
    command: str

    def do(self, devices: LocalDevices) -> None:
        """Evaluate into the folder.

        Raises
        ------
        CryohushError
            As `run_evaluate`; nothing stays behind.
        """
        device = ",".join(str(one) for one in devices.devices)
        config = self.config.model_copy(update={"device": device, "threads": devices.cpu_threads})

        def do(folder: Path) -> dict[str, Any]:
            context = JobContext(should_stop=lambda: not folder.exists(), command=self.command)
            found = vars(run_evaluate(config, folder, context, devices=devices))
            return {name: value for name, value in found.items() if name != "folder"}

        do_in_folder(self.folder, do)


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
    config: EvaluateConfig, sources: Sources | None, n_threads: int, context: JobContext
) -> tuple[dict[str, Any], list[Section], Result | None]:
    """Return the numbers, the sections of the report, and the comparison of the images."""

    def check() -> None:
        context.stop_if_asked("Stopped. Nothing was written.")

    threads = torch.get_num_threads()
    torch.set_num_threads(n_threads)
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
) -> list[str]:
    """Write all files and return their names; a JSON that is there, the last one, belongs to all others."""
    pictures = {_png_name(picture): picture for section in sections for picture in section.pictures}
    folder.add_files(list(pictures))
    files = [write_bytes(folder.path / name, picture.png) for name, picture in pictures.items()]
    if sources is not None and result is not None and (result.reference or result.twin):
        files.append(write_bytes(folder.path / TABLE_NAME, _image_table(result, sources.denoised.rows)))
    files += [
        write_pages(folder.path / PDF_NAME, HEADLINE, TRUST, facts, sections),
        write_html(folder.path / HTML_NAME, HEADLINE, TRUST, facts, sections),
        write_bytes(folder.path / JSON_NAME, _json(record)),
    ]
    return [path.relative_to(folder.path).as_posix() for path in files]


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
