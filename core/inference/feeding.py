"""Batches to the workers and back: read ahead, denoised wherever a worker is free, given back in order.

Threads read ahead and one thread per worker denoises, so that devices of any speed share the work. Only a few
batches are ever under way, whatever the number of images.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import DeviceError
from ..io.mrc import StackReader
from .plan import Piece, StackPlan

Images = NDArray[np.float32]


class Denoised(NamedTuple):
    """A batch: images `(n, y, x)`, and by position why some are unchanged, and what is to be said of some."""

    images: Images
    problems: Mapping[int, str]
    remarks: Mapping[int, str]


Worker = Callable[[Images, StackPlan, Sequence[Piece]], Denoised]
"""Denoises a batch of images of one kind, that of the stack, cut into pieces of stacks; called in a thread of
its own."""


_Timed = tuple[Denoised, float, float]
"""A batch, and the seconds that reading and denoising it took."""


@dataclass(frozen=True)
class Feeding:
    """How workers are kept busy.

    Attributes
    ----------
    batches_per_worker
        How many batches are under way at most.
    one_thread_each
        Whether a worker is to calculate on its own thread alone: on the CPU that is faster than sharing every
        layer among the threads, and the result does not depend on their number.
    readers
        Threads that read ahead.
    patience_seconds
        When a batch that does not come back is given up, with its device; None waits for ever.
    """

    batches_per_worker: int
    one_thread_each: bool = True
    readers: int = 1
    patience_seconds: float | None = None


class Reader:
    """Reads the pieces of batches in order, one open stack at a time; for one thread."""

    def __init__(self, stacks: Sequence[StackPlan]) -> None:
        self._stacks, self._number = stacks, -1
        self._reader: StackReader | None = None

    def read(self, pieces: Sequence[Piece]) -> tuple[Images, float]:
        """Return the images of a batch `(n, y, x)` and the seconds it took."""
        begin = time.perf_counter()
        parts = []
        for piece in pieces:
            if self._reader is None or self._number != piece.stack:
                self.close()
                self._reader, self._number = StackReader(self._stacks[piece.stack].source), piece.stack
            parts.append(self._reader.read(self._stacks[piece.stack].indices[piece.begin : piece.end]))
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return images, time.perf_counter() - begin

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._reader = None


@dataclass(frozen=True, eq=False)
class _Job:
    """A batch on its way through a worker."""

    stack: StackPlan
    pieces: Sequence[Piece]
    reading: Future[tuple[Images, float]]
    future: Future[_Timed]

    def run(self, worker: Worker) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            raw, seconds_reading = self.reading.result()
            begin = time.perf_counter()
            batch = worker(raw, self.stack, self.pieces)
            self.future.set_result((batch, seconds_reading, time.perf_counter() - begin))
        except BaseException as error:  # raised where the batch is waited for
            self.future.set_exception(error)


class _Crew:
    """A thread for each worker, fed from one queue.

    The threads are daemons, unlike those of an executor: one that a broken device never lets go of keeps
    neither the run nor the program from ending.
    """

    def __init__(self, workers: Sequence[Worker], *, one_thread_each: bool) -> None:
        self._todo: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, args=(worker, one_thread_each), name="denoise", daemon=True)
            for worker in workers
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, worker: Worker, one_thread: bool) -> None:
        if one_thread:
            torch.set_num_threads(1)
        while (job := self._todo.get()) is not None:
            job.run(worker)
            del job  # it holds the images

    def submit(
        self, stack: StackPlan, pieces: Sequence[Piece], reading: Future[tuple[Images, float]]
    ) -> Future[_Timed]:
        """Have a batch denoised once it was read."""
        job = _Job(stack, pieces, reading, Future())
        self._todo.put(job)
        return job.future

    def dismiss(self, patience_seconds: float | None) -> None:
        """Let the threads end after what they are at, and wait for each so long at most."""
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join(patience_seconds)


def denoised_batches(
    todo: Sequence[tuple[Piece, ...]],
    stacks: Sequence[StackPlan],
    workers: Sequence[Worker],
    readers: Sequence[Reader],
    feeding: Feeding,
) -> Generator[tuple[tuple[Piece, ...], Denoised, float, float], None, None]:
    """Yield the pieces of each batch, what became of it, and the seconds that reading and denoising took.

    In the order of `todo`; others are read and denoised ahead meanwhile.

    Raises
    ------
    DeviceError
        If a batch does not come back within `feeding.patience_seconds`.
    Exception
        Whatever a reader or a worker raises.
    """
    free: queue.SimpleQueue[Reader] = queue.SimpleQueue()
    for reader in readers:
        free.put(reader)

    def read(pieces: tuple[Piece, ...]) -> tuple[Images, float]:
        reader = free.get()
        try:
            return reader.read(pieces)
        finally:
            free.put(reader)

    reading = ThreadPoolExecutor(len(readers), "read")
    crew = _Crew(workers, one_thread_each=feeding.one_thread_each)
    under_way: deque[tuple[tuple[Piece, ...], Future[_Timed]]] = deque()
    waiting = iter(todo)
    patience = feeding.patience_seconds
    try:
        while True:
            for pieces in itertools.islice(
                waiting, feeding.batches_per_worker * len(workers) - len(under_way)
            ):
                stack = stacks[pieces[0].stack]
                under_way.append((pieces, crew.submit(stack, pieces, reading.submit(read, pieces))))
            if not under_way:
                return
            pieces, future = under_way.popleft()
            try:
                batch, seconds_reading, seconds_denoising = future.result(patience)
            except FutureTimeoutError as error:
                if future.done():
                    raise
                patience = 0.0
                raise DeviceError(
                    f"a batch has not come back for {feeding.patience_seconds:g} s: a device hangs. What is "
                    "finished is kept: resume on other devices, or once this one works again."
                ) from error
            del future  # it holds the images, too
            yield pieces, batch, seconds_reading, seconds_denoising
    finally:
        for _, future in under_way:
            future.cancel()
        reading.shutdown(cancel_futures=True)
        crew.dismiss(patience)
