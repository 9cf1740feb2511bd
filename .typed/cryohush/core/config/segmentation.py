"""What trains a network that segments micrographs: one YAML file, unknown keys refused.

The micrographs are simulated, with their true labels (section `simulated`), or the user's own, with picks and
masks (section `own`), which usually refine a network that simulated ones have trained (`initial_weights`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .micrographs import MicrographSettings, Range


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulatedMicrographs(_Section):
    """Micrographs of one structure each, or of none.

    Attributes
    ----------
    structures
        Folder of PDB or mmCIF files (.pdb, .cif, .gz).
    held_out
        Names (without extension) that only the validation sees.
    micrographs_per_structure
        Each with its own draw of everything in `settings`.
    pixel_size_angstrom
        (lowest, highest), drawn for each structure; half of the network's pixel size.
    discs_per_square_micrometre
        (lowest, highest), drawn for each micrograph.
    minimum_distance
        (lowest, highest) of `settings.minimum_distance`, drawn for each micrograph; below 1 they overlap.
    large_discs_probability
        Chance that a micrograph has, instead, few and large ice crystals of up to five times the radius.
    settings
        Everything else; its values of what is named above are not used.
    """

    structures: Path
    held_out: tuple[str, ...] = ()
    micrographs_per_structure: int = Field(3, ge=1)
    pixel_size_angstrom: Range = (3.25, 4.75)
    discs_per_square_micrometre: Range = (0.0, 100.0)
    minimum_distance: Range = (0.85, 0.85)
    large_discs_probability: float = Field(0.2, ge=0, le=1)
    settings: MicrographSettings = MicrographSettings(shape_px=(768, 768))


class OwnMicrographs(_Section):
    """The user's micrographs.

    Attributes
    ----------
    micrographs
        `micrographs.star`, whose table gives the pixel size.
    picks
        Folder of coordinate files, each named after its micrograph, with or without a suffix such as
        `_manualpick` (`.star`). Every particle of a listed micrograph has to be picked: what is not is
        taken for background. A micrograph without a file is left out.
    particle_radius_angstrom
        Picks become discs of this radius.
    masks
        Folder of contamination masks, `.mrc` of the micrograph's size and name; more than 0 is contamination.
    validation_share
        Share of the micrographs that only the validation sees.
    """

    micrographs: Path
    picks: Path
    particle_radius_angstrom: float = Field(gt=0, allow_inf_nan=False)
    masks: Path | None = None
    validation_share: float = Field(0.2, gt=0, lt=1)


class SegmentationOptimisation(_Section):
    """How long and how fast to train.

    Attributes
    ----------
    crop_px
        Side of the pieces of micrographs in a batch, in the network's pixels.
    class_weights
        Of background, contamination and particle in the cross-entropy.
    """

    steps: int = Field(2000, ge=1)
    batch_size: int = Field(16, ge=1)
    crop_px: int = Field(128, ge=32, multiple_of=16)
    learning_rate: float = Field(2e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(1e-3, ge=0)
    ema_decay: float = Field(0.995, ge=0, lt=1)
    class_weights: tuple[float, float, float] = (1.0, 2.0, 1.0)
    validate_every: int = Field(250, ge=1)


class SegmentationConfig(_Section):
    """Training of a segmentation network.

    Attributes
    ----------
    arguments
        Of the constructor of `models.segmentation.SegmentationUNet`.
    initial_weights
        A shipped model or a file to begin with, of the same network.
    """

    kind: Literal["segmentation"]
    description: str = ""
    seed: int = 1
    arguments: dict[str, Any] = {}
    initial_weights: str | None = None
    simulated: SimulatedMicrographs | None = None
    own: OwnMicrographs | None = None
    optimisation: SegmentationOptimisation = SegmentationOptimisation()

    @model_validator(mode="after")
    def _one_source(self) -> SegmentationConfig:
        if (self.simulated is None) == (self.own is None):
            raise ValueError("expected exactly one of the sections simulated and own")
        return self
