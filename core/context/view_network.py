"""The networks that see an image beside what like views or a map, and the covariance, make of it.

A linear prediction takes all images for equally well matched, and counts on the band in which the covariance
was found. The network sees the image itself, on the working grid, and next to it each estimate through the
image's own CTF: where they agree with the image, and where the neighbours or the pose are wrong ones. One is
for like views and one for maps, trained on simulated stacks whose means were found in the same way: they know
structures in general, none in particular.
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


@lru_cache(maxsize=2)
def view_model(name: str) -> LoadedModel:
    """Shipped weights: those that a `Prediction` names."""
    return load_model(name, VIEW_NETWORKS)


@lru_cache(maxsize=2)
def _prepared(name: str) -> ViewUNet:
    """A network for this CPU, in bf16 where it has instructions for it."""
    network = cast(ViewUNet, view_model(name).module)
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
        `(4, n, y, x)` those of `Prediction.estimates`, through the images' own CTF.
    scale
        Standard deviation of the particles, as they are seen.
    """
    known = torch.cat([estimates, wiener[None]]) / scale
    return torch.cat([images[None], known, torch.full_like(images, math.log(scale))[None]]).transpose(0, 1)


def of_network(seen: Tensor, name: str) -> Tensor:
    """`(n, 7, y, x)` of `shown` to `(n, y, x)` particles, in units of the scale."""
    network = _prepared(name)
    y, x = seen.shape[-2:]
    padded = nn.functional.pad(seen, (0, -x % network.stride, 0, -y % network.stride))
    with torch.inference_mode():
        out: Tensor = network(padded.contiguous(memory_format=torch.channels_last))
    return out[:, 0, :y, :x]
