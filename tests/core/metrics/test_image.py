"""Per-image distances against numpy and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryohush.core.metrics import image


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(4, 9, 12, generator=generator, dtype=torch.float64)
    return 0.7 * reference + torch.randn(4, 9, 12, generator=generator, dtype=torch.float64) + 5.0, reference


def test_correlation_is_that_of_numpy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(image.correlation(*pair), expected, rtol=1e-12)


def test_correlation_ignores_scale_and_offset(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, reference = pair
    torch.testing.assert_close(
        image.correlation(3 * images - 8, reference), image.correlation(images, reference)
    )
    torch.testing.assert_close(image.correlation(-images, reference), -image.correlation(images, reference))


def test_correlation_with_a_constant_image_is_zero() -> None:
    noise = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))
    assert image.correlation(torch.full_like(noise, 2.0), noise).tolist() == [0.0, 0.0]


def test_normalised_error_of_the_mean_value_is_one(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    reference = pair[1]
    flat = reference.mean((-2, -1), keepdim=True).expand_as(reference)
    found = image.normalised_mean_squared_error(flat, reference)
    torch.testing.assert_close(found, torch.ones_like(found))


def test_affine_error_is_the_error_after_a_least_squares_fit(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = []
    for a, b in zip(*pair, strict=True):
        design = np.stack([a.flatten(), np.ones(a.numel())], 1)
        residual = np.linalg.lstsq(design, b.flatten().numpy(), rcond=None)[1][0]
        expected.append(residual / ((b - b.mean()) ** 2).sum())
    np.testing.assert_allclose(image.affine_normalised_mean_squared_error(*pair), expected, rtol=1e-10)


def test_peak_signal_to_noise_ratio_by_hand() -> None:
    reference = torch.zeros(1, 4, 4)
    # an error of 0.1 everywhere on a scale of 1: MSE 0.01, 20 dB; on a scale of 255 it is 48.13 dB more
    found = image.peak_signal_to_noise_ratio(reference + 0.1, reference, data_range=1.0)
    assert float(found) == pytest.approx(20.0, abs=1e-5)
    found = image.peak_signal_to_noise_ratio(reference + 0.1, reference, data_range=255.0)
    assert float(found) == pytest.approx(20.0 + 20 * np.log10(255), abs=1e-5)
