"""MRC stacks: what mrcfile (an independent reader) and our own reader and writer agree on."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE
from numpy.typing import NDArray

from cryohush.core.errors import ImageError, MrcError, OutputError
from cryohush.core.io.mrc import HEADER_BYTES, StackReader, StackWriter, WriterState

DATA = Path(__file__).parents[2] / "data" / "io"
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def write_raw(
    path: Path, images: NDArray[Any], *, order: str = "<", stamp: bytes | None = None, **fields: object
) -> None:
    """Write a stack without any of the code under test; `fields` overwrite those of the header."""
    header = np.zeros(1, dtype=HEADER_DTYPE.newbyteorder(order))
    mode = next(mode for mode, code in MODES.items() if images.dtype == np.dtype(code))
    n, y, x = images.shape
    values = {"nx": x, "ny": y, "nz": n, "mode": mode, "mx": x, "my": y, "mz": 1, "map": b"MAP "} | fields
    for name, value in values.items():
        header[name] = value
    header["cella"] = (1.25 * x, 1.25 * y, 1.25)
    header["machst"] = list(stamp if stamp is not None else (b"DD\0\0" if order == "<" else b"\x11\x11\0\0"))
    extended = bytes(int(header["nsymbt"][0]))
    path.write_bytes(header.tobytes() + extended + images.astype(images.dtype.newbyteorder(order)).tobytes())


def random_images(mode: int, shape: tuple[int, int, int] = (5, 6, 8)) -> NDArray[Any]:
    random = np.random.default_rng(mode)
    dtype = np.dtype(MODES[mode])
    if dtype.kind == "f":
        return random.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return random.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("mode", MODES)
def test_reads_what_mrcfile_reads_in_every_mode_and_byte_order(tmp_path: Path, mode: int, order: str) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(mode), order=order)
    expected = mrcfile.read(tmp_path / "x.mrcs").astype(np.float32)
    with StackReader(tmp_path / "x.mrcs") as stack:
        images = stack.read(range(5))
        assert (stack.n_images, stack.shape, stack.mode) == (5, (5, 6, 8), mode)
        assert stack.pixel_size_angstrom == 1.25
    assert images.dtype == np.float32
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images, expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"stamp": b"\0\0\0\0", "map": b""},
        {"stamp": b"\x11\x11\0\0"},
        {"ispg": 1, "mz": 5},
        {"nsymbt": 1536, "exttyp": b"FEI1"},
    ],
    ids=["no stamp and no map string", "wrong stamp", "header of a volume", "extended header"],
)
def test_reads_the_headers_of_real_life(tmp_path: Path, fields: dict[str, Any]) -> None:
    images = random_images(2)
    write_raw(tmp_path / "x.mrc", images, **fields)
    with StackReader(tmp_path / "x.mrc") as stack:
        np.testing.assert_array_equal(stack.read([4, 0, 1, 2, 0]), images[[4, 0, 1, 2, 0]])


def test_a_stack_of_one_image_stays_a_stack(tmp_path: Path) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(2, (1, 4, 4)))
    with StackReader(tmp_path / "x.mrcs") as stack:
        assert stack.shape == (1, 4, 4)
        assert stack.read([0]).shape == (1, 4, 4)
        assert stack.read([]).shape == (0, 4, 4)


@pytest.mark.parametrize(
    ("name", "shape", "pixel_size"),
    [
        ("empiar_10076_7.mrc", (7, 16, 16), None),
        ("batch_0_restacked.mrc", (4, 48, 48), 4.88),
        ("empiar_10146_float16.mrcs", (2, 32, 32), 1.5),
        ("emd_2479_big_endian.mrc", (8, 8, 8), 4.36),
    ],
)
def test_real_files_read_as_mrcfile_reads_them(
    name: str, shape: tuple[int, int, int], pixel_size: float | None
) -> None:
    with StackReader(DATA / name) as stack:
        assert (stack.shape, stack.pixel_size_angstrom) == (shape, pixel_size)
        np.testing.assert_array_equal(stack.read(range(shape[0])), mrcfile.read(DATA / name))


def test_a_truncated_stack_is_refused_and_counted(tmp_path: Path) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(2))
    os.truncate(tmp_path / "x.mrcs", HEADER_BYTES + 3 * 6 * 8 * 4 + 7)
    with pytest.raises(MrcError, match=r"truncated.*holds 3 whole images"):
        StackReader(tmp_path / "x.mrcs")


def test_a_stack_cut_while_it_is_open_is_an_error_and_no_crash(tmp_path: Path) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(2))
    with StackReader(tmp_path / "x.mrcs") as stack:
        os.truncate(tmp_path / "x.mrcs", HEADER_BYTES)
        with pytest.raises(MrcError, match="truncated"):
            stack.read([4])


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (None, "x.mrcs", "cannot be opened: No such file"),
        (b"\x1f\x8b" + bytes(2000), "x.mrcs", "compressed"),
        (b"", "x.mrcs.gz", "compressed"),
        (b"", "x.mrcs.bz2", "compressed"),
        (b"", "x.mrcs", "0 bytes"),
        (b"no stack" * 200, "x.mrcs", "not an MRC file"),
        (bytes(2000), "x.mrcs", "not an MRC file"),
    ],
)
def test_what_is_no_stack_is_refused_by_name(
    tmp_path: Path, content: bytes | None, name: str, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(MrcError, match=message) as caught:
        StackReader(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("mode", 4), ("mode", 101), ("nz", 0), ("ny", -1), ("nsymbt", -4)]
)
def test_unusable_headers_are_refused_by_name(tmp_path: Path, field: str, value: int) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(2))
    raw = bytearray((tmp_path / "x.mrcs").read_bytes())
    offset = HEADER_DTYPE.fields[field][1]
    raw[offset : offset + 4] = value.to_bytes(4, "little", signed=True)
    (tmp_path / "x.mrcs").write_bytes(raw)
    with pytest.raises(MrcError, match=str(value)):
        StackReader(tmp_path / "x.mrcs")


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_beyond_the_stack_is_named(tmp_path: Path, index: int) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(2))
    with (
        StackReader(tmp_path / "x.mrcs") as stack,
        pytest.raises(MrcError, match=rf"image {index + 1} .* has 5"),
    ):
        stack.read([0, index])


def test_threads_read_the_same_stack_at_once(tmp_path: Path) -> None:
    images = random_images(12, (64, 16, 16))
    write_raw(tmp_path / "x.mrcs", images)
    wrong: list[int] = []
    with StackReader(tmp_path / "x.mrcs") as stack:

        def read(seed: int) -> None:
            random = np.random.default_rng(seed)
            for _ in range(50):
                indices = random.integers(0, 64, 7)
                if not np.array_equal(stack.read(indices), images[indices]):
                    wrong.append(seed)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_images_of_a_stack_larger_than_the_address_space_are_read(tmp_path: Path) -> None:
    """As under a queue's `ulimit -v`; the stack of 60 GB is sparse and needs no disk."""
    header = np.zeros(1, HEADER_DTYPE)
    n, side = 60 * 2**20, 16
    for name, value in {"nx": side, "ny": side, "nz": n, "mode": 2, "map": b"MAP "}.items():
        header[name] = value
    image = np.random.default_rng(1).normal(size=(side, side)).astype(np.float32)
    with (tmp_path / "x.mrcs").open("wb") as file:
        file.write(header.tobytes())
        file.truncate(HEADER_BYTES + n * image.nbytes)
        file.seek(HEADER_BYTES + (n - 1) * image.nbytes)
        file.write(image.tobytes())
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))\n"
        "from cryohush.core.io.mrc import StackReader\n"
        f"sys.stdout.buffer.write(StackReader(sys.argv[1]).read([{n - 1}]).tobytes())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.mrcs")], capture_output=True, check=True
    )
    assert run.stdout == image.tobytes()


@pytest.mark.parametrize("mode", [2, 1])
def test_a_failing_disk_is_an_error_that_names_the_file_and_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(mode))
    with StackReader(tmp_path / "x.mrcs") as stack:

        def fail(*_: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(MrcError, match=r"x\.mrcs: images 3 to 4 cannot be read: Input/output error"):
            stack.read([2, 3])


def test_a_server_that_gives_less_than_asked_for_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = random_images(2)
    write_raw(tmp_path / "x.mrcs", images)
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:7]], offset))
    with StackReader(tmp_path / "x.mrcs") as stack:
        np.testing.assert_array_equal(stack.read([1, 2, 4]), images[[1, 2, 4]])


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "link that leads nowhere"])
def test_what_is_no_plain_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.mrcs"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "device" else "/store/gone/x.mrcs")
    with pytest.raises(
        MrcError, match="/store/gone" if "nowhere" in kind else "found a folder, a pipe or a device"
    ):
        StackReader(path)


def test_an_extended_header_that_was_not_copied_is_told_from_a_truncated_file(tmp_path: Path) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(2))
    raw = bytearray((tmp_path / "x.mrcs").read_bytes())
    raw[92:96] = (3584).to_bytes(4, "little")
    (tmp_path / "x.mrcs").write_bytes(raw)
    with pytest.raises(MrcError, match=r"3584 bytes of an extended header, which is not there.*NSYMBT"):
        StackReader(tmp_path / "x.mrcs")


def grey(mean: float, n: int = 4, side: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(2).normal(mean, 20, (n, side, side)).clip(0, 255).astype(np.uint8)


def imod(signed: bool) -> bytes:
    return (1146047817).to_bytes(4, "little") + int(signed).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("pixels", "extra", "limits", "unsigned"),
    [
        (grey(130), b"", (0, 255), True),  # the header's range
        (grey(130), b"", (60, 200), True),
        (grey(130), imod(False), (0, 0), True),  # IMOD's flag
        (grey(130), imod(False), (0, 255), True),
        (grey(130), b"", (0, 0), True),  # neighbours
        (grey(60), b"", (0, 120), False),  # the same either way
        (grey(130) ^ 0x80, b"", (-100, 100), False),
        (grey(130) ^ 0x80, imod(True), (0, 0), False),
        (grey(130) ^ 0x80, b"", (0, 0), False),
        (grey(130) ^ 0x80, b"", (np.nan, np.nan), False),
    ],
)
def test_bytes_are_signed_or_not_as_header_and_pixels_say(
    tmp_path: Path, pixels: NDArray[np.uint8], extra: bytes, limits: tuple[float, float], unsigned: bool
) -> None:
    write_raw(tmp_path / "x.mrcs", pixels.view("i1"), dmin=limits[0], dmax=limits[1])
    if extra:
        raw = bytearray((tmp_path / "x.mrcs").read_bytes())
        raw[152:160] = extra
        (tmp_path / "x.mrcs").write_bytes(raw)
    with StackReader(tmp_path / "x.mrcs") as stack:
        np.testing.assert_array_equal(stack.read(range(4)), pixels if unsigned else pixels.view("i1"))
        assert bool(stack.remarks) == unsigned
        assert all("unsigned" in remark for remark in stack.remarks)


@pytest.mark.parametrize(
    ("pixels", "extra", "limits"),
    [
        (grey(130), imod(True), (0, 255)),  # flag and range
        (grey(130), imod(True), (0, 0)),  # flag and pixels
        (grey(130) ^ 0x80, b"", (0, 255)),  # range and pixels
    ],
)
def test_bytes_whose_header_contradicts_itself_or_the_pixels_are_refused(
    tmp_path: Path, pixels: NDArray[np.uint8], extra: bytes, limits: tuple[float, float]
) -> None:
    write_raw(tmp_path / "x.mrcs", pixels.view("i1"), dmin=limits[0], dmax=limits[1])
    raw = bytearray((tmp_path / "x.mrcs").read_bytes())
    raw[152 : 152 + len(extra)] = extra
    (tmp_path / "x.mrcs").write_bytes(raw)
    with pytest.raises(MrcError, match=r"8-bit pixels that are signed or unsigned.*Convert it to float32"):
        StackReader(tmp_path / "x.mrcs")


@pytest.mark.parametrize(
    ("cell", "intervals", "expected"),
    [
        ((12.0, 9.0, 1.5), (8, 6), 1.5),
        ((12.0, 18.0, 1.5), (8, 6), None),  # 1.5 Å along x, 3 Å along y
        ((12.0, np.nan, 1.5), (8, 6), 1.5),
        ((np.nan, 9.0, 1.5), (8, 6), 1.5),
        ((np.nan, np.inf, 1.5), (8, 6), None),
        ((12.0, 9.0, 1.5), (0, 0), None),
        ((-12.0, -9.0, 1.5), (8, 6), None),
    ],
)
def test_the_pixel_size_is_that_of_both_directions(
    tmp_path: Path, cell: tuple[float, float, float], intervals: tuple[int, int], expected: float | None
) -> None:
    write_raw(tmp_path / "x.mrcs", random_images(2), mx=intervals[0], my=intervals[1])
    raw = bytearray((tmp_path / "x.mrcs").read_bytes())
    raw[40:52] = np.array(cell, "<f4").tobytes()
    (tmp_path / "x.mrcs").write_bytes(raw)
    with StackReader(tmp_path / "x.mrcs") as stack:
        assert stack.pixel_size_angstrom == expected


def write(path: Path, images: NDArray[Any], step: int = 2, **options: Any) -> None:
    options = {"pixel_size_angstrom": 1.35, "label": "cryohush test"} | options
    with StackWriter(path, images.shape, **options) as writer:
        for begin in range(0, len(images), step):
            writer.write(images[begin : begin + step])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("n", [1, 5])
def test_mrcfile_finds_a_written_stack_valid_and_its_statistics_true(
    tmp_path: Path, n: int, dtype: Any
) -> None:
    images = np.random.default_rng(0).normal(3, 2, (n, 6, 8)).astype(np.float32)
    write(tmp_path / "x.mrcs", images, dtype=dtype)
    assert mrcfile.validate(tmp_path / "x.mrcs")
    with mrcfile.open(tmp_path / "x.mrcs") as file:
        assert file.data.dtype == dtype
        np.testing.assert_array_equal(file.data.reshape(images.shape), images.astype(dtype))
        assert file.is_image_stack() or n == 1
        assert (file.header.ispg, file.header.mz) == (0, 1)
        assert file.voxel_size.x == pytest.approx(1.35, rel=1e-6)  # single precision
        assert list(file.get_labels()) == ["cryohush test"]
        written = images.astype(dtype).astype(np.float64)
        for field, value in [
            (file.header.dmin, written.min()),
            (file.header.dmax, written.max()),
            (file.header.dmean, written.mean()),
            (file.header.rms, written.std()),
        ]:
            assert float(field) == pytest.approx(value, rel=1e-6)  # single precision
    with StackReader(tmp_path / "x.mrcs") as stack:
        assert stack.pixel_size_angstrom == 1.35
    assert [path.name for path in tmp_path.iterdir()] == ["x.mrcs"]


def test_no_pixel_size_stays_no_pixel_size(tmp_path: Path) -> None:
    write(tmp_path / "x.mrcs", random_images(2), pixel_size_angstrom=None)
    with StackReader(tmp_path / "x.mrcs") as stack:
        assert stack.pixel_size_angstrom is None


def test_a_long_label_goes_on_in_the_next_ones(tmp_path: Path) -> None:
    label = "".join(chr(ord("a") + k % 26) for k in range(200))
    write(tmp_path / "x.mrcs", random_images(2), label=label + "Å")
    assert mrcfile.validate(tmp_path / "x.mrcs")
    with mrcfile.open(tmp_path / "x.mrcs") as file:
        assert "".join(file.get_labels()) == label + "?"


def test_the_file_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    images = random_images(2, (7, 33, 31))
    write(tmp_path / "one.mrcs", images, step=1)
    write(tmp_path / "all.mrcs", images, step=7)
    assert (tmp_path / "one.mrcs").read_bytes() == (tmp_path / "all.mrcs").read_bytes()


def test_a_resumed_stack_is_byte_identical_to_an_undisturbed_one(tmp_path: Path) -> None:
    images = random_images(2, (7, 33, 31))
    write(tmp_path / "whole.mrcs", images)
    options: dict[str, Any] = {"pixel_size_angstrom": 1.35, "label": "cryohush test"}

    def interrupted() -> WriterState:
        with StackWriter(tmp_path / "x.mrcs", images.shape, **options) as writer:
            writer.write(images[:3])
            state = writer.checkpoint()
            writer.write(images[:2])  # written, but after the checkpoint
            raise KeyboardInterrupt(state)

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupted()
    assert not (tmp_path / "x.mrcs").exists()
    state = WriterState(**json.loads(json.dumps(asdict(caught.value.args[0]))))
    with StackWriter(tmp_path / "x.mrcs", images.shape, state=state, **options) as writer:
        writer.write(images[3:])
    assert (tmp_path / "x.mrcs").read_bytes() == (tmp_path / "whole.mrcs").read_bytes()


@pytest.mark.parametrize("remove", [True, False])
def test_a_stack_that_lost_its_part_file_cannot_be_resumed(tmp_path: Path, remove: bool) -> None:
    state, part = WriterState(written=3), tmp_path / "x.mrcs.part"
    if not remove:
        part.write_bytes(bytes(HEADER_BYTES + 5))
    with pytest.raises(OutputError, match="Start the run anew"):
        StackWriter(tmp_path / "x.mrcs", (7, 4, 4), pixel_size_angstrom=1.0, label="", state=state)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_named_and_none_of_its_batch_is_written(
    tmp_path: Path, value: float
) -> None:
    images = np.zeros((4, 4, 4), dtype=np.float32)
    images[3, 1, 2] = value
    writer = StackWriter(tmp_path / "x.mrcs", (4, 4, 4), pixel_size_angstrom=1.0, label="")
    writer.write(images[:2])
    with pytest.raises(ImageError, match=r"x\.mrcs, image 4: refused"), writer:
        writer.write(images[2:])
    assert writer.state.written == 2
    assert writer.part.stat().st_size == 1024 + 2 * 4 * 16
    assert not writer.path.exists()


def test_a_value_too_large_for_float16_is_named(tmp_path: Path) -> None:
    writer = StackWriter(tmp_path / "x.mrcs", (1, 4, 4), pixel_size_angstrom=1.0, dtype="float16", label="")
    with pytest.raises(ImageError, match=r"image 1: .*float16.*float32"), writer:
        writer.write(np.full((1, 4, 4), 7e4, dtype=np.float32))


@pytest.mark.parametrize(
    ("mean", "sd", "is_refused"),
    # the steps of float16 are 32 beyond 2^15, 16 below it, and 6e-8 at 0; rounding errs by their 0.29
    [(0.0, 1e-8, True), (4e4, 20.0, True), (3e4, 300.0, False), (100.0, 3.0, False), (0.0, 1e-4, False)],
)
def test_contrast_that_float16_would_round_off_is_refused(
    tmp_path: Path, mean: float, sd: float, is_refused: bool
) -> None:
    images = np.random.default_rng(0).normal(mean, sd, (2, 16, 16)).astype(np.float32)
    writer = StackWriter(tmp_path / "x.mrcs", (2, 16, 16), pixel_size_angstrom=1.0, dtype="float16", label="")
    refused = pytest.raises(ImageError, match=r"image 1: the steps of float16 are too coarse.*float32")
    with refused if is_refused else contextlib.nullcontext(), writer:
        writer.write(images)


def test_a_stack_with_images_missing_never_gets_its_name(tmp_path: Path) -> None:
    writer = StackWriter(tmp_path / "x.mrcs", (4, 4, 4), pixel_size_angstrom=1.0, label="")
    writer.write(np.zeros((3, 4, 4), dtype=np.float32))
    with pytest.raises(OutputError, match="3 of 4 images"):
        writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x.mrcs.part"]


def test_wrong_sizes_and_too_many_images_are_refused(tmp_path: Path) -> None:
    for images in [np.zeros((1, 4, 5)), np.zeros((4, 4)), np.zeros((2, 4, 4))]:
        writer = StackWriter(tmp_path / "x.mrcs", (1, 4, 4), pixel_size_angstrom=1.0, label="")
        with pytest.raises(ValueError, match=r"shape|more than"), writer:
            writer.write(images)


class FullDisk:
    """Stands for a file on a disk that takes 100 bytes more and then is full."""

    def __init__(self, file: Any) -> None:
        self._file, self._room = file, 100

    def write(self, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count, self._room = int(self._file.write(data[: self._room])), 0
        return count

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_names_the_file_and_the_bytes_and_the_run_can_go_on(tmp_path: Path) -> None:
    images, options = random_images(2), {"pixel_size_angstrom": 1.35, "label": "cryohush test"}
    writer = StackWriter(tmp_path / "x.mrcs", images.shape, **options)  # type: ignore[arg-type]
    writer.write(images[:2])
    real, writer._file = writer._file, FullDisk(writer._file)  # type: ignore[assignment]
    with pytest.raises(
        OutputError, match=rf"x\.mrcs: the disk is full.*{HEADER_BYTES + 5 * 6 * 8 * 4} bytes"
    ):
        writer.write(images[2:])
    assert writer.checkpoint().written == 2
    writer._file = real
    writer.write(images[2:])
    writer.close()
    np.testing.assert_array_equal(mrcfile.read(tmp_path / "x.mrcs"), images)


def test_an_output_directory_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        StackWriter(tmp_path / "no" / "x.mrcs", (1, 4, 4), pixel_size_angstrom=1.0, label="")


def test_images_that_shall_pass_unchecked_stay_out_of_the_statistics(tmp_path: Path) -> None:
    images = random_images(2)
    images[1, 2, 3], images[3] = np.nan, np.inf
    with StackWriter(tmp_path / "x.mrcs", images.shape, pixel_size_angstrom=1.0, label="") as writer:
        writer.write(images, unchecked=[1, 3])
    with mrcfile.open(tmp_path / "x.mrcs") as file:
        np.testing.assert_array_equal(file.data, images)
        assert file.header.dmax == images[np.isfinite(images)].max()
        assert file.header.dmean == pytest.approx(
            images[np.isfinite(images)].mean(dtype=np.float64), rel=1e-6
        )


def test_without_any_finite_pixel_the_statistics_are_marked_as_unknown(tmp_path: Path) -> None:
    with StackWriter(tmp_path / "x.mrcs", (1, 4, 4), pixel_size_angstrom=1.0, label="") as writer:
        writer.write(np.full((1, 4, 4), np.nan), unchecked=[0])
    with mrcfile.open(tmp_path / "x.mrcs") as file:
        assert (file.header.dmin, file.header.dmax, file.header.dmean, file.header.rms) == (0, -1, -2, -1)


@pytest.mark.relion
def test_relion_finds_the_written_images_and_their_statistics(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(3, 2, (3, 16, 16)).astype(np.float32)
    write(tmp_path / "x.mrcs", images)
    command = ["relion_image_handler", "--i", "2@x.mrcs", "--stats"]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = {key: float(value) for key, value in re.findall(r"(\w+)= (-?[\d.]+)", text)}
    for key, value in [("avg", images[1].mean()), ("stddev", images[1].std()), ("maxval", images[1].max())]:
        assert found[key] == pytest.approx(float(value), rel=1e-4), text  # printed with six digits
