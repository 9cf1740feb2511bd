"""What a denoising run can be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PARTICLE_SHARE_OF_BOX = 0.75
"""Diameter of the particle's circle as a share of the box, when no diameter is given."""


Protein = Literal["auto", "dark", "white"]


class DenoiseOptions(BaseModel):
    """Options of a denoising run.

    Attributes
    ----------
    model
        Name of a shipped model, or path of a `.safetensors` file.
    device
        `auto`, `cpu`, or GPUs as `cuda:0,1` or `0,1`.
    precision
        Number format of the network; `auto` measures which is fastest on the device.
    batch_size
        Images, or tiles of micrographs, that go through the network at once.
    blend
        Share `a` of the raw image in the output, `x_hat + a (x - x_hat)`: 0 to 1.
    keep_above_angstrom
        Resolution, Å, beyond which the raw image is kept as it is.
    output_dtype
        Pixel format of the written stacks; RELION 3.1 cannot read float16.
    skip_bad
        Pass images with NaN or Inf, and constant ones, through unchanged instead of stopping.
    protein
        Whether protein is dark or white. `auto`: dark in micrographs, white in RELION's particles, and as the
        table says in cryoSPARC's.
    particle_diameter_angstrom
        Diameter of the circle outside which an image is background, Å; None is three quarters of the box.
    threads
        CPU threads; None is as many as the process may use.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = "general"
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    blend: float = Field(default=0.0, ge=0, le=1)
    keep_above_angstrom: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    output_dtype: Literal["float32", "float16"] = "float32"
    skip_bad: bool = False
    protein: Protein = "auto"
    particle_diameter_angstrom: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    threads: int | None = Field(default=None, ge=1)
