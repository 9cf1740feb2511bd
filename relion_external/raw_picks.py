"""Picks that were made on denoised micrographs, brought back to the raw ones.

RELION 4 and 5 list the coordinates of each micrograph under the micrograph's name, and their extraction
compares whole names: of picks on `External/job005/…` it finds none in the raw micrographs. Only the names are
changed here; a denoised micrograph has the pixels of the raw one.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from ..core.errors import InputError
from ..core.inference.plan import MICROGRAPH_TABLE_NAME
from ..core.io.columns import find_table, read_columns
from ..core.io.star import Table, quote, rewrite, unquote

TABLE_NAME = "raw_picks.star"
_NAME = "rlnMicrographName"
# Where the table of denoised micrographs keeps the name of the raw one.
RAW_NAMES = ("rlnCryohushRawMicrographName", "rlnImageOriginalName")
# Of a micrograph that was denoised twice both jobs are asked.
_MAX_JOBS = 8


def write_raw_picks(source: str, directory: Path) -> tuple[Path, int, int]:
    """Write a list of coordinates with the raw micrographs' names; the rest of its text stays as it is.

    Parameters
    ----------
    source
        RELION 4's or 5's list of coordinates, such as `AutoPick/job006/autopick.star`.
    directory
        The job's, relative to the project.

    Returns
    -------
    The list, how many rows it has, and how many of them name another micrograph now.

    Raises
    ------
    InputError
        If it names no denoised micrograph, or the table of the job that denoised one is gone.
    StarError, OutputError
        If a file cannot be read or written.
    """
    raw = _RawNames()
    n_rows = n_changed = 0

    def edit(values: list[bytes]) -> list[bytes]:
        nonlocal n_rows, n_changed
        name = unquote(values[column])
        found = raw.of(name)
        n_rows += 1
        n_changed += found != name
        return [quote(found)]

    column = _name_column(source)

    def check() -> None:
        if not n_changed:
            raise InputError(
                f"expected picks on denoised micrographs, found {n_rows} micrographs none of which is one.",
                path=Path(source),
                remedy="Give the list of a picking job that had denoised micrographs as input.",
            )

    path = directory / TABLE_NAME
    rewrite(source, path, _is_list, [_NAME], edit, check)
    return path, n_rows, n_changed


def _is_list(table: Table) -> bool:
    return _NAME in table.labels


def _name_column(source: str) -> int:
    if (table := find_table(source, _is_list)) is not None:
        return table.column(_NAME)
    raise InputError(
        f"expected a list of coordinates with {_NAME}, found none.",
        path=Path(source),
        remedy="As 'Input coordinates' give the autopick.star, manualpick.star or the like of a job of "
        "RELION 4 or 5. In RELION 3.1 extract from the raw micrographs with the picks as they are.",
    )


class _RawNames:
    """The raw micrographs, by the name of the denoised one; each job's table is read once."""

    def __init__(self) -> None:
        self._jobs: dict[PurePosixPath, dict[str, str]] = {}

    def of(self, name: str) -> str:
        """Return the raw micrograph's name; the name itself where the micrograph is a raw one."""
        for _ in range(_MAX_JOBS):
            job = PurePosixPath(*PurePosixPath(name).parts[:2])
            if job not in self._jobs:
                self._jobs[job] = _table(Path(job))
            if name not in self._jobs[job]:
                break
            name = self._jobs[job][name]
        return name


def _table(job: Path) -> dict[str, str]:
    """Return denoised to raw name of the micrographs of a job; nothing if it denoised none."""
    path = job / MICROGRAPH_TABLE_NAME
    if not path.exists():
        if job.parts[:1] == ("External",):
            raise InputError(
                "the table of the job that denoised these micrographs is not there.",
                path=path,
                remedy="Run raw-picks before that job is removed.",
            )
        return {}
    columns = read_columns(path, (_NAME, *RAW_NAMES), optional=RAW_NAMES)
    raw = [] if columns is None else [columns.text[label] for label in RAW_NAMES if label in columns.text]
    if columns is None or not raw:
        return {}
    return dict(zip(columns.text[_NAME], raw[0], strict=True))
