"""Damaged files of every kind: a right result or one error, never a traceback, a hang or other pixels.

`--hypothesis-profile=further` draws other examples.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import emtable
import mrcfile
import numpy as np
import pytest
import starfile
from hypothesis import given, settings
from hypothesis import strategies as st

from cryohush.core.errors import CryohushError
from cryohush.core.inference.plan import read_images
from cryohush.core.io.coordinates import read_coordinates
from cryohush.core.io.cs import CsTable
from cryohush.core.io.cs import read_images as read_cs_images
from cryohush.core.io.journal import Journal, Undertaking
from cryohush.core.io.mrc import StackReader, WriterState
from cryohush.core.io.particles import ParticleSet
from cryohush.core.io.star import read_tables, unquote, write_tables
from cryohush.core.models.weights import load_model

DATA = Path(__file__).parents[2] / "data" / "io"
FUZZ = settings(max_examples=150)


@st.composite
def damages(draw: st.DrawFn, places: int) -> list[tuple[str, int, bytes]]:
    """A few things that happen to files: bytes replaced, put in, taken away, the end cut off."""
    kinds = st.sampled_from(["replace", "insert", "delete", "cut"])
    place = st.integers(0, places)
    what = st.one_of(
        st.binary(min_size=1, max_size=8),
        st.sampled_from(
            [b"\n", b"\n\n", b" ", b'"', b"'", b"#", b"\t", b"\0", b"\r\n", b"loop_\n", b"data_\n", b"_a\n"]
        ),
        st.sampled_from(
            [b"-1", b"1e400", b"nan", b"inf", b"99999999999", b"0@x", b"../", b"\xff\xfe", b"{", b"]"]
        ),
    )
    return draw(st.lists(st.tuples(kinds, place, what), min_size=1, max_size=4))


def damaged(original: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    data = bytearray(original)
    for kind, place, what in changes:
        at = place % (len(data) + 1)
        if kind == "replace":
            data[at : at + len(what)] = what
        elif kind == "insert":
            data[at:at] = what
        elif kind == "delete":
            del data[at : at + len(what)]
        else:
            del data[at:]
    return bytes(data)


def one_error(action: Callable[[], object]) -> object:
    """Return what an action gives, or None after an error of ours, which is one line of moderate length."""
    try:
        return action()
    except CryohushError as error:
        text = str(error)
        assert text.strip()
        assert "\n" not in text
        assert len(text) < 2000
        return None


@FUZZ
@given(
    changes=damages(1100),
    name=st.sampled_from(["empiar_10146_float16.mrcs", "batch_0_restacked.mrc", "emd_2479_big_endian.mrc"]),
)
def test_a_damaged_stack_reads_as_mrcfile_reads_it_or_not_at_all(
    tmp_path: Path, changes: list[tuple[str, int, bytes]], name: str
) -> None:
    path = tmp_path / "x.mrcs"
    path.write_bytes(damaged((DATA / name).read_bytes(), changes))

    def read() -> np.ndarray:
        with StackReader(path) as stack:
            return stack.read(range(min(stack.n_images, 20)))

    images = one_error(read)
    if images is None:
        return
    assert isinstance(images, np.ndarray)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with mrcfile.open(path, permissive=False) as file:
                theirs = file.data
        except ValueError:
            return  # no MAP, a bad machine stamp: many real files are like that, and mrcfile is strict
    expected = np.asarray(theirs, dtype=np.float32).reshape(-1, *images.shape[1:])[: len(images)]
    if theirs.dtype == np.int8:  # mrcfile knows signed bytes only
        expected = np.where((images > 127) & (expected < 0), expected + 256, expected)
    np.testing.assert_array_equal(images, expected)


def rows_of(path: Path, label: str) -> list[str]:
    for table in read_tables(path):
        if label in table.labels:
            column = table.column(label)
            return [unquote(tokens[column]) for _, _, tokens in table.rows() if tokens]
    return []


@FUZZ
@given(changes=damages(1200), name=st.sampled_from(["empiar_10059.star", "empiar_10076_7.star"]))
def test_a_damaged_table_reads_as_starfile_reads_it_or_not_at_all(
    tmp_path: Path, changes: list[tuple[str, int, bytes]], name: str
) -> None:
    path = tmp_path / "x.star"
    path.write_bytes(damaged((DATA / name).read_bytes(), changes))
    for action in (ParticleSet.read, read_images, read_coordinates, lambda path: list(read_tables(path))):
        one_error(lambda action=action: action(path))  # type: ignore[misc]
    names = one_error(lambda: rows_of(path, "rlnImageName"))
    if not names:
        return
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            tables = starfile.read(path, always_dict=True)
    except Exception:  # whatever it stumbles over
        return
    theirs = [list(map(str, block["rlnImageName"])) for block in tables.values() if "rlnImageName" in block]
    # a stray quote or a comment sign is read by each in its own way
    if len(theirs) == 1 and not any(mark in path.read_bytes() for mark in (b'"', b"'", b"#", b"\0", b"\xff")):
        assert names == theirs[0] or len(theirs[0]) > len(names)  # RELION's tables end at a blank line


@FUZZ
@given(changes=damages(2300))
def test_a_damaged_cs_table_reads_as_numpy_reads_it_or_not_at_all(
    tmp_path: Path, changes: list[tuple[str, int, bytes]]
) -> None:
    path = tmp_path / "x.cs"
    path.write_bytes(damaged((DATA / "empiar_10076_7.cs").read_bytes(), changes))
    table = one_error(lambda: CsTable(path))
    one_error(lambda: read_cs_images(CsTable(path)))
    one_error(lambda: ParticleSet.read(path))
    if isinstance(table, CsTable):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = np.load(path)
        np.testing.assert_array_equal(table.column("uid"), theirs["uid"])


def test_an_odd_header_is_read_without_a_word(tmp_path: Path) -> None:
    """A line break in a header: numpy reads it, with a warning of Python 2."""
    raw = (DATA / "empiar_10076_7.cs").read_bytes()
    path = tmp_path / "x.cs"
    path.write_bytes(raw[:683] + b"\n" + raw[683:])
    one_error(lambda: CsTable(path))


@FUZZ
@given(changes=damages(2300), header=st.binary(max_size=60))
def test_a_damaged_stream_of_cryosparc_is_one_error(
    tmp_path: Path, changes: list[tuple[str, int, bytes]], header: bytes
) -> None:
    dataset = pytest.importorskip("cryosparc.dataset")
    path, whole = tmp_path / "x.cs", tmp_path / "whole.cs"
    if not whole.exists():
        with whole.open("wb") as file:
            dataset.Dataset.load(DATA / "empiar_10076_7.cs").save(file, format=dataset.CSDAT_FORMAT)
    path.write_bytes(damaged(whole.read_bytes(), changes))
    one_error(lambda: CsTable(path))
    path.write_bytes(b"\x95CSDAT" + len(header).to_bytes(4, "little") + header)
    one_error(lambda: CsTable(path))


DEEP = b"[" * 20_000


@pytest.mark.parametrize(
    "header",
    [
        DEEP,
        b'{"length": 1e400, "compressed_fields": [], "dtype": []}',
        b'{"length": 99999999999999999999, "compressed_fields": ["uid"], "dtype": [["uid", "<u8"]]}',
        b'{"length": -1, "compressed_fields": [], "dtype": [["uid", "<u8"]]}',
        b'{"length": 5, "compressed_fields": 7, "dtype": [["uid", "<u8"]]}',
        b'{"length": 5, "compressed_fields": [], "dtype": [["uid", "<u8", 99999999999]]}',
        b"null",
    ],
)
def test_a_crafted_stream_of_cryosparc_is_one_error(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "x.cs"
    path.write_bytes(b"\x95CSDAT" + len(header).to_bytes(4, "little") + header + bytes(40))
    assert one_error(lambda: CsTable(path)) is None


@pytest.mark.parametrize(
    "text", [b"(" * 5_000, b"{'descr': " + DEEP, b"{'descr': '<u8', 'shape': (10**9**9,)}", b"1"]
)
def test_a_crafted_header_of_numpy_is_one_error(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "x.cs"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)
    assert one_error(lambda: CsTable(path)) is None


@FUZZ
@given(changes=damages(500))
def test_a_damaged_journal_is_one_error_or_goes_on(
    tmp_path: Path, changes: list[tuple[str, int, bytes]]
) -> None:
    path = tmp_path / ".cryohush-progress.jsonl"
    path.unlink(missing_ok=True)
    undertaking = Undertaking("denoise", {"model": "x"}, {"a.mrcs": "1", "b.mrcs": "2"}, ["t.star"])
    with Journal(path) as journal:
        journal.begin(undertaking)
        journal.record("a.mrcs", WriterState(3, 0.0, 1.0, 2.0, 3.0, 4), notes=[["a.mrcs", 1, "NaN", True]])
    path.write_bytes(damaged(path.read_bytes(), changes))

    def resume() -> bool:
        with Journal(path) as journal:
            journal.go_on(undertaking)
            return True

    one_error(resume)


@FUZZ
@given(changes=damages(900))
def test_damaged_weights_are_one_error(
    tmp_path: Path, weights: Path, changes: list[tuple[str, int, bytes]]
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(damaged(weights.read_bytes(), changes))
    one_error(lambda: load_model(path))


# What they take apart otherwise: quotes, comment signs and, in emtable, backslashes.
VALUES = st.one_of(st.text("abcXYZ0189 ./_-@+:()[]{}%&=,;~^", max_size=12), st.integers(-(10**6), 10**6))


@FUZZ
@given(rows=st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=5))
def test_both_packages_of_the_field_read_what_is_written(
    tmp_path: Path, rows: list[tuple[object, object]]
) -> None:
    path = tmp_path / "x.star"
    # emtable looks at the first row alone to see whether there are quotes
    write_tables(path, [("particles", ("rlnA", "rlnB"), [("a b", "c d"), *rows])])  # type: ignore[list-item]
    expected = [("a b", "c d"), *[(str(a), str(b)) for a, b in rows]]
    read = [
        (row.rlnA, row.rlnB)
        for row in emtable.Table.iterRows(str(path), tableName="particles", guessType=False)
    ]
    assert read == expected
    frame = starfile.read(path, parse_as_string=["rlnA", "rlnB"])
    assert [tuple(row) for row in frame.itertuples(index=False)] == expected
    assert list(zip(rows_of(path, "rlnA"), rows_of(path, "rlnB"), strict=True)) == expected


def test_a_models_card_of_another_shape_is_one_error(tmp_path: Path, weights: Path) -> None:
    data = weights.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for card in (
        "7",
        "[]",
        '{"model": 3}',
        '{"model": {"name": [], "arguments": {}}}',
        DEEP.decode(),
        "null",
        '{"model": {"name": "shuffle_unet", "arguments": []}}',
        '{"model": {"name": "shuffle_unet", "arguments": {"widths": "x"}}}',
    ):
        header["__metadata__"]["cryohush"] = card
        text = json.dumps(header).encode()
        (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
        assert one_error(lambda: load_model(tmp_path / "x.safetensors")) is None
