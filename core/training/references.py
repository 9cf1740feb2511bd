"""Pairs for the training loops from a user's own particles: the images, and projections of his map.

The clean image of a particle is the projection of the map in its pose, shifted to its place and modulated by
its CTF, on the grey scale of the normalised image [1]_::

    target = contrast(micrograph) exp(-B s² / 4) CTF x projection

Contrast and fall-off B of each optics group are those of weighted least squares over a sample of the images,
each Fourier ring weighted by the inverse of its power; B takes up the microscope's envelope and a sharpening
of the map. The contrast of a micrograph (ice thickness, dose) is the median over its particles.

What the map does not hold is not in the target and is taught to be noise: neighbours, the ice and its
gradient, other compositions and conformations, whatever the poses miss. Beam tilt, higher aberrations and
anisotropic magnification are not modelled.

References
----------
.. [1] Scheres (2012) J. Struct. Biol. 180, 519-530, doi:10.1016/j.jsb.2012.09.006, eq. 1: the image as the
   CTF times a slice of the map, plus noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.training import ReferenceConfig, StoredSection
from ..errors import InputError
from ..imaging.ctf import b_factor_envelope, ctf, ctf_parameters_of
from ..imaging.maps import DensityMap, read_map, resampled
from ..imaging.noise import image_generator
from ..imaging.normalise import background_statistics
from ..imaging.poses import poses_of
from ..imaging.projection import Projector
from ..imaging.resample import low_pass_volume, shift_phases
from ..imaging.rings import hermitian_weight, ring_index
from ..io.poses import changed_ctf
from ..job_context import QUIET, JobContext
from ..metrics.fourier import ring_frequencies, ring_products
from .stored import StoredImages, augmented, choose_rows, mirrored_to

# Images that were multiplied by a CTF or its sign are not those of the CTF.
# Images that contrast and fall-off are fitted to: of each micrograph, and in all.
_SAMPLED_OF_MICROGRAPH, _SAMPLED = 16, 10_000
# A group of fewer sampled images shares the fit of all; a micrograph of fewer has its group's contrast.
_FEWEST_OF_GROUP, _FEWEST_OF_MICROGRAPH = 32, 8
_LARGEST_CONTRAST_RATIO = 3.0
_FALL_OFFS = torch.arange(0.0, 1001.0, 10.0)  # Å²
_BLOCK = 64
# Images whose fit is compared with that of other images' orientations, and the difference, in standard
# deviations of the noise, that says that the orientations mean something.
_CHECKED, _SIGNIFICANT = 256, 4.0
_LARGEST_CROPPED_SHARE = 0.1
_SAME_SIZE = 1e-3
_EDGE_PX = 3


class ReferenceParticles:
    """Endless pairs of particles and projections, a fixed function of the seed and the batch number.

    Parameters
    ----------
    projections
        The particles and their clean images.
    rows
        Which of them to draw from.
    section
        How they are shifted and their contrast changed.
    seed
        Seed of the order and of the turns and mirror images.
    stride
        The images are mirrored at their borders to a multiple of this side.
    """

    def __init__(
        self,
        projections: ReferenceProjections,
        rows: NDArray[np.intp],
        section: StoredSection,
        *,
        seed: int,
        stride: int = 1,
    ) -> None:
        self.rows, self.structures, self._section = rows, [projections.name], section
        self._projections, self._seed, self._stride = projections, seed, stride
        self.target = "projection"
        self.pixel_size_angstrom: float | None = projections.pixel_size_angstrom

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy `(n, 1, y, x)`, clean `(n, 1, y, x)` and SNR `(n,)`: the variance of the clean image by that
        of the difference."""
        generator = image_generator(self._seed, number, "batch")
        rows = self.rows[torch.randint(len(self.rows), (size,), generator=generator).numpy()]
        pair = augmented(*self._projections.pairs(rows), self._section, generator)
        snr = pair[1].var(dim=(1, 2)) / (pair[0] - pair[1]).var(dim=(1, 2))
        pair = mirrored_to(pair, self._stride)
        return pair[0].unsqueeze(1), pair[1].unsqueeze(1), snr


def open_reference(
    config: ReferenceConfig, *, seed: int, stride: int = 1, context: JobContext = QUIET
) -> tuple[ReferenceParticles, ReferenceParticles]:
    """Training and validation data.

    Raises
    ------
    InputError
        Poses or CTF parameters are missing, the images' CTF was flipped or multiplied, the particles have no
        pixel size or several, the map is larger than their box, or its projections do not look like the
        particles; whatever the readers refuse.
    ConfigurationError
        A half set is asked for and the table has none.
    """
    images = StoredImages(config.particles)
    _refuse_changed_ctf(images)
    chosen = [
        choose_rows(
            images,
            half_set=config.half_set,
            validation_share=config.validation_share,
            held_out=held_out,
            context=context,
        )
        for held_out in (False, True)
    ]
    for line in _half_set_warnings(config, images):
        context.warn(line)
    projections = ReferenceProjections(config, images, np.sort(np.concatenate(chosen)), context)
    return (
        ReferenceParticles(projections, chosen[0], config, seed=seed, stride=stride),
        # validation judges the images as they are
        ReferenceParticles(projections, chosen[1], config.unchanged(), seed=seed + 1, stride=stride),
    )


def _refuse_changed_ctf(images: StoredImages) -> None:
    if (found := changed_ctf(images.table)) is not None:
        label, line = found
        raise InputError(
            f"expected images as the microscope gave them, found {label} set.",
            path=images.table.source,
            line=line,
            remedy="Extract the particles without phase flipping and CTF premultiplication.",
        )


def _half_set_warnings(config: ReferenceConfig, images: StoredImages) -> Iterator[str]:
    if config.half_set is None:
        half_sets = images.half_sets()
        if half_sets is not None and len(np.unique(half_sets)) == 2:
            yield (
                "the model learns from both half sets. An FSC between half maps of what it has "
                "denoised means nothing; train a model for each half set where one is needed"
            )
    elif "half" not in config.map.name:
        yield (
            f"{config.map} does not look like the half map of half set {config.half_set}: a map of "
            "all particles brings the other half into the model"
        )


class ReferenceProjections:
    """Particles and their clean images, by row.

    Parameters
    ----------
    config
        The `reference` section.
    images
        Its particles.
    rows
        Those in use, to which contrast and fall-off are fitted.
    context
        Told what was found, and warned.

    Attributes
    ----------
    name
        Of the map.
    pixel_size_angstrom
        Of all particles.
    contrast, fall_off_square_angstrom
        `(n,)` per row: factor on the map's projection, and B in Å²; 1 and 0 in rows that are not in use.
    """

    def __init__(
        self,
        config: ReferenceConfig,
        images: StoredImages,
        rows: NDArray[np.intp],
        context: JobContext = QUIET,
    ) -> None:
        self.name = config.map.name
        self._images, self._box, self._shape = images, images.shape[0], images.shape
        self._poses, self._optics = poses_of(images.table), ctf_parameters_of(images.table)
        self.pixel_size_angstrom = _pixel_size(images)
        self._projector = Projector(_read_volume(config, self.pixel_size_angstrom, self._box, context.log))
        self.contrast, self.fall_off_square_angstrom = torch.ones(len(images)), torch.zeros(len(images))
        self._fit(config, rows, context)

    def pairs(self, rows: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        """Noisy and clean `(n, y, x)`; the background has mean 0, and in the noisy image sd 1."""
        noisy, _, _ = self._images.read_normalised(rows)
        clean = self._project(rows, rows) * self.contrast[rows, None, None]
        mean, _ = background_statistics(clean, self._images.radius_px)
        return noisy, clean - mean[:, None, None]

    def _project(self, rows: NDArray[np.intp], oriented_as: NDArray[np.intp]) -> Tensor:
        """`(n, y, x)` projections with the places, the CTF and the fall-off of `rows`."""
        index, size = torch.from_numpy(rows), torch.full((len(rows),), self.pixel_size_angstrom)
        slices = self._projector.slices(self._poses.rotations[torch.from_numpy(oriented_as)])
        slices = slices * shift_phases(
            self._poses.shifts_angstrom[index] / self.pixel_size_angstrom, self._shape
        )
        slices = slices * ctf(self._optics[index], size, self._box)
        slices = slices * b_factor_envelope(self.fall_off_square_angstrom[index], size, self._box)
        images: Tensor = torch.fft.irfft2(slices, s=self._shape)
        return images

    def _products(self, rows: NDArray[np.intp], oriented_as: NDArray[np.intp]) -> list[Tensor]:
        """`(n, rings)` products of images and projections, powers of the images and of the projections."""
        blocks = []
        for first in range(0, len(rows), _BLOCK):
            block = slice(first, first + _BLOCK)
            noisy, _, _ = self._images.read_normalised(rows[block])
            blocks.append(ring_products(noisy, self._project(rows[block], oriented_as[block])))
        return [torch.cat(parts) for parts in zip(*blocks, strict=True)]

    def _fit(self, config: ReferenceConfig, rows: NDArray[np.intp], context: JobContext) -> None:
        micrographs = self._images.micrographs()
        sample = _sample(rows, micrographs)
        squared_frequency = ring_frequencies(self._shape, self.pixel_size_angstrom).square()
        cross, power, own = self._products(sample, sample)
        weight = _ring_sizes(self._shape) / power.mean(0)
        weight[0] = 0  # the images' background has mean 0, whatever that of the projections
        agreement = _Agreement(cross * weight, own * weight, squared_frequency)
        of_all = agreement.fit()
        if of_all.significance < _SIGNIFICANT:
            raise InputError(
                f"projections of {config.map} do not look like the particles: their contrast is "
                f"{of_all.contrast:.3g}, {of_all.significance:.1f} standard deviations of the noise from 0.",
                path=config.particles,
                remedy="Give the map that the poses were refined against, with protein white in both.",
            )
        checked = sample[:_CHECKED]
        cross, _, own = self._products(checked, np.roll(checked, 1))
        others = _Agreement(cross * weight, own * weight, squared_frequency).fit()
        gain = agreement.fit(slice(_CHECKED)).significance - others.significance
        if gain < _SIGNIFICANT:
            context.warn(
                f"the particles look no more like {config.map} in their own orientations than in "
                f"those of others ({gain:+.1f} standard deviations): does the table belong to this map?"
            )
        relative = torch.empty(len(sample))
        group_of = self._images.table.optics_group
        for group in np.unique(group_of[rows]).tolist():
            members = torch.from_numpy(group_of[sample] == group)
            fit = agreement.fit(members) if int(members.sum()) >= _FEWEST_OF_GROUP else of_all
            here = rows[group_of[rows] == group]
            self.contrast[here], self.fall_off_square_angstrom[here] = fit.contrast, fit.fall_off
            relative[members] = agreement.contrasts(fit)[members] / fit.contrast
            context.log(f"optics group {group}: contrast {fit.contrast:.3g}, fall-off {fit.fall_off:.0f} Å²")
        if micrographs is not None:
            factors = _medians(relative.numpy(), micrographs[sample], micrographs[rows])
            self.contrast[rows] *= torch.from_numpy(factors)
            context.log(f"micrographs: {factors.min():.2f} to {factors.max():.2f} times this contrast")


@dataclass(frozen=True)
class _Fit:
    """Contrast and fall-off (Å²) of projections, and how many standard deviations it is from no contrast."""

    contrast: float
    fall_off: float
    significance: float


class _Agreement:
    """Least squares between images and projections, from their products `(n, rings)`.

    Both products are sums over the ring divided by the ring's mean power in the images. `cross` then has the
    variance `own` where images and projections have nothing in common.
    """

    def __init__(self, cross: Tensor, own: Tensor, squared_frequency: Tensor) -> None:
        self._cross, self._own, self._squared_frequency = cross, own, squared_frequency

    def fit(self, members: slice | Tensor = slice(None)) -> _Fit:
        """The contrast and fall-off that some of the images fit best."""
        decays = torch.exp(-_FALL_OFFS[:, None] / 4 * self._squared_frequency)
        cross = decays @ self._cross[members].sum(0)
        own = decays.square() @ self._own[members].sum(0)
        significances = cross / own.clamp_min(1e-30).sqrt()
        best = int(significances.argmax())
        return _Fit(float(cross[best] / own[best]), float(_FALL_OFFS[best]), float(significances[best]))

    def contrasts(self, fit: _Fit) -> Tensor:
        """`(n,)` contrast of each image alone, with a given fall-off."""
        decay = torch.exp(-fit.fall_off / 4 * self._squared_frequency)
        contrasts: Tensor = (self._cross @ decay) / (self._own @ decay.square()).clamp_min(1e-30)
        return contrasts


def _ring_sizes(shape: tuple[int, int]) -> Tensor:
    """`(rings,)` coefficients of the full transform in each ring from 0 to Nyquist."""
    weights = hermitian_weight(shape).expand(shape[0], -1).flatten()
    return torch.bincount(ring_index(shape).flatten(), weights)[: min(shape) // 2 + 1]


def _sample(rows: NDArray[np.intp], micrographs: NDArray[np.intp] | None) -> NDArray[np.intp]:
    """Rows in random order, no more than `_SAMPLED_OF_MICROGRAPH` of a micrograph."""
    rows = np.random.default_rng(0).permutation(rows)
    if micrographs is not None:
        order = np.argsort(micrographs[rows], kind="stable")
        _, first, counts = np.unique(micrographs[rows[order]], return_index=True, return_counts=True)
        place = np.empty(len(rows), dtype=np.intp)  # of each row among those of its micrograph
        place[order] = np.arange(len(rows)) - np.repeat(first, counts)
        rows = rows[place < _SAMPLED_OF_MICROGRAPH]
    return rows[:_SAMPLED]


def _medians(
    relative: NDArray[np.float32], sampled: NDArray[np.intp], wanted: NDArray[np.intp]
) -> NDArray[np.float32]:
    """The median contrast of the micrograph of each wanted row; 1 where too few of its were sampled."""
    factors = np.ones(int(max(sampled.max(), wanted.max())) + 1, dtype=np.float32)
    for micrograph in np.unique(sampled):
        values = relative[sampled == micrograph]
        if len(values) >= _FEWEST_OF_MICROGRAPH:
            factors[micrograph] = np.median(values)
    return factors.clip(1 / _LARGEST_CONTRAST_RATIO, _LARGEST_CONTRAST_RATIO)[wanted]


def _pixel_size(images: StoredImages) -> float:
    table = images.table
    numbers = np.unique(table.optics_group).tolist()
    sizes = {number: table.optics[number].pixel_size_angstrom for number in numbers}
    known = [size for size in sizes.values() if size]
    if len(known) < len(sizes):
        raise InputError("an optics group has no pixel size.", path=table.source)
    if max(known) - min(known) > _SAME_SIZE * min(known):
        raise InputError(
            "expected particles of one pixel size, found "
            + ", ".join(f"{size:g} Å (optics group {number})" for number, size in sizes.items())
            + ".",
            path=table.source,
            remedy="Extract all particles with one pixel size, or train on one optics group.",
        )
    return known[0]


def _read_volume(
    config: ReferenceConfig, pixel_size_angstrom: float, box_px: int, log: Callable[[str], None]
) -> Tensor:
    """The map in the particles' box: solvent at 0, masked, low-pass filtered.

    Raises
    ------
    InputError
        A part of the map that matters lies outside of the box.
    """
    density = read_map(config.map)
    # the solvent of an unmasked map may be anything, and would be projected as a cube
    solvent = float(density.volume[_distance(density.box_px) > density.box_px / 2].median())
    density = DensityMap(density.volume - solvent, density.pixel_size_angstrom)
    fitted = _in_box(density, config.map, pixel_size_angstrom, box_px, log)
    lost = _power(density) - _power(fitted)
    if density.box_px * density.pixel_size_angstrom > box_px * pixel_size_angstrom and (
        lost > _LARGEST_CROPPED_SHARE * _power(density)
    ):
        raise InputError(
            f"the map does not fit into the particles' box of {box_px * pixel_size_angstrom:.0f} Å: "
            f"{100 * lost / _power(density):.0f} % of its power is outside or finer than their pixels.",
            path=config.map,
            remedy="Give the map that these particles were refined against, and check its pixel size.",
        )
    volume = fitted.volume
    if config.mask is None:
        beyond = _distance(box_px) - (box_px / 2 - _EDGE_PX)
        volume = volume * (0.5 + 0.5 * torch.cos(torch.pi * (beyond / _EDGE_PX).clamp(0, 1)))
    else:
        mask = _in_box(read_map(config.mask), config.mask, pixel_size_angstrom, box_px, log)
        volume = volume * mask.volume.clamp(0, 1)
    if config.low_pass_angstrom is not None:
        volume = low_pass_volume(volume, config.low_pass_angstrom, pixel_size_angstrom)
    return volume


def _in_box(
    density: DensityMap, path: Path, pixel_size_angstrom: float, box_px: int, log: Callable[[str], None]
) -> DensityMap:
    ratio = density.pixel_size_angstrom / pixel_size_angstrom
    if density.box_px == box_px and abs(ratio - 1) < _SAME_SIZE:
        return density
    log(
        f"{path}: {density.box_px} px of {density.pixel_size_angstrom:g} Å, resampled to the particles' "
        f"{box_px} px of {pixel_size_angstrom:g} Å"
    )
    return resampled(density, pixel_size_angstrom, box_px)


def _power(density: DensityMap) -> float:
    return float(density.volume.square().sum()) * density.pixel_size_angstrom**3


def _distance(box_px: int) -> Tensor:
    """`(d, d, d)` distance from the centre, voxels."""
    squared = (torch.arange(box_px) - box_px // 2).float().square()
    return (squared[:, None, None] + squared[:, None] + squared).sqrt()
