"""Distances between an image and its reference, per image, over the last two dimensions of `(..., y, x)`.

Which grey scale a figure refers to decides what it says, so each choice has a name:

- *Data range*: PMSE, PSNR and SSIM take it explicitly and have no default. 1.0 is the scale of images in
  [0, 1], 255.0 the 8-bit scale, `grey_value_span(reference)` the span of each reference.
- *Contrast-invariant*: apply `affine_fit` first. `affine_normalised_mean_squared_error`, `correlation` and
  SSIM of fitted images are the measures that no scale can flatter.
- *Masked*: with `mask`, only the pixels inside count.

The papers [1]_ [2]_ [3]_ print MSE, PSNR and SSIM. The published code of [3]_ shows what that means there:
`10 log10(1 / MSE)` for each image and then the mean, so images in [0, 1] (`to_unit_range`) and
`data_range=1.0`; but SSIM with what scikit-image then had as defaults for floating-point images, a 7 x 7
uniform window and a data range of 2, the span of -1 to 1. That is twice what the images use, and flatters.
`structural_similarity(..., data_range=2.0, window="uniform")` gives that figure; `data_range=1.0` with the
Gaussian window is the definition of [4]_. The MSE and PSNR that [2]_ prints cannot both be on [0, 1], because
the mean of PSNR is never below the PSNR of the mean MSE.

References
----------
.. [1] Tang, Wang, Ouyang & Liu (2022) J. Big Data 4, doi:10.32604/jbd.2022.028078.
.. [2] Zhang, Zhao, Hu & Zhao (2024), arXiv:2401.01097.
.. [3] Gu, Unarta, Huang & Yao, arXiv:2008.07307.
.. [4] Wang, Bovik, Sheikh & Simoncelli (2004) IEEE Trans. Image Process. 13, 600-612,
   doi:10.1109/TIP.2003.819861.
.. [5] Eskicioglu & Fisher (1995) IEEE Trans. Commun. 43, 2959-2965, doi:10.1109/26.477498.
.. [6] Bepler, Kelley, Noble & Berger (2020) Nat. Commun. 11, 5208, doi:10.1038/s41467-020-18952-1.
.. [7] Li et al. (2022) Bioinformatics 38, 2022-2029, doi:10.1093/bioinformatics/btac052.
.. [8] Ouyang, He, Tang & Fu (2020) J. Inf. Hiding Priv. Prot., Research on Denoising of Cryo-em Images Based
   on Deep Learning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ..config.evaluate import IMAGE_METRICS, METRICS
from ..errors import ConfigurationError, InputError

_RANGED = ("pmse", "psnr", "affine_psnr", "ssim", "affine_ssim", "ssim_uniform")


def image_metrics(
    images: Tensor,
    reference: Tensor | None,
    names: Iterable[str] = IMAGE_METRICS,
    *,
    data_range: float | Tensor | None = None,
    mask: Tensor | None = None,
) -> dict[str, Tensor]:
    """Figures of each image `(n, y, x)` against its reference, by name: `(n,)` each.

    Raises
    ------
    ConfigurationError
        When a name is neither in `config.evaluate.IMAGE_METRICS` nor another package's, one of them needs a
        data range and there is none, or another package's metric does not return a figure for each image.
    InputError
        When there is no reference, or its shape is not that of the images.
    """
    names = tuple(names)
    others = [name for name in names if name not in IMAGE_METRICS]
    if unknown := sorted(name for name in others if name not in METRICS):
        raise ConfigurationError(
            f"unknown metric {', '.join(unknown)}: the metrics of an image are {', '.join(IMAGE_METRICS)}"
        )
    if reference is None:
        raise InputError(
            f"{', '.join(names)} compare images with a clean reference, and there is none.",
            remedy="Give the clean images, or score against independent noisy ones.",
        )
    ranged = [name for name in names if name in _RANGED]
    if ranged and data_range is None:
        raise ConfigurationError(
            f"{', '.join(ranged)} need a data range, the span of grey values of full scale"
        )
    span = 1.0 if data_range is None else data_range
    require_same_shape(images, reference)
    fitted = (
        affine_fit(images, reference, mask) if any(name.startswith("affine") for name in names) else images
    )
    calculate = {
        "correlation": lambda: correlation(images, reference, mask),
        "mse": lambda: mean_squared_error(images, reference, mask),
        "mae": lambda: mean_absolute_error(images, reference, mask),
        "rmse": lambda: root_mean_squared_error(images, reference, mask),
        "pmse": lambda: peak_mean_squared_error(images, reference, span, mask),
        "nmse": lambda: normalised_mean_squared_error(images, reference, mask),
        "affine_nmse": lambda: affine_normalised_mean_squared_error(images, reference, mask),
        "psnr": lambda: peak_signal_to_noise_ratio(images, reference, span, mask),
        "affine_psnr": lambda: peak_signal_to_noise_ratio(fitted, reference, span, mask),
        "ssim": lambda: structural_similarity(images, reference, span, mask=mask),
        "affine_ssim": lambda: structural_similarity(fitted, reference, span, mask=mask),
        "ssim_uniform": lambda: structural_similarity(images, reference, span, window="uniform", mask=mask),
    }
    calculate |= {name: partial(_by_another, name, images, reference, mask) for name in others}
    return {name: calculate[name]() for name in names}


def _by_another(name: str, images: Tensor, reference: Tensor, mask: Tensor | None) -> Tensor:
    """A figure of each image by another package's metric.

    Raises
    ------
    ConfigurationError
        It fails, or does not return one for each image.
    """
    calculate = METRICS.find(name, "metrics")
    try:
        values = torch.as_tensor(calculate(images, reference, mask))
    except Exception as error:  # whatever a stranger's code does
        raise ConfigurationError(f"the metric {name} fails: {type(error).__name__}: {error}") from error
    if values.shape != images.shape[:1]:
        raise ConfigurationError(
            f"the metric {name} should return a figure for each image, {tuple(images.shape[:1])}, and "
            f"returns {tuple(values.shape)}."
        )
    return values.double()


def require_same_shape(images: Tensor, reference: Tensor) -> None:
    """Refuse what cannot be compared pixel by pixel.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    if images.shape != reference.shape:
        raise InputError(
            f"expected images and reference of one shape, found {tuple(images.shape)} and "
            f"{tuple(reference.shape)} (n, y, x)."
        )


def correlation(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pearson correlation of each image with its reference: `(...)`; 0 where either of them is constant.

    Raises
    ------
    InputError
        When the shapes differ.
    """
    require_same_shape(images, reference)
    a = images - _mean(images, mask)[..., None, None]
    b = reference - _mean(reference, mask)[..., None, None]
    norm = torch.sqrt(_mean(a.square(), mask) * _mean(b.square(), mask))
    product = _mean(a * b, mask)
    return torch.where(norm > 0, product / norm, torch.zeros_like(product))


def mean_squared_error(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """MSE: mean squared difference of each image from its reference: `(...)`, in squared grey values.

    Parameters
    ----------
    images, reference
        `(..., y, x)`.
    mask
        `(..., y, x)` weights, or True for the pixels that count; None: all.

    Raises
    ------
    InputError
        When the shapes differ, or the mask is empty.
    """
    require_same_shape(images, reference)
    return _mean((images - reference).square(), mask)


def mean_absolute_error(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """MAE: mean absolute difference of each image from its reference: `(...)`, in grey values."""
    require_same_shape(images, reference)
    return _mean((images - reference).abs(), mask)


def peak_mean_squared_error(
    images: Tensor, reference: Tensor, data_range: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """PMSE: `MSE / data_range²`, the peak mean squared error of [5]_: `(...)`; PSNR is `-10 log10(PMSE)`.

    Differs from [5]_ in that the peak is the data range that was asked for, not the largest value of the
    reference. What [8]_ tables as PMSE is another figure, `root_mean_squared_error`.
    """
    return mean_squared_error(images, reference, mask) / _range(data_range, reference).square()


def root_mean_squared_error(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """RMSE: square root of the MSE of each image: `(...)`, in grey values.

    The column PMSE of [8]_, table 1, is this: in all five of its methods it is the root of the column MSE.
    """
    return mean_squared_error(images, reference, mask).sqrt()


def normalised_mean_squared_error(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """NMSE: MSE over the variance of the reference: `(...)`; a flat image of its mean has 1."""
    variance = _mean((reference - _mean(reference, mask)[..., None, None]).square(), mask)
    return mean_squared_error(images, reference, mask) / variance


def affine_normalised_mean_squared_error(
    images: Tensor, reference: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Normalised error after the best grey scale `scale * image + offset` was fitted to each image: `(...)`.

    That fit leaves `1 - correlation²`, so the figure is blind to contrast and brightness, and to a reversed
    contrast.
    """
    require_same_shape(images, reference)
    return 1.0 - correlation(images, reference, mask).square()


def affine_fit(images: Tensor, reference: Tensor, mask: Tensor | None = None) -> Tensor:
    """Each image on the grey scale `scale * image + offset` closest to its reference: `(..., y, x)`.

    Constant images become the mean of their reference.
    """
    require_same_shape(images, reference)
    mean, target = (_mean(stack, mask)[..., None, None] for stack in (images, reference))
    variance = _mean((images - mean).square(), mask)
    covariance = _mean((images - mean) * (reference - target), mask)
    scale = torch.where(variance > 0, covariance / variance, torch.zeros_like(variance))
    return scale[..., None, None] * (images - mean) + target


def peak_signal_to_noise_ratio(
    images: Tensor, reference: Tensor, data_range: float | Tensor, mask: Tensor | None = None
) -> Tensor:
    """PSNR: `10 log10(data_range² / MSE)` of each image, in dB: `(...)`; infinite for equal images.

    `data_range` is the span of grey values that counts as full scale, one for all or one for each image. It
    has no default: figures with different ranges cannot be compared.
    """
    return -10.0 * torch.log10(peak_mean_squared_error(images, reference, data_range, mask))


def grey_value_span(reference: Tensor) -> Tensor:
    """Largest minus smallest grey value of each image: `(...)`, a data range for each."""
    return reference.amax((-2, -1)) - reference.amin((-2, -1))


def to_unit_range(images: Tensor) -> Tensor:
    """Each image `(..., y, x)` stretched to [0, 1], the scale of the papers' figures; constant ones to 0."""
    span = grey_value_span(images)[..., None, None]
    shifted = images - images.amin((-2, -1), keepdim=True)
    return torch.where(span > 0, shifted / span, torch.zeros_like(shifted))


def structural_similarity(
    images: Tensor,
    reference: Tensor,
    data_range: float | Tensor,
    *,
    window: Literal["gaussian", "uniform"] = "gaussian",
    mask: Tensor | None = None,
) -> Tensor:
    """SSIM: mean structural similarity of each image with its reference: `(...)`, 1 for equal images.

    Parameters
    ----------
    images, reference
        `(..., y, x)`, at least 11 pixels wide and high (7 with the uniform window).
    data_range
        Span of grey values of full scale, one for all or one for each image. It sets the constants
        `(0.01 range)²` and `(0.03 range)²`, so a range that is too large drives SSIM to 1.
    window
        "gaussian" is that of [4]_: standard deviation 1.5 px, 11 x 11 px. "uniform":
        7 x 7 px with unbiased covariances, scikit-image's default.
    mask
        `(..., y, x)`: where the windows whose centre lies inside count. Windows never reach over the border.

    Raises
    ------
    InputError
        When the shapes differ, or the images are smaller than the window.
    """
    require_same_shape(images, reference)
    if window == "gaussian":
        profile = torch.exp(-0.5 * (torch.arange(-5, 6, dtype=torch.float64) / 1.5) ** 2)
        unbiased = 1.0
    else:
        profile = torch.ones(7, dtype=torch.float64)
        unbiased = 49 / 48
    if min(images.shape[-2:]) < len(profile):
        raise InputError(
            f"SSIM needs images of at least {len(profile)} x {len(profile)} px, found "
            f"{images.shape[-1]} x {images.shape[-2]} px."
        )
    weights: list[float] = (profile / profile.sum()).tolist()

    def smooth(values: Tensor) -> Tensor:
        return _windowed(_windowed(values, weights, -2), weights, -1)

    # variances are differences of large numbers where the mean is large
    a, b = images.double(), reference.double()
    mean_a, mean_b = smooth(a), smooth(b)
    variance_a = unbiased * (smooth(a * a) - mean_a.square())
    variance_b = unbiased * (smooth(b * b) - mean_b.square())
    covariance = unbiased * (smooth(a * b) - mean_a * mean_b)
    span = _range(data_range, b)[..., None, None]
    c1, c2 = (0.01 * span).square(), (0.03 * span).square()
    similarity = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    similarity = similarity / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))
    edge = len(weights) // 2
    inside = None if mask is None else mask[..., edge : mask.shape[-2] - edge, edge : mask.shape[-1] - edge]
    return _mean(similarity, inside).to(images.dtype)


def region_signal_to_noise_ratio(signal: Sequence[Tensor], background: Sequence[Tensor]) -> Tensor:
    """Mean contrast of paired regions of one image in terms of the noise, in dB: `(pairs,)`.

    `10 log10((mean of signal - mean of background)² / variance of background)` for each pair of a region
    with particle and one without, as Topaz-Denoise has it [6]_; the variance is that of the population. It
    needs no reference, and is no evidence alone: a denoiser that makes the background flat scores without
    limit, whatever it makes of the particle.

    Parameters
    ----------
    signal, background
        Pixels of each region, of any shape, at least two in a background. `picking.square_regions` cuts them
        out of a micrograph.

    Raises
    ------
    InputError
        When there is not one background for each signal.
    """
    values = []
    for inside, outside in _region_pairs(signal, background):
        contrast = inside.mean() - outside.mean()
        values.append(10.0 * torch.log10(contrast.square() / outside.var(correction=0)))
    return torch.stack(values)


def region_variance_ratio(signal: Sequence[Tensor], background: Sequence[Tensor]) -> Tensor:
    """Variance of paired regions of one image, with particle over without, in dB: `(pairs,)`.

    `10 (log10 v_s - log10 v_b)` for each pair, v_s being the variance of the signal region after the mean of
    its background is taken off, which changes no variance, and v_b that of the background: the SNR of NT2C
    [7]_, whose equation 5 is the mean over the pairs. Both variances are those of the population. A raw
    micrograph has about 0, because noise fills both regions alike. Like the mean contrast it rises without
    limit where a denoiser flattens the background.

    Parameters and Raises as of `region_signal_to_noise_ratio`.
    """
    values = [
        10.0 * (torch.log10((inside - outside.mean()).var(correction=0)) - outside.var(correction=0).log10())
        for inside, outside in _region_pairs(signal, background)
    ]
    return torch.stack(values)


def _region_pairs(signal: Sequence[Tensor], background: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    if len(signal) != len(background) or not len(signal):
        raise InputError(
            "expected one background region for each signal region, found "
            f"{len(signal)} signal and {len(background)} background regions."
        )
    return [(inside.double(), outside.double()) for inside, outside in zip(signal, background, strict=True)]


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """`(...)` mean over the last two dimensions, weighted by `mask`."""
    if mask is None:
        return values.mean((-2, -1))
    if mask.shape[-2:] != values.shape[-2:]:
        raise InputError(
            f"expected a mask of {values.shape[-1]} x {values.shape[-2]} px, found "
            f"{mask.shape[-1]} x {mask.shape[-2]} px."
        )
    weight = mask.to(values.dtype)
    total = weight.sum((-2, -1))
    if not bool((total > 0).all()):
        raise InputError("the mask leaves no pixel of an image.")
    return (values * weight).sum((-2, -1)) / total


def _windowed(values: Tensor, weights: list[float], dimension: int) -> Tensor:
    """Weighted sums over a symmetric window along one dimension, where it fits.

    Sums of shifted views: in double precision several times faster than a convolution of one channel.
    """
    reach, last = len(weights) // 2, len(weights) - 1
    size = values.shape[dimension] - last
    total = weights[reach] * values.narrow(dimension, reach, size)
    for i in range(reach):
        pair = values.narrow(dimension, i, size) + values.narrow(dimension, last - i, size)
        total = total.add_(pair, alpha=weights[i])
    return total


def _range(data_range: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(data_range, dtype=like.dtype, device=like.device)
