"""Supervised training: noisy image in, clean image as the target."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ..config.training import OptimisationConfig, TrainingConfig
from ..errors import Aborted, ConfigurationError, CryohushError
from ..io.files import part_path, rename_complete
from ..models import MODELS
from ..models.weights import load_model, save_model
from .data import SimulatedParticles

_VALIDATION_BATCH = 64


def train(
    config: TrainingConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    log: Callable[[str], None] = print,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train a network and return the path of its weights.

    `output_dir` gets `last.pt` (everything a killed run needs to go on to the same result), `log.jsonl` (one
    line for each validation), `projections-*.safetensors` and in the end `weights.safetensors`, the moving
    average of the weights with the configuration in its metadata.

    The loss is the squared error over (SNR + 0.02)^(1/2): without the weight the few clean images would
    rule, with the full 1 / SNR the hopeless ones.

    Raises
    ------
    CryohushError
        The loss is not finite; `last.pt` holds the state before.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    options = config.optimisation
    fabric = Fabric(accelerator="auto", devices=1, precision=options.precision)
    torch.manual_seed(config.seed)
    network = MODELS[config.network.name](**config.network.arguments)
    _check_boxes(config, int(network.stride))  # type: ignore[arg-type]
    training = SimulatedParticles(
        config.data,
        held_out=False,
        seed=config.seed,
        cache=output_dir / "projections-train.safetensors",
        log=log,
    )
    validation = SimulatedParticles(
        config.data,
        held_out=True,
        seed=config.seed + 1,
        cache=output_dir / "projections-held-out.safetensors",
        log=log,
    )
    if config.initial_weights is not None:
        network.load_state_dict(load_model(config.initial_weights).module.state_dict())
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(network).requires_grad_(False)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
    )
    model, optimiser = fabric.setup(network, optimiser)
    average = average.to(fabric.device)
    checkpoint = output_dir / "last.pt"
    first = 0
    if resume and checkpoint.exists():
        first = _restore(checkpoint, config, network, average, optimiser)
        log(f"resumed at step {first}")

    started, running = time.monotonic(), torch.zeros((), device=fabric.device)
    for step, batch in _ahead(training, first, options):
        if should_stop():
            _save(checkpoint, config, step, network, average, optimiser)
            raise Aborted(f"stopped at step {step}; run again with --resume to go on")
        for group in optimiser.param_groups:
            group["lr"] = options.learning_rate * schedule(step, options)
        noisy, clean, snr = (tensor.to(fabric.device) for tensor in batch)
        estimate = model(noisy.contiguous(memory_format=torch.channels_last))
        loss = weighted_squared_error(estimate, clean, snr)
        fabric.backward(loss)
        # a step that is not finite is reported with the next validation
        fabric.clip_gradients(model, optimiser, max_norm=options.gradient_clip, error_if_nonfinite=False)
        optimiser.step()
        optimiser.zero_grad()
        running += loss.detach()
        _update_average(average, network, min(options.ema_decay, (1 + step) / (10 + step)))
        done = step + 1
        if done % config.validate_every == 0 or done == options.steps:
            mean_loss = running.item() / ((done - first - 1) % config.validate_every + 1)
            if not math.isfinite(mean_loss):
                raise CryohushError(
                    f"the loss is not finite near step {done}: lower optimisation.learning_rate; "
                    f"{checkpoint} holds the last good state"
                )
            running.zero_()
            scores = validate(average, validation, config.validation_images)
            record = {"step": done, "loss": mean_loss, "seconds": time.monotonic() - started, **scores}
            with (output_dir / "log.jsonl").open("a") as lines:
                lines.write(json.dumps(record) + "\n")
            shown = " ".join(f"{name} {value:.4f}" for name, value in scores.items())
            log(f"step {done}/{options.steps} loss {mean_loss:.5f} {shown}")
            _save(checkpoint, config, done, network, average, optimiser)
    weights = output_dir / "weights.safetensors"
    card = {
        "description": config.description,
        "training": _portable(config),
        "structures": training.structures,
        "held_out_structures": validation.structures,
    }
    # half precision: its rounding, 2^-11, is far below that of bf16 inference
    save_model(weights, average.half(), config.network.name, config.network.arguments, card)
    return weights


def _check_boxes(config: TrainingConfig, stride: int) -> None:
    wrong = [box for box in (config.data.box_px, *config.data.other_boxes_px) if box % stride]
    if wrong:
        raise ConfigurationError(
            f"data.box_px and data.other_boxes_px must be multiples of {stride} px for this network, not "
            f"{', '.join(map(str, wrong))}."
        )


def _ahead(
    data: SimulatedParticles, first: int, options: OptimisationConfig
) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor]]]:
    """Every step with its batch, the next of which is simulated while this one is trained on."""
    with ThreadPoolExecutor(1) as simulating:
        following = simulating.submit(data.batch, first, options.batch_size)
        for step in range(first, options.steps):
            batch = following.result()
            following = simulating.submit(data.batch, step + 1, options.batch_size)
            yield step, batch


def weighted_squared_error(estimate: Tensor, clean: Tensor, snr: Tensor) -> Tensor:
    """Mean over images of the mean squared error over (SNR + 0.02)^(1/2)."""
    error = (estimate.float() - clean).square().mean(dim=(1, 2, 3))
    return (error / (snr + 0.02).sqrt()).mean()


def schedule(step: int, options: OptimisationConfig) -> float:
    """Factor on the learning rate: linear warm-up, then half a cosine to 0."""
    if step < options.warmup_steps:
        return (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.steps - options.warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * progress))


@torch.inference_mode()
def validate(network: nn.Module, data: SimulatedParticles, n_images: int) -> dict[str, float]:
    """MSE over the clean image's variance, by bands of SNR, on structures that are held out."""
    device = next(network.parameters()).device
    errors, variances, ratios = [], [], []
    for number in range(math.ceil(n_images / _VALIDATION_BATCH)):
        noisy, clean, snr = data.batch(number, _VALIDATION_BATCH)
        estimate = network(noisy.to(device)).cpu()
        errors.append((estimate - clean).square().mean(dim=(1, 2, 3)))
        variances.append(clean.var(dim=(1, 2, 3)))
        ratios.append(snr)
    error, variance, ratio = torch.cat(errors), torch.cat(variances), torch.cat(ratios)
    scores = {}
    for low, high in ((0.01, 0.03), (0.03, 0.1), (0.1, 0.5)):
        band = (ratio >= low) & (ratio < high)
        if band.any():
            scores[f"nmse_snr_{low:g}_{high:g}"] = float((error[band] / variance[band]).mean())
    return scores


def _portable(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as it is stored with the weights: file names without the folders of one machine."""
    stored = config.model_dump(mode="json")
    stored["data"]["structures"] = config.data.structures.name
    if config.initial_weights is not None:
        stored["initial_weights"] = config.initial_weights.name
    stored["data"]["ctf_tables"] = [path.name for path in config.data.ctf_tables]
    return stored


def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for kept, new in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(new, 1 - decay)


def _save(
    path: Path, config: TrainingConfig, step: int, network: nn.Module, average: nn.Module, optimiser: Any
) -> None:
    state = {
        "config": config.model_dump_json(),
        "step": step,
        "network": network.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    torch.save(state, part_path(path))
    rename_complete(part_path(path), path)


def _restore(
    path: Path, config: TrainingConfig, network: nn.Module, average: nn.Module, optimiser: Any
) -> int:
    state = torch.load(path, weights_only=True)
    if state["config"] != config.model_dump_json():
        raise CryohushError(f"{path} belongs to another configuration: choose another --output")
    network.load_state_dict(state["network"])
    average.load_state_dict(state["average"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])
