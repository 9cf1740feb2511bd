"""Adversarial training: a network that denoises against a critic that tells its images from clean ones."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from ..config.training import AdversarialConfig, OptimisationConfig, TrainingConfig
from ..errors import ConfigurationError
from ..imaging.noise import image_generator
from ..job_context import QUIET, JobContext
from ..losses.adversarial import (
    alpha_beta_critic_loss,
    alpha_beta_generator_loss,
    clip_weights,
    gradient_penalty,
    wasserstein_critic_loss,
    wasserstein_generator_loss,
)
from ..models import CRITICS
from .frame import Batch, Data
from .record import Preview
from .session import (
    descend,
    schedule,
    set_learning_rate,
    start_run,
    update_average,
    validate,
)

_BETAS = (0.5, 0.9)


def train(
    config: TrainingConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    context: JobContext = QUIET,
) -> Path:
    """Train a network against a critic and return the path of its weights.

    A step is one batch. The critic has `critic_steps` of them, then the network `generator_steps`, in turn. A
    progressive network spends twice as many steps on each stage as on the one before, and fades the new level
    in during the first half of them; validation judges the stage that it is in, on images as coarse. Files as
    of `supervised.train`.

    Raises
    ------
    CryohushError, OutputError
        As in `supervised.train`.
    Aborted
        The caller wants it to stop; `last.pt` holds the state.
    """
    if config.adversarial is None:
        raise ConfigurationError("the section adversarial is missing.")
    game, options = config.adversarial, config.optimisation
    make_critic(game)  # an unknown one is refused before anything is simulated
    run = start_run(config, output_dir, context)
    network, average, fabric, critic = run.network, run.average, run.fabric, make_critic(game)
    betas = options.betas or _BETAS
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate, betas=betas)
    model, optimiser = fabric.setup(network, optimiser)
    judge, critic_optimiser = fabric.setup(critic, _critic_optimiser(critic, game, betas))
    run.frame.begin(
        resume=resume,
        average=average,
        network=network,
        critic=critic,
        optimiser=optimiser,
        critic_optimiser=critic_optimiser,
    )

    def validate_stage() -> tuple[dict[str, float], Preview]:
        return validate(average, _Coarsened(run.validation, _factor(average)), config.validation_images)

    turn = game.critic_steps + game.generator_steps
    for step, (noisy, target, snr) in run.frame.batches(run.training, options.batch_size, validate_stage):
        factor = schedule(step, options)
        set_learning_rate(optimiser, options.learning_rate * factor)
        set_learning_rate(critic_optimiser, game.critic_learning_rate * factor)
        noisy, target = _at_stage(noisy, target, (network, critic, average), step, options)
        clean = target.roll(1, dims=0) if game.unpaired_clean else target
        # without a weight the critic's turns stay empty: the network is trained as often as with one
        if step % turn < game.critic_steps and game.weight:
            with torch.no_grad():
                estimate = model(noisy)
            true, generated = _seen(game, noisy, clean), _seen(game, noisy, estimate.float())
            critic_loss = _critic_loss(game, judge(true), judge(generated))
            if game.gradient_penalty:
                points = image_generator(config.seed, step, "penalty")
                # what Fabric wraps refuses any backward pass but its own in mixed precision
                with fabric.autocast():
                    penalty = gradient_penalty(critic, true, generated, points)
                critic_loss = critic_loss + game.gradient_penalty * penalty
            descend(fabric, judge, critic_optimiser, critic_loss)
            if game.weight_limit is not None:
                clip_weights(critic, game.weight_limit)
            run.frame.add(critic=critic_loss)
        elif step % turn >= game.critic_steps:
            estimate = model(noisy)
            pixel = run.loss_of(estimate, noisy if game.unpaired_clean else target, snr)
            adversarial = torch.zeros_like(pixel)
            if game.weight:
                adversarial = _generator_loss(game, judge(_seen(game, noisy, estimate)))
            descend(fabric, model, optimiser, pixel + game.weight * adversarial, options.gradient_clip)
            critic_optimiser.zero_grad()  # the generator's loss went through the critic
            update_average(average, network, step, options.ema_decay)
            run.frame.add(loss=pixel, adversarial=adversarial)
    _set_stage((average,), *_last_stage(average))
    return run.write_weights()


def make_critic(game: AdversarialConfig) -> nn.Module:
    """The critic, for images alone or beside the noisy ones.

    Raises
    ------
    ConfigurationError
        There is no such critic, or it does not take the arguments.
    """
    make = CRITICS.find(game.critic.name, "adversarial.critic.name")
    try:
        critic = make(channels=1 + game.paired, **game.critic.arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"adversarial.critic.arguments: {error}.") from error
    # on a CPU twice as fast
    critic.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return critic


def _critic_optimiser(
    critic: nn.Module, game: AdversarialConfig, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    rate = game.critic_learning_rate
    if game.critic_optimiser == "sgd":
        return torch.optim.SGD(critic.parameters(), lr=rate)
    if game.critic_optimiser == "rmsprop":
        return torch.optim.RMSprop(critic.parameters(), lr=rate)
    return torch.optim.Adam(critic.parameters(), lr=rate, betas=betas)


def _seen(game: AdversarialConfig, noisy: Tensor, image: Tensor) -> Tensor:
    return torch.cat([noisy, image], dim=1) if game.paired else image


def _critic_loss(game: AdversarialConfig, true: Tensor, generated: Tensor) -> Tensor:
    true, generated = true.float(), generated.float()
    if game.score == "wasserstein":
        return wasserstein_critic_loss(true, generated)
    return alpha_beta_critic_loss(true, generated, game.alpha, game.beta)


def _generator_loss(game: AdversarialConfig, generated: Tensor) -> Tensor:
    generated = generated.float()
    if game.score == "wasserstein":
        return wasserstein_generator_loss(generated)
    return alpha_beta_generator_loss(generated, game.alpha, game.beta)


def _at_stage(
    noisy: Tensor, target: Tensor, modules: tuple[nn.Module, ...], step: int, options: OptimisationConfig
) -> tuple[Tensor, Tensor]:
    """Set progressive modules to the stage of this step, and coarsen the images to it."""
    stage, share = progress(step, options.steps, int(getattr(modules[0], "n_stages", 1)))
    _set_stage(modules, stage, share)
    return _coarsened((noisy, target), _factor(modules[0]))


def progress(step: int, steps: int, n_stages: int) -> tuple[int, float]:
    """Stage of a step and the share of its newest level.

    Each stage has twice the steps of the one before, for finer images take longer to learn, and its level is
    faded in during the first half of them.
    """
    # in units of the first stage's length; stage k begins at 2^k - 1
    position = step * (2**n_stages - 1) / steps
    stage = min(int(math.log2(position + 1)), n_stages - 1)
    return stage, 1.0 if stage == 0 else min(1.0, 2 * ((position + 1) / 2**stage - 1))


def _last_stage(module: nn.Module) -> tuple[int, float]:
    return int(getattr(module, "n_stages", 1)) - 1, 1.0


def _set_stage(modules: tuple[nn.Module, ...], stage: int, share: float) -> None:
    for module in modules:
        if hasattr(module, "n_stages"):
            module.stage.fill_(stage)  # type: ignore[operator]
            module.share.fill_(share)  # type: ignore[operator]


def _factor(module: nn.Module) -> int:
    """How much coarser than the data the images of a module's stage are."""
    if not hasattr(module, "n_stages"):
        return 1
    return int(2 ** (int(module.n_stages) - 1 - int(module.stage)))  # type: ignore[arg-type]


def _coarsened(images: tuple[Tensor, Tensor], factor: int) -> tuple[Tensor, Tensor]:
    noisy, target = images
    return images if factor == 1 else (avg_pool2d(noisy, factor), avg_pool2d(target, factor))


class _Coarsened:
    """Data with images so many times coarser."""

    def __init__(self, data: Data, factor: int) -> None:
        self._data, self._factor = data, factor
        self.structures, self.target = data.structures, data.target
        size = data.pixel_size_angstrom
        self.pixel_size_angstrom = None if size is None else size * factor

    def batch(self, number: int, size: int) -> Batch:
        noisy, target, snr = self._data.batch(number, size)
        return *_coarsened((noisy, target), self._factor), snr
