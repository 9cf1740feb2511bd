"""What every writer here shares: clear errors for a failing disk, and renaming only what is complete."""

from __future__ import annotations

import errno
import os
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
