"""Whom a job asks and tells while it runs: one object, whatever the host."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from dataclasses import dataclass

from .errors import Aborted, one_line


@dataclass(frozen=True)
class JobContext:
    """The caller's side of a job: by default nobody listens and nobody stops it, as suits a script.

    Attributes
    ----------
    progress
        Called with how much is done and how much there is in all, once per batch, image or micrograph.
    should_stop
        Asked as often; once it says so, the job raises `Aborted` and leaves what can be resumed.
    log
        Gets the lines that a user should read.
    command
        The command line, for records and reports.
    """

    progress: Callable[[int, int], None] = lambda done, total: None
    should_stop: Callable[[], bool] = lambda: False
    log: Callable[[str], None] = lambda line: None
    command: str | None = None

    def warn(self, line: str) -> None:
        """Tell what the user should worry about; hosts know such a line by its first word."""
        self.log(f"WARNING: {one_line(line)}")

    def stop_if_asked(self, message: str) -> None:
        """
        Raises
        ------
        Aborted
            With `message`, if the caller wants the job to stop.
        """
        if self.should_stop():
            raise Aborted(message)


QUIET = JobContext()
"""Nobody listens."""


def import_torch() -> None:
    """Import torch, and leave all of it out of Python's searches for garbage: nearly a fifth of a small job.

    For programs, before their job. Where torch is there already, somebody else's objects would be left out.
    """
    if "torch" not in sys.modules:
        import torch  # noqa: F401

        gc.freeze()
