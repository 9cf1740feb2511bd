"""The folder that a job writes: what may be in it, what is kept and what replaced, for all commands alike.

A folder belongs to the job whose journal lies in it. What that journal names was made by the job and can be
kept or replaced; whatever else is there is somebody's own and is never removed or written over, whichever
words the user gives. The lock is taken before anything is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

from ..errors import InputError, OutputError
from ..io.files import TABLES, file_state, make_folder, part_path, refuse_input, writing_failed
from ..io.journal import JOURNAL_NAME, RECORD_NAME, Journal, Undertaking

Earlier = Literal["refuse", "resume", "replace", "anew"]
"""What to do with an earlier run in the folder.

`refuse`
    Raise; the default of every command.
`resume`
    Go on with it, if it has the same options and model; begin, if there is none.
`replace`
    Remove what it made, and begin.
`anew`
    As `resume`, but a run with other options is replaced: for hosts, whose users change an option and press
    the same button again.
"""


class JobFolder:
    """A folder that is locked for one job, with its journal; a context manager.

    Attributes
    ----------
    path
        The folder.
    journal
        What is done.
    goes_on
        Whether an earlier run of the job is gone on with.

    Parameters
    ----------
    path
        Made if missing.
    undertaking
        What the job is going to make.
    earlier
        What to do with an earlier run.
    inputs
        Files that the job reads.
    log
        Told when there is an earlier run.

    Raises
    ------
    OutputError
        If the folder is in use or holds something that is not this job's to replace, if the job would write
        over its input, or the folder cannot be written to.
    """

    def __init__(
        self,
        path: str | Path,
        undertaking: Undertaking,
        earlier: Earlier = "refuse",
        *,
        inputs: Iterable[Path] = (),
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.path = Path(path)
        self._inputs = {os.path.realpath(path) for path in inputs}
        for name in (*undertaking.parts, *undertaking.files, *undertaking.folders):
            refuse_input(self.path / name, self._inputs)
        make_folder(self.path)
        self.journal = Journal(self.path / JOURNAL_NAME)
        try:
            self.goes_on = self._settle(undertaking, earlier, log)
        except BaseException:
            if self.journal.is_new:
                self.journal.remove()
            self.journal.close()
            raise

    def _settle(self, undertaking: Undertaking, earlier: Earlier, log: Callable[[str], None]) -> bool:
        """Bring folder and journal to where the job begins or goes on; whether it goes on."""
        journal, known = self.journal, self.journal.undertaking
        if known is not None and known.job != undertaking.job:
            raise OutputError(
                f"{self.path} holds another run (of {known.job}), which {undertaking.job} does not replace. "
                "Choose another directory."
            )
        if known is not None and earlier == "refuse":
            name = next((name for name in journal.files if (self.path / name).exists()), JOURNAL_NAME)
            raise OutputError(
                f"{self.path} holds another run ({name}). Resume it (--resume), replace it (--overwrite), or "
                "choose another directory."
            )
        self._refuse_strangers([*undertaking.parts, *undertaking.files, *undertaking.folders])
        differs = bool(journal.differences(undertaking)) or journal.damage is not None
        if known is not None and (earlier == "resume" or (earlier == "anew" and not differs)):
            stale = {
                name for name, digest in undertaking.parts.items() if known.parts.get(name, digest) != digest
            }
            journal.go_on(undertaking)
            for name in stale:
                self.remove(name)
            if journal.is_complete:
                log("an earlier run is there and complete: nothing is left to do")
            else:
                log("an earlier run is there: going on with it")
            return True
        if known is not None:
            if earlier == "anew":
                log("an earlier run is there with other input or options: starting anew")
            self._clear()
        journal.begin(undertaking)
        return False

    def _refuse_strangers(self, names: Iterable[str]) -> None:
        """Raise when something has a name that this job needs and is not of an earlier run of it."""
        ours = {*self.journal.files, *self.journal.folders}
        for name in names:
            if name not in ours and os.path.lexists(self.path / name):
                raise OutputError(
                    f"{self.path} holds another run, or files of your own ({name}), which are not replaced. "
                    "Choose another directory."
                )

    def _clear(self) -> None:
        """Remove what earlier runs of the job have made."""
        names = [*self.journal.files, *self.journal.folders]
        for name in names:
            refuse_input(self.path / name, self._inputs)
        # the record says that a run is complete: it goes first
        for name in sorted(names, key=lambda name: name != RECORD_NAME):
            self.remove(name)

    def remove(self, name: str) -> None:
        """Remove a file or folder of this job, and what it was growing in.

        Raises
        ------
        OutputError
            If it cannot be removed.
        """
        path = self.path / name
        try:
            if name in self.journal.folders and not path.is_symlink():
                if path.is_dir():
                    shutil.rmtree(path)
                return
            path.unlink(missing_ok=True)
            part_path(path).unlink(missing_ok=True)
        except OSError as error:
            raise writing_failed(path, error) from error

    def add_files(self, names: Sequence[str]) -> None:
        """Undertake to make files whose names were not known before, and drop those of an earlier run.

        Raises
        ------
        OutputError
            If one is there that is not of this job, or is an input.
        """
        for name in names:
            refuse_input(self.path / name, self._inputs)
        self._refuse_strangers(names)
        self.journal.add_files(names)

    def refuse_changed(self, states: Mapping[Path, str], result: str) -> None:
        """Remove a result when a file that it was made of is not what it was; see `states_of`.

        A table may have grown meanwhile: it was read when the work began.

        Raises
        ------
        InputError
            Names the first.
        """
        for path, state in states.items():
            if path.suffix not in TABLES and not (path.exists() and file_state(path) == state):
                self.remove(result)
                raise InputError(
                    f"the file was changed while it was in use, so {result} would be of two inputs and was "
                    "not kept.",
                    path=path,
                    remedy="Begin anew.",
                )

    def check_room(self, bytes_needed: int, remedy: str) -> None:
        """
        Parameters
        ----------
        bytes_needed
            What is still to be written.
        remedy
            What else than freeing space or choosing another directory the user can do.

        Raises
        ------
        OutputError
            If the disk is too full.
        """
        free = shutil.disk_usage(self.path).free
        if bytes_needed > free:
            raise OutputError(
                f"{self.path}: the disk is too full: {bytes_needed} bytes are needed, {free} are free. Free "
                f"some space, choose another directory, or {remedy}."
            )

    def close(self) -> None:
        """Let go of the folder."""
        self.journal.close()

    def __enter__(self) -> JobFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # what came to nothing leaves nothing
        if error is not None and not self.goes_on and not self._has_begun():
            with contextlib.suppress(OSError):
                self.journal.remove()
        self.close()

    def _has_begun(self) -> bool:
        journal = self.journal
        paths = [self.path / name for name in (*journal.files, *journal.folders)]
        return bool(journal.states) or any(
            os.path.lexists(one) for path in paths for one in (path, part_path(path))
        )
