"""Training of a diffusion model: the noise predictor, then the U-Net that improves its draws."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config.training import TrainingConfig
from ..errors import Aborted, ConfigurationError
from ..imaging.noise import image_generator
from ..models.diffusion import DiffusionDenoiser, add_noise, noise_levels, velocity
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

# Levels are drawn between neighbours of this schedule: the network is conditioned on the level itself.
_TRAINING_STEPS = 1000


def train(
    config: TrainingConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    log: Callable[[str], None] = print,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train a `DiffusionDenoiser` and return the path of its weights.

    The predictor minimises the absolute error of v (that of the noise, SR3's, arXiv:2104.07636, algorithm 1
    with p = 1, over the root of the level), at noise levels drawn between neighbouring levels of a schedule
    of 1,000; the last `post_steps` train the U-Net on the mean of the finished predictor's draws, with the
    loss of the section `loss`. Files as of `supervised.train`.

    Raises
    ------
    CryohushError
        The loss is not finite; `last.pt` holds the state before.
    Aborted
        `should_stop` said so; `last.pt` holds the state.
    """
    network = make_network(config)
    if config.diffusion is None or not isinstance(network, DiffusionDenoiser):
        raise ConfigurationError("the section diffusion and the network diffusion are needed.")
    if (network.post is None) != (config.diffusion.post_steps == 0):
        raise ConfigurationError("network.arguments.post and diffusion.post_steps belong together.")
    output_dir.mkdir(parents=True, exist_ok=True)
    options = config.optimisation
    fabric = start_fabric(options)
    training, validation = open_data(config, output_dir, log, fabric.device)
    loss_of = Loss(config.loss, fabric.device)
    average = copy.deepcopy(network).requires_grad_(False).to(fabric.device)
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
    )
    trained, optimiser = fabric.setup(_Stages(network), optimiser)
    checkpoint = output_dir / "last.pt"
    parts = {"network": network, "average": average, "optimiser": optimiser}
    first = 0
    if resume and checkpoint.exists():
        first = load_checkpoint(checkpoint, config, parts)
        log(f"resumed at step {first}")
    record = Record(output_dir, first) if fabric.is_global_zero else None

    running, counted = torch.zeros((), device=fabric.device), 0
    post_steps = config.diffusion.post_steps
    predictor_steps = options.steps - post_steps
    # each stage has a learning rate and an average that begin anew
    stages = [options.model_copy(update={"steps": steps}) for steps in (predictor_steps, post_steps)]
    for step, (noisy, target, snr) in batches_ahead(
        training, first, options.steps, options.batch_size, fabric
    ):
        if should_stop():
            if fabric.is_global_zero:
                save_checkpoint(checkpoint, config, step, parts)
            raise Aborted(f"stopped at step {step}; run again with --resume to go on")
        stage = int(step >= predictor_steps)
        in_stage = step - stage * predictor_steps
        set_learning_rate(optimiser, options.learning_rate * schedule(in_stage, stages[stage]))
        if stage == 0:
            number = step * fabric.world_size + fabric.global_rank
            generator = image_generator(config.seed, number, "diffusion")
            drawn_levels = draw_levels(len(noisy), generator)
            level = drawn_levels.to(fabric.device)
            noise = torch.randn(target.shape, generator=generator).to(fabric.device)
            clean = target / network.clean_scale
            estimate = trained(add_noise(clean, level, noise), noisy, drawn_levels.tolist()).float()
            loss = (estimate - velocity(clean, level, noise)).abs().mean()
        else:
            if step == predictor_steps:
                # the finished predictor is its average
                network.predictor.load_state_dict(average.predictor.state_dict())
            with torch.no_grad():
                drawn = average.mean_draw(noisy)
            loss = loss_of(trained(drawn.float()), target, snr)
        fabric.backward(loss)
        fabric.clip_gradients(trained, optimiser, max_norm=options.gradient_clip, error_if_nonfinite=False)
        optimiser.step()
        optimiser.zero_grad()
        running += loss.detach()
        counted += 1
        update_average(average, network, in_stage, options.ema_decay)
        done = step + 1
        if done % config.validate_every and done != options.steps:
            continue
        mean_loss = running.item() / counted
        refuse_if_diverged(mean_loss, done, checkpoint)
        running, counted = torch.zeros_like(running), 0
        scores, shown = validate(average, validation, config.validation_images)
        refuse_if_diverged(scores["score"], done, checkpoint)
        if record is not None:
            record.add(done, {"loss": mean_loss, **scores}, shown)
            log(f"step {done}/{options.steps} {record.last_line()}")
            save_checkpoint(checkpoint, config, done, parts)
    weights = output_dir / "weights.safetensors"
    if record is not None:
        record.close()
        write_weights(weights, config, average, training, validation)
    return weights


class _Stages(nn.Module):
    """One forward for either stage, as several processes need it."""

    def __init__(self, network: DiffusionDenoiser) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, observation: Tensor | None = None, levels: list[float] | None = None
    ) -> Tensor:
        """v of `image` at `levels`, or, without an observation, the improved `image`.

        The levels are numbers because Fabric brings tensors to the precision of the run, and bfloat16 knows
        none between 0.996 and 1, where the logarithm of their ratio is infinite.
        """
        if observation is not None and levels is not None:
            v: Tensor = self.network.predictor(image, observation, torch.tensor(levels, device=image.device))
            return v
        return self.network.improve(image)


def draw_levels(n: int, generator: torch.Generator) -> Tensor:
    """`(n,)` noise levels: uniform between two neighbours of a schedule, all pairs equally likely."""
    levels = noise_levels(_TRAINING_STEPS)
    place = torch.randint(1, _TRAINING_STEPS + 1, (n,), generator=generator)
    share = torch.rand(n, generator=generator)
    return share * levels[place - 1] + (1 - share) * levels[place]
