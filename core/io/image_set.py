"""What tables of particles and of micrographs have in common: rows that name image files."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StarError
from .optics import OpticsGroup
from .star import Table, decode, encode, free_label, quote, read_tables, rewrite, unquote

_ORIGINAL, _PREVIOUS = "rlnImageOriginalName", "rlnCryohushPreviousOriginalName"


@dataclass(frozen=True, eq=False)
class ImageSet:
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

    def __len__(self) -> int:
        return len(self.stack)

    def pixel_size_angstrom(self, stack_index: int) -> float | None:
        """Return the pixel size of a file in Å, by the optics group of its first row; None if unknown."""
        first_row = int(np.argmax(self.stack == stack_index))
        return self.optics[int(self.optics_group[first_row])].pixel_size_angstrom

    def _rename(
        self,
        path: str | Path,
        is_target: Callable[[Table], bool],
        label: str,
        names: Iterable[str],
        *,
        absolute_originals: bool,
    ) -> None:
        """Write the table with other names in column `label`, and the old ones in `rlnImageOriginalName`."""
        table = next(table for table in read_tables(self.source) if is_target(table))
        column = table.column(label)
        labels = [label, _ORIGINAL]
        original_column = table.labels.index(_ORIGINAL) if _ORIGINAL in table.labels else None
        if original_column is not None:
            labels.append(free_label(_PREVIOUS, table.labels))
        left, n_rows, n_expected = iter(names), 0, len(self)
        stacks, numbers, stack_of = self.stack.tolist(), self._numbers(), self._stack_finder()

        def edit(tokens: list[bytes]) -> tuple[bytes, ...]:
            nonlocal n_rows
            n_rows += 1
            # the names are for the rows that were read: each must still name the image that it did
            if n_rows > n_expected or stack_of(tokens[column]) != (stacks[n_rows - 1], numbers[n_rows - 1]):
                raise self._changed()
            name = next(left, None)
            if name is None:
                raise ValueError(f"{n_rows - 1} image names were given for {n_expected} rows")
            raw = self._absolute(tokens[column]) if absolute_originals else tokens[column]
            if original_column is None:
                return quote(name), raw
            return quote(name), raw, tokens[original_column]

        def complete() -> None:
            if n_rows != n_expected:
                raise self._changed()
            if next(left, None) is not None:
                raise ValueError(f"more image names were given than the {n_expected} rows")

        rewrite(self.source, path, is_target, labels, edit, before_rename=complete)

    def _numbers(self) -> list[int]:
        """Return the 0-based number of each row's image in its file."""
        return [0] * len(self)

    def _stack_finder(self) -> Callable[[bytes], tuple[int, int]]:
        """Return what tells the position in `stacks`, -1 if none, and the 0-based number of a named image."""
        known = {os.path.normpath(name): position for position, name in enumerate(self.stack_names)}
        positions: dict[bytes, int] = {}

        def find(token: bytes) -> tuple[int, int]:
            if token[:1] in (b'"', b"'"):
                token = encode(unquote(token))
            index, at, name = token.partition(b"@")
            if not at:
                index, name = b"1", token
            if name not in positions:
                positions[name] = known.get(os.path.normpath(decode(name)), -1)
            return positions[name], int(index) - 1 if index.isdigit() else -1

        return find

    def _absolute(self, token: bytes) -> bytes:
        """Return an image name (`000001@stack` or a file) with the absolute path of its file."""
        text = unquote(token)
        index, at, name = text.partition("@") if "@" in text else ("", "", text)
        return quote(f"{index}{at}{os.path.normpath(self.root / name)}")

    def _changed(self) -> StarError:
        return StarError("the file was changed while it was in use.", path=self.source)


class Rows:
    """The columns of an `ImageSet` while they grow; `image` is for stacks, 0-based."""

    def __init__(self) -> None:
        self.stack, self.image, self.line, self.optics_group = array("i"), array("i"), array("i"), array("i")
        self.stack_names: list[str] = []
        self._known: dict[bytes, int] = {}
        self._normalised: dict[str, int] = {}

    def stack_of(self, name: bytes) -> int:
        """Return the position of a file, by its name as written."""
        position = self._known.get(name)
        if position is None:
            text = decode(name)
            position = self._normalised.setdefault(os.path.normpath(text), len(self.stack_names))
            if position == len(self.stack_names):
                self.stack_names.append(text)
            self._known[name] = position
        return position

    def line_of(self, stack: int) -> int:
        """Return the first line that names a file."""
        return self.line[self.stack.index(stack)]
