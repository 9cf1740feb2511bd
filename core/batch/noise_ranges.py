"""An extraction of noise on the workers of a batch, each of which searches a few micrographs at a time.

A worker writes what it finds into a folder that has no second owner, and the driver takes it from there: a
worker that is killed, or that freezes and wakes up after another one has done its work, can spoil nothing.
"""

from __future__ import annotations

import functools
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..config.extract_noise import ExtractNoiseOptions
from ..inference.devices import Precision, choose_precision, resolve_devices
from ..io.files import writing_failed
from ..io.journal import RANGES_FOLDER
from ..jobs.extract_noise import LocalSearcher, Search
from ..models import ALL_NETWORKS
from ..models.weights import LoadedModel
from ..noise.micrograph import Draw, MicrographCounts, MicrographTask
from ..noise.output import PARTS_FOLDER
from .ranges import limit_bytes, load_same_model, move_files, read_notes, write_notes
from .retry import RangesFailed, Workload, describe_failed, do_parts
from .workers import Pool


@dataclass(frozen=True, eq=False)
class MicrographRange:
    """Micrographs that one worker searches at a time."""

    tasks: tuple[MicrographTask, ...]

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


def plan_micrograph_ranges(tasks: Sequence[MicrographTask], range_bytes: int) -> list[MicrographRange]:
    """Cut a search into ranges of about `range_bytes` of float32 pixels, a micrograph or more in each."""
    sizes = [4 * task.shape[0] * task.shape[1] for task in tasks]
    limit = limit_bytes(sum(sizes), range_bytes)
    ranges, begin, size = [], 0, 0
    for number, of_this in enumerate(sizes, 1):
        size += of_this
        if size >= limit or number == len(tasks):
            ranges.append(MicrographRange(tuple(tasks[begin:number])))
            begin, size = number, 0
    return ranges


@dataclass(frozen=True, eq=False)
class SearchWork:
    """A range with all that a worker needs to search it; small, and fit to travel.

    Attributes
    ----------
    tasks
        The micrographs.
    folder
        Where everything goes; of one attempt only. A worker whose folder is gone stops.
    model, sha256
        The weights file.
    precision, options, draw
        See `Search`.
    """

    tasks: tuple[MicrographTask, ...]
    folder: Path
    model: Path
    sha256: str
    precision: Precision
    options: ExtractNoiseOptions
    draw: Draw | None


def search_range(work: SearchWork, device: str, threads: int | None) -> None:
    """Search the micrographs of a range into its folder; for a worker.

    Raises
    ------
    CryohushError
        As `extract_noise`; nothing stays behind.
    """
    counts: list[dict[str, Any]] = []
    try:
        try:
            (work.folder / PARTS_FOLDER).mkdir(parents=True)
            search = Search(
                work.tasks,
                _at_hand(work.model, work.sha256),
                work.precision,
                work.options,
                work.folder,
                work.draw,
            )
            LocalSearcher(resolve_devices(device), threads).search(
                search,
                lambda task, found: counts.append({"index": task.index, "counts": asdict(found)}),
                lambda: not work.folder.exists(),
            )
            files = [path.relative_to(work.folder) for path in work.folder.rglob("*") if path.is_file()]
            write_notes(work.folder, {"micrographs": counts, "files": [str(name) for name in files]})
        except OSError as error:
            raise writing_failed(work.folder, error) from error
    except BaseException:
        shutil.rmtree(work.folder, ignore_errors=True)
        raise


@functools.lru_cache(maxsize=2)
def _at_hand(path: Path, sha256: str) -> LoadedModel:
    return load_same_model(path, sha256, ALL_NETWORKS)


def _choose(
    path: Path, requested: Literal["auto", "fp32", "bf16", "fp16"], device: str, threads: int | None
) -> tuple[Precision, str]:
    return choose_precision(resolve_devices(device)[0], requested)


class PoolSearcher:
    """Searches on the workers of a batch; see `Searcher`."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self.names, self.types = pool, pool.names, pool.types

    def choose(
        self, model: LoadedModel, requested: Literal["auto", "fp32", "bf16", "fp16"]
    ) -> tuple[Precision, str]:
        """Return the number format that suits the workers, measured on one of them, and why."""
        chosen: tuple[Precision, str] = self._pool.ask(_choose, model.path.absolute(), requested)
        return chosen

    def search(
        self,
        search: Search,
        take: Callable[[MicrographTask, MicrographCounts], None],
        should_stop: Callable[[], bool],
    ) -> None:
        """Search all micrographs, range by range; a range that always fails does not stop the others.

        Raises
        ------
        RangesFailed
            If ranges were set aside; names them and why. All others are finished.
        OutputError
            If the disk is full or fails.
        Aborted
            If `should_stop` said so; what was taken is kept.
        """
        ranges = plan_micrograph_ranges(search.tasks, int(self._pool.config.range_mb * 2**20))
        folders = search.output_dir.absolute() / RANGES_FOLDER
        tasks = {task.index: task for task in search.tasks}
        attempt: dict[str, Path] = {}

        def work(part: MicrographRange) -> SearchWork:
            attempt[part.name] = folders / f"{part.name}.{uuid.uuid4().hex}"
            return SearchWork(
                part.tasks,
                attempt[part.name],
                search.model.path.absolute(),
                search.model.sha256,
                search.precision,
                search.options,
                search.draw,
            )

        def take_range(part: MicrographRange) -> None:
            folder = attempt.pop(part.name)
            notes = read_notes(folder)
            move_files(notes["files"], folder, search.output_dir)
            for entry in notes["micrographs"]:
                take(tasks[entry["index"]], MicrographCounts(**entry["counts"]))

        # what workers of an earlier driver have left
        shutil.rmtree(folders, ignore_errors=True)
        try:
            failed = do_parts(
                self._pool,
                Workload(search.output_dir.name, ranges, len(search.tasks), work, search_range, take_range),
                should_stop,
            )
        finally:
            shutil.rmtree(folders, ignore_errors=True)
        if failed:
            raise RangesFailed(describe_failed(failed, len(ranges)))
