"""cryoSPARC's `.cs` files: NumPy tables whose rows are named by `uid`, read and written without cryoSPARC.

A particle's fields may be spread over several files: the job's own one, and "passthrough" files with what
came from the job's inputs. Fields are named `slot/field`; the slot `blob` says where the image is.
"""

from __future__ import annotations

import datetime
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ..advice import USE
from ..errors import CsError, OutputError
from .csdat import MAGIC as CSDAT_MAGIC
from .csdat import read_csdat
from .files import file_state, link_target, write_text, writing
from .image_names import same_file

CS_SUFFIX = ".cs"
_MAGIC = b"\x93NUMPY"
# NumPy's own limit, 10,000 characters, is reached by tables of 300 fields.
_LARGEST_HEADER = 2**20
_BLOCK_ROWS = 16384
# What NumPy raises for a damaged header.
_DAMAGE = (ValueError, SyntaxError, TokenError, OverflowError, RecursionError, MemoryError, TypeError)
_LARGEST_INDEX = 2**31 - 1
_PATH, _INDEX, _SHAPE, _PIXEL_SIZE, _SIGN, _SIGNATURE = (
    f"blob/{name}" for name in ("path", "idx", "shape", "psize_A", "sign", "import_sig")
)
_MICROGRAPH = "location/micrograph_path"
#: of a particle, see `metrics.ordinary.figure_of_merit`
SCORE_FIELD = "cryohush/score"
# The fields that must be there, with the kinds and shape of their values.
_BLOB = {_PATH: ("S", ()), _INDEX: ("ui", ()), _SHAPE: ("ui", (2,)), _PIXEL_SIZE: ("f", ())}
_MICROSCOPE = ("ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast")
# A path that begins with it is relative to the .cs file, as in exports; other ones are to the project.
_BESIDE = ">"
# The importing instance learns how old the fields are. Those written here are as in version 4.
_GROUP_VERSION = "v4.0.0"
_DENOISED_GROUP = {
    "title": "Denoised particles",
    "description": f"Denoised by cryohush. {USE}",
}
_RAW_GROUP = {
    "title": "Raw particles of a selection",
    "description": "Particles that were selected by their denoised images, with their raw ones.",
}


class CsTable:
    """A `.cs` file joined by uid with its passthrough files.

    Parameters
    ----------
    path
        The file whose rows count. A slot that several files have is taken from it, then from the first one.
    passthrough
        Files that hold further slots of all its particles. Without any, those in its folder are taken that
        are named `*passthrough*.cs` and hold all its particles.

    Attributes
    ----------
    path
        The file.
    passthrough
        The files joined to it.
    fields
        Name to type, in order.

    Raises
    ------
    CsError
        If a file is no `.cs` file, is cut off, has no or repeated uids, or lacks particles; or if the files
        found in the folder contradict each other.
    """

    def __init__(self, path: str | Path, passthrough: Sequence[str | Path] = ()) -> None:
        self.path = Path(path)
        self.passthrough: tuple[Path, ...] = ()
        own = _open(self.path)
        self._uids = own["uid"].copy()
        _sorted_uids(self.path, self._uids)
        # Each file's rows, and for a joined one the row that belongs to each row of the first.
        self._parts: list[tuple[NDArray[Any], NDArray[np.intp] | None]] = [(own, None)]
        self._part_of = dict.fromkeys(own.dtype.names or (), 0)
        self._part_of_slot = {_slot(name): 0 for name in self._part_of}
        if passthrough:
            for file in passthrough:
                self._join(Path(file), required=True)
        else:
            for file in sorted(self.path.absolute().parent.glob(f"*passthrough*{CS_SUFFIX}")):
                if file.is_file() and not file.samefile(self.path):  # a link may lead nowhere
                    self._join(file, required=False)
        self.fields: dict[str, np.dtype[Any]] = {
            name: self._parts[part][0].dtype[name] for name, part in self._part_of.items()
        }

    def __len__(self) -> int:
        return len(self._uids)

    def _join(self, path: Path, *, required: bool) -> None:
        rows = _open(path)
        order, uids = _sorted_uids(path, rows["uid"])
        place = np.minimum(np.searchsorted(uids, self._uids), len(uids) - 1)
        missing = uids[place] != self._uids
        if missing.any():
            if required:
                raise CsError(
                    f"{int(missing.sum())} of the {len(self)} particles of {self.path} are not in this "
                    f"passthrough file, first uid {self._uids[missing.argmax()]}.",
                    path=path,
                    remedy="Give the passthrough file of the same job and output.",
                )
            return
        row, number, names = order[place], len(self._parts), rows.dtype.names or ()
        if not required:
            for name in names:
                part = self._part_of.get(name)
                if part and not _equal(self.column(name), rows[name][row]):
                    first = self.passthrough[part - 1]
                    raise CsError(
                        f"disagrees with {first} about {name}.",
                        path=path,
                        remedy="Choose with --passthrough.",
                    )
        for name in names:
            if self._part_of_slot.setdefault(_slot(name), number) == number:
                self._part_of[name] = number
        self._parts.append((rows, row))
        self.passthrough += (path,)

    def column(self, name: str, rows: slice | NDArray[np.intp] = slice(None)) -> NDArray[Any]:
        """Return a copy of a field, or of some rows of it."""
        values, joined = self._parts[self._part_of[name]]
        column: NDArray[Any] = values[name][rows if joined is None else joined[rows]]
        return column.copy() if joined is None else column


def _slot(field: str) -> str:
    return field.partition("/")[0]


def _equal(a: NDArray[Any], b: NDArray[Any]) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == b.dtype.kind == "f")


def _open(path: Path) -> NDArray[Any]:
    """Read the rows of a file.

    They are read, not mapped: a file that is cut off or on a failing disk gives an error and no bus error.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CsError("expected a .cs file, found a folder, a pipe or a device.", path=path)
        state = file_state(path)
        with path.open("rb", buffering=0) as file:
            magic = file.read(len(_MAGIC))
            if magic == CSDAT_MAGIC:
                rows = read_csdat(path)
            elif magic == _MAGIC:
                file.seek(0)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # numpy's, of odd headers: they are read, or an error
                    rows = np.lib.format.read_array(_Stream(file.read), max_header_size=_LARGEST_HEADER)
            else:
                raise CsError(f"is no .cs file: it begins with {magic!r}, expected {_MAGIC!r}.", path=path)
        if file_state(path) != state:
            raise CsError("the file was changed while it was read.", path=path, remedy="Run again.")
    except OSError as error:
        reason = f"{error.strerror or error}{link_target(path)}"
        raise CsError(f"the file cannot be read: {reason}.", path=path) from error
    except _DAMAGE as error:
        if "Object arrays" in str(error):
            raise CsError("its fields hold Python objects, which no .cs file does.", path=path) from error
        raise CsError(f"the file is cut off or damaged ({str(error)[:100]}).", path=path) from error
    if rows.ndim != 1 or not rows.dtype.names:
        raise CsError(f"expected a table, found an array of {rows.shape} x {rows.dtype}.", path=path)
    if not len(rows):
        raise CsError("the table has no rows.", path=path)
    if "uid" not in rows.dtype.names or rows.dtype["uid"] != np.uint64:
        raise CsError("the table has no field uid of 64 bits, which names its particles.", path=path)
    return rows


@dataclass(frozen=True)
class _Stream:
    """What NumPy reads in pieces; of a file it would take a read error for its end."""

    read: Callable[..., bytes]


def _sorted_uids(path: Path, uids: NDArray[np.uint64]) -> tuple[NDArray[np.intp], NDArray[np.uint64]]:
    """Return the rows in the order of their uids, and the uids in that order."""
    order = np.argsort(uids, kind="stable")
    uids = uids[order]
    repeated = uids[1:] == uids[:-1]
    if repeated.any():
        first = int(repeated.argmax())
        raise CsError(
            f"{int(repeated.sum())} uids are repeated, first {uids[first]} in rows {order[first] + 1} and "
            f"{order[first + 1] + 1}.",
            path=path,
            remedy="Run cryoSPARC's Particle Sets Tool or Remove Duplicates on them.",
        )
    return order, uids


@dataclass(frozen=True, eq=False)
class CsImages:
    """Which image each row means, and what is known of it.

    Attributes
    ----------
    stack_names
        The stacks as first written, without the `>` of exports.
    beside
        Whether the stacks have such a `>`: then they are relative to the file's own folder. Where only some
        do, the names of these are absolute.
    stack, image
        int32 `(n,)`: position in `stack_names` and 0-based index in the stack, per row.
    dark_stacks
        Positions of the stacks whose protein is dark (`blob/sign` -1).
    says_contrast
        Whether there is such a field.
    optics_group
        int32 `(n,)`: position in `optics`, per row.
    optics
        `(pixel size in Å, box in pixels, kV, Cs in mm, amplitude contrast)`, the last three None if unknown.
    micrograph_names
        The micrographs that the particles are from, each once; empty if the table does not tell.
    micrograph
        int32 `(n,)`: position in `micrograph_names`, per row; None if the table does not tell.
    """

    stack_names: list[str]
    beside: bool
    stack: NDArray[np.int32]
    image: NDArray[np.int32]
    dark_stacks: frozenset[int]
    says_contrast: bool
    optics_group: NDArray[np.int32]
    optics: list[tuple[float, int, float | None, float | None, float | None]]
    micrograph_names: tuple[str, ...]
    micrograph: NDArray[np.int32] | None


def read_images(table: CsTable) -> CsImages:
    """Return what the slot `blob` says of the rows' images.

    Raises
    ------
    CsError
        If the slot is missing, incomplete or of other types than cryoSPARC's, or a value makes no sense.
    """
    _check_fields(table)
    paths, stack = _distinct(table.column(_PATH))
    folder = _folder_of_some(table, paths)
    names, merged = _stack_names(table, paths, stack, folder)
    stack = merged[stack]
    image = table.column(_INDEX)
    _refuse(table, (image < 0) | (image > _LARGEST_INDEX), _INDEX, "an index from 0 to 2147483647")
    optics, group = _optics(table)
    micrograph_names, micrograph = _micrographs(table, folder)
    return CsImages(
        stack_names=names,
        beside=folder is None and any(path.startswith(_BESIDE.encode()) for path in paths),
        stack=stack,
        image=image.astype(np.int32),
        dark_stacks=_dark_stacks(table, names, stack),
        says_contrast=_SIGN in table.fields,
        optics_group=group,
        optics=optics,
        micrograph_names=micrograph_names,
        micrograph=micrograph,
    )


def _folder_of_some(table: CsTable, paths: Sequence[bytes]) -> Path | None:
    """Return the folder of a table in which only some of the paths are relative to it; None otherwise."""
    marks = {path.startswith(_BESIDE.encode()) for path in paths if not path.startswith(b"/")}
    return table.path.absolute().parent if len(marks) > 1 else None


def _name(path: bytes, folder: Path | None) -> str:
    """Return a file's name without its mark; with the folder where not all files are relative to that."""
    name = os.fsdecode(path)
    is_beside, name = name.startswith(_BESIDE), name.removeprefix(_BESIDE)
    return str(folder / name) if name and is_beside and folder is not None else name


def _micrographs(table: CsTable, folder: Path | None) -> tuple[tuple[str, ...], NDArray[np.int32] | None]:
    kind = table.fields.get(_MICROGRAPH)
    if kind is None or kind.kind != "S":
        return (), None
    names, micrograph = _distinct(table.column(_MICROGRAPH))
    return tuple(_name(name, folder) for name in names), micrograph


def _check_fields(table: CsTable) -> None:
    missing = [name for name in _BLOB if name not in table.fields]
    if missing:
        found = sorted({_slot(name) for name in table.fields} - {"uid"})
        if "micrograph_blob" in found and "blob" not in found:
            raise CsError(
                "It is a table of micrographs (exposures), which are not read from .cs files.",
                path=table.path,
                remedy="Give a STAR file of them, or run cryosparc_cryohush denoise on their job.",
            )
        raise CsError(
            f"no field {', '.join(missing)}, so it is not known where the images are; the slots of "
            f"{' and '.join(path.name for path in (table.path, *table.passthrough))} are "
            f"{', '.join(found)}.",
            path=table.path,
            remedy="Give the passthrough file of the same job that has the slot blob "
            "(--passthrough J12_passthrough_particles.cs), or the .cs file of an exported result group.",
        )
    for name, (kinds, shape) in {**_BLOB, _SIGN: ("f", ())}.items():
        if name not in table.fields:  # the sign
            continue
        base, found_shape = table.fields[name].base, table.fields[name].shape
        if base.kind not in kinds or found_shape != shape:
            raise CsError(
                f"the field {name} has the unexpected type {table.fields[name]}.",
                path=table.path,
                remedy="Give the table as cryoSPARC wrote it; in one of your own, texts are bytes: "
                "astype('S') of numpy."
                if base.kind == "U"
                else "Give the table as cryoSPARC wrote it.",
            )


def _refuse(table: CsTable, is_bad: NDArray[np.bool_], name: str, expected: str) -> None:
    if is_bad.any():
        row = int(is_bad.argmax())
        found = table.column(name, slice(row, row + 1))[0]
        raise CsError(f"row {row + 1}: expected {expected} in {name}, found {found}.", path=table.path)


def _distinct(column: NDArray[Any]) -> tuple[list[Any], NDArray[np.int32]]:
    """Return the different values in the order of their first rows, and each row's position among them."""
    begins = np.flatnonzero(np.concatenate([[True], column[1:] != column[:-1]]))
    known: dict[Any, int] = {}
    runs = [known.setdefault(value, len(known)) for value in column[begins].tolist()]
    return list(known), np.repeat(np.array(runs, np.int32), np.diff(begins, append=len(column)))


def _stack_names(
    table: CsTable, paths: Sequence[bytes], path_of_row: NDArray[np.int32], folder: Path | None
) -> tuple[list[str], NDArray[np.int32]]:
    """Return the stacks' names, and the position among them of each path; two spellings are one stack."""
    names: list[str] = []
    known: dict[str, int] = {}
    merged = []
    for path in paths:
        name = _name(path, folder)
        if not name:
            _refuse(table, path_of_row == paths.index(path), _PATH, "the path of a stack")
        merged.append(known.setdefault(same_file(name), len(names)))
        if merged[-1] == len(names):
            names.append(name)
    return names, np.array(merged, np.int32)


def _dark_stacks(table: CsTable, names: Sequence[str], stack: NDArray[np.int32]) -> frozenset[int]:
    if _SIGN not in table.fields:
        return frozenset()
    sign = table.column(_SIGN)
    _refuse(table, np.abs(sign) != 1, _SIGN, "1 (protein white) or -1 (protein dark)")
    dark, rows = np.bincount(stack[sign < 0], minlength=len(names)), np.bincount(stack)
    mixed = np.flatnonzero((dark > 0) & (dark < rows))
    if len(mixed):
        raise CsError(
            f"{_SIGN} is 1 in some rows and -1 in others of the same stack {names[mixed[0]]}.",
            path=table.path,
        )
    return frozenset(np.flatnonzero(dark).tolist())


def _optics(
    table: CsTable,
) -> tuple[list[tuple[float, int, float | None, float | None, float | None]], NDArray[np.int32]]:
    """Return the different optics, and which one each row has."""
    pixel_size, shape = table.column(_PIXEL_SIZE), table.column(_SHAPE)
    _refuse(table, ~((pixel_size > 0) & np.isfinite(pixel_size)), _PIXEL_SIZE, "a positive pixel size")
    _refuse(table, shape[:, 0] != shape[:, 1], _SHAPE, "square images")
    known = [name for name in _MICROSCOPE if name in table.fields]
    keys = np.empty(len(table), [("size", "f8"), ("box", "i8"), *((name, "f8") for name in known)])
    keys["size"], keys["box"] = pixel_size, shape[:, 1]
    for name in known:
        keys[name] = table.column(name)
    values, group = _distinct(keys)
    optics = []
    for size, box, *rest in values:
        kv, cs, contrast = (dict(zip(known, rest, strict=True)).get(name) for name in _MICROSCOPE)
        optics.append((size, box, kv, cs, contrast))
    return optics, group


def rewrite(
    table: CsTable,
    path: str | Path,
    stack_names: Sequence[str],
    stack: NDArray[np.int32],
    image: NDArray[np.int32],
    kept: NDArray[np.bool_] | None = None,
    scores: NDArray[np.float32] | None = None,
) -> None:
    """Write all fields of all rows, in order, with other images, and the `.csg` file for their import.

    `blob/path` becomes a path relative to the new file, marked by `>`, `blob/idx` the index in it, and
    `blob/import_sig`, a hash of the old path, 0. Every other value keeps its bits, also paths that are marked
    by `>` and mean the folder of the old file.

    Parameters
    ----------
    table
        The rows.
    path
        The new `.cs` file; `path.with_suffix(".csg")` is the group file for "Import Result Group".
    stack_names
        The new stacks, relative to the new file's folder.
    stack, image
        `(n,)`: position in `stack_names` and 0-based index in the stack, per row that is written.
    kept
        Which rows of the table are written; None is all of them.
    scores
        `(n,)`, per row that is written: the field `SCORE_FIELD`, which the group file does not name.

    Raises
    ------
    OutputError
        If a file cannot be written, or is one of the inputs.
    """
    path = Path(path)
    _refuse_input(path, [table])
    names = np.array([os.fsencode(_BESIDE + name) for name in stack_names])
    chosen = None if kept is None else np.flatnonzero(kept)
    kinds = table.fields | {_PATH: names.dtype}
    new: dict[str, Callable[[slice], Any]] = {
        _PATH: lambda rows: names[stack[rows]],
        _INDEX: lambda rows: image[rows],
        _SIGNATURE: lambda rows: 0,
    }
    if scores is not None:
        kinds[SCORE_FIELD] = np.dtype("<f4")
        new[SCORE_FIELD] = lambda rows: scores[rows]

    def column(name: str, rows: slice) -> Any:
        return (
            new[name](rows) if name in new else table.column(name, rows if chosen is None else chosen[rows])
        )

    _write_rows(path, kinds, len(stack), column)
    _write_group(table, path, len(stack), _DENOISED_GROUP)


def restore_images(
    table: CsTable, raws: Sequence[CsTable], raw_of_row: NDArray[np.int32], path: str | Path
) -> None:
    """Write all rows of a table, in order, with the images that other tables name for the same uids.

    The fields of the slot `blob` are the other tables', bit for bit; a path among them that is relative to
    its table's folder (`>`) is made relative to the new one's. Every other value keeps its bits.

    Parameters
    ----------
    table
        The rows.
    raws
        The tables that have their images.
    raw_of_row
        `(n,)`: position in `raws` per row; -1 where the image stays as it is.
    path
        The new `.cs` file, with a `.csg` beside it as of `rewrite`.

    Raises
    ------
    CsError
        If one of `raws` lacks images, or some of its rows.
    OutputError
        If a file cannot be written, or is one of the inputs.
    """
    path = Path(path)
    _refuse_input(path, [table, *raws])
    slot, folder = _slot(_PATH), path.absolute().parent
    columns = {name: table.column(name) for name in table.fields if _slot(name) == slot}
    for number, raw in enumerate(raws):
        _check_fields(raw)
        rows = np.flatnonzero(raw_of_row == number)
        place = _rows_of(raw, table.column("uid")[rows], table.path)
        for name in columns.keys() & raw.fields.keys():
            values = raw.column(name)[place]
            if name == _PATH:
                values = _moved(values, raw.path.absolute().parent, folder)
                columns[name] = columns[name].astype(np.promote_types(columns[name].dtype, values.dtype))
            columns[name][rows] = values

    def column(name: str, some: slice) -> NDArray[Any]:
        return columns[name][some] if name in columns else table.column(name, some)

    _write_rows(path, table.fields | {_PATH: columns[_PATH].dtype}, len(table), column)
    _write_group(table, path, len(table), _RAW_GROUP)


def _refuse_input(path: Path, tables: Iterable[CsTable]) -> None:
    """Raise when a file to write is one of those that tables are read from."""
    inputs = [source for table in tables for source in (table.path, *table.passthrough)]
    if path.exists() and any(path.samefile(source) for source in inputs):
        raise OutputError(f"{path}: is an input itself, which is never written to. Choose another name.")


def _rows_of(table: CsTable, wanted: NDArray[np.uint64], of: Path) -> NDArray[np.intp]:
    """Return the rows of a table that have some uids, which are those of another table."""
    order, uids = _sorted_uids(table.path, table.column("uid"))
    place = np.minimum(np.searchsorted(uids, wanted), len(uids) - 1)
    missing = uids[place] != wanted
    if missing.any():
        raise CsError(
            f"{int(missing.sum())} of the {len(wanted)} particles of {of} are not in this table, first uid "
            f"{wanted[missing.argmax()]}.",
            path=table.path,
            remedy="Name the table that was denoised with --raw.",
        )
    return order[place]


def _moved(paths: NDArray[Any], folder: Path, new_folder: Path) -> NDArray[Any]:
    """Return paths of which those that are relative to a table's folder are so to another's."""
    if folder == new_folder or not len(paths):
        return paths
    # from a link, `..` leads out of its target
    folder, new_folder = (Path(os.path.realpath(place)) for place in (folder, new_folder))
    different, position = np.unique(paths, return_inverse=True)
    moved = [
        os.fsencode(_BESIDE + os.path.relpath(folder / os.fsdecode(name[1:]), new_folder))
        if name.startswith(_BESIDE.encode())
        else name
        for name in different.tolist()
    ]
    return np.array(moved)[position.reshape(-1)]


def _write_rows(
    path: Path, kinds: Mapping[str, np.dtype[Any]], n_rows: int, column: Callable[[str, slice], Any]
) -> None:
    """Write a table of fields of some kinds, some thousand rows at a time, of which `column` gives each."""
    fields = np.dtype(list(kinds.items()))
    with writing(path) as part, part.open("wb") as file:
        _write_header(file, fields, n_rows)
        for begin in range(0, n_rows, _BLOCK_ROWS):
            rows = slice(begin, min(begin + _BLOCK_ROWS, n_rows))
            block = np.zeros(rows.stop - rows.start, fields)
            for name in kinds:
                block[name] = column(name, rows)
            file.write(block.view(np.uint8).data)


def _write_header(file: Any, fields: np.dtype[Any], n_rows: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(fields), "fortran_order": False, "shape": (n_rows,)}
    try:
        np.lib.format.write_array_header_1_0(file, header)
    except ValueError:  # longer than 65,535 characters
        np.lib.format.write_array_header_2_0(file, header)


def _write_group(table: CsTable, path: Path, n_rows: int, about: Mapping[str, str]) -> None:
    slots = dict.fromkeys(_slot(name) for name in table.fields if "/" in name)
    group = {
        "created": datetime.datetime.now(),
        "group": {
            "name": "particles",
            "type": "particle",
            **about,
        },
        "results": {
            slot: {"metafile": f"{_BESIDE}{path.name}", "num_items": n_rows, "type": f"particle.{slot}"}
            for slot in slots
        },
        "version": _GROUP_VERSION,
    }
    write_text(path.with_suffix(".csg"), yaml.safe_dump(group, sort_keys=False))
