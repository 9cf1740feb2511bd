"""How close denoisers come to the best that is possible, on simulated particles of one known map.

    python bayes_bound.py --map map.mrc --output DIR [--models general FILE.safetensors ...]
    python bayes_bound.py --structure 7abc.cif.gz --output DIR
    python bayes_bound.py --blobs 300 --output DIR

Projects the map in random poses of a grid, adds white noise at several signal-to-noise ratios (variance of
the particle's image over variance of the noise, both over the whole box) and denoises by the best of a row of
Gaussians, by the covariance Wiener filter (CWF), by the best linear filter, by models, and by the posterior
mean over all poses of the grid, which no other method can beat. For each model the efficiency,
(linear - model) / (linear - Bayes) in log mean squared error, says how much of the way from the best linear
filter to the limit it goes: 0 is the class of the CWF, 1 is optimal, above 1 is a leak.

Then the same optimum is given pure noise. What it makes of it looks like particles.

Models are judged as users run them, with the background's mean 0 and standard deviation 1; the others know
the noise. The figures that a linear grey scale fitted to each image gives stand beside.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from bayes_denoiser import BayesDenoiser
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pairs import denoise
from torch import Tensor

from cryohush.core.classical.covariance import estimate_covariance
from cryohush.core.classical.fourier_bessel import FourierBesselBasis
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.imaging.projection import Projector
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.metrics.hallucination import pure_noise_figures
from cryohush.core.metrics.image import (
    affine_normalised_mean_squared_error,
    correlation,
    mean_squared_error,
)
from cryohush.core.metrics.pose_grid import PoseGrid
from cryohush.core.models.weights import LoadedModel, load_model

GAUSSIAN_SIGMAS_PX = [0.3 * 1.15**step for step in range(20)]
LIMIT = "Bayes"
LINEAR = "best linear"


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(arguments.seed)
    volume, name = read_volume(arguments, generator)
    grid = pose_grid(arguments)
    models = {model: load_model(model) for model in arguments.models}
    clean, volume = particles(volume, grid, arguments, generator)
    # the best linear filter is fitted to other views
    views, _ = particles(volume, grid, arguments, generator, arguments.linear_images)
    best_linear = estimate_covariance(views, 0.0, FourierBesselBasis(arguments.box))
    white = torch.randn(clean.shape, generator=generator)
    rows, montage = [], {"clean": clean[:6]}
    bayes = bayes_denoiser(volume, grid, arguments)
    for snr in arguments.snr:
        noisy = clean + snr**-0.5 * white
        outputs: dict[str, Tensor] = {"noisy": noisy}
        outputs["best Gaussian"] = min(
            (gaussian_filter(noisy, sigma) for sigma in GAUSSIAN_SIGMAS_PX),
            key=lambda image: float(mean_squared_error(image, clean).mean()),
        )
        begin = time.perf_counter()
        cwf = estimate_covariance(noisy, 1 / snr, best_linear.basis)
        outputs["CWF"] = cwf.denoise(noisy, 1 / snr)
        seconds = {"CWF": time.perf_counter() - begin}
        outputs[LINEAR] = best_linear.denoise(noisy, 1 / snr)
        for model, loaded in models.items():
            outputs[model] = run_model(loaded, noisy, snr, arguments)
        begin = time.perf_counter()
        bayes.noise_power = torch.full_like(bayes.noise_power, 1 / snr)
        posterior = bayes(noisy)
        seconds[LIMIT] = time.perf_counter() - begin
        outputs["most probable pose"], outputs[LIMIT] = posterior.most_probable, posterior.mean
        for method, images in outputs.items():
            rows.append(
                {
                    "snr": snr,
                    "method": method,
                    **errors(images, clean),
                    "images_per_second": len(noisy) / seconds[method] if method in seconds else None,
                }
            )
        add_efficiencies([row for row in rows if row["snr"] == snr])
        rows[-1]["effective_poses"] = float(posterior.effective_poses.median())
        rows[-1]["expected_nmse"] = float(posterior.expected_squared_error.mean())
        montage.update({f"{method}, SNR {snr:g}": images[:6] for method, images in outputs.items()})
        print(table([row for row in rows if row["snr"] == snr]), flush=True)
    invented, pictures = pure_noise(bayes, grid, volume, arguments, generator)
    result = {
        "map": name,
        "box_px": arguments.box,
        "poses": len(grid if arguments.refine_from is None else grid.refined()),
        "images": arguments.images,
        "images_for_the_linear_filter": arguments.linear_images,
        "models": {key: model.sha256 for key, model in models.items()},
        "rows": rows,
        "pure_noise": invented,
    }
    (arguments.output / "bayes_bound.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "bayes_bound.md").write_text(markdown(result), encoding="utf-8")
    draw(rows, {**montage_at(montage, arguments.snr), **pictures}, arguments.output / "bayes_bound.png")
    print(markdown(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare denoisers with the Bayes limit of a known map.")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--map", type=Path, help="MRC map, cubic; resampled to the box")
    source.add_argument("--structure", type=Path, help="PDB or mmCIF file")
    source.add_argument("--blobs", type=int, help="a random map of that many Gaussian blobs")
    parser.add_argument("--box", type=int, default=64, help="side of the images in pixels (default: 64)")
    parser.add_argument("--models", nargs="*", default=[], help="names or .safetensors files")
    parser.add_argument("--snr", type=float, nargs="+", default=[0.3, 0.1, 0.05, 0.02, 0.01])
    parser.add_argument("--images", type=int, default=512, help="particles that are judged (default: 512)")
    parser.add_argument(
        "--linear-images", type=int, default=8192, help="clean views for the best linear filter"
    )
    parser.add_argument(
        "--order",
        type=int,
        default=3,
        help="HEALPix order of the poses: 3 is 7.5 degrees (default), 4 is 3.75",
    )
    parser.add_argument("--shift", type=float, default=0.0, help="largest shift of a particle in pixels")
    parser.add_argument("--shift-step", type=float, default=1.0, help="spacing of the shifts in pixels")
    parser.add_argument(
        "--refine-from",
        type=int,
        help="two stages: box in pixels of the coarse one, which has half the order",
    )
    parser.add_argument("--memory-gb", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of the models")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True, help="folder")
    return parser.parse_args()


def read_volume(arguments: argparse.Namespace, generator: torch.Generator) -> tuple[Tensor, str]:
    """A volume of the box asked for, on any grey scale."""
    box = arguments.box
    if arguments.structure is not None:
        structure = read_structure(arguments.structure)
        pixel_size = 2 * structure.radius_angstrom / (0.65 * box)
        return potential_map(structure, box, pixel_size, 8 * pixel_size**2), structure.name
    if arguments.blobs is not None:
        return blobs(arguments.blobs, box, generator), f"{arguments.blobs} blobs"
    with mrcfile.open(arguments.map) as file:
        volume = torch.from_numpy(np.array(file.data, dtype=np.float32))
    if volume.ndim != 3 or len(set(volume.shape)) != 1 or volume.shape[0] % 2:
        raise SystemExit(f"{arguments.map}: expected a cubic map of even side, found {tuple(volume.shape)}")
    return resampled(volume, box), arguments.map.name


def blobs(n: int, box: int, generator: torch.Generator) -> Tensor:
    """Asymmetric sum of Gaussians of 1.35 px within an ellipsoid as long as two thirds of the box."""
    axis = torch.arange(box).float() - box // 2
    semi_axes = torch.tensor([0.33, 0.23, 0.17]) * box
    volume = torch.zeros(box, box, box)
    for _ in range(n):
        direction = torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0)
        centre = direction * torch.rand(1, generator=generator) ** (1 / 3) * semi_axes
        z, y, x = (torch.exp(-((axis - c) ** 2) / (2 * 1.35**2)) for c in centre)
        volume += z[:, None, None] * y[:, None] * x
    return volume


def resampled(volume: Tensor, box: int) -> Tensor:
    """Cut or zero-pad the transform of a cubic map."""
    old = volume.shape[0]
    small = min(old, box)
    inner = [slice(side // 2 - small // 2, side // 2 + small // 2) for side in (old, box)]
    transform = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(volume)))
    target = torch.zeros(box, box, box, dtype=transform.dtype)
    target[(inner[1],) * 3] = transform[(inner[0],) * 3]
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(target)).real)


def pose_grid(arguments: argparse.Namespace) -> PoseGrid:
    """The grid that `BayesDenoiser` is given; with two stages that of the first."""
    order = arguments.order - (arguments.refine_from is not None)
    if arguments.shift == 0:
        return PoseGrid.centred(order)
    step = arguments.shift_step * (1 if arguments.refine_from is None else 2)
    return PoseGrid.with_shifts(order, arguments.shift, step)


def particles(
    volume: Tensor,
    grid: PoseGrid,
    arguments: argparse.Namespace,
    generator: torch.Generator,
    n: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Clean images in poses of the grid, and the volume on their grey scale: mean variance 1."""
    true = grid if arguments.refine_from is None else grid.refined()
    n = n or arguments.images
    projector = Projector(volume)
    parts = []
    for index in torch.split(torch.randint(true.n_orientations, (n,), generator=generator), 512):
        shift = true.shifts_px[torch.randint(len(true.shifts_px), (len(index),), generator=generator)]
        y, x = torch.fft.fftfreq(arguments.box)[:, None], torch.fft.rfftfreq(arguments.box)
        cycles = shift[:, :1, None] * y + shift[:, 1:, None] * x
        phase = torch.polar(torch.ones_like(cycles), -2 * torch.pi * cycles)
        parts.append(torch.fft.irfft2(projector.slices(true.rotations(index)) * phase))
    images = torch.cat(parts)
    scale = images.var((1, 2)).mean().sqrt()
    return images / scale, volume / scale


def bayes_denoiser(volume: Tensor, grid: PoseGrid, arguments: argparse.Namespace) -> BayesDenoiser:
    memory = int(arguments.memory_gb * 2**30)
    return BayesDenoiser(volume, grid, 1.0, refine_from_box_px=arguments.refine_from, memory_bytes=memory)


def run_model(model: LoadedModel, noisy: Tensor, snr: float, arguments: argparse.Namespace) -> Tensor:
    """Denoise at a noise of standard deviation 1, as particles are extracted, and scale back."""
    return snr**-0.5 * denoise(model, snr**0.5 * noisy, arguments.device, arguments.precision)


def errors(images: Tensor, clean: Tensor) -> dict[str, float]:
    error = mean_squared_error(images, clean)
    variance = clean.var((1, 2), correction=0).mean()
    return {
        "nmse": float(error.mean() / variance),
        "nmse_standard_error": float(error.std() / variance / math.sqrt(len(clean))),
        "affine_nmse": float(affine_normalised_mean_squared_error(images, clean).mean()),
        "correlation": float(correlation(images, clean).mean()),
    }


def add_efficiencies(rows: list[dict[str, Any]]) -> None:
    """Share of the way, in log error, from the best linear filter to the limit."""
    error = {str(row["method"]): math.log(row["nmse"]) for row in rows}
    for row in rows:
        gained = error[LINEAR] - error[str(row["method"])]
        row["efficiency"] = gained / (error[LINEAR] - error[LIMIT])


def pure_noise(
    bayes: BayesDenoiser,
    grid: PoseGrid,
    volume: Tensor,
    arguments: argparse.Namespace,
    generator: torch.Generator,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Give the optimum noise without particles, told that its SNR is 0.05."""
    variance = 20.0
    n = min(64, arguments.images)
    noise = math.sqrt(variance) * torch.randn(n, arguments.box, arguments.box, generator=generator)
    bayes.noise_power = torch.full_like(bayes.noise_power, variance)
    posterior = bayes(noise)
    nearest = nearest_projection(posterior.mean, volume, grid)
    figures = asdict(pure_noise_figures(noise, posterior.mean))
    found = {
        "images": n,
        "variance_over_that_of_a_particle": float(posterior.mean.var((1, 2)).mean()),
        "correlation_with_nearest_projection_mean": float(nearest.mean()),
        "correlation_with_nearest_projection_least": float(nearest.min()),
        "log_evidence_median": float(posterior.log_evidence.median()),
        **{key: figures[key] for key in ("half_set_frc", "half_set_frc_of_input")},
    }
    return found, {"pure noise": noise[:6], "Bayes of pure noise": posterior.mean[:6]}


def nearest_projection(images: Tensor, volume: Tensor, grid: PoseGrid) -> Tensor:
    """Largest correlation of each image with any centred projection of the grid."""
    flat = images.flatten(1) - images.flatten(1).mean(1, keepdim=True)
    flat = flat / flat.norm(dim=1, keepdim=True)
    best = torch.full((len(images),), -1.0)
    projector = Projector(volume)
    for index in torch.split(torch.arange(grid.n_orientations), 512):
        views = torch.fft.irfft2(projector.slices(grid.rotations(index))).flatten(1)
        views -= views.mean(1, keepdim=True)
        views /= views.norm(dim=1, keepdim=True)
        best = torch.maximum(best, (flat @ views.T).max(1).values)
    return best


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| SNR | method | NMSE | affine NMSE | efficiency |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['snr']} | {row['method']} | {row['nmse']:.4f} ± {row['nmse_standard_error']:.4f} "
            f"| {row['affine_nmse']:.4f} | {row['efficiency']:.2f} |"
        )
    return "\n".join(lines)


def markdown(result: dict[str, Any]) -> str:
    noise = result["pure_noise"]
    band = slice(1, len(noise["half_set_frc"]) // 2)
    after, before = (np.mean(noise[key][band]) for key in ("half_set_frc", "half_set_frc_of_input"))
    nearest = [noise[f"correlation_with_nearest_projection_{which}"] for which in ("mean", "least")]
    return f"""\
{result["map"]}, {result["box_px"]} px, {result["poses"]} poses, {result["images"]} images for each SNR.
NMSE is the mean squared error over the variance of the clean images, efficiency the share of the way, in log
error, from the best linear filter to the limit.

{table(result["rows"])}

Pure noise given to the limit itself ({noise["images"]} images, told an SNR of 0.05): its output has
{noise["variance_over_that_of_a_particle"]:.2f} of a particle's variance, and its correlation with the nearest
true projection is {nearest[0]:.3f} on average, {nearest[1]:.3f} at least. Half-set FRC up to half of Nyquist:
{after:.2f} on average, {before:.2f} before. Only the evidence tells: ln P(particle) / P(noise) is
{noise["log_evidence_median"]:.0f} (median).
"""


def montage_at(montage: dict[str, Tensor], snr: list[float]) -> dict[str, Tensor]:
    """The pictures of the ratio nearest 0.05."""
    chosen = min(snr, key=lambda value: abs(math.log(value / 0.05)))
    ending = f", SNR {chosen:g}"
    return {name: images for name, images in montage.items() if name == "clean" or name.endswith(ending)}


def draw(rows: list[dict[str, Any]], montage: dict[str, Tensor], path: Path) -> None:
    """Errors over SNR on the left, six images of each method on the right."""
    figure = Figure(figsize=(14, 0.75 * len(montage) + 1), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axes = left.subplots()
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "noisy"):
        own = [row for row in rows if row["method"] == method]
        width = 2.5 if method in (LIMIT, LINEAR) else 1.2
        axes.loglog([r["snr"] for r in own], [r["nmse"] for r in own], "o-", label=method, linewidth=width)
    axes.set(xlabel="SNR", ylabel="NMSE")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    grid = right.subplots(len(montage), 6, squeeze=False)
    for row_axes, (name, images) in zip(grid, montage.items(), strict=True):
        for one, image in zip(row_axes, images, strict=False):
            low, high = image.mean() - 2.5 * image.std(), image.mean() + 4 * image.std()
            one.imshow(image.numpy(), cmap="gray", vmin=float(low), vmax=float(high))
        for one in row_axes:
            one.set_axis_off()
        row_axes[0].set_axis_on()
        row_axes[0].set(xticks=[], yticks=[])
        row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=7)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
