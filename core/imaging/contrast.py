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


def middle_above_background(images: Tensor) -> tuple[float, float]:
    """Mean of the middle of particle images `(n, y, x)` above their background, and its standard error.

    In standard deviations of the background: positive where protein is white. Images without noise do not
    count; without two others both are 0.
    """
    shape = (images.shape[-2], images.shape[-1])
    radius_px = default_radius_px(shape)
    outside = background_mask(shape, radius_px, images.device)
    middle = ~background_mask(shape, _MIDDLE * radius_px, images.device)
    background = images[:, outside].double()
    height = (images[:, middle].double().mean(1) - background.mean(1)) / background.std(1)
    height = height[torch.isfinite(height)]
    if len(height) < 2:
        return 0.0, 0.0
    return float(height.mean()), float(height.std()) / math.sqrt(len(height))


def skewness(micrograph: Tensor, pixel_size_angstrom: float | None = None) -> float:
    """Skewness of the coarse structure of a micrograph `(y, x)`: negative where protein (and ice) is dark.

    Of its means over squares of 24 Å (16 px if the pixel size is unknown), after the level of the ice was
    taken off. 0 for a micrograph that is too small or constant.
    """
    side = _CELL_PX if pixel_size_angstrom is None else max(2, round(_CELL_ANGSTROM / pixel_size_angstrom))
    if min(micrograph.shape) < 16 * side:
        return 0.0
    centred = micrograph - micrograph.mean()
    cells = functional.avg_pool2d((centred - background_level(centred))[None], side)[0].double()
    # a few huge values, as of a hot pixel, would decide alone
    low, high = torch.quantile(cells, torch.tensor([0.001, 0.999], dtype=torch.float64, device=cells.device))
    cells = cells.clamp(low, high)
    cells = cells - cells.mean()
    value = float((cells**3).mean() / cells.square().mean() ** 1.5)
    return value if math.isfinite(value) else 0.0
