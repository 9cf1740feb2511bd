"""A few of many, evenly spread."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def evenly_spread(n: int, most: int) -> NDArray[np.int64]:
    """0-based numbers of at most `most` of `n` things, evenly spread from the first to the last."""
    return np.linspace(0, n - 1, min(most, n)).round().astype(np.int64)
