"""A plain function as a RELION External job.

RELION never looks at the exit code of an External job. It waits, for ever if need be, until one of the
empty files ``RELION_JOB_EXIT_SUCCESS``, ``_FAILURE`` or ``_ABORTED`` appears in the job directory. So a
parent process that imports nothing but the standard library runs the work in a child and turns the child's
fate into exactly one of these files. The parent survives whatever ends the child: a broken import, a
segmentation fault, the kernel's out-of-memory killer. Should the parent itself be killed, the child notices,
stops and leaves the marker in its place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from ..core.errors import Aborted, CryohushError, is_out_of_memory

EXIT_SUCCESS = "RELION_JOB_EXIT_SUCCESS"
EXIT_FAILURE = "RELION_JOB_EXIT_FAILURE"
EXIT_ABORTED = "RELION_JOB_EXIT_ABORTED"
# The GUI and the schedulers only touch this file: nothing is killed, the program has to look for it.
ABORT_NOW = "RELION_JOB_ABORT_NOW"

# Ctrl-C, a queue system's or the CCP-EM pipeliner's stop, the end of the terminal that RELION was started in.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# The CCP-EM pipeliner follows SIGTERM with SIGKILL after five seconds; the marker has to be there by then.
STOP_GRACE_SECONDS = 4.0
CHILD_POLL_SECONDS = 0.1
ABORT_POLL_SECONDS = 1.0

SMALLER = "Ask for a smaller batch_size, or for a machine with more memory."

# Exit status with which the child tells the parent that it stopped because it was asked to.
_CHILD_ABORTED = 130

Work = Callable[[Callable[[], bool]], None]


class _StopFlag:
    """Set by a stop signal; parent and child each have their own copy from before the fork on."""

    def __init__(self) -> None:
        self.raised = False
        for number in STOP_SIGNALS:
            # Under nohup, and for whatever `sh` puts into the background, a signal may be ignored on purpose.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._raise)

    def _raise(self, number: int, frame: FrameType | None) -> None:
        self.raised = True


def find_job_directory(arguments: Sequence[str]) -> Path | None:
    """Return the value of ``--o`` without parsing anything else, or None when there is none."""
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and flag.lstrip("-") == "o":
            if equals:
                return Path(value) if value else None
            following = arguments[position + 1 : position + 2]
            return Path(following[0]) if following and not following[0].startswith("--") else None
    return None


def run_as_external_job(directory: Path, work: Work) -> int:
    """Run `work` in a child process and leave exactly one marker in the job directory, last of all.

    Parameters
    ----------
    directory
        The job directory (``--o``); made if it is missing. Markers of an earlier run are removed first.
    work
        Called in the child with ``should_stop``, which tells whether the job was asked to stop: by a signal
        or by RELION's abort file. It returns on success and raises otherwise; `Aborted` when it stopped.
        A child that has not stopped `STOP_GRACE_SECONDS` after it was asked to is killed.

    Returns
    -------
    int
        0 with the success marker, 1 or (wrong usage) 2 with the failure marker, 2 with the aborted marker.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in (EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED):
            (directory / name).unlink(missing_ok=True)
    except OSError as error:
        _complain(f"cannot use the job directory {directory}: {error.strerror}.")
        return 1
    stop = _StopFlag()
    # Were SIGCHLD ignored by whoever started us, the child's status would be lost.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _run_child(work, lambda: stop.raised or os.getppid() != parent)
            if os.getppid() != parent:
                code = _orphaned(directory, code, was_asked_to_stop=stop.raised)
        finally:
            # Whatever happens, the child never returns into the parent's caller.
            os._exit(code)
    status, was_asked_to_stop = _wait(child, stop, directory / ABORT_NOW)
    code = os.waitstatus_to_exitcode(status)
    if code < 0 and not was_asked_to_stop:
        _complain(_why_killed(-code))
    return _mark(directory, code, was_stopped=was_asked_to_stop or code == _CHILD_ABORTED)


def _mark(directory: Path, code: int, *, was_stopped: bool) -> int:
    """Leave the marker for the exit status of the work, and return the job's own."""
    if code == 0:
        marker, result = EXIT_SUCCESS, 0
    elif was_stopped:
        # Obeyed: the next run of the same command must not stop at once.
        (directory / ABORT_NOW).unlink(missing_ok=True)
        marker, result = EXIT_ABORTED, 2
    else:
        marker, result = EXIT_FAILURE, 2 if code == 2 else 1
    try:
        (directory / marker).touch()
    except OSError as error:
        _complain(f"cannot write {directory / marker}: {error.strerror}. Mark the job as failed by hand.")
        return 1
    return result


def _orphaned(directory: Path, code: int, *, was_asked_to_stop: bool) -> int:
    """Leave the marker that the parent, which is no more, would have left."""
    if code == _CHILD_ABORTED and not was_asked_to_stop:
        _complain(
            "the process that watched over this job was killed, so the job has stopped. Continue it: what is "
            "finished is kept."
        )
    return _mark(directory, code, was_stopped=was_asked_to_stop)


def _wait(child: int, stop: _StopFlag, abort_file: Path) -> tuple[int, bool]:
    """Wait for the child, passing a stop request on to it. Returns its status and whether there was one."""
    next_look, kill_at = 0.0, None
    while True:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            return status, kill_at is not None
        now = time.monotonic()
        if kill_at is None:
            if now >= next_look:
                next_look = now + ABORT_POLL_SECONDS
                stop.raised = stop.raised or abort_file.exists()
            if stop.raised:
                os.kill(child, signal.SIGTERM)
                kill_at = now + STOP_GRACE_SECONDS
        elif now >= kill_at:
            os.kill(child, signal.SIGKILL)
        time.sleep(CHILD_POLL_SECONDS)


def _run_child(work: Work, should_stop: Callable[[], bool]) -> int:
    """Run the work and say in one line on stderr why it failed; the exit status."""
    try:
        code = 0
        work(should_stop)
    except Aborted:
        print("\nStopped on request.")
        code = _CHILD_ABORTED
    except CryohushError as error:
        _complain(str(error).replace("--resume", "Continue!"))  # RELION's button
        code = 1
    except ImportError as error:
        _complain(f"{sys.executable} cannot import what cryohush needs: {error}. Install cryohush again.")
        code = 1
    except SystemExit as error:
        # argparse has said what is wrong; anything that ends in here has not done the work.
        code = error.code if isinstance(error.code, int) and error.code else 2
    except BaseException as error:
        if is_out_of_memory(error):
            _complain(f"out of memory. {SMALLER}")
        else:
            traceback.print_exc()
            _complain(f"unexpected {type(error).__name__}: {error}")
        code = 1
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        # A log that cannot be written: most often the disk is full.
        code = code or 1
    return code


def _why_killed(number: int) -> str:
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return f"the job was killed ({name}), most often because the machine ran out of memory. {SMALLER}"
    return f"the job crashed ({name}) in compiled code: torch or the driver may be broken."


def _complain(message: str) -> None:
    # A progress line may be open on a terminal that shows both streams.
    start = "\n" if sys.stdout.isatty() else ""
    # On a full disk even this fails, and the marker still has to be written.
    with contextlib.suppress(OSError):
        print(f"{start}ERROR: {message}", file=sys.stderr, flush=True)
