"""Self-similarity of patches, against scikit-image patch by patch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from cryohush.core.noise.similarity import (
    patch_similarity,
    published_patch_similarity,
    similarity_of_patches,
    to_unit_range,
)


def smooth_field(y: int, x: int, seed: int = 1) -> torch.Tensor:
    white = torch.randn(1, y + 6, x + 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(white, 7, 1)[0]


@pytest.mark.parametrize("n_local", [4, 9])
def test_it_is_the_least_ssim_of_all_pairs_as_scikit_image_has_it(n_local: int) -> None:
    image, patch, stride = smooth_field(130, 171), 72, 29
    found = patch_similarity(image, patch, stride, n_local)
    unit = to_unit_range(image).double().numpy()
    grid = round(n_local**0.5)
    side = patch // grid
    expected = np.ones(tuple(found.shape))
    for row, column in np.ndindex(*expected.shape):
        top, left = row * stride, column * stride
        parts = [
            unit[top + i * side : top + (i + 1) * side, left + j * side : left + (j + 1) * side]
            for i, j in np.ndindex(grid, grid)
        ]
        for one, other in itertools.combinations(parts, 2):
            _, similarity = structural_similarity(
                one, other, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                full=True,
            )  # fmt: skip
            # the windows that lie inside
            expected[row, column] = min(expected[row, column], similarity[5:-5, 5:-5].mean())
    # single precision beside double: variances are differences of squares
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


def test_a_flat_patch_is_alike_and_one_with_an_object_is_not() -> None:
    image = 0.02 * smooth_field(200, 200)
    image[40:70, 130:160] += 1.0
    similarity = patch_similarity(image, 100, 100)
    assert float(similarity[1, 0]) > 0.9
    assert float(similarity[0, 1]) < 0.7


def test_one_hot_pixel_does_not_change_the_scale() -> None:
    image = smooth_field(120, 120)
    hot = image.clone()
    hot[3, 3] = 1e6
    # one pixel more or less of 14,400 shifts the quantiles a little
    torch.testing.assert_close(to_unit_range(hot)[10:], to_unit_range(image)[10:], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("patch", "n_local", "text"),
    [(20, 4, "SSIM needs 11 px"), (60, 5, "4, 9, 16"), (60, 1, "4, 9, 16"), (200, 4, "larger than")],
)
def test_what_cannot_be_is_refused(patch: int, n_local: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        patch_similarity(smooth_field(90, 110), patch, 10, n_local)


def test_equation_3_by_hand():
    a = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    b = torch.tensor([0.0, 0.5, 0.5, 1.0], dtype=torch.float64)
    # means 1/2 and 1/2; variances 1/4 and (1/4 + 0 + 0 + 1/4) / 4 = 1/8, which is the covariance as well;
    # c1 = 0.0001, c2 = 0.0009: (0.5 + c1)(0.25 + c2) / ((0.5 + c1)(0.375 + c2)) = 0.2509 / 0.3759
    assert float(similarity_of_patches(a, b)) == pytest.approx(0.2509 / 0.3759, rel=1e-12)
    # b turned round has the opposite covariance
    assert float(similarity_of_patches(a, 1 - b)) == pytest.approx(-0.2491 / 0.3759, rel=1e-12)


def test_published_likeness_is_the_least_of_all_pairs_of_quarters():
    image = torch.rand(7, 9, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = published_patch_similarity(image, 4, 2)
    unit = to_unit_range(image)
    assert found.shape == (2, 3)
    for row in range(2):
        for column in range(3):
            patch = unit[2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            quarters = [patch[y : y + 2, x : x + 2].flatten() for y in (0, 2) for x in (0, 2)]
            pairs = itertools.combinations(quarters, 2)
            least = min(float(similarity_of_patches(a, b)) for a, b in pairs)
            assert float(found[row, column]) == pytest.approx(least, abs=1e-12)
