"""A micrograph keeps its grey scale, its ice and its size, and tells what is wrong with it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.micrograph_denoiser import MicrographDenoiser
from cryohush.core.models.weights import LoadedModel, load_model


def noise(y: int = 300, x: int = 270) -> NDArray[np.float32]:
    return np.random.default_rng(4).standard_normal((y, x), dtype=np.float32)


@pytest.fixture
def denoiser(model: LoadedModel) -> MicrographDenoiser:
    return MicrographDenoiser(Denoiser(model.module), tile_px=128)


@pytest.fixture(scope="module")
def trained() -> MicrographDenoiser:
    """With the shipped model: random weights answer wildly to what is no noise."""
    return MicrographDenoiser(Denoiser(load_model("general").module, precision="bf16"))


def test_the_grey_scale_is_kept(denoiser: MicrographDenoiser) -> None:
    """Raw counts: their mean is a thousand times their noise, whose last digits single precision cuts."""
    denoised, problem, remark = denoiser.denoise(noise())
    counts, *_ = denoiser.denoise(6800 + 8 * noise())
    assert (problem, remark) == (None, None)
    assert denoised.shape == (300, 270)
    np.testing.assert_allclose((counts - 6800) / 8, denoised, rtol=0, atol=5e-3)


def test_a_gradient_of_the_ice_passes_by_the_network(trained: MicrographDenoiser) -> None:
    ramp = np.linspace(-1, 1, 1024, dtype=np.float32)[None, :].repeat(512, 0)
    raw = noise(512, 1024)
    flat, *_ = trained.denoise(raw)
    tilted, _, remark = trained.denoise(raw + 8 * ramp)
    # away from the left and right edges, where the level of a mirrored ramp is flatter
    difference = (tilted - flat - 8 * ramp)[:, 384:-384]
    # of a height of 16; what comes out of pure noise has an sd of 0.03
    assert np.sqrt(np.mean(difference**2)) < 0.05
    assert remark is not None
    assert "differs much" in remark


def test_blending_all_of_the_raw_image_gives_it_back(denoiser: MicrographDenoiser) -> None:
    np.testing.assert_allclose(denoiser.denoise(noise(), blend=1.0)[0], noise(), rtol=0, atol=1e-5)


def test_what_is_finer_than_asked_for_stays_raw(denoiser: MicrographDenoiser) -> None:
    kept, raw = denoiser.denoise(noise(), keep_above_px=20.0)[0], noise()
    beyond = np.fft.rfftfreq(270) > 1 / 20
    transforms = [np.fft.rfft2(image, norm="ortho")[:, beyond] for image in (kept, raw)]
    np.testing.assert_allclose(*transforms, rtol=0, atol=1e-4)
    assert np.abs(kept - raw).max() > 0.1


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda image: image.__setitem__((3, 4), np.nan), "NaN or infinite"),
        (lambda image: image.__setitem__((3, 4), np.inf), "NaN or infinite"),
        (lambda image: image.fill(7.0), "constant: all pixels have one value"),
        (lambda image: image[:200].fill(7.0), "constant over about half"),
    ],
)
def test_what_cannot_be_denoised_comes_back_unchanged(
    denoiser: MicrographDenoiser, change: object, problem: str
) -> None:
    raw = noise()
    change(raw)  # type: ignore[operator]
    denoised, found, _ = denoiser.denoise(raw)
    assert found is not None
    assert problem in found
    np.testing.assert_array_equal(denoised, raw)


def test_a_streak_of_a_wrong_gain_reference_is_remarked(denoiser: MicrographDenoiser) -> None:
    raw = noise()
    raw[:, 100] += 2.0
    _, problem, remark = denoiser.denoise(raw)
    assert problem is None
    assert remark is not None
    assert "gain" in remark


def test_contamination_stays_and_changes_nothing_away_from_it(trained: MicrographDenoiser) -> None:
    raw = noise(640, 640)
    rows, columns = np.ogrid[:640, :640]
    distance = np.hypot(rows - 100, columns - 320)
    clean, *_ = trained.denoise(raw, pixel_size_angstrom=1.5)
    dirty, problem, _ = trained.denoise(raw + 40 * (distance < 60), pixel_size_angstrom=1.5)
    assert problem is None
    # the edge is blurred over 4 px; within it, the disc is as high as it was
    np.testing.assert_allclose((dirty - clean)[distance < 40], 40, rtol=0, atol=1.5)
    # the level, which is a median, moves by some hundredths of the noise
    difference = (dirty - clean)[distance > 450]
    assert difference.size > 20_000
    assert np.abs(difference).max() < 0.15


def test_hot_pixels_change_nothing_around_them_and_are_clipped(trained: MicrographDenoiser) -> None:
    raw = noise(640, 640)
    hot = raw.copy()
    rows, columns = np.random.default_rng(3).integers(0, 640, (2, 400))  # a thousandth of all
    hot[rows, columns] = np.random.default_rng(4).choice([10, -15, 330, 1e5], 400)
    clean, *_ = trained.denoise(raw)
    denoised, problem, remark = trained.denoise(hot)
    assert problem is None
    assert remark is not None
    assert "outlying pixels" in remark
    elsewhere = hot == raw
    low, high = denoised[elsewhere].min(), denoised[elsewhere].max()
    np.testing.assert_array_equal(denoised[rows, columns], np.clip(hot[rows, columns], low, high))
    # each replaced pixel is another draw of the noise, which the network spreads to an sd of 0.03
    assert np.std((denoised - clean)[elsewhere]) < 0.015


def test_a_micrograph_with_an_empty_border_is_denoised_as_without(trained: MicrographDenoiser) -> None:
    raw = 40 + 5 * noise(640, 640)
    framed = raw.copy()
    framed[:100], framed[:, -60:] = 0.0, framed[:, -61:-60]
    whole, *_ = trained.denoise(raw)
    denoised, problem, remark = trained.denoise(framed)
    assert problem is None
    assert remark is not None
    assert "no noise" in remark
    np.testing.assert_array_equal(denoised[:100], framed[:100])
    np.testing.assert_array_equal(denoised[:, -60:], framed[:, -60:])
    # of an output whose sd is 0.03 of the noise
    assert np.std((denoised - whole)[200:, :-160]) < 0.01 * 5


def test_the_spectrum_of_a_micrograph_takes_part() -> None:
    """Ice through a CTF, whose zeros a network that sees no CTF cannot know."""
    frequency = np.hypot(np.fft.fftfreq(768)[:, None], np.fft.rfftfreq(768)[None])
    contrast = 3 * np.sin(60 * frequency**2) / (1 + 15 * frequency)
    ice = np.fft.irfft2(np.fft.rfft2(np.random.default_rng(5).standard_normal((768, 768))) * contrast)
    module = load_model("general").module
    noisy = (ice + noise(768, 768)).astype(np.float32)
    errors = [
        np.square(
            MicrographDenoiser(Denoiser(module)).denoise(noisy, pixel_size_angstrom=size)[0] - ice
        ).mean()
        for size in (2.0, None)
    ]
    assert errors[0] < 0.95 * errors[1]


def test_a_network_that_asks_for_no_spectrum_gets_none(denoiser: MicrographDenoiser) -> None:
    known, unknown = (denoiser.denoise(noise(), pixel_size_angstrom=size)[0] for size in (2.0, None))
    np.testing.assert_array_equal(known, unknown)
