"""Whether protein is dark or white, judged by the images: a wrong guess denoises the negative."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .background import background_level
from .normalise import background_mask, default_radius_px

# The protein's middle: half of the default circle.
_MIDDLE = 0.5
_CELL_ANGSTROM, _CELL_PX = 24.0, 16
# Protein is fainter than so many standard deviations of the noise.
_BEYOND = 2.0


def middle_above_background(images: Tensor) -> tuple[float, float]:
    """Mean of the middle of particle images `(n, y, x)` above their background, and its standard error.

    In standard deviations of the background: positive where protein is white, near 0 where it is hollow.
    Images without noise do not count; without two others both are 0.
    """
    shape = (images.shape[-2], images.shape[-1])
    radius_px = default_radius_px(shape)
    outside = background_mask(shape, radius_px, images.device)
    middle = ~background_mask(shape, _MIDDLE * radius_px, images.device)
    # only what has a counterpart opposite of it: a brightness that rises across the box then cancels
    outside[: 1 - shape[0] % 2] = False
    outside[:, : 1 - shape[1] % 2] = False
    background = images[:, outside].double()
    height = (images[:, middle].double().mean(1) - background.mean(1)) / background.std(1)
    height = height[torch.isfinite(height)]
    if len(height) < 2:
        return 0.0, 0.0
    return float(height.mean()), float(height.std()) / math.sqrt(len(height))


def skewness_of_particles(images: Tensor) -> tuple[float, float]:
    """Third moment of the coarse structure of particle images `(n, y, x)`, and its standard error.

    Of their means over squares of a sixteenth of the box, in units of the second moment to the 3/2: positive
    where protein is white, whatever its shape. Images without noise do not count; without two others both
    are 0.
    """
    side = max(1, images.shape[-1] // 16)
    cells = functional.avg_pool2d(images[:, None], side)[:, 0].double()
    cells = cells - cells.mean((1, 2), keepdim=True)
    cells = cells / cells.std((1, 2), keepdim=True)
    third = (cells**3).mean((1, 2))
    third = third[torch.isfinite(third)]
    if len(third) < 2:
        return 0.0, 0.0
    return float(third.mean()), float(third.std()) / math.sqrt(len(third))


def skewness(micrograph: Tensor, pixel_size_angstrom: float | None = None) -> float:
    """Skewness of the coarse structure of a micrograph `(y, x)`: negative where protein (and ice) is dark.

    Of its means over squares of 24 Å (16 px if the pixel size is unknown), after the level of the ice was
    taken off, where they are not beyond what protein can be. 0 for a micrograph that is too small or
    constant.
    """
    side = _CELL_PX if pixel_size_angstrom is None else max(2, round(_CELL_ANGSTROM / pixel_size_angstrom))
    if min(micrograph.shape) < 16 * side:
        return 0.0
    centred = micrograph - micrograph.mean()
    residual = centred - background_level(centred)
    cells = functional.avg_pool2d(residual[None], side)[0].double()
    # contamination and holes are no protein, and a few of them would decide alone
    noise = 1.4826 * float(residual[:: max(1, side // 4), :: max(1, side // 4)].abs().median())
    beyond = (
        functional.max_pool2d((cells.abs() > _BEYOND * noise)[None].float(), 3, stride=1, padding=1)[0] > 0
    )
    cells = cells[~beyond] if beyond.float().mean() < 0.5 else cells.flatten()
    low, high = torch.quantile(cells, torch.tensor([0.001, 0.999], dtype=torch.float64, device=cells.device))
    cells = cells.clamp(low, high)
    cells = cells - cells.mean()
    value = float((cells**3).mean() / cells.square().mean() ** 1.5)
    return value if math.isfinite(value) else 0.0
