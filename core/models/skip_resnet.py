"""The residual autoencoder and the discriminator of the robust autoencoder GAN."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from .base import DenoisingNetwork


class _Residual(nn.Module):
    """`relu(x + norm(conv(x)))`, one 3x3 convolution."""

    def __init__(self, width: int, *, normalise: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width) if normalise else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(x + self.body(x))
        return out


def _residuals(width: int, count: int, *, normalise: bool = True) -> nn.Sequential:
    return nn.Sequential(*(_Residual(width, normalise=normalise) for _ in range(count)))


class SkipResNet(DenoisingNetwork):
    """Residual autoencoder whose decoder adds the encoder's features [1]_ (figure 4).

    4x4 convolutions of stride 2 with batch normalisation, one-convolution residual layers at each level, and
    4x4 transposed convolutions to which the encoder's features of the same size, before their ReLU, are
    added. With its defaults and `bounded` it has the 4,195,843 parameters of the authors' program [2]_.

    Differs from the paper: without `bounded` the output is linear, because images normalised to their
    background have no fixed range; the authors' ends in a batch normalisation and tanh.

    Parameters
    ----------
    width
        Channels at half resolution; twice as many at each further halving.
    residuals
        Residual layers of each level, on either way.
    downs
        Halvings.
    bounded
        End as the authors' network does, in -1 to 1.

    References
    ----------
    .. [1] Gu, Unarta, Huang & Yao (2020) arXiv:2008.07307, section 3.2.1.
    .. [2] https://github.com/ghl1995/denoise-gan-in-cryo-em, read for the sizes of the layers.
    """

    def __init__(self, width: int = 64, residuals: int = 3, downs: int = 3, *, bounded: bool = False) -> None:
        super().__init__()
        self.stride = 2**downs
        widths = [1, *(width * 2**level for level in range(downs))]
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, coarse, 4, stride=2, padding=1), nn.BatchNorm2d(coarse))
            for fine, coarse in pairwise(widths)
        )
        self.down_residuals = nn.ModuleList(_residuals(wide, residuals) for wide in widths[1:])
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(coarse, fine, 4, stride=2, padding=1), nn.BatchNorm2d(fine))
            for fine, coarse in pairwise(widths[1:])
        )
        self.up_residuals = nn.ModuleList(_residuals(wide, residuals) for wide in widths[1:-1])
        last = nn.ConvTranspose2d(width, 1, 4, stride=2, padding=1)
        self.head = nn.Sequential(last, nn.BatchNorm2d(1), nn.Tanh()) if bounded else nn.Sequential(last)
        # 4x4 filters at either end of each level, the joining of cells, and the residual layers' 3x3
        levels = [2 ** (level + 1) for level in range(downs)]
        self.receptive_field_px = 2 * sum(levels) + self.stride + residuals * (sum(levels) + sum(levels[:-1]))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        skips: list[Tensor] = []
        for down, residuals in zip(self.downs, self.down_residuals, strict=True):
            skip = down(x)
            skips.append(skip)
            x = residuals(torch.relu(skip))
        skips.pop()
        for up, residuals in zip(reversed(self.ups), reversed(self.up_residuals), strict=True):
            x = residuals(torch.relu(up(x) + skips.pop()))
        out: Tensor = self.head(x)
        return out


class SkipResNetCritic(nn.Module):
    """Discriminator of `SkipResNet`'s GAN [1]_: a map of scores, 13 x 13 of an image of 128 px.

    With its defaults it has the 2,803,393 parameters of the authors' program.

    Differs from the paper: no sigmoid, which the losses apply themselves.

    Parameters
    ----------
    channels
        1 for images, 2 for pairs (noisy, clean).
    width
        As of `SkipResNet`.
    residuals
        Residual layers of each level, finest first; each level halves the image before them.
    normalise
        Batch normalisation; must be off with a gradient penalty, which is of single images.

    References
    ----------
    .. [1] Gu, Unarta, Huang & Yao (2020) arXiv:2008.07307, figure 4.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 64,
        residuals: tuple[int, ...] = (2, 2, 3),
        *,
        normalise: bool = True,
    ) -> None:
        super().__init__()
        widths = [channels, *(width * 2**level for level in range(len(residuals)))]
        layers: list[nn.Module] = []
        for (fine, coarse), count in zip(pairwise(widths), residuals, strict=True):
            layers.append(nn.Conv2d(fine, coarse, 4, stride=2, padding=1))
            if normalise:
                layers.append(nn.BatchNorm2d(coarse))
            layers += [nn.ReLU(), _residuals(coarse, count, normalise=normalise)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, channels, y, x)` to `(n, patches)`."""
        return torch.flatten(self.layers(x), 1)
