"""Training of a model of noise on blocks of real noise, and the comparison of both with real noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..config.nt2c import SynthesiserConfig
from ..errors import InputError
from ..imaging.noise import measure_spectrum
from ..io.files import write_json, writing
from ..job_context import QUIET, JobContext
from ..losses.adversarial import gradient_penalty, wasserstein_critic_loss, wasserstein_generator_loss
from ..models.synthesis import FieldGenerator, GaussianField, NoiseCritic, NoiseGenerator, NoiseModel
from ..models.weights import save_model
from ..noise.synthesis import (
    NoiseMerit,
    fit_gaussian_field,
    histogram_distance,
    judge_noise,
    pieces_of,
    read_blocks,
    tiles_of,
)
from .frame import Frame
from .record import Preview, PreviewRow
from .session import descend, schedule, set_learning_rate, start_average, start_fabric, update_average

# Pieces that a Gaussian field is fitted to, and with which a model is judged.
_FIT_PIECES, _JUDGED_PIECES, _SHOWN = 1024, 256, 6
# Smaller blocks tell too little of a spectrum; the critic takes multiples of it.
_SMALLEST_PX = 32


def train(
    config: SynthesiserConfig,
    blocks_path: Path,
    side_px: int,
    output_dir: Path,
    *,
    dark_protein: bool = False,
    resume: bool = False,
    context: JobContext = QUIET,
) -> Path:
    """Train a model of noise and return the path of its weights.

    `output_dir` gets `gaussian_field.safetensors`, for a WGAN-GP `noise_generator.safetensors` too, with
    `last.pt`, `log.jsonl` and the pictures of a training run; and what compares the models with the blocks
    that were held back, `comparison.json` and `comparison.png`.

    Parameters
    ----------
    blocks_path
        MRC stack of real noise. Those of one micrograph should stand together: the last ones are held back.
    side_px
        Side of the pieces that the model shall draw. Blocks may be smaller unless the WGAN-GP begins with a
        vector: the others are learnt and judged in their size, as crowded micrographs have no larger ones.
    dark_protein
        Whether protein is dark where the blocks come from; the model's noise belongs to white protein.

    Raises
    ------
    InputError
        Fewer than four blocks.
    CryohushError
        A loss is not finite; `last.pt` holds the state before.
    Aborted
        The caller wants it to stop; `last.pt` holds the state.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    blocks = read_blocks(blocks_path, side_px if config.kind == "wgan" else _SMALLEST_PX)
    blocks = blocks * (-1 if dark_protein else 1)
    measured_px = min(side_px, *blocks.shape[1:]) // _SMALLEST_PX * _SMALLEST_PX
    known, held_back = split_blocks(blocks, config.held_back_share, blocks_path)
    models: dict[str, NoiseModel] = {}
    generator = torch.Generator().manual_seed(config.seed)
    field = fit_gaussian_field(pieces_of(known, measured_px, _FIT_PIECES, generator), generator)
    card = {"description": f"Noise of {blocks_path.name}", "training": config.model_dump(mode="json")}
    weights = output_dir / "gaussian_field.safetensors"
    arguments = {"side_px": side_px, "measured_px": measured_px}
    save_model(weights, field, "gaussian_field", arguments, card)
    models["Gaussian field"] = field
    if config.kind != "gaussian":
        network = train_generator(config, field, known, held_back, output_dir, resume=resume, context=context)
        weights = output_dir / "noise_generator.safetensors"
        if isinstance(network, NoiseGenerator):
            arguments = {"side_px": side_px, "width": config.width, "latent": config.latent}
            save_model(weights, network, "noise_generator", arguments, card)
        else:  # of which pieces of any size can be drawn
            save_model(weights, network, "field_generator", {**arguments, "width": config.width}, card)
        models["WGAN-GP"] = network
    compare(models, known, held_back, output_dir, seed=config.seed, log=context.log)
    return weights


def split_blocks(blocks: Tensor, held_back_share: float, path: Path) -> tuple[Tensor, Tensor]:
    """Blocks to learn from, and the last ones to judge by; two of either at least.

    Raises
    ------
    InputError
        Fewer than four blocks.
    """
    if len(blocks) < 4:
        raise InputError(
            f"expected at least four blocks of noise, found {len(blocks)}.",
            path=path,
            remedy="Extract from more micrographs, or with a higher threshold.",
        )
    n_held_back = min(max(2, round(len(blocks) * held_back_share)), len(blocks) - 2)
    return blocks[:-n_held_back], blocks[-n_held_back:]


def train_generator(
    config: SynthesiserConfig,
    field: GaussianField,
    known: Tensor,
    held_back: Tensor,
    output_dir: Path,
    *,
    resume: bool = False,
    context: JobContext = QUIET,
) -> NoiseGenerator | FieldGenerator:
    """The WGAN-GP on blocks `(n, y, x)`; returns the moving average of the generator, ready to draw.

    Its pieces are of the field's size; a `FieldGenerator` begins with the field.
    """
    options, side_px = config.optimisation, field.side_px
    fabric = start_fabric(options.precision)
    frame = Frame(
        config,
        output_dir,
        fabric,
        steps=options.steps,
        validate_every=config.validate_every,
        context=context,
    )
    torch.manual_seed(config.seed)
    network, critic = _make_generator(config, field), NoiseCritic(side_px, config.critic_width)
    for part in (network, critic):
        part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = start_average(network, fabric.device).eval()
    model, optimiser = fabric.setup(network, _adam(network, config))
    judge, critic_optimiser = fabric.setup(critic, _adam(critic, config))
    frame.begin(
        resume=resume,
        average=average,
        network=network,
        critic=critic,
        network_optimiser=optimiser,
        critic_optimiser=critic_optimiser,
    )

    def drawn(draws: torch.Generator) -> Tensor:
        generated: Tensor = model(network.inputs(options.batch_size, draws).to(fabric.device))
        return generated.float()

    for step in frame.steps(lambda: _validate(average, held_back, config.seed)):
        draws = torch.Generator().manual_seed((config.seed << 32) + step)
        for updated in (optimiser, critic_optimiser):
            set_learning_rate(updated, options.learning_rate * schedule(step, options))
        for _ in range(config.critic_steps):
            true = pieces_of(known, side_px, options.batch_size, draws).unsqueeze(1).to(fabric.device)
            with torch.no_grad():
                generated = drawn(draws)
            distance = wasserstein_critic_loss(judge(true), judge(generated))
            # what Fabric wraps refuses any backward pass but its own in mixed precision
            with fabric.autocast():
                penalty = gradient_penalty(critic, true, generated, draws)
            descend(fabric, judge, critic_optimiser, distance + config.gradient_penalty * penalty)
        descend(fabric, model, optimiser, wasserstein_generator_loss(judge(drawn(draws))))
        critic_optimiser.zero_grad()  # the generator's loss went through the critic
        update_average(average, network, step, options.ema_decay)
        frame.add(wasserstein=-distance, penalty=penalty)
    generator: NoiseGenerator | FieldGenerator = average.cpu()
    return generator


def _adam(network: torch.nn.Module, config: SynthesiserConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(network.parameters(), lr=config.optimisation.learning_rate, betas=config.betas)


def _make_generator(config: SynthesiserConfig, field: GaussianField) -> NoiseGenerator | FieldGenerator:
    if config.kind == "wgan":
        return NoiseGenerator(field.side_px, config.width, config.latent)
    network = FieldGenerator(field.side_px, width=config.width)
    network.field.load_state_dict(field.state_dict())
    return network


def _validate(model: NoiseModel, held_back: Tensor, seed: int) -> tuple[dict[str, float], Preview]:
    """Figures that need no training, the same draws each time; and drawn pieces beside real ones."""
    draws = torch.Generator().manual_seed(seed)
    real = pieces_of(held_back, model.side_px, _JUDGED_PIECES, draws)
    drawn = model.draw(_JUDGED_PIECES, draws)
    powers = [torch.from_numpy(measure_spectrum(images).power) for images in (drawn, real)]
    error = float((10 * torch.log10(powers[0] / powers[1])).square().mean().sqrt())
    scores = {"spectrum_error_db": error, "histogram_distance": histogram_distance(drawn, real)}
    rows = (PreviewRow("real", real[:_SHOWN], 0), PreviewRow("drawn", drawn[:_SHOWN], 0))
    return scores, Preview(rows, [""] * _SHOWN)


def compare(
    models: Mapping[str, NoiseModel],
    known: Tensor,
    held_back: Tensor,
    output_dir: Path,
    *,
    seed: int,
    log: Callable[[str], None],
) -> dict[str, NoiseMerit]:
    """Judge models by blocks that they have not seen; the blocks that they have seen are the control.

    Writes `comparison.json` and `comparison.png`.
    """
    side = next(iter(models.values())).side_px
    draws = torch.Generator().manual_seed(seed)
    real = tiles_of(held_back, side, _JUDGED_PIECES, draws)
    others = tiles_of(known, side, _JUDGED_PIECES, draws)
    n = min(len(real), len(others))
    real, drawn = real[:n], {"other real blocks": others[:n]}
    drawn |= {name: model.draw(n, draws) for name, model in models.items()}
    merits = {name: judge_noise(images, real, seed) for name, images in drawn.items()}
    for name, merit in merits.items():
        log(
            f"{name}: spectrum {merit.spectrum_error_db:.2f} dB, histogram {merit.histogram_distance:.4f}, "
            f"told from held-back real blocks in {100 * merit.two_sample_accuracy:.0f} % "
            f"({100 * merit.two_sample_error:.0f} % error; 50 is best), degrees of freedom "
            f"{merit.degrees_of_freedom:.0f} (real {merit.real_degrees_of_freedom:.0f})"
        )
    write_json(output_dir / "comparison.json", {name: asdict(merit) for name, merit in merits.items()})
    draw_comparison({"held-back real blocks": real, **drawn}, output_dir / "comparison.png")
    return merits


def draw_comparison(sets: Mapping[str, Tensor], path: Path, shown: int = 5) -> None:
    """A picture of `(n, y, x)` pieces: a row of some of each set, and the spectra and histograms of all."""
    figure = Figure(figsize=(1.5 * shown + 4.5, 1.6 * max(len(sets), 3)), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5 * shown, 4.5), squeeze=False)[0]
    for row, (name, images) in zip(left.subplots(len(sets), shown, squeeze=False), sets.items(), strict=True):
        for axes, image in zip(row, images, strict=False):
            axes.imshow(image.numpy(), cmap="gray", vmin=-3, vmax=3)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=7)
    spectra, histograms = right.subplots(2, 1)
    for name, images in sets.items():
        spectrum = measure_spectrum(images)
        spectra.plot(spectrum.frequency, spectrum.power, label=name, linewidth=1)
        counts = torch.histc(images, 120, -6, 6) / images.numel() * 10
        histograms.plot(torch.linspace(-5.95, 5.95, 120).numpy(), counts.numpy(), linewidth=1)
    spectra.set(xlabel="cycles per pixel", ylabel="power", yscale="log")
    spectra.legend(fontsize=6)
    histograms.set(xlabel="standard deviations", ylabel="density", yscale="log", ylim=(1e-6, 1))
    with writing(path) as part, part.open("wb") as file:
        figure.savefig(file, format="png", dpi=100)
