"""What a run is going to read and write: decided before it starts, and the same when it starts again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from ..errors import OutputError
from ..io.particles import STACK_SUFFIXES, ParticleSet

TABLE_NAME = "particles.star"
CS_TABLE_NAME = "particles.cs"
# Whatever table a run may leave: cryoSPARC's comes with a group file.
TABLE_NAMES = (TABLE_NAME, CS_TABLE_NAME, "particles.csg")


@dataclass(frozen=True, eq=False)
class StackPlan:
    """One stack to read and the one to make of it.

    Attributes
    ----------
    source
        The stack to read.
    name
        The stack to write, relative to the output directory.
    indices
        int32: the 0-based images of `source` that are used, in the order in which they are written.
    shape
        `(y, x)` of an image.
    pixel_size_angstrom
        None if unknown.
    protein_dark
        Whether protein is dark, so that the network has to see the negative.
    """

    source: Path
    name: str
    indices: NDArray[np.int32]
    shape: tuple[int, int]
    pixel_size_angstrom: float | None
    protein_dark: bool = False


@dataclass(frozen=True)
class Piece:
    """The images `begin` to `end` (in the order of writing) of stack number `stack`."""

    stack: int
    begin: int
    end: int


def plan_stacks(particles: ParticleSet) -> list[StackPlan]:
    """Plan one output stack per input stack; each image that the table uses is in it once.

    Raises
    ------
    MrcError, ImageError
        If a stack cannot be read or contradicts the table.
    """
    shapes = particles.check_images()
    return [
        StackPlan(
            source,
            name,
            indices,
            shape[1:],
            particles.pixel_size_angstrom(stack),
            stack in particles.dark_stacks,
        )
        for stack, (source, name, indices, shape) in enumerate(
            zip(particles.stacks, output_names(particles), particles.distinct_images(), shapes, strict=True)
        )
    ]


def output_names(particles: ParticleSet) -> list[str]:
    """Return the name below the output directory of each stack's denoised counterpart.

    It is the stack's own name in the table, so that equal names in two folders stay apart. What lies outside
    the table's root keeps its folders too (`../x.mrcs` becomes `x.mrcs`); names that then meet get a number.
    """
    root, names, taken = Path(os.path.normpath(particles.root.absolute())), [], set()
    for text in particles.stack_names:
        path = Path(os.path.normpath(text))
        if path.is_relative_to(root):
            path = path.relative_to(root)
        parts = [part for part in path.parts if part not in ("..", path.anchor)]
        name = PurePosixPath(*parts)
        stem = name.stem if name.suffix.lower() in STACK_SUFFIXES else name.name
        name, number = name.with_name(f"{stem}.mrcs"), 1
        while str(name) in taken:
            number += 1
            name = name.with_name(f"{stem}_{number}.mrcs")
        taken.add(str(name))
        names.append(str(name))
    return names


def refuse_to_replace_inputs(particles: ParticleSet, stacks: Sequence[StackPlan], output_dir: Path) -> None:
    """Raise when a file of the run would be written over one that it reads.

    Raises
    ------
    OutputError
        Names the file.
    """
    inputs = {
        os.path.realpath(path) for path in [particles.source, *particles.passthrough, *particles.stacks]
    }
    for name in [*TABLE_NAMES, *(stack.name for stack in stacks)]:
        if os.path.realpath(output_dir / name) in inputs:
            raise OutputError(
                f"{output_dir / name} is an input of this run and is never written to. "
                "Choose another directory."
            )


def written_image_names(
    particles: ParticleSet, stacks: Sequence[StackPlan], output_dir: Path
) -> Iterator[str]:
    """Yield `000001@stack.mrcs` for each row of the table.

    Below the root against which the input's names were resolved, names are relative to that root, as RELION
    wants them; elsewhere they are relative to the table's own folder.
    """
    prefix = path_below(output_dir, particles.root) or Path()
    names = [str(PurePosixPath(prefix / stack.name)) for stack in stacks]
    for stack, position in zip(particles.stack.tolist(), particles.output_positions().tolist(), strict=True):
        yield f"{position + 1:06d}@{names[stack]}"


def path_below(path: Path, root: Path) -> Path | None:
    """Return `path` relative to `root`, or None when it does not lie below it."""
    for spelling in (os.path.abspath, os.path.realpath):
        absolute, base = Path(spelling(path)), Path(spelling(root))
        if absolute.is_relative_to(base):
            return absolute.relative_to(base)
    return None


def batches(
    stacks: Sequence[StackPlan], batch_sizes: Mapping[tuple[int, int], int]
) -> Iterator[tuple[Piece, ...]]:
    """Yield the pieces of each batch; a batch goes on into the next stack with images of the same kind.

    The boundaries depend on the plan alone, so that a resumed run computes each image in the company in which
    an undisturbed run does: that can decide the last bit.
    """
    pieces: list[Piece] = []
    room, kind = 0, None
    for number, stack in enumerate(stacks):
        if kind != (stack.shape, stack.pixel_size_angstrom, stack.protein_dark):
            if pieces:
                yield tuple(pieces)
            pieces, kind = [], (stack.shape, stack.pixel_size_angstrom, stack.protein_dark)
            room = batch_sizes[stack.shape]
        begin = 0
        while begin < len(stack.indices):
            end = min(begin + room, len(stack.indices))
            pieces.append(Piece(number, begin, end))
            room -= end - begin
            begin = end
            if not room:
                yield tuple(pieces)
                pieces, room = [], batch_sizes[stack.shape]
    if pieces:
        yield tuple(pieces)
