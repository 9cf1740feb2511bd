"""What the loops begin and end with: devices and precision, data, network, schedule, validation, weights."""

from __future__ import annotations

import copy
import logging
import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ..config.segmentation import SegmentationOptimisation
from ..config.training import LossConfig, NetworkConfig, OptimisationConfig, TrainingConfig
from ..errors import ConfigurationError
from ..job_context import JobContext
from ..losses.perceptual import PerceptualLoss
from ..losses.pixel import PIXEL_LOSSES
from ..models import DenoisingNetwork, build_network
from ..models.weights import WEIGHTS_NAME, load_model, save_model
from .data import SimulatedParticles
from .frame import SCORE, Data, Frame
from .frame_halves import FOLDER, cut_pairs
from .pairs import PairedParticles
from .record import Preview, PreviewRow
from .references import open_reference

_VALIDATION_BATCH, _SHOWN = 64, 6
# Names of files in a run's folder.
TRAINING_CACHE, HELD_OUT_CACHE = "projections-train.safetensors", "projections-held-out.safetensors"


def start_fabric(precision: str, devices: int = 1, nodes: int = 1) -> Fabric:
    """Devices and precision; under torchrun or SLURM as many processes as were started."""
    # it announces the precision that was asked for, on stderr, where RELION shows what went wrong
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # a single process on a cluster's machine is as good as any
        warnings.filterwarnings("ignore", message="The `srun` command is available")
        fabric = Fabric(
            accelerator="auto",
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", devices)),
            num_nodes=nodes,
            precision=precision,  # type: ignore[arg-type]
        )
        fabric.launch()
    return fabric


def open_data(
    config: TrainingConfig, output_dir: Path, context: JobContext, device: torch.device
) -> tuple[Data, Data]:
    """Training and validation data; what is simulated is simulated on the device."""
    stride = 1 if config.data is not None else _build(config.network).stride
    if config.reference is not None:
        return open_reference(config.reference, seed=config.seed, stride=stride, context=context)
    if config.pairs is not None:
        pairs = config.pairs
        if pairs.box_px is not None:
            pairs = cut_pairs(pairs, output_dir / FOLDER, seed=config.seed, context=context)
        return (
            PairedParticles(pairs, held_out=False, seed=config.seed, stride=stride, context=context),
            PairedParticles(pairs, held_out=True, seed=config.seed + 1, stride=stride, context=context),
        )
    if config.data is None:  # refused by the configuration
        raise ConfigurationError("one of the sections data, pairs and reference is needed.")
    return (
        SimulatedParticles(
            config.data,
            held_out=False,
            seed=config.seed,
            cache=output_dir / TRAINING_CACHE,
            log=context.log,
            device=device,
        ),
        SimulatedParticles(
            config.data,
            held_out=True,
            seed=config.seed + 1,
            cache=output_dir / HELD_OUT_CACHE,
            log=context.log,
            device=device,
        ),
    )


def make_network(config: TrainingConfig) -> DenoisingNetwork:
    """The network with its initial weights.

    Raises
    ------
    ConfigurationError
        It does not exist, or cannot take the boxes of the data.
    """
    torch.manual_seed(config.seed)
    network = _build(config.network)
    stride = network.stride
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


def _build(config: NetworkConfig) -> DenoisingNetwork:
    return build_network(config.name, config.arguments)


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


def descend(
    fabric: Fabric, model: nn.Module, optimiser: Any, loss: Tensor, gradient_clip: float | None = None
) -> None:
    """One step down the gradient of a loss, clipped to a norm if one is given."""
    fabric.backward(loss)
    if gradient_clip is not None:
        # a step that is not finite is reported with the next validation
        fabric.clip_gradients(model, optimiser, max_norm=gradient_clip, error_if_nonfinite=False)
    optimiser.step()
    optimiser.zero_grad()


def start_average(network: nn.Module, device: torch.device) -> Any:
    """A copy of the network for the moving average of its weights."""
    return copy.deepcopy(network).requires_grad_(False).to(device)


def update_average(average: nn.Module, network: nn.Module, step: int, decay: float) -> None:
    """Exponential moving average of the weights, faster in the first steps; buffers are copied.

    torch's own `AveragedModel` knows neither the faster first steps nor the number of a step, which makes a
    resumed run the same as an undisturbed one.
    """
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for kept, new in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)
        for kept_buffer, buffer in zip(average.buffers(), network.buffers(), strict=True):
            kept_buffer.copy_(buffer)


@torch.inference_mode()
def validate(network: nn.Module, data: Data, n_images: int) -> tuple[dict[str, float], Preview]:
    """Scores on held-out images, `score` the one to choose by, and the first images as a picture.

    With known SNR: MSE over the clean image's variance, by ranges of SNR where there are several, and their
    geometric mean as the score. Else the MSE to the target, which for a noisy target includes its noise.
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
            shown = [images[:_SHOWN, 0] for images in (noisy, estimate, target)]
    network.train(was_training)
    error, variance, ratio = torch.cat(errors), torch.cat(variances), torch.cat(ratios)
    # beside a noisy target on the same greys, what was denoised would be one grey
    scales = (0, 1, 1) if data.target == "clean" else (0, 1, 0)
    preview = Preview(
        [
            PreviewRow(name, images, scale)
            for name, images, scale in zip(("noisy", "denoised", data.target), shown, scales, strict=True)
        ],
        ["" if value.isnan() else f"SNR {float(value):.2g}" for value in ratios[0][:_SHOWN]],
        data.pixel_size_angstrom,
    )
    if ratio.isnan().all():
        return {SCORE: float(error.mean())}, preview
    scores = {}
    for low, high in ((0.0, 0.03), (0.03, 0.1), (0.1, math.inf)):
        band = (ratio > low) & (ratio >= low) & (ratio < high)
        if band.any():
            scores[f"nmse_snr_{low:g}_{high:g}"] = float((error[band] / variance[band]).mean())
    if not scores:  # no image has any signal
        return {SCORE: float(error.mean())}, preview
    score = math.exp(sum(math.log(max(value, 1e-12)) for value in scores.values()) / len(scores))
    # the error in a single range is the score
    return {**(scores if len(scores) > 1 else {}), SCORE: score}, preview


@dataclass(frozen=True, eq=False)
class Run:
    """What the loops that train a denoiser have in common; see `start_run`.

    Attributes
    ----------
    config
        The whole configuration.
    frame
        Goes through the steps.
    fabric
        Devices and processes.
    network
        With its initial weights, channels last.
    average
        The moving average of its weights, which is validated and kept.
    training, validation
        What it learns from and is judged with.
    loss_of
        The losses of the section `loss`.
    """

    config: TrainingConfig
    frame: Frame
    fabric: Fabric
    network: nn.Module
    average: nn.Module
    training: Data
    validation: Data
    loss_of: Loss

    def judge(self) -> tuple[dict[str, float], Preview]:
        """Validate the average; see `validate`."""
        return validate(self.average, self.validation, self.config.validation_images)

    def write_weights(self) -> Path:
        """Write `weights.safetensors`, with the configuration in its metadata, and return its path."""
        path = self.frame.folder / WEIGHTS_NAME
        card = {
            "description": self.config.description,
            "training": _portable(self.config),
            "structures": self.training.structures,
            "held_out_structures": self.validation.structures,
        }
        if self.fabric.is_global_zero:
            # half precision: its rounding, 2^-11, is far below that of bf16 inference
            network = self.config.network
            save_model(path, self.frame.best.half(), network.name, network.arguments, card)
        return path


def start_run(
    config: TrainingConfig,
    output_dir: Path,
    context: JobContext,
) -> Run:
    """Begin to train a denoiser.

    Raises
    ------
    ConfigurationError
        The network does not exist, or cannot take the boxes of the data.
    InputError
        The images cannot be read or used.
    OutputError
        The folder or a file in it cannot be written.
    """
    options = config.optimisation
    fabric = start_fabric(options.precision, options.devices, options.nodes)
    network = make_network(config)
    frame = Frame(
        config,
        output_dir,
        fabric,
        steps=options.steps,
        validate_every=config.validate_every,
        patience=options.patience,
        context=context,
    )
    # The other processes read what the first one has simulated. A critic draws its weights after the network,
    # whatever is drawn here.
    with fabric.rank_zero_first(), torch.random.fork_rng(devices=[]):
        training, validation = open_data(config, output_dir, frame.context, fabric.device)
        loss_of = Loss(config.loss, fabric.device)
    average = start_average(network, fabric.device)
    return Run(config, frame, fabric, network, average, training, validation, loss_of)


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
