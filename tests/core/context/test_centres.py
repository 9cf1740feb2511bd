"""Places of particles beside the middle of their images: found, of use, and not made up."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from simulated_stacks import SimulatedStack, simulate_stack
from test_stack_context import (
    BOX,
    PIXEL_SIZE,
    QUIET,
    assert_saved_as_it_is,
    error,
    fitted,
    table,
    write_particles,
)

from cryohush.core.context.centres import find_centres
from cryohush.core.context.contexts import find_contexts
from cryohush.core.context.stack_context import StackContext, fit_context
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.rings import ring_mean
from cryohush.core.imaging.structure import potential_map, read_structure
from cryohush.core.simulation.image_formation import ProjectionBank

STRUCTURE = Path(__file__).parents[3] / "examples" / "data" / "2cg9.pdb.gz"


@cache
def bank() -> ProjectionBank:
    """Views of a protein, 38 px across."""
    structure = read_structure(STRUCTURE)
    pixel_size = 2 * structure.radius_angstrom / 38
    projector = Projector(potential_map(structure, BOX, pixel_size, 8 * pixel_size**2))
    images = projector(random_rotations(256, torch.Generator().manual_seed(0)))
    images = images / images.std(dim=(1, 2), keepdim=True)
    n = len(images)
    return ProjectionBank(
        images.half(), torch.full((n,), PIXEL_SIZE), torch.full((n,), 38.0), torch.zeros(n, dtype=torch.int64)
    )


def stack(n: int, shift_share: float) -> SimulatedStack:
    ranges = replace(QUIET, snr=(0.1, 0.1), shift_share=(shift_share, shift_share))
    return simulate_stack([bank()], [table()], ranges, torch.Generator().manual_seed(1), BOX, n)


@cache
def off_centre() -> SimulatedStack:
    return stack(400, 0.06)


@cache
def context() -> StackContext:
    return fitted(off_centre())


def test_known_shifts_are_found() -> None:
    some = stack(300, 0.0)
    context = fitted(some)
    shifts = torch.randint(-4, 5, (300, 2), generator=torch.Generator().manual_seed(2))
    moved = torch.stack(
        [image.roll(shift.tolist(), (0, 1)) for image, shift in zip(some.noisy, shifts, strict=True)]
    )
    own, _ = context.own_ctf(some.optics, 300)
    transform = torch.fft.rfft2(moved)
    centres = find_centres(transform, own, context.signal_power, context.noise_power)
    # uniform over nine pixels; an oblong particle adds its own
    assert centres.spread_px == pytest.approx(math.sqrt(80 / 12), rel=0.3)
    places, _ = centres.places(transform, own)
    told = torch.corrcoef(torch.stack([places.flatten(), shifts.float().flatten()]))[0, 1]
    assert told > 0.6
    middle = torch.fft.irfft2(transform * centres.to_middle(transform, own), s=(BOX, BOX))
    again = torch.fft.rfft2(middle)
    assert centres.places(again, own)[0].abs().mean() < 0.3 * places.abs().mean()


def test_it_lowers_the_error_of_particles_off_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    some = off_centre()
    with_places = error(context().channels(some.noisy, some.optics)[:, 0], some.clean)
    monkeypatch.setattr(StackContext, "with_centres", lambda self, *_: (self, -math.inf))
    without = error(fitted(some).channels(some.noisy, some.optics)[:, 0], some.clean)
    assert context().centres is not None
    assert with_places < 0.95 * without


def test_it_does_no_harm_where_particles_lie_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    some = stack(400, 0.0)
    with_places = error(fitted(some).channels(some.noisy, some.optics)[:, 0], some.clean)
    monkeypatch.setattr(StackContext, "with_centres", lambda self, *_: (self, -math.inf))
    without = error(fitted(some).channels(some.noisy, some.optics)[:, 0], some.clean)
    assert with_places < 1.02 * without


def test_particles_in_the_very_middle_are_no_trouble() -> None:
    """As those of a set cut at known places: their spread is 0."""
    axis = torch.arange(32) - 16
    spot = torch.exp(-(axis[:, None].square() + axis.square()) / 8.0)
    noise = torch.randn(150, 32, 32, generator=torch.Generator().manual_seed(5))
    transform = torch.fft.rfft2(10 * spot + noise)
    signal, flat = torch.fft.rfft2(10 * spot, norm="ortho").abs().square(), torch.ones(32)
    signal = ring_mean(signal, (32, 32))
    centres = find_centres(transform, torch.ones(1, 32, 17), signal, flat[: len(signal)])
    assert 0 < centres.spread_px < 0.5
    assert centres.to_middle(transform, torch.ones(1, 32, 17)).isfinite().all()


@pytest.mark.parametrize("n_images", [100, 1000])
def test_noise_has_no_centre(n_images: int) -> None:
    noise = torch.randn(n_images, BOX, BOX, generator=torch.Generator().manual_seed(3))
    assert fit_context(noise, None, pixel_size_angstrom=PIXEL_SIZE, radius_px=24.0).centres is None


def test_a_moved_particle_gets_the_moved_estimate() -> None:
    some = off_centre()
    assert some.optics is not None
    optics = some.optics[:20]
    noisy = some.noisy[:20] + 0.7 * torch.randn(20, BOX, BOX, generator=torch.Generator().manual_seed(4))
    straight = context().channels(noisy, optics)[:, 0]
    moved = context().channels(noisy.roll((1, -1), (1, 2)), optics)[:, 0]
    assert error(moved, straight.roll((1, -1), (1, 2))) < 0.1
    assert error(moved, straight) > 0.2


def test_a_saved_context_has_the_same(tmp_path: Path) -> None:
    some = off_centre()
    contexts = find_contexts(write_particles(tmp_path, some, half_sets=False))
    (found,) = contexts.contexts
    assert found.centres is not None
    (note,) = contexts.notes.values()
    assert f"particles {found.centres.spread_px:.1f} px off centre" in note
    assert_saved_as_it_is(contexts, some, tmp_path)
