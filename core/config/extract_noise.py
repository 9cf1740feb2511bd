"""What an extraction of noise can be told."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import ConfigurationError
from ..registry import Registry
from .denoise import Protein

DEFAULT_WINDOW_PX = 320
"""Of NT2C: Li et al. (2022) Bioinformatics 38, 2022-2029, section 2.2.2."""

DEFAULT_COARSE_PIXEL_ANGSTROM = 4.0

METHODS: Registry[Any] = Registry(
    "noise finder",
    {
        "segmentation": "cryohush.core.noise.finders:SEGMENTATION",
        "similarity": "cryohush.core.noise.finders:SIMILARITY",
    },
    "cryohush.noise_finders",
)
"""Ways to find noise, each a `noise.finders.NoiseFinder`."""

Normalisation = Literal["none", "zscore", "whiten"]


class ExtractNoiseOptions(BaseModel):
    """Options of an extraction of noise.

    Attributes
    ----------
    method
        `segmentation`: windows without a pixel that a network takes for particle or contamination.
        `similarity`: patches of the denoised micrograph whose parts all look alike. Or another package's.
    window_px, window_angstrom
        Side of a block, in one of the two; None of both is `DEFAULT_WINDOW_PX`.
    stride_px, stride_angstrom
        Distance of neighbouring windows, in one of the two; None of both is half a window.
    local_patches
        Similarity: how many parts a patch is divided into: 4, 9, 16 and so on.
    similarity_threshold
        Similarity: what the SSIM of each two of the parts has to exceed.
    coarse_pixel_angstrom
        Similarity: about the pixel size at which micrographs are denoised; 0 is their own, as it was
        published. None is 4 Å for the shipped denoiser, which knows that size, and their own for others.
    least_background
        Label map: a pixel is background from this probability on. More is safer and finds fewer blocks.
    margin_angstrom
        Label map: blocks keep that far away from contamination and particles.
    least_p_value
        A block has to have no more local energy than so large a share of windows of pure noise
        (`noise.energy`), and with either method no contamination and no particles in the label map. 0 leaves
        that out: the methods as such.
    model
        Denoiser (similarity) or segmentation network: a shipped model or a `.safetensors` file; None is
        `general` or `segmentation`.
    largest_level, largest_spread, largest_gradient, largest_streak, largest_deviation
        Limits of `noise.patches.BlockLimits`: blocks beyond them are rejected.
    most_per_micrograph
        More blocks than that are drawn at random.
    minimum_blocks
        Fewer in all are an error.
    normalisation
        Of the written blocks: `none`, mean 0 and standard deviation 1 (`zscore`), or that with a flat
        spectrum (`whiten`). What it takes to undo it is in the table.
    pixel_size_angstrom
        Overrides what the table says, or the header of a single micrograph.
    protein
        Whether protein is dark or white; `auto` is dark. Blocks keep the micrograph's grey values.
    seed
        Of the random choice under `most_per_micrograph`.
    device, precision
        As for denoising.
    threads
        Micrographs worked on at once on the CPU, a thread each; None is as many as the process may use.
    skip_bad
        Leave micrographs with NaN or Inf, and constant ones, out instead of stopping.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "segmentation"
    window_px: int | None = Field(default=None, ge=16)
    window_angstrom: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    stride_px: int | None = Field(default=None, ge=1)
    stride_angstrom: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    local_patches: int = Field(default=4, ge=4)
    similarity_threshold: float = Field(default=0.7, ge=-1, lt=1)
    coarse_pixel_angstrom: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    least_background: float = Field(default=0.9, gt=0, lt=1)
    margin_angstrom: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    least_p_value: float = Field(default=0.05, ge=0, lt=1)
    model: str | None = None
    largest_level: float = Field(default=0.5, gt=0)
    largest_spread: float = Field(default=1.25, gt=1)
    largest_gradient: float = Field(default=0.5, gt=0)
    largest_streak: float = Field(default=7.0, gt=0)
    largest_deviation: float = Field(default=10.0, gt=0)
    most_per_micrograph: int | None = Field(default=None, ge=1)
    minimum_blocks: int = Field(default=1, ge=1)
    normalisation: Normalisation = "none"
    pixel_size_angstrom: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    protein: Protein = "auto"
    seed: int = Field(default=1, ge=0)
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    threads: int | None = Field(default=None, ge=1)
    skip_bad: bool = False

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in METHODS:
            raise ValueError(METHODS.expected(value).rstrip("."))
        return value

    @field_validator("local_patches")
    @classmethod
    def _square(cls, value: int) -> int:
        if math.isqrt(value) ** 2 != value:
            raise ValueError(f"expected 4, 9, 16 or another square, found {value}")
        return value

    @model_validator(mode="after")
    def _one_unit(self) -> ExtractNoiseOptions:
        for name in ("window", "stride"):
            if getattr(self, f"{name}_px") is not None and getattr(self, f"{name}_angstrom") is not None:
                raise ValueError(f"{name}_px and {name}_angstrom exclude each other: leave one of them out")
        return self

    def coarse_bin(self, pixel_size_angstrom: float | None, most: int) -> int:
        """How many pixels a side, at most `most`, become one before a micrograph is denoised."""
        wanted = self.coarse_pixel_angstrom
        if wanted is None:
            wanted = DEFAULT_COARSE_PIXEL_ANGSTROM if self.model is None else 0.0
        return 1 if pixel_size_angstrom is None else max(1, min(most, round(wanted / pixel_size_angstrom)))

    def window_and_stride_px(self, pixel_size_angstrom: float | None) -> tuple[int, int]:
        """Side of a window and distance between windows in a micrograph.

        Raises
        ------
        ConfigurationError
            If either is given in Å and the pixel size is not known.
        """

        def pixels(name: str, otherwise: int) -> int:
            length: float | None = getattr(self, f"{name}_angstrom")
            if length is None:
                given: int | None = getattr(self, f"{name}_px")
                return otherwise if given is None else given
            if pixel_size_angstrom is None:
                raise ConfigurationError(
                    f"{name}_angstrom needs the pixel size, which the input does not say. Give "
                    f"{name}_px, or pixel_size_angstrom."
                )
            return max(1, round(length / pixel_size_angstrom))

        window = pixels("window", DEFAULT_WINDOW_PX)
        return window, pixels("stride", max(1, window // 2))
