"""Images in, denoised images out, on the input's own grey scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ImageError
from ..imaging.defects import Defects, fill_defects, find_defects, put_back
from ..imaging.finer_grid import from_finer_grid, to_finer_grid, without_noise
from ..imaging.normalise import default_radius_px, denormalise, normalise
from ..imaging.rings import frequency_grid
from ..models.base import DenoisingNetwork
from ..models.context_average import ESTIMATES
from .devices import DTYPES, Precision, download, prepare, run_network, upload

EDGE_FOURIER_PX = 4
"""Width of the soft edge between denoised and raw coefficients, in Fourier pixels of the longer side."""

MAX_NOISE_FREE_SHARE = 0.85
"""With more of its area without noise, the noise of a particle image is unknown."""

NOISE_FREE_REMARK = (
    "an area has no noise (a mask, padding?): the network saw noise there; it stays as it was."
)
OUTLYING_REMARK = (
    "outlying pixels (hot or dead ones, cosmic rays?): the network saw ordinary ones, and in the output they "
    "are no brighter or darker than the rest."
)

# A background whose spread is below this share of its mean is constant but for rounding.
_CONSTANT_SHARE = 1e-6
# The square of a smaller number is 0.
_SMALLEST_SPREAD = 1e-18


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
        self, module: DenoisingNetwork, device: torch.device | str = "cpu", precision: Precision = "fp32"
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.stride = module.stride
        self.receptive_field_px = module.receptive_field_px
        self.spectrum_share = getattr(module, "spectrum_share", 0.0)  # others' networks may lack it
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
        denoised, problems, _ = self.denoise(
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
        finer: int = 1,
    ) -> tuple[NDArray[np.float32], dict[int, str], dict[int, str]]:
        """Denoise what can be denoised, and say what cannot.

        Areas without noise and outlying pixels are filled for the network (`imaging.defects`), and what was
        there is put back after it, outlying pixels clipped to the range of the rest.

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
        finer
            How many times finer the grid is on which the network sees the images: pixels that are coarser
            than those that it knows have to become smaller.

        Returns
        -------
        denoised
            `(n, y, x)` float32 with the input's mean and spread of the background.
        problems
            0-based index of each image that cannot be denoised, and why; these are returned unchanged.
        remarks
            0-based index of each image of which a part was filled for the network, and why.
        """
        with torch.inference_mode():
            seen = self._seen(images, radius_px, context, protein_dark=protein_dark)
            denoised = self._on_finer_grid(seen.shown, finer, self._network)
            if protein_dark:
                denoised.neg_()
            denoised = denormalise(denoised, seen.mean, seen.std)
            if blend:
                denoised = torch.lerp(denoised, seen.filled, blend)
            if keep_above_px is not None:
                denoised = keep_above(denoised, seen.filled, keep_above_px)
            if seen.defects is not None:
                denoised = put_back(denoised, seen.original, seen.defects)
            if seen.problems:
                denoised[seen.bad] = seen.original[seen.bad]
            return download(denoised), seen.problems, remarks_on(seen.defects, without=seen.problems)

    def error(
        self,
        images: NDArray[np.float32],
        *,
        radius_px: float | None = None,
        protein_dark: bool = False,
        context: Callable[[Tensor], Tensor] | None = None,
        finer: int = 1,
    ) -> NDArray[np.float32]:
        """How far off the denoised pixels are expected to be, without blending: `(n, y, x)`.

        Standard errors on the input's grey scale; 0 where an image is returned as it was. Parameters as in
        `denoise`.

        Raises
        ------
        ValueError
            If the network does not know; see `tells_error`.
        """
        if not self.tells_error:
            raise ValueError("this network does not know the error of its images")
        with torch.inference_mode():
            seen = self._seen(images, radius_px, context, protein_dark=protein_dark)
            # what comes back is scaled as an image, which is weaker by that factor on a finer grid
            log_variance = self._on_finer_grid(seen.shown, finer, _LogVariance(self._network)) / finer
            error = finer * (log_variance / 2).exp() * seen.std[:, None, None]
            if seen.defects is not None:
                error[seen.defects.noise_free] = 0.0
            error[seen.bad] = 0.0
            return download(error)

    @property
    def tells_error(self) -> bool:
        """Whether the network knows the error of its images."""
        return tells_error(self._network)

    def _seen(
        self,
        images: NDArray[np.float32],
        radius_px: float | None,
        context: Callable[[Tensor], Tensor] | None,
        *,
        protein_dark: bool,
    ) -> _Seen:
        """What the network gets to see of images, and what has to be known to take it back."""
        if radius_px is None:
            radius_px = default_radius_px((images.shape[-2], images.shape[-1]))
        original = filled = upload(images, self.device)
        defects = find_defects(filled)
        hopeless: dict[int, str] = {}
        if defects is not None:
            defects, hopeless = _without_hopeless(defects)
            filled = fill_defects(filled, defects, radius_px)
        normalised, mean, std = normalise(filled, radius_px)
        problems = hopeless | _problems(filled, mean, std)
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
        return _Seen(original, filled, defects, shown, mean, std, problems, bad)

    def run(self, images: Tensor) -> Tensor:
        """`(n, y, x)` on the normalised scale through the network; y and x are multiples of `stride`.

        Or `(n, channels, y, x)`, the image and its context.
        """
        return self._in_memory(images[:, None] if images.ndim == 3 else images, self._network)[:, 0]

    def _on_finer_grid(self, images: Tensor, factor: int, network: nn.Module) -> Tensor:
        """Run `(n, channels, y, x)`, the image first, through `network` on a grid finer by `factor`."""
        if factor == 1:
            return self._mirrored_to_stride(images, network)
        at_once = max(1, len(images) // factor**2)  # as many pixels as without
        parts = []
        for first in range(0, len(images), at_once):
            some = images[first : first + at_once]
            fine = to_finer_grid(some[:, 0], factor)[:, None]
            if some.shape[1] > 1:  # MKL refuses to transform nothing
                estimates, shares = some[:, 1 : 1 + ESTIMATES], some[:, 1 + ESTIMATES :]
                on_grid = without_noise(estimates, factor), factor * without_noise(shares, factor)
                fine = torch.cat([fine, *on_grid], 1)
            parts.append(from_finer_grid(self._mirrored_to_stride(fine, network), factor))
        return torch.cat(parts)

    def _mirrored_to_stride(self, images: Tensor, network: nn.Module) -> Tensor:
        """`(n, channels, y, x)` to `(n, y, x)`; borders are mirrored to a size that the network takes."""
        y, x = images.shape[-2:]
        top, left = (-y % self.stride) // 2, (-x % self.stride) // 2
        if y % self.stride:
            images = images.index_select(2, _mirrored(y, self.stride, self.device))
        if x % self.stride:
            images = images.index_select(3, _mirrored(x, self.stride, self.device))
        return self._in_memory(images, network)[:, 0, top : top + y, left : left + x]

    def _in_memory(self, images: Tensor, network: nn.Module) -> Tensor:
        """Run a network, in two halves when the GPU's memory does not hold the whole."""
        try:
            return run_network(network, images, DTYPES[self.precision])
        except torch.cuda.OutOfMemoryError:
            if len(images) == 1:
                raise
        torch.cuda.empty_cache()
        return torch.cat([self._in_memory(half, network) for half in images.chunk(2)])


def tells_error(network: nn.Module) -> bool:
    """Tell whether a network knows the error of its images: whether it has a method `with_error`."""
    return hasattr(network, "with_error")


class _LogVariance(nn.Module):
    """The second output of a network with `with_error`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        log_variance: Tensor = self.network.with_error(x)[1]  # type: ignore[operator]
        return log_variance


class _Seen(NamedTuple):
    """Images as they came, with defects filled, and as the network sees them.

    `shown`: `(n, channels, y, x)`; `mean`, `std`: `(n,)` of the background; `problems`: why images cannot be
    denoised; `bad`: their indices.
    """

    original: Tensor
    filled: Tensor
    defects: Defects | None
    shown: Tensor
    mean: Tensor
    std: Tensor
    problems: dict[int, str]
    bad: Tensor


def remarks_on(defects: Defects | None, without: Collection[int] = ()) -> dict[int, str]:
    """Return what is to be said of each image with defects, by index, but of those in `without`."""
    if defects is None:
        return {}
    remarks: dict[int, str] = {}
    for text, parts in ((NOISE_FREE_REMARK, defects.noise_free), (OUTLYING_REMARK, defects.outlying)):
        for index in torch.nonzero(parts.flatten(1).any(1))[:, 0].tolist():
            remarks[index] = f"{remarks[index]} {text}" if index in remarks else text
    return {index: text for index, text in sorted(remarks.items()) if index not in without}


def _without_hopeless(defects: Defects) -> tuple[Defects, dict[int, str]]:
    """Leave out images of which too little has noise; return also, by index, what is to be said of them."""
    share = defects.noise_free.float().mean((1, 2))
    hopeless = share > MAX_NOISE_FREE_SHARE
    problems = {
        index: f"only {100 * (1 - float(share[index])):.0f} % of it has noise: too little to measure."
        for index in torch.nonzero(hopeless)[:, 0].tolist()
    }
    keep = ~hopeless[:, None, None]
    return Defects(defects.noise_free & keep, defects.outlying & keep), problems


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
        elif float(image.max() - image.min()) < _SMALLEST_SPREAD:
            problems[index] = "the pixel values differ too little for single precision."
        elif std[index] > 0:
            problems[index] = (
                "the pixel values outside the particle's circle differ too little for single precision: "
                f"{float(mean[index]):g} ± {float(std[index]):.2g}. Subtract the mean from the images."
            )
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
