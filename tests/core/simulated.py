"""A small map and configurations of simulated sets of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray

BOX, PIXEL_SIZE_ANGSTROM = 32, 8.0


def blobs(side: int = BOX, seed: int = 0) -> NDArray[np.float32]:
    """An asymmetric cloud of Gaussian blobs in the inner half of the box."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(side) - side // 2] * 3, indexing="ij"), -1)
    centres = random.uniform(-0.25, 0.25, (12, 3)) * side
    squared = ((grid[..., None, :] - centres) ** 2).sum(-1)
    volume: NDArray[np.float32] = np.exp(-squared / (2 * 1.6**2)).sum(-1).astype(np.float32)
    return volume


def write_map(
    path: Path, side: int = BOX, pixel_size_angstrom: float = PIXEL_SIZE_ANGSTROM, seed: int = 0
) -> Path:
    with mrcfile.new(path, blobs(side, seed)) as file:
        file.voxel_size = pixel_size_angstrom
    return path


def settings(structure: Path, **changes: Any) -> dict[str, Any]:
    return {
        "structures": [{"path": str(structure)}],
        "n_images": 20,
        "box_px": BOX,
        "pixel_size_angstrom": PIXEL_SIZE_ANGSTROM,
        "snr": 0.5,
        "max_shift_angstrom": 12.0,
        **changes,
    }
