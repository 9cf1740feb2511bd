"""A U-Net that sees an image beside estimates of it, which pass unharmed where nothing better is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .unet import ShuffleUNet, from_cells

#: so many channels, the first beside the image, pass by shares that the network decides on
_PASSING = 2


class ViewUNet(ShuffleUNet):
    """`ShuffleUNet` with estimates of the image as further channels: what `context.view_network` runs.

    Besides what the trunk makes of them, each pixel of the output takes shares of the first two estimates
    that the trunk decides on. The last layers, through which these pass, stay in float32 where the others are
    in bf16.

    Parameters
    ----------
    estimates
        Channels beside the image.
    widths, blocks, unshuffle
        As of `ShuffleUNet`.
    """

    def __init__(
        self,
        estimates: int = 6,
        widths: Sequence[int] = (64, 96, 128),
        blocks: Sequence[int] = (1, 1, 2),
        unshuffle: int = 2,
    ) -> None:
        super().__init__(widths, blocks, unshuffle)
        cell = unshuffle**2
        self.stem = nn.Conv2d((1 + estimates) * cell, widths[0], 3, padding=1)
        self.shares = nn.Conv2d(widths[0], _PASSING * cell, 1)
        # it starts with the first estimate as it is
        nn.init.zeros_(self.shares.weight)
        with torch.no_grad():
            self.shares.bias.copy_(torch.tensor([1.0, 0.0]).repeat_interleave(cell))  # type: ignore[union-attr]
            self.head.weight.mul_(0.1)

    def in_bf16(self) -> ViewUNet:
        """Convert all layers but the last, in place, and return it."""
        self.to(torch.bfloat16)
        self.head.float()
        self.shares.float()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1 + estimates, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        features = self.features(x.to(self.stem.weight.dtype)).to(self.head.weight.dtype)
        shares = from_cells(self.shares(features), self._side)
        passed = (shares * x[:, 1 : 1 + _PASSING]).sum(1, keepdim=True)
        image: Tensor = from_cells(self.head(features), self._side) + passed
        return image
