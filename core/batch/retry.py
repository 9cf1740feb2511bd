"""The parts of the work on one source on their way through the workers of a batch, as often as it takes."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic

from ..errors import ConfigurationError, CryohushError, HostError, InputError, OutputError
from ..inference.devices import LocalDevices
from ..job_context import JobContext
from ..jobs.job import P, Part, Parts

if TYPE_CHECKING:
    from .workers import Pool

POLL_SECONDS = 0.5
# Ranges that are named one by one when they were set aside.
NAMED_RANGES = 8
# What another attempt does not change.
_LASTING = (InputError, ConfigurationError)


class RangesFailed(CryohushError):
    """Some ranges of a source failed again and again; the others are finished and kept."""


def do_parts(pool: Pool, parts: Parts[P], context: JobContext) -> list[tuple[P, BaseException]]:
    """Bring all parts to an end, and return those that failed again and again, and why.

    Raises
    ------
    OutputError
        If the disk is full or fails.
    Aborted
        If `context.should_stop` said so; what was taken is kept.
    """
    return _Retries(pool, parts).run(context)


class _Retries(Generic[P]):
    """The parts of one source on their way through the pool."""

    def __init__(self, pool: Pool, parts: Parts[P]) -> None:
        self._pool, self._parts = pool, parts
        self._waiting = list(parts.waiting)
        self._out: dict[str, tuple[P, Any]] = {}
        self._tried: dict[str, int] = {}
        self._finished: queue.SimpleQueue[str] = queue.SimpleQueue()

    def run(self, context: JobContext) -> list[tuple[P, BaseException]]:
        """See `do_parts`."""
        failed: list[tuple[P, BaseException]] = []
        total = self._parts.n_images
        done = total - sum(part.n_images for part in self._waiting)
        context.progress(done, total)
        try:
            while self._waiting or self._out:
                self._pool.replace_lost()
                context.stop_if_asked(
                    "Stopped on request. What is finished is kept: go on from there with batch resume."
                )
                while self._waiting and self._pool.acquire(timeout=0 if self._out else POLL_SECONDS):
                    self._submit(self._waiting.pop(0))
                part, error = self._next()
                if part is None:
                    continue
                if error is None:
                    self._parts.take(part)
                    done += part.n_images
                    context.progress(done, total)
                elif isinstance(error, OutputError):
                    raise error  # the disk is full: the other parts would fail, too
                elif isinstance(error, _LASTING) or self._tried[part.name] >= self._pool.config.attempts:
                    failed.append((part, error))
                else:
                    self._waiting.insert(0, part)
        finally:
            for _, future in self._out.values():
                future.cancel()
                self._pool.release()
        return failed

    def _submit(self, part: P) -> None:
        self._tried[part.name] = self._tried.get(part.name, 0) + 1
        # the key is what the dashboard shows
        key = f"{part.name} of {self._parts.title}, {uuid.uuid4().hex}"
        future = self._pool.submit(key, _do, part)
        self._out[part.name] = (part, future)
        future.add_done_callback(lambda _, name=part.name: self._finished.put(name))

    def _next(self) -> tuple[P | None, BaseException | None]:
        """Return a part that came back, and why it failed; nothing if none does within a moment."""
        try:
            part, future = self._out.pop(self._finished.get(timeout=POLL_SECONDS))
        except queue.Empty:
            return None, None
        self._pool.release()
        if future.status == "cancelled":
            return part, HostError("the scheduler went away.")
        error: BaseException | None = future.exception()
        return part, error


def _do(part: Part, devices: LocalDevices) -> None:
    part.do(devices)


def is_death(error: BaseException) -> bool:
    """Tell whether the worker is gone."""
    return type(error).__name__ == "KilledWorker"


def in_words(error: BaseException) -> str:
    """Return why a part failed."""
    if is_death(error):
        return "the worker died: killed, out of memory, or crashed (its log may say more)"
    return str(error) if isinstance(error, CryohushError) else f"{type(error).__name__}: {error}"


def describe_failed(failed: Sequence[tuple[Part, BaseException]], n_ranges: int) -> str:
    """Return which ranges were set aside, and why."""
    said = [f"{part.describe()}: {in_words(error).rstrip('.')}" for part, error in failed[:NAMED_RANGES]]
    more = f"; and {len(failed) - NAMED_RANGES} more" if len(failed) > NAMED_RANGES else ""
    return (
        f"{len(failed)} of {n_ranges} ranges failed and were set aside: {'; '.join(said)}{more}. "
        "What is finished is kept: batch retry-failed goes on from there."
    )
