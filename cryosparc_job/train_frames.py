"""`cryosparc_cryohush train --micrographs`: a model from the two sums of frames that Patch Motion leaves.

With *Output denoiser training data* on, Patch Motion Correction gives its exposures a slot
`micrograph_blob_non_dw_AB`. The guide to jobs of cryosparc-tools 5 (docs/guides/jobs.ipynb) lists it with the
type `micrograph_blob`: a path, an index, a shape. Nothing public says what lies in the file, and no public
program was found that reads it. It is taken to hold both sums as its two images; a file of one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config.load import validate
from ..core.config.training import FRAMES_BOX_PX, TrainingConfig
from ..core.errors import HostError, InputError
from ..core.io.micrographs import EVEN_LABEL, ODD_LABEL
from ..core.io.mrc import StackReader
from ..core.io.star import write_tables
from .command import Command, Input, Prepared
from .models import FOLDER
from .place import Place
from .project import Project
from .train import model_line, refuse_several_devices, with_weights

SLOT = "micrograph_blob_non_dw_AB"
DESCRIPTION = (
    "A denoiser that has learnt from two sums of frames of these micrographs. What it has denoised is for "
    "looking, picking and sorting, never for refinement or an FSC."
)
_MICROGRAPHS, _PARTICLES = "micrographs.star", "particles.star"
_PLACE = ("location/micrograph_uid", "location/center_x_frac", "location/center_y_frac")


def training_on_frames(project: Project, values: Mapping[str, Any], box_px: int | None) -> Command:
    """Return the training on the two sums of frames of micrographs.

    Parameters
    ----------
    project
        Where they are; the inputs are `exposures` and, to cut boxes where they are, `particles`.
    values
        Of a `TrainingConfig`, whose section `pairs` gets the micrographs; `data` and `reference` are left
        out.
    box_px
        Side of the boxes; None is 128.

    Raises
    ------
    ConfigurationError
        If the values make no sense.
    """
    inputs = (
        Input(
            "exposures", "Micrographs with both sums", "exposure", ("micrograph_blob",), unconnected=(SLOT,)
        ),
        Input("particles", "Particles to cut out", "particle", ("location",), needed=False),
    )

    def prepare(place: Place, datasets: Mapping[str, Any]) -> Prepared:
        exposures, particles = datasets["exposures"], datasets.get("particles")
        names = _names(exposures, SLOT)
        if "" in names:
            raise HostError(
                f"row {names.index('') + 1} of the micrographs has no sums of frames ({SLOT}/path is empty). "
                "Leave it out, or run Patch Motion Correction again with Output denoiser training data."
            )
        micrographs, rows = _tables(exposures, particles, place.root)
        if place.is_shared:
            for name, shape in zip(names, exposures[f"{SLOT}/shape"].tolist(), strict=True):
                _check_sums(place.root / name, tuple(shape))
        names = list(dict.fromkeys(names))
        config = with_weights(_read_config(values, box_px), project, place)

        def write(folder: Path) -> dict[str, Any]:
            write_tables(folder / _MICROGRAPHS, micrographs)
            if rows is not None:
                write_tables(folder / _PARTICLES, rows)
            return {"task": "train", "output": str(folder), "options": as_given(folder)}

        def as_given(folder: Path) -> dict[str, Any]:
            options = config.model_dump(mode="json", exclude_unset=True)
            options["pairs"]["noisy"] = str(folder / _MICROGRAPHS)
            if rows is not None:
                options["pairs"]["coordinates"] = str(folder / _PARTICLES)
            return options

        return Prepared(names, write, check={"training": as_given(Path())})

    _read_config(values, box_px)  # before anything is asked for
    title = "Denoiser trained on half exposures of {source}"
    description = DESCRIPTION + model_line(values)
    return Command(title, description, FOLDER, "steps", inputs, prepare, trust=DESCRIPTION)


def _read_config(values: Mapping[str, Any], box_px: int | None) -> TrainingConfig:
    kept = {name: value for name, value in values.items() if name not in ("data", "reference", "kind")}
    others = ("noisy", "target", "coordinates", "half_set")
    pairs = {name: value for name, value in (values.get("pairs") or {}).items() if name not in others}
    pairs |= {"noisy": _MICROGRAPHS, "target_is_clean": False}
    pairs["box_px"] = box_px or pairs.get("box_px") or FRAMES_BOX_PX
    config = validate({**kept, "pairs": pairs}, TrainingConfig, "training")
    refuse_several_devices(config)
    return config


def _names(dataset: Any, slot: str) -> list[str]:
    return [str(name).removeprefix(">") for name in dataset[f"{slot}/path"]]


def _check_sums(path: Path, shape: tuple[int, ...]) -> None:
    """Raise when a file does not hold two images of the `(y, x)` px that the table says."""
    with StackReader(path) as reader:
        if reader.n_images != 2:
            raise InputError(
                f"expected both sums of frames as the two images of the file, found {reader.n_images}.",
                path=path,
            )
        if (found := reader.shape[1:]) != shape:
            raise InputError(
                f"expected {shape[1]} x {shape[0]} px by {SLOT}/shape, found {found[1]} x {found[0]} px.",
                path=path,
                remedy="Run the job that has written it again: particles are placed by that size.",
            )


Tables = list[tuple[str, list[str], list[tuple[Any, ...]]]]


def _tables(exposures: Any, particles: Any | None, root: Path) -> tuple[Tables, Tables | None]:
    """Return the table of the micrographs with their sums, and that of the particles, if there are some.

    Raises
    ------
    HostError
        If no particle lies on one of the micrographs.
    """
    # the file of both sums stands for its micrograph, which need not be here
    paths = [str(root / name) for name in _names(exposures, SLOT)]
    pixel_sizes = np.asarray(exposures[f"{SLOT}/psize_A"], np.float64)
    known, group = np.unique(pixel_sizes, return_inverse=True)
    groups = (group.reshape(-1) + 1).tolist()
    optics: list[tuple[Any, ...]] = list(enumerate(known.tolist(), 1))
    rows = [(path, f"1@{path}", f"2@{path}", number) for path, number in zip(paths, groups, strict=True)]
    micrographs: Tables = [
        ("optics", ["rlnOpticsGroup", "rlnMicrographPixelSize"], optics),
        ("micrographs", ["rlnMicrographName", EVEN_LABEL, ODD_LABEL, "rlnOpticsGroup"], [*rows]),
    ]
    if particles is None:
        return micrographs, None
    if missing := [name for name in _PLACE if name not in particles.fields()]:
        raise HostError(f"the particles do not say where they lie: they have no {', '.join(missing)}.")
    number = {int(uid): row for row, uid in enumerate(exposures["uid"])}
    shapes = np.asarray(exposures[f"{SLOT}/shape"], np.float64)
    places = []
    for uid, x, y in zip(*(particles[name] for name in _PLACE), strict=True):
        row = number.get(int(uid))
        if row is not None:
            height, width = shapes[row]
            places.append((paths[row], float(x * width), float(y * height)))
    if not places:
        raise HostError(
            "no particle lies on one of the micrographs. Give particles that were picked or extracted from "
            "them."
        )
    return micrographs, [("particles", ["rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY"], places)]
