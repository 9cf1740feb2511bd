"""What surrounds the segmentation network: binning, scale, labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from cryohush.core.noise.segmentation import (
    BACKGROUND,
    CONTAMINATION,
    PARTICLE,
    UNKNOWN,
    bin_labels,
    bin_micrograph,
    class_overlap,
    confusion,
    expand_labels,
    labels_of_logits,
    labels_of_picks,
    normalise_robustly,
    working_bin,
)


@pytest.mark.parametrize(("pixel_size", "factor"), [(1.5, 5), (1.06, 8), (0.83, 10), (4.0, 2), (12.0, 1)])
def test_the_network_sees_about_8_angstrom_per_pixel(pixel_size: float, factor: int) -> None:
    assert working_bin(pixel_size) == factor


def test_binning_is_a_mean_and_the_last_squares_may_hold_less() -> None:
    image = torch.randn(23, 31, generator=torch.Generator().manual_seed(1))
    binned = bin_micrograph(image, 5)
    assert binned.shape == (5, 7)
    torch.testing.assert_close(binned[1, 2], image[5:10, 10:15].mean())
    torch.testing.assert_close(binned[4, 6], image[20:, 30:].mean())


@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-3, 0.0), (300.0, 20000.0), (0.1, -5.0)])
def test_the_scale_of_the_micrograph_does_not_matter(scale: float, offset: float) -> None:
    image = torch.randn(200, 200, generator=torch.Generator().manual_seed(1))
    # offsets of 20,000 leave steps of 0.002, of a standard deviation of 300
    torch.testing.assert_close(
        normalise_robustly(image * scale + offset), normalise_robustly(image), atol=1e-3, rtol=1e-3
    )


def test_contamination_hardly_moves_median_and_spread() -> None:
    image = torch.randn(200, 200, generator=torch.Generator().manual_seed(1))
    image[:60, :60] += 40.0  # 9 % of the area
    clean = normalise_robustly(image)[60:]
    # the median moves to the quantile 0.5 / 0.91 of the rest: 0.12; the spread grows by a seventh or so
    assert float(clean.median()) == pytest.approx(-0.12, abs=0.03)
    assert 0.8 < float(clean.std()) < 1.0


def test_a_constant_micrograph_has_no_scale() -> None:
    with pytest.raises(ValueError, match="one value"):
        normalise_robustly(torch.full((10, 10), 3.0))


def test_the_class_of_half_the_square_wins_and_contamination_first() -> None:
    labels = torch.tensor([[2, 0, 1, 2], [2, 0, 1, 2], [0, 0, 2, 0], [0, 2, 0, 0]], dtype=torch.uint8)
    assert bin_labels(labels, 2).tolist() == [[PARTICLE, CONTAMINATION], [BACKGROUND, BACKGROUND]]


def test_expanding_undoes_the_binning_of_whole_squares() -> None:
    labels = torch.randint(3, (4, 5), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    whole = expand_labels(labels, 3, (11, 14))
    assert whole.shape == (11, 14)
    assert torch.equal(bin_labels(whole, 3), labels)


def test_background_needs_its_least_probability() -> None:
    probability = torch.tensor([[0.6, 0.1, 0.3], [0.45, 0.15, 0.4], [0.1, 0.6, 0.3]]).T[:, None]
    assert labels_of_logits(probability.log(), 0.5).tolist() == [[BACKGROUND, PARTICLE, CONTAMINATION]]
    assert labels_of_logits(probability.log(), 0.7).tolist() == [[PARTICLE, PARTICLE, CONTAMINATION]]


def test_picks_become_discs_cut_off_at_the_border() -> None:
    centres = torch.tensor([[20.0, 30.0], [0.0, 0.0], [55.5, 70.0], [500.0, 500.0]])
    found = labels_of_picks((60, 80), centres, 9.0)
    inverse = np.ones((60, 80))
    inverse[20, 30] = inverse[0, 0] = 0
    expected = ndimage.distance_transform_edt(inverse) <= 9.0
    assert np.array_equal((found.numpy() == PARTICLE)[:45], expected[:45])
    # of the disc about 55.5 the rows from 46.5 to 59 are there
    area = sum(2 * math.floor(math.sqrt(81 - (row - 55.5) ** 2)) + 1 for row in range(47, 60))
    assert int((found[45:] == PARTICLE).sum()) == area


def test_masks_go_before_picks() -> None:
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[:, :10] = True
    labels = labels_of_picks((20, 20), torch.tensor([[10.0, 10.0]]), 4.0, mask)
    assert labels[10, 9] == CONTAMINATION
    assert labels[10, 11] == PARTICLE


def test_overlap_of_known_pixels() -> None:
    truth = torch.tensor([0, 0, 1, 1, 2, 2, UNKNOWN])
    found = torch.tensor([0, 1, 1, 1, 2, 0, 2])
    overlap = class_overlap(confusion(found, truth))
    assert overlap == pytest.approx({"background": 1 / 3, "contamination": 2 / 3, "particle": 1 / 2})
