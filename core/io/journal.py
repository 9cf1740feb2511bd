"""The journal of a job: whose folder this is, what is finished, and how far the unfinished stacks have come.

One JSON object per line: what the job is going to make, then what `record`, `finish` and `complete` add.
Every line is on disk before the call returns, so that a job killed at any moment goes on where it was. The
journal is also the mark of ownership: a file that it does not name is not the job's to remove.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from ..errors import OutputError
from .files import writing_failed
from .mrc import WriterState

JOURNAL_NAME = ".cryohush-progress.jsonl"
RECORD_NAME = "cryohush.json"
# What the workers of a batch have done of a job, until it is joined.
RANGES_FOLDER = ".cryohush-ranges"


@dataclass(frozen=True)
class Undertaking:
    """What a job is going to make, decided before anything is touched.

    Attributes
    ----------
    job
        Its command, such as `denoise`.
    fingerprint
        What all of the result depends on: options, model, version; JSON-able.
    parts
        What is made piece by piece: its name, and a digest of all that it is made of. A name is a file's
        below the folder, or stands for the files that `Journal.finish` is told.
    files
        The other files, below the folder.
    folders
        Folders that nobody else puts anything into; removed with all that they hold.
    """

    job: str
    fingerprint: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()
    folders: Sequence[str] = ()


class Journal:
    """An open journal, locked against a second job in the same folder; a context manager.

    Attributes
    ----------
    path
        The journal.
    undertaking
        What the job that it belongs to makes; None before `begin` of a new one.
    files, folders
        All that jobs of this journal have ever undertaken to make here.
    states
        Key to the last recorded state of each stack.
    extras
        Key to whatever else was recorded with it last.
    notes
        Key to all notes that were recorded with it, in their order.
    finished
        Keys of what is complete, with the files that it consists of and their sizes in bytes.
    results
        Files of the complete job and their sizes in bytes; None as long as it isn't complete.
    damage
        Why it cannot be resumed; None if it can.

    Parameters
    ----------
    path
        The journal, `JOURNAL_NAME` in the job's folder; made if missing.

    Raises
    ------
    OutputError
        If another job holds the journal, it is not one, or it cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._forget_all()
        try:
            self.is_new = not self.path.exists()
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise writing_failed(self.path, error) from error
        try:
            self._lock()
            self._replay(_complete_lines(self.path.read_bytes()))
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
        except OSError as error:
            os.close(self._descriptor)
            raise writing_failed(self.path, error) from error
        except BaseException:
            os.close(self._descriptor)
            raise

    def _forget_all(self) -> None:
        self.undertaking: Undertaking | None = None
        self.files: dict[str, None] = {}
        self.folders: dict[str, None] = {}
        self.states: dict[str, WriterState] = {}
        self.extras: dict[str, Any] = {}
        self.notes: dict[str, dict[tuple[Any, ...], None]] = {}
        self.finished: dict[str, dict[str, int]] = {}
        self.results: dict[str, int] | None = None
        self.damage: str | None = None
        self._end = 0

    def _lock(self) -> None:
        in_use = OutputError(
            f"{self.path}: another run is writing to this directory. Wait for it or choose another one."
        )
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise  # some network file systems have no locks: then go on without
        # one that came to nothing may have removed the file between its opening here and the lock
        if not self.path.exists() or not os.path.samestat(self.path.stat(), os.fstat(self._descriptor)):
            raise in_use

    def _replay(self, lines: list[bytes]) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                self._take(json.loads(line), first=number == 1)
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                if number == 1:
                    raise OutputError(
                        f"{self.path}, line 1: not a journal of this version of cryohush. Choose another "
                        "output directory."
                    ) from error
                self.damage = f"{self.path}, line {number}: the journal is damaged. Start the run anew."
                return
            self._end += len(line)

    def _take(self, entry: Any, *, first: bool = False) -> None:
        """Take in a line.

        Raises
        ------
        ValueError, TypeError, KeyError, AttributeError
            If it is none of a journal.
        """
        if "job" in entry:
            self._undertake(Undertaking(**entry))
        elif first:
            raise ValueError("the first line says nothing of a job")
        elif "state" in entry:
            self._note(entry["key"], WriterState(**entry["state"]), entry["extra"], list(entry["notes"]))
        elif "finished" in entry:
            self.finished[str(entry["finished"])] = _sizes(entry["files"])
        else:
            self.results = _sizes(entry["complete"])

    def _undertake(self, undertaking: Undertaking) -> None:
        """Take in what a job is going to make; what is made of something else now is forgotten."""
        files = [*undertaking.parts, *undertaking.files]
        for name in (*files, *undertaking.folders):
            _check_below(name)
        if not isinstance(undertaking.fingerprint, dict) or not isinstance(undertaking.parts, dict):
            raise TypeError("not an undertaking")
        known = {} if self.undertaking is None else dict(self.undertaking.parts)
        parts = {**known, **undertaking.parts}
        for key in (*self.states, *self.finished):
            if key in parts and known.get(key) != parts[key]:
                for memory in (self.states, self.extras, self.notes, self.finished):
                    memory.pop(key, None)
        self.undertaking = Undertaking(
            undertaking.job, undertaking.fingerprint, parts, undertaking.files, undertaking.folders
        )
        self.files.update(dict.fromkeys(files))
        self.folders.update(dict.fromkeys(undertaking.folders))
        self.results = None

    def begin(self, undertaking: Undertaking) -> None:
        """Begin anew: all earlier lines go. Remove what they name before, or nobody will.

        Raises
        ------
        OutputError
            If the journal cannot be written.
        """
        self._truncate(0)
        self._forget_all()
        self._append(asdict(undertaking))
        self._undertake(undertaking)

    def go_on(self, undertaking: Undertaking) -> None:
        """Go on with what is there; parts that are made of something else now count as not begun.

        Raises
        ------
        OutputError
            If it is damaged, cannot be written, or belongs to a job with other settings, which are named.
        """
        if self.undertaking is None:
            self.begin(undertaking)
            return
        if self.damage is not None:
            raise OutputError(self.damage)
        if different := self.differences(undertaking):
            raise OutputError(
                f"{self.path}: belongs to a run with other settings ({', '.join(different)}), so it cannot "
                "be resumed. Start the run anew or choose another output directory."
            )
        # a line that a kill has torn goes, so that the next one does not get glued to it
        self._truncate(self._end)
        known = self.undertaking
        if (
            any(known.parts.get(name) != digest for name, digest in undertaking.parts.items())
            or not self.files.keys() >= {*undertaking.parts, *undertaking.files}
            or not self.folders.keys() >= set(undertaking.folders)
        ):
            self._append(asdict(undertaking))
            self._undertake(undertaking)

    def differences(self, undertaking: Undertaking) -> list[str]:
        """Return the names of what is different in another fingerprint."""
        known: Any = {} if self.undertaking is None else self.undertaking.fingerprint
        # as it will look once read back: tuples become lists
        other = json.loads(json.dumps(dict(undertaking.fingerprint)))
        return sorted(key for key in known.keys() | other.keys() if known.get(key) != other.get(key))

    def add_files(self, names: Sequence[str]) -> None:
        """Undertake to make more files, before the first byte of them is written.

        Raises
        ------
        OutputError
            If the journal cannot be written.
        """
        assert self.undertaking is not None  # something was begun
        more = Undertaking(self.undertaking.job, self.undertaking.fingerprint, {}, tuple(names))
        self._append(asdict(more))
        self._undertake(more)

    def record(self, key: str, state: WriterState, extra: Any = None, *, notes: Sequence[Any] = ()) -> None:
        """Note how far a stack has come, and whatever else (JSON-able) belongs to this point.

        `extra` takes the place of what was recorded before, `notes` are added to the earlier ones.

        Raises
        ------
        OutputError
            If the journal cannot be written.
        """
        self._append({"key": key, "state": asdict(state), "extra": extra, "notes": list(notes)})
        self._note(key, state, extra, notes)

    def _note(self, key: str, state: WriterState, extra: Any, notes: Sequence[Any]) -> None:
        self.states[key], self.extras[key] = state, extra
        # a stack that had to be made once more finds the same again
        self.notes.setdefault(key, {}).update(dict.fromkeys(map(tuple, notes)))

    def finish(self, key: str, files: Sequence[str] | None = None) -> None:
        """Note that a part is complete: the file `key`, or these files.

        Raises
        ------
        OutputError
            If the journal cannot be written, or a file is not there.
        """
        sizes = self._measure([key] if files is None else files)
        self._append({"finished": key, "files": sizes})
        self.finished[key] = sizes

    def complete(self, names: Sequence[str]) -> None:
        """Note that all is done and that these are the results.

        Raises
        ------
        OutputError
            If the journal cannot be written, or a result is not there.
        """
        sizes = self._measure(names)
        self._append({"complete": sizes})
        self.results = sizes

    def is_finished(self, key: str) -> bool:
        """Tell whether a part is complete and its files are there in their sizes."""
        return key in self.finished and self._are_there(self.finished[key])

    @property
    def is_complete(self) -> bool:
        """Whether all is done and the results are there in their sizes."""
        return self.results is not None and self._are_there(self.results)

    def _measure(self, names: Sequence[str]) -> dict[str, int]:
        sizes = {}
        for name in names:
            path = self.path.parent / name
            try:
                sizes[name] = path.stat().st_size
            except OSError as error:
                raise writing_failed(path, error) from error
        return sizes

    def _are_there(self, sizes: Mapping[str, int]) -> bool:
        try:
            return all((self.path.parent / name).stat().st_size == size for name, size in sizes.items())
        except OSError:
            return False

    def _truncate(self, end: int) -> None:
        try:
            if os.fstat(self._descriptor).st_size != end:
                os.ftruncate(self._descriptor, end)
            os.lseek(self._descriptor, end, os.SEEK_SET)
        except OSError as error:
            raise writing_failed(self.path, error) from error

    def _append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry).encode() + b"\n"
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._descriptor)
        except OSError as error:
            raise writing_failed(self.path, error) from error
        self._end += len(line)

    def remove(self) -> None:
        """Close the journal and remove its file."""
        self.path.unlink(missing_ok=True)
        self.close()

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


def _check_below(name: Any) -> None:
    """
    Raises
    ------
    ValueError
        If a name, which may be removed some day, leads out of the folder.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"{name!r} is no name below a folder")


def _sizes(entry: Any) -> dict[str, int]:
    sizes = {str(name): int(size) for name, size in entry.items()}
    for name in sizes:
        _check_below(name)
    return sizes
