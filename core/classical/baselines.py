"""Classical denoisers by name, each with one parameter: what a learnt model is compared with.

`BASELINES` holds them. All take `(n, y, x)` images of one stack and a parameter, which `choose_parameter`
picks on images whose clean counterparts, or other exposures, are known. Where a method needs the noise it
estimates it from the images themselves: the non-linear ones by `noise_standard_deviation`, image by image;
the Wiener filters by the spectrum outside the particle's circle. So `default`, which is the strength that
theory gives for that estimate or else a middling one, serves where nothing can be chosen.

The library behind a method is imported when it first runs: scikit-image and scikit-learn come with
the extra `evaluate`, bm3d with `baselines` (its licence allows non-commercial use only).

References
----------
.. [1] Donoho & Johnstone (1994) Biometrika 81, 425-455, doi:10.1093/biomet/81.3.425: noise from the median of
   the finest wavelet coefficients.
.. [2] Tomasi & Manduchi (1998) ICCV, 839-846, doi:10.1109/ICCV.1998.710815: bilateral filter.
.. [3] Buades, Coll & Morel (2005) CVPR 2, 60-65, doi:10.1109/CVPR.2005.38: non-local means.
.. [4] Dabov, Foi, Katkovnik & Egiazarian (2007) IEEE Trans. Image Process. 16, 2080-2095,
   doi:10.1109/TIP.2007.901238: BM3D.
.. [5] Elad & Aharon (2006) IEEE Trans. Image Process. 15, 3736-3745, doi:10.1109/TIP.2006.881969: denoising
   by a dictionary learnt from the noisy images (K-SVD).
.. [6] Mairal, Bach, Ponce & Sapiro (2009) ICML, 689-696, doi:10.1145/1553374.1553463: learning it online.
.. [7] Bhamre, Zhang & Singer (2016) J. Struct. Biol. 195, 72-81, doi:10.1016/j.jsb.2016.04.013: covariance
   Wiener filter.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..errors import missing_package
from ..imaging import filters
from ..imaging.normalise import background_statistics, default_radius_px
from ..imaging.rings import ring_index, ring_mean
from .covariance import estimate_covariance, estimate_covariance_through_ctf
from .fourier_bessel import FourierBesselBasis

if TYPE_CHECKING:
    from ..imaging.ctf import CtfParameters


class Baseline(NamedTuple):
    """A denoiser with one parameter.

    Attributes
    ----------
    denoise
        `(n, y, x)` images and the parameter to denoised images on the same grey scale.
    candidates
        Values of the parameter to choose from, ascending.
    default
        Without a choice.
    """

    denoise: Callable[[Tensor, float], Tensor]
    candidates: tuple[float, ...]
    default: float


def choose_parameter(
    denoise: Callable[[Tensor, float], Tensor],
    candidates: Sequence[float],
    noisy: Tensor,
    reference: Tensor,
) -> float:
    """The candidate that brings `(n, y, x)` noisy images closest, in mean square, to `reference`.

    The reference holds the clean images, or other exposures of them: independent noise in these adds the same
    to the error of every candidate. Neither may be among the images that are judged afterwards.

    Raises
    ------
    ValueError
        When there is no candidate.
    """
    if not candidates:
        raise ValueError("expected at least one candidate")
    return min(candidates, key=lambda value: float((denoise(noisy, value) - reference).square().mean()))


def noise_standard_deviation(images: Tensor) -> Tensor:
    """`(n,)` standard deviation of white noise in `(n, y, x)` images [1]_.

    From the median of the diagonal differences of 2 x 2 pixels, which see next to nothing of a particle. Of
    coloured noise they see the highest frequencies.
    """
    a, b = images[:, :-1:2, :-1:2], images[:, :-1:2, 1::2]
    c, d = images[:, 1::2, :-1:2], images[:, 1::2, 1::2]
    return (a - b - c + d).flatten(1).abs().median(1).values / (2 * _NORMAL_QUARTILE)


_NORMAL_QUARTILE = 0.674490  # the median of the absolute value of a standard normal variable


def bilateral_filter(images: Tensor, sigma_px: float) -> Tensor:
    """Mean over near pixels of like grey value [2]_: Gaussians of `sigma_px` and three times the noise."""
    restoration = _require("skimage.restoration")

    def one(image: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
        low = image.min()  # it takes no negative values
        found: NDArray[np.float64] = low + restoration.denoise_bilateral(
            image - low, sigma_color=3 * noise, sigma_spatial=sigma_px, mode="symmetric"
        )
        return found

    return _one_by_one(images, one)


def non_local_means(images: Tensor, strength: float) -> Tensor:
    """Mean over like patches of 7 x 7 pixels at most 11 away [3]_; they are alike within `strength` sd."""
    restoration = _require("skimage.restoration")

    def one(image: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
        found: NDArray[np.float64] = restoration.denoise_nl_means(
            image, patch_size=7, patch_distance=11, h=strength * noise, sigma=noise
        )
        return found

    return _one_by_one(images, one)


def block_matching_3d(images: Tensor, strength: float) -> Tensor:
    """BM3D [4]_, told `strength` times the noise's standard deviation."""
    package = _require("bm3d")

    def one(image: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
        found: NDArray[np.float64] = package.bm3d(image, strength * noise)
        return found

    return _one_by_one(images, one)


def dictionary_filter(
    images: Tensor,
    strength: float,
    *,
    patch_px: int = 12,
    step_px: int = 4,
    atoms: int = 144,
    learning_patches: int = 8000,
    seed: int = 0,
) -> Tensor:
    """Sparse codes of overlapping patches in a dictionary learnt from the stack, averaged [5]_.

    Each patch, less its mean, gets the fewest atoms (orthogonal matching pursuit) that leave no more than
    noise of `strength` standard deviations.

    Differs from the paper in that the dictionary is learnt online [6]_, once for the stack, instead of by
    K-SVD for each image, and in that the noisy image itself has no weight in the average.
    """
    decomposition = _require("sklearn.decomposition")
    linear_model = _require("sklearn.linear_model")
    scale = noise_standard_deviation(images)[:, None, None]
    y, x = images.shape[-2:]
    # so that the last patches end at the border
    padding = [(step_px - (side - patch_px) % step_px) % step_px for side in (y, x)]
    padded = functional.pad((images / scale)[:, None], (0, padding[1], 0, padding[0]), mode="replicate")
    patches = functional.unfold(padded, patch_px, stride=step_px).mT
    mean = patches.mean(2, keepdim=True)
    flat = (patches - mean).reshape(-1, patch_px**2).double().numpy()
    chosen = np.random.default_rng(seed).choice(len(flat), min(learning_patches, len(flat)), replace=False)
    learner = decomposition.MiniBatchDictionaryLearning(
        n_components=atoms, alpha=3.0, batch_size=256, max_iter=3, random_state=seed
    )
    dictionary = learner.fit(flat[chosen]).components_
    largest_left = strength**2 * patch_px**2
    coded = np.zeros_like(flat)
    # the others are within the noise without any atom
    some = np.flatnonzero((flat**2).sum(1) > largest_left)
    if len(some):
        codes = linear_model.orthogonal_mp(dictionary.T, flat[some].T, tol=largest_left, precompute=True)
        coded[some] = codes.reshape(len(dictionary), -1).T @ dictionary
    parts = torch.from_numpy(coded).float().reshape(patches.shape) + mean
    size = (y + padding[0], x + padding[1])
    total = functional.fold(parts.mT, size, patch_px, stride=step_px)
    times = functional.fold(torch.ones_like(parts[:1]).mT, size, patch_px, stride=step_px)
    return (total / times)[:, 0, :y, :x] * scale


def radial_wiener(images: Tensor, strength: float, noise_power: Tensor | None = None) -> Tensor:
    """The best filter with one gain for each Fourier ring, for noise `strength` times the power.

    Parameters
    ----------
    noise_power
        `(rings,)` as `filters.background_power` estimates it; None does so.
    """
    shape = (images.shape[-2], images.shape[-1])
    if noise_power is None:
        noise_power = filters.background_power(images, default_radius_px(shape))
    total = ring_mean(torch.fft.rfft2(images, norm="ortho").abs().square().mean(0), shape)
    return filters.radial_filter(images, filters.wiener_gain(strength * noise_power, total))


def covariance_wiener(images: Tensor, strength: float = 1.0, noise_power: Tensor | None = None) -> Tensor:
    """The covariance Wiener filter [7]_ of a stack that keeps its CTF; parameters as of `radial_wiener`."""
    white, power, background = _whitened(images, noise_power)
    covariance = estimate_covariance(white, strength, _basis(images.shape[-1]))
    return filters.radial_filter(covariance.denoise(white, strength), power.sqrt()) + background


def covariance_wiener_through_ctf(
    images: Tensor,
    parameters: CtfParameters,
    pixel_size_angstrom: float,
    *,
    strength: float = 1.0,
    noise_power: Tensor | None = None,
    keep_ctf: bool = True,
) -> Tensor:
    """The covariance Wiener filter [7]_ of a stack whose CTFs are known.

    They are taken in groups of like defocus, 100 at most, of 20 images or more.

    Parameters
    ----------
    images
        `(n, y, x)`.
    parameters
        Of the n images, which differ in nothing but defocus.
    strength, noise_power
        As of `radial_wiener`.
    keep_ctf
        Whether the result shows the particles through each image's own CTF, as the input and the result of
        every other denoiser here do, or without CTF.

    References
    ----------
    See `covariance.estimate_covariance_through_ctf` for what is neglected.
    """
    from ..imaging.ctf import ctf, defocus_groups

    box = images.shape[-1]
    white, power, background = _whitened(images, noise_power)
    group, common = defocus_groups(parameters, max(1, min(100, len(images) // 20)))
    on_grid = power[ring_index((box, box))]
    transfer = ctf(common, torch.full((len(common),), pixel_size_angstrom), box) / on_grid.sqrt()
    covariance = estimate_covariance_through_ctf(white, strength, _basis(box), transfer, group)
    restored = covariance.restore(white, strength, transfer, group)
    if not keep_ctf:
        return restored
    own = ctf(parameters, torch.full((len(images),), pixel_size_angstrom), box)
    return filters.apply_transfer(restored, own) + background


def _geometric(first: float, last: float, n: int) -> tuple[float, ...]:
    return tuple(float(f"{first * (last / first) ** (i / (n - 1)):.3g}") for i in range(n))


_FACTORS = (0.8, 0.9, 1.0, 1.1, 1.25)

BASELINES: dict[str, Baseline] = {
    "mean": Baseline(
        lambda images, width_px: filters.mean_filter(images, int(width_px)), (3, 5, 7, 9, 11, 13, 15), 7
    ),
    "gaussian": Baseline(filters.gaussian_filter, _geometric(0.5, 6, 14), 2.0),
    "low_pass": Baseline(
        lambda images, period_px: filters.low_pass(images, period_px, 1.0), _geometric(3, 30, 14), 10.0
    ),
    "bilateral": Baseline(bilateral_filter, _geometric(1, 8, 7), 3.0),
    "non_local_means": Baseline(non_local_means, _geometric(0.3, 2, 7), 0.6),
    "bm3d": Baseline(block_matching_3d, (0.8, 0.9, 1.0, 1.1, 1.2, 1.4), 1.0),
    "dictionary": Baseline(dictionary_filter, (1.05, 1.1, 1.15, 1.2, 1.3), 1.15),
    "radial_wiener": Baseline(radial_wiener, _FACTORS, 1.0),
    "covariance_wiener": Baseline(covariance_wiener, _FACTORS, 1.0),
}


def available_baselines() -> dict[str, Baseline]:
    """Those of `BASELINES` whose library is installed."""
    libraries = {
        "bilateral": "skimage",
        "non_local_means": "skimage",
        "bm3d": "bm3d",
        "dictionary": "sklearn",
    }
    return {
        name: baseline
        for name, baseline in BASELINES.items()
        if name not in libraries or importlib.util.find_spec(libraries[name]) is not None
    }


def _require(module: str) -> Any:
    """Import a module of an optional dependency."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise missing_package(error) from error


def _one_by_one(
    images: Tensor, denoise: Callable[[NDArray[np.float64], float], NDArray[np.float64]]
) -> Tensor:
    noise = noise_standard_deviation(images).tolist()
    pairs = zip(images.double().cpu().numpy(), noise, strict=True)
    return torch.from_numpy(np.stack([denoise(image, sd) for image, sd in pairs])).to(images)


def _whitened(images: Tensor, noise_power: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Images with noise of power 1 in every ring, what it was, and the grey value that was taken away.

    The basis has no functions in the corners of the box, where a background that is not 0 would be lost.
    """
    shape = (images.shape[-2], images.shape[-1])
    if noise_power is None:
        noise_power = filters.background_power(images, default_radius_px(shape))
    background = background_statistics(images, min(shape) / 2)[0].mean()
    return filters.radial_filter(images - background, noise_power.rsqrt()), noise_power, background


@lru_cache(maxsize=2)
def _basis(box_px: int) -> FourierBesselBasis:
    return FourierBesselBasis(box_px)
