import pytest
import torch

from cryohush.core.imaging.normalise import background_mask, denormalise, normalise


def images(scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    return offset + scale * torch.randn(5, 40, 48, generator=torch.Generator().manual_seed(3))


def test_background_has_mean_zero_and_unit_sd_after_normalising():
    normalised, _, _ = normalise(images(7.0, -300.0), radius_px=15)
    outside = normalised[:, background_mask((40, 48), 15)].double()
    # float32 images of magnitude 1: the mean of 1200 pixels is exact to about 1e-6
    torch.testing.assert_close(outside.mean(1), torch.zeros(5, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        outside.std(1, unbiased=False), torch.ones(5, dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_denormalising_gives_the_image_back():
    raw = images(7.0, -300.0)
    torch.testing.assert_close(denormalise(*normalise(raw, 15)), raw, atol=1e-4, rtol=0)


def test_normalised_image_does_not_depend_on_the_grey_scale():
    torch.testing.assert_close(
        normalise(images(50.0, 1000.0), 15)[0], normalise(images(), 15)[0], atol=1e-3, rtol=0
    )


def test_pixels_inside_the_circle_have_no_influence_on_the_statistics():
    raw = images()
    changed = torch.where(background_mask((40, 48), 15), raw, raw + 100)
    assert torch.equal(normalise(raw, 15)[1], normalise(changed, 15)[1])
    assert torch.equal(normalise(raw, 15)[2], normalise(changed, 15)[2])


def test_constant_image_reports_sd_zero_and_stays_finite():
    normalised, mean, std = normalise(torch.full((1, 32, 32), 5.0), 10)
    assert std.item() == 0
    assert mean.item() == pytest.approx(5, abs=1e-5)
    assert normalised.abs().max() < 1e-4


def test_circle_is_centred_on_relions_pixel():
    inside = ~background_mask((8, 8), 1.0)
    assert inside.nonzero().tolist() == [[3, 4], [4, 3], [4, 4], [4, 5], [5, 4]]


def test_circle_that_leaves_no_background_is_refused():
    with pytest.raises(ValueError, match="fewer than 16 background pixels"):
        background_mask((32, 32), 30)
