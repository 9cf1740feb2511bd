"""Whole stacks of simulated particles: one microscope session each, with the CTF parameters of its table.

`image_formation.simulate_pairs` draws everything anew for each image; here what images of one session share
(signal-to-noise ratio, spectrum of the noise, envelope, crowding, table of CTFs) is drawn once for the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cryohush.core.imaging.ctf import CtfParameters, ctf
from cryohush.core.imaging.noise import (
    gaussian,
    log_uniform,
    noise_of_ice_and_detector,
    smooth_background,
    uniform,
)
from cryohush.core.imaging.normalise import background_statistics, default_radius_px
from cryohush.core.imaging.resample import fourier_resample
from cryohush.core.imaging.rings import frequency_grid
from cryohush.core.simulation.image_formation import (
    ImagingRanges,
    ProjectionBank,
    place_particles,
    random_dihedral,
)

_BLOCK = 256


@dataclass(frozen=True)
class StackRanges:
    """What is drawn once for a stack; pairs are (lowest, highest).

    Attributes
    ----------
    images
        How many images a stack has, drawn log-uniformly.
    snr
        As of `ImagingRanges`: the stack's, drawn log-uniformly; its images' lie within a factor of 1.5.
    envelope_b_factor, ice_share, background_share
        Largest of a stack, as in `ImagingRanges`; the square of a uniform number times this is drawn.
    noise_tilt
        Amplitude (natural log of power) of the smooth random terms of the spectrum of signal and noise.
    crowded_probability
        Probability that the stack's particles have neighbours.
    shift_share
        Largest shift of the particles along x and y, as in `ImagingRanges`.
    empty_share, other_share
        Largest shares of images that show no particle in the centre, and of another structure.
    no_ctf_probability, unknown_ctf_probability
        Probabilities of a stack without CTF, and of one whose CTF nobody knows.
    micrographs
        From how many micrographs the images come, drawn log-uniformly.
    defocus_scale
        Factor on the defocus of the real table.
    defocus_error_angstrom
        Standard deviation of the error of the defocus in the stack's table.
    """

    images: tuple[float, float] = (100, 2048)
    snr: tuple[float, float] = (0.008, 0.4)
    envelope_b_factor: float = 800.0
    ice_share: float = 0.2
    background_share: float = 0.1
    noise_tilt: float = 0.3
    crowded_probability: float = 0.7
    shift_share: tuple[float, float] = (0.0, 0.06)
    empty_share: float = 0.3
    other_share: float = 0.3
    no_ctf_probability: float = 0.06
    unknown_ctf_probability: float = 0.06
    micrographs: tuple[float, float] = (4, 300)
    defocus_scale: tuple[float, float] = (0.6, 1.4)
    defocus_error_angstrom: float = 150.0


#: of a stack in white noise, without CTF and with nothing else beside its particles
PLAIN: dict[str, Any] = {
    "envelope_b_factor": 0.0,
    "ice_share": 0.0,
    "background_share": 0.0,
    "noise_tilt": 0.0,
    "crowded_probability": 0.0,
    "empty_share": 0.0,
    "other_share": 0.0,
    "no_ctf_probability": 1.0,
    "unknown_ctf_probability": 0.0,
}


@dataclass(frozen=True, eq=False)
class SimulatedStack:
    """A stack.

    Attributes
    ----------
    noisy, clean
        `(n, y, x)` on one grey scale: the background of the noisy image has mean 0 and sd 1.
    optics
        What the stack's table says of the CTFs; None where it says nothing.
    pixel_size_angstrom
        Of the images.
    """

    noisy: Tensor
    clean: Tensor
    optics: CtfParameters | None
    pixel_size_angstrom: float


def simulate_stack(
    volumes: Sequence[ProjectionBank],
    tables: Sequence[CtfParameters],
    ranges: StackRanges,
    generator: torch.Generator,
    box_px: int,
    n_images: int | None = None,
) -> SimulatedStack:
    """One stack of the first of the volumes, in part of the others.

    Parameters
    ----------
    volumes
        Projections of one volume each.
    tables
        Real CTF parameters; a stack has those of one of them.
    n_images
        None draws it.
    """

    def draw(limits: tuple[float, float]) -> float:
        return float(uniform(1, limits, generator))

    def draw_log(limits: tuple[float, float]) -> float:
        return float(log_uniform(1, limits, generator))

    n = n_images or round(draw_log(ranges.images))
    sides = volumes[0].images.shape[-1], box_px
    pixel_size = float(volumes[0].pixel_size_angstrom[0]) * sides[0] / sides[1]
    table = tables[int(torch.randint(len(tables), (1,), generator=generator))]
    optics = _session(n, table, round(draw_log(ranges.micrographs)), draw(ranges.defocus_scale), generator)
    no_ctf = draw((0, 1)) < ranges.no_ctf_probability
    known = not no_ctf and draw((0, 1)) >= ranges.unknown_ctf_probability
    snr = draw_log(ranges.snr)
    b_factor = ranges.envelope_b_factor * draw((0, 1)) ** 2
    ice_share = ranges.ice_share * draw((0, 1)) ** 2
    other = ranges.other_share * max(0.0, draw((-1, 1))) if len(volumes) > 1 else 0.0
    empty = ranges.empty_share * max(0.0, draw((-2, 1)))
    each = ImagingRanges(
        shift_share=draw(ranges.shift_share),
        neighbour_probability=float(draw((0, 1)) < ranges.crowded_probability),
    )
    shape = (box_px, box_px)
    frequency = frequency_grid(shape)
    squared_frequency = (frequency / pixel_size) ** 2
    colour = _spectrum(frequency, ranges.noise_tilt, generator).sqrt()
    # the particles' fall-off varies somewhat from image to image
    noisy, clean = torch.empty(n, *shape), torch.empty(n, *shape)
    for members in torch.split(torch.arange(n), _BLOCK):
        m = len(members)
        specimen = _specimens(volumes, m, other, empty, each, box_px, generator)
        transfer = torch.ones(m, *frequency.shape)
        if not no_ctf:
            transfer = ctf(optics[members], torch.full((m,), pixel_size), box_px)
        b = b_factor * uniform(m, (0.7, 1.3), generator)[:, None, None]
        seen = torch.fft.rfft2(specimen) * transfer * torch.exp(-squared_frequency * b / 4)
        image = torch.fft.irfft2(seen, s=shape)
        image = image - image.mean(dim=(1, 2), keepdim=True)
        # one contrast for the stack, as particles of one session have
        variance = image.var(dim=(1, 2))
        typical = variance[variance > 0].median() if bool((variance > 0).any()) else torch.ones(())
        factor = (snr * log_uniform(m, (0.67, 1.5), generator) / typical).sqrt()
        image = image * factor[:, None, None]
        image = image + smooth_background(m, box_px, ranges.background_share, generator)
        ice, noise = noise_of_ice_and_detector(
            frequency, transfer, tilt=0.0, largest_ice_share=1e-6, generator=generator
        )
        # the same share for the whole stack
        ice = ice / ice.std(dim=(1, 2), keepdim=True) * ice_share**0.5
        image = image + ice
        pair = torch.stack([image + noise, image], 1)
        pair = torch.fft.irfft2(torch.fft.rfft2(pair) * colour, s=shape)
        mean, std = background_statistics(pair[:, 0], default_radius_px(shape))
        pair = (pair - mean[:, None, None, None]) / std[:, None, None, None]
        noisy[members], clean[members] = pair[:, 0], pair[:, 1]
    return SimulatedStack(noisy, clean, _as_fitted(optics, ranges, generator) if known else None, pixel_size)


def _specimens(
    volumes: Sequence[ProjectionBank],
    n: int,
    other_share: float,
    empty_share: float,
    ranges: ImagingRanges,
    box_px: int,
    generator: torch.Generator,
) -> Tensor:
    """`(n, y, x)` particles, most of the first volume."""
    kind = (torch.rand(n, generator=generator) < other_share).long()
    if len(volumes) > 2:
        kind *= torch.randint(1, len(volumes), (n,), generator=generator)
    empty = torch.rand(n, generator=generator) < empty_share
    images = torch.zeros(n, box_px, box_px)
    for number, bank in enumerate(volumes):
        members = (kind == number).nonzero().squeeze(1)
        if len(members):
            pick = torch.randint(len(bank), (len(members),), generator=generator)
            # an empty place may still have neighbours
            placed = place_particles(bank, pick, ranges, generator, ~empty[members])
            images[members] = random_dihedral(fourier_resample(placed, box_px), generator)
    return images


def _session(
    n: int, table: CtfParameters, n_micrographs: int, scale: float, generator: torch.Generator
) -> CtfParameters:
    """CTFs of n images that come from some micrographs, in the order of a stack."""
    drawn = torch.randint(len(table), (n_micrographs,), generator=generator)
    place = torch.randint(n_micrographs, (n,), generator=generator).sort().values
    optics = table[drawn[place]]
    common = table[drawn[:1]]

    def alike(name: str) -> Tensor:
        values: Tensor = getattr(common, name)
        return values.expand(n).clone()

    # within a micrograph the height of the particles differs
    height = 100 * gaussian((n,), generator)
    return CtfParameters(
        optics.defocus_u_angstrom * scale + height,
        optics.defocus_v_angstrom * scale + height,
        optics.angle_degrees,
        *(alike(name) for name in ("voltage_kv", "cs_mm", "amplitude_contrast", "phase_shift_degrees")),
    )


def _as_fitted(optics: CtfParameters, ranges: StackRanges, generator: torch.Generator) -> CtfParameters:
    error = ranges.defocus_error_angstrom * gaussian((len(optics),), generator)
    return replace(
        optics,
        defocus_u_angstrom=optics.defocus_u_angstrom + error,
        defocus_v_angstrom=optics.defocus_v_angstrom + error,
    )


def _spectrum(frequency: Tensor, tilt: float, generator: torch.Generator) -> Tensor:
    """`(y, x // 2 + 1)` smooth random power about 1."""
    relative = (frequency / 0.5).clamp_max(1.0)
    log_power = torch.zeros_like(frequency)
    for order in (1, 2, 3):
        log_power += tilt / order * float(gaussian((1,), generator)) * torch.cos(torch.pi * order * relative)
    return torch.exp(log_power)
