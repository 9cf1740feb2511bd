"""Extraction of noise: from micrographs to blocks of noise, their table, label maps and pictures."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ... import __version__
from ..config.extract_noise import ExtractNoiseOptions
from ..errors import InputError, TooFewBlocks
from ..inference.devices import LocalDevices, Precision, choose_precision, resolve_devices
from ..inference.inputs import contrast_of_micrographs
from ..io.files import file_state, make_folder, sha256_of, write_json
from ..io.journal import JOURNAL_NAME, RANGES_FOLDER, RECORD_NAME, Journal, Undertaking
from ..io.micrographs import MicrographSet
from ..io.mrc import WriterState
from ..job_context import QUIET, JobContext
from ..models.weights import LoadedModel, Weights
from ..noise.finders import finder_of, load_noise_network
from ..noise.micrograph import Draw, MicrographCounts, MicrographTask, extract_from, overlay_file, part_file
from ..noise.output import PARTS_FOLDER, STACK_NAME, TABLE_NAME, split_noise, write_noise
from ..noise.summary import NoiseSummary, explain
from ..progress import counted
from ..report import PDF_NAME
from .folder import Earlier, JobFolder
from .job import BatchJob, Devices, JobSize, Plan, placed
from .noise_plan import label_name, plan_search, remedy, smaller_window
from .noise_search import Search, SearchWork, choose

# Micrographs that are named one by one.
WARNINGS = 8
# The journal's entries for the number format, and for a window that is not the usual one.
_PRECISION, _WINDOW = "precision", "window"
_TABLE_PART = f"{PARTS_FOLDER}/table"


class ExtractNoiseJob(BatchJob[NoiseSummary]):
    """Blocks of pure noise, cut out of micrographs.

    The folder gets `noise.mrcs`, `noise.star` (micrograph, coordinates, statistics and method of each block;
    RELION reads it as particles), `labels/` (segmentation), `overlays/` and `cryohush.json`. Each thread has
    one micrograph; a killed run goes on with the micrographs that are missing.

    Parameters
    ----------
    source
        `micrographs.star`, or one `.mrc`.
    options
        What to do.
    root
        Folder that the table's names are relative to; see `MicrographSet.read`.
    draw
        Writes the picture of a micrograph (`report.overlays.write_overlay`); None draws none.
    """

    def __init__(
        self,
        source: str | Path,
        options: ExtractNoiseOptions,
        *,
        root: Path | None = None,
        draw: Draw | None = None,
    ) -> None:
        self.source, self.options, self._root, self._draw = source, options, root, draw
        self._window_px: int | None = None

    def run(
        self,
        output_dir: str | Path,
        context: JobContext = QUIET,
        *,
        earlier: Earlier = "refuse",
        devices: Devices | None = None,
    ) -> NoiseSummary:
        """See `Job`.

        Where too little is found, and nobody has said how large blocks have to be, smaller ones are taken, in
        all micrographs; the journal keeps their size.
        """
        devices = self.devices() if devices is None else devices
        if earlier in ("resume", "anew"):
            self._window_px = self._window_as_begun(Path(output_dir), devices)
        while True:
            try:
                return super().run(output_dir, context, earlier=earlier, devices=devices)
            except TooFewBlocks as error:
                if error.smaller_px is None:
                    raise
                context.log(f"warning: {error.problem} Trying smaller windows, of {error.smaller_px} px")
                self._window_px, earlier = error.smaller_px, "resume"

    def _window_as_begun(self, output_dir: Path, devices: Devices) -> int | None:
        """The window that an earlier run with these options has come to, if it is not the usual one."""
        if self.options.says_window or not (output_dir / JOURNAL_NAME).exists():
            return None
        with Journal(output_dir / JOURNAL_NAME) as journal:
            window_px: int | None = journal.extras.get(_WINDOW)
            if window_px is None or journal.differences(self.plan(devices, QUIET).undertaking):
                return None
        return window_px

    def devices(self) -> LocalDevices:
        """See `Job`."""
        return LocalDevices(resolve_devices(self.options.device), self.options.threads)

    def plan(self, devices: Devices, context: JobContext) -> NoisePlan:
        """See `Job`.

        Raises
        ------
        ConfigurationError
            If the window does not suit the micrographs, or a pixel size is needed and not known.
        CryohushError
            As `run`.
        """
        begin, options = time.monotonic(), self.options
        model = load_noise_network(options)
        images = MicrographSet.read(self.source, root=self._root)
        tasks, too_small = plan_search(images, options, self._window_px)
        context.log(
            f"{counted(len(images.stacks), 'micrograph')}, windows of {tasks[0].window_px} px every "
            f"{tasks[0].stride_px} px, model {model.name}, SHA-256 {model.sha256[:16]}…"
        )
        micrographs = [(task.path, 0, task.pixel_size_angstrom) for task in tasks]
        warnings = contrast_of_micrographs(micrographs, dark=options.protein != "white")
        for warning in warnings:
            context.log(f"warning: {warning}")
        undertaking = _undertaking(images, tasks, model, options, devices.types, drawn=self._draw is not None)
        return NoisePlan(
            options,
            model,
            images,
            tasks,
            too_small,
            warnings,
            self._window_px is not None,
            self._draw,
            devices,
            context,
            undertaking,
            begin,
        )

    def measure(self, output_dir: Path) -> JobSize:
        """See `Job`; how many blocks there are cannot be known before."""
        options = self.options
        load_noise_network(options)
        images = MicrographSet.read(self.source, root=self._root)
        tasks, _ = plan_search(images, options)
        n_pixels = sum(task.shape[0] * task.shape[1] for task in tasks)
        return JobSize(
            "micrographs",
            len(tasks),
            n_pixels,
            (n_pixels if finder_of(options).makes_labels else 0) + _block_bytes(tasks[0]),
            list(dict.fromkeys([images.source, *images.stacks])),
        )

    def forecast(self, size: JobSize, devices: LocalDevices) -> tuple[JobSize, float]:
        """See `Job`; from a micrograph in the middle, searched twice: the first time sets up."""
        options, device = self.options, devices.devices[0]
        model = load_noise_network(options)
        tasks, _ = plan_search(MicrographSet.read(self.source, root=self._root), options)
        task = tasks[len(tasks) // 2]
        precision, _ = choose_precision(device, options.precision)
        finder = finder_of(options).make(model, device, precision, options)
        kept, seconds = 0, 0.0
        with tempfile.TemporaryDirectory(prefix="cryohush-") as folder:
            (Path(folder) / PARTS_FOLDER).mkdir()
            for _ in range(2):
                begin = time.perf_counter()
                kept = extract_from(task, finder, Path(folder), options, self._draw).kept
                seconds = time.perf_counter() - begin
        blocks = kept * len(tasks) * _block_bytes(task)
        at_once = devices.threads if devices.on_cpu else 1
        return replace(size, bytes=size.bytes + blocks), seconds * len(tasks) / at_once


def _block_bytes(task: MicrographTask) -> int:
    return 4 * task.window_px**2


@dataclass(frozen=True, eq=False)
class NoisePlan(Plan[SearchWork, NoiseSummary]):
    """An extraction whose micrographs were read and checked; see `Plan`.

    Attributes
    ----------
    options, model
        What to do, and with what.
    images, tasks
        The input, and the micrographs to search.
    too_small
        By their numbers those that the window does not fit into.
    warnings
        What may be wrong with the micrographs.
    is_smaller
        Whether the window is smaller than usual, where that found too little.
    draw
        Writes the picture of a micrograph; None draws none.
    devices, context
        Where it calculates; whom to ask and tell.
    undertaking
        What it is going to make.
    started
        When it began, of the monotonic clock.
    """

    options: ExtractNoiseOptions
    model: LoadedModel
    images: MicrographSet
    tasks: Sequence[MicrographTask]
    too_small: Mapping[int, MicrographCounts]
    warnings: Sequence[str]
    is_smaller: bool
    draw: Draw | None
    devices: Devices
    context: JobContext
    undertaking: Undertaking
    started: float

    @property
    def inputs(self) -> list[Path]:  # type: ignore[override]
        """The files that it reads."""
        return [self.images.source, *self.images.stacks]

    def undertaking_in(self, output_dir: Path) -> Undertaking:
        """See `Plan`."""
        return placed(self.undertaking, [_TABLE_PART], output_dir, self.images.root)

    def bytes_left(self, folder: JobFolder) -> int:
        """See `Plan`; of the labels alone: how many blocks there are is not known before."""
        if not finder_of(self.options).makes_labels:
            return 0
        return sum(task.shape[0] * task.shape[1] for task in self._waiting(folder.journal))

    def _waiting(self, journal: Journal) -> list[MicrographTask]:
        return [task for task in self.tasks if not journal.is_finished(_part_name(task))]

    def begin(self, folder: JobFolder) -> SearchWork:
        """See `Plan`."""
        journal, tasks = folder.journal, self.tasks
        make_folder(folder.path / PARTS_FOLDER)
        if self.is_smaller:
            journal.record(_WINDOW, WriterState(), self.tasks[0].window_px)
        self._bring_back(folder)
        waiting = self._waiting(journal)
        if folder.goes_on:
            self.context.log(f"done already: {counted(len(tasks) - len(waiting), 'micrograph')}")
        precision = self._precision(journal)

        def take(task: MicrographTask, counts: MicrographCounts) -> None:
            key = _part_name(task)
            made = [key, label_name(task), _overlay_name(task)]
            journal.record(key, WriterState(), asdict(counts))
            journal.finish(key, [name for name in made if (folder.path / name).exists()])

        search = Search(waiting, Weights.of(self.model), precision, self.options, folder.path, self.draw)
        return SearchWork(search, len(tasks), take)

    def _bring_back(self, folder: JobFolder) -> None:
        """Have what a complete run has joined as parts again, for a table that has grown since."""
        journal, lost = folder.journal, {}
        for task in self.tasks:
            name = _part_name(task)
            if name in journal.finished.get(name, {}) and not journal.is_finished(name):
                lost[task.name] = folder.path / name, MicrographCounts(**journal.extras[name]).kept
        if lost:
            split_noise(folder.path, lost, self.tasks[0].window_px)

    def _precision(self, journal: Journal) -> Precision:
        """The number format that the journal holds, or a new one, which it then holds."""
        precision: Precision | None = journal.extras.get(_PRECISION)
        reason = "as when the run began"
        if precision is None:
            precision, reason = self.devices.ask(choose, self.options.precision)
            journal.record(_PRECISION, WriterState(), precision)
        self.context.log(f"device {', '.join(self.devices.names)}, precision {precision} ({reason})")
        return precision

    def finish(self, folder: JobFolder, work: SearchWork | None) -> NoiseSummary:
        """See `Plan`.

        Raises
        ------
        InputError
            If a micrograph was changed in the meantime, or fewer blocks than `options.min_blocks` were found:
            the text says what excluded how many.
        """
        output_dir, tasks, window_px = folder.path, self.tasks, self.tasks[0].window_px
        extras = folder.journal.extras
        searched = {task.index: MicrographCounts(**extras[_part_name(task)]) for task in tasks}
        counts = [self.too_small.get(index) or searched[index] for index in range(len(self.images.stacks))]
        n_blocks = sum(count.kept for count in counts)
        if n_blocks < self.options.min_blocks:
            found = f"only {counted(n_blocks, 'block')}" if n_blocks else "no blocks"
            needed = f", {self.options.min_blocks} are needed" if self.options.min_blocks > 1 else ""
            error = TooFewBlocks(
                f"found {found} of noise{needed}. {explain(counts)}",
                path=self.images.source,
                remedy=remedy(self.options, tasks, output_dir),
            )
            if not self.options.says_window:
                error.smaller_px = smaller_window(self.options, tasks, output_dir)
            raise error
        with_blocks = [task for task in tasks if counts[task.index].kept]
        summary = NoiseSummary(
            stack=output_dir / STACK_NAME,
            table=output_dir / TABLE_NAME,
            record=output_dir / RECORD_NAME,
            counts=counts,
            warnings=self.warnings,
            n_blocks=n_blocks,
            window_px=window_px,
            is_smaller=self.is_smaller,
            overlays=[overlay_file(output_dir, task) for task in with_blocks if self.draw],
            n_resumed=len(tasks) - (0 if work is None else len(work.search.tasks)),
            seconds=time.monotonic() - self.started,
            was_complete=work is None,
        )
        if work is not None:
            _refuse_changed_micrographs(self.images, tasks, self.undertaking)
            folder.remove(TABLE_NAME)  # that of an earlier run, whose stack goes now
            write_noise(
                self.images,
                output_dir,
                [(task.index, part_file(output_dir, task)) for task in with_blocks],
                n_blocks,
                window_px,
                self.options.method,
                self.options.pixel_size_angstrom,
            )
            self._write_record(summary)
            folder.journal.complete([STACK_NAME, TABLE_NAME, RECORD_NAME])
        # only now: until the journal says that all is done, they are needed
        folder.remove(PARTS_FOLDER)
        return summary

    def _write_record(self, summary: NoiseSummary) -> None:
        record = {
            "version": __version__,
            "command": self.context.command,
            "options": self.options.model_dump(mode="json"),
            "model": {"name": Path(self.model.name).name, "sha256": self.model.sha256},
            "devices": self.devices.names,
            "blocks": summary.n_blocks,
            "window_px": summary.window_px,
            "what_became_of_the_windows": summary.explanation,
            "warnings": list(summary.warnings),
            "resumed_micrographs": summary.n_resumed,
            "seconds": round(summary.seconds, 2),
            "micrographs": [asdict(count) for count in summary.counts],
        }
        write_json(summary.record, record)


def _part_name(task: MicrographTask) -> str:
    return part_file(Path(), task).as_posix()


def _overlay_name(task: MicrographTask) -> str:
    return overlay_file(Path(), task).as_posix()


def _undertaking(
    images: MicrographSet,
    tasks: Sequence[MicrographTask],
    model: LoadedModel,
    options: ExtractNoiseOptions,
    device_types: Sequence[str],
    *,
    drawn: bool,
) -> Undertaking:
    """The files to make, each with all that it depends on."""
    chosen = options.model_dump(mode="json", exclude={"model", "device", "threads", "min_blocks"})
    fingerprint = {
        "version": __version__,
        "input": str(images.source.absolute()),
        "model": model.sha256,
        "device": device_types,
        **chosen,
    }
    files = [STACK_NAME, TABLE_NAME, RECORD_NAME, PDF_NAME]
    if finder_of(options).makes_labels:
        files += map(label_name, tasks)
    if drawn:
        files += map(_overlay_name, tasks)
    folders = [PARTS_FOLDER, RANGES_FOLDER]
    return Undertaking("extract-noise", fingerprint, _parts(images, tasks), files, folders)


def _parts(images: MicrographSet, tasks: Sequence[MicrographTask]) -> dict[str, str]:
    """What is made of each micrograph, and of the table, with digests of what they are made of.

    Raises
    ------
    InputError
        If something of it is gone.
    """
    parts = {}
    for task in tasks:
        # not of its place in the table, which may grow
        made_of = f"{replace(task, index=0)}\0{file_state(task.path)}"
        digest = hashlib.sha256(made_of.encode(errors="surrogateescape"))
        parts[_part_name(task)] = digest.hexdigest()[:32]
    parts[_TABLE_PART] = sha256_of(
        *([images.source] if images.has_table else []), salt=str(images.root.absolute())
    )
    return parts


def _refuse_changed_micrographs(
    images: MicrographSet, tasks: Sequence[MicrographTask], undertaking: Undertaking
) -> None:
    """Raise when a micrograph is not what it was. The table may have grown: what is new is the next run's.

    Raises
    ------
    InputError
        Names the first.
    """
    now = _parts(images, tasks)
    for task in tasks:
        name = _part_name(task)
        if now[name] != undertaking.parts[name]:
            raise InputError(
                "the micrograph was changed while it was in use.",
                path=task.path,
                remedy="Run again with --resume, which searches again what was changed.",
            )


def run_extract_noise(
    source: str | Path,
    output_dir: str | Path,
    options: ExtractNoiseOptions,
    context: JobContext = QUIET,
    *,
    root: Path | None = None,
    earlier: Earlier = "refuse",
    draw: Draw | None = None,
) -> NoiseSummary:
    """Cut blocks of pure noise out of micrographs, as `ExtractNoiseJob` does it: on `options.device`."""
    return ExtractNoiseJob(source, options, root=root, draw=draw).run(output_dir, context, earlier=earlier)


def extract_noise(
    source: str | Path,
    output_dir: str | Path,
    options: ExtractNoiseOptions,
    context: JobContext = QUIET,
    **given: Any,
) -> NoiseSummary:
    """Run `run_extract_noise`, which takes whatever else is given, and report in the folder and the log."""
    from ..report.noise import report_noise
    from ..report.overlays import write_overlay

    summary = run_extract_noise(source, output_dir, options, context, draw=write_overlay, **given)
    log = context.log
    log(f"{counted(summary.n_blocks, 'block')} of {summary.window_px} px in {summary.seconds:.1f} s")
    log(summary.explanation)
    remarks = [count for count in summary.counts if count.remark]
    for count in remarks[:WARNINGS]:
        log(f"warning: {count.micrograph}: {count.remark}")
    if len(remarks) > WARNINGS:
        log(f"{counted(len(remarks), 'conspicuous micrograph')}: see {summary.record}")
    for path in (summary.stack, summary.table, summary.record):
        log(f"wrote {path}")
    # a run that was killed while it drew has all but this
    if not summary.was_complete or not (Path(output_dir) / PDF_NAME).exists():
        log(f"wrote {report_noise(summary, context.command or '')}")
    return summary
