"""Where particles lie in a micrograph: random sequential placement with a minimum distance."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray

# After so many places in a row that are taken, a particle is left out.
_TRIES = 200


def place_particles(
    radii: NDArray[np.float64],
    limits: tuple[tuple[float, float], tuple[float, float]],
    min_distance: float,
    generator: torch.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Put discs one by one at uniformly random places, each time where no earlier one is too close [1]_.

    Parameters
    ----------
    radii
        `(n,)`, in the order of placement.
    limits
        `((y_low, y_high), (x_low, x_high))` of the centres, in the unit of the radii.
    min_distance
        Between the centres of two discs, in sums of their radii; 0 lets them fall anywhere.
    generator
        Source of all randomness.

    Returns
    -------
    centres
        `(m, 2)` (y, x) of the discs that found a place.
    placed
        `(m,)` their indices in `radii`, rising.

    References
    ----------
    .. [1] Hinrichsen, Feder & Jøssang (1986) J. Stat. Phys. 44, 793-827, doi:10.1007/BF01011908: such discs
       cover at most 54.7 % of the plane.
    """
    low, high = np.array(limits, dtype=np.float64).T
    reach = max(2 * min_distance * float(radii.max(initial=0.0)), 1e-9)
    # no disc reaches further than the eight cells about its own
    cells: defaultdict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(list)
    centres, placed = [], []
    for index, radius in enumerate(radii.tolist()):
        candidates = low + (high - low) * torch.rand(_TRIES, 2, generator=generator).double().numpy()
        for y, x in candidates.tolist():
            row, column = math.floor(y / reach), math.floor(x / reach)
            about = ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
            neighbours = (other for cell in about for other in cells.get(cell, ()))
            if all(
                math.hypot(y - v, x - u) >= min_distance * (radius + other_radius)
                for v, u, other_radius in neighbours
            ):
                if min_distance > 0:
                    cells[row, column].append((y, x, radius))
                centres.append((y, x))
                placed.append(index)
                break
    return np.array(centres).reshape(-1, 2), np.array(placed, dtype=np.int64)
