"""Pixel losses between an estimate and its target, both `(n, 1, y, x)`, as one value for each image."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def l1(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` mean absolute difference."""
    return (estimate.float() - target).abs().mean(dim=(1, 2, 3))


def l2(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` mean squared difference."""
    return (estimate.float() - target).square().mean(dim=(1, 2, 3))


def mean_grey_value(estimate: Tensor, target: Tensor) -> Tensor:
    """`(n,)` squared difference of the mean grey values, which an adversarial loss alone lets drift."""
    return (estimate.float().mean(dim=(1, 2, 3)) - target.mean(dim=(1, 2, 3))).square()


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": l1,
    "l2": l2,
    "mean_grey_value": mean_grey_value,
}
