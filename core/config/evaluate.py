"""What `cryohush evaluate` is told: which files belong together, and what to compute of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from ..errors import ConfigurationError
from ..registry import Registry
from .base import Section, option
from .load import COMMAND_LINE, read_yaml, validate

IMAGE_METRICS = (
    "correlation",
    "mse",
    "mae",
    "rmse",
    "pmse",
    "nmse",
    "affine_nmse",
    "psnr",
    "affine_psnr",
    "ssim",
    "affine_ssim",
    "ssim_uniform",
)
"""Figures of an image against its clean reference that are cryohush's own, in the order of the report."""

METRICS: Registry[Any] = Registry("metric", {}, "cryohush.metrics")
"""Those of other packages: functions of images and reference `(n, y, x)`, and of a mask `(y, x)` or None,
that return `(n,)`."""

Embedding = Literal["isomap", "spectral", "mds", "tsne", "pca"]

BASELINES = (
    "mean",
    "gaussian",
    "low_pass",
    "bilateral",
    "non_local_means",
    "bm3d",
    "dictionary",
    "radial_wiener",
    "covariance_wiener",
)
"""Classical denoisers that can be applied to the raw images for comparison."""

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _known(names: Sequence[str], valid: Sequence[str], what: str) -> None:
    for name in names:
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(valid)}"
            raise ValueError(f"unknown {what} {name!r}; {hint}")


def _metrics(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    others = [name for name in names or () if name not in METRICS]
    _known(others, IMAGE_METRICS, "metric")
    return names


def _baselines(names: tuple[str, ...]) -> tuple[str, ...]:
    _known(names, BASELINES, "baseline")
    return names


class PickingSection(Section):
    """How well plain pickers find labelled particles on denoised micrographs."""

    micrographs: Path = Field(description="STAR file or `.mrc`, denoised.")
    raw: Path | None = Field(
        default=None, description="The same micrographs before denoising, for comparison."
    )
    labels: Path = Field(
        description=(
            "A STAR file with `rlnMicrographName` and coordinates, or a folder with a file for "
            "each micrograph."
        )
    )
    label_suffix: str = Field(
        default="_manualpick.star",
        description=(
            "In a folder: what follows a micrograph's name, without its ending, in the name of its file."
        ),
    )
    diameter_angstrom: _Positive = Field(description="Of the particle.")
    protein: Literal["dark", "white"] = Field(
        default="dark", description="Shade of the protein on the micrographs."
    )


class ClusteringSection(Section):
    """Do the conformations of particles fall into groups?"""

    column: str = Field(
        default="rlnClassNumber",
        description="Of the table of denoised particles, with the true conformations.",
    )
    embedding: Embedding = Field(default="isomap", description="How the images are laid out in the plane.")
    neighbours: int = Field(default=25, ge=2, description="Of each image that the embedding keeps near.")
    images: int = Field(
        default=1000,
        ge=10,
        description="At most so many, evenly spread, because time and memory grow with their square.",
    )


class PoseSection(Section):
    """Are the poses that the table gives found again in the images?"""

    map: Path = Field(description="Density map that is matched with the images.")
    symmetry: str = Field(default="C1", description="Point group, RELION's name.")
    order: int = Field(
        default=2, ge=0, le=4, description="HEALPix order of the search: 7.5 degrees at 3, 15 at 2."
    )
    shift_px: float = Field(default=0.0, ge=0, description="Shifts are searched up to this distance.")
    images: int = Field(default=64, ge=1, description="At most so many, evenly spread.")
    finest_angstrom: _Positive | None = Field(
        default=None, description="Detail finer than this does not count; None: all does."
    )
    apply_ctf: bool = Field(
        default=True, description="Whether the projections get the CTF that the table gives."
    )


class HalfMapsSection(Section):
    """Two half maps, and the mask within which they are compared as well."""

    first: Path = Field(description="Cubic `.mrc` volumes.")
    second: Path = Field(description="Cubic `.mrc` volumes.")
    mask: Path | None = Field(default=None, description="Cubic `.mrc` volume, 0 to 1, with a soft edge.")


class EvaluateConfig(Section):
    """What is compared with what; tables and stacks go together particle by particle."""

    denoised: Path | None = option(
        None, "denoised particles or micrographs: `.star`, `.cs`, `.mrcs` or `.mrc`", metavar="FILE"
    )
    reference: Path | None = option(None, "the same images without noise, with their CTF", metavar="FILE")
    twin: Path | None = option(
        None,
        "images of the same particles with independent noise, which nothing was trained on",
        metavar="FILE",
    )
    raw: Path | None = option(None, "the images before denoising, to see the gain", metavar="FILE")
    half_maps: HalfMapsSection | None = Field(
        default=None, description="Two half maps, for the Fourier shell correlation."
    )
    model: str | None = option(
        None, "model to test for hallucination: a shipped one or a `.safetensors` file", metavar="NAME"
    )
    metrics: Annotated[tuple[str, ...] | None, AfterValidator(_metrics)] = option(
        None, f"figures against clean images, of {', '.join(IMAGE_METRICS)}", metavar="NAME", shown="all"
    )
    data_range: Literal["reference", "unit"] | _Positive = option(
        "reference",
        "grey values of full scale for PMSE, PSNR and SSIM: a number; reference, the span of each clean "
        "image; or unit, every image stretched to 0 to 1 first",
        metavar="RANGE",
    )
    particle_diameter_angstrom: _Positive | None = option(
        None, "only pixels within this circle count against a reference, Å", metavar="D", shown="all"
    )
    coarsest_angstrom: _Positive = option(
        100.0,
        "against a twin, a second correlation counts only detail finer than this, Å: gradients of the "
        "ice are common to both",
        metavar="RES",
    )
    pair_by_order: bool = option(
        False,
        "take the rows of all files to be in one order where nothing in them shows which are the same image",
    )
    align_twin: bool = option(False, "correct the drift between raw images and their twins, by micrograph")
    baselines: Annotated[tuple[str, ...], AfterValidator(_baselines)] = option(
        (), f"classical denoisers to compare with, of {', '.join(BASELINES)}", metavar="NAME"
    )
    noise_images: int = option(256, "images of pure noise that a model is given", metavar="N", ge=4)
    picking: PickingSection | None = Field(
        default=None, description="How well plain pickers find labelled particles on denoised micrographs."
    )
    clustering: ClusteringSection | None = Field(
        default=None, description="Whether conformations fall into groups."
    )
    pose: PoseSection | None = Field(default=None, description="Whether given poses are found again.")
    device: str = option("auto", "for the model: auto, cpu or cuda:N")
    threads: int | None = option(
        None, "CPU threads", metavar="N", shown="all that this process may use", ge=1
    )

    @model_validator(mode="after")
    def _goes_together(self) -> EvaluateConfig:
        compared = self.reference or self.twin
        needs = (
            (bool(self.metrics) and not self.reference, "metrics compare with clean images: give reference"),
            (bool(compared) and not self.denoised, "reference and twin need denoised images to compare"),
            (
                bool(self.raw) and not self.denoised,
                "raw images stand beside denoised ones: give denoised",
            ),
            (
                bool(self.baselines) and not (self.raw and compared),
                "baselines need raw, and reference or twin",
            ),
            (self.align_twin and not (self.twin and self.raw), "align_twin needs twin and raw"),
            (bool(self.clustering or self.pose) and not self.denoised, "clustering and pose need denoised"),
        )
        for is_missing, sentence in needs:
            if is_missing:
                raise ValueError(sentence)
        if self.denoised and not (compared or self.raw or self.clustering or self.pose):
            raise ValueError("denoised needs something to be compared with: reference, twin or raw")
        if not (self.denoised or self.half_maps or self.model or self.picking):
            raise ValueError("nothing to evaluate: give denoised, half_maps, picking or model")
        return self


def read_config(
    given: Mapping[str, Any], path: Path | None = None, overrides: Sequence[str] = ()
) -> EvaluateConfig:
    """Return the configuration of a file, with what a command line gives on top.

    Parameters
    ----------
    given
        Options by name.
    path
        YAML file; None: only the command line counts.
    overrides
        As of `load.load_yaml`.

    Raises
    ------
    ConfigurationError
        If an entry is unknown or does not fit.
    """
    if path is None and overrides:
        raise ConfigurationError("--set changes a configuration file: give --config.")
    values = read_yaml(path, overrides) if path is not None else {}
    return validate({**values, **given}, EvaluateConfig, COMMAND_LINE if path is None else str(path))
