"""What is drawn for each image of a simulated set before any pixel is made: pose, optics, noise, half set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.simulate import CtfConfig, ParticlesConfig
from ..errors import InputError
from ..imaging.ctf import CtfParameters, check_ctf_sampling, read_ctf_table
from ..imaging.noise import image_generator, log_uniform, uniform
from ..imaging.poses import Poses, poses_of, uniform_poses
from ..imaging.projection import euler_from_rotations
from ..io.particles import ParticleSet


@dataclass(frozen=True, eq=False)
class ParticleDraws:
    """Of n images, in the order of the stack.

    Attributes
    ----------
    structure
        `(n,)` int64, which structure an image shows; rising, so that one volume at a time is needed.
    rot_tilt_psi_degrees
        `(n, 3)`, RELION's.
    shift_px
        `(n, 2)` (y, x), of the particle off the centre; RELION's origin is the negative of it.
    optics
        None where there is no CTF.
    b_factor_square_angstrom, snr
        `(n,)`.
    component
        `(n,)` int64, which kind of noise an image gets; -1 for the sum of all.
    contaminated
        `(n,)` bool.
    half_set
        `(n,)` int64, 1 or 2, in turns.
    """

    structure: Tensor
    rot_tilt_psi_degrees: Tensor
    shift_px: Tensor
    optics: CtfParameters | None
    b_factor_square_angstrom: Tensor
    snr: Tensor
    component: Tensor
    contaminated: Tensor
    half_set: Tensor

    def __len__(self) -> int:
        return len(self.structure)


def draw_particles(config: ParticlesConfig, shares: Sequence[float]) -> ParticleDraws:
    """Draw a set; each quantity has its own generator, so that changing one leaves the others as they were.

    Parameters
    ----------
    config
        The configuration.
    shares
        Of each structure or state, relative to each other: the images are dealt out in these proportions,
        exactly but for rounding.

    Raises
    ------
    InputError
        A CTF table or the table of poses cannot be read, or the latter is too short.
    ConfigurationError
        An unknown symmetry, or a CTF oscillates faster than the box can sample.
    """
    n, seed = config.n_images, config.seed

    def source(purpose: str) -> torch.Generator:
        return image_generator(seed, 0, purpose)

    poses = _poses(config, source("pose"))
    contaminated = torch.zeros(n, dtype=torch.bool)
    if config.contamination is not None:
        chosen = torch.randperm(n, generator=source("contamination"))
        contaminated[chosen[: round(config.contamination.share * n)]] = True
    if config.snr_range is not None:
        snr = log_uniform(n, config.snr_range, source("snr"))
    else:
        snr = torch.tensor(config.snr)[torch.randint(len(config.snr), (n,), generator=source("snr"))]
    component = torch.full((n,), -1)
    if config.noise.combine == "one":
        weights = torch.tensor([component.weight for component in config.noise.components])
        component = torch.multinomial(weights, n, replacement=True, generator=source("component"))
    optics = None if config.ctf is None else draw_optics(n, config.ctf, source("ctf"))
    if optics is not None:
        check_ctf_sampling(optics, torch.full((n,), config.pixel_size_angstrom), config.box_px)
    return ParticleDraws(
        structure=torch.repeat_interleave(torch.tensor(deal(n, shares))),
        rot_tilt_psi_degrees=euler_from_rotations(poses.rotations),
        shift_px=poses.shifts_angstrom / config.pixel_size_angstrom,
        optics=optics,
        b_factor_square_angstrom=uniform(n, config.envelope_b_factor_square_angstrom, source("envelope")),
        snr=snr,
        component=component,
        contaminated=contaminated,
        half_set=torch.arange(n) % 2 + 1,
    )


def deal(n: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers that add to n, in proportion to the shares (the largest remainders are rounded up)."""
    exact = [n * share / sum(shares) for share in shares]
    counts = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: counts[k] - exact[k])
    for k in by_remainder[: n - sum(counts)]:
        counts[k] += 1
    return counts


def draw_optics(n: int, config: CtfConfig, generator: torch.Generator) -> CtfParameters:
    """n CTFs: rows of the tables, or uniform within the ranges."""
    if config.tables:
        tables = [read_ctf_table(path) for path in config.tables]
        columns = (
            torch.cat([getattr(table, name) for table in tables])
            for name in CtfParameters.__dataclass_fields__
        )
        joined = CtfParameters(*columns)
        return joined[torch.randint(len(joined), (n,), generator=generator)]
    mean = uniform(n, config.defocus_angstrom, generator)
    half = uniform(n, config.astigmatism_angstrom, generator) / 2
    return CtfParameters(
        mean + half,
        mean - half,
        180 * torch.rand(n, generator=generator),
        torch.full((n,), config.voltage_kv),
        torch.full((n,), config.cs_mm),
        torch.full((n,), config.amplitude_contrast),
        uniform(n, config.phase_shift_degrees, generator),
    )


def _poses(config: ParticlesConfig, generator: torch.Generator) -> Poses:
    """From the table, or uniform."""
    n = config.n_images
    if config.poses is None:
        return uniform_poses(
            n, generator, symmetry=config.symmetry, max_shift_angstrom=config.max_shift_angstrom
        )
    poses = poses_of(ParticleSet.read(config.poses))
    if len(poses) < n:
        raise InputError(
            f"expected poses of {n} particles, found {len(poses)}.",
            path=config.poses,
            remedy="Simulate fewer images.",
        )
    return poses[torch.arange(n)]
