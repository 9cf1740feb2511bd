"""The network that tells background, contamination and particle apart."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .unet import ShuffleUNet


class SegmentationUNet(ShuffleUNet):
    """A `ShuffleUNet` with a channel for each class: `(n, 1, y, x)` to logits `(n, classes, y, x)`."""

    def __init__(
        self,
        widths: Sequence[int] = (32, 64, 96),
        blocks: Sequence[int] = (1, 1, 2),
        unshuffle: int = 2,
        classes: int = 3,
    ) -> None:
        super().__init__(widths, blocks, unshuffle)
        self.head = nn.Conv2d(widths[0], classes * unshuffle**2, 3, padding=1)
