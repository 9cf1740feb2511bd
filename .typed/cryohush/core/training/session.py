"""What the three loops begin with: device and precision, data, the schedule, and validation."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ..config.segmentation import SegmentationOptimisation
from ..config.training import LossConfig, NetworkConfig, OptimisationConfig, TrainingConfig
from ..errors import ConfigurationError, CryohushError
from ..losses.perceptual import PerceptualLoss
from ..losses.pixel import PIXEL_LOSSES
from ..models import MODELS
from ..models.weights import load_model, save_model
from .data import SimulatedParticles
from .pairs import PairedParticles
from .references import open_reference

Batch = tuple[Tensor, Tensor, Tensor]
_VALIDATION_BATCH = 64


class Data(Protocol):
    """Endless batches: noisy and target `(n, 1, y, x)` and SNR `(n,)`, a function of the batch number."""

    structures: list[str]

    def batch(self, number: int, size: int) -> Batch:
        """The batch of that number."""


def start_fabric(options: OptimisationConfig) -> Fabric:
    """Devices and precision; under torchrun or SLURM as many processes as were started."""
    with warnings.catch_warnings():
        # a single process on a cluster's machine is as good as any
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        fabric = Fabric(
            accelerator="auto",
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", options.devices)),
            num_nodes=options.nodes,
            precision=options.precision,
        )
        fabric.launch()
    return fabric


def open_data(
    config: TrainingConfig, output_dir: Path, log: Callable[[str], None], device: torch.device
) -> tuple[Data, Data]:
    """Training and validation data; what is simulated is simulated on the device."""
    stride = 1 if config.data is not None else int(_build(config.network).stride)  # type: ignore[arg-type]
    if config.reference is not None:
        return open_reference(config.reference, seed=config.seed, stride=stride, log=log)
    if config.pairs is not None:
        return (
            PairedParticles(config.pairs, held_out=False, seed=config.seed, stride=stride),
            PairedParticles(config.pairs, held_out=True, seed=config.seed + 1, stride=stride),
        )
    if config.data is None:  # refused by the configuration
        raise ConfigurationError("one of the sections data, pairs and reference is needed.")
    return (
        SimulatedParticles(
            config.data,
            held_out=False,
            seed=config.seed,
            cache=output_dir / "projections-train.safetensors",
            log=log,
            device=device,
        ),
        SimulatedParticles(
            config.data,
            held_out=True,
            seed=config.seed + 1,
            cache=output_dir / "projections-held-out.safetensors",
            log=log,
            device=device,
        ),
    )


def make_network(config: TrainingConfig) -> nn.Module:
    """The network with its initial weights.

    Raises
    ------
    ConfigurationError
        It does not exist, or cannot take the boxes of the data.
    """
    torch.manual_seed(config.seed)
    network = _build(config.network)
    stride = int(network.stride)  # type: ignore[arg-type]
    boxes = () if config.data is None else (config.data.box_px, *config.data.other_boxes_px)
    wrong = [box for box in boxes if box % stride]
    if wrong:
        raise ConfigurationError(
            f"data.box_px and data.other_boxes_px must be multiples of {stride} px for this network, not "
            f"{', '.join(map(str, wrong))}."
        )
    if config.initial_weights is not None:
        initial = load_model(config.initial_weights)
        if initial.card["model"] != config.network.model_dump():
            raise ConfigurationError(
                f"initial_weights: {initial.path} are of the network {initial.card['model']}, not of "
                f"{config.network.model_dump()}. Give that one in the section network."
            )
        network.load_state_dict(initial.module.state_dict())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _build(config: NetworkConfig) -> nn.Module:
    if config.name not in MODELS:
        raise ConfigurationError(f"network.name: expected one of {', '.join(MODELS)}, not {config.name}")
    return MODELS[config.name](**config.arguments)


class Loss:
    """The weighted sum of pixel and perceptual losses of a batch."""

    def __init__(self, config: LossConfig, device: torch.device) -> None:
        self._config = config
        self._perceptual = PerceptualLoss(config.features).to(device) if config.perceptual else None

    def __call__(self, estimate: Tensor, target: Tensor, snr: Tensor) -> Tensor:
        """Mean over images; an image whose SNR is not known (NaN) has weight 1."""
        losses = torch.stack(
            [weight * PIXEL_LOSSES[name](estimate, target) for name, weight in self._config.pixel.items()]
        ).sum(0)
        if self._perceptual is not None:
            losses = losses + self._config.perceptual * self._perceptual(estimate, target)
        if self._config.snr_weighted:
            losses = losses / torch.nan_to_num((snr + 0.02).sqrt(), nan=1.0)
        return losses.mean()


def batches_ahead(
    data: Data, first: int, last: int, size: int, fabric: Fabric
) -> Iterator[tuple[int, Batch]]:
    """Each step from `first` to before `last` with its batch, the next of which is made meanwhile.

    Several processes take different batches.
    """

    def number(step: int) -> int:
        return step * fabric.world_size + fabric.global_rank

    with ThreadPoolExecutor(1) as making:
        following = making.submit(data.batch, number(first), size)
        for step in range(first, last):
            noisy, target, snr = (tensor.to(fabric.device) for tensor in following.result())
            if step + 1 < last:
                following = making.submit(data.batch, number(step + 1), size)
            yield step, (noisy.contiguous(memory_format=torch.channels_last), target, snr)


def schedule(step: int, options: OptimisationConfig | SegmentationOptimisation) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to 0."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimiser: Any, learning_rate: float) -> None:
    """The same for all parameters."""
    for group in optimiser.param_groups:
        group["lr"] = learning_rate


def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of the weights, faster in the first steps; buffers are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, new in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
        for kept_buffer, buffer in zip(average.buffers(), network.buffers(), strict=True):
            kept_buffer.copy_(buffer)


@torch.inference_mode()
def validate(network: nn.Module, data: Data, n_images: int) -> tuple[dict[str, float], tuple[Tensor, ...]]:
    """Scores on held-out images, `score` the one to choose by, and the first images for a picture.

    With known SNR: MSE over the clean image's variance by bands of SNR, and their geometric mean as the
    score. Else the MSE to the target, which for a noisy target includes its noise.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    errors, variances, ratios = [], [], []
    shown: list[Tensor] = []
    for number in range(math.ceil(n_images / _VALIDATION_BATCH)):
        noisy, target, snr = (part.cpu() for part in data.batch(number, _VALIDATION_BATCH))
        estimate = network(noisy.to(device)).float().cpu()
        errors.append((estimate - target).square().mean(dim=(1, 2, 3)))
        variances.append(target.var(dim=(1, 2, 3)))
        ratios.append(snr)
        if not shown:
            shown = [noisy[:6], estimate[:6], target[:6]]
    network.train(was_training)
    error, variance, ratio = torch.cat(errors), torch.cat(variances), torch.cat(ratios)
    if ratio.isnan().all():
        return {"score": float(error.mean())}, tuple(shown)
    scores = {}
    for low, high in ((0.0, 0.03), (0.03, 0.1), (0.1, math.inf)):
        band = (ratio > low) & (ratio >= low) & (ratio < high)
        if band.any():
            scores[f"nmse_snr_{low:g}_{high:g}"] = float((error[band] / variance[band]).mean())
    score = math.exp(sum(math.log(max(value, 1e-12)) for value in scores.values()) / len(scores))
    return {**scores, "score": score}, tuple(shown)


def refuse_if_diverged(loss: float, step: int, checkpoint: Path) -> None:
    """
    Raises
    ------
    CryohushError
        The loss is not finite; the checkpoint holds the state before.
    """
    if not math.isfinite(loss):
        raise CryohushError(
            f"the loss is not finite near step {step}: lower optimisation.learning_rate; "
            f"{checkpoint} holds the last good state"
        )


def write_weights(
    path: Path, config: TrainingConfig, network: nn.Module, training: Data, validation: Data
) -> None:
    """The weights file, with the configuration in its metadata."""
    card = {
        "description": config.description,
        "training": _portable(config),
        "structures": training.structures,
        "held_out_structures": validation.structures,
    }
    # half precision: its rounding, 2^-11, is far below that of bf16 inference
    save_model(path, network.half(), config.network.name, config.network.arguments, card)


def _portable(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as it is stored with the weights: file names without the folders of one machine."""

    def bare(value: Any) -> Any:
        if isinstance(value, Path):
            return value.name
        if isinstance(value, dict):
            return {name: bare(part) for name, part in value.items()}
        return [bare(part) for part in value] if isinstance(value, (list, tuple)) else value

    stored: dict[str, Any] = bare(config.model_dump(exclude_none=True))
    return stored
