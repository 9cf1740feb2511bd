"""Images in, denoised images out, on the input's own grey scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ImageError
from ..imaging.normalise import default_radius_px, denormalise, normalise
from ..imaging.rings import frequency_grid
from .devices import DTYPES, Precision, download, prepare, run_network, upload

EDGE_FOURIER_PX = 4
"""Width of the soft edge between denoised and raw coefficients, in Fourier pixels of the longer side."""

# A background whose spread is below this share of its mean is constant but for rounding.
_CONSTANT_SHARE = 1e-6


class Denoiser:
    """A network ready to run on one device.

    Parameters
    ----------
    module
        The network (`LoadedModel.module`); it is copied.
    device
        Where to run.
    precision
        Number format inside the network. Normalisation and output are float32.
    """

    def __init__(
        self, module: nn.Module, device: torch.device | str = "cpu", precision: Precision = "fp32"
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.stride = int(module.stride)  # type: ignore[arg-type]
        self.receptive_field_px = int(module.receptive_field_px)  # type: ignore[arg-type]
        self._network = prepare(module, self.device, precision)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # workers use the weights on streams of their own

    def __call__(
        self,
        images: NDArray[np.float32],
        *,
        radius_px: float | None = None,
        blend: float = 0.0,
        keep_above_px: float | None = None,
    ) -> NDArray[np.float32]:
        """Denoise `(n, y, x)` images; parameters as in `denoise`.

        Raises
        ------
        ImageError
            If an image holds NaN or Inf, or nothing but one value; names the first, counted from 1.
        """
        denoised, problems = self.denoise(
            images, radius_px=radius_px, blend=blend, keep_above_px=keep_above_px
        )
        for index, problem in problems.items():
            raise ImageError(problem, image=index + 1)
        return denoised

    def denoise(
        self,
        images: NDArray[np.float32],
        *,
        radius_px: float | None = None,
        blend: float = 0.0,
        keep_above_px: float | None = None,
        protein_dark: bool = False,
        context: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Denoise what can be denoised, and say what cannot.

        Parameters
        ----------
        images
            `(n, y, x)`, any size.
        radius_px
            Radius of the circle, pixels, outside which an image is background; None is three eighths of the
            shorter side.
        blend
            Share `a` of the raw image: `x_hat + a (x - x_hat)`.
        keep_above_px
            Period in pixels (resolution over pixel size); beyond it the Fourier coefficients stay raw.
        protein_dark
            Whether protein is dark. Networks know it as white: they then get the negative.
        context
            Makes of `(n, y, x)` normalised images on the CPU, protein white, the further channels
            `(n, channels, y, x)` that a network with context sees; None is no context.

        Returns
        -------
        denoised
            `(n, y, x)` float32 with the input's mean and spread of the background.
        problems
            0-based index of each image that cannot be denoised, and why; these are returned unchanged.
        """
        if radius_px is None:
            radius_px = default_radius_px((images.shape[-2], images.shape[-1]))
        with torch.inference_mode():
            raw = upload(images, self.device)
            normalised, mean, std = normalise(raw, radius_px)
            problems = _problems(raw, mean, std)
            bad = torch.tensor(list(problems), dtype=torch.int64, device=self.device)
            if problems:
                normalised[bad] = 0.0
            if protein_dark:
                normalised.neg_()
            shown = normalised[:, None]
            if context is not None:
                channels = context(normalised.cpu()).to(self.device)
                if problems:
                    channels[bad] = 0.0
                shown = torch.cat([shown, channels], 1)
            denoised = self._mirrored_to_stride(shown)
            if protein_dark:
                denoised.neg_()
            denoised = denormalise(denoised, mean, std)
            if blend:
                denoised = torch.lerp(denoised, raw, blend)
            if keep_above_px is not None:
                denoised = keep_above(denoised, raw, keep_above_px)
            if problems:
                denoised[bad] = raw[bad]
            return download(denoised), problems

    def run(self, images: Tensor) -> Tensor:
        """`(n, y, x)` on the normalised scale through the network; y and x are multiples of `stride`.

        Or `(n, channels, y, x)`, the image and its context.
        """
        return self._in_memory(images[:, None] if images.ndim == 3 else images)[:, 0]

    def _mirrored_to_stride(self, images: Tensor) -> Tensor:
        """`(n, channels, y, x)` to `(n, y, x)`; borders are mirrored to a size that the network takes."""
        y, x = images.shape[-2:]
        top, left = (-y % self.stride) // 2, (-x % self.stride) // 2
        if y % self.stride:
            images = images.index_select(2, _mirrored(y, self.stride, self.device))
        if x % self.stride:
            images = images.index_select(3, _mirrored(x, self.stride, self.device))
        return self.run(images)[:, top : top + y, left : left + x]

    def _in_memory(self, images: Tensor) -> Tensor:
        """Run the network, in two halves when the GPU's memory does not hold the whole."""
        try:
            return run_network(self._network, images, DTYPES[self.precision])
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()
        return torch.cat([self._in_memory(half) for half in images.chunk(2)])


def _problems(raw: Tensor, mean: Tensor, std: Tensor) -> dict[int, str]:
    """Why images of `(n, y, x)` cannot be denoised, by index; `mean` and `std`: of the background."""
    # A sum is far quicker than looking at each pixel, and only infinite or NaN if a pixel is, or overflows.
    usable = torch.isfinite(raw.sum((1, 2)) + std) & (std > _CONSTANT_SHARE * mean.abs())
    problems: dict[int, str] = {}
    for index in torch.nonzero(~usable)[:, 0].tolist():
        image = raw[index]
        if not torch.isfinite(image).all():
            problems[index] = "the image holds NaN or infinite pixels."
        elif image.min() == image.max():
            problems[index] = f"the image is constant: every pixel is {float(image[0, 0]):g}."
        elif not torch.isfinite(std[index]):
            problems[index] = "the pixel values are too large for single precision."
        else:
            problems[index] = "the image is constant outside the particle's circle, so its noise is unknown."
    return problems


def _mirrored(side: int, stride: int, device: torch.device) -> Tensor:
    """Source index of each pixel of a side that is mirrored out to a multiple of `stride`."""
    missing = -side % stride
    padding = (missing // 2, missing - missing // 2)
    return torch.from_numpy(np.pad(np.arange(side), padding, mode="reflect")).to(device)


def raw_weight(shape: tuple[int, int], keep_above_px: float, device: torch.device | None = None) -> Tensor:
    """`(y, x // 2 + 1)` weight of the raw Fourier coefficients: 1 beyond `1 / keep_above_px`, 0 well below.

    Between them a raised cosine, `EDGE_FOURIER_PX` wide, that ends at the limit: beyond it all is raw.
    """
    missing = (1.0 / keep_above_px - frequency_grid(shape, device)) * max(shape)
    return 0.5 + 0.5 * torch.cos(math.pi * (missing / EDGE_FOURIER_PX).clamp(0.0, 1.0))


def keep_above(denoised: Tensor, raw: Tensor, keep_above_px: float) -> Tensor:
    """Put the Fourier coefficients of `raw` beyond a period, pixels, back into `denoised` `(..., y, x)`."""
    shape = (raw.shape[-2], raw.shape[-1])
    weight = raw_weight(shape, keep_above_px, raw.device)
    put_back: Tensor = torch.fft.irfft2(torch.fft.rfft2(raw - denoised) * weight, s=shape)
    return denoised + put_back
