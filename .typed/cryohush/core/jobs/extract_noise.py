"""A whole extraction of noise: from micrographs to blocks of noise, their table, label maps and pictures."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ... import __version__
from ..config.extract_noise import ExtractNoiseOptions
from ..errors import Aborted, ConfigurationError, InputError, OutputError
from ..inference.devices import (
    Precision,
    available_threads,
    choose_precision,
    keep_freed_memory,
    resolve_devices,
)
from ..inference.plan import output_names
from ..inference.summary import RECORD_NAME
from ..io.files import part_path, rename_complete, writing_failed
from ..io.journal import JOURNAL_NAME, Journal
from ..io.micrographs import MicrographSet
from ..io.mrc import WriterState
from ..models import MODELS, SEGMENTERS
from ..models.weights import LoadedModel, load_model
from ..noise.finders import WindowFinder, make_finder, smallest_window_px
from ..noise.micrograph import Draw, MicrographCounts, MicrographTask, extract_from, overlay_file, part_file
from ..noise.output import LABELS_FOLDER, OVERLAYS_FOLDER, PARTS_FOLDER, STACK_NAME, TABLE_NAME, write_noise
from ..noise.summary import NoiseSummary, explain

WORKERS_PER_GPU = 2
# The journal's entry for the number format; micrographs have numbers.
_PRECISION = "precision"


@dataclass(frozen=True, eq=False)
class Search:
    """Micrographs, and how they are searched.

    Attributes
    ----------
    tasks
        The micrographs.
    model, precision, options
        By what.
    output_dir
        Where parts, label maps and pictures go.
    draw
        Writes the picture of a micrograph; None draws none.
    """

    tasks: Sequence[MicrographTask]
    model: LoadedModel
    precision: Precision
    options: ExtractNoiseOptions
    output_dir: Path
    draw: Draw | None


class Searcher(Protocol):
    """Where micrographs are searched."""

    @property
    def names(self) -> list[str]:
        """The devices, for the log and the record."""

    @property
    def types(self) -> list[str]:
        """Their kinds, sorted: `cpu`, `cuda`."""

    def choose(
        self, model: LoadedModel, requested: Literal["auto", "fp32", "bf16", "fp16"]
    ) -> tuple[Precision, str]:
        """Return the number format of the network, and why."""

    def search(
        self,
        search: Search,
        take: Callable[[MicrographTask, MicrographCounts], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Search all micrographs, in any order; `take` gets each when its files are written.

        Raises
        ------
        Aborted
            If `should_stop` said so; what was taken is kept.
        """


class LocalSearcher:
    """Searches on the devices of this process; on the CPU, `threads` micrographs at once."""

    def __init__(self, devices: Sequence[torch.device], threads: int | None = None) -> None:
        keep_freed_memory()
        self._devices, self._threads = devices, threads or available_threads()
        self.names = [str(device) for device in devices]
        self.types = sorted({device.type for device in devices})

    def choose(
        self, model: LoadedModel, requested: Literal["auto", "fp32", "bf16", "fp16"]
    ) -> tuple[Precision, str]:
        """See `Searcher`."""
        return choose_precision(self._devices[0], requested, model.module)

    def search(
        self,
        search: Search,
        take: Callable[[MicrographTask, MicrographCounts], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """See `Searcher`."""
        threads = torch.get_num_threads()
        try:
            _run(search, self._finders(search), take, should_stop)
        finally:
            torch.set_num_threads(threads)

    def _finders(self, search: Search) -> list[WindowFinder]:
        """One for each micrograph that is worked on at once; on the CPU they share the threads."""
        model, precision, options = search.model, search.precision, search.options
        finders = [make_finder(model, device, precision, options) for device in self._devices]
        n_tasks = max(1, len(search.tasks))
        if self.types == ["cpu"]:
            workers = min(self._threads, n_tasks)
            torch.set_num_threads(self._threads // workers)
            return finders * workers
        return finders * min(WORKERS_PER_GPU, -(-n_tasks // len(finders)))


def extract_noise(
    source: str | Path,
    output_dir: str | Path,
    options: ExtractNoiseOptions,
    *,
    root: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    start_anew_on_mismatch: bool = False,
    draw: Draw | None = None,
    searcher: Searcher | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], bool] = lambda: False,
    log: Callable[[str], None] = lambda line: None,
    command: str | None = None,
) -> NoiseSummary:
    """Cut blocks of pure noise out of micrographs.

    `output_dir` gets `noise.mrcs`, `noise.star` (micrograph, coordinates, statistics and method of each
    block; RELION reads it as particles), `labels/` (segmentation), `overlays/` and `cryohush.json`. Each
    worker holds one micrograph; a killed run goes on with the micrographs that are missing.

    Parameters
    ----------
    source
        `micrographs.star`, or one `.mrc`.
    output_dir
        Made if missing.
    options
        What to do.
    root
        Folder that the table's names are relative to; see `MicrographSet.read`.
    resume, overwrite
        What to do with an earlier run in the directory; without either, it is an error.
    start_anew_on_mismatch
        A run with other input or options that shall be resumed is replaced, instead of an error.
    draw
        Writes the picture of a micrograph (`report.overlays.write_overlay`); None draws none.
    searcher
        Where to calculate; None: on `options.device`.
    progress
        Called with the numbers of micrographs done and in all.
    should_stop
        Asked once per micrograph.
    log
        Gets the lines that a user should read.
    command
        The command line, for the record.

    Raises
    ------
    InputError
        If the input cannot be read, a micrograph is not usable and `options.skip_bad` is off, or fewer blocks
        than `options.minimum_blocks` were found: the text says what excluded how many.
    ConfigurationError
        If the window does not suit the micrographs, or a pixel size is needed and not known.
    OutputError
        If the directory holds another run, or the disk is full.
    ModelError, DeviceError
        If the options cannot be met.
    Aborted
        If `should_stop` said so; the run can be resumed.
    """
    begin, output_dir = time.monotonic(), Path(output_dir)
    model = load_noise_model(options)
    searcher = searcher or LocalSearcher(resolve_devices(options.device), options.threads)
    images = MicrographSet.read(source, root=root)
    tasks, too_small = plan_search(images, options)
    log(
        f"{len(images.stacks)} micrographs, windows of {tasks[0].window_px} px every {tasks[0].stride_px} px"
        f", model {model.name}, SHA-256 {model.sha256[:16]}…"
    )
    with _open_journal(
        output_dir,
        _fingerprint(images, model, options, searcher),
        resume=resume,
        overwrite=overwrite,
        start_anew_on_mismatch=start_anew_on_mismatch,
        log=log,
    ) as journal:
        n_resumed = sum(str(task.index) in journal.finished for task in tasks)
        precision = _precision(searcher, model, options, journal, log)
        done = itertools.count(n_resumed + 1)

        def take(task: MicrographTask, counts: MicrographCounts) -> None:
            journal.record(str(task.index), WriterState(), asdict(counts))
            journal.finish(str(task.index))
            progress(next(done), len(tasks))

        progress(n_resumed, len(tasks))
        waiting = [task for task in tasks if str(task.index) not in journal.finished]
        searcher.search(Search(waiting, model, precision, options, output_dir, draw), take, should_stop)
        counts = [
            too_small.get(index) or MicrographCounts(**journal.extras[str(index)])
            for index in range(len(images.stacks))
        ]
        n_blocks = sum(count.kept for count in counts)
        if n_blocks < options.minimum_blocks:
            raise InputError(
                f"{n_blocks} blocks of noise found, {options.minimum_blocks} are needed. {explain(counts)}",
                path=images.source,
                remedy=_remedy(options),
            )
        parts = [(task.index, part_file(output_dir, task.index)) for task in tasks if counts[task.index].kept]
        stack, table = write_noise(
            images,
            output_dir,
            parts,
            n_blocks,
            tasks[0].window_px,
            options.method,
            options.pixel_size_angstrom,
        )
    drawn = [task for task in tasks if draw and counts[task.index].kept]
    summary = NoiseSummary(
        stack=stack,
        table=table,
        record=output_dir / RECORD_NAME,
        counts=counts,
        n_blocks=n_blocks,
        window_px=tasks[0].window_px,
        overlays=[overlay_file(output_dir, task) for task in drawn],
        n_resumed=n_resumed,
        seconds=time.monotonic() - begin,
    )
    _write_record(summary, options, model, searcher, command)
    shutil.rmtree(output_dir / PARTS_FOLDER, ignore_errors=True)
    (output_dir / JOURNAL_NAME).unlink(missing_ok=True)
    return summary


def _remedy(options: ExtractNoiseOptions) -> str:
    ways = "Try a smaller window_px or stride_px, or wider limits"
    if options.method == "similarity":
        return f"{ways}, or a lower similarity_threshold."
    return f"{ways}, or refine the network on these micrographs."


def load_noise_model(options: ExtractNoiseOptions) -> LoadedModel:
    """Load the network of the method.

    Raises
    ------
    ModelError
        If it is not there, or of another kind.
    """
    return load_model(options.model_name, SEGMENTERS if options.method == "segmentation" else MODELS)


def plan_search(
    images: MicrographSet, options: ExtractNoiseOptions
) -> tuple[list[MicrographTask], dict[int, MicrographCounts]]:
    """The micrographs to search, and those that the window does not fit into.

    Raises
    ------
    ConfigurationError
        If the window does not suit the micrographs, or a pixel size is needed and not known.
    """
    tasks, too_small = [], {}
    names = output_names(images)
    for index, shape in enumerate(images.check_images()):
        pixel_size = options.pixel_size_angstrom or images.pixel_size_angstrom(index)
        window, stride = options.window_and_stride_px(pixel_size)
        task = MicrographTask(
            index,
            images.stacks[index],
            images.stack_names[index],
            names[index],
            shape,
            pixel_size,
            window,
            stride,
        )
        if options.method == "segmentation" and pixel_size is None:
            raise ConfigurationError(
                f"method segmentation needs the pixel size of {task.name}, which {images.source} does not "
                "say. Give pixel_size_angstrom."
            )
        if window > min(shape):
            remark = (
                f"the window of {window} px is larger than the {shape[1]} x {shape[0]} px of the micrograph."
            )
            too_small[index] = MicrographCounts(task.name, remark=remark)
        else:
            tasks.append(task)
    if not tasks:
        raise ConfigurationError(
            f"{next(iter(too_small.values())).remark} Give a smaller window_px or window_angstrom."
        )
    windows = sorted({task.window_px for task in tasks})
    if len(windows) > 1:
        raise ConfigurationError(
            f"with the pixel sizes of these micrographs, window_angstrom {options.window_angstrom:g} is from "
            f"{windows[0]} to {windows[-1]} px, and a stack has one size. Give window_px, or extract from "
            "one pixel size at a time."
        )
    if windows[0] < smallest_window_px(options):
        raise ConfigurationError(
            f"a window of {windows[0]} px is too small for {options.local_patches} local patches: at least "
            f"{smallest_window_px(options)} px are needed."
        )
    return tasks, too_small


def _fingerprint(
    images: MicrographSet,
    model: LoadedModel,
    options: ExtractNoiseOptions,
    searcher: Searcher,
) -> dict[str, Any]:
    """All that the result depends on."""
    files = hashlib.sha256()
    for path in [images.source, *images.stacks]:
        status = path.stat()
        files.update(f"{path.absolute()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    chosen = options.model_dump(mode="json", exclude={"model", "device", "threads", "minimum_blocks"})
    return {
        "version": __version__,
        "files": files.hexdigest(),
        "model": model.sha256,
        "device": searcher.types,
        **chosen,
    }


@contextlib.contextmanager
def _open_journal(
    output_dir: Path,
    fingerprint: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    start_anew_on_mismatch: bool,
    log: Callable[[str], None],
) -> Iterator[Journal]:
    """The journal to go on with, or a new one in a cleared directory."""
    path, parts = output_dir / JOURNAL_NAME, output_dir / PARTS_FOLDER
    results = [output_dir / name for name in (STACK_NAME, TABLE_NAME, RECORD_NAME)]
    goes_on = resume and path.exists()
    if goes_on and start_anew_on_mismatch and not Journal.matches(path, fingerprint):
        log("an earlier run is there with other input or options: starting anew")
        goes_on, overwrite = False, True
    if resume and not path.exists() and results[-1].exists() and not start_anew_on_mismatch:
        raise OutputError(f"{output_dir} holds a run that is complete. Replace it with --overwrite.")
    occupied = [old for old in (path, *results) if old.exists()]
    if occupied and not goes_on and not overwrite and not start_anew_on_mismatch:
        raise OutputError(
            f"{output_dir} holds another run ({occupied[0].name}). Resume it (--resume), replace it "
            "(--overwrite), or choose another directory."
        )
    try:
        parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(output_dir, error) from error
    with Journal.open(path, fingerprint, resume=goes_on) as journal:
        if goes_on:
            log(f"an earlier run is there: {len(journal.finished)} micrographs are done")
        else:
            for old in results:
                old.unlink(missing_ok=True)
                part_path(old).unlink(missing_ok=True)
            for old in parts.iterdir():
                old.unlink()
            for folder in (LABELS_FOLDER, OVERLAYS_FOLDER):  # of micrographs that may no longer be there
                shutil.rmtree(output_dir / folder, ignore_errors=True)
        yield journal


def _precision(
    searcher: Searcher,
    model: LoadedModel,
    options: ExtractNoiseOptions,
    journal: Journal,
    log: Callable[[str], None],
) -> Precision:
    """The number format that the journal holds, or a new one, which it then holds."""
    precision: Precision | None = journal.extras.get(_PRECISION)
    reason = "as when the run began"
    if precision is None:
        precision, reason = searcher.choose(model, options.precision)
        journal.record(_PRECISION, WriterState(), precision)
    log(f"device {', '.join(searcher.names)}, precision {precision} ({reason})")
    return precision


def _run(
    search: Search,
    finders: Sequence[WindowFinder],
    take: Callable[[MicrographTask, MicrographCounts], None],
    should_stop: Callable[[], bool],
) -> None:
    """Work through the micrographs, as many at once as there are finders."""
    free: queue.SimpleQueue[WindowFinder] = queue.SimpleQueue()
    for finder in finders:
        free.put(finder)
    lock = threading.Lock()

    def work(task: MicrographTask) -> None:
        finder = free.get()
        try:
            counts = extract_from(task, finder, search.output_dir, search.options, search.draw)
        finally:
            free.put(finder)
        with lock:
            take(task, counts)

    waiting = list(search.tasks)[::-1]
    with ThreadPoolExecutor(len(finders)) as pool:
        running: set[Future[None]] = set()
        while waiting or running:
            if should_stop():
                wait(running)
                raise Aborted("Stopped on request. What is finished is kept: go on from there with --resume.")
            while waiting and len(running) < len(finders):
                running.add(pool.submit(work, waiting.pop()))
            finished, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()


def _write_record(
    summary: NoiseSummary,
    options: ExtractNoiseOptions,
    model: LoadedModel,
    searcher: Searcher,
    command: str | None,
) -> None:
    record = {
        "version": __version__,
        "command": command,
        "options": options.model_dump(mode="json"),
        "model": {"name": Path(model.name).name, "sha256": model.sha256},
        "devices": searcher.names,
        "blocks": summary.n_blocks,
        "window_px": summary.window_px,
        "what_became_of_the_windows": summary.explanation,
        "resumed_micrographs": summary.n_resumed,
        "seconds": round(summary.seconds, 2),
        "micrographs": [asdict(count) for count in summary.counts],
    }
    part = part_path(summary.record)
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        rename_complete(part, summary.record)
    except OSError as error:
        raise writing_failed(summary.record, error) from error
