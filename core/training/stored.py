"""Images that a user's table names, read by row, and which of them are kept for validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.training import StoredSection
from ..errors import ConfigurationError, ImageError, InputError
from ..imaging.defects import Defects, fill_defects, find_noise_free
from ..imaging.noise import uniform
from ..imaging.normalise import background_statistics, default_radius_px, usable
from ..inference.plan import refuse_denoised
from ..io.mrc import StackReader
from ..io.particles import ParticleSet
from ..job_context import QUIET, JobContext
from ..progress import counted

# Half sets and micrographs in RELION's tables and in cryoSPARC's, whose halves are counted from 0.
_HALF_SET, _SPLIT = "rlnRandomSubset", "alignments3D/split"
_MICROGRAPH, _CS_MICROGRAPHS = "rlnMicrographName", ("location/micrograph_uid", "location/micrograph_path")

# Images that are looked at at a time before a training.
_BLOCK = 256


class StoredImages:
    """The images of a table, by row, protein white.

    Parameters
    ----------
    path
        The table or stack.
    is_raw
        Whether images that were denoised are refused: what has no noise teaches nothing about it.

    Raises
    ------
    InputError
        The table or a stack cannot be read, or the images are not squares of one size, or were denoised.
    """

    def __init__(self, path: Path, *, is_raw: bool = True) -> None:
        self.table = ParticleSet.read(path)
        shapes = {shape[1:] for shape in self.table.check_images()}
        if is_raw:
            refuse_denoised(self.table, self.table.examine())
        if len(shapes) != 1:
            raise InputError(f"expected images of one size, found {sorted(shapes)}.", path=path)
        self.shape: tuple[int, int] = shapes.pop()
        if self.shape[0] != self.shape[1]:
            raise InputError("expected square images.", path=path)

    def __len__(self) -> int:
        return len(self.table)

    def read(self, rows: NDArray[np.intp]) -> Tensor:
        """`(n, y, x)` float32."""
        images = np.empty((len(rows), *self.shape), dtype=np.float32)
        for stack in np.unique(self.table.stack[rows]):
            chosen = np.flatnonzero(self.table.stack[rows] == stack)
            with StackReader(self.table.stacks[stack]) as reader:
                images[chosen] = reader.read(self.table.image[rows[chosen]])
            if int(stack) in self.table.dark_stacks:
                images[chosen] *= -1
        return torch.from_numpy(images)

    def read_normalised(self, rows: NDArray[np.intp]) -> tuple[Tensor, Tensor, Tensor]:
        """`(n, y, x)` with background mean 0 and sd 1, and what these were, `(n, 1, 1)` each.

        Areas without noise, such as masks, are filled as for the network that denoises (`imaging.defects`).
        Outlying pixels stay: strong particles may have such.

        Raises
        ------
        ImageError
            An image holds NaN or Inf, or its background is constant; names the first.
        """
        images, mean, std, usable = self._with_background(rows)
        if not usable.all():
            raise self._unusable(int(rows[int(usable.argmin())]))
        return (images - mean) / std, mean, std

    def _with_background(self, rows: NDArray[np.intp]) -> tuple[Tensor, Tensor, Tensor, NDArray[np.bool_]]:
        """`(n, y, x)` without gaps, mean and sd of their background `(n, 1, 1)`, and which can be used."""
        images = self.read(rows)
        noise_free = find_noise_free(images)
        if noise_free is not None:
            defects = Defects(noise_free, torch.zeros_like(noise_free))
            images = fill_defects(images, defects, self.radius_px)
        mean, std = background_statistics(images, self.radius_px)
        return images, mean[:, None, None], std[:, None, None], usable(images, std).numpy()

    def _unusable(self, row: int) -> ImageError:
        return ImageError(
            f"the image holds NaN or infinite pixels, or a constant background (row {row + 1} of "
            f"{self.table.source}).",
            path=self.table.stacks[self.table.stack[row]],
            image=int(self.table.image[row]) + 1,
            remedy="Take the row out of the table.",
        )

    def usable(self, rows: NDArray[np.intp], context: JobContext = QUIET) -> NDArray[np.intp]:
        """Those of the rows whose images can be learnt from. All are read, once: hours later is too late.

        Raises
        ------
        ImageError
            None can; names the first.
        """
        parts = []
        for begin in range(0, len(rows), _BLOCK):
            if begin:
                context.stop_if_asked("stopped while the images were checked; nothing was written")
            some = rows[begin : begin + _BLOCK]
            images = self.read(some)
            good = usable(images, background_statistics(images, self.radius_px)[1]).numpy()
            if not good.all():  # what has no background may have one once its gaps are filled
                good[~good] = self._with_background(some[~good])[3]
            parts.append(some[good])
        found = np.concatenate(parts) if parts else rows
        if len(found) < len(rows):
            error = self._unusable(int(np.setdiff1d(rows, found)[0]))
            if not len(found):
                raise error
            context.warn(f"{counted(len(rows) - len(found), 'image')} left out. The first: {error}")
        return found

    @property
    def pixel_size_angstrom(self) -> float | None:
        """Of all images; None where the table does not say it, or several."""
        groups = np.unique(self.table.optics_group).tolist()
        sizes = {self.table.optics[number].pixel_size_angstrom for number in groups}
        return sizes.pop() if len(sizes) == 1 else None

    @property
    def radius_px(self) -> float:
        """Outside of this an image is background."""
        return default_radius_px(self.shape)

    def half_sets(self) -> NDArray[np.intp] | None:
        """Half set of each row, 1 or 2; None where the table does not say.

        Raises
        ------
        InputError
            The half set of a row is neither.
        """
        name, offset = (_SPLIT, 1) if self.table.is_cs else (_HALF_SET, 0)
        values = self.table.column(_HALF_SET, _SPLIT)
        if values is None:
            return None
        wrong = ~np.isin(values, [str(half - offset) for half in (1, 2)])
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"row {row + 1}: expected {1 - offset} or {2 - offset} in {name}, found {values[row]}: "
                "half sets are assigned to all particles or to none.",
                path=self.table.source,
                line=int(self.table.line[row]) or None,
            )
        return values.astype(np.intp) + offset

    def micrographs(self) -> NDArray[np.intp] | None:
        """A number for the micrograph of each row; None where the table does not say."""
        for field in _CS_MICROGRAPHS:
            values = self.table.column(_MICROGRAPH, field)
            if values is not None:
                return np.unique(values, return_inverse=True)[1].reshape(-1)
        return None


def choose_rows(
    images: StoredImages,
    *,
    half_set: int | None,
    validation_share: float,
    held_out: bool,
    context: JobContext = QUIET,
) -> NDArray[np.intp]:
    """Rows for training or validation: whole micrographs are kept back, whatever the order of the rows.

    Images that cannot be learnt from are left out, and the context is warned.

    Raises
    ------
    ConfigurationError
        A half set is asked for and the table has none.
    InputError
        No particle is left.
    ImageError
        None of their images can be learnt from.
    Aborted
        If the context said so.
    """
    rows: NDArray[np.intp] = np.arange(len(images))
    if half_set is not None:
        half_sets = images.half_sets()
        if half_sets is None:
            column = _SPLIT if images.table.is_cs else _HALF_SET
            raise ConfigurationError(f"half_set: {images.table.source} has no column {column}.")
        rows = rows[half_sets == half_set]
    micrographs = images.micrographs()
    groups = np.arange(len(images)) if micrographs is None else micrographs
    groups = groups[rows]
    different = np.unique(groups)
    kept = different[np.random.default_rng(0).permutation(len(different))]
    kept = kept[: max(1, min(len(different) - 1, round(len(different) * validation_share)))]
    rows = rows[np.isin(groups, kept) == held_out]
    if len(rows) == 0:
        purpose = "validation" if held_out else "training"
        raise InputError(
            f"no particle is left for {purpose}: expected particles of at least two micrographs"
            + (f" in half set {half_set}." if half_set else "."),
            path=images.table.source,
        )
    return images.usable(rows, context)


def augmented(noisy: Tensor, target: Tensor, section: StoredSection, generator: torch.Generator) -> Tensor:
    """`(2, n, y, x)` of `(n, y, x)` each: the contrast of a pair is changed and its images are shifted as the
    section says, and the whole batch is turned and mirrored alike."""
    if section.contrast != (1.0, 1.0):
        factor = uniform(len(noisy), section.contrast, generator)[:, None, None]
        noisy, target = noisy + (factor - 1) * target, factor * target
    pair = torch.stack([noisy, target])
    largest = round(section.shift_share * pair.shape[-1])
    if largest:
        pair = _shifted_alike(pair, largest, generator)
    return _turned_alike(pair, generator)


def _shifted_alike(pair: Tensor, largest: int, generator: torch.Generator) -> Tensor:
    """Both images of each pair moved by the same whole pixels, mirrored at the borders."""
    side = pair.shape[-1]
    wide = torch.nn.functional.pad(pair, (largest,) * 4, mode="reflect")
    corners = torch.randint(2 * largest + 1, (pair.shape[1], 2), generator=generator).tolist()
    moved = [wide[:, n, y : y + side, x : x + side] for n, (y, x) in enumerate(corners)]
    return torch.stack(moved, dim=1)


def _turned_alike(pair: Tensor, generator: torch.Generator) -> Tensor:
    """`(..., y, x)` squares, all turned by the same multiple of 90 degrees, and mirrored or not."""
    turn = int(torch.randint(4, (1,), generator=generator))
    mirrored = torch.rand(1, generator=generator).item() < 0.5
    pair = torch.rot90(pair, turn, dims=(-2, -1))
    return (pair.flip(-1) if mirrored else pair).contiguous()


def mirrored_to(images: Tensor, stride: int) -> Tensor:
    """`(n, c, y, x)` squares, mirrored at the borders to a side that a network of this stride takes."""
    missing = -images.shape[-1] % stride
    before, after = missing // 2, missing - missing // 2
    if not missing:
        return images
    return torch.nn.functional.pad(images, (before, after, before, after), mode="reflect")
