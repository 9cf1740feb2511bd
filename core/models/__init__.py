"""Networks and their registry.

Every module takes `(n, 1, y, x)` images whose background has mean 0 and sd 1, protein white, and returns the
denoised images on the same scale. Its attribute `stride` is what y and x must be multiples of, and
`receptive_field_px` the distance beyond which an input pixel has no influence.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .context_unet import ContextUNet
from .diffusion import DiffusionDenoiser
from .dncnn import DnCNN
from .pix2pix import ConvolutionalCritic, ConvolutionalGenerator, ResidualPix2Pix
from .progressive import ProgressiveAutoencoder, ProgressiveCritic
from .resnet import ResNetAutoencoder, ResNetCritic
from .segmentation import SegmentationUNet
from .unet import ShuffleUNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "shuffle_unet": ShuffleUNet,
    "context_unet": ContextUNet,
    "dncnn": DnCNN,
    "resnet_autoencoder": ResNetAutoencoder,
    "convolutional_generator": ConvolutionalGenerator,
    "residual_pix2pix": ResidualPix2Pix,
    "progressive_autoencoder": ProgressiveAutoencoder,
    "diffusion": DiffusionDenoiser,
}

# Labels instead of images: `(n, 1, y, x)` to logits `(n, classes, y, x)`.
SEGMENTERS: dict[str, Callable[..., nn.Module]] = {"segmentation_unet": SegmentationUNet}

# What the adversarial losses set against them: `(n, channels, y, x)` to scores `(n, ...)`, without a sigmoid.
CRITICS: dict[str, Callable[..., nn.Module]] = {
    "resnet": ResNetCritic,
    "convolutional": ConvolutionalCritic,
    "progressive": ProgressiveCritic,
}

__all__ = ["CRITICS", "MODELS", "SEGMENTERS", "ShuffleUNet"]
