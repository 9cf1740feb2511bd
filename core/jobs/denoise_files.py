"""The files of a denoising run: what each is made of, and the table."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..config.denoise import CONTEXT_NAME, SUSPICIOUS, TRUSTED, DenoiseOptions
from ..context.contexts import told_of_images
from ..errors import InputError, OutputError, TableChanged
from ..inference.plan import (
    CS_TABLE_NAME,
    CSG_NAME,
    MICROGRAPH_TABLE_NAME,
    TABLE_NAME,
    ImageSet,
    StackPlan,
    path_below,
    source_files,
    written_image_names,
)
from ..io.files import file_state, sha256_of
from ..io.journal import RANGES_FOLDER, RECORD_NAME, Undertaking
from ..io.micrographs import MicrographSet
from ..io.particles import ParticleSet
from ..io.star import quote
from ..report import PDF_NAME, PNG_NAME, VIEWER_NAME
from .scores import Scores, keep_rows
from .trust import error_names

# What the denoised images do not depend on; the model counts by its weights, the device by its kind.
_NOT_OF_THE_IMAGES = {"model", "device", "skip_bad", "threads", "score", "error_stacks"}


def undertaking_of(
    images: ImageSet,
    stacks: Sequence[StackPlan],
    model_sha256: str,
    device_types: Sequence[str],
    options: DenoiseOptions,
) -> Undertaking:
    """Return the files to make, each with all that its bytes depend on."""
    result_of = options.model_dump(mode="json", exclude=_NOT_OF_THE_IMAGES)
    fingerprint = {
        "version": __version__,
        "input": [str(path.absolute()) for path in source_files(images)],
        "model": model_sha256,
        "device": device_types,
        **result_of,
    }
    others = [
        *table_files(images)[1:],
        *split_files(images, options),
        RECORD_NAME,
        PDF_NAME,
        PNG_NAME,
        VIEWER_NAME,
        CONTEXT_NAME,
    ]
    parts = _digests(images, stacks, options)
    if isinstance(images, ParticleSet) and options.context != "none":
        for names, told in zip(_made_of(stacks, options), told_of_images(images), strict=True):
            for name in names:
                parts[name] += hashlib.sha256(told).hexdigest()[:16]
    return Undertaking("denoise", fingerprint, parts, others, [RANGES_FOLDER])


def _digests(images: ImageSet, stacks: Sequence[StackPlan], options: DenoiseOptions) -> dict[str, str]:
    """Return for each file to make a digest of the files that it is made of.

    Raises
    ------
    InputError
        If something of it is gone.
    """
    digests: dict[str, str] = {}
    for stack, names in zip(stacks, _made_of(stacks, options), strict=True):
        digest = hashlib.sha256(file_state(stack.source).encode(errors="surrogateescape"))
        digest.update(f"\0{stack.shape} {stack.pixel_size_angstrom} {stack.protein_dark}\0".encode())
        digest.update(stack.indices.astype("<i4").tobytes())
        digests |= dict.fromkeys(names, digest.hexdigest()[:32])
    for name in table_files(images)[:1]:
        # the names in it are those of the stacks, relative to the root
        scored = ["scored"] if options.score else []
        named = "\0".join([str(images.root.absolute()), *scored, *(stack.name for stack in stacks)])
        digests[name] = sha256_of(*source_files(images), salt=named)
    return digests


def _made_of(stacks: Sequence[StackPlan], options: DenoiseOptions) -> list[tuple[str, ...]]:
    """Return the names of the files that are made of each stack."""
    names = [stack.name for stack in stacks]
    return list(
        zip(names, error_names(stacks), strict=True) if options.error_stacks else zip(names, strict=True)
    )


def refuse_changed_inputs(
    images: ImageSet, stacks: Sequence[StackPlan], undertaking: Undertaking, options: DenoiseOptions
) -> None:
    """Raise when what was read is not what is there now: the results would belong to neither.

    Raises
    ------
    TableChanged
        If it is the table alone.
    InputError
        Names the first image file.
    """
    now = _digests(images, stacks, options)
    sources = {stack.name: stack.source for stack in stacks}
    # what the table tells of images is a part of their digests, and the table has one of its own
    changed = [name for name, digest in undertaking.parts.items() if not digest.startswith(now[name])]
    if changed:
        name = next((name for name in changed if name in sources), changed[0])
        error = InputError if name in sources else TableChanged
        raise error(
            "the file was changed while it was in use.",
            path=sources.get(name, images.source),
            remedy="Run again with --resume, which does again what was made of it and keeps the rest.",
        )


def refuse_unwritable_names(images: ImageSet, stacks: Sequence[StackPlan], output_dir: Path) -> None:
    """Raise when a STAR table cannot name the images in a folder, such as one with a line end in its name.

    Raises
    ------
    OutputError
        Before hours of work.
    """
    if not images.has_table or (isinstance(images, ParticleSet) and images.is_cs):
        return
    folder = path_below(output_dir, images.root) or Path()
    for stack in stacks:
        try:
            quote(f"000001@{folder / stack.name}")
        except ValueError as error:
            raise OutputError(f"{output_dir}: {error}. Choose another directory.") from error


def table_files(images: ImageSet) -> list[str]:
    """Return the names of the table, and of what goes with it."""
    if not images.has_table:
        return []
    if isinstance(images, MicrographSet):
        return [MICROGRAPH_TABLE_NAME]
    return [CS_TABLE_NAME, CSG_NAME] if images.is_cs else [TABLE_NAME]


def split_files(images: ImageSet, options: DenoiseOptions) -> list[str]:
    """Return the names of the tables of trusted and suspicious particles, and of what goes with them."""
    names = [Path(name) for name in table_files(images)]
    if not options.score or not isinstance(images, ParticleSet):
        return []
    return [f"{name.stem}_{part}{name.suffix}" for part in (TRUSTED, SUSPICIOUS) for name in names]


def split_tables(images: ImageSet, options: DenoiseOptions, output_dir: Path) -> list[Path]:
    """Return the tables of trusted and suspicious particles that are there."""
    paths = [output_dir / name for name in split_files(images, options) if not name.endswith(".csg")]
    return [path for path in paths if path.exists()]


def write_table(
    images: ImageSet, stacks: Sequence[StackPlan], output_dir: Path, scores: Scores | None
) -> None:
    """Write the input's table, if it has one, with the names of the denoised images; by scores, its parts."""
    names = [stack.name for stack in stacks]
    for name in table_files(images)[:1]:
        path = output_dir / name
        if isinstance(images, MicrographSet):
            images.write(
                path,
                written_image_names(images, stacks, output_dir),
                absolute_originals=path_below(output_dir, images.root) is None,
            )
        elif images.is_cs:
            of_row = None if scores is None else scores.of_row
            images.write_cs(path, names, of_row)
            for part, chosen in _parts(scores):
                images.write_cs(path.with_stem(f"{path.stem}_{part}"), names, of_row, chosen)
        else:
            images.write(
                path,
                written_image_names(images, stacks, output_dir),
                absolute_originals=path_below(output_dir, images.root) is None,
                scores=None if scores is None else scores.of_row.tolist(),
            )
            for part, chosen in _parts(scores):
                keep_rows(path, path.with_stem(f"{path.stem}_{part}"), chosen)


def _parts(scores: Scores | None) -> list[tuple[str, NDArray[np.bool_]]]:
    return [] if scores is None else [(TRUSTED, ~scores.suspicious), (SUSPICIOUS, scores.suspicious)]
