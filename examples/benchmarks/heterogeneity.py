"""Two conformations: do they separate better once the images are denoised?

    python heterogeneity.py --structures DIR --topaz-python PYTHON --output OUT
                            [--images 600] [--snr 0.03] [--repeats 3] [--quick]

8eow and 8ep1, a potassium channel with its voltage sensors up and down, on which no model was trained. In
one view (a preferred orientation, of which the angle in the plane is known and taken back; one view is what
[1]_ cluster, too), half of the images of each; half of the stack beside them in random views, as a real one.
Boxes of 64 px with white noise of the signal-to-noise ratio `--snr` inside the particle's circle, CTFs of
0.8 to 2 µm, one mean view a repeat.

Of all methods' images, and those of the covariance Wiener filter through the CTF (of the whole stack,
without like views), the phases are flipped by the CTF: otherwise the first component is the defocus. Then
they are laid out in two dimensions by principal components and, at most 2,000 of them, by Isomap and grouped
by k-means. Accuracy is the share in the right group, 0.5 by chance, and `best line` that of the best line
between the truths (linear discriminant on twenty components, 5-fold): what is there to be found.

Writes heterogeneity.json and heterogeneity.md to OUT.

References
----------
.. [1] Gu, Unarta, Huang & Yao, arXiv:2008.07307.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import cross_val_score
from torch import Tensor
from user_tasks import (
    Cell,
    Cells,
    asked_methods,
    count,
    denoised_by_each,
    structure_file,
    table,
    task_parser,
    write_particles,
)

from cryohush.core.context.stack_context import circle, fit_context
from cryohush.core.imaging.ctf import CtfParameters, ctf
from cryohush.core.imaging.morph import conformational_series
from cryohush.core.imaging.noise import image_generator, uniform
from cryohush.core.imaging.normalise import default_radius_px, normalise
from cryohush.core.imaging.projection import Projector, random_rotations, rotations_from_euler
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.metrics.clustering import clustering_scores, embed, group

BOX_PX, DIAMETER_SHARE = 64, 0.7
PAIR = ("8eow", "8ep1")
ISOMAP_MOST = 2000
LINEAR = "covariance Wiener filter"
FIGURES = {"principal components": "pca", "Isomap": "isomap", "best line": "line"}


def main() -> None:
    parser = task_parser(__doc__, "200 images, one repeat")
    parser.add_argument("--images", type=count, default=600, help="in the one view (default: 600)")
    parser.add_argument("--snr", type=float, nargs="+", default=[0.03], help="default: 0.03")
    parser.set_defaults(repeats=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.images, arguments.repeats, arguments.snr = 200, 1, arguments.snr[-1:]
    settings = {"images": arguments.images, "box_px": BOX_PX, "model": arguments.model, "phases": "flipped"}
    cells = Cells("heterogeneity", settings, arguments.output, asked_methods(arguments))
    text = ""
    for snr in arguments.snr:
        found = [
            cells(f"SNR {snr:g}, {repeat + 1}", lambda: cell(snr, repeat, arguments))  # noqa: B023
            for repeat in range(arguments.repeats)
        ]
        text += f"\nSNR {snr:g}, {len(found)} views\n\n" + table(found, FIGURES)
    (arguments.output / "heterogeneity.md").write_text(text, encoding="utf-8")
    print(text)


def cell(snr: float, repeat: int, arguments: argparse.Namespace) -> Cell:
    n = arguments.images
    images, optics, pixel_size, psi, state = two_states(arguments.structures, n, snr, repeat)
    with tempfile.TemporaryDirectory() as folder:
        write_particles(Path(folder) / "images.star", images, pixel_size, optics)
        methods = denoised_by_each(Path(folder) / "images.star", arguments)
    radius = default_radius_px((BOX_PX, BOX_PX))
    context = fit_context(images, optics, pixel_size_angstrom=pixel_size, radius_px=radius, with_views=False)
    methods[LINEAR] = torch.cat(
        [
            context.channels(images[members], optics[members])[:, 0]
            for members in torch.arange(2 * n).split(256)
        ]
    )
    mask = circle(BOX_PX, DIAMETER_SHARE / 2 * BOX_PX + 3)
    found: Cell = {}
    for method, shown in methods.items():
        flipped = phases_flipped(shown[:n], optics[torch.arange(n)], pixel_size)
        upright = turned_back(flipped, psi[:n]) * mask
        vectors = PCA(20, random_state=0).fit_transform(upright.flatten(1).numpy())
        line = cross_val_score(LinearDiscriminantAnalysis(), vectors, state[:n].numpy(), cv=5)
        found[method] = {
            name: clustering_scores(group(embed(upright, name), 2), state[:n]).accuracy  # type: ignore[arg-type]
            for name in (("pca", "isomap") if n <= ISOMAP_MOST else ("pca",))
        } | {"line": float(line.mean())}
    return found


def two_states(
    structures: Path, n: int, snr: float, seed: int
) -> tuple[Tensor, CtfParameters, float, Tensor, Tensor]:
    """`(2 n, y, x)` images, CTF, pixel size, and `(2 n,)` angles in the plane and conformations."""
    ends = [read_structure(structure_file(structures, name)) for name in PAIR]
    states = conformational_series(ends[0], ends[1], 0)
    pixel_size = 2 * max(one.radius_angstrom for one in states) / (DIAMETER_SHARE * BOX_PX)
    generator = image_generator(seed, 0, "two states")
    state = torch.arange(2 * n) % 2
    rotations = random_rotations(2 * n, generator)
    psi = uniform(2 * n, (-180.0, 180.0), generator)
    turns = torch.zeros(2 * n, 3)
    turns[:, 2] = psi
    # the image's own turn comes first, then the common view
    rotations[:n] = random_rotations(1, generator) @ rotations_from_euler(turns[:n])
    defocus = uniform(2 * n, (8000.0, 20000.0), generator)
    rest = [torch.full_like(defocus, value) for value in (300.0, 2.7, 0.1, 0.0)]
    optics = CtfParameters(defocus, defocus - 100, torch.zeros_like(defocus), *rest)
    clean = torch.empty(2 * n, BOX_PX, BOX_PX)
    for number, structure in enumerate(states):
        projector = Projector(potential_map(structure, BOX_PX, pixel_size, 8 * pixel_size**2))
        for members in (state == number).nonzero().squeeze(1).split(100):
            transfer = ctf(optics[members], torch.full((len(members),), pixel_size), BOX_PX)
            seen = torch.fft.rfft2(projector(rotations[members])) * transfer
            clean[members] = torch.fft.irfft2(seen, s=(BOX_PX, BOX_PX))
    inside = circle(BOX_PX, default_radius_px((BOX_PX, BOX_PX))) > 0.5
    clean = clean / clean[:, inside].var(1).mean().sqrt()
    noisy = clean * snr**0.5 + torch.randn(clean.shape, generator=generator)
    return normalise(noisy, default_radius_px((BOX_PX, BOX_PX)))[0], optics, pixel_size, psi, state


def phases_flipped(images: Tensor, optics: CtfParameters, pixel_size: float) -> Tensor:
    """`(n, y, x)` images with the sign that the CTF gave to their frequencies taken back."""
    shape = (images.shape[-2], images.shape[-1])
    sign = ctf(optics, torch.full((len(images),), pixel_size), shape).sign()
    return torch.fft.irfft2(torch.fft.rfft2(images) * sign, s=shape)


def turned_back(images: Tensor, psi_degrees: Tensor) -> Tensor:
    """`(n, y, x)` images with their angle in the plane taken back."""
    from classification import aligned

    return aligned(images, torch.zeros(len(images), 2), psi_degrees)


if __name__ == "__main__":
    main()
