"""What a command says to the shell that started it: lines, one line for an error, and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from .errors import Aborted, CryohushError, OutputError, is_out_of_memory, missing_package, one_line

FAILED, USAGE = 1, 2
"""Exit status after an error, and for wrong usage; 128 and the signal's number after a signal."""

GO_ON = "Run the same command with --resume to go on."
WARNING = "warning:"
"""What the lines begin with that are said even by --quiet, to stderr."""

# What ends so is data, to which a line does harm.
_DATA = (".mrc", ".mrcs", ".star", ".cs", ".csg")


@dataclass
class _Manner:
    """How this process speaks: it has one terminal, so there is one manner."""

    quiet: bool = False
    verbose: bool = False
    log: TextIO | None = None


_manner = _Manner()


@contextlib.contextmanager
def speaking(
    *, quiet: bool = False, verbose: bool = False, log_file: str | Path | None = None
) -> Iterator[None]:
    """Say less, or more, or to a file as well, for as long as the block lasts.

    Parameters
    ----------
    quiet
        Warnings and errors only.
    verbose
        Of an error the traceback, too.
    log_file
        Everything that is said is appended to it, with the time, whatever the terminal gets.

    Raises
    ------
    OutputError
        If the file cannot be written to.
    """
    global _manner
    earlier = _manner
    with contextlib.ExitStack() as opened:
        log = None
        if log_file is not None:
            if Path(log_file).suffix.lower() in _DATA:
                raise OutputError(
                    f"{log_file}: lines are not appended to images or tables. Name a .log file."
                )
            try:
                log = Path(log_file).open("a", encoding="utf-8", errors="replace", buffering=1)  # noqa: SIM115
            except OSError as error:
                raise OutputError(
                    f"{log_file}: cannot be written: {error.strerror or error}. Name a file in a folder that "
                    "is there."
                ) from error
            opened.callback(_close, log)
        _manner = _Manner(quiet, verbose, log)
        try:
            yield
        finally:
            _manner = earlier


def _close(file: TextIO) -> None:
    with contextlib.suppress(OSError):  # what a full disk has not taken
        file.close()


class CommandParser(argparse.ArgumentParser):
    """Names the option that was meant where a command does not know one."""

    def parse_known_args(  # type: ignore[override]  # the overloads of typeshed differ in the namespace only
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """See `argparse.ArgumentParser`; here an unknown word of a command is an error of that command."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown and self._subparsers is None:
            options = [name for name in self._option_string_actions if name.startswith("--")]
            wrong = next((word for word in unknown if word.startswith("-")), None)
            near = difflib.get_close_matches((wrong or "").split("=")[0], options, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return found, unknown


def is_quiet() -> bool:
    """Whether only warnings and errors are wanted."""
    return _manner.quiet


def note(line: str) -> None:
    """Write a line to the log file, if there is one, and nowhere else."""
    if _manner.log is not None:
        now = time.strftime("%Y-%m-%dT%H:%M:%S")
        with contextlib.suppress(OSError):  # a full disk: the work itself will tell
            _manner.log.writelines(f"{now} {part}\n" for part in line.split("\n"))


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
    if _manner.quiet:
        complain(line) if line.lower().startswith(WARNING) else note(line)
        return
    note(line)
    show(line)


def show(text: str) -> None:
    """Print what was asked for, quiet or not, and not to the log file."""
    try:
        print(text, flush=True)
    except OSError:
        _to_nowhere("stdout")


def complain(line: str) -> None:
    """Print a line to stderr at once."""
    note(line)
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
    if _manner.verbose:
        complain("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, KeyboardInterrupt):
        complain(f"Stopped. {GO_ON}")
        return 128 + signal.SIGINT
    if isinstance(error, Aborted):
        text = str(error)
        complain(text if "resume" in text else f"{text.removesuffix('.')}. {GO_ON}")
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
    if is_out_of_memory(error):
        return "out of memory. Ask for a smaller --batch-size or fewer --threads."
    if isinstance(error, OSError) and error.strerror:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return one_line(f"{where}{error.strerror}.")
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
    return f"unexpected {text}. This is a fault in cryohush; {file.name} tells its developers where."
