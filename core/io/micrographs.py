"""The micrograph set: which file every row of a table of micrographs means, without any image data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import MrcError, StarError
from .image_names import split_image_name
from .image_set import ImageSet, Rows, header_pixel_size, refuse_others
from .mrc import StackReader
from .optics import MICROGRAPH_PIXEL_SIZES, OpticsGroup, check_groups, grouping, read_optics
from .roots import find_root
from .star import Table, encode, read_tables, unquote

MICROGRAPH_SUFFIX = ".mrc"
MOVIE_SUFFIXES = (".tif", ".tiff", ".eer", ".gz", ".bz2", ".xz", ".zst")
_NAME, _PARTICLE, _MOVIE = "rlnMicrographName", "rlnImageName", "rlnMicrographMovieName"
_COORDINATE = "rlnCoordinateX"
# What else is listed by files of micrographs or movies, and what to give instead.
_OTHER_LISTS = {
    "rlnMicrographCoordinates": (
        "coordinate files",
        "Give the micrographs STAR file that the picking job had.",
    ),
    _MOVIE: ("movies", "Correct them for motion first, and give that job's micrographs STAR file."),
}
RAW_LABEL = "rlnCryohushRawMicrographName"
"""Column of the raw micrographs in the table of denoised ones."""
EVEN_LABEL, ODD_LABEL = "rlnMicrographNameEven", "rlnMicrographNameOdd"
"""Columns of the sums of even and of odd frames."""


@dataclass(frozen=True, eq=False)
class MicrographSet(ImageSet):
    """A table of micrographs, in the order of its rows; each file holds one image."""

    @classmethod
    def read(cls, path: str | Path, *, root: Path | None = None) -> MicrographSet:
        """Read a table of RELION (3.0 to 5), or take an MRC file as a set of one.

        Parameters
        ----------
        path
            The `.star`, `.mrc` or `.mrcs` file.
        root
            The folder that names are relative to; None looks for it as `find_root` says.

        Raises
        ------
        StarError
            If the STAR file is malformed or empty, holds no micrographs but movies or particles, or names a
            file that is not there or is a movie.
        MrcError
            If `path` is a micrograph that cannot be read.
        """
        path = Path(path)
        if path.suffix.lower() in (MICROGRAPH_SUFFIX, ".mrcs"):
            return _single(path)
        rows, optics = _read_star(path)

        def missing(stack: int, problem: str, remedy: str) -> StarError:
            return StarError(problem, path=path, line=rows.line_of(stack), remedy=remedy)

        root = find_root(path, rows.stack_names, root, missing, what="the micrograph")
        return cls(
            source=path,
            has_table=True,
            root=root,
            stacks=[root / name for name in rows.stack_names],
            stack_names=rows.stack_names,
            stack=np.array(rows.stack, dtype=np.int32),
            line=np.array(rows.line, dtype=np.int32),
            optics_group=np.array(rows.optics_group, dtype=np.int32),
            optics=optics,
        )

    @staticmethod
    def _is_own(table: Table) -> bool:
        """Tell a table of micrographs by its columns, whatever it is called."""
        return _NAME in table.labels and not {_PARTICLE, _COORDINATE, *_OTHER_LISTS} & set(table.labels)

    def check_images(self) -> list[tuple[int, int]]:
        """Open each file once and return the micrographs' `(y, x)`.

        Raises
        ------
        MrcError
            If a file cannot be read, or holds several images.
        """
        return [shape[1:] for shape in self._sound_shapes("micrographs")]

    def _check_file(self, number: int, reader: StackReader) -> None:
        if reader.n_images != 1:
            raise MrcError(
                f"expected a micrograph, found {reader.n_images} images: a movie or a stack.",
                path=reader.path,
                remedy="Correct movies for motion first; stacks of particles have the suffix .mrcs.",
            )

    def write(self, path: str | Path, names: Iterable[str], *, absolute_originals: bool = False) -> None:
        """Write the table with other micrographs: the source's text with only the names changed.

        `rlnMicrographName` becomes the given name and `rlnCryohushRawMicrographName` the raw micrograph's:
        RELION has no column for it, and its Display shows what is in `rlnImageOriginalName` first. If the
        table has such a column already, its values move to `rlnCryohushPreviousOriginalName` (`…2`, `…3` when
        taken).

        Parameters
        ----------
        path
            The new STAR file.
        names
            One per row, in order.
        absolute_originals
            Write the raw micrographs' names with absolute paths, for a table outside `root`. Otherwise their
            text stays as it is.

        Raises
        ------
        StarError
            If the source was changed since it was read.
        OutputError
            If the file cannot be written, or is the source.
        """
        self._rename(
            path,
            _NAME,
            RAW_LABEL,
            names,
            absolute_originals=absolute_originals,
            more={},
        )


def lists_micrographs(path: str | Path) -> bool:
    """Tell whether a STAR file is a table of micrographs (or movies) and not of particles.

    Raises
    ------
    StarError
        If the file cannot be read as far as its first table that holds either.
    """
    for table in read_tables(path):
        refuse_others(table)
        if _PARTICLE in table.labels or _COORDINATE in table.labels:
            return False
        if _NAME in table.labels or _MOVIE in table.labels:
            return True
    return False


def _read_star(path: Path) -> tuple[Rows, dict[int, OpticsGroup]]:
    """Read the rows and the optics groups, in whichever order their tables stand."""
    rows: Rows | None = None
    optics: dict[int, OpticsGroup] | None = None
    row_optics: dict[int, OpticsGroup] = {}
    labels: list[str] = []
    for table in read_tables(path):
        refuse_others(table)
        if table.name == "optics":
            optics = read_optics(table, MICROGRAPH_PIXEL_SIZES, before=optics)
        elif MicrographSet._is_own(table):
            if rows is not None:
                raise StarError("a second table of micrographs.", path=path, line=table.line)
            rows, labels = Rows(), table.labels
            group_of, row_optics = grouping(table, MICROGRAPH_PIXEL_SIZES)
            _read_rows(table, rows, group_of)
        else:
            for label, (what, remedy) in _OTHER_LISTS.items():
                if label in table.labels:
                    raise StarError(
                        f"data_{table.name} lists {what}.", path=path, line=table.line, remedy=remedy
                    )
    if rows is None:
        raise StarError(
            f"no table of micrographs (with the column _{_NAME}) found.",
            path=path,
            remedy="Give the micrographs STAR file of a motion correction, CTF or selection job.",
        )
    if not rows.stack:
        raise StarError("the table of micrographs has no rows.", path=path)
    if optics is None:
        return rows, row_optics
    check_groups(path, rows.optics_group, rows.line, optics, labels)
    return rows, optics


def _read_rows(table: Table, rows: Rows, group_of: Callable[[list[bytes], int], int]) -> None:
    column = table.column(_NAME)
    for line, _, tokens in table.rows():
        if not tokens:
            continue
        name = unquote(tokens[column])
        suffix = Path(name).suffix.lower()
        is_movie, is_image = suffix in MOVIE_SUFFIXES, bool(split_image_name(name)[0])
        if not name or is_image or is_movie:
            kind = f"a movie or compressed file ({suffix})" if is_movie else "an image of a stack"
            raise StarError(
                f"expected a micrograph in MRC format, found {f'{kind}: {name}' if name else 'no name'}.",
                path=table.path,
                line=line,
                remedy="Give each image a file of its own, or particles their column rlnImageName."
                if is_image and not is_movie
                else "Give the micrographs of a motion correction job.",
            )
        rows.stack.append(rows.stack_of(encode(name)))
        rows.line.append(line)
        rows.optics_group.append(group_of(tokens, line))


def _single(path: Path) -> MicrographSet:
    with StackReader(path) as reader:
        pixel_size, size_source = header_pixel_size(reader)
    zero = np.zeros(1, dtype=np.int32)
    return MicrographSet(
        source=path,
        has_table=False,
        root=path.absolute().parent,
        stacks=[path.absolute()],
        stack_names=[path.name],
        stack=zero,
        line=zero,
        optics_group=zero + 1,
        optics={1: OpticsGroup(1, "opticsGroup1", pixel_size, None, None, None, None, size_source)},
    )
