"""How a job ends: in the right state, whatever ends its work."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

from ..core.errors import CryohushError, HostError, is_out_of_memory
from .instance import ConnectionLost
from .job import ExternalJob, JobEnded
from .lock import JobBusy
from .worker import SMALLER, WorkFailed

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How often cryoSPARC is asked whether the job is still wanted.
WATCH_SECONDS = 10.0
# After a signal, a queue system allows half a minute in all.
LAST_WORD_SECONDS = 6.0
# An answer to one of those words is not waited for any longer.
LAST_ANSWER_SECONDS = 3.0


class StopSignal(BaseException):
    """A signal asked for the end; no `except Exception` on the way shall hold it up."""


class Signals:
    """Stop signals: noted at first, and raised as `StopSignal` within `raising()`."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._raising = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        if self._raising:
            raise StopSignal(self.received)

    @contextlib.contextmanager
    def raising(self) -> Iterator[None]:
        """Raise at once what comes, or has come."""
        self._raising = True
        try:
            if self.received:
                raise StopSignal(self.received)
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
    """Looks now and then whether the job is still wanted; no answer, or an odd one, leaves it so."""

    def __init__(self, job: ExternalJob) -> None:
        self._job, self._next = job, time.monotonic() + WATCH_SECONDS

    def __call__(self) -> None:
        """Look if it is time to.

        Raises
        ------
        JobEnded
            If the job was ended in cryoSPARC.
        """
        if time.monotonic() < self._next:
            return
        try:
            self._job.check_wanted(patience_seconds=0.0)
        except HostError:
            pass
        finally:
            self._next = time.monotonic() + WATCH_SECONDS


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
    resume = f"--resume {job.uid}"
    again = f"Go on with {resume}."
    then = f"Then go on with {resume}, or from the beginning with --force, too."
    try:
        with signals.raising():
            work()
        job.complete()
    except StopSignal as error:
        job.instance.hurry(LAST_ANSWER_SECONDS)
        return _fail(job, f"stopped by {error}. {again}", code=2, patience_seconds=LAST_WORD_SECONDS)
    except JobEnded as error:
        _complain(str(error))
        return 2
    except JobBusy as error:  # by a run that is well: the job is not this one's to end
        _complain(str(error))
        return 1
    except WorkFailed as error:
        return _fail(job, _sentence(error, resume, then), error.details)
    except ConnectionLost as error:
        return _fail(job, _sentence(error, resume, then), patience_seconds=LAST_WORD_SECONDS)
    except CryohushError as error:
        return _fail(job, _sentence(error, resume, then) if job.was_started else str(error))
    except BaseException as error:
        text = f"unexpected {type(error).__name__}: {error}"
        if is_out_of_memory(error):
            text = f"out of memory. {SMALLER} {then}"
        return _fail(job, text, traceback.format_exc())
    return 0


def _sentence(error: Exception, resume: str, then: str) -> str:
    """Return what is wrong and what to do then, unless it says so itself."""
    text = re.sub(r"--resume(?! J\d)", resume, str(error))
    return text if resume in text else f"{text.rstrip('.')}. {then}"


def _fail(
    job: ExternalJob, message: str, details: str = "", *, code: int = 1, patience_seconds: float | None = None
) -> int:
    """End the job as failed, unless it is no longer ours to end."""
    message, details = job.instance.redact(message), job.instance.redact(details)
    if details:
        with contextlib.suppress(OSError):
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
    with contextlib.suppress(HostError):  # what cannot be seen is no reason to leave it running
        job.check_wanted(patience_seconds)
    if details:
        with contextlib.suppress(HostError):
            job.log(details, "error")
    if not job.was_started:
        # cryoSPARC fails what is running
        job.start()
    job.fail(message, patience_seconds)


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(f"ERROR: {message}", file=sys.stderr, flush=True)
