"""What `cryohush train` reads: one YAML file, unknown keys refused.

The images come from one of the sections `data` (simulated), `pairs` and `reference` (the user's own). The
loop follows from the sections that are there: `adversarial`, `diffusion`, or neither, which is plain
supervised training.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .base import Section


class NetworkConfig(Section):
    """The network: a name in the registry and the arguments of its constructor."""

    name: str = "shuffle_unet"
    arguments: dict[str, Any] = Field(default={})


class ImagingConfig(Section):
    """Ranges of what is drawn for each image; see `simulation.image_formation.ImagingRanges`."""

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


class SimulationConfig(Section):
    """Particles simulated on the fly from atomic models."""

    structures: Path = Field(
        description=(
            "Folder of PDB or mmCIF files (.pdb, .cif, .gz); every one that is not held out is used."
        )
    )
    held_out: tuple[str, ...] = Field(
        default=(),
        description=(
            "Names (without extension) that are kept for validation and never trained on; with "
            "none, validation sees the same structures from other directions."
        ),
    )
    ctf_tables: tuple[Path, ...] = Field(
        default=(),
        description=(
            "`.npy` tables of real CTF parameters (`cryohush.core.imaging.ctf.read_ctf_table`); "
            "none are needed where `imaging.no_ctf_probability` is 1."
        ),
    )
    noise_blocks: Path | None = Field(
        default=None,
        description=(
            "MRC stack of real noise as `extract-noise` writes it, in the sign of micrographs, "
            "blocks at least as large as the box, on any scale: pieces of them take the place of "
            "the simulated noise and of the uneven ice."
        ),
    )
    maps: Path | None = Field(
        default=None,
        description=(
            "Folder of maps named like the structures that are fitted into them. Noisy images then show the "
            "map, with its structural noise, and clean ones what `imaging.maps.clean_map` leaves of it "
            "within the model. A structure without a map is used alone."
        ),
    )
    map_resolution_angstrom: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Of the maps: what is finer is left out."
    )
    box_px: int = Field(default=128, ge=32, multiple_of=2, description="Side of the projections.")
    other_boxes_px: tuple[int, ...] = Field(
        default=(),
        description=(
            "A batch is resampled to one of these sides with this probability in all; it then "
            "holds as many pixels as any other batch."
        ),
    )
    other_box_probability: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "A batch is resampled to one of these sides with this probability in all; it then "
            "holds as many pixels as any other batch."
        ),
    )
    volumes_per_structure: int = Field(3, ge=1)
    projections_per_volume: int = Field(256, ge=1)
    diameter_share: tuple[float, float] = (0.3, 0.85)
    pixel_size_angstrom: tuple[float, float] = (0.8, 6.0)
    imaging: ImagingConfig = ImagingConfig()

    @model_validator(mode="after")
    def _check_ctf(self) -> SimulationConfig:
        if not self.ctf_tables and self.imaging.no_ctf_probability < 1:
            raise ValueError("data.ctf_tables is needed unless data.imaging.no_ctf_probability is 1")
        if (self.maps is None) != (self.map_resolution_angstrom is None):
            raise ValueError("data.maps and data.map_resolution_angstrom belong together")
        return self


class StoredSection(Section):
    """What both kinds of stored particles share."""

    half_set: Literal[1, 2] | None = Field(
        default=None,
        description=(
            "Only particles of this rlnRandomSubset. Train one model for each half, and apply it "
            "to the other."
        ),
    )
    validation_share: float = Field(
        default=0.1,
        gt=0,
        lt=1,
        description=(
            "Share of the micrographs (of the particles, where they are not known) kept for validation."
        ),
    )
    shift_share: float = Field(
        default=0.0,
        ge=0,
        le=0.25,
        description=(
            "Largest shift along x and y, as a share of the box, of images that are trained on; "
            "what comes in at a border is mirrored."
        ),
    )
    contrast: tuple[float, float] = Field(
        default=(1.0, 1.0),
        description=(
            "Range of a factor on the signal, beneath unchanged noise, of images that are trained on."
        ),
    )

    @model_validator(mode="after")
    def _check_contrast(self) -> StoredSection:
        if not 0 < self.contrast[0] <= self.contrast[1] < math.inf:
            raise ValueError("contrast must be two positive factors, the smaller first")
        return self

    def unchanged(self) -> StoredSection:
        """The same, with images as they are."""
        return self.model_copy(update={"shift_share": 0.0, "contrast": (1.0, 1.0)})


FRAMES_BOX_PX = 128
"""Side of boxes from sums of frames where nothing says how large the particles are."""


class PairsConfig(StoredSection):
    """Pairs of images on disk, whose rows are paired as `io.same_rows` does, or single noisy images."""

    noisy: Path = Field(
        description=(
            "Tables (.star, .cs) or stacks. The target is clean, or another noisy image of the "
            "same particle whose noise is independent (Noise2Noise). None makes both out of the "
            "noisy image (`recorruption`)."
        )
    )
    target: Path | None = Field(
        default=None,
        description=(
            "Tables (.star, .cs) or stacks. The target is clean, or another noisy image of the "
            "same particle whose noise is independent (Noise2Noise). None makes both out of the "
            "noisy image (`recorruption`)."
        ),
    )
    pair_by_order: bool = Field(
        default=False,
        description=(
            "Take the rows of both to be in one order where nothing in them shows which are the same image."
        ),
    )
    target_is_clean: bool = Field(
        default=True,
        description=(
            "Whether the target shares the grey scale of the noisy image and is noise-free; a "
            "noisy target is normalised by its own background, so that both have to be equally "
            "noisy."
        ),
    )
    recorruption: float = Field(
        default=0.5,
        gt=0,
        allow_inf_nan=False,
        description=(
            "Without a target, white noise of this many times the standard deviation of the "
            "image's own is added to the input, and the same noise taken away from the target, "
            "larger by the square of the inverse."
        ),
    )

    box_px: int | None = Field(
        default=None,
        ge=32,
        description=(
            "Cut boxes of this side from the sums of even and of odd frames that `noisy`, a table of "
            "micrographs, names (rlnMicrographNameEven, rlnMicrographNameOdd of RELION 4 and 5): the two of "
            "them are the pair."
        ),
    )
    coordinates: Path | None = Field(
        default=None,
        description=(
            "With `box_px`: a STAR file with micrographs and coordinates of the particles to cut out, or "
            "RELION's list of the coordinate files of a picking job. None takes boxes at random, to train "
            "for whole micrographs."
        ),
    )
    boxes_per_micrograph: int = Field(
        default=64, ge=1, description="With `box_px` and without coordinates: boxes at random."
    )

    @model_validator(mode="after")
    def _check_boxes(self) -> PairsConfig:
        if self.box_px is None and self.coordinates is not None:
            raise ValueError("coordinates need box_px, the side of the boxes to cut")
        if self.box_px is not None and (self.target is not None or self.half_set is not None):
            raise ValueError("box_px makes the pairs from noisy alone: leave target and half_set out")
        return self

    @model_validator(mode="after")
    def _check_clean(self) -> PairsConfig:
        if self.contrast != (1.0, 1.0) and (self.target is None or not self.target_is_clean):
            raise ValueError("contrast can be changed only where the target is clean")
        return self


class ReferenceConfig(StoredSection):
    """The user's own particles, and projections of their map as the clean images."""

    particles: Path = Field(description="Table (.star, .cs) with poses and CTF parameters.")
    map: Path = Field(
        description=(
            "The map (MRC) that the poses refer to. With `half_set` it must be the half map of that half."
        )
    )
    mask: Path | None = Field(
        default=None,
        description=(
            "MRC map of 0 to 1; what is outside is left out of the clean images. None keeps a "
            "sphere as wide as the box."
        ),
    )
    low_pass_angstrom: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Resolution of the map: what is finer is left out of the clean images.",
    )

    @model_validator(mode="after")
    def _check_half(self) -> ReferenceConfig:
        named = re.search(r"half_?([12])", self.map.name)
        if self.half_set is not None and named and int(named[1]) != self.half_set:
            raise ValueError(
                f"half sets are mixed: half_set is {self.half_set}, the map {self.map.name} is of half "
                f"{named[1]}"
            )
        return self


PixelLoss = Literal["l1", "l2", "l1_sum", "l2_sum", "mean_grey_value", "coarse_l1"]


class LossConfig(Section):
    """Weighted sum of losses between estimate and target."""

    pixel: dict[PixelLoss, float] = Field(
        default={"l2": 1.0}, description="Weights of the losses of `cryohush.core.losses.pixel`."
    )
    snr_weighted: bool = Field(
        default=True,
        description=(
            "Divide the loss of each image by (SNR + 0.02)^(1/2): without it the few clean images "
            "would rule, with the full 1 / SNR the hopeless ones."
        ),
    )
    perceptual: float = Field(
        default=0.0, ge=0, description="Weight of the squared difference of features; 0 leaves it out."
    )
    features: str = Field(
        default="general",
        description=(
            "Whose: a shipped model or weights file of a `shuffle_unet`, or the ImageNet weights "
            "of VGG-19: a file named `vgg19*`, or `vgg19` to download them once (548 MB)."
        ),
    )


class AdversarialConfig(Section):
    """A critic that learns to tell estimates from clean images."""

    critic: NetworkConfig = Field(
        default=NetworkConfig(name="resnet"),
        description=(
            "A name in the registry of critics and the arguments of its constructor, without `channels`."
        ),
    )
    paired: bool = Field(
        default=False, description="Whether the critic sees the noisy image beside the estimate."
    )
    unpaired_clean: bool = Field(
        default=False,
        description=(
            "Clean images that the critic sees belong to other particles than the noisy ones: "
            "unsupervised. The pixel losses then compare the estimate with the noisy image "
            "(`coarse_l1` is meant for it)."
        ),
    )
    weight: float = Field(
        default=1.0,
        ge=0,
        description=(
            "Of the adversarial loss beside those of `loss`; 0 trains the network as often without it: a "
            "control."
        ),
    )
    score: Literal["alpha_beta", "wasserstein"] = Field(
        default="alpha_beta",
        description="`alpha_beta` (cross entropy is 0, 0; squared error 1, 1) or `wasserstein`.",
    )
    alpha: float = Field(0.0, ge=-1, le=1)
    beta: float = Field(0.0, ge=-1, le=1)
    weight_limit: float | None = Field(
        default=None, gt=0, description="Clip the critic's weights to this size after each of its steps."
    )
    gradient_penalty: float = Field(
        default=0.0, ge=0, description="Weight of the gradient penalty; 0 leaves it out."
    )
    critic_steps: int = Field(default=1, ge=1, description="Of either before the other has its turn.")
    generator_steps: int = Field(default=1, ge=1, description="Of either before the other has its turn.")
    critic_optimiser: Literal["adam", "sgd", "rmsprop"] = Field(
        default="adam", description="The learning rate follows the generator's schedule."
    )
    critic_learning_rate: float = Field(
        default=2e-4, gt=0, description="The learning rate follows the generator's schedule."
    )


class DiffusionConfig(Section):
    """Training of a `diffusion` network: the noise predictor first, then the U-Net after it."""

    post_steps: int = Field(
        default=0,
        ge=0,
        description="The last so many of the steps train the U-Net on draws of the finished predictor.",
    )


_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimisationConfig(Section):
    """AdamW with linear warm-up and cosine decay, and an exponential moving average of the weights."""

    steps: int = Field(gt=0)
    batch_size: int = Field(32, gt=0)
    learning_rate: float = Field(1e-3, gt=0)
    betas: tuple[_Decay, _Decay] | None = Field(
        default=None,
        description=(
            "Of Adam: decay of the moving means of gradient and squared gradient. None is 0.9 and 0.99, or "
            "in an adversarial run, where they are the critic's as well, 0.5 and 0.9."
        ),
    )
    warmup_steps: int = Field(200, ge=0)
    weight_decay: float = Field(1e-4, ge=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    gradient_clip: float = Field(1.0, gt=0)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    patience: int | None = Field(
        default=None,
        gt=0,
        description=(
            "Stop when so many validations in a row were no better, and keep the best weights; "
            "None runs all steps."
        ),
    )
    devices: int = Field(
        default=1,
        gt=0,
        description=(
            "Processes with a device each, on each of so many machines; under torchrun or SLURM "
            "as many as started."
        ),
    )
    nodes: int = Field(
        default=1,
        gt=0,
        description=(
            "Processes with a device each, on each of so many machines; under torchrun or SLURM "
            "as many as started."
        ),
    )


class TrainingConfig(Section):
    """A whole training run."""

    name: str
    description: str = ""
    seed: int = 1
    initial_weights: Path | None = Field(
        default=None,
        description=(
            "A shipped model, the folder of a run or a `.safetensors` file to start from "
            "(fine-tuning); its network need not be given. None starts at random."
        ),
    )
    network: NetworkConfig = NetworkConfig()
    data: SimulationConfig | None = None
    pairs: PairsConfig | None = None
    reference: ReferenceConfig | None = None
    loss: LossConfig = LossConfig()
    adversarial: AdversarialConfig | None = None
    diffusion: DiffusionConfig | None = None
    optimisation: OptimisationConfig
    validate_every: int = Field(500, gt=0)
    validation_images: int = Field(256, gt=0)

    @property
    def takes_network(self) -> bool:
        """Whether the network is that of the initial weights, as none is given."""
        return self.initial_weights is not None and "network" not in self.model_fields_set

    @model_validator(mode="after")
    def _check_sections(self) -> TrainingConfig:
        if [self.data, self.pairs, self.reference].count(None) != 2:
            raise ValueError("exactly one of the sections data, pairs and reference is needed")
        if self.adversarial is not None and self.diffusion is not None:
            raise ValueError("adversarial and diffusion exclude each other")
        if (self.diffusion is not None) != (self.network.name == "diffusion"):
            raise ValueError("the section diffusion and the network diffusion belong together")
        if self.diffusion is not None and self.diffusion.post_steps >= self.optimisation.steps:
            raise ValueError("diffusion.post_steps must leave steps of optimisation.steps to the predictor")
        return self
