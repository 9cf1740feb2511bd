"""Perceptual loss: squared difference of the features that a trained network sees in two images.

References
----------
.. [1] Johnson, Alahi & Fei-Fei (2016) ECCV, arXiv:1603.08155.
.. [2] Ledig et al. (2017) CVPR, arXiv:1609.04802: one layer of VGG-19.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError
from ..models.unet import ShuffleUNet
from ..models.vgg import Vgg19Features, download_vgg19, load_vgg19
from ..models.weights import load_model


class PerceptualLoss(nn.Module):
    """Mean squared difference of features, one value for each image.

    Parameters
    ----------
    name
        Whose features: a shipped model or a weights file of a `shuffle_unet`, whose encoder knows cryo-EM
        images and needs no further file; or the ImageNet weights of VGG-19, which the papers used: a local
        file named `vgg19*`, or `vgg19` to fetch them once. VGG-19 sees the images scaled to 0..1 by the range
        of the target.

    Raises
    ------
    ConfigurationError
        The model is of a kind that has no encoder to use.
    ModelError
        There is no such model or file.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network: ShuffleUNet | Vgg19Features
        if Path(name).name.startswith("vgg19"):
            fetched = name == "vgg19" and not Path(name).exists()
            self.network = load_vgg19(download_vgg19() if fetched else Path(name))
            return
        network = load_model(name).module
        if not isinstance(network, ShuffleUNet):
            raise ConfigurationError(
                f"loss.features: {name} is no shuffle_unet, whose encoder could be used."
            )
        self.network = network.requires_grad_(False)

    def _features(self, images: Tensor) -> list[Tensor]:
        if isinstance(self.network, ShuffleUNet):
            return self.network.encode(images)
        return [self.network(images)]

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """`(n, 1, y, x)` each to `(n,)`."""
        estimate = estimate.float()
        if isinstance(self.network, Vgg19Features):
            low, high = target.amin(dim=(1, 2, 3), keepdim=True), target.amax(dim=(1, 2, 3), keepdim=True)
            scale = (high - low).clamp_min(1e-6)
            estimate, target = (estimate - low) / scale, (target - low) / scale
        with torch.no_grad():
            wanted = self._features(target)
        pairs = zip(self._features(estimate), wanted, strict=True)
        return torch.stack([(a.float() - b).square().mean(dim=(1, 2, 3)) for a, b in pairs]).mean(0)
