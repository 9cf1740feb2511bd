"""What every writer here shares: clear errors for a failing disk, and renaming only what is complete."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CryohushError, InputError, OutputError

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)
# How libraries that are not written in Python tell these two errors.
_FULL_IN_WORDS = ("no space left", "quota exceeded", "os error 28", "os error 122")
# Less room than this beside a file that could not be written, and the disk is taken to be full.
_PROBED_BYTES = 2**20
TABLES = (".star", ".cs")


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
            f"{path}: the disk is full or its quota is used up{size}. Free some space, then go on with "
            "--resume."
        )
    return OutputError(f"{path}: cannot be written: {error.strerror or error}{link_target(path)}.")


def link_target(path: Path) -> str:
    """Return where a broken link on the way to `path` leads, as a clause; nothing where there is none."""
    for place in (path, *path.parents):
        try:
            if place.is_symlink() and not place.exists():
                name = "a link" if place == path else f"{place} is a link"
                return f" ({name} to {place.readlink()}, which is not there)"
        except (OSError, ValueError):
            break
    return ""


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless it is there.

    Raises
    ------
    OutputError
        If it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise writing_failed(path, error) from error


def refuse_input(path: Path, inputs: Collection[str]) -> None:
    """Raise when a file or folder to make is one that the run reads, or holds one.

    Parameters
    ----------
    inputs
        Real paths of what it reads.

    Raises
    ------
    OutputError
        Names it.
    """
    real = Path(os.path.realpath(path))
    if str(real) in inputs or (real.is_dir() and any(real in Path(one).parents for one in inputs)):
        raise OutputError(
            f"{path} is an input of this run and is never written to. Choose another directory."
        )


def part_path(path: Path) -> Path:
    """Return where `path` grows until it is complete."""
    return path.with_name(path.name + ".part")


def new_part(path: Path) -> int:
    """Make the empty `.part` file of `path` and return its descriptor, open for reading and writing.

    Whatever lies there is removed first, and nothing is ever written through a link: in a folder that others
    may write to, a link of theirs would lead to any file of the user's.
    """
    part = part_path(path)
    part.unlink(missing_ok=True)
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def has_part(path: Path) -> bool:
    """Tell whether the `.part` file of `path` is there, as a file and not as a link to one."""
    part = part_path(path)
    return part.is_file() and not part.is_symlink()


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
        For an `OSError` in the block, or afterwards; and for any other exception when the disk is full, as
        the libraries that write weights and figures have exceptions of their own for that.
    """
    part = part_path(path)
    try:
        os.close(new_part(path))
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        rename_complete(part, path)
    except BaseException as error:
        failure = _failure(path, error, bytes_needed)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if failure is None:
            raise
        raise failure from error


def _failure(path: Path, error: BaseException, bytes_needed: int | None) -> OutputError | None:
    """Return what went wrong with writing `path`; None if the reason lies elsewhere."""
    if isinstance(error, CryohushError) or not isinstance(error, Exception):
        return None
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    chain: list[BaseException] = [error]
    while (reason := chain[-1].__cause__ or chain[-1].__context__) is not None and reason not in chain:
        chain.append(reason)
    system = [one for one in chain if isinstance(one, OSError)]
    if any(one.errno in _DISK_IS_FULL for one in system):
        return writing_failed(path, full, bytes_needed)
    if isinstance(error, OSError):
        return writing_failed(path, error, bytes_needed)
    if any(words in str(error).lower() for words in _FULL_IN_WORDS) or _has_no_room(part_path(path)):
        return writing_failed(path, full, bytes_needed)
    return None


def _has_no_room(part: Path) -> bool:
    """Tell whether the disk or the quota takes no more of an unfinished file, by trying."""
    try:
        with part.open("ab", buffering=0) as file:
            left = _PROBED_BYTES
            while left > 0:
                left -= file.write(b"\0" * left)
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno in _DISK_IS_FULL
    return False


def write_text(path: Path, text: str) -> None:
    """Write a whole text file in UTF-8, or nothing.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an indented JSON file, or nothing.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_text(path, json.dumps(content, indent=2) + "\n")


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


def file_state(path: Path) -> str:
    """Return a file's place, size and time: what changes when it is replaced, without reading it.

    Raises
    ------
    InputError
        If it is gone.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}.", path=path) from error
    return f"{path.absolute()}\0{status.st_size} {status.st_mtime_ns}"


def states_of(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the state of each file: of a table its text, of others their `file_state`.

    Hosts write a job's tables anew whenever it goes on.

    Raises
    ------
    InputError
        If one is gone.
    """
    return {
        path: sha256_of(path, salt=str(path.absolute())) if path.suffix in TABLES else file_state(path)
        for path in paths
    }


def digest_of(states: Mapping[Path, str]) -> str:
    """Return one digest of the states of files; see `states_of`."""
    text = "".join(f"{state}\n" for state in states.values())
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def sha256_of(*paths: Path, salt: str = "") -> str:
    """Return the SHA-256 of files one after the other, and of a text before them.

    Raises
    ------
    InputError
        If one cannot be read.
    """
    digest = hashlib.sha256(salt.encode(errors="surrogateescape"))
    for path in paths:
        try:
            with path.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}.", path=path) from error
    return digest.hexdigest()
