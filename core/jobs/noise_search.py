"""Micrographs that are searched for noise, several at once, here or on the workers of a batch."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ..config.extract_noise import ExtractNoiseOptions
from ..errors import Aborted
from ..inference.devices import WORKERS_PER_GPU, LocalDevices, Precision, choose_precision
from ..job_context import JobContext
from ..models.precision import threads_kept
from ..models.weights import Weights
from ..noise.finders import WindowFinder, finder_of
from ..noise.micrograph import Draw, MicrographCounts, MicrographTask, extract_from
from ..noise.output import PARTS_FOLDER
from .job import Parts
from .parts import do_in_folder, limit_bytes, move_files, own_folder, read_notes

Take = Callable[[MicrographTask, MicrographCounts], None]


@dataclass(frozen=True, eq=False)
class Search:
    """Micrographs, and how they are searched: all of an extraction, or a part that a worker does; see `Part`.

    Attributes
    ----------
    tasks
        The micrographs.
    weights, precision, options
        By what.
    output_dir
        Where label maps, pictures and what is found in each go.
    draw
        Writes the picture of a micrograph; None draws none.
    """

    tasks: Sequence[MicrographTask]
    weights: Weights
    precision: Precision
    options: ExtractNoiseOptions
    output_dir: Path
    draw: Draw | None

    @property
    def name(self) -> str:
        """Number of the first micrograph and how many they are."""
        return f"{self.tasks[0].index:06d}+{self.n_images}"

    @property
    def n_images(self) -> int:
        """Number of micrographs."""
        return len(self.tasks)

    def describe(self) -> str:
        """Return their names."""
        first, last = self.tasks[0].name, self.tasks[-1].name
        return first if self.n_images == 1 else f"{self.n_images} micrographs, {first} to {last}"

    def do(self, devices: LocalDevices) -> None:
        """Search them into `output_dir`, which appears when all of it is on disk.

        Raises
        ------
        CryohushError
            As `search_micrographs`; nothing stays behind.
        """
        counts: list[dict[str, Any]] = []

        def take(task: MicrographTask, found: MicrographCounts) -> None:
            counts.append({"index": task.index, "counts": asdict(found)})

        def do(folder: Path) -> dict[str, Any]:
            (folder / PARTS_FOLDER).mkdir()
            own = replace(self, output_dir=folder)
            search_micrographs(own, devices, take, lambda: not folder.exists())
            files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
            return {"micrographs": counts, "files": files}

        do_in_folder(self.output_dir, do)


def choose(
    requested: Literal["auto", "fp32", "bf16", "fp16"], devices: LocalDevices
) -> tuple[Precision, str]:
    """Return the number format of the network that suits the devices, and why."""
    return choose_precision(devices.devices[0], requested)


def search_micrographs(
    search: Search, devices: LocalDevices, take: Take, should_stop: Callable[[], bool]
) -> None:
    """Search micrographs in any order; `take` gets each when its files are written.

    On the CPU, as many at once as there are threads.

    Raises
    ------
    CryohushError
        If a micrograph cannot be searched.
    Aborted
        If `should_stop` said so; what was taken is kept.
    """
    with threads_kept():
        _run(search, _finders(search, devices), take, should_stop)


def _finders(search: Search, devices: LocalDevices) -> list[WindowFinder]:
    """One for each micrograph that is worked on at once; on the CPU they share the threads."""
    model, precision, options = search.weights.load(), search.precision, search.options
    finders = [finder_of(options).make(model, device, precision, options) for device in devices.devices]
    n_tasks = max(1, len(search.tasks))
    if devices.on_cpu:
        workers = min(devices.threads, n_tasks)
        torch.set_num_threads(devices.threads // workers)
        return finders * workers
    return finders * min(WORKERS_PER_GPU, -(-n_tasks // len(finders)))


def _run(
    search: Search, finders: Sequence[WindowFinder], take: Take, should_stop: Callable[[], bool]
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


class SearchWork:
    """The micrographs of an extraction that are not searched yet; see `Work`.

    Parameters
    ----------
    search
        They, and how they are searched.
    n_images
        With those that are done already.
    take
        Gets each that is done.
    """

    def __init__(self, search: Search, n_images: int, take: Take) -> None:
        self.search, self._n_images, self._take = search, n_images, take

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Search all of them."""
        done = self._n_images - len(self.search.tasks)

        def take(task: MicrographTask, counts: MicrographCounts) -> None:
            nonlocal done
            self._take(task, counts)
            done += 1
            context.progress(done, self._n_images)

        context.progress(done, self._n_images)
        search_micrographs(self.search, devices, take, context.should_stop)

    @contextlib.contextmanager
    def in_parts(self, part_bytes: int) -> Iterator[Parts[Search]]:
        """Yield them a few at a time."""
        with own_folder(self.search.output_dir) as folder:
            parts = plan_parts(self.search, part_bytes)
            waiting = [replace(part, output_dir=folder / part.name) for part in parts]
            yield Parts(self.search.output_dir.name, waiting, len(waiting), self._n_images, self._take_part)

    def _take_part(self, part: Search) -> None:
        tasks = {task.index: task for task in part.tasks}
        notes = read_notes(part.output_dir)
        move_files(notes["files"], part.output_dir, self.search.output_dir)
        for entry in notes["micrographs"]:
            self._take(tasks[entry["index"]], MicrographCounts(**entry["counts"]))


def plan_parts(search: Search, part_bytes: int) -> list[Search]:
    """Cut a search into parts of about `part_bytes` of float32 pixels, a micrograph or more in each."""
    sizes = [4 * task.shape[0] * task.shape[1] for task in search.tasks]
    limit = limit_bytes(sum(sizes), part_bytes)
    parts, begin, size = [], 0, 0
    for number, of_this in enumerate(sizes, 1):
        size += of_this
        if size >= limit or number == len(sizes):
            parts.append(replace(search, tasks=search.tasks[begin:number]))
            begin, size = number, 0
    return parts
