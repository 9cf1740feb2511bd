"""Pictures of what was taken where: a micrograph with its label map and its blocks of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

from ..io.files import make_folder, writing
from ..noise.segmentation import CONTAMINATION, PARTICLE
from .figures import grey_range

# The longer side of a picture: whoever wants more detail opens the micrograph.
LONGEST_PX = 1200
TAKEN, REJECTED = (0.10, 0.75, 0.25), (0.95, 0.60, 0.10)
TINTS = {CONTAMINATION: (0.85, 0.10, 0.10), PARTICLE: (0.20, 0.45, 0.95)}
TINT = 0.3
# The longer side of a picture in widths of a frame's line.
LINES = 250


def draw_overlay(
    image: NDArray[np.float32],
    labels: NDArray[np.uint8] | None,
    taken: NDArray[np.int64],
    rejected: NDArray[np.int64],
    window_px: int,
) -> NDArray[np.float32]:
    """Draw a micrograph, contamination red, particles blue, blocks framed: green taken, orange rejected.

    Parameters
    ----------
    image
        `(y, x)`.
    labels
        `(y, x)` label map, if there is one.
    taken, rejected
        `(n, 2)` (y, x) first pixels of the blocks.
    window_px
        Their side.

    Returns
    -------
    `(y, x, 3)` from 0 to 1, reduced to at most `LONGEST_PX`.
    """
    factor = -(-max(image.shape) // LONGEST_PX)
    y, x = (side // factor * factor for side in image.shape)
    small = image[:y, :x].reshape(y // factor, factor, x // factor, factor).mean((1, 3))
    low, high = grey_range(small)
    picture = np.repeat(((small - low) / (high - low)).clip(0, 1)[..., None], 3, axis=2).astype(np.float32)
    if labels is not None:
        reduced = labels[:y:factor, :x:factor]
        for label, tint in TINTS.items():
            where = reduced == label
            picture[where] = (1 - TINT) * picture[where] + TINT * np.array(tint, dtype=np.float32)
    for origins, colour in ((rejected, REJECTED), (taken, TAKEN)):
        for top, left in (origins // factor).tolist():
            _frame(picture, top, left, max(window_px // factor, 2), colour)
    return picture


def _frame(
    picture: NDArray[np.float32], top: int, left: int, side: int, colour: tuple[float, float, float]
) -> None:
    """Draw the outermost pixels of a block, so many that they can be seen when the picture is made small."""
    bottom, right = min(top + side, picture.shape[0]), min(left + side, picture.shape[1])
    thick = max(1, max(picture.shape) // LINES)
    block = picture[top:bottom, left:right]
    for edge in (block[:thick], block[-thick:], block[:, :thick], block[:, -thick:]):
        edge[:] = colour


def write_overlay(
    path: Path,
    image: NDArray[np.float32],
    labels: NDArray[np.uint8] | None,
    taken: NDArray[np.int64],
    rejected: NDArray[np.int64],
    window_px: int,
) -> None:
    """Write `draw_overlay` as a PNG.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    make_folder(path.parent)
    with writing(path) as part:
        imsave(part, draw_overlay(image, labels, taken, rejected, window_px), format="png")
