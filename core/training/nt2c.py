"""The parts of NT2C's chain that need no micrograph: configurations of its two denoisers, and its pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..config.nt2c import Nt2cConfig, SessionConfig
from ..config.training import (
    NetworkConfig,
    OptimisationConfig,
    PairsConfig,
    SimulationConfig,
    TrainingConfig,
)
from ..io.mrc import StackWriter
from ..models.synthesis import NoiseModel
from ..models.weights import LoadedModel
from ..noise.reweight import reweight
from .data import SimulatedParticles

_BATCH = 64


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
    config: Nt2cConfig, data: SimulationConfig, optimisation: OptimisationConfig
) -> TrainingConfig:
    """Training of the coarse denoiser: on simulated particles with simulated noise."""
    return TrainingConfig(
        name=f"{config.name}, coarse",
        description=config.description,
        seed=config.seed,
        network=config.network,
        data=data,
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
        pairs=PairsConfig(noisy=noisy, target=clean),
        loss=config.loss,
        optimisation=config.fine,
        validate_every=config.validate_every,
        validation_images=config.validation_images,
    )


def write_pairs(
    config: Nt2cConfig,
    simulation: SimulationConfig,
    noise: NoiseModel,
    projections: Path,
    output_dir: Path,
    log: Callable[[str], None],
) -> tuple[Path, Path]:
    """Write the re-weighted pairs and return the paths of `noisy.mrcs` and `clean.mrcs`.

    Row i of both is one pair; the rows of one projection stand together. Each projection is simulated with
    noise, which is the reference that the drawn noise is re-weighted to.

    Parameters
    ----------
    simulation
        Of the coarse denoiser.
    noise
        What draws pieces of the simulation's box.
    projections
        File that keeps the projections: the coarse training's; made when absent.
    output_dir
        Where the stacks go; made if missing.
    log
        Called with a line for each structure that is projected.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
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
    n, repeats, box = config.pairs.projections, config.pairs.noises_per_projection, simulation.box_px
    draws = torch.Generator().manual_seed(config.seed)
    pixel_size = simulation.pixel_size_angstrom[0]
    noisy_path, clean_path = output_dir / "noisy.mrcs", output_dir / "clean.mrcs"
    label, shape = "NT2C: re-weighted pairs", (n * repeats, box, box)
    with (
        StackWriter(clean_path, shape, pixel_size_angstrom=pixel_size, label=label) as clean_stack,
        StackWriter(noisy_path, shape, pixel_size_angstrom=pixel_size, label=label) as noisy_stack,
    ):
        for number, first in enumerate(range(0, n, _BATCH)):
            reference, clean, _ = data.batch(number, min(_BATCH, n - first))
            reference, clean = (images[:, 0].repeat_interleave(repeats, 0) for images in (reference, clean))
            noisy, target = reweight(clean, noise.draw(len(clean), draws), reference)
            noisy_stack.write(noisy.numpy())
            clean_stack.write(target.numpy())
    return noisy_path, clean_path
