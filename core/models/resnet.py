"""Residual autoencoder and critic after the ResNets of WGAN-GP."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .base import DenoisingNetwork


class _Block(nn.Module):
    """Pre-activation residual block that halves, keeps or doubles the sides (`scale` 0.5, 1 or 2)."""

    def __init__(self, width_in: int, width_out: int, scale: float, *, normalise: bool) -> None:
        super().__init__()
        norm = nn.BatchNorm2d if normalise else nn.Identity
        self.scale = scale
        self.before, self.between = norm(width_in), norm(width_out)
        self.first = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.second = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.skip = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else nn.Identity()

    def _resize(self, x: Tensor) -> Tensor:
        if self.scale == 2:
            return nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return nn.functional.avg_pool2d(x, 2) if self.scale == 0.5 else x

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu(self.before(x))
        # enlarge before the convolutions, shrink after them
        y = self.first(self._resize(y) if self.scale == 2 else y)
        y = self.second(nn.functional.relu(self.between(y)))
        y = y if self.scale == 2 else self._resize(y)
        shortcut: Tensor = self.skip(self._resize(x))
        return y + shortcut


class ResNetAutoencoder(DenoisingNetwork):
    """Residual autoencoder of the blocks of [1]_: halvings, `blocks` blocks at the bottom, as many doublings.

    Differs from the paper, whose networks draw from a vector: an encoder in its place, linear output, because
    the images have no fixed range, and no fully connected layer, so that any size of image goes through. The
    network of the robust autoencoder GAN is another one, `skip_resnet.SkipResNet`.

    Parameters
    ----------
    width
        Channels at full resolution; twice as many at each halving, up to `largest_width`.
    downs
        Halvings.
    blocks
        Blocks at the coarsest level.
    largest_width
        Most channels of a level.

    References
    ----------
    .. [1] Gulrajani et al. (2017) arXiv:1704.00028, appendix.
    """

    def __init__(self, width: int = 32, downs: int = 3, blocks: int = 2, largest_width: int = 128) -> None:
        super().__init__()
        self.stride = 2**downs
        widths = [min(width * 2**level, largest_width) for level in range(downs + 1)]
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.encoder = nn.Sequential(*(_Block(fine, coarse, 0.5, normalise=True) for fine, coarse in pairs))
        self.middle = nn.Sequential(
            *(_Block(widths[-1], widths[-1], 1, normalise=True) for _ in range(blocks))
        )
        self.decoder = nn.Sequential(
            *(_Block(coarse, fine, 2, normalise=True) for fine, coarse in reversed(pairs))
        )
        self.head = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 1, 3, padding=1))
        # stem and head, two 3x3 at each end of every level and in the middle, the joining of cells
        self.receptive_field_px = (
            2 + sum(2 * 2**k * 2 + 2 ** (k + 1) for k in range(downs)) + (2 * blocks + 1) * 2**downs
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        out: Tensor = self.head(self.decoder(self.middle(self.encoder(self.stem(x)))))
        return out


class ResNetCritic(nn.Module):
    """Residual critic without normalisation layers, as the gradient penalty asks [1]_: one score an image.

    Parameters
    ----------
    channels
        1 for images, 2 for pairs (noisy, clean).
    width, downs, largest_width
        As of `ResNetAutoencoder`.
    """

    def __init__(self, channels: int = 1, width: int = 32, downs: int = 4, largest_width: int = 128) -> None:
        super().__init__()
        widths = [min(width * 2**level, largest_width) for level in range(downs + 1)]
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.Sequential(
            *(_Block(fine, coarse, 0.5, normalise=False) for fine, coarse in pairwise(widths))
        )
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, channels, y, x)` to `(n,)`."""
        features = torch.relu(self.blocks(self.stem(x))).mean(dim=(2, 3))
        score: Tensor = self.score(features).squeeze(1)
        return score
