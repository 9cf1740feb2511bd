"""Outputs of jobs: which can be denoised, and the columns of what is made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.advice import PICKING, TRUST
from ..core.errors import HostError
from ..core.inference.plan import ImageSet, StackPlan
from ..core.io.cs import CsTable, read_images
from ..core.io.files import writing
from ..core.io.particles import ParticleSet
from ..core.io.star import write_tables
from .project import Project

# How cryoSPARC names the pixels of a file: MRC, and the mode.
_FORMATS = {"float32": "MRC/2", "float16": "MRC/12"}


@dataclass(frozen=True)
class Kind:
    """A kind of images.

    Attributes
    ----------
    data
        cryoSPARC's type of the input and the output.
    name
        Of the input and the output.
    slot, output_slot
        What is read, and what is made; all else passes through.
    table
        File name of the table that a run reads.
    noun
        What a row is called.
    trust, way_back
        What the images are for, and how to return to the raw ones.
    """

    data: str
    name: str
    slot: str
    output_slot: str
    table: str
    noun: str
    trust: str
    way_back: str


PARTICLES = Kind(
    data="particle",
    name="particles",
    slot="blob",
    output_slot="blob",
    table="input.cs",
    noun="particles",
    trust=TRUST,
    way_back="Back to the raw images of a selection: cryosparc_cryohush restore.",
)
MICROGRAPHS = Kind(
    data="exposure",
    name="exposures",
    slot="micrograph_blob",
    output_slot="micrograph_blob_denoised",
    table="input.star",
    noun="micrographs",
    trust=f"{PICKING} A denoiser adds what it has learnt.",
    way_back="The raw micrographs pass through beside the denoised ones: extraction takes the raw ones.",
)
KINDS = (PARTICLES, MICROGRAPHS)
# Where exposures say how they were taken.
SCOPE, NEGATIVE_STAIN = "mscope_params", "mscope_params/neg_stain"


def write_table(kind: Kind, dataset: Any, path: Path) -> list[str]:
    """Write the table that a run reads; the names of its files, relative to the project's directory.

    Raises
    ------
    InputError
        If the table makes no sense.
    HostError
        If uids are repeated.
    """
    if kind is PARTICLES:
        dataset.save(str(path))
        return read_images(CsTable(path)).stack_names
    uids = np.asarray(dataset["uid"])
    if len(np.unique(uids)) != len(uids):
        raise HostError(f"{len(uids) - len(np.unique(uids))} uids of the exposures are repeated.")
    names = [name.lstrip(">") for name in dataset[f"{kind.slot}/path"]]
    if "" in names:
        raise HostError(f"row {names.index('') + 1} of the exposures names no micrograph. Leave it out.")
    sizes = np.asarray(dataset[f"{kind.slot}/psize_A"], np.float64)
    known, group = np.unique(sizes, return_inverse=True)
    optics = [(number, f"pixelSize{number}", size) for number, size in enumerate(known.tolist(), 1)]
    rows = zip(names, (group.reshape(-1) + 1).tolist(), strict=True)
    write_tables(
        path,
        [
            ("optics", ["rlnOpticsGroup", "rlnOpticsGroupName", "rlnMicrographPixelSize"], optics),
            ("micrographs", ["rlnMicrographName", "rlnOpticsGroup"], list(rows)),
        ],
    )
    return list(dict.fromkeys(names))


def is_negative_stain(dataset: Any) -> bool:
    """Tell whether all rows say that they are of negative stain, in which protein is white."""
    return NEGATIVE_STAIN in dataset.fields() and bool(np.asarray(dataset[NEGATIVE_STAIN]).all())


def write_particles(dataset: Any, path: Path, root: Path) -> None:
    """Write particles with absolute paths, for readers that are not told where relative ones begin.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    names = [str(root / name.removeprefix(">")) for name in dataset["blob/path"]]
    dataset["blob/path"] = np.array(names, dtype=object)
    with writing(path) as part:
        dataset.save(str(part))


def filler(
    kind: Kind,
    dataset: Any,
    images: ImageSet,
    stacks: Sequence[StackPlan],
    prefix: str,
    dtype: str,
    grey_ranges: Sequence[tuple[float, float]],
    rows: NDArray[np.intp] | slice = slice(None),
) -> Callable[[Any], None]:
    """Return what fills the output's rows.

    Parameters
    ----------
    kind, dataset, images
        The input.
    stacks
        What was made of it.
    prefix
        Where that is, relative to the project's directory.
    dtype
        Its pixel format.
    grey_ranges
        Darkest and brightest grey to show, per stack; needed for micrographs.
    rows
        Of the input, which the output has.
    """
    single = np.zeros(len(images), np.int32)
    index = images.output_positions() if isinstance(images, ParticleSet) else single
    paths = np.array([f"{prefix}/{stack.name}" for stack in stacks], dtype=object)
    new: dict[str, Callable[[], NDArray[Any]]] = {
        "path": lambda: paths[images.stack],
        "idx": lambda: index,
        "import_sig": lambda: np.zeros(len(images), np.uint64),
        "format": lambda: np.full(len(images), _FORMATS[dtype], dtype=object),
        "vmin": lambda: np.array(grey_ranges, np.float32)[images.stack, 0],
        "vmax": lambda: np.array(grey_ranges, np.float32)[images.stack, 1],
    }

    def fill(output: Any) -> None:
        known = set(dataset.fields())
        for name in output.fields():
            slot, _, field = name.partition("/")
            if slot != kind.output_slot:
                continue
            if field in new:
                output[name] = new[field]()[rows]
            elif f"{kind.slot}/{field}" in known:
                output[name] = np.asarray(dataset[f"{kind.slot}/{field}"])[rows]

    return fill


def find_newest(project: Project, text: str, workspace: str | None = None) -> tuple[str, Kind]:
    """Return an output of the newest completed job of a kind, as `J42:particles`, and what it holds.

    Parameters
    ----------
    project, workspace
        Where to look.
    text
        The kind, and perhaps the output, as in `select_2D:particles_selected`. Without an output it is the
        one with particles, or else that with micrographs.

    Raises
    ------
    HostError
        If there is none, or the job has several.
    """
    kind, _, wanted = text.partition(":")
    for job in project.newest_jobs(workspace, kind):
        if job.status != "completed":
            continue
        for images in KINDS:
            names = [
                name
                for name, output in project.outputs(job).items()
                if wanted in ("", name) and output.kind == images.data and images.slot in output.slots
            ]
            if len(names) > 1:
                raise HostError(
                    f"{job.uid} has the outputs {', '.join(names)}: name one, as {kind}:{names[0]}."
                )
            if names:
                return f"{job.uid}:{names[0]}", images
    kinds = sorted({job.type for job in project.newest_jobs(workspace)})
    where = str(project) if workspace is None else f"{project} {workspace}"
    raise HostError(
        f"{where} has no completed job of the type {text} with particles or micrographs. The types of its "
        f"jobs: {', '.join(kinds) or 'none'}."
    )
