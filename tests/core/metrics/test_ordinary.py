"""How ordinary an image is: distances beside an independent estimate, features that know what they should."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.covariance import MinCovDet
from torch import Tensor

from cryohush.core.config.denoise import SUSPICIOUS_BELOW
from cryohush.core.metrics.ordinary import (
    N_FEATURES,
    figure_of_merit,
    image_features,
    squared_distances,
    turned_mean,
)


def features(n: int, junk: int, seed: int) -> Tensor:
    """Correlated normal features on unlike scales, the last `junk` far away."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(4, 4, generator=generator)
    values = torch.randn(n, 4, generator=generator) @ mixing * torch.tensor([1.0, 1e-3, 50.0, 1.0])
    values[n - junk :] += torch.tensor([20.0, 0.0, 0.0, 20.0])
    return values


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("junk", [0, 60])
def test_distances_are_those_of_the_minimum_covariance_determinant(junk: int, seed: int) -> None:
    values = features(400, junk, seed)
    ours = squared_distances(values)
    theirs = torch.from_numpy(MinCovDet(random_state=0).fit(values.double().numpy()).mahalanobis(values))
    good, theirs_good = ours[: 400 - junk], theirs[: 400 - junk]
    # theirs looks again at all that lies near; ours is that of the core, and of 400 rows a little less sure
    assert torch.corrcoef(torch.stack([good, theirs_good]))[0, 1] > 0.9
    if junk:
        assert ours[-junk:].min() > good.max()


def test_distances_of_normal_features_follow_chi_square() -> None:
    scores = figure_of_merit(squared_distances(features(20_000, 0, 7)))
    # chi square with four degrees of freedom: 0.1 % lie beyond 18.467, half beyond 3.357
    assert float((scores < SUSPICIOUS_BELOW).float().mean()) == pytest.approx(0.001, abs=0.001)
    assert float(scores.median()) == pytest.approx(1 / (1 + 3.357 / N_FEATURES), abs=0.01)


def test_what_is_ordinary_is_the_crowd_and_neither_more_nor_less() -> None:
    values = torch.randn(300, 2, generator=torch.Generator().manual_seed(1))
    values[:10], values[10:20] = -6.0, 6.0
    distances = squared_distances(values)
    assert float(distances[:20].min()) > float(distances[20:].quantile(0.98))


def test_scales_and_origins_of_features_do_not_matter() -> None:
    values = features(300, 30, 4).double()
    changed = values * torch.tensor([3.0, 1e4, 0.1, -1.0]) + 5
    torch.testing.assert_close(squared_distances(changed), squared_distances(values), rtol=1e-6, atol=1e-6)


def test_a_constant_feature_is_no_feature() -> None:
    values = features(300, 0, 5)
    values[:, 2] = 4.0
    assert torch.isfinite(squared_distances(values)).all()


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 40 rows"):
        squared_distances(torch.randn(39, 4))


def test_the_mean_image_is_the_same_in_all_turns() -> None:
    images = torch.randn(5, 33, 33)
    mean = turned_mean(images)
    torch.testing.assert_close(mean, torch.rot90(mean))
    torch.testing.assert_close(turned_mean(torch.rot90(images, 1, (1, 2))), mean)


def test_features_of_a_disc_in_noise() -> None:
    axis = torch.arange(32) - 16
    inside = (axis[:, None].square() + axis.square() <= 100).float()
    outside = 1 - inside
    halves = torch.where(axis[:, None] >= 0, 1.0, -1.0)
    # contrast 3; within the disc one half is 1 above the mean and the other 1 below
    image = (inside * (3 + halves))[None]
    found = image_features(image, 2 * image + 1, inside, outside, image[0])[0]
    within = image[0][inside > 0]
    power, contrast, agreement, likeness = found.tolist()
    assert power == pytest.approx(10 * math.log10(float(within.var(correction=0))), abs=1e-3)
    assert contrast == pytest.approx(float(within.mean()), abs=1e-4)
    assert agreement == pytest.approx(1.0, abs=1e-4)
    assert likeness == pytest.approx(1.0, abs=1e-4)
