"""What a run is going to read and write: decided before it starts, and the same when it starts again."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..config.denoise import DenoiseOptions, Protein
from ..errors import ConfigurationError, InputError, MrcError, several
from ..io.files import refuse_input
from ..io.image_names import without_dots
from ..io.image_set import Examined
from ..io.micrographs import MICROGRAPH_SUFFIX, MOVIE_SUFFIXES, MicrographSet, lists_micrographs
from ..io.mrc import StackReader
from ..io.particles import STACK_SUFFIXES, ParticleSet
from ..spread import evenly_spread

if TYPE_CHECKING:
    from torch import Tensor

    from ..imaging.ctf import CtfParameters

TABLE_NAME = "particles.star"
CS_TABLE_NAME = "particles.cs"
CSG_NAME = "particles.csg"
MICROGRAPH_TABLE_NAME = "micrographs.star"
# Whatever table a run may leave: cryoSPARC's comes with a group file.
TABLE_NAMES = (TABLE_NAME, CS_TABLE_NAME, CSG_NAME, MICROGRAPH_TABLE_NAME)

COARSE_SHARE, COARSE_SHARE_MICROGRAPH = 0.75, 0.55
"""Pixels coarser than this share of the coarsest that a model knows are made finer for it.

A micrograph has no context that would make up for what is lost at the coarse end.
"""

BRIGHT = 1.12
"""Particles are bright with so many times the power of their noise (`context.noise_spectrum`).

With less their signal would be too weak for a network on the finer grid, where it is spread over more pixels.
"""

SAMPLE = 128
"""Particles that are looked at before the work, of all stacks together."""
# They are from so many stacks.
_STACKS = 8

SMALLEST_PX = 8
"""Least side of an image: outside the circle of a particle in a smaller box nothing is left."""

PLAUSIBLE_ANGSTROM = (0.1, 40.0)
"""Pixels of other sizes are a mistake: nm or pm for Å, or a header that holds something else."""

UNSET_ANGSTROM = 1.0
"""Many programs write this into a header where they do not know the pixel size."""

# A pixel size that was refined later differs from the header's by less.
_REFINED = 1.05

_UNSAID = (
    "its .cs file has no field blob/sign, so protein is taken for white. Say --protein dark if it is dark."
)

ImageSet = ParticleSet | MicrographSet
# RELION's job that a file comes from; its own jobs, too, name their outputs without it.
_JOB_FOLDER = re.compile(r"[^/]+/job\d+/(?=.)")


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
    pixel_size_source
        What says the pixel size.
    finer
        How many times finer the grid is on which the network sees the images.
    is_micrograph
        Whether it is one whole micrograph.
    remarks
        What a user should know of how the file is read.
    """

    source: Path
    name: str
    indices: NDArray[np.int32]
    shape: tuple[int, int]
    pixel_size_angstrom: float | None
    protein_dark: bool = False
    pixel_size_source: str = ""
    finer: int = 1
    is_micrograph: bool = False
    remarks: tuple[str, ...] = ()

    def in_pixels(self, length_angstrom: float | None) -> float | None:
        """Return a length in pixels; None where it or the pixel size is not known."""
        if length_angstrom is None or self.pixel_size_angstrom is None:
            return None
        return length_angstrom / self.pixel_size_angstrom

    @property
    def kind(self) -> tuple[tuple[int, int], float | None, bool]:
        """What images have in common that may share a batch, and are judged beside each other."""
        return self.shape, self.pixel_size_angstrom, self.protein_dark


@dataclass(frozen=True)
class Piece:
    """The images `begin` to `end` (in the order of writing) of stack number `stack`."""

    stack: int
    begin: int
    end: int


def read_images(
    source: str | Path, *, root: Path | None = None, passthrough: Sequence[str | Path] = ()
) -> ImageSet:
    """Read a table of particles or micrographs, or take a stack or a micrograph.

    A `.mrc` file with one image is a micrograph, any other bare file a stack of particles.

    Parameters
    ----------
    source
        `.star`, `.cs`, `.mrcs` or `.mrc`.
    root, passthrough
        See `ParticleSet.read`.

    Raises
    ------
    InputError
        If the input cannot be read or is of a kind that cannot be denoised.
    ConfigurationError
        If there are passthrough files but `source` is no `.cs` file.
    """
    source = Path(source)
    if not holds_micrographs(source):
        return ParticleSet.read(source, root=root, passthrough=passthrough)
    if passthrough:
        raise ConfigurationError(
            f"passthrough files complete a .cs file, and {source} is none. Leave them out."
        )
    return MicrographSet.read(source, root=root)


def chosen_images(
    source: str | Path,
    options: DenoiseOptions,
    *,
    root: Path | None = None,
    passthrough: Sequence[str | Path] = (),
) -> tuple[ImageSet, list[InputError], int]:
    """Return the images that a run denoises, what is wrong with damaged files, and how many rows there are.

    Rows of damaged files are left out with `options.skip_bad`, those after the first `options.limit` always.

    Raises
    ------
    InputError, ConfigurationError
        As `read_images`, or if all files are damaged.
    """
    images, damaged = read_images(source, root=root, passthrough=passthrough), list[InputError]()
    n_rows = len(images)
    if options.limit is not None:
        images = images.first(options.limit)
    if options.skip_bad and images.has_table:
        images, damaged = leave_out_damaged(images)
    return images, damaged, n_rows


def holds_micrographs(source: Path) -> bool:
    """Tell whether an input is a micrograph or a table of them, and not particles.

    Raises
    ------
    InputError
        If the input cannot be read or is of a kind that cannot be denoised.
    """
    suffix = source.suffix.lower()
    if suffix in MOVIE_SUFFIXES:
        raise InputError(
            f"movies and compressed files ({suffix}) are not supported.",
            path=source,
            remedy="Correct movies for motion first, uncompress .mrc.gz, and give the .mrc or .star.",
        )
    if suffix == MICROGRAPH_SUFFIX:
        with StackReader(source) as reader:
            return reader.n_images == 1
    return suffix == ".star" and lists_micrographs(source)


def plan_stacks(
    images: ImageSet,
    protein: Protein = "auto",
    *,
    pixel_size_angstrom: float | None = None,
    trained_angstrom: tuple[float, float] | None = None,
) -> list[StackPlan]:
    """Plan one output file per input file; each image that the table uses is in it once.

    Parameters
    ----------
    images
        The input.
    protein
        Whether protein is dark or white. `auto`: dark in micrographs, in particles as the table says.
    pixel_size_angstrom
        The user's own, before that of the table or header.
    trained_angstrom
        Smallest and largest pixel size that the model was trained on; None if that is not known.

    Raises
    ------
    InputError
        If files cannot be read, contradict the table or were denoised before; names all of them.
    """
    is_micrographs = isinstance(images, MicrographSet)
    found = images.examine()
    if found.damaged:
        what = "micrographs" if is_micrographs else "stacks"
        raise several(list(found.damaged.values()), len(images.stacks), what)
    refuse_denoised(images, found)
    n_stacks = len(images.stacks)
    if isinstance(images, MicrographSet):
        indices, dark = [np.zeros(1, dtype=np.int32)] * n_stacks, frozenset(range(n_stacks))
    else:
        images.check_boxes(found.shapes)
        indices, dark = images.distinct_images(), images.dark_stacks
    says_contrast = not isinstance(images, ParticleSet) or images.says_contrast or protein != "auto"
    plans = []
    for stack, (source, name) in enumerate(zip(images.stacks, output_names(images), strict=True)):
        size, size_source = images.pixel_size_angstrom(stack), images.pixel_size_source(stack)
        if pixel_size_angstrom is not None:
            instead = f", where {size_source} says {size:g} Å" if size and size != pixel_size_angstrom else ""
            size, size_source = pixel_size_angstrom, f"the option --pixel-size{instead}"
        elif size is None and size_source:
            raise MrcError(
                f"{size_source}: pixels of two sizes.",
                path=source,
                remedy="Give the right one with --pixel-size.",
            )
        y, x = found.shapes[stack][1:]
        if min(y, x) < SMALLEST_PX:
            raise MrcError(
                f"images of {x} x {y} px are too small to tell noise from a particle: at least {SMALLEST_PX} "
                "px are needed.",
                path=source,
            )
        if size is not None and not PLAUSIBLE_ANGSTROM[0] <= size <= PLAUSIBLE_ANGSTROM[1]:
            raise MrcError(
                f"no cryo-EM image has pixels of {size:g} Å, as {size_source} says: another unit?",
                path=source,
                remedy="Correct the table, or give the right size with --pixel-size.",
            )
        remarks = [*found.remarks.get(stack, ()), *(() if says_contrast else (_UNSAID,))]
        told = found.pixel_sizes[stack]
        known = size if pixel_size_angstrom is None and told != UNSET_ANGSTROM else None
        if known and told and max(told / known, known / told) > _REFINED:
            remarks.append(
                f"its header says pixels of {told:g} Å, {size_source} {known:g} Å, which is taken. If the "
                "header is right, correct the table, or give --pixel-size."
            )
        plans.append(
            StackPlan(
                source,
                name,
                indices[stack],
                found.shapes[stack][1:],
                size,
                stack in dark if protein == "auto" else protein == "dark",
                size_source,
                is_micrograph=is_micrographs,
                remarks=tuple(remarks),
            )
        )
    return _on_finer_grids(plans, images, trained_angstrom)


def finer_grid(
    pixel_size_angstrom: float | None,
    trained_angstrom: tuple[float, float] | None,
    sampled: Callable[[], tuple[Tensor, CtfParameters | None]] | None,
) -> int:
    """Return how many times finer the grid has to be on which a model sees images.

    Near the coarse end of what it was trained on it is no longer at its best.

    Parameters
    ----------
    pixel_size_angstrom
        None if unknown: no finer grid then.
    trained_angstrom
        Smallest and largest pixel size that the model was trained on; None if that is not known.
    sampled
        Gives some particles `(n, y, x)`, which have to be bright, and their CTFs, if these are known; called
        where pixels are coarse. None for micrographs.
    """
    if pixel_size_angstrom is None or trained_angstrom is None:
        return 1
    begin = COARSE_SHARE_MICROGRAPH if sampled is None else COARSE_SHARE
    if pixel_size_angstrom <= begin * trained_angstrom[1]:
        return 1
    if sampled is not None:
        # torch takes over a second to be imported, and hosts plan without it
        from ..context.noise_spectrum import brightness_beside_noise

        if brightness_beside_noise(*sampled(), pixel_size_angstrom) <= BRIGHT:
            return 1
    return max(2, math.ceil(pixel_size_angstrom / (COARSE_SHARE * trained_angstrom[1]) - 1e-9))


def sample(images: NDArray[np.float32]) -> Tensor:
    """Some of the particles `(n, y, x)`, evenly spread, with their defects filled.

    Else masks and outlying pixels would decide what looks bright.
    """
    import torch

    from ..imaging.defects import filled
    from ..imaging.normalise import default_radius_px

    some = torch.from_numpy(images[evenly_spread(len(images), SAMPLE)])
    return filled(some, default_radius_px((some.shape[1], some.shape[2])))


def sampled_stacks(stacks: Sequence[StackPlan]) -> NDArray[np.int64]:
    """Return the positions of the few stacks that `samples` reads, evenly spread."""
    return evenly_spread(len(stacks), _STACKS)


def samples(stacks: Sequence[StackPlan]) -> Iterator[Tensor]:
    """Read a `sample` of each of a few stacks of particles (`sampled_stacks`)."""
    for number, chosen in _sampled_images(stacks):
        with StackReader(stacks[number].source) as reader:
            yield sample(reader.read(chosen))


def _sampled_images(stacks: Sequence[StackPlan]) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Positions of a few stacks, and some of the images that are used of each."""
    numbers = sampled_stacks(stacks)
    for number in numbers.tolist():
        indices = stacks[number].indices
        yield number, indices[evenly_spread(len(indices), SAMPLE // len(numbers))]


def spread_over(stacks: Sequence[StackPlan], most: int) -> Iterator[tuple[StackPlan, NDArray[np.int64]]]:
    """Yield stacks, and positions in them, of images evenly spread over those that are like the first."""
    first = stacks[0]
    alike = [
        stack
        for stack in stacks
        if (stack.shape, stack.pixel_size_angstrom) == (first.shape, first.pixel_size_angstrom)
    ]
    ends = np.cumsum([len(stack.indices) for stack in alike])
    picks = evenly_spread(int(ends[-1]), most)
    of_stack = np.searchsorted(ends, picks, side="right")
    for number in np.unique(of_stack).tolist():
        stack = alike[number]
        yield stack, picks[of_stack == number] - (int(ends[number]) - len(stack.indices))


def _on_finer_grids(
    plans: list[StackPlan], images: ImageSet, trained_angstrom: tuple[float, float] | None
) -> list[StackPlan]:
    """The plans with the grid of each, one for all stacks of a pixel size."""
    alike: dict[float | None, list[int]] = {}
    for number, plan in enumerate(plans):
        alike.setdefault(plan.pixel_size_angstrom, []).append(number)
    finer = {
        size: finer_grid(
            size,
            trained_angstrom,
            partial(_sampled, plans, numbers, images) if isinstance(images, ParticleSet) else None,
        )
        for size, numbers in alike.items()
    }
    return [replace(plan, finer=finer[plan.pixel_size_angstrom]) for plan in plans]


def _sampled(
    plans: Sequence[StackPlan], numbers: Sequence[int], particles: ParticleSet
) -> tuple[Tensor, CtfParameters | None]:
    """Samples of those stacks of some numbers that have boxes as the first, and their CTFs."""
    import torch

    from ..context.contexts import are_premultiplied, optics_of, rows_of_stacks

    numbers = [number for number in numbers if plans[number].shape == plans[numbers[0]].shape]
    stacks = [plans[number] for number in numbers]
    # the noise of images that were multiplied by their CTF follows it, too
    optics = None if are_premultiplied(particles) else optics_of(particles)
    if optics is not None:
        of_stacks, rows = rows_of_stacks(particles), []
        for place, chosen in _sampled_images(stacks):
            of_stack = of_stacks[numbers[place]]
            rows.append(of_stack[np.searchsorted(particles.image[of_stack], chosen)])
        optics = optics[torch.from_numpy(np.concatenate(rows))]
    return torch.cat(list(samples(stacks))), optics


def leave_out_damaged(images: ImageSet) -> tuple[ImageSet, list[InputError]]:
    """Return the input without the rows of files that cannot be used, and what is wrong with these.

    Raises
    ------
    InputError
        If none is left.
    """
    damaged = images.examine().damaged
    if len(damaged) == len(images.stacks):
        raise several(list(damaged.values()), len(images.stacks), "files")
    return (images.without(damaged), list(damaged.values())) if damaged else (images, [])


def refuse_denoised(images: ImageSet, found: Examined) -> None:
    """Raise when images were denoised by cryohush before: the result would pass for one of raw images.

    So were particles that were extracted from denoised micrographs.

    Raises
    ------
    InputError
        Names the first file.
    """
    if found.denoised:
        number, label = next(iter(found.denoised.items()))
        raise InputError(
            f"these images were denoised already ({label}): {len(found.denoised)} of "
            f"{len(images.stacks)} files.",
            path=images.stacks[number],
            remedy="Give the raw images; docs/relion.md and docs/cryosparc.md tell how to get back.",
        )
    if not isinstance(images, ParticleSet):
        return
    if denoised := images.denoised_micrographs():
        name, label = next(iter(denoised.items()))
        raise InputError(
            "the table says that these particles are from micrographs that were denoised already, such as "
            f"{name} ({label}).",
            path=images.source,
            remedy="Extract them from the raw ones; docs/relion.md tells how to bring the picks there. "
            "If they are, correct the names of micrographs in the table.",
        )


def output_names(images: ImageSet) -> list[str]:
    """Return the name below the output directory of each file's denoised counterpart.

    It is the file's own name in the table, so that equal names in two folders stay apart. What lies outside
    the table's root keeps its folders too (`../x.mrcs` becomes `x.mrcs`); names that then meet get a number.
    Micrographs go without the folder of RELION's job, as in RELION's own jobs, unless two of them would then
    meet: RELION 3.1 finds the coordinates of a micrograph by the rest of its name, so picks on denoised
    micrographs are also those of the raw ones.
    """
    root = Path(os.path.normpath(images.root.absolute()))
    below = [_below(Path(os.path.normpath(name)), root) for name in images.stack_names]
    suffix = ".mrcs"
    if isinstance(images, MicrographSet):
        suffix = MICROGRAPH_SUFFIX
        short = [PurePosixPath(_JOB_FOLDER.sub("", str(name), count=1)) for name in below]
        counts = Counter(short)
        below = [name if counts[name] == 1 else long for name, long in zip(short, below, strict=True)]
    # a folder may be called `a.mrcs`, too
    names, taken = [], {str(folder) for path in below for folder in path.parents}
    for path in below:
        stem = path.stem if path.suffix.lower() in STACK_SUFFIXES else path.name
        names.append(free_name(path.with_name(f"{stem}{suffix}"), taken))
    return names


def free_name(path: PurePosixPath, taken: set[str]) -> str:
    """Return the name of a file, with a number if it is taken, and take it."""
    name, number = path, 1
    while str(name) in taken:
        number += 1
        name = path.with_stem(f"{path.stem}_{number}")
    taken.add(str(name))
    return str(name)


def _below(path: Path, root: Path) -> PurePosixPath:
    if path.is_relative_to(root):
        path = path.relative_to(root)
    return PurePosixPath(*(part for part in path.parts if part not in ("..", path.anchor)))


def refuse_to_replace_inputs(images: ImageSet, stacks: Sequence[StackPlan], output_dir: Path) -> None:
    """Raise when a file of the run would be written over one that it reads.

    Raises
    ------
    OutputError
        Names the file.
    """
    inputs = {os.path.realpath(path) for path in [*source_files(images), *images.stacks]}
    for name in [*TABLE_NAMES, *(stack.name for stack in stacks)]:
        refuse_input(output_dir / name, inputs)


def source_files(images: ImageSet) -> list[Path]:
    """Return the files of the table, or the bare stack or micrograph."""
    return [images.source, *(images.passthrough if isinstance(images, ParticleSet) else ())]


def written_image_names(images: ImageSet, stacks: Sequence[StackPlan], output_dir: Path) -> Iterator[str]:
    """Yield `000001@stack.mrcs`, or a micrograph's name, for each row of the table.

    Below the root against which the input's names were resolved, names are relative to that root, as RELION
    wants them; elsewhere they are relative to the table's own folder.
    """
    prefix = path_below(output_dir, images.root) or Path()
    names = [str(PurePosixPath(prefix / stack.name)) for stack in stacks]
    if isinstance(images, MicrographSet):
        yield from (names[stack] for stack in images.stack.tolist())
        return
    for stack, position in zip(images.stack.tolist(), images.output_positions().tolist(), strict=True):
        yield f"{position + 1:06d}@{names[stack]}"


def path_below(path: Path, root: Path) -> Path | None:
    """Return `path` relative to `root`, or None when it does not lie below it."""
    for spelling in (without_dots, os.path.realpath):
        absolute, base = Path(spelling(str(path.absolute()))), Path(spelling(str(root.absolute())))
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
        if kind != stack.kind:
            if pieces:
                yield tuple(pieces)
            pieces, kind = [], stack.kind
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
