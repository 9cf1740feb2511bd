"""A large image through a network in tiles that show no seams.

A network of stride `s` treats all shifts by multiples of `s` alike, and its output depends on nothing farther
away than its receptive field. So tiles that begin at multiples of `s` and see at least the receptive field
beyond their borders give what the whole image would give, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TILE_PX = 2048
"""Largest side of a tile. Larger ones waste less on their borders and need more memory: 0.45 GB in bf16."""


@dataclass(frozen=True)
class Tiling:
    """Tiles of one size that cover an image.

    Attributes
    ----------
    shape
        `(y, x)` of the image.
    tile
        `(y, x)` of a tile without its border; multiples of the stride.
    border_px
        What a tile sees beyond its borders, where the image ends mirrored; a multiple of the stride.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    border_px: int

    @property
    def outer(self) -> tuple[int, int]:
        """`(y, x)` of a tile with its border."""
        return self.tile[0] + 2 * self.border_px, self.tile[1] + 2 * self.border_px

    @property
    def origins(self) -> list[tuple[int, int]]:
        """`(y, x)` of the first pixel of each tile; the last ones may reach beyond the image."""
        return [
            (y, x)
            for y in range(0, self.shape[0], self.tile[0])
            for x in range(0, self.shape[1], self.tile[1])
        ]


def plan_tiles(
    shape: tuple[int, int], stride: int, receptive_field_px: int, largest_px: int = TILE_PX
) -> Tiling:
    """Cover an image of `shape` `(y, x)` with as few equal tiles as `largest_px` allows."""

    def side(length: int) -> int:
        count = -(-length // largest_px)
        return -(-length // (count * stride)) * stride

    return Tiling(shape, (side(shape[0]), side(shape[1])), -(-receptive_field_px // stride) * stride)


def run_in_tiles(
    image: Tensor,
    tiling: Tiling,
    network: Callable[[Tensor], Tensor],
    *,
    at_once: int = 1,
    executor: Executor | None = None,
) -> Tensor:
    """Run a network over an image tile by tile.

    Parameters
    ----------
    image
        `(y, x)`.
    tiling
        The tiles.
    network
        Takes and gives `(n, y, x)`.
    at_once
        How many tiles `network` gets.
    executor
        Where the batches run side by side; None runs them here.

    Returns
    -------
    Tensor
        `(y, x)`.
    """
    rows, columns = (
        _mirrored(length, tile, tiling.border_px, image.device)
        for length, tile in zip(tiling.shape, tiling.tile, strict=True)
    )
    border, (height, width) = tiling.border_px, tiling.outer
    result = torch.empty_like(image)

    def run(origins: list[tuple[int, int]]) -> None:
        with torch.inference_mode():  # the mode belongs to the thread
            tiles = torch.stack(
                [
                    image.index_select(0, rows[y : y + height]).index_select(1, columns[x : x + width])
                    for y, x in origins
                ]
            )
            for (y, x), tile in zip(origins, network(tiles), strict=True):
                target = result[y : y + tiling.tile[0], x : x + tiling.tile[1]]
                target.copy_(tile[border : border + target.shape[0], border : border + target.shape[1]])

    origins = tiling.origins
    batches = [origins[begin : begin + at_once] for begin in range(0, len(origins), at_once)]
    if executor is None:
        for batch in batches:
            run(batch)
        return result
    _finish([executor.submit(run, batch) for batch in batches])
    return result


def _finish(running: list[Future[None]]) -> None:
    """Wait for all; after an error those that have not begun are cancelled."""
    try:
        for future in running:
            future.result()
    finally:
        for future in running:
            future.cancel()


def _mirrored(length: int, tile: int, border_px: int, device: torch.device) -> Tensor:
    """Source index of each pixel of a side with its borders, from `-border_px` to the last tile's end."""
    beyond = -length % tile + border_px
    return torch.from_numpy(np.pad(np.arange(length), (border_px, beyond), mode="reflect")).to(device)
