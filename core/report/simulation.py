"""The picture of what was simulated: noisy images over those that nobody has of real particles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..io.mrc import StackReader
from ..spread import evenly_spread
from . import PNG_NAME
from .figures import Kind, Row, contrast, draw_rows, draw_side_by_side
from .pdf import LABEL_ROOM, PICTURE_WIDTH, SHOWN, TITLE_ROOM, save


def draw_simulation(
    directory: Path, files: Mapping[str, Path], pixel_size_angstrom: float, kind: Kind
) -> Path:
    """Write `montage.png`, replacing an earlier one, and return its path.

    Parameters
    ----------
    files
        By what they show: stacks of the same particles, a row each; or the images of one micrograph, which
        are shown side by side.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    rows: list[Row] = []
    chosen = np.arange(0)
    for name, path in files.items():
        with StackReader(path) as reader:
            chosen = evenly_spread(reader.n_images, SHOWN["particles"])
            images = reader.read(chosen.tolist())
        rows.append(Row(name, images, [contrast(image, kind) for image in images]))
    tall, wide = rows[0].images.shape[-2:]
    side = PICTURE_WIDTH[kind]
    if kind == "particles":
        width = side * len(chosen) + LABEL_ROOM
        height = len(rows) * side * tall / wide + TITLE_ROOM + 0.2
        figure = Figure(figsize=(width, height))
        figure.subplots_adjust(LABEL_ROOM / width, 0.2 / height, 0.995, 1 - TITLE_ROOM / height)
        titles = [f"no. {number + 1}" for number in chosen.tolist()]
        draw_rows(figure, rows, titles=titles, pixel_size_angstrom=pixel_size_angstrom)
    else:
        height = side * tall / wide + 0.6
        figure = Figure(figsize=(side * len(rows), height))
        figure.subplots_adjust(0.005, 0.35 / height, 0.995, 1 - 0.25 / height)
        draw_side_by_side(figure, rows, 0, columns=len(rows), pixel_size_angstrom=pixel_size_angstrom)
    return save(figure, directory / PNG_NAME)
