"""Which rows of two tables are the same particle or micrograph, in whatever order either lists them.

RELION's jobs sort their tables by micrograph, selections leave rows out, and cryoSPARC's row numbers mean
nothing. So rows are paired by what the tables say of them, by whichever of these pairs most rows:

- the images' names, and those of the images that they were made from (`rlnImageOriginalName` and what came
  before it), so that a denoised particle finds its raw one;
- cryoSPARC's uids;
- micrograph and place on it. A micrograph is known by its whole name, or by the file's name alone where no
  other has it; places agree within a tenth of a pixel.

Where none of these is in both tables, two stacks of equally many images go together image by image, in
whatever order tables list them. All else is refused, unless the user says that the rows are in one order.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, MrcError
from .cs import CS_SUFFIX, CsTable
from .image_names import split_image_name, without_dots
from .image_set import ImageSet
from .micrographs import MicrographSet
from .mrc import StackReader
from .particles import ParticleSet

_IMAGE, _MICROGRAPH = "rlnImageName", "rlnMicrographName"
_X, _Y = "rlnCoordinateX", "rlnCoordinateY"
# Columns with the image that a row's image was made from; more than one job leaves more than one.
_EARLIER = re.compile(r"rlnImageOriginalName|rlnCryohushRawMicrographName|rlnCryohushPreviousOriginalName\d*")
_CS_PATH, _CS_UID, _CS_SHAPE = (
    "location/micrograph_path",
    "location/micrograph_uid",
    "location/micrograph_shape",
)
_CS_X, _CS_Y = "location/center_x_frac", "location/center_y_frac"
# Tables round a place differently: by six decimals, or as a share of the micrograph in single precision.
_SAME_PLACE_PX = 0.1
_GIVE_IDENTITY = "Give tables with micrographs and coordinates, or with the original images."
_SAY_ORDER = (
    "Or say that the rows are in one order: evaluate --pair-by-order, train --set pairs.pair_by_order=true."
)
_ORDER, _NUMBER = "their order", "their numbers in two stacks of one length"


@dataclass(frozen=True, eq=False)
class SameRows:
    """Rows that belong together.

    Attributes
    ----------
    first, other
        `(n,)` 0-based rows of both tables, in the order of the first.
    by
        What showed it, in words.
    n_first, n_other
        How many rows either table has.
    """

    first: NDArray[np.intp]
    other: NDArray[np.intp]
    by: str
    n_first: int
    n_other: int

    @property
    def is_guess(self) -> bool:
        """Whether nothing in the tables shows it: a table that was sorted in between would go unnoticed."""
        return self.by in (_ORDER, _NUMBER)

    @property
    def note(self) -> str:
        """What to tell the user: by what rows were paired, and how many have no partner."""
        text = f"paired by {self.by}"
        if self.is_guess:
            text = f"warning: {text}: nothing in the tables shows which images are the same particle"
        if len(self.first) < max(self.n_first, self.n_other):
            text += f": {len(self.first)} of {self.n_other} rows, of {self.n_first} on the other side"
        return text


def was_made_from(made: ImageSet, other: ImageSet) -> bool:
    """Tell whether an image of a table, stack or micrograph was made from one of another, by their names."""
    origins = {name for chain in _Identity(made).names(absolute=True) for name in chain[1:]}
    return any(chain[0] in origins for chain in _Identity(other).names(absolute=True))


def match_rows(first: ImageSet, other: ImageSet, *, by_order: bool = False) -> SameRows:
    """Pair the rows of two tables, stacks or micrographs.

    Parameters
    ----------
    by_order
        Whether rows are in one order where nothing shows which of them are the same.

    Raises
    ------
    InputError
        What the tables say shows that rows do not belong together, or that two images claim to be one; or
        nothing shows which do.
    """
    ours, theirs = _Identity(first), _Identity(other)
    compared: list[str] = []
    best: SameRows | None = None
    ambiguous: InputError | None = None
    for by, keys in _KINDS.items():
        one, another = keys(ours), keys(theirs)
        if one is None or another is None:
            continue
        compared.append(by)
        try:
            rows, partners = _paired(one, another, theirs)
        except InputError as error:
            ambiguous = ambiguous or error
            continue
        if len(rows) > (0 if best is None else len(best.first)):
            best = SameRows(rows, partners, by, len(first), len(other))
    if best is None and ambiguous is not None:
        raise ambiguous
    return best or _by_position(ours, theirs, compared, by_order)


class _Identity:
    """What a table says of the identity of its rows; read once, when it is first asked for."""

    def __init__(self, table: ImageSet) -> None:
        self.table = table
        self.is_cs = table.has_table and table.source.suffix.lower() == CS_SUFFIX
        self.is_particles = not isinstance(table, MicrographSet)
        self._columns: dict[str, Any] = self._read() if table.has_table else {}

    def __len__(self) -> int:
        return len(self.table)

    def _read(self) -> dict[str, Any]:
        if self.is_cs:
            table = CsTable(self.table.source, getattr(self.table, "passthrough", ()))
            fields = ("uid", _CS_PATH, _CS_UID, _CS_SHAPE, _CS_X, _CS_Y)
            return {name: table.column(name) for name in fields if name in table.fields}
        wanted = [
            label
            for label in self.table.labels()
            if label in (_MICROGRAPH, _X, _Y) or _EARLIER.fullmatch(label)
        ]
        return dict(self.table.columns(wanted).text)

    def image(self, row: int) -> tuple[int, int]:
        """Stack and index of a row's image."""
        index = int(self.table.image[row]) if isinstance(self.table, ParticleSet) else 0
        return int(self.table.stack[row]), index

    def names(self, *, absolute: bool) -> list[list[tuple[int, str]]]:
        """For each row its image and those that it was made from, newest first, as 1-based index and file."""
        root = self.table.root if absolute else Path()

        def name(index: int, file: str) -> tuple[int, str]:
            return index, without_dots(str(root / file.removeprefix(">")))

        stacks = [name(0, file)[1] for file in self.table.stack_names]
        index = self.table.image if isinstance(self.table, ParticleSet) else np.zeros(len(self), np.int32)
        chains = [
            [(number + 1, stacks[stack])]
            for stack, number in zip(self.table.stack.tolist(), index.tolist(), strict=True)
        ]
        for label in filter(_EARLIER.fullmatch, self._columns):
            for chain, text in zip(chains, self._columns[label], strict=True):
                number, file = split_image_name(text)
                if file:
                    chain.append(name(int(number or "1"), file))
        return chains

    def numbers(self) -> tuple[list[int], int] | None:
        """Number of each row's oldest image in its stack, and how many that has; None for several stacks."""
        oldest = [chain[-1] for chain in self.names(absolute=True)]
        files = {file for _, file in oldest}
        if len(files) != 1:
            return None
        try:
            with StackReader(files.pop()) as reader:
                return [number for number, _ in oldest], reader.n_images
        except MrcError:
            return None

    def uids(self) -> list[int] | None:
        """cryoSPARC's names of the particles; None in other tables."""
        uids: NDArray[np.uint64] | None = self._columns.get("uid")
        return None if uids is None else uids.tolist()

    def micrographs(self) -> list[str] | None:
        """The micrograph of each row; None where nothing says it."""
        if not self.is_particles:
            return [self.table.stack_names[stack] for stack in self.table.stack.tolist()]
        if self.is_cs:
            if _CS_PATH in self._columns:
                return [os.fsdecode(path).removeprefix(">") for path in self._columns[_CS_PATH].tolist()]
            uids = self._columns.get(_CS_UID)
            return None if uids is None else [str(uid) for uid in uids.tolist()]
        column = self._columns.get(_MICROGRAPH)
        return None if column is None else list(column)

    def places_px(self) -> NDArray[np.float64] | None:
        """`(n, 2)` (y, x) of the particles on their micrographs; None where nothing says it."""
        if self.is_cs:
            if not all(name in self._columns for name in (_CS_X, _CS_Y, _CS_SHAPE)):
                return None
            share = np.stack([self._columns[_CS_Y], self._columns[_CS_X]], axis=1).astype(np.float64)
            places: NDArray[np.float64] = share * self._columns[_CS_SHAPE]
            return places
        if _X not in self._columns or _Y not in self._columns:
            return None
        try:
            return np.array([self._columns[_Y], self._columns[_X]], dtype=np.float64).T
        except ValueError as error:
            raise InputError(f"a coordinate is no number: {error}.", path=self.table.source) from error

    def tell(self, row: int) -> str:
        """What the table says of a row, for a message."""
        micrographs, places = self.micrographs(), self.places_px()
        parts = [f"row {row + 1}"]
        if micrographs is not None:
            parts.append(Path(micrographs[row]).name)
        if places is not None:
            parts.append(f"x {places[row][1]:.1f}, y {places[row][0]:.1f}")
        if len(parts) == 1:
            index, file = self.names(absolute=False)[row][0]
            parts.append(f"{index}@{Path(file).name}")
        return " ".join(parts[:2]) + "".join(f" at {part}" for part in parts[2:])


Keys = Sequence[Sequence[Any]]
_PLACE = "micrograph and coordinates"


def _by_uid(table: _Identity) -> Keys | None:
    uids = table.uids()
    return None if uids is None else [[uid] for uid in uids]


def _by_image(table: _Identity) -> Keys:
    return table.names(absolute=True)


def _by_written_name(table: _Identity) -> Keys:
    """Names relative to two folders: only the image that another was made from says something then."""
    return [
        [*((True, name) for name in chain[1:]), (False, chain[0])] for chain in table.names(absolute=False)
    ]


def _by_place(table: _Identity, *, whole: bool = True) -> Keys | None:
    micrographs, places = table.micrographs(), table.places_px()
    if micrographs is None or (places is None and table.is_particles):
        return None
    if not whole:
        names = {name: Path(name).name for name in set(micrographs)}
        if max(Counter(names.values()).values()) > 1:  # two micrographs of one name
            return None
        micrographs = [names[name] for name in micrographs]
    if places is None:
        places = np.zeros((len(micrographs), 2))
    return [[_Place(name, y, x)] for name, (y, x) in zip(micrographs, places.tolist(), strict=True)]


_KINDS: dict[str, Callable[[_Identity], Keys | None]] = {
    "uid": _by_uid,
    "image names": _by_image,
    "names of original images": _by_written_name,
    _PLACE: _by_place,
    f"{_PLACE}, micrographs by their files' names": lambda table: _by_place(table, whole=False),
}


class _Place(NamedTuple):
    """A particle on a micrograph, px."""

    micrograph: str
    y: float
    x: float

    def cells(self, reach: float) -> set[tuple[str, int, int]]:
        """Squares of a pixel that lie within reach."""
        rows, columns = ({round(value - reach), round(value + reach)} for value in (self.y, self.x))
        return {(self.micrograph, row, column) for row in rows for column in columns}

    def is_near(self, other: _Place) -> bool:
        return max(abs(self.y - other.y), abs(self.x - other.x)) <= _SAME_PLACE_PX


def _paired(ours: Keys, theirs: Keys, other: _Identity) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of both tables that share a key, in the order of the first.

    Raises
    ------
    InputError
        A row could be one of two different images.
    """
    rows_of: dict[Any, list[int]] = {}
    for row, chain in enumerate(theirs):
        for key in chain:
            for cell in key.cells(0) if isinstance(key, _Place) else [_counterpart(key)]:
                rows_of.setdefault(cell, []).append(row)
    pairs = []
    for row, chain in enumerate(ours):
        partner = _partner(chain, theirs, rows_of, other)
        if partner is not None:
            pairs.append((row, partner))
    if not pairs:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    rows, partners = np.array(pairs, dtype=np.intp).T
    return rows, partners


def _counterpart(key: Any) -> Any:
    """What has to be found for a key: of an original image an image of that name, and the other way round."""
    return (not key[0], key[1]) if isinstance(key, tuple) and isinstance(key[0], bool) else key


def _partner(
    chain: Sequence[Any], theirs: Keys, rows_of: dict[Any, list[int]], other: _Identity
) -> int | None:
    """The row that has a key of a chain, the first of them that one image alone has."""
    several: tuple[int, int] | None = None
    for key in chain:
        if isinstance(key, _Place):
            cells = key.cells(_SAME_PLACE_PX)
            found = [row for cell in cells for row in rows_of.get(cell, ()) if key.is_near(theirs[row][0])]
        else:
            found = rows_of.get(key, [])
        if not found:
            continue
        different = next((row for row in found if other.image(row) != other.image(found[0])), None)
        if different is None:
            return min(found)
        several = several or (found[0], different)
    if several is not None:
        row, different = sorted(several)
        raise InputError(
            f"rows {row + 1} and {different + 1} are different images of one particle ({other.tell(row)}), "
            "so it is not known which of them to take.",
            path=other.table.source,
            remedy="Remove duplicates, or compare tables with one image of each particle.",
        )
    return None


def _by_position(ours: _Identity, theirs: _Identity, compared: Sequence[str], by_order: bool) -> SameRows:
    """Rows by their place in tables or stacks, where nothing shows that they do not belong together."""
    first, other = ours.table, theirs.table
    kinds = dict.fromkeys(by.partition(",")[0] for by in compared)
    told = f"compared: {', '.join(kinds)}" if compared else "they have no columns in common that tell it"
    places = ours.places_px(), theirs.places_px()
    every = np.arange(len(first))
    rows: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None
    if places[0] is not None and places[1] is not None and len(first) == len(other):
        apart = np.abs(places[0] - places[1]).max(axis=1) > _SAME_PLACE_PX
        if apart.any():
            raise _disagreement(ours, theirs, int(apart.argmax()), told)
        by, rows = f"{_ORDER}; their coordinates agree", (every, every)
    elif ours.uids() is not None and theirs.uids() is not None:
        raise _disagreement(ours, theirs, 0, told)
    elif (rows := _same_numbers(ours, theirs)) is not None:
        by = _NUMBER
    elif by_order and len(first) == len(other):
        by, rows = _ORDER, (every, every)
    else:
        noun = "particles" if ours.is_particles else "micrographs"
        raise InputError(
            f"expected the {len(first)} {noun} of {first.source}, found {len(other)}, and nothing in the "
            f"tables shows which of them are the same ({told}).",
            path=other.source,
            remedy=_GIVE_IDENTITY if len(first) != len(other) else f"{_GIVE_IDENTITY} {_SAY_ORDER}",
        )
    return SameRows(*rows, _checked_by_micrograph(ours, theirs, *rows, by), len(first), len(other))


def _same_numbers(ours: _Identity, theirs: _Identity) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """Rows of both tables whose images have one number in two stacks of equally many images, or None."""
    found = [table.numbers() for table in (ours, theirs)]
    if found[0] is None or found[1] is None or found[0][1] != found[1][1]:
        return None
    keys = [[[number] for number in numbers] for numbers, _ in (found[0], found[1])]
    rows, partners = _paired(keys[0], keys[1], theirs)
    return (rows, partners) if len(rows) else None


def _checked_by_micrograph(
    ours: _Identity, theirs: _Identity, rows: NDArray[np.intp], partners: NDArray[np.intp], by: str
) -> str:
    """Return by what rows are paired, with micrographs if both tables have them.

    Raises
    ------
    InputError
        A micrograph of one table has two counterparts in the other.
    """
    one, another = ours.micrographs(), theirs.micrographs()
    if not ours.is_particles or one is None or another is None:
        return by
    # other frames may have other names: each micrograph needs one counterpart
    for names, others in ((one, another), (another, one)):
        partner: dict[str, str] = {}
        for row, counterpart in zip(rows.tolist(), partners.tolist(), strict=True):
            here, there = (row, counterpart) if names is one else (counterpart, row)
            if partner.setdefault(names[here], others[there]) != others[there]:
                raise _disagreement(ours, theirs, row, "compared: micrographs, row by row", counterpart)
    return f"{by}; their micrographs agree"


def _disagreement(
    ours: _Identity, theirs: _Identity, row: int, told: str, other_row: int | None = None
) -> InputError:
    there = theirs.tell(row if other_row is None else other_row)
    return InputError(
        f"its rows are not those of {ours.table.source}: {there}, where {ours.tell(row)} is "
        f"expected ({told}).",
        path=theirs.table.source,
        remedy="Give tables of the same particles; their order does not matter where both say micrograph and "
        "coordinates, or the original image.",
    )
