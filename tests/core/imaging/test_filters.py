"""The classical filters against scipy, closed forms and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from cryohush.core.imaging import filters
from cryohush.core.imaging.rings import frequency_grid, ring_mean

SHAPES = [(16, 16), (15, 15), (12, 17), (9, 8)]


def white_noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_rings(shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1])
    return np.round(np.hypot(rows[:, None], columns[None, :]) * min(shape)).astype(int)


@pytest.mark.parametrize("shape", SHAPES)
def test_ring_mean_equals_a_plain_mean_over_the_full_transform(shape: tuple[int, int]) -> None:
    image = white_noise(*shape)
    power = np.abs(np.fft.fft2(image.numpy())) ** 2
    rings = full_rings(shape)
    expected = [power[rings == ring].mean() for ring in range(rings.max() + 1)]
    found = ring_mean(torch.fft.rfft2(image).abs().square(), shape)
    np.testing.assert_allclose(found, expected, rtol=1e-10)  # float64 both, another order of summation


@pytest.mark.parametrize("sigma_px", [0.4, 1.0, 3.7, 9.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_gaussian_filter_is_that_of_scipy(shape: tuple[int, int], sigma_px: float) -> None:
    # sigma 9 reaches 36 pixels: further than the image is wide
    images = white_noise(3, *shape)
    expected = ndimage.gaussian_filter(images.numpy(), (0, sigma_px, sigma_px))
    np.testing.assert_allclose(filters.gaussian_filter(images, sigma_px), expected, atol=1e-12)


@pytest.mark.parametrize("width_px", [1, 3, 7])
def test_mean_filter_is_that_of_scipy(width_px: int) -> None:
    images = white_noise(2, 10, 13)
    expected = ndimage.uniform_filter(images.numpy(), (0, width_px, width_px))
    np.testing.assert_allclose(filters.mean_filter(images, width_px), expected, atol=1e-12)


def test_filters_keep_a_constant_image_and_the_dtype() -> None:
    images = torch.full((2, 16, 16), 3.0)
    gain = torch.ones(13)
    for filtered in (
        filters.mean_filter(images, 5),
        filters.gaussian_filter(images, 2.0),
        filters.low_pass(images, 10.0, 1.0),
        filters.radial_filter(images, gain),
    ):
        assert filtered.dtype == torch.float32
        torch.testing.assert_close(filtered, images, rtol=1e-6, atol=0.0)  # float32 rounding


@pytest.mark.parametrize("edge_rings", [0.0, 2.0])
def test_low_pass_keeps_coarser_waves_and_removes_finer_ones(edge_rings: float) -> None:
    side, pixel_size = 64, 2.0
    column = torch.arange(side, dtype=torch.float64)
    # cut-off at ring 10, that is at 64 * 2 / 10 = 12.8 Å
    for ring, gain in ((8, 1.0), (12, 0.0)):
        wave = torch.cos(2 * math.pi * ring * column / side).expand(side, side)
        found = filters.low_pass(wave, side * pixel_size / 10, pixel_size, edge_rings)
        torch.testing.assert_close(found, gain * wave, rtol=0.0, atol=1e-7)  # the gain is float32


def test_low_pass_halves_the_wave_at_its_cut_off() -> None:
    wave = torch.cos(2 * math.pi * 10 * torch.arange(64) / 64).expand(64, 64)
    found = filters.low_pass(wave, 64 / 10, 1.0, edge_rings=4.0)
    torch.testing.assert_close(found, 0.5 * wave, rtol=0.0, atol=1e-5)  # float32 transform


def test_radial_filter_scales_each_ring_by_its_gain() -> None:
    images = white_noise(2, 16, 16)
    gain = torch.rand(12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    spectrum = np.fft.fft2(images.numpy()) * gain.numpy()[full_rings((16, 16))]
    np.testing.assert_allclose(filters.radial_filter(images, gain), np.fft.ifft2(spectrum).real, atol=1e-12)


def test_wiener_gain_is_signal_over_total_and_never_negative() -> None:
    total = torch.tensor([4.0, 2.0, 1.0, 0.0])
    noise = torch.tensor([1.0, 1.0, 1.5, 1.0])
    torch.testing.assert_close(filters.wiener_gain(noise, total), torch.tensor([0.75, 0.5, 0.0, 0.0]))


def test_the_noise_is_measured_outside_the_particle() -> None:
    power = 1 + 3 * torch.exp(-((frequency_grid((64, 64)) / 0.2) ** 2))
    noise = torch.fft.irfft2(torch.fft.rfft2(white_noise(300, 64, 64).float()) * power.sqrt())
    axis = torch.arange(64.0) - 32
    disc = (axis[:, None].square() + axis.square() < 20**2).float()
    found = filters.background_power(noise + 5 * disc, 24.0)
    expected = ring_mean(power, (64, 64))
    # the rings of 300 images are known to some 3 %; ring 1 lacks the part of it that went with the mean
    torch.testing.assert_close(found[2:], expected[2:], rtol=0.1, atol=0)
    torch.testing.assert_close(found[1], expected[1], rtol=0.2, atol=0)
    assert float(found[0]) == float(found[1])


def test_a_transfer_function_multiplies_the_transform() -> None:
    images = white_noise(2, 16, 16)
    gain = torch.rand(2, 16, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = np.fft.irfft2(np.fft.rfft2(images.numpy()) * gain.numpy())
    np.testing.assert_allclose(filters.apply_transfer(images, gain), expected, atol=1e-12)


def test_filters_refuse_impossible_sizes() -> None:
    images = torch.zeros(1, 8, 8)
    for width_px in (0, 4):
        with pytest.raises(ValueError, match="odd"):
            filters.mean_filter(images, width_px)
    with pytest.raises(ValueError, match="positive"):
        filters.gaussian_filter(images, 0.0)


def rings_of_a_ctf(shape: tuple[int, int]) -> torch.Tensor:
    """Power of a signal at each frequency: ice seen through a CTF, zero in some rings and beyond 0.3."""
    frequency = frequency_grid(shape)
    return 4 * torch.sin(60 * frequency.square()).square() * (frequency < 0.3) / (1 + 40 * frequency)


def filtered(image: torch.Tensor) -> torch.Tensor:
    """By the Wiener filter alone."""
    return filters.averaged_with_wiener(torch.zeros_like(image), image, 1.0, 1e9, 1e8)


@pytest.mark.parametrize("shape", [(1024, 1024), (901, 1210)])
def test_the_filter_by_an_images_spectrum_is_nearly_wieners(shape: tuple[int, int]) -> None:
    """Beside Wiener's with the true power S of the signal: S / (S + 1) in white noise of variance 1."""
    power = rings_of_a_ctf(shape).double()
    signal = torch.fft.irfft2(torch.fft.rfft2(white_noise(*shape)) * power.sqrt(), s=shape)
    noisy = signal + white_noise(*shape, seed=2)
    ideal = torch.fft.irfft2(torch.fft.rfft2(noisy) * (power / (power + 1)), s=shape)
    radial = filters.gaussian_filter(noisy, 1.5)
    found = filtered(noisy.float())
    errors = [float((image - signal).square().mean()) for image in (found, ideal, radial)]
    assert errors[0] < 1.05 * errors[1] < 0.9 * errors[2]


def test_the_filter_by_an_images_spectrum_is_that_of_most_of_it() -> None:
    """Contamination in a corner is a thousand times as strong, and changes next to nothing far from it."""
    shape = (900, 900)
    noisy = torch.fft.irfft2(torch.fft.rfft2(white_noise(*shape)) * rings_of_a_ctf(shape).sqrt(), s=shape)
    noisy = (noisy + white_noise(*shape, seed=2)).float()
    dirty = noisy.clone()
    dirty[:120, :120] += 30 * white_noise(120, 120, seed=3).float()
    change = (filtered(dirty) - filtered(noisy))[450:, 450:]
    assert change.square().mean().sqrt() < 0.05


@pytest.mark.parametrize(("shape", "within"), [((1536, 1536), 0.005), ((601, 510), 0.015)])
def test_the_spectrum_of_white_noise_is_its_variance(shape: tuple[int, int], within: float) -> None:
    """Where signal is a few hundredths of the noise, a percent counts; few small squares give no more."""
    spectra, floors = [], []
    for seed in range(8):
        spectrum, side = filters.spectrum_of(white_noise(*shape, seed=seed).float())
        spectra.append(float(spectrum[10:].mean()))
        floors.append(filters.floor_of(spectrum, side // 2))
    assert sum(spectra) / 8 == pytest.approx(1, abs=within)
    assert sum(floors) / 8 == pytest.approx(1, abs=within)


@pytest.mark.parametrize("shape", [(1024, 1024), (601, 510)])
@pytest.mark.parametrize(
    "directions", [((0.0, 0.5),), ((0.5, 0.5),), ((0.301, 0.075), (0.085, 0.298), (-0.215, 0.223))]
)
def test_the_filter_by_an_images_spectrum_keeps_no_pattern_that_repeats(
    shape: tuple[int, int], directions: tuple[tuple[float, float], ...]
) -> None:
    """Lines of a detector, a chessboard and a hexagonal lattice, each as strong as the noise."""
    y, x = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    pattern = sum(torch.cos(2 * math.pi * (along_y * y + along_x * x)) for along_y, along_x in directions)
    noisy = torch.fft.irfft2(torch.fft.rfft2(white_noise(*shape)) * rings_of_a_ctf(shape).sqrt(), s=shape)
    noisy = (noisy + white_noise(*shape, seed=2)).float()
    change = filtered(noisy + pattern - pattern.mean()) - filtered(noisy)
    assert change.square().mean().sqrt() < 0.2


@pytest.mark.parametrize("shape", [(8, 8), (9, 40), (65, 64), (200, 131)])
def test_the_filter_by_an_images_spectrum_takes_any_size(shape: tuple[int, int]) -> None:
    image = filtered(white_noise(*shape).float())
    assert image.shape == shape
    assert image.isfinite().all()


def test_the_share_of_the_filter_rises_between_two_periods() -> None:
    shape = (400, 300)
    image, estimate = white_noise(*shape).float(), white_noise(*shape, seed=2).float()
    mean = filters.averaged_with_wiener(estimate, image, 0.6, 20.0, 10.0)
    alone, both, wiener = (torch.fft.rfft2(one) for one in (estimate, mean, filtered(image)))
    share = 0.6 * np.interp(frequency_grid(shape).numpy(), [0.05, 0.1], [0.0, 1.0])
    torch.testing.assert_close(
        both, alone + torch.from_numpy(share).float() * (wiener - alone), rtol=0, atol=1e-2
    )
