"""Sorting particles from junk: do denoised images tell them apart better than raw ones?

    python sorting.py --structures DIR --topaz-python PYTHON --output OUT
                      [--real SESSION] [--structure-names 6cvm ...] [--boxes 1000] [--repeats 2] [--quick]

Boxes of 64 px are cut from simulated micrographs (physical dose, defocus 0.8 to 2 µm): of each structure,
which no model was trained on, 60 % particles, and of junk 10 % pure ice, 8 % crystals of ice (contamination),
6 % edges of the carbon film, 8 % aggregates of three particles, 8 % broken ones, which lost
45 % of their atoms. All are centred as badly as a picker does it, by up to 2 px either way.

Every method's images get the same scores, which need no truth, template or training:

- `power`: variance within the particle's circle, in dB of the background's of the raw image;
- `agreement`: correlation of the image with the raw one within the circle;
- `contrast`: mean within the circle over that outside;
- `average`: correlation with the mean of all images turned about their centre;
- `ordinary`: how ordinary the image is among its stack: minus the squared robust Mahalanobis distance of the
  four together (of raw images three, whose `agreement` is 1), so that both what is empty and what is too
  much falls behind; what `cryohush denoise --score` writes (`cryohush.core.metrics.ordinary`);

and, of the stack's covariance through the CTF (`cryohush.core.context`), which methods do not enter:

- `likelihood`: of a Gaussian of the stack's mean and covariance by that of noise, logarithm;
- `typical`: minus the distance from that Gaussian.

A score is judged by the area under its ROC curve (AUC, 0.5 by chance) and by the purity (share of particles)
of what is kept when 95 % of the particles are; taken at random, purity is 0.6.

`--real`: of the eight exposures of EMPIAR-10146, boxes of labelled particles beside boxes of places
where nobody labelled one (at least 0.8 diameters away), each exposure a repeat.

Writes sorting.json and sorting.md to OUT.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray
from realism import Exposure, read_exposures
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch import Tensor
from user_tasks import (
    HELD_OUT,
    Cell,
    Cells,
    asked_methods,
    centres_of,
    count,
    denoised_by_each,
    imaging_settings,
    structure_file,
    table,
    task_parser,
    write_particles,
)

from cryohush.core.config.denoise import SUSPICIOUS_BELOW
from cryohush.core.context.stack_context import StackContext, circle, fit_context
from cryohush.core.imaging.ctf import CtfParameters, nearest_group
from cryohush.core.imaging.noise import image_generator
from cryohush.core.imaging.normalise import default_radius_px, normalise
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.resample import fourier_resample
from cryohush.core.imaging.structure import Structure, potential_map, read_structure
from cryohush.core.jobs.scores import on_one_scale
from cryohush.core.metrics.ordinary import (
    figure_of_merit,
    image_features,
    squared_distances,
    turned_mean,
)
from cryohush.core.metrics.picking import square_regions
from cryohush.core.simulation.micrograph import (
    CONTAMINATION,
    SimulatedMicrograph,
    Species,
    simulate_micrograph,
)

BOX_PX, DIAMETER_SHARE = 64, 0.6
SHARES = {
    "particle": 0.6,
    "ice": 0.1,
    "contamination": 0.08,
    "carbon": 0.06,
    "aggregate": 0.08,
    "broken": 0.08,
}
KINDS = tuple(SHARES)
RECALL = 0.95
COVARIANCE = "covariance of the raw stack"
SCORES = ("power", "agreement", "contrast", "average", "ordinary", "likelihood", "typical")


def main() -> None:
    parser = task_parser(__doc__, "one structure, 300 boxes, one repeat")
    parser.add_argument("--structure-names", nargs="+", default=list(HELD_OUT))
    parser.add_argument("--boxes", type=count, default=1000, help="of a stack (default: 1000)")
    parser.add_argument("--real", type=Path, help="folder with micrographs_rest.star, Micrographs and Picks")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.structure_names, arguments.boxes, arguments.repeats = arguments.structure_names[:1], 300, 1
    settings = {"boxes": arguments.boxes, "box_px": BOX_PX, "shares": SHARES, "model": arguments.model}
    cells = Cells("sorting", settings, arguments.output, asked_methods(arguments))
    found = {"simulated": [], "real": []}
    for name in arguments.structure_names:
        for repeat in range(arguments.repeats):
            found["simulated"].append(
                cells(
                    f"{name}, {repeat + 1}",
                    lambda name=name, repeat=repeat: simulated_cell(name, repeat, arguments),
                )
            )
    if arguments.real:
        found["real"] = list(real_cells(arguments, cells).values())
    text = "".join(report(kind, some) for kind, some in found.items() if some)
    (arguments.output / "sorting.md").write_text(text, encoding="utf-8")
    print(text)


def report(kind: str, cells: list[Cell]) -> str:
    text = f"\n{kind}, {len(cells)} cells\n"
    for figure, title in (("auc", "AUC"), ("purity", f"Purity at {RECALL:.0%} recall")):
        columns = {score: f"{score} {figure}" for score in SCORES}
        text += f"\n{title}\n\n" + table(cells, columns)
    columns = {of: f"suspicious of {of}" for of in ("junk", "particles")}
    text += "\nShare that `cryohush denoise --score` calls suspicious\n\n" + table(cells, columns)
    return text


# --- simulated stacks


def simulated_cell(name: str, repeat: int, arguments: argparse.Namespace) -> Cell:
    structure = read_structure(structure_file(arguments.structures, name))
    images, optics, kind, pixel_size = mixed_stack(structure, repeat, arguments.boxes)
    return judged(images, optics, kind, pixel_size, arguments)


def mixed_stack(
    structure: Structure, seed: int, n: int, shares: Mapping[str, float] = SHARES
) -> tuple[Tensor, CtfParameters, Tensor, float]:
    """Normalised boxes `(n, y, x)`, their CTF, and their kinds `(n,)` as numbers of `KINDS`."""
    pixel_size = 2 * structure.radius_angstrom / (DIAMETER_SHARE * BOX_PX)
    generator = image_generator(seed, 0, f"sorting {structure.name}")
    species = junk_species(structure, pixel_size, generator, shares)
    wanted = {kind: round(share * n) for kind, share in shares.items()}
    found: dict[str, list[tuple[Tensor, CtfParameters]]] = {kind: [] for kind in KINDS}
    number = 0
    while any(len(found[kind]) < wanted[kind] for kind in KINDS):
        # in turn: nothing but ice, contamination, carbon
        settings = imaging_settings(
            pixel_size,
            structure.radius_angstrom,
            carbon_probability=float(number % 3 == 2),
            discs_per_square_micrometre=300.0 * (number % 3 == 1),
        )
        micrograph = simulate_micrograph(species, settings, seed, number)
        for kind, centres in places(micrograph, species, generator).items():
            centres = centres + (4 * torch.rand(len(centres), 2, generator=generator) - 2).round()
            inside = (
                (centres >= BOX_PX // 2) & (centres <= min(micrograph.image.shape) - BOX_PX // 2 - 1)
            ).all(1)
            for box in square_regions(micrograph.image, centres[inside], BOX_PX):
                if len(found[kind]) < wanted[kind]:
                    found[kind].append((box, micrograph.optics))
        number += 1
    parts = [pair for kind in KINDS for pair in found[kind]]
    kind = torch.cat([torch.full((wanted[name],), index) for index, name in enumerate(KINDS)])
    order = torch.randperm(len(parts), generator=generator)
    optics = [parts[index][1] for index in order.tolist()]
    images = normalise(
        torch.stack([parts[index][0] for index in order.tolist()]), default_radius_px((BOX_PX, BOX_PX))
    )[0]
    return images, CtfParameters.joined(optics), kind[order], pixel_size


def junk_species(
    structure: Structure, pixel_size: float, generator: torch.Generator, shares: Mapping[str, float]
) -> list[Species]:
    """The particle, three aggregates and three broken ones, as many of each kind as its share says."""
    species = [of_atoms(structure.name, *atoms_of(structure), pixel_size, shares["particle"])]
    for number in range(3):
        for name, made in (("aggregate", aggregate), ("broken", broken)):
            positions, elements = made(structure, generator)
            species.append(of_atoms(f"{name} {number}", positions, elements, pixel_size, shares[name] / 3))
    return species


def atoms_of(structure: Structure) -> tuple[NDArray[np.float64], list[gemmi.Element]]:
    return structure.positions_angstrom(), [atom.atom.element for atom in structure.model.all()]


def of_atoms(
    name: str, positions: NDArray[np.float64], elements: list[gemmi.Element], pixel_size: float, share: float
) -> Species:
    """A species of atoms at `(n, 3)` positions in Å, brought to their centroid."""
    positions = positions - positions.mean(0)
    model, chain, residue = gemmi.Model(1), gemmi.Chain("A"), gemmi.Residue()
    residue.name, residue.seqid = "UNK", gemmi.SeqId("1")
    for xyz, element in zip(positions, elements, strict=True):
        atom = gemmi.Atom()
        atom.element, atom.name, atom.pos = element, element.name, gemmi.Position(*xyz)
        residue.add_atom(atom)
    chain.add_residue(residue)
    model.add_chain(chain)
    radius = float(np.linalg.norm(positions, axis=1).max())
    structure = Structure(name, model, radius, len(positions))
    box = 2 * int(np.ceil(radius / pixel_size + 5 / pixel_size + 1))
    volume = potential_map(structure, box, pixel_size, 8 * pixel_size**2)
    return Species(name, Projector(volume), radius / pixel_size, share)


def aggregate(
    structure: Structure, generator: torch.Generator
) -> tuple[NDArray[np.float64], list[gemmi.Element]]:
    """Three particles, each turned, that touch."""
    positions, elements = atoms_of(structure)
    turns = random_rotations(3, generator).double().numpy()
    distance = 1.2 * np.sqrt((positions**2).sum(1).mean())
    corners = distance * np.array([[1.0, 0, 0], [-0.5, 0.87, 0], [-0.5, -0.87, 0]])
    together = np.concatenate(
        [positions @ turn.T + corner for turn, corner in zip(turns, corners, strict=True)]
    )
    return together, 3 * elements


def broken(
    structure: Structure, generator: torch.Generator
) -> tuple[NDArray[np.float64], list[gemmi.Element]]:
    """What is left on one side of a plane that takes 45 % of the atoms away."""
    positions, elements = atoms_of(structure)
    height = positions @ random_rotations(1, generator)[0, 0].double().numpy()
    kept = height < np.quantile(height, 0.55)
    return positions[kept], [element for element, here in zip(elements, kept, strict=True) if here]


def places(
    micrograph: SimulatedMicrograph, species: list[Species], generator: torch.Generator
) -> dict[str, Tensor]:
    """Centres `(n, 2)` (y, x) of what is seen on a micrograph, by kind."""
    particles = micrograph.particles
    centres = centres_of(micrograph)
    seen = torch.from_numpy(~particles.hidden)
    names = np.array([kind.name for kind in species])[particles.species]
    found = {}
    for kind in ("aggregate", "broken"):
        found[kind] = centres[seen & torch.from_numpy(np.char.startswith(names, kind))].round()
    found["particle"] = centres[seen & torch.from_numpy(names == species[0].name)].round()
    radius = species[0].radius_px
    taken = micrograph.labels.numpy() != 0
    # as far from the silhouette of anything as its own half
    far = ndimage.distance_transform_edt(~taken) > 0.6 * radius
    found["ice"] = spread_out(far, radius, generator)
    foreign = micrograph.labels.numpy() == CONTAMINATION
    patches, count = ndimage.label(foreign)
    sizes = ndimage.sum_labels(foreign, patches, range(1, count + 1)) if count else np.zeros(0)
    is_carbon = sizes > 40 * np.pi * radius**2 if count else sizes
    middles = ndimage.center_of_mass(foreign, patches, [int(k) + 1 for k in np.flatnonzero(is_carbon == 0)])
    found["contamination"] = torch.tensor(middles).float().reshape(-1, 2).round()
    carbon = np.isin(patches, np.flatnonzero(is_carbon) + 1)
    found["carbon"] = spread_out(carbon & ~ndimage.binary_erosion(carbon, border_value=1), radius, generator)
    return found


def spread_out(allowed: NDArray[np.bool_], distance_px: float, generator: torch.Generator) -> Tensor:
    """Random places of a mask, no two nearer than that: `(n, 2)` (y, x)."""
    left = allowed.copy()
    y, x = np.indices(allowed.shape)
    found = []
    while len(found) < 60 and left.any():
        candidates = np.argwhere(left)
        place = candidates[int(torch.randint(len(candidates), (1,), generator=generator))]
        found.append(place.tolist())
        left &= (y - place[0]) ** 2 + (x - place[1]) ** 2 > distance_px**2
    return torch.tensor(found).float().reshape(-1, 2)


# --- real boxes


def real_cells(arguments: argparse.Namespace, cells: Cells) -> dict[str, Cell]:
    """Apoferritin: all boxes denoised as one stack, then each exposure judged by itself."""
    exposures = read_exposures(arguments.real / "micrographs_rest.star", arguments.real / "Picks")
    diameter_px = 130.0 / exposures[0].optics["pixel_size_angstrom"]
    made: dict[str, Cell] = {}
    if any(cells.lacks(f"real, {number + 1}") for number in range(len(exposures))):
        images, optics, good, exposure, pixel_size = real_stack(exposures, diameter_px)
        scores = scored(images, optics, pixel_size, 65.0 / pixel_size, arguments)
        for number in range(len(exposures)):
            here = exposure == number
            made[str(number)] = figures_of({key: value[here] for key, value in scores.items()}, good[here])
    return {
        str(number): cells(f"real, {number + 1}", lambda number=number: made[str(number)])
        for number in range(len(exposures))
    }


def real_stack(
    exposures: list[Exposure], diameter_px: float
) -> tuple[Tensor, CtfParameters, Tensor, Tensor, float]:
    """Boxes of 128 px brought to 64: particles, and empty places, with their exposures."""
    generator = image_generator(1, 0, "empty places")
    boxes, good, number, defocus = [], [], [], []
    for index, exposure in enumerate(exposures):
        centres = torch.from_numpy(exposure.centres).float()
        taken = np.ones(exposure.image.shape, dtype=bool)
        inside = torch.from_numpy(exposure.centres).round().long()
        inside = inside[(inside >= 0).all(1) & (inside < torch.tensor(exposure.image.shape)).all(1)]
        taken[inside[:, 0], inside[:, 1]] = False
        empty = spread_out(
            ndimage.distance_transform_edt(taken) > 0.8 * diameter_px, 0.5 * diameter_px, generator
        )
        for some, label in ((centres, True), (empty, False)):
            whole = ((some >= BOX_PX) & (some <= torch.tensor(exposure.image.shape) - BOX_PX - 1)).all(1)
            some = some[whole].round()
            boxes.append(square_regions(exposure.image, some, 2 * BOX_PX))
            good.append(torch.full((len(some),), label))
            number.append(torch.full((len(some),), index))
            pair = torch.tensor([[exposure.defocus_u_angstrom, exposure.defocus_v_angstrom]])
            defocus.append(pair.expand(len(some), 2))
    images = normalise(fourier_resample(torch.cat(boxes), BOX_PX), default_radius_px((BOX_PX, BOX_PX)))[0]
    u, v = torch.cat(defocus).unbind(1)
    of = exposures[0].optics
    rest = [
        torch.full_like(u, value) for value in (of["voltage_kv"], of["cs_mm"], of["amplitude_contrast"], 0.0)
    ]
    optics = CtfParameters(u, v, torch.zeros_like(u), *rest)
    return images, optics, torch.cat(good), torch.cat(number), 2 * of["pixel_size_angstrom"]


# --- scores


def judged(
    images: Tensor, optics: CtfParameters, kind: Tensor, pixel_size: float, arguments: argparse.Namespace
) -> Cell:
    scores = scored(images, optics, pixel_size, DIAMETER_SHARE / 2 * BOX_PX, arguments)
    cell = figures_of(scores, kind == 0)
    for (method, score), values in scores.items():
        for number, name in enumerate(KINDS[1:], 1):
            some = (kind == 0) | (kind == number)
            cell[method][f"{score} auc {name}"] = auc(values[some], (kind == 0)[some])
    return cell


def figures_of(scores: dict[tuple[str, str], Tensor], good: Tensor) -> Cell:
    cell: Cell = {}
    for (method, score), values in scores.items():
        figures = cell.setdefault(method, {})
        figures[f"{score} auc"] = auc(values, good)
        figures[f"{score} purity"] = purity(values, good)
        if score == "ordinary":
            suspicious = figure_of_merit(-values) < SUSPICIOUS_BELOW
            figures["suspicious of junk"] = float(suspicious[~good].float().mean())
            figures["suspicious of particles"] = float(suspicious[good].float().mean())
    return cell


def auc(scores: Tensor, good: Tensor) -> float:
    """Probability that a good image has a higher score than a bad one."""
    return float(roc_auc_score(good.numpy(), scores.numpy()))


def purity(scores: Tensor, good: Tensor, recall: float = RECALL) -> float:
    """Share of good images among the best by score, of which there are as many as recall asks for."""
    right = good[scores.argsort(descending=True, stable=True)].double().cumsum(0)
    kept = int((right >= recall * right[-1] - 1e-9).nonzero()[0]) + 1
    return float(right[kept - 1] / kept)


def scored(
    images: Tensor, optics: CtfParameters, pixel_size: float, radius_px: float, arguments: argparse.Namespace
) -> dict[tuple[str, str], Tensor]:
    """`(n,)` scores of normalised images by method and score."""
    with tempfile.TemporaryDirectory() as folder:
        write_particles(Path(folder) / "boxes.star", images, pixel_size, optics)
        methods = denoised_by_each(Path(folder) / "boxes.star", arguments)
    scores = {
        (method, name): values
        for method, shown in methods.items()
        for name, values in image_scores(shown, images, radius_px).items()
    }
    radius = default_radius_px((BOX_PX, BOX_PX))
    context = fit_context(images, optics, pixel_size_angstrom=pixel_size, radius_px=radius, with_views=False)
    for name, values in covariance_scores(context, images, optics).items():
        scores[COVARIANCE, name] = values
    return scores


def image_scores(shown: Tensor, raw: Tensor, radius_px: float) -> dict[str, Tensor]:
    """`(n,)` scores of `(n, y, x)` images, made of `raw`, by name."""
    inside = circle(shown.shape[-1], radius_px)
    outside = 1 - circle(shown.shape[-1], radius_px + 4)
    is_raw = torch.equal(shown, raw)
    shown, raw = on_one_scale(shown, raw, default_radius_px((BOX_PX, BOX_PX)))
    features = image_features(shown, raw, inside, outside, turned_mean(shown))
    found = dict(zip(("power", "contrast", "agreement", "average"), features.unbind(1), strict=True))
    if is_raw:
        del found["agreement"]
    found["ordinary"] = -squared_distances(torch.stack(list(found.values()), 1))
    return found


def covariance_scores(
    context: StackContext, images: Tensor, optics: CtfParameters | None
) -> dict[str, Tensor]:
    """Log likelihood ratio of particle and noise, and minus the distance from the particles' Gaussian."""
    covariance, basis = context.covariance, context.covariance.basis
    working = context.working_box_px
    mask = circle(working, context.working_radius_px)
    small = torch.fft.rfft2(fourier_resample(images, working)) * context.whitening
    small = torch.fft.irfft2(small, s=(working, working)) * (mask / context.noise_variance**0.5)
    group = torch.zeros(len(images), dtype=torch.int64)
    if optics is not None:
        assert context.group_optics is not None
        group = nearest_group(optics, context.group_optics)
    coefficients = basis.analyse(small)
    seen_means = context._filters.seen_means[group]
    likelihood = torch.zeros(len(images), dtype=torch.float64)
    typical = torch.zeros(len(images), dtype=torch.float64)
    first = 0
    operators = basis.radial_operators(context.group_transfer())
    for order, (vectors, values) in enumerate(zip(covariance.vectors, covariance.eigenvalues, strict=True)):
        last = first + len(values)
        found = coefficients[:, first:last]
        root = operators[order] @ (vectors * values.sqrt())
        seen = root @ root.mT
        seen.diagonal(dim1=-2, dim2=-1).add_(1.0)
        rest = found.clone()
        if order == 0:
            rest -= seen_means
        inverse = torch.linalg.inv(seen)[group].to(torch.complex64)
        distance = (rest.conj() * (inverse @ rest[..., None])[..., 0]).sum(1).real.double()
        log_det = torch.logdet(seen.double())[group]
        # an angular frequency above 0 counts for its negative, too
        times = 1 if order == 0 else 2
        typical -= times * distance
        likelihood += times * 0.5 * (found.abs().square().sum(1).double() - distance - log_det)
        first = last
    return {"likelihood": likelihood, "typical": typical}


if __name__ == "__main__":
    main()
