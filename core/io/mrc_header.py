"""The header of an MRC file: what it says, what it leaves open, and where it contradicts itself."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import NDArray

from ... import __version__
from ..errors import MrcError
from .files import link_target

HEADER_BYTES = 1024
_FIRST_LABEL, _LABEL_BYTES = 224, 80
_DENOISED = "denoised by"
DTYPE_OF_MODE = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_OTHER_MODES = {
    3: "complex 16-bit integers",
    4: "complex float32, a Fourier transform",
    7: "32-bit integers",
    16: "colours",
    101: "4-bit integers",
}
_COMPRESSED = {
    ".gz": b"\x1f\x8b",
    ".bz2": b"BZh",
    ".xz": b"\xfd7zXZ",
    ".zst": b"\x28\xb5\x2f\xfd",
    ".zip": b"PK\x03\x04",
}
_MAX_SIDE_PX = 65535
# IMOD's stamp: "IMOD" as an integer, and flags, of which the first says that bytes are signed.
_IMOD_OFFSET, _IMOD_STAMP = 152, 1146047817
_IMOD_SIGNED = 1
CONVERT_BYTES = "Convert it to float32 with a program that knows them, such as IMOD's newstack -mode 2."
"""What to do with 8-bit pixels of which it is not clear whether they are signed."""

# x and y are the same but for the header's digits.
_MAX_ANISOTROPY = 0.01
# One interpretation of bytes makes neighbours this much more alike than the other.
_ROUGHER = 1.5


@dataclass(frozen=True)
class MrcHeader:
    """What the header of a stack says.

    Attributes
    ----------
    shape
        `(n, y, x)`.
    mode
        MRC mode.
    dtype
        Of a pixel in the file; for mode 0 still signed, see `bytes_are_signed`.
    offset
        Bytes before the first image.
    pixel_size_angstrom
        `(y, x)`, Å; None where the header does not say.
    axes
        Which of x (1), y (2) and z (3) columns, rows and sections run along, where it is not this order; else
        None.
    is_volume
        Whether the header is that of a 3D map: many programs write stacks with such a one, too.
    bytes_signed
        What the header says of bytes: True signed, False unsigned, None nothing.
    bytes_reason
        Why.
    denoised_label
        See the function of this name.
    """

    shape: tuple[int, int, int]
    mode: int
    dtype: np.dtype[Any]
    offset: int
    pixel_size_angstrom: tuple[float | None, float | None]
    axes: tuple[int, int, int] | None
    is_volume: bool
    bytes_signed: bool | None
    bytes_reason: str
    denoised_label: str


def open_regular(path: Path) -> int:
    """Open a file for reading and return its descriptor; what is no plain file is refused.

    Raises
    ------
    MrcError
        If it is missing, may not be read, or is a folder, a pipe or a device.
    """
    if path.suffix.lower() in _COMPRESSED:
        raise _compressed(path)
    try:
        # without waiting for whoever might write into a pipe
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise MrcError(f"the stack cannot be opened: {reason}{link_target(path)}.", path=path) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise MrcError("expected a file with images, found a folder, a pipe or a device.", path=path)
    return descriptor


def _compressed(path: Path) -> MrcError:
    return MrcError("compressed stacks are not supported.", path=path, remedy="Uncompress it first.")


def parse_header(path: Path, raw: bytes) -> MrcHeader:
    """Parse the first 1024 bytes of a file.

    Raises
    ------
    MrcError
        If they are no MRC header, or of a kind that is not supported.
    """
    header, byte_order = _in_its_byte_order(path, raw)
    mode = int(header["mode"])
    n, y, x = (int(header[name]) for name in ("nz", "ny", "nx"))
    if mode not in DTYPE_OF_MODE:
        kind = f" ({_OTHER_MODES[mode]})" if mode in _OTHER_MODES else ""
        raise MrcError(
            f"MRC mode {mode}{kind} is not supported: expected 0 (int8), 1 (int16), 2 (float32), 6 (uint16) "
            "or 12 (float16).",
            path=path,
        )
    signed, reason = _signed_bytes(header, raw, byte_order)
    if reason and signed is None and mode == 0:
        raise MrcError(
            f"8-bit pixels that are signed or unsigned: {reason}.",
            path=path,
            remedy=CONVERT_BYTES,
        )
    return MrcHeader(
        (n, y, x),
        mode,
        np.dtype(byte_order + DTYPE_OF_MODE[mode]),
        HEADER_BYTES + int(header["nsymbt"]),
        (_pixel_size(header, "y", "my"), _pixel_size(header, "x", "mx")),
        _other_axes(header),
        _says_volume(header),
        signed,
        reason,
        denoised_label(raw),
    )


def denoised_label(raw: bytes) -> str:
    """Return the label by which cryohush says that it made the images, empty if it did not.

    Programs that note what they did to the file may have written others before and after it.

    Parameters
    ----------
    raw
        The file's first 1024 bytes.
    """
    texts = (raw[begin : begin + _LABEL_BYTES] for begin in range(_FIRST_LABEL, HEADER_BYTES, _LABEL_BYTES))
    labels = (text.decode("ascii", "replace").strip("\0 ") for text in texts)
    return next((label for label in labels if label.startswith("cryohush") and _DENOISED in label), "")


def label_of_denoised(model: str) -> str:
    """Return the label of images that a model has denoised."""
    return f"cryohush {__version__}: {_DENOISED} {model}, not raw data"


def _in_its_byte_order(path: Path, raw: bytes) -> tuple[NDArray[np.void], str]:
    """Return the header (a 0-d record) and its byte order, `<` or `>`."""
    if raw.startswith(tuple(_COMPRESSED.values())):
        raise _compressed(path)
    if len(raw) < HEADER_BYTES:
        raise MrcError(
            f"not an MRC file: {len(raw)} bytes, an MRC header alone has {HEADER_BYTES}.", path=path
        )
    # Machine stamps are missing or wrong in many real files. The number of columns tells the order without
    # doubt: of an integer between 1 and 65535, the other order makes one that is above 65535.
    for byte_order in "<>":
        header: NDArray[np.void] = np.frombuffer(raw, dtype=HEADER_DTYPE.newbyteorder(byte_order)).reshape(())
        if 0 < header["nx"] <= _MAX_SIDE_PX:
            break
    else:
        raise MrcError("not an MRC file: the header holds no plausible image size.", path=path)
    if not 0 < header["ny"] <= _MAX_SIDE_PX or header["nz"] <= 0 or header["nsymbt"] < 0:
        raise MrcError(
            f"not a usable MRC file: the header says {header['nx']} x {header['ny']} px, "
            f"{header['nz']} images, {header['nsymbt']} bytes of extended header.",
            path=path,
        )
    return header, byte_order


def _pixel_size(header: NDArray[np.void], axis: str, intervals: str) -> float | None:
    length, n = float(header["cella"][axis]), int(header[intervals])
    if n <= 0 or not np.isfinite(length) or length <= 0:
        return None
    # The header is single precision: 1.35 px must not become 1.3500000238.
    return float(f"{length / n:.6g}")


def isotropic(size: tuple[float | None, float | None]) -> bool:
    """Tell whether a pixel size `(y, x)` in Å is the same in both directions, or unknown in one."""
    y, x = size
    return y is None or x is None or abs(y - x) <= _MAX_ANISOTROPY * max(y, x)


def _other_axes(header: NDArray[np.void]) -> tuple[int, int, int] | None:
    c, r, s = (int(header[name]) for name in ("mapc", "mapr", "maps"))
    return (c, r, s) if {c, r, s} == {1, 2, 3} and (c, r, s) != (1, 2, 3) else None


def _says_volume(header: NDArray[np.void]) -> bool:
    return _other_axes(header) is not None or (
        1 <= int(header["ispg"]) <= 230 and int(header["mz"]) == int(header["nz"]) > 1
    )


def _signed_bytes(header: NDArray[np.void], raw: bytes, byte_order: str) -> tuple[bool | None, str]:
    """Return whether bytes are signed and why; None with a reason is a contradiction, without one silence.

    The format says since 2014 that they are; older files and programs disagree, and IMOD has its own flag.
    """
    stamp, flags = np.frombuffer(raw, byte_order + "i4", 2, _IMOD_OFFSET).tolist()
    by_stamp = bool(flags & _IMOD_SIGNED) if stamp == _IMOD_STAMP else None
    low, high = float(header["dmin"]), float(header["dmax"])
    by_range = None
    if np.isfinite(low) and np.isfinite(high) and low < high:
        by_range = (
            True if -128 <= low < 0 and high <= 127 else False if low >= 0 and 127 < high <= 255 else None
        )
    if by_stamp is not None and by_range is not None and by_stamp != by_range:
        kind = "signed" if by_stamp else "unsigned"
        return None, f"IMOD's flag says {kind}, but the header's minimum and maximum are {low:g} and {high:g}"
    if by_range is not None:
        return by_range, f"the header's minimum and maximum are {low:g} and {high:g}"
    if by_stamp is not None:
        return by_stamp, "IMOD's flag in the header says so"
    return None, ""


def bytes_look_signed(sample: NDArray[np.int8]) -> bool | None:
    """Tell from pixels `(n, y, x)`, read as signed, what they are; None if either is as likely.

    Neighbours are alike. Where values pass the end of a byte's range, the wrong reading tears them apart.
    """
    if sample.shape[2] < 2 or not (sample < 0).any():
        return None
    signed = sample.astype(np.int16)
    unsigned = signed & 0xFF
    rough_signed, rough_unsigned = (
        float(np.abs(np.diff(values, axis=2)).mean()) for values in (signed, unsigned)
    )
    if rough_signed > _ROUGHER * rough_unsigned:
        return False
    return True if rough_unsigned > _ROUGHER * rough_signed else None


def looks_like_map(
    sections: NDArray[np.float32], adjacent: NDArray[np.float32], far: NDArray[np.float32]
) -> bool:
    """Tell whether images are sections of a 3D map: each nearly equals the next, and less so a distant one.

    Parameters
    ----------
    sections, adjacent, far
        `(k, y, x)`: some images, those that follow each, and others far from each.
    """
    near = _correlation(sections, adjacent)
    return bool(near.min() > 0.7 and (near - _correlation(sections, far)).mean() > 0.05)


def _correlation(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Correlation of `(k, y, x)` images, 4 x 4 px averaged: of each pair."""
    pairs = []
    for images in (a, b):
        k, y, x = images.shape
        coarse = (
            images[:, : y // 4 * 4, : x // 4 * 4].reshape(k, y // 4, 4, x // 4, 4).mean((2, 4), dtype=float)
        )
        coarse -= coarse.mean((1, 2), keepdims=True)
        pairs.append(coarse / np.maximum(np.sqrt((coarse**2).mean((1, 2), keepdims=True)), 1e-30))
    result: NDArray[np.float64] = (pairs[0] * pairs[1]).mean((1, 2))
    return result
