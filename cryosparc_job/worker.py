"""The work in a process of its own, which the one that talks to cryoSPARC survives, whatever ends it.

The child is `python -m cryohush.cryosparc_job.work`. It is given what to do as JSON on its standard input and
answers in lines of JSON on its standard output; any other line there is somebody else's print or warning.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.errors import CryohushError

COMMAND = (sys.executable, "-m", "cryohush.cryosparc_job.work")
# SLURM follows SIGTERM with SIGKILL after half a minute; the job has to be ended by then.
STOP_GRACE_SECONDS = 15.0
_POLL_SECONDS = 0.2
_LAST_LINES = 60
_SECRET_NAMES = ("PASSWORD", "LICENSE")

SMALLER = "Ask for a smaller --batch-size, or for a machine with more memory."


class WorkFailed(CryohushError):
    """The work went wrong.

    Attributes
    ----------
    details
        What whoever looks for the reason needs to see: a traceback, the last lines of output.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


def run_work(
    task: Mapping[str, Any],
    on_message: Callable[[dict[str, Any]], None],
    on_tick: Callable[[], None],
    *,
    umask: int = -1,
    keep_open: Sequence[int] = (),
) -> dict[str, Any]:
    """Run a task in a child and return its result.

    Parameters
    ----------
    task
        What `work.main` reads.
    on_message
        Gets what the child says while it works.
    on_tick
        Called every fraction of a second. What it raises stops the child.
    umask
        Of the child; -1 is that of this process.
    keep_open
        File descriptors that the child holds as long as it lives: locks.

    Raises
    ------
    WorkFailed
        If the child says that it failed, or ends without a result.
    """
    child = subprocess.Popen(
        COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=without_secrets(os.environ),
        # Ctrl-C at the terminal reaches the parent only, which decides.
        start_new_session=True,
        umask=umask,
        pass_fds=tuple(keep_open),
    )
    try:
        return _follow(child, task, on_message, on_tick)
    except BaseException:
        _stop(child)
        raise
    finally:
        if child.stdout is not None:
            child.stdout.close()


def check(task: Mapping[str, Any]) -> None:
    """Let a child look whether what a task needs is there, before a job is made.

    Raises
    ------
    WorkFailed
        If it is not.
    """
    run_work({**task, "task": "check"}, lambda message: None, lambda: None)


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment is for the eyes of a child."""
    return {
        name: value
        for name, value in environment.items()
        if not (name.startswith("CRYOSPARC") and any(word in name for word in _SECRET_NAMES))
    }


def _follow(
    child: subprocess.Popen[bytes],
    task: Mapping[str, Any],
    on_message: Callable[[dict[str, Any]], None],
    on_tick: Callable[[], None],
) -> dict[str, Any]:
    """Hear what the child says until it ends."""
    if child.stdin is None or child.stdout is None:
        raise ValueError("the child has no pipes")
    with contextlib.suppress(BrokenPipeError), child.stdin as pipe:  # one that died at once is heard of below
        pipe.write(json.dumps(task).encode())
    child.stdin = None
    answer: dict[str, Any] = {}
    output: deque[str] = deque(maxlen=_LAST_LINES)
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            if selector.select(_POLL_SECONDS):
                data = os.read(child.stdout.fileno(), 65536)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    message = _message(line)
                    if message is None:
                        output.append(line.decode(errors="replace"))
                        with contextlib.suppress(OSError):  # nobody reads it any more
                            print(output[-1], file=sys.stderr, flush=True)
                    elif "result" in message or "error" in message:
                        answer = message
                    else:
                        on_message(message)
            on_tick()
    code = child.wait()
    if code == 0 and "result" in answer:
        result: dict[str, Any] = answer["result"]
        return result
    details = answer.get("details") or "\n".join([*output, rest.decode(errors="replace")])
    raise WorkFailed(answer.get("error") or _why_ended(code), details)


def _message(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _why_ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return f"the work was killed (SIGKILL), most often because the memory was used up. {SMALLER}"
    if code < 0:
        name = signal.Signals(-code).name
        return f"the work crashed ({name}) in compiled code: torch or the driver may be broken."
    return f"the work ended without a result (exit status {code})."


def _stop(child: subprocess.Popen[bytes]) -> None:
    """Ask the child to stop, then make it."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        # what it still says is read: a child that cannot write would not end
        child.communicate(timeout=STOP_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
