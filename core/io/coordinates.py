"""Centres of particles on a micrograph, as RELION's picking jobs write them."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StarError
from .columns import read_columns

_X, _Y = "rlnCoordinateX", "rlnCoordinateY"


def read_coordinates(path: str | Path) -> NDArray[np.float64]:
    """Return the centres `(n, 2)` (y, x) in pixels, 0-based, of a coordinate file.

    Raises
    ------
    StarError
        If the file cannot be read, has no coordinates, or a value is no number.
    """
    found = read_columns(path, number=(_Y, _X))
    if found is None:
        raise StarError(f"no table with _{_X} and _{_Y} found.", path=path)
    return np.stack([found.number[_Y], found.number[_X]], axis=1)


def find_coordinates(folder: Path, micrograph: Path) -> Path | None:
    """Return the coordinate file of a micrograph: `<name>.star` or `<name>_<job>.star`; None without one.

    Raises
    ------
    StarError
        If there are several.
    """
    exact = folder / f"{micrograph.stem}.star"
    if exact.exists():
        return exact
    found = sorted(folder.glob(f"{glob.escape(micrograph.stem)}_*.star"))
    # `mic_1_2_autopick.star` belongs to `mic_1_2`, not to `mic_1`
    found = [path for path in found if "_" not in path.stem[len(micrograph.stem) + 1 :]]
    if len(found) > 1:
        raise StarError(
            f"several coordinate files of one micrograph: {', '.join(path.name for path in found)}.",
            path=folder,
            remedy="Leave one of them there.",
        )
    return found[0] if found else None
