"""Per-image distances against numpy, scikit-image and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.metrics
import torch

from cryohush.core.errors import ConfigurationError, InputError
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.metrics import image


@pytest.fixture
def pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    reference = torch.randn(4, 9, 12, generator=generator, dtype=torch.float64)
    return 0.7 * reference + torch.randn(4, 9, 12, generator=generator, dtype=torch.float64) + 5.0, reference


def test_correlation_is_that_of_numpy(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = [np.corrcoef(a.flatten(), b.flatten())[0, 1] for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(image.correlation(*pair), expected, rtol=1e-12)


def test_correlation_ignores_scale_and_offset(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, reference = pair
    torch.testing.assert_close(
        image.correlation(3 * images - 8, reference), image.correlation(images, reference)
    )
    torch.testing.assert_close(image.correlation(-images, reference), -image.correlation(images, reference))


def test_correlation_with_a_constant_image_is_zero() -> None:
    noise = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(1))
    assert image.correlation(torch.full_like(noise, 2.0), noise).tolist() == [0.0, 0.0]


def test_normalised_error_of_the_mean_value_is_one(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    reference = pair[1]
    flat = reference.mean((-2, -1), keepdim=True).expand_as(reference)
    found = image.normalised_mean_squared_error(flat, reference)
    torch.testing.assert_close(found, torch.ones_like(found))


def test_affine_error_is_the_error_after_a_least_squares_fit(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    expected = []
    for a, b in zip(*pair, strict=True):
        design = np.stack([a.flatten(), np.ones(a.numel())], 1)
        residual = np.linalg.lstsq(design, b.flatten().numpy(), rcond=None)[1][0]
        expected.append(residual / ((b - b.mean()) ** 2).sum())
    np.testing.assert_allclose(image.affine_normalised_mean_squared_error(*pair), expected, rtol=1e-10)


def test_peak_signal_to_noise_ratio_by_hand() -> None:
    reference = torch.zeros(1, 4, 4)
    # an error of 0.1 everywhere on a scale of 1: MSE 0.01, 20 dB; on a scale of 255 it is 48.13 dB more
    found = image.peak_signal_to_noise_ratio(reference + 0.1, reference, data_range=1.0)
    assert float(found) == pytest.approx(20.0, abs=1e-5)
    found = image.peak_signal_to_noise_ratio(reference + 0.1, reference, data_range=255.0)
    assert float(found) == pytest.approx(20.0 + 20 * np.log10(255), abs=1e-5)


def test_peak_signal_to_noise_ratio_is_that_of_scikit_image(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, reference = pair
    span = image.grey_value_span(reference)
    expected = [
        skimage.metrics.peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=float(r))
        for a, b, r in zip(images, reference, span, strict=True)
    ]
    found = image.peak_signal_to_noise_ratio(images, reference, span)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    # PMSE is what the ratio is made of
    pmse = image.peak_mean_squared_error(images, reference, span)
    np.testing.assert_allclose(-10 * torch.log10(pmse), expected, rtol=1e-12)


@pytest.mark.parametrize("window", ["gaussian", "uniform"])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_structural_similarity_is_that_of_scikit_image(window: str, offset: float) -> None:
    noise = torch.randn(2, 5, 40, 33, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    reference = gaussian_filter(noise[0], 2.0) * 5 + offset
    images = reference + 0.4 * noise[1]
    options = (
        {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        if window == "gaussian"
        else {}
    )
    expected = [
        skimage.metrics.structural_similarity(b.numpy(), a.numpy(), data_range=3.0, **options)
        for a, b in zip(images, reference, strict=True)
    ]
    found = image.structural_similarity(images, reference, 3.0, window=window)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert 0.1 < float(found.mean()) < 0.99  # neither end of the scale
    single = image.structural_similarity(images.float(), reference.float(), 3.0, window=window)
    # float32 holds 1000 to 6e-5, a ten-thousandth of the noise
    np.testing.assert_allclose(single, expected, atol=1e-6 if offset == 0 else 1e-4)


def test_a_larger_data_range_flatters_structural_similarity(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, reference = (torch.cat([stack, stack], 1) for stack in pair)
    fair, flattered = (image.structural_similarity(images, reference, span) for span in (1.0, 20.0))
    assert bool((flattered > fair).all())


def test_absolute_error_by_hand() -> None:
    reference = torch.tensor([[[0.0, 2.0], [4.0, 6.0]]])
    assert (
        image.mean_absolute_error(reference + torch.tensor([[1.0, -1.0], [3.0, -3.0]]), reference).item()
        == 2.0
    )


def test_an_affine_fit_is_the_least_squares_line(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    fitted = image.affine_fit(*pair)
    for result, a, b in zip(fitted, *pair, strict=True):
        slope, offset = np.polyfit(a.flatten().numpy(), b.flatten().numpy(), 1)
        np.testing.assert_allclose(result, slope * a + offset, atol=1e-10)
    found = image.normalised_mean_squared_error(fitted, pair[1])
    torch.testing.assert_close(found, image.affine_normalised_mean_squared_error(*pair))


def test_figures_of_fitted_images_ignore_scale_and_offset(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, reference = (torch.cat([stack, stack], 1) for stack in pair)
    names = ["correlation", "affine_nmse", "affine_psnr", "affine_ssim"]
    found = image.image_metrics(images, reference, names, data_range=4.0)
    scaled = image.image_metrics(0.01 * images + 30.0, reference, names, data_range=4.0)
    for name in names:
        torch.testing.assert_close(scaled[name], found[name])


def test_only_pixels_inside_the_mask_count(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, reference = pair
    inside = torch.zeros(9, 12, dtype=torch.bool)
    inside[2:7, 3:11] = True
    spoilt = torch.where(inside, images, 1e3)
    for metric in (
        image.correlation,
        image.mean_squared_error,
        image.mean_absolute_error,
        image.normalised_mean_squared_error,
        image.affine_normalised_mean_squared_error,
    ):
        expected = metric(images[:, 2:7, 3:11], reference[:, 2:7, 3:11])
        torch.testing.assert_close(metric(spoilt, reference, inside), expected)
    cut = [stack.reshape(4, -1)[:, inside.flatten()].reshape(4, 5, 8) for stack in (images, reference)]
    found = image.peak_signal_to_noise_ratio(spoilt, reference, 2.0, inside)
    torch.testing.assert_close(found, image.peak_signal_to_noise_ratio(*cut, 2.0))


def test_a_mask_selects_windows_of_structural_similarity() -> None:
    noise = torch.randn(2, 1, 30, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    _, expected = skimage.metrics.structural_similarity(
        noise[0, 0].numpy(),
        noise[1, 0].numpy(),
        data_range=4.0,
        full=True,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    inside = torch.zeros(30, 30, dtype=torch.bool)
    inside[8:20, 7:24] = True
    found = image.structural_similarity(noise[0], noise[1], 4.0, mask=inside)
    assert float(found) == pytest.approx(expected[8:20, 7:24].mean(), abs=1e-9)


def test_unit_range_spans_zero_to_one(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    scaled = image.to_unit_range(torch.cat([pair[0], torch.full((1, 9, 12), 3.0, dtype=torch.float64)]))
    assert scaled[:4].amin((-2, -1)).tolist() == [0.0] * 4
    assert scaled[:4].amax((-2, -1)).tolist() == [1.0] * 4
    assert float(scaled[4].abs().max()) == 0.0


def test_region_ratio_by_hand() -> None:
    # means 7 and 2, variance 25 / 4: 10 log10(25 / 6.25) = 10 log10(4)
    background = torch.tensor([2.0 - 2.5, 2.0 + 2.5])
    found = image.region_signal_to_noise_ratio([torch.full((3, 3), 7.0)] * 2, [background, 2 * background])
    # twice the background: mean 4, variance 25, 10 log10(9 / 25)
    np.testing.assert_allclose(found, [10 * np.log10(4), 10 * np.log10(9 / 25)], rtol=1e-12)


def test_region_ratio_has_no_limit_on_a_flat_background() -> None:
    flat = [torch.zeros(4, 4)]
    assert image.region_signal_to_noise_ratio([torch.ones(4, 4)], flat).item() == float("inf")
    assert image.region_variance_ratio([torch.eye(4)], flat).item() == float("inf")


def test_equation_5_of_nt2c_by_hand() -> None:
    # first pair: 1, 3, 5, 7 about their mean of 4 are -3, -1, 1, 3: variance (9 + 1 + 1 + 9) / 4 = 5;
    # background 10, 11: variance 1/4; 10 (log10 5 - log10 1/4) = 10 log10 20 = 13.01 dB
    # second pair: 0, 8 have variance 16, 4, 8 have 4: 10 log10 4 = 6.02 dB; the mean of both is 9.52 dB
    signal = [torch.tensor([1.0, 3.0, 5.0, 7.0]), torch.tensor([[0.0, 8.0]])]
    background = [torch.tensor([10.0, 11.0]), torch.tensor([4.0, 8.0])]
    found = image.region_variance_ratio(signal, background)
    np.testing.assert_allclose(found, [13.0103, 6.0206], atol=1e-4)
    assert float(found.mean()) == pytest.approx(9.5155, abs=1e-4)


def test_the_variance_ratio_does_not_see_the_mean_contrast() -> None:
    generator = torch.Generator().manual_seed(3)
    signal, background = torch.randn(2, 5, 40, 40, generator=generator, dtype=torch.float64)
    found = image.region_variance_ratio(list(signal), list(background))
    brighter = image.region_variance_ratio(list(signal + 7.0), list(background))
    torch.testing.assert_close(brighter, found)
    # the same noise in both: 0 dB within 4.34 (2 / 1600 * 2)^(1/2) = 0.22 dB for each pair
    assert float(found.abs().max()) < 1.0


def test_the_pmse_of_the_wgan_paper_is_the_root_of_its_mse() -> None:
    # Ouyang et al. (2020), table 1: noisy, WGAN, BM3D, K-SVD, Gaussian blur; two digits after the point
    mse = torch.tensor([108.81, 87.89, 115.16, 2401.98, 114.60], dtype=torch.float64)
    printed = [10.43, 9.37, 10.73, 49.01, 10.70]
    images = mse.sqrt()[:, None, None].expand(5, 4, 4)
    found = image.root_mean_squared_error(images, torch.zeros_like(images))
    np.testing.assert_allclose(found, printed, atol=0.0101)


def test_what_cannot_be_compared_is_refused() -> None:
    images = torch.zeros(2, 12, 12)
    with pytest.raises(InputError, match=r"one shape, found \(2, 12, 12\) and \(2, 12, 13\)"):
        image.mean_squared_error(images, torch.zeros(2, 12, 13))
    with pytest.raises(
        InputError, match="psnr, ssim compare images with a clean reference, and there is none"
    ):
        image.image_metrics(images, None, ["psnr", "ssim"], data_range=1.0)
    with pytest.raises(ConfigurationError, match="unknown metric pnsr"):
        image.image_metrics(images, images, ["pnsr"])
    with pytest.raises(ConfigurationError, match="ssim need a data range"):
        image.image_metrics(images, images, ["mse", "ssim"])
    with pytest.raises(InputError, match="at least 11 x 11 px, found 10 x 12 px"):
        image.structural_similarity(torch.zeros(1, 12, 10), torch.zeros(1, 12, 10), 1.0)
    with pytest.raises(InputError, match="a mask of 12 x 12 px, found 8 x 8 px"):
        image.mean_squared_error(images, images, torch.ones(8, 8))
    with pytest.raises(InputError, match="leaves no pixel"):
        image.mean_squared_error(images, images, torch.zeros(12, 12))
    with pytest.raises(InputError, match="1 signal and 0 background"):
        image.region_signal_to_noise_ratio([images], [])


def test_all_figures_of_a_table_are_there(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, reference = (torch.cat([stack, stack], 1) for stack in pair)
    table = image.image_metrics(images, reference, data_range=5.0)
    assert tuple(table) == image.IMAGE_METRICS
    assert all(values.shape == (4,) for values in table.values())
