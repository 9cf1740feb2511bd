"""Micrographs and tables for tests to run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from particle_files import write_stack

OPTICS = (
    "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnVoltage #2\n"
    "_rlnMicrographPixelSize #3\n"
    "1 300.000000 1.500000\n2 300.000000 2.250\n\n# version 30001\n\n"
)


def micrograph(y: int = 90, x: int = 110, seed: int = 1) -> NDArray[np.float32]:
    """Return white noise of sd 3 about 100 with a dark disc."""
    image = np.random.default_rng(seed).normal(100, 3, (y, x)).astype(np.float32)
    rows, columns = np.ogrid[:y, :x]
    image -= 3.0 * ((rows - y // 2) ** 2 + (columns - x // 2) ** 2 < 10**2)
    return image


def empty_micrograph(seed: int) -> NDArray[np.float32]:
    """Return `(1, 320, 320)` white noise of sd 4 about 50."""
    return np.random.default_rng(seed).normal(50, 4, (1, 320, 320)).astype(np.float32)


def write_micrograph(path: Path, image: NDArray[np.float32]) -> NDArray[np.float32]:
    write_stack(path, image[None], 1.5)
    return image


def table_of(names: list[str], groups: list[int] | None = None) -> str:
    """Return a RELION 3.1 table of micrographs with columns that must survive to the last digit."""
    rows = "".join(
        f"{name}  {group} 1.348548e+06 0012\n"
        for name, group in zip(names, groups or [1] * len(names), strict=True)
    )
    return (
        f"{OPTICS}data_micrographs\n\nloop_ \n_rlnMicrographName #1 \n_rlnOpticsGroup #2 \n_rlnDefocusU #3 \n"
        f"_rlnBeamTiltClass #4 \n{rows}\n"
    )
