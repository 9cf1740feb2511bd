"""What a job says: in RELION's `run.out`, with progress in one line, and in `run.err`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from .. import __version__
from ..core.progress import ProgressText
from .project import Project

PROGRESS_SECONDS = 2.0
# Conspicuous images that are named one by one; RELION's GUI shows the last ten lines.
WARNINGS = 8


def begin_log(project: Project, command: str) -> None:
    """Say which cryohush runs what for whom."""
    host = f"project of RELION {project.version}" if project.version else "not started by RELION"
    say(f"cryohush {__version__}, {host}\ncommand: {command}")


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def warn(lines: Sequence[str], in_all: str = "") -> None:
    """Print the first few of some warnings, and how many there are, if `in_all` says of what."""
    for line in lines[:WARNINGS]:
        print(f"WARNING: {line}", file=sys.stderr, flush=True)
    if lines and in_all:
        print(f"WARNING: {len(lines)} {in_all}", file=sys.stderr, flush=True)


class ProgressLine:
    """One line on stdout that is drawn again and again, as RELION's own programs do it.

    The carriage return stands in front: RELION's GUI shows what follows the last one. Lines are at least
    `PROGRESS_SECONDS` apart, because the log file keeps them all.
    """

    def __init__(
        self,
        noun: str = "particles",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._text, self._stream, self._clock = ProgressText(noun, clock), stream or sys.stdout, clock
        self._last = clock()

    def __call__(self, done: int, total: int) -> None:
        """Draw the line when it is due; the last one ends with a line feed."""
        text, now = self._text(done, total), self._clock()
        if done < total and now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        print(f"\r{text:<78}", end="\n" if done >= total else "", file=self._stream, flush=True)
