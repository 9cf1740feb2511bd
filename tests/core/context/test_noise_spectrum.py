"""Noise is told from what was imaged through the CTF."""

from __future__ import annotations

import torch
from torch import Tensor

from cryohush.core.context.noise_spectrum import (
    beyond_noise,
    brightness_beside_noise,
    noise_spectrum,
    unmodulated_power,
)
from cryohush.core.imaging.ctf import CtfParameters, ctf
from cryohush.core.imaging.filters import background_power, floor_of, radial_filter
from cryohush.core.imaging.rings import brightness

BOX, PIXEL_SIZE, RADIUS, N = 64, 4.0, 20.0, 400
NYQUIST = BOX // 2


def table(spread_angstrom: float) -> CtfParameters:
    defocus = 15000 + spread_angstrom * torch.linspace(-1, 1, N)
    same = torch.ones(N)
    return CtfParameters(defocus, defocus, 0 * same, 300 * same, 2.7 * same, 0.1 * same, 0 * same)


def white(seed: int) -> Tensor:
    return torch.randn(N, BOX, BOX, generator=torch.Generator().manual_seed(seed))


def hump() -> Tensor:
    """Power of noise that is strongest half way to its floor."""
    ring = torch.arange(2 * BOX).float()
    return 1 + torch.exp(-((ring - 12) ** 2) / (2 * 4**2))


def through(images: Tensor, optics: CtfParameters) -> Tensor:
    transfer = ctf(optics, torch.full((N,), PIXEL_SIZE), BOX)
    return torch.fft.irfft2(torch.fft.rfft2(images) * transfer, s=(BOX, BOX))


def found(images: Tensor, optics: CtfParameters) -> Tensor:
    background = background_power(images, RADIUS)
    return noise_spectrum(background, NYQUIST, unmodulated_power(images, optics, PIXEL_SIZE, RADIUS))


def test_coloured_noise_is_noise() -> None:
    images = radial_filter(white(1), hump().sqrt())
    rings = slice(2, 30)
    noise = found(images, table(7000.0))
    torch.testing.assert_close(noise[rings], hump()[rings], rtol=0.12, atol=0)
    assert beyond_noise(background_power(images, RADIUS), noise, NYQUIST) < 0.25
    # with the same CTF in all of them nothing tells it from ice
    alike = found(images, table(0.0))
    torch.testing.assert_close(alike, alike.clamp_max(floor_of(background_power(images, RADIUS), NYQUIST)))


def test_coloured_noise_is_not_bright_and_ice_is() -> None:
    images = radial_filter(white(1), hump().sqrt())
    assert brightness(images) > 1.15
    assert abs(brightness_beside_noise(images, table(7000.0), PIXEL_SIZE) - 1) < 0.03
    assert brightness_beside_noise(images, None, PIXEL_SIZE) == brightness(images)
    # of a particle as strong as a fifth of the noise the sum of both is left
    axis = torch.arange(BOX) - BOX // 2
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / 128)
    blob = blob * (0.2 * images.var() / blob.square().mean()).sqrt()
    assert abs(brightness_beside_noise(images + blob, table(7000.0), PIXEL_SIZE) - 1.2) < 0.05
    ice = white(3) + 2 * through(radial_filter(white(2), (hump() - 1).sqrt()), table(7000.0))
    assert brightness_beside_noise(ice, table(7000.0), PIXEL_SIZE) == brightness(ice) > 1.3


def test_what_follows_the_ctf_is_not_noise() -> None:
    optics = table(7000.0)
    grain = radial_filter(white(2), (hump() - 1).sqrt())
    images = white(3) + through(grain, optics)
    background = background_power(images, RADIUS)
    noise = found(images, optics)
    assert float(background[8:16].mean()) > 1.25
    torch.testing.assert_close(noise[8:16], torch.ones(8), rtol=0.1, atol=0)
    assert beyond_noise(background, noise, NYQUIST) > 0.5


def test_with_much_ice_the_floor_is_all_that_counts() -> None:
    optics = table(7000.0)
    coarse = torch.zeros(2 * BOX)
    coarse[1:7] = 400.0
    images = radial_filter(white(4), hump().sqrt()) + through(radial_filter(white(5), coarse.sqrt()), optics)
    floor = floor_of(background_power(images, RADIUS), NYQUIST)
    torch.testing.assert_close(found(images, optics), torch.full((46,), floor), rtol=0.1, atol=0)
