"""DnCNN: a plain stack of convolutions that predicts the noise."""

from __future__ import annotations

from torch import Tensor, nn

from .base import DenoisingNetwork


class DnCNN(DenoisingNetwork):
    """Convolution, batch normalisation and ReLU, `depth` times, subtracted from the input [1]_.

    References
    ----------
    .. [1] Zhang et al. (2017) IEEE Trans. Image Process. 26, 3142, doi:10.1109/TIP.2017.2662206.
    """

    def __init__(self, width: int = 64, depth: int = 17) -> None:
        super().__init__()
        self.stride, self.receptive_field_px = 1, depth
        layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.noise = nn.Sequential(*layers, nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`."""
        out: Tensor = x - self.noise(x)
        return out
