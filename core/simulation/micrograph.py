"""Whole simulated micrographs with their truth.

The image formation, in the order of nature::

    phase shift of: particles at their heights + ice of uneven thickness and its amorphous structure
                    + ice crystals + carbon film
        -> x CTF x envelope = c -> expected counts  D p² exp(-2 c) -> Poisson counts -> noise spectrum

`1 - 2 c` is the weak-phase image [1]_; the exponential is the same to first order, cannot become negative,
and turns the amplitude contrast A of thick objects into Beer's law: ice takes `exp(-2 A sigma V t)` from the
beam, with its mean inner potential V of 3.5 V (`ice`) a free path of 2200 Å at A = 0.1 and 3100 Å at 0.07
(3950 Å was measured for energy loss alone at 300 kV [2]_).

Protein is white here, so an image is minus the counts, brought to mean 0 and standard deviation 1. Real
micrographs are counts: `micrograph_set` writes protein dark, like theirs.

References
----------
.. [1] Kirkland (2010) Advanced Computing in Electron Microscopy, 2nd ed., chapters 3 and 5: the weak phase
   object. doi:10.1007/978-1-4419-6533-2
.. [2] Rice et al. (2018) J. Struct. Biol. 204, 38-44. doi:10.1016/j.jsb.2018.06.007
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..config.micrographs import MicrographSettings
from ..imaging.ctf import CtfParameters, ctf
from ..imaging.exposure import phase_shift
from ..imaging.noise import coloured, image_generator, poisson, uniform
from ..imaging.projection import Projector, rotations_from_euler
from ..imaging.resample import shift_phases
from ..imaging.rings import frequency_grid
from ..imaging.structure import potential_map, read_structure
from .canvas import Canvas
from .ice import add_ice, contaminants, ice_thickness
from .placement import place_particles

BACKGROUND, CONTAMINATION, PARTICLE = 0, 1, 2

# The silhouette is where the projection, blurred, is more than a tenth of its maximum, and a little more.
_SILHOUETTE_BLUR_ANGSTROM, _SILHOUETTE_LEVEL, _SILHOUETTE_RIM_ANGSTROM = 5.0, 0.1, 4.0
_PARTICLES_AT_ONCE = 32
# The least margin beside half a box: how far the rings of the CTF reach.
_FRINGE_PX = 64


@dataclass(frozen=True)
class Species:
    """One kind of particle, at the pixel size of the micrograph.

    Attributes
    ----------
    name
        Of the structure.
    projector
        Of its potential.
    radius_px
        Of the sphere about the particle.
    share
        How many there are, relative to the others.
    """

    name: str
    projector: Projector
    radius_px: float
    share: float = 1.0

    @classmethod
    def from_structure(
        cls,
        path: Path | str,
        pixel_size_angstrom: float,
        share: float = 1.0,
        *,
        assembly: str | None = None,
    ) -> Species:
        """Read an atomic model, or a biological assembly of it, and make the smallest box that holds it.

        Raises
        ------
        InputError
            `read_structure` says when.
        """
        structure = read_structure(path, assembly)
        radius_px = structure.radius_angstrom / pixel_size_angstrom
        box_px = 2 * math.ceil(radius_px + 5 / pixel_size_angstrom + 1)
        # the least blur that the grid needs
        potential = potential_map(structure, box_px, pixel_size_angstrom, 8 * pixel_size_angstrom**2)
        return cls(structure.name, Projector(potential), radius_px, share)


@dataclass(frozen=True, eq=False)
class Particles:
    """The particles whose centres lie in a micrograph.

    Attributes
    ----------
    x_px, y_px
        `(n,)` centres; pixel (0, 0) is the first one's centre.
    species
        `(n,)` index of the species.
    euler_degrees
        `(n, 3)` RELION's rot, tilt and psi.
    defocus_offset_angstrom
        `(n,)` what the particle's height adds to the micrograph's defocus.
    hidden
        `(n,)` whether contamination lies over the centre.
    """

    x_px: NDArray[np.float64]
    y_px: NDArray[np.float64]
    species: NDArray[np.int64]
    euler_degrees: NDArray[np.float64]
    defocus_offset_angstrom: NDArray[np.float64]
    hidden: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.x_px)

    def __getitem__(self, index: NDArray[np.bool_]) -> Particles:
        return Particles(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


@dataclass(frozen=True, eq=False)
class SimulatedMicrograph:
    """A micrograph and its truth.

    Attributes
    ----------
    image
        `(y, x)` float32, protein white, mean 0 and standard deviation 1.
    clean
        `(y, x)` float32, what it would be without counting noise, on the same grey scale.
    labels
        `(y, x)` uint8: `BACKGROUND`, `CONTAMINATION` (carbon, ice crystals) or `PARTICLE` (the silhouettes);
        contamination wins where both are.
    particles
        Where they are.
    optics
        Of the micrograph, one row.
    """

    image: Tensor
    clean: Tensor
    labels: Tensor
    particles: Particles
    optics: CtfParameters


def simulate_micrograph(
    species: Sequence[Species], settings: MicrographSettings, seed: int, index: int
) -> SimulatedMicrograph:
    """Micrograph number `index` of the set that `seed` fixes.

    It takes about 60 bytes per pixel at once, and seconds for each million pixels.
    """
    pixel_size = settings.pixel_size_angstrom
    generator = image_generator(seed, index, "micrograph")
    # a particle's centre may lie its radius outside, with half a box about it
    reach = max(_FRINGE_PX, math.ceil(max(kind.radius_px for kind in species)))
    canvas = Canvas.about(settings.shape_px, max(kind.projector.box_px for kind in species) // 2 + reach)
    optics = _draw_optics(settings, generator)
    thickness = ice_thickness(canvas, settings, generator)
    foreign, contaminated = contaminants(canvas, settings, generator)

    particles = _draw_particles(species, settings, float(thickness.mean()), generator)
    silhouettes = torch.zeros(canvas.shape, dtype=torch.bool)
    layers = _layers(particles.defocus_offset_angstrom, settings.depth_layers)
    transform = torch.zeros(canvas.shape[0], canvas.shape[1] // 2 + 1, dtype=torch.complex64)
    for layer in np.unique(layers):
        members = particles[layers == layer]
        projections = torch.zeros(canvas.shape)
        _add_particles(projections, silhouettes, canvas, species, members, pixel_size)
        height = float(members.defocus_offset_angstrom.mean())
        phase = phase_shift(projections, pixel_size, settings.voltage_kv)
        transform += torch.fft.rfft2(phase).mul_(_transfer(canvas.shape, optics, height, pixel_size))
        del projections, phase
    add_ice(foreign, thickness, settings, generator)
    transform += torch.fft.rfft2(foreign).mul_(_transfer(canvas.shape, optics, 0.0, pixel_size))
    del foreign, thickness

    b_factor = uniform(1, settings.b_factor_square_angstrom, generator).item()
    squared = (frequency_grid(canvas.shape) / pixel_size).square_()
    contrast = torch.fft.irfft2(transform * torch.exp(-b_factor / 4 * squared), s=canvas.shape)
    del transform, squared
    exposure = uniform(1, settings.exposure_electrons_per_square_angstrom, generator).item()
    expected = canvas.crop(contrast).mul_(-2).exp_().mul_(exposure * pixel_size**2)
    labels, particles = _truth(canvas, contaminated, silhouettes, particles)

    counting = image_generator(seed, index, "counts")
    noise = poisson(expected, counting).sub_(expected)
    # gain correction and resampling leave no whole numbers in real micrographs
    noise += torch.rand(noise.shape, generator=counting).sub_(0.5)
    noise = coloured(noise, noise_power(settings.shape_px, settings.detector_roll_off))
    image = -(expected + noise)
    mean, spread = image.mean(), image.std()
    return SimulatedMicrograph(
        (image - mean) / spread, (-expected - mean) / spread, labels, particles, optics
    )


def noise_power(shape: tuple[int, int], roll_off: float) -> Tensor:
    """`(y, x // 2 + 1)` power of the detector's noise by that of its counts: 1 at zero, less by `roll_off` at
    Nyquist and beyond, between as the fourth power of the frequency."""
    return 1 - roll_off * (2 * frequency_grid(shape)).clamp_max(1.0) ** 4


def _draw_optics(settings: MicrographSettings, generator: torch.Generator) -> CtfParameters:
    defocus = uniform(1, settings.defocus_angstrom, generator)
    half = uniform(1, settings.astigmatism_angstrom, generator) / 2
    angle = uniform(1, (0.0, 180.0), generator)
    microscope = (settings.voltage_kv, settings.cs_mm, settings.amplitude_contrast, 0.0)
    return CtfParameters(
        defocus + half, defocus - half, angle, *(torch.tensor([value]) for value in microscope)
    )


def _transfer(
    shape: tuple[int, int], optics: CtfParameters, height: float, pixel_size_angstrom: float
) -> Tensor:
    u, v = (value + height for value in (optics.defocus_u_angstrom, optics.defocus_v_angstrom))
    rest = (getattr(optics, name) for name in list(CtfParameters.__dataclass_fields__)[2:])
    return ctf(CtfParameters(u, v, *rest), torch.tensor([pixel_size_angstrom]), shape)[0]


def _draw_particles(
    species: Sequence[Species],
    settings: MicrographSettings,
    thickness_angstrom: float,
    generator: torch.Generator,
) -> Particles:
    """Particles on the micrograph and so far outside that they may reach in."""
    rim = max(kind.radius_px for kind in species)
    y, x = settings.shape_px
    area = (y + 2 * rim) * (x + 2 * rim) * (settings.pixel_size_angstrom * 1e-4) ** 2
    wanted = round(uniform(1, settings.particles_per_square_micrometre, generator).item() * area)
    shares = torch.tensor([kind.share for kind in species])
    kinds = torch.multinomial(shares, wanted, replacement=True, generator=generator) if wanted else shares[:0]
    radii = np.array([species[int(kind)].radius_px for kind in kinds])
    centres, placed = place_particles(
        radii, ((-rim, y - 1 + rim), (-rim, x - 1 + rim)), settings.min_distance, generator
    )
    n = len(placed)
    rot, psi = (uniform(n, (-180.0, 180.0), generator) for _ in range(2))
    tilt = torch.rad2deg(torch.acos(uniform(n, (-1.0, 1.0), generator)))
    # a particle fits into the ice as a whole, if the ice is thick enough for it
    room = (thickness_angstrom / 2 - radii[placed] * settings.pixel_size_angstrom).clip(0)
    return Particles(
        x_px=centres[:, 1],
        y_px=centres[:, 0],
        species=kinds.numpy()[placed].astype(np.int64),
        euler_degrees=torch.stack([rot, tilt, psi], dim=1).double().numpy(),
        defocus_offset_angstrom=room * uniform(n, (-1.0, 1.0), generator).double().numpy(),
        hidden=np.zeros(n, dtype=bool),
    )


def _layers(heights: NDArray[np.float64], number: int) -> NDArray[np.int64]:
    """`(n,)` layer of each particle, of that many of equal thickness."""
    reach = max(float(np.abs(heights).max(initial=0.0)), 1e-6)
    return np.minimum((heights / reach + 1) / 2 * number, number - 1).astype(np.int64)


def _add_particles(
    field: Tensor,
    silhouettes: Tensor,
    canvas: Canvas,
    species: Sequence[Species],
    particles: Particles,
    pixel_size_angstrom: float,
) -> None:
    """Add projections to `field`, in units of the potential maps, and mark where they are, both in place."""
    for number, kind in enumerate(species):
        members = particles[particles.species == number]
        for first in range(0, len(members), _PARTICLES_AT_ONCE):
            chosen = np.zeros(len(members), dtype=bool)
            chosen[first : first + _PARTICLES_AT_ONCE] = True
            some = members[chosen]
            corner, images, masks = _project(kind, some, pixel_size_angstrom)
            corner += canvas.margin
            for (top, left), image, mask in zip(corner.tolist(), images, masks, strict=True):
                area = (slice(top, top + len(image)), slice(left, left + len(image)))
                field[area] += image
                silhouettes[area] |= mask


def _project(
    kind: Species, particles: Particles, pixel_size_angstrom: float
) -> tuple[NDArray[np.int64], Tensor, Tensor]:
    """Corners `(n, 2)` (y, x) in the micrograph, projections and silhouettes `(n, d, d)` of its particles."""
    box = kind.projector.box_px
    centres = np.stack([particles.y_px, particles.x_px], axis=1)
    whole = np.floor(centres).astype(np.int64)
    shift = torch.from_numpy(centres - whole).float()
    rotations = rotations_from_euler(torch.from_numpy(particles.euler_degrees).float())
    transforms = kind.projector.slices(rotations) * shift_phases(shift, (box, box))
    images = torch.fft.irfft2(transforms, s=(box, box))
    sigma_px = _SILHOUETTE_BLUR_ANGSTROM / pixel_size_angstrom
    blur = torch.exp(-2 * (math.pi * sigma_px * frequency_grid((box, box))) ** 2)
    masks = torch.fft.irfft2(transforms * blur, s=(box, box))
    masks = (masks > _SILHOUETTE_LEVEL * masks.amax(dim=(1, 2), keepdim=True)).float()
    rim = round(_SILHOUETTE_RIM_ANGSTROM / pixel_size_angstrom)
    masks = functional.max_pool2d(masks.unsqueeze(1), 2 * rim + 1, stride=1, padding=rim).squeeze(1)
    return whole - box // 2, images, masks > 0


def _truth(
    canvas: Canvas, contaminated: Tensor, silhouettes: Tensor, particles: Particles
) -> tuple[Tensor, Particles]:
    """The label map, and the particles whose centres lie in the micrograph."""
    labels = canvas.crop(silhouettes).to(torch.uint8).mul_(PARTICLE)
    labels[canvas.crop(contaminated)] = CONTAMINATION
    row, column = (np.rint(values).astype(np.int64) for values in (particles.y_px, particles.x_px))
    inside = (row >= 0) & (row < canvas.inner[0]) & (column >= 0) & (column < canvas.inner[1])
    particles = particles[inside]
    particles.hidden[:] = labels.numpy()[row[inside], column[inside]] == CONTAMINATION
    return labels, particles
