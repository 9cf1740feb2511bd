"""What every writer here shares: clear errors for a failing disk, and renaming only what is complete."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import OutputError

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def writing_failed(path: Path, error: OSError, bytes_needed: int | None = None) -> OutputError:
    """Return the error that tells a user why `path` could not be written.

    Parameters
    ----------
    path
        The file as the user will know it.
    error
        What the operating system said.
    bytes_needed
        Size of the whole file, when it is known.
    """
    if error.errno in _DISK_IS_FULL:
        size = "" if bytes_needed is None else f" (the whole file needs {bytes_needed} bytes)"
        return OutputError(
            f"{path}: the disk is full or its quota is used up{size}. Free some space, then run again."
        )
    return OutputError(f"{path}: cannot be written: {error.strerror or error}.")


def part_path(path: Path) -> Path:
    """Return where `path` grows until it is complete."""
    return path.with_name(path.name + ".part")


@contextlib.contextmanager
def writing(path: Path, bytes_needed: int | None = None) -> Iterator[Path]:
    """Yield where a file is to grow; it is synced and gets its name when the block ends, else nothing stays.

    Parameters
    ----------
    path
        The file; one that is there is replaced.
    bytes_needed
        Its size, for the message on a full disk.

    Raises
    ------
    OutputError
        For an `OSError` in the block, or afterwards.
    """
    part = part_path(path)
    try:
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        rename_complete(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise writing_failed(path, error, bytes_needed) from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8, or nothing.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def rename_complete(part: Path, path: Path) -> None:
    """Give the synced file `part` its final name, and sync the directory so that a power cut keeps it."""
    part.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a directory
            raise
    finally:
        os.close(directory)
