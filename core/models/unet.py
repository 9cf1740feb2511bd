"""A residual U-Net on pixel-unshuffled input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .base import DenoisingNetwork


class ResidualBlock(nn.Module):
    """`x + conv(silu(conv(silu(x))))`, 3x3; its last convolution starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """`(n, width, y, x)` to the same."""
        residual: Tensor = self.second(nn.functional.silu(self.first(nn.functional.silu(x))))
        return x + residual


class ShuffleUNet(DenoisingNetwork):
    """U-Net without normalisation layers whose finest level works on `unshuffle` times fewer pixels a side.

    Unshuffling moves each `unshuffle` x `unshuffle` cell into channels [1]_: no pixel is lost, and the costly
    full-resolution convolutions of a plain U-Net [2]_ (two thirds of the work of Topaz-Denoise's) go.
    Levels are joined by 2x2 stride-2 convolutions down and their transposes up; skips are added.

    Parameters
    ----------
    widths
        Channels of each level, finest first.
    blocks
        Residual blocks of each level on the way down; as many on the way up, except at the coarsest.
    unshuffle
        Side of the cell.

    References
    ----------
    .. [1] Shi et al. (2016) CVPR, arXiv:1609.05158.
    .. [2] Ronneberger et al. (2015) MICCAI, arXiv:1505.04597.
    """

    def __init__(
        self,
        widths: Sequence[int] = (48, 96, 160, 160),
        blocks: Sequence[int] = (1, 1, 1, 2),
        unshuffle: int = 4,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks) or not widths:
            raise ValueError(f"as many widths as blocks are needed, not {widths} and {blocks}")
        self.stride = unshuffle * 2 ** (len(widths) - 1)
        self.receptive_field_px = reach(blocks, unshuffle)
        cell = unshuffle**2
        self._side = unshuffle
        self.stem = nn.Conv2d(cell, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(widths, blocks, strict=True)
        )
        self.up_blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(widths[:-1], blocks[:-1], strict=True)
        )
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.head = nn.Conv2d(widths[0], cell, 3, padding=1)
        with torch.no_grad():  # starts at a plain small guess, not at noise of unit variance
            self.head.weight.mul_(0.1)

    def encode(self, x: Tensor) -> list[Tensor]:
        """Features of each level on the way down, finest first."""
        x = self.stem(nn.functional.pixel_unshuffle(x, self._side))
        features: list[Tensor] = []
        for level, down in enumerate(self.downs):
            x = self.down_blocks[level](x)
            features.append(x)
            x = down(x)
        return [*features, self.down_blocks[-1](x)]

    def features(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, widths[0], y / unshuffle, x / unshuffle)`, what the finest level knows."""
        *skips, x = self.encode(x)
        for level in reversed(range(len(self.ups))):
            x = self.up_blocks[level](join(self.ups[level], x, skips[level]))  # type: ignore[arg-type]
        return x

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        return from_cells(self.head(self.features(x)), self._side)


def from_cells(x: Tensor, side: int) -> Tensor:
    """What `nn.PixelShuffle(side)` gives; much quicker where channels come last in memory."""
    n, channels, height, width = x.shape
    cells = x.permute(0, 2, 3, 1).reshape(n, height, width, channels // side**2, side, side)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(n, -1, height * side, width * side)


def join(up: nn.ConvTranspose2d, x: Tensor, skip: Tensor) -> Tensor:
    """`up(x) + skip` for a 2x2 convolution of stride 2, which makes four pixels of each one.

    The same to the bit, as a product of matrices: torch's transposed convolution is slow for so little work.
    `skip` may be overwritten where no gradients are kept.
    """
    n, channels, height, width = x.shape
    weight = up.weight.permute(2, 3, 1, 0).reshape(-1, channels)
    bias = None if up.bias is None else up.bias.repeat(4)
    pixels = nn.functional.linear(x.permute(0, 2, 3, 1), weight, bias).view(n, height, width, 2, 2, -1)
    joined = skip.permute(0, 2, 3, 1).reshape(n, height, 2, width, 2, -1)
    pixels = pixels.transpose(2, 3)
    joined = joined + pixels if torch.is_grad_enabled() else joined.add_(pixels)
    return joined.reshape(n, 2 * height, 2 * width, -1).permute(0, 3, 1, 2)


def reach(blocks: Sequence[int], unshuffle: int) -> int:
    """Largest distance, in pixels, from which an input pixel can reach an output pixel."""
    reach = 2 * unshuffle  # stem and head, one cell each
    for level, count in enumerate(blocks):
        cell = unshuffle * 2**level
        passes = 1 if level == len(blocks) - 1 else 2
        reach += 2 * count * passes * cell + cell  # two 3x3 a block; joining cells adds one
    return reach
