"""The classical denoisers by name: what each is, that it denoises, and the choice of its parameter."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from scipy import ndimage

from cryohush.core.classical.baselines import (
    BASELINES,
    available_baselines,
    choose_parameter,
    covariance_wiener,
    covariance_wiener_through_ctf,
    dictionary_filter,
    noise_standard_deviation,
    radial_wiener,
)
from cryohush.core.errors import ConfigurationError
from cryohush.core.imaging import filters
from cryohush.core.imaging.ctf import CtfParameters, ctf
from cryohush.core.imaging.rings import frequency_grid, ring_mean

BOX = 32


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def particles(n: int, seed: int = 5) -> torch.Tensor:
    """`(n, 32, 32)` three smooth blobs in any place within 8 px of the centre, mean variance 1."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(BOX).float() - BOX // 2
    images = torch.zeros(n, BOX, BOX)
    for _ in range(3):
        y, x = 8 * (2 * torch.rand(2, n, 1, 1, generator=generator) - 1)
        images += torch.exp(-((axis[:, None] - y) ** 2 + (axis - x) ** 2) / (2 * 2.5**2))
    return images / images.var((1, 2)).mean().sqrt()


def error(images: torch.Tensor, reference: torch.Tensor) -> float:
    return float((images - reference).square().mean())


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_lessens_the_noise_and_keeps_the_grey_scale(name: str) -> None:
    if name not in available_baselines():
        pytest.skip(f"the library behind {name} is not installed")
    n = 256 if "wiener" in name else 3
    clean = 4 + particles(n)
    noisy = clean + 2 * normal(n, BOX, BOX)
    baseline = BASELINES[name]
    denoised = baseline.denoise(noisy, baseline.default)
    assert denoised.shape == noisy.shape
    assert denoised.dtype == torch.float32
    # the noise alone has 4, the particles 1
    assert error(denoised, clean) < 2.0
    # 3 images know their mean to 0.04; patches weigh the border less
    assert float(denoised.mean()) == pytest.approx(float(noisy.mean()), abs=0.15)
    # another scale of the input is another scale of the output
    scaled = baseline.denoise(100 * noisy, baseline.default)
    torch.testing.assert_close(scaled, 100 * denoised, rtol=0, atol=0.02 * float(scaled.std()))


def test_candidates_rise_and_hold_nothing_impossible() -> None:
    for name, baseline in BASELINES.items():
        assert list(baseline.candidates) == sorted(set(baseline.candidates)), name
        assert baseline.candidates[0] <= baseline.default <= baseline.candidates[-1], name
    assert all(width % 2 for width in BASELINES["mean"].candidates)


def test_the_parameter_chosen_is_the_best_and_a_noisy_twin_chooses_like_the_clean_image() -> None:
    clean = particles(64)
    noisy, twin = clean + normal(64, BOX, BOX), clean + normal(64, BOX, BOX, seed=2)
    sigmas = (0.5, 1.0, 1.5, 2.0, 4.0)
    by_hand = [
        np.square(ndimage.gaussian_filter(noisy.numpy(), (0, s, s)) - clean.numpy()).mean() for s in sigmas
    ]
    best = sigmas[int(np.argmin(by_hand))]
    assert sigmas[0] < best < sigmas[-1]
    for reference in (clean, twin):
        assert choose_parameter(filters.gaussian_filter, sigmas, noisy, reference) == best
    with pytest.raises(ValueError, match="candidate"):
        choose_parameter(filters.gaussian_filter, (), noisy, clean)


def test_the_noise_of_each_image_is_estimated_beneath_its_particle() -> None:
    sd = torch.linspace(1.0, 3.0, 300)
    images = particles(300) + sd[:, None, None] * normal(300, BOX, BOX)
    ratio = noise_standard_deviation(images) / sd
    # the median of 256 absolute values varies by 7 %; the particle adds next to nothing
    assert float(ratio.std()) < 0.09
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)


def test_a_flat_patch_needs_no_atom_and_a_strong_one_is_kept() -> None:
    pytest.importorskip("sklearn")
    clean = 3 * particles(4)
    # of variance 9 for the particle and 1 for the noise; learnt from 144 patches only
    assert error(dictionary_filter(clean + normal(4, BOX, BOX), 1.1, atoms=64), clean) < 0.5
    noise = normal(4, BOX, BOX, seed=3)
    # of pure noise only the means of patches stay, 1/144 of the variance, the more where patches overlap less
    assert float(dictionary_filter(noise, 1.3, atoms=64).var()) < 0.05


def test_the_radial_wiener_filter_of_white_noise_is_signal_over_total() -> None:
    clean = 3**0.5 * normal(400, BOX, BOX)
    noisy = clean + normal(400, BOX, BOX, seed=2)
    white = torch.ones(len(ring_mean(torch.ones(BOX, BOX // 2 + 1), (BOX, BOX))))
    # variance 3 and 1 in every ring: gain 3/4, estimated on 400 images (5 % in ring 0, which holds one value)
    torch.testing.assert_close(radial_wiener(noisy, 1.0, white), 0.75 * noisy, rtol=0, atol=0.15)


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.3])
def test_estimating_the_gains_costs_two_coefficients_by_ring_for_all_images(ratio: float) -> None:
    # an error e of a gain costs e² (1 + s) in each of a ring's K coefficients; with the noise known, e is the
    # error of the ring's mean power over (1 + s)², and that has the variance 2 (1 + s)² / (n K):
    # 2 / (n (1 + s)) of the noise's power by ring and image, less where the gain is cut at 0
    n, rings = 200, len(ring_mean(torch.ones(BOX, BOX // 2 + 1), (BOX, BOX)))
    clean = ratio**0.5 * normal(n, BOX, BOX)
    noisy = clean + normal(n, BOX, BOX, seed=2)
    ideal = ratio / (1 + ratio) * noisy
    found = radial_wiener(noisy, 1.0, torch.ones(rings))
    excess = float((found - ideal).square().sum() / n)
    # of about 50 rings the mean of as many squares of normal variables: 20 %, five times
    assert excess < 2 * 2 * rings / (n * (1 + ratio))


def test_the_covariance_filter_whitens_coloured_noise() -> None:
    clean = particles(800)
    power = torch.exp(torch.cos(2 * torch.pi * frequency_grid((BOX, BOX))))
    rings = ring_mean(power, (BOX, BOX))
    noise = torch.fft.irfft2(torch.fft.rfft2(2 * normal(800, BOX, BOX)) * power.sqrt())
    noisy = clean + noise
    known = error(covariance_wiener(noisy, noise_power=4 * rings), clean)
    # as if it were white, of the same variance
    wrong = error(covariance_wiener(noisy, noise_power=torch.full_like(rings, float(noise.var()))), clean)
    assert known < 0.9 * wrong
    # estimated outside the particle's circle, where the blobs reach a little
    assert error(covariance_wiener(noisy), clean) < 1.15 * known


def test_knowing_the_ctf_helps_the_covariance_filter() -> None:
    pytest.importorskip("torch_ctf")
    n, pixel_size = 1500, 4.0
    ones = torch.ones(n)
    defocus = 8000 + 12000 * torch.rand(n, generator=torch.Generator().manual_seed(3))
    optics = CtfParameters(defocus, defocus, 0 * ones, 300 * ones, 2.7 * ones, 0.1 * ones, 0 * ones)
    seen = filters.apply_transfer(particles(n), ctf(optics, pixel_size * ones, BOX))
    scale = seen.std()
    seen, clean = seen / scale, particles(n) / scale
    noisy = seen + 3 * normal(n, BOX, BOX)
    power = torch.full((len(ring_mean(torch.ones(BOX, BOX // 2 + 1), (BOX, BOX))),), 9.0)
    kept = covariance_wiener_through_ctf(noisy, optics, pixel_size, noise_power=power)
    # smooth blobs have little beyond the first zero of the CTF, and so gain little
    assert error(kept, seen) < error(covariance_wiener(noisy, noise_power=power), seen)
    restored = covariance_wiener_through_ctf(noisy, optics, pixel_size, noise_power=power, keep_ctf=False)
    # nothing but the CTF lies between the two, and the one without it shows the particle itself
    again = filters.apply_transfer(restored, ctf(optics, pixel_size * ones, BOX))
    background = float((kept - again).mean())  # of the stack, one number
    torch.testing.assert_close(again + background, kept, rtol=0, atol=1e-4)
    assert error(restored, clean) < 0.3 * float(clean.var((1, 2)).mean())


def test_a_missing_library_is_named_as_pip_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, package in (("bm3d", "bm3d", "bm3d"), ("skimage", "bilateral", "scikit-image")):
        monkeypatch.setitem(sys.modules, module, None)
        monkeypatch.delitem(sys.modules, "skimage.restoration", raising=False)
        with pytest.raises(ConfigurationError, match=f"pip install {package}"):
            BASELINES[name].denoise(torch.zeros(1, 8, 8), 1.0)
