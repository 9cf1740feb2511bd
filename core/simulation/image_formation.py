"""Noisy particle images with the clean image that a denoiser should return.

The image formation, in the order of nature::

    projection of the potential (+ neighbours) -> x CTF x envelope -> + uneven ice
        -> + structure of the ice x CTF -> + detector noise

The clean counterpart is all but the detector noise: what another exposure of the same place would show
again. A denoiser trained on it takes away the noise and nothing else, so that the metadata of the image stay
true, and it can be judged on real data by an independent exposure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..imaging.ctf import CtfParameters, ctf
from ..imaging.maps import DensityMap, read_map, resampled
from ..imaging.noise import log_uniform, noise_of_ice_and_detector, random_patch, smooth_background, uniform
from ..imaging.normalise import background_statistics, default_radius_px
from ..imaging.projection import Projector, random_rotations
from ..imaging.resample import fourier_resample
from ..imaging.rings import frequency_grid
from ..imaging.structure import Structure, potential_map, read_structure
from .classes import split_by_model


@dataclass(frozen=True)
class ProjectionBank:
    """Clean projections without CTF, many structures at many pixel sizes.

    Attributes
    ----------
    images
        `(n, y, x)` float16, each scaled to unit variance over the box.
    pixel_size_angstrom, diameter_px
        `(n,)` float32.
    volume
        `(n,)` int64: images of one structure at one pixel size share a number and are contiguous.
    structural_noise
        `(n, y, x)` float16 on the scale of the images: what a map shows beside its model, which is noise to
        a denoiser. `(0,)` where no structure has a map.
    """

    images: Tensor
    pixel_size_angstrom: Tensor
    diameter_px: Tensor
    volume: Tensor
    structural_noise: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float16))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> ProjectionBank:
        """The same on another device."""
        return ProjectionBank(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def make_projection_bank(
    structures: Sequence[Path],
    *,
    box_px: int,
    volumes_per_structure: int,
    projections_per_volume: int,
    diameter_share: tuple[float, float],
    pixel_size_angstrom: tuple[float, float],
    generator: torch.Generator,
    log: Callable[[str], None] = print,
    maps: Mapping[str, Path] | None = None,
    map_resolution_angstrom: float | None = None,
) -> ProjectionBank:
    """Project every structure from random directions at several pixel sizes.

    Parameters
    ----------
    structures
        PDB or mmCIF files.
    box_px
        Side of the images.
    volumes_per_structure
        Pixel sizes drawn for each structure.
    projections_per_volume
        Directions, uniform on SO(3), for each of them.
    diameter_share
        Range of the particle's diameter as a share of the box, from which the pixel size follows ...
    pixel_size_angstrom
        ... and is clamped to this range.
    generator
        Source of all randomness.
    log
        Called with one line for each structure.
    maps, map_resolution_angstrom
        Maps by the names of the structures that are fitted into them, and what to use of them: these are
        projected in place of the structures, freed of their structural noise, which is kept beside.

    Raises
    ------
    InputError
        A file cannot be read, or a model was not fitted into its map.
    """
    maps = maps or {}
    n = len(structures) * volumes_per_structure * projections_per_volume
    images = torch.empty(n, box_px, box_px, dtype=torch.float16)
    structural = torch.zeros(n if maps else 0, box_px, box_px, dtype=torch.float16)
    pixel_sizes, diameters = torch.empty(n), torch.empty(n)
    start = 0
    for number, path in enumerate(structures, 1):
        structure = read_structure(path)
        parts = None
        if structure.name in maps and map_resolution_angstrom is not None:
            parts = split_by_model(read_map(maps[structure.name]), structure, map_resolution_angstrom)
        drawn = []
        for _ in range(volumes_per_structure):
            share = uniform(1, diameter_share, generator).item()
            pixel_size = 2 * structure.radius_angstrom / (share * box_px)
            pixel_size = min(max(pixel_size, pixel_size_angstrom[0]), pixel_size_angstrom[1])
            pixel_size = max(pixel_size, 2.1 * structure.radius_angstrom / box_px)
            # the B that a grid needs, plus what radiation and motion leave of a map
            b_factor = 8 * pixel_size**2 + uniform(1, (0, 120), generator).item()
            if parts is None:
                projectors = [Projector(potential_map(structure, box_px, pixel_size, b_factor))]
            else:
                projectors = [_projector_of_map(part, structure, box_px, pixel_size) for part in parts]
            for first in range(start, start + projections_per_volume, 32):
                last = min(first + 32, start + projections_per_volume)
                rotations = random_rotations(last - first, generator)
                projections = projectors[0](rotations)
                spread = projections.std(dim=(1, 2), keepdim=True)
                images[first:last] = (projections / spread).half()
                if len(projectors) > 1:
                    structural[first:last] = (projectors[1](rotations) / spread).half()
            stop = start + projections_per_volume
            pixel_sizes[start:stop] = pixel_size
            diameters[start:stop] = 2 * structure.radius_angstrom / pixel_size
            start = stop
            drawn.append(f"{pixel_size:.2f}")
        log(
            f"{number}/{len(structures)} {structure.name}: {structure.n_atoms} atoms, "
            f"{2 * structure.radius_angstrom:.0f} Å, pixel sizes {', '.join(drawn)} Å"
        )
    volume = torch.arange(n) // projections_per_volume
    return ProjectionBank(images, pixel_sizes, diameters, volume, structural if maps else structural[:, 0, 0])


def _projector_of_map(
    density: DensityMap, structure: Structure, box_px: int, pixel_size_angstrom: float
) -> Projector:
    """Of a map about the centroid of the model fitted into it."""
    shift = np.subtract(structure.centroid_angstrom, density.centre_angstrom) / density.pixel_size_angstrom
    x, y, z = np.round(shift).astype(int).tolist()
    centred = replace(density, volume=density.volume.roll((-z, -y, -x), (0, 1, 2)))
    return Projector(resampled(centred, pixel_size_angstrom, box_px).volume)


@dataclass(frozen=True)
class ImagingRanges:
    """What is drawn at random for each image; pairs are (lowest, highest).

    Attributes
    ----------
    snr
        Variance of the CTF-modulated particles over the box, by that of all noise, which is the detector's
        and the structure of the ice; drawn log-uniformly.
    shift_share
        Largest shift of the particle off the centre along x and y, as a share of the box.
    envelope_b_factor
        Largest B in Å² of the signal alone: motion, charging, source coherence. The square of a uniform
        number times this is drawn: most images are sharp, some were never motion-corrected.
    ice_share
        Largest variance of the structure of the ice, which passes through the CTF, as a share of all noise;
        drawn like B.
    noise_tilt
        Amplitude (natural log of power) of each of the smooth random terms of the detector noise spectrum.
    background_share
        Largest variance of the smooth background (a gradient and a field without detail), by that of the
        noise; drawn like B.
    neighbour_probability
        Probability that neighbours of the same species lie about the particle, up to six.
    scattered_probability
        Probability that particles of the species lie anywhere instead, none of them in the centre, up to
        nine and overlapping as they come: a piece of a crowded micrograph.
    empty_probability
        Probability of an image with noise alone.
    no_ctf_probability
        Probability of an image without CTF (simulated or corrected data).
    defocus_scale
        Factor on the defocus of the real tables.
    """

    snr: tuple[float, float] = (0.01, 0.5)
    shift_share: float = 0.06
    envelope_b_factor: float = 1000.0
    ice_share: float = 0.04
    noise_tilt: float = 0.35
    background_share: float = 0.06
    neighbour_probability: float = 0.7
    scattered_probability: float = 0.0
    empty_probability: float = 0.04
    no_ctf_probability: float = 0.1
    defocus_scale: tuple[float, float] = (0.6, 1.4)


def simulate_pairs(
    bank: ProjectionBank,
    optics: CtfParameters,
    ranges: ImagingRanges,
    batch_size: int,
    generator: torch.Generator,
    box_px: int | None = None,
    noise_blocks: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """One batch of noisy images and their clean counterparts.

    All is drawn and computed on the device of the generator, on which bank, optics and blocks lie.

    Parameters
    ----------
    box_px
        Side of the images: the bank's, unless the projections shall be sampled more finely or coarsely, with
        the pixel size changed to match.
    noise_blocks
        `(n, y, x)` real noise, on any scale, of which random pieces take the place of the simulated noise and
        of the uneven ice.

    Returns
    -------
    noisy, clean
        `(n, 1, y, x)` float32 on one grey scale: that which makes the background of the noisy image mean 0
        and sd 1, as RELION's extraction does.
    snr
        `(n,)`, 0 for an image of noise alone.
    """
    n, box = batch_size, box_px or bank.images.shape[-1]
    pick = _integers(len(bank), n, generator)
    pixel_size = bank.pixel_size_angstrom[pick] * (bank.images.shape[-1] / box)
    before = generator.get_state()
    shown = [place_particles(bank, pick, ranges, generator)]
    if len(bank.structural_noise):  # at the same places
        generator.set_state(before)
        shown.append(place_particles(replace(bank, images=bank.structural_noise), pick, ranges, generator))
    # the structural noise, if there is any, in the second half
    specimen = random_dihedral(fourier_resample(torch.cat(shown), box), generator)

    frequency = frequency_grid((box, box), generator.device)  # cycles per pixel
    transfer = torch.ones(n, *frequency.shape, device=generator.device)
    # what is never there costs nothing
    if ranges.no_ctf_probability < 1 or ranges.envelope_b_factor:
        transfer, envelope = _lenses(n, box, optics, ranges, pixel_size, frequency, generator)
        behind = (transfer * envelope).repeat(len(shown), 1, 1)
        specimen = torch.fft.irfft2(torch.fft.rfft2(specimen) * behind, s=(box, box))
    specimen = specimen - specimen.mean(dim=(1, 2), keepdim=True)
    clean, structural = specimen[:n], specimen[n:]
    variance = clean.var(dim=(1, 2)).clamp_min(1e-12)

    snr = log_uniform(n, ranges.snr, generator)
    snr[_happens(n, ranges.empty_probability, generator)] = 0.0
    strength = (snr / variance).sqrt()[:, None, None]
    clean = clean * strength
    if noise_blocks is None:
        if ranges.background_share:
            clean += smooth_background(n, box, ranges.background_share, generator)
        ice, noise = noise_of_ice_and_detector(
            frequency,
            transfer,
            tilt=ranges.noise_tilt,
            largest_ice_share=ranges.ice_share,
            generator=generator,
        )
        clean += ice
    else:
        noise = torch.stack([random_patch(noise_blocks, (box, box), generator) for _ in range(n)])
    noisy = clean + noise
    if len(structural):
        noisy = noisy + structural * strength

    # as the particles of a user who gives no diameter
    mean, std = background_statistics(noisy, default_radius_px((box, box)))
    noisy = (noisy - mean[:, None, None]) / std[:, None, None]
    clean = (clean - mean[:, None, None]) / std[:, None, None]
    return noisy.unsqueeze(1), clean.unsqueeze(1), snr


def _lenses(
    n: int,
    box: int,
    optics: CtfParameters,
    ranges: ImagingRanges,
    pixel_size_angstrom: Tensor,
    frequency: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """CTF, 1 for images without, and envelope of the signal: `(n, y, x // 2 + 1)` each."""
    drawn = optics[_integers(len(optics), n, generator)]
    scale = uniform(n, ranges.defocus_scale, generator)
    drawn = CtfParameters(
        drawn.defocus_u_angstrom * scale,
        drawn.defocus_v_angstrom * scale,
        uniform(n, (0.0, 180.0), generator),
        *(drawn.voltage_kv, drawn.cs_mm, drawn.amplitude_contrast, drawn.phase_shift_degrees),
    )
    transfer = ctf(drawn, pixel_size_angstrom, box)
    transfer[_happens(n, ranges.no_ctf_probability, generator)] = 1.0
    squared_angstrom = (frequency / pixel_size_angstrom[:, None, None]) ** 2
    b_factor = ranges.envelope_b_factor * uniform(n, (0.0, 1.0), generator)[:, None, None] ** 2
    return transfer, torch.exp(-squared_angstrom * b_factor / 4)


def place_particles(
    bank: ProjectionBank,
    pick: Tensor,
    ranges: ImagingRanges,
    generator: torch.Generator,
    central: Tensor | None = None,
) -> Tensor:
    """Shifted particles, some with neighbours or scattered ones of their own species.

    `central` `(n,)` says which of the places hold a particle in their centre: all, unless it is given.
    """
    n, box = len(pick), bank.images.shape[-1]
    largest = round(ranges.shift_share * box)
    shifts = _integers(2 * largest + 1, 2 * n, generator).view(n, 2) - largest
    images = bank.images[pick].float()
    if central is not None:
        images *= central[:, None, None]
    if largest:
        images = _roll(images, shifts)
    if ranges.neighbour_probability:
        _add_neighbours(images, bank, pick, ranges, generator)
    if ranges.scattered_probability:
        _scatter(images, bank, pick, ranges, generator)
    return images


def _add_neighbours(
    images: Tensor, bank: ProjectionBank, pick: Tensor, ranges: ImagingRanges, generator: torch.Generator
) -> None:
    """Add particles of the same volumes, about a diameter away, to the images."""
    n, box = len(pick), images.shape[-1]
    crowding = uniform(n, (0.0, 1.0), generator)  # the chance of each of the six places
    crowding[~_happens(n, ranges.neighbour_probability, generator)] = 0
    spacing, turn = uniform(n, (0.9, 1.3), generator), uniform(n, (0.0, 1.0), generator)
    for place in range(6):
        chosen = _happens(n, crowding, generator).nonzero().squeeze(1)
        m = len(chosen)
        other = _same_volume(bank, pick[chosen], generator)
        distance = bank.diameter_px[pick[chosen]] * spacing[chosen] * uniform(m, (0.9, 1.15), generator)
        angle = torch.pi / 3 * (place + turn[chosen] + uniform(m, (-0.2, 0.2), generator))
        offset = torch.stack([distance * angle.sin(), distance * angle.cos()], 1)
        reaches = (offset.abs() - bank.diameter_px[other][:, None] / 2).amax(1) < box / 2
        chosen, other, offset = chosen[reaches], other[reaches], offset[reaches]
        images[chosen] += _shift_without_wrap(bank.images[other].float(), offset.round().long())


def _scatter(
    images: Tensor, bank: ProjectionBank, pick: Tensor, ranges: ImagingRanges, generator: torch.Generator
) -> None:
    """Replace some of the images by particles at places of their own."""
    box = images.shape[-1]
    scattered = _happens(len(pick), ranges.scattered_probability, generator)
    images[scattered] = 0
    # as many as would about cover the box at the densest
    largest = ((box / bank.diameter_px[pick]) ** 2 * 1.5).clamp(1, 9)
    count = (1 + largest * uniform(len(pick), (0.0, 1.0), generator)).long() * scattered
    for number in range(9):
        chosen = (count > number).nonzero().squeeze(1)
        other = _same_volume(bank, pick[chosen], generator)
        # the first has its centre in the box, so that there is something to see
        reach = (box + (number > 0) * 0.8 * bank.diameter_px[other][:, None]) / 2
        offset = reach * uniform(2 * len(chosen), (-1.0, 1.0), generator).view(-1, 2)
        images[chosen] += _shift_without_wrap(bank.images[other].float(), offset.round().long())


def _same_volume(bank: ProjectionBank, pick: Tensor, generator: torch.Generator) -> Tensor:
    """Another random projection of the volume of each image."""
    per_volume = int((bank.volume == bank.volume[0]).sum())
    return bank.volume[pick] * per_volume + _integers(per_volume, len(pick), generator)


def _roll(images: Tensor, shifts: Tensor) -> Tensor:
    """Cyclic shift of each image by whole pixels `(n, 2)` (y, x)."""
    n, box = len(images), images.shape[-1]
    place = torch.arange(box, device=images.device)[None, :]
    rows, columns = (place - shifts[:, :1]) % box, (place - shifts[:, 1:]) % box
    each = torch.arange(n, device=images.device)[:, None, None]
    return images[each, rows[:, :, None], columns[:, None, :]]


def _shift_without_wrap(images: Tensor, shifts: Tensor) -> Tensor:
    """Shift of each image by whole pixels `(n, 2)` (y, x); what leaves the box is gone."""
    box = images.shape[-1]
    coordinate = torch.arange(box, device=images.device)
    y, x = coordinate[None, :] - shifts[:, :1], coordinate[None, :] - shifts[:, 1:]
    inside_y, inside_x = (y >= 0) & (y < box), (x >= 0) & (x < box)
    return _roll(images, shifts) * inside_y[:, :, None] * inside_x[:, None, :]


def random_dihedral(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of the eight symmetries of the square for the whole batch: a free augmentation."""
    turn = int(_integers(4, 1, generator))
    images = torch.rot90(images, turn, dims=(-2, -1))
    return images.flip(-1) if _happens(1, 0.5, generator) else images


def _integers(stop: int, n: int, generator: torch.Generator) -> Tensor:
    """`(n,)` uniform from 0 to before `stop`."""
    return torch.randint(stop, (n,), generator=generator, device=generator.device)


def _happens(n: int, probability: float | Tensor, generator: torch.Generator) -> Tensor:
    """`(n,)` True with the probability."""
    return uniform(n, (0.0, 1.0), generator) < probability
