"""The way back: a table of denoised images, whatever became of its rows, with their raw images again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CsError, InputError, OutputError, StarError
from ..io.cs import CS_SUFFIX, CsTable, read_images, restore_images
from ..io.image_names import split_image_name
from ..io.image_set import PREVIOUS
from ..io.journal import RECORD_NAME
from ..io.mrc_header import HEADER_BYTES, denoised_label
from ..io.star import Table, read_tables, rewrite, unquote

_PARTICLE, _MICROGRAPH = "rlnImageName", "rlnMicrographName"
# Where a table keeps the raw names, by the column of the images; the first that is there.
_RAW = {
    _PARTICLE: ("rlnImageOriginalName",),
    _MICROGRAPH: ("rlnCryohushRawMicrographName", "rlnImageOriginalName"),
}
# Texts that stand for no name, as RELION writes them where tables are joined.
_NO_NAME = ("", "None", "none", "Unknown")


@dataclass(frozen=True)
class Restored:
    """What became of a table.

    Attributes
    ----------
    n_rows, n_restored
        All rows, and those that name another image now; the others had raw images already.
    n_missing, missing
        Raw files that could not be found, and the first of them.
    """

    n_rows: int
    n_restored: int
    n_missing: int = 0
    missing: str = ""


def restore(
    source: str | Path, destination: str | Path, *, root: Path | None = None, raw: Path | None = None
) -> Restored:
    """Write a table of denoised images with their raw images; every other column keeps its text.

    Rows are taken one by one, so that the table may be a selection, in another order, or joined of several
    runs and of rows with raw images, which stay as they are. An image is a denoised one if the header of its
    file says so; of a file that is gone, if the table names a raw one.

    Parameters
    ----------
    source
        A table of particles or micrographs (`.star`), or cryoSPARC's of particles (`.cs`).
    destination
        The new table, of the same kind.
    root
        Folder that image names are relative to; None is looked for.
    raw
        For a `.cs` file, the table that was denoised; None: what the record beside the stacks names.

    Raises
    ------
    InputError
        If the raw image of a row is not known, or no row has a denoised image.
    OutputError
        If the new table cannot be written, or is there already.
    """
    source, destination = Path(source), Path(destination)
    suffix = source.suffix.lower()
    if suffix not in (".star", CS_SUFFIX) or destination.suffix.lower() != suffix:
        expected = suffix if suffix in (".star", CS_SUFFIX) else ".star or .cs"
        found = destination if suffix == expected else source
        raise InputError(f"expected a table ({expected}), found another kind of file.", path=found)
    if os.path.lexists(destination) and not (destination.exists() and destination.samefile(source)):
        raise OutputError(f"{destination}: is there already, and is not replaced. Choose another name.")
    if suffix == CS_SUFFIX:
        return _restore_cs(source, destination, root, raw)
    if raw is not None:
        raise InputError("a STAR file names its raw images itself: leave --raw out.", path=source)
    return _restore_star(source, destination, root)


def _restore_star(source: Path, destination: Path, root: Path | None) -> Restored:
    label = _image_label(source)
    is_target = _has(label)
    table = next(table for table in read_tables(source) if is_target(table))
    raw_label = next((name for name in _RAW[label] if name in table.labels), None)
    if raw_label is None:
        raise StarError(
            f"data_{table.name} has no column _{' or _'.join(_RAW[label])}, which names the raw images.",
            path=source,
            line=table.line,
            remedy="Give a table that cryohush wrote, or a selection from it.",
        )
    previous = [name for name in table.labels if name.startswith(PREVIOUS)]
    columns = [table.column(name) for name in (label, raw_label, *previous)]
    rows = _rows(source, is_target)
    files = _Files(source, root, (_file_of(values[columns[0]]) for _, values in rows))
    rows = _rows(source, is_target)
    n_rows = n_restored = 0
    raw_files: dict[str, None] = {}

    def edit(values: list[bytes]) -> list[bytes]:
        nonlocal n_rows, n_restored
        line, _ = next(rows)
        image, *originals = [values[column] for column in columns]
        n_rows += 1
        if files.are_raw(image):
            return [values[column] for column in columns[:2]]
        for number, original in enumerate(originals):
            if unquote(original) in _NO_NAME or files.were_denoised(original):
                continue
            n_restored += original != image
            raw_files.setdefault(_file_of(original))
            # the name that the table had in this column before it was denoised, if it had one
            kept = originals[number + 1] if number + 1 < len(originals) else original
            return [original, kept]
        raise StarError(
            f"the raw image of {unquote(image)} is not known: _{raw_label} is {unquote(originals[0])!r}.",
            path=source,
            line=line,
            remedy="Restore the tables before they are joined, or leave this row out.",
        )

    def check() -> None:
        if not n_restored:
            raise InputError(
                f"expected denoised images, found {n_rows} rows whose images are raw.", path=source
            )

    rewrite(source, destination, is_target, [label, raw_label], edit, before_rename=check)
    missing = [name for name in raw_files if files.find(name) is None]
    return Restored(n_rows, n_restored, len(missing), missing[0] if missing else "")


def _image_label(source: Path) -> str:
    """Return the column of the images: of particles, if there are any, else of micrographs."""
    found = {label for table in read_tables(source) for label in table.labels}
    for label in _RAW:
        if label in found:
            return label
    raise StarError(f"no table with _{_PARTICLE} or _{_MICROGRAPH} found.", path=source)


def _has(label: str) -> Callable[[Table], bool]:
    return lambda table: label in table.labels


def _rows(source: Path, is_target: Callable[[Table], bool]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the line and the values of each row."""
    for table in read_tables(source):
        if is_target(table):
            yield from ((line, values) for line, _, values in table.rows() if values)


def _file_of(token: bytes) -> str:
    """Return the file of an image name (`000001@stack` or a file)."""
    return split_image_name(unquote(token))[1]


class _Files:
    """What is known of the files that a table names.

    All names are relative to one folder: that in which most of the images are, and of several the one in
    which they are denoised (a run keeps the names of its stacks, so that raw ones of the same name may lie
    elsewhere).

    Parameters
    ----------
    source
        The table.
    root
        The folder; None is looked for: the working directory, that of the table, those above it.
    images
        The files of its images.
    """

    def __init__(self, source: Path, root: Path | None, images: Iterable[str]) -> None:
        folder = source.absolute().parent
        names = list(dict.fromkeys(name for name in images if not Path(name).is_absolute()))
        places = [root] if root else list(dict.fromkeys([Path.cwd(), folder, *folder.parents]))
        found = {place: [place / name for name in names if (place / name).is_file()] for place in places}
        most = max(map(len, found.values()))
        best = [place for place in places if len(found[place]) == most]
        self._root = max(best, key=lambda place: any(map(_says_denoised, found[place]))) if most else best[0]
        self._denoised: dict[str, bool | None] = {}

    def find(self, name: str) -> Path | None:
        """Return where a file is; None if it cannot be found."""
        path = self._root / name
        return path if path.is_file() else None

    def were_denoised(self, token: bytes) -> bool:
        """Tell whether the file of an image says that it was denoised."""
        return self._look(_file_of(token)) is True

    def are_raw(self, token: bytes) -> bool:
        """Tell whether the file of an image is there and does not say that it was denoised."""
        return self._look(_file_of(token)) is False

    def _look(self, name: str) -> bool | None:
        if name not in self._denoised:
            path = self.find(name)
            self._denoised[name] = None if path is None else _says_denoised(path)
        return self._denoised[name]


def _says_denoised(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return bool(denoised_label(file.read(HEADER_BYTES)))
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}.", path=path) from error


def _restore_cs(source: Path, destination: Path, root: Path | None, raw: Path | None) -> Restored:
    table = CsTable(source)
    images = read_images(table)
    files = _Files(source, source.absolute().parent if images.beside else root, images.stack_names)
    raws: dict[Path, int] = {}
    raw_of_stack = []
    for name in images.stack_names:
        if files.are_raw(os.fsencode(name)):
            raw_of_stack.append(-1)
            continue
        of_stack = raw or _recorded_source(source, name, files.find(name))
        raw_of_stack.append(raws.setdefault(of_stack, len(raws)))
    raw_of_row = np.array(raw_of_stack, np.int32)[images.stack]
    n_restored = int((raw_of_row >= 0).sum())
    if not n_restored:
        raise CsError(f"expected denoised images, found {len(table)} rows whose images are raw.", path=source)
    restore_images(table, [CsTable(path) for path in raws], raw_of_row, destination)
    return Restored(len(table), n_restored)


def _recorded_source(source: Path, name: str, stack: Path | None) -> Path:
    """Return the table of which a stack was denoised, by the record of that run."""
    record = (None if stack is None else _record_above(stack)) or _record_above(source.absolute())
    if record is None:
        raise CsError(
            f"no {RECORD_NAME} of the run that denoised {name} is beside it.",
            path=source,
            remedy="Name the table that was denoised: --raw J42/particles.cs.",
        )
    return record


def _record_above(path: Path) -> Path | None:
    """Return the input that the nearest record of a denoising run above a file names."""
    for folder in path.parents:
        try:
            record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and str(record.get("input", "")).endswith(CS_SUFFIX):
            return Path(record["input"])
    return None
