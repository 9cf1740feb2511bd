"""The U-Net of NT2C's coarse and fine denoisers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import DenoisingNetwork

_HALVINGS = 5


def _convolution(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width_in, width_out, 3, padding=1), nn.LeakyReLU(0.1))


class PoolingUNet(DenoisingNetwork):
    """U-Net of five max-pooling and five nearest-neighbour blocks, joined level by level [1]_ (figure 2).

    A block down is a 3x3 convolution and a 2x2 maximum; a block up enlarges, sets the features of the same
    size beside it and convolves twice, the last one with the noisy image itself.

    Differs from the paper in nothing that its text says; widths, filter sizes and activations it leaves open.

    Parameters
    ----------
    width
        Channels on the way down; twice as many on the way up.

    References
    ----------
    .. [1] Li et al. (2022) Bioinformatics 38, 2022-2029, section 2.1.2. doi:10.1093/bioinformatics/btac052
    """

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stride = 2**_HALVINGS
        self.downs = nn.ModuleList(
            _convolution(1 if level == 0 else width, width) for level in range(_HALVINGS)
        )
        self.bottom = _convolution(width, width)
        # coarsest first; what is set beside: features of the blocks down, and at last the image
        below = [width, *[2 * width] * (_HALVINGS - 1)]
        beside = [*[width] * (_HALVINGS - 1), 1]
        self.ups = nn.ModuleList(
            nn.Sequential(_convolution(a + b, 2 * width), _convolution(2 * width, 2 * width))
            for a, b in zip(below, beside, strict=True)
        )
        self.head = nn.Conv2d(2 * width, 1, 3, padding=1)
        # 3x3 down, the joining of cells, two 3x3 up; at the bottom one more, and the head
        sides = [2**level for level in range(_HALVINGS)]
        self.receptive_field_px = sum(sides) + 2 * self.stride + 2 * sum(sides) + 1

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        skips = [x]
        for down in self.downs:
            x = nn.functional.max_pool2d(down(x), 2)
            skips.append(x)
        x = self.bottom(skips.pop())
        for up in self.ups:
            x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = up(torch.cat([x, skips.pop()], dim=1))
        out: Tensor = self.head(x)
        return out
