"""The network that sees an image beside what like views and the covariance of its stack make of it.

A linear prediction from like views takes all images for equally well matched, and counts on the band in which
the covariance was found. The network sees the image itself, on the working grid, and next to it each estimate
through the image's own CTF: where they agree with the image, and where the neighbours are wrong ones. It was
trained on simulated stacks whose like views were found in the same way, and knows structures in general, none
in particular.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor, nn

from ..models import VIEW_NETWORKS
from ..models.precision import bf16_instructions
from ..models.view_unet import ViewUNet
from ..models.weights import LoadedModel, load_model

NAME = "like_views"


@lru_cache(maxsize=1)
def view_model() -> LoadedModel:
    """The shipped weights."""
    return load_model(NAME, VIEW_NETWORKS)


@lru_cache(maxsize=1)
def _prepared() -> ViewUNet:
    """The network for this CPU, in bf16 where it has instructions for it."""
    network = cast(ViewUNet, view_model().module)
    if bf16_instructions():
        network.in_bf16()
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def shown(images: Tensor, estimates: Tensor, wiener: Tensor, scale: float) -> Tensor:
    """What the network sees: `(n, 7, y, x)`.

    Parameters
    ----------
    images, wiener
        `(n, y, x)` in units of the noise: the images, and behind the Wiener filter by their own CTF.
    estimates
        `(4, n, y, x)` those of `LikeViews.estimates`, through the images' own CTF.
    scale
        Standard deviation of the particles, as they are seen.
    """
    known = torch.cat([estimates, wiener[None]]) / scale
    return torch.cat([images[None], known, torch.full_like(images, math.log(scale))[None]]).transpose(0, 1)


def of_network(seen: Tensor) -> Tensor:
    """`(n, 7, y, x)` of `shown` to `(n, y, x)` particles, in units of the scale."""
    network = _prepared()
    y, x = seen.shape[-2:]
    padded = nn.functional.pad(seen, (0, -x % network.stride, 0, -y % network.stride))
    with torch.inference_mode():
        out: Tensor = network(padded.contiguous(memory_format=torch.channels_last))
    return out[:, 0, :y, :x]
