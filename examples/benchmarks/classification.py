"""RELION's Class2D on raw and on denoised particles: do the classes get better?

    python classification.py --structures DIR --topaz-python PYTHON --output OUT
                             [--particles 600] [--iterations 8] [--repeats 2] [--variants ...] [--quick]

Boxes of 64 px from simulated micrographs (physical dose, defocus 0.8 to 2 µm) of structures that no model was
trained on, two species and five, in equal shares. `relion_refine` (its noise model, CTF, a
fudge factor of 2, angles every 12°, offsets every 2 px) classifies every method's images, and some more:

- with the expectation step limited to 25 Å (`--strict_highres_exp 25`);
- denoised images with white noise put back, as strong as the raw image's background, so that the noise
  model is right again;
- half of the raw image put back (`--blend 0.5`).

By the truth, each weighted by the number of particles:

- purity, the share of the most frequent species of each class, and normalised mutual information (NMI);
- spread: mean angle between the viewing directions of two particles of one species in a class, up to the
  sign, which a 2D class cannot tell (57.3 by chance);
- in the plane: median error, degrees, of the angle between two particles of one species in a class whose
  views lie within 20° of each other (90 by chance);
- resolution to which averages with RELION's assignments can be right: noise-free projections, turned and
  moved as RELION says, are averaged; it ends where the average has less than half of the particles' power;
- resolution of the averages that the raw images give with the assignments, whatever images they were found
  on: each average corrected for its CTFs, correlated ring by ring with the noise-free projections of its
  particles; it ends where the mean correlation is less than a half.

`claimed` is what RELION says of the classes' resolution. All three are means of 1/Å. `moving` is the share of
particles that change their class in the last iteration, `settled` the first iteration from which on fewer
than a tenth do (one more than there are where that never happens).
Writes classification.json and classification.md to OUT.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import starfile
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor
from user_tasks import (
    RAW,
    STACK,
    Cell,
    Cells,
    Keep,
    SimulatedParticles,
    asked_methods,
    count,
    denoised_by_each,
    relion_refine,
    shifts_of,
    simulate_particles,
    structure_file,
    table,
    task_parser,
    write_particles,
)

from cryohush.core.imaging.ctf import ctf
from cryohush.core.imaging.noise import image_generator
from cryohush.core.imaging.normalise import background_statistics, default_radius_px
from cryohush.core.imaging.projection import Projector, rotations_from_euler
from cryohush.core.imaging.rings import ring_mean
from cryohush.core.imaging.structure import potential_map, read_structure

BOX_PX, DIAMETER_SHARE = 64, 0.65
LIMIT_ANGSTROM = 25.0
NEAR_DEGREES, SETTLED_BELOW = 20.0, 0.1
LIMITED, PUT_BACK, HALF_RAW = "limited", "noise put back", "half raw"
VARIANTS = (f"{RAW}, {LIMITED}", *(f"{STACK}, {how}" for how in (LIMITED, PUT_BACK, HALF_RAW)))
MIXTURES = {
    "two species": (("6cvm", "6xlu"), ("2cg9", "1bxn")),
    "five species": (
        ("1bxn", "2cg9", "6cvm", "6xlu", "pdb7pbl"),
        ("2cg9", "4zxb", "6cvm", "6xlu", "pdb7pbl"),
    ),
}
CLASSES = {"two species": 8, "five species": 12}
FIGURES = {
    "purity": "purity",
    "NMI": "nmi",
    "spread of views, degrees": "spread",
    "in the plane, degrees": "plane",
    "resolution of averages, 1/Å": "resolution",
    "of averages of raw images, 1/Å": "raw resolution",
    "claimed, 1/Å": "claimed",
    "moving": "moving",
    "settled": "settled",
}


def main() -> None:
    parser = task_parser(__doc__, "two species, 200 particles, three iterations")
    parser.add_argument("--particles", type=count, default=600, help="of a stack (default: 600)")
    parser.add_argument("--iterations", type=count, default=8, help="of RELION (default: 8)")
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--mixtures", nargs="+", choices=list(MIXTURES), default=list(MIXTURES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.mixtures, arguments.repeats = ["two species"], 1
        arguments.particles, arguments.iterations = 200, 3
    names = ("particles", "iterations", "model")
    settings = {"box_px": BOX_PX, "classes": CLASSES, **{name: getattr(arguments, name) for name in names}}
    asked = [*asked_methods(arguments), *arguments.variants]
    cells = Cells("classification", settings, arguments.output, asked)
    text = ""
    for mixture in arguments.mixtures:
        found = []
        for repeat in range(arguments.repeats):
            key = f"{mixture}, {repeat + 1}"
            keep = partial(cells.method, key)
            found.append(cells(key, lambda: cell(mixture, repeat, arguments, keep)))  # noqa: B023
        text += f"\n{mixture}, {CLASSES[mixture]} classes, {len(found)} cells\n\n" + table(found, FIGURES)
    (arguments.output / "classification.md").write_text(text, encoding="utf-8")
    print(text)


def cell(mixture: str, repeat: int, arguments: argparse.Namespace, keep: Keep) -> Cell:
    """Figures of each method; `keep` gives those that were found before the last run was stopped."""
    names = MIXTURES[mixture][repeat % len(MIXTURES[mixture])]
    files = [structure_file(arguments.structures, name) for name in names]
    particles, _, pixel_size = simulate_particles(
        files, arguments.particles, BOX_PX, DIAMETER_SHARE, 100 + repeat
    )
    projections = projected(files, particles, pixel_size)

    def figures(place: Path, shown: Tensor, limit: float | None) -> dict[str, float]:
        place.mkdir()
        write_particles(place / "in.star", shown, pixel_size, particles.optics)
        rows, told = classify(place, pixel_size, CLASSES[mixture], repeat, limit, arguments)
        return scores(rows, particles, projections, pixel_size) | told

    found: Cell = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_particles(folder / "particles.star", particles.images, pixel_size, particles.optics)
        images = denoised_by_each(folder / "particles.star", with_bases(arguments))
        asked = {*asked_methods(arguments), *arguments.variants}
        for number, (method, (shown, limit)) in enumerate(variants(images, repeat).items()):
            if method not in asked:
                continue
            place = folder / f"class{number}"
            found[method] = keep(method, partial(figures, place, shown, limit))
    return found


def with_bases(arguments: argparse.Namespace) -> argparse.Namespace:
    """The same, with the method of which variants are asked for."""
    bases = [STACK] if any(variant.startswith(STACK) for variant in arguments.variants) else []
    return argparse.Namespace(**vars(arguments) | {"methods": [*arguments.methods, *bases]})


def variants(images: Mapping[str, Tensor], repeat: int) -> dict[str, tuple[Tensor, float | None]]:
    """All methods, and the ways that are said to help; images and limit of the expectation step."""
    found: dict[str, tuple[Tensor, float | None]] = {
        method: (shown, None) for method, shown in images.items()
    }
    raw = images[RAW]
    found[f"{RAW}, {LIMITED}"] = (raw, LIMIT_ANGSTROM)
    if STACK not in images:
        return found
    found[f"{STACK}, {LIMITED}"] = (images[STACK], LIMIT_ANGSTROM)
    _, noise = background_statistics(raw, default_radius_px((BOX_PX, BOX_PX)))
    white = torch.randn(raw.shape, generator=image_generator(repeat, 0, "put back"))
    found[f"{STACK}, {PUT_BACK}"] = (images[STACK] + white * noise[:, None, None], None)
    found[f"{STACK}, {HALF_RAW}"] = ((images[STACK] + raw) / 2, None)
    return found


def classify(
    folder: Path,
    pixel_size: float,
    classes: int,
    seed: int,
    limit: float | None,
    arguments: argparse.Namespace,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """What RELION says of each particle of in.star; and its classes' resolution (1/Å), and if they settle."""
    options = {
        "iter": arguments.iterations, "K": classes, "tau2_fudge": 2,
        "particle_diameter": f"{0.9 * BOX_PX * pixel_size:.1f}", "oversampling": 0, "psi_step": 12,
        "offset_range": 2, "offset_step": 2, "random_seed": seed + 1, "pool": 100, "j": arguments.threads,
    }  # fmt: skip
    data = relion_refine(folder, options, () if limit is None else ["--strict_highres_exp", f"{limit:g}"])
    model = starfile.read(folder / f"run_it{arguments.iterations:03d}_model.star")["model_classes"]
    weight = torch.tensor(model["rlnClassDistribution"].to_numpy()).double()
    inverse = 1 / torch.tensor(model["rlnEstimatedResolution"].to_numpy()).double()
    rows = {
        "class": torch.tensor(data["rlnClassNumber"].to_numpy()),
        "psi": torch.tensor(data["rlnAnglePsi"].to_numpy()).float(),
        "shift": shifts_of(data, pixel_size),
    }
    claimed = float((weight * inverse.nan_to_num(0, 0, 0)).sum() / weight.sum())
    moving = [
        classes_changed(folder / f"run_it{n:03d}_optimiser.star") for n in range(1, arguments.iterations + 1)
    ]
    return rows, {"claimed": claimed, "moving": moving[-1], "settled": settled(moving)}


def classes_changed(optimiser: Path) -> float:
    """Share of the particles that changed their class in the iteration of an optimiser.star."""
    return float(starfile.read(optimiser)["rlnChangesOptimalClasses"])


def settled(moving: Sequence[float]) -> int:
    """The first iteration from which on less than `SETTLED_BELOW` move; one more than there are for none."""
    still = [number for number, share in enumerate(moving, 1) if share >= SETTLED_BELOW]
    return max(still, default=0) + 1


def projected(files: list[Path], particles: SimulatedParticles, pixel_size: float) -> Tensor:
    """`(n, y, x)` centred noise-free projections without CTF."""
    found = torch.empty(len(particles.images), BOX_PX, BOX_PX)
    for number, path in enumerate(files):
        volume = potential_map(read_structure(path), BOX_PX, pixel_size, 8 * pixel_size**2)
        projector = Projector(volume)
        for members in (particles.species == number).nonzero().squeeze(1).split(100):
            found[members] = projector(particles.rotations[members])
    return found


def scores(
    rows: Mapping[str, Tensor], particles: SimulatedParticles, projections: Tensor, pixel_size: float
) -> dict[str, float]:
    """Purity, NMI, spread of views, angles in the plane and resolutions (1/Å) of classes."""
    classes, species = rows["class"], particles.species
    n = len(classes)
    moved = aligned(projections, particles.shifts_px + rows["shift"], rows["psi"])
    transfer = ctf(particles.optics, torch.full((n,), pixel_size), BOX_PX)
    seen = torch.fft.irfft2(torch.fft.rfft2(particles.images) * transfer, s=(BOX_PX, BOX_PX))
    raw = aligned(seen, rows["shift"], rows["psi"])
    purity = spread = resolution = raw_resolution = 0.0
    counted, plane = 0, []
    for number in torch.unique(classes):
        members = (classes == number).nonzero().squeeze(1)
        share = len(members) / n
        counts = torch.bincount(species[members])
        purity += float(counts.max()) / n
        resolution += share * coherent_to(moved[members], pixel_size)
        raw_resolution += share * faithful_to(raw[members].mean(0), moved[members], pixel_size)
        for kind in torch.unique(species[members]):
            some = members[species[members] == kind]
            if len(some) > 1:
                spread += len(some) * view_spread(particles.rotations[some])
                plane.append(plane_errors(particles.rotations[some], rows["psi"][some]))
                counted += len(some)
    nmi = normalized_mutual_info_score(species.numpy(), classes.numpy())
    return {
        "purity": purity,
        "nmi": float(nmi),
        "spread": spread / counted,
        "plane": float(torch.cat(plane).median()),
        "resolution": resolution,
        "raw resolution": raw_resolution,
    }


def plane_errors(rotations: Tensor, psi_degrees: Tensor) -> Tensor:
    """Errors, degrees, of the angle in the plane between two of `(n, 3, 3)` particles seen nearly alike.

    `psi_degrees` `(n,)` turn the images to their class; pairs' views lie within `NEAR_DEGREES`.
    """
    direction = rotations[:, :, 2]
    first, second = torch.triu_indices(len(rotations), len(rotations), 1)
    near = (direction @ direction.T)[first, second] > math.cos(math.radians(NEAR_DEGREES))
    first, second = first[near], second[near]
    # from the second's coordinates to the first's, which is a turn in the plane but for the small tilt
    between = rotations[first].mT @ rotations[second]
    true = torch.rad2deg(
        torch.atan2(between[:, 1, 0] - between[:, 0, 1], between[:, 0, 0] + between[:, 1, 1])
    )
    turns = torch.zeros(len(rotations), 3)
    turns[:, 2] = psi_degrees
    to_class = rotations_from_euler(turns)[:, :2, :2]
    found = to_class[first].mT @ to_class[second]
    error = torch.rad2deg(torch.atan2(found[:, 1, 0], found[:, 0, 0])) - true
    return ((error + 180) % 360 - 180).abs()


def view_spread(rotations: Tensor) -> float:
    """Mean angle, degrees, between the viewing directions of two of `(n, 3, 3)` rotations, up to the sign."""
    # rotations take coordinates of the image to those of the volume: the beam, z, to the third column
    direction = rotations[:, :, 2].double()
    cosine = (direction @ direction.T).abs().clamp(0, 1)
    first, second = torch.triu_indices(len(direction), len(direction), 1)
    return float(torch.rad2deg(cosine[first, second].acos()).mean())


def aligned(images: Tensor, shifts_px: Tensor, psi_degrees: Tensor) -> Tensor:
    """`(n, y, x)` images moved by `(n, 2)` (y, x), then turned to their class."""
    turns = torch.zeros(len(images), 3)
    turns[:, 2] = psi_degrees
    # takes (x, y) of the image to that of the class, as a pose takes it to the volume
    to_class = rotations_from_euler(turns)[:, :2, :2]
    side = images.shape[-1]
    axis = torch.arange(side).float() - side // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    at = torch.einsum("nji,jyx->niyx", to_class, torch.stack([x, y]))
    at_x, at_y = (at - shifts_px.flip(1)[:, :, None, None]).unbind(1)
    grid = torch.stack([at_x, at_y], -1) * (2 / (side - 1)) + (2 * (side // 2) / (side - 1) - 1)
    sampled = torch.nn.functional.grid_sample(images[:, None], grid, mode="bicubic", align_corners=True)
    return sampled[:, 0]


def coherent_to(images: Tensor, pixel_size: float) -> float:
    """Frequency, 1/Å, up to which the average of images keeps at least half of their power; 0 for none."""
    if len(images) < 2:
        return 0.0
    shape = (images.shape[-2], images.shape[-1])
    transform = torch.fft.rfft2(images)
    n = len(images)
    # of n independent images 1 / n of the power is left: not counted
    kept = ring_mean(transform.mean(0).abs().square(), shape)
    power = ring_mean(transform.abs().square().mean(0), shape)
    share = (kept / power.clamp_min(1e-12) - 1 / n) / (1 - 1 / n)
    below = (share[1:] < 0.5).nonzero()
    ring = int(below[0]) if len(below) else shape[0] // 2
    return ring / (shape[0] * pixel_size)


def faithful_to(average: Tensor, images: Tensor, pixel_size: float) -> float:
    """Frequency, 1/Å, up to which an average `(y, x)` correlates with images by a half in the mean."""
    shape = (images.shape[-2], images.shape[-1])
    of_average, transform = torch.fft.rfft2(average)[None], torch.fft.rfft2(images)
    both = ring_mean((of_average.conj() * transform).real, shape)
    powers = ring_mean(of_average.abs().square(), shape) * ring_mean(transform.abs().square(), shape)
    correlation = (both / powers.sqrt().clamp_min(1e-12)).mean(0)
    below = (correlation[1:] < 0.5).nonzero()
    return (int(below[0]) if len(below) else shape[0] // 2) / (shape[0] * pixel_size)


if __name__ == "__main__":
    main()
