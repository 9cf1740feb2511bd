"""What `relion_cryohush train` makes of RELION's inputs: a configuration for each model."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..core.config.load import find_preset, read_yaml, validate
from ..core.config.training import FRAMES_BOX_PX, TrainingConfig
from ..core.errors import ConfigurationError, DeviceError
from ..core.io.micrographs import MicrographSet
from ..core.io.mrc import StackReader
from ..core.io.particles import ParticleSet
from .log import say
from .request import read_values

# What is trained where the form says nothing else.
PRESET = "reference"
# Tells the halves of RELION's maps: run_half1_class001_unfil.mrc beside run_class001.mrc
_HALF = re.compile(r"(half_?)[12]")


class TrainOptions(BaseModel):
    """Parameters of the job.

    Attributes
    ----------
    model
        A shipped model, a training job's directory or a weights file to begin with, or `none`. Without it
        `general`, or what `config` says.
    config
        A preset or YAML file of `cryohush train`; the job's inputs take the place of its images.
    twin
        STAR file of the same particles with independent noise: Noise2Noise, instead of a map.
    box_px
        Side of the boxes that are cut from the sums of even and of odd frames.
    half_set
        Learn from this half set only.
    half_sets
        Train a model for each half set.
    low_pass_angstrom
        Resolution of the map: what is finer is not learnt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    config: str | None = None
    twin: Path | None = None
    box_px: int | None = Field(None, ge=32)
    steps: int | None = Field(None, gt=0)
    batch_size: int | None = Field(None, gt=0)
    learning_rate: float | None = Field(None, gt=0)
    half_set: Literal["1", "2"] | None = None
    half_sets: bool = False
    low_pass_angstrom: float | None = Field(None, gt=0)
    validation_share: float | None = Field(None, gt=0, lt=1)
    device: str = "auto"
    threads: int | None = Field(None, gt=0)


def read_train_options(given: Mapping[str, str | None]) -> TrainOptions:
    """Return the parameters; see `read_values`.

    Raises
    ------
    ConfigurationError
        If one does not fit, or two that exclude each other are given.
    """
    options = validate(read_values(given, TrainOptions), TrainOptions, "parameters")
    if options.half_set and options.half_sets:
        raise ConfigurationError("both half_set and half_sets are given: leave one of them out.")
    return options


def plan_runs(
    directory: Path, options: TrainOptions, given: Mapping[str, str | None], source: str
) -> dict[Path, dict[str, Any]]:
    """Return the configuration of each run, as YAML would give it, by the folder that it goes to.

    Raises
    ------
    ConfigurationError
        Neither or both of a map and twins are given, a half map is not to be found, or the preset is unknown.
    """
    halves = [1, 2] if options.half_sets else [int(options.half_set) if options.half_set else None]
    folders = [directory / f"half{half}" if options.half_sets else directory for half in halves]
    if given.get("in_mics"):
        return {directory: {**_settings(options, are_pairs=True), **_frames(options, given)}}
    if options.box_px is not None:
        raise ConfigurationError("box is for even and odd frames: leave it out, or give 'Input micrographs'.")
    settings = _settings(options, are_pairs=options.twin is not None)
    return {
        folder: {**settings, **_images(options, given, source, half)}
        for folder, half in zip(folders, halves, strict=True)
    }


def _settings(options: TrainOptions, *, are_pairs: bool) -> dict[str, Any]:
    """All of a configuration but the images."""
    values = read_yaml(find_preset(options.config or PRESET))
    optimisation = dict(values.get("optimisation") or {})
    if options.config is None:
        values["name"] = "own"
        if are_pairs:
            values["description"] = "The general model, fine-tuned on pairs of images of the same particles."
        if options.steps is not None:
            # as often as the preset does in all
            share = values["validate_every"] / optimisation["steps"]
            values["validate_every"] = max(1, int(options.steps * share))
    # more would start this job again; `cryohush train` under torchrun takes them
    optimisation |= {"devices": 1, "nodes": 1}
    for name in ("steps", "batch_size", "learning_rate"):
        if getattr(options, name) is not None:
            optimisation[name] = getattr(options, name)
    if options.model is not None:
        values["initial_weights"] = None if options.model == "none" else options.model
    return {**values, "optimisation": optimisation}


def _images(
    options: TrainOptions, given: Mapping[str, str | None], source: str, half_set: int | None
) -> dict[str, Any]:
    """The section `reference` or `pairs`, and the others empty."""
    reference = reference_map(given)
    if (reference is None) == (options.twin is None):
        raise ConfigurationError(
            "expected what the particles are to be compared with: either 'Input 3D reference', the map that "
            "their poses refer to, or the parameter twin, a STAR file of the same particles from other "
            f"frames; found {'both' if reference else 'neither'}."
        )
    section: dict[str, Any] = {"half_set": half_set}
    if options.validation_share is not None:
        section["validation_share"] = options.validation_share
    nothing = {"data": None, "pairs": None, "reference": None}
    if reference is None:
        return nothing | {
            "pairs": {**section, "noisy": source, "target": options.twin, "target_is_clean": False}
        }
    section |= {"particles": source, "map": reference if half_set is None else half_map(reference, half_set)}
    section |= {"mask": given.get("in_mask") or None, "low_pass_angstrom": options.low_pass_angstrom}
    return nothing | {"reference": section}


def _frames(options: TrainOptions, given: Mapping[str, str | None]) -> dict[str, Any]:
    """The section `pairs` of boxes from the sums of even and of odd frames, and the others empty."""
    wrong = [
        name
        for name, value in (
            ("'Input 3D reference'", reference_map(given)),
            ("'Input 3D mask'", given.get("in_mask")),
            ("twin", options.twin),
            ("half_set", options.half_set),
            ("half_sets", options.half_sets),
            ("low_pass", options.low_pass_angstrom),
        )
        if value
    ]
    if wrong:
        raise ConfigurationError(
            f"with 'Input micrographs' the even and odd frames are compared, and {', '.join(wrong)} makes no "
            "sense: leave it out, or leave 'Input micrographs' empty."
        )
    particles, picks = given.get("in_parts"), given.get("in_coords")
    if particles and picks:
        raise ConfigurationError(
            "both 'Input particles' and 'Input coordinates' are given: leave one of them out."
        )
    micrographs = str(given["in_mics"])
    section: dict[str, Any] = {
        "noisy": micrographs,
        "box_px": options.box_px or _box_of(particles, micrographs),
        "coordinates": particles or picks,
        "target_is_clean": False,
    }
    if options.validation_share is not None:
        section["validation_share"] = options.validation_share
    return {"data": None, "pairs": section, "reference": None}


def _box_of(particles: str | None, micrographs: str) -> int:
    """Return the side of the boxes in the micrographs' pixels: of the particles, if there are some."""
    if particles is None:
        return FRAMES_BOX_PX
    found = ParticleSet.read(particles, root=Path.cwd())
    pixel = found.pixel_size_angstrom(0)
    raw = MicrographSet.read(micrographs, root=Path.cwd()).pixel_size_angstrom(0)
    with StackReader(found.stacks[0]) as stack:
        box = stack.shape[1]
    # a multiple of what any network takes
    return max(32, round(box * (pixel / raw if pixel and raw else 1) / 32) * 32)


def reference_map(given: Mapping[str, str | None]) -> Path | None:
    """Return the map that the form names, in either spelling of its flag."""
    name = given.get("in_3dref") or given.get("in_3Dref")
    return Path(name) if name else None


def half_map(reference: Path, half_set: int) -> Path:
    """Return the half map of a half set, which RELION leaves beside the other one and beside the map.

    Raises
    ------
    ConfigurationError
        It is not there.
    """
    if _HALF.search(reference.name):
        path = reference.with_name(_HALF.sub(rf"\g<1>{half_set}", reference.name))
    else:
        stem, separator, number = reference.stem.rpartition("_class")
        path = reference.with_name(f"{stem}_half{half_set}{separator}{number}_unfil.mrc")
    if not path.is_file():
        raise ConfigurationError(
            f"a model of half set {half_set} must not see the other half, and no half map was found beside "
            f"{reference}. As 'Input 3D reference' fill in run_half{half_set}_class001_unfil.mrc of the "
            "refinement."
        )
    return path


def set_device(options: TrainOptions) -> None:
    """Leave only the chosen GPU visible; before torch looks for one.

    Raises
    ------
    ConfigurationError, DeviceError
        Several GPUs, or one that is not there.
    """
    chosen = options.device.removeprefix("cuda:")
    if chosen not in ("auto", "cpu", "cuda"):
        if not chosen.isdigit():
            raise ConfigurationError(
                f"expected one GPU as 0, or cpu, found {options.device!r}. For several there is `cryohush "
                "train`."
            )
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        known = visible if visible != [""] else [str(number) for number in range(int(chosen) + 1)]
        # one beyond those that the queue gave is no GPU at all
        os.environ["CUDA_VISIBLE_DEVICES"] = known[int(chosen)] if int(chosen) < len(known) else "-1"
    elif chosen == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if torch.cuda.is_available():
        say(f"device {torch.cuda.get_device_name(0)}")
    elif chosen in ("auto", "cpu"):
        say(f"device cpu, {torch.get_num_threads()} threads")
    else:
        raise DeviceError(
            f"GPU {chosen} was asked for, and torch finds none. Leave gpu empty to use the CPU."
        )


def held_out_scores(config: TrainingConfig, folder: Path, weights: Path) -> tuple[float | None, float]:
    """Return the error on held-out particles before the training, None for random weights, and after it.

    It is the score by which the training chose the best of its states, the normalised mean squared error.
    """
    import torch

    from ..core.job_context import QUIET
    from ..core.models.weights import load_model
    from ..core.training.session import open_data
    from ..core.training.session import validate as score

    _, held_out = open_data(config, folder, QUIET, torch.device("cpu"))

    def error(model: str | Path) -> float:
        return float(score(load_model(model).module, held_out, config.validation_images)[0]["score"])

    before = None if config.initial_weights is None else error(config.initial_weights)
    return before, error(weights)
