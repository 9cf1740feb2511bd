"""Whole simulated micrographs with their truth.

The image formation, in the order of nature::

    phase shift of: particles at their heights + ice of uneven thickness and its amorphous structure
                    + ice crystals + carbon film
        -> x CTF x envelope = c -> expected counts  D p² exp(-2 c) -> Poisson counts -> noise spectrum

`1 - 2 c` is the weak-phase image [1]_; the exponential is the same to first order, cannot become negative,
and turns the amplitude contrast A of thick objects into Beer's law: ice takes `exp(-2 A sigma V t)` from the
beam, with its mean inner potential V of 3.5 V [2]_ a free path of 2200 Å at A = 0.1 and 3100 Å at 0.07
(3950 Å was measured for energy loss alone at 300 kV [3]_).

Protein is white here, so an image is minus the counts, brought to mean 0 and standard deviation 1. Real
micrographs are counts: `micrograph_set` writes protein dark, like theirs.

References
----------
.. [1] Kirkland (2010) Advanced Computing in Electron Microscopy, 2nd ed., eqs 3.1 and 5.6: the interaction
   parameter and the weak-phase image. doi:10.1007/978-1-4419-6533-2
.. [2] Harscher & Lichte (1998) Electron Microscopy 1998 (ICEM 14) 1, 553: inner potential of vitreous ice.
.. [3] Rice et al. (2018) J. Struct. Biol. 204, 38-44. doi:10.1016/j.jsb.2018.06.007
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
from .ctf import CtfParameters, ctf
from .filters import frequency_grid
from .noise import coloured, image_generator, poisson, uniform
from .placement import place_particles
from .projection import Projector, rotations_from_euler
from .structure import potential_map, read_structure

BACKGROUND, CONTAMINATION, PARTICLE = 0, 1, 2

# h² / (2 pi m e) in V Å²: potential of a density of scattering factors (Å per Å3), [1] eq. 5.10.
_VOLT_SQUARE_ANGSTROM = 47.878
_ICE_VOLT, _CARBON_VOLT = 3.5, 9.0
# Density (per Å3) of molecules or atoms times the square of their scattering factor (Å): structure at random.
_ICE_SCATTERING = 0.0311 * 3.041**2
_CARBON_SCATTERING = 0.100 * 2.51**2
# Carbon is no gas either; with this the Thon rings of 150 Å of it stand a few times above the noise.
_CARBON_STRUCTURE_FACTOR = 0.1
# The silhouette is where the projection, blurred, is more than a tenth of its maximum, and a little more.
_SILHOUETTE_BLUR_ANGSTROM, _SILHOUETTE_LEVEL, _SILHOUETTE_RIM_ANGSTROM = 5.0, 0.1, 4.0
_PARTICLES_AT_ONCE = 32
# The least margin beside half a box: how far the rings of the CTF reach.
_FRINGE_PX = 64
_LATTICE_ANGSTROM = (3.90, 3.67, 3.44)  # the three strongest of hexagonal ice


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


@dataclass(frozen=True)
class _Canvas:
    """The micrograph with a margin, so that nothing wraps about and particles reach in from outside."""

    shape: tuple[int, int]
    margin: int
    inner: tuple[int, int]

    @classmethod
    def about(cls, inner: tuple[int, int], margin: int) -> _Canvas:
        y, x = (_next_fast_length(side + 2 * margin) for side in inner)
        return cls((y, x), margin, inner)

    def crop(self, field: Tensor) -> Tensor:
        y, x = (slice(self.margin, self.margin + side) for side in self.inner)
        return field[y, x].contiguous()


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
    canvas = _Canvas.about(settings.shape_px, max(kind.projector.box_px for kind in species) // 2 + reach)
    optics = _draw_optics(settings, generator)
    thickness = _ice_thickness(canvas, settings, generator)
    contaminants, contaminated = _contaminants(canvas, settings, generator)
    radians_per_volt = interaction_parameter(settings.voltage_kv)

    particles = _draw_particles(species, settings, float(thickness.mean()), generator)
    silhouettes = torch.zeros(canvas.shape, dtype=torch.bool)
    layers = _layers(particles.defocus_offset_angstrom, settings.depth_layers)
    transform = torch.zeros(canvas.shape[0], canvas.shape[1] // 2 + 1, dtype=torch.complex64)
    for layer in np.unique(layers):
        members = particles[layers == layer]
        phase = torch.zeros(canvas.shape)
        _add_particles(phase, silhouettes, canvas, species, members, pixel_size)
        phase *= radians_per_volt * _VOLT_SQUARE_ANGSTROM * pixel_size
        height = float(members.defocus_offset_angstrom.mean())
        transform += torch.fft.rfft2(phase).mul_(_transfer(canvas.shape, optics, height, pixel_size))
    phase = contaminants.add_(thickness, alpha=radians_per_volt * _ICE_VOLT)
    phase += _structure(thickness, _ICE_SCATTERING * settings.ice_structure_factor, settings, generator)
    transform += torch.fft.rfft2(phase).mul_(_transfer(canvas.shape, optics, 0.0, pixel_size))
    del phase, contaminants, thickness

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


def interaction_parameter(voltage_kv: float) -> float:
    """Phase shift in rad per V Å of projected potential ([1], eq. 5.6): 0.00065 at 300 kV."""
    rest_kv = 510.99895
    wavelength = 12.398420 / math.sqrt(voltage_kv * (2 * rest_kv + voltage_kv))  # Å
    ratio = (rest_kv + voltage_kv) / (2 * rest_kv + voltage_kv)
    return 2 * math.pi / (wavelength * voltage_kv * 1000) * ratio


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


def _ice_thickness(canvas: _Canvas, settings: MicrographSettings, generator: torch.Generator) -> Tensor:
    """`(y, x)` Å: a gradient and a smooth uneven rest, never negative."""
    centre = uniform(1, settings.ice_thickness_angstrom, generator).item()
    gradient = uniform(1, settings.ice_gradient, generator).item() / max(canvas.inner)
    roughness = uniform(1, settings.ice_roughness, generator).item()
    angle = 2 * math.pi * torch.rand(1, generator=generator).item()
    y, x = _coordinates(canvas)
    relative = 1 + gradient * (math.sin(angle) * y + math.cos(angle) * x)
    relative = relative + roughness * _cloud(canvas.shape, max(canvas.inner) / 4, generator)
    return relative.clamp_min_(0.1).mul_(centre)


def _coordinates(canvas: _Canvas) -> tuple[Tensor, Tensor]:
    """`(y, 1)` and `(1, x)` pixels from the middle of the micrograph."""
    y, x = (torch.arange(side).float() for side in canvas.shape)
    middle = [canvas.margin + (side - 1) / 2 for side in canvas.inner]
    return (y - middle[0])[:, None], (x - middle[1])[None, :]


def _cloud(shape: tuple[int, int], largest_px: float, generator: torch.Generator) -> Tensor:
    """`(y, x)` Gaussian field of variance 1 with power falling as the cube of the frequency, from that of
    `largest_px` on."""
    power = (frequency_grid(shape).square_() + largest_px**-2) ** -1.5
    field = coloured(torch.randn(shape, generator=generator), power)
    return (field - field.mean()) / field.std()


def _structure(
    thickness: Tensor, power: float, settings: MicrographSettings, generator: torch.Generator
) -> Tensor:
    """`(y, x)` phase shift of scatterers at random places: white, its variance in proportion to thickness.

    `power` is density times squared scattering factor, 1/Å.
    """
    scale = interaction_parameter(settings.voltage_kv) * _VOLT_SQUARE_ANGSTROM / settings.pixel_size_angstrom
    white = torch.randn(thickness.shape, generator=generator)
    return white.mul_((thickness * power).sqrt_()).mul_(scale)


def _contaminants(
    canvas: _Canvas, settings: MicrographSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Phase shift of carbon and ice crystals, and where they are, both `(y, x)`."""
    radians_per_volt = interaction_parameter(settings.voltage_kv)
    carbon = torch.zeros(canvas.shape)
    if torch.rand(1, generator=generator).item() < settings.carbon_probability:
        carbon = _carbon_film(canvas, settings, generator)
    phase = carbon * (radians_per_volt * _CARBON_VOLT)
    if bool(carbon.any()):
        power = _CARBON_SCATTERING * _CARBON_STRUCTURE_FACTOR
        phase += _structure(carbon, power, settings, generator)
    covered = carbon > 0
    area = canvas.shape[0] * canvas.shape[1] * (settings.pixel_size_angstrom * 1e-4) ** 2
    expected = torch.tensor([settings.discs_per_square_micrometre * area])
    for _ in range(int(torch.poisson(expected, generator=generator))):
        _add_ice_crystal(phase, covered, canvas, settings, generator)
    return phase, covered


def _carbon_film(canvas: _Canvas, settings: MicrographSettings, generator: torch.Generator) -> Tensor:
    """`(y, x)` thickness in Å of the film about a round hole whose rim crosses the micrograph."""
    thickness = uniform(1, settings.carbon_thickness_angstrom, generator).item()
    pixel_size = settings.pixel_size_angstrom
    radius = settings.hole_diameter_angstrom / 2 / pixel_size
    angle = 2 * math.pi * torch.rand(1, generator=generator).item()
    offset = uniform(1, (0.0, 0.4), generator).item() * min(canvas.inner) - radius
    y, x = _coordinates(canvas)
    distance = torch.hypot(y - offset * math.sin(angle), x - offset * math.cos(angle))
    # the rim is uneven by a few nm and as wide
    distance += _cloud(canvas.shape, 400 / pixel_size, generator) * (15 / pixel_size)
    return ((distance - radius) * (pixel_size / 40)).clamp_(0, 1) * thickness


def _add_ice_crystal(
    phase: Tensor, covered: Tensor, canvas: _Canvas, settings: MicrographSettings, generator: torch.Generator
) -> None:
    """Add a roundish, bumpy crystal of uneven contrast (diffraction), with the fringes of its lattice."""
    pixel_size = settings.pixel_size_angstrom
    radius = uniform(1, settings.disc_radius_angstrom, generator).item() / pixel_size
    thickness = uniform(1, settings.disc_thickness_angstrom, generator).item()
    centre = torch.rand(2, generator=generator) * torch.tensor(canvas.shape)
    reach = math.ceil(1.4 * radius) + 1
    top, left = (int(value) for value in centre)
    rows = slice(max(top - reach, 0), min(top + reach + 1, canvas.shape[0]))
    columns = slice(max(left - reach, 0), min(left + reach + 1, canvas.shape[1]))
    y = (torch.arange(rows.start, rows.stop) - centre[0])[:, None]
    x = (torch.arange(columns.start, columns.stop) - centre[1])[None, :]
    angle = torch.atan2(y, x)
    outline = torch.ones_like(angle)
    for order in (2, 3, 4, 5):
        turn = 2 * math.pi * torch.rand(1, generator=generator)
        outline += 0.08 / order * torch.randn(1, generator=generator) * torch.cos(order * angle + turn)
    profile = (1 - torch.hypot(y, x).square() / (radius * outline.clamp(0.6, 1.4)).square()).clamp_min_(0)
    height = profile.sqrt()
    height *= 1 + 0.05 * _cloud((height.shape[0], height.shape[1]), radius, generator)
    spacing = _LATTICE_ANGSTROM[int(torch.randint(3, (1,), generator=generator))] / pixel_size
    direction = 2 * math.pi * torch.rand(1, generator=generator)
    if spacing > 2:
        wave = torch.cos(2 * math.pi / spacing * (y * direction.sin() + x * direction.cos()))
        height *= 1 + 0.02 * wave
    phase[rows, columns] += height * (thickness * interaction_parameter(settings.voltage_kv) * _ICE_VOLT)
    covered[rows, columns] |= profile > 0


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
        radii, ((-rim, y - 1 + rim), (-rim, x - 1 + rim)), settings.minimum_distance, generator
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
    canvas: _Canvas,
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
    shift = torch.from_numpy(centres - whole).float()[:, :, None, None]
    rotations = rotations_from_euler(torch.from_numpy(particles.euler_degrees).float())
    ramp = shift[:, 0] * torch.fft.fftfreq(box)[:, None] + shift[:, 1] * torch.fft.rfftfreq(box)
    transforms = kind.projector.slices(rotations) * torch.exp(-2j * math.pi * ramp)
    images = torch.fft.irfft2(transforms, s=(box, box))
    sigma_px = _SILHOUETTE_BLUR_ANGSTROM / pixel_size_angstrom
    blur = torch.exp(-2 * (math.pi * sigma_px * frequency_grid((box, box))) ** 2)
    masks = torch.fft.irfft2(transforms * blur, s=(box, box))
    masks = (masks > _SILHOUETTE_LEVEL * masks.amax(dim=(1, 2), keepdim=True)).float()
    rim = round(_SILHOUETTE_RIM_ANGSTROM / pixel_size_angstrom)
    masks = functional.max_pool2d(masks.unsqueeze(1), 2 * rim + 1, stride=1, padding=rim).squeeze(1)
    return whole - box // 2, images, masks > 0


def _truth(
    canvas: _Canvas, contaminated: Tensor, silhouettes: Tensor, particles: Particles
) -> tuple[Tensor, Particles]:
    """The label map, and the particles whose centres lie in the micrograph."""
    labels = canvas.crop(silhouettes).to(torch.uint8).mul_(PARTICLE)
    labels[canvas.crop(contaminated)] = CONTAMINATION
    row, column = (np.rint(values).astype(np.int64) for values in (particles.y_px, particles.x_px))
    inside = (row >= 0) & (row < canvas.inner[0]) & (column >= 0) & (column < canvas.inner[1])
    particles = particles[inside]
    particles.hidden[:] = labels.numpy()[row[inside], column[inside]] == CONTAMINATION
    return labels, particles


def _next_fast_length(length: int) -> int:
    """The next even length whose only factors are 2, 3, 5 and 7, for which Fourier transforms are fast."""
    length += length % 2
    while True:
        rest = length
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2
