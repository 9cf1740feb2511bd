"""Centres of particles on a micrograph, as RELION's picking jobs write them."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StarError
from .star import read_tables, unquote

_X, _Y = "rlnCoordinateX", "rlnCoordinateY"


def read_coordinates(path: str | Path) -> NDArray[np.float64]:
    """Return the centres `(n, 2)` (y, x) in pixels, 0-based, of a coordinate file.

    Raises
    ------
    StarError
        If the file cannot be read, has no coordinates, or a value is no number.
    """
    for table in read_tables(path):
        if _X not in table.labels or _Y not in table.labels:
            continue
        columns = table.column(_Y), table.column(_X)
        centres = []
        for line, _, tokens in table.rows():
            if not tokens:
                continue
            try:
                centres.append([float(unquote(tokens[column])) for column in columns])
            except ValueError as error:
                raise StarError(f"a coordinate is no number: {error}.", path=path, line=line) from error
        return np.array(centres, dtype=np.float64).reshape(-1, 2)
    raise StarError(f"no table with _{_X} and _{_Y} found.", path=path)


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
