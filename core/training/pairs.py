"""Pairs of images on disk for the training loops: noisy and clean, or twice noisy (Noise2Noise)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config.training import PairsConfig
from ..errors import InputError
from ..imaging.noise import image_generator
from .stored import StoredImages, choose_rows, mirrored_to, turned_alike


class PairedParticles:
    """Endless pairs of stored images, a fixed function of the seed and the batch number.

    Images are read when they are needed: memory does not grow with the stacks.

    Parameters
    ----------
    config
        The `pairs` section.
    held_out
        Whether to use the particles that are kept for validation, or the others.
    seed
        Seed of the order and of the turns and mirror images.
    stride
        The images are mirrored at their borders to a multiple of this side.

    Raises
    ------
    InputError
        Tables of different length or box size, or no particle left.
    """

    def __init__(self, config: PairsConfig, *, held_out: bool, seed: int, stride: int = 1) -> None:
        self._config, self._seed, self._stride = config, seed, stride
        self._noisy, self._target = StoredImages(config.noisy), StoredImages(config.target)
        if len(self._noisy) != len(self._target):
            raise InputError(
                f"expected the {len(self._noisy)} particles of {config.noisy}, row by row, found "
                f"{len(self._target)}.",
                path=config.target,
            )
        if self._noisy.shape != self._target.shape:
            raise InputError(
                f"expected images of {self._noisy.shape[1]} x {self._noisy.shape[0]} px as in "
                f"{config.noisy}, found {self._target.shape[1]} x {self._target.shape[0]}.",
                path=config.target,
            )
        self.rows = choose_rows(
            self._noisy,
            half_set=config.half_set,
            validation_share=config.validation_share,
            held_out=held_out,
        )
        self.structures: list[str] = []

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy `(n, 1, y, x)`, target `(n, 1, y, x)` and SNR, which is not known: NaN `(n,)`."""
        generator = image_generator(self._seed, number, "batch")
        rows = self.rows[torch.randint(len(self.rows), (size,), generator=generator).numpy()]
        noisy, mean, std = self._noisy.read_normalised(rows)
        if self._config.target_is_clean:
            target = (self._target.read(rows) - mean) / std
        else:
            target = self._target.read_normalised(rows)[0]
        pair = mirrored_to(turned_alike(torch.stack([noisy, target]), generator), self._stride)
        return pair[0].unsqueeze(1), pair[1].unsqueeze(1), torch.full((size,), torch.nan)
