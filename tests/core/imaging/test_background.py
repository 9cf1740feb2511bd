"""The ice, the noise and the defects of a micrograph."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryohush.core.imaging.background import background_level, noise_statistics


def noise(y: int = 1024, x: int = 896) -> torch.Tensor:
    return torch.randn(y, x, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(1024, 1280), (1030, 1217)])
def test_the_level_follows_the_ice_and_not_what_lies_on_it(shape: tuple[int, int]) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    ice = (x / 200 + y / 300).astype(np.float32)
    disc = (y - 500) ** 2 + (x - 600) ** 2 < 130**2
    level = background_level(torch.from_numpy(ice - 30 * disc) + noise(*shape)).numpy()
    inner = (slice(320, -320), slice(320, -320))
    # the disc has a sixth of a window: a mean would be off by 5, the median is by some squares' slope
    np.testing.assert_allclose(level[inner], ice[inner], rtol=0, atol=0.9)
    without = background_level(torch.from_numpy(ice) + noise(*shape)).numpy()
    np.testing.assert_allclose(without[inner], ice[inner], rtol=0, atol=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 65)])
def test_a_small_image_has_a_level_too(shape: tuple[int, int]) -> None:
    level = background_level(torch.full(shape, 7.0))
    torch.testing.assert_close(level, torch.full(shape, 7.0))


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
@pytest.mark.parametrize("height", [1.5, 30.0])
def test_a_bright_line_is_a_streak(dimension: int, height: float) -> None:
    image = noise()
    image.select(dimension, 100).add_(height)
    assert noise_statistics(image, image).streak > 1.0


def test_the_edge_of_a_contamination_is_no_streak() -> None:
    image = noise()
    image[200:700, 300:500] -= 30
    assert noise_statistics(image - background_level(image), image).streak < 0.5


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
