"""The ice, the noise and the defects of a micrograph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from cryohush.core.imaging.background import BACKGROUND_SIGMA_PX, background_level, noise_statistics


def noise(y: int = 1024, x: int = 896) -> torch.Tensor:
    return torch.randn(y, x, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(1024, 896), (1030, 517)])
def test_the_level_is_a_gaussian_blur(shape: tuple[int, int]) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    ice = (3 * np.sin(x / 200) + y / 300).astype(np.float32)
    expected = ndimage.gaussian_filter(ice, BACKGROUND_SIGMA_PX)
    level = background_level(torch.from_numpy(ice)).numpy()
    # cells of 16 px, which overlap where they do not fit: a fiftieth of the spread of 1.7
    np.testing.assert_allclose(level, expected, rtol=0, atol=0.035)


def test_the_noise_is_that_of_the_ice_whatever_lies_on_it() -> None:
    image = 2.5 * noise()
    assert noise_statistics(image, image).std == pytest.approx(2.5, rel=0.01)
    y, x = torch.meshgrid(torch.arange(1024), torch.arange(896), indexing="ij")
    disc = (y - 400) ** 2 + (x - 300) ** 2 < 120**2
    found = noise_statistics(image - 60 * disc, image - 60 * disc)
    assert found.std == pytest.approx(2.5, rel=0.02)
    # the disc has 5 % of the area; its edge adds squares
    assert 0.03 < found.deviant_share < 0.12


def test_clean_noise_is_not_conspicuous() -> None:
    found = noise_statistics(noise(), noise())
    assert found.deviant_share == 0
    # the mean of 896 values has an sd of 0.033; the largest of 1920 is at 4 sd
    assert found.streak < 0.2


@pytest.mark.parametrize("dimension", [0, 1])
def test_a_bright_line_is_a_streak(dimension: int) -> None:
    image = noise()
    image.select(dimension, 100).add_(1.5)
    assert noise_statistics(image, image).streak > 1.0


def test_counts_have_no_coarse_steps() -> None:
    """The median deviation of integers would be 1, whatever their noise."""
    counts = torch.poisson(torch.full((512, 512), 1.3), generator=torch.Generator().manual_seed(2))
    assert noise_statistics(counts - 1.3, counts).std == pytest.approx(1.3**0.5, rel=0.01)


def test_constant_squares_are_found() -> None:
    assert noise_statistics(torch.zeros(50, 60), torch.zeros(50, 60)).constant_share == 1
    image = noise()
    image[:512] = 3.0
    assert noise_statistics(image - background_level(image), image).constant_share == 0.5
    assert noise_statistics(noise(), noise()).constant_share == 0
