"""The convolutions of VGG-19, for perceptual losses."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import ModelError

# channels of the convolutions, "M" for a 2x2 maximum
_LAYERS: tuple[int | str, ...] = (
    *(64, 64, "M", 128, 128, "M", 256, 256, 256, 256, "M"),
    *(512, 512, 512, 512, "M", 512, 512, 512, 512, "M"),
)
# torchvision's, whose name holds the beginning of its SHA-256
_WEIGHTS_URL = "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth"
_HASH_BEGINS = "dcbb9e9d"
_MEAN, _SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Vgg19Features(nn.Module):
    """The first convolutions of VGG-19 [1]_, with the layer numbers of the usual ImageNet weights.

    Parameters
    ----------
    depth
        How many layers are used, of the 37 of `features`: 36 ends before the last maximum, as in [2]_.

    References
    ----------
    .. [1] Simonyan & Zisserman (2015) ICLR, arXiv:1409.1556.
    .. [2] Ledig et al. (2017) CVPR, arXiv:1609.04802.
    """

    mean: Tensor
    sd: Tensor

    def __init__(self, depth: int = 36) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for layer in _LAYERS:
            if isinstance(layer, int):
                layers += [nn.Conv2d(width, layer, 3, padding=1), nn.ReLU()]
                width = layer
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:depth])
        self.register_buffer("mean", torch.tensor(_MEAN)[:, None, None], persistent=False)
        self.register_buffer("sd", torch.tensor(_SD)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` on the scale 0 to 1, repeated for the three colours, to feature maps."""
        out: Tensor = self.features((x.repeat(1, 3, 1, 1) - self.mean) / self.sd)
        return out


def load_vgg19(path: Path, depth: int = 36) -> Vgg19Features:
    """VGG-19 with weights from a local file: the ImageNet state dict (`vgg19-dcbb9e9d.pth`), or safetensors.

    Raises
    ------
    ModelError
        The file is missing or holds something else.
    """
    network = Vgg19Features(depth)
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        own = network.state_dict()
        network.load_state_dict({name: state[name] for name in own})
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"{path}: expected the ImageNet weights of VGG-19: {error}") from error
    return network.eval().requires_grad_(False)


def download_vgg19() -> Path:
    """The ImageNet weights in torch's cache (`torch.hub.get_dir()`), fetched once and checked by their hash.

    Raises
    ------
    ModelError
        They cannot be fetched, or what came is something else; nothing is kept then.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / _WEIGHTS_URL.rsplit("/", 1)[1]
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(_WEIGHTS_URL, str(path), hash_prefix=_HASH_BEGINS, progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{_WEIGHTS_URL}: {error}. Fetch it where there is a network, and give the path of the file."
        ) from error
    return path
