"""Every classical baseline, the models and the Bayes limit on structures that the shipped models never saw.

    python test_set.py --structures DIR --ctf-table ctf.npy --output DIR [--models general ...] [--quick]

DIR holds PDB or mmCIF files; those are used that were held out from the training of the shipped weights.
Each structure is projected in poses of a grid, and noise is added under three conditions: SNR 0.1 and 0.05
(variance of the particle's image over that of the noise, both over the whole box), white, without CTF; and
SNR 0.05 with the CTF of images drawn from a real table and coloured noise, whose power falls fourfold from
zero frequency to Nyquist.

Of each stack the first images are judged; on others, a fifth as many but four at least, each baseline's
parameter is chosen with the clean images at hand; outputs are judged as they come. The covariance Wiener
filter (CWF) and the radial one are fitted to the whole noisy stack. They, the best linear filter and the
Bayes limit know the power of the noise; other baselines estimate it, and models get what a user gives them:
images whose noise has mean 0 and standard deviation 1, each by itself and the whole stack. The target is the
particle with its CTF. The best linear filter is the covariance Wiener filter with the covariance of other
clean views.

"share" is the share of the way from the noisy images to the limit, (noisy - method) / (noisy - Bayes) in
log mean squared error; "efficiency" that from the best linear filter, (linear - method) / (linear - Bayes):
0 is the class of the CWF, 1 is optimal, above 1 is a leak. SSIM and PSNR are taken with the span of each
clean image as the data range, after the best grey scale for SSIM. Writes test_set.md and test_set.json.

The Bayes limit is that of poses on the grid, which are known exactly once the grid's neighbours can be told
apart. Continuous angles are never known better than the Cramér-Rao bound, the "pose floor" beneath each
table: shares refer to the larger of the two errors.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from bayes_denoiser import BayesDenoiser
from pairs import denoise
from torch import Tensor

import cryohush
from cryohush.core.classical.baselines import (
    BASELINES,
    available_baselines,
    choose_parameter,
    covariance_wiener,
    covariance_wiener_through_ctf,
    radial_wiener,
)
from cryohush.core.classical.covariance import ImageCovariance, estimate_covariance
from cryohush.core.classical.fourier_bessel import FourierBesselBasis
from cryohush.core.imaging.ctf import CtfParameters, ctf, read_ctf_table
from cryohush.core.imaging.filters import apply_transfer
from cryohush.core.imaging.noise import coloured
from cryohush.core.imaging.projection import Projector
from cryohush.core.imaging.rings import frequency_grid, ring_mean
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.metrics.image import (
    affine_fit,
    affine_normalised_mean_squared_error,
    grey_value_span,
    mean_squared_error,
    peak_signal_to_noise_ratio,
    structural_similarity,
)
from cryohush.core.metrics.pose_grid import PoseGrid
from cryohush.core.models.weights import LoadedModel, load_model

#: held out from the training of the shipped weights, by the names of their files
HELD_OUT = ("1bxn", "2cg9", "4zxb", "6cvm", "6xlu", "pdb7pbl")
NOISY, LINEAR, LIMIT = "noisy", "best linear", "Bayes limit"
CWF, CWF_CTF = "covariance_wiener", "covariance_wiener through CTF"
PARTICLE_SHARE = 0.65  # of the box


@dataclass(frozen=True)
class Condition:
    """How a stack is imaged."""

    name: str
    snr: float
    realistic: bool


CONDITIONS = (
    Condition("SNR 0.1, white, no CTF", 0.1, False),
    Condition("SNR 0.05, white, no CTF", 0.05, False),
    Condition("SNR 0.05, coloured, CTF", 0.05, True),
)


@dataclass(frozen=True)
class Specimen:
    """Clean views `(n, y, x)` of one structure without CTF, and its volume on the same grey scale."""

    views: Tensor
    rotations: Tensor
    others: Tensor
    volume: Tensor
    grid: PoseGrid
    pixel_size_angstrom: float


@dataclass(frozen=True)
class Stack:
    """Noisy images with noise of variance 1, what they show, and how."""

    noisy: Tensor
    clean: Tensor
    views: Tensor
    scale: float  # of the volume in these grey values
    noise_power: Tensor  # `(y, x // 2 + 1)`
    optics: CtfParameters | None
    transfer: Tensor | None
    pixel_size_angstrom: float

    @property
    def ring_power(self) -> Tensor:
        side = self.noisy.shape[-1]
        return ring_mean(self.noise_power, (side, side))


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = read_ctf_table(arguments.ctf_table)
    models = {name: load_model(name) for name in arguments.models}
    basis = FourierBesselBasis(arguments.box)
    rows: list[dict[str, Any]] = []
    for name in arguments.held_out:
        generator = torch.Generator().manual_seed(arguments.seed)
        specimen = make_specimen(find_structure(arguments.structures, name), arguments, generator)
        linear = estimate_covariance(specimen.others, 0.0, basis)
        for condition in CONDITIONS:
            stack = make_stack(specimen, condition, table, generator)
            for row in judge(stack, specimen, linear, models, arguments):
                rows.append({"structure": name, "condition": condition.name, **row})
            print(f"{name}, {condition.name}: done", flush=True)
        write(rows, arguments)
    print((arguments.output / "test_set.md").read_text(encoding="utf-8"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Baselines, models and the Bayes limit on held-out structures."
    )
    parser.add_argument("--structures", type=Path, required=True, help="folder of PDB or mmCIF files")
    parser.add_argument("--ctf-table", type=Path, required=True, help=".npy of real CTF parameters")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--models", nargs="*", default=["general"], help="names or .safetensors files")
    parser.add_argument("--held-out", nargs="+", default=HELD_OUT, metavar="NAME")
    parser.add_argument("--baselines", nargs="*", choices=BASELINES, help="default: all that are installed")
    parser.add_argument("--quick", action="store_true", help="64 px, poses 7.5 instead of 3.75 degrees apart")
    parser.add_argument("--images", type=int, default=64, help="judged, of each stack (default: 64)")
    parser.add_argument("--stack", type=int, default=2048, help="noisy images of each stack (default: 2048)")
    parser.add_argument(
        "--linear-images", type=int, default=4096, help="clean views for the best linear filter"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of the models")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    arguments.box = 64 if arguments.quick else 128
    if arguments.baselines is None:
        arguments.baselines = list(available_baselines())
    if arguments.images + validation_images(arguments) > arguments.stack:
        parser.error("--stack must hold the images that are judged and a fifth as many besides")
    return arguments


def validation_images(arguments: argparse.Namespace) -> int:
    return max(4, int(arguments.images) // 5)


def find_structure(folder: Path, name: str) -> Path:
    found = [path for path in folder.glob(f"{name}.*") if path.name.split(".")[0] == name]
    if len(found) != 1:
        raise SystemExit(f"{folder}: expected one file of {name}, found {len(found)}")
    return found[0]


def make_specimen(path: Path, arguments: argparse.Namespace, generator: torch.Generator) -> Specimen:
    structure = read_structure(path)
    pixel_size = 2 * structure.radius_angstrom / (PARTICLE_SHARE * arguments.box)
    volume = potential_map(structure, arguments.box, pixel_size, 8 * pixel_size**2)
    # two stages: the coarse one has half the order, and the poses are those of the fine one
    grid = PoseGrid.centred(2 if arguments.quick else 3)
    fine, projector = grid.refined(), Projector(volume)

    def project(n: int) -> tuple[Tensor, Tensor]:
        picked = torch.randint(fine.n_orientations, (n,), generator=generator)
        rotations = fine.rotations(picked)
        return torch.cat(
            [torch.fft.irfft2(projector.slices(some)) for some in rotations.split(512)]
        ), rotations

    views, rotations = project(arguments.stack)
    others, _ = project(arguments.linear_images)
    return Specimen(views, rotations, others, volume, grid, pixel_size)


def make_stack(
    specimen: Specimen, condition: Condition, table: CtfParameters, generator: torch.Generator
) -> Stack:
    n, box = len(specimen.views), specimen.views.shape[-1]
    clean, optics, transfer = specimen.views, None, None
    power = torch.ones(box, box // 2 + 1)
    if condition.realistic:
        optics = table[torch.randint(len(table), (n,), generator=generator)]
        transfer = ctf(optics, torch.full((n,), specimen.pixel_size_angstrom), box)
        clean = apply_transfer(clean, transfer)
        power = torch.exp(math.log(2) * torch.cos(2 * torch.pi * frequency_grid((box, box)).clamp_max(0.5)))
    noise = coloured(torch.randn(clean.shape, generator=generator), power)
    deviation = float(noise.std())
    noise, power = noise / deviation, power / deviation**2
    scale = float((condition.snr / clean.var((1, 2)).mean()).sqrt())
    clean = scale * clean
    return Stack(
        clean + noise, clean, specimen.views, scale, power, optics, transfer, specimen.pixel_size_angstrom
    )


def judge(
    stack: Stack,
    specimen: Specimen,
    linear: ImageCovariance,
    models: dict[str, LoadedModel],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """One row of figures for each method."""
    judged = slice(0, arguments.images)
    chosen_on = slice(arguments.images, arguments.images + validation_images(arguments))
    noisy, clean = stack.noisy[judged], stack.clean[judged]
    rows = [figures(NOISY, noisy, clean)]
    for name, function in methods(stack, arguments).items():
        baseline = BASELINES[CWF if name == CWF_CTF else name]
        whole = function is not baseline.denoise
        validate = partial(on_part, function, stack.noisy, chosen_on) if whole else function
        candidates = baseline.candidates
        parameter = (
            choose_parameter(validate, candidates, stack.noisy[chosen_on], stack.clean[chosen_on])
            if len(candidates) > 1
            else candidates[0]
        )
        begin = time.perf_counter()
        denoised = function(stack.noisy if whole else noisy, parameter)
        seconds = (time.perf_counter() - begin) / len(denoised)
        rows.append({**figures(name, denoised[judged], clean), "parameter": parameter, "rate": 1 / seconds})
    for name, model in models.items():
        begin = time.perf_counter()
        denoised = denoise(model, noisy, arguments.device, "auto")
        rate = len(noisy) / (time.perf_counter() - begin)
        rows.append({**figures(f"model {Path(name).stem}", denoised, clean), "rate": rate})
        if getattr(model.module, "context_channels", 0):
            for context, what in (("stack", "with its stack"), ("map", "with a map")):
                images = of_stack(model, stack, arguments.device, context)[judged]
                rows.append(figures(f"model {Path(name).stem}, {what}", images, clean))
    rows.append(figures(LINEAR, best_linear(stack, linear, judged), clean))
    # the coarse stage takes half the box
    limit = BayesDenoiser(
        stack.scale * specimen.volume, specimen.grid, stack.noise_power, refine_from_box_px=arguments.box // 2
    )
    posterior = limit(noisy, None if stack.transfer is None else stack.transfer[judged])
    floor = pose_floor(stack, specimen, judged) / float(clean.var((1, 2), correction=0).mean())
    rows.append({**figures(LIMIT, posterior.mean, clean), "pose_floor_nmse": floor})
    return rows


def of_stack(model: LoadedModel, stack: Stack, device: str, context: Literal["stack", "map"]) -> Tensor:
    denoised = cryohush.denoise(
        stack.noisy.numpy(),
        pixel_size=stack.pixel_size_angstrom,
        model=model,
        ctf=stack.optics,
        context=context,
        device=device,
    )
    return torch.from_numpy(denoised)


def methods(stack: Stack, arguments: argparse.Namespace) -> dict[str, Callable[[Tensor, float], Tensor]]:
    """The baselines; those that are fitted to the whole stack are told the power of the noise."""
    found: dict[str, Callable[[Tensor, float], Tensor]] = {
        name: BASELINES[name].denoise for name in arguments.baselines
    }
    for name, function in (("radial_wiener", radial_wiener), (CWF, covariance_wiener)):
        if name in found:
            found[name] = partial(function, noise_power=stack.ring_power)
    if CWF in found and stack.optics is not None:
        found[CWF_CTF] = lambda images, strength: covariance_wiener_through_ctf(
            images,
            stack.optics,
            stack.pixel_size_angstrom,
            strength=strength,
            noise_power=stack.ring_power,
        )
    return found


def on_part(
    function: Callable[[Tensor, float], Tensor], stack: Tensor, part: slice, _: Tensor, parameter: float
) -> Tensor:
    """Fit a filter to the whole stack, for the sake of a part of it."""
    return function(stack, parameter)[part]


def best_linear(stack: Stack, covariance: ImageCovariance, judged: slice) -> Tensor:
    """The covariance of clean views known, on the stack's grey scale, and each image's own CTF."""
    n = len(stack.noisy[judged])
    root = stack.noise_power.sqrt()
    transfer = torch.ones(1, *root.shape) if stack.transfer is None else stack.transfer[judged]
    group = torch.arange(n) if stack.transfer is not None else torch.zeros(n, dtype=torch.int64)
    white = apply_transfer(stack.noisy[judged], 1 / root)
    restored = covariance.restore(white, 1.0, stack.scale * transfer / root, group)
    return apply_transfer(restored, stack.scale * transfer)


def pose_floor(stack: Stack, specimen: Specimen, judged: slice) -> float:
    """Cramér-Rao bound of the squared error per pixel when three continuous angles are unknown.

    The derivatives J of the images by the angles, and noise of covariance S, leave J (J' S^-1 J)^-1 J'.
    """
    rotations, step = specimen.rotations[judged], 0.01  # radians
    projector = Projector(specimen.volume)
    derivatives = []
    for axis in torch.eye(3):
        turn = torch.linalg.matrix_exp(step * torch.linalg.cross(axis.expand(3, 3), torch.eye(3)))
        either = [torch.fft.irfft2(projector.slices(rotations @ way)) for way in (turn, turn.T)]
        change = stack.scale * (either[0] - either[1]) / (2 * step)
        derivatives.append(
            change if stack.transfer is None else apply_transfer(change, stack.transfer[judged])
        )
    jacobian = torch.stack(derivatives, 1)
    white = apply_transfer(jacobian, stack.noise_power.rsqrt()).flatten(2)
    uncertainty = torch.linalg.inv(white @ white.mT)
    jacobian = jacobian.flatten(2)
    return float((uncertainty * (jacobian @ jacobian.mT)).sum((1, 2)).mean()) / jacobian.shape[2]


def figures(name: str, images: Tensor, clean: Tensor) -> dict[str, Any]:
    span = grey_value_span(clean)
    error = mean_squared_error(images, clean)
    return {
        "method": name,
        "mse": float(error.mean()),
        "nmse": float(error.mean() / clean.var((1, 2), correction=0).mean()),
        "affine_nmse": float(affine_normalised_mean_squared_error(images, clean).mean()),
        "psnr": float(peak_signal_to_noise_ratio(images, clean, span).mean()),
        "ssim": float(structural_similarity(affine_fit(images, clean), clean, span).mean()),
    }


def write(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    done = len({row["structure"] for row in rows})
    lines = [
        f"{done} held-out structures, {arguments.images} judged images of each in each condition, "
        f"{arguments.box} px, stacks of {arguments.stack}. Means over structures.",
    ]
    summary = []
    for condition in CONDITIONS:
        means = condition_means([row for row in rows if row["condition"] == condition.name])
        summary += [{"condition": condition.name, **row} for row in means]
        lines += [
            "",
            f"**{condition.name}**",
            "",
            "| method | MSE | NMSE | affine NMSE | PSNR (dB) | SSIM | share | efficiency | images/s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        floors = [
            row["pose_floor_nmse"]
            for row in rows
            if row["condition"] == condition.name and row["method"] == LIMIT
        ]
        for row in means:
            rate = "" if row["rate"] is None else f"{row['rate']:.0f}"
            lines.append(
                f"| {row['method']} | {row['mse']:.5f} | {row['nmse']:.4f} | {row['affine_nmse']:.4f} "
                f"| {row['psnr']:.2f} | {row['ssim']:.3f} | {row['share']:.2f} | {row['efficiency']:.2f} "
                f"| {rate} |"
            )
        lines += ["", f"Pose floor: NMSE {sum(floors) / len(floors):.4f}."]
    options = {key: str(value) for key, value in vars(arguments).items()}
    result = {"options": options, "summary": summary, "rows": rows}
    (arguments.output / "test_set.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (arguments.output / "test_set.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def condition_means(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the structures; errors in the shares are geometric means, so that none rules."""
    by_method: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_method[row["method"]].append(row)
    log_error = {
        name: sum(math.log(row["nmse"]) for row in own) / len(own) for name, own in by_method.items()
    }
    limits = by_method[LIMIT]
    limit = sum(math.log(max(row["nmse"], row["pose_floor_nmse"])) for row in limits) / len(limits)
    means = []
    for name, own in by_method.items():
        mean = {
            key: sum(row[key] for row in own) / len(own)
            for key in ("mse", "nmse", "affine_nmse", "psnr", "ssim")
        }
        rates = [row["rate"] for row in own if "rate" in row]
        for key, start in (("share", NOISY), ("efficiency", LINEAR)):
            mean[key] = (log_error[start] - log_error[name]) / (log_error[start] - limit)
        means.append({"method": name, **mean, "rate": sum(rates) / len(rates) if rates else None})
    return means


if __name__ == "__main__":
    main()
