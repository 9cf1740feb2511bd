"""Noise2Noise pairs from a session's own movies: boxes cut from the sums of even and of odd frames.

RELION 4 and 5 write both sums beside each micrograph (motion correction with `--even_odd_split`: the columns
`rlnMicrographNameEven` and `rlnMicrographNameOdd`). Their noise is independent, the specimen the same [1]_.
Where both are images of one file, their names are `1@file` and `2@file`.

References
----------
.. [1] Bepler, Kelley, Noble & Berger (2020) Nat. Commun. 11, 5208, doi:10.1038/s41467-020-18952-1: training
   on pairs of half exposures.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..config.training import PairsConfig
from ..errors import ConfigurationError, InputError, StarError
from ..io.columns import Columns, read_columns
from ..io.coordinates import read_coordinates
from ..io.files import write_text
from ..io.image_names import split_image_name
from ..io.micrographs import EVEN_LABEL, ODD_LABEL, MicrographSet
from ..io.mrc import StackReader, StackWriter
from ..io.star import write_tables
from ..job_context import QUIET, JobContext
from ..progress import counted

FOLDER = "frame_halves"
_LIST = ("rlnMicrographName", "rlnMicrographCoordinates")
_MADE_FROM = "made_from.json"
_LABELS = ("rlnImageName", "rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnOpticsGroup")
_OPTICS = ("rlnOpticsGroup", "rlnOpticsGroupName", "rlnImagePixelSize", "rlnImageSize")


@dataclass(frozen=True)
class Sum:
    """A sum of frames: an image, 0-based, of a file."""

    path: Path
    image: int

    def read(self) -> NDArray[np.float32]:
        """Return it, `(y, x)`."""
        with StackReader(self.path) as reader:
            self._check(reader)
            image: NDArray[np.float32] = reader.read([self.image])[0]
        return image

    def shape(self) -> tuple[int, int]:
        """Return its height and width in px."""
        with StackReader(self.path) as reader:
            self._check(reader)
            return reader.shape[1], reader.shape[2]

    def _check(self, reader: StackReader) -> None:
        if reader.header.denoised_label:
            raise InputError(
                f"this sum of frames was denoised already ({reader.header.denoised_label}).",
                path=self.path,
                remedy="Give the raw ones.",
            )
        if self.image >= reader.n_images:
            raise InputError(
                f"expected two sums of frames, found {reader.n_images} image{'s' * (reader.n_images > 1)}.",
                path=self.path,
            )


@dataclass(frozen=True)
class Halves:
    """Both sums of one micrograph.

    Attributes
    ----------
    name
        The micrograph's own name, as the table writes it.
    even, odd
        Its sums.
    """

    name: str
    even: Sum
    odd: Sum


def cut_pairs(config: PairsConfig, folder: Path, *, seed: int, context: JobContext = QUIET) -> PairsConfig:
    """Cut boxes from both sums of each micrograph, and return the pairs that they are.

    `folder` gets `even.mrcs` and `odd.mrcs`, protein white, with their tables; what an earlier run has cut
    for the same settings is used again.

    Parameters
    ----------
    config
        With `box_px`: `noisy` is a table of micrographs, `coordinates` says where to cut; without it boxes
        lie at random.
    seed
        Of these places.

    Raises
    ------
    InputError
        The table has no columns of sums, a sum cannot be read or has another size, or no box fits.
    ConfigurationError
        The particles' micrographs are not those of the table.
    """
    box = config.box_px
    if box is None:
        raise ConfigurationError("pairs.box_px is needed to cut boxes from micrographs.")
    names = ("even", "odd")
    pairs = config.model_copy(
        update={
            "noisy": folder / "even.star", "target": folder / "odd.star", "target_is_clean": False,
            "coordinates": None, "box_px": None,
        }
    )  # fmt: skip
    key = _fingerprint(config, seed)
    with contextlib.suppress(OSError):
        if (folder / _MADE_FROM).read_text(encoding="utf-8") == key:
            return pairs
    (folder / _MADE_FROM).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    micrographs, pixel_size = read_halves(config.noisy)
    places = _places(config, micrographs, seed)
    n = sum(map(len, places))
    if not n:
        raise InputError(
            f"no box of {box} px lies within a micrograph.",
            path=config.coordinates or config.noisy,
            remedy="Give a smaller pairs.box_px, and coordinates on these micrographs.",
        )
    label = "cryohush: boxes of even and odd frames"
    writers = [
        StackWriter(folder / f"{name}.mrcs", (n, box, box), pixel_size_angstrom=pixel_size, label=label)
        for name in names
    ]
    with contextlib.ExitStack() as open_stacks:
        for writer in writers:
            open_stacks.enter_context(writer)
        for halves, corners in zip(micrographs, places, strict=True):
            context.stop_if_asked("stopped while boxes were cut; run again with --resume to begin with them")
            for writer, half in zip(writers, (halves.even, halves.odd), strict=True):
                writer.write(_boxes(half, corners, box))
    for name in names:
        rows = (
            (f"{index:06d}@{name}.mrcs", halves.name, float(x + box // 2), float(y + box // 2), 1)
            for index, (halves, (y, x)) in enumerate(_each(micrographs, places), 1)
        )
        optics = [(1, "opticsGroup1", pixel_size or 1.0, box)]
        write_tables(folder / f"{name}.star", [("optics", _OPTICS, optics), ("particles", _LABELS, rows)])
    write_text(folder / _MADE_FROM, key)
    context.log(f"{n} pairs of boxes of even and odd frames, from {counted(len(micrographs), 'micrograph')}")
    return pairs


def read_halves(path: Path) -> tuple[list[Halves], float | None]:
    """The micrographs of a table with their sums, and their pixel size, Å.

    Raises
    ------
    StarError
        It has no columns of sums, or a sum is not there.
    """
    table = MicrographSet.read(path)
    sizes = {table.pixel_size_angstrom(stack) for stack in range(len(table.stacks))}
    labels = table.labels()
    if EVEN_LABEL not in labels or ODD_LABEL not in labels:
        raise StarError(
            f"the table has no columns {EVEN_LABEL} and {ODD_LABEL}.",
            path=path,
            remedy="Run RELION's motion correction again so that it writes even and odd frames "
            "(--even_odd_split), and give the micrographs of that job.",
        )
    names = ("rlnMicrographName", EVEN_LABEL, ODD_LABEL)
    columns = table.columns(names)
    found = []
    for line, name, even, odd in zip(columns.lines, *(columns.text[label] for label in names), strict=True):
        halves = Halves(name, _sum(table, even, line), _sum(table, odd, line))
        for half in (halves.even, halves.odd):
            if not half.path.is_file():
                raise StarError(f"{half.path} is not there.", path=path, line=line)
        found.append(halves)
    return found, sizes.pop() if len(sizes) == 1 else None


def _sum(table: MicrographSet, name: str, line: int) -> Sum:
    number, file = split_image_name(name)
    if int(number or "1") < 1:
        raise StarError(f"images are counted from 1, found {name}.", path=table.source, line=line)
    return Sum(table.root / file, int(number or "1") - 1)


def _places(config: PairsConfig, micrographs: list[Halves], seed: int) -> list[NDArray[np.int64]]:
    """For each micrograph the first pixels `(n, 2)` (y, x) of the boxes that lie within it."""
    box = config.box_px or 0
    picked = None if config.coordinates is None else _read_places(config.coordinates)
    places = []
    for number, halves in enumerate(micrographs):
        (height, width), odd = halves.even.shape(), halves.odd.shape()
        if (height, width) != odd:
            raise InputError(
                f"expected {width} x {height} px as in {halves.even.path}, found {odd[1]} x {odd[0]} px.",
                path=halves.odd.path,
            )
        if min(height, width) < box:
            corners = np.empty((0, 2), dtype=np.int64)
        elif picked is None:
            draws = np.random.default_rng([seed, number])
            corners = draws.integers(
                (0, 0), (height - box + 1, width - box + 1), (config.boxes_per_micrograph, 2)
            )
        else:
            centres = picked.get(halves.name, picked.get(Path(halves.name).name, np.empty((0, 2))))
            corners = np.rint(centres).astype(np.int64) - box // 2
            inside = ((corners >= 0) & (corners + box <= (height, width))).all(axis=1)
            corners = corners[inside]
        # one place is one pair
        _, first = np.unique(corners, axis=0, return_index=True)
        places.append(corners[np.sort(first)])
    if picked is not None and not any(map(len, places)):
        raise ConfigurationError(
            f"pairs.coordinates: {config.coordinates} has no particle on the micrographs of {config.noisy}: "
            f"it names {next(iter(picked), 'none')}, the table {micrographs[0].name}."
        )
    return places


def _read_places(path: Path) -> dict[str, NDArray[np.float64]]:
    """Centres `(n, 2)` (y, x) by micrograph, under its whole name and the file's own."""
    if (files := read_columns(path, _LIST)) is not None:
        return _with_file_names(_read_list(files))
    name, y, x = "rlnMicrographName", "rlnCoordinateY", "rlnCoordinateX"
    columns = read_columns(path, (name,), (y, x))
    if columns is None:
        raise StarError(
            "no table with rlnMicrographName, rlnCoordinateX and rlnCoordinateY.",
            path=path,
            remedy="Give the particles of an extraction, or the coordinates of a picking job in one table.",
        )
    found: dict[str, list[tuple[float, float]]] = {}
    rows = zip(columns.text[name], columns.number[y], columns.number[x], strict=True)
    for micrograph, row, column in rows:
        found.setdefault(micrograph, []).append((row, column))
    return _with_file_names({name: np.array(centres) for name, centres in found.items()})


def _with_file_names(places: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {Path(name).name: centres for name, centres in places.items()} | places


def _read_list(files: Columns) -> dict[str, NDArray[np.float64]]:
    """Centres by micrograph from the files of RELION 4's and 5's list of a picking job."""
    found = {}
    for line, name, file in zip(files.lines, *(files.text[label] for label in _LIST), strict=True):
        # relative to the project, as everything in RELION
        if not Path(file).is_file():
            raise StarError(f"{file} is not there.", path=files.table.path, line=line)
        found[name] = read_coordinates(file)
    return found


def _each(
    micrographs: list[Halves], places: list[NDArray[np.int64]]
) -> Iterator[tuple[Halves, tuple[int, int]]]:
    for halves, corners in zip(micrographs, places, strict=True):
        for y, x in corners.tolist():
            yield halves, (y, x)


def _boxes(half: Sum, corners: NDArray[np.int64], box: int) -> NDArray[np.float32]:
    """`(n, y, x)`, protein white, as in particles."""
    if not len(corners):
        return np.empty((0, box, box), dtype=np.float32)
    image = -half.read()
    return np.stack([image[y : y + box, x : x + box] for y, x in corners.tolist()])


def _fingerprint(config: PairsConfig, seed: int) -> str:
    tables = [path for path in (config.noisy, config.coordinates) if path is not None]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in tables if path.is_file()]
    settings = {"box_px": config.box_px, "boxes_per_micrograph": config.boxes_per_micrograph, "seed": seed}
    return json.dumps({**settings, "tables": [str(path.absolute()) for path in tables], "sha256": digests})
