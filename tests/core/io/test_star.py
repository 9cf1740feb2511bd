"""STAR files: every byte that is not meant to change stays."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cryohush.core.errors import OutputError, StarError
from cryohush.core.io import files, star
from cryohush.core.io.star import Table, quote, read_tables, rewrite, tokenise, unquote, write_tables

DIALECTS = b"""# Created by hand

# version 50001

data_general

_rlnTomoSubTomosAre2DStacks   0
_rlnName 'a name'

data_optics

loop_ \n_rlnOpticsGroupName #1 \n_rlnMtfFileName #2 [Modulation Transfer Function]
_rlnOddZernike #3 \n# a comment after the labels

 g1\t"my mtf.star"  [0,0,1.5e-3]  \n

data_particles
loop_
_rlnImageName
_rlnMicrographName
_rlnAnglePsi
1@a.mrcs  m.mrc   1.348548e+06
# a comment between rows
  000002@a.mrcs\t'my mic.mrc'\t-3.63747e-04   # a remark
000003@it's.mrcs m#1.mrc nan \n
# the end
"""


def tables(path: Path, text: bytes) -> list[Table]:
    path.write_bytes(text)
    return list(read_tables(path))


def test_tables_lists_labels_and_line_numbers_of_mixed_dialects(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_bytes(DIALECTS)
    met = {}
    for table in read_tables(tmp_path / "x.star"):
        met[table.name, table.line] = (table.labels, table.values, [(n, t) for n, _, t in table.rows() if t])
    assert met["general", 5] == (
        [],
        {"rlnTomoSubTomosAre2DStacks": b"0", "rlnName": b"'a name'"},
        [],
    )
    assert met["optics", 10] == (
        ["rlnOpticsGroupName", "rlnMtfFileName", "rlnOddZernike"],
        {},
        [(18, [b"g1", b'"my mtf.star"', b"[0,0,1.5e-3]"])],
    )
    assert met["particles", 21][2] == [
        (26, [b"1@a.mrcs", b"m.mrc", b"1.348548e+06"]),
        (28, [b"000002@a.mrcs", b"'my mic.mrc'", b"-3.63747e-04"]),
        (29, [b"000003@it's.mrcs", b"m#1.mrc", b"nan"]),
    ]


def test_header_and_rows_together_are_the_file(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_bytes(DIALECTS)
    parts = []
    for table in read_tables(tmp_path / "x.star"):
        parts += [*table.header, *(line for _, line, _ in table.rows())]
    assert b"".join(parts) == DIALECTS


def test_rows_that_nobody_reads_are_checked_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_bytes(b"data_a\nloop_\n_x\n_y\n1 2\n3\n\ndata_b\nloop_\n_z\n1\n")
    with pytest.raises(StarError, match="line 6: a row of data_a has 1 values, its header has 2 labels"):
        list(read_tables(tmp_path / "x.star"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "no data_ line"),
        (b"# only a comment\n", "no data_ line"),
        (b"hello\n", "line 1: expected a data_ line"),
        (b"data_\nloop_\n_a\n1 2\n", "line 4: a row of data_ has 2 values, its header has 1 labels"),
        (b"data_\nloop_\n_a\n_b\n1 2\n\n3 4\n", "line 7: .*remove the blank line"),
        (b"data_\nloop_\n_a\n_a\n1 2\n", "line 4: _a appears twice"),
        (b"data_\n_a\n", "line 2: expected `_a value`"),
        (b"data_\n1 2\n", "line 2: expected loop_ or a label"),
        (b"data_\r\nloop_\r\n", r"line 1: .*CR\+LF.*sed -i"),
        (b"data_\nloop_\n_a\n1\r\n", r"line 4: .*CR\+LF"),
        (b"data_\rloop_\r_a\r1\r", r"line 1: .*in CR, .*sed -i 's/\\r/\\n/g' /"),
        (b"data_\n\0\1", "binary"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "x.star").write_bytes(text)
    with pytest.raises(StarError, match=message):
        list(read_tables(tmp_path / "x.star"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StarError, match=r"x\.star: .*No such file"):
        list(read_tables(tmp_path / "x.star"))


def test_line_numbers_are_right_beyond_the_first_block_of_reading(tmp_path: Path) -> None:
    rows = b"".join(b"%07d %s\n" % (k, b"x" * 40) for k in range(60_000))  # about 3 MB
    (tmp_path / "x.star").write_bytes(b"data_\nloop_\n_a\n_b\n" + rows + b"short\n")
    with pytest.raises(StarError, match="line 60005: a row"):
        list(read_tables(tmp_path / "x.star"))


def copy(source: Path, destination: Path, labels: list[str], values: list[bytes]) -> None:
    rewrite(
        source, destination, lambda table: table.name == "particles", labels, lambda _: values, lambda: None
    )


def test_only_the_named_columns_change(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_bytes(DIALECTS)
    copy(tmp_path / "x.star", tmp_path / "y.star", ["rlnImageName", "rlnNew"], [b"9@new.mrcs", b"n"])
    expected = (
        DIALECTS.replace(b"_rlnAnglePsi\n", b"_rlnAnglePsi\n_rlnNew\n")
        .replace(b"1@a.mrcs  m.mrc   1.348548e+06\n", b"9@new.mrcs  m.mrc   1.348548e+06 n\n")
        .replace(b"000002@a.mrcs\t'my mic.mrc'\t-3.63747e-04 ", b"9@new.mrcs\t'my mic.mrc'\t-3.63747e-04 n ")
        .replace(b"000003@it's.mrcs m#1.mrc nan \n", b"9@new.mrcs m#1.mrc nan n \n")
    )
    assert (tmp_path / "y.star").read_bytes() == expected
    assert (tmp_path / "x.star").read_bytes() == DIALECTS


def test_new_labels_are_numbered_where_the_others_are(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_bytes(b"data_particles\nloop_ \n_a #1 \n_b #2 \n1 2 \n")
    copy(tmp_path / "x.star", tmp_path / "y.star", ["c", "d"], [b"3", b"4"])
    expected = b"data_particles\nloop_ \n_a #1 \n_b #2 \n_c #3 \n_d #4 \n1 2 3 4 \n"
    assert (tmp_path / "y.star").read_bytes() == expected


def test_a_file_without_a_last_line_end_keeps_its_form(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_bytes(b"data_particles\nloop_\n_a\n_b\n1 2")
    copy(tmp_path / "x.star", tmp_path / "y.star", ["b", "c"], [b"5", b"6"])
    assert (tmp_path / "y.star").read_bytes() == b"data_particles\nloop_\n_a\n_b\n_c\n1 5 6"


def test_the_input_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_bytes(DIALECTS)
    (tmp_path / "link.star").symlink_to("x.star")
    with pytest.raises(OutputError, match="the input itself"):
        copy(tmp_path / "x.star", tmp_path / "link.star", ["a"], [b"1"])


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path) -> int:
        files.part_path(path).symlink_to("/dev/full")  # the kernel's disk without room
        return os.open("/dev/full", os.O_RDWR)

    monkeypatch.setattr(files, "new_part", full)
    (tmp_path / "x.star").write_bytes(DIALECTS)
    with pytest.raises(OutputError, match=r"y\.star: the disk is full"):
        copy(tmp_path / "x.star", tmp_path / "y.star", ["a"], [b"1"])
    assert [path.name for path in tmp_path.iterdir()] == ["x.star"]


def test_a_bad_row_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_bytes(b"data_particles\nloop_\n_a\n_b\n1 2\n3\n")
    with pytest.raises(StarError, match="line 6"):
        copy(tmp_path / "x.star", tmp_path / "y.star", ["a"], [b"1"])
    assert [path.name for path in tmp_path.iterdir()] == ["x.star"]


@pytest.mark.parametrize("text", ["plain", "two words", "it's", "'x", '"x', "#x", "", "a\tb", 'a b"c', "Å x"])
def test_a_quoted_text_is_one_value_and_comes_back(text: str) -> None:
    assert [unquote(token) for token in tokenise(b" 1 " + quote(text) + b" 2\n")] == ["1", text, "2"]


@pytest.mark.parametrize("text", ["a\nb", "a 'b' \"c\""])
def test_a_text_that_no_value_can_hold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cannot stand in a STAR file"):
        quote(text)


BLANKS = st.text(" \t", min_size=1, max_size=4)
PLAIN = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x17F, exclude_categories=["Zs", "Cc"]),
    min_size=1,
    max_size=9,
).filter(lambda text: text[0] not in "\"'#_" and not text.startswith(("data_", "loop_")))
QUOTED = st.text(st.characters(codec="ascii", exclude_characters="\"'\n\r\0"), max_size=9)
VALUES = st.one_of(
    PLAIN,
    st.floats().map(repr),
    QUOTED.map(lambda text: f'"{text}"'),
    QUOTED.map(lambda text: f"'{text}'"),
)


@st.composite
def star_files(draw: st.DrawFn) -> tuple[str, list[str], list[list[str]]]:
    """Return the text of a table between two others, its labels and its values."""
    width = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(VALUES, min_size=width, max_size=width), min_size=1, max_size=6))
    labels = [f"rln{k}" for k in range(width)]
    lines = ["# version 30001", "", "data_particles", "", "loop_" + draw(st.sampled_from(["", " "]))]
    numbered = draw(st.booleans())
    lines += [f"_{label} #{k} " if numbered else f"_{label}" for k, label in enumerate(labels, 1)]
    for row in rows:
        line = draw(st.text(" \t", max_size=3))
        for value in row:
            line += value + draw(BLANKS)
        lines.append(line + draw(st.sampled_from(["", "", "# remark"])))
        if width > 1 and draw(st.booleans()):
            lines.append("# between rows")
    before, after = "data_optics\nloop_\n_a #1\n 007 \n\n", "\n\ndata_last\n_x  1.50 # note\n"
    return before + "\n".join(lines) + "\n" + after, labels, rows


@settings(max_examples=60)
@given(file=star_files(), column=st.integers(0, 5), value=VALUES)
def test_no_column_digit_or_comment_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    file: tuple[str, list[str], list[list[str]]],
    column: int,
    value: str,
) -> None:
    text, labels, rows = file
    column %= len(labels)
    folder = tmp_path_factory.mktemp("star")
    source, changed, back = folder / "x.star", folder / "y.star", folder / "z.star"
    source.write_bytes(text.encode())
    copy(source, changed, [labels[column], "rlnNew"], [value.encode(), b"new"])

    (table,) = [
        (table.labels, [tokens for _, _, tokens in table.rows() if tokens])
        for table in read_tables(changed)
        if table.name == "particles"
    ]
    expected = [[*row[:column], value, *row[column + 1 :], "new"] for row in rows]
    assert table == ([*labels, "rlnNew"], [[token.encode() for token in row] for row in expected])

    # With the old values put back and the new column taken out, the file is the source, byte by byte.
    old = iter(rows)
    rewrite(
        changed,
        back,
        lambda table: table.name == "particles",
        [labels[column]],
        lambda _: [next(old)[column].encode()],
        lambda: None,
    )
    assert strip_new_column(back.read_bytes()) == source.read_bytes()


def strip_new_column(text: bytes) -> bytes:
    lines = []
    for line in text.splitlines(keepends=True):
        if not line.startswith(b"_rlnNew"):
            head, new, tail = line.rpartition(b" new")
            lines.append(head + tail if new else line)
    return b"".join(lines)


def test_written_tables_read_back_and_a_failure_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new.star"
    rows = [(1, "1@a stack.mrcs", 0.25), (2, "2@b.mrcs", -1e-7)]
    write_tables(
        path, [("optics", ["rlnOpticsGroup"], [(1,)]), ("particles", ["rlnA", "rlnImageName", "rlnB"], rows)]
    )
    found = {table.name: [tokens for _, _, tokens in table.rows()] for table in read_tables(path)}
    assert found["optics"] == [[b"1"]]
    assert found["particles"] == [
        [b"1", b'"1@a stack.mrcs"', b"0.250000"],
        [b"2", b"2@b.mrcs", b"-0.000000"],
    ]
    with pytest.raises(ValueError, match="a row of 1 values for 2 labels"):
        write_tables(tmp_path / "bad.star", [("", ["rlnA", "rlnB"], [(1,)])])
    assert [entry.name for entry in tmp_path.iterdir()] == ["new.star"]


def test_a_line_of_quotes_that_never_close_takes_no_longer_than_others() -> None:
    line = b"\"a 'b " * 200_000
    begin = time.process_time()
    assert len(tokenise(line)) == 400_000
    # quadratic, it took minutes
    assert time.process_time() - begin < 10


@pytest.mark.parametrize(
    ("line", "values"),
    [
        (b'"a b" c\n', [b'"a b"', b"c"]),
        (b"'a \"b' c", [b"'a \"b'", b"c"]),
        (b'"a"b c" d', [b'"a"b c"', b"d"]),
        (b'"a b', [b'"a', b"b"]),
        (b'" a', [b'"', b"a"]),
        (b'a"b c"', [b'a"b', b'c"']),
        (b"a #b c", [b"a"]),
        (b"a#b c", [b"a#b", b"c"]),
        (b'"" x', [b'""', b"x"]),
    ],
)
def test_quotes_and_comments_end_where_relion_ends_them(line: bytes, values: list[bytes]) -> None:
    assert tokenise(line) == values


class Writer:
    """Writes a table in pieces, as a program that is at work on it does: one each 0.15 s of the reader's."""

    def __init__(self, path: Path, pieces: list[str]) -> None:
        self._path, self._pieces, self._now = path, pieces[1:], 0.0
        path.write_text(pieces[0])

    def sleep(self, seconds: float) -> None:
        """Let so much time pass for the reader, who sleeps."""
        due = round((self._now + seconds) // 0.15) - round(self._now // 0.15)
        self._now += seconds
        with self._path.open("a") as file:
            file.writelines(self._pieces[:due])
        del self._pieces[:due]


HEAD = "data_particles\n\nloop_\n_rlnImageName\n_rlnDefocusU\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [HEAD + "1@x.mrcs 5\n2@x", ".mrcs 6\n"],
        [HEAD + "1@x.mrcs 5\n2@x.mrcs", " ", "6\n"],
        ["", HEAD + "1@x.mrcs 5\n2@x.mrcs 6\n"],
        [HEAD[:20], HEAD[20:], "1@x.mrcs 5\n2@x.mrcs 6\n"],
        [HEAD + "1@x", ".mrcs", " 5", "\n2@x.mrcs ", "6\n"],
    ],
)
def test_a_table_that_is_being_written_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[str]
) -> None:
    monkeypatch.setattr(star, "SETTLING_SECONDS", 0.4)
    monkeypatch.setattr(time, "sleep", Writer(tmp_path / "t.star", pieces).sleep)
    rows = [tokens for table in read_tables(tmp_path / "t.star") for _, _, tokens in table.rows()]
    assert rows == [[b"1@x.mrcs", b"5"], [b"2@x.mrcs", b"6"]]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (HEAD + "1@x.mrcs 5\n2@x.mrcs", r"line 7: a row .* has 1 values.*half written"),
        (HEAD + "1@x.mrcs 5\n2@x.mrcs 6", None),
        ("", "no data_ line"),
    ],
)
def test_it_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: str | None
) -> None:
    monkeypatch.setattr(star, "SETTLING_SECONDS", 0.05)
    path = tmp_path / "t.star"
    path.write_text(text)
    begin = time.monotonic()
    if error is None:
        assert sum(1 for table in read_tables(path) for _ in table.rows()) == 2
    else:
        with pytest.raises(StarError, match=error):
            list(read_tables(path))
    assert time.monotonic() - begin < 20
    # what was written long ago is as its writer left it
    os.utime(path, (time.time() - 100,) * 2)
    monkeypatch.setattr(star, "SETTLING_SECONDS", 60.0)
    begin = time.monotonic()
    with contextlib.suppress(StarError):
        list(read_tables(path))
    assert time.monotonic() - begin < 30
