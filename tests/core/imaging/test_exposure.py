import math

import pytest
import torch

from cryohush.core.errors import ConfigurationError, InputError, StarError
from cryohush.core.imaging.detector import detector_gains, read_detector_curve
from cryohush.core.imaging.exposure import (
    critical_dose,
    damage_envelope,
    phase_shift,
)


def test_phase_is_the_interaction_constant_times_the_potential():
    # at 300 kV 6.526e-4 rad per V Å (a textbook value);
    # h²/(2 pi m e) makes 47.878 V Å² of a scattering factor of 1 Å
    found = phase_shift(torch.ones(1, 1), 1.0, 300.0).item()
    assert found == pytest.approx(47.878 * 6.526e-4, rel=1e-3)


def test_critical_dose_is_that_of_the_paper():
    # the curve fitted by Grant & Grigorieff: at 1/10 Å about 14 e/Å², at 1/3 Å about 4.3 e/Å²
    dose = critical_dose(torch.tensor([1 / 10, 1 / 3]))
    expected = [0.24499 * 10**1.6649 + 2.8141, 0.24499 * 3**1.6649 + 2.8141]
    assert dose.tolist() == pytest.approx(expected, rel=1e-4)
    assert critical_dose(torch.tensor([0.1]), 200.0).item() == pytest.approx(0.8 * expected[0], rel=1e-4)


@pytest.mark.parametrize("weighted", [False, True])
def test_damage_of_an_exposure_is_the_sum_over_its_frames(weighted):
    k, begin, dose, n = torch.tensor([0.05, 0.1, 0.25]), 4.0, 40.0, 4000
    centres = begin + (torch.arange(n) + 0.5) * dose / n
    left = torch.exp(-centres[:, None] / (2 * critical_dose(k)))
    weights = left if weighted else torch.ones_like(left)
    expected = (weights * left).sum(0) / (n * weights.square().sum(0)).sqrt()  # per unit of noise
    found = damage_envelope(k, dose, before_electrons_per_square_angstrom=begin, dose_weighted=weighted)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_impossible_dose_is_refused():
    with pytest.raises(ConfigurationError, match="positive dose"):
        damage_envelope(torch.tensor([0.1]), 0.0)


def write_curve(path, rows):
    lines = "\n".join(f"{k} {v}" for k, v in rows)
    path.write_text(f"data_\n\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n{lines}\n")
    return path


def test_mtf_falls_on_the_grid_at_its_frequencies(tmp_path):
    curve = read_detector_curve(write_curve(tmp_path / "mtf.star", [(0, 1.0), (0.25, 0.8), (0.5, 0.5)]))
    signal, noise = detector_gains(curve, 16)
    assert signal[0, 4].item() == pytest.approx(0.8)  # 4 / 16 cycles per pixel
    assert signal[0, 8].item() == pytest.approx(0.5)
    assert signal[1, 0].item() == pytest.approx(1 - 0.2 / 4)
    assert torch.equal(noise, torch.ones(16, 9))
    # an image binned twice reaches half as far
    assert detector_gains(curve, 16, binning=2.0)[0][0, 8].item() == pytest.approx(0.8)


def test_dqe_of_an_ideal_counter_makes_white_noise_and_that_of_a_blur_makes_blurred_noise(tmp_path):
    frequency = [k / 100 for k in range(81)]
    mtf_values = [math.cos(math.pi * k / 2) for k in frequency]
    mtf = read_detector_curve(
        write_curve(tmp_path / "mtf.star", list(zip(frequency, mtf_values, strict=True)))
    )
    squared = [(k, 0.8 * m * m) for k, m in zip(frequency, mtf_values, strict=True)]
    counter = read_detector_curve(write_curve(tmp_path / "dqe.star", squared))
    noise = detector_gains(mtf, 32, dqe=counter)[1]
    torch.testing.assert_close(noise, torch.ones_like(noise), atol=2e-3, rtol=0)  # linear between points
    flat = read_detector_curve(write_curve(tmp_path / "flat.star", [(0, 0.6), (0.8, 0.6)]))
    signal, noise = detector_gains(mtf, 32, dqe=flat)
    torch.testing.assert_close(noise, signal)


@pytest.mark.parametrize(
    "rows", [[(0, 1.0)], [(0.2, 1.0), (0.1, 0.5)], [(0, 1.0), (0.5, -0.2)], [(0, 1.0), (0.5, 30)]]
)
def test_impossible_curve_is_refused(tmp_path, rows):
    with pytest.raises(InputError, match=r"mtf\.star"):
        read_detector_curve(write_curve(tmp_path / "mtf.star", rows))


def test_star_file_without_a_curve_is_refused(tmp_path):
    path = tmp_path / "mtf.star"
    path.write_text("data_\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n")
    with pytest.raises(StarError, match="rlnMtfValue"):
        read_detector_curve(path)
