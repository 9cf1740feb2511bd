"""Particle stacks and tables for tests to run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import emtable
import numpy as np
import starfile
from numpy.typing import NDArray

from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.io.star import read_tables, unquote

#: what a `.cs` table says of particle images
CS_BLOB: list[Any] = [
    ("uid", "<u8"),
    ("blob/path", "S16"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"),
]


def save_cs(path: Path, rows: NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, rows)


def read_stack(path: Path) -> NDArray[np.float32]:
    with StackReader(path) as reader:
        return reader.read(range(reader.n_images))


def noise(n: int, y: int, x: int, seed: int = 1) -> NDArray[np.float32]:
    """Return white noise of sd 3 about 100 with a bright disc."""
    images = np.random.default_rng(seed).normal(100, 3, (n, y, x)).astype(np.float32)
    rows, columns = np.ogrid[:y, :x]
    images += 2.0 * ((rows - y // 2) ** 2 + (columns - x // 2) ** 2 < (min(y, x) / 4) ** 2)
    return images


def write_stack(
    path: Path, images: NDArray[np.float32], pixel_size_angstrom: float | None = 2.0
) -> NDArray[np.float32]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with StackWriter(path, images.shape, pixel_size_angstrom=pixel_size_angstrom, label="test") as writer:
        writer.write(images, unchecked=range(len(images)))
    return images


def write_table(
    path: Path, names: list[str], pixel_size_angstrom: float | None = 2.0, box_px: int = 16
) -> None:
    """Write a RELION 3.1 table of particles with one column that must survive."""
    pixel_size = "" if pixel_size_angstrom is None else "_rlnImagePixelSize #4\n"
    value = "" if pixel_size_angstrom is None else f" {pixel_size_angstrom:.6f}"
    rows = "".join(f"{name} {number}.50 1\n" for number, name in enumerate(names))
    path.write_text(
        "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnVoltage #2\n_rlnImageSize #3\n"
        f"{pixel_size}1 300.000000 {box_px}{value}\n\n# version 30001\n\ndata_particles\n\nloop_\n"
        f"_rlnImageName #1\n_rlnDefocusU #2\n_rlnOpticsGroup #3\n{rows}\n"
    )


def read_alike(path: str | Path) -> None:
    """Check that the field's packages read a table that cryohush wrote as cryohush does, text by text."""
    tables = {
        table.name: (table.labels, [[unquote(token) for token in row] for _, _, row in table.rows() if row])
        for table in read_tables(path)
        if table.labels
    }
    texts = sorted({label for labels, _ in tables.values() for label in labels})
    frames = starfile.read(path, always_dict=True, parse_as_string=texts)
    assert list(frames) == list(tables)
    for name, (labels, rows) in tables.items():
        assert list(frames[name].columns) == labels
        assert frames[name].to_numpy().tolist() == rows
        found = emtable.Table.iterRows(str(path), tableName=name, guessType=False)
        assert [[getattr(row, label) for label in labels] for row in found] == rows
