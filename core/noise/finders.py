"""Windows of a micrograph that hold nothing but noise, by either of two methods or another package's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from ..config.extract_noise import METHODS, ExtractNoiseOptions
from ..errors import ConfigurationError
from ..imaging.noise import image_generator
from ..inference.denoiser import Denoiser
from ..inference.devices import DTYPES, Precision, prepare, run_network
from ..inference.micrograph_denoiser import MicrographDenoiser
from ..inference.tiling import plan_tiles, run_in_tiles
from ..models import MODELS, SEGMENTERS, Networks
from ..models.weights import LoadedModel, load_model
from .energy import noise_probabilities
from .patches import count_in_windows
from .segmentation import (
    BACKGROUND,
    CONTAMINATION,
    PARTICLE,
    SURELY_BACKGROUND,
    bin_micrograph,
    expand_labels,
    labels_of_logits,
    normalise_robustly,
    working_bin,
)
from .similarity import SSIM_WINDOW_PX, patch_similarity, published_patch_similarity

# More than any label.
_SURE = 4


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
        How many of them were left out, by reason: the first that applies.
    similarity
        `(n,)` least SSIM between parts of each window, for the similarity method.
    best_similarity
        Of all windows.
    labels
        `(y, x)` uint8 label map, where a network made one.
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
    """A network labels each pixel; windows without contamination and particles are noise, if they look it."""

    def __init__(
        self, model: LoadedModel, device: torch.device, precision: Precision, options: ExtractNoiseOptions
    ) -> None:
        self.device = device
        self._precision: Precision = precision
        self._stride = model.stride
        self._reach = model.module.receptive_field_px
        self._network = prepare(model.module, device, precision)
        self._options = options

    def _label_binned(self, binned: Tensor) -> tuple[Tensor, Tensor]:
        """`(y, x)` uint8 labels, and a mask of what is background beyond doubt."""

        def run(tiles: Tensor) -> Tensor:
            logits = run_network(self._network, tiles[:, None], DTYPES[self._precision])
            labels = torch.stack([labels_of_logits(one, self._options.min_background) for one in logits])
            # tiles have one channel: the doubt goes with the label
            return labels + _SURE * (logits.softmax(1)[:, BACKGROUND] > SURELY_BACKGROUND).float()

        tiling = plan_tiles((binned.shape[0], binned.shape[1]), self._stride, self._reach)
        found = run_in_tiles(binned, tiling, run).to(torch.uint8)
        return found % _SURE, found >= _SURE

    def find(
        self, image: Tensor, pixel_size_angstrom: float | None, window_px: int, stride_px: int
    ) -> Windows:
        """See `WindowFinder`."""
        if pixel_size_angstrom is None:
            raise ConfigurationError(
                f"method {self._options.method} needs the pixel size, which the input does not say. Give "
                "--pixel-size."
            )
        factor = working_bin(pixel_size_angstrom)
        binned = normalise_robustly(bin_micrograph(image.to(self.device), factor))
        small, sure = self._label_binned(binned)
        labels = expand_labels(small, factor, (image.shape[0], image.shape[1]))
        margin = round(self._options.margin_angstrom / pixel_size_angstrom)
        contamination, particle = (
            count_in_windows(
                torch.nn.functional.pad(labels == label, (margin,) * 4), window_px + 2 * margin, stride_px
            )
            > 0
            for label in (CONTAMINATION, PARTICLE)
        )
        free = ~(contamination | particle)
        excluded = {
            "contamination": int(contamination.sum()),
            "particle": int((particle & ~contamination).sum()),
        }
        if self._options.min_noise_probability > 0:
            rows, columns = (
                torch.arange(number, device=self.device) * stride_px // factor for number in free.shape
            )
            probability = noise_probabilities(
                binned,
                sure,
                factor * pixel_size_angstrom,
                rows,
                columns,
                -(-window_px // factor) + 1,
                image_generator(self._options.seed, 0, "surrogates"),
            )
            like_noise = probability >= self._options.min_noise_probability
            excluded["noise"] = int((free & ~like_noise).sum())
            free &= like_noise
        return Windows(
            origins=free.nonzero() * stride_px, n_windows=free.numel(), excluded=excluded, labels=labels
        )


class SimilarityFinder:
    """In the denoised micrograph, the parts of a window without signal all look alike [1]_.

    Differs from the paper in that the micrograph may be binned before it is denoised, and in that the windows
    then have to pass what `SegmentationFinder` asks for: likeness does not see a corner of a particle.

    References
    ----------
    .. [1] Li et al. (2022) Bioinformatics 38, 2022-2029, section 2.2.2. doi:10.1093/bioinformatics/btac052
    """

    def __init__(
        self,
        model: LoadedModel,
        device: torch.device,
        precision: Precision,
        options: ExtractNoiseOptions,
        check: SegmentationFinder | None,
    ) -> None:
        self.device = device
        self._denoiser = MicrographDenoiser(Denoiser(model.module, device, precision))
        self._options = options
        self._check = check

    def find(
        self, image: Tensor, pixel_size_angstrom: float | None, window_px: int, stride_px: int
    ) -> Windows:
        """See `WindowFinder`."""
        similarity = self._similarity(image, pixel_size_angstrom, window_px, stride_px)
        alike = similarity > self._options.similarity_threshold
        found = Windows(
            origins=alike.nonzero() * stride_px,
            n_windows=alike.numel(),
            excluded={"similarity": int((~alike).sum())},
            similarity=similarity[alike],
            best_similarity=float(similarity.max()),
        )
        if self._check is None:
            return found
        checked = self._check.find(image, pixel_size_angstrom, window_px, stride_px)
        pure = torch.zeros_like(alike)
        pure[tuple((checked.origins // stride_px).T)] = True
        chosen = alike & pure
        return replace(
            found,
            origins=chosen.nonzero() * stride_px,
            excluded={**found.excluded, "check": int((alike & ~pure).sum())},
            similarity=similarity[chosen],
            labels=checked.labels,
        )

    def _similarity(
        self, image: Tensor, pixel_size_angstrom: float | None, window_px: int, stride_px: int
    ) -> Tensor:
        """`(rows, columns)` of the windows."""
        factor = self._options.coarse_bin(
            pixel_size_angstrom, window_px // SIMILARITY.smallest_window_px(self._options)
        )
        denoised, _, _ = self._denoiser.denoise(bin_micrograph(image, factor).cpu().numpy())
        coarse = torch.from_numpy(denoised).to(self.device)
        n_local = self._options.local_patches
        if self._options.ssim == "parts":
            return published_patch_similarity(coarse, window_px, stride_px, n_local)
        if factor == 1:
            return patch_similarity(coarse, window_px, stride_px, n_local)
        everywhere = patch_similarity(coarse, window_px // factor, 1, n_local)
        rows, columns = (
            # the nearest window of the binned micrograph: half of its pixel off at most
            (torch.arange((side - window_px) // stride_px + 1, device=self.device) * (stride_px / factor))
            .round()
            .long()
            .clamp_max(limit - 1)
            for side, limit in zip(image.shape, everywhere.shape, strict=True)
        )
        return everywhere[rows][:, columns]


@dataclass(frozen=True)
class NoiseFinder:
    """A way to find windows that hold nothing but noise, as `extract-noise --method` names it.

    Other packages offer theirs at the entry points `cryohush.noise_finders`.

    Attributes
    ----------
    make
        Sets the method up on a device, with its network.
    model
        The shipped model whose network that is, unless another one is asked for.
    networks
        What kind of network it has to be.
    smallest_window_px
        What the method needs at least.
    needs_pixel_size
        Whether it does.
    makes_labels
        Whether each micrograph gets a label map.
    remedy
        What to do, besides smaller windows and wider limits, where too little is found: `or try this`.
    """

    make: Callable[[LoadedModel, torch.device, Precision, ExtractNoiseOptions], WindowFinder]
    model: str = "segmentation"
    networks: Networks = field(default_factory=lambda: SEGMENTERS)
    smallest_window_px: Callable[[ExtractNoiseOptions], int] = lambda options: 1
    needs_pixel_size: bool = False
    makes_labels: bool = False
    remedy: str = "or another method"


def finder_of(options: ExtractNoiseOptions) -> NoiseFinder:
    """The finder of `options.method`.

    Raises
    ------
    ConfigurationError
        Another package offers it, and it cannot be imported or is something else.
    """
    finder = METHODS.find(options.method, "method")
    if not isinstance(finder, NoiseFinder):
        raise ConfigurationError(
            f"the noise finder {options.method} is no cryohush.core.noise.finders.NoiseFinder but a "
            f"{type(finder).__name__}."
        )
    return finder


def load_noise_network(options: ExtractNoiseOptions) -> LoadedModel:
    """Load the network of the method.

    Raises
    ------
    ModelError
        If it is not there, or of another kind.
    """
    finder = finder_of(options)
    return load_model(options.model or finder.model, finder.networks)


def _similarity_finder(
    model: LoadedModel, device: torch.device, precision: Precision, options: ExtractNoiseOptions
) -> WindowFinder:
    check = None
    if options.min_noise_probability > 0:
        network = load_model("segmentation", SEGMENTERS)
        check = SegmentationFinder(network, device, precision, options)
    return SimilarityFinder(model, device, precision, options, check)


SEGMENTATION = NoiseFinder(
    SegmentationFinder,
    needs_pixel_size=True,
    makes_labels=True,
    remedy="or refine the network on these micrographs",
)
SIMILARITY = NoiseFinder(
    _similarity_finder,
    model="general",
    networks=MODELS,
    smallest_window_px=lambda options: SSIM_WINDOW_PX * round(options.local_patches**0.5),
    remedy="or a lower --similarity-threshold",
)
