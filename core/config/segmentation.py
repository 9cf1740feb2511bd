"""What trains a network that segments micrographs: one YAML file, unknown keys refused.

The micrographs are simulated, with their true labels (section `simulated`), or the user's own, with picks and
masks (section `own`), which usually refine a network that simulated ones have trained (`initial_weights`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from .base import Section
from .micrographs import MicrographSettings, Range


class SimulatedMicrographs(Section):
    """Micrographs of one structure each, or of none."""

    structures: Path = Field(description="Folder of PDB or mmCIF files (.pdb, .cif, .gz).")
    held_out: tuple[str, ...] = Field(
        default=(), description="Names (without extension) that only the validation sees."
    )
    micrographs_per_structure: int = Field(
        default=3, ge=1, description="Each with its own draw of everything in `settings`."
    )
    pixel_size_angstrom: Range = Field(
        default=(3.25, 4.75),
        description="(lowest, highest), drawn for each structure; half of the network's pixel size.",
    )
    discs_per_square_micrometre: Range = Field(
        default=(0.0, 100.0), description="(lowest, highest), drawn for each micrograph."
    )
    min_distance: Range = Field(
        default=(0.85, 0.85),
        description=(
            "(lowest, highest) of `settings.min_distance`, drawn for each micrograph; below 1 they overlap."
        ),
    )
    large_discs_probability: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description=(
            "Chance that a micrograph has, instead, few and large ice crystals of up to five "
            "times the radius."
        ),
    )
    settings: MicrographSettings = Field(
        default=MicrographSettings(shape_px=(768, 768)),
        description="Everything else; its values of what is named above are not used.",
    )


class OwnMicrographs(Section):
    """The user's micrographs."""

    micrographs: Path = Field(description="`micrographs.star`, whose table gives the pixel size.")
    picks: Path = Field(
        description=(
            "Folder of coordinate files, each named after its micrograph, with or without a "
            "suffix such as `_manualpick` (`.star`). Every particle of a listed micrograph has to "
            "be picked: what is not is taken for background. A micrograph without a file is left "
            "out."
        )
    )
    particle_radius_angstrom: float = Field(
        gt=0, allow_inf_nan=False, description="Picks become discs of this radius."
    )
    masks: Path | None = Field(
        default=None,
        description=(
            "Folder of contamination masks, `.mrc` of the micrograph's size and name; more than 0 "
            "is contamination."
        ),
    )
    validation_share: float = Field(
        default=0.2, gt=0, lt=1, description="Share of the micrographs that only the validation sees."
    )


class SegmentationOptimisation(Section):
    """How long and how fast to train."""

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(16, ge=1)
    crop_px: int = Field(
        default=128,
        ge=32,
        multiple_of=16,
        description="Side of the pieces of micrographs in a batch, in the network's pixels.",
    )
    learning_rate: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(1e-3, ge=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    class_weights: tuple[float, float, float] = Field(
        default=(1.0, 2.0, 1.0), description="Of background, contamination and particle in the cross-entropy."
    )
    validate_every: int = Field(250, ge=1)


class SegmentationConfig(Section):
    """Training of a segmentation network."""

    kind: Literal["segmentation"]
    description: str = ""
    seed: int = 1
    arguments: dict[str, Any] = Field(
        default={}, description="Of the constructor of `models.segmentation.SegmentationUNet`."
    )
    initial_weights: str | None = Field(
        default=None, description="A shipped model or a file to begin with, of the same network."
    )
    simulated: SimulatedMicrographs | None = None
    own: OwnMicrographs | None = None
    optimisation: SegmentationOptimisation = SegmentationOptimisation()

    @model_validator(mode="after")
    def _one_source(self) -> SegmentationConfig:
        if (self.simulated is None) == (self.own is None):
            raise ValueError("expected exactly one of the sections simulated and own")
        return self
