"""Background by self-similarity: denoised, a patch with nothing in it is like itself all over.

References
----------
.. [1] Li et al. (2022) Bioinformatics 38, 2022-2029, section 2.2.2. doi:10.1093/bioinformatics/btac052
.. [2] Wang et al. (2004) IEEE Trans. Image Process. 13, 600-612, eq. 13 and section III-B (SSIM).
   doi:10.1109/TIP.2003.819861
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional

# Of SSIM [2]: an 11 x 11 Gaussian window, and two constants for values from 0 to 1.
SSIM_WINDOW_PX = 11
_SSIM_SIGMA_PX = 1.5
_C1, _C2 = 0.01**2, 0.03**2
# One hot pixel must not press everything else into a small part of the range.
_CLIPPED_SHARE = 0.001
_LARGEST_SAMPLE = 2**20


def patch_similarity(denoised: Tensor, patch_px: int, stride_px: int, n_local: int = 4) -> Tensor:
    """Least SSIM between any two of the local patches of every patch: `(rows, columns)`.

    A patch is divided into a square grid of `n_local` local patches; the SSIM of each pair of them is the
    mean over the windows that lie inside. All pairs with one distance between them share one map of SSIM of
    the whole micrograph with itself, shifted: means over local patches are then sums of a summed-area table,
    and the cost depends neither on the stride nor on the size of the patches.

    Differs from [1]_ in the SSIM, whose equation 3 takes mean, standard deviation and covariance of whole
    local patches (`published_patch_similarity`); in the normalisation to [0, 1], which leaves out the lowest
    and the highest 0.1 % of the micrograph's pixels; and in the local patches, which tile the patch.

    Parameters
    ----------
    denoised
        `(y, x)` coarsely denoised micrograph.
    patch_px
        Side of a patch.
    stride_px
        Patch (i, j) begins at pixel `(i, j) * stride_px`; only those that lie inside are there.
    n_local
        Local patches per patch: 4, 9, 16 and so on.

    Raises
    ------
    ValueError
        When `n_local` is not the square of a whole number from 2 on, the local patches are smaller than the
        window of SSIM, or the patch larger than the micrograph.
    """
    y, x = denoised.shape
    grid, local_px = _local_patches((y, x), patch_px, n_local, SSIM_WINDOW_PX)
    image = to_unit_range(denoised)
    moments = _window_mean(torch.stack([image, image.square()]))
    rows, columns = ((side - patch_px) // stride_px + 1 for side in (y, x))
    least = image.new_full((rows, columns), torch.inf)
    places = list(itertools.product(range(grid), range(grid)))
    pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for first, second in itertools.combinations(places, 2):
        # (row, column) distances; the second one lies below, or beside to the right
        pairs.setdefault((second[0] - first[0], second[1] - first[1]), []).append(first)
    for (down, right), members in pairs.items():
        similarity = _shifted_similarity(image, moments, down * local_px, right * local_px)
        total = functional.pad(similarity.double().cumsum(0).cumsum(1), (1, 0, 1, 0))
        inner = local_px - SSIM_WINDOW_PX + 1
        left = max(0, -right * local_px)  # the map begins where its first member may begin
        for top, column in members:
            begin = (top * local_px, column * local_px - left)
            sums = _box_sums(total, begin, inner, stride_px, (rows, columns))
            least = torch.minimum(least, (sums / inner**2).to(least.dtype))
    return least


def published_patch_similarity(denoised: Tensor, patch_px: int, stride_px: int, n_local: int = 4) -> Tensor:
    """`patch_similarity` with the SSIM of equation 3 of [1]_ to the letter: `(rows, columns)`.

    Mean, standard deviation and covariance are those of whole local patches, not of the 11 x 11 windows in
    them. Two whole patches of which each has its own grain are never much alike, so that 0.7 asks for a
    denoised background that is all but flat.

    Differs from [1]_ in the normalisation, as `patch_similarity` does.

    Parameters and Raises as of `patch_similarity`; local patches may be as small as 2 px.
    """
    y, x = denoised.shape
    grid, local_px = _local_patches((y, x), patch_px, n_local, 2)
    image = to_unit_range(denoised).double()
    side = grid * local_px
    rows = []
    for top in range(0, y - patch_px + 1, stride_px):
        # (columns, y, x) patches of one row
        patches = image[top : top + side].unfold(1, side, stride_px).transpose(0, 1)
        patches = patches[: (x - patch_px) // stride_px + 1]
        local = patches.reshape(len(patches), grid, local_px, grid, local_px).transpose(2, 3)
        parts = local.reshape(len(patches), n_local, local_px**2)
        pairs = itertools.combinations(range(n_local), 2)
        each = [similarity_of_patches(parts[:, a], parts[:, b]) for a, b in pairs]
        rows.append(torch.stack(each).amin(0))
    return torch.stack(rows).to(denoised.dtype)


def _local_patches(shape: tuple[int, int], patch_px: int, n_local: int, smallest_px: int) -> tuple[int, int]:
    """How many local patches a patch has along a side, and their side; `shape` is the micrograph's."""
    grid = math.isqrt(n_local)
    if grid < 2 or grid * grid != n_local:
        raise ValueError(f"the number of local patches must be 4, 9, 16 and so on, found {n_local}")
    local_px = patch_px // grid
    if local_px < smallest_px:
        raise ValueError(
            f"{n_local} local patches of a patch of {patch_px} px are {local_px} px wide, and SSIM needs "
            f"{smallest_px} px"
        )
    y, x = shape
    if patch_px > min(y, x):
        raise ValueError(f"a patch of {patch_px} px is larger than the micrograph of {x} x {y} px")
    return grid, local_px


def similarity_of_patches(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of patches `(..., pixels)` with grey values from 0 to 1: equation 3 of [1]_, `(...)`."""
    mean_a, mean_b = a.mean(-1, keepdim=True), b.mean(-1, keepdim=True)
    variance_a, variance_b = a.var(-1, correction=0), b.var(-1, correction=0)
    covariance = ((a - mean_a) * (b - mean_b)).mean(-1)
    product, squares = (mean_a * mean_b)[..., 0], (mean_a.square() + mean_b.square())[..., 0]
    return (2 * product + _C1) * (2 * covariance + _C2) / ((squares + _C1) * (variance_a + variance_b + _C2))


def to_unit_range(image: Tensor) -> Tensor:
    """`(y, x)` with all but the extreme 0.1 % of its values between 0 and 1, and these at 0 or 1."""
    sample = image.flatten()[:: max(1, image.numel() // _LARGEST_SAMPLE)]
    low, high = torch.quantile(
        sample, torch.tensor([_CLIPPED_SHARE, 1 - _CLIPPED_SHARE], device=image.device, dtype=image.dtype)
    )
    unit: Tensor = ((image - low) / (high - low).clamp_min(torch.finfo(image.dtype).tiny)).clamp(0.0, 1.0)
    return unit


def _shifted_similarity(image: Tensor, moments: Tensor, down: int, right: int) -> Tensor:
    """SSIM of each window of `(y, x)` with the one `down` and `right` of it, where both lie inside."""

    def overlap(values: Tensor) -> tuple[Tensor, Tensor]:
        y, x = values.shape[-2:]
        first = values[..., : y - down, max(0, -right) : x - max(0, right)]
        second = values[..., down:, max(0, right) : x + min(0, right)]
        return first, second

    a, b = overlap(image)
    cross = _window_mean(a * b)
    (mean_a, square_a), (mean_b, square_b) = (part.unbind(0) for part in overlap(moments))
    product = mean_a * mean_b
    squares = mean_a.square() + mean_b.square()
    variances = (square_a + square_b - squares).clamp_min_(0.0)
    return (2 * product + _C1) * (2 * (cross - product) + _C2) / ((squares + _C1) * (variances + _C2))


def _window_mean(values: Tensor) -> Tensor:
    """Gaussian-weighted means of `(..., y, x)` over the windows that lie inside."""
    reach = SSIM_WINDOW_PX // 2
    profile = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).double() / _SSIM_SIGMA_PX) ** 2)
    weights: list[float] = (profile / profile.sum()).tolist()
    for dimension in (-2, -1):  # sums of shifted views: a convolution of one channel takes ten times as long
        length = values.shape[dimension] - 2 * reach
        total = values.narrow(dimension, reach, length) * weights[reach]
        for shift, weight in enumerate(weights[:reach]):
            total.add_(values.narrow(dimension, shift, length), alpha=weight)
            total.add_(values.narrow(dimension, 2 * reach - shift, length), alpha=weight)
        values = total
    return values


def _box_sums(
    table: Tensor, begin: tuple[int, int], side: int, stride: int, counts: tuple[int, int]
) -> Tensor:
    """Sums over squares of a map with the summed-area table `table`, the first one at `begin`."""

    def along(values: Tensor, dimension: int) -> Tensor:
        first = begin[dimension]
        length = (counts[dimension] - 1) * stride + 1
        upper = values.narrow(dimension, first + side, length)
        lower = values.narrow(dimension, first, length)
        chosen = slice(None, None, stride)
        return (upper - lower)[(slice(None),) * dimension + (chosen,)]

    return along(along(table, 0), 1)
