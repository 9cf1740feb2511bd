"""How real simulated micrographs are: spectra and histograms over those of real ones, and the distances.

    python realism.py --micrographs micrographs.star --coordinates PICKS --structure FILE --density 5200
        --set 'b_factor_square_angstrom=[200, 350]' --set carbon_probability=0 --output DIR
    python realism.py ... --shell 40 60 33000 ...

`--micrographs` is a RELION table with defocus; `PICKS/<name>*.star` holds the centres. For each real
micrograph one is simulated with its size, pixel size, microscope and defocus, with particles of the structure
at the given density (per µm²); `--set key=value` changes any other of the `MicrographSettings`.

`--shell` replaces the structure by atoms evenly spread between two radii: what is known of a hollow complex
such as apoferritin (inner radius 40 Å, outer 60 Å, 24 chains of about 1400 atoms) without its model.

Every micrograph, real or simulated, has protein made white and is brought to mean 0 and standard deviation 1
of its background, the pixels further than the particle's radius from every centre. Then

- spectra: the mean radial power of the real ones and of the simulated ones; the distance is the root mean
  square of log10 of their ratio over the rings of a band;
- histograms: Wasserstein-1 distance between all pixels of the real and all of the simulated ones, in
  background standard deviations: as they are, and behind a Gaussian that leaves mostly specimen.

For scale: the same distances between the halves of the real set, mean and largest over all ways to halve it.

Writes realism.json and realism.png to DIR.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import gemmi
import mrcfile
import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from torch import Tensor

from cryohush.core.config.load import validate
from cryohush.core.config.micrographs import MicrographSettings
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.io.coordinates import read_coordinates
from cryohush.core.io.star import read_tables, unquote
from cryohush.core.metrics.fourier import radial_power_spectrum, ring_frequencies
from cryohush.core.simulation.micrograph import Species, simulate_micrograph

BANDS_ANGSTROM = {"500 to 100": (500.0, 100.0), "100 to 15": (100.0, 15.0), "15 to Nyquist": (15.0, 0.0)}
ALL_BANDS = "500 to Nyquist"
BLUR_ANGSTROM = 10.0
# of the pixels of each micrograph for the distances between histograms
PIXEL_STEP = 16
REAL_COLOUR, SIMULATED_COLOUR = "0.45", "#c8641b"


@dataclass(frozen=True)
class Exposure:
    """A real micrograph `(y, x)`, protein white, its particles' centres `(n, 2)` (y, x), and its optics."""

    image: Tensor
    centres: NDArray[np.float64]
    defocus_u_angstrom: float
    defocus_v_angstrom: float
    optics: dict[str, float]


@dataclass(frozen=True)
class Statistics:
    """Of one micrograph: radial power `(rings,)`, and pixels as they are and blurred."""

    power: NDArray[np.float64]
    pixels: dict[str, NDArray[np.float32]]


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    exposures = read_exposures(arguments.micrographs, arguments.coordinates)
    pixel_size = exposures[0].optics["pixel_size_angstrom"]
    species = read_species(arguments, pixel_size)
    real, simulated, pictures = [], [], []
    for index, exposure in enumerate(exposures):
        settings = settings_for(exposure, arguments)
        twin = simulate_micrograph([species], settings, arguments.seed, index)
        centres = np.stack([twin.particles.y_px, twin.particles.x_px], axis=1)
        pair = [
            on_background(image, points, species.radius_px)
            for image, points in ((exposure.image, exposure.centres), (twin.image, centres))
        ]
        real.append(statistics(pair[0], pixel_size))
        simulated.append(statistics(pair[1], pixel_size))
        pictures.append(pair)
    shape = (exposures[0].image.shape[-2], exposures[0].image.shape[-1])
    frequency = ring_frequencies(shape, pixel_size).numpy()
    figures = {
        "settings": settings_for(exposures[0], arguments).model_dump(mode="json"),
        "simulated to real": distances(real, simulated, frequency),
        "half to half of the real": half_distances(real, frequency),
    }
    (arguments.output / "realism.json").write_text(json.dumps(figures, indent=2) + "\n")
    draw(real, simulated, pictures, frequency, figures, arguments.output / "realism.png")
    print(json.dumps({k: v for k, v in figures.items() if k != "settings"}, indent=2))


def read_species(arguments: argparse.Namespace, pixel_size_angstrom: float) -> Species:
    if arguments.structure:
        return Species.from_structure(arguments.structure, pixel_size_angstrom, assembly=arguments.assembly)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shell.cif"
        write_shell(path, *arguments.shell[:2], int(arguments.shell[2]))
        return Species.from_structure(path, pixel_size_angstrom)


def write_shell(path: Path, inner_angstrom: float, outer_angstrom: float, n_atoms: int) -> None:
    """An mmCIF file of about that many atoms, as many C, N and O as in protein, between two radii.

    One atom in each cell of a lattice, anywhere in it: as dense everywhere as the inside of a protein.
    """
    random = np.random.default_rng(1)
    side = (4 / 3 * math.pi * (outer_angstrom**3 - inner_angstrom**3) / n_atoms) ** (1 / 3)
    cells = np.indices((2 * math.ceil(outer_angstrom / side),) * 3).reshape(3, -1).T
    positions = (cells - math.ceil(outer_angstrom / side) + random.random(cells.shape)) * side
    radius = np.linalg.norm(positions, axis=1)
    chain = gemmi.Chain("A")
    for number, xyz in enumerate(positions[(radius > inner_angstrom) & (radius < outer_angstrom)], start=1):
        atom, residue = gemmi.Atom(), gemmi.Residue()
        atom.element = gemmi.Element(random.choice(["C", "N", "O"], p=[0.63, 0.17, 0.2]))
        atom.name, atom.pos = atom.element.name, gemmi.Position(*xyz)
        residue.name, residue.seqid = "UNK", gemmi.SeqId(number, " ")
        residue.add_atom(atom)
        chain.add_residue(residue)
    structure, model = gemmi.Structure(), gemmi.Model(1)
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(path))


def settings_for(exposure: Exposure, arguments: argparse.Namespace) -> MicrographSettings:
    """What is known of a real micrograph, and what the user says; the rest is the default."""
    u, v = exposure.defocus_u_angstrom, exposure.defocus_v_angstrom
    known: dict[str, Any] = {
        **exposure.optics,
        "shape_px": tuple(exposure.image.shape),
        "defocus_angstrom": ((u + v) / 2,) * 2,
        "astigmatism_angstrom": (abs(u - v),) * 2,
        "particles_per_square_micrometre": (arguments.density,) * 2,
    }
    for text in arguments.set:
        key, _, value = text.partition("=")
        known[key] = yaml.safe_load(value)
    return validate(known, MicrographSettings, "command line")


def read_exposures(table_path: Path, coordinates: Path) -> list[Exposure]:
    """The micrographs of a RELION 3.1 table, dark protein made white."""
    tables = {}
    for table in read_tables(table_path):
        rows = [tokens for _, _, tokens in table.rows() if tokens]
        tables[table.name] = [dict(zip(table.labels, map(unquote, row), strict=True)) for row in rows]
    groups = {row["rlnOpticsGroup"]: row for row in tables["optics"]}
    exposures = []
    for row in tables["micrographs"]:
        path, group = table_path.parent / row["rlnMicrographName"], groups[row["rlnOpticsGroup"]]
        image = -torch.from_numpy(mrcfile.read(path).astype(np.float32))
        (star,) = coordinates.glob(f"{path.stem}*.star")
        optics = {
            "pixel_size_angstrom": float(group["rlnMicrographPixelSize"]),
            "voltage_kv": float(group["rlnVoltage"]),
            "cs_mm": float(group["rlnSphericalAberration"]),
            "amplitude_contrast": float(group["rlnAmplitudeContrast"]),
        }
        defocus = float(row["rlnDefocusU"]), float(row["rlnDefocusV"])
        exposures.append(Exposure(image, read_coordinates(star), *defocus, optics))
    return exposures


def on_background(image: Tensor, centres: NDArray[np.float64], radius_px: float) -> Tensor:
    """The image with mean 0 and standard deviation 1 where no centre is closer than the radius."""
    outside = torch.ones_like(image, dtype=torch.bool)
    reach = math.ceil(radius_px)
    for y, x in centres.tolist():
        rows = slice(max(round(y) - reach, 0), round(y) + reach + 1)
        columns = slice(max(round(x) - reach, 0), round(x) + reach + 1)
        dy = torch.arange(image.shape[0])[rows, None] - y
        dx = torch.arange(image.shape[1])[None, columns] - x
        outside[rows, columns] &= dy**2 + dx**2 > radius_px**2
    background = image[outside]
    return (image - background.mean()) / background.std()


def statistics(image: Tensor, pixel_size_angstrom: float) -> Statistics:
    blurred = gaussian_filter(image, BLUR_ANGSTROM / pixel_size_angstrom)
    pixels = {"pixels": image, f"pixels behind a Gaussian of {BLUR_ANGSTROM:g} Å": blurred}
    return Statistics(
        radial_power_spectrum(image - image.mean()).double().numpy(),
        {name: values.flatten()[::PIXEL_STEP].numpy() for name, values in pixels.items()},
    )


def distances(
    one: list[Statistics], other: list[Statistics], frequency: NDArray[np.float64]
) -> dict[str, dict[str, float]]:
    """Of the mean spectra, by band in Å, and of the pooled histograms."""
    mean = [np.mean([item.power for item in items], axis=0) for items in (one, other)]
    log_ratio = np.log10(mean[1][1:] / mean[0][1:])
    resolution = 1 / frequency[1:]
    bands = {**BANDS_ANGSTROM, ALL_BANDS: (500.0, 0.0)}
    return {
        "spectrum": {
            name: float(np.sqrt(np.mean(log_ratio[(resolution <= coarse) & (resolution > fine)] ** 2)))
            for name, (coarse, fine) in bands.items()
        },
        "histogram": {
            name: float(wasserstein_distance(*(pooled(items, name) for items in (one, other))))
            for name in one[0].pixels
        },
    }


def pooled(items: list[Statistics], name: str) -> NDArray[np.float32]:
    return np.concatenate([item.pixels[name] for item in items])


def half_distances(items: list[Statistics], frequency: NDArray[np.float64]) -> dict[str, Any]:
    """Mean and largest distance over all ways to halve the set; each way once."""
    half, everyone = len(items) // 2, set(range(len(items)))
    found = []
    for chosen in combinations(range(1, len(items)), half):
        rest = sorted(everyone - set(chosen))
        found.append(distances([items[i] for i in chosen], [items[i] for i in rest], frequency))
    return {
        kind: {
            name: {
                "mean": float(np.mean([one[kind][name] for one in found])),
                "largest": float(max(one[kind][name] for one in found)),
            }
            for name in found[0][kind]
        }
        for kind in found[0]
    }


def draw(
    real: list[Statistics],
    simulated: list[Statistics],
    pictures: list[list[Tensor]],
    frequency: NDArray[np.float64],
    figures: dict[str, Any],
    path: Path,
) -> None:
    figure = Figure(figsize=(16, 10), layout="constrained")
    grid = figure.add_gridspec(2, 12, height_ratios=(4, 5))
    shown = [*pictures[-1], *pictures[2]][:4]
    titles = ("real", "simulated, same defocus") * 2
    for column, (image, title) in enumerate(zip(shown, titles, strict=True)):
        panel = figure.add_subplot(grid[0, 3 * column : 3 * column + 3])
        # dark protein, as micrographs are looked at; a blur of one pixel for the eye
        values = -gaussian_filter(image, 1.0).numpy()
        panel.imshow(values, cmap="gray", vmin=-2.2, vmax=2.2)
        panel.set_title(title)
        panel.set_axis_off()
    spectra = figure.add_subplot(grid[1, :6])
    for items, colour, name in (
        (real, REAL_COLOUR, "real"),
        (simulated, SIMULATED_COLOUR, "simulated"),
    ):
        for item in items:
            spectra.loglog(frequency[1:], item.power[1:], color=colour, alpha=0.25, linewidth=0.6)
        mean = np.mean([item.power for item in items], axis=0)
        spectra.loglog(frequency[1:], mean[1:], color=colour, linewidth=2, label=f"{name}, mean")
    spectra.set_xlabel("spatial frequency (1/Å)")
    spectra.set_ylabel("power per pixel, background variance 1")
    distance = figures["simulated to real"]
    spectra.set_title(f"rms log10 ratio, 500 Å to Nyquist: {distance['spectrum'][ALL_BANDS]:.3f}")
    spectra.legend()
    for number, name in enumerate(real[0].pixels):
        panel = figure.add_subplot(grid[1, 6 + 3 * number : 9 + 3 * number])
        values = pooled(real, name)
        bins = np.linspace(*np.percentile(values, (0.01, 99.99)), 120)
        for items, colour, label in ((real, REAL_COLOUR, "real"), (simulated, SIMULATED_COLOUR, "simulated")):
            panel.hist(pooled(items, name), bins, density=True, histtype="step", color=colour, label=label)
        panel.set_yscale("log")
        panel.set_xlabel("background standard deviations")
        panel.set_title(f"{name}:\nWasserstein-1 {distance['histogram'][name]:.3f}", fontsize=10)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else None,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--micrographs", type=Path, required=True, help="RELION 3.1 table with defocus")
    parser.add_argument("--coordinates", type=Path, required=True, help="folder of coordinate STAR files")
    particle = parser.add_mutually_exclusive_group(required=True)
    particle.add_argument("--structure", type=Path, help="PDB or mmCIF file")
    particle.add_argument(
        "--shell", type=float, nargs=3, metavar=("INNER", "OUTER", "ATOMS"), help="radii in Å"
    )
    parser.add_argument("--assembly", help="biological assembly of it to build")
    parser.add_argument("--density", type=float, required=True, help="particles per µm²")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="other settings")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
