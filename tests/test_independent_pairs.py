"""The limits of the benchmark on independent pairs: the best radial filter, and rings without noise."""

from __future__ import annotations

import math

import pytest
import torch
from independent_pairs import noise_free_gain, oracle_gain

from cryohush.core.imaging.filters import gaussian_filter, low_pass, radial_filter
from cryohush.core.metrics.independent import independent_correlation, white_noise_power


def white_noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_oracle_gain_is_the_least_squares_gain_of_each_ring() -> None:
    clean = gaussian_filter(white_noise(6, 16, 16).double(), 1.5)
    images, twin = clean + 0.1 * white_noise(6, 16, 16, seed=2), clean + 0.1 * white_noise(6, 16, 16, seed=3)
    gain = oracle_gain(images, twin)

    def distance(candidate: torch.Tensor) -> float:
        return float((radial_filter(images, candidate) - twin).square().sum())

    best = distance(gain)
    for ring in range(len(gain)):
        for change in (-1e-3, 1e-3):
            moved = gain.clone()
            moved[ring] += change
            assert distance(moved) > best


def test_oracle_gain_finds_the_wiener_filter_of_known_powers() -> None:
    # signal of variance 3, noise of variance 1, both white: the gain is 3/4 in every ring
    clean = math.sqrt(3.0) * white_noise(400, 16, 16)
    images, twin = clean + white_noise(400, 16, 16, seed=2), clean + white_noise(400, 16, 16, seed=3)
    gain = oracle_gain(images, twin)
    # ring 0 holds one number per image, so its error is about 1 / sqrt(400)
    torch.testing.assert_close(gain, torch.full_like(gain, 0.75), rtol=0.0, atol=0.2)
    torch.testing.assert_close(gain[3:9], torch.full((6,), 0.75, dtype=gain.dtype), rtol=0.0, atol=0.03)


def test_without_noise_the_score_of_the_best_radial_filter_grows_by_the_closed_form() -> None:
    # power 4 in all rings up to 1/8 per pixel and none beyond, in noise of power 1
    clean = low_pass(2 * white_noise(40, 64, 64), 8.0, 1.0, edge_rings=0.0)
    raw, twin = clean + white_noise(40, 64, 64, seed=2), clean + 3 * white_noise(40, 64, 64, seed=3)
    # the median of the powers of ten rings, 1,500 coefficients of each image, is good to 4 %
    torch.testing.assert_close(white_noise_power(raw), torch.ones(40), rtol=0, atol=0.15)
    # sqrt((S + N) / S); chance adds some 1 % in the 30 rings without signal
    gain = noise_free_gain(raw, twin, 0.5)
    assert gain == pytest.approx(math.sqrt(5 / 4), rel=0.02)
    # and the clean images do score that
    best = independent_correlation(radial_filter(raw, oracle_gain(raw, twin)), twin).mean()
    assert float(best) * gain == pytest.approx(float(independent_correlation(clean, twin).mean()), rel=0.02)
    # no ring has so much signal: nothing loses its noise
    assert noise_free_gain(raw, twin, 1e6) == 1.0
