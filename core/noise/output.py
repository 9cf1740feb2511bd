"""What an extraction of noise writes: a part for each micrograph, and in the end one stack and one table."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import __version__
from ..errors import InputError, OutputError
from ..inference.plan import path_below
from ..io.files import make_folder, writing
from ..io.image_names import split_image_name
from ..io.micrographs import MicrographSet
from ..io.mrc import StackReader, StackWriter, write_mrc
from ..io.star import read_tables, unquote, write_tables

STACK_NAME, TABLE_NAME = "noise.mrcs", "noise.star"
PARTS_FOLDER, LABELS_FOLDER, OVERLAYS_FOLDER = ".noise-parts", "labels", "overlays"
STATISTICS = ("mean", "std", "level", "spread", "gradient", "streak", "deviation", "similarity")
"""Columns of numbers of the table, as `rlnCryohushNoiseMean` and so on: `noise.patches.BlockStatistics`."""


@dataclass(frozen=True, eq=False)
class NoisePart:
    """The blocks of one micrograph.

    Attributes
    ----------
    origins
        int64 `(n, 2)` (y, x) first pixels.
    blocks
        float32 `(n, y, x)` as they are written.
    statistics
        float64 `(n, 8)`, columns as `STATISTICS`; of the blocks before any normalisation. What a method does
        not know is 0.
    amplitudes
        float32 `(rings,)` that whitening has divided by; none without it.
    """

    origins: NDArray[np.int64]
    blocks: NDArray[np.float32]
    statistics: NDArray[np.float64]
    amplitudes: NDArray[np.float32]

    def save(self, path: Path) -> None:
        """Write the part, all or nothing."""
        make_folder(path.parent)
        with writing(path, self.blocks.nbytes) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, **vars(self))

    @classmethod
    def load(cls, path: Path) -> NoisePart:
        """Read a part.

        Raises
        ------
        OutputError
            If it is gone or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(*(arrays[name] for name in cls.__dataclass_fields__))
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise OutputError(f"{path}: is gone or damaged ({error}). Start the run anew.") from error


def write_labels(path: Path, labels: NDArray[np.uint8], pixel_size_angstrom: float) -> None:
    """Write a label map as an MRC file of mode 0.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    make_folder(path.parent)
    write_mrc(path, labels.astype(np.int8), pixel_size_angstrom)


def write_noise(
    images: MicrographSet,
    output_dir: Path,
    parts: Sequence[tuple[int, Path]],
    n_blocks: int,
    window_px: int,
    method: str,
    pixel_size_angstrom: float | None,
) -> tuple[Path, Path]:
    """Join the parts in the order of the micrographs, and return the paths of the stack and the table.

    Parameters
    ----------
    images
        The micrographs.
    output_dir
        Where to.
    parts
        Index of each micrograph, and its part.
    n_blocks
        In all of them.
    window_px
        Side of a block.
    method
        By which the blocks were found.
    pixel_size_angstrom
        Instead of the table's.

    Raises
    ------
    OutputError
        If a part is damaged, or the disk full.
    """
    stack, table = output_dir / STACK_NAME, output_dir / TABLE_NAME
    sizes = {index: pixel_size_angstrom or images.pixel_size_angstrom(index) for index, _ in parts}
    known = [size for size in sizes.values() if size is not None]
    rows: list[tuple[str | float | int, ...]] = []
    whitening: list[tuple[str | float | int, ...]] = []
    image_name = f"{PurePosixPath((path_below(output_dir, images.root) or Path()) / STACK_NAME)}"
    label = f"cryohush {__version__}: blocks of noise, by {method}"
    with StackWriter(
        stack,
        (n_blocks, window_px, window_px),
        pixel_size_angstrom=known[0] if known else None,
        label=label,
    ) as writer:
        for index, path in parts:
            part = NoisePart.load(path)
            name, group = images.stack_names[index], _group(images, index)
            centres = (part.origins + window_px // 2).tolist()
            for (y, x), values in zip(centres, part.statistics.tolist(), strict=True):
                number = len(rows) + 1
                rows.append(
                    (
                        f"{number:06d}@{image_name}",
                        name,
                        float(x),
                        float(y),
                        group,
                        method,
                        *map(_exact, values),
                    )
                )
            writer.write(part.blocks)
            amplitudes = part.amplitudes.tolist()
            whitening += [(name, ring, _exact(value)) for ring, value in enumerate(amplitudes)]
    labels = (
        "rlnImageName",
        "rlnMicrographName",
        "rlnCoordinateX",
        "rlnCoordinateY",
        "rlnOpticsGroup",
        "rlnCryohushNoiseMethod",
        *map(_column, STATISTICS),
    )
    optics_labels, optics_rows = _optics(images, window_px, pixel_size_angstrom)
    tables: list[tuple[str, Sequence[str], Sequence[Sequence[str | float | int]]]] = [
        ("optics", optics_labels, optics_rows),
        ("particles", labels, rows),
    ]
    if whitening:
        columns = ("rlnMicrographName", "rlnCryohushRing", "rlnCryohushAmplitude")
        tables.append(("whitening", columns, whitening))
    write_tables(table, tables)
    return stack, table


def split_noise(output_dir: Path, parts: Mapping[str, tuple[Path, int]], window_px: int) -> None:
    """Undo `write_noise` for some micrographs, so that others can be added.

    Parameters
    ----------
    output_dir
        Where the stack and the table are. A part of which they do not hold all is not written, nor is any if
        they cannot be read or are of another window.
    parts
        By the name of a micrograph where its part goes, and how many blocks it has.
    window_px
        Side of a block.

    Raises
    ------
    OutputError
        If a part cannot be written.
    """
    # whoever has edited the table has them searched again
    with (
        contextlib.suppress(InputError, KeyError, ValueError),
        StackReader(output_dir / STACK_NAME) as reader,
    ):
        rows, amplitudes = _read_rows(output_dir / TABLE_NAME)
        if reader.shape != (sum(map(len, rows.values())), window_px, window_px):
            return
        for name, (path, n_blocks) in parts.items():
            of_this = np.array(rows.get(name, []), np.float64).reshape(-1, 3 + len(STATISTICS))
            if len(of_this) != n_blocks:
                continue
            NoisePart(
                of_this[:, 2:0:-1].astype(np.int64) - window_px // 2,
                reader.read(of_this[:, 0].astype(np.int64) - 1),
                of_this[:, 3:],
                np.array(amplitudes.get(name, []), np.float32),
            ).save(path)


def _read_rows(table: Path) -> tuple[dict[str, list[list[float]]], dict[str, list[float]]]:
    """By micrograph its rows (number of the block, x, y, statistics), and the amplitudes of its whitening."""
    columns = ("rlnCoordinateX", "rlnCoordinateY", *map(_column, STATISTICS))
    rows: dict[str, list[list[float]]] = {}
    amplitudes: dict[str, list[float]] = {}
    for found in read_tables(table):
        for _, _, tokens in found.rows():
            row = dict(zip(found.labels, map(unquote, tokens), strict=True)) if tokens else {}
            name = row.get("rlnMicrographName", "")
            if found.name == "particles" and row:
                number = float(split_image_name(row["rlnImageName"])[0])
                rows.setdefault(name, []).append([number, *(float(row[column]) for column in columns)])
            elif found.name == "whitening" and row:
                amplitudes.setdefault(name, []).append(float(row["rlnCryohushAmplitude"]))
    return rows, amplitudes


def _column(statistic: str) -> str:
    return f"rlnCryohushNoise{statistic.capitalize()}"


def _exact(value: float) -> str:
    """A number with all the digits of single precision, however small it is."""
    return f"{value:.9g}"


def _group(images: MicrographSet, index: int) -> int:
    return int(images.optics_group[int(np.argmax(images.stack == index))])


def _optics(
    images: MicrographSet, window_px: int, pixel_size_angstrom: float | None
) -> tuple[list[str], list[list[str | float | int]]]:
    """Labels and rows of the optics table; what is not known of every group has no column."""

    def columns() -> Iterator[tuple[str, list[Any]]]:
        groups = list(images.optics.values())
        yield "rlnOpticsGroupName", [group.name for group in groups]
        yield "rlnOpticsGroup", [group.number for group in groups]
        yield "rlnImagePixelSize", [pixel_size_angstrom or group.pixel_size_angstrom for group in groups]
        yield "rlnImageSize", [window_px] * len(groups)
        yield "rlnImageDimensionality", [2] * len(groups)
        yield "rlnVoltage", [group.voltage_kv for group in groups]
        yield "rlnSphericalAberration", [group.cs_mm for group in groups]
        yield "rlnAmplitudeContrast", [group.amplitude_contrast for group in groups]

    known = [(label, values) for label, values in columns() if None not in values]
    return [label for label, _ in known], [list(row) for row in zip(*(v for _, v in known), strict=True)]
