"""Image layers for napari: stacks, micrographs, tables, and of a run what was denoised over the raw images.

napari itself is not needed: layers are plain tuples of data, attributes and kind.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .io.image_set import ImageSet

    Layer = tuple[NDArray[np.float32], dict[str, Any], str]

RECORD_NAME = "cryohush.json"
ENDINGS = (".mrc", ".mrcs", ".star")
# Pixels of a layer: what is more is left out from the end, as a viewer holds all in memory.
MAX_PIXELS = 2**28
_LABEL = "mrc_label"


def get_reader(path: str | list[str]) -> Callable[[str], list[Layer]] | None:
    """Return what reads a file for napari; None for several at once, and for what is no file of ours."""
    if isinstance(path, str) and (path.lower().endswith(ENDINGS) or Path(path).name == RECORD_NAME):
        return read_layers
    return None


def read_layers(path: str) -> list[Layer]:
    """Read a stack, a micrograph, a table or `cryohush.json`, the record of a run.

    Of a file that a run has written, or of its record, the raw images are the first layer, and the denoised
    ones lie over them.

    Returns
    -------
    list of (data, attributes, kind)
        `(n, y, x)`, or `(y, x)` of a single image; `scale` is in Å where the pixel size is known.

    Raises
    ------
    CryohushError
        A file cannot be read.
    """
    source = Path(path)
    if source.name == RECORD_NAME:
        record = _record(source)
        source = source.parent / (record["table"] or record["stacks"][0])
    rows = _rows_of(source)
    run = _run_of(source)
    if run is None:
        return [_layer(rows, source.stem)]
    folder, record = run
    # the option --pixel-size counts more than the table
    rows.pixel_size_angstrom = record["options"]["pixel_size_angstrom"] or rows.pixel_size_angstrom
    try:
        raw = _raw_rows(folder, record, rows)
    except InputError as error:
        warnings.warn(f"{source.name} is shown without its raw images: {error}", stacklevel=2)
        raw = None
    return [*([_layer(raw, f"raw: {source.stem}")] if raw else []), _layer(rows, source.stem)]


class _Rows:
    """Images of a set, row by row: file and number in it."""

    def __init__(self, images: ImageSet) -> None:
        numbers = getattr(images, "image", None)
        self.places = [
            (images.stacks[stack], 0 if numbers is None else int(numbers[row]))
            for row, stack in enumerate(images.stack.tolist())
        ]
        self.pixel_size_angstrom = images.pixel_size_angstrom(int(images.stack[0])) if len(images) else None


def _rows_of(source: Path) -> _Rows:
    from .inference.plan import read_images

    return _Rows(read_images(source))


def _record(path: Path) -> dict[str, Any]:
    """Return what a run of `cryohush denoise` says of itself.

    Raises
    ------
    InputError
        It cannot be read, or is that of another command.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the record cannot be read: {error}.", path=path) from error
    if not (isinstance(record, dict) and {"table", "stacks", "input", "options"} <= record.keys()):
        raise InputError("no record of `cryohush denoise`.", path=path, remedy="Open a stack or a table.")
    return record


def _run_of(source: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the folder and the record of the run that has denoised a file; None of anything else."""
    for folder in source.absolute().parents[:4]:
        if (folder / RECORD_NAME).is_file():
            try:
                record = _record(folder / RECORD_NAME)
            except InputError:
                return None
            name = source.absolute().relative_to(folder).as_posix()
            return (folder, record) if name in (record["table"], *record["stacks"]) else None
    return None


def _raw_rows(folder: Path, record: dict[str, Any], rows: _Rows) -> _Rows | None:
    """Return the raw images of what a run has written; None if they are not known.

    Raises
    ------
    InputError
        They cannot be read.
    """
    from .inference.plan import read_images
    from .io.same_rows import match_rows

    images = read_images(Path(record["input"]))
    raw = _Rows(images)
    if record["table"]:
        denoised = read_images(folder / record["table"])
        whole = _Rows(denoised)
        try:
            same = match_rows(denoised, images)
        except InputError:
            return None
        if same.is_guess:  # the table has changed: it names none of the images that were denoised
            return None
        pairs = [(whole.places[a], raw.places[b]) for a, b in zip(same.first, same.other, strict=True)]
    else:
        pairs = list(zip(rows.places, raw.places, strict=False))  # of a trial run only the first images
    before = {(path.resolve(), number): old for (path, number), old in pairs}
    found = [before.get((path.resolve(), number)) for path, number in rows.places]
    raw.places = [place for place in found if place is not None]
    raw.pixel_size_angstrom = rows.pixel_size_angstrom
    return raw if len(raw.places) == len(rows.places) else None


def _layer(rows: _Rows, name: str) -> Layer:
    import numpy as np

    from .io.mrc import StackReader
    from .report.figures import contrast

    with StackReader(rows.places[0][0]) as reader:
        shape = reader.shape[1:]
    parts: list[NDArray[np.float32]] = []
    label = ""
    shown = rows.places[: max(1, MAX_PIXELS // (shape[0] * shape[1]))]
    for path, places in itertools.groupby(shown, lambda place: place[0]):
        with StackReader(path) as reader:
            if reader.shape[1:] != shape:
                break
            label = label or reader.header.denoised_label
            parts.append(reader.read([number for _, number in places]))
    images = np.concatenate(parts)
    data = images if len(images) > 1 else images[0]
    size = rows.pixel_size_angstrom
    metadata: dict[str, Any] = {"pixel_size_angstrom": size} if size else {}
    attributes: dict[str, Any] = {"name": name, "contrast_limits": contrast(images[0]), "metadata": metadata}
    if size:
        attributes["scale"] = (*([1.0] * (data.ndim - 2)), size, size)
    if label:
        metadata[_LABEL] = label
    return data, attributes, "image"


def write_image(path: str, data: Any, attributes: dict[str, Any]) -> list[str]:
    """Write an image layer as an MRC file, with the pixel size that its scale says in Å.

    What was read from denoised images says so in its header again.

    Raises
    ------
    OutputError
        It cannot be written.
    """
    import numpy as np

    from .io.mrc import StackWriter

    images = np.asarray(data, dtype=np.float32)
    images = images.reshape(-1, *images.shape[-2:])
    # a scale of 1 is what napari gives where nobody knows it
    size = float(attributes["scale"][-1]) if len(attributes.get("scale", ())) else 1.0
    label = attributes.get("metadata", {}).get(_LABEL) or "written by cryohush from napari"
    with StackWriter(
        Path(path), images.shape, pixel_size_angstrom=None if size == 1.0 else size, label=label
    ) as writer:
        writer.write(images)
    return [path]
