"""The parts of NT2C's chain that need no real micrograph: configurations of its denoisers, and its pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ..config.nt2c import Nt2cConfig, SessionConfig
from ..config.training import (
    NetworkConfig,
    OptimisationConfig,
    PairsConfig,
    SimulationConfig,
    TrainingConfig,
)
from ..io.mrc import StackReader, StackWriter
from ..models.synthesis import NoiseModel
from ..models.weights import LoadedModel
from ..noise.reweight import reweight
from .data import SimulatedParticles

_BATCH = 64
# Noisy and clean images `(n, y, x)` from the first one's number and how many.
References = Callable[[int, int], tuple[Tensor, Tensor]]


def simulation_config(
    session: SessionConfig, ctf_tables: tuple[Path, ...], pixel_size_angstrom: float
) -> SimulationConfig:
    """Particles as the session would have recorded them."""
    return SimulationConfig(
        structures=session.structures,
        held_out=session.held_out,
        ctf_tables=ctf_tables,
        box_px=session.box_px,
        volumes_per_structure=session.volumes_per_structure,
        projections_per_volume=session.projections_per_volume,
        pixel_size_angstrom=(pixel_size_angstrom, pixel_size_angstrom),
        imaging=session.imaging,
    )


def coarse_config(
    config: Nt2cConfig, data: SimulationConfig | PairsConfig, optimisation: OptimisationConfig
) -> TrainingConfig:
    """Training of the coarse denoiser: on simulated particles, or patches of simulated micrographs."""
    return TrainingConfig(
        name=f"{config.name}, coarse",
        description=config.description,
        seed=config.seed,
        network=config.network,
        data=data if isinstance(data, SimulationConfig) else None,
        pairs=data if isinstance(data, PairsConfig) else None,
        loss=config.loss,
        optimisation=optimisation,
        validate_every=config.validate_every,
        validation_images=config.validation_images,
    )


def fine_config(config: Nt2cConfig, noisy: Path, clean: Path, coarse: LoadedModel) -> TrainingConfig:
    """Training of the fine denoiser: on the re-weighted pairs, from the weights of the coarse one."""
    return TrainingConfig(
        name=config.name,
        description=config.description,
        seed=config.seed,
        initial_weights=Path(coarse.name),
        network=NetworkConfig.model_validate(coarse.card["model"]),
        pairs=PairsConfig(noisy=noisy, target=clean, pair_by_order=True),
        loss=config.loss,
        optimisation=config.fine,
        validate_every=config.validate_every,
        validation_images=config.validation_images,
    )


def simulated_references(
    config: Nt2cConfig, simulation: SimulationConfig, projections: Path, log: Callable[[str], None]
) -> References:
    """Simulated particles, from the projections that the coarse training kept; made when absent.

    `log` is called with a line for each structure that is projected.
    """
    imaging = simulation.imaging
    if config.pairs.ice_is_noise:  # which the blocks bring with them
        imaging = imaging.model_copy(update={"ice_share": 0.0, "background_share": 0.0})
    data = SimulatedParticles(
        simulation.model_copy(update={"imaging": imaging}),
        held_out=False,
        seed=config.seed + 2,
        cache=projections,
        log=log,
        projection_seed=config.seed,
    )

    def references(first: int, size: int) -> tuple[Tensor, Tensor]:
        noisy, clean, _ = data.batch(first // _BATCH, size)
        return noisy[:, 0], clean[:, 0]

    return references


def patch_references(noisy: Path, clean: Path) -> References:
    """The patches that the coarse denoiser learnt from, from the first again after the last."""

    def references(first: int, size: int) -> tuple[Tensor, Tensor]:
        images = []
        for path in (noisy, clean):
            with StackReader(path) as reader:
                rows = torch.arange(first, first + size) % reader.n_images
                images.append(torch.from_numpy(reader.read(rows.numpy())))
        return images[0], images[1]

    return references


def write_pairs(
    config: Nt2cConfig,
    references: References,
    noise: NoiseModel,
    pixel_size_angstrom: float,
    output_dir: Path,
) -> tuple[Path, Path]:
    """Write the re-weighted pairs and return the paths of `noisy.mrcs` and `clean.mrcs`.

    Row i of both is one pair; the rows of one clean image stand together. Its simulated noisy image is the
    reference that the drawn noise is re-weighted to.

    Parameters
    ----------
    references
        Of the session's box.
    noise
        What draws pieces of this box.
    output_dir
        Where the stacks go; made if missing.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    draws = torch.Generator().manual_seed(config.seed)
    n, repeats, box = config.pairs.projections, config.pairs.noises_per_projection, config.session.box_px
    noisy_path, clean_path = output_dir / "noisy.mrcs", output_dir / "clean.mrcs"
    label, shape = "NT2C: re-weighted pairs", (n * repeats, box, box)
    with (
        StackWriter(clean_path, shape, pixel_size_angstrom=pixel_size_angstrom, label=label) as clean_stack,
        StackWriter(noisy_path, shape, pixel_size_angstrom=pixel_size_angstrom, label=label) as noisy_stack,
    ):
        for first in range(0, n, _BATCH):
            pair = references(first, min(_BATCH, n - first))
            reference, clean = (images.repeat_interleave(repeats, 0) for images in pair)
            noisy, target = reweight(clean, noise.draw(len(clean), draws), reference)
            noisy_stack.write(noisy.numpy())
            clean_stack.write(target.numpy())
    return noisy_path, clean_path
