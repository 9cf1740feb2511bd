"""The published methods on real particles: each is trained, applied, and judged by independent frames.

    python real_particles.py --raw rest.star --twin frame.star --structures DIR --ctf-tables TABLE.npy ...
        --output DIR [--size tiny|small|full] [--rows TEXT ...] [--steps N] [--own-steps N]
        [--topaz-python PYTHON] [--align-twin]

Rows of the first kind have the network and the losses of a preset, and see what the shipped `general` was
trained on: simulated particles of the structures in DIR, with optics, neighbours and uneven ice, and no real
image at all. Rows of the second kind, "own session", see real particles alone, of other exposures than those
that they denoise: the exposures are dealt into as many parts as `--parts` says, and each part is denoised by
a model that was trained on the others. `noise2noise` learns from both tables, the twin's drift taken back
and its signal brought to the scale of the other's; `recorrupted` from `--raw` alone.

`full` trains the presets as they are, for a GPU; `tiny` the narrow networks of `papers.py`. A row that is
done is not trained again, and one that was interrupted goes on. What the scores mean, and how the filters
beside them were tuned, stands in `independent_pairs.py`, which writes the same scores.md, .json and .png.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from independent_pairs import add_filters, read_pair, report, topaz
from pairs import Particles, denoise, file_name, write_stack
from paper_rows import copy_projections, narrow, set_length, through
from torch import Tensor

from cryohush.core.config.load import find_preset, read_yaml, validate
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import InputError
from cryohush.core.imaging.rings import ring_mean
from cryohush.core.inference.devices import keep_freed_memory
from cryohush.core.job_context import JobContext
from cryohush.core.metrics.independent import white_noise_power
from cryohush.core.models.weights import load_model
from cryohush.core.training.run import train

#: rows that learn from simulated particles: preset and what is changed in it
SIMULATED: dict[str, tuple[str, tuple[str, ...]]] = {
    "l1": ("denoise_l1", ()),
    "l2": ("denoise_l2", ()),
    "(0, 0)-GAN + l1": ("robust_gan", ("adversarial.alpha=0", "adversarial.beta=0")),
    "(1, 1)-GAN + l1": ("robust_gan", ("adversarial.alpha=1", "adversarial.beta=1")),
    "(.5, .5)-GAN + l1": ("robust_gan", ()),
    "WGANgp + l1": ("wgan_gp_l1", ()),
    "progressive GAN + l1": ("pggan", ()),
    "cGAN + perceptual": ("cgan_perceptual", ()),
    "unsupervised GAN": ("cgan_unsupervised", ()),
    "DnCNN": ("dncnn", ()),
    "WGAN + grey values": ("wgan_gray", ()),
    "sr3 + U-Net": ("sr3", ()),
}
#: rows that learn from the session's other exposures
OWN: dict[str, tuple[str, tuple[str, ...]]] = {
    "noise2noise, own session": ("noise2noise", ()),
    "noise2noise from general, own session": ("noise2noise", ("initial_weights=general",)),
    "recorrupted from general, own session": ("recorrupted", ()),
}


@dataclass(frozen=True)
class Size:
    """How much is trained: None keeps what the preset says.

    Attributes
    ----------
    narrow
        Whether the networks have a half of the presets' width or less.
    steps, own_steps
        Batches of a row of the first and of the second kind.
    projections
        Clean images of each structure.
    """

    narrow: bool
    steps: int | None
    own_steps: int | None
    batch_size: int | None
    projections: int


SIZES = {
    "tiny": Size(True, 1200, 200, 8, 48),
    "small": Size(False, 5000, 1000, 16, 256),
    "full": Size(False, None, None, None, 768),
}


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    raw, twin, drift = read_pair(arguments.raw, arguments.twin, align=arguments.align_twin)
    if raw.micrographs is None:
        raise InputError("dealing the exposures into parts needs rlnMicrographName.", path=arguments.raw)
    folder = arguments.output / arguments.size
    denoised: dict[str, Tensor] = {}
    settings: dict[str, Any] = {}
    add_filters(raw, twin, denoised, settings)
    if arguments.topaz_python:
        denoised["Topaz unet"] = topaz(arguments.topaz_python, raw.images, "unet", arguments.threads)
    general = load_model("general")
    denoised["cryohush general"] = denoise(general, raw.images, "cpu", "auto")
    settings["cryohush general"] = {"sha256": general.sha256}
    for name in SIMULATED | OWN:
        if arguments.rows is None or any(text in name for text in arguments.rows):
            print(name, flush=True)
            rows = simulated_row if name in SIMULATED else own_row
            denoised[name], settings[name] = rows(name, raw, arguments, folder / file_name(name))
    report(raw, twin, denoised, settings, drift, folder)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The published methods on real particles.")
    parser.add_argument("--raw", type=Path, required=True, help="particles to denoise (.star)")
    parser.add_argument("--twin", type=Path, required=True, help="the same boxes with independent noise")
    parser.add_argument("--structures", type=Path, required=True, help="folder of PDB or mmCIF files")
    parser.add_argument("--ctf-tables", type=Path, nargs="+", required=True, metavar="TABLE.npy")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rows", nargs="+", metavar="TEXT", help="rows whose names contain one of these")
    parser.add_argument("--steps", type=int, help="batches for rows that learn from simulated particles")
    parser.add_argument("--own-steps", type=int, help="batches for rows that learn from the session")
    parser.add_argument("--parts", type=int, default=4, help="parts that the exposures are dealt into")
    parser.add_argument("--topaz-python", help="python of an environment with topaz-em 0.3.20")
    parser.add_argument("--align-twin", action="store_true", help="judge with the twin's drift taken back")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def simulated_row(
    name: str, raw: Particles, arguments: argparse.Namespace, folder: Path
) -> tuple[Tensor, dict[str, Any]]:
    """Train on what `general` was trained on, unless it is done, and denoise."""
    preset, overrides = SIMULATED[name]
    size = SIZES[arguments.size]
    values = read_yaml(find_preset(preset), overrides)
    of_general = read_yaml(find_preset("general"), ())
    values["data"] = of_general["data"] | {
        "structures": arguments.structures,
        "ctf_tables": arguments.ctf_tables,
        "volumes_per_structure": 1,
        "projections_per_volume": size.projections,
        "other_boxes_px": [],
        "other_box_probability": 0.0,
    }
    # clean images would rule the losses, for the SNR of these data spans a factor of 50
    values["loss"]["snr_weighted"] = True
    if size.narrow:
        narrow(values)
    set_length(values, arguments.steps or size.steps, size.batch_size)
    values["seed"] = arguments.seed
    weights = folder / "weights.safetensors"
    if not weights.exists():
        copy_projections(folder.parent / "projections", folder)
        config = validate(values, TrainingConfig, preset)
        train(
            config, folder, resume=True, context=JobContext(log=lambda line: print(f"  {line}", flush=True))
        )
        copy_projections(folder, folder.parent / "projections")
    return through(load_model(weights), raw.images), settings_of([folder])


def own_row(
    name: str, raw: Particles, arguments: argparse.Namespace, folder: Path
) -> tuple[Tensor, dict[str, Any]]:
    """Denoise each part of the exposures with a model of the others."""
    names = list(dict.fromkeys(raw.micrographs or []))
    part_of = {micrograph: number % arguments.parts for number, micrograph in enumerate(names)}
    parts = torch.tensor([part_of[micrograph] for micrograph in raw.micrographs or []])
    denoised = torch.empty_like(raw.images)
    folders = [folder / f"part-{part}" for part in range(arguments.parts)]
    for part, own in enumerate(folders):
        weights = own / "weights.safetensors"
        if not weights.exists():
            print(f"  part {part + 1} of {arguments.parts}", flush=True)
            config = own_config(name, (parts != part).nonzero().squeeze(1), raw, arguments, own)
            train(
                config, own, resume=True, context=JobContext(log=lambda line: print(f"  {line}", flush=True))
            )
        denoised[parts == part] = through(load_model(weights), raw.images[parts == part])
    return denoised, settings_of(folders)


def own_config(
    name: str, rows: Tensor, raw: Particles, arguments: argparse.Namespace, folder: Path
) -> TrainingConfig:
    """Write the particles that are trained on; the preset, to train on them."""
    preset, overrides = OWN[name]
    size = SIZES[arguments.size]
    values = read_yaml(find_preset(preset), overrides)
    if "initial_weights" in values:
        values.pop("network", None)  # that of the weights
    elif size.narrow:
        narrow(values)
    pairs = {**values["pairs"], "noisy": folder / "noisy.mrcs", "validation_share": 0.1}
    write_stack(pairs["noisy"], raw.images[rows], raw.pixel_size_angstrom)
    if preset == "noise2noise":
        pairs["target"] = folder / "target.mrcs"
        twin = aligned_twin(arguments.raw, arguments.twin)[rows]
        twin = twin / signal_ratio(raw.images[rows], twin)
        write_stack(pairs["target"], twin, raw.pixel_size_angstrom)
        # on the grey scale of the raw images now, however noisy
        pairs["target_is_clean"] = True
    values["pairs"] = pairs
    set_length(values, arguments.own_steps or size.own_steps, size.batch_size)
    values["seed"] = arguments.seed
    if "initial_weights" in values:
        values["optimisation"] |= {"learning_rate": 1e-4, "ema_decay": 0.99}
    return validate(values, TrainingConfig, preset)


@lru_cache(maxsize=1)
def aligned_twin(raw: Path, twin: Path) -> Tensor:
    """The twin with its drift taken back, `(n, y, x)`: one for all parts of the exposures."""
    return read_pair(raw, twin, align=True)[1].images


def signal_ratio(raw: Tensor, twin: Tensor) -> float:
    """How much weaker the signal is in the twin, both being scaled to their noise."""
    transform, other = torch.fft.rfft2(raw, norm="ortho"), torch.fft.rfft2(twin, norm="ortho")
    shape = (raw.shape[-2], raw.shape[-1])
    shared = ring_mean((transform.conj() * other).real.mean(0), shape)
    signal = ring_mean(transform.abs().square().mean(0), shape) - white_noise_power(raw).mean()
    # where the raw images are more signal than noise
    rings = signal[1:] > white_noise_power(raw).mean()
    return float(shared[1:][rings].sum() / signal[1:][rings].sum())


def settings_of(folders: list[Path]) -> dict[str, Any]:
    """What the training of a row, one model or several, took."""
    logs = [
        json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]) for folder in folders
    ]
    return {
        "steps": logs[0]["step"],
        "training_seconds": round(sum(log["seconds"] for log in logs)),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    main()
