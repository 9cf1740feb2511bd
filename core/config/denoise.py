"""What a denoising run can be told."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from .base import Section, option

PARTICLE_SHARE_OF_BOX = 0.75
"""Diameter of the particle's circle as a share of the box, when no diameter is given."""

Protein = Literal["auto", "dark", "white"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
CONTEXT_NAME = "context.safetensors"
"""What a run keeps of its stacks' context, in its folder."""


def pixel_size_option() -> Any:
    """The field of a pixel size that a user knows better."""
    return option(
        None,
        "pixel size, Å, in place of that of the table or header",
        metavar="A",
        shown="as the table or header says",
        gt=0,
        allow_inf_nan=False,
    )


TRUSTED, SUSPICIOUS = "trusted", "suspicious"
"""How the tables and outputs of scored particles end."""
SUSPICIOUS_BELOW = 1 / (1 + 18.467 / 4)
"""Score of a particle as far out as one in a thousand normal images: chi square with four degrees of freedom,
one for each feature of `metrics.ordinary`."""


class DenoiseOptions(Section):
    """Options of a denoising run."""

    model: str = option(
        "general", "a shipped model, a `.safetensors` file or the folder of a training", metavar="NAME"
    )
    device: str = option("auto", "auto, cpu, or GPUs such as cuda:0,1")
    precision: Precision = option(
        "auto",
        "number format in the network: fp32, bf16, fp16, or auto, the fastest that the device is built for",
        metavar="FORMAT",
    )
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = option(
        "auto", "images, or tiles of a micrograph, that go through the network at once", metavar="N"
    )
    limit: int | None = option(
        None,
        "denoise only the first N particles or micrographs, as a trial: the table has only these (below 100 "
        "particles there is no context of the stack, so that a longer run comes out a little better)",
        metavar="N",
        shown="all of them",
        ge=1,
    )
    blend: float = option(0.0, "share of the raw image in the output, 0 to 1", metavar="A", ge=0, le=1)
    keep_above_angstrom: float | None = option(
        None,
        "keep the raw image beyond this resolution, Å",
        metavar="RES",
        gt=0,
        allow_inf_nan=False,
    )
    particle_diameter_angstrom: float | None = option(
        None,
        "diameter of the circle outside which an image is background, Å",
        metavar="D",
        shown="three quarters of the box",
        gt=0,
        allow_inf_nan=False,
    )
    pixel_size_angstrom: float | None = pixel_size_option()
    protein: Protein = option(
        "auto",
        "whether protein is dark or white",
        metavar="SHADE",
        shown="dark in micrographs, white in particles, or as particles.cs says",
    )
    context: Literal["auto", "map", "none"] = option(
        "auto",
        "auto: the rest of the stack helps with each image, if it is large enough; map: so does a map of the "
        "particle found from it, where that predicts images better; none: each by itself",
        metavar="USE",
    )
    score: bool = option(
        False,
        "score each particle by how ordinary it is in its stack, and list trusted and suspicious ones apart",
        shown="no scores",
    )
    error_stacks: bool = option(
        False,
        "write the expected error of each pixel, too, in a stack beside each stack (..._error.mrcs)",
        shown="no such stacks",
    )
    output_dtype: Literal["float32", "float16"] = option(
        "float32", "pixel format of the output: float32, or float16 (not for RELION 3.1)", metavar="TYPE"
    )
    threads: int | None = option(
        None, "CPU threads", metavar="N", shown="all that this process may use", ge=1
    )
    skip_bad: bool = option(
        False,
        "pass images with NaN or Inf, and constant ones, through unchanged",
        shown="stop at the first",
    )
