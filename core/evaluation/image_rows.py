"""Images of tables and stacks, row by row; what is compared is brought into one order."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ImageError, InputError
from ..inference.plan import ImageSet, read_images, refuse_denoised
from ..io.micrographs import MicrographSet
from ..io.mrc import StackReader
from ..io.same_rows import match_rows

_MICROGRAPH, _MICROGRAPH_UID = "rlnMicrographName", "location/micrograph_uid"
# squares of what spans more, or less than its inverse, and their sums over an image leave single precision
_LARGEST_SPAN = 1e15


class ImageRows:
    """The images of a table, in the order of its rows, read when they are asked for.

    Parameters
    ----------
    path
        `.star`, `.cs`, `.mrcs` or `.mrc`; particles or micrographs.
    is_raw
        Whether images that were denoised are refused.

    Attributes
    ----------
    path
        The file.
    table
        What it lists.
    rows
        `(n,)` 0-based row of the table that each of these rows is.
    shape
        `(y, x)` of all images.
    pixel_size_angstrom
        None if unknown.

    Raises
    ------
    InputError
        If the file cannot be read, or its images are not all of one size and pixel size, or were denoised.
    """

    def __init__(self, path: Path, *, is_raw: bool = False) -> None:
        self.path = path
        self.table: ImageSet = read_images(path)
        self.rows: NDArray[np.intp] = np.arange(len(self.table))
        shapes = {shape[-2:] for shape in self.table.check_images()}
        if is_raw:
            refuse_denoised(self.table, self.table.examine())
        if len(shapes) != 1:
            sizes = ", ".join(f"{x} x {y} px" for y, x in sorted(shapes))
            raise InputError(
                f"expected images of one size, found {sizes}.",
                path=path,
                remedy="Evaluate each size for itself.",
            )
        self.shape: tuple[int, int] = shapes.pop()
        groups = [self.table.optics[number] for number in np.unique(self.table.optics_group).tolist()]
        pixel_sizes = {group.pixel_size_angstrom for group in groups}
        if len(pixel_sizes) != 1:
            raise InputError(
                f"expected images of one pixel size, found {', '.join(map(str, pixel_sizes))} Å.",
                path=path,
                remedy="Evaluate each optics group for itself.",
            )
        self.pixel_size_angstrom = pixel_sizes.pop()
        if isinstance(self.table, MicrographSet):
            self._index: NDArray[np.int32] = np.zeros(len(self.table), dtype=np.int32)
            self._dark_stacks: frozenset[int] = frozenset()
        else:
            self._index, self._dark_stacks = self.table.image, self.table.dark_stacks

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: NDArray[np.intp]) -> ImageRows:
        """Return the same images, of these rows only and in this order."""
        selected = copy.copy(self)
        selected.rows = self.rows[rows]
        return selected

    @property
    def kind(self) -> str:
        """What the rows are."""
        return "micrographs" if isinstance(self.table, MicrographSet) else "particles"

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the images of 0-based `rows`, `(k, y, x)` float32, protein white where the table says it.

        Raises
        ------
        MrcError
            If a stack cannot be read.
        ImageError
            If a pixel is NaN or infinite, or the grey values are too large or too small to calculate with.
        """
        rows = self.rows[rows]
        images = np.empty((len(rows), *self.shape), dtype=np.float32)
        stacks = self.table.stack[rows]
        for stack in np.unique(stacks).tolist():
            here = np.flatnonzero(stacks == stack)
            indices = self._index[rows[here]]
            with StackReader(self.table.stacks[stack]) as reader:
                images[here] = reader.read(indices)
            finite = np.isfinite(images[here].reshape(len(here), -1).sum(1, dtype=np.float64))
            if not finite.all():
                bad = int(np.argmin(finite))
                row = int(rows[here][bad]) + 1
                raise ImageError(
                    f"the image holds NaN or infinite pixels (row {row} of {self.path}).",
                    path=self.table.stacks[stack],
                    image=int(indices[bad]) + 1,
                )
            spans = np.ptp(images[here].reshape(len(here), -1), axis=1)
            odd = (spans > _LARGEST_SPAN) | ((spans > 0) & (spans < 1 / _LARGEST_SPAN))
            if odd.any():
                bad = int(np.argmax(odd))
                raise ImageError(
                    f"the grey values span {spans[bad]:g}: their squares cannot be told in single precision "
                    f"(row {int(rows[here][bad]) + 1} of {self.path}).",
                    path=self.table.stacks[stack],
                    image=int(indices[bad]) + 1,
                )
            if stack in self._dark_stacks:
                images[here] *= -1
        return torch.from_numpy(images)

    def titles(self, rows: NDArray[np.int64]) -> list[str]:
        """Return number and stack of each image, or the name of the micrograph."""
        rows = self.rows[rows]
        names = [self.table.stacks[stack].name for stack in self.table.stack[rows].tolist()]
        if isinstance(self.table, MicrographSet):
            return names
        return [f"{index + 1}@{name}" for index, name in zip(self._index[rows].tolist(), names, strict=True)]

    def column(self, label: str) -> list[str]:
        """Return a column of the table as text, one entry per row.

        Raises
        ------
        InputError
            If there is no table with it.
        """
        values = self.table.column(label, label)
        if values is None:
            raise InputError(f"there is no column {label}.", path=self.path)
        found: list[str] = values[self.rows].tolist()
        return found

    def micrographs(self) -> list[str] | None:
        """Return the micrograph of each row; None where nothing says it."""
        if isinstance(self.table, MicrographSet):
            return [self.table.stack_names[stack] for stack in self.table.stack[self.rows].tolist()]
        for label in (_MICROGRAPH, _MICROGRAPH_UID):
            try:
                return self.column(label)
            except InputError:
                continue
        return None


def bring_together(
    first: ImageRows, others: Sequence[ImageRows], *, by_order: bool = False
) -> tuple[list[ImageRows], list[str]]:
    """Bring tables into the order of the first, with the rows that all of them have.

    Parameters
    ----------
    by_order
        Whether rows are in one order where nothing shows which of them are the same.

    Returns
    -------
    list of ImageRows
        The first and the others.
    list of str
        What to tell the user of it.

    Raises
    ------
    InputError
        When image sizes or pixel sizes differ, or rows do not belong together (`io.same_rows`); names both
        files.
    """
    _require_same_size(first, others)
    partners = np.full((len(others), len(first)), -1, dtype=np.intp)
    notes = []
    for number, other in enumerate(others):
        found = match_rows(first.table, other.table, by_order=by_order)
        partners[number, found.first] = found.other
        notes.append(f"{other.path}: {found.note}")
    common = np.flatnonzero((partners >= 0).all(axis=0))
    if not len(common):
        raise InputError(
            f"the {len(others)} other tables have no row in common.",
            path=first.path,
            remedy="Give tables of the same images.",
        )
    if len(common) < len(first):
        notes.append(f"{len(common)} of {len(first)} rows of {first.path} are compared")
    selected = [other.select(rows[common]) for other, rows in zip(others, partners, strict=True)]
    return [first.select(common), *selected], notes


def _require_same_size(first: ImageRows, others: Sequence[ImageRows]) -> None:
    for other in others:
        one, two = _size(first), _size(other)
        if one != two:
            raise InputError(
                f"{two}, but {first.path} has {one}.",
                path=other.path,
                remedy="Both have to list the same images.",
            )
        sizes = first.pixel_size_angstrom, other.pixel_size_angstrom
        # headers and tables round a pixel size differently
        if None not in sizes and abs(sizes[0] / sizes[1] - 1) > 1e-3:  # type: ignore[operator]
            raise InputError(
                f"a pixel size of {sizes[1]:g} Å, but {first.path} has {sizes[0]:g} Å.", path=other.path
            )


def _size(images: ImageRows) -> str:
    return f"images of {images.shape[1]} x {images.shape[0]} px"


def batches(
    n: int, shape: tuple[int, int], micrographs: Sequence[str] | None, pixels: int
) -> list[NDArray[np.int64]]:
    """Divide n rows into batches of at most about `pixels` pixels; a micrograph is never divided.

    Rows are taken micrograph by micrograph, so memory is bounded by the larger of `pixels` and the particles
    of one micrograph.
    """
    most = max(1, pixels // (shape[0] * shape[1]))
    if micrographs is None:
        return [np.arange(begin, min(begin + most, n)) for begin in range(0, n, most)]
    _, group = np.unique(np.asarray(micrographs), return_inverse=True)
    order = np.argsort(group, kind="stable")
    ends = [*np.flatnonzero(np.diff(group[order])) + 1, n]
    found, begin, last = [], 0, 0
    for end in ends:
        if end - begin > most and last > begin:
            found.append(order[begin:last])
            begin = last
        last = int(end)
    return [*found, order[begin:]]
