"""MRC image stacks, read and written as a stream: no stack is ever held in memory."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import mrcfile
import numpy as np
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import machine_stamp_from_byte_order
from numpy.typing import ArrayLike, NDArray

from ..errors import ImageError, MrcError, OutputError
from ..spread import evenly_spread
from .files import has_part, new_part, part_path, rename_complete, writing, writing_failed
from .mrc_header import (
    CONVERT_BYTES,
    DTYPE_OF_MODE,
    HEADER_BYTES,
    bytes_look_signed,
    isotropic,
    looks_like_map,
    open_regular,
    parse_header,
)

_MODE_OF_DTYPE = {"float32": 2, "float16": 12}
# What is converted at once: enough for full speed, little beside the images themselves.
_CHUNK_BYTES = 1 << 24
# What is rounded off for float16 is less than this share of an image's contrast.
_LARGEST_ROUNDING = 0.2


class StackReader:
    """Random access to the images of an MRC stack.

    A volume-style header (space group 1, as many sections as images) reads the same as a stack's: the
    sections are the images. Only what is asked for is read, so that neither memory nor address space grows
    with the stack. Reading from several threads is safe.

    Parameters
    ----------
    path
        A `.mrcs` or `.mrc` file of mode 0, 1, 2, 6 or 12, of either byte order.

    Attributes
    ----------
    path
        The file.
    n_images
        Number of images.
    shape
        `(n, y, x)`.
    mode
        MRC mode.
    header
        What else the header says.
    pixel_size_angstrom
        The header's pixel size in Å; None when the header does not say, or differs along x and y. RELION
        never reads it and often leaves it unset or wrong: prefer the table's.
    remarks
        What a user should know of how the file was read.

    Raises
    ------
    MrcError
        If the file is missing, compressed, truncated, not an MRC file or of another mode, or if its header
        contradicts itself or its pixels.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.remarks: list[str] = []
        self._descriptor = open_regular(self.path)
        try:
            self._open()
        except OSError as error:
            self.close()
            raise MrcError(f"cannot be read: {error.strerror or error}.", path=self.path) from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self.header = parse_header(self.path, _read_all(self._descriptor, HEADER_BYTES, 0))
        self.mode, self.shape = self.header.mode, self.header.shape
        self.n_images = self.shape[0]
        y, x = self.header.pixel_size_angstrom
        self.pixel_size_angstrom = (x if y is None else y) if isotropic((y, x)) else None
        self._dtype = self.header.dtype
        self._image_bytes = self.shape[1] * self.shape[2] * self._dtype.itemsize
        if self.header.axes is not None:
            columns, rows = ("xyz"[axis - 1] for axis in self.header.axes[:2])
            self.remarks.append(
                f"the header says that columns run along {columns} and rows along {rows} (MAPC, MAPR), which "
                "is not obeyed: pixels are taken as they lie in the file, as RELION does, and written so."
            )
        surplus = self._check_size()
        if surplus:
            self.remarks.append(
                f"the file goes on for {surplus} bytes after the {self.n_images} images that its header "
                f"counts ({surplus // self._image_bytes} more would fit): they are not read."
            )
        if self.mode == 0:
            self._decide_bytes()

    def _check_size(self) -> int:
        """Return how many bytes the file is longer than its header says; raise when it is shorter."""
        size, offset = os.fstat(self._descriptor).st_size, self.header.offset
        expected = offset + self.n_images * self._image_bytes
        if size >= expected:
            return size - expected
        if offset > HEADER_BYTES and size == expected - (offset - HEADER_BYTES):
            raise MrcError(
                f"the header counts {offset - HEADER_BYTES} bytes of an extended header, which is not there: "
                f"the file holds {self.n_images} whole images right behind the header.",
                path=self.path,
                remedy="Set NSYMBT (bytes 93 to 96 of the file) to 0.",
            )
        whole = max(0, size - offset) // self._image_bytes
        raise MrcError(
            f"truncated: {self.n_images} images of {self.shape[2]} x {self.shape[1]} px need {expected} "
            f"bytes, the file has {size}, which holds {whole} whole images.",
            path=self.path,
            remedy="Copy or extract it again.",
        )

    def _decide_bytes(self) -> None:
        """Decide whether the bytes of mode 0 are signed: by the header, the pixels, else by the format."""
        some = evenly_spread(self.n_images, 4)
        rows = max(1, min(self.shape[1], _CHUNK_BYTES // self.shape[2] // 8))
        sample = np.stack([self._raw(index, rows) for index in some.tolist()])
        by_header, reason = self.header.bytes_signed, self.header.bytes_reason
        by_pixels = bytes_look_signed(sample)
        if by_header is not None and by_pixels is not None and by_header != by_pixels:
            raise MrcError(
                f"8-bit pixels that are signed or unsigned: {reason}, but the pixels look "
                f"{'signed' if by_pixels else 'unsigned'}.",
                path=self.path,
                remedy=CONVERT_BYTES,
            )
        decided = by_pixels if by_header is None else by_header
        if decided is False:
            self._dtype = np.dtype("u1")
            reason = reason or "neighbouring pixels are alike only so, and the header does not say"
            self.remarks.append(f"8-bit pixels are read as unsigned, 0 to 255: {reason}.")

    def _raw(self, index: int, rows: int) -> NDArray[Any]:
        """Return the first rows of an image as they are in the file."""
        begin = self.header.offset + index * self._image_bytes
        data = _read_all(self._descriptor, rows * self.shape[2] * self._dtype.itemsize, begin)
        return np.frombuffer(data, self._dtype).reshape(-1, self.shape[2])

    def read(self, indices: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Return the images at 0-based `indices`, in that order, as float32 `(k, y, x)`.

        Raises
        ------
        MrcError
            If an index lies beyond the stack, the file has become shorter since it was opened, or the disk
            fails.
        """
        wanted = np.asarray(indices, dtype=np.int64).reshape(-1)
        outside = wanted[(wanted < 0) | (wanted >= self.n_images)]
        if outside.size:
            raise MrcError(
                f"image {outside[0] + 1} was asked for, the stack has {self.n_images}.", path=self.path
            )
        images = np.empty((wanted.size, *self.shape[1:]), dtype=np.float32)
        for begin, end in _runs(wanted):
            first = int(wanted[begin])
            try:
                complete = self._read_run(images[begin:end], first)
            except OSError as error:
                raise MrcError(
                    f"images {first + 1} to {first + end - begin} cannot be read: {error.strerror or error}.",
                    path=self.path,
                    remedy="Are the disk and the file server working? Copy the file elsewhere, if you can.",
                ) from error
            if not complete:
                self._check_size()
                raise MrcError(f"image {first + 1} ends too early.", path=self.path)
        return images

    def _read_run(self, images: NDArray[np.float32], first: int) -> bool:
        """Read consecutive images from the 0-based index `first` on; False if the file ends."""
        offset = self.header.offset + first * self._image_bytes
        if self._dtype == images.dtype:
            return _read_into(self._descriptor, images.reshape(-1).view(np.uint8), offset)
        step = max(1, _CHUNK_BYTES // self._image_bytes)
        buffer = np.empty((min(step, len(images)), *self.shape[1:]), self._dtype)
        for begin in range(0, len(images), step):
            part = buffer[: len(images) - begin]
            if not _read_into(self._descriptor, part.reshape(-1).view(np.uint8), offset):
                return False
            images[begin : begin + len(part)] = part
            offset += part.nbytes
        return True

    def looks_like_map(self) -> bool:
        """Tell whether the images are sections of a 3D map, by some of them."""
        n = self.n_images
        if n < 8:
            return False
        some = np.unique(np.linspace(0.35 * n, 0.65 * n, 4).astype(np.int64))
        return looks_like_map(self.read(some), self.read(some + 1), self.read((some + n // 3) % n))

    def close(self) -> None:
        """Close the file; closing twice does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> StackReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()


def _read_into(descriptor: int, target: NDArray[np.uint8], offset: int) -> bool:
    """Fill an array from a place in a file; False if the file ends before."""
    view = memoryview(target)  # type: ignore[arg-type]  # numpy's arrays are buffers
    while view:
        n = os.preadv(descriptor, [view], offset)
        if not n:
            return False
        view, offset = view[n:], offset + n
    return True


def _read_all(descriptor: int, size: int, offset: int) -> bytes:
    """Return up to `size` bytes from a place in a file: fewer only where it ends."""
    data = bytearray()
    while len(data) < size and (block := os.pread(descriptor, size - len(data), offset + len(data))):
        data += block
    return bytes(data)


def _runs(indices: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """Yield `(begin, end)` of the stretches of consecutive rising indices: each is one copy."""
    if not indices.size:
        return
    ends = [*(np.flatnonzero(np.diff(indices) != 1) + 1).tolist(), indices.size]
    begin = 0
    for end in ends:
        yield begin, end
        begin = end


@dataclass(frozen=True)
class WriterState:
    """How far a `StackWriter` has come: all that is needed to go on from there.

    Attributes
    ----------
    written
        Number of images that are safely on disk.
    minimum, maximum, total, total_of_squares
        Statistics of their finite pixel values.
    pixels
        Number of these values.
    """

    written: int = 0
    minimum: float = float("inf")
    maximum: float = float("-inf")
    total: float = 0.0
    total_of_squares: float = 0.0
    pixels: int = 0

    def after(self, image: NDArray[np.floating[Any]]) -> WriterState:
        """Return the state with one more image counted.

        Images are added one by one in float64, so that the result depends neither on the size of the batches
        nor on a restart.
        """
        values = image.astype(np.float64).reshape(-1)
        return WriterState(
            self.written + 1,
            float(values.min(initial=self.minimum)),
            float(values.max(initial=self.maximum)),
            self.total + float(values.sum()),
            self.total_of_squares + float(np.square(values).sum()),
            self.pixels + values.size,
        )


class StackWriter:
    """Writes an MRC stack image by image into `<path>.part`, and gives it its name once it is complete.

    As a context manager it closes the stack on success; after an exception the `.part` file stays, to be
    resumed from a `WriterState`, and nothing appears under `path`.

    Parameters
    ----------
    path
        The stack to make, `.mrcs`.
    shape
        `(n, y, x)`: number of images and their size in pixels.
    pixel_size_angstrom
        Goes to the header; None leaves it unset.
    dtype
        `float32` (mode 2), or `float16` (mode 12, which RELION 3.1 cannot read).
    label
        Who made the stack and how; up to 800 ASCII characters are kept.
    state
        A state that `checkpoint` gave, to go on after it. Later images in the `.part` file are discarded.

    Raises
    ------
    OutputError
        If the file cannot be written, or the `.part` file to go on with is missing or too short.
    """

    def __init__(
        self,
        path: str | Path,
        shape: tuple[int, int, int],
        *,
        pixel_size_angstrom: float | None,
        dtype: Literal["float32", "float16"] = "float32",
        label: str,
        state: WriterState | None = None,
    ) -> None:
        self.path, self.shape = Path(path), shape
        self.part = part_path(self.path)
        self.state = state or WriterState()
        self._pixel_size_angstrom, self._label, self._mode = pixel_size_angstrom, label, _MODE_OF_DTYPE[dtype]
        self._dtype = np.dtype("<" + DTYPE_OF_MODE[self._mode])
        self._image_bytes = shape[1] * shape[2] * self._dtype.itemsize
        self._bytes = HEADER_BYTES + shape[0] * self._image_bytes
        try:
            # Unbuffered: a full disk then shows in the write that meets it, and nowhere else.
            descriptor = (
                new_part(self.path) if state is None else os.open(self.part, os.O_RDWR | os.O_NOFOLLOW)
            )
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
        except FileNotFoundError as error:
            if state is None:
                raise writing_failed(self.path, error, self._bytes) from error
            raise self._cannot_resume("is missing") from error
        except OSError as error:
            raise writing_failed(self.path, error, self._bytes) from error
        try:
            self._seek_to_state(resumed=state is not None)
        except BaseException:
            self._file.close()
            raise

    def _seek_to_state(self, *, resumed: bool) -> None:
        end = HEADER_BYTES + self.state.written * self._image_bytes
        if resumed and os.fstat(self._file.fileno()).st_size < end:
            raise self._cannot_resume(f"holds fewer than {self.state.written} images")
        try:
            self._file.truncate(end)
            self._file.seek(end)
        except OSError as error:
            raise writing_failed(self.path, error, self._bytes) from error

    def _cannot_resume(self, reason: str) -> OutputError:
        return OutputError(f"{self.part}: {reason}, so the run cannot go on from it. Start the run anew.")

    def write(self, images: ArrayLike, *, unchecked: Collection[int] = ()) -> None:
        """Append float32 images `(k, y, x)`, all or none of them.

        Parameters
        ----------
        images
            The images.
        unchecked
            Positions in `images` of those that may hold NaN or infinite pixels, because the user wants them
            to go through as they are. Such pixels do not enter the statistics.

        Raises
        ------
        ImageError
            If a pixel is NaN or infinite, or float16 has no place or too coarse steps for it; names the
            image.
        OutputError
            If the disk is full or fails.
        ValueError
            If the images have another size, or are more than the stack shall hold.
        """
        source = np.asarray(images)
        if source.ndim != 3 or source.shape[1:] != self.shape[1:]:
            raise ValueError(
                f"expected images of shape (k, {self.shape[1]}, {self.shape[2]}), got {source.shape}"
            )
        if self.state.written + len(source) > self.shape[0]:
            raise ValueError(f"{self.path}: more than the announced {self.shape[0]} images")
        with np.errstate(over="ignore", invalid="ignore"):
            values = np.ascontiguousarray(source, dtype=self._dtype)
            state = self.state
            for position, (image, original) in enumerate(zip(values, source, strict=True)):
                state = state.after(image[np.isfinite(image)] if position in unchecked else image)
                if not np.isfinite(state.total):
                    raise self._not_finite(state.written, original)
                if image.dtype == np.float16 and position not in unchecked:
                    self._refuse_rounded(state.written, image, original)
        try:
            self._write_at(HEADER_BYTES + self.state.written * self._image_bytes, values)
        except OSError as error:
            raise writing_failed(self.path, error, self._bytes) from error
        self.state = state

    def _refuse_rounded(self, number: int, image: NDArray[Any], original: NDArray[Any]) -> None:
        """Raise when too little of an image's contrast is left: float16 has steps."""
        error = np.std(image.astype(np.float32) - original, dtype=np.float64)
        if error > _LARGEST_ROUNDING * np.std(original, dtype=np.float64):
            raise ImageError(
                "the steps of float16 are too coarse for the image's contrast, which lies between "
                f"{original.min():g} and {original.max():g}.",
                path=self.path,
                image=number,
                remedy="Write float32 instead.",
            )

    def _not_finite(self, number: int, original: NDArray[Any]) -> ImageError:
        if np.isfinite(original).all():
            return ImageError(
                "a pixel value does not fit into float16.",
                path=self.path,
                image=number,
                remedy="Write float32 instead.",
            )
        return ImageError(
            "refused to write an image with NaN or infinite pixels.", path=self.path, image=number
        )

    def _write_at(self, offset: int, values: NDArray[Any]) -> None:
        self._file.seek(offset)
        remaining = values.reshape(-1).view(np.uint8).data
        while remaining:
            remaining = remaining[self._file.write(remaining) :]

    def checkpoint(self) -> WriterState:
        """Bring everything written so far safely to disk, and return the state from which to go on."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise writing_failed(self.path, error, self._bytes) from error
        return self.state

    def close(self) -> None:
        """Write the header, check the file's size and give the stack its name.

        Raises
        ------
        OutputError
            If images are missing, or the file on disk has not the size it must have.
        """
        with self._file:
            if self.state.written != self.shape[0]:
                raise OutputError(
                    f"{self.path}: {self.state.written} of {self.shape[0]} images were written."
                )
            try:
                self._write_at(0, self._header().reshape(1))
                os.fsync(self._file.fileno())
                size = os.fstat(self._file.fileno()).st_size
            except OSError as error:
                raise writing_failed(self.path, error, self._bytes) from error
        if size != self._bytes:
            raise OutputError(
                f"{self.part}: {size} bytes on disk, expected {self._bytes}. Start the run anew."
            )
        try:
            rename_complete(self.part, self.path)
        except OSError as error:
            raise writing_failed(self.path, error, self._bytes) from error

    def _header(self) -> NDArray[np.void]:
        n, ny, nx = self.shape
        state, pixel = self.state, self._pixel_size_angstrom or 0.0
        header: NDArray[np.void] = np.zeros((), dtype=HEADER_DTYPE.newbyteorder("<"))
        header["nx"], header["ny"], header["nz"], header["mode"] = nx, ny, n, self._mode
        # mz 1 and space group 0: a stack of images, not a volume
        header["mx"], header["my"], header["mz"], header["ispg"] = nx, ny, 1, 0
        header["cella"] = (nx * pixel, ny * pixel, pixel)
        header["cellb"] = (90, 90, 90)
        header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
        if state.pixels:
            mean = state.total / state.pixels
            header["dmin"], header["dmax"], header["dmean"] = state.minimum, state.maximum, mean
            header["rms"] = np.sqrt(max(0.0, state.total_of_squares / state.pixels - mean * mean))
        else:  # the format's way to say that nothing is known
            header["dmin"], header["dmax"], header["dmean"], header["rms"] = 0, -1, -2, -1
        header["nversion"] = 20141
        header["map"] = b"MAP "
        header["machst"] = machine_stamp_from_byte_order("<")
        text = self._label.encode("ascii", "replace")[:800]
        labels = [text[begin : begin + 80] for begin in range(0, len(text), 80)]
        header["nlabl"] = len(labels)
        header["label"][: len(labels)] = labels
        return header

    def __enter__(self) -> StackWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._file.close()


def holds(
    path: Path, shape: tuple[int, int], dtype: Literal["float32", "float16"], state: WriterState
) -> bool:
    """Tell whether the `.part` file of a stack of `(y, x)` images has what a `StackWriter` can go on from."""
    needed = HEADER_BYTES + state.written * shape[0] * shape[1] * np.dtype(dtype).itemsize
    return has_part(path) and part_path(path).stat().st_size >= needed


def write_mrc(path: Path, values: NDArray[Any], pixel_size_angstrom: float) -> None:
    """Write a volume or an image, all or nothing; the same values give the same bytes, as there is no date.

    Parameters
    ----------
    values
        `(z, y, x)` or `(y, x)`; its type decides the mode.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with writing(path, values.nbytes) as part, mrcfile.new(part, values, overwrite=True) as file:
        file.voxel_size = pixel_size_angstrom
        file.header.label[:] = b""
        file.header.nlabl = 0
