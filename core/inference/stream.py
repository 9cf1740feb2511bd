"""Stacks through the network as a stream: reading, denoising and writing overlap, in bounded memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ..config.denoise import DenoiseOptions
from ..context.contexts import StackContexts
from ..errors import Aborted, ImageError
from ..imaging.normalise import circle_radius_px
from ..io.files import make_folder
from ..io.journal import Journal
from ..io.mrc import StackWriter, WriterState, holds
from ..job_context import JobContext
from .denoiser import Denoiser
from .feeding import Denoised, Feeding, Images, Reader, Worker, denoised_batches
from .micrograph_denoiser import MicrographDenoiser
from .plan import Piece, StackPlan, batches

CHECKPOINT_SECONDS = 5.0
# Batches of particles under way per worker: one in the network, one read ahead, one waiting to be written.
BATCHES_PER_WORKER = 3
# Micrographs are large, and each keeps several threads busy.
MICROGRAPHS_PER_WORKER = 1


@dataclass(frozen=True)
class ImageNote:
    """What is wrong or conspicuous with an image: its stack, and 1-based number in it."""

    stack: str
    image: int
    problem: str


@dataclass
class StreamResult:
    """What a stream did.

    Attributes
    ----------
    n_written
        Images written by this process, without those that an earlier one had finished.
    skipped
        Images passed through unchanged, of the whole run, and why.
    remarks
        Images that were denoised though something is conspicuous about them, of the whole run.
    seconds
        Time spent in reading, denoising (summed over the workers) and writing.
    """

    n_written: int = 0
    skipped: list[ImageNote] = field(default_factory=list)
    remarks: list[ImageNote] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"reading": 0.0, "denoising": 0.0, "writing": 0.0}
    )

    @classmethod
    def recorded(cls, stacks: Sequence[StackPlan], journal: Journal) -> StreamResult:
        """Return how a stream begins: nothing written, and the journal's notes on the stacks' images."""
        result = cls()
        for stack in stacks:
            result.add_notes(journal.notes.get(stack.name, ()))
        return result

    def add_notes(self, notes: Iterable[Sequence[Any]]) -> None:
        """Add notes as journals have them: stack, image, problem, and whether the image is unchanged."""
        for *note, unchanged in notes:
            (self.skipped if unchanged else self.remarks).append(ImageNote(*note))


def particle_worker(
    denoiser: Denoiser,
    options: DenoiseOptions,
    stacks: Sequence[StackPlan],
    contexts: StackContexts | None = None,
) -> Worker:
    """Return a worker for particles; what the options need of a pixel size was checked before.

    `contexts` are those of the images of `stacks`.
    """

    def work(images: Images, stack: StackPlan, pieces: Sequence[Piece]) -> Denoised:
        places = [(stacks[p.stack].source, stacks[p.stack].indices[p.begin : p.end]) for p in pieces]
        denoised, problems, remarks = denoiser.denoise(
            images,
            radius_px=circle_radius_px(
                stack.shape, options.particle_diameter_angstrom, stack.pixel_size_angstrom
            ),
            blend=options.blend,
            keep_above_px=stack.in_pixels(options.keep_above_angstrom),
            protein_dark=stack.protein_dark,
            context=None if contexts is None else lambda shown: contexts.channels(shown, places),
            finer=stack.finer,
        )
        return Denoised(denoised, problems, remarks)

    return work


def micrograph_worker(denoiser: MicrographDenoiser, options: DenoiseOptions) -> Worker:
    """Return a worker for micrographs; otherwise as `particle_worker`.

    Networks know protein as white: where it is dark they get the negative, and theirs is returned.
    """

    def work(images: Images, stack: StackPlan, pieces: Sequence[Piece]) -> Denoised:
        (image,) = images
        denoised, problem, remark = denoiser.denoise(
            -image if stack.protein_dark else image,
            pixel_size_angstrom=stack.pixel_size_angstrom,
            blend=options.blend,
            keep_above_px=stack.in_pixels(options.keep_above_angstrom),
            finer=stack.finer,
        )
        return Denoised(
            (-denoised if stack.protein_dark else denoised)[None],
            {0: problem} if problem else {},
            {0: remark} if remark else {},
        )

    return work


def n_safely_written(
    stack: StackPlan, output_dir: Path, journal: Journal, dtype: Literal["float32", "float16"]
) -> int:
    """Return how many images of a stack an earlier process has brought to disk, if they are still there."""
    if stack.name in journal.finished:
        return len(stack.indices) if journal.is_finished(stack.name) else 0
    state = journal.states.get(stack.name)
    # Killed between the renaming and its note in the journal: the stack is made once more.
    can_go_on = state is not None and holds(output_dir / stack.name, stack.shape, dtype, state)
    return state.written if state is not None and can_go_on else 0


def open_stack(
    stack: StackPlan,
    output_dir: Path,
    dtype: Literal["float32", "float16"],
    label: str,
    state: WriterState | None,
) -> StackWriter:
    """Open the stack to write, or go on with it from a state."""
    path = output_dir / stack.name
    make_folder(path.parent)
    return StackWriter(
        path,
        (len(stack.indices), *stack.shape),
        pixel_size_angstrom=stack.pixel_size_angstrom,
        dtype=dtype,
        label=label,
        state=state,
    )


class Output:
    """Writes batches in order, names each stack once it is complete, and keeps the journal.

    Parameters
    ----------
    stacks
        The plan.
    output_dir
        Where the stacks go.
    journal
        The journal to go on with.
    dtype, label
        Of the written stacks.
    skip_bad
        Pass images that cannot be denoised through unchanged instead of stopping.

    Attributes
    ----------
    result
        What was done.
    written
        How many images of each stack are written.
    n_written
        How many in all.
    """

    def __init__(
        self,
        stacks: Sequence[StackPlan],
        output_dir: Path,
        journal: Journal,
        *,
        dtype: Literal["float32", "float16"],
        label: str,
        skip_bad: bool,
    ) -> None:
        self.stacks, self._output_dir, self._journal = stacks, output_dir, journal
        self._dtype, self._label, self._skip_bad = dtype, label, skip_bad
        self._writer: StackWriter | None = None
        # of the stack that is open, and not in the journal yet; True: the image is unchanged
        self._notes: list[tuple[ImageNote, bool]] = []
        self._last_checkpoint = time.monotonic()
        self.written = [n_safely_written(stack, output_dir, journal, dtype) for stack in stacks]
        self.n_written = sum(self.written)
        there = [stack for stack, written in zip(stacks, self.written, strict=True) if written]
        self.result = StreamResult.recorded(there, journal)

    def write(self, pieces: Sequence[Piece], batch: Denoised) -> None:
        """Write what is not written yet of a batch."""
        offset = 0
        for piece in pieces:
            begin = max(piece.begin, self.written[piece.stack])
            if begin < piece.end:
                shift = offset - piece.begin
                bad, remarks = (
                    {
                        index - shift: text
                        for index, text in notes.items()
                        if begin <= index - shift < piece.end
                    }
                    for notes in (batch.problems, batch.remarks)
                )
                images = batch.images[begin + shift : piece.end + shift]
                self._write_piece(piece.stack, begin, images, bad, remarks)
            offset += piece.end - piece.begin
        if time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS:
            self.checkpoint()

    def _write_piece(
        self, number: int, begin: int, images: Images, bad: Mapping[int, str], remarks: Mapping[int, str]
    ) -> None:
        """Append images, of which the first is number `begin` of its stack and `bad` are unchanged."""
        stack = self.stacks[number]
        if self._writer is None:
            self._name, self._notes = stack.name, []
            state = self._journal.states[stack.name] if begin else None
            self._writer = open_stack(stack, self._output_dir, self._dtype, self._label, state)
        for position, text in bad.items():
            self._skip(ImageNote(str(stack.source), int(stack.indices[position]) + 1, text))
        for position, text in remarks.items():
            note = ImageNote(str(stack.source), int(stack.indices[position]) + 1, text)
            self._notes.append((note, False))
            self.result.remarks.append(note)
        self._writer.write(images, unchecked=[position - begin for position in bad])
        self.written[number] = begin + len(images)
        self.n_written += len(images)
        self.result.n_written += len(images)
        if self.written[number] == len(stack.indices):
            if self._notes:
                self.checkpoint()
            self._writer.close()
            self._journal.finish(stack.name)
            self._writer = None

    def _skip(self, note: ImageNote) -> None:
        if not self._skip_bad:
            raise ImageError(
                note.problem,
                path=note.stack,
                image=note.image,
                remedy="Remove it, or pass such images through unchanged: --skip-bad (in forms: skip_bad).",
            )
        self._notes.append((note, True))
        self.result.skipped.append(note)

    def checkpoint(self) -> None:
        """Bring what is written to disk, so that a run killed from now on goes on from here."""
        if self._writer is not None and self._writer.state.written:
            notes = [[note.stack, note.image, note.problem, unchanged] for note, unchanged in self._notes]
            self._journal.record(self._name, self._writer.checkpoint(), notes=notes)
            self._notes = []
        self._last_checkpoint = time.monotonic()

    def __enter__(self) -> Output:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:  # after an error only: its unfinished file stays
            self._writer.__exit__(kind, error, trace)


def denoise_stacks(
    output: Output,
    workers: Sequence[Worker],
    batch_sizes: Mapping[tuple[int, int], int],
    feeding: Feeding,
    context: JobContext,
) -> None:
    """Denoise what the journal does not hold as finished.

    Parameters
    ----------
    output
        The plan, and where it is written.
    workers
        One for each thread that denoises.
    batch_sizes
        Images per batch, by their `(y, x)`.
    feeding
        How many threads read, and how many batches are under way.
    context
        Told how many images are done after each batch, and asked whether to stop before each is written.

    Raises
    ------
    ImageError
        If an image cannot be denoised and is not to be passed through.
    MrcError, OutputError
        If a stack cannot be read or written.
    Aborted
        If `context.should_stop` said so; what is written is then safely recorded.
    DeviceError
        If a worker's device fails, or gives nothing back within `feeding.patience_seconds`.
    """
    stacks, seconds = output.stacks, output.result.seconds
    total = sum(len(stack.indices) for stack in stacks)
    context.progress(output.n_written, total)
    todo = [
        pieces
        for pieces in batches(stacks, batch_sizes)
        if any(output.written[piece.stack] < piece.end for piece in pieces)
    ]
    with contextlib.ExitStack() as exits:
        readers = [exits.enter_context(contextlib.closing(Reader(stacks))) for _ in range(feeding.readers)]
        results = exits.enter_context(
            contextlib.closing(denoised_batches(todo, stacks, workers, readers, feeding))
        )
        for pieces, batch, seconds_reading, seconds_denoising in results:
            seconds["reading"] += seconds_reading
            seconds["denoising"] += seconds_denoising
            if context.should_stop():
                output.checkpoint()
                raise Aborted("Stopped on request. What is finished is kept.")
            begin = time.perf_counter()
            output.write(pieces, batch)
            seconds["writing"] += time.perf_counter() - begin
            context.progress(output.n_written, total)
