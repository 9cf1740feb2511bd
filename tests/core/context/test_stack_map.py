"""A map of the particle: found from the images alone, and of use to images that took no part in it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from simulated_stacks import SimulatedStack
from test_stack_context import (
    BOX,
    PIXEL_SIZE,
    QUIET,
    assert_saved_as_it_is,
    error,
    stack,
    write_particles,
)
from torch import Tensor

from cryohush.core.classical.covariance import angular_places
from cryohush.core.classical.fourier_bessel import FourierBesselBasis
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.context.contexts import find_contexts
from cryohush.core.context.stack_context import StackContext, circle, fit_context
from cryohush.core.context.stack_map import (
    Grid,
    Reconstruction,
    StackMap,
    Templates,
    backprojected,
    group_power,
    unasked,
)
from cryohush.core.errors import Aborted
from cryohush.core.imaging.projection import Projector
from cryohush.core.imaging.rings import frequency_grid
from cryohush.core.inference.plan import plan_stacks
from cryohush.core.jobs.self_measurement import measure_gain
from cryohush.core.models.weights import load_model

N, OTHERS = 400, 100
GRID = Grid(120, 48, 0.2)


@cache
def simulated() -> SimulatedStack:
    return stack(N + OTHERS, replace(QUIET, snr=(0.2, 0.2)))


@cache
def context(*, with_map: bool = True) -> StackContext:
    """Of the first images: the others are unknown to it."""
    some = simulated()
    assert some.optics is not None
    return fit_context(
        some.noisy[:N],
        some.optics[:N],
        pixel_size_angstrom=PIXEL_SIZE,
        radius_px=24.0,
        with_map=unasked if with_map else None,
    )


def blobs(seed: int = 3) -> Tensor:
    """A volume without symmetry that varies slowly."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(BOX).float() - BOX // 2
    volume = torch.zeros(BOX, BOX, BOX)
    for _ in range(12):
        centre = (torch.rand(3, generator=generator) - 0.5) * 24
        z, y, x = (torch.exp(-((axis - c) ** 2) / (2 * 3.0**2)) for c in centre)
        volume += z[:, None, None] * y[:, None] * x
    return volume


def templates(volume: Tensor) -> tuple[Templates, FourierBesselBasis]:
    basis = FourierBesselBasis(BOX, 26.0, 0.35)
    squared = [torch.eye(len(place))[None] for place in angular_places(basis)]
    return Templates(volume, GRID, basis, squared), basis


def turned(images: Tensor) -> Tensor:
    """By a quarter about pixel `box // 2`; the first row and column go round."""
    return torch.rot90(images, 1, (-2, -1)).roll(1, -2)


def mirrored(images: Tensor) -> Tensor:
    return images.flip(-1).roll(1, -1)


@pytest.mark.parametrize("move", [lambda images: images, turned, mirrored])
@pytest.mark.parametrize("near", [False, True])
def test_a_projection_is_found_in_any_pose_and_with_its_contrast(move: object, near: bool) -> None:
    assert callable(move)
    volume = 30 * blobs()
    found, basis = templates(volume)
    directions = torch.tensor([5, 60, 110])
    image = move(1.2 * Projector(volume)(GRID.rotations[directions]))
    group = torch.zeros(3, dtype=torch.int64)
    candidates = torch.cat([directions, directions + GRID.directions])[None].expand(3, -1) if near else None
    weight, contrast, _ = found.posterior(basis.analyse(image), group, candidates=candidates)
    best = weight.amax(0).argmax(1)
    for one, at in enumerate(best.tolist()):
        template = at if candidates is None else int(candidates[one, at])
        assert template % GRID.directions == directions[one]
        angle = int(weight[:, one, at].argmax())
        assert float(contrast[angle, one, at]) == pytest.approx(1.2, abs=0.05)
    (mean,) = found.means([weight], contrast, candidates)
    assert error(basis.synthesise(mean), image) < 0.02


def test_projections_make_the_volume() -> None:
    volume = 30 * blobs()
    found, basis = templates(volume)
    images = basis.analyse(Projector(volume)(GRID.rotations))
    group = torch.zeros(len(images), dtype=torch.int64)
    sums = torch.zeros(GRID.directions, len(basis), dtype=torch.complex64)
    counts = torch.zeros(1, GRID.directions)
    for rows in torch.arange(len(images)).split(40):
        weight, contrast, _ = found.posterior(images[rows], group[rows])
        backprojected(found, images[rows], group[rows], weight, contrast, sums, counts)
    # noise that is next to nothing
    rebuilt = Reconstruction(basis, torch.ones(1, BOX // 2 + 1), torch.full((BOX // 2 + 1,), 1e6))(
        sums, counts, GRID
    )
    both = torch.stack([volume.flatten(), rebuilt.flatten()])
    assert float(torch.corrcoef(both)[0, 1]) > 0.98
    assert float((rebuilt * volume).sum() / volume.square().sum()) == pytest.approx(1.0, abs=0.05)


def test_it_lowers_the_error_of_images_that_it_does_not_know() -> None:
    some = simulated()
    assert some.optics is not None
    found = context().views
    assert isinstance(found, StackMap)
    noisy, clean, optics = some.noisy[N:], some.clean[N:], some.optics[N:]
    by = {with_map: context(with_map=with_map).channels(noisy, optics)[:, 0] for with_map in (True, False)}
    assert error(by[True], clean) < 0.8 * error(by[False], clean)
    assert 0.5 < found.share <= 1


def test_what_a_context_explains_is_told_without_the_truth() -> None:
    some = simulated()
    assert some.optics is not None
    noisy, clean, optics = some.noisy[N:], some.clean[N:], some.optics[N:]
    inside, told = circle(BOX, 24.0), []
    for with_map in (True, False):
        found = context(with_map=with_map)
        seen = inside * found.channels(noisy, optics)[:, 0]
        true = float((seen * (2 * inside * clean - seen)).sum()) / found.noise_variance
        told.append(float(found.explained_power(noisy, optics, 4).sum()))
        # a sixteenth more noise changes it by less
        assert told[-1] == pytest.approx(true, rel=0.05)
    assert told[0] > 1.02 * told[1]


@pytest.mark.parametrize("move", [turned, mirrored])
def test_a_moved_image_gets_the_moved_estimate(move: object) -> None:
    assert callable(move)
    some = simulated()
    assert some.optics is not None
    optics = replace(some.optics, defocus_v_angstrom=some.optics.defocus_u_angstrom)[N : N + 20]
    straight = context().channels(some.noisy[N : N + 20], optics)[:, 0]
    moved = context().channels(move(some.noisy[N : N + 20]), optics)[:, 0]
    assert error(moved, move(straight)) < 0.03


def test_pure_noise_and_images_unlike_each_other_have_none() -> None:
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(300, BOX, BOX, generator=generator)
    field = torch.randn(300, BOX, BOX, generator=generator)
    field = torch.fft.irfft2(torch.fft.rfft2(field) * torch.exp(-((frequency_grid((BOX, BOX)) / 0.05) ** 2)))
    axis = torch.arange(BOX) - BOX // 2
    inside = torch.hypot(axis[:, None].float(), axis[None].float()) < 20
    for images in (noise, noise + 0.5 * field / field.std() * inside):
        found = fit_context(images, None, pixel_size_angstrom=PIXEL_SIZE, radius_px=24.0, with_map=unasked)
        assert found.views is None


def test_an_image_gets_the_same_in_any_company() -> None:
    some = simulated()
    assert some.optics is not None
    together = context().channels(some.noisy[:100], some.optics[:100])
    apart = context().channels(some.noisy[70:73], some.optics[70:73])
    assert error(apart[:, 0], together[70:73, 0]) < 1e-3
    torch.testing.assert_close(apart[:, 1:], together[70:73, 1:], atol=1e-5, rtol=0)


def test_a_saved_context_has_the_same_and_a_job_states_what_the_map_adds(tmp_path: Path) -> None:
    some = simulated()
    particles = write_particles(tmp_path, some, half_sets=False)
    contexts = find_contexts(particles, with_map=unasked)
    assert isinstance(contexts.contexts[0].views, StackMap)
    assert contexts.of_map
    (note,) = contexts.notes.values()
    assert "a map of them takes part by" in note
    assert_saved_as_it_is(contexts, some, tmp_path)
    stated = {
        with_map: measure_gain(
            particles,
            plan_stacks(particles),
            load_model("general"),
            DenoiseOptions(),
            "fp32",
            contexts if with_map else find_contexts(particles),
        )["bands"]
        for with_map in (True, False)
    }
    better = [
        of_map["gain"] - without["gain"]
        for of_map, without in zip(stated[True], stated[False], strict=True)
        if without["gain"] is not None
    ]
    assert sum(better) / len(better) > 0.1


def test_groups_of_ctf_without_an_image_have_no_power() -> None:
    transfer = torch.stack([torch.full((4, 3), value) for value in (1.0, 2.0, 3.0)])
    power = group_power(transfer, torch.tensor([2, 0, 2]), 5)
    assert power[:, 0, 0].tolist() == [4.0, 0.0, 5.0, 0.0, 0.0]


def test_the_search_stops_when_asked() -> None:
    some = simulated()
    assert some.optics is not None

    def stop() -> None:
        raise Aborted("enough")

    with pytest.raises(Aborted, match="enough"):
        fit_context(
            some.noisy[:N], some.optics[:N], pixel_size_angstrom=PIXEL_SIZE, radius_px=24.0, with_map=stop
        )
