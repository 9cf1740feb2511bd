"""SR3: a diffusion model that draws clean images from the posterior given a noisy one.

The clean image y is destroyed by noise, `y_g = sqrt(g) y + sqrt(1 - g) e`, where g falls from 1 to nearly 0.
A network learns to tell e from y given y_g, g and the noisy observation x (eq. 6 of [1]_); going backwards
from pure noise, it draws an image that is likely given x. One draw looks sharp but has twice the squared
error of the posterior mean; the mean of k draws has 1 + 1/k times that error, and their spread tells what the
model is unsure of.

References
----------
.. [1] Saharia et al. (2021) SR3, arXiv:2104.07636.
.. [2] Ho, Jain & Abbeel (2020) DDPM, arXiv:2006.11239.
.. [3] Song, Meng & Ermon (2020) DDIM, arXiv:2010.02502, eq. 12.
.. [4] Chen et al. (2020) WaveGrad, arXiv:2009.00713: conditioning on the noise level.
.. [5] Salimans & Ho (2022) arXiv:2202.00512, section 4.
.. [6] Single-particle denoising by SR3 and a U-Net after it (2024), arXiv:2401.01097.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .base import DenoisingNetwork
from .unet import ShuffleUNet, join, reach


class _ConditionedBlock(nn.Module):
    """Residual block whose channels are scaled and shifted by the noise level."""

    def __init__(self, width: int, level_width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(level_width, 2 * width)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.film(level)[:, :, None, None].chunk(2, dim=1)
        y = self.first(nn.functional.silu(x)) * (1 + scale) + shift
        residual: Tensor = self.second(nn.functional.silu(y))
        return x + residual


class _ConditionedBlocks(nn.Module):
    """Several conditioned blocks in a row."""

    def __init__(self, width: int, level_width: int, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_ConditionedBlock(width, level_width) for _ in range(count))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, level)
        return x


class VelocityPredictor(nn.Module):
    """U-Net that predicts v = sqrt(g) e - sqrt(1 - g) y from y_g, the observation and the noise level.

    Differs from SR3 [1]_, which predicts e: v gives e and y at every level without dividing by a small number
    [5]_, so that few steps suffice. And: pixel-unshuffled input, skips added, no attention and no
    normalisation, which would make a pixel depend on the whole image, and far fewer channels.

    Parameters
    ----------
    widths, blocks, unshuffle
        As of `ShuffleUNet`.
    """

    def __init__(
        self,
        widths: Sequence[int] = (64, 96, 160),
        blocks: Sequence[int] = (1, 1, 2),
        unshuffle: int = 2,
    ) -> None:
        super().__init__()
        level_width = 64
        self.stride = unshuffle * 2 ** (len(widths) - 1)
        self.receptive_field_px = reach(blocks, unshuffle)
        cell = unshuffle**2
        self.unshuffle, self.shuffle = nn.PixelUnshuffle(unshuffle), nn.PixelShuffle(unshuffle)
        self.embed = nn.Sequential(
            nn.Linear(level_width, level_width), nn.SiLU(), nn.Linear(level_width, level_width)
        )
        self.stem = nn.Conv2d(2 * cell, widths[0], 3, padding=1)

        pairs = list(pairwise(widths))
        sizes = list(zip(widths, blocks, strict=True))
        self.down_blocks = nn.ModuleList(_ConditionedBlocks(w, level_width, count) for w, count in sizes)
        self.up_blocks = nn.ModuleList(_ConditionedBlocks(w, level_width, count) for w, count in sizes[:-1])
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, stride=2) for fine, coarse in pairs)
        self.head = nn.Conv2d(widths[0], cell, 3, padding=1)

    def forward(self, noised: Tensor, observation: Tensor, level: Tensor) -> Tensor:
        """`(n, 1, y, x)` y_g and observation and `(n,)` g to `(n, 1, y, x)` v, in the weights' precision."""
        dtype = self.stem.weight.dtype
        embedded = self.embed(_fourier_features(level).to(dtype))
        both = torch.cat([self.unshuffle(noised.to(dtype)), self.unshuffle(observation.to(dtype))], dim=1)
        x = self.stem(both)
        skips: list[Tensor] = []
        for number, down in enumerate(self.downs):
            x = self.down_blocks[number](x, embedded)
            skips.append(x)
            x = down(x)
        x = self.down_blocks[-1](x, embedded)
        for number in reversed(range(len(self.ups))):
            x = self.up_blocks[number](join(self.ups[number], x, skips[number]), embedded)  # type: ignore[arg-type]
        out: Tensor = self.shuffle(self.head(x))
        return out


def _fourier_features(level: Tensor) -> Tensor:
    """`(n,)` g to `(n, 64)`: sines and cosines of the logarithm of the ratio of signal to noise."""
    level = level.clamp(1e-6, 1 - 1e-6)
    log_ratio = (level.log() - (1 - level).log()) / 2
    frequency = torch.exp(torch.linspace(math.log(0.05), math.log(10.0), 32, device=level.device))
    phase = log_ratio[:, None] * frequency
    return torch.cat([phase.sin(), phase.cos()], dim=1)


def noise_levels(steps: int) -> Tensor:
    """`(steps + 1,)` values of g from 1 downwards: the cosine schedule, nearly all noise at the end."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    g = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    return (g / g[0]).clamp_min(1e-4).float()


def add_noise(clean: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """y_g of clean images `(n, 1, y, x)` at levels g `(n,)`."""
    level = level[:, None, None, None]
    return level.sqrt() * clean + (1 - level).sqrt() * noise


def velocity(clean: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """v of clean images and noise `(n, 1, y, x)` at levels g `(n,)`: what the predictor is trained for."""
    return add_noise(noise, level, -clean)


def sample(
    predictor: nn.Module,
    observation: Tensor,
    *,
    steps: int,
    deterministic: bool,
    generator: torch.Generator,
) -> Tensor:
    """One draw `(n, 1, y, x)` from the posterior of each image.

    Parameters
    ----------
    predictor
        A trained `VelocityPredictor`.
    observation
        `(n, 1, y, x)`.
    steps
        Steps from pure noise to the image.
    deterministic
        No fresh noise on the way (DDIM [3]_), so that few steps suffice; else DDPM [2]_.
    generator
        On the CPU: the same draw on every device. One noise field serves all images of a call, so that the
        result for an image does not depend on its batch.
    """
    levels = noise_levels(steps).to(observation.device)

    def fresh() -> Tensor:
        return torch.randn(observation.shape[1:], generator=generator).to(observation.device)

    image = fresh().expand_as(observation)
    for number in range(steps, 0, -1):
        level, following = levels[number], levels[number - 1]
        v = predictor(image, observation, level.expand(len(observation))).float()
        clean = level.sqrt() * image - (1 - level).sqrt() * v
        noise = (1 - level).sqrt() * image + level.sqrt() * v
        if deterministic:
            spread = torch.zeros_like(level)
        else:
            spread = ((1 - following) / (1 - level) * (1 - level / following)).sqrt()
        image = following.sqrt() * clean + (1 - following - spread**2).clamp_min(0).sqrt() * noise
        if number > 1 and not deterministic:
            image = image + spread * fresh()
    return image


class DiffusionDenoiser(DenoisingNetwork):
    """The mean of several draws of a diffusion model, improved by a U-Net [6]_.

    Parameters
    ----------
    predictor, post
        Arguments of `VelocityPredictor` and of the `ShuffleUNet` after it; `post` None leaves it out.
    clean_scale
        Standard deviation of clean images: the predictor works on clean images divided by it.
    steps, draws, deterministic
        See `sample`; `draws` are averaged.
    """

    def __init__(
        self,
        predictor: Mapping[str, Any] | None = None,
        post: Mapping[str, Any] | None = None,
        clean_scale: float = 0.3,
        steps: int = 12,
        draws: int = 2,
        *,
        deterministic: bool = True,
    ) -> None:
        super().__init__()
        self.predictor = VelocityPredictor(**(predictor or {}))
        self.post = None if post is None else ShuffleUNet(**post)
        self.stride = max(self.predictor.stride, self.post.stride if self.post is not None else 1)
        # each step looks that much further
        self.receptive_field_px = steps * self.predictor.receptive_field_px
        if self.post is not None:
            self.receptive_field_px += self.post.receptive_field_px
        self.clean_scale, self.steps, self.draws = clean_scale, steps, draws
        self.deterministic = deterministic

    def draw(self, x: Tensor, number: int) -> Tensor:
        """The draw of that number: `(n, 1, y, x)` to the same."""
        generator = torch.Generator().manual_seed(number)
        image = sample(
            self.predictor, x, steps=self.steps, deterministic=self.deterministic, generator=generator
        )
        return image * self.clean_scale

    def mean_draw(self, x: Tensor) -> Tensor:
        """The mean of the draws: `(n, 1, y, x)` to the same."""
        return torch.stack([self.draw(x, number) for number in range(self.draws)]).mean(0)

    def improve(self, drawn: Tensor) -> Tensor:
        """What the U-Net makes of a mean of draws, which stays as it is without one."""
        return drawn if self.post is None else drawn + self.post(drawn)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        # between the steps of a draw all is float32
        return self.improve(self.mean_draw(x).to(x.dtype))
