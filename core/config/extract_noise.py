"""What an extraction of noise can be told."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import field_validator, model_validator

from ..errors import ConfigurationError
from ..registry import Registry
from .base import Section, option
from .denoise import Precision, Protein, pixel_size_option

DEFAULT_WINDOW_PX = 320
"""Of NT2C: Li et al. (2022) Bioinformatics 38, 2022-2029, section 2.2.2; in micrographs of 4096 px."""

WINDOWS_ACROSS = 8
"""A window is by default at most the shorter side of a micrograph divided by this."""

SMALLEST_WINDOW_PX = 64
"""Where nothing is found, a window by default shrinks to this and no further."""

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


class ExtractNoiseOptions(Section):
    """Options of an extraction of noise.

    Blocks are judged by `noise.patches.BlockLimits` and `noise.energy`.
    """

    method: str = option(
        "segmentation",
        "segmentation: where a network sees neither particles nor contamination; similarity: where all parts "
        "of the denoised micrograph look alike; or another package's",
        metavar="NAME",
    )
    window_px: int | None = option(
        None,
        "side of a block, pixels",
        metavar="N",
        shown="320, in small micrographs an eighth of the shorter side; where nothing is found, the largest "
        "that fits, 64 at least",
        ge=16,
    )
    window_angstrom: float | None = option(
        None,
        "side of a block, Å, instead of pixels",
        flag="window-angstrom",
        metavar="L",
        gt=0,
        allow_inf_nan=False,
    )
    stride_px: int | None = option(
        None, "distance between windows, pixels", metavar="N", shown="half a window", ge=1
    )
    stride_angstrom: float | None = option(
        None,
        "distance between windows, Å",
        flag="stride-angstrom",
        metavar="L",
        shown="half a window",
        gt=0,
        allow_inf_nan=False,
    )
    local_patches: int = option(
        4, "similarity: parts that a window is divided into: 4, 9, 16", metavar="N", ge=4
    )
    similarity_threshold: float = option(
        0.7, "similarity: SSIM that each two parts of a window must exceed", metavar="S", ge=-1, lt=1
    )
    ssim: Literal["windows", "parts"] = option(
        "windows",
        "similarity: pixels that SSIM takes means and variances of: small windows, or the whole parts, as "
        "published, which needs coarse_pixel_angstrom 0",
        metavar="OF",
    )
    coarse_pixel_angstrom: float | None = option(
        None,
        "similarity: pixel size at which micrographs are denoised, Å; 0 is their own, as published",
        metavar="A",
        shown="4 with the shipped denoiser, 0 with another",
        ge=0,
        allow_inf_nan=False,
    )
    min_background: float = option(
        0.9,
        "probability from which the network's label counts as background",
        metavar="P",
        gt=0,
        lt=1,
        former="least-background",
    )
    margin_angstrom: float = option(
        0.0,
        "distance of blocks from particles and contamination, Å",
        metavar="L",
        ge=0,
        allow_inf_nan=False,
        former="margin-angstrom",
    )
    min_noise_probability: float = option(
        0.05,
        "reject blocks whose power is so high that pure noise has it with a probability below this; 0 is off",
        metavar="P",
        ge=0,
        lt=1,
        former="least-p-value",
    )
    model: str | None = option(
        None,
        "a shipped model or a `.safetensors` file, denoiser or segmentation network",
        metavar="NAME",
        shown="general or segmentation, by the method",
    )
    max_level: float = option(
        0.5,
        "reject blocks whose mean is farther from the background's, in its sd",
        metavar="X",
        gt=0,
        former="largest-level",
    )
    max_spread: float = option(
        1.25,
        "reject blocks whose sd differs from the background's by a larger factor",
        metavar="X",
        gt=1,
        former="largest-spread",
    )
    max_gradient: float = option(
        0.5, "reject blocks with a steeper ramp, in sd", metavar="X", gt=0, former="largest-gradient"
    )
    max_streak: float = option(
        7.0,
        "reject blocks with a row or column farther off, in standard errors",
        metavar="X",
        gt=0,
        former="largest-streak",
    )
    max_deviation: float = option(
        10.0, "reject blocks with a pixel farther off, in sd", metavar="X", gt=0, former="largest-deviation"
    )
    max_per_micrograph: int | None = option(
        None,
        "at most so many blocks from one micrograph, drawn at random from more",
        metavar="N",
        shown="all",
        ge=1,
        former="most-per-micrograph",
    )
    min_blocks: int = option(
        1, "fewer blocks in all are an error", metavar="N", ge=1, former="minimum-blocks"
    )
    normalisation: Normalisation = option(
        "none",
        "of the written blocks: none; zscore, mean 0 and sd 1; or whiten, a flat spectrum as well",
        metavar="KIND",
    )
    pixel_size_angstrom: float | None = pixel_size_option()
    protein: Protein = option("auto", "whether protein is dark or white", metavar="SHADE", shown="dark")
    seed: int = option(1, "of the draw under max_per_micrograph", metavar="N", ge=0)
    device: str = option("auto", "auto, cpu, or GPUs such as cuda:0,1")
    precision: Precision = option(
        "auto", "number format in the network: auto, fp32, bf16 or fp16", metavar="FORMAT"
    )
    threads: int | None = option(
        None,
        "micrographs at once on the CPU, a thread each",
        metavar="N",
        shown="all that this process may use",
        ge=1,
    )
    skip_bad: bool = option(
        False,
        "leave out micrographs with NaN or Inf, and constant ones",
        shown="stop at the first",
    )

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
    def _as_published(self) -> ExtractNoiseOptions:
        if self.ssim == "parts" and self.coarse_pixel_angstrom != 0:
            raise ValueError("ssim: of whole parts it needs coarse_pixel_angstrom 0, as it was published")
        return self

    @model_validator(mode="after")
    def _one_unit(self) -> ExtractNoiseOptions:
        for name in ("window", "stride"):
            if getattr(self, f"{name}_px") is not None and getattr(self, f"{name}_angstrom") is not None:
                raise ValueError(f"{name}_px and {name}_angstrom exclude each other: leave one of them out")
        return self

    @property
    def says_window(self) -> bool:
        """Whether the side of a block is given."""
        return self.window_px is not None or self.window_angstrom is not None

    def coarse_bin(self, pixel_size_angstrom: float | None, most: int) -> int:
        """How many pixels a side, at most `most`, become one before a micrograph is denoised."""
        wanted = self.coarse_pixel_angstrom
        if wanted is None:
            wanted = DEFAULT_COARSE_PIXEL_ANGSTROM if self.model is None else 0.0
        return 1 if pixel_size_angstrom is None else max(1, min(most, round(wanted / pixel_size_angstrom)))

    def window_and_stride_px(
        self, pixel_size_angstrom: float | None, default_window_px: int = DEFAULT_WINDOW_PX
    ) -> tuple[int, int]:
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
                    f"--{name}-angstrom needs the pixel size, which the input does not say. Give --{name}-px "
                    "or --pixel-size."
                )
            return max(1, round(length / pixel_size_angstrom))

        window = pixels("window", default_window_px)
        return window, pixels("stride", max(1, window // 2))
