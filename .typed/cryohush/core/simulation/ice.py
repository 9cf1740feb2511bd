"""What lies in a micrograph beside its particles: ice of uneven thickness, its crystals, carbon film.

A layer of thickness t and mean inner potential V advances the electrons' phase by `sigma V t`, and the
disorder of its molecules adds structure. Vitreous ice has 3.5 V [1]_, amorphous carbon 9 V [2]_.

References
----------
.. [1] Harscher & Lichte (1998) 14th International Congress on Electron Microscopy: vitreous ice.
.. [2] Wanner, Bach, Gerthsen, Werner & Tesche (2006) Ultramicroscopy 106, doi:10.1016/j.ultramic.2005.10.004:
   9.09 V for amorphous carbon of 1.75 g/cm³.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..config.micrographs import MicrographSettings
from ..imaging.exposure import VOLT_SQUARE_ANGSTROM, interaction_parameter
from ..imaging.noise import coloured, uniform
from ..imaging.rings import frequency_grid
from .canvas import Canvas

_ICE_VOLT, _CARBON_VOLT = 3.5, 9.0
# Density (per Å3) of molecules or atoms times the square of their scattering factor (Å): structure at random.
_ICE_SCATTERING = 0.0311 * 3.041**2
_CARBON_SCATTERING = 0.100 * 2.51**2
# Carbon is no gas either; with this the Thon rings of 150 Å of it stand a few times above the noise.
_CARBON_STRUCTURE_FACTOR = 0.1
_LATTICE_ANGSTROM = (3.90, 3.67, 3.44)  # the three strongest of hexagonal ice


def ice_thickness(canvas: Canvas, settings: MicrographSettings, generator: torch.Generator) -> Tensor:
    """`(y, x)` Å: a gradient and a smooth uneven rest, never negative."""
    centre = uniform(1, settings.ice_thickness_angstrom, generator).item()
    gradient = uniform(1, settings.ice_gradient, generator).item() / max(canvas.inner)
    roughness = uniform(1, settings.ice_roughness, generator).item()
    angle = 2 * math.pi * torch.rand(1, generator=generator).item()
    y, x = canvas.coordinates()
    relative = 1 + gradient * (math.sin(angle) * y + math.cos(angle) * x)
    relative = relative + roughness * _cloud(canvas.shape, max(canvas.inner) / 4, generator)
    return relative.clamp_min_(0.1).mul_(centre)


def add_ice(
    phase: Tensor, thickness: Tensor, settings: MicrographSettings, generator: torch.Generator
) -> None:
    """Add the phase shift of ice of a thickness `(y, x)` in Å, mean and structure, in place."""
    phase.add_(thickness, alpha=interaction_parameter(settings.voltage_kv) * _ICE_VOLT)
    phase += _structure(thickness, _ICE_SCATTERING * settings.ice_structure_factor, settings, generator)


def contaminants(
    canvas: Canvas, settings: MicrographSettings, generator: torch.Generator
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


def _carbon_film(canvas: Canvas, settings: MicrographSettings, generator: torch.Generator) -> Tensor:
    """`(y, x)` thickness in Å of the film about a round hole whose rim crosses the micrograph."""
    thickness = uniform(1, settings.carbon_thickness_angstrom, generator).item()
    pixel_size = settings.pixel_size_angstrom
    radius = settings.hole_diameter_angstrom / 2 / pixel_size
    angle = 2 * math.pi * torch.rand(1, generator=generator).item()
    offset = uniform(1, (0.0, 0.4), generator).item() * min(canvas.inner) - radius
    y, x = canvas.coordinates()
    distance = torch.hypot(y - offset * math.sin(angle), x - offset * math.cos(angle))
    # the rim is uneven by a few nm and as wide
    distance += _cloud(canvas.shape, 400 / pixel_size, generator) * (15 / pixel_size)
    return ((distance - radius) * (pixel_size / 40)).clamp_(0, 1) * thickness


def _add_ice_crystal(
    phase: Tensor, covered: Tensor, canvas: Canvas, settings: MicrographSettings, generator: torch.Generator
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
    scale = interaction_parameter(settings.voltage_kv) * VOLT_SQUARE_ANGSTROM / settings.pixel_size_angstrom
    white = torch.randn(thickness.shape, generator=generator)
    return white.mul_((thickness * power).sqrt_()).mul_(scale)
