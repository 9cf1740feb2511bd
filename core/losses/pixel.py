"""Pixel losses between an estimate and its target, both `(n, 1, y, x)`, as one value for each image.

References
----------
.. [1] Ouyang, He, Tang & Fu (2020) Research on denoising of cryo-EM images based on deep learning, J. Inf.
   Hiding Priv. Prot.
.. [2] Gu, Unarta, Huang & Yao (2020) arXiv:2008.07307.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import avg_pool2d

_COARSE_PX = 8


def l1(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` mean absolute difference."""
    return (estimate.float() - target).abs().mean(dim=(1, 2, 3))


def l2(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` mean squared difference."""
    return (estimate.float() - target).square().mean(dim=(1, 2, 3))


def l2_sum(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` squared difference, summed over the pixels: the constraint on grey values of [1]_, eq. 8."""
    return (estimate.float() - target).square().sum(dim=(1, 2, 3))


def l1_sum(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` absolute difference, summed over the pixels: the l1 norm of the robust GAN of [2]_, eq. 4."""
    return (estimate.float() - target).abs().sum(dim=(1, 2, 3))


def mean_grey_value(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` squared difference of the mean grey values, which an adversarial loss alone lets drift."""
    return (estimate.float().mean(dim=(1, 2, 3)) - target.mean(dim=(1, 2, 3))).square()


def coarse_l1(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` mean absolute difference of the means of 8x8 pixels: what even a noisy target says reliably."""
    return (avg_pool2d(estimate.float() - target, _COARSE_PX)).abs().mean(dim=(1, 2, 3))


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "l1_sum": l1_sum,
    "l2_sum": l2_sum,
    "mean_grey_value": mean_grey_value,
    "coarse_l1": coarse_l1,
}
