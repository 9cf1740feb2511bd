"""Pure-noise figures on denoisers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.metrics.hallucination import half_set_frc, mean_pairwise_correlation, pure_noise_figures


def white_noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pairwise_correlation_is_the_mean_over_all_pairs() -> None:
    images = white_noise(7, 8, 9) + 0.5 * white_noise(8, 9, seed=2)
    matrix = np.corrcoef(images.flatten(1).numpy())
    expected = (matrix.sum() - 7) / 42
    assert mean_pairwise_correlation(images) == pytest.approx(expected, abs=1e-12)


def test_passing_noise_through_is_not_inventing() -> None:
    noise = white_noise(64, 32, 32)
    figures = pure_noise_figures(noise, noise)
    assert figures.variance_ratio == pytest.approx(1.0)
    assert figures.correlation_with_input == pytest.approx(1.0)
    assert figures.correlation_between_outputs == figures.correlation_between_inputs
    assert figures.half_set_frc == figures.half_set_frc_of_input
    # two averages of independent noise do not agree: ring 8 up holds 50 and more coefficients, 25 independent
    assert max(abs(value) for value in figures.half_set_frc[8:]) < 0.5


def test_a_denoiser_that_always_adds_one_particle_is_caught() -> None:
    noise = white_noise(64, 32, 32)
    particle = gaussian_filter(white_noise(32, 32, seed=9), 1.0)
    figures = pure_noise_figures(noise, particle + 0.05 * noise)
    assert figures.correlation_between_outputs > 0.9
    assert min(figures.half_set_frc[1:8]) > 0.99
    assert abs(figures.correlation_between_inputs) < 0.01


def test_variance_is_counted_within_images() -> None:
    noise = white_noise(8, 16, 16)
    offsets = torch.arange(8, dtype=torch.float64)[:, None, None]
    assert pure_noise_figures(noise, 0.1 * noise + offsets).variance_ratio == pytest.approx(0.01)


def test_a_denoiser_that_returns_nothing_has_zero_in_every_figure() -> None:
    noise = white_noise(8, 16, 16)
    figures = pure_noise_figures(noise, torch.zeros_like(noise))
    assert (
        figures.variance_ratio == figures.correlation_with_input == figures.correlation_between_outputs == 0
    )
    assert figures.half_set_frc == [0.0] * 9


def test_half_sets_ignore_the_mean_grey_value() -> None:
    images = white_noise(8, 16, 16)
    torch.testing.assert_close(half_set_frc(images + 100.0), half_set_frc(images))
    assert float(half_set_frc(images)[0]) == 0.0


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        pure_noise_figures(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))
