"""Optics groups: what the images of a STAR file share, from `data_optics` or from the rows themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import StarError
from .star import Table, finite, unquote

GROUP_LABEL = "rlnOpticsGroup"
# The image's own pixel size first; the others are what RELION falls back on.
PARTICLE_PIXEL_SIZES = (
    "rlnImagePixelSize",
    "rlnMicrographPixelSize",
    "rlnMicrographOriginalPixelSize",
    "rlnPixelSize",
)
MICROGRAPH_PIXEL_SIZES = ("rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize", "rlnPixelSize")
# Before RELION 3.1 every row carried its optics; the rows that agree in all of these are one group.
_ROW_OPTICS = (
    "rlnVoltage",
    "rlnSphericalAberration",
    "rlnAmplitudeContrast",
    "rlnMagnification",
    "rlnDetectorPixelSize",
    *PARTICLE_PIXEL_SIZES,
)
LARGEST_INDEX = 2**31 - 1


@dataclass(frozen=True)
class OpticsGroup:
    """What the images of one optics group share; None where the table does not say.

    Attributes
    ----------
    number
        As in the table.
    name
        As in the table.
    pixel_size_angstrom
        Pixel size of the particle images, Å.
    box_px
        Side of the particle images, pixels.
    voltage_kv, cs_mm, amplitude_contrast
        Of the microscope: kV, mm, a fraction.
    pixel_size_source
        What says the pixel size; empty where nothing does.
    """

    number: int
    name: str
    pixel_size_angstrom: float | None
    box_px: int | None
    voltage_kv: float | None
    cs_mm: float | None
    amplitude_contrast: float | None
    pixel_size_source: str = field(default="", compare=False)


def grouping(
    table: Table, pixel_sizes: Sequence[str] = PARTICLE_PIXEL_SIZES
) -> tuple[Callable[[list[bytes], int], int], dict[int, OpticsGroup]]:
    """Return a function from a row's values and line to its optics group, and the groups it has met."""
    optics: dict[int, OpticsGroup] = {}
    numbers: dict[tuple[bytes, ...], int] = {}
    by_number = GROUP_LABEL in table.labels
    labels = (GROUP_LABEL,) if by_number else tuple(label for label in _ROW_OPTICS if label in table.labels)
    columns = [table.labels.index(label) for label in labels]

    def group_of(tokens: list[bytes], line: int) -> int:
        key = tuple([tokens[column] for column in columns])
        number = numbers.get(key)
        if number is None:
            values = {} if by_number else dict(zip(labels, key, strict=True))
            number = _integer(table.path, line, GROUP_LABEL, key[0]) if by_number else len(numbers) + 1
            optics[number] = _optics_group(
                table.path, line, number, f"opticsGroup{number}", values, pixel_sizes
            )
            numbers[key] = number
        return number

    return group_of, optics


def read_optics(
    table: Table,
    pixel_sizes: Sequence[str] = PARTICLE_PIXEL_SIZES,
    *,
    before: dict[int, OpticsGroup] | None = None,
) -> dict[int, OpticsGroup]:
    """Read `data_optics`, written as a loop or as a list; `before` is what an earlier one said."""
    if before is not None:
        raise StarError(
            "a second table data_optics.", path=table.path, line=table.line, remedy="Leave one in the file."
        )
    optics: dict[int, OpticsGroup] = {}
    if table.labels:
        found = [
            (line, dict(zip(table.labels, tokens, strict=True))) for line, _, tokens in table.rows() if tokens
        ]
    else:
        found = [(table.line, table.values)]
    for line, values in found:
        if GROUP_LABEL not in values:
            raise StarError(f"data_optics has no column _{GROUP_LABEL}.", path=table.path, line=line)
        number = _integer(table.path, line, GROUP_LABEL, values[GROUP_LABEL])
        if number in optics:
            raise StarError(f"optics group {number} appears twice.", path=table.path, line=line)
        if _text(values, "rlnImageDimensionality") == "3":
            raise StarError(
                "subtomograms (rlnImageDimensionality 3) are not supported.", path=table.path, line=line
            )
        name = _text(values, "rlnOpticsGroupName") or f"opticsGroup{number}"
        optics[number] = _optics_group(table.path, line, number, name, values, pixel_sizes)
    return optics


def _optics_group(
    path: Path, line: int, number: int, name: str, values: dict[str, bytes], pixel_sizes: Sequence[str]
) -> OpticsGroup:
    def real(label: str) -> float | None:
        return finite(path, line, label, values[label]) if label in values else None

    pixel_size, label = next(((size, label) for label in pixel_sizes if (size := real(label))), (None, ""))
    detector_um, magnification = real("rlnDetectorPixelSize"), real("rlnMagnification")
    if pixel_size is None and detector_um and magnification:
        pixel_size, label = detector_um * 1e4 / magnification, "rlnDetectorPixelSize and rlnMagnification"
    if pixel_size is not None and pixel_size <= 0:
        raise StarError(f"expected a positive pixel size, found {pixel_size} Å.", path=path, line=line)
    box = real("rlnImageSize")
    return OpticsGroup(
        number,
        name,
        pixel_size,
        None if box is None else int(box),
        real("rlnVoltage"),
        real("rlnSphericalAberration"),
        real("rlnAmplitudeContrast"),
        f"{label} of {path.name}" if label else "",
    )


def check_groups(
    path: Path,
    group: Sequence[int] | NDArray[np.int32],
    line: Sequence[int],
    optics: dict[int, OpticsGroup],
    labels: Sequence[str],
) -> None:
    """Raise when a row's optics group, `(n,)` like `line`, is not in the table of optics, or not told.

    Raises
    ------
    StarError
        Names the first one.
    """
    if GROUP_LABEL not in labels and len(optics) > 1:
        raise StarError(
            f"data_optics has the groups {sorted(optics)}, and no column _{GROUP_LABEL} tells which of them "
            "an image belongs to.",
            path=path,
            line=line[0],
            remedy="Add the column, or leave the other groups out of data_optics.",
        )
    groups, first_rows = np.unique(np.asarray(group, dtype=np.int32), return_index=True)
    for number, row in zip(groups.tolist(), first_rows.tolist(), strict=True):
        if number not in optics:
            raise StarError(
                f"optics group {number} is not in data_optics, which has {sorted(optics)}.",
                path=path,
                line=line[row],
            )


def _text(values: dict[str, bytes], label: str) -> str:
    return unquote(values.get(label, b""))


def _integer(path: Path, line: int, label: str, token: bytes) -> int:
    number = finite(path, line, label, token)
    if number != int(number) or abs(number) > LARGEST_INDEX:
        raise StarError(
            f"expected a whole number in _{label}, found {unquote(token)!r}.", path=path, line=line
        )
    return int(number)
