"""The folder that the image names of a table are relative to."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from .mrc_header import HEADER_BYTES

# How much of two files is compared to tell copies from different ones.
_PROBES, _PROBE_BYTES = 16, 4096
# How many of a table's files are compared.
_COMPARED = 8


def find_root(
    path: Path,
    names: list[str],
    root: Path | None,
    error: Callable[[int, str, str], InputError],
    *,
    own_folder_first: bool = False,
    what: str = "the stack",
) -> Path:
    """Return the folder that a table's relative image names start from.

    Parameters
    ----------
    path
        The table.
    names
        The image files, as it names them.
    root
        The folder. None: the first that holds the first file, of the working directory, the table's own
        folder and its parents but `/`.
    error
        Makes an error of the position of a file, the problem and the remedy.
    own_folder_first
        Try the table's own folder before the working directory.
    what
        What a file is, for the error's text.

    Raises
    ------
    InputError
        If a file does not exist or may not be looked at, or if the table's project and the working directory
        both hold such files, and different ones: what `error` made.
    """
    folder = path.absolute().parent
    around = [folder, Path.cwd()] if own_folder_first else [Path.cwd(), folder]
    # `/` is no project: what was absolute and is named below another folder would be found there
    above = [place for place in folder.parents if place != place.parent]
    candidates = [root.absolute()] if root else list(dict.fromkeys([*around, *above]))
    relative = [name for name in names if not Path(name).is_absolute()]
    chosen = candidates[0]
    if relative:
        chosen = next((place for place in candidates if why_no_file(place / relative[0]) is None), chosen)
    missing = {name: reason for name in names if (reason := why_no_file(chosen / name)) is not None}
    if missing:
        name, reason = next(iter(missing.items()))
        count = f" ({len(missing)} of {len(names)} are missing)"
        if reason != _ABSENT:
            raise error(names.index(name), f"{what} {name} {reason}{count}.", "")
        tried = [chosen] if not relative or name != relative[0] else candidates
        places = "" if Path(name).is_absolute() else f" Looked in: {', '.join(map(str, tried))}."
        raise error(
            names.index(name),
            f"{what} {name} {reason}{count}.{places}",
            ""
            if root
            else "Run in the project's directory, or name it with --root where the command has that.",
        )
    # what is relative to the table itself is nowhere else
    if root is None and relative and not (own_folder_first and chosen == folder):
        _refuse_two_projects(chosen, candidates, names, relative[:_COMPARED], error)
    return chosen


_ABSENT = "does not exist"


def why_no_file(path: Path) -> str | None:
    """Return why a path is no file that can be looked at, as the end of a sentence; None if it is one."""
    try:
        return None if stat.S_ISREG(path.stat().st_mode) else "is a folder, a pipe or a device, not a file"
    except ValueError:
        return "has a zero byte in its name"
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "is a link that leads back to itself"
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"cannot be looked at: {error.strerror}{_closed_folder(path)}"
    for place in (path, *path.parents):
        if place.is_symlink():
            return f"is not there: {place} is a link to {place.readlink()}, which does not exist"
        if place.exists():
            break
    return _ABSENT


def _closed_folder(path: Path) -> str:
    """Return, as a clause, the folder on the way to a file that this user may not enter."""
    for folder in reversed(path.absolute().parents):
        if folder.is_dir() and not os.access(folder, os.X_OK):
            return f" (this user may not enter the folder {folder})"
    return ""


def _refuse_two_projects(
    chosen: Path,
    candidates: list[Path],
    names: list[str],
    relative: list[str],
    error: Callable[[int, str, str], InputError],
) -> None:
    """Raise when another folder holds different files of the same names: which ones are meant is a guess."""
    for other in candidates:
        if other == chosen:
            continue
        for name in relative:
            if why_no_file(other / name) is None and not _same_content(chosen / name, other / name):
                raise error(
                    names.index(name),
                    f"{name} is in {chosen} and in {other}, and the two differ.",
                    "Run in the table's project, or name it with --root where the command has that.",
                )


def _same_content(a: Path, b: Path) -> bool:
    """Tell whether two stacks are one, or copies as far as some of their pixels show."""
    size = a.stat().st_size
    if a.samefile(b):
        return True
    if size != b.stat().st_size:
        return False
    try:
        with a.open("rb") as one, b.open("rb") as two:
            for k in range(_PROBES):
                # beyond the header, which may hold the date of a copy
                place = HEADER_BYTES + k * max(0, size - HEADER_BYTES - _PROBE_BYTES) // (_PROBES - 1)
                one.seek(place)
                two.seek(place)
                if one.read(_PROBE_BYTES) != two.read(_PROBE_BYTES):
                    return False
    except OSError:
        return True  # what cannot be read is told of where it is read
    return True
