"""How a job ends: in the right state, whatever ends its work."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from ..core.errors import Aborted, CryohushError, HostError
from .instance import ConnectionLost
from .job import ACTIVE, ExternalJob
from .worker import SMALLER, WorkFailed

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How often cryoSPARC is asked whether the job is still wanted.
WATCH_SECONDS = 10.0
# After a signal, a queue system allows half a minute in all.
LAST_WORD_SECONDS = 10.0


class StopSignal(BaseException):
    """A signal asked for the end; no `except Exception` on the way shall hold it up."""


class JobEnded(Aborted):
    """Somebody has cleared, killed or deleted the job in cryoSPARC."""


class Signals:
    """Stop signals: noted at first, and raised as `StopSignal` within `raising()`."""

    def __init__(self) -> None:
        self._received: str | None = None
        self._raising = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._received = signal.Signals(number).name
        if self._raising:
            raise StopSignal(self._received)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raise at once what comes, or has come."""
        self._raising = True
        try:
            if self._received:
                raise StopSignal(self._received)
            yield
        finally:
            self._raising = False


@contextlib.contextmanager
def stop_signals() -> Iterator[Signals]:
    """Catch the stop signals, but for those that whoever started the program ignores on purpose."""
    signals = Signals()
    earlier = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    caught = {number: handler for number, handler in earlier.items() if handler != signal.SIG_IGN}
    for number in caught:
        signal.signal(number, signals._handle)
    try:
        yield signals
    finally:
        for number, handler in caught.items():
            signal.signal(number, handler)


class Watch:
    """Asks cryoSPARC now and then whether the job is still wanted; a lost connection is no answer."""

    def __init__(self, job: ExternalJob) -> None:
        self._job, self._next = job, time.monotonic() + WATCH_SECONDS

    def __call__(self) -> None:
        """Ask if it is time to.

        Raises
        ------
        JobEnded
            If the job is no longer running.
        """
        if time.monotonic() < self._next:
            return
        try:
            check_active(self._job, patience_seconds=0.0)
        except ConnectionLost:
            pass
        finally:
            self._next = time.monotonic() + WATCH_SECONDS


def check_active(job: ExternalJob, patience_seconds: float | None = None) -> None:
    """Raise `JobEnded` if the job was started and is no longer active."""
    try:
        status = job.status(patience_seconds)
    except ConnectionLost:
        raise
    except HostError as error:
        raise JobEnded(f"{job.uid} is no longer there ({error})") from error
    if job.was_started and status not in ACTIVE:
        raise JobEnded(f"{job.uid} was ended in cryoSPARC: its status is {status!r}. It stays as it is.")


def run_guarded(job: ExternalJob, signals: Signals, work: Callable[[], None]) -> int:
    """Do the work of a job and end it as completed, or else as failed.

    Parameters
    ----------
    job
        As it was made or found.
    signals
        From `stop_signals`.
    work
        Starts the job, does the work, saves the outputs.

    Returns
    -------
    int
        Exit status: 0 if completed, 1 if failed, 2 if somebody wanted it to end.
    """
    again = f"Go on with --resume {job.uid}."
    try:
        with signals.raising():
            work()
        job.complete()
    except StopSignal as error:
        return _fail(job, f"stopped by {error}. {again}", code=2, patience_seconds=LAST_WORD_SECONDS)
    except JobEnded as error:
        _complain(str(error))
        return 2
    except WorkFailed as error:
        return _fail(job, str(error), error.details)
    except ConnectionLost as error:
        return _fail(job, f"{error} {again}", patience_seconds=LAST_WORD_SECONDS)
    except CryohushError as error:
        return _fail(job, str(error))
    except MemoryError:
        return _fail(job, f"out of memory. {SMALLER}", traceback.format_exc())
    except BaseException as error:
        return _fail(job, f"unexpected {type(error).__name__}: {error}", traceback.format_exc())
    return 0


def _fail(
    job: ExternalJob, message: str, details: str = "", *, code: int = 1, patience_seconds: float | None = None
) -> int:
    """End the job as failed, unless it is no longer ours to end."""
    message, details = job.instance.redact(message), job.instance.redact(details)
    if details:
        print(details.rstrip(), file=sys.stderr)
    _complain(message)
    try:
        end_as_failed(job, message, details, patience_seconds)
    except JobEnded as error:
        _complain(str(error))
        return 2
    except HostError as error:
        _complain(
            f"cryoSPARC could not be told ({error}) and may show {job.uid} as running for ever: go on with "
            f"--resume {job.uid}, or clear it."
        )
    return code


def end_as_failed(
    job: ExternalJob, message: str, details: str = "", patience_seconds: float | None = None
) -> None:
    """End a job as failed.

    Raises
    ------
    JobEnded
        If it was started and somebody has ended it: it is no longer ours to end.
    HostError
        If cryoSPARC cannot be told.
    """
    check_active(job, patience_seconds)
    if details:
        with contextlib.suppress(HostError):
            job.log(details, "error")
    if not job.was_started:
        # cryoSPARC fails what is running
        job.start()
    job.fail(message, patience_seconds)


def _complain(message: str) -> None:
    print(f"ERROR: {message}", file=sys.stderr, flush=True)
