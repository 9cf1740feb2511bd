"""The area on which a micrograph is made: itself and a margin."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """The micrograph with a margin, so that nothing wraps about and particles reach in from outside.

    Attributes
    ----------
    shape
        `(y, x)` of all.
    margin
        Where the micrograph begins, in both directions.
    inner
        `(y, x)` of the micrograph.
    """

    shape: tuple[int, int]
    margin: int
    inner: tuple[int, int]

    @classmethod
    def about(cls, inner: tuple[int, int], margin: int) -> Canvas:
        """The smallest with at least that margin whose Fourier transforms are fast."""
        y, x = (_next_fast_length(side + 2 * margin) for side in inner)
        return cls((y, x), margin, inner)

    def crop(self, field: Tensor) -> Tensor:
        """The micrograph of a field `(y, x)` on all."""
        y, x = (slice(self.margin, self.margin + side) for side in self.inner)
        return field[y, x].contiguous()

    def coordinates(self) -> tuple[Tensor, Tensor]:
        """`(y, 1)` and `(1, x)` pixels from the middle of the micrograph."""
        y, x = (torch.arange(side).float() for side in self.shape)
        middle = [self.margin + (side - 1) / 2 for side in self.inner]
        return (y - middle[0])[:, None], (x - middle[1])[None, :]


def _next_fast_length(length: int) -> int:
    """The next even length whose only factors are 2, 3, 5 and 7, for which Fourier transforms are fast."""
    length += length % 2
    while True:
        rest = length
        for factor in (2, 3, 5, 7):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2
