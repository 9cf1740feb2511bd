"""The journal of a run: what is finished, and how far the unfinished stacks have come.

One JSON object per line: first the fingerprint of the run, then what `record` and `finish` add. Every line is
on disk before the call returns, so that a run killed at any moment goes on where it was.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import OutputError
from .files import write_text, writing_failed
from .mrc import WriterState

JOURNAL_NAME = ".cryohush-progress.jsonl"


class Journal:
    """An open journal, to be made by `Journal.open`; a context manager.

    Attributes
    ----------
    path
        The journal.
    states
        Key to the last recorded state of each stack.
    extras
        Key to whatever else was recorded with it last.
    finished
        Keys of the stacks that are complete.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.states: dict[str, WriterState] = {}
        self.extras: dict[str, Any] = {}
        self.finished: set[str] = set()
        self._descriptor = descriptor

    @classmethod
    def matches(cls, path: str | Path, fingerprint: Mapping[str, Any]) -> bool:
        """Tell whether `path` is the journal of a run with this fingerprint, which can be resumed."""
        try:
            lines = _complete_lines(Path(path).read_bytes())
        except OSError:
            return False
        return bool(lines) and _parse(lines[0]).get("fingerprint") == _as_json(fingerprint)

    @classmethod
    def open(cls, path: str | Path, fingerprint: Mapping[str, Any], *, resume: bool) -> Journal:
        """Open the journal of a run, and lock it against a second run in the same directory.

        Parameters
        ----------
        path
            The journal, `JOURNAL_NAME` in the output directory.
        fingerprint
            Whatever the result depends on (input, model, options), JSON-able.
        resume
            Whether to go on with the journal that is there. Without it, or without a journal, it begins anew.

        Raises
        ------
        OutputError
            If another run holds the journal, it cannot be written, or it shall be resumed but is damaged or
            has another fingerprint.
        """
        path = Path(path)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise writing_failed(path, error) from error
        journal = cls(path, descriptor)
        try:
            journal._lock()
            lines = _complete_lines(path.read_bytes()) if resume else []
            if lines:
                journal._replay(lines, _as_json(fingerprint))
            # A line that a kill has torn goes, so that the next one does not get glued to it.
            os.ftruncate(descriptor, sum(map(len, lines)))
            os.lseek(descriptor, 0, os.SEEK_END)
            if not lines:
                journal._append({"fingerprint": _as_json(fingerprint)})
        except OSError as error:
            os.close(descriptor)
            raise writing_failed(path, error) from error
        except BaseException:
            os.close(descriptor)
            raise
        return journal

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{self.path}: another run is writing to this directory. Wait for it or choose another one."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise  # some network file systems have no locks: then go on without

    def _replay(self, lines: list[bytes], fingerprint: Any) -> None:
        for number, line in enumerate(lines, start=1):
            entry = _parse(line)
            if number == 1:
                _check_fingerprint(self.path, entry.get("fingerprint"), fingerprint)
            elif "state" in entry:
                self.states[entry["key"]] = WriterState(**entry["state"])
                self.extras[entry["key"]] = entry["extra"]
            elif "finished" in entry:
                self.finished.add(entry["finished"])
            else:
                raise OutputError(f"{self.path}, line {number}: the journal is damaged. Start the run anew.")

    def record(self, key: str, state: WriterState, extra: Any = None) -> None:
        """Note how far a stack has come, and whatever else (JSON-able) belongs to this point.

        Raises
        ------
        OutputError
            If the journal cannot be written.
        """
        self._append({"key": key, "state": asdict(state), "extra": extra})
        self.states[key], self.extras[key] = state, extra

    def finish(self, key: str) -> None:
        """Note that a stack is complete.

        Raises
        ------
        OutputError
            If the journal cannot be written.
        """
        self._append({"finished": key})
        self.finished.add(key)

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            raise writing_failed(self.path, error) from error

    def close(self) -> None:
        """Close the journal; closing twice does nothing. The file stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _complete_lines(raw: bytes) -> list[bytes]:
    """Return the lines, without a last one that has no line end."""
    return [line for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]


def _parse(line: bytes) -> dict[str, Any]:
    """Return the object on a line; an empty one when there is none."""
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _as_json(fingerprint: Mapping[str, Any]) -> Any:
    """Return the fingerprint as it will look once read back (tuples become lists)."""
    return json.loads(json.dumps(dict(fingerprint)))


def _check_fingerprint(path: Path, found: Any, expected: dict[str, Any]) -> None:
    if found == expected:
        return
    if not isinstance(found, dict):
        raise OutputError(f"{path}, line 1: not a journal of cryohush. Choose another output directory.")
    different = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    raise OutputError(
        f"{path}: belongs to a run with other settings ({', '.join(different)}), so it cannot be resumed. "
        "Start the run anew or choose another output directory."
    )


def is_continued(path: Path, configuration: str, log: Callable[[str], None]) -> bool:
    """Tell whether an earlier training had the same configuration; note this one otherwise.

    Parameters
    ----------
    path
        Where a training notes its configuration.
    configuration
        All that the result depends on.
    log
        Told when there was an earlier one with another one.

    Raises
    ------
    OutputError
        If it cannot be noted.
    """
    if path.exists():
        if path.read_text(encoding="utf-8") == configuration:
            return True
        log("the options are not those of the earlier run: training begins anew")
    write_text(path, configuration)
    return False
