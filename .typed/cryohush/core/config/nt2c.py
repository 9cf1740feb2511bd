"""What `cryohush train` reads for NT2C (`kind: nt2c`): a model of the noise, and the chain about it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from .extract_noise import ExtractNoiseOptions
from .training import ImagingConfig, LossConfig, NetworkConfig, OptimisationConfig


def _single_process(options: OptimisationConfig) -> OptimisationConfig:
    if options.devices * options.nodes > 1:
        raise ValueError("NT2C's chain runs in one process: devices and nodes must be 1")
    return options


_Optimisation = Annotated[OptimisationConfig, AfterValidator(_single_process)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SynthesiserConfig(_Section):
    """A model of the noise, learnt from real blocks.

    Attributes
    ----------
    kind
        `gaussian`: a Gaussian field with the blocks' spectrum and histogram. `wgan_field`: a WGAN-GP that
        makes this field more like the blocks. `wgan`: the paper's WGAN-GP, from a vector; its blocks must be
        as large as the box.
    held_back_share
        Share of the blocks, the last ones of the stack, that only judge the model.
    width, latent
        Of the generator; see `cryohush.core.models.synthesis`. The latent vector is the paper's.
    critic_width
        Of `cryohush.core.models.synthesis.NoiseCritic`.
    critic_steps
        Of the critic for each step of the generator.
    gradient_penalty
        Its weight.
    betas
        Of Adam.
    optimisation
        Of generator and critic; steps are the generator's. `gradient_clip`, `weight_decay` and `patience` are
        not used.
    """

    kind: Literal["wgan", "wgan_field", "gaussian"] = "wgan"
    held_back_share: float = Field(0.2, gt=0, lt=1)
    width: int = Field(64, ge=1)
    latent: int = Field(100, ge=1)
    critic_width: int = Field(64, ge=1)
    critic_steps: int = Field(5, ge=1)
    gradient_penalty: float = Field(10.0, ge=0)
    betas: tuple[float, float] = (0.0, 0.9)
    optimisation: _Optimisation = OptimisationConfig(
        steps=20000, batch_size=64, learning_rate=1e-4, warmup_steps=0, precision="32-true"
    )
    validate_every: int = Field(500, gt=0)
    seed: int = 1


class ReweightConfig(_Section):
    """The re-weighted pairs.

    Attributes
    ----------
    projections
        Clean projections.
    noises_per_projection
        Pieces of noise that are laid on each of them.
    ice_is_noise
        Whether clean images are empty about the particles: the ice's structure and unevenness, which blocks
        of noise hold too, are then noise, as for the paper. Otherwise simulated ice stays in clean images:
        what other frames show again is not taken away (docs/evidence.md).
    """

    projections: int = Field(10000, ge=8)
    noises_per_projection: int = Field(4, ge=1)
    ice_is_noise: bool = False


class SessionConfig(_Section):
    """Particles simulated as this session would have recorded them.

    Attributes
    ----------
    micrographs
        RELION's table of the session: it gives the noise, the pixel size and the CTF parameters.
    structures, held_out
        As in `data` of a training run.
    box_px
        Side of the particles, of the pieces of noise, and of the patches that are looked for.
    imaging
        What is drawn for each image.
    """

    micrographs: Path
    structures: Path
    held_out: tuple[str, ...] = ()
    box_px: int = Field(128, ge=32, multiple_of=2)
    volumes_per_structure: int = Field(3, ge=1)
    projections_per_volume: int = Field(256, ge=1)
    imaging: ImagingConfig = ImagingConfig(no_ctf_probability=0.0, defocus_scale=(0.9, 1.1))


class Nt2cConfig(_Section):
    """The whole chain, from structures and micrographs to the fine denoiser.

    Attributes
    ----------
    network
        Of both denoisers; not used with `coarse_model`, whose own it is.
    coarse, fine
        Training of the two denoisers, the second of which starts with the weights of the first.
    coarse_model
        A shipped model or weights file in the place of the coarse denoiser, which is then not trained.
    extraction
        Of blocks of noise. The model of the similarity method is the coarse denoiser; the window is the box
        unless one is given.
    """

    kind: Literal["nt2c"]
    name: str
    description: str = ""
    seed: int = 1
    session: SessionConfig
    network: NetworkConfig = NetworkConfig()
    loss: LossConfig = LossConfig()
    coarse: _Optimisation | None = None
    coarse_model: str | None = None
    extraction: ExtractNoiseOptions = ExtractNoiseOptions(method="similarity")
    synthesiser: SynthesiserConfig = SynthesiserConfig()
    pairs: ReweightConfig = ReweightConfig()
    fine: _Optimisation
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
