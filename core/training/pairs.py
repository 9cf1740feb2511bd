"""Pairs of images on disk for the training loops: noisy and clean, or twice noisy (Noise2Noise)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.training import PairsConfig
from ..errors import ConfigurationError, InputError
from ..imaging.noise import image_generator
from ..imaging.normalise import background_statistics, default_radius_px
from ..io.mrc import StackReader
from ..io.particles import ParticleSet
from ..io.star import read_tables, unquote


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

    Raises
    ------
    InputError
        Tables of different length or box size, or no particle left.
    """

    def __init__(self, config: PairsConfig, *, held_out: bool, seed: int) -> None:
        self._config, self._seed = config, seed
        self._noisy, self._target = _Images(config.noisy), _Images(config.target)
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
        if self._noisy.shape[0] != self._noisy.shape[1]:
            raise InputError("expected square images.", path=config.noisy)
        self.rows = _choose(self._noisy, config, held_out=held_out)
        self.structures: list[str] = []

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy `(n, 1, y, x)`, target `(n, 1, y, x)` and SNR, which is not known: NaN `(n,)`."""
        generator = image_generator(self._seed, number, "batch")
        rows = self.rows[torch.randint(len(self.rows), (size,), generator=generator).numpy()]
        noisy, target = self._noisy.read(rows), self._target.read(rows)
        radius = default_radius_px(self._noisy.shape)
        mean, std = background_statistics(noisy, radius)
        if not self._config.target_is_clean:
            target_mean, target_std = background_statistics(target, radius)
        else:
            target_mean, target_std = mean, std
        noisy = (noisy - mean[:, None, None]) / std[:, None, None]
        target = (target - target_mean[:, None, None]) / target_std[:, None, None]
        turn = int(torch.randint(4, (1,), generator=generator))
        mirrored = torch.rand(1, generator=generator).item() < 0.5
        pair = torch.stack([noisy, target])
        pair = torch.rot90(pair, turn, dims=(-2, -1))
        pair = (pair.flip(-1) if mirrored else pair).unsqueeze(2).contiguous()
        return pair[0], pair[1], torch.full((size,), torch.nan)


class _Images:
    """The images of a table, by row."""

    def __init__(self, path: Path) -> None:
        self.table = ParticleSet.read(path)
        shapes = {shape[1:] for shape in self.table.check_images()}
        if len(shapes) != 1:
            raise InputError(f"expected images of one size, found {sorted(shapes)}.", path=path)
        self.shape: tuple[int, int] = shapes.pop()

    def __len__(self) -> int:
        return len(self.table)

    def read(self, rows: NDArray[np.intp]) -> Tensor:
        """`(n, y, x)` float32."""
        images = np.empty((len(rows), *self.shape), dtype=np.float32)
        for stack in np.unique(self.table.stack[rows]):
            chosen = np.flatnonzero(self.table.stack[rows] == stack)
            with StackReader(self.table.stacks[stack]) as reader:
                images[chosen] = reader.read(self.table.image[rows[chosen]])
        return torch.from_numpy(images)

    def column(self, label: str) -> list[str] | None:
        """A column of a STAR table, None where there is none."""
        if not self.table.has_table or self.table.is_cs:
            return None
        for block in read_tables(self.table.source):
            if "rlnImageName" in block.labels and label in block.labels:
                place = block.column(label)
                return [unquote(tokens[place]) for _, _, tokens in block.rows() if tokens]
        return None


def _choose(images: _Images, config: PairsConfig, *, held_out: bool) -> NDArray[np.intp]:
    """Rows for training or validation: whole micrographs are kept back, whatever the order of the rows."""
    rows: NDArray[np.intp] = np.arange(len(images))
    half_sets = images.column("rlnRandomSubset")
    if config.half_set is not None:
        if half_sets is None:
            raise ConfigurationError(f"pairs.half_set: {config.noisy} has no column rlnRandomSubset.")
        rows = rows[np.array([int(half) for half in half_sets]) == config.half_set]
    names = images.column("rlnMicrographName")
    groups = np.array(names if names is not None else [str(row) for row in range(len(images))])[rows]
    different = np.unique(groups)
    kept = different[np.random.default_rng(0).permutation(len(different))]
    kept = kept[: max(1, round(len(different) * config.validation_share))]
    rows = rows[np.isin(groups, kept) == held_out]
    if len(rows) == 0:
        purpose = "validation" if held_out else "training"
        raise InputError(
            f"no particle is left for {purpose}: expected particles of at least two micrographs.",
            path=config.noisy,
        )
    return rows
