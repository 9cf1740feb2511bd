"""STAR tables as a stream of lines, and a rewrite that keeps the text of whatever it does not change.

The rules are RELION's: a table's rows end at the first blank line; a value with blanks stands in single or
double quotes; a `#` at the start of a value begins a comment; lines end in LF.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..errors import OutputError, StarError
from .files import link_target, writing

# A quoted value ends at the same quote followed by white space; a comment runs to the end of the line.
_WORD = re.compile(rb"\S+")
_CLOSING = {b'"': re.compile(rb'"(?!\S)'), b"'": re.compile(rb"'(?!\S)")}
_BLOCK_BYTES = 1 << 20

SETTLING_SECONDS = 0.7
"""A file that ends in mid-line is left alone for so long: in a session another program may be writing it."""

# What was written last before so many seconds is as its writer left it.
_OLD_SECONDS = 10.0


def _is_special(text: bytes) -> bool:
    return b'"' in text or b"'" in text or b"#" in text


def tokenise(line: bytes) -> list[bytes]:
    """Return the values of a line as written, quotes included; none for a comment or a blank line."""
    if _is_special(line):
        return [line[begin:end] for begin, end in _spans(line)]
    return line.split()


def _spans(line: bytes) -> list[tuple[int, int]]:
    spans: list[tuple[int, int]] = []
    end, never_closed = 0, set[bytes]()
    while (word := _WORD.search(line, end)) is not None:
        begin, end = word.span()
        first = line[begin : begin + 1]
        if first == b"#":
            break
        if first in _CLOSING and first not in never_closed:
            closing = _CLOSING[first].search(line, begin + 1)
            if closing is None:
                never_closed.add(first)  # looked for once: a line of many such quotes takes no longer
            else:
                end = closing.end()
        spans.append((begin, end))
    return spans


def decode(raw: bytes) -> str:
    """Return bytes of a STAR file as text; `encode` brings back the same bytes, valid UTF-8 or not."""
    return raw.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Return text as bytes of a STAR file."""
    return text.encode("utf-8", "surrogateescape")


def unquote(token: bytes) -> str:
    """Return the text of a value, without its quotes."""
    if len(token) > 1 and token[:1] in (b'"', b"'") and token[-1:] == token[:1]:
        token = token[1:-1]
    return decode(token)


def finite(path: Path, line: int, label: str, token: bytes) -> float:
    """Return a value as a finite number.

    Raises
    ------
    StarError
        If it is none.
    """
    try:
        number = float(unquote(token) if token[:1] in _CLOSING else token)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise StarError(f"expected a number in _{label}, found {unquote(token)!r}.", path=path, line=line)
    return number


def quote(text: str) -> bytes:
    """Return a text as a value of a STAR file, in quotes where RELION needs them."""
    raw = encode(text)
    if raw.split() == [raw] and raw[0] not in b"\"'#":
        return raw
    mark = b"'" if b'"' in raw else b'"'
    if mark in raw or b"\n" in raw or b"\r" in raw:
        raise ValueError(f"{text!r} cannot stand in a STAR file: it holds both kinds of quotes or a line end")
    return mark + raw + mark


class _Lines:
    """The numbered lines of a STAR file, read block by block, with one step back.

    What is rare among a million rows (quotes, comments, wrong line ends) is looked for once per block.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.plain = False  # no quote and no comment in the current block: blanks alone separate its values
        self._file = file
        self._block: list[bytes] = []
        self._before = self._position = 0  # lines before the block, lines of the block already given

    @property
    def number(self) -> int:
        """Line number of the line given last, 1-based."""
        return self._before + self._position

    def __iter__(self) -> Iterator[bytes]:
        while self._position < len(self._block) or self._fill():
            for position in range(self._position, len(self._block)):
                self._position = position + 1
                yield self._block[position]

    def _fill(self) -> bool:
        self._before += len(self._block)
        self._position = 0
        block = self._file.read(_BLOCK_BYTES)
        self._check_text(block)
        rest_of_line = self._file.readline()
        self._check_text(rest_of_line)
        block += rest_of_line
        self.plain = not _is_special(block)
        self._block = block.splitlines(keepends=True)
        return bool(block)

    def _check_text(self, block: bytes) -> None:
        if b"\0" in block:
            if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise StarError(
                    "the text is UTF-16, as editors on Windows write it; RELION cannot read it.",
                    path=self.path,
                    remedy="Convert it with: iconv -f UTF-16 -t UTF-8 "
                    f"{shlex.quote(str(self.path))} > converted.star",
                )
            raise StarError("binary data: this is not a STAR file. Images are .mrcs or .mrc.", path=self.path)
        if b"\r" in block:
            before = block[: block.index(b"\r")]
            ends, system, edit = "CR", "old Macintoshes", r"s/\r/\n/g"
            if block[len(before) :].startswith(b"\r\n"):
                ends, system, edit = "CR+LF", "Windows", r"s/\r$//"
            raise StarError(
                f"the line ends in {ends}, as files written on {system} do; RELION cannot read such files.",
                path=self.path,
                line=self._before + before.count(b"\n") + 1,
                remedy=f"Convert it with: sed -i '{edit}' {shlex.quote(str(self.path))}",
            )

    def step_back(self) -> None:
        self._position -= 1

    def error(self, problem: str, remedy: str | None = None) -> StarError:
        return StarError(problem, path=self.path, line=self.number, remedy=remedy)


@dataclass
class Table:
    """One table of a STAR file, met while streaming: its rows can be read once, before the next table.

    Attributes
    ----------
    path
        The file.
    name
        What follows `data_`; empty in many tables from before RELION 3.1.
    line
        Line of `data_`, 1-based.
    labels
        Column names without the leading underscore; empty for a list.
    values
        Label to value of a list (`_label value` lines without `loop_`), as written.
    header
        The file's lines from the end of the previous table to the first row, verbatim.
    """

    path: Path
    name: str = ""
    line: int = 0
    labels: list[str] = field(default_factory=list)
    values: dict[str, bytes] = field(default_factory=dict)
    header: list[bytes] = field(default_factory=list)
    _lines: _Lines | None = field(default=None, repr=False)

    def rows(self) -> Iterator[tuple[int, bytes, list[bytes]]]:
        """Yield `(line number, line, values)` per row; a comment line between rows has no values.

        Raises
        ------
        StarError
            If a row has not as many values as the table has labels.
        """
        lines, width = self._lines, len(self.labels)
        if lines is None or not width:
            return
        for line in lines:
            tokens = line.split() if lines.plain else tokenise(line)
            if len(tokens) != width:
                if line.isspace() or (tokens and (tokens[0] == b"loop_" or tokens[0].startswith(b"data_"))):
                    lines.step_back()
                    return
                if tokens:
                    raise lines.error(
                        f"a row of data_{self.name} has {len(tokens)} values, its header has {width} labels.",
                        "The file may be cut off, damaged or half written." if len(tokens) < width else None,
                    )
            yield lines.number, line, tokens

    def column(self, label: str) -> int:
        """Return the position of a column.

        Raises
        ------
        StarError
            If the table has no such column.
        """
        try:
            return self.labels.index(label)
        except ValueError:
            raise StarError(
                f"data_{self.name} has no column _{label}.", path=self.path, line=self.line
            ) from None


def read_tables(path: str | Path) -> Iterator[Table]:
    """Yield the tables of a STAR file in order, without holding their rows.

    Rows that the caller does not read are checked and skipped. A last `Table` without name, labels and values
    carries the lines after the last row, if there are any.

    Raises
    ------
    StarError
        If the file cannot be read, is empty, is no text, has CR+LF line ends, a row of the wrong length or
        text outside of a table.
    """
    path = Path(path)
    try:
        with open_text(path) as file:
            lines, found = _Lines(path, file), False
            while True:
                table = _read_header(lines)
                if table.line:
                    found = True
                elif not found:
                    raise StarError(
                        "no data_ line found: this is not a STAR file, or it is empty.", path=path
                    )
                if table.header:
                    yield table
                if not table.line:
                    return
                for _ in table.rows():
                    pass
    except OSError as error:
        reason = f"{error.strerror or error}{link_target(Path(path))}"
        raise StarError(f"the STAR file cannot be read: {reason}.", path=path) from error


def open_text(path: Path) -> BinaryIO:
    """Open a STAR file; what would be waited for in vain, or is easily mistaken for one, is refused.

    Raises
    ------
    StarError
        If it is a folder, a pipe or a device, a group file of cryoSPARC, or a web page.
    OSError
        If it cannot be opened.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise StarError("expected a STAR file, found a folder, a pipe or a device.", path=path)
    _wait_for_writer(path)
    file = path.open("rb")
    begin = file.read(200).lstrip().lower()
    file.seek(0)
    if path.suffix.lower() == ".csg":
        file.close()
        raise StarError(
            "a .csg file only lists .cs files.", path=path, remedy="Give the .cs file that lies beside it."
        )
    if begin.startswith(b"\xef\xbb\xbf"):
        file.close()
        raise StarError(
            "the file begins with a byte-order mark, as editors on Windows write it; RELION cannot read it.",
            path=path,
            line=1,
            remedy=f"Remove it with: LC_ALL=C sed -i '1s/^...//' {shlex.quote(str(path))}",
        )
    if begin.startswith((b"<!doctype", b"<html", b"<?xml")):
        file.close()
        raise StarError(
            "this is a web page, not a STAR file.",
            path=path,
            remedy="Download the file itself, by its link for raw data.",
        )
    return file


def _wait_for_writer(path: Path) -> None:
    """Wait, a few seconds at most, while a file ends in the middle of a line and goes on growing."""
    deadline, last = time.monotonic() + 10 * SETTLING_SECONDS, None
    while time.monotonic() < deadline:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if abs(time.time() - status.st_mtime) > _OLD_SECONDS:
                return
            file.seek(max(0, status.st_size - 1))
            state = status.st_size, status.st_mtime_ns
            if file.read(1) == b"\n" or state == last:
                return
        last = state
        time.sleep(SETTLING_SECONDS)


def _read_header(lines: _Lines) -> Table:
    """Read up to the first row of the next table, or through a list, or to the end of the file."""
    table, in_loop = Table(lines.path, _lines=lines), False
    for line in lines:
        text = line.strip()
        if text.startswith(b"data_"):
            if table.line:
                lines.step_back()
                break
            table.name, table.line = decode(text.split()[0][5:]), lines.number
        elif text and not text.startswith(b"#"):
            if not table.line:
                raise lines.error(
                    f"expected a data_ line, found {_shown(text)}.",
                    "Give a STAR file; if this is a row of the table above, remove the blank line before it.",
                )
            if text.split()[0] == b"loop_":
                in_loop = True
            elif text.startswith(b"_"):
                _add_label(table, lines, text, in_loop=in_loop)
            elif table.labels:
                lines.step_back()
                break
            else:
                raise lines.error(f"expected loop_ or a label, found {_shown(text)}.")
        table.header.append(line)
    return table


def _add_label(table: Table, lines: _Lines, text: bytes, *, in_loop: bool) -> None:
    tokens = tokenise(text)
    label = decode(tokens[0][1:])
    if label in table.labels or label in table.values:
        raise lines.error(f"_{label} appears twice in data_{table.name}.")
    if in_loop:
        table.labels.append(label)
    elif len(tokens) == 2:
        table.values[label] = tokens[1]
    else:
        raise lines.error(f"expected `_{label} value` (or loop_ before it), found {len(tokens) - 1} values.")


def _shown(text: bytes) -> str:
    return repr(decode(text[:60] + b"..." if len(text) > 60 else text))


def free_label(label: str, taken: Sequence[str]) -> str:
    """Return `label`, or with the first number from 2 on that makes it one that is not taken."""
    free, number = label, 1
    while free in taken:
        number += 1
        free = f"{label}{number}"
    return free


def rewrite(
    source: str | Path,
    destination: str | Path,
    is_target: Callable[[Table], bool],
    labels: Sequence[str],
    edit: Callable[[list[bytes]], Sequence[bytes] | None],
    before_rename: Callable[[], None],
) -> None:
    """Copy a STAR file, changing only the named columns of one table.

    Every other byte is kept: comments, blanks, digits, other tables. A label that the table lacks becomes a
    new last column. The copy grows in `<destination>.part` and is renamed once it is complete.

    Parameters
    ----------
    source, destination
        Two different files.
    is_target
        Tells the table to change.
    labels
        The columns to replace or append.
    edit
        Given the values of a row as written, returns the new values for `labels`, ready to write (`quote`),
        or None to leave the row out.
    before_rename
        Called once all rows were edited; what it raises leaves nothing under `destination`.

    Raises
    ------
    StarError
        If `source` is not a valid STAR file.
    OutputError
        If `destination` is `source` or cannot be written.
    """
    source, destination = Path(source), Path(destination)
    if source.exists() and destination.exists() and destination.samefile(source):
        raise OutputError(
            f"{destination}: is the input itself, which is never written to. Choose another name."
        )
    with writing(destination) as part, part.open("wb", buffering=_BLOCK_BYTES) as file:
        for table in read_tables(source):
            file.writelines(_copied(table, is_target, labels, edit))
        before_rename()


def _copied(
    table: Table,
    is_target: Callable[[Table], bool],
    labels: Sequence[str],
    edit: Callable[[list[bytes]], Sequence[bytes] | None],
) -> Iterator[bytes]:
    """Yield the lines of one table, edited when it is the target."""
    if not is_target(table):
        yield from table.header
        for _, line, _ in table.rows():
            yield line
        return
    yield from _header_with(table, [label for label in labels if label not in table.labels])
    present = sorted(
        (table.labels.index(label), k) for k, label in enumerate(labels) if label in table.labels
    )
    appended = [k for k, label in enumerate(labels) if label not in table.labels]
    for _, line, tokens in table.rows():
        if not tokens:
            yield line
            continue
        values = edit(tokens)
        if values is None:
            continue
        replaced = [(column, values[k]) for column, k in present]
        yield _edited(line, tokens, replaced, b"".join([b" " + values[k] for k in appended]))


def _header_with(table: Table, new_labels: Sequence[str]) -> Iterator[bytes]:
    """Yield the header's lines with new labels after the last one, in the same style."""
    is_label = [line.lstrip().startswith(b"_") for line in table.header]
    last = len(is_label) - 1 - is_label[::-1].index(True)
    numbered = b"#" in table.header[last]
    for position, line in enumerate(table.header):
        yield line
        if position == last:
            for number, label in enumerate(new_labels, start=len(table.labels) + 1):
                yield encode(f"_{label} #{number} \n" if numbered else f"_{label}\n")


def _edited(
    line: bytes, tokens: list[bytes], replaced: Sequence[tuple[int, bytes]], appended: bytes
) -> bytes:
    """Return a row with some values replaced (in rising order of columns) and others appended."""
    if _is_special(line):
        spans = _spans(line)
        end = spans[-1][1]
        line = line[:end] + appended + line[end:]
        for column, value in reversed(replaced):
            begin, end = spans[column]
            line = line[:begin] + value + line[end:]
        return line
    pieces, rest, following = [], line, 0
    for column, value in replaced:
        from_token = rest.split(None, column - following)[-1]
        pieces += [rest[: len(rest) - len(from_token)], value]
        rest, following = from_token[len(tokens[column]) :], column + 1
    # A row whose last value was replaced leaves only blanks behind.
    body = rest.rstrip()
    return b"".join([*pieces, body, appended, rest[len(body) :]])


def write_tables(
    path: str | Path, tables: Sequence[tuple[str, Sequence[str], Iterable[Sequence[str | float | int]]]]
) -> None:
    """Write a new STAR file in the form of RELION 3.1 and later.

    Parameters
    ----------
    path
        Grows as `<path>.part` and is renamed once it is complete.
    tables
        Name without `data_`, labels without the leading underscore, and rows. Numbers that are not whole get
        six decimals, as RELION writes them; texts are quoted where they need it.

    Raises
    ------
    OutputError
        The file cannot be written.
    ValueError
        A row has not as many values as there are labels, or a text cannot stand in a STAR file.
    """
    with writing(Path(path)) as part, part.open("wb", buffering=_BLOCK_BYTES) as file:
        for name, labels, rows in tables:
            file.write(encode(f"\n# version 30001\n\ndata_{name}\n\nloop_ \n"))
            file.writelines(encode(f"_{label} #{number} \n") for number, label in enumerate(labels, 1))
            for row in rows:
                if len(row) != len(labels):
                    raise ValueError(f"a row of {len(row)} values for {len(labels)} labels in data_{name}")
                file.write(b" ".join(_written(value) for value in row) + b" \n")
            file.write(b" \n")


def _written(value: str | float | int) -> bytes:
    if isinstance(value, str):
        return quote(value)
    return encode(f"{value:.6f}" if isinstance(value, float) else str(value))
