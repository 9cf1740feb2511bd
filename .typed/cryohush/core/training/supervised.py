"""Supervised training: noisy image in, clean image (or another noisy one, Noise2Noise) as the target."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch

from ..config.training import TrainingConfig
from ..errors import Aborted
from .checkpoint import load_checkpoint, save_checkpoint
from .record import Record
from .session import (
    Loss,
    batches_ahead,
    make_network,
    open_data,
    refuse_if_diverged,
    schedule,
    set_learning_rate,
    start_fabric,
    update_average,
    validate,
    write_weights,
)


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
    line for each validation), `curves.png`, `validation.png`, TensorBoard's events,
    `projections-*.safetensors` and in the end `weights.safetensors`, the moving average of the weights with
    the configuration in its metadata.

    Raises
    ------
    CryohushError
        The loss is not finite; `last.pt` holds the state before.
    Aborted
        `should_stop` said so; `last.pt` holds the state.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    options = config.optimisation
    fabric = start_fabric(options)
    network = make_network(config)
    training, validation = open_data(config, output_dir, log, fabric.device)
    loss_of = Loss(config.loss, fabric.device)
    average = copy.deepcopy(network).requires_grad_(False).to(fabric.device)
    best = copy.deepcopy(average)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
    )
    model, optimiser = fabric.setup(network, optimiser)
    checkpoint = output_dir / "last.pt"
    parts = {"network": network, "average": average, "best": best, "optimiser": optimiser}
    first = 0
    if resume and checkpoint.exists():
        first = load_checkpoint(checkpoint, config, parts)
        log(f"resumed at step {first}")
    record = Record(output_dir, first) if fabric.is_global_zero else None

    running, counted = torch.zeros((), device=fabric.device), 0
    for step, (noisy, target, snr) in batches_ahead(
        training, first, options.steps, options.batch_size, fabric
    ):
        if should_stop():
            if fabric.is_global_zero:
                save_checkpoint(checkpoint, config, step, parts)
            raise Aborted(f"stopped at step {step}; run again with --resume to go on")
        set_learning_rate(optimiser, options.learning_rate * schedule(step, options))
        loss = loss_of(model(noisy), target, snr)
        fabric.backward(loss)
        # a step that is not finite is reported with the next validation
        fabric.clip_gradients(model, optimiser, max_norm=options.gradient_clip, error_if_nonfinite=False)
        optimiser.step()
        optimiser.zero_grad()
        running += loss.detach()
        counted += 1
        update_average(average, network, step, options.ema_decay)
        done = step + 1
        if done % config.validate_every and done != options.steps:
            continue
        mean_loss = running.item() / counted
        refuse_if_diverged(mean_loss, done, checkpoint)
        running, counted = torch.zeros_like(running), 0
        scores, shown = validate(average, validation, config.validation_images)
        refuse_if_diverged(scores["score"], done, checkpoint)
        enough = False
        if record is not None:
            record.add(done, {"loss": mean_loss, **scores}, shown)
            if record.is_best("score"):
                best.load_state_dict(average.state_dict())
            log(f"step {done}/{options.steps} {record.last_line()}")
            save_checkpoint(checkpoint, config, done, parts)
            enough = options.patience is not None and record.since_best("score") >= options.patience
        if fabric.broadcast(enough):
            log(f"stopped: no better for {options.patience} validations")
            break
    weights = output_dir / "weights.safetensors"
    if record is not None:
        record.close()
        chosen = average if options.patience is None else best
        write_weights(weights, config, chosen, training, validation)
    return weights
