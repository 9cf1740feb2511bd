"""What `cryohush evaluate` is told: which files belong together, and what to compute of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..errors import ConfigurationError
from ..registry import Registry
from .load import read_yaml, validate

IMAGE_METRICS = (
    "correlation",
    "mse",
    "mae",
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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PickingSection(_Section):
    """How well plain pickers find labelled particles on denoised micrographs.

    Attributes
    ----------
    micrographs
        STAR file or `.mrc`, denoised.
    raw
        The same micrographs before denoising, for comparison.
    labels
        A STAR file with `rlnMicrographName` and coordinates, or a folder with a file for each micrograph.
    label_suffix
        In a folder: what follows a micrograph's name, without its ending, in the name of its file.
    diameter_angstrom
        Of the particle.
    protein
        Shade of the protein on the micrographs.
    """

    micrographs: Path
    raw: Path | None = None
    labels: Path
    label_suffix: str = "_manualpick.star"
    diameter_angstrom: _Positive
    protein: Literal["dark", "white"] = "dark"


class ClusteringSection(_Section):
    """Do the conformations of particles fall into groups?

    Attributes
    ----------
    column
        Of the table of denoised particles, with the true conformations.
    embedding
        How the images are laid out in the plane.
    neighbours
        Of each image that the embedding keeps near.
    images
        At most so many, evenly spread, because time and memory grow with their square.
    """

    column: str = "rlnClassNumber"
    embedding: Literal["isomap", "spectral", "mds", "tsne", "pca"] = "isomap"
    neighbours: int = Field(25, ge=2)
    images: int = Field(1000, ge=10)


class PoseSection(_Section):
    """Are the poses that the table gives found again in the images?

    Attributes
    ----------
    map
        Density map that is matched with the images.
    symmetry
        Point group, RELION's name.
    order
        HEALPix order of the search: 7.5 degrees at 3, 15 at 2.
    shift_px
        Shifts are searched up to this distance.
    images
        At most so many, evenly spread.
    finest_angstrom
        Detail finer than this does not count; None: all does.
    apply_ctf
        Whether the projections get the CTF that the table gives.
    """

    map: Path
    symmetry: str = "C1"
    order: int = Field(2, ge=0, le=4)
    shift_px: float = Field(0.0, ge=0)
    images: int = Field(64, ge=1)
    finest_angstrom: _Positive | None = None
    apply_ctf: bool = True


class HalfMapsSection(_Section):
    """Two half maps, and the mask within which they are compared as well.

    Attributes
    ----------
    first, second
        Cubic `.mrc` volumes.
    mask
        Cubic `.mrc` volume, 0 to 1, with a soft edge.
    """

    first: Path
    second: Path
    mask: Path | None = None


class EvaluateConfig(_Section):
    """What is compared with what; rows of tables are paired by what says that they are the same image.

    Attributes
    ----------
    denoised
        Particles or micrographs: STAR, `.cs`, `.mrcs` or `.mrc`.
    reference
        The clean images.
    twin
        Noisy images of the same particles whose noise is independent of all that was denoised.
    raw
        The images before denoising: all figures are given for them, too, and the gain over them.
    half_maps
        For the Fourier shell correlation.
    model
        Shipped model or `.safetensors` file whose hallucination figures are wanted.
    metrics
        Of `IMAGE_METRICS`, or another package's (`METRICS`); None: all of the former, where there is a
        reference.
    data_range
        Grey values of full scale for PMSE, PSNR and SSIM: `reference` is each clean image's span, `unit`
        stretches every image to 0 to 1 first, as some papers do.
    particle_diameter_angstrom
        Only pixels within this circle count against a reference; None: all.
    coarsest_angstrom
        Against a twin, a second correlation counts only detail finer than this: ice gradients are common to
        both.
    align_twin
        Take back the drift between the images and their twins, micrograph by micrograph.
    baselines
        Of `BASELINES`, with their default parameters; they need the raw images.
    noise_images
        How many images of pure noise a model is given.
    device
        auto, cpu or cuda:N, for the model.
    threads
        CPU threads; None is as many as the process may use.
    """

    denoised: Path | None = None
    reference: Path | None = None
    twin: Path | None = None
    raw: Path | None = None
    half_maps: HalfMapsSection | None = None
    model: str | None = None
    metrics: Annotated[tuple[str, ...] | None, AfterValidator(_metrics)] = None
    data_range: Literal["reference", "unit"] | _Positive = "reference"
    particle_diameter_angstrom: _Positive | None = None
    coarsest_angstrom: _Positive = 100.0
    align_twin: bool = False
    baselines: Annotated[tuple[str, ...], AfterValidator(_baselines)] = ()
    noise_images: int = Field(256, ge=4)
    picking: PickingSection | None = None
    clustering: ClusteringSection | None = None
    pose: PoseSection | None = None
    device: str = "auto"
    threads: int | None = Field(default=None, ge=1)

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
    return validate({**values, **given}, EvaluateConfig, "evaluate" if path is None else str(path))
