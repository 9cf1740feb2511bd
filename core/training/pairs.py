"""Pairs of images for the training loops: noisy and clean or twice noisy (Noise2Noise) ones on disk, or two
noisy ones that are made out of each image on disk (Recorrupted-to-Recorrupted).

References
----------
.. [1] Pang, Zheng, Quan & Ji (2021) CVPR, 2043-2052, doi:10.1109/CVPR46437.2021.00208.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..config.training import PairsConfig
from ..errors import InputError
from ..imaging.noise import gaussian, image_generator
from ..io.same_rows import match_rows
from ..job_context import QUIET, JobContext
from ..metrics.image import correlation
from ..metrics.independent import white_noise_power
from ..spread import evenly_spread
from .stored import StoredImages, augmented, choose_rows, mirrored_to

# Pairs that are compared before a training, and standard errors by which their correlation has to be below 0.
_COMPARED, _CERTAIN = 64, 4.0


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
    context
        Told how the rows of the two tables were paired.

    Raises
    ------
    InputError
        Tables of different box size, rows that do not belong together (`io.same_rows`), or no particle left;
        targets that are the images themselves, or of the other contrast.
    ImageError
        No image can be learnt from.
    """

    def __init__(
        self,
        config: PairsConfig,
        *,
        held_out: bool,
        seed: int,
        stride: int = 1,
        context: JobContext = QUIET,
    ) -> None:
        self._config, self._seed, self._stride = config, seed, stride
        # validation judges the images as they are
        self._section = config.unchanged() if held_out else config
        self._noisy = StoredImages(config.noisy)
        self._target = (
            None if config.target is None else StoredImages(config.target, is_raw=not config.target_is_clean)
        )
        self.rows = choose_rows(
            self._noisy,
            half_set=config.half_set,
            validation_share=config.validation_share,
            held_out=held_out,
            context=context,
        )
        if self._target is not None:
            _require_one_size(self._noisy, self._target)
            found = match_rows(self._noisy.table, self._target.table, by_order=config.pair_by_order)
            if not held_out:
                # whoever said that they are in order needs no warning
                note = found.note.removeprefix("warning: ") if config.pair_by_order else found.note
                context.log(f"{config.target}: {note}")
            self._partners = np.full(len(self._noisy), -1, dtype=np.intp)
            self._partners[found.first] = found.other
            self.rows = self.rows[self._partners[self.rows] >= 0]
            if not config.target_is_clean:
                partners = self._target.usable(self._partners[self.rows], context)
                self.rows = self.rows[np.isin(self._partners[self.rows], partners)]
            self._refuse_unsuitable(config)
            if not len(self.rows):
                purpose = "validation" if held_out else "training"
                raise InputError(
                    f"no particle for {purpose} has a counterpart in {config.target}.", path=config.noisy
                )
        self.structures: list[str] = []
        self.pixel_size_angstrom = self._noisy.pixel_size_angstrom
        self.target = "target (noisy)" if config.target is None or not config.target_is_clean else "clean"

    def _refuse_unsuitable(self, config: PairsConfig) -> None:
        """Raise when both are the same images, of which a model would learn to change nothing, or opposites.

        Raises
        ------
        InputError
            They are.
        """
        rows = self.rows[evenly_spread(len(self.rows), _COMPARED)]
        if self._target is None or not len(rows):
            return
        noisy, target = self._noisy.read(rows), self._target.read(self._partners[rows])
        if torch.equal(noisy[0], target[0]):
            raise InputError(
                f"the images are those of {config.noisy} themselves, and their noise is the same.",
                path=config.target,
                remedy="Give clean images, or others of the same particles whose noise is independent.",
            )
        found = correlation(noisy, target)
        if len(found) > 1 and float(found.mean()) < -_CERTAIN * float(found.std()) / len(found) ** 0.5:
            raise InputError(
                f"the images show the opposite of those of {config.noisy}: a correlation of "
                f"{float(found.mean()):.3f}. In one of the two protein is dark.",
                path=config.target,
                remedy="Invert one of them, for instance by relion_image_handler --multiply_constant -1.",
            )

    def batch(self, number: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy `(n, 1, y, x)`, target `(n, 1, y, x)` and SNR, which is not known: NaN `(n,)`."""
        generator = image_generator(self._seed, number, "batch")
        rows = self.rows[torch.randint(len(self.rows), (size,), generator=generator).numpy()]
        noisy, mean, std = self._noisy.read_normalised(rows)
        if self._target is None:
            noisy, target = recorrupted(noisy, self._config.recorruption, generator)
        elif self._config.target_is_clean:
            target = (self._target.read(self._partners[rows]) - mean) / std
        else:
            target = self._target.read_normalised(self._partners[rows])[0]
        pair = mirrored_to(augmented(noisy, target, self._section, generator), self._stride)
        return pair[0].unsqueeze(1), pair[1].unsqueeze(1), torch.full((size,), torch.nan)


def recorrupted(images: Tensor, recorruption: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Two images with independent noise out of each of `(n, y, x)` whose noise is white and Gaussian [1]_.

    With noise `b` of the same power as the image's own these are `x + a b` and `x - b / a`: the covariance of
    their noise, that of `x` less that of `b`, is 0. Trained on such pairs, a network learns the mean of the
    clean images given `x + a b`.

    Differs from the paper in that the power of the noise is measured, in the high frequencies of each image.
    """
    noise = gaussian(images.shape, generator) * white_noise_power(images).sqrt()[:, None, None]
    return images + recorruption * noise, images - noise / recorruption


def _require_one_size(noisy: StoredImages, target: StoredImages) -> None:
    """
    Raises
    ------
    InputError
        The tables differ in box size.
    """
    if noisy.shape != target.shape:
        raise InputError(
            f"expected images of {noisy.shape[1]} x {noisy.shape[0]} px as in {noisy.table.source}, found "
            f"{target.shape[1]} x {target.shape[0]}.",
            path=target.table.source,
        )
