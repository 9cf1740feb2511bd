"""The contexts of a run: one for each optics group and half set, found in a first pass and kept in a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from ..classical.covariance import ImageCovariance
from ..errors import CryohushError, InputError
from ..imaging.ctf import CtfParameters, ctf_parameters_of
from ..imaging.defects import filled
from ..imaging.normalise import circle_radius_px, normalise, usable
from ..io.files import writing
from ..io.mrc import StackReader
from ..io.particles import ParticleSet
from ..io.poses import PREMULTIPLIED, changed_ctf
from ..models.precision import threads_kept
from ..progress import counted
from .centres import Centres
from .like_views import LikeViews
from .prediction import Prediction
from .stack_context import (
    CHANNELS,
    FEWEST_IMAGES,
    FEWEST_OF_VIEWS,
    MOST_IMAGES,
    StackContext,
    fit_context,
    to_working_grid,
    working_basis,
)
from .stack_map import StackMap
from .view_network import view_model

_HALF_SET, _SPLIT = "rlnRandomSubset", "alignments3D/split"
_DEFOCUS = ("rlnDefocusU", "ctf/df1_A")
_METADATA_KEY = "cryohush_context"
_SEED = 0
#: images of the sample that are in memory at their full size at once
_BLOCK = 128
#: images of all samples whose like views are looked at: 7 kB of memory and of the file each, twice in memory
MOST_VIEWS = 16 * MOST_IMAGES
# A group with so many times the images that its context was found from gets another one.
OUTGROWN = 4
#: what has to be equal within a context; its images may differ in the rest
_COMMON = ("voltage_kv", "cs_mm", "amplitude_contrast")
_OPTICS = tuple(one.name for one in fields(CtfParameters))


@dataclass(frozen=True, eq=False)
class _Images:
    """Of one stack, in ascending order of `index`: 0-based image, context (-1: none), and CTF."""

    index: NDArray[np.int32]
    context: Tensor
    optics: CtfParameters


@dataclass(frozen=True, eq=False)
class StackContexts:
    """Contexts, and which of them an image belongs to.

    Attributes
    ----------
    contexts
        One for each optics group and half set that has enough images.
    names
        Of their groups.
    images
        By the absolute path of a stack.
    notes
        For the log and the record: a line for each group, by its name.
    digests
        Of what the stacks were, by the names of a run's files.
    """

    contexts: tuple[StackContext, ...]
    names: tuple[str, ...]
    images: Mapping[str, _Images]
    notes: Mapping[str, str]
    digests: Mapping[str, str] = field(default_factory=dict)

    @property
    def of_map(self) -> bool:
        """Whether a map of the particle takes part in any of them."""
        return any(isinstance(context.views, StackMap) for context in self.contexts)

    def channels(self, images: Tensor, places: Sequence[tuple[Path, NDArray[np.int32]]]) -> Tensor:
        """The context of `(n, y, x)` normalised images, see `StackContext.channels`; 0 for those without.

        `places` are their stacks and 0-based numbers there, in order.
        """
        found = [self._look_up(path, index) for path, index in places]
        of_image = torch.cat([context for context, _ in found])
        optics = CtfParameters.joined([part for _, part in found])
        channels = images.new_zeros(len(images), CHANNELS, *images.shape[-2:])
        for number, context in enumerate(self.contexts):
            members = (of_image == number).nonzero().squeeze(1)
            known = optics[members] if context.group_optics is not None else None
            if len(members) == len(images):  # as nearly always
                return context.channels(images, known)
            if len(members):
                channels[members] = context.channels(images[members], known)
        return channels

    def _look_up(self, path: Path, index: NDArray[np.int32]) -> tuple[Tensor, CtfParameters]:
        of_stack = self.images[str(path.absolute())]
        place = torch.from_numpy(np.searchsorted(of_stack.index, index))
        return of_stack.context[place], of_stack.optics[place]

    def save(self, path: Path) -> str:
        """Write to a `.safetensors` file and return its SHA-256."""
        tensors: dict[str, Tensor] = {}
        entries = []
        for number, context in enumerate(self.contexts):
            tensors[f"{number}.signal_power"] = context.signal_power
            tensors[f"{number}.noise_power"] = context.noise_power
            tensors[f"{number}.mean"] = torch.view_as_real(context.covariance.mean).contiguous()
            for order, (vectors, values) in enumerate(
                zip(context.covariance.vectors, context.covariance.eigenvalues, strict=True)
            ):
                tensors[f"{number}.vectors.{order}"] = vectors.contiguous()
                tensors[f"{number}.eigenvalues.{order}"] = values.contiguous()
            if context.group_optics is not None:
                tensors[f"{number}.optics"] = _stacked(context.group_optics)
            if context.centres is not None:
                tensors[f"{number}.centres"] = context.centres.template
            if context.views is not None:
                tensors |= _tensors_of_views(context.views, number)
            entries.append(
                {
                    "name": self.names[number],
                    "box_px": context.box_px,
                    "radius_px": context.radius_px,
                    "pixel_size_angstrom": context.pixel_size_angstrom,
                    "noise_variance": context.noise_variance,
                    "unevenness": context.unevenness,
                    "n_images": context.n_images,
                    "working_box_px": context.working_box_px,
                    "basis_radius_px": context.covariance.basis.radius_px,
                    "orders": len(context.covariance.vectors),
                    "places_px": None if context.centres is None else context.centres.spread_px,
                    "map_spread_px": context.views.spread_px if isinstance(context.views, StackMap) else None,
                    "views": None
                    if context.views is None
                    else [context.views.share, context.views.error, view_model(context.views.network).sha256],
                }
            )
        for number, of_stack in enumerate(self.images.values()):
            tensors[f"stack.{number}.index"] = torch.from_numpy(of_stack.index.copy())
            tensors[f"stack.{number}.context"] = of_stack.context
            tensors[f"stack.{number}.optics"] = _stacked(of_stack.optics)
        metadata = {
            "contexts": entries,
            "stacks": list(self.images),
            "notes": dict(self.notes),
            "digests": dict(self.digests),
        }
        data = safetensors.torch.save(tensors, metadata={_METADATA_KEY: json.dumps(metadata)})
        with writing(path, len(data)) as part:
            part.write_bytes(data)
        return hashlib.sha256(data).hexdigest()


def load_contexts(path: Path) -> StackContexts:
    """What `StackContexts.save` wrote.

    Raises
    ------
    InputError
        It is no such file, or cannot be read.
    """
    try:
        data = path.read_bytes()
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        metadata = json.loads(header["__metadata__"][_METADATA_KEY])
        contexts = tuple(
            _context(tensors, number, entry) for number, entry in enumerate(metadata["contexts"])
        )
        images = {
            name: _Images(
                tensors[f"stack.{number}.index"].numpy(),
                tensors[f"stack.{number}.context"],
                CtfParameters(*tensors[f"stack.{number}.optics"]),
            )
            for number, name in enumerate(metadata["stacks"])
        }
    except (OSError, SafetensorError, ValueError, LookupError) as error:
        raise InputError(
            f"the context of an earlier run cannot be read: {error}.",
            path=path,
            remedy="Remove the file; it is found anew.",
        ) from error
    names = tuple(entry["name"] for entry in metadata["contexts"])
    return StackContexts(contexts, names, images, metadata["notes"], metadata["digests"])


def _context(tensors: Mapping[str, Tensor], number: int, entry: Mapping[str, Any]) -> StackContext:
    basis = working_basis(entry["working_box_px"], entry["basis_radius_px"])
    orders = range(entry["orders"])
    optics = tensors.get(f"{number}.optics")
    context = StackContext(
        entry["box_px"],
        entry["radius_px"],
        entry["pixel_size_angstrom"],
        entry["noise_variance"],
        tensors[f"{number}.noise_power"],
        tensors[f"{number}.signal_power"],
        ImageCovariance(
            basis,
            torch.view_as_complex(tensors[f"{number}.mean"]),
            [tensors[f"{number}.vectors.{order}"] for order in orders],
            [tensors[f"{number}.eigenvalues.{order}"] for order in orders],
        ),
        entry["unevenness"],
        None if optics is None else CtfParameters(*optics),
        entry["n_images"],
        None if entry["places_px"] is None else Centres(tensors[f"{number}.centres"], entry["places_px"]),
    )
    if entry["views"] is None:
        return context
    share, error, sha256 = entry["views"]
    known: dict[str, Any] = {
        "weights": [tensors[f"{number}.views.weights.{order}"] for order in orders],
        "residual": [tensors[f"{number}.views.residual.{order}"] for order in orders],
        "share": share,
        "error": error,
    }
    views: Prediction
    if entry["map_spread_px"] is None:
        sample = torch.view_as_complex(tensors[f"{number}.views.sample"])
        known |= {"sample": sample, "group": tensors[f"{number}.views.group"]}
        views = LikeViews(**context.of_prediction, **known)
    else:
        known |= {"volume": tensors[f"{number}.views.map"], "spread_px": entry["map_spread_px"]}
        views = StackMap(**context.of_prediction, **known, mean=context.covariance.mean)
    if sha256 != view_model(views.network).sha256:
        raise ValueError("it was found with another network of like views or of a map")
    return replace(context, views=views)


def _tensors_of_views(views: Prediction, number: int) -> dict[str, Tensor]:
    tensors = {}
    if isinstance(views, LikeViews):
        tensors[f"{number}.views.sample"] = torch.view_as_real(views.sample).contiguous()
        tensors[f"{number}.views.group"] = views.group
    elif isinstance(views, StackMap):
        tensors[f"{number}.views.map"] = views.volume.contiguous()
    for order, (weights, residual) in enumerate(zip(views.weights, views.residual, strict=True)):
        tensors[f"{number}.views.weights.{order}"] = weights.contiguous()
        tensors[f"{number}.views.residual.{order}"] = residual.contiguous()
    return tensors


def _stacked(optics: CtfParameters) -> Tensor:
    return torch.stack([getattr(optics, name) for name in _OPTICS]).contiguous()


@threads_kept(1)  # on whose number sums depend in their last bits
def find_contexts(
    particles: ParticleSet,
    *,
    dark_stacks: frozenset[int] = frozenset(),
    pixel_sizes_angstrom: Sequence[float | None] | None = None,
    diameter_angstrom: float | None = None,
    known: StackContexts | None = None,
    with_map: Callable[[], None] | None = None,
    log: Callable[[str], None] = lambda line: None,
) -> StackContexts:
    """First pass: the contexts of a particle set, from a sample of each optics group and half set.

    The sample is a fixed function of the table. Groups of fewer than `FEWEST_IMAGES` usable images, those
    without a pixel size, and those whose images differ in more than defocus and phase shift have no context.
    A bare stack is one group whose CTF is not known.

    Parameters
    ----------
    dark_stacks
        Numbers of the stacks in which protein is dark.
    diameter_angstrom
        Of the particle; None is three quarters of the box.
    pixel_sizes_angstrom
        Of each stack; None takes those of the table.
    known
        Contexts of an earlier part of the set, which stay as they are but for groups that have outgrown them.
    with_map
        Look for a map of the particle in each group, which takes a minute; called in each round of that, and
        may raise to stop.

    Raises
    ------
    MrcError
        A stack cannot be read.
    """
    n = len(particles)
    sizes = pixel_sizes_angstrom
    if sizes is None:
        sizes = [particles.pixel_size_angstrom(number) for number in range(len(particles.stacks))]
    optics, premultiplied = optics_of(particles, log), are_premultiplied(particles)
    of_stacks = rows_of_stacks(particles)
    rows_of = _groups(particles, _first_rows(of_stacks))
    of_row = torch.full((n,), -1, dtype=torch.int64)
    contexts: list[StackContext] = []
    names, notes = [], {}
    earlier = {} if known is None else dict(zip(known.names, known.contexts, strict=True))
    for name, rows in rows_of.items():
        kept = earlier.get(name)
        if kept is not None and min(len(rows), MOST_IMAGES) > OUTGROWN * kept.n_images:
            log(
                f"{name} has {counted(len(rows), 'image')} now: what the stack adds, known from "
                f"{kept.n_images}, is found anew for what is still to be denoised"
            )
            kept = None
        if known is not None and kept is not None:
            context: StackContext | None = kept
            notes[name] = known.notes[name]
            log(f"context of {notes[name]}; as when the run began")
        else:
            if premultiplied:  # their noise is as coloured as their signal
                context, note = None, "none: the images were multiplied by their CTF"
            else:
                looked_at = sum(context.n_images for context in contexts)
                if with_map is not None and len(rows) >= FEWEST_OF_VIEWS:
                    log(f"looking for a map of the particles of {name}, which takes about a minute")
                context, note = _fit(
                    particles,
                    rows,
                    optics,
                    dark_stacks,
                    sizes,
                    diameter_angstrom,
                    with_views=looked_at < MOST_VIEWS,
                    with_map=with_map,
                )
            notes[name] = f"{name}: {note}"
            log(f"context of {notes[name]}")
        if context is not None:
            of_row[torch.from_numpy(rows)] = len(contexts)
            contexts.append(context)
            names.append(name)
    if optics is None:
        optics = CtfParameters(*torch.zeros(len(_OPTICS), n))
    images = {}
    for path, rows in zip(particles.stacks, of_stacks, strict=True):
        chosen = torch.from_numpy(rows)
        images[str(path.absolute())] = _Images(particles.image[rows], of_row[chosen], optics[chosen])
    return StackContexts(tuple(contexts), tuple(names), images, notes)


def optics_of(particles: ParticleSet, log: Callable[[str], None] = lambda line: None) -> CtfParameters | None:
    """CTFs of a set; None for a table without, or with impossible ones. The log is told of odd ones."""
    try:
        optics = ctf_parameters_of(particles)
    except (CryohushError, ValueError) as error:
        if particles.has_table and particles.column(*_DEFOCUS) is not None:
            log(f"warning: the table's CTFs are not used: {error}")
        return None
    if (odd := _odd_defocus(optics)) is not None:
        log(f"warning: {odd}. If that is wrong, so are the CTFs; --context none does without them")
    largest = float(optics.phase_shift_degrees.abs().max()) if len(optics) else 0.0
    if 0 < largest <= math.pi and not particles.is_cs:
        log(
            f"warning: no phase shift is larger than {largest:.3g}: rlnPhaseShift is in degrees, and if "
            "these are radians, the CTFs are wrong"
        )
    return optics


def _odd_defocus(optics: CtfParameters) -> str | None:
    """Return what is odd about the defoci of a set, in words; None if nothing is."""
    defocus = (optics.defocus_u_angstrom + optics.defocus_v_angstrom) / 2
    n_over, n = int((defocus < 0).sum()), len(defocus)
    if 2 * n_over > n:
        return (
            f"{n_over} of {counted(n, 'particle')} have a negative defocus, which means overfocus, such as "
            f"{float(defocus.min()):g} Å"
        )
    if n and not defocus.any():
        return "every defocus is 0, as where nobody has estimated it"
    return None


def are_premultiplied(particles: ParticleSet) -> bool:
    return changed_ctf(particles, [PREMULTIPLIED]) is not None


def told_of_images(particles: ParticleSet) -> list[bytes]:
    """What contexts take from the table: of each stack CTFs, optics groups and half sets of its images."""
    optics, halves = optics_of(particles), particles.column(_HALF_SET, _SPLIT)
    ctfs = None if optics is None else _stacked(optics).numpy().T
    premultiplied = str(are_premultiplied(particles)).encode()
    told = []
    for rows in rows_of_stacks(particles):
        parts = [b"" if ctfs is None else ctfs[rows].tobytes(), particles.optics_group[rows].tobytes()]
        if halves is not None:
            parts.append("\0".join(halves[rows].tolist()).encode(errors="surrogateescape"))
        told.append(b"\0".join([*parts, premultiplied]))
    return told


def rows_of_stacks(particles: ParticleSet) -> list[NDArray[np.int64]]:
    """Of each stack, the first row of each image, in the order of the images: it speaks for the others.

    A stack that the table has by several names, links among them, has the rows of all of them.
    """
    paths = [os.path.realpath(path) for path in particles.stacks]
    numbers = {path: number for number, path in enumerate(dict.fromkeys(paths))}
    of_path = np.array([numbers[path] for path in paths], dtype=np.int64)
    stack = of_path[particles.stack]
    _, first = np.unique((stack << 32) | particles.image, return_index=True)
    parts = np.split(first, np.searchsorted(stack[first], np.arange(1, len(numbers))))
    return [parts[number] for number in of_path.tolist()]


def _first_rows(of_stacks: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The first row of each image, ascending.

    Copies of an image, as in a table that was expanded by symmetry, would be taken for like views of it.
    """
    return np.unique(np.concatenate(of_stacks))


def _groups(particles: ParticleSet, rows: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """Those of some rows of each optics group and half set, by a name for them."""
    halves = particles.column(_HALF_SET, _SPLIT)
    optics_group = particles.optics_group[rows]
    groups = {}
    for number in np.unique(optics_group).tolist():
        of_group = rows[optics_group == number]
        if halves is None:
            groups[f"optics group {number}"] = of_group
            continue
        for half in np.unique(halves[of_group]).tolist():
            groups[f"optics group {number}, half set {half}"] = of_group[halves[of_group] == half]
    return groups


def _fit(
    particles: ParticleSet,
    rows: NDArray[np.int64],
    optics: CtfParameters | None,
    dark_stacks: frozenset[int],
    pixel_sizes_angstrom: Sequence[float | None],
    diameter_angstrom: float | None,
    *,
    with_views: bool,
    with_map: Callable[[], None] | None,
) -> tuple[StackContext | None, str]:
    """The context of some rows, and a line about it."""
    if len(rows) < FEWEST_IMAGES:
        return None, f"none: {counted(len(rows), 'image')}, at least {FEWEST_IMAGES} are needed"
    sizes = {pixel_sizes_angstrom[number] for number in np.unique(particles.stack[rows]).tolist()}
    if len(sizes) > 1:
        return None, "none: the images have several pixel sizes"
    (pixel_size,) = sizes
    rows = _in_order(particles, _sampled(rows, MOST_IMAGES))
    return _from_blocks(
        _blocks(particles, rows, dark_stacks),
        _shape(particles, rows),
        None if optics is None or not pixel_size else optics[torch.from_numpy(rows)],
        pixel_size,
        diameter_angstrom,
        with_views=with_views,
        with_map=with_map,
    )


@threads_kept(1)
def context_of_images(
    images: Tensor,
    optics: CtfParameters | None,
    *,
    protein_dark: bool = False,
    pixel_size_angstrom: float | None = None,
    diameter_angstrom: float | None = None,
    with_map: Callable[[], None] | None = None,
) -> tuple[StackContext | None, str]:
    """The context of images in memory, and a line about it: as of a file's in `find_contexts`.

    Parameters
    ----------
    images
        `(n, y, x)` on any grey scale.
    optics
        Their CTFs; None where they are not known.
    """
    n = len(images)
    if n < FEWEST_IMAGES:
        return None, f"none: {counted(n, 'image')}, at least {FEWEST_IMAGES} are needed"
    chosen = torch.from_numpy(_sampled(np.arange(n), MOST_IMAGES))
    blocks = (images[some] for some in torch.split(chosen, _BLOCK))
    return _from_blocks(
        (-block if protein_dark else block for block in blocks),
        (images.shape[-2], images.shape[-1]),
        None if optics is None or not pixel_size_angstrom else optics[chosen],
        pixel_size_angstrom,
        diameter_angstrom,
        with_map=with_map,
    )


def _sampled(rows: NDArray[np.int64], most_images: int) -> NDArray[np.int64]:
    """At most so many rows, in ascending order: always the same ones."""
    if len(rows) <= most_images:
        return rows
    return np.sort(np.random.default_rng(_SEED).choice(rows, most_images, replace=False))


def _from_blocks(
    blocks: Iterable[Tensor],
    shape: tuple[int, int],
    optics: CtfParameters | None,
    pixel_size: float | None,
    diameter_angstrom: float | None,
    *,
    with_views: bool = True,
    with_map: Callable[[], None] | None = None,
) -> tuple[StackContext | None, str]:
    """The context of images `(n, y, x)` that come some at a time, protein white, and a line about it."""
    y, box = shape
    if y != box or box % 2 or box < 32:
        return None, f"none: boxes of {y} x {box} px, square and even ones are needed"
    if optics is not None and _differ(optics):
        return None, "none: the images differ in more than defocus and phase shift"
    radius = min(circle_radius_px(shape, diameter_angstrom, pixel_size), 0.47 * box)
    small, chosen = _on_working_grid(blocks, radius)
    if len(chosen) < FEWEST_IMAGES:
        return None, f"none: {counted(len(chosen), 'usable image')}, at least {FEWEST_IMAGES} are needed"
    try:
        context = fit_context(
            small,
            None if optics is None else optics[chosen],
            pixel_size_angstrom=pixel_size or 1.0,
            radius_px=radius,
            box_px=box,
            with_views=with_views,
            with_map=with_map,
        )
    except ValueError as error:
        return None, f"none: {error}"
    groups = "CTF not known" if optics is None else f"{len(context.group_optics or ())} CTF groups"
    note = (
        f"{len(chosen)} images, {groups}, {100 * float(context.explained.mean()):.0f} % of the particles' "
        "variance explained"
    )
    if context.centres is not None:
        spread = context.centres.spread_px * context.box_px / context.working_box_px
        note += f", particles {spread:.1f} px off centre along each axis"
    if context.views is not None:
        what = "a map of them takes" if isinstance(context.views, StackMap) else "like views take"
        note += f", {what} part by {100 * context.views.share:.0f} %"
    return context, note


def read_sample(
    particles: ParticleSet, contexts: StackContexts | None, dark_stacks: frozenset[int], most_images: int
) -> tuple[Tensor, CtfParameters | None] | None:
    """Images `(n, y, x)`, protein white, and CTFs of the largest group of a set; None if it has no images.

    With `contexts` the largest of those that have one. It is a fixed function of the table.
    """
    groups = _groups(particles, _first_rows(rows_of_stacks(particles)))
    if contexts is not None:
        groups = {name: rows for name, rows in groups.items() if name in contexts.names}
    if not groups:
        return None
    name = max(groups, key=lambda one: len(groups[one]))
    rows = _in_order(particles, _sampled(groups[name], most_images))
    images = torch.cat(list(_blocks(particles, rows, dark_stacks)))
    if contexts is None or contexts.contexts[contexts.names.index(name)].group_optics is None:
        return images, None
    return images, ctf_parameters_of(particles)[torch.from_numpy(rows)]


def _differ(optics: CtfParameters) -> bool:
    for name in _COMMON:
        values = getattr(optics, name)
        if not math.isclose(float(values.min()), float(values.max()), rel_tol=1e-4, abs_tol=1e-4):
            return True
    return False


def _in_order(particles: ParticleSet, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows in the order of their stacks, and of the images in these."""
    return rows[np.lexsort((particles.image[rows], particles.stack[rows]))]


def _shape(particles: ParticleSet, rows: NDArray[np.int64]) -> tuple[int, int]:
    """`(y, x)` of the first image."""
    with StackReader(particles.stacks[int(particles.stack[rows[0]])]) as reader:
        return reader.shape[1:]


def _blocks(particles: ParticleSet, rows: NDArray[np.int64], dark_stacks: frozenset[int]) -> Iterator[Tensor]:
    """Yield the images of rows that are in order, `(n, y, x)`, protein white, some at a time."""
    for number in np.unique(particles.stack[rows]).tolist():
        indices = particles.image[rows[particles.stack[rows] == number]]
        with StackReader(particles.stacks[number]) as reader:
            for first in range(0, len(indices), _BLOCK):
                images = torch.from_numpy(reader.read(indices[first : first + _BLOCK]))
                yield -images if number in dark_stacks else images


def _on_working_grid(blocks: Iterable[Tensor], radius_px: float) -> tuple[Tensor, Tensor]:
    """Usable images, normalised, defects filled, on the working grid; and their numbers among all."""
    small, chosen = [], []
    for images in blocks:
        normalised, _, std = normalise(filled(images, radius_px), radius_px)
        chosen.append(usable(normalised, std))
        small.append(to_working_grid(normalised)[chosen[-1]])
    return torch.cat(small), torch.cat(chosen).nonzero().squeeze(1)
