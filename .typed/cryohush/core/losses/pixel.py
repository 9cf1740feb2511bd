"""Pixel losses between an estimate and its target, both `(n, 1, y, x)`, as one value for each image."""

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


def mean_grey_value(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` squared difference of the mean grey values, which an adversarial loss alone lets drift."""
    return (estimate.float().mean(dim=(1, 2, 3)) - target.mean(dim=(1, 2, 3))).square()


def coarse_l1(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` mean absolute difference of the means of 8x8 pixels: what even a noisy target says reliably."""
    return (avg_pool2d(estimate.float() - target, _COARSE_PX)).abs().mean(dim=(1, 2, 3))


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "mean_grey_value": mean_grey_value,
    "coarse_l1": coarse_l1,
}
