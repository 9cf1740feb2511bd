"""Score denoised particles against independent noisy images of the same particles.

    python independent_pairs.py --raw particles_rest.star --twin particles_frame.star --output DIR
        [--models general weights.safetensors ...] [--topaz-python PYTHON] [--align-twin]

The two tables list the same boxes in the same order, cut from averages of different frames of each
exposure, so that their noise is independent. Only `--raw` is denoised. The score is the mean over images of
the correlation of the denoised image with the twin. The second score counts only frequencies finer than 100
Å, where gradients of ice thickness, which both halves share, do not reach.

Frames that are not motion-corrected show the specimen displaced, and a displaced twin favours what is
blurred; --align-twin finds the drift of each micrograph from the raw images and takes it back.

Gaussian, mean and low-pass filters are scanned, as is the strength of the covariance Wiener filter, which is
fitted to the raw images, and the oracle's radial Wiener filter is fitted on these very pairs: what is listed
is the best that each can do, which no user without the twin would get. The other radial Wiener filter knows
the raw images alone. Standard errors are bootstraps over micrographs. "gain" is
the difference from the best Gaussian, image by image.

The limits under the table say what the oracle would score if the raw images had no noise at all in those
Fourier rings where the signal exceeds the noise, or a fifth of it.

Writes scores.md, scores.json and scores.png to DIR.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from pairs import Particles, denoise, read_particles
from torch import Tensor

from cryohush.core.classical.baselines import covariance_wiener
from cryohush.core.errors import InputError
from cryohush.core.imaging.filters import (
    gaussian_filter,
    low_pass,
    mean_filter,
    radial_filter,
    wiener_gain,
)
from cryohush.core.imaging.rings import ring_mean
from cryohush.core.metrics.fourier import pooled_fourier_ring_correlation, ring_frequencies, ring_products
from cryohush.core.metrics.independent import (
    align_twin,
    bootstrap_score,
    independent_correlation,
    white_noise_power,
)
from cryohush.core.models.weights import load_model

COARSEST_ANGSTROM = 100.0
SIGMAS_ANGSTROM = (2.25, 3.0, 3.75, 4.5, 5.25, 6.0, 6.75, 7.5, 9.0, 11.0, 13.0)
CUT_OFFS_ANGSTROM = (10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 24.0, 26.0, 28.0, 30.0, 35.0, 40.0)
MEAN_WIDTHS_PX = (3, 5, 7, 9, 11, 13, 15)
NOISE_STRENGTHS = (0.7, 1.0, 1.3, 1.6, 2.0)
BEST_GAUSSIAN, ORACLE = "best Gaussian", "radial Wiener (oracle)"
CWF = "best covariance Wiener filter"
LEAST_SSNR = (1.0, 0.2)


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    raw, twin, drift = read_pair(arguments.raw, arguments.twin, align=arguments.align_twin)
    denoised: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    add_filters(raw, twin, denoised, settings)
    if arguments.topaz_python:
        for arch in ("unet", "unet-small"):
            denoised[f"Topaz {arch}"] = topaz(arguments.topaz_python, raw.images, arch, arguments.threads)
            # Topaz was trained on micrographs, in which protein is dark: its best case
            inverted = topaz(arguments.topaz_python, -raw.images, arch, arguments.threads)
            denoised[f"Topaz {arch}, protein dark"] = -inverted
    for name in arguments.models:
        model = load_model(name)
        label = f"cryohush {Path(name).stem}"
        denoised[label] = denoise(model, raw.images, arguments.device, arguments.precision)
        settings[label] = {"sha256": model.sha256}
    report(raw, twin, denoised, settings, drift, arguments.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Score denoised particles against independent images.")
    parser.add_argument("--raw", type=Path, required=True, help="particles to denoise (.star or .mrcs)")
    parser.add_argument("--twin", type=Path, required=True, help="the same boxes with independent noise")
    parser.add_argument("--models", nargs="*", default=["general"], help="names or files (default: general)")
    parser.add_argument("--topaz-python", help="python of an environment with topaz-em 0.3.20")
    parser.add_argument(
        "--align-twin",
        action="store_true",
        help="take the drift between the two halves back first, as the raw images of each micrograph show it",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True, help="folder for scores.md, .json and .png")
    return parser.parse_args()


def read_pair(
    raw_path: Path, twin_path: Path, *, align: bool
) -> tuple[Particles, Particles, dict[str, tuple[float, float]] | None]:
    """Both stacks and, where it is to be taken back, the drift of each micrograph (y, x) in pixels."""
    raw, twin = read_particles(raw_path), read_particles(twin_path)
    if raw.images.shape != twin.images.shape or raw.pixel_size_angstrom != twin.pixel_size_angstrom:
        raise InputError("raw and twin must hold the same boxes at the same pixel size.", path=twin_path)
    if not align:
        return raw, twin, None
    if raw.micrographs is None:
        raise InputError("aligning the twin needs rlnMicrographName.", path=raw_path)
    images, drift = align_twin(raw.images, twin.images, raw.micrographs)
    return raw, replace(twin, images=images), drift


def add_filters(
    raw: Particles, twin: Particles, denoised: dict[str, Tensor], settings: dict[str, Any]
) -> None:
    """Add the raw images and the best of each classical filter."""
    pixel = raw.pixel_size_angstrom
    denoised["raw"] = raw.images
    gain = white_noise_gain(raw.images)
    white = white_noise_power(raw.images).mean().expand_as(gain)
    candidates: dict[str, tuple[str, tuple[float, ...], Callable[[float], Tensor]]] = {
        "best mean filter": ("width_px", MEAN_WIDTHS_PX, lambda width: mean_filter(raw.images, int(width))),
        BEST_GAUSSIAN: ("sigma_angstrom", SIGMAS_ANGSTROM, lambda a: gaussian_filter(raw.images, a / pixel)),
        "best low-pass": ("cut_off_angstrom", CUT_OFFS_ANGSTROM, lambda a: low_pass(raw.images, a, pixel)),
        CWF: ("strength", NOISE_STRENGTHS, lambda s: covariance_wiener(raw.images, s, white)),
    }
    for name, (parameter, values, apply) in candidates.items():
        best = max(values, key=lambda value: score_of(apply(value), twin))
        denoised[name] = apply(best)
        settings[name] = {parameter: best}
    denoised["radial Wiener (no twin)"] = radial_filter(raw.images, gain)
    denoised[ORACLE] = radial_filter(raw.images, oracle_gain(raw.images, twin.images))


def white_noise_gain(images: Tensor) -> Tensor:
    """`(rings,)` Wiener gain from the images' own spectrum and the level of their noise."""
    power = torch.fft.rfft2(images, norm="ortho").abs().square().mean(0)
    return wiener_gain(
        white_noise_power(images).mean(), ring_mean(power, (images.shape[-2], images.shape[-1]))
    )


def oracle_gain(images: Tensor, twin: Tensor) -> Tensor:
    """`(rings,)` radial gain that best predicts `twin` from `images`, `Re<X conj(Y)> / <|X|^2>` in each ring.

    `images` and `twin` `(n, y, x)` carry the same signal and independent noise. The gain is fitted on the
    very images that it is then judged on, so no other radial filter comes closer to the twin in mean square.
    """
    shape = (images.shape[-2], images.shape[-1])
    spectrum, other = torch.fft.rfft2(images), torch.fft.rfft2(twin)
    cross = ring_mean((spectrum * other.conj()).real.mean(0), shape)
    power = ring_mean(spectrum.abs().square().mean(0), shape)
    return cross / power.clamp_min(torch.finfo(power.dtype).tiny)


def noise_free_gain(images: Tensor, twin: Tensor, least_ssnr: float) -> float:
    """How many times the score of the best radial filter grows if whole rings of `images` lose all noise.

    With the signal S, the noise N (`white_noise_power`) and the cross product C with the twin of each ring,
    the best radial filter of the noisy images scores as the root of the sum of C² / (S + N) over the rings,
    that of noise-free ones as the root of that of C² / S. Rings of S / N up to `least_ssnr`, not negative,
    stay noisy: the limit is that of a denoiser that restores perfectly what it can see. Where the halves
    differ by more than noise, as drifted frames do, it is below the root of the twin's share of signal.

    Raises
    ------
    InputError
        When the stacks differ in shape.
    """
    cross, power, _ = (product.mean(0)[1:] for product in ring_products(images, twin))
    noise = white_noise_power(images).mean()
    signal = power - noise
    # a ring of radius r has about 2 pi r coefficients
    information = cross.square() * torch.arange(1, len(power) + 1)
    best = information / torch.where(signal > least_ssnr * noise, signal, power)
    return float((best.sum() / (information / power).sum()).sqrt())


def score_of(images: Tensor, twin: Particles) -> float:
    return float(independent_correlation(images, twin.images).mean())


def topaz(python: str, images: Tensor, arch: str, threads: int, *, whole: bool = False) -> Tensor:
    """Denoise `(n, y, x)` images with a pretrained Topaz model in its own environment.

    `whole` takes each as one piece, which is quicker than the padded tiles and has no seams.
    """
    runner = Path(__file__).with_name("topaz_runner.py")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npy", Path(folder) / "out.npy"
        np.save(source, images.numpy())
        command = [python, str(runner), str(source), str(target), "--arch", arch, "--threads", str(threads)]
        command += ["--whole"] if whole else []
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return torch.from_numpy(np.load(target))


def report(
    raw: Particles,
    twin: Particles,
    denoised: dict[str, Tensor],
    settings: dict[str, Any],
    drift: dict[str, tuple[float, float]] | None,
    output: Path,
) -> None:
    """Score everything, write the three files and print the table."""
    bands: dict[str, float | None] = {"all": None, "fine": COARSEST_ANGSTROM}
    values = {
        band: {
            name: independent_correlation(
                images,
                twin.images,
                pixel_size_angstrom=raw.pixel_size_angstrom,
                coarsest_angstrom=coarsest,
            )
            for name, images in denoised.items()
        }
        for band, coarsest in bands.items()
    }
    rows: list[dict[str, Any]] = []
    for name, images in denoised.items():
        row: dict[str, Any] = {"name": name, **settings.get(name, {})}
        for band in bands:
            of_band = values[band]
            score = bootstrap_score(of_band[name], raw.micrographs)
            gain = bootstrap_score(of_band[name] - of_band[BEST_GAUSSIAN], raw.micrographs)
            row[band] = {
                "score": score.mean,
                "standard_error": score.standard_error,
                "gain": gain.mean,
                "gain_standard_error": gain.standard_error,
            }
        row["frc"] = pooled_fourier_ring_correlation(images, twin.images).tolist()
        rows.append(row)
    frequencies = ring_frequencies((raw.images.shape[-2], raw.images.shape[-1]), raw.pixel_size_angstrom)
    result = {
        "images": len(raw.images),
        "micrographs": None if raw.micrographs is None else len(set(raw.micrographs)),
        "pixel_size_angstrom": raw.pixel_size_angstrom,
        "fine_means_finer_than_angstrom": COARSEST_ANGSTROM,
        "drift_taken_back_px": drift,
        "limits": {
            str(ssnr): float(values["all"][ORACLE].mean()) * noise_free_gain(raw.images, twin.images, ssnr)
            for ssnr in LEAST_SSNR
        },
        "frequency_per_angstrom": frequencies.tolist(),
        "rows": rows,
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "scores.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    table = markdown(result)
    (output / "scores.md").write_text(table, encoding="utf-8")
    draw(result).savefig(output / "scores.png", dpi=150)
    print(table)


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"Mean correlation with the independent image, {result['images']} particles of "
        f"{result['micrographs'] or 'unknown'} micrographs, ± standard error over micrographs"
        + (", drift between the halves taken back." if result["drift_taken_back_px"] else "."),
        "",
        f"| | score | gain | score finer than {COARSEST_ANGSTROM:g} Å | gain |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        cells = [describe(row)]
        for band in ("all", "fine"):
            part = row[band]
            cells.append(f"{part['score']:.4f} ± {part['standard_error']:.4f}")
            cells.append(f"{part['gain']:+.4f} ± {part['gain_standard_error']:.4f}")
        lines.append("| " + " | ".join(cells) + " |")
    limits = ", ".join(f"{score:.4f} (above {ssnr})" for ssnr, score in result["limits"].items())
    lines += ["", f"The oracle without noise in rings of a high enough signal-to-noise ratio: {limits}."]
    lines += ["", f"gain: difference from the {BEST_GAUSSIAN}, image by image.", ""]
    return "\n".join(lines)


def describe(row: dict[str, Any]) -> str:
    units = {"sigma_angstrom": "sigma {:g} Å", "cut_off_angstrom": "{:g} Å", "width_px": "{:g} px"}
    units["strength"] = "{:g} times the noise"
    for key, text in units.items():
        if key in row:
            return f"{row['name']} ({text.format(row[key])})"
    return str(row["name"])


def draw(result: dict[str, Any]) -> Figure:
    """Bars of both scores, and the ring correlation with the twin of what is not a radial filter."""
    rows = result["rows"]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    bars, curves = figure.subplots(1, 2)
    place = np.arange(len(rows))
    for shift, band, label in (
        (-0.2, "all", "all frequencies"),
        (0.2, "fine", f"finer than {COARSEST_ANGSTROM:g} Å"),
    ):
        scores = [row[band]["score"] for row in rows]
        errors = [row[band]["standard_error"] for row in rows]
        bars.barh(place + shift, scores, 0.4, xerr=errors, label=label)
    bars.set_yticks(place, [row["name"] for row in rows])
    bars.invert_yaxis()
    bars.set_xlabel("correlation with the independent image")
    bars.legend(fontsize="small")
    for row in rows:
        # a radial filter scales whole rings, so its curve is that of the raw images
        if row["name"] == "raw" or row["name"].startswith(("Topaz", "cryohush")):
            curves.plot(result["frequency_per_angstrom"], row["frc"], label=row["name"])
    curves.set_xlim(0, 0.12)
    curves.set_xlabel("spatial frequency (1/Å)")
    curves.set_ylabel("Fourier ring correlation with it")
    curves.axhline(0, color="0.7", linewidth=0.8)
    curves.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()
