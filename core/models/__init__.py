"""Networks and their registries; `base.DenoisingNetwork` says what one that denoises has to be."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Any, cast

from torch import nn

from ..errors import ConfigurationError
from ..first_calls import make_first_calls
from ..registry import Registry
from .base import DenoisingNetwork, require_denoising_network
from .context_average import ContextAverage
from .diffusion import DiffusionDenoiser
from .dncnn import DnCNN
from .pix2pix import ConvolutionalCritic, ConvolutionalGenerator, ResidualCritic, ResidualPix2Pix
from .pooling_unet import PoolingUNet
from .progressive import ProgressiveAutoencoder, ProgressiveCritic
from .resnet import ResNetAutoencoder, ResNetCritic
from .segmentation import SegmentationUNet
from .skip_resnet import SkipResNet, SkipResNetCritic
from .unet import ShuffleUNet
from .view_unet import ViewUNet

make_first_calls()  # before any thread calculates

Networks = Mapping[str, Callable[..., nn.Module]]

# What denoises: classes by name. Other packages offer theirs at the entry points `cryohush.networks`.
_DENOISERS: dict[str, Callable[..., nn.Module] | str] = {
    "shuffle_unet": ShuffleUNet,
    "context_average": ContextAverage,
    "dncnn": DnCNN,
    "resnet_autoencoder": ResNetAutoencoder,
    "skip_resnet": SkipResNet,
    "pooling_unet": PoolingUNet,
    "convolutional_generator": ConvolutionalGenerator,
    "residual_pix2pix": ResidualPix2Pix,
    "progressive_autoencoder": ProgressiveAutoencoder,
    "diffusion": DiffusionDenoiser,
}
MODELS: Registry[Callable[..., nn.Module]] = Registry("network", _DENOISERS, "cryohush.networks")

# Labels instead of images: `(n, 1, y, x)` to logits `(n, classes, y, x)`.
SEGMENTERS: Registry[Callable[..., nn.Module]] = Registry("network", {"segmentation_unet": SegmentationUNet})
# `(n, 1 + channels, y, x)`, an image on the working grid of its stack's context and what that says of it.
VIEW_NETWORKS: Registry[Callable[..., nn.Module]] = Registry("network", {"view_unet": ViewUNet})
ALL_NETWORKS: Networks = ChainMap(MODELS, SEGMENTERS, VIEW_NETWORKS)  # type: ignore[arg-type]  # which nobody changes

# What the adversarial losses set against them: `(n, channels, y, x)` to scores `(n, ...)`, without a sigmoid.
_CRITICS: dict[str, Callable[..., nn.Module] | str] = {
    "resnet": ResNetCritic,
    "skip_resnet": SkipResNetCritic,
    "residual": ResidualCritic,
    "convolutional": ConvolutionalCritic,
    "progressive": ProgressiveCritic,
}
CRITICS: Registry[Callable[..., nn.Module]] = Registry("critic", _CRITICS)


def build_network(name: str, arguments: Mapping[str, Any]) -> DenoisingNetwork:
    """Make a network that denoises.

    Parameters
    ----------
    name, arguments
        Its name in `MODELS`, and the arguments of its constructor.

    Raises
    ------
    ConfigurationError
        There is none of that name, it does not take these arguments, or it is not what it should be.
    """
    make = MODELS.find(name, "network.name")
    try:
        module = make(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"network.arguments: {name} cannot be made of them: {error}.") from error
    return cast(DenoisingNetwork, module) if MODELS.is_own(name) else require_denoising_network(module, name)


__all__ = [
    "ALL_NETWORKS",
    "CRITICS",
    "MODELS",
    "SEGMENTERS",
    "VIEW_NETWORKS",
    "DenoisingNetwork",
    "Networks",
    "ShuffleUNet",
    "build_network",
]
