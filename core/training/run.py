"""Training by the loop that the configuration asks for."""

from __future__ import annotations

from pathlib import Path

from ..config.training import NetworkConfig, TrainingConfig
from ..job_context import QUIET, JobContext
from ..models.weights import load_model
from . import adversarial, diffusion, supervised


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
    if config.initial_weights is None or "network" in config.model_fields_set:
        return config
    network = load_model(config.initial_weights).card["model"]
    return config.model_copy(update={"network": NetworkConfig(**network)})
