"""What the rest of a stack adds: gain over raw images in Fourier rings, of several ways.

    python stack_context.py real --raw particles_rest.star --twin particles_frame.star --output DIR
        [--models general FILE ...] [--micrographs FOLDER] [--topaz-python PYTHON]
    python stack_context.py cut --micrographs FOLDER --output DIR

`real`: two tables of the same boxes whose noise is independent. `--raw` is denoised by each way, and the
ratio of its correlation with the twin to that of the raw image, in bands of Fourier rings, is the gain: 1 for
a radial filter that is the same for all images. The last column is the same over 32 to 11 Å with every ring
brought to equal power. The twin judges and chooses nothing. Beside the models: each model without its
context, the linear estimates that are its context, and where like views take no part, what it would be with
them in full; with `--micrographs`, the same boxes cut out of whole micrographs that it has denoised, by
itself and with the Wiener filter of each one's spectrum, as `cryohush denoise` does. The verdict that each
job can give without a twin is measured, too.

`cut`: all whole boxes of picked micrographs whose frames were summed in two parts, as `*_rest.mrc` and
`*_frame.mrc` with `*_rest_manualpick.star` and micrographs_rest.star (protein dark).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import starfile
import torch
from torch import Tensor

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.context.like_views import LikeViews
from cryohush.core.context.prediction import fitted
from cryohush.core.context.stack_context import FITTED, StackContext, fit_context, to_working_grid
from cryohush.core.context.stack_map import unasked
from cryohush.core.imaging.ctf import CtfParameters, ctf_parameters_of
from cryohush.core.imaging.filters import background_power
from cryohush.core.imaging.noise import image_generator
from cryohush.core.imaging.normalise import default_radius_px, normalise
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.micrograph_denoiser import MicrographDenoiser
from cryohush.core.inference.plan import plan_stacks, read_images
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.io.particles import ParticleSet
from cryohush.core.jobs.self_measurement import measure_gain_of_micrographs, spectra_of_squares
from cryohush.core.metrics.gain import BandGain, RingGain, Spectra, recorrupted, spectra, verdict
from cryohush.core.models.weights import load_model
from cryohush.core.spread import evenly_spread

BATCH = 64
BOX_PX = 128


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the rest of a stack adds.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    commands = parser.add_subparsers(dest="command", required=True)
    real = commands.add_parser("real")
    real.add_argument("--raw", type=Path, required=True, help="particles to denoise (.star)")
    real.add_argument(
        "--twin", type=Path, required=True, help="the same boxes with independent noise (.mrcs)"
    )
    real.add_argument("--models", nargs="*", default=["general"])
    real.add_argument("--map", action="store_true", help="let a map of the particle take part")
    real.add_argument("--micrographs", type=Path, help="the folder that the boxes were cut out of")
    real.add_argument("--topaz-python", help="python of an environment with topaz-em 0.3.20")
    real.add_argument("--radius-angstrom", type=float, default=66.5, help="of the disc that is scored")
    cut = commands.add_parser("cut")
    cut.add_argument("--micrographs", type=Path, required=True)
    cut.add_argument(
        "--mask-angstrom", type=float, help="radius beyond which the boxes to denoise are set to 0"
    )
    for command in (real, cut):
        command.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    {"real": measure_real, "cut": cut_boxes}[arguments.command](arguments)


def read(path: Path) -> tuple[Tensor, float]:
    with StackReader(path) as reader:
        return torch.from_numpy(reader.read(range(reader.n_images))), float(reader.pixel_size_angstrom or 1)


def run(network: Any, images: Tensor, channels: Tensor | None) -> Tensor:
    """`(n, y, x)` images and their context through a network in bf16, as the command does on this machine."""
    parts = []
    with torch.inference_mode():
        for members in torch.arange(len(images)).split(BATCH):
            shown = images[members, None]
            if channels is not None:
                shown = torch.cat([shown, channels[members]], 1)
            shown = shown.bfloat16().contiguous(memory_format=torch.channels_last)
            parts.append(network(shown).float()[:, 0])
    return torch.cat(parts)


def channels_of(context: StackContext, images: Tensor, optics: CtfParameters | None) -> Tensor:
    return torch.cat(
        [
            context.channels(images[members], None if optics is None else optics[members])
            for members in torch.arange(len(images)).split(BATCH)
        ]
    )


def measure_real(arguments: argparse.Namespace) -> None:
    particles = ParticleSet.read(arguments.raw)
    raw, _ = read(particles.stacks[0])
    twin, _ = read(arguments.twin)
    pixel_size = float(particles.optics[int(particles.optics_group[0])].pixel_size_angstrom or 1)
    optics, radius = ctf_parameters_of(particles), default_radius_px((raw.shape[-2], raw.shape[-1]))
    raw = normalise(raw, radius)[0]
    context = fit_context(
        raw,
        optics,
        pixel_size_angstrom=pixel_size,
        radius_px=radius,
        with_map=unasked if arguments.map else None,
    )
    channels = channels_of(context, raw, optics)
    covariance = channels_of(replace(context, views=None), raw, optics)[:, 0]
    denoised = {"covariance Wiener filter through CTF": covariance, "CTF Wiener filter": channels[:, 1]}
    verdicts, of_micrographs = {}, ""
    if arguments.topaz_python:
        denoised["Topaz unet"] = topaz(arguments.topaz_python, raw, arguments.threads)
    for name in arguments.models:
        network = load_model(name).module.bfloat16().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        label = Path(name).stem
        if not getattr(network, "context_channels", 0):
            denoised[label] = run(network, raw, None)
            continue
        denoised[f"{label}, no context"] = run(network, raw, None)
        denoised[label] = run(network, raw, channels)
        if arguments.micrographs:
            denoiser = MicrographDenoiser(Denoiser(network, "cpu", "bf16"))
            for way, size in (("network alone", None), ("with their spectra", pixel_size)):
                of_way = partial(denoiser.denoise, pixel_size_angstrom=size)
                boxes = [
                    box
                    for _, of_one in session_boxes(arguments.micrographs, of_way)
                    for box in of_one["rest"]
                ]
                denoised[f"{label}, whole micrographs, {way}"] = torch.from_numpy(np.stack(boxes))
        if context.views is None:
            forced = with_all_views(context, raw, optics)
            denoised[f"{label}, like views in full"] = run(network, raw, channels_of(forced, raw, optics))
        verdicts[label] = without_twin(network, raw, optics, pixel_size, radius, arguments.radius_angstrom)
        if arguments.micrographs:
            of_micrographs += squares_of_micrographs(arguments.micrographs, name, label)
    transform = partial(
        spectra, radius_px=arguments.radius_angstrom / pixel_size, pixel_size_angstrom=pixel_size
    )
    judge = RingGain(transform(raw), transform(twin))
    shown = {name: transform(images) for name, images in denoised.items()}
    rows = {name: [*judge.bands(ours), judge.whole(ours)] for name, ours in shown.items()}
    table = markdown(rows, len(raw))
    for label, gains in verdicts.items():
        table += f"\n{label}, measured without the twin: {verdict(gains).text}\n\n"
        table += markdown({f"{label}, recorrupted": gains}, len(raw))
        table += f"\nWith the twin: {verdict(rows[label][:-1]).text}\n"
    table += of_micrographs
    print(table)
    (arguments.output / "gain.md").write_text(table, encoding="utf-8")
    result = {name: [vars(gain) for gain in gains] for name, gains in rows.items()}
    (arguments.output / "gain.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def squares_of_micrographs(folder: Path, name: str, label: str) -> str:
    """The gain that a job on micrographs states, and that with the other halves as judges, of all squares."""
    rest, frames = (read_images(folder / f"micrographs_{half}.star") for half in ("rest", "frame"))
    model, stacks = load_model(name), plan_stacks(rest)
    denoiser = MicrographDenoiser(Denoiser(model.module, "cpu", "bf16"))
    stated = measure_gain_of_micrographs(stacks, model, DenoiseOptions(), "bf16")
    pixel_size = float(stacks[0].pixel_size_angstrom or 1)
    parts = []
    for path, other in zip(rest.stacks, frames.stacks, strict=True):
        raw, twin = read(path)[0][0], read(other)[0][0]
        denoised = -torch.from_numpy(denoiser.denoise(-raw.numpy(), pixel_size_angstrom=pixel_size)[0])
        parts.append([spectra_of_squares(image, pixel_size) for image in (raw, twin, denoised)])
    raw_of_all, twin_of_all, ours = (Spectra.joined(some) for some in zip(*parts, strict=True))
    judged = RingGain(raw_of_all, twin_of_all).bands(ours)
    rows = {
        f"{label}, micrographs, stated": [BandGain(**band) for band in stated["bands"]],
        f"{label}, micrographs, with the twin": judged,
    }
    n = len(raw_of_all.values)
    return "".join("\n" + markdown({way: gains}, n, "squares") for way, gains in rows.items())


def with_all_views(context: StackContext, raw: Tensor, optics: CtfParameters) -> StackContext:
    """The context with like views in their full part, however little they were measured to add."""
    small = to_working_grid(raw)
    sample, group = context.sample(small, optics)
    rows = torch.from_numpy(evenly_spread(len(raw), FITTED))
    views = fitted(LikeViews(**context.of_prediction, sample=sample, group=group), sample[rows], group[rows])
    return replace(context, views=replace(views, share=1.0))


def without_twin(
    network: Any,
    raw: Tensor,
    optics: CtfParameters,
    pixel_size: float,
    radius: float,
    radius_angstrom: float,
) -> list[BandGain]:
    """The gain on recorrupted pairs; the context is found anew on the first of them."""
    power = background_power(raw, radius)
    nyquist = raw.shape[-1] // 2
    floor = power[int(0.35 * nyquist) : int(0.475 * nyquist)].median().expand(len(power))
    first, second = recorrupted(raw, floor, image_generator(0, 0, "recorrupted"))
    scale = normalise(first, radius)
    context = fit_context(scale[0], optics, pixel_size_angstrom=pixel_size, radius_px=radius)
    denoised = run(network, scale[0], channels_of(context, scale[0], optics))
    transform = partial(spectra, radius_px=radius_angstrom / pixel_size, pixel_size_angstrom=pixel_size)
    judge, ours = RingGain(transform(first), transform(second)), transform(denoised)
    return [*judge.bands(ours), judge.whole(ours)]


def markdown(rows: dict[str, list[BandGain]], n: int, what: str = "particles") -> str:
    first = next(iter(rows.values()))
    heads = [f"{gain.coarsest_angstrom:g}-{gain.finest_angstrom:g} Å" for gain in first]
    lines = [f"Gain over the raw images, {n} {what}, ± standard error.", ""]
    lines += ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    lines.append("| raw correlation | " + " | ".join(f"{gain.raw:.4f}" for gain in first) + " |")
    for name, gains in rows.items():
        cells = [f"{gain.gain:.3f} ± {gain.standard_error:.3f}" for gain in gains]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def topaz(python: str, images: Tensor, threads: int) -> Tensor:
    """Topaz was trained on micrographs, in which protein is dark."""
    runner = Path(__file__).with_name("topaz_runner.py")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npy", Path(folder) / "out.npy"
        np.save(source, -images.numpy())
        command = [python, str(runner), str(source), str(target), "--arch", "unet", "--threads", str(threads)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return -torch.from_numpy(np.load(target))


def session_boxes(
    folder: Path, denoised: Callable[[Any], Any] | None = None
) -> Iterator[tuple[Any, dict[str, list[np.ndarray[Any, Any]]]]]:
    """Rows of micrographs and the whole boxes of their halves, protein white; of one half, denoised."""
    table = starfile.read(folder / "micrographs_rest.star")
    for _, micrograph in table["micrographs"].iterrows():
        stem = Path(micrograph.rlnMicrographName).name.replace("_rest.mrc", "")
        picks = starfile.read(folder / "Picks" / f"{stem}_rest_manualpick.star")
        boxes = {}
        for half in ("rest", "frame") if denoised is None else ("rest",):
            with StackReader(folder / "Micrographs" / f"{stem}_{half}.mrc") as reader:
                image = -reader.read([0])[0]
            if denoised is not None:
                image = denoised(image)[0]
            corners = [
                (round(y) - BOX_PX // 2, round(x) - BOX_PX // 2)
                for x, y in zip(picks.rlnCoordinateX, picks.rlnCoordinateY, strict=True)
            ]
            boxes[half] = [
                image[top : top + BOX_PX, left : left + BOX_PX]
                for top, left in corners
                if top >= 0
                and left >= 0
                and top + BOX_PX <= image.shape[0]
                and left + BOX_PX <= image.shape[1]
            ]
        yield micrograph, boxes


def cut_boxes(arguments: argparse.Namespace) -> None:
    """All whole boxes of both halves: two stacks and a table."""
    table = starfile.read(arguments.micrographs / "micrographs_rest.star")
    halves: dict[str, list[np.ndarray[Any, Any]]] = {"rest": [], "frame": []}
    rows = []
    for micrograph, boxes in session_boxes(arguments.micrographs):
        defocus = (micrograph.rlnDefocusU, micrograph.rlnDefocusV, micrograph.rlnDefocusAngle)
        for box in range(len(boxes["rest"])):
            name = f"{len(halves['rest']) + box + 1:06d}@particles_rest.mrcs"
            rows.append((name, micrograph.rlnMicrographName, *defocus, 1))
        for half, of_half in boxes.items():
            halves[half] += of_half
    pixel_size = float(table["optics"]["rlnMicrographPixelSize"].iloc[0])
    for half, boxes in halves.items():
        images_of_half = normalise(torch.from_numpy(np.stack(boxes)), default_radius_px((BOX_PX, BOX_PX)))[0]
        if half == "rest" and arguments.mask_angstrom is not None:
            axis = torch.arange(BOX_PX) - BOX_PX // 2
            radius = arguments.mask_angstrom / pixel_size
            images_of_half[:, axis[:, None].square() + axis.square() > radius**2] = 0.0
        path = arguments.output / f"particles_{half}.mrcs"
        shape = (len(boxes), BOX_PX, BOX_PX)
        with StackWriter(path, shape, pixel_size_angstrom=pixel_size, label="cut for a benchmark") as writer:
            writer.write(images_of_half.numpy())
    import pandas

    optics = table["optics"].assign(
        rlnImagePixelSize=pixel_size, rlnImageSize=BOX_PX, rlnImageDimensionality=2
    )
    labels = ("ImageName", "MicrographName", "DefocusU", "DefocusV", "DefocusAngle", "OpticsGroup")
    particles = pandas.DataFrame(rows, columns=[f"rln{label}" for label in labels])
    starfile.write(
        {"optics": optics, "particles": particles}, arguments.output / "particles_rest.star", overwrite=True
    )
    print(f"{len(rows)} boxes")


if __name__ == "__main__":
    main()
