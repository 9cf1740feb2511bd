"""Windows of a micrograph that hold nothing but noise, by either of two methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..config.extract_noise import ExtractNoiseOptions
from ..errors import ConfigurationError
from ..models.weights import LoadedModel
from ..noise.patches import count_in_windows
from ..noise.segmentation import (
    CONTAMINATION,
    PARTICLE,
    bin_micrograph,
    expand_labels,
    labels_of_logits,
    normalise_robustly,
    working_bin,
)
from ..noise.similarity import SSIM_WINDOW_PX, patch_similarity
from .denoiser import Denoiser
from .devices import DTYPES, Precision, prepare, run_network
from .micrographs import MicrographDenoiser
from .tiling import plan_tiles, run_in_tiles


@dataclass(frozen=True, eq=False)
class Windows:
    """What a method found in one micrograph.

    Attributes
    ----------
    origins
        `(n, 2)` int64 (y, x): first pixels of the windows without signal.
    n_windows
        How many windows there are in all.
    excluded
        How many of them were left out, by reason; a window with contamination and particles counts as
        contamination.
    similarity
        `(n,)` least SSIM between parts of each window, for the similarity method.
    best_similarity
        Of all windows.
    labels
        `(y, x)` uint8 label map, for the segmentation method.
    """

    origins: Tensor
    n_windows: int
    excluded: dict[str, int] = field(default_factory=dict)
    similarity: Tensor | None = None
    best_similarity: float | None = None
    labels: Tensor | None = None


class WindowFinder(Protocol):
    """A method on one device."""

    device: torch.device

    def find(
        self, image: Tensor, pixel_size_angstrom: float | None, window_px: int, stride_px: int
    ) -> Windows:
        """Search a micrograph `(y, x)`, protein white, finite and not constant."""


class SegmentationFinder:
    """A network labels each pixel; windows without contamination and particles are noise."""

    def __init__(
        self, model: LoadedModel, device: torch.device, precision: Precision, options: ExtractNoiseOptions
    ) -> None:
        self.device = device
        self._precision: Precision = precision
        self._stride = model.stride
        self._reach = int(model.module.receptive_field_px)  # type: ignore[arg-type]
        self._network = prepare(model.module, device, precision)
        self._options = options

    def label(self, image: Tensor, pixel_size_angstrom: float) -> Tensor:
        """`(y, x)` uint8 labels of a micrograph."""
        factor = working_bin(pixel_size_angstrom)
        binned = normalise_robustly(bin_micrograph(image.to(self.device), factor))

        def labels(tiles: Tensor) -> Tensor:
            logits = run_network(self._network, tiles[:, None], DTYPES[self._precision])
            return torch.stack(
                [labels_of_logits(one, self._options.least_background) for one in logits]
            ).float()

        tiling = plan_tiles((binned.shape[0], binned.shape[1]), self._stride, self._reach)
        found = run_in_tiles(binned, tiling, labels).to(torch.uint8)
        return expand_labels(found, factor, (image.shape[0], image.shape[1]))

    def find(
        self, image: Tensor, pixel_size_angstrom: float | None, window_px: int, stride_px: int
    ) -> Windows:
        """See `WindowFinder`."""
        if pixel_size_angstrom is None:
            raise ConfigurationError(
                "method segmentation needs the pixel size, which the input does not say. Give "
                "pixel_size_angstrom."
            )
        labels = self.label(image, pixel_size_angstrom)
        margin = round(self._options.margin_angstrom / pixel_size_angstrom)
        contamination, particle = (
            count_in_windows(
                torch.nn.functional.pad(labels == label, (margin,) * 4), window_px + 2 * margin, stride_px
            )
            > 0
            for label in (CONTAMINATION, PARTICLE)
        )
        free = ~(contamination | particle)
        return Windows(
            origins=free.nonzero() * stride_px,
            n_windows=free.numel(),
            excluded={
                "contamination": int(contamination.sum()),
                "particle": int((particle & ~contamination).sum()),
            },
            labels=labels,
        )


class SimilarityFinder:
    """In the denoised micrograph, the parts of a window without signal all look alike."""

    def __init__(
        self, model: LoadedModel, device: torch.device, precision: Precision, options: ExtractNoiseOptions
    ) -> None:
        self.device = device
        self._denoiser = MicrographDenoiser(Denoiser(model.module, device, precision))
        self._options = options

    def find(
        self, image: Tensor, pixel_size_angstrom: float | None, window_px: int, stride_px: int
    ) -> Windows:
        """See `WindowFinder`."""
        denoised, _, _ = self._denoiser.denoise(image.cpu().numpy())
        coarse = torch.from_numpy(denoised).to(self.device)
        similarity = patch_similarity(coarse, window_px, stride_px, self._options.local_patches)
        alike = similarity > self._options.similarity_threshold
        return Windows(
            origins=alike.nonzero() * stride_px,
            n_windows=alike.numel(),
            excluded={"similarity": int((~alike).sum())},
            similarity=similarity[alike],
            best_similarity=float(similarity.max()),
        )


def make_finder(
    model: LoadedModel, device: torch.device, precision: Precision, options: ExtractNoiseOptions
) -> WindowFinder:
    """The finder of `options.method`."""
    if options.method == "segmentation":
        return SegmentationFinder(model, device, precision, options)
    return SimilarityFinder(model, device, precision, options)


def smallest_window_px(options: ExtractNoiseOptions) -> int:
    """What the method needs at least."""
    return 1 if options.method == "segmentation" else SSIM_WINDOW_PX * round(options.local_patches**0.5)
