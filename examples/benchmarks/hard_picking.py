"""Picking where it is hard: is more found, and less that is none, on denoised micrographs?

    python hard_picking.py --structures DIR --topaz-python PYTHON --output OUT [--real SESSION]
                           [--repeats 1] [--session-steps 200] [--quick]

Simulated micrographs of 1024 px at 2.5 Å of particles from 80 to 350 kDa, which no model was trained on, at
a defocus of 0.4 to 1.2 µm in ice of 250 to 900 Å, 40 % of them with the edge of a carbon film, all with
crystals of ice (`TARGETS`; two micrographs of each are a cell). `--real`: the eight exposures of
EMPIAR-10146 with labelled particles, each a cell.

Micrographs are raw, cut off at 20 Å (RELION's habit for looking), denoised by Topaz, and by the model as
`cryohush denoise` does it; with `--session-steps`, also by a model that `cryohush train recorrupted` made of
the shipped one on all micrographs of the particle, as many batches of 8 tiles of 128 px. Pickers that were
not trained on them: the Laplacian of Gaussian of `cryohush evaluate`, RELION's (`relion_autopick --LoG`), its
template matching (`--ref`, eight projections of the particle cut off at 30 Å, through the CTF; simulated
micrographs only), and Topaz's pretrained detector.

Average precision needs no threshold; F1 is at the threshold that suits the cell best. `on contamination` is
the share of these picks that lie on carbon or a crystal, `false` that of all that are no particle, within
half a diameter. Particles under contamination count neither way.

Writes hard_picking.json and hard_picking.md to OUT.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import starfile
import torch
from independent_pairs import topaz
from micrograph_pairs import denoise
from pairs import write_stack
from realism import Exposure, read_exposures
from sorting import of_atoms
from topaz_detector import detector_picks, write_numbered
from torch import Tensor
from user_tasks import (
    RAW,
    SESSION,
    TOPAZ,
    Cell,
    Cells,
    centres_of,
    count,
    run,
    structure_file,
    table,
    task_parser,
    trained_on,
)

from cryohush.core.config.micrographs import MicrographSettings
from cryohush.core.imaging.filters import low_pass
from cryohush.core.imaging.projection import rotations_from_euler
from cryohush.core.imaging.structure import read_structure
from cryohush.core.io.star import write_tables
from cryohush.core.metrics.picking import Picks, average_precision, pick_blobs, score_picks
from cryohush.core.models.weights import WEIGHTS_NAME, LoadedModel, load_model
from cryohush.core.simulation.micrograph import CONTAMINATION, Species, simulate_micrograph

PIXEL_SIZE_ANGSTROM, SHAPE_PX = 2.5, (1024, 1024)
LOW_PASS_ANGSTROM = 20.0
TWENTY, GENERAL = f"low-pass {LOW_PASS_ANGSTROM:g} Å", "general"
TARGETS = {
    "2cg9, one chain, 80 kDa": ("2cg9", 0.5),
    "2cg9, 160 kDa": ("2cg9", 1.0),
    "pdb7pbl, 220 kDa": ("pdb7pbl", 1.0),
    "6xlu, 350 kDa": ("6xlu", 1.0),
}
PICKERS = ("LoG", "RELION LoG", "RELION template", "Topaz detector")
TEMPLATES, TEMPLATE_ANGSTROM = 8, 30.0
TILE_PX = 128
APOFERRITIN_ANGSTROM = 130.0


@dataclass(frozen=True, eq=False)
class Labelled:
    """A micrograph `(y, x)`, protein dark, its particles `(n, 2)` (y, x), and where it is not judged.

    `contaminated` `(y, x)` is None where nobody knows; `hidden` `(m, 2)` particles count neither way.
    Astigmatism is left out of `optics`: defocus in Å, voltage in kV, Cs in mm, amplitude contrast.
    """

    image: Tensor
    centres: Tensor
    hidden: Tensor
    contaminated: Tensor | None
    optics: tuple[float, float, float, float]


def main() -> None:
    parser = task_parser(__doc__, "one micrograph of one structure")
    parser.add_argument("--real", type=Path, help="folder with micrographs_rest.star, Micrographs and Picks")
    parser.add_argument(
        "--micrographs", type=count, default=2, help="of each structure and repeat (default: 2)"
    )
    parser.add_argument(
        "--session-steps", type=int, default=0, help="batches of a model of the session (default: 0, none)"
    )
    parser.set_defaults(repeats=1)
    parser.add_argument("--targets", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.targets, arguments.micrographs, arguments.repeats = arguments.targets[1:2], 1, 1
    names = ("model", "micrographs", "session_steps")
    settings = {name: getattr(arguments, name) for name in names}
    cells = Cells("hard_picking", settings, arguments.output)
    found: dict[str, list[Cell]] = {"simulated": [], "real": []}
    for name in arguments.targets:
        for repeat in range(arguments.repeats):
            found["simulated"].append(
                cells(f"{name}, {repeat + 1}", lambda: simulated_cell(name, repeat, arguments))  # noqa: B023
            )
    if arguments.real:
        exposures = read_exposures(arguments.real / "micrographs_rest.star", arguments.real / "Picks")
        pixel_size = exposures[0].optics["pixel_size_angstrom"]
        real = [of_exposure(exposure) for exposure in exposures]
        for number, one in enumerate(real):
            made = partial(real_cell, one, real, pixel_size, arguments)
            found["real"].append(cells(f"real, {number + 1}", made))
    text = "".join(report(kind, some) for kind, some in found.items() if some)
    (arguments.output / "hard_picking.md").write_text(text, encoding="utf-8")
    print(text)


def report(kind: str, cells: Sequence[Cell]) -> str:
    text = f"\n{kind}, {len(cells)} cells\n"
    for figure in ("average precision", "F1", "false", "on contamination"):
        columns = {
            picker: f"{picker} {figure}" for picker in PICKERS if f"{picker} {figure}" in cells[0][RAW]
        }
        if columns:
            text += f"\n{figure}\n\n" + table(cells, columns)
    return text


def simulated_cell(name: str, repeat: int, arguments: argparse.Namespace) -> Cell:
    species = target_species(name, arguments.structures)
    diameter = 1.8 * species.radius_px * PIXEL_SIZE_ANGSTROM
    more = {}
    if arguments.session_steps:
        whole = [one for of in range(arguments.repeats) for one in session(name, species, of, arguments)]
        more[SESSION] = session_model(name, whole, PIXEL_SIZE_ANGSTROM, arguments)
    micrographs = session(name, species, repeat, arguments)
    return judged(micrographs, PIXEL_SIZE_ANGSTROM, diameter, arguments, templates(species), more)


def of_exposure(exposure: Exposure) -> Labelled:
    names = ("voltage_kv", "cs_mm", "amplitude_contrast")
    voltage, cs, amplitude = (exposure.optics[name] for name in names)
    labels = torch.from_numpy(exposure.centres).float()
    optics = (exposure.defocus_u_angstrom, voltage, cs, amplitude)
    return Labelled(-exposure.image, labels, torch.zeros(0, 2), None, optics)


def real_cell(
    one: Labelled, every: Sequence[Labelled], pixel_size: float, arguments: argparse.Namespace
) -> Cell:
    more = {}
    if arguments.session_steps:
        more[SESSION] = session_model("real", every, pixel_size, arguments)
    return judged([one], pixel_size, APOFERRITIN_ANGSTROM, arguments, None, more)


def session(name: str, species: Species, repeat: int, arguments: argparse.Namespace) -> list[Labelled]:
    seed = 10 * repeat + list(TARGETS).index(name)
    return [labelled(species, seed, number) for number in range(arguments.micrographs)]


def session_model(
    name: str, micrographs: Sequence[Labelled], pixel_size: float, arguments: argparse.Namespace
) -> LoadedModel:
    """The shipped model, trained on the tiles of micrographs; what an earlier run made is taken."""
    folder = arguments.output / "session" / "".join(letter for letter in name if letter.isalnum())
    if not (folder / "run" / WEIGHTS_NAME).exists():
        tiles = [one.image.unfold(0, TILE_PX, TILE_PX).unfold(1, TILE_PX, TILE_PX) for one in micrographs]
        white = -torch.cat([one.reshape(-1, TILE_PX, TILE_PX) for one in tiles])
        write_stack(folder / "tiles.mrcs", white, pixel_size)
        trained_on(folder / "tiles.mrcs", folder / "run", arguments.session_steps)
    return load_model(folder / "run" / WEIGHTS_NAME)


def templates(species: Species) -> Tensor:
    """`(n, y, x)` projections of a particle, protein white, the views spread over half a sphere."""
    # Fibonacci's spiral
    height = (torch.arange(TEMPLATES) + 0.5) / TEMPLATES
    turns = torch.arange(TEMPLATES) * 180 * (3 - math.sqrt(5))
    euler = torch.stack([turns, torch.rad2deg(height.acos()), torch.zeros(TEMPLATES)], 1)
    return low_pass(species.projector(rotations_from_euler(euler)), TEMPLATE_ANGSTROM, PIXEL_SIZE_ANGSTROM)


def target_species(name: str, folder: Path) -> Species:
    """The complex, or of one of two chains."""
    code, share = TARGETS[name]
    structure = read_structure(structure_file(folder, code))
    atoms = [
        atom for atom in structure.model.all() if share == 1 or atom.chain.name == structure.model[0].name
    ]
    positions = np.array([atom.atom.pos.tolist() for atom in atoms])
    return of_atoms(name, positions, [atom.atom.element for atom in atoms], PIXEL_SIZE_ANGSTROM, 1.0)


def hard_settings(**more: Any) -> MicrographSettings:
    """Close to focus, in thin to thick ice."""
    return MicrographSettings(
        shape_px=SHAPE_PX,
        pixel_size_angstrom=PIXEL_SIZE_ANGSTROM,
        defocus_angstrom=(4000.0, 12000.0),
        ice_thickness_angstrom=(250.0, 900.0),
        min_distance=1.0,
        **more,
    )


def labelled(species: Species, seed: int, number: int) -> Labelled:
    settings = hard_settings(
        particles_per_square_micrometre=(1500.0, 3500.0),
        # two of five, the same ones for all structures
        carbon_probability=float((seed + number) % 5 < 2),
        discs_per_square_micrometre=100.0,
    )
    made = simulate_micrograph([species], settings, 1000 + seed, number)
    centres = centres_of(made)
    hidden = torch.from_numpy(made.particles.hidden)
    contaminated = made.labels == CONTAMINATION
    names = ("defocus_u_angstrom", "voltage_kv", "cs_mm", "amplitude_contrast")
    defocus, *rest = (float(getattr(made.optics, one)[0]) for one in names)
    return Labelled(-made.image, centres[~hidden], centres[hidden], contaminated, (defocus, *rest))


def judged(
    micrographs: Sequence[Labelled],
    pixel_size: float,
    diameter: float,
    arguments: argparse.Namespace,
    references: Tensor | None = None,
    more: Mapping[str, LoadedModel] | None = None,
) -> Cell:
    """Figures of all methods, those of more models too, and pickers; diameter in Å."""
    raw = torch.stack([one.image for one in micrographs])
    methods = {RAW: raw, TWENTY: low_pass(raw, LOW_PASS_ANGSTROM, pixel_size)}
    if arguments.topaz_python and TOPAZ in arguments.methods:
        methods[TOPAZ] = topaz(arguments.topaz_python, raw, "unet", arguments.threads, whole=True)
    for name, model in {GENERAL: load_model(arguments.model), **(more or {})}.items():
        methods[name] = denoise(model, raw, pixel_size, "auto")
    optics = [one.optics for one in micrographs]
    found: Cell = {}
    for method, images in methods.items():
        figures = found.setdefault(method, {})
        for picker, picks in picked(images, optics, pixel_size, diameter, references, arguments).items():
            for name, value in figures_of(picks, micrographs, diameter / pixel_size).items():
                figures[f"{picker} {name}"] = value
    return found


def picked(
    images: Tensor,
    optics: Sequence[tuple[float, float, float, float]],
    pixel_size: float,
    diameter: float,
    references: Tensor | None,
    arguments: argparse.Namespace,
) -> dict[str, list[Picks]]:
    found = {"LoG": [pick_blobs(-image, diameter / pixel_size, threshold=0.0) for image in images]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_numbered(folder, images, pixel_size)
        write_micrographs(folder / "micrographs.star", optics, pixel_size)
        ways = {"RELION LoG": blob_options(diameter)}
        if references is not None:
            write_stack(folder / "references.mrcs", references, pixel_size)
            ways["RELION template"] = template_options(diameter, pixel_size)
        for picker, options in ways.items():
            found[picker] = relion_picks(folder, len(images), picker, options)
        if arguments.topaz_python:
            python, threads = arguments.topaz_python, arguments.threads
            found["Topaz detector"] = detector_picks(
                folder, len(images), pixel_size, diameter, python, threads
            )
    return found


def blob_options(diameter: float) -> list[str]:
    options = ["--LoG", "--LoG_diam_min", f"{0.8 * diameter:.1f}", "--LoG_diam_max", f"{1.1 * diameter:.1f}"]
    # more picks than are wanted: the threshold is the score's
    return [*options, "--LoG_adjust_threshold", "-3", "--shrink", "0", "--lowpass", "20"]


def template_options(diameter: float, pixel_size: float) -> list[str]:
    options = [
        "--ref",
        "references.mrcs",
        "--invert",
        "--ctf",
        "--ang",
        "20",
        "--shrink",
        "0",
        "--lowpass",
        "20",
    ]
    options += ["--angpix", str(pixel_size), "--angpix_ref", str(pixel_size), "--threshold", "0"]
    return [*options, "--particle_diameter", f"{diameter:.1f}", "--min_distance", f"{0.7 * diameter:.1f}"]


def write_micrographs(
    path: Path, optics: Sequence[tuple[float, float, float, float]], pixel_size: float
) -> None:
    """RELION's table of 0.mrc, 1.mrc and so on, one optics group."""
    _, voltage, cs, amplitude = optics[0]
    group = {
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnOpticsGroup": 1,
        "rlnMicrographOriginalPixelSize": pixel_size,
        "rlnMicrographPixelSize": pixel_size,
        "rlnVoltage": voltage,
        "rlnSphericalAberration": cs,
        "rlnAmplitudeContrast": amplitude,
    }
    columns = ("rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
    rows = [(f"{number}.mrc", 1, one[0], one[0], 0.0) for number, one in enumerate(optics)]
    write_tables(path, [("optics", list(group), [list(group.values())]), ("micrographs", columns, rows)])


def relion_picks(folder: Path, n: int, picker: str, options: Sequence[str]) -> list[Picks]:
    """What relion_autopick finds on the micrographs of a folder."""
    name = picker.split()[-1]
    run(
        ["relion_autopick", "--i", "micrographs.star", "--odir", "picks/", "--pickname", name, *options],
        folder,
    )
    found = []
    for number in range(n):
        path = folder / "picks" / f"{number}_{name}.star"
        rows = starfile.read(path) if path.exists() else None
        if rows is None or not len(rows):
            found.append(Picks(torch.zeros(0, 2), torch.zeros(0)))
            continue
        centres = torch.tensor(rows[["rlnCoordinateY", "rlnCoordinateX"]].to_numpy(), dtype=torch.float32)
        scores = torch.tensor(rows["rlnAutopickFigureOfMerit"].to_numpy(), dtype=torch.float32)
        found.append(Picks(centres, scores))
    return found


def figures_of(
    picks: Sequence[Picks], micrographs: Sequence[Labelled], diameter_px: float
) -> dict[str, float]:
    """Average precision; and, at the threshold of the best F1, that, and what the false picks are."""
    radius = diameter_px / 2
    picks = [without(one, truth.hidden, radius) for one, truth in zip(picks, micrographs, strict=True)]
    labels = [truth.centres for truth in micrographs]
    figures = {"average precision": average_precision(picks, labels, radius)}
    scores = torch.cat([one.scores for one in picks])
    best = 0.0
    figures |= {"F1": 0.0, "false": 0.0}
    for threshold in scores.quantile(torch.linspace(0, 0.95, 40)) if len(scores) else ():
        kept = [one.centres_px[one.scores >= threshold] for one in picks]
        parts = [score_picks(some, of, radius) for some, of in zip(kept, labels, strict=True)]
        total = sum(parts[1:], parts[0])
        if total.f1 > best:
            best = total.f1
            figures |= {"F1": total.f1, "false": 1 - total.precision}
            if micrographs[0].contaminated is not None:
                figures["on contamination"] = on_contamination(kept, micrographs)
    return figures


def without(picks: Picks, hidden: Tensor, radius_px: float) -> Picks:
    """Picks that lie on no hidden particle."""
    if not len(hidden) or not len(picks.centres_px):
        return picks
    free = torch.cdist(picks.centres_px.float(), hidden).amin(1) > radius_px
    return Picks(picks.centres_px[free], picks.scores[free])


def on_contamination(picks: Sequence[Tensor], micrographs: Sequence[Labelled]) -> float:
    """Share of picks `(n, 2)` (y, x) whose centre lies on contamination."""
    there = total = 0
    for some, truth in zip(picks, micrographs, strict=True):
        assert truth.contaminated is not None
        place = some.round().long()
        for axis in (0, 1):
            place[:, axis].clamp_(0, truth.contaminated.shape[axis] - 1)
        there += int(truth.contaminated[place[:, 0], place[:, 1]].sum())
        total += len(place)
    return there / max(total, 1)


if __name__ == "__main__":
    main()
