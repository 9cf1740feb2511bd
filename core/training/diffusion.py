"""Training of a diffusion model: the noise predictor, then the U-Net that improves its draws."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..config.training import TrainingConfig
from ..errors import ConfigurationError
from ..imaging.noise import image_generator
from ..job_context import QUIET, JobContext
from ..models.diffusion import DiffusionDenoiser, add_noise, noise_levels, velocity
from .session import descend, schedule, set_learning_rate, start_run, update_average

# Levels are drawn between neighbours of this schedule: the network is conditioned on the level itself.
_TRAINING_STEPS = 1000


def train(
    config: TrainingConfig,
    output_dir: Path,
    *,
    resume: bool = False,
    context: JobContext = QUIET,
) -> Path:
    """Train a `DiffusionDenoiser` and return the path of its weights.

    The predictor minimises the absolute error of v (that of the noise, SR3's, arXiv:2104.07636, algorithm 1
    with p = 1, over the root of the level), at noise levels drawn between neighbouring levels of a schedule
    of 1,000; the last `post_steps` train the U-Net on the mean of the finished predictor's draws, with the
    loss of the section `loss`. Files as in `supervised.train`.

    Raises
    ------
    CryohushError, OutputError
        As in `supervised.train`.
    Aborted
        The caller wants it to stop; `last.pt` holds the state.
    """
    post_steps = 0 if config.diffusion is None else config.diffusion.post_steps
    if (config.network.arguments.get("post") is None) != (post_steps == 0):
        raise ConfigurationError("network.arguments.post and diffusion.post_steps belong together.")
    run, options = start_run(config, output_dir, context), config.optimisation
    network, average, fabric = run.network, run.average, run.fabric
    if not isinstance(network, DiffusionDenoiser) or not isinstance(average, DiffusionDenoiser):
        raise ConfigurationError("the section diffusion needs the network diffusion.")
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, betas=(0.9, 0.99)
    )
    trained, optimiser = fabric.setup(_Stages(network), optimiser)
    run.frame.begin(resume=resume, average=average, network=network, optimiser=optimiser)

    predictor_steps = options.steps - post_steps
    # each stage has a learning rate and an average that begin anew
    stages = [options.model_copy(update={"steps": steps}) for steps in (predictor_steps, post_steps)]
    for step, (noisy, target, snr) in run.frame.batches(run.training, options.batch_size, run.judge):
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
            loss = run.loss_of(trained(drawn.float()), target, snr)
        descend(fabric, trained, optimiser, loss, options.gradient_clip)
        update_average(average, network, in_stage, options.ema_decay)
        run.frame.add(loss=loss)
    return run.write_weights()


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
