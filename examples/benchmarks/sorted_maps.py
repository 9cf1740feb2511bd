"""What sorting is worth: the map of raw particles after junk was thrown out, each way, beside the truth.

    python sorted_maps.py --structures DIR --output OUT [--structure-names 6cvm ...] [--boxes 1000]
                          [--junk 0.2 0.5] [--repeats 1] [--quick]

Stacks as those of sorting.py, with a fifth and with a half of junk. All raw images get a pose once, by
matching them with projections of the true map cut off at the Nyquist frequency of half the box (about 18 Å),
as a refinement that has begun well would have it; junk, too: where it looks most like the particle.
From these poses and the raw images a map is made of what is left after

- nothing is thrown out;
- `cryohush denoise --score`: what its table of trusted particles lists, by default and with `--context none`;
- the same score from the raw images;
- RELION's Class2D of raw or of denoised images, and a user with perfect judgement: classes stay of which
  more than half are particles;
- all junk is thrown out by the truth, which is out of reach.

`kept` is the share of the stack, `purity` that of particles among them, `recall` of the particles.
`resolution` is the FSC of 0.5 with the true map within a soft sphere (1/Å), `fsc` the mean FSC with it from
40 Å to the Nyquist frequency, which steps less.

Writes sorted_maps.json and sorted_maps.md to OUT.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import starfile
import torch
from classification import classify
from direct_inversion import Reconstruction
from projection_matching import Optics, Poses, Reference
from reconstruction import LARGEST_SHIFT_PX, resolution, soft_sphere
from sorting import BOX_PX, DIAMETER_SHARE, SHARES, image_scores, mixed_stack
from torch import Tensor
from user_tasks import (
    HELD_OUT,
    Cell,
    Cells,
    count,
    cryohush_denoise,
    structure_file,
    table,
    task_parser,
    write_particles,
)

from cryohush.core.config.denoise import SUSPICIOUS_BELOW
from cryohush.core.imaging.ctf import CtfParameters
from cryohush.core.imaging.rings import ring_index
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.io.image_names import split_image_name
from cryohush.core.metrics.fourier import fourier_shell_correlation
from cryohush.core.metrics.ordinary import figure_of_merit

EVERYTHING, TRUTH = "nothing thrown out", "by the truth"
RAW_SCORE, SCORE, SCORE_ALONE = "score of raw images", "`--score`", "`--score --context none`"
RAW_CLASSES, CLASSES = "Class2D of raw images", "Class2D of denoised images"
N_CLASSES, COARSE_ANGSTROM = 8, 40.0
FIGURES = {name: name for name in ("kept", "purity", "recall", "resolution", "fsc")}


def main() -> None:
    parser = task_parser(__doc__, "one structure, 300 boxes, three iterations of RELION")
    parser.add_argument("--structure-names", nargs="+", default=list(HELD_OUT))
    parser.add_argument("--boxes", type=count, default=1000, help="of a stack (default: 1000)")
    parser.add_argument("--junk", type=float, nargs="+", default=[0.2, 0.5], help="shares (default: .2 .5)")
    parser.add_argument("--iterations", type=count, default=6, help="of RELION (default: 6)")
    parser.set_defaults(repeats=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.structure_names, arguments.boxes, arguments.repeats = arguments.structure_names[:1], 300, 1
        arguments.iterations, arguments.junk = 3, arguments.junk[-1:]
    names = ("boxes", "iterations", "model")
    settings = {"box_px": BOX_PX, "classes": N_CLASSES, **{name: getattr(arguments, name) for name in names}}
    cells = Cells("sorted_maps", settings, arguments.output)
    found: dict[float, list[Cell]] = {share: [] for share in arguments.junk}
    for name in arguments.structure_names:
        for repeat in range(arguments.repeats):
            for share, some in found.items():
                key = f"junk {share:.0%}, {name}, {repeat + 1}"
                some.append(cells(key, lambda: cell(name, share, repeat, arguments)))  # noqa: B023
    text = "".join(
        f"\njunk {share:.0%}, {len(some)} stacks\n\n" + table(some, FIGURES, EVERYTHING)
        for share, some in found.items()
    )
    (arguments.output / "sorted_maps.md").write_text(text, encoding="utf-8")
    print(text)


def cell(name: str, junk: float, repeat: int, arguments: argparse.Namespace) -> Cell:
    structure = read_structure(structure_file(arguments.structures, name))
    shares = {
        kind: 1 - junk if kind == "particle" else share * junk / (1 - SHARES["particle"])
        for kind, share in SHARES.items()
    }
    images, optics, kind, pixel_size = mixed_stack(structure, 50 + repeat, arguments.boxes, shares)
    good = kind == 0
    truth = potential_map(structure, BOX_PX, pixel_size, 8 * pixel_size**2)
    poses = matched(images, Optics(optics, pixel_size), truth)
    mask = soft_sphere(BOX_PX, 1.1 * structure.radius_angstrom / pixel_size)
    found: Cell = {}
    for method, left in selections(images, optics, good, pixel_size, repeat, arguments).items():
        volume = reconstructed(images, Optics(optics, pixel_size), poses, left)
        curve = fourier_shell_correlation(mask * volume, mask * truth)
        first = round(BOX_PX * pixel_size / COARSE_ANGSTROM)
        found[method] = {
            "kept": float(left.float().mean()),
            "purity": float(good[left].float().mean()),
            "recall": float(left[good].float().mean()),
            "resolution": 1 / resolution(curve, pixel_size, 0.5),
            "fsc": float(curve[first : BOX_PX // 2].mean()),
        }
    return found


def matched(images: Tensor, optics: Optics, truth: Tensor) -> Poses:
    """Poses of images; each Fourier ring weighs as much as any other."""
    reference = Reference(truth, BOX_PX // 2, 2, 1.5 * LARGEST_SHIFT_PX)
    rows = torch.fft.fftfreq(reference.box_px, 1 / reference.box_px).long()
    power = torch.fft.rfft2(images).abs().square().mean(0)[rows, : reference.box_px // 2 + 1]
    ring = ring_index((reference.box_px, reference.box_px))
    total = torch.zeros(int(ring.max()) + 1).index_add_(0, ring.flatten(), power.flatten())
    return reference.poses(images, optics, (total / torch.bincount(ring.flatten()))[ring])


def selections(
    images: Tensor,
    optics: CtfParameters,
    good: Tensor,
    pixel_size: float,
    seed: int,
    arguments: argparse.Namespace,
) -> dict[str, Tensor]:
    """`(n,)` whether each image stays, by what decides."""
    radius = DIAMETER_SHARE / 2 * BOX_PX
    found = {EVERYTHING: torch.ones_like(good), TRUTH: good}
    merit = figure_of_merit(-image_scores(images, images, radius)["ordinary"])
    found[RAW_SCORE] = merit >= SUSPICIOUS_BELOW
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_particles(folder / "boxes.star", images, pixel_size, optics)
        diameter = ["--score", "--particle-diameter", f"{2 * radius * pixel_size:.1f}"]
        cryohush_denoise(folder / "boxes.star", folder / "alone", arguments, [*diameter, "--context", "none"])
        found[SCORE_ALONE] = trusted(folder / "alone", len(images))
        denoised = cryohush_denoise(folder / "boxes.star", folder / "stack", arguments, diameter)
        found[SCORE] = trusted(folder / "stack", len(images))
        for method, shown in ((RAW_CLASSES, images), (CLASSES, denoised)):
            place = folder / method.replace(" ", "_")
            place.mkdir()
            write_particles(place / "in.star", shown, pixel_size, optics)
            rows, _ = classify(place, pixel_size, N_CLASSES, seed, None, arguments)
            found[method] = good_classes(rows["class"], good)
    return found


def trusted(folder: Path, n: int) -> Tensor:
    """`(n,)` whether a job's table of trusted particles has each image of a stack."""
    (path,) = folder.glob("*trusted*.star")
    names = starfile.read(path)["particles"]["rlnImageName"]
    found = torch.zeros(n, dtype=torch.bool)
    found[[int(split_image_name(name)[0]) - 1 for name in names]] = True
    return found


def good_classes(classes: Tensor, good: Tensor) -> Tensor:
    """`(n,)` whether an image is in a class of which more than half are good."""
    some = torch.bincount(classes, good.double()) / torch.bincount(classes).clamp_min(1)
    return some[classes] > 0.5


def reconstructed(images: Tensor, optics: Optics, poses: Poses, left: Tensor) -> Tensor:
    """`(z, y, x)` map of the raw images that are left."""
    reconstruction = Reconstruction(images.shape[-1])
    for index in left.nonzero().squeeze(1).split(200):
        reconstruction.add(
            images[index],
            poses.rotations[index],
            transfer=optics[index].transfer(reconstruction.padded_px),
            shifts_px=poses.shifts_px[index],
        )
    return reconstruction.volume()


if __name__ == "__main__":
    main()
