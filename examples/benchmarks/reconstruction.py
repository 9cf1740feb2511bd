"""What denoised images are good for in 3D, and why their half-set FSC is no evidence.

    python reconstruction.py --structure FILE.pdb.gz --ctf-table TABLE.npy --output DIR [--relion]
                             [--classes FILE.pdb.gz FILE.pdb.gz]

Simulates particles of a structure (CTF of real micrographs, coloured noise, random poses and shifts),
denoises them, and reconstructs two half sets from each of these:

- raw or denoised images in their true poses, denoised by the model, by a covariance Wiener filter fitted to
  all images, and by one fitted to either half alone;
- raw images in poses found on the raw images, and in poses found on the denoised ones (the honest use);
- denoised images in poses found on them (the dishonest use);
- noise without any particle, in random poses and in poses found as above.

Poses are found by projection matching to one reference, the true map cut off at the Nyquist frequency of
`--search-box`. A map whose FSC with the truth is C deserves a half-set FSC of `C² / (2 - C²)` [1]_, which is
0.143 where C is 0.5. `overstated` is by how much the half-set FSC exceeds that, on average over the shells.
For noise there is no truth: in the figure the map that the noise was matched to takes its place, and whatever
the two share was put in by the matching.

Choose a structure that the model was not trained on, and one without symmetry, because the angular error
takes none into account. With --relion, relion_reconstruct makes every map, too. With --classes, images of two
structures are told apart by the reference that matches best, on raw and on denoised images.

References
----------
.. [1] Rosenthal & Henderson (2003) J. Mol. Biol. 333, 721-745, doi:10.1016/j.jmb.2003.07.013: the FSC with
   the truth that follows from that of two halves, solved for the latter.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import torch
from direct_inversion import Reconstruction
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from projection_matching import Optics, Poses, Reference, phases
from torch import Tensor

from cryohush.core.api import denoise
from cryohush.core.classical.covariance import estimate_covariance
from cryohush.core.classical.fourier_bessel import FourierBesselBasis
from cryohush.core.imaging.ctf import read_ctf_table
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.rings import frequency_grid, hermitian_weight
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.metrics.fourier import fourier_shell_correlation, resolution_angstrom, ring_frequencies
from cryohush.core.models.weights import LoadedModel, load_model

LARGEST_SHIFT_PX = 2.0
FIRST_SHELL = 3
"""Shells before it have few coefficients and periods of the particle's size: no resolution hangs on them."""


@dataclass(frozen=True)
class Condition:
    """Images, and the poses that they are reconstructed in."""

    name: str
    images: Tensor
    poses: Poses
    holds_particles: bool = True


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.relion and shutil.which("relion_reconstruct") is None:
        raise SystemExit("--relion: relion_reconstruct is not on the PATH")
    begin = time.perf_counter()

    def log(done: str) -> None:
        print(f"{time.perf_counter() - begin:.0f} s: {done}", flush=True)

    model = load_model(arguments.model)
    truth, pixel_size, name = true_volume(arguments.structure, arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    optics = draw_optics(arguments.particles, pixel_size, arguments, generator)
    true, clean = clean_images(truth, optics, generator)
    raw = arguments.snr**0.5 * clean + coloured_noise(len(clean), arguments.box, generator)
    noise = coloured_noise(len(clean), arguments.box, generator)
    denoised, denoised_noise = (run_model(model, images, optics, arguments) for images in (raw, noise))
    log("simulated and denoised")
    reference = Reference(truth, arguments.search_box, arguments.order, LARGEST_SHIFT_PX)
    of_raw, of_denoised, of_noise, of_denoised_noise = (
        find_poses(images, optics, reference) for images in (raw, denoised, noise, denoised_noise)
    )
    log("poses found")
    conditions = [
        Condition("raw, true poses", raw, true),
        Condition("denoised, true poses", denoised, true),
        Condition("one Wiener filter, true poses", wiener_filtered(raw, [slice(None)]), true),
        Condition(
            "a Wiener filter per half, true poses",
            wiener_filtered(raw, [slice(0, None, 2), slice(1, None, 2)]),
            true,
        ),
        Condition("raw, poses of raw", raw, of_raw),
        Condition("raw, poses of denoised", raw, of_denoised),
        Condition("denoised, poses of denoised", denoised, of_denoised),
        Condition("noise, random poses", noise, true, False),
        Condition("denoised noise, random poses", denoised_noise, true, False),
        Condition("noise, poses of noise", noise, of_noise, False),
        Condition("noise, poses of denoised noise", noise, of_denoised_noise, False),
        Condition("denoised noise, poses of it", denoised_noise, of_denoised_noise, False),
    ]
    mask = soft_sphere(arguments.box, 1.1 * read_structure(arguments.structure).radius_angstrom / pixel_size)
    rows, maps = [], {}
    for condition in conditions:
        halves = half_maps(condition, optics)
        row = figures(halves, truth, mask, pixel_size)
        maps[condition.name] = halves[0] + halves[1]
        if arguments.relion:
            relion = [relion_map(condition, optics, half) for half in (0, 1)]
            row["relion"] = figures(relion, truth, mask, pixel_size)
            row["fsc_between_programs"] = fourier_shell_correlation(halves[0], relion[0]).tolist()
        rows.append({"condition": condition.name, "holds_particles": condition.holds_particles, **row})
        log(f"{condition.name}: {row['half_set_resolution_angstrom']:.1f} Å by half sets")
    result: dict[str, Any] = {
        "structure": name,
        "model": {"name": arguments.model, "sha256": model.sha256},
        "particles": arguments.particles,
        "snr": arguments.snr,
        "box_px": arguments.box,
        "pixel_size_angstrom": pixel_size,
        "reference_resolution_angstrom": 2 * pixel_size * arguments.box / arguments.search_box,
        "frequencies_per_angstrom": ring_frequencies((arguments.box, arguments.box), pixel_size).tolist(),
        "poses": {"raw": pose_errors(of_raw, true), "denoised": pose_errors(of_denoised, true)},
        "rows": rows,
    }
    if arguments.classes:
        result["classes"] = tell_classes_apart(model, arguments)
    result["seconds"] = time.perf_counter() - begin
    stacks = {"clean": clean, "raw": raw, "denoised": denoised, "noise": noise}
    stacks["denoised noise"] = denoised_noise
    write(result, maps, truth, stacks, arguments.output)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Reconstruct from raw and from denoised images.")
    parser.add_argument("--structure", type=Path, required=True, help="PDB or mmCIF file, never trained on")
    parser.add_argument("--ctf-table", type=Path, required=True, help=".npy table of real CTF parameters")
    parser.add_argument("--classes", type=Path, nargs=2, help="two structures in one frame, to be told apart")
    parser.add_argument(
        "--class-particles", type=int, default=500, help="of both structures together (default: 500)"
    )
    parser.add_argument("--model", default="general", help="name or .safetensors file (default: general)")
    parser.add_argument("--particles", type=int, default=1000, help="in both half sets (default: 1000)")
    parser.add_argument("--snr", type=float, default=0.03, help="variance over the box (default: 0.03)")
    parser.add_argument("--box", type=int, default=64, help="side of the images in pixels (default: 64)")
    parser.add_argument("--diameter-share", type=float, default=0.65, help="of the box (default: 0.65)")
    parser.add_argument(
        "--search-box",
        type=int,
        default=32,
        help="box in pixels that images and reference are reduced to for matching (default: 32)",
    )
    parser.add_argument(
        "--order", type=int, default=3, help="HEALPix order of the first search; two finer ones follow"
    )
    parser.add_argument("--relion", action="store_true", help="reconstruct with relion_reconstruct, too")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="of the model")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, required=True, help="folder")
    return parser.parse_args()


def true_volume(path: Path, arguments: argparse.Namespace) -> tuple[Tensor, float, str]:
    structure = read_structure(path)
    pixel_size = 2 * structure.radius_angstrom / (arguments.diameter_share * arguments.box)
    return potential_map(structure, arguments.box, pixel_size, 8 * pixel_size**2), pixel_size, structure.name


def draw_optics(
    n: int, pixel_size: float, arguments: argparse.Namespace, generator: torch.Generator
) -> Optics:
    table = read_ctf_table(arguments.ctf_table)
    return Optics(table[torch.randint(len(table), (n,), generator=generator)], pixel_size)


def clean_images(volume: Tensor, optics: Optics, generator: torch.Generator) -> tuple[Poses, Tensor]:
    """Random poses, and images with CTF of mean variance 1; what the CTF carries out of the box is gone."""
    n, box = len(optics), volume.shape[0]
    rotations = random_rotations(n, generator)
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    radius = LARGEST_SHIFT_PX * torch.rand(n, generator=generator).sqrt()
    shifts = radius[:, None] * torch.stack([angle.sin(), angle.cos()], 1)
    projector, parts = Projector(volume), []
    for index in torch.split(torch.arange(n), 100):
        wide = torch.nn.functional.pad(projector(rotations[index]), [box // 2] * 4)
        carried = optics[index].transfer(2 * box) * phases(shifts[index], 2 * box)
        inside = slice(box // 2, box // 2 + box)
        parts.append(torch.fft.irfft2(torch.fft.rfft2(wide) * carried)[:, inside, inside])
    images = torch.cat(parts)
    return Poses(rotations, shifts, torch.ones(n)), images / images.var((1, 2)).mean().sqrt()


def noise_power(box_px: int, nyquist: float = 0.5) -> Tensor:
    """Power of the noise on the grid of `rfft2` up to `nyquist` (cycles per pixel), fourfold towards zero."""
    frequency = frequency_grid((box_px, box_px)) * (nyquist / 0.5)
    return 1 + 3 * torch.exp(-((frequency / 0.1) ** 2))


def coloured_noise(n: int, box_px: int, generator: torch.Generator) -> Tensor:
    """`(n, box, box)` of variance 1."""
    white = torch.randn(n, box_px, box_px, generator=generator)
    noise = torch.fft.irfft2(torch.fft.rfft2(white) * noise_power(box_px).sqrt(), s=(box_px, box_px))
    return noise / hermitian_mean(noise_power(box_px)).sqrt()


def run_model(model: LoadedModel, images: Tensor, optics: Optics, arguments: argparse.Namespace) -> Tensor:
    """What `cryohush denoise` makes of images by default: with the rest of the stack, and its CTF."""
    denoised = denoise(
        images.numpy(),
        pixel_size=optics.pixel_size_angstrom,
        model=model,
        ctf=optics.parameters,
        device=arguments.device,
        precision=arguments.precision,
    )
    return torch.from_numpy(denoised)


def find_poses(images: Tensor, optics: Optics, reference: Reference) -> Poses:
    """Raw and denoised images are compared alike, in units of the raw images' noise."""
    return reference.poses(images, optics, noise_power(reference.box_px, 0.5 * reference.reduction))


def wiener_filtered(images: Tensor, fitted_to: Sequence[slice]) -> Tensor:
    """Images denoised by a covariance Wiener filter, a linear one, fitted to each part of them by itself."""
    box = images.shape[-1]
    power = noise_power(box).sqrt()
    white = torch.fft.irfft2(torch.fft.rfft2(images) / power, s=(box, box))
    # the noise of all images has variance 1
    variance = float(1 / hermitian_mean(noise_power(box)))
    filtered, basis = torch.empty_like(images), FourierBesselBasis(box)
    for part in fitted_to:
        filtered[part] = estimate_covariance(white[part], variance, basis).denoise(white[part], variance)
    return torch.fft.irfft2(torch.fft.rfft2(filtered) * power, s=(box, box))


def hermitian_mean(values: Tensor) -> Tensor:
    """Mean over the full transform of real values on the grid of `rfft2`."""
    weight = hermitian_weight((values.shape[0], values.shape[0])).expand(values.shape)
    return (values * weight).sum() / weight.sum()


def pose_errors(found: Poses, true: Poses) -> dict[str, float]:
    cosine = ((found.rotations * true.rotations).sum((1, 2)) - 1) / 2
    degrees = torch.rad2deg(cosine.clamp(-1, 1).acos())
    return {
        "median_degrees": float(degrees.median()),
        "share_below_10_degrees": float((degrees < 10).float().mean()),
        "median_shift_px": float((found.shifts_px - true.shifts_px).norm(dim=1).median()),
    }


def half_maps(condition: Condition, optics: Optics) -> list[Tensor]:
    """The maps of the images of even and of odd number."""
    maps = []
    for half in (0, 1):
        reconstruction = Reconstruction(condition.images.shape[-1])
        for index in torch.split(torch.arange(half, len(condition.images), 2), 200):
            reconstruction.add(
                condition.images[index],
                condition.poses.rotations[index],
                transfer=optics[index].transfer(reconstruction.padded_px),
                shifts_px=condition.poses.shifts_px[index],
            )
        maps.append(reconstruction.volume())
    return maps


def soft_sphere(box_px: int, radius_px: float, edge_px: float = 4.0) -> Tensor:
    axis = (torch.arange(box_px) - box_px // 2).square()
    beyond = (axis[:, None, None] + axis[:, None] + axis).sqrt() - radius_px
    return 0.5 + 0.5 * torch.cos(torch.pi * (beyond / edge_px).clamp(0, 1))


def figures(halves: Sequence[Tensor], truth: Tensor, mask: Tensor, pixel_size: float) -> dict[str, Any]:
    """FSC of the halves, and of their sum with the truth, within the mask."""
    half_set = fourier_shell_correlation(mask * halves[0], mask * halves[1])
    with_truth = fourier_shell_correlation(mask * (halves[0] + halves[1]), mask * truth)
    deserved = with_truth * with_truth.abs() / (2 - with_truth.square())
    return {
        "half_set_resolution_angstrom": resolution(half_set, pixel_size, 0.143),
        "truth_resolution_angstrom": resolution(with_truth, pixel_size, 0.5),
        "overstated": float((half_set - deserved)[FIRST_SHELL:].mean()),
        "half_set_fsc": half_set.tolist(),
        "deserved_fsc": deserved.tolist(),
        "truth_fsc": with_truth.tolist(),
    }


def resolution(curve: Tensor, pixel_size: float, threshold: float) -> float:
    counted = torch.cat([torch.ones(FIRST_SHELL), curve[FIRST_SHELL:]])
    box = 2 * (len(curve) - 1)
    return float(resolution_angstrom(counted, (box, box, box), pixel_size, threshold))


def relion_map(condition: Condition, optics: Optics, half: int) -> Tensor:
    """The map that relion_reconstruct makes of the images of even (0) or odd (1) number."""
    index = torch.arange(half, len(condition.images), 2)
    parameters, pixel_size = optics.parameters[index], optics.pixel_size_angstrom
    columns = {
        **dict(
            zip(("AngleRot", "AngleTilt", "AnglePsi"), euler(condition.poses.rotations[index]), strict=True)
        ),
        "OriginYAngst": -pixel_size * condition.poses.shifts_px[index, 0],
        "OriginXAngst": -pixel_size * condition.poses.shifts_px[index, 1],
        "DefocusU": parameters.defocus_u_angstrom,
        "DefocusV": parameters.defocus_v_angstrom,
        "DefocusAngle": parameters.angle_degrees,
    }
    table = torch.stack(list(columns.values()), 1).tolist()
    labels = ["ImageName", "OpticsGroup", *columns]
    constants = [parameters.voltage_kv, parameters.cs_mm, parameters.amplitude_contrast]
    shared = " ".join(f"{float(values[0]):g}" for values in constants)
    text = (
        "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnOpticsGroupName #2\n_rlnVoltage #3\n"
        "_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n_rlnImagePixelSize #6\n_rlnImageSize #7\n"
        f"_rlnImageDimensionality #8\n1 one {shared} {pixel_size:.6f} {condition.images.shape[-1]} 2\n\n"
        "data_particles\n\nloop_\n"
        + "".join(f"_rln{label} #{number}\n" for number, label in enumerate(labels, 1))
        + "".join(
            f"{number}@stack.mrcs 1 " + " ".join(f"{value:.4f}" for value in row) + "\n"
            for number, row in enumerate(table, 1)
        )
        + "\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        with mrcfile.new(Path(folder) / "stack.mrcs") as mrc:
            mrc.set_data(condition.images[index].numpy())
            mrc.set_image_stack()
            mrc.voxel_size = pixel_size
        (Path(folder) / "particles.star").write_text(text, encoding="utf-8")
        command = ["relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return torch.from_numpy(mrcfile.read(Path(folder) / "map.mrc").copy())


def euler(rotations: Tensor) -> Sequence[Tensor]:
    """rlnAngleRot, rlnAngleTilt and rlnAnglePsi, degrees, the inverse of `rotations_from_euler`."""
    r = rotations
    tilt = r[:, 2, 2].clamp(-1, 1).acos()
    rot, psi = torch.atan2(r[:, 1, 2], r[:, 0, 2]), torch.atan2(r[:, 2, 1], -r[:, 2, 0])
    return [torch.rad2deg(angle) for angle in (rot, tilt, psi)]


def tell_classes_apart(model: LoadedModel, arguments: argparse.Namespace) -> dict[str, Any]:
    """Share of the images of two structures for which the right reference matches better."""
    structures = [read_structure(path) for path in arguments.classes]
    radius = max(structure.radius_angstrom for structure in structures)
    pixel_size = 2 * radius / (arguments.diameter_share * arguments.box)
    volumes = [potential_map(one, arguments.box, pixel_size, 8 * pixel_size**2) for one in structures]
    generator = torch.Generator().manual_seed(arguments.seed)
    optics = draw_optics(arguments.class_particles, pixel_size, arguments, generator)
    of_second = torch.arange(len(optics)) % 2 == 1
    (_, first), (_, second) = (clean_images(volume, optics, generator) for volume in volumes)
    clean = torch.where(of_second[:, None, None], second, first)
    raw = arguments.snr**0.5 * clean + coloured_noise(len(clean), arguments.box, generator)
    denoised = run_model(model, raw, optics, arguments)
    scores_raw, scores_denoised = [], []
    for volume in volumes:
        reference = Reference(volume, arguments.search_box, arguments.order, LARGEST_SHIFT_PX)
        scores_raw.append(find_poses(raw, optics, reference).score)
        scores_denoised.append(find_poses(denoised, optics, reference).score)

    def accuracy(scores: Sequence[Tensor]) -> float:
        return float(((scores[1] > scores[0]) == of_second).float().mean())

    return {
        "structures": [structure.name for structure in structures],
        "images": len(raw),
        "pixel_size_angstrom": pixel_size,
        "accuracy_on_raw": accuracy(scores_raw),
        "accuracy_on_denoised": accuracy(scores_denoised),
    }


def write(
    result: dict[str, Any], maps: dict[str, Tensor], truth: Tensor, stacks: dict[str, Tensor], folder: Path
) -> None:
    (folder / "reconstruction.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "reconstruction.md").write_text(markdown(result), encoding="utf-8")
    draw(result, {"truth": truth, **maps}, stacks, folder / "reconstruction.png")
    print(markdown(result))


def markdown(result: dict[str, Any]) -> str:
    lines = [
        f"{result['structure']}: {result['particles']} particles of {result['box_px']} px at "
        f"{result['pixel_size_angstrom']:.2f} Å, SNR {result['snr']:g}; matched to a reference of "
        f"{result['reference_resolution_angstrom']:.0f} Å; model {result['model']['name']} "
        f"({result['model']['sha256'][:12]}).",
        "",
        "| images, poses | half-set FSC 0.143, Å | FSC with truth 0.5, Å | overstated |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        for program, values in (("", row), (" (relion_reconstruct)", row.get("relion"))):
            if values:
                truth = f"{values['truth_resolution_angstrom']:.1f} | {values['overstated']:+.3f}"
                if not row["holds_particles"]:
                    truth = "no particle | "
                half_set = values["half_set_resolution_angstrom"]
                lines.append(f"| {row['condition']}{program} | {half_set:.1f} | {truth} |")
    lines += ["", "| poses found on | median error | below 10° | median shift error |", "|---|---|---|---|"]
    for name, values in result["poses"].items():
        lines.append(
            f"| {name} | {values['median_degrees']:.1f}° | {values['share_below_10_degrees']:.0%} "
            f"| {values['median_shift_px']:.2f} px |"
        )
    if "classes" in result:
        classes = result["classes"]
        lines += [
            "",
            f"{' and '.join(classes['structures'])} told apart: {classes['accuracy_on_raw']:.1%} of the raw "
            f"images, {classes['accuracy_on_denoised']:.1%} of the denoised ones.",
        ]
    return "\n".join(lines) + "\n"


def draw(result: dict[str, Any], maps: dict[str, Tensor], stacks: dict[str, Tensor], path: Path) -> None:
    """Curves and a central section of each condition; four images of each stack at the bottom."""
    figure = Figure(figsize=(16, 14), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 1))
    frequencies, middle = result["frequencies_per_angstrom"], result["box_px"] // 2
    for axes, row in zip(upper.subplots(3, 4).flat, result["rows"], strict=True):
        label, colour = "with the truth", "tab:orange"
        if not row["holds_particles"]:
            label, colour = "with the map that noise was matched to", "tab:red"
        axes.plot(frequencies, row["half_set_fsc"], color="tab:blue", label="half sets")
        axes.plot(frequencies, row["truth_fsc"], color=colour, label=label)
        axes.plot(frequencies, row["deserved_fsc"], "--", color=colour, label="half sets would deserve")
        axes.axhline(0, color="0.7", linewidth=0.6)
        axes.axvline(1 / result["reference_resolution_angstrom"], color="0.7", linewidth=0.6)
        axes.set(ylim=(-0.25, 1.05), title=row["condition"], xlabel="1/Å")
        axes.legend(loc="lower left", fontsize=6)
        inset = axes.inset_axes((0.7, 0.6, 0.29, 0.39))
        inset.imshow(maps[row["condition"]][middle].numpy(), cmap="gray")
        inset.set_axis_off()
    pictures = {f"{name}, four images": montage(images) for name, images in stacks.items()}
    pictures["the true map, central section"] = maps["truth"][middle]
    for axes, (name, picture) in zip(lower.subplots(1, len(pictures)), pictures.items(), strict=True):
        axes.imshow(picture.numpy(), cmap="gray")
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
    figure.savefig(path, dpi=90)


def montage(images: Tensor) -> Tensor:
    """Four images in two rows."""
    side = images.shape[-1]
    return images[:4].reshape(2, 2, side, side).transpose(1, 2).reshape(2 * side, 2 * side)


if __name__ == "__main__":
    main()
