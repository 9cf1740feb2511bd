"""Progressively grown autoencoder and critic: trained on coarse images first, finer levels faded in."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, leaky_relu

from .base import DenoisingNetwork


def _convolutions(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width_out, width_out, 3, padding=1),
        nn.LeakyReLU(0.2),
    )


def _enlarged(x: Tensor) -> Tensor:
    return interpolate(x, scale_factor=2.0, mode="nearest")


class ProgressiveAutoencoder(DenoisingNetwork):
    """Autoencoder whose finest `levels - stage` levels are not yet there [1]_.

    With three levels, stage 0 sees images four times coarser a side than the full ones, the last stage sees
    them whole. While a stage is young its output is mixed with the enlarged output of the stage before.

    Differs from the paper: an autoencoder takes the place of the generator from a latent vector, as in [2]_.

    Parameters
    ----------
    widths
        Channels of each level, finest first.

    Attributes
    ----------
    stage, share
        The newest level, and its share in the output, 0 to 1: buffers, so they are kept with the weights.

    References
    ----------
    .. [1] Karras et al. (2018) ICLR, arXiv:1710.10196.
    .. [2] Gu, Unarta, Huang & Yao (2020) arXiv:2008.07307, appendix 5.4.
    """

    stage: Tensor
    share: Tensor

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), bottom: int = 2) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.n_stages = len(widths)
        levels = len(widths) - 1 + bottom
        self.stride = 2**levels
        # two 3x3 at each level on either way, and the joining of its cells
        self.receptive_field_px = sum(2 * 2**k + 2 * 2 ** (k) + 2 ** (k + 1) for k in range(levels))
        self.from_image = nn.ModuleList(nn.Conv2d(1, width, 1) for width in widths)
        self.to_image = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        self.encoders = nn.ModuleList(_convolutions(fine, coarse) for fine, coarse in pairs)
        self.decoders = nn.ModuleList(_convolutions(coarse, fine) for fine, coarse in pairs)
        self.bottom_down = nn.ModuleList(_convolutions(widths[-1], widths[-1]) for _ in range(bottom))
        self.bottom_up = nn.ModuleList(_convolutions(widths[-1], widths[-1]) for _ in range(bottom))
        self.register_buffer("stage", torch.tensor(self.n_stages - 1))
        self.register_buffer("share", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to the same, y and x multiples of `stride` / 2^(levels not yet there)."""
        newest = self.n_stages - 1 - int(self.stage)  # index of the finest level in use
        features = _encoded(self, newest, x)
        for down in self.bottom_down:
            features = avg_pool2d(down(features), 2)
        for up in self.bottom_up:
            features = up(_enlarged(features))
        for level in reversed(range(newest, self.n_stages - 1)):
            coarse = features
            features = self.decoders[level](_enlarged(features))
            if level == newest and self.share < 1:
                older = _enlarged(self.to_image[level + 1](coarse))
                mixed: Tensor = self.share * self.to_image[newest](features) + (1 - self.share) * older
                return mixed
        out: Tensor = self.to_image[newest](features)
        return out


class ProgressiveCritic(nn.Module):
    """Critic that grows with `ProgressiveAutoencoder`: one score an image."""

    stage: Tensor
    share: Tensor

    def __init__(self, channels: int = 1, widths: tuple[int, ...] = (32, 64, 128), bottom: int = 2) -> None:
        super().__init__()
        self.n_stages = len(widths)
        self.from_image = nn.ModuleList(nn.Conv2d(channels, width, 1) for width in widths)
        self.encoders = nn.ModuleList(_convolutions(fine, coarse) for fine, coarse in pairwise(widths))
        self.bottom = nn.ModuleList(_convolutions(widths[-1], widths[-1]) for _ in range(bottom))
        self.score = nn.Linear(widths[-1], 1)
        self.register_buffer("stage", torch.tensor(self.n_stages - 1))
        self.register_buffer("share", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, channels, y, x)` to `(n,)`."""
        features = _encoded(self, self.n_stages - 1 - int(self.stage), x)
        for block in self.bottom:
            features = avg_pool2d(block(features), 2)
        score: Tensor = self.score(features.mean(dim=(2, 3))).squeeze(1)
        return score


def _encoded(network: ProgressiveAutoencoder | ProgressiveCritic, newest: int, x: Tensor) -> Tensor:
    """Features of the coarsest level; while a level grows in, the older way round it has the rest."""
    features = leaky_relu(network.from_image[newest](x), 0.2)
    for level in range(newest, network.n_stages - 1):
        features = avg_pool2d(network.encoders[level](features), 2)
        if level == newest and network.share < 1:
            older = leaky_relu(network.from_image[level + 1](avg_pool2d(x, 2)), 0.2)
            features = network.share * features + (1 - network.share) * older
    return features
