"""What a job of cryohush says of itself: the command line that it was made by, and a mark of its own.

Both are the last lines of the job's description, where a user can read them, and change an option before a
cloned card runs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__
from ..core.errors import HostError

PROGRAM = "cryosparc_cryohush"
ORIGIN = "Made for the tag of "
_MARK = re.compile(r"cryohush \S+, run [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def new_mark() -> str:
    """Return what no other job has in its description."""
    return f"cryohush {__version__}, run {uuid.uuid4()}"


@dataclass(frozen=True)
class Record:
    """What a job was made for.

    Attributes
    ----------
    command_line
        As a shell takes it.
    mark
        A `new_mark`.
    origin
        What has made it, if not somebody at a shell: the tag of a job.
    """

    command_line: str
    mark: str
    origin: str = ""

    def __str__(self) -> str:
        """Return the lines for a description, which shows the command line as code."""
        return "\n\n".join([f"    {self.command_line}", *([self.origin] if self.origin else []), self.mark])

    @classmethod
    def read(cls, description: str) -> Record | None:
        """Return what a description says, or None if it is none of cryohush's."""
        lines = [line.strip().strip("`") for line in description.splitlines()]
        marks = [found.group() for line in lines if (found := _MARK.search(line))]
        commands = [line for line in lines if _is_command(line)]
        if not marks or not commands:
            return None
        origins = [line for line in lines if line.startswith(ORIGIN)]
        return cls(commands[-1], marks[-1], origins[-1] if origins else "")

    @staticmethod
    def without(description: str) -> str:
        """Return a description without such lines."""
        kept = [
            line
            for line in description.splitlines()
            if not (_MARK.search(line) or _is_command(line) or line.startswith(ORIGIN))
        ]
        return "\n".join(kept).strip()

    @property
    def command(self) -> str:
        """The command, such as `denoise`; empty if there is none."""
        return next(iter(self.command_line.split()[1:]), "")

    @property
    def words(self) -> list[str]:
        """The words of the command line, without the program.

        Raises
        ------
        HostError
            If a quote is not closed.
        """
        try:
            return shlex.split(self.command_line)[1:]
        except ValueError as error:
            raise HostError(f"{self.command_line!r}: is no command line: {error}.") from error


def _is_command(line: str) -> bool:
    return line.strip().strip("`").split(maxsplit=1)[:1] == [PROGRAM]


def given_options(
    build_parser: Callable[[], argparse.ArgumentParser], words: Sequence[str]
) -> dict[str, Any]:
    """Return the options that a command line gives, without those that it leaves at their defaults.

    Raises
    ------
    HostError
        If the parser does not take them.
    """
    parser = build_parser()
    for action in _actions(parser):
        action.default = argparse.SUPPRESS
        action.required = False
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return vars(parser.parse_args(list(words)))
    except SystemExit:
        problem = said.getvalue().strip().splitlines() or ["it does nothing"]
        raise HostError(f"{shlex.join([PROGRAM, *words])!r}: {problem[-1]}") from None


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options of a parser and of its commands."""
    found: list[argparse.Action] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                found += _actions(command)
        else:
            found.append(action)
    return found
