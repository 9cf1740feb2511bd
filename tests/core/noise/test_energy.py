"""Local energy of a micrograph: what noise has of it by chance, and what a particle adds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cryohush.core.noise.energy import band, noise_probabilities, random_phases

PIXEL_ANGSTROM, SIDE, WINDOW = 8.0, 384, 16


def coloured(seed: int) -> Tensor:
    """Gaussian noise with more power at low frequencies, as ice has it; standard deviation 1."""
    white = np.random.default_rng(seed).normal(size=(SIDE, SIDE))
    frequency = np.hypot(np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE))
    image = np.fft.irfft2(np.fft.rfft2(white) / np.sqrt(1 + (frequency / 0.1) ** 2), s=(SIDE, SIDE))
    return torch.from_numpy(image / image.std()).float()


def probabilities(image: Tensor, background: Tensor) -> Tensor:
    starts = torch.arange(0, SIDE, WINDOW)
    generator = torch.Generator().manual_seed(3)
    return noise_probabilities(image, background, PIXEL_ANGSTROM, starts, starts, WINDOW, generator)


@pytest.mark.parametrize("scale", [1.0, 0.2])
def test_of_noise_alone_each_probability_is_as_frequent_as_it_says(scale: float) -> None:
    chance = probabilities(scale * coloured(1), torch.ones(SIDE, SIDE, dtype=torch.bool))
    for level in (0.1, 0.3, 0.5, 0.8):
        # 576 windows, neighbours of which share energy, and 576 of a surrogate: two errors of 0.025 at most
        assert float((chance < level).float().mean()) == pytest.approx(level, abs=0.08)


def test_a_corner_of_a_disc_is_not_noise_and_its_surroundings_are() -> None:
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    image, inside = coloured(2), torch.zeros(SIDE, SIDE, dtype=torch.bool)
    for centre in range(32, SIDE, 64):  # on the corner of four windows, 130 Å across
        inside |= (rows - centre) ** 2 + (columns - centre) ** 2 <= 8**2
    image[inside] += 3.0
    chance = probabilities(image, ~inside)
    touched = torch.zeros_like(chance, dtype=torch.bool)
    for centre in range(32, SIDE, 64):
        window = centre // WINDOW
        touched[window - 1 : window + 1, window - 1 : window + 1] = True
    # the peak may be in any of the four
    assert float((chance[touched] < 0.05).float().mean()) > 0.6
    assert float((chance[~touched] < 0.05).float().mean()) < 0.12


def test_without_background_there_is_no_telling() -> None:
    background = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    background[:10, :10] = True
    assert not probabilities(coloured(1), background).any()


def test_the_band_is_between_25_and_100_angstrom() -> None:
    columns = torch.arange(SIDE) * PIXEL_ANGSTROM
    kept = [
        float(
            band(torch.cos(2 * torch.pi * columns / length).expand(SIDE, -1), PIXEL_ANGSTROM)[100:-100].std()
        )
        for length in (17.0, 25.0, 50.0, 100.0, 400.0)
    ]
    # a Gaussian of the logarithm about 50 Å, one octave its standard deviation; a cosine has 0.707
    octaves = np.log2(np.array([17.0, 25.0, 50.0, 100.0, 400.0]) / 50)
    np.testing.assert_allclose(kept, 0.707 * np.exp(-0.5 * octaves**2), atol=0.02)


def test_surrogates_have_the_power_and_nothing_else() -> None:
    image = coloured(4)
    surrogate = random_phases(image, torch.Generator().manual_seed(1))
    power = [torch.fft.rfft2(values).abs() for values in (image, surrogate)]
    # the columns that are their own mirror images hold real parts only in part
    torch.testing.assert_close(power[0][:, 1:-1], power[1][:, 1:-1], rtol=1e-3, atol=1e-2)
    both = torch.stack([image.flatten(), surrogate.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.05
