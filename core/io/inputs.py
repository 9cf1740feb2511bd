"""What a user names as inputs: files, folders and patterns, and a name for what is made of each."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import InputError

# RELION's own tables, which lie in the folders of its jobs and name no images.
_NO_IMAGES = ("job.star", "_pipeline.star")
_TABLES = (".star", ".cs")
# cryoSPARC's files that complete the rows of others.
_PASSTHROUGH = "passthrough"


@dataclass(frozen=True)
class Inputs:
    """What the words of a command line stand for.

    Attributes
    ----------
    paths
        The files, each once.
    is_single
        Whether one word named one file: its result then goes into the output folder itself.
    problems
        What is wrong with words that stand for nothing, by word.
    """

    paths: list[Path]
    is_single: bool
    problems: dict[str, InputError]


def find_inputs(words: Sequence[str], suffixes: Collection[str]) -> Inputs:
    """Return the files that words stand for.

    Parameters
    ----------
    words
        Each a file, a folder or a pattern (`*`, `?`, `**`, `[...]`). A folder stands for its files with one
        of the suffixes, but for hidden ones, cryoSPARC's passthrough files, RELION's tables of jobs, and
        stacks beside a table of the same name.
    suffixes
        In lower case, with the dot.
    """
    if (
        len(words) == 1
        and not Path(words[0]).is_dir()
        and (os.path.lexists(words[0]) or not _is_pattern(words[0]))
    ):
        return Inputs([Path(words[0])], True, {})
    found: dict[str, Path] = {}
    problems: dict[str, InputError] = {}
    for word in words:
        try:
            for path in _files_of(word, suffixes):
                found.setdefault(os.path.realpath(path), path)
        except InputError as error:
            problems[word] = error
    return Inputs(list(found.values()), False, problems)


def folder_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file, all different: of its folder and itself, with its suffix where needed."""
    names = item_names(None, [path.absolute() for path in paths])
    counts = Counter(names)
    taken: set[str] = set()
    for number, (name, path) in enumerate(zip(names, paths, strict=True)):
        free = stem = name if counts[name] == 1 else f"{name}_{path.suffix.lstrip('.')}"
        count = 1
        while free in taken:
            count += 1
            free = f"{stem}_{count}"
        taken.add(free)
        names[number] = free
    return names


def _is_pattern(word: str) -> bool:
    return any(mark in word for mark in "*?[")


def _files_of(word: str, suffixes: Collection[str]) -> list[Path]:
    folder = Path(word)
    if not folder.is_dir():
        return matching(word) if _is_pattern(word) else [folder]
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"the folder cannot be read: {error.strerror or error}.", path=folder) from error
    files = [
        path
        for path in paths
        if path.suffix.lower() in suffixes
        and not path.name.startswith(".")
        and not path.name.endswith(_NO_IMAGES)
        and not (path.suffix == ".cs" and _PASSTHROUGH in path.name)
        and path.is_file()
    ]
    # what a table lists is denoised by it: with its pixel size and CTF, and once
    tables = {path.stem for path in files if path.suffix in _TABLES}
    files = [path for path in files if path.suffix != ".mrcs" or path.stem not in tables]
    if not files:
        kinds = ", ".join(sorted(suffixes))
        raise InputError(f"the folder holds no file with the suffix {kinds}.", path=folder)
    return files


def matching(pattern: str, folder: Path | None = None) -> list[Path]:
    """Return the files that a path or pattern names, sorted; of several names of one file, one.

    A file that is there is meant as it is, however many brackets its name has. Brackets are a class of
    characters (`[0-9]`) where that finds something, and otherwise themselves.

    Parameters
    ----------
    pattern
        With `*`, `?`, `**` and `[...]`.
    folder
        What it is relative to, taken as it is; None is the working directory.

    Raises
    ------
    InputError
        If there is none.
    """
    start = "" if folder is None else f"{glob.escape(str(folder))}/"
    if os.path.lexists(folder / pattern if folder else pattern):
        found = [str(folder / pattern if folder else pattern)]
    else:
        # Path.glob takes no absolute patterns
        found = glob.glob(start + pattern, recursive=True)  # noqa: PTH207
        found = found or glob.glob(start + pattern.replace("[", "[[]"), recursive=True)  # noqa: PTH207
    if not found:
        raise InputError("no such file.", path=folder / pattern if folder else pattern)
    # RELION links a job's alias to its folder: the real name wins
    by_file: dict[str, Path] = {}
    for path in sorted((Path(name).absolute() for name in found), key=_is_linked):
        by_file.setdefault(os.path.realpath(path), path)
    return sorted(by_file.values())


def _is_linked(path: Path) -> bool:
    return os.path.realpath(path) != str(path)


def item_names(name: str | None, paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: of its folder and itself, or the source's, numbered if it has several."""
    if name is None:
        return [re.sub(r"[^\w.+-]+", "_", "_".join([*path.parts[-3:-1], path.stem])) for path in paths]
    return [name] if len(paths) == 1 else [f"{name}_{number}" for number in range(1, len(paths) + 1)]
