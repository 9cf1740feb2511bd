"""Supervised training: noisy image in, clean image (or another noisy one, Noise2Noise) as the target."""

from __future__ import annotations

from pathlib import Path

import torch

from ..config.training import TrainingConfig
from ..job_context import QUIET, JobContext
from .session import descend, schedule, set_learning_rate, start_run, update_average


def train(
    config: TrainingConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    context: JobContext = QUIET,
) -> Path:
    """Train a network and return the path of its weights.

    `output_dir` gets `last.pt` (everything an interrupted run needs to go on to the same result), `log.jsonl`
    (one line for each validation), `curves.png`, `validation.png`, TensorBoard's events,
    `projections-*.safetensors` and in the end `weights.safetensors`, the moving average of the weights with
    the configuration in its metadata.

    Raises
    ------
    CryohushError
        The loss is not finite (`last.pt` holds the state before), or what `start_run` refuses.
    OutputError
        A file cannot be written.
    Aborted
        The caller wants it to stop; `last.pt` holds the state.
    """
    run, options = start_run(config, output_dir, context), config.optimisation
    network, average, fabric = run.network, run.average, run.fabric
    optimiser = torch.optim.AdamW(
        network.parameters(),
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        betas=options.betas or (0.9, 0.99),
    )
    model, optimiser = fabric.setup(network, optimiser)
    run.frame.begin(resume=resume, average=average, network=network, optimiser=optimiser)
    for step, (noisy, target, snr) in run.frame.batches(run.training, options.batch_size, run.judge):
        set_learning_rate(optimiser, options.learning_rate * schedule(step, options))
        loss = run.loss_of(model(noisy), target, snr)
        descend(fabric, model, optimiser, loss, options.gradient_clip)
        update_average(average, network, step, options.ema_decay)
        run.frame.add(loss=loss)
    return run.write_weights()
