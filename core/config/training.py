"""What `cryohush train` reads: one YAML file, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkConfig(_Section):
    """The network: a name in the registry and the arguments of its constructor."""

    name: str = "shuffle_unet"
    arguments: dict[str, Any] = {}


class ImagingConfig(_Section):
    """Ranges of what is drawn for each image; see `cryohush.core.imaging.simulate.ImagingRanges`."""

    snr: tuple[float, float] = (0.01, 0.5)
    shift_share: float = Field(0.06, ge=0, le=0.5)
    envelope_b_factor: float = Field(1000.0, ge=0)
    ice_share: float = Field(0.04, ge=0, lt=1)
    noise_tilt: float = Field(0.35, ge=0)
    background_share: float = Field(0.06, ge=0)
    neighbour_probability: float = Field(0.7, ge=0, le=1)
    scattered_probability: float = Field(0.0, ge=0, le=1)
    empty_probability: float = Field(0.04, ge=0, lt=1)
    no_ctf_probability: float = Field(0.1, ge=0, le=1)
    defocus_scale: tuple[float, float] = (0.6, 1.4)


class SimulationConfig(_Section):
    """Particles simulated on the fly from atomic models.

    Attributes
    ----------
    structures
        Folder of PDB or mmCIF files (.pdb, .cif, .gz); every one that is not held out is used.
    held_out
        Names (without extension) that are kept for validation and never trained on.
    ctf_tables
        `.npy` tables of real CTF parameters (`cryohush.core.imaging.ctf.read_ctf_table`).
    box_px
        Side of the projections.
    other_boxes_px, other_box_probability
        A batch is resampled to one of these sides with this probability in all; it then holds as many pixels
        as any other batch.
    """

    structures: Path
    held_out: tuple[str, ...] = ()
    ctf_tables: tuple[Path, ...]
    box_px: int = Field(128, ge=32, multiple_of=2)
    other_boxes_px: tuple[int, ...] = ()
    other_box_probability: float = Field(0.0, ge=0, le=1)
    volumes_per_structure: int = Field(3, ge=1)
    projections_per_volume: int = Field(256, ge=1)
    diameter_share: tuple[float, float] = (0.3, 0.85)
    pixel_size_angstrom: tuple[float, float] = (0.8, 6.0)
    imaging: ImagingConfig = ImagingConfig()


class OptimisationConfig(_Section):
    """AdamW with linear warm-up and cosine decay, and an exponential moving average of the weights."""

    steps: int = Field(gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    gradient_clip: float = Field(1.0, gt=0)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"


class TrainingConfig(_Section):
    """A whole supervised training run.

    Attributes
    ----------
    initial_weights
        A shipped model, or a `.safetensors` file of the same network, to start from (fine-tuning); None starts at
        random.
    """

    name: str
    description: str = ""
    seed: int = 1
    initial_weights: Path | None = None
    network: NetworkConfig = NetworkConfig()
    data: SimulationConfig
    optimisation: OptimisationConfig
    validate_every: int = Field(500, gt=0)
    validation_images: int = Field(256, gt=0)
