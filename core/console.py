"""What a command says to the shell that started it: lines, one line for an error, and an exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import traceback

from .errors import Aborted, CryohushError, missing_package

FAILED, USAGE = 1, 2
"""Exit status after an error, and for wrong usage; 128 and the signal's number after a signal."""

GO_ON = "Run the same command with --resume to go on."


def prepare_streams() -> None:
    """Let lines pass whatever the locale: what it has no letter for becomes `?`, and nobody's closed stream
    is an error."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123  # as long as the process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def say(line: str) -> None:
    """Print a line at once. A reader that has gone (`| head -1`) or a full disk does not end the work."""
    try:
        print(line, flush=True)
    except OSError:
        _to_nowhere("stdout")


def complain(line: str) -> None:
    """Print a line to stderr at once."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _to_nowhere("stderr")


def _to_nowhere(name: str) -> None:
    """Send what is still to come on a stream that is gone to /dev/null, what it has in its buffer too."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, getattr(sys, name).fileno())
        os.close(nowhere)


def exit_status(error: BaseException, received: int | None = None) -> int:
    """Tell the user in one line why a command ended, and return its exit status.

    Parameters
    ----------
    error
        What ended it.
    received
        The signal that asked it to stop, if there was one.
    """
    if isinstance(error, KeyboardInterrupt):
        complain(f"Stopped. {GO_ON}")
        return 128 + signal.SIGINT
    if isinstance(error, Aborted):
        text = str(error)
        complain(text if "resume" in text else f"{text} {GO_ON}")
        return 128 + (received or signal.SIGTERM)
    complain(f"error: {in_one_line(error)}")
    return FAILED


def in_one_line(error: BaseException) -> str:
    """Return what an error says to a user; of one that nobody expected, with a file that holds all of it."""
    if isinstance(error, ModuleNotFoundError):
        try:
            return str(missing_package(error))
        except ModuleNotFoundError:
            return _unexpected(error)
    if isinstance(error, CryohushError):
        return str(error)
    if isinstance(error, MemoryError):
        return "out of memory. Ask for a smaller --batch-size or fewer --threads."
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return f"{where}{error.strerror}."
    return _unexpected(error)


def _unexpected(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="cryohush-", suffix=".txt", delete=False, encoding="utf-8", errors="replace"
        ) as file:
            traceback.print_exception(error, file=file)
    except OSError:
        traceback.print_exception(error)
        return f"unexpected {text}"
    return f"unexpected {text}. This is a fault of cryohush; {file.name} tells its developers where."
