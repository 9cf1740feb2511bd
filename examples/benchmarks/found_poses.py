"""Poses from a start of 40 Å, as RELION finds them: are those of denoised particles better?

    python found_poses.py --structures DIR --topaz-python PYTHON --output OUT
                          [--particles 250] [--iterations 4] [--quick]

Boxes of 64 px from simulated micrographs (physical dose, defocus 0.8 to 2 µm) of two structures without
symmetry that no model was trained on. `relion_refine` begins with the true map cut off at 40 Å, searches all
orientations in each iteration (15°, then half of that) and refines under its noise model, as a 3D
classification with one class does. The poses of the last iteration are compared with the true ones.

Figures are the median error of the whole rotation and of the viewing direction, degrees, and the share
of the particles within 15°; and the FSC of 0.5 (1/Å) of the map that raw images give in these poses with the
true one: what the poses are worth.

Writes found_poses.json and found_poses.md to OUT.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path

import mrcfile
import torch
from direct_inversion import Reconstruction
from projection_matching import Optics
from reconstruction import resolution
from torch import Tensor
from user_tasks import (
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

from cryohush.core.imaging.projection import rotations_from_euler
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.metrics.fourier import fourier_shell_correlation
from cryohush.core.metrics.pose import Poses, pose_errors

BOX_PX, DIAMETER_SHARE = 64, 0.65
START_ANGSTROM = 40.0
STRUCTURES = ("4zxb", "pdb7pbl")
FIGURES = {
    "median error, degrees": "median",
    "of the direction": "direction",
    "within 15°": "within 15",
    "map of raw images, 1/Å": "resolution",
}


def main() -> None:
    parser = task_parser(__doc__, "one structure, 60 particles, two iterations")
    parser.add_argument("--particles", type=count, default=250, help="of a stack (default: 250)")
    parser.add_argument("--iterations", type=count, default=4, help="of RELION (default: 4)")
    parser.add_argument("--structure-names", nargs="+", default=list(STRUCTURES))
    parser.set_defaults(repeats=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.structure_names, arguments.repeats = arguments.structure_names[:1], 1
        arguments.particles, arguments.iterations = 60, 2
    names = ("particles", "iterations", "model")
    settings = {"box_px": BOX_PX, **{name: getattr(arguments, name) for name in names}}
    cells = Cells("found_poses", settings, arguments.output, asked_methods(arguments))
    found = []
    for name in arguments.structure_names:
        for repeat in range(arguments.repeats):
            key = f"{name}, {repeat + 1}"
            keep = partial(cells.method, key)
            found.append(cells(key, lambda: cell(name, repeat, arguments, keep)))  # noqa: B023
    text = f"{len(found)} cells\n\n" + table(found, FIGURES)
    (arguments.output / "found_poses.md").write_text(text, encoding="utf-8")
    print(text)


def cell(name: str, repeat: int, arguments: argparse.Namespace, keep: Keep) -> Cell:
    """Figures of each method; `keep` gives those that were found before the last run was stopped."""
    path = structure_file(arguments.structures, name)
    particles, _, pixel_size = simulate_particles(
        [path], arguments.particles, BOX_PX, DIAMETER_SHARE, 200 + repeat
    )
    truth = potential_map(read_structure(path), BOX_PX, pixel_size, 8 * pixel_size**2)

    def judged(place: Path, images: Tensor) -> dict[str, float]:
        place.mkdir()
        write_particles(place / "in.star", images, pixel_size, particles.optics)
        with mrcfile.new(place / "start.mrc") as file:
            file.set_data(truth.numpy())
            file.voxel_size = pixel_size
        return figures(refined(place, pixel_size, arguments), particles, truth, pixel_size)

    found: Cell = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_particles(folder / "particles.star", particles.images, pixel_size, particles.optics)
        images = denoised_by_each(folder / "particles.star", arguments)
        for number, (method, shown) in enumerate(images.items()):
            found[method] = keep(method, partial(judged, folder / f"refine{number}", shown))
    return found


def refined(folder: Path, pixel_size: float, arguments: argparse.Namespace) -> Poses:
    """The poses that relion_refine finds for in.star."""
    options = {
        "ref": "start.mrc", "ini_high": START_ANGSTROM, "K": 1, "sym": "C1",
        "iter": arguments.iterations, "tau2_fudge": 4, "particle_diameter": 0.9 * BOX_PX * pixel_size,
        "oversampling": 1, "healpix_order": 2, "offset_range": 4, "offset_step": 2, "random_seed": 1,
        "pad": 1, "pool": 50, "j": arguments.threads,
    }  # fmt: skip
    data = relion_refine(folder, options, ["--firstiter_cc"])
    euler = torch.tensor(data[["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]].to_numpy()).float()
    return Poses(rotations_from_euler(euler), -shifts_of(data, pixel_size), torch.ones(len(data)))


def figures(
    found: Poses, particles: SimulatedParticles, truth: Tensor, pixel_size: float
) -> dict[str, float]:
    """Errors of poses, and the frequency (1/Å) to which raw images reconstruct with them."""
    errors = pose_errors(found, Poses(particles.rotations, particles.shifts_px, found.correlation))
    optics = Optics(particles.optics, pixel_size)
    reconstruction = Reconstruction(BOX_PX)
    for members in torch.arange(len(particles.images)).split(100):
        reconstruction.add(
            particles.images[members],
            found.rotations[members],
            transfer=optics[members].transfer(reconstruction.padded_px),
            shifts_px=found.shifts_px[members],
        )
    curve = fourier_shell_correlation(reconstruction.volume(), truth)
    return {
        "median": float(errors.angle_degrees.median()),
        "direction": float(errors.direction_degrees.median()),
        "within 15": errors.share_within(15.0),
        "resolution": 1 / resolution(curve, pixel_size, 0.5),
    }


if __name__ == "__main__":
    main()
