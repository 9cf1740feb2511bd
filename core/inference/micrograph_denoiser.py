"""Micrographs in, denoised micrographs out, with the input's contrast, grey scale and uneven ice."""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ..imaging.background import NoiseStatistics, background_level, noise_statistics
from ..imaging.defects import Defects, fill_defects, find_defects, put_back
from ..imaging.filters import averaged_with_wiener, gaussian_filter
from ..imaging.finer_grid import from_finer_grid, to_finer_grid
from .denoiser import Denoiser, keep_above, remarks_on
from .devices import download, upload
from .tiling import TILE_PX, plan_tiles, run_in_tiles

# From here on a user is told that what is seen in parts of the micrograph may not be what it seems.
DEVIANT_SHARE = 0.1
STREAK = 0.5

LARGEST_LEVEL = 2.0
"""Largest local mean that the network gets to see, in standard deviations of the noise from the ice's level.

It knows particles, and would make patterns of contamination, which is far darker. What lies beyond is taken
off before it, without the noise, and put back after it.
"""
SPECTRUM_ANGSTROM = (60.0, 30.0)
"""Between these periods the Wiener filter by the micrograph's spectrum gets its share."""
# Local means are Gaussian ones with a standard deviation of so many pixels.
_LOCAL_PX = 4
# With more of its area without noise, the noise that is measured is not the noise.
MAX_NOISE_FREE_SHARE = 0.6
# A spread below this share of the mean is rounding.
_CONSTANT_SPREAD = 1e-6


class MicrographDenoiser:
    """A denoiser for whole micrographs, which go through its network in tiles.

    The level of the ice is taken off before the network and put back after it: it was trained on boxes whose
    background is 0. A micrograph has one normalisation, so tiles join without seams.

    The network sees a tile at a time and knows nothing of the micrograph's CTF, the Wiener filter of the
    whole micrograph's spectrum nothing of particles. Their errors have little in common, so that in fine
    detail their mean, by the share that the network asks for (`spectrum_share`), is better than either.
    What is coarse is the network's: it knows ice from particles.

    Parameters
    ----------
    denoiser
        Runs the network.
    at_once
        How many tiles it gets.
    executor
        Where tiles run side by side; None runs them one after the other.
    tile_px
        Largest side of a tile.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        at_once: int = 1,
        executor: Executor | None = None,
        tile_px: int = TILE_PX,
    ) -> None:
        self._denoiser, self._at_once, self._executor, self._tile_px = denoiser, at_once, executor, tile_px

    def denoise(
        self,
        image: NDArray[np.float32],
        *,
        pixel_size_angstrom: float | None = None,
        blend: float = 0.0,
        keep_above_px: float | None = None,
        finer: int = 1,
    ) -> tuple[NDArray[np.float32], str | None, str | None]:
        """Denoise a micrograph.

        Parameters
        ----------
        image
            `(y, x)`, any size, protein white.
        pixel_size_angstrom
            None if unknown: then the network is alone.
        blend, keep_above_px, finer
            As in `Denoiser.denoise`.

        Returns
        -------
        denoised
            `(y, x)` float32.
        problem
            Why the micrograph cannot be denoised; it is then returned unchanged.
        remark
            What is conspicuous about it.
        """
        with torch.inference_mode():
            original = raw = upload(image, self._denoiser.device)
            if not torch.isfinite(raw.mean()):
                return image, _why_not_finite(raw), None
            defects = find_defects(raw[None])
            if defects is not None:
                if defects.noise_free.float().mean() > MAX_NOISE_FREE_SHARE:
                    return image, _why_constant(raw), None
                raw = fill_defects(raw[None], defects)[0]
            mean = raw.mean()
            centred = raw - mean
            level = background_level(centred)
            residual = centred - level
            noise = noise_statistics(residual, centred)
            if not noise.std > _CONSTANT_SPREAD * float(mean.abs()):  # what there is is rounding
                return image, _why_constant(raw), None
            scaled = residual.div_(noise.std)
            excess = _excess(scaled)
            denoised = self._network(scaled.sub_(excess), finer)
            share = self._denoiser.spectrum_share
            if share and pixel_size_angstrom is not None:
                begins, ends = (angstrom / pixel_size_angstrom for angstrom in SPECTRUM_ANGSTROM)
                denoised = averaged_with_wiener(denoised, scaled, share, begins, ends)
            denoised = denoised.add_(excess).mul_(noise.std).add_(level).add_(mean)
            if blend:
                denoised = torch.lerp(denoised, raw, blend)
            if keep_above_px is not None:
                denoised = keep_above(denoised, raw, keep_above_px)
            if defects is not None:
                denoised = put_back(denoised[None], original[None], defects)[0]
            return download(denoised), None, _remark(noise, defects)

    def _network(self, image: Tensor, finer: int) -> Tensor:
        if finer > 1:
            return from_finer_grid(self._network(to_finer_grid(image[None], finer)[0], 1)[None], finer)[0]
        stride, reach = self._denoiser.stride, self._denoiser.receptive_field_px
        tiling = plan_tiles((image.shape[0], image.shape[1]), stride, reach, self._tile_px)
        return run_in_tiles(image, tiling, self._denoiser.run, at_once=self._at_once, executor=self._executor)


def _excess(scaled: Tensor) -> Tensor:
    """By how much the local mean of an image `(y, x)` lies beyond `LARGEST_LEVEL`."""
    y, x = scaled.shape
    # on cells of one standard deviation: a convolution of the whole would need gigabytes
    cells = functional.adaptive_avg_pool2d(scaled[None], (-(-y // _LOCAL_PX), -(-x // _LOCAL_PX)))
    local = gaussian_filter(cells, 1.0)
    beyond = local - local.clamp(-LARGEST_LEVEL, LARGEST_LEVEL)
    excess: Tensor = functional.interpolate(beyond[None], size=(y, x), mode="bilinear")
    return excess[0, 0]


def _why_not_finite(raw: Tensor) -> str:
    if torch.isfinite(raw).all():
        return "the pixel values are too large for single precision."
    return "the micrograph holds NaN or infinite pixels."


def _why_constant(raw: Tensor) -> str:
    if raw.min() == raw.max():
        return "the micrograph is constant: all pixels have one value."
    return "the micrograph is constant over about half of its area or more, so its noise is unknown."


def _holds_a_line(pixels: Tensor) -> bool:
    """Tell whether more than half of a row or column of bool `(y, x)` is true."""
    return any(float(pixels.float().mean(dimension).max()) > 0.5 for dimension in (0, 1))


def _remark(noise: NoiseStatistics, defects: Defects | None) -> str | None:
    remarks = list(remarks_on(defects).values())
    is_line = defects is not None and _holds_a_line(defects.outlying[0])
    if noise.streak > STREAK or is_line:
        by = "" if is_line else f" by {noise.streak:.1f} standard deviations of the noise"
        remarks.append(f"a row or column stands out{by}: a wrong gain reference or a detector defect?")
    if noise.deviant_share > DEVIANT_SHARE:
        remarks.append(
            f"{100 * noise.deviant_share:.0f} % of the area differs much from the rest in brightness or "
            "contrast: contamination, carbon or steep ice?"
        )
    return " ".join(remarks) or None
