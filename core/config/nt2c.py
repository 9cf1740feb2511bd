"""What `cryohush train` reads for NT2C (`kind: nt2c`): a model of the noise, and the chain about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from .base import Section
from .extract_noise import ExtractNoiseOptions
from .micrographs import MicrographSettings
from .training import ImagingConfig, LossConfig, NetworkConfig, OptimisationConfig


def _single_process(options: OptimisationConfig) -> OptimisationConfig:
    if options.devices * options.nodes > 1:
        raise ValueError("NT2C's chain runs in one process: devices and nodes must be 1")
    return options


_Optimisation = Annotated[OptimisationConfig, AfterValidator(_single_process)]


class SynthesiserConfig(Section):
    """A model of the noise, learnt from real blocks."""

    kind: Literal["wgan", "wgan_field", "gaussian"] = Field(
        default="wgan",
        description=(
            "`gaussian`: a Gaussian field with the blocks' spectrum and histogram. `wgan_field`: "
            "a WGAN-GP that makes this field more like the blocks. `wgan`: the paper's WGAN-GP, "
            "from a vector; its blocks must be as large as the box."
        ),
    )
    held_back_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of the blocks, the last ones of the stack, that only judge the model.",
    )
    width: int = Field(
        default=64,
        ge=1,
        description=(
            "Of the generator; see `cryohush.core.models.synthesis`. The latent vector is the paper's."
        ),
    )
    latent: int = Field(
        default=100,
        ge=1,
        description=(
            "Of the generator; see `cryohush.core.models.synthesis`. The latent vector is the paper's."
        ),
    )
    critic_width: int = Field(
        default=64, ge=1, description="Of `cryohush.core.models.synthesis.NoiseCritic`."
    )
    critic_steps: int = Field(default=5, ge=1, description="Of the critic for each step of the generator.")
    gradient_penalty: float = Field(default=10.0, ge=0, description="Its weight.")
    betas: tuple[float, float] = Field(default=(0.0, 0.9), description="Of Adam.")
    optimisation: _Optimisation = Field(
        default=OptimisationConfig(
            steps=20000, batch_size=64, learning_rate=1e-4, warmup_steps=0, precision="32-true"
        ),
        description=(
            "Of generator and critic; steps are the generator's. `gradient_clip`, `weight_decay` "
            "and `patience` are not used."
        ),
    )
    validate_every: int = Field(500, gt=0)
    seed: int = 1


class ReweightConfig(Section):
    """The re-weighted pairs."""

    projections: int = Field(default=10000, ge=8, description="Clean projections.")
    noises_per_projection: int = Field(
        default=4, ge=1, description="Pieces of noise that are laid on each of them."
    )
    ice_is_noise: bool = Field(
        default=False,
        description=(
            "Whether clean images are empty about the particles: the ice's structure and "
            "unevenness, which blocks of noise hold too, are then noise, as for the paper. "
            "Otherwise simulated ice stays in clean images: what other frames show again is not "
            "taken away (docs/evidence.md)."
        ),
    )


class WholeMicrographs(Section):
    """Whole micrographs simulated with the session's optics, one structure in each."""

    count: int = Field(default=64, ge=1, description="How many; structures and CTFs are taken in turn.")
    settings: MicrographSettings = Field(
        default=MicrographSettings(shape_px=(1024, 1024)),
        description=(
            "Dose, ice and density; its pixel size, microscope and defocus are not used: they are the "
            "session's."
        ),
    )


class SessionConfig(Section):
    """Particles simulated as this session would have recorded them."""

    micrographs: Path = Field(
        description=(
            "RELION's table of the session: it gives the noise, the pixel size and the CTF parameters."
        )
    )
    structures: Path = Field(description="As in `data` of a training run.")
    held_out: tuple[str, ...] = Field(default=(), description="As in `data` of a training run.")
    box_px: int = Field(
        default=128,
        ge=32,
        multiple_of=2,
        description=(
            "Side of the particles, of the pieces of noise, and of the patches that are looked for."
        ),
    )
    volumes_per_structure: int = Field(3, ge=1)
    projections_per_volume: int = Field(256, ge=1)
    imaging: ImagingConfig = Field(
        default=ImagingConfig(no_ctf_probability=0.0, defocus_scale=(0.9, 1.1)),
        description="What is drawn for each image.",
    )
    whole: WholeMicrographs | None = Field(
        default=None,
        description=(
            "Simulate whole micrographs instead, as the paper does: patches of `box_px` of them train the "
            "coarse denoiser, and are the clean images of the re-weighted pairs and their reference."
        ),
    )


class Nt2cConfig(Section):
    """The whole chain, from structures and micrographs to the fine denoiser."""

    kind: Literal["nt2c"]
    name: str
    description: str = ""
    seed: int = 1
    session: SessionConfig
    network: NetworkConfig = Field(
        default=NetworkConfig(),
        description="Of both denoisers; not used with `coarse_model`, whose own it is.",
    )
    loss: LossConfig = LossConfig()
    coarse: _Optimisation | None = Field(
        default=None,
        description=(
            "Training of the two denoisers, the second of which starts with the weights of the first."
        ),
    )
    coarse_model: str | None = Field(
        default=None,
        description=(
            "A shipped model or weights file in the place of the coarse denoiser, which is then not trained."
        ),
    )
    extraction: ExtractNoiseOptions = Field(
        default=ExtractNoiseOptions(method="similarity"),
        description=(
            "Of blocks of noise. The model of the similarity method is the coarse denoiser; the "
            "window is the box unless one is given."
        ),
    )
    synthesiser: SynthesiserConfig = SynthesiserConfig()
    pairs: ReweightConfig = ReweightConfig()
    fine: _Optimisation = Field(
        description=(
            "Training of the two denoisers, the second of which starts with the weights of the first."
        )
    )
    validate_every: int = Field(500, gt=0)
    validation_images: int = Field(256, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Nt2cConfig:
        box = self.session.box_px
        if self.synthesiser.kind == "wgan" and (box % 32 or not 64 <= box <= 320):
            raise ValueError(f"session.box_px: the wgan draws 64, 96, 128, ... 320 px, not {box}")
        if self.coarse is None and self.coarse_model is None:
            raise ValueError("one of coarse and coarse_model is needed")
        if self.extraction.method == "similarity" and self.extraction.model is not None:
            raise ValueError("extraction.model: with method similarity it is the coarse denoiser")
        if self.extraction.normalisation == "whiten":
            raise ValueError("extraction.normalisation: whitened blocks have lost the spectrum of the noise")
        return self
