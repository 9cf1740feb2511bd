"""The rows of a table of `papers.py`: what is trained for them, and what each is judged by."""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import test_set
import torch
from pairs import denoise, file_name
from paper_images import (
    Molecule,
    Noise,
    TestSet,
    bayes_limit,
    case_snr,
    draw_noise,
    make_molecule,
    make_test_set,
    map_resolutions,
    pose_floor,
    write_pairs,
)
from paper_tables import Case, Row, Size, Table
from torch import Tensor

from cryohush.core.classical.baselines import BASELINES, available_baselines, choose_parameter
from cryohush.core.classical.covariance import estimate_covariance
from cryohush.core.classical.fourier_bessel import FourierBesselBasis
from cryohush.core.config.evaluate import Embedding
from cryohush.core.config.load import find_preset, read_yaml, validate
from cryohush.core.config.training import TrainingConfig
from cryohush.core.imaging.filters import radial_filter
from cryohush.core.imaging.normalise import background_statistics
from cryohush.core.io.files import writing
from cryohush.core.job_context import JobContext
from cryohush.core.metrics.clustering import clustering_scores, embed, group
from cryohush.core.metrics.hallucination import pure_noise_figures
from cryohush.core.metrics.image import (
    affine_normalised_mean_squared_error,
    grey_value_span,
    mean_absolute_error,
    mean_squared_error,
    peak_mean_squared_error,
    peak_signal_to_noise_ratio,
    root_mean_squared_error,
    structural_similarity,
)
from cryohush.core.models.weights import LoadedModel, load_model
from cryohush.core.training.run import train

NOISY, LINEAR, LIMIT, CWF = test_set.NOISY, test_set.LINEAR, test_set.LIMIT, test_set.CWF
_NOISE_IMAGES = 64
_CHOSEN_ON = 32  # images that a baseline's parameter is chosen on
_TIMED, _SHOWN = 64, 8  # images
_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_EMBEDDINGS: tuple[Embedding, ...] = ("isomap", "spectral", "mds", "tsne")
#: judged and chosen on one in so many of the images: a second for an image, or all templates for each
_ONE_IN = {"bm3d": 8, "dictionary": 8, LIMIT: 4}

Denoise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Bench:
    """A table's molecule and test sets."""

    table: Table
    size: Size
    molecule: Molecule
    tests: dict[str, TestSet]
    noise: Noise | None

    @classmethod
    def make(
        cls, table: Table, size: Size, structures: Path, noise: Noise | None, folder: Path, seed: int
    ) -> Bench:
        molecule = make_molecule(structures, table, size, folder / "states", seed)
        blocks = None if noise is None else noise.of_tests
        tests = {
            case.name: make_test_set(molecule, case, size, blocks, seed + zlib.crc32(case.name.encode()))
            for case in table.cases
        }
        return cls(table, size, molecule, tests, noise)


def reference_rows(bench: Bench) -> dict[str, Callable[[], dict[str, Any]]]:
    """Noisy images, baselines and limits by name, each to be computed when it is called.

    Baselines whose library is not installed are left out: see `missing_baselines`.
    """
    missing = missing_baselines(bench.table)
    found: dict[str, Callable[[], dict[str, Any]]] = {
        name: partial(_judge_all, bench, partial(_filter, bench, name), _ONE_IN.get(name, 1))
        for name in (NOISY, *bench.table.classical, LINEAR)
        if name not in missing
    }
    if not bench.table.structural:  # the limit knows of no structural noise
        found[LIMIT] = partial(_limit, bench)
    return found


def missing_baselines(table: Table) -> list[str]:
    """Baselines of a table whose library is not installed."""
    return sorted(set(table.classical) & (set(BASELINES) - set(available_baselines())))


def trained_row(bench: Bench, row: Row, seed: int, folder: Path) -> dict[str, Any]:
    """Train the row's network, or go on with it, and judge it."""
    if row.first_part_of is not None:
        folder = folder.parent / f"{file_name(row.first_part_of)}-{seed}"
    config = training_config(bench, row, seed, folder)
    weights = folder / "weights.safetensors"
    if not weights.exists():
        projections = folder.parent / f"projections-{seed}"
        copy_projections(projections, folder)
        train(
            config, folder, resume=True, context=JobContext(log=lambda line: print(f"  {line}", flush=True))
        )
        copy_projections(folder, projections)
    model = load_model(weights)
    if row.first_part_of is not None:
        model.module.post = None
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        **_judge_all(bench, lambda case: partial(through, model)),
        "parameters": sum(parameter.numel() for parameter in model.module.parameters()),
        "steps": config.optimisation.steps,
        "updates": updates_of(config),
        "batch_size": config.optimisation.batch_size,
        "training_seconds": json.loads(lines[-1])["seconds"],
        "held_out_scores": [json.loads(line)["score"] for line in lines],
        "seconds_per_1000": {device: _speed(model, bench, device) for device in sorted({"cpu", _DEVICE})},
    }


def shown_images(bench: Bench, folder: Path, seed: int) -> dict[str, Tensor]:
    """`(n, y, x)` of the last test set, which is the hardest: noisy, through CWF, the best linear filter and
    every network that was trained in the folder with this seed, and clean."""
    case = bench.table.cases[-1].name
    stack = bench.tests[case].stack
    noisy = stack.noisy[:_SHOWN]
    shown = {name: _filter(bench, name, case)(noisy) for name in (NOISY, CWF, LINEAR)}
    for row in bench.table.rows:
        weights = folder / f"{file_name(row.name)}-{seed}" / "weights.safetensors"
        if weights.exists():
            shown[row.name] = through(load_model(weights), noisy)
    return {**shown, "clean": stack.clean[:_SHOWN]}


def training_config(bench: Bench, row: Row, seed: int, folder: Path) -> TrainingConfig:
    """The row's preset, on the table's molecule and noise, at the table's size."""
    preset, size = find_preset(row.preset), bench.size
    values = read_yaml(preset, row.overrides)
    values["seed"] = seed
    ratios = [case_snr(case, bench.molecule, size) for case in bench.table.cases]
    if row.stored:
        noisy, target = write_pairs(bench.molecule, row, ratios[0], size.pairs, folder / "pairs", seed)
        values.pop("data", None)
        values["pairs"] = {
            "noisy": noisy,
            "target": target,
            "target_is_clean": row.preset != "noise2noise",
            "validation_share": 0.05,
        }
    else:
        # a set has one contrast, so that views with little variance have a lower SNR
        low, high = bench.molecule.variance_range
        pixel_size = bench.molecule.pixel_size_angstrom
        data = values["data"]
        data |= {"structures": bench.molecule.folder, "box_px": size.box_px}
        data |= {"projections_per_volume": size.projections, "pixel_size_angstrom": [pixel_size] * 2}
        data["imaging"]["snr"] = [low * min(ratios), high * max(ratios)]
        if row.with_map:
            maps = bench.molecule.folder.with_name("maps")
            data |= {"maps": maps, "map_resolution_angstrom": 2 * pixel_size}
        if row.real_noise and bench.noise is not None:
            data["noise_blocks"] = bench.noise.of_training
    if size.narrow:
        narrow(values)
    set_length(values, size.steps, size.batch_size, bench.table.checks)
    return validate(values, TrainingConfig, str(preset))


def narrow(values: dict[str, Any]) -> None:
    """Every layer of network and critic with half the channels."""
    values["network"]["arguments"] = halved(values["network"]["arguments"])
    if "adversarial" in values:
        critic = values["adversarial"]["critic"]
        critic["arguments"] = halved(critic["arguments"])


def halved(arguments: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments with half of every width, in the parts of a network as well."""
    found = {}
    for name, value in arguments.items():
        if isinstance(value, dict):
            found[name] = halved(value)
        elif name in ("width", "largest_width"):
            found[name] = value // 2
        elif name == "widths":
            found[name] = [width // 2 for width in value]
        else:
            found[name] = value
    return found


def set_length(values: dict[str, Any], updates: int | None, batch_size: int | None, checks: int = 4) -> None:
    """How often a preset's network is updated; None keeps what it says. A critic's turns come on top.

    Held-out images are looked at `checks` times.
    """
    options = values["optimisation"]
    options["batch_size"] = batch_size or options["batch_size"]
    if updates is None:
        return
    steps = updates
    if "adversarial" in values:
        critic, network = (values["adversarial"].get(f"{one}_steps", 1) for one in ("critic", "generator"))
        steps = -(-updates * (critic + network) // network)
    options |= {"steps": steps, "warmup_steps": steps // 20}
    values |= {"validate_every": max(1, steps // checks), "validation_images": 64}
    if "diffusion" in values:
        values["diffusion"]["post_steps"] = steps // 5


def updates_of(config: TrainingConfig) -> int:
    """How often a run updates its network: all its steps but the critic's."""
    game, steps = config.adversarial, config.optimisation.steps
    if game is None:
        return steps
    turn = game.critic_steps + game.generator_steps
    return steps // turn * game.generator_steps + max(0, steps % turn - game.critic_steps)


def copy_projections(source: Path, target: Path) -> None:
    """Rows of one table and seed have their clean images in common."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("projections-*.safetensors"):
        if not (target / path.name).exists():
            with writing(target / path.name) as part:
                shutil.copy(path, part)


def through(model: LoadedModel, images: Tensor, device: str = _DEVICE) -> Tensor:
    """What a model makes of `(n, y, x)` images."""
    return denoise(model, images, device, "auto")


def _speed(model: LoadedModel, bench: Bench, device: str) -> float:
    """Seconds per 1,000 images."""
    images = next(iter(bench.tests.values())).stack.noisy[:_TIMED]
    through(model, images, device)
    begin = time.perf_counter()
    through(model, images, device)
    return 1000 * (time.perf_counter() - begin) / len(images)


def _filter(bench: Bench, name: str, case: str) -> Denoise:
    """A filter with the parameter that suits other images of the same stack best."""
    stack = bench.tests[case].stack
    if name == NOISY:
        return lambda images: images
    if name == LINEAR:
        return lambda images: test_set.best_linear(
            _with_images(stack, images), bench.molecule.linear, slice(None)
        )
    fit = partial(_covariance_wiener, stack) if name == CWF else partial(_each_alone, name)
    n = _CHOSEN_ON // _ONE_IN.get(name, 1)
    chosen_on = slice(bench.size.images, bench.size.images + n)
    parameter = choose_parameter(
        lambda images, value: fit(value)(images),
        BASELINES[name].candidates,
        stack.noisy[chosen_on],
        stack.clean[chosen_on],
    )
    return fit(parameter)


def _each_alone(name: str, parameter: float) -> Denoise:
    return lambda images: BASELINES[name].denoise(images, parameter)


def _covariance_wiener(stack: test_set.Stack, strength: float) -> Denoise:
    """The covariance Wiener filter of a stack, for any images: pure noise must have no part in the fit."""
    background = background_statistics(stack.noisy, stack.noisy.shape[-1] / 2)[0].mean()

    def white(images: Tensor) -> Tensor:
        return radial_filter(images - background, stack.ring_power.rsqrt())

    covariance = estimate_covariance(white(stack.noisy), strength, FourierBesselBasis(stack.noisy.shape[-1]))

    def apply(images: Tensor) -> Tensor:
        restored = covariance.denoise(white(images), strength)
        return radial_filter(restored, stack.ring_power.sqrt()) + background

    return apply


def _with_images(stack: test_set.Stack, images: Tensor) -> test_set.Stack:
    return test_set.Stack(**{**vars(stack), "noisy": images})


def _limit(bench: Bench) -> dict[str, Any]:
    result = _judge_all(
        bench,
        lambda case: lambda images: bayes_limit(images, bench.tests[case].stack, bench.molecule),
        _ONE_IN[LIMIT],
    )
    for case, test in bench.tests.items():
        result["cases"][case]["pose_floor_nmse"] = pose_floor(test, bench.molecule, bench.size.images)
    return result


def _judge_all(bench: Bench, make: Callable[[str], Denoise], one_in: int = 1) -> dict[str, Any]:
    """Figures for each test set; of one in so many of the images, views and noise images."""
    return {"cases": {case.name: _judge(bench, case, make(case.name), one_in) for case in bench.table.cases}}


def _judge(bench: Bench, case: Case, apply: Denoise, one_in: int) -> dict[str, Any]:
    test = bench.tests[case.name]
    noise = draw_noise(
        _NOISE_IMAGES // one_in,
        bench.molecule.box_px,
        bench.noise.of_tests if bench.noise is not None and case.real_noise else None,
        torch.Generator().manual_seed(17),
    )
    parts = [test.stack.noisy[: bench.size.images // one_in], noise]
    if test.told_apart is not None:  # the same views for every row, however slow it is
        parts += test.told_apart
    # all at once: the Bayes limit makes its templates anew for each call
    begin = time.perf_counter()
    denoised = apply(torch.cat(parts))
    seconds = time.perf_counter() - begin
    images, from_noise, *views = denoised.split([len(part) for part in parts])
    result = {
        **_figures(images, test.stack.clean[: len(images)]),
        **_invented(noise, from_noise, images),
        "seconds_per_1000": 1000 * seconds / len(denoised),
        "images": len(images),
    }
    if test.structural is not None:
        result["structural_left"] = part_left(
            images, test.stack.clean[: len(images)], test.structural[: len(images)]
        )
    if bench.table.reconstructed and one_in == 1:
        result |= map_resolutions(images, test, bench.molecule)
    if views:
        # the first and the last conformation in turn
        true = torch.arange(len(views[0])) % 2
        result["told_apart"] = {
            name: [
                len(view) * clustering_scores(group(embed(view, name), 2), true).accuracy for view in views
            ]
            for name in _EMBEDDINGS
        }
        result["ceiling"] = test.ceiling
    return result


def _figures(images: Tensor, clean: Tensor) -> dict[str, float]:
    """Means over the images; MSE, PSNR and SSIM where each clean image spans 0 to 1."""
    span = grey_value_span(clean)
    unit = span[:, None, None]
    error = mean_squared_error(images, clean)
    fine, fine_clean = fine_detail(images), fine_detail(clean)
    return {
        # sharpness: what is there of the finer half of the frequencies, and how much of it is right
        "fine_power": float(fine.abs().square().sum() / fine_clean.abs().square().sum()),
        "fine_correlation": float(
            (fine * fine_clean.conj()).real.sum() / (fine.norm() * fine_clean.norm()).clamp(min=1e-12)
        ),
        "mse": float(peak_mean_squared_error(images, clean, span).mean()),
        "psnr": float(peak_signal_to_noise_ratio(images, clean, span).mean()),
        "ssim": float(structural_similarity(images, clean, span).mean()),
        # as the papers' code has it: see cryohush.core.metrics.image
        # on 8 bits, as [3] of paper_tables prints them
        "mae_8_bit": float((255 * mean_absolute_error(images, clean) / span).mean()),
        "rmse_8_bit": float((255 * root_mean_squared_error(images, clean) / span).mean()),
        "ssim_published": float(
            structural_similarity(images / unit, clean / unit, 2.0, window="uniform").mean()
        ),
        "nmse": float(error.mean() / clean.var((1, 2), correction=0).mean()),
        "affine_nmse": float(affine_normalised_mean_squared_error(images, clean).mean()),
    }


def part_left(images: Tensor, wanted: Tensor, unwanted: Tensor) -> float:
    """How much of what is unwanted images hold, in terms of how much of what is wanted, by least squares."""
    parts = torch.stack([part.flatten(1) - part.mean((1, 2))[:, None] for part in (wanted, unwanted)])
    held = torch.linalg.lstsq(
        parts.flatten(1).T, (images - images.mean((1, 2), keepdim=True)).flatten()[:, None]
    )
    kept, left = held.solution[:, 0].tolist()
    return left / kept


def fine_detail(images: Tensor) -> Tensor:
    """Fourier coefficients `(n, k)` of `(n, y, x)` images at the finer half of the frequencies."""
    spectrum = torch.fft.fft2(images, norm="ortho")
    frequency = torch.fft.fftfreq(images.shape[-1])
    radius = torch.hypot(frequency[:, None], frequency[None])
    return spectrum[:, (radius >= 0.25) & (radius < 0.5)]


def _invented(noise: Tensor, denoised: Tensor, particles: Tensor) -> dict[str, float]:
    """What comes out of pure noise: its power in terms of denoised particles, and how alike it all is."""
    figures = pure_noise_figures(noise, denoised)
    low_rings = figures.half_set_frc[1 : noise.shape[-1] // 8 + 1]
    return {
        "noise_power": float(denoised.var((1, 2)).mean() / particles.var((1, 2)).mean()),
        "noise_alike": figures.correlation_between_outputs,
        "noise_half_set_frc": sum(low_rings) / len(low_rings),
    }
