import numpy as np
import pytest
import torch
from scipy import stats

from cryohush.core.errors import MrcError
from cryohush.core.imaging.noise import PowerSpectrum, coloured, measure_spectrum
from cryohush.core.models.synthesis import standardised
from cryohush.core.noise.synthesis import (
    degrees_of_freedom,
    fit_gaussian_field,
    histogram_distance,
    judge_noise,
    pieces_of,
    read_blocks,
    tiles_of,
    two_sample_accuracy,
)


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def white(n, side=32, seed=0):
    return standardised(torch.randn(n, side, side, generator=draws(seed)))


def test_field_has_the_spectrum_and_the_histogram_of_its_blocks():
    """Coloured noise through exp, which is skew: what is drawn has both, the spectrum and the skewness."""
    frequency = np.linspace(0, 0.75, 50)
    spectrum = PowerSpectrum(frequency, 1 / (0.02 + frequency**2))
    field = coloured(torch.randn(256, 64, 64, generator=draws()), spectrum.on_grid((64, 64)))
    real = standardised(torch.exp(0.5 * field))
    drawn = fit_gaussian_field(real, draws(1)).draw(256, draws(2))
    power = [measure_spectrum(images).power for images in (drawn, real)]
    decibels = 10 * np.log10(power[0] / power[1])
    assert np.sqrt(np.mean(decibels**2)) < 0.4  # rings of 8 values in 256 pieces: 0.1 to 0.2 dB of chance
    assert float(drawn.pow(3).mean()) == pytest.approx(float(real.pow(3).mean()), rel=0.1)
    assert histogram_distance(drawn, real) < 0.03


def test_distance_of_histograms_is_scipys():
    one, other = white(3), 1.2 * white(3, seed=1) + 0.1
    expected = stats.wasserstein_distance(one.flatten().numpy(), other.flatten().numpy())
    assert histogram_distance(one, other) == pytest.approx(expected, rel=1e-5)
    expected = stats.wasserstein_distance(one.flatten().numpy(), other[:2].flatten().numpy())
    # 4096 quantiles in the place of all
    assert histogram_distance(one, other[:2]) == pytest.approx(expected, rel=0.02)


def test_white_noise_has_as_many_degrees_of_freedom_as_pixels_less_one():
    assert degrees_of_freedom(white(200, side=16)) == pytest.approx(255, rel=0.03)


def test_few_pictures_that_come_again_have_few_degrees_of_freedom():
    """Of 200 draws from 8 pictures, one pair in about 8 is the same picture."""
    few = white(8)[torch.randint(8, (200,), generator=draws())]
    assert degrees_of_freedom(few) == pytest.approx(8, rel=0.1)


def test_two_sets_of_one_kind_cannot_be_told_apart():
    accuracy, judged = two_sample_accuracy(white(200), white(200, seed=1))
    assert judged == 200
    assert abs(accuracy - 0.5) < 4 * 0.5 / np.sqrt(judged)


def test_white_and_coloured_noise_are_told_apart():
    smooth = white(200, seed=1)
    smooth = standardised(smooth + 0.5 * smooth.roll(1, -1))
    assert two_sample_accuracy(white(200), smooth)[0] > 0.9


def test_judgement_names_what_is_wrong():
    real = white(96, seed=1)
    same, skew = judge_noise(white(96), real), judge_noise(standardised(white(96).exp()), real)
    assert same.spectrum_error_db < 0.5
    assert same.kurtosis == pytest.approx(3, abs=0.1)
    assert skew.histogram_distance > 10 * same.histogram_distance
    assert skew.skewness > 1
    assert skew.real_skewness == same.real_skewness == pytest.approx(0, abs=0.05)
    assert skew.two_sample_accuracy > 0.9


def test_pieces_are_standardised_parts_of_the_blocks():
    blocks = 5 * torch.randn(2, 40, 48, generator=draws()) + 100
    pieces = pieces_of(blocks, 16, 4, draws())
    assert pieces.shape == (4, 16, 16)
    torch.testing.assert_close(pieces.mean((1, 2)), torch.zeros(4), atol=1e-4, rtol=0)


def test_tiles_do_not_overlap_and_leave_nothing_out():
    blocks = torch.arange(2 * 32 * 48, dtype=torch.float32).view(2, 32, 48)
    tiles = tiles_of(blocks, 16, 100, draws())
    assert tiles.shape == (12, 16, 16)
    # each tile is a ramp of its own start: standardised all alike
    torch.testing.assert_close(tiles, tiles[:1].expand_as(tiles), atol=1e-4, rtol=0)
    assert len(tiles_of(blocks, 16, 5, draws())) == 5


def test_blocks_smaller_than_the_side_are_refused(tmp_path):
    from particle_files import write_stack

    write_stack(tmp_path / "noise.mrcs", np.zeros((2, 32, 32), dtype=np.float32), 1.0)
    with pytest.raises(MrcError, match="at least 64 px a side, found 32 x 32"):
        read_blocks(tmp_path / "noise.mrcs", 64)
