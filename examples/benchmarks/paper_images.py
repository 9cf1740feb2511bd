"""Test images of known molecules for `papers.py`, and the limits of what can be made of them.

The poses of the test images lie on a grid, so that the Bayes limit is one; those of the training images are
drawn from all of SO(3), so that no test image shows a pose of the training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import gemmi
import mrcfile
import test_set
import torch
from bayes_denoiser import BayesDenoiser
from direct_inversion import reconstruct
from pairs import write_stack
from paper_tables import Case, Row, Size, Table
from reconstruction import resolution, soft_sphere
from torch import Tensor

from cryohush.core.classical.covariance import ImageCovariance, estimate_covariance
from cryohush.core.classical.fourier_bessel import FourierBesselBasis
from cryohush.core.imaging.maps import read_map
from cryohush.core.imaging.morph import conformational_series
from cryohush.core.imaging.noise import random_patch
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.resample import low_pass_volume
from cryohush.core.imaging.structure import Structure, potential_map, read_structure
from cryohush.core.io.mrc import StackReader
from cryohush.core.metrics.fourier import fourier_shell_correlation
from cryohush.core.metrics.image import grey_value_span
from cryohush.core.metrics.pose_grid import PoseGrid
from cryohush.core.simulation.classes import split_by_model

PARTICLE_SHARE = 0.6  # of the box, as the presets have it
# the B of the training data, 0 to 120 Å² beside what the grid needs, on average
_B_FACTOR = 60.0
_PER_CLASS = 30
# structural noise: no finer than this, within this share of the box
_CLOUD_ANGSTROM, _CLOUD_SHARE = 25.0, 0.8
# up to this box all templates fit into memory, and matrix products beat a coarse stage
_ALL_AT_ONCE_PX = 64


@dataclass(frozen=True)
class Molecule:
    """The conformations of one molecule at one pixel size.

    Attributes
    ----------
    folder
        An mmCIF file for each conformation, from which training projects.
    volumes
        `(d, d, d)` each.
    linear
        Mean and covariance of the clean views, of all conformations.
    variance_range
        5th and 95th percentile of the views' variances over their mean.
    structural
        `(d, d, d)` density that is not the particle's, which noisy images show, too.
    """

    folder: Path
    volumes: list[Tensor]
    pixel_size_angstrom: float
    grid: PoseGrid
    linear: ImageCovariance
    mean_variance: float
    mean_span: float
    variance_range: tuple[float, float]
    structural: Tensor | None = None

    @property
    def box_px(self) -> int:
        return int(self.volumes[0].shape[0])

    def views(self, rotations: Tensor, states: Tensor) -> Tensor:
        """`(n, 3, 3)` rotations of the conformations `(n,)` to `(n, y, x)` clean images."""
        images = torch.empty(len(states), self.box_px, self.box_px)
        return _project(self.volumes, rotations, states, images)

    def beside(self, rotations: Tensor) -> Tensor:
        """What views `(n, y, x)` show beside the particle."""
        images = torch.zeros(len(rotations), self.box_px, self.box_px)
        if self.structural is None:
            return images
        return _project([self.structural], rotations, torch.zeros(len(rotations), dtype=torch.int64), images)


@dataclass(frozen=True)
class Noise:
    """Blocks of real noise: a stack to train on, and others `(n, y, x)` for the test images."""

    of_training: Path
    of_tests: Tensor


@dataclass(frozen=True)
class TestSet:
    """A stack with noise of variance 1, and what its images show."""

    stack: test_set.Stack
    rotations: Tensor
    states: Tensor
    #: `(views, 60, y, x)` noisy images of the first and the last conformation in turn, a view in each stack
    told_apart: Tensor | None
    #: of 60 images of a view, how many who knows the view and both maps can tell apart, on average
    ceiling: float | None
    #: `(n, y, x)` structural noise in the noisy images
    structural: Tensor | None = None


def make_molecule(structures: Path, table: Table, size: Size, folder: Path, seed: int) -> Molecule:
    """Write the conformations as files and measure their clean views."""
    generator = torch.Generator().manual_seed(seed)
    states = [read_structure(test_set.find_structure(structures, name)) for name in table.molecule]
    if table.intermediates:
        states = conformational_series(states[0], states[1], table.intermediates)
    folder.mkdir(parents=True, exist_ok=True)
    for state in states:
        _write_structure(state, folder / f"{state.name}.cif")
    pixel_size = 2 * max(state.radius_angstrom for state in states) / (PARTICLE_SHARE * size.box_px)
    b_factor = 8 * pixel_size**2 + _B_FACTOR
    volumes = [potential_map(state, size.box_px, pixel_size, b_factor) for state in states]
    structural = None
    if table.structural:
        map_path = folder.with_name("maps") / f"{states[0].name}.mrc"
        written = read_structure(folder / f"{states[0].name}.cif")  # about the origin
        _write_map(map_path, written, volumes[0], pixel_size, generator)
        parts = split_by_model(read_map(map_path), written, 2 * pixel_size)
        volumes, structural = [parts[0].volume], parts[1].volume
    grid = PoseGrid.centred(size.pose_order)
    n = 2 * size.stack
    which = torch.randint(len(volumes), (n,), generator=generator)
    others = _project(
        volumes, random_rotations(n, generator), which, torch.empty(n, size.box_px, size.box_px)
    )
    variance = others.var((1, 2))
    low, high = torch.quantile(variance / variance.mean(), torch.tensor([0.05, 0.95])).tolist()
    return Molecule(
        folder,
        volumes,
        pixel_size,
        grid,
        estimate_covariance(others, 0.0, FourierBesselBasis(size.box_px)),
        float(variance.mean()),
        float(grey_value_span(others).mean()),
        (low, high),
        structural,
    )


def case_snr(case: Case, molecule: Molecule, size: Size) -> float:
    """Variance of the clean images over that of the noise, at the size's box."""
    if case.snr is not None:
        return size.snr(case.snr)
    if case.sigma is None:
        raise SystemExit(f"{case.name}: neither an SNR nor a sigma")
    return molecule.mean_variance * (255 / molecule.mean_span / case.sigma) ** 2


def make_test_set(molecule: Molecule, case: Case, size: Size, blocks: Tensor | None, seed: int) -> TestSet:
    """Noisy images in poses of the refined grid, each of a conformation drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    fine, last = molecule.grid.refined(), len(molecule.volumes) - 1
    states = torch.randint(last + 1, (size.stack,), generator=generator)
    rotations = fine.rotations(torch.randint(fine.n_orientations, (size.stack,), generator=generator))
    scale = float((case_snr(case, molecule, size) / molecule.mean_variance) ** 0.5)
    clean = scale * molecule.views(rotations, states)
    beside = scale * molecule.beside(rotations)
    noise = draw_noise(size.stack, molecule.box_px, blocks if case.real_noise else None, generator)
    power = torch.ones(molecule.box_px, molecule.box_px // 2 + 1)
    if case.real_noise:
        power = torch.fft.rfft2(noise, norm="ortho").abs().square().mean(0)
        power[0, 0] = (power[0, 1] + power[1, 0]) / 2  # each piece was brought to mean 0
    stack = test_set.Stack(
        clean + beside + noise, clean, clean, scale, power, None, None, molecule.pixel_size_angstrom
    )
    told_apart = ceiling = None
    if last:
        apart, correct = [], []
        for pose in torch.randint(fine.n_orientations, (size.views,), generator=generator).split(1):
            either = last * (torch.arange(2 * _PER_CLASS) % 2)
            views = scale * molecule.views(fine.rotations(pose).expand(len(either), 3, 3), either)
            # white noise of variance 1: half the templates' distance is the way to the wrong side
            half = float((views[0] - views[1]).norm()) / 2
            correct.append(len(either) * 0.5 * math.erfc(-half / math.sqrt(2)))
            apart.append(
                views
                + draw_noise(len(either), molecule.box_px, blocks if case.real_noise else None, generator)
            )
        told_apart, ceiling = torch.stack(apart), sum(correct) / len(correct)
    structural = None if molecule.structural is None else beside
    return TestSet(stack, rotations, states, told_apart, ceiling, structural)


def draw_noise(n: int, box_px: int, blocks: Tensor | None, generator: torch.Generator) -> Tensor:
    """`(n, y, x)` white noise, or pieces of blocks, of variance 1."""
    if blocks is None:
        return torch.randn(n, box_px, box_px, generator=generator)
    return torch.stack([random_patch(blocks, (box_px, box_px), generator) for _ in range(n)])


def split_noise(path: Path, folder: Path) -> Noise:
    """The first half of a stack of blocks for training, the second for tests: neighbours overlap."""
    with StackReader(path) as reader:
        blocks = torch.from_numpy(reader.read(range(reader.shape[0])))
    of_training, of_tests = blocks.tensor_split(2)
    folder.mkdir(parents=True, exist_ok=True)
    write_stack(folder / "training_noise.mrcs", of_training, None)
    return Noise(folder / "training_noise.mrcs", of_tests)


def bayes_limit(images: Tensor, stack: test_set.Stack, molecule: Molecule) -> Tensor:
    """Posterior mean over all poses and conformations, `(n, y, x)`."""
    means, evidence = [], []
    for volume in molecule.volumes:
        scaled = stack.scale * volume
        if molecule.box_px <= _ALL_AT_ONCE_PX:
            posterior = BayesDenoiser(scaled, molecule.grid.refined(), stack.noise_power)(images)
        else:
            posterior = BayesDenoiser(
                scaled, molecule.grid, stack.noise_power, refine_from_box_px=molecule.box_px // 2
            )(images)
        means.append(posterior.mean)
        evidence.append(posterior.log_evidence)
    weight = torch.softmax(torch.stack(evidence).double(), 0).float()
    return (weight[:, :, None, None] * torch.stack(means)).sum(0)


def pose_floor(test: TestSet, molecule: Molecule, n: int) -> float:
    """Cramér-Rao bound of the normalised error for continuous angles, of the first n images."""
    total = 0.0
    for state, volume in enumerate(molecule.volumes):
        mine = (test.states[:n] == state).nonzero().squeeze(1)
        if not len(mine):
            continue
        views = test.stack.views[mine]
        specimen = test_set.Specimen(
            views, test.rotations[mine], views, volume, molecule.grid, molecule.pixel_size_angstrom
        )
        total += len(mine) * test_set.pose_floor(test.stack, specimen, slice(len(mine)))
    return total / n / float(test.stack.clean[:n].var((1, 2), correction=0).mean())


def map_resolutions(images: Tensor, test: TestSet, molecule: Molecule) -> dict[str, float]:
    """Å where the FSC with the truth falls below 0.5 and 0.143, of a map of `(n, y, x)` images in true poses.

    0.143 is what [2] of `paper_tables` reads off; with the truth, 0.5 is the criterion that means the same.
    """
    found = reconstruct(images, test.rotations[: len(images)])
    mask = soft_sphere(molecule.box_px, PARTICLE_SHARE / 2 * molecule.box_px)
    curve = fourier_shell_correlation(mask * found, mask * molecule.volumes[0])
    return {
        name: resolution(curve, molecule.pixel_size_angstrom, threshold)
        for name, threshold in (("map_angstrom", 0.5), ("map_angstrom_0.143", 0.143))
    }


def write_pairs(
    molecule: Molecule, row: Row, snr: float, n: int, folder: Path, seed: int
) -> tuple[Path, Path]:
    """Stacks of noisy images and their targets: clean, or for Noise2Noise noisy again."""
    noisy_path, target_path = folder / "noisy.mrcs", folder / "target.mrcs"
    if noisy_path.exists() and target_path.exists():
        return noisy_path, target_path
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    box = molecule.box_px
    replaced = torch.zeros(n, dtype=torch.bool)
    replaced[torch.randperm(n, generator=generator)[: round(n * row.contaminated_share)]] = True
    stacks = torch.empty(2, n, box, box)
    for some in torch.arange(n).split(512):
        states = torch.randint(len(molecule.volumes), (len(some),), generator=generator)
        rotations = random_rotations(len(some), generator)
        clean = molecule.views(rotations, states)
        seen = clean + molecule.beside(rotations)
        for images in (clean, seen):
            images *= (snr / molecule.mean_variance) ** 0.5
        noisy = seen + draw_noise(len(some), box, None, generator)
        target = clean
        if row.preset == "noise2noise":
            target = seen + draw_noise(len(some), box, None, generator)
        for image, kinds in ((noisy, ("noisy", "both")), (target, ("clean", "both"))):
            if row.contaminant in kinds:
                here = replaced[some]
                image[here] = draw_noise(int(here.sum()), box, None, generator)
        stacks[:, some] = torch.stack([noisy, target])
    for path, images in zip((noisy_path, target_path), stacks, strict=True):
        write_stack(path, images, molecule.pixel_size_angstrom)
    return noisy_path, target_path


def _project(volumes: list[Tensor], rotations: Tensor, states: Tensor, images: Tensor) -> Tensor:
    for state, volume in enumerate(volumes):
        mine = (states == state).nonzero().squeeze(1)
        if not len(mine):
            continue
        projector = Projector(volume)
        for some in mine.split(512):
            images[some] = torch.fft.irfft2(projector.slices(rotations[some]))
    return images


def _write_map(
    path: Path, structure: Structure, particle: Tensor, pixel_size_angstrom: float, generator: torch.Generator
) -> None:
    """A map of a particle in a cloud of smooth density, which has half the variance of the particle's."""
    box = particle.shape[-1]
    cloud = low_pass_volume(
        torch.randn(particle.shape, generator=generator), _CLOUD_ANGSTROM, pixel_size_angstrom
    )
    cloud = soft_sphere(box, _CLOUD_SHARE / 2 * box) * cloud.clamp(min=0)
    cloud *= (0.5 * particle.var() / cloud.var()).sqrt()
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data((particle + cloud).numpy())
        file.voxel_size = pixel_size_angstrom
        half = box // 2 * pixel_size_angstrom
        for axis, centre in zip("xyz", structure.centroid_angstrom, strict=True):
            file.header.origin[axis] = centre - half


def _write_structure(state: Structure, path: Path) -> None:
    whole = gemmi.Structure()
    whole.add_model(state.model)
    whole.setup_entities()
    whole.make_mmcif_document().write_file(str(path))
