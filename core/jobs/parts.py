"""Parts of a job on their way: a worker does one into a folder, the driver takes it from there.

A worker writes into a folder that has no second owner, and gives it its final name when all of it is on
disk. So a worker that is killed, or that freezes and wakes up after another one has done its work, can spoil
nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import OutputError
from ..io.files import make_folder, rename_complete, writing_failed
from ..io.journal import RANGES_FOLDER

# A part has at least so many bytes, however small the job: less is not worth the way to a worker.
SMALLEST_PART_BYTES = 2**22
# A job has about so many parts or more, so that all workers have some and none waits long for the last one.
FEWEST_PARTS = 64
NOTES_NAME = "notes.json"
# A shared file system may show a folder of another machine's only after a while.
_SECONDS_TO_APPEAR = 60.0


def limit_bytes(total: int, part_bytes: int) -> int:
    """Return how many bytes of pixels make a part of a job with `total` bytes."""
    return min(part_bytes, max(SMALLEST_PART_BYTES, total // FEWEST_PARTS))


@contextlib.contextmanager
def own_folder(output_dir: Path) -> Iterator[Path]:
    """Yield a folder for the parts of one run; it goes afterwards, and workers that are still at one stop."""
    folders = output_dir.absolute() / RANGES_FOLDER
    # what workers of an earlier driver have left
    shutil.rmtree(folders, ignore_errors=True)
    own = folders / uuid.uuid4().hex
    try:
        make_folder(own)
        yield own
    finally:
        shutil.rmtree(folders, ignore_errors=True)


def do_in_folder(folder: Path, do: Callable[[Path], Mapping[str, Any]]) -> None:
    """Do a part into its folder, which appears when all of it is on disk; for a worker.

    Parameters
    ----------
    folder
        What it becomes, in a folder of this run alone, which is there as long as the run waits. If another
        worker was quicker, its folder stays: the same images are there.
    do
        Given a folder to write to, does the part, and returns what is to be said of it, JSON-able. When that
        folder is gone, nobody waits for the part any more.

    Raises
    ------
    CryohushError
        What `do` raises; nothing stays behind.
    OutputError
        If the disk is full or fails.
    """
    attempt = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}")
    try:
        attempt.mkdir()
        _write_notes(attempt, do(attempt))
        with contextlib.suppress(FileExistsError, IsADirectoryError):
            _rename_folder(attempt, folder)
    except OSError as error:
        raise writing_failed(folder, error) from error
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


def _write_notes(folder: Path, notes: Mapping[str, Any]) -> None:
    """Write what a worker has to say of a part, once all else in its folder is on disk."""
    with (folder / NOTES_NAME).open("w", encoding="utf-8") as file:
        json.dump(notes, file)
        file.flush()
        os.fsync(file.fileno())


def _rename_folder(folder: Path, name: Path) -> None:
    try:
        rename_complete(folder, name)
    except OSError as error:
        if not name.is_dir():
            raise
        raise FileExistsError(str(name)) from error


def read_notes(folder: Path) -> dict[str, Any]:
    """Return what a worker noted, once its folder is to be seen.

    Raises
    ------
    OutputError
        If it does not appear.
    """
    deadline = time.monotonic() + _SECONDS_TO_APPEAR
    while True:
        try:
            notes: dict[str, Any] = json.loads((folder / NOTES_NAME).read_text("utf-8"))
            return notes
        except OSError as error:
            if time.monotonic() > deadline:
                raise OutputError(
                    f"{folder}: a worker has finished it, but it cannot be seen here "
                    f"({error.strerror}). Do driver and workers see the same file system?"
                ) from error
        list(folder.parent.iterdir())  # makes a network file system look again
        time.sleep(0.2)


def move_files(names: Sequence[str], folder: Path, output_dir: Path) -> None:
    """Move files that a worker has finished to where they belong, in this order, and remove the folder.

    Raises
    ------
    OutputError
        If one cannot be moved.
    """
    for name in names:
        path = output_dir / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            rename_complete(folder / name, path)
        except OSError as error:
            raise writing_failed(path, error) from error
    shutil.rmtree(folder, ignore_errors=True)
