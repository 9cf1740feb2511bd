"""Masks, padding and outlying pixels are found wherever they are, and ordinary images hold none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cryohush.core.imaging.defects import Defects, fill_defects, find_defects, put_back
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.imaging.rings import ring_mean

SIDE = 96


def noise(n: int = 3, y: int = SIDE, x: int = SIDE, seed: int = 1) -> Tensor:
    return torch.randn(n, y, x, generator=torch.Generator().manual_seed(seed))


def distance(side: int = SIDE) -> Tensor:
    axis = torch.arange(side) - side // 2
    return torch.hypot(axis[:, None].float(), axis[None, :].float())


def everywhere() -> Tensor:
    return torch.ones(SIDE, SIDE, dtype=torch.bool)


def rectangle(rows: slice, columns: slice) -> Tensor:
    area = ~everywhere()
    area[rows, columns] = True
    return area


@pytest.mark.parametrize(
    "area",
    [
        distance() > 46,  # only the corners
        distance() > 24,  # 80 % of the box
        distance() < 20,
        rectangle(slice(None), slice(0, 3)),
        rectangle(slice(-1, None), slice(None)),
        rectangle(slice(10, 40), slice(50, 80)),
    ],
)
@pytest.mark.parametrize(
    "fill", [0.0, 7.25, -1e4, torch.linspace(-2, 5, SIDE)[:, None] + torch.linspace(0, 3, SIDE)]
)
@pytest.mark.parametrize("change", [lambda image: image, lambda image: (30 * image + 500).round()])
def test_an_area_of_one_value_or_gradient_is_found(
    area: Tensor, fill: float | Tensor, change: Callable[[Tensor], Tensor]
) -> None:
    images = change(noise())
    images[1] = torch.where(area, torch.as_tensor(fill), images[1])
    defects = find_defects(images)
    assert defects is not None
    # a line of fewer than eight pixels could be chance, so that corners of an area may be missed
    assert (defects.anywhere[1] & area).sum() > 0.97 * area.sum()
    # and a pixel beside it that happens to lie on the line is taken for one of it
    assert (defects.noise_free[1] & ~area).sum() <= 0.02 * area.sum() + 2
    assert not defects.anywhere[[0, 2]].any()


@pytest.mark.parametrize("side", [32, 48])
@pytest.mark.parametrize("share", [0.33, 0.44])
def test_masks_of_small_boxes_are_found(side: int, share: float) -> None:
    images, area = noise(4, side, side), distance(side) > share * side
    images[1:, area] = 0.0
    defects = find_defects(images)
    assert defects is not None
    assert not defects.noise_free[0].any()
    for found in defects.noise_free[1:]:
        assert bool(found[area].all())
        assert float((found & ~area).float().mean()) < 0.03


@pytest.mark.parametrize("rows", [True, False])
def test_a_border_that_repeats_the_last_row_or_column_is_found(rows: bool) -> None:
    """As where RELION extracts a particle at the edge of a micrograph."""
    images = noise()
    lines = images[0] if rows else images[0].mT
    lines[:12] = lines[12]
    defects = find_defects(images)
    assert defects is not None
    found = defects.noise_free[0] if rows else defects.noise_free[0].mT
    assert found[:12].all()
    assert not found[13:].any()


def test_the_soft_edge_of_a_mask_belongs_to_it() -> None:
    edge = ((distance() - 30) / 8).clamp(0, 1)
    images = noise() * (0.5 + 0.5 * torch.cos(torch.pi * edge))
    defects = find_defects(images)
    assert defects is not None
    assert defects.noise_free[:, distance() > 35].all()  # there less than 0.3 of the noise is left
    assert not defects.noise_free[:, distance() < 28].any()


def test_a_soft_edge_may_be_most_of_what_is_outside() -> None:
    share = 1 / (1 + torch.exp((distance() - 30) / 2))  # reaches zero nowhere
    defects = find_defects(noise() * share)
    assert defects is not None
    assert defects.noise_free[:, share < 0.4].all()
    assert not defects.noise_free[:, share > 0.98].any()


@pytest.mark.parametrize("value", [9.5, -12.0, 330.0, 1e5])
@pytest.mark.parametrize(
    "where",
    [
        rectangle(slice(40, 41), slice(50, 51)),
        rectangle(slice(0, 1), slice(0, 1)),
        rectangle(slice(None), slice(20, 21)),
        rectangle(slice(60, 63), slice(None)),
        rectangle(slice(30, 35), slice(30, 35)),
        rectangle(slice(30, 31), slice(None)) | rectangle(slice(None), slice(70, 71)),
        torch.rand(SIDE, SIDE, generator=torch.Generator().manual_seed(3)) < 2e-3,
    ],
)
def test_outlying_pixels_are_found(where: Tensor, value: float) -> None:
    images = noise()
    images[2][where] = value
    defects = find_defects(images)
    assert defects is not None
    # a line of one value is an area without noise as well
    assert defects.anywhere[2, where].all()
    # of the pixels beside one, those of more than three standard deviations go with it
    assert (defects.anywhere[2] & ~where).sum() <= 0.02 * where.sum() + 1
    assert not defects.anywhere[:2].any()


def test_an_outlier_is_found_in_uneven_ice_and_beside_a_mask() -> None:
    images = noise(1, 512, 512) + torch.linspace(-8, 8, 512)
    images[:, 200, 30] += 12.0  # still far below the other side of the image
    images[:, 380:] = 0.0
    images[:, 377, 400] -= 30.0
    defects = find_defects(images)
    assert defects is not None
    assert defects.outlying.nonzero().tolist() == [[0, 200, 30], [0, 377, 400]]


def disc(image: Tensor, y: int, x: int, radius_px: float, height: float, edge_px: float = 0.7) -> None:
    rows, columns = torch.arange(image.shape[0])[:, None] - y, torch.arange(image.shape[1])[None, :] - x
    image += height / (1 + torch.exp((torch.hypot(rows.float(), columns.float()) - radius_px) / edge_px))


def test_gold_beads_carbon_and_contamination_are_no_outliers() -> None:
    image = noise(1, 512, 512)[0]
    for y, x, radius_px, height in (
        (90, 90, 7, -15),
        (200, 120, 12, -40),
        (300, 350, 30, 12),
        (90, 300, 20, 60),
    ):
        disc(image, y, x, radius_px, height)
    image[:, 420:] += 25.0
    assert find_defects(image[None]) is None


def spots(radius_px: float, blur_px: float, height: float) -> Tensor:
    """An image `(1, y, x)` with thirty dark discs as lenses and a detector show them."""
    generator = torch.Generator().manual_seed(3)
    axis = torch.arange(512.0)
    signal = torch.zeros(1, 512, 512)
    for y, x in (30 + 450 * torch.rand(30, 2, generator=generator)).tolist():
        away = torch.hypot(axis[:, None] - y, axis - x)
        signal = torch.maximum(signal, (radius_px + 0.5 - away).clamp(0, 1)[None])
    signal = gaussian_filter(signal, blur_px)
    signal *= height / signal.max()
    return torch.randn(1, 512, 512, generator=generator) - signal


@pytest.mark.parametrize("height", [8.0, 12.0, 30.0, 100.0])
@pytest.mark.parametrize(
    ("radius_px", "blur_px"), [(0.5, 0.7), (0.5, 1.5), (1.0, 0.7), (1.5, 1.0), (2.0, 0.7), (2.5, 1.5)]
)
def test_small_strong_signal_is_no_outlier(radius_px: float, blur_px: float, height: float) -> None:
    defects = find_defects(spots(radius_px, blur_px, height))
    assert defects is None or not defects.outlying.any()


@pytest.mark.parametrize("rate", [1e-6, 1e-5, 1e-4, 1e-3])
@pytest.mark.parametrize("height", [12.0, 30.0, 1000.0, -50.0])
@pytest.mark.parametrize("kind", ["pixel", "pair", "square", "shifted by half a pixel"])
def test_hot_pixels_are_found_however_many_and_however_interpolated(
    rate: float, height: float, kind: str
) -> None:
    side, generator = 1024, torch.Generator().manual_seed(5)
    hot = torch.zeros(side, side)
    # a few at least, so that the lowest rates have some
    y, x = torch.randint(20, side - 20, (2, max(4, int(rate * side**2))), generator=generator)
    members = {"pair": [(0, 0), (0, 1)], "square": [(0, 0), (0, 1), (1, 0), (1, 1)]}.get(kind, [(0, 0)])
    for down, right in members:
        hot[y + down, x + right] = height
    if kind.startswith("shifted"):  # in Fourier space, as movies are aligned; two pixels then share it
        phase = torch.exp(-1j * torch.pi * torch.fft.fftfreq(side))[:, None]
        hot = 1.6 * torch.fft.irfft2(torch.fft.rfft2(hot) * phase, s=(side, side))
    defects = find_defects((torch.randn(side, side, generator=generator) + hot)[None])
    assert defects is not None
    there = hot.abs() > 0.9 * abs(height)
    # where two clusters are by chance beside each other, one may hide the other's rim
    assert defects.outlying[0][there].float().mean() > 0.99


@pytest.mark.parametrize("mean", [0.05, 0.3, 1.0, 4.0, 40.0])
def test_counts_with_few_values_hold_no_defects(mean: float) -> None:
    counts = torch.from_numpy(np.random.default_rng(5).poisson(mean, (4, 256, 256)).astype(np.float32))
    assert find_defects(counts) is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_noise_of_any_spectrum_and_scale_holds_no_defects(dtype: torch.dtype) -> None:
    images = noise(64)
    for shaped in (images, gaussian_filter(images, 2.0), 1e-20 * images, 6800 + 8 * images):
        if dtype == torch.float32 or float(shaped.abs().max()) > 1e-3:
            assert find_defects(shaped.to(dtype).float()) is None


@pytest.mark.parametrize("side", [1, 2, 7, 8, 11])
def test_images_of_a_few_pixels_are_left_alone(side: int) -> None:
    assert find_defects(noise(2, side, side)) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_an_image_with_a_pixel_that_is_no_number_is_left_alone(value: float) -> None:
    images = noise(2)
    images[0, 3, 3], images[:, 50, 50] = value, 30.0
    defects = find_defects(images)
    assert defects is not None
    assert defects.anywhere.nonzero().tolist() == [[1, 50, 50]]


def test_a_filled_area_looks_like_the_background() -> None:
    coloured = gaussian_filter(noise(1, 256, 256), 1.5)
    images = 100 + 3 * coloured / coloured.std()
    images[:, distance(256) < 40] += 9.0  # the particle
    masked = torch.where(distance(256) > 100, 0.0, images)
    defects = find_defects(masked)
    assert defects is not None
    filled = fill_defects(masked, defects, radius_px=60.0)
    torch.testing.assert_close(filled[~defects.noise_free], masked[~defects.noise_free], rtol=0, atol=0)
    outside = filled[defects.noise_free]
    # 34,000 pixels of which about 30 are correlated: the mean to 0.03 of the noise, its spread to 2 %
    assert float(outside.mean()) == pytest.approx(100, abs=0.3)
    assert float(outside.std()) == pytest.approx(3, rel=0.07)
    corner = [torch.fft.rfft2(part[:, :64, :64] - 100).abs().square() for part in (filled, images)]
    made, real = (ring_mean(power, (64, 64))[0] for power in corner)
    # about 64 coefficients in rings 8 to 12; the window's own leakage is the same in both
    assert float(made[4:16].sum()) == pytest.approx(float(real[4:16].sum()), rel=0.35)
    assert float(made[24:32].sum()) < 0.05 * float(made[4:16].sum())


def test_a_filled_area_follows_the_ice_of_a_micrograph() -> None:
    ramp = torch.linspace(0, 60, 512)
    image = (noise(1, 512, 512) + ramp)[0]
    masked = image.clone()
    masked[200:300] = 0.0
    defects = find_defects(masked[None])
    assert defects is not None
    filled = fill_defects(masked[None], defects)[0]
    # squares of 64 px are interpolated: at the edges they are flat over half of one
    np.testing.assert_allclose(filled[210:290, 64:-64].mean(0), ramp[64:-64], rtol=0, atol=2.0)


def test_the_same_image_is_filled_alike_in_any_company() -> None:
    images = torch.where(distance() > 40, 0.0, noise(4))
    images[:, 20, 48] = 50.0
    together, alone = find_defects(images), find_defects(images[2:3])
    assert together is not None
    assert alone is not None
    filled = fill_defects(images, together, 30.0)
    torch.testing.assert_close(filled[2:3], fill_defects(images[2:3], alone, 30.0), rtol=0, atol=0)
    assert not torch.equal(filled[1][distance() > 40], filled[2][distance() > 40])


def test_an_outlier_gets_the_value_of_an_ordinary_neighbour() -> None:
    images = noise(1)
    spoilt = images.clone()
    spoilt[0, 10:12, 10:12] = 1e6
    defects = find_defects(spoilt)
    assert isinstance(defects, Defects)
    filled = fill_defects(spoilt, defects)
    assert float(filled.abs().max()) < 6.0
    torch.testing.assert_close(filled[~defects.outlying], images[~defects.outlying], rtol=0, atol=0)


@pytest.mark.parametrize("value", [-50.0, 1e5])
@pytest.mark.parametrize(
    "where", [(slice(None), 30), (slice(40, 42), slice(None)), (slice(50, 54), slice(20, 25))]
)
def test_saturated_lines_and_spots_are_outlying_and_no_mask(where: Any, value: float) -> None:
    images = noise()
    images[1][where] = value
    defects = find_defects(images)
    assert defects is not None
    assert defects.outlying[1][where].all()
    assert not defects.noise_free.any()


@pytest.mark.parametrize("radius", [44, 47, 62])
def test_a_mask_far_from_the_grey_of_the_rest_is_a_mask_to_its_tips(radius: int) -> None:
    images = 100 + noise()
    images[1][distance() > radius] = 0.0
    defects = find_defects(images)
    assert defects is not None
    assert not defects.outlying.any()
    raw = images.clone()
    denoised = put_back(0.1 * images, raw, defects)
    torch.testing.assert_close(
        denoised[1][defects.noise_free[1]], raw[1][defects.noise_free[1]], rtol=0, atol=0
    )


def test_outlying_pixels_leave_the_grey_scale_to_the_rest() -> None:
    images = noise()
    images[0, 30, 40], images[1, 3, 50] = 1e6, -700.0
    defects = find_defects(images)
    assert defects is not None
    denoised = 0.1 * fill_defects(images, defects)
    shown = put_back(denoised, images, defects)
    for one, before, place in zip(shown, denoised, [(30, 40), (3, 50)], strict=False):
        rest = torch.ones_like(one, dtype=torch.bool)
        rest[place] = False
        assert one[place] == (before[rest].max() if one[place] > 0 else before[rest].min())
        torch.testing.assert_close(one[rest], before[rest], rtol=0, atol=0)
