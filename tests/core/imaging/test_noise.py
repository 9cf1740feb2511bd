"""Noise has the distribution, the spectrum and the strength that its functions promise."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from cryohush.core.errors import InputError
from cryohush.core.imaging.noise import (
    PowerSpectrum,
    coloured,
    expected_counts,
    gamma,
    gaussian,
    ice_power,
    image_generator,
    measure_spectrum,
    poisson,
    random_patch,
    rayleigh,
    read_spectrum,
    scale_to_snr,
    signal_to_noise_ratio,
)

SHAPE = (64, 64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def disc(radius: float) -> Tensor:
    y, x = torch.meshgrid(*[torch.arange(side) - side // 2 for side in SHAPE], indexing="ij")
    return y**2 + x**2 < radius**2


def test_an_image_has_its_own_noise_whichever_images_were_drawn_before() -> None:
    alone = gaussian(SHAPE, image_generator(3, 17))
    for number in range(17):
        gaussian(SHAPE, image_generator(3, number))
    assert torch.equal(alone, gaussian(SHAPE, image_generator(3, 17)))
    for other in (image_generator(3, 18), image_generator(4, 17), image_generator(3, 17, "pose")):
        # independent: the correlation of 4096 pairs has a standard error of 1 / 64
        assert abs(float((alone * gaussian(SHAPE, other)).mean())) < 5 / 64


def test_no_two_of_a_million_images_share_a_seed() -> None:
    seeds = {image_generator(1, number).initial_seed() for number in range(0, 10**9, 10**4)}
    assert len(seeds) == 10**5
    assert max(seeds) < 2**32  # what the CPU's generator can tell apart


@pytest.mark.parametrize(
    ("draw", "distribution"),
    [
        (lambda g: gaussian((400, 400), g), scipy.stats.norm()),
        (lambda g: gamma((400, 400), 1.5, g), scipy.stats.gamma(1.5, loc=-(1.5**0.5), scale=1.5**-0.5)),
        (
            lambda g: rayleigh((400, 400), g),
            scipy.stats.rayleigh(
                loc=-math.sqrt(math.pi / 2) / math.sqrt(2 - math.pi / 2), scale=1 / math.sqrt(2 - math.pi / 2)
            ),
        ),
    ],
    ids=["gaussian", "gamma", "rayleigh"],
)
def test_distribution_is_the_one_of_scipy_with_mean_0_and_variance_1(draw, distribution) -> None:
    assert distribution.mean() == pytest.approx(0, abs=1e-12)
    assert distribution.var() == pytest.approx(1)
    sample = draw(generator()).flatten().numpy()
    assert scipy.stats.kstest(sample, distribution.cdf).pvalue > 0.01


def test_counts_have_the_mean_and_the_variance_that_are_expected() -> None:
    expected = torch.full((300, 300), 4.0)
    counts = poisson(expected, generator())
    assert torch.equal(counts, counts.round())
    # standard errors of mean and variance: 2 / 300 and 4 sqrt(2) / 300
    assert float(counts.mean()) == pytest.approx(4, abs=0.03)
    assert float(counts.var()) == pytest.approx(4, abs=0.1)
    with pytest.raises(ValueError, match="must not be negative, found -1"):
        poisson(expected - 5, generator())


def test_dose_and_contrast_give_the_ratio_that_was_asked_for() -> None:
    mask, signal = disc(20), disc(10).float()
    expected = expected_counts(signal, 20.0, 0.5, mask)
    assert float(expected.mean()) == pytest.approx(20)
    noise = torch.stack([poisson(expected, generator(seed)) - expected for seed in range(50)])
    found = signal_to_noise_ratio(expected.expand_as(noise), noise, mask)
    # a sample variance of 4096 values is known to 2 %, the mean of fifty to 0.3 %
    assert float(found.mean()) == pytest.approx(0.5, rel=0.015)


def test_a_ratio_that_the_dose_cannot_give_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ratio of 5 cannot be had from 0\.5 electrons per pixel"):
        expected_counts(-disc(10).float(), 0.5, 5.0)


def test_spectrum_of_coloured_noise_is_the_one_given() -> None:
    frequency = np.array([0.05, 0.2, 0.5])
    spectrum = PowerSpectrum(frequency, np.array([9.0, 1.0, 4.0]))
    fields = coloured(gaussian((200, *SHAPE), generator()), spectrum.on_grid(SHAPE))
    # 200 * 4096 values whose correlation reaches a few pixels
    assert float(fields.var()) == pytest.approx(1, abs=0.02)
    assert fields.mean(dim=(1, 2)).abs().max() < 1e-6
    found = measure_spectrum(fields)
    # relative to the power at 0.5, above which it is constant: about 3 % from 200 images of each small ring
    reference = found.power[(found.frequency > 0.5)].mean() / 4
    expected = np.interp(found.frequency, frequency, spectrum.power)
    np.testing.assert_allclose(found.power[1:] / reference, expected[1:], rtol=0.1)


def test_measured_spectrum_of_white_noise_is_flat_whatever_its_mean_and_shape() -> None:
    found = measure_spectrum(1000 + 2 * gaussian((300, 48, 64), generator()))
    assert found.frequency[0] == pytest.approx(1 / 48)
    # rings of 8 and more coefficients of 300 images: standard error below 1 / sqrt(1200)
    np.testing.assert_allclose(found.power, 4, rtol=0.12)


def test_structure_of_the_ice_shows_the_rings_of_the_transfer_function() -> None:
    frequency = torch.hypot(torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None, :])
    transfer = torch.cos(20 * frequency)[None]
    fields = coloured(gaussian((400, *SHAPE), generator()), ice_power(transfer, 0.2)[0])
    assert float(fields.var()) == pytest.approx(1, abs=0.03)
    found = measure_spectrum(fields)
    ring = np.arange(1, 32)
    shape = np.cos(20 * ring / 64) ** 2 * np.exp(-0.5 * (ring / 64 / 0.2) ** 2)
    assert np.corrcoef(found.power[:31], shape)[0, 1] > 0.99


def test_patches_are_pieces_of_the_real_images_brought_to_mean_0_and_variance_1() -> None:
    source = torch.arange(2 * 12 * 14.0).reshape(2, 12, 14)
    seen = set()
    for seed in range(200):
        patch = random_patch(source, (8, 8), generator(seed))
        assert float(patch.mean()) == pytest.approx(0, abs=1e-5)
        assert float(patch.std(correction=0)) == pytest.approx(1, abs=1e-5)
        seen.add(tuple(patch[0, :2].tolist()))
    # the ramp looks the same wherever it is cut: what differs is how the piece is turned, in eight ways
    assert len({tuple(round(value, 3) for value in corner) for corner in seen}) == 8


def test_patches_larger_than_the_images_are_refused() -> None:
    with pytest.raises(ValueError, match="pieces of 32 x 32 px do not fit into images of 16 x 40 px"):
        random_patch(torch.zeros(1, 40, 16), (32, 32), generator())
    with pytest.raises(ValueError, match="is constant"):
        random_patch(torch.zeros(1, 40, 40), (32, 32), generator())


@pytest.mark.parametrize("mask", [None, disc(20)], ids=["whole image", "mask"])
def test_ratio_is_what_was_asked_for_in_each_image(mask: Tensor | None) -> None:
    signal = torch.stack([disc(radius).float() for radius in (4, 8, 15)]) + 3
    wanted = torch.tensor([0.001, 0.1, 20.0])
    noise = scale_to_snr(signal, 7 * rayleigh((3, *SHAPE), generator()), wanted, mask)
    for image, field, ratio in zip(signal.numpy(), noise.numpy(), wanted.tolist(), strict=True):
        inside = image if mask is None else image[mask.numpy()]
        # float32 sums over 4096 pixels
        assert inside.var() / field.var() == pytest.approx(ratio, rel=1e-4)


@pytest.mark.parametrize("ratio", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="must be positive and finite"):
        scale_to_snr(disc(5).float(), gaussian(SHAPE, generator()), ratio)


def test_a_constant_signal_has_no_ratio() -> None:
    with pytest.raises(ValueError, match="is constant"):
        scale_to_snr(disc(5).float(), gaussian(SHAPE, generator()), 1.0, disc(3))


def test_spectrum_is_read_from_two_columns(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("# frequency power\n0.1 3\n0.2 2\n0.5 1\n")
    assert read_spectrum(tmp_path / "good.txt").power.tolist() == [3, 2, 1]
    for text, problem in [
        ("0.1 3 1\n0.2 2 1\n", "expected two columns"),
        ("0.2 3\n0.1 2\n", "rising frequencies"),
        ("0.1 3\n0.2 -2\n", "not negative"),
        ("0.1 a\n0.2 2\n", "expected a table of frequency and power"),
    ]:
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(InputError, match=problem):
            read_spectrum(tmp_path / "bad.txt")
