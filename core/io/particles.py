"""The particle set: which image of which stack every row of a table means, without any image data."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigurationError, CsError, ImageError, MrcError, StarError
from ..spread import evenly_spread
from .cs import CS_SUFFIX, CsTable, read_images
from .cs import rewrite as rewrite_cs
from .image_names import split_image_name
from .image_set import ImageSet, Rows, header_pixel_size, refuse_others
from .mrc import StackReader
from .optics import LARGEST_INDEX, OpticsGroup, check_groups, grouping, read_optics
from .roots import find_root
from .star import Table, decode, encode, read_tables, unquote

STACK_SUFFIXES = (".mrcs", ".mrc")
_IMAGE, _MICROGRAPH = "rlnImageName", "rlnMicrographName"
_PARTICLE_TABLES = ("particles", "images", "")
SCORE_LABEL = "rlnParticleFigureOfMerit"
"""Of a particle, see `metrics.ordinary.figure_of_merit`; RELION's subset selection can choose by it."""
# Nothing but a table makes particles of frames.
_FRAME_PX = 2048
# So many of each folder are opened to see whether they are denoised.
_MICROGRAPHS = 8
_NO_TABLE = "Give the particles.star of an extraction, selection or refinement job."


@dataclass(frozen=True, eq=False)
class ParticleSet(ImageSet):
    """A table of particle images, in the order of its rows; `ImageSet` tells of the other attributes.

    Attributes
    ----------
    image
        int32 `(n,)`: 0-based index in the stack, per row.
    dark_stacks
        Positions of the stacks whose protein is dark, as a `.cs` file can say. RELION's is white.
    says_contrast
        Whether table or convention tell that; a `.cs` file without `blob/sign` does not.
    passthrough
        The files whose fields complete those of a `.cs` file.
    micrograph_names
        The micrographs that the particles are from, each once; empty if the table does not tell.
    micrograph
        int32 `(n,)`: position in `micrograph_names`, per row; None if the table does not tell.
    """

    image: NDArray[np.int32]
    dark_stacks: frozenset[int] = frozenset()
    says_contrast: bool = True
    passthrough: tuple[Path, ...] = ()
    micrograph_names: tuple[str, ...] = ()
    micrograph: NDArray[np.int32] | None = None

    @classmethod
    def read(
        cls, path: str | Path, *, root: Path | None = None, passthrough: Sequence[str | Path] = ()
    ) -> ParticleSet:
        """Read a table of RELION (3.0 to 5) or cryoSPARC, or take a whole `.mrcs`/`.mrc` stack as a set.

        Parameters
        ----------
        path
            The `.star` or `.cs` file, or the stack.
        root
            The folder that image names are relative to. Without it the working directory is tried (the
            project's directory), then the table's folder and its parents; for a `.cs` file that was exported
            its own folder comes first.
        passthrough
            Files that complete a `.cs` file; see `CsTable`.

        Raises
        ------
        StarError
            If the STAR file is malformed or empty, holds no 2D particles, or names a stack that is not there.
        CsError
            If the same is true of a `.cs` file or its passthrough files, or particles are in it twice.
        MrcError
            If `path` is a stack that cannot be read.
        ConfigurationError
            If there are passthrough files but `path` is no `.cs` file.
        """
        path = Path(path)
        if path.suffix.lower() == CS_SUFFIX:
            return _read_cs(path, root, passthrough)
        if passthrough:
            raise ConfigurationError(
                f"passthrough files complete a .cs file, and {path} is none. Leave them out."
            )
        if path.suffix.lower() in STACK_SUFFIXES:
            return _whole_stack(path)
        rows, optics = _read_star(path)

        def missing(stack: int, problem: str, remedy: str) -> StarError:
            return StarError(problem, path=path, line=rows.line_of(stack), remedy=remedy)

        root = find_root(path, rows.stack_names, root, missing)
        return cls(
            source=path,
            has_table=True,
            root=root,
            stacks=[root / name for name in rows.stack_names],
            stack_names=rows.stack_names,
            stack=np.frombuffer(rows.stack, dtype=np.int32),
            image=np.frombuffer(rows.image, dtype=np.int32),
            line=np.frombuffer(rows.line, dtype=np.int32),
            optics_group=np.frombuffer(rows.optics_group, dtype=np.int32),
            optics=optics,
            micrograph_names=tuple(unquote(name) for name in rows.micrographs),
            micrograph=np.frombuffer(rows.micrograph, dtype=np.int32) if rows.micrographs else None,
        )

    @property
    def is_cs(self) -> bool:
        """Whether the table is cryoSPARC's."""
        return self.source.suffix.lower() == CS_SUFFIX

    def column(self, label: str, field: str = "") -> NDArray[np.str_] | None:
        """See `ImageSet.column`."""
        if not (self.has_table and self.is_cs):
            return super().column(label)
        table = CsTable(self.source, self.passthrough)
        if field not in table.fields:
            return None
        values: NDArray[np.str_] = table.column(field).astype(str)
        return values if self.kept is None else values[self.kept]

    @staticmethod
    def _is_own(table: Table) -> bool:
        """Tell a table of particles: by its name, or, whatever it is called, by its column of images."""
        return bool(table.labels) and (table.name in _PARTICLE_TABLES or _IMAGE in table.labels)

    def distinct_images(self) -> list[NDArray[np.int32]]:
        """Return, per stack, the 0-based indices of the images in use, ascending, each once.

        They are what has to be denoised, and the order of the images in the denoised stack.
        """
        keys = np.unique(self._image_keys())
        return np.split(
            (keys & 0xFFFFFFFF).astype(np.int32),
            np.searchsorted(keys, np.arange(1, len(self.stacks), dtype=np.int64) << 32),
        )

    def output_positions(self) -> NDArray[np.int32]:
        """Return, per row, the 0-based position of its image in `distinct_images()[stack]`, int32 `(n,)`."""
        keys, position = np.unique(self._image_keys(), return_inverse=True)
        begin = np.searchsorted(keys, np.arange(len(self.stacks), dtype=np.int64) << 32)
        return (position.reshape(-1) - begin[self.stack]).astype(np.int32)

    def _image_keys(self) -> NDArray[np.int64]:
        return (self.stack.astype(np.int64) << 32) | self.image

    def check_images(self) -> list[tuple[int, int, int]]:
        """Open each stack once, compare it with the table, and return the stacks' shapes `(n, y, x)`.

        Raises
        ------
        MrcError
            If a stack cannot be read, or a row asks for an image beyond its end.
        ImageError
            If an image is not square, its size disagrees with the table, or sizes differ inside one optics
            group.
        """
        shapes = self._sound_shapes("stacks")
        self.check_boxes(dict(enumerate(shapes)))
        return shapes

    def _check_file(self, number: int, reader: StackReader) -> None:
        if (problem := _why_map(reader)) is not None:
            raise MrcError(
                f"{problem}, not a stack of particles.",
                path=reader.path,
                remedy="Give the particles that it was made from.",
            )
        if self._last_image[number] >= reader.n_images:
            row = int(np.argmax((self.stack == number) & (self.image >= reader.n_images)))
            raise MrcError(
                f"the stack has {reader.n_images} images, but image {self.image[row] + 1} is wanted by "
                f"{self._row(row)}.",
                path=reader.path,
            )

    def denoised_micrographs(self) -> dict[str, str]:
        """Return which of some micrographs were denoised, and the label in each that says so.

        A job denoises all that it is given, so a few of each folder tell of the others: to open thousands
        takes minutes on a file server. Micrographs that are gone, or cannot be read, tell nothing.
        """
        folders: dict[Path, list[str]] = {}
        for name in self.micrograph_names:
            folders.setdefault(Path(name).parent, []).append(name)
        found = {}
        for name in (names[i] for names in folders.values() for i in evenly_spread(len(names), _MICROGRAPHS)):
            with contextlib.suppress(MrcError), StackReader(self.root / name) as reader:
                if reader.header.denoised_label:
                    found[name] = reader.header.denoised_label
        return found

    @functools.cached_property
    def _last_image(self) -> NDArray[np.int32]:
        """The largest 0-based index that a row wants, by position in `stacks`."""
        largest = np.full(len(self.stacks), -1, dtype=np.int32)
        np.maximum.at(largest, self.stack, self.image)
        return largest

    def _rows_without(self, kept: NDArray[np.bool_], number: NDArray[np.int32]) -> dict[str, Any]:
        dark = frozenset(int(number[stack]) for stack in self.dark_stacks if number[stack] >= 0)
        changes = {"image": self.image[kept], "dark_stacks": dark}
        if self.micrograph is not None:
            left, micrograph = np.unique(self.micrograph[kept], return_inverse=True)
            names = tuple(self.micrograph_names[position] for position in left.tolist())
            changes |= {"micrograph_names": names, "micrograph": micrograph.astype(np.int32)}
        return changes

    def check_boxes(self, shapes: Mapping[int, tuple[int, int, int]]) -> None:
        """Compare the stacks' shapes `(n, y, x)`, by position in `stacks`, with the optics groups.

        Raises
        ------
        ImageError
            If an image is not square, its size disagrees with the table, or sizes differ inside one optics
            group.
        """
        pairs = (self.optics_group.astype(np.int64) << 32) | self.stack
        _, first_rows = np.unique(pairs, return_index=True)
        first_of_group: dict[int, tuple[int, Path]] = {}
        for row in first_rows.tolist():
            stack, optics = int(self.stack[row]), self.optics[int(self.optics_group[row])]
            if stack not in shapes:
                continue
            path, (_, y, x) = self.stacks[stack], shapes[stack]
            if x != y:
                raise ImageError(f"expected square particle images, found {x} x {y} px.", path=path)
            if optics.box_px is not None and optics.box_px != x:
                raise ImageError(
                    f"the images are {x} px wide, the table says {optics.box_px} px for optics group "
                    f"{optics.number} ({self._row(row)}).",
                    path=path,
                )
            box_px, first_path = first_of_group.setdefault(optics.number, (x, path))
            if box_px != x:
                raise ImageError(
                    f"the images are {x} px wide, those of {first_path} in the same optics group "
                    f"{optics.number} are {box_px} px wide.",
                    path=path,
                    remedy="Give each box size its own optics group.",
                )

    def _numbers(self) -> list[int]:
        """Return the 0-based number of each row's image in its stack."""
        numbers: list[int] = self.image.tolist()
        return numbers

    def _row(self, row: int) -> str:
        return f"{self.source}, line {self.line[row]}" if self.line[row] else f"{self.source}, row {row + 1}"

    def write(
        self,
        path: str | Path,
        image_names: Iterable[str],
        *,
        absolute_originals: bool = False,
        scores: Sequence[float] | None = None,
    ) -> None:
        """Write the table with other images: the source's text with only the image columns changed.

        `rlnImageName` becomes the given name and `rlnImageOriginalName` the raw image's, so that RELION's
        "revert to original particles" swaps them back. If the table already has original names, they move to
        `rlnCryohushPreviousOriginalName` (`…2`, `…3` when taken).

        Parameters
        ----------
        path
            The new STAR file.
        image_names
            One `000001@stack.mrcs` per row, in order; an iterator is consumed as the rows are written.
        absolute_originals
            Write the raw images' names with absolute paths, for a table outside `root`. Otherwise their text
            stays as it is.
        scores
            One per row, for the column `SCORE_LABEL`.

        Raises
        ------
        StarError
            If the source was changed since it was read.
        OutputError
            If the file cannot be written, or is the source.
        ValueError
            If the set is not from a STAR file, or there are not as many names as rows.
        """
        if not self.has_table or self.is_cs:
            raise ValueError(f"{self.source} is no STAR file: it has no table to rewrite")
        self._rename(
            path,
            _IMAGE,
            "rlnImageOriginalName",
            image_names,
            absolute_originals=absolute_originals,
            more={} if scores is None else {SCORE_LABEL: scores},
        )

    def write_cs(
        self,
        path: str | Path,
        stack_names: Sequence[str],
        scores: NDArray[np.float32] | None = None,
        chosen: NDArray[np.bool_] | None = None,
    ) -> None:
        """Write a `.cs` table with other stacks, and the `.csg` file with which cryoSPARC imports it.

        Each new stack must hold what `distinct_images` says, in that order. `cs.rewrite` tells what changes.

        Parameters
        ----------
        path
            The new `.cs` file.
        stack_names
            For each of `stacks` the new one, relative to the new file's folder.
        scores
            One per row, for the field `cs.SCORE_FIELD`.
        chosen
            Which rows are written; None is all.

        Raises
        ------
        CsError
            If the source was changed since it was read.
        OutputError
            If a file cannot be written, or is the source.
        """
        table = CsTable(self.source, self.passthrough)
        now = read_images(table)
        known = {name: position for position, name in enumerate(self.stack_names)}
        number = np.array([known.get(name, -1) for name in now.stack_names], dtype=np.int32)
        rows = slice(None) if self.kept is None else self.kept
        if not (
            (self.kept is None or len(self.kept) == len(table))
            and np.array_equal(number[now.stack][rows], self.stack)
            and np.array_equal(now.image[rows], self.image)
        ):
            raise CsError("the file was changed while it was in use.", path=self.source)
        kept, positions = self.kept, self.output_positions()
        stack = self.stack
        if chosen is not None:
            kept = np.ones(len(table), np.bool_) if kept is None else kept.copy()
            kept[kept] = chosen
            stack, positions = stack[chosen], positions[chosen]
            scores = None if scores is None else scores[chosen]
        rewrite_cs(table, path, stack_names, stack, positions, kept, scores)


def _why_map(reader: StackReader) -> str | None:
    """Return what tells that a file holds a 3D map; None for a stack.

    Many programs write the header of a map for stacks, too: then the images decide.
    """
    n, y, x = reader.shape
    size = f"a 3D map of {x} x {y} x {n} voxels"
    if n == y == x > 1 and reader.header.is_volume and reader.path.suffix.lower() != ".mrcs":
        return f"{size}, as its header says"
    if not (reader.header.is_volume or n == y == x) or not reader.looks_like_map():
        return None
    if reader.header.is_volume:
        return f"{size}: each section is nearly the same as the next"
    reader.remarks.append(f"{size}? Each image is nearly the same as the next.")
    return None


def _read_star(path: Path) -> tuple[Rows, dict[int, OpticsGroup]]:
    """Read the rows and the optics groups, in whichever order their tables stand."""
    rows: Rows | None = None
    optics: dict[int, OpticsGroup] | None = None
    row_optics: dict[int, OpticsGroup] = {}
    met, labels = list[str](), list[str]()
    for table in read_tables(path):
        met += [f"data_{table.name}"] if table.line else []
        refuse_others(table)
        if table.name == "optics":
            optics = read_optics(table, before=optics)
        elif ParticleSet._is_own(table):
            if rows is not None:
                raise StarError(
                    f"a second table of particles, data_{table.name}.",
                    path=path,
                    line=table.line,
                    remedy="Leave one of them in the file.",
                )
            labels = table.labels
            rows, row_optics = _read_rows(table)
    if rows is None:
        raise StarError(
            f"no table of particles (data_particles, or any with _{_IMAGE}) found, only {', '.join(met)}.",
            path=path,
            remedy=_NO_TABLE,
        )
    if not rows.stack:
        raise StarError("the table of particles has no rows.", path=path)
    if optics is None:
        return rows, row_optics
    check_groups(path, rows.optics_group, rows.line, optics, labels)
    return rows, optics


def _read_rows(table: Table) -> tuple[Rows, dict[int, OpticsGroup]]:
    """Read the table of particles; return also the optics that its rows themselves tell."""
    if _IMAGE not in table.labels:
        where = "rlnCoordinateX" in table.labels
        is_micrographs = _MICROGRAPH in table.labels and not where
        kind = "these are coordinates of particles, without images" if where else "it names no images"
        raise StarError(
            f"data_{table.name} has no column _{_IMAGE}: {kind}."
            f"{' It is a table of micrographs.' if is_micrographs else ''}",
            path=table.path,
            line=table.line,
            remedy="Extract the particles first, and give that table." if where else _NO_TABLE,
        )
    rows, image_column = Rows(), table.column(_IMAGE)
    micrograph_column = table.labels.index(_MICROGRAPH) if _MICROGRAPH in table.labels else None
    group_of, optics = grouping(table)
    for line, _, tokens in table.rows():
        if not tokens:
            continue
        name = tokens[image_column]
        if name[:1] in (b'"', b"'"):
            name = encode(unquote(name))
        index, stack_name = split_image_name(name)
        if not (stack_name and index and 0 < int(index) <= LARGEST_INDEX):
            raise StarError(
                f"expected an image name like 000001@stack.mrcs, found {decode(name)!r}.",
                path=table.path,
                line=line,
                remedy=""
                if index
                else "Names without 000001@ mean subtomograms or single images: not supported.",
            )
        rows.stack.append(rows.stack_of(stack_name))
        rows.image.append(int(index) - 1)
        rows.line.append(line)
        rows.optics_group.append(group_of(tokens, line))
        if micrograph_column is not None:
            position = rows.micrographs.setdefault(tokens[micrograph_column], len(rows.micrographs))
            rows.micrograph.append(position)
    return rows, optics


def _read_cs(path: Path, root: Path | None, passthrough: Sequence[str | Path]) -> ParticleSet:
    table = CsTable(path, passthrough)
    images = read_images(table)

    def missing(stack: int, problem: str, remedy: str) -> CsError:
        row = int(np.argmax(images.stack == stack)) + 1
        return CsError(f"row {row}: {problem}", path=path, remedy=remedy)

    root = find_root(path, images.stack_names, root, missing, own_folder_first=images.beside)
    return ParticleSet(
        source=path,
        has_table=True,
        root=root,
        stacks=[root / name for name in images.stack_names],
        stack_names=images.stack_names,
        stack=images.stack,
        image=images.image,
        line=np.zeros(len(table), dtype=np.int32),
        optics_group=images.optics_group + np.int32(1),
        optics={
            number: OpticsGroup(number, f"opticsGroup{number}", *values, f"blob/psize_A of {path.name}")
            for number, values in enumerate(images.optics, start=1)
        },
        dark_stacks=images.dark_stacks,
        says_contrast=images.says_contrast,
        passthrough=table.passthrough,
        micrograph_names=images.micrograph_names,
        micrograph=images.micrograph,
    )


def _whole_stack(path: Path) -> ParticleSet:
    with StackReader(path) as reader:
        n, height, box = reader.shape
        if min(height, box) >= _FRAME_PX:
            raise MrcError(
                f"expected particles, found {n} images of {box} x {height} px: a movie, or a micrograph?",
                path=path,
                remedy="Correct movies for motion first; micrographs have the suffix .mrc and one image. So "
                "large particles have to be named by a table.",
            )
        pixel_size, source = header_pixel_size(reader)
    zeros = np.zeros(n, dtype=np.int32)
    return ParticleSet(
        source=path,
        has_table=False,
        root=path.absolute().parent,
        stacks=[path.absolute()],
        stack_names=[path.name],
        stack=zeros,
        image=np.arange(n, dtype=np.int32),
        line=zeros,
        optics_group=zeros + 1,
        optics={1: OpticsGroup(1, "opticsGroup1", pixel_size, box, None, None, None, source)},
    )
