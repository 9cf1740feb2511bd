"""Pickers on micrographs whose particles are known, and matches that can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from cryohush.core.errors import InputError
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.metrics import image, picking
from cryohush.core.metrics.picking import PickingScores, Picks

PICKERS = [picking.pick_blobs, picking.pick_by_mean_shift]


def micrograph(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """White discs of 20 px diameter and height 1, 30 px apart or more, in noise of this deviation."""
    generator = torch.Generator().manual_seed(3)
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(6)) * 40.0 + 20
    centres = grid + 5 * (2 * torch.rand(grid.shape, generator=generator) - 1)
    y, x = torch.arange(200.0)[:, None], torch.arange(240.0)
    squared = (y - centres[:, :1, None]) ** 2 + (x - centres[:, 1:, None]) ** 2
    discs = (squared.amin(0) <= 100).float()
    return discs + noise * torch.randn(discs.shape, generator=generator), centres


@pytest.mark.parametrize("pick", PICKERS)
def test_every_disc_is_found_and_nothing_else(pick: Callable[..., Picks]) -> None:
    clean, centres = micrograph(0.0)
    found = pick(clean, 20.0)
    # within two pixels: a micrograph is reduced by blocks of up to three pixels
    assert picking.score_picks(found.centres_px, centres, 2.0) == PickingScores(30, 30, 30)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize("pick", [partial(picking.pick_blobs, threshold=2.0), picking.pick_by_mean_shift])
def test_denoising_helps_to_find_the_discs(pick: Callable[..., Picks]) -> None:
    noisy, centres = micrograph(3.0)
    scores = [
        picking.score_picks(pick(picture, 20.0).centres_px, centres, 10.0)
        for picture in (noisy, gaussian_filter(noisy, 4.0))
    ]
    assert scores[1].recall > 0.9
    assert scores[1].f1 >= scores[0].f1
    assert scores[1].f1 > 0.75


def test_places_do_not_depend_on_where_the_blocks_of_the_reduction_lie() -> None:
    y, x = torch.arange(200.0)[:, None], torch.arange(200.0)
    one = ((y - 80) ** 2 + (x - 110) ** 2 <= 400).float()
    for pick in PICKERS:
        for shift in (0, 1, 2, 3):
            found = pick(one.roll((shift, shift), (0, 1)), 40.0)
            assert len(found.centres_px) == 1
            torch.testing.assert_close(
                found.centres_px[0], torch.tensor([80.0 + shift, 110.0 + shift]), rtol=0, atol=2.0
            )


@pytest.mark.parametrize("pick", PICKERS)
def test_an_empty_micrograph_has_no_picks(pick: Callable[..., Picks]) -> None:
    assert pick(torch.zeros(64, 64), 10.0).centres_px.shape == (0, 2)


def test_matches_by_hand() -> None:
    labels = torch.tensor([[10.0, 10.0], [10.0, 14.0], [50.0, 50.0]])
    # The pick between two labels is nearest to the first, but only by leaving that to the other pick do both
    # match; a second pick on one label and one far away are wrong.
    picks = torch.tensor([[10.0, 11.5], [10.0, 8.0], [53.0, 50.0], [51.0, 50.0], [90.0, 90.0]])
    scores = picking.score_picks(picks, labels, 3.0)
    assert scores == PickingScores(n_picks=5, n_labels=3, n_matched=3)
    assert (scores.precision, scores.recall) == (pytest.approx(3 / 5), pytest.approx(1.0))
    assert scores.f1 == pytest.approx(2 * 0.6 * 1.0 / 1.6)
    nothing = picking.score_picks(torch.zeros(0, 2), labels, 3.0)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)
    assert scores + nothing == PickingScores(5, 6, 3)


def test_average_precision_by_hand() -> None:
    labels = torch.tensor([[0.0, 0.0], [20.0, 0.0]])
    first = Picks(torch.tensor([[0.0, 1.0], [9.0, 9.0], [20.0, 0.0]]), torch.tensor([3.0, 2.0, 1.0]))
    # right, wrong, right: (1/1 + 2/3) / 2
    assert picking.average_precision([first], [labels], 3.0) == pytest.approx((1 + 2 / 3) / 2)
    # a second micrograph with one label, found last, and one pick on a label that is taken
    second = Picks(torch.tensor([[5.0, 5.0], [5.0, 6.0]]), torch.tensor([0.5, 0.2]))
    both = picking.average_precision([first, second], [labels, torch.tensor([[5.0, 5.0]])], 3.0)
    assert both == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    # any monotone change of the contrast leaves it
    stretched = Picks(first.centres_px, first.scores.exp())
    assert picking.average_precision([stretched], [labels], 3.0) == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(InputError, match="labels for each micrograph"):
        picking.average_precision([first], [], 3.0)


def test_regions_are_cut_about_their_centres() -> None:
    picture = torch.arange(100.0).reshape(10, 10)
    found = picking.square_regions(picture, torch.tensor([[4.0, 5.0], [0.0, 9.0]]), 3)
    torch.testing.assert_close(found[0], picture[3:6, 4:7])
    torch.testing.assert_close(found[1], picture[0:3, 7:10])  # moved inside
    with pytest.raises(ValueError, match="no square of 11 px"):
        picking.square_regions(picture, torch.tensor([[4.0, 5.0]]), 11)


def test_background_lies_away_from_all_particles() -> None:
    picture, centres = micrograph(0.5)
    empty, particle = picking.nearest_background((200, 240), centres, 17.0, 9)
    assert len(empty) == len(torch.unique(empty, dim=0)) == len(torch.unique(particle)) > 15
    assert float(torch.cdist(empty, centres).min()) >= 16.5
    inside, outside = (picking.square_regions(picture, places, 9) for places in (centres[particle], empty))
    found = image.region_signal_to_noise_ratio(inside, outside)
    # height 1 over noise of variance 1/4: 6.02 dB; a region of 81 pixels knows its variance to 16 %, 0.7 dB
    assert float(found.mean()) == pytest.approx(6.02, abs=0.5)


def test_a_crowded_micrograph_has_no_background() -> None:
    crowd = torch.cartesian_prod(torch.arange(0.0, 60.0, 10.0), torch.arange(0.0, 60.0, 10.0))
    empty, particle = picking.nearest_background((60, 60), crowd, 20.0, 9)
    assert empty.shape == (0, 2)
    assert particle.shape == (0,)
