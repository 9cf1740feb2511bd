"""What tables of particles and of micrographs have in common: rows that name image files."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, StarError, several
from .columns import Columns, find_table, read_columns
from .image_names import same_file, split_image_name, without_dots
from .mrc import StackReader
from .optics import OpticsGroup
from .star import Table, decode, encode, free_label, quote, rewrite, unquote

#: where a table of denoised images keeps original names that its source had; `…2`, `…3` of earlier ones
PREVIOUS = "rlnCryohushPreviousOriginalName"
#: of particles and micrographs
_IMAGES = ("rlnImageName", "rlnMicrographName")


def refuse_others(table: Table) -> None:
    """Raise for tables whose images cannot be taken.

    Those are of tilt series, tomograms or subtomograms, by RELION 4's and 5's columns of these; and lists, as
    some programs write a table of one row: their images have no row to rewrite.

    Raises
    ------
    StarError
        Names the column.
    """
    for label in _IMAGES:
        if label in table.values:
            raise StarError(
                f"data_{table.name} is a list (_{label} and its value in one line), not a table.",
                path=table.path,
                line=table.line,
                remedy="Write its labels below loop_, and the values in a row below them.",
            )
    labels = [*table.labels, *table.values]
    found = next((label for label in labels if label.startswith("rlnTomo")), None)
    # single particles may have a table that says that they are none
    if found is None or unquote(table.values.get(found, b"1")) in ("0", ""):
        return
    raise StarError(
        f"tomography ({found}) is not supported: tilt images and subtomograms are noisier than what the "
        "models know.",
        path=table.path,
        line=table.line,
        remedy="Give micrographs or particles of single-particle data.",
    )


@dataclass(frozen=True)
class Examined:
    """What a look at the files of a set has found, by position in `ImageSet.stacks`.

    Attributes
    ----------
    shapes
        `(n, y, x)` of the sound files.
    damaged
        What is wrong with the others.
    remarks
        What a user should know of how a sound file is read.
    denoised
        The label of a sound file that says so (`mrc_header.denoised_label`).
    pixel_sizes
        What the header of a sound file says, Å; None where it does not.
    """

    shapes: dict[int, tuple[int, int, int]]
    damaged: dict[int, InputError]
    remarks: dict[int, list[str]]
    denoised: dict[int, str]
    pixel_sizes: dict[int, float | None]


@dataclass(frozen=True, eq=False)
class ImageSet(ABC):
    """A table of images, in the order of its rows.

    Attributes
    ----------
    source
        The table, or the image file itself.
    has_table
        Whether `source` is a table. A bare file has one row per image and nothing to rewrite.
    root
        Folder against which relative names were resolved.
    stacks
        Paths of the files, each once; two spellings of a name (`x.mrcs`, `./x.mrcs`) are one file.
    stack_names
        Their names as first written in the table.
    stack
        int32 `(n,)`: position in `stacks`, per row.
    line
        int32 `(n,)`: line of the STAR file, 1-based, per row; 0 where there are no lines.
    optics_group
        int32 `(n,)`: key into `optics`, per row.
    optics
        The optics groups by number.
    kept
        Which rows of the table are in the set; None is all of them.
    """

    source: Path
    has_table: bool
    root: Path
    stacks: list[Path]
    stack_names: list[str]
    stack: NDArray[np.int32]
    line: NDArray[np.int32]
    optics_group: NDArray[np.int32]
    optics: dict[int, OpticsGroup]
    kept: NDArray[np.bool_] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.stack)

    def pixel_size_angstrom(self, stack_index: int) -> float | None:
        """Return the pixel size of a file in Å, by the optics group of its first row; None if unknown."""
        return self._optics_of(stack_index).pixel_size_angstrom

    def pixel_size_source(self, stack_index: int) -> str:
        """Return what says the pixel size of a file; empty if nothing does."""
        return self._optics_of(stack_index).pixel_size_source

    def _optics_of(self, stack_index: int) -> OpticsGroup:
        first_row = int(np.argmax(self.stack == stack_index))
        return self.optics[int(self.optics_group[first_row])]

    def without(self, stacks: Collection[int]) -> Self:
        """Return the set without the rows of some files, by their positions in `stacks`."""
        return self._of_rows(~np.isin(self.stack, list(stacks)))

    def first(self, n_rows: int) -> Self:
        """Return the set of the first rows; all of it where there are not more."""
        return self if n_rows >= len(self) else self._of_rows(np.arange(len(self)) < n_rows)

    def _of_rows(self, kept: NDArray[np.bool_]) -> Self:
        """Return the set of some rows and of the files that they name."""
        left = np.unique(self.stack[kept]).tolist()
        number = np.full(len(self.stacks), -1, dtype=np.int32)
        number[left] = np.arange(len(left), dtype=np.int32)
        rows = np.ones(len(self), dtype=np.bool_) if self.kept is None else self.kept.copy()
        rows[np.flatnonzero(rows)] = kept
        return dataclasses.replace(
            self,
            stacks=[self.stacks[position] for position in left],
            stack_names=[self.stack_names[position] for position in left],
            stack=number[self.stack[kept]],
            line=self.line[kept],
            optics_group=self.optics_group[kept],
            kept=rows,
            **self._rows_without(kept, number),
        )

    def _rows_without(self, kept: NDArray[np.bool_], number: NDArray[np.int32]) -> dict[str, Any]:
        """Return what `_of_rows` changes beyond the attributes of every set."""
        return {}

    def examine(self) -> Examined:
        """Open each file once, and tell the sound ones from the others."""
        found = Examined({}, {}, {}, {}, {})
        for number, path in enumerate(self.stacks):
            try:
                with StackReader(path) as reader:
                    self._check_file(number, reader)
                    found.shapes[number] = reader.shape
                    found.pixel_sizes[number] = reader.pixel_size_angstrom
                    if reader.header.denoised_label:
                        found.denoised[number] = reader.header.denoised_label
                    if reader.remarks:
                        found.remarks[number] = reader.remarks
            except InputError as error:
                found.damaged[number] = error
        return found

    @abstractmethod
    def _check_file(self, number: int, reader: StackReader) -> None:
        """Raise when an open file is not what the rows that name it need."""

    def _sound_shapes(self, what: str) -> list[tuple[int, int, int]]:
        """Open each file and return the shapes `(n, y, x)`.

        Raises
        ------
        InputError
            If files cannot be used; it names all of them.
        """
        found = self.examine()
        if found.damaged:
            raise several(list(found.damaged.values()), len(self.stacks), what)
        return list(found.shapes.values())

    def columns(
        self, text: Collection[str] = (), number: Collection[str] = (), *, optional: Collection[str] = ()
    ) -> Columns:
        """Read columns of the set's own table in its STAR file; see `columns.read_columns`.

        Raises
        ------
        StarError
            If a column is missing that is not `optional`, a value of `number` is none, or the file was
            changed.
        """
        labels = (*text, *number)
        found = read_columns(self.source, text, number, optional=labels, among=self._is_own)
        n_rows = len(self) if self.kept is None else len(self.kept)
        if found is None or len(found) != n_rows:
            raise self._changed()
        for label in labels:
            if label not in optional:
                found.table.column(label)
        return found if self.kept is None else found.of_rows(self.kept.tolist())

    def labels(self) -> list[str]:
        """Return the labels of the set's own table in its STAR file."""
        table = find_table(self.source, self._is_own)
        return [] if table is None else table.labels

    def column(self, label: str, field: str = "") -> NDArray[np.str_] | None:
        """Return a column as text, by RELION's label or cryoSPARC's field; None where the table has none."""
        if not self.has_table:
            return None
        values = self.columns((label,), optional=(label,)).text.get(label)
        return None if values is None else np.array(values, dtype=np.str_)

    @staticmethod
    @abstractmethod
    def _is_own(table: Table) -> bool:
        """Tell the table whose rows the set has from the others of a STAR file."""

    def _rename(
        self,
        path: str | Path,
        label: str,
        original_label: str,
        names: Iterable[str],
        *,
        absolute_originals: bool,
        more: Mapping[str, Sequence[float]],
    ) -> None:
        """Write the table with other names in column `label`, and the old ones in `original_label`.

        `more`: further columns with a number for each row.
        """
        table = find_table(self.source, self._is_own)
        if table is None:
            raise self._changed()
        column = table.column(label)
        labels = [label, original_label]
        original_column = table.labels.index(original_label) if original_label in table.labels else None
        if original_column is not None:
            labels.append(free_label(PREVIOUS, table.labels))
        labels += more
        left, n_rows, n_kept = iter(names), 0, 0
        is_kept = [True] * len(self) if self.kept is None else self.kept.tolist()
        n_expected = len(is_kept)
        stacks, numbers, stack_of = self.stack.tolist(), self._numbers(), self._stack_finder()

        def edit(tokens: list[bytes]) -> list[bytes] | None:
            nonlocal n_rows, n_kept
            n_rows += 1
            if n_rows > n_expected:
                raise self._changed()
            if not is_kept[n_rows - 1]:
                return None
            # the names are for the rows that were read: each must still name the image that it did
            if stack_of(tokens[column]) != (stacks[n_kept], numbers[n_kept]):
                raise self._changed()
            numbers_of_row = [encode(f"{column[n_kept]:.6f}") for column in more.values()]
            n_kept += 1
            name = next(left, None)
            if name is None:
                raise ValueError(f"fewer image names were given than the {len(self)} rows")
            raw = self._absolute(tokens[column]) if absolute_originals else tokens[column]
            if original_column is None:
                return [quote(name), raw, *numbers_of_row]
            return [quote(name), raw, tokens[original_column], *numbers_of_row]

        def complete() -> None:
            if n_rows != n_expected:
                raise self._changed()
            if next(left, None) is not None:
                raise ValueError(f"more image names were given than the {len(self)} rows")

        rewrite(self.source, path, self._is_own, labels, edit, before_rename=complete)

    def _numbers(self) -> list[int]:
        """Return the 0-based number of each row's image in its file."""
        return [0] * len(self)

    def _stack_finder(self) -> Callable[[bytes], tuple[int, int]]:
        """Return what tells the position in `stacks`, -1 if none, and the 0-based number of a named image."""
        known = {same_file(name): position for position, name in enumerate(self.stack_names)}
        positions: dict[bytes, int] = {}

        def find(token: bytes) -> tuple[int, int]:
            if token[:1] in (b'"', b"'"):
                token = encode(unquote(token))
            index, name = split_image_name(token)
            if name not in positions:
                positions[name] = known.get(same_file(decode(name)), -1)
            return positions[name], int(index or b"1") - 1

        return find

    def _absolute(self, token: bytes) -> bytes:
        """Return an image name (`000001@stack` or a file) with the absolute path of its file."""
        text = unquote(token)
        index, name = split_image_name(text)
        return quote(f"{index}{'@' * bool(index)}{without_dots(str(self.root / name))}")

    def _changed(self) -> StarError:
        return StarError("the file was changed while it was in use.", path=self.source)


def header_pixel_size(reader: StackReader) -> tuple[float | None, str]:
    """Return the pixel size, Å, that a bare file's header says, and what is to be said of it."""
    y, x = reader.header.pixel_size_angstrom
    if reader.pixel_size_angstrom is None:
        if x is not None and y is not None:
            return None, f"the header of {reader.path.name} says {x:g} along x and {y:g} Å along y"
        return None, ""
    return reader.pixel_size_angstrom, f"the header of {reader.path.name}"


class Rows:
    """The columns of an `ImageSet` while they grow; `image` is for stacks, 0-based.

    `micrographs` are those that rows of particles name, as written, and the position of each;
    `micrograph` is that position, per row.
    """

    def __init__(self) -> None:
        self.stack, self.image, self.line, self.optics_group = array("i"), array("i"), array("i"), array("i")
        self.stack_names: list[str] = []
        self.micrographs: dict[bytes, int] = {}
        self.micrograph = array("i")
        self._known: dict[bytes, int] = {}
        self._normalised: dict[str, int] = {}

    def stack_of(self, name: bytes) -> int:
        """Return the position of a file, by its name as written."""
        position = self._known.get(name)
        if position is None:
            text = decode(name)
            position = self._normalised.setdefault(same_file(text), len(self.stack_names))
            if position == len(self.stack_names):
                self.stack_names.append(text)
            self._known[name] = position
        return position

    def line_of(self, stack: int) -> int:
        """Return the first line that names a file."""
        return self.line[self.stack.index(stack)]
