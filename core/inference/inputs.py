"""What a user should know of the input before it is denoised: where it is, its pixel size, what is odd."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..config.denoise import PARTICLE_SHARE_OF_BOX, DenoiseOptions
from ..errors import ConfigurationError, InputError
from ..imaging.contrast import middle_above_background, skewness, skewness_of_particles
from ..imaging.defects import filled
from ..imaging.normalise import background_mask, default_radius_px
from ..imaging.rings import noise_ends_at
from ..io.micrographs import MicrographSet
from ..io.mrc import StackReader
from ..io.particles import ParticleSet
from ..io.poses import PREMULTIPLIED, changed_ctf
from ..progress import counted
from ..spread import evenly_spread
from .plan import UNSET_ANGSTROM, ImageSet, StackPlan, sampled_stacks, samples

# Stacks of particles that are looked at for their spectrum; micrographs.
_STACKS, _MICROGRAPHS = 8, 5
# Of each stack, and the middle of each image, for its spectrum.
_SPECTRA, _SPECTRUM_PX = 8, 512
# The middle of particles is so many standard errors away from the background: its sign is no chance.
_CERTAIN = 5.0
# Coarse structure that is more skewed than this towards bright is not what dark protein looks like.
_SKEWED = 0.15
# A square image of so few pixels might be a particle.
_BOX_PX = 256
# Pixel sizes that were refined for each optics group differ by less.
_SAME_SIZE = 1.02


@dataclass(frozen=True)
class InputNotes:
    """What is to be said of an input.

    Attributes
    ----------
    facts
        Lines for the log.
    warnings
        What may be wrong, for the log and the record.
    pixel_sizes
        Each different pixel size in Å (None if unknown), and what says so.
    """

    facts: list[str]
    warnings: list[str]
    pixel_sizes: list[tuple[float | None, str]]


def check_options(options: DenoiseOptions, stacks: Sequence[StackPlan], images: ImageSet) -> None:
    """Raise when an option that is a length in Å, or the circle, does not suit an image."""
    if isinstance(images, MicrographSet) and options.particle_diameter_angstrom is not None:
        raise ConfigurationError("the particle diameter is for particles, not micrographs. Leave it out.")
    if options.keep_above_angstrom is not None:
        check_limit(options.keep_above_angstrom, [(one.shape, one.pixel_size_angstrom) for one in stacks])
    for shape, pixel_size in {(stack.shape, stack.pixel_size_angstrom) for stack in stacks}:
        diameter = options.particle_diameter_angstrom
        if pixel_size is None:
            if diameter is not None or options.keep_above_angstrom is not None:
                raise ConfigurationError(
                    "the particle diameter and the resolution to keep the raw image above need a pixel "
                    f"size, and {images.source} does not say it. Give it, or leave them out."
                )
            continue
        if diameter is None:
            continue
        try:
            background_mask(shape, diameter / pixel_size / 2)
        except ValueError as error:
            default = PARTICLE_SHARE_OF_BOX * min(shape) * pixel_size
            raise ConfigurationError(
                f"a particle diameter of {diameter:g} Å: {error}. Leave it out to get "
                f"{PARTICLE_SHARE_OF_BOX:g} of the box: {default:g} Å."
            ) from error


def check_limit(keep_above_angstrom: float, images: Iterable[tuple[tuple[int, int], float | None]]) -> None:
    """Raise when a resolution, Å, cannot divide raw from denoised coefficients.

    Parameters
    ----------
    images
        `(y, x)` and pixel size of each kind of images, Å; those of unknown size are left out.
    """
    sizes = [(size, size * max(shape)) for shape, size in images if size is not None]
    finest = 2 * min((size for size, _ in sizes), default=0.0)
    width = min((width for _, width in sizes), default=math.inf)
    kept = f"{keep_above_angstrom:g} Å, above which the raw image was to be kept"
    if keep_above_angstrom < finest:
        raise ConfigurationError(
            f"nothing in the images is finer than {kept}: two pixels are {finest:g} Å, so that nothing would "
            "be kept. Give a coarser limit, or leave it out."
        )
    if keep_above_angstrom >= width:
        raise ConfigurationError(
            f"nothing in images {width:g} Å wide is coarser than {kept}: all would stay raw. Give a finer "
            "limit, or leave it out."
        )


def look_at_inputs(
    images: ImageSet, stacks: Sequence[StackPlan], trained_angstrom: tuple[float, float] | None = None
) -> InputNotes:
    """Say where images come from and what may be wrong with them.

    Parameters
    ----------
    images, stacks
        The input and its plan.
    trained_angstrom
        Smallest and largest pixel size that the model was trained on; None if that is not known.
    """
    sizes = list(dict.fromkeys((stack.pixel_size_angstrom, stack.pixel_size_source) for stack in stacks))
    facts = [f"files from {images.root}"] if images.has_table else []
    facts += [_size_in_words(*size) for size in sizes[:5]]
    warnings = [*_of_files(stacks), *_of_pixel_sizes(sizes, trained_angstrom)]
    warnings += [*_of_mixed_sizes(images, stacks), *_of_kind(images, stacks[0])]
    finer = {stack.pixel_size_angstrom: stack.finer for stack in stacks if stack.finer > 1}
    for size, factor in finer.items():
        facts.append(
            f"pixels of {size:g} Å are coarser than the model knows well: it sees the images on a grid "
            f"{factor} times as fine, and the results have the input's pixels"
        )
    with contextlib.suppress(InputError):  # told, with its remedy, where the run meets it
        warnings += [*_of_contrast(images, stacks), *_of_filters(stacks)]
    return InputNotes(facts, warnings, sizes)


def _size_in_words(size: float | None, source: str) -> str:
    return f"pixel size {size:g} Å, by {source}" if size is not None else "pixel size unknown"


def _of_files(stacks: Sequence[StackPlan]) -> list[str]:
    """The remarks on files, each once with the number of files."""
    files: dict[str, list[Path]] = {}
    for stack in stacks:
        for remark in stack.remarks:
            files.setdefault(remark, []).append(stack.source)
    return [
        f"{paths[0]}{f' and {len(paths) - 1} more files' if len(paths) > 1 else ''}: {remark}"
        for remark, paths in files.items()
    ]


def _of_pixel_sizes(
    sizes: Iterable[tuple[float | None, str]], trained_angstrom: tuple[float, float] | None
) -> list[str]:
    warnings = []
    for size, source in sizes:
        if size == UNSET_ANGSTROM and source.startswith("the header"):
            warnings.append(
                f"a pixel size of 1 Å, by {source}, is what many programs write where they do not know it. "
                "Give --pixel-size if it is wrong."
            )
        if size is not None and trained_angstrom is not None and size < trained_angstrom[0]:
            warnings.append(
                f"pixels of {size:g} Å are finer than those that the model was trained on, "
                f"{trained_angstrom[0]:g} to {trained_angstrom[1]:g} Å. Bin the images, "
                "or compare with the raw ones before you use them."
            )
    return warnings


def _of_mixed_sizes(images: ImageSet, stacks: Sequence[StackPlan]) -> list[str]:
    """Warn of stacks of images in optics groups of different pixel sizes: they are taken for one."""
    pairs = np.unique((images.stack.astype(np.int64) << 32) | images.optics_group)
    mixed: dict[int, set[float]] = {}
    for number, group in zip((pairs >> 32).tolist(), (pairs & 0xFFFFFFFF).tolist(), strict=True):
        if (size := images.optics[group].pixel_size_angstrom) is not None:
            mixed.setdefault(number, set()).add(size)
    mixed = {number: sizes for number, sizes in mixed.items() if max(sizes) > _SAME_SIZE * min(sizes)}
    # where the user says the size, it is that of all
    mixed = {number: sizes for number, sizes in mixed.items() if stacks[number].pixel_size_angstrom in sizes}
    if not mixed:
        return []
    number, sizes = next(iter(mixed.items()))
    more = f" and {len(mixed) - 1} more" if len(mixed) > 1 else ""
    found = " and ".join(f"{size:g}" for size in sorted(sizes))
    return [
        f"{stacks[number].source}{more}: optics groups say pixel sizes of {found} Å for images of one stack, "
        f"which are all taken for {stacks[number].pixel_size_angstrom:g} Å. Correct the table, or give each "
        "pixel size stacks of its own."
    ]


def _of_contrast(images: ImageSet, stacks: Sequence[StackPlan]) -> list[str]:
    """Warn when protein looks dark in images where it is taken for white, or the other way round."""
    if stacks[0].is_micrograph:
        micrographs = [(one.source, int(one.indices[0]), one.pixel_size_angstrom) for one in stacks]
        return contrast_of_micrographs(micrographs, dark=stacks[0].protein_dark)
    groups = {dark: [stack for stack in stacks if stack.protein_dark is dark] for dark in (False, True)}
    return [text for dark, some in groups.items() if some for text in _of_particles(some, dark=dark)]


def _of_particles(stacks: Sequence[StackPlan], *, dark: bool) -> list[str]:
    some = [stacks[number] for number in sampled_stacks(stacks).tolist()]
    found, skewed = zip(
        *((middle_above_background(images), skewness_of_particles(images)) for images in samples(stacks)),
        strict=True,
    )
    looked_at = [(*one, stack) for one, stack in zip(found, some, strict=True) if one[1] > 0]
    taken, looks = ("dark", "white") if dark else ("white", "dark")
    height, certainty = _together(looked_at)
    if certainty >= _CERTAIN and (height < 0) != dark:
        return [
            f"protein looks {looks}, but is taken for {taken}: the middle of the particles is "
            f"{abs(height):.2g} standard deviations {'below' if height < 0 else 'above'} the background "
            f"({certainty:.0f} standard errors). A wrong contrast gives wrong images: say --protein {looks} "
            "if it is so."
        ]
    # sets of two contrasts may have been joined
    wrong = [one for one in looked_at if one[0] * (-1 if dark else 1) < 0]
    if _together(wrong)[1] < _CERTAIN:
        third, sure = _together(
            [(*one, stack) for one, stack in zip(skewed, some, strict=True) if one[1] > 0]
        )
        if certainty >= _CERTAIN or sure < _CERTAIN or (third < 0) == dark:
            return []
        return [
            f"protein looks {looks}, but is taken for {taken}: what stands out of the images does so towards "
            f"the {'bright' if looks == 'white' else 'dark'} side ({sure:.0f} standard errors). A wrong "
            f"contrast gives wrong images: say --protein {looks} if it is so."
        ]
    return [
        f"protein looks {looks} in {len(wrong)} of {len(looked_at)} stacks that were looked at, such as "
        f"{wrong[0][2].source}, but is taken for {taken} in all. A wrong contrast gives wrong images: "
        f"denoise those by themselves, with --protein {looks}, if it is so."
    ]


def _together(heights: Sequence[tuple[float, float, StackPlan]]) -> tuple[float, float]:
    """Weighted mean of the middles above the background, and by how many standard errors it is off 0."""
    if not heights:
        return 0.0, 0.0
    values, errors = np.array([one[:2] for one in heights]).T
    weight = 1 / np.square(errors)
    mean = float((weight * values).sum() / weight.sum())
    return mean, abs(mean) * float(np.sqrt(weight.sum()))


def _of_kind(images: ImageSet, first: StackPlan) -> list[str]:
    """Warn of a particle that may have been taken for a micrograph, and of CTF-premultiplied particles."""
    warnings = []
    y, x = first.shape
    if not images.has_table and first.is_micrograph and y == x <= _BOX_PX:
        warnings.append(
            f"{first.source}: one image of {x} x {y} px is taken for a micrograph, with dark protein. "
            "A particle needs the suffix .mrcs."
        )
    if isinstance(images, ParticleSet) and (found := changed_ctf(images, [PREMULTIPLIED])) is not None:
        warnings.append(
            f"{images.source}, line {found[1]}: {PREMULTIPLIED} says that the images were multiplied by "
            "their CTF, and so was their noise, which the model does not know. Extracted without that, they "
            "come out better."
        )
    return warnings


def _of_filters(stacks: Sequence[StackPlan]) -> list[str]:
    """Warn of images without noise at high frequencies: a network takes its absence for signal."""
    worst: tuple[float, StackPlan] | None = None
    for number in evenly_spread(len(stacks), _MICROGRAPHS if stacks[0].is_micrograph else _STACKS).tolist():
        stack = stacks[number]
        with StackReader(stack.source) as reader:
            images = torch.from_numpy(reader.read(stack.indices[evenly_spread(len(stack.indices), _SPECTRA)]))
        y, x = (min(side, _SPECTRUM_PX) for side in images.shape[1:])
        top, left = (images.shape[1] - y) // 2, (images.shape[2] - x) // 2
        middle = images[:, top : top + y, left : left + x]
        end = noise_ends_at(filled(middle, None if stack.is_micrograph else default_radius_px((y, x))))
        if end is not None and (worst is None or end < worst[0]):
            worst = end, stack
    if worst is None:
        return []
    end, stack = worst
    size = stack.pixel_size_angstrom
    where = f"{1 / end:.1f} px" if size is None else f"{size / end:.1f} Å"
    return [
        f"{stack.source}: hardly any noise finer than {where}. Was it low-passed, enlarged or denoised? The "
        "model knows noise at all frequencies and takes its absence for signal: give the images as they were."
    ]


def contrast_of_micrographs(
    micrographs: Sequence[tuple[Path, int, float | None]], *, dark: bool
) -> list[str]:
    """Warn when protein looks dark in micrographs where it is taken for white, or the other way round.

    Parameters
    ----------
    micrographs
        File, number in it, from 0, and pixel size in Å of each; some of them are looked at.
    dark
        What protein is taken for.

    Raises
    ------
    InputError
        If a file cannot be read.
    """
    values = []
    for number in evenly_spread(len(micrographs), _MICROGRAPHS).tolist():
        path, index, pixel_size_angstrom = micrographs[number]
        with StackReader(path) as reader:
            image = filled(torch.from_numpy(reader.read([index])))[0]
        values.append(skewness(image if dark else -image, pixel_size_angstrom))
    if float(np.median(values)) < _SKEWED * (1 if len(values) > 2 else 2):
        return []
    taken, found = ("dark", "white") if dark else ("white", "dark")
    return [
        f"protein looks {found}, but is taken for {taken}: what stands out of the ice of "
        f"{counted(len(values), 'micrograph')} does so towards the "
        f"{'bright' if found == 'white' else 'dark'} side. A wrong contrast gives wrong results: say "
        f"--protein {found} if it is so."
    ]
