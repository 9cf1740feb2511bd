"""Like views of other images: what they add, and that they add nothing where there are none."""

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
    fitted,
    stack,
    write_particles,
)
from torch import Tensor

from cryohush.core.context.contexts import find_contexts
from cryohush.core.context.like_views import LikeViews
from cryohush.core.context.stack_context import StackContext, fit_context
from cryohush.core.imaging.filters import radial_filter
from cryohush.core.imaging.rings import frequency_grid, ring_index


@cache
def simulated() -> SimulatedStack:
    return stack(400, replace(QUIET, snr=(0.2, 0.2)))


@cache
def context() -> StackContext:
    return fitted(simulated())


def views() -> LikeViews:
    found = context().views
    assert found is not None
    return found


def test_they_lower_the_error_of_the_covariance_filter() -> None:
    some = simulated()
    alone = replace(context(), views=None)
    without = error(alone.channels(some.noisy, some.optics)[:, 0], some.clean)
    with_views = error(context().channels(some.noisy, some.optics)[:, 0], some.clean)
    assert with_views < 0.95 * without
    # the stack tells without the truth by how much, about
    assert 0.1 < views().share <= 1
    assert with_views / without == pytest.approx(views().error, abs=0.2)
    assert float(context().explained.mean()) > float(alone.explained.mean())


def test_an_image_is_not_its_own_neighbour() -> None:
    """Neither where it is in the sample as it is, nor with some more noise."""
    found = views()
    others = torch.arange(len(found.sample)) != 5
    without = replace(found, sample=found.sample[others], group=found.group[others])
    mine, group = found.sample[5:6], found.group[5:6]
    for with_it, out in zip(found.means(mine, group), without.means(mine, group), strict=True):
        torch.testing.assert_close(with_it, out, atol=1e-4, rtol=1e-3)
    generator = torch.Generator().manual_seed(3)
    noise = torch.view_as_complex(torch.randn(1, found.sample.shape[1], 2, generator=generator)) / 4
    noise[:, found.basis.angular == 0] = 0
    for with_it, out in zip(
        found.means(mine + noise, group), without.means(mine + noise, group), strict=True
    ):
        torch.testing.assert_close(with_it, out, atol=1e-4, rtol=1e-3)


def turned(images: Tensor) -> Tensor:
    """By a quarter about pixel `box // 2`; the first row and column go round."""
    return torch.rot90(images, 1, (-2, -1)).roll(1, -2)


def mirrored(images: Tensor) -> Tensor:
    return images.flip(-1).roll(1, -1)


@pytest.mark.parametrize("move", [turned, mirrored])
def test_a_moved_image_gets_the_moved_estimate(move: object) -> None:
    assert callable(move)
    some = simulated()
    assert some.optics is not None
    optics = replace(some.optics, defocus_v_angstrom=some.optics.defocus_u_angstrom)[:20]
    # an image that is not of the sample, for a moved one does not know itself there
    noisy = some.noisy[:20] + 0.7 * torch.randn(20, BOX, BOX, generator=torch.Generator().manual_seed(4))
    straight = context().channels(noisy, optics)[:, 0]
    moved = context().channels(move(noisy), optics)[:, 0]
    assert error(moved, move(straight)) < 0.02


def test_pure_noise_and_images_unlike_each_other_have_none() -> None:
    generator = torch.Generator().manual_seed(6)
    noise = torch.randn(400, BOX, BOX, generator=generator)
    assert fit_context(noise, None, pixel_size_angstrom=PIXEL_SIZE, radius_px=24.0).views is None
    # a Gaussian field is all that its covariance says
    field = torch.randn(400, BOX, BOX, generator=generator)
    field = torch.fft.irfft2(torch.fft.rfft2(field) * torch.exp(-((frequency_grid((BOX, BOX)) / 0.05) ** 2)))
    axis = torch.arange(BOX) - BOX // 2
    inside = torch.hypot(axis[:, None].float(), axis[None].float()) < 20
    images = noise + 0.5 * field / field.std() * inside
    assert fit_context(images, None, pixel_size_angstrom=PIXEL_SIZE, radius_px=24.0).views is None


def test_a_saved_context_has_the_same(tmp_path: Path) -> None:
    some = simulated()
    contexts = find_contexts(write_particles(tmp_path, some, half_sets=False))
    assert contexts.contexts[0].views is not None
    assert_saved_as_it_is(contexts, some, tmp_path)


def test_an_image_gets_the_same_in_any_company() -> None:
    some = simulated()
    assert some.optics is not None
    together = context().channels(some.noisy[:100], some.optics[:100])
    apart = context().channels(some.noisy[70:73], some.optics[70:73])
    # weights that fall to 0 with the distance: rounding moves nobody in or out at once; bf16 has 8 bits
    assert error(apart[:, 0], together[70:73, 0]) < 1e-4
    torch.testing.assert_close(apart[:, 1:], together[70:73, 1:], atol=1e-5, rtol=0)


def test_noise_below_the_floor_is_known() -> None:
    noise = torch.randn(300, BOX, BOX, generator=torch.Generator().manual_seed(8))
    power = torch.ones(BOX)
    power[:10] = 0.5
    found = fit_context(
        radial_filter(noise, power.sqrt()), None, pixel_size_angstrom=PIXEL_SIZE, radius_px=24.0
    )
    assert found.noise_variance == pytest.approx(1.0, rel=0.05)
    assert found.noise_power[:7].tolist() == pytest.approx([0.5] * 7, rel=0.1)
    assert found.noise_power[14:33].tolist() == pytest.approx([found.noise_variance] * 19, rel=0.05)
    whitened = found.whitening.square() * found.noise_power[ring_index((BOX, BOX))]
    torch.testing.assert_close(whitened, torch.full_like(whitened, found.noise_variance))


def test_only_so_many_images_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    particles = write_particles(tmp_path, stack(600, replace(QUIET, snr=(0.2, 0.2))))
    monkeypatch.setattr("cryohush.core.context.contexts.MOST_VIEWS", 300)
    contexts = find_contexts(particles)
    assert [context.views is not None for context in contexts.contexts] == [True, False]
    first, second = contexts.notes.values()
    assert "like views take part" in first
    assert "like views" not in second
