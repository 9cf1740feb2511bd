"""CSDAT, the column-wise form of a `.cs` table that cryosparc-tools sends and can save.

Layout, little-endian: the magic number; the length of a header as uint32; the header in JSON; for each field
its length in bytes as uint32 and its values, as they are or as one LZ4 block; to the end of the file strings,
each ended by a zero byte. A field of strings holds as uint64 where among these each one begins.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import CsError

MAGIC = b"\x95CSDAT"


def read_csdat(path: Path) -> NDArray[Any]:
    """Return the table as the structured array that NumPy's form of a `.cs` file holds.

    Strings become UTF-8 bytes `S<longest>`.

    Raises
    ------
    CsError
        If the file is cut off or damaged, or compressed while the package lz4 is not installed.
    OSError
        If it cannot be read.
    """
    with path.open("rb") as file:
        file.seek(len(MAGIC))
        try:
            return _table(file, path)
        except (
            ValueError,
            KeyError,
            TypeError,
            IndexError,
            EOFError,
            OverflowError,
            RecursionError,
            MemoryError,
        ) as error:
            raise CsError(f"the file is cut off or damaged ({str(error)[:100]}).", path=path) from error


def _table(file: BinaryIO, path: Path) -> NDArray[Any]:
    header = json.loads(_block(file))
    n_rows, compressed = int(header["length"]), frozenset(header["compressed_fields"])
    kinds = {name: np.dtype((base, tuple(*shape))) for name, base, *shape in header["dtype"]}
    strings = [name for name, kind in kinds.items() if kind.hasobject]
    columns: dict[str, NDArray[Any]] = {}
    for name, kind in kinds.items():
        stored = np.dtype("<u8") if name in strings else kind
        data = _block(file) if n_rows else b""  # a table without rows has no values at all
        if name in compressed and n_rows:
            data = _decompress(data, n_rows * stored.itemsize, path)
        if len(data) != n_rows * stored.itemsize:
            raise ValueError(f"{name} has {len(data)} bytes, expected {n_rows * stored.itemsize}")
        columns[name] = np.frombuffer(data, stored, n_rows)
    heap = file.read()
    for name in strings:
        columns[name] = _strings(columns[name], heap)
    fields: list[Any] = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
    table = np.empty(n_rows, fields)
    for name, column in columns.items():
        table[name] = column
    return table


def _block(file: BinaryIO) -> bytes:
    """Return the next bytes, whose number stands before them."""
    head = file.read(4)
    data = file.read(int.from_bytes(head, "little"))
    if len(head) < 4 or len(data) < int.from_bytes(head, "little"):
        raise EOFError("it ends too early")
    return data


def _decompress(data: bytes, size: int, path: Path) -> bytes:
    try:
        from lz4 import block
    except ModuleNotFoundError as error:
        raise CsError(
            "the table is compressed with LZ4, and the package lz4 is not installed.",
            path=path,
            remedy="pip install lz4, or save it again: Dataset.load(file).save(new_file).",
        ) from error
    try:
        decompressed: bytes = block.decompress(data, uncompressed_size=size)
    except block.LZ4BlockError as error:
        raise ValueError(str(error)) from error
    return decompressed


def _strings(begins: NDArray[np.uint64], heap: bytes) -> NDArray[np.bytes_]:
    """Return the string that begins at each place of the heap."""
    places, row = np.unique(begins, return_inverse=True)
    strings = [heap[place : heap.index(b"\0", place)] for place in places.tolist()]
    return np.array(strings, dtype=np.bytes_)[row]
