"""A run of denoising in ranges: workers do them in any order, one driver joins them.

A range is some whole batches of the plan, so that each image is computed in the same company as in a run
without ranges, and the stacks that come out are the same to the byte. A driver that is killed finds what was
finished.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ..config.denoise import CONTEXT_NAME
from ..context.contexts import StackContexts, load_contexts
from ..inference.denoiser import Denoiser
from ..inference.devices import LocalDevices, Precision
from ..inference.engine import Task, denoise, make_denoisers
from ..inference.plan import Piece, StackPlan, batches
from ..inference.stream import StreamResult, n_safely_written, open_stack
from ..io.files import make_folder, rename_complete, writing_failed
from ..io.journal import JOURNAL_NAME, RANGES_FOLDER, Journal, Undertaking
from ..io.mrc import StackReader, StackWriter, WriterState
from ..job_context import JobContext
from ..models.weights import load_same_model
from .job import Parts
from .parts import NOTES_NAME, do_in_folder, limit_bytes, read_notes

_COPIED_BYTES = 2**24


@dataclass(frozen=True, eq=False)
class Range:
    """Images of a run that one worker denoises at a time; see `Part`.

    Attributes
    ----------
    task
        What it takes of the run's stacks: these, with fewer `indices`; without contexts.
    places
        For each of them the number of the stack in the plan, and of its first image in that stack.
    folder
        What the worker's folder becomes, named by the first image and the number of images, counted over the
        whole run.
    contexts
        The file of the run's contexts; None where there are none.
    """

    task: Task
    places: tuple[tuple[int, int], ...]
    folder: Path
    contexts: Path | None = None

    @property
    def name(self) -> str:
        """See `Part`."""
        return self.folder.name

    @property
    def n_images(self) -> int:
        """See `Part`."""
        return sum(len(stack.indices) for stack in self.task.stacks)

    def pieces(self) -> Iterator[tuple[StackPlan, int, int]]:
        """Yield each of its stacks, with its number in the plan, and of its first image in that stack."""
        for stack, (number, begin) in zip(self.task.stacks, self.places, strict=True):
            yield stack, number, begin

    def describe(self) -> str:
        """Return the images in words, counted from 1 in the order of writing."""
        return ", ".join(
            f"images {begin + 1} to {begin + len(stack.indices)} of {stack.name}"
            for stack, _, begin in self.pieces()
        )

    def do(self, devices: LocalDevices) -> None:
        """Denoise the range into its folder.

        Raises
        ------
        CryohushError
            As `denoise_stacks`; nothing stays behind.
        """
        task, weights = self.task, self.task.weights
        denoisers = _denoisers_at_hand(weights.path, weights.sha256, task.choices.precision, devices.devices)
        if self.contexts is not None:
            known = _contexts_at_hand(self.contexts, self.contexts.stat().st_mtime_ns)
            task = replace(task, contexts=known)

        def do(folder: Path) -> dict[str, Any]:
            with Journal(folder / JOURNAL_NAME) as journal:
                journal.begin(Undertaking("range"))
                return _notes_of(denoise(task, folder, journal, devices, denoisers=denoisers))

        do_in_folder(self.folder, do)


@functools.lru_cache(maxsize=2)
def _denoisers_at_hand(
    path: Path, sha256: str, precision: Precision, devices: tuple[torch.device, ...]
) -> list[Denoiser]:
    """Return a model on this worker's devices: made for the first range, kept for the next ones."""
    return make_denoisers(load_same_model(path, sha256), precision, devices)


@functools.lru_cache(maxsize=2)
def _contexts_at_hand(path: Path, written_ns: int) -> StackContexts:
    """Return the contexts of a run: read for the first range, kept for the next ones."""
    return load_contexts(path)


def _notes_of(result: StreamResult) -> dict[str, Any]:
    return {
        "seconds": result.seconds,
        "notes": [
            [note.stack, note.image, note.problem, unchanged]
            for notes, unchanged in ((result.skipped, True), (result.remarks, False))
            for note in notes
        ],
    }


def plan_ranges(task: Task, part_bytes: int, folder: Path, contexts: Path | None = None) -> list[Range]:
    """Cut a run into ranges of about `part_bytes` of float32 pixels, always between two batches.

    `folder` is that of all ranges, `contexts` the file of the run's.
    """
    stacks, pieces, ranges = task.stacks, list[Piece](), list[Range]()
    size, first = 0, 0

    def finish() -> None:
        nonlocal size, first
        ranges.append(_range(task, pieces, first, folder, contexts))
        first += ranges[-1].n_images
        pieces.clear()
        size = 0

    limit = limit_bytes(sum(_pixel_bytes(stack, len(stack.indices)) for stack in stacks), part_bytes)
    for batch in batches(stacks, task.batch_sizes):
        pieces += batch
        size += sum(_pixel_bytes(stacks[piece.stack], piece.end - piece.begin) for piece in batch)
        if size >= limit:
            finish()
    if pieces:
        finish()
    return ranges


def _pixel_bytes(stack: StackPlan, n_images: int) -> int:
    return 4 * n_images * stack.shape[0] * stack.shape[1]


def _range(task: Task, pieces: Sequence[Piece], first: int, folder: Path, contexts: Path | None) -> Range:
    """Return the range of consecutive pieces, those of one stack made one."""
    bounds: dict[int, tuple[int, int]] = {}
    for piece in pieces:
        bounds[piece.stack] = (bounds.get(piece.stack, (piece.begin, 0))[0], piece.end)
    stacks = [
        replace(task.stacks[number], indices=task.stacks[number].indices[begin:end])
        for number, (begin, end) in bounds.items()
    ]
    count = sum(len(stack.indices) for stack in stacks)
    return Range(
        replace(task, stacks=stacks, contexts=None),
        tuple((number, begin) for number, (begin, _) in bounds.items()),
        folder / f"{first:012d}+{count}",
        contexts,
    )


class DenoiseWork:
    """The stacks of a run that are not finished, whole or in ranges; see `Work`.

    Parameters
    ----------
    task
        The run.
    output_dir
        Where the stacks go.
    journal
        The run's journal.
    context_record
        What the run's record says of the task's contexts.

    Attributes
    ----------
    result
        What was done.
    """

    def __init__(
        self, task: Task, output_dir: Path, journal: Journal, context_record: Mapping[str, Any]
    ) -> None:
        self.task, self.output_dir, self.journal = task, output_dir, journal
        self.context_record = dict(context_record)
        self.result = StreamResult()

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Denoise all of them."""
        self.result = denoise(self.task, self.output_dir, self.journal, devices, context)

    @contextlib.contextmanager
    def in_parts(self, part_bytes: int) -> Iterator[Parts[Range]]:
        """Yield them in ranges; those that an earlier driver left are taken."""
        with Assembly(self, part_bytes) as assembly:
            yield assembly.parts
            self.result = assembly.finish()


class Assembly:
    """Puts finished ranges together: each stack grows in order, in the journal of a run without ranges.

    Attributes
    ----------
    parts
        The ranges; those that an earlier driver left are taken.
    result
        What was done so far.
    """

    def __init__(self, work: DenoiseWork, part_bytes: int) -> None:
        self._task, self._output_dir, self._journal = work.task, work.output_dir, work.journal
        self._folder = self._output_dir.absolute() / RANGES_FOLDER / _digest(work.task, work.journal)
        contexts = None if work.task.contexts is None else self._output_dir.absolute() / CONTEXT_NAME
        ranges = plan_ranges(work.task, part_bytes, self._folder, contexts)
        self._written = [
            n_safely_written(stack, self._output_dir, self._journal, self._task.options.output_dtype)
            for stack in self._task.stacks
        ]
        self._notes: list[list[list[Any]]] = [
            [list(note) for note in self._journal.notes.get(stack.name, ())] if written else []
            for stack, written in zip(self._task.stacks, self._written, strict=True)
        ]
        # how many of them the journal has
        self._n_recorded = [len(notes) for notes in self._notes]
        # of each stack: where it goes on, the file that has it, and the notes on its images
        self._ready: list[dict[int, tuple[Path, list[list[Any]]]]] = [{} for _ in self._task.stacks]
        self._writers: dict[int, StackWriter] = {}
        make_folder(self._folder)
        self.result = StreamResult()
        waiting = self._find_waiting(ranges)
        self.result = StreamResult()
        n_images = sum(part.n_images for part in ranges)
        self.parts = Parts(self._output_dir.name, waiting, len(ranges), n_images, self.take)

    def _find_waiting(self, ranges: Sequence[Range]) -> list[Range]:
        """Return the ranges that are still to be denoised, and take those that an earlier driver left."""
        for other in self._folder.parent.iterdir():  # of a run with other input or options
            if other != self._folder:
                shutil.rmtree(other, ignore_errors=True)
        names = {part.name for part in ranges}
        for entry in self._folder.iterdir():
            if entry.name not in names:
                shutil.rmtree(entry, ignore_errors=True)
        waiting = []
        for part in ranges:
            if all(self._has(part, *piece) for piece in part.pieces()):
                self.take(part)
            else:
                shutil.rmtree(part.folder, ignore_errors=True)
                waiting.append(part)
        return waiting

    def _has(self, part: Range, stack: StackPlan, number: int, begin: int) -> bool:
        there = (part.folder / stack.name).exists() and (part.folder / NOTES_NAME).exists()
        return begin + len(stack.indices) <= self._written[number] or there

    def take(self, part: Range) -> None:
        """Take a range that a worker has finished, and append whatever is next.

        Raises
        ------
        OutputError
            If the disk is full or fails, or the range's folder does not appear.
        """
        missing = [
            (stack, number, begin)
            for stack, number, begin in part.pieces()
            if begin + len(stack.indices) > self._written[number]
        ]
        noted = read_notes(part.folder) if missing else {"seconds": {}, "notes": []}
        for stack, number, begin in missing:
            images = {int(index) + 1 for index in stack.indices}
            notes = [note for note in noted["notes"] if note[0] == str(stack.source) and note[1] in images]
            self._ready[number][begin] = (part.folder / stack.name, notes)
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
        path = self._output_dir / stack.name
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
        stack, options = self._task.stacks[number], self._task.options
        state = self._journal.states[stack.name] if self._written[number] else None
        writer = open_stack(stack, self._output_dir, options.output_dtype, self._task.label, state)
        self._writers[number] = writer
        return writer

    def finish(self) -> StreamResult:
        """Remove the folder of the ranges, and return what was done, notes in the order of the images."""
        shutil.rmtree(self._folder.parent, ignore_errors=True)
        for notes in self._notes:
            self.result.add_notes(notes)
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
