"""Some columns of a STAR table, as text or as numbers, with the line of each row for what is wrong with it.

emtable and starfile would give them as well. But emtable judges by the first row whether there are quotes,
and takes a later value such as `"a b"` for two; starfile reads the whole file and guesses types; and neither
says in which line an error is.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from .star import Table, finite, read_tables, unquote

Among = Callable[[Table], bool]


@dataclass(frozen=True)
class Columns:
    """Columns of one table, with an entry for each row.

    Attributes
    ----------
    table
        The table, whose rows cannot be read again.
    lines
        Line of each row, 1-based.
    text, number
        By label, without the leading underscore: texts without their quotes, and finite numbers.
    """

    table: Table
    lines: Sequence[int]
    text: dict[str, list[str]]
    number: dict[str, array[float]]

    def __len__(self) -> int:
        return len(self.lines)

    def of_rows(self, chosen: Sequence[bool]) -> Columns:
        """Return the columns with some of their rows."""
        return Columns(
            self.table,
            list(compress(self.lines, chosen)),
            {label: list(compress(values, chosen)) for label, values in self.text.items()},
            {label: array("d", compress(values, chosen)) for label, values in self.number.items()},
        )


def find_table(path: str | Path, among: Among) -> Table | None:
    """Return the first table of a kind, of which no rows are read any more; None if there is none.

    Raises
    ------
    StarError
        If the file cannot be read as far as that.
    """
    return next((table for table in read_tables(path) if among(table)), None)


def read_columns(
    path: str | Path,
    text: Collection[str] = (),
    number: Collection[str] = (),
    *,
    optional: Collection[str] = (),
    among: Among = lambda table: True,
) -> Columns | None:
    """Read columns of the first table that has them; None if there is none.

    Parameters
    ----------
    path
        The file.
    text, number
        Labels, without the leading underscore, by how they are read.
    optional
        Those of them that the table may lack: they are then not in the result.
    among
        Which tables count.

    Raises
    ------
    StarError
        If the file is no valid STAR file, or a value of `number` is none.
    """
    needed = {*text, *number} - set(optional)
    for table in read_tables(path):
        if table.labels and needed <= set(table.labels) and among(table):
            return _read(table, text, number)
    return None


def _read(table: Table, text: Collection[str], number: Collection[str]) -> Columns:
    lines = array("q")
    texts: dict[str, list[str]] = {label: [] for label in text if label in table.labels}
    numbers = {label: array("d") for label in number if label in table.labels}
    as_text = [(table.column(label), values.append) for label, values in texts.items()]
    as_number = [(table.column(label), label, values.append) for label, values in numbers.items()]
    for line, _, tokens in table.rows():
        if tokens:
            lines.append(line)
            for column, add_text in as_text:
                add_text(unquote(tokens[column]))
            for column, label, add_number in as_number:
                add_number(finite(table.path, line, label, tokens[column]))
    return Columns(table, lines, texts, numbers)
