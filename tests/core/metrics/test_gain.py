"""Gains over raw images: 1 for every radial filter, above it for whoever knows more, twin or none."""

from __future__ import annotations

import math

import pytest
import torch

from cryohush.core.imaging.filters import gaussian_filter, low_pass
from cryohush.core.metrics.gain import BandGain, RingGain, Spectra, recorrupted, spectra, verdict

BOX, PIXEL_SIZE = 64, 3.0
RADIUS = 22.0


def pair(n: int = 600, snr: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Signal with detail to 11 Å, and two noisy images of it; the noise has variance 1."""
    generator = torch.Generator().manual_seed(1)
    signal = low_pass(torch.randn(n, BOX, BOX, generator=generator), 11.0, PIXEL_SIZE)
    signal *= snr**0.5 / signal.std()
    first, second = (signal + torch.randn(n, BOX, BOX, generator=generator) for _ in range(2))
    return signal, first, second


def shown(images: torch.Tensor) -> Spectra:
    return spectra(images, radius_px=RADIUS, pixel_size_angstrom=PIXEL_SIZE)


def gains(first: torch.Tensor, second: torch.Tensor) -> RingGain:
    return RingGain(shown(first), shown(second))


def test_a_radial_filter_gains_nothing_in_any_ring() -> None:
    _, first, second = pair()
    judge = gains(first, second)
    for filtered in (gaussian_filter(first, 1.0), low_pass(first, 10.0, PIXEL_SIZE)):
        assert [gain.gain for gain in judge.bands(shown(filtered))] == pytest.approx([1.0] * 6, abs=0.02)
        assert judge.whole(shown(filtered)).gain == pytest.approx(1.0, abs=0.01)
    # the particle's disc mixes neighbouring rings, which a steep filter weights anew: a loss, never a gain
    steep = gaussian_filter(first, 1.5)
    assert all(0.85 < gain.gain < 1.0 for gain in judge.bands(shown(steep)))
    assert 0.9 < judge.whole(shown(steep)).gain < 1.0


def test_half_of_the_noise_gains_what_the_ratio_of_signal_to_noise_says() -> None:
    signal, first, second = pair()
    better = signal + (first - signal) / 2**0.5
    # SSNR s of the band; the correlation with the twin goes with 1 / sqrt(1 + 1 / s)
    power = 0.5 * BOX**2 / float((torch.fft.fft2(signal).abs() ** 2 > 1).sum() / len(signal))
    expected = math.sqrt((1 + 1 / power) / (1 + 0.5 / power))
    found = gains(first, second).bands(shown(better))[2:5]
    for gain in found:
        assert gain.gain == pytest.approx(expected, abs=4 * gain.standard_error + 0.02)


def test_recorrupted_images_have_independent_noise() -> None:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(400, BOX, BOX, generator=generator)
    first, second = recorrupted(noise, torch.ones(BOX // 2 + 1), generator, strength=0.5)
    assert float(first.var()) == pytest.approx(1.25, rel=0.01)
    assert float(second.var()) == pytest.approx(5.0, rel=0.01)
    # 1.6 million pixels: the standard error of the covariance is 0.002
    assert abs(float((first * second).mean())) < 0.01


def test_noise_that_is_stronger_than_assumed_is_shared_by_just_so_much() -> None:
    """The leak that the module's text states: what the spectrum lacks counts as signal."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(400, BOX, BOX, generator=generator)
    first, second = recorrupted(noise, torch.full((BOX // 2 + 1,), 0.9), generator)
    assert float((first * second).mean()) == pytest.approx(0.1, abs=0.01)


def test_the_gain_without_a_twin_is_that_with_one() -> None:
    signal, first, second = pair(1500)

    def denoise(noisy: torch.Tensor) -> torch.Tensor:
        # knows half of the truth, whatever the noise
        return noisy + 0.5 * signal

    ours = gains(*recorrupted(first, torch.ones(BOX // 2 + 1), torch.Generator().manual_seed(4), 0.3))
    one, _ = recorrupted(first, torch.ones(BOX // 2 + 1), torch.Generator().manual_seed(4), 0.3)
    alone, true = ours.bands(shown(denoise(one))), gains(first, second).bands(shown(denoise(first)))
    for a, b in zip(alone[2:5], true[2:5], strict=True):
        # the recorrupted image is noisier by 9 %, which raises what the truth adds to it
        assert a.gain == pytest.approx(b.gain, abs=3 * math.hypot(a.standard_error, b.standard_error) + 0.03)


def test_the_verdict_says_what_was_found() -> None:
    good = BandGain(28, 24, 0.2, 1.1, 0.01)
    vague = BandGain(14, 11, 0.02, 1.1, 0.2)
    unknown = BandGain(10, 9, 0.0, float("nan"), float("nan"))
    assert verdict([good, vague, unknown]).text == (
        "By an estimate from these images alone, denoising adds 10 % to the correlation over any low-pass "
        "filter between 28 and 24 Å; nothing finer than 11 Å could be measured."
    )
    loss = verdict([BandGain(28, 24, 0.2, 0.8, 0.02), good])
    assert "loses 20 %" in loss.text
    assert "adds nothing" in verdict([vague]).text
    assert "too noisy" in verdict([unknown]).text
    found = [verdict([good]), loss, verdict([vague]), verdict([unknown])]
    assert [one.judgement for one in found] == ["good", "bad", "note", "note"]


@pytest.mark.parametrize(
    ("gain", "error", "begin", "judgement"),
    [
        (-0.11, 0.02, "What is denoised between 28 and 24 Å is the opposite", "bad"),
        (-3.0, 0.1, "What is denoised between 28 and 24 Å is the opposite", "bad"),
        (-0.01, 0.05, "Denoising loses all of the correlation between 28 and 24 Å", "bad"),
        (0.0, 0.0, "Denoising loses all of the correlation", "bad"),
        (0.02, 0.0, "Denoising loses 98 % of the correlation", "bad"),
        (0.985, 0.001, "Denoising loses 2 % of the correlation", "bad"),
        (0.995, 0.001, "Denoising adds nothing over a low-pass filter", "note"),
        (-0.5, 2.0, "Denoising adds nothing over a low-pass filter", "note"),
        (1.0, 0.0, "Denoising adds nothing over a low-pass filter", "note"),
        (51.0, 1.0, "By an estimate from these images alone, denoising adds 5000 %", "good"),
        (1.1, math.nan, "The images are too noisy, or too few", "note"),
        (math.inf, 0.1, "The images are too noisy, or too few", "note"),
        (math.nan, math.nan, "The images are too noisy, or too few", "note"),
    ],
)
def test_odd_gains_are_put_in_words_that_are_true(
    gain: float, error: float, begin: str, judgement: str
) -> None:
    found = verdict([BandGain(28, 24, 0.2, gain, error)])
    assert found.text.startswith(begin)
    assert found.judgement == judgement


def test_without_bands_and_of_one_image_nothing_is_told() -> None:
    assert "too few" in verdict([]).text
    raw, twin = torch.randn(2, 1, BOX, BOX, generator=torch.Generator().manual_seed(1))
    judge = gains(raw, twin)
    assert "too few" in verdict(judge.bands(shown(raw))).text


def test_stacks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="two stacks of one shape"):
        gains(torch.zeros(2, BOX, BOX), torch.zeros(3, BOX, BOX))
