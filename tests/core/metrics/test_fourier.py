"""Ring correlation and power against brute force, closed forms and an independent library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch_fourier_shell_correlation as library

from cryohush.core.imaging import filters
from cryohush.core.metrics import fourier, image


def white_noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rings_of(shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1])
    return np.round(np.hypot(rows[:, None], columns[None, :]) * min(shape)).astype(int)


@pytest.mark.parametrize("shape", [(16, 16), (15, 15), (12, 17)])
def test_ring_correlation_equals_brute_force_on_the_full_transform(shape: tuple[int, int]) -> None:
    a = white_noise(*shape)
    b = a + white_noise(*shape, seed=2)
    f, g = np.fft.fft2(a.numpy()), np.fft.fft2(b.numpy())
    rings = rings_of(shape)
    expected = []
    for ring in range(min(shape) // 2 + 1):
        x, y = f[rings == ring], g[rings == ring]
        norm = np.sqrt((np.abs(x) ** 2).sum() * (np.abs(y) ** 2).sum())
        expected.append((x * y.conj()).sum().real / norm)
    np.testing.assert_allclose(fourier.fourier_ring_correlation(a, b), expected, rtol=1e-9)


def test_ring_correlation_agrees_with_torch_fourier_shell_correlation() -> None:
    signal = filters.gaussian_filter(white_noise(64, 64), 1.0)
    a, b = signal + 0.2 * white_noise(64, 64, seed=2), signal + 0.2 * white_noise(64, 64, seed=3)
    found = fourier.fourier_ring_correlation(a, b)
    # the library spreads each coefficient over two rings and counts half of the transform, so only the course
    # of the curve is the same; beyond ring 5 a ring holds enough coefficients to compare
    expected = library.fourier_ring_correlation(a.float(), b.float()).double()
    torch.testing.assert_close(found[5:-1], expected[5:-1], rtol=0.0, atol=0.15)
    assert float((found - expected)[5:-1].abs().mean()) < 0.04


def test_ring_correlation_of_an_image_with_itself_and_its_negative() -> None:
    images = white_noise(3, 12, 12)
    ones = torch.ones(3, 7, dtype=torch.float64)
    torch.testing.assert_close(fourier.fourier_ring_correlation(images, 2 * images), ones)
    torch.testing.assert_close(fourier.fourier_ring_correlation(images, -images), -ones)


def test_empty_rings_correlate_with_nothing() -> None:
    images = filters.low_pass(white_noise(32, 32), 8.0, 1.0, edge_rings=0.0)
    flat = torch.zeros_like(images)
    assert fourier.fourier_ring_correlation(flat, images).tolist() == [0.0] * 17


def test_pooled_ring_correlation_finds_the_share_of_signal() -> None:
    # signal and noise of equal variance: the correlation is 1/2 in every ring
    signal = white_noise(300, 16, 16)
    a, b = signal + white_noise(300, 16, 16, seed=2), signal + white_noise(300, 16, 16, seed=3)
    found = fourier.pooled_fourier_ring_correlation(a, b)
    # ring 1 holds 8 coefficients, 4 independent ones of 2 numbers: 2400 samples, error about 0.02
    torch.testing.assert_close(found[1:], torch.full((8,), 0.5, dtype=found.dtype), rtol=0.0, atol=0.08)


def test_pooling_weighs_pairs_by_what_they_hold() -> None:
    strong = white_noise(1, 16, 16)
    images = torch.cat([strong, 1e-6 * white_noise(9, 16, 16, seed=2)])
    twins = torch.cat([strong, 1e-6 * white_noise(9, 16, 16, seed=3)])
    pooled = fourier.pooled_fourier_ring_correlation(images, twins)
    # the faint pairs hold 1e-12 of the power and do not agree; the mean over pairs would be near 0.1
    torch.testing.assert_close(pooled, torch.ones_like(pooled), rtol=0.0, atol=1e-9)
    assert float(fourier.fourier_ring_correlation(images, twins).mean(0)[4:].max()) < 0.5


def test_power_spectrum_of_white_noise_is_its_variance() -> None:
    power = fourier.radial_power_spectrum(2.0 * white_noise(500, 16, 16)).mean(0)
    assert power.shape == (9,)
    # ring 0 averages 500 squared normals: relative error sqrt(2 / 500) = 0.06
    torch.testing.assert_close(power, torch.full((9,), 4.0, dtype=power.dtype), rtol=0.25, atol=0.0)


def test_power_over_all_rings_adds_up_to_the_mean_square() -> None:
    images = white_noise(2, 15, 15)  # Parseval, with the corner rings included
    power = filters.ring_mean(torch.fft.rfft2(images, norm="ortho").abs().square(), (15, 15))
    counts = torch.from_numpy(np.bincount(rings_of((15, 15)).ravel()))
    torch.testing.assert_close((power * counts).sum(-1) / 225, images.square().mean((-2, -1)))
    torch.testing.assert_close(fourier.radial_power_spectrum(images), power[..., :8])


@pytest.mark.parametrize("shape", [(16, 16), (15, 12)])
def test_correlation_in_the_whole_band_is_the_pearson_correlation(shape: tuple[int, int]) -> None:
    a, b = white_noise(3, *shape) + 4.0, white_noise(3, *shape, seed=2) - 1.0
    b = b + 0.3 * a
    torch.testing.assert_close(fourier.band_correlation(a, b, 1.5), image.correlation(a, b))


def test_band_correlation_is_blind_to_a_common_gradient() -> None:
    pixel_size, side = 1.5, 128  # 192 Å: rings 0 and 1 are coarser than 100 Å
    a, b = white_noise(side, side), white_noise(side, side, seed=2)
    wave = 100 * torch.cos(2 * math.pi * torch.arange(side) / side)[:, None]
    assert float(image.correlation(a + wave, b + wave)) > 0.99
    kept = fourier.band_correlation(a + wave, b + wave, pixel_size, coarsest_angstrom=100.0)
    torch.testing.assert_close(kept, fourier.band_correlation(a, b, pixel_size, coarsest_angstrom=100.0))
    # independent noise: 0 within 5 standard errors of 1 / side
    assert abs(float(kept)) < 5 / side


def test_band_correlation_equals_that_of_band_passed_images() -> None:
    a = white_noise(32, 32)
    b = a + white_noise(32, 32, seed=2)
    limits = {"coarsest_angstrom": 32 * 2 / 4.5, "finest_angstrom": 32 * 2 / 9.5}  # between rings

    def band_passed(images: torch.Tensor) -> torch.Tensor:
        fine = filters.low_pass(images, limits["finest_angstrom"], 2.0, edge_rings=0.0)
        return fine - filters.low_pass(images, limits["coarsest_angstrom"], 2.0, edge_rings=0.0)

    torch.testing.assert_close(
        fourier.band_correlation(a, b, 2.0, **limits), image.correlation(band_passed(a), band_passed(b))
    )


def test_ring_frequencies_end_at_nyquist() -> None:
    frequencies = fourier.ring_frequencies((128, 128), 1.5)
    assert frequencies.shape == (65,)
    assert float(frequencies[-1]) == pytest.approx(1 / 3.0)
