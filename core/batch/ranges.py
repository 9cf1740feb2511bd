"""A run in ranges: workers denoise them in any order, each into a folder of its own, one driver joins them.

A range is some whole batches of the plan, so that each image is computed in the same company as in a run
without ranges, and the stacks that come out are the same to the byte. A worker writes into a folder that has
no second owner, and gives it its final name when all of it is on disk. So a worker that is killed, or that
freezes and wakes up after another one has done its work, can spoil nothing, and a driver that is killed finds
what was finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ..config.denoise import DenoiseOptions
from ..context.contexts import StackContexts, load_contexts
from ..errors import ModelError, OutputError
from ..inference.denoiser import Denoiser
from ..inference.devices import Precision, resolve_devices
from ..inference.engine import Choices, LocalDevices, Task
from ..inference.plan import Piece, StackPlan, batches
from ..inference.stream import ImageNote, StreamResult, n_safely_written
from ..io.files import make_folder, rename_complete, writing_failed
from ..io.journal import JOURNAL_NAME, RANGES_FOLDER, Journal, Undertaking
from ..io.mrc import StackReader, StackWriter, WriterState
from ..models import MODELS, Networks
from ..models.weights import LoadedModel, load_model

# A range has at least so many bytes, however small the run: less is not worth the way to a worker.
SMALLEST_RANGE_BYTES = 2**22
# A run has about so many ranges or more, so that all workers have some and none waits long for the last one.
FEWEST_RANGES = 64
_NOTES_NAME = "notes.json"
_COPIED_BYTES = 2**24
# A shared file system may show a folder of another machine's only after a while.
_SECONDS_TO_APPEAR = 60.0


@dataclass(frozen=True, eq=False)
class Range:
    """Images of a run that one worker denoises at a time.

    Attributes
    ----------
    name
        Of its folder: first image and number of images, counted over the whole run.
    stacks
        What it takes of the plan's stacks: these, with fewer `indices`.
    places
        For each of them the number of the stack in the plan, and of its first image in that stack.
    """

    name: str
    stacks: tuple[StackPlan, ...]
    places: tuple[tuple[int, int], ...]

    @property
    def n_images(self) -> int:
        """Number of images."""
        return sum(len(stack.indices) for stack in self.stacks)

    def describe(self) -> str:
        """Return the images in words, counted from 1 in the order of writing."""
        return ", ".join(
            f"images {begin + 1} to {begin + len(stack.indices)} of {stack.name}"
            for stack, (_, begin) in zip(self.stacks, self.places, strict=True)
        )


def plan_ranges(
    stacks: Sequence[StackPlan], batch_sizes: Mapping[tuple[int, int], int], range_bytes: int
) -> list[Range]:
    """Cut a plan into ranges of about `range_bytes` of float32 pixels, always between two batches."""
    limit = limit_bytes(sum(_pixel_bytes(stack.shape, len(stack.indices)) for stack in stacks), range_bytes)
    ranges: list[Range] = []
    pieces: list[Piece] = []
    size, first = 0, 0
    for batch in batches(stacks, batch_sizes):
        pieces += batch
        size += sum(
            4 * (p.end - p.begin) * stacks[p.stack].shape[0] * stacks[p.stack].shape[1] for p in batch
        )
        if size >= limit:
            ranges.append(_range(stacks, pieces, first))
            first += ranges[-1].n_images
            pieces, size = [], 0
    if pieces:
        ranges.append(_range(stacks, pieces, first))
    return ranges


def limit_bytes(total: int, range_bytes: int) -> int:
    """Return how many bytes of pixels make a range of a run with `total` bytes."""
    return min(range_bytes, max(SMALLEST_RANGE_BYTES, total // FEWEST_RANGES))


def _pixel_bytes(shape: tuple[int, int], n_images: int) -> int:
    return 4 * n_images * shape[0] * shape[1]


def _range(stacks: Sequence[StackPlan], pieces: Sequence[Piece], first: int) -> Range:
    """Return the range of consecutive pieces, those of one stack made one."""
    bounds: dict[int, tuple[int, int]] = {}
    for piece in pieces:
        bounds[piece.stack] = (bounds.get(piece.stack, (piece.begin, 0))[0], piece.end)
    parts = tuple(
        dataclasses.replace(stacks[number], indices=stacks[number].indices[begin:end])
        for number, (begin, end) in bounds.items()
    )
    count = sum(len(part.indices) for part in parts)
    return Range(f"{first:012d}+{count}", parts, tuple((n, begin) for n, (begin, _) in bounds.items()))


@dataclass(frozen=True, eq=False)
class RangeWork:
    """A range with all that a worker needs to denoise it; small, and fit to travel.

    Attributes
    ----------
    range
        The range.
    folder
        What it becomes; must not exist.
    model, sha256
        The weights file.
    options, choices, are_micrographs, label
        See `Task`.
    contexts
        The file of the run's contexts; None where there are none.
    """

    range: Range
    folder: Path
    model: Path
    sha256: str
    options: DenoiseOptions
    choices: Choices
    are_micrographs: bool
    label: str
    contexts: Path | None = None


def denoise_range(work: RangeWork, device: str, threads: int | None) -> None:
    """Denoise a range into its folder, which appears when all of it is on disk; for a worker.

    Raises
    ------
    CryohushError
        As `denoise_stacks`; nothing stays behind.
    """
    model, engine, denoisers = _at_hand(work.model, work.sha256, work.choices.precision, device, threads)
    contexts = None
    if work.contexts is not None:
        contexts = _contexts_at_hand(work.contexts, work.contexts.stat().st_mtime_ns)
    task = Task(
        *(model, work.options, work.choices, work.range.stacks, work.are_micrographs, work.label, contexts)
    )
    attempt = work.folder.with_name(f"{work.folder.name}.{uuid.uuid4().hex}")
    try:
        try:
            attempt.mkdir()
            with Journal(attempt / JOURNAL_NAME) as journal:
                journal.begin(Undertaking("range"))
                result = engine.denoise(task, attempt, journal, denoisers=denoisers)
            write_notes(attempt, _notes_of(result))
            # Not empty means that another worker was quicker: the same images are there.
            with contextlib.suppress(FileExistsError, IsADirectoryError):
                _rename_folder(attempt, work.folder)
        except OSError as error:
            raise writing_failed(work.folder, error) from error
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


@functools.lru_cache(maxsize=2)
def _at_hand(
    path: Path, sha256: str, precision: Precision, device: str, threads: int | None
) -> tuple[LoadedModel, LocalDevices, list[Denoiser]]:
    """Return a model on this worker's device: loaded for the first range, kept for the next ones."""
    model = load_same_model(path, sha256)
    engine = LocalDevices(resolve_devices(device), threads)
    return model, engine, engine.denoisers(model, precision)


@functools.lru_cache(maxsize=2)
def _contexts_at_hand(path: Path, written_ns: int) -> StackContexts:
    """Return the contexts of a run: read for the first range, kept for the next ones."""
    return load_contexts(path)


def load_same_model(path: Path, sha256: str, networks: Networks = MODELS) -> LoadedModel:
    """Load the model that the driver has seen; for a worker.

    Raises
    ------
    ModelError
        If it is another one by now.
    """
    model = load_model(path, networks)
    if model.sha256 != sha256:
        raise ModelError(
            f"{path}: the weights were replaced while the batch ran: SHA-256 {sha256} was expected, "
            f"{model.sha256} found."
        )
    return model


def _notes_of(result: StreamResult) -> dict[str, Any]:
    return {
        "seconds": result.seconds,
        "notes": [
            [note.stack, note.image, note.problem, unchanged]
            for notes, unchanged in ((result.skipped, True), (result.remarks, False))
            for note in notes
        ],
    }


def write_notes(folder: Path, notes: Mapping[str, Any]) -> None:
    """Write what a worker has to say of a range, once all else in its folder is on disk."""
    with (folder / _NOTES_NAME).open("w", encoding="utf-8") as file:
        json.dump(notes, file)
        file.flush()
        os.fsync(file.fileno())


def move_files(names: Sequence[str], folder: Path, output_dir: Path) -> None:
    """Move files that a worker has finished to where they belong, in this order, and remove the folder.

    Raises
    ------
    OutputError
        If one cannot be moved.
    """
    for name in names:
        path = output_dir / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            rename_complete(folder / name, path)
        except OSError as error:
            raise writing_failed(path, error) from error
    shutil.rmtree(folder, ignore_errors=True)


def _rename_folder(folder: Path, name: Path) -> None:
    try:
        rename_complete(folder, name)
    except OSError as error:
        if not name.is_dir():
            raise
        raise FileExistsError(str(name)) from error


class Assembly:
    """Puts finished ranges together: each stack grows in order, in the journal of a run without ranges.

    Parameters
    ----------
    task
        The run.
    ranges
        All its ranges.
    output_dir
        Where the stacks go.
    journal
        The run's journal.

    Attributes
    ----------
    result
        What was done so far.
    """

    def __init__(self, task: Task, ranges: Sequence[Range], output_dir: Path, journal: Journal) -> None:
        self._task, self._ranges, self.output_dir, self._journal = task, ranges, output_dir, journal
        self._folder = output_dir / RANGES_FOLDER / _digest(task, journal)
        self._written = [
            n_safely_written(stack, output_dir, journal, task.options.output_dtype) for stack in task.stacks
        ]
        self._notes: list[list[list[Any]]] = [
            [list(note) for note in journal.notes.get(stack.name, ())] if written else []
            for stack, written in zip(task.stacks, self._written, strict=True)
        ]
        # how many of them the journal has
        self._n_recorded = [len(notes) for notes in self._notes]
        # of each stack: where it goes on, the file that has it, and the notes on its images
        self._ready: list[dict[int, tuple[Path, list[list[Any]]]]] = [{} for _ in task.stacks]
        self._writers: dict[int, StackWriter] = {}
        self.result = StreamResult()
        make_folder(self._folder)

    def folder(self, part: Range) -> Path:
        """Return the folder that a worker makes of a range."""
        return self._folder / part.name

    def waiting(self) -> list[Range]:
        """Return the ranges that are still to be denoised, and take those that an earlier driver left."""
        for other in self._folder.parent.iterdir():  # of a run with other input or options
            if other != self._folder:
                shutil.rmtree(other, ignore_errors=True)
        names = {part.name for part in self._ranges}
        for entry in self._folder.iterdir():
            if entry.name not in names:
                shutil.rmtree(entry, ignore_errors=True)
        waiting = []
        for part in self._ranges:
            if all(self._has(part, position) for position in range(len(part.stacks))):
                self.take(part)
            else:
                shutil.rmtree(self.folder(part), ignore_errors=True)
                waiting.append(part)
        self.result = StreamResult()
        return waiting

    def _has(self, part: Range, position: int) -> bool:
        stack, (number, begin) = part.stacks[position], part.places[position]
        there = (self.folder(part) / stack.name).exists() and (self.folder(part) / _NOTES_NAME).exists()
        return begin + len(stack.indices) <= self._written[number] or there

    def take(self, part: Range) -> None:
        """Take a range that a worker has finished, and append whatever is next.

        Raises
        ------
        OutputError
            If the disk is full or fails, or the range's folder does not appear.
        """
        waiting = [
            position
            for position, (stack, (number, begin)) in enumerate(zip(part.stacks, part.places, strict=True))
            if begin + len(stack.indices) > self._written[number]
        ]
        noted = read_notes(self.folder(part)) if waiting else {"seconds": {}, "notes": []}
        for position in waiting:
            stack, (number, begin) = part.stacks[position], part.places[position]
            images = {int(index) + 1 for index in stack.indices}
            notes = [note for note in noted["notes"] if note[0] == str(stack.source) and note[1] in images]
            self._ready[number][begin] = (self.folder(part) / stack.name, notes)
        for name, seconds in noted["seconds"].items():
            self.result.seconds[name] += seconds
        self.result.n_written += part.n_images
        for number, _ in part.places:
            self._advance(number)

    def _advance(self, number: int) -> None:
        """Append what is ready of a stack; the journal knows it before the range's file goes."""
        stack, ready = self._task.stacks[number], self._ready[number]
        while self._written[number] in ready:
            segment, notes = ready.pop(self._written[number])
            self._notes[number] += notes
            with StackReader(segment) as reader:
                count = reader.n_images
                if count < len(stack.indices):
                    self._append(number, reader)
            if count == len(stack.indices):
                self._rename(number, segment)
            self._written[number] += count
            if count < len(stack.indices):
                segment.unlink()

    def _rename(self, number: int, segment: Path) -> None:
        """A whole stack from one range needs only its name."""
        stack = self._task.stacks[number]
        path = self.output_dir / stack.name
        if self._notes[number]:
            self._record(number, WriterState(len(stack.indices)))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            rename_complete(segment, path)
        except OSError as error:
            raise writing_failed(path, error) from error
        self._journal.finish(stack.name)

    def _record(self, number: int, state: WriterState) -> None:
        """Note in the journal how far a stack is, with the notes that it doesn't have yet."""
        notes = self._notes[number][self._n_recorded[number] :]
        self._journal.record(self._task.stacks[number].name, state, notes=notes)
        self._n_recorded[number] = len(self._notes[number])

    def _append(self, number: int, segment: StackReader) -> None:
        stack = self._task.stacks[number]
        writer = self._writers.get(number) or self._open(number)
        first = self._written[number]
        numbers = {note[1] for note in self._notes[number] if note[3]}
        unchanged = {i for i in range(segment.n_images) if int(stack.indices[first + i]) + 1 in numbers}
        once = max(1, _COPIED_BYTES // (4 * stack.shape[0] * stack.shape[1]))
        for begin in range(0, segment.n_images, once):
            images = segment.read(np.arange(begin, min(begin + once, segment.n_images)))
            writer.write(images, unchecked=[i - begin for i in unchanged if begin <= i < begin + once])
        complete = first + segment.n_images == len(stack.indices)
        if not complete or self._notes[number]:
            self._record(number, writer.checkpoint())
        if complete:
            writer.close()
            del self._writers[number]
            self._journal.finish(stack.name)

    def _open(self, number: int) -> StackWriter:
        stack = self._task.stacks[number]
        path = self.output_dir / stack.name
        make_folder(path.parent)
        self._writers[number] = StackWriter(
            path,
            (len(stack.indices), *stack.shape),
            pixel_size_angstrom=stack.pixel_size_angstrom,
            dtype=self._task.options.output_dtype,
            label=self._task.label,
            state=self._journal.states[stack.name] if self._written[number] else None,
        )
        return self._writers[number]

    def finish(self) -> StreamResult:
        """Remove the folder of the ranges, and return what was done, notes in the order of the images."""
        shutil.rmtree(self._folder.parent, ignore_errors=True)
        for notes in self._notes:
            for name, image, problem, unchanged in notes:
                note = ImageNote(name, image, problem)
                (self.result.skipped if unchanged else self.result.remarks).append(note)
        return self.result

    def __enter__(self) -> Assembly:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers.values():  # after an error only: unfinished files stay
            writer.__exit__(kind, error, trace)


def _digest(task: Task, journal: Journal) -> str:
    """Return what tells ranges of this run from those of one with other input, options or choices."""
    known = journal.undertaking
    made_of = json.dumps([known.fingerprint, known.parts] if known else [], sort_keys=True)
    return hashlib.sha256(made_of.encode() + repr(task.choices).encode()).hexdigest()[:16]


def read_notes(folder: Path) -> dict[str, Any]:
    """Return what a worker noted, once its folder is to be seen.

    Raises
    ------
    OutputError
        If it does not appear.
    """
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while True:
        try:
            notes: dict[str, Any] = json.loads((folder / _NOTES_NAME).read_text("utf-8"))
            return notes
        except OSError as error:
            if time.monotonic() > deadline:
                raise OutputError(
                    f"{folder}: a worker has finished it, but it cannot be seen here "
                    f"({error.strerror}). Do driver and workers see the same file system?"
                ) from error
        list(folder.parent.iterdir())  # makes a network file system look again
        time.sleep(0.2)
