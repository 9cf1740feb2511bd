"""Training by the loop that the configuration asks for."""

from __future__ import annotations

from pathlib import Path

from ..config.base import paths_in
from ..config.nt2c import Nt2cConfig
from ..config.segmentation import SegmentationConfig
from ..config.training import NetworkConfig, PairsConfig, TrainingConfig
from ..io.micrographs import MicrographSet
from ..io.particles import ParticleSet
from ..job_context import QUIET, JobContext
from ..models.weights import WEIGHTS_NAME, load_model
from . import adversarial, diffusion, supervised
from .data import find_structures
from .frame_halves import read_halves
from .session import make_network


def train(
    config: TrainingConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    context: JobContext = QUIET,
) -> Path:
    """Train a network and return the path of its weights; see the loops."""
    config = with_network(config)
    loop = supervised.train
    if config.adversarial is not None:
        loop = adversarial.train
    elif config.diffusion is not None:
        loop = diffusion.train
    return loop(config, output_dir, resume=resume, context=context)


def with_network(config: TrainingConfig) -> TrainingConfig:
    """The configuration with the network of the weights that it begins with, where it names none itself."""
    if config.initial_weights is None or not config.takes_network:
        return config
    network = load_model(config.initial_weights).card["model"]
    return config.model_copy(update={"network": NetworkConfig(**network)})


def bytes_of(config: TrainingConfig) -> int:
    """Return how many bytes a training writes at least: its projections, and two states, the old and the new.

    A state holds the network, its average and the optimiser's two moments; that of a critic is not counted.

    Raises
    ------
    ConfigurationError
        The network cannot be made, or there are no structures.
    """
    parameters, projections = sum(one.numel() for one in make_network(config).parameters()), 0
    if (data := config.data) is not None:
        structures = [path for kept in (False, True) for path in find_structures(data, held_out=kept)]
        n = len(structures) * data.volumes_per_structure * data.projections_per_volume
        projections = 2 * n * data.box_px**2  # float16
    return projections + 2 * 4 * 4 * parameters


def inputs_of(config: TrainingConfig | SegmentationConfig | Nt2cConfig) -> list[Path]:
    """The files that a training reads and that are there: those that it names, those in folders, and images.

    Raises
    ------
    InputError
        A table cannot be read.
    """
    named = list(paths_in(config))
    inside: list[Path] = []
    for folder in filter(Path.is_dir, named):
        weights = folder / WEIGHTS_NAME  # all that is read of the folder of a run
        inside += [weights] if weights.is_file() else sorted(folder.iterdir())
    found = [*named, *inside, *_images(config)]
    return list(dict.fromkeys(path for path in found if path.is_file()))


def _images(config: TrainingConfig | SegmentationConfig | Nt2cConfig) -> list[Path]:
    """The images that its tables name."""
    if isinstance(config, Nt2cConfig):
        return MicrographSet.read(config.session.micrographs).stacks
    if isinstance(config, SegmentationConfig):
        return [] if config.own is None else MicrographSet.read(config.own.micrographs).stacks
    if config.reference is not None:
        return ParticleSet.read(config.reference.particles).stacks
    return [] if config.pairs is None else _images_of_pairs(config.pairs)


def _images_of_pairs(pairs: PairsConfig) -> list[Path]:
    if pairs.box_px is not None:
        halves = read_halves(pairs.noisy)[0]
        return [half.path for both in halves for half in (both.even, both.odd)]
    tables = [table for table in (pairs.noisy, pairs.target) if table is not None]
    return [stack for table in tables for stack in ParticleSet.read(table).stacks]
