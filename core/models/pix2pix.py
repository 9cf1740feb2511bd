"""Generators and critics of the image-to-image GANs: convolutions with stride 2 and their transposes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from .base import DenoisingNetwork


def _down(
    width_in: int,
    width_out: int,
    *,
    normalise: bool = True,
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(width_in, width_out, 4, stride=2, padding=1, bias=not normalise)]
    if normalise:
        layers.append(norm(width_out))
    return nn.Sequential(*layers, nn.LeakyReLU(0.2))


def _up(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(width_in, width_out, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width_out),
        nn.LeakyReLU(0.2),
    )


class ResidualPair(nn.Module):
    """Two 3x3 convolutions with batch normalisation, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(n, width, y, x)` to the same."""
        out: Tensor = x + self.body(x)
        return out


class ConvolutionalGenerator(DenoisingNetwork):
    """Convolution, residual and deconvolution blocks with batch normalisation and LeakyReLU [1]_.

    Differs from the paper: linear output, because the images have no fixed range, and no normalisation of the
    first convolution. The paper gives no widths.

    Parameters
    ----------
    width
        Channels at full resolution, twice as many at each halving.
    downs, blocks
        Halvings, and residual blocks at the coarsest level.
    random_input
        Whether a second channel holds the random z of equations 5 and 6: white noise, drawn anew for each
        training image; a trained network always gets the same field, so that an image has one result.

    References
    ----------
    .. [1] Tang, Wang, Ouyang & Liu (2022) J. Big Data 4, 69, doi:10.32604/jbd.2022.028078.
    """

    draws: Tensor

    def __init__(
        self, width: int = 32, downs: int = 2, blocks: int = 6, *, random_input: bool = False
    ) -> None:
        super().__init__()
        self.stride = 2**downs
        self.random_input = random_input
        if random_input:  # counts the draws, so that a run that is resumed goes on with the next one
            self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        widths = [width * 2**level for level in range(downs + 1)]
        pairs = list(pairwise(widths))
        self.stem = nn.Sequential(nn.Conv2d(1 + random_input, width, 7, padding=3), nn.LeakyReLU(0.2))
        self.encoder = nn.Sequential(*(_down(fine, coarse) for fine, coarse in pairs))
        self.blocks = nn.Sequential(*(ResidualPair(widths[-1]) for _ in range(blocks)))
        self.decoder = nn.Sequential(*(_up(coarse, fine) for fine, coarse in reversed(pairs)))
        self.head = nn.Conv2d(width, 1, 7, padding=3)
        self.receptive_field_px = 6 + 2 * sum(2 * 2**k for k in range(downs)) + (2 * blocks + 1) * 2**downs

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        if self.random_input:
            x = torch.cat([x, self._random(x)], dim=1)
        out: Tensor = self.head(self.decoder(self.blocks(self.encoder(self.stem(x)))))
        return out

    def _random(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` white noise: one field for all images, but in training."""
        if not self.training:
            field = torch.randn(x.shape[-2:], generator=torch.Generator().manual_seed(0))
            return field.to(x).expand_as(x)
        generator = torch.Generator().manual_seed(int(self.draws))
        self.draws += 1
        return torch.randn(x.shape, generator=generator).to(x)


class ResidualPix2Pix(DenoisingNetwork):
    """U-shaped generator of 4x4 filters with stride 2 whose levels are joined by addition.

    Differs from pix2pix [1]_: residual connections in place of concatenation, as in [2]_, no dropout, and a
    linear output. From [2]_, which gives no widths: first and last convolution are 3x3 ones of stride 1.

    References
    ----------
    .. [1] Isola et al. (2017) CVPR, arXiv:1611.07004.
    .. [2] Ouyang, He, Tang & Fu (2020) Research on denoising of cryo-EM images based on deep learning,
       J. Inf. Hiding Priv. Prot., section 3.1.
    """

    def __init__(self, width: int = 32, downs: int = 4, largest_width: int = 256) -> None:
        super().__init__()
        self.stride = 2**downs
        widths = [min(width * 2**level, largest_width) for level in range(downs + 1)]
        pairs = list(pairwise(widths))
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.downs = nn.ModuleList(_down(fine, coarse) for fine, coarse in pairs)
        self.ups = nn.ModuleList(_up(coarse, fine) for fine, coarse in pairs)
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        self.receptive_field_px = 2 + 2 * sum(2 * 2**k for k in range(downs)) + 2**downs

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        x = self.stem(x)
        skips: list[Tensor] = []
        for down in self.downs:
            skips.append(x)
            x = down(x)
        for up in reversed(self.ups):
            x = up(x) + skips.pop()
        out: Tensor = self.head(x)
        return out


class ConvolutionalCritic(nn.Module):
    """Five convolutions of 4x4 filters: a map of scores, one for each patch of the image.

    Parameters
    ----------
    channels
        2 for pairs (noisy image, clean or generated one), 1 for images alone.
    width
        Channels of the first convolution, doubled by each of the next three up to eightfold.
    normalise
        Batch normalisation in the second to the fourth; must be off with a gradient penalty.
    clipped
        The weights are kept small by clipping: normalisation then has none of its own, which would be clipped
        as well, and takes features as small as such weights make them for what they are. Without this all
        images have the same score.
    """

    def __init__(
        self, channels: int = 2, width: int = 32, *, normalise: bool = True, clipped: bool = False
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-12, affine=False) if clipped else nn.BatchNorm2d
        self.layers = nn.Sequential(
            _down(channels, width, normalise=False),
            _down(width, 2 * width, normalise=normalise, norm=norm),
            _down(2 * width, 4 * width, normalise=normalise, norm=norm),
            _down(4 * width, 8 * width, normalise=normalise, norm=norm),
            nn.Conv2d(8 * width, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(n, channels, y, x)` to `(n, patches)`."""
        return torch.flatten(self.layers(x), 1)


class ResidualCritic(nn.Module):
    """Critic like `ResidualPix2Pix` [1]_: 4x4 filters of stride 2, a residual 3x3 convolution at each level.

    One score an image, without a sigmoid. Differs from the paper, which gives neither widths nor the form of
    the residual connections.

    Parameters
    ----------
    channels
        1 for images alone, as the paper's, 2 for pairs (noisy, clean).
    width, downs, largest_width
        As of `ResidualPix2Pix`, from the first convolution on.
    clipped
        As of `ConvolutionalCritic`.

    References
    ----------
    .. [1] Ouyang, He, Tang & Fu (2020) J. Inf. Hiding Priv. Prot., section 3.1.
    """

    def __init__(
        self,
        channels: int = 1,
        width: int = 32,
        downs: int = 4,
        largest_width: int = 256,
        *,
        clipped: bool = False,
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=1e-12, affine=False) if clipped else nn.BatchNorm2d
        widths = [channels, *(min(width * 2**level, largest_width) for level in range(downs))]
        self.downs = nn.ModuleList(
            _down(fine, coarse, normalise=level > 0, norm=norm)
            for level, (fine, coarse) in enumerate(pairwise(widths))
        )
        self.residuals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(wide, wide, 3, padding=1, bias=False), norm(wide), nn.LeakyReLU(0.2))
            for wide in widths[1:]
        )
        self.score = nn.Linear(widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, channels, y, x)` to `(n,)`."""
        for down, residual in zip(self.downs, self.residuals, strict=True):
            x = down(x)
            x = x + residual(x)
        score: Tensor = self.score(x.mean(dim=(2, 3))).squeeze(1)
        return score
