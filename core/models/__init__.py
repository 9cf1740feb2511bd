"""Networks and their registry.

Every module takes `(n, 1, y, x)` images whose background has mean 0 and sd 1, protein white, and returns the
denoised images on the same scale. Its attribute `stride` is what y and x must be multiples of, and
`receptive_field_px` the distance beyond which an input pixel has no influence.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .unet import ShuffleUNet

MODELS: dict[str, Callable[..., nn.Module]] = {"shuffle_unet": ShuffleUNet}

__all__ = ["MODELS", "ShuffleUNet"]
