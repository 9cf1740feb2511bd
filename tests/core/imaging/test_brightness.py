"""How bright images are beside their white noise decides on which grid a network sees coarse pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.imaging.rings import brightness


def white(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(40, 48, 48), (40, 33, 50), (4000, 8, 8)])
def test_white_noise_has_one_on_any_scale(shape: tuple[int, int, int]) -> None:
    scales = torch.logspace(-4, 4, shape[0])[:, None, None]
    assert brightness(30 * scales + scales * white(*shape)) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("snr", [0.1, 1.0, 5.0])
def test_a_coarse_signal_adds_its_power(snr: float) -> None:
    signal = gaussian_filter(white(40, 64, 64), 4.0)
    signal *= math.sqrt(snr) / (signal - signal.mean((1, 2), keepdim=True)).std()
    assert brightness(signal + white(41, 64, 64)[1:]) == pytest.approx(1.0 + snr, rel=0.05)


def test_images_without_a_spread_do_not_count() -> None:
    images = white(6, 32, 32)
    images[1], images[4] = 3.0, math.nan
    assert brightness(images) == pytest.approx(1.0, rel=0.1)
    assert brightness(torch.full((3, 32, 32), 2.0)) == 1.0
    assert brightness(white(0, 32, 32)) == 1.0


def test_empty_corners_are_not_the_white_noise() -> None:
    """Some programs bin with a round mask, so that the corners of the Fourier square hold nothing."""
    images = white(40, 64, 64)
    transform = torch.fft.rfft2(images)
    rows, columns = torch.fft.fftfreq(64)[:, None], torch.fft.rfftfreq(64)[None, :]
    masked = torch.fft.irfft2(transform * (torch.hypot(rows, columns) <= 0.5), s=(64, 64))
    assert 1.0 < brightness(masked) < 20.0
