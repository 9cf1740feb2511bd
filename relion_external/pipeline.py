"""A RELION project's `default_pipeline.star`: which jobs there are, and adding one where no RELION is."""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import emtable

from ..core.errors import HostError, InputError
from ..core.io.files import make_folder, writing, writing_failed
from .project import NODE_LABELS, NODE_NUMBERS, Kind

PIPELINE = "default_pipeline.star"
LOCK = ".relion_lock"
# RELION's own programs wait for two minutes.
LOCK_SECONDS = 120.0
# A lock that stays longer may be one that a program has left; whoever must not touch the project then asks.
SETTLING_SECONDS = 2.0
_FINISHED = ("2", "Succeeded")
_OPTIONS = (
    "do_queue fn_exe in_3dref in_coords in_mask in_mic in_mov in_part min_dedicated nr_threads other_args "
    + " ".join(f"param{number}_{part}" for number in range(1, 11) for part in ("label", "value"))
    + " qsub qsubscript queuename"
).split()
_DEFAULTS = {
    "do_queue": "No",
    "min_dedicated": "1",
    "nr_threads": "1",
    "qsub": "qsub",
    "queuename": "openmpi",
}


@dataclass(frozen=True)
class Process:
    """A job: its name, as in `Extract/job007/`, and whether it succeeded."""

    name: str
    is_finished: bool


def read_pipeline(project: Path) -> str:
    """Return the text of the pipeline, read while no program of RELION writes it: it writes in place.

    Raises
    ------
    InputError
        If the folder is no project of RELION.
    """
    deadline = time.monotonic() + SETTLING_SECONDS
    while True:
        before, text = _state(project), _text(project)
        is_settled = not (project / LOCK).exists() and _state(project) == before
        if is_settled or time.monotonic() > deadline:
            return text
        time.sleep(0.1)


def _state(project: Path) -> tuple[int, int, int] | None:
    """Return what is other once the pipeline has been written."""
    try:
        found = (project / PIPELINE).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _text(project: Path) -> str:
    try:
        return (project / PIPELINE).read_text()
    except OSError as error:
        raise InputError(
            f"no {PIPELINE} can be read here ({error.strerror}).",
            path=project,
            remedy="Give the folder in which RELION is started.",
        ) from error


def relion_version(pipeline: str) -> str | None:
    """Return which RELION a pipeline is of: 3.1, 4 or 5; None while it holds no job."""
    if "# version 50001" in pipeline:
        return "5"
    if re.search(r"^_rlnPipeLineProcessTypeLabel\s", pipeline, re.MULTILINE):
        return "4"
    return "3.1" if re.search(r"^_rlnPipeLineProcessType\s", pipeline, re.MULTILINE) else None


def processes(pipeline: str) -> list[Process]:
    """Return the jobs, oldest first."""
    columns, rows = _table(pipeline, "processes")
    status = next((i for i, name in enumerate(columns) if name.startswith("_rlnPipeLineProcessStatus")), 3)
    return [Process(row[0], row[status] in _FINISHED) for row in rows]


def settled_jobs(project: Path) -> set[str]:
    """Return the names of the jobs, read while no program of RELION writes them: it writes in place.

    Raises
    ------
    InputError
        If the folder is no project of RELION.
    HostError
        If RELION keeps the pipeline locked.
    OutputError
        If it cannot be locked.
    """
    with _locked(project):
        return {process.name for process in processes(_text(project))}


def refuse_if_busy(project: Path) -> None:
    """Raise when another program of RELION is changing the project, or runs its jobs.

    Raises
    ------
    HostError
        Names what stands in the way.
    """
    if (project / LOCK).exists():
        raise HostError(
            f"{project}: the pipeline is locked ({LOCK}). Wait for RELION; if none runs there, remove "
            "the lock."
        )
    running = sorted(path.name for path in project.glob("RUNNING_PIPELINER_*"))
    if running:
        raise HostError(
            f"{project}: RELION runs scheduled jobs there ({', '.join(running)}). Wait for them; if none "
            "runs, remove the file."
        )


def add_running_job(project: Path, kind: Kind, source: str, command: str, alias: str | None = None) -> str:
    """Add an External job to the pipeline as RELION does, as one that runs, and return its name.

    RELION takes its outputs in as soon as it sees the marker of success in its folder. An alias that another
    job has is left out, as RELION does it, too.

    Raises
    ------
    InputError
        If the pipeline holds no job yet.
    HostError
        If RELION keeps it locked.
    OutputError
        If it cannot be written.
    """
    with _locked(project):
        text = _text(project)
        columns, _ = _table(text, "processes")
        counter = re.search(r"^(_rlnPipeLineJobCounter\s+)(\d+)", text, re.MULTILINE)
        if not columns or counter is None:
            raise InputError("the pipeline has no jobs yet.", path=project / PIPELINE)
        name = f"External/job{int(counter[2]):03d}/"
        text = text[: counter.start(2)] + str(int(counter[2]) + 1) + text[counter.end(2) :]
        is_31, is_5 = relion_version(text) == "3.1", relion_version(text) == "5"
        kept = "99 0" if is_31 else "relion.external Running"
        link = None if alias is None else project / "External" / alias
        is_free = link is not None and not os.path.lexists(link)
        text = _with_row(text, "processes", f"{name} {f'External/{alias}/' if is_free else None} {kept}", ())
        label = str(NODE_NUMBERS[kind]) if is_31 else NODE_LABELS[kind]["5" if is_5 else "4"]
        node_columns, nodes = _table(text, "nodes")
        if source not in {row[0] for row in nodes}:
            depth = " 1" if "_rlnPipeLineNodeTypeLabelDepth" in node_columns else ""
            type_column = f"_rlnPipeLineNodeType{'' if is_31 else 'Label'}"
            text = _with_row(text, "nodes", f"{source} {label}{depth}", ("_rlnPipeLineNodeName", type_column))
        edge = ("_rlnPipeLineEdgeFromNode", "_rlnPipeLineEdgeProcess")
        text = _with_row(text, "input_edges", f"{source} {name}", edge)
        _write(project / name / "job.star", _job_star(kind, source, command, is_31=is_31, is_5=is_5))
        if link is not None and is_free:
            _link(link, name)
        _write(project / PIPELINE, text)
    return name


@contextlib.contextmanager
def _locked(project: Path) -> Iterator[None]:
    """Hold RELION's lock: a folder that only one can make."""
    lock, deadline = project / LOCK, time.monotonic() + LOCK_SECONDS
    while True:
        try:
            lock.mkdir()
            break
        except FileExistsError as error:
            if time.monotonic() > deadline:
                raise HostError(f"{project}: RELION keeps the pipeline locked ({LOCK}).") from error
            time.sleep(0.5)
        except OSError as error:
            raise writing_failed(lock, error) from error
    try:
        yield
    finally:
        lock.rmdir()


def _table(text: str, name: str) -> tuple[list[str], list[list[str]]]:
    """Return the columns and rows of a table of the pipeline; nothing of one that is absent.

    RELION writes these rows, which never hold quotes: emtable judges a table's quotes by its first row.
    """
    name = f"pipeline_{name}"
    if f"data_{name}\n" not in text:
        return [], []
    table = emtable.Table()
    table.readStar(io.StringIO(text), tableName=name, guessType=False)
    return [f"_{column}" for column in table.getColumnNames()], [list(row) for row in table]


def _with_row(text: str, name: str, row: str, columns: tuple[str, ...]) -> str:
    """Return the text with one more row, and the table if it is absent."""
    before, header, block = text.partition(f"data_pipeline_{name}\n")
    if not header:
        names = "".join(f"{column} #{number} \n" for number, column in enumerate(columns, 1))
        version = re.search(r"^# version \d+", text, re.MULTILINE)
        start = f"\n{version[0]}\n\n" if version else "\n"
        return f"{text.rstrip()}\n{start}data_pipeline_{name}\n\nloop_ \n{names}{row} \n \n"
    end = re.search(r"^(?:# version|data_)", block, re.MULTILINE)
    body, rest = (block[: end.start()], block[end.start() :]) if end else (block, "")
    return f"{before}{header}{body.rstrip()}\n{row} \n \n\n{rest}"


def _job_star(kind: Kind, source: str, command: str, *, is_31: bool, is_5: bool) -> str:
    version = "# version 50001" if is_5 else "# version 30001"
    job = "_rlnJobType 99\n" if is_31 else "_rlnJobTypeLabel relion.external\n_rlnJobIsTomo 0\n"
    given = {
        **_DEFAULTS,
        "fn_exe": f'"{command}"',
        {"particles": "in_part", "micrographs": "in_mic"}[kind]: source,
    }
    rows = "".join(f"{name} {given.get(name, chr(34) * 2)} \n" for name in _OPTIONS)
    return (
        f"\n{version}\n\ndata_job\n\n{job}_rlnJobIsContinue 0\n \n\n{version}\n\ndata_joboptions_values\n\n"
        f"loop_ \n_rlnJobOptionVariable #1 \n_rlnJobOptionValue #2 \n{rows} \n"
    )


def _link(link: Path, name: str) -> None:
    try:
        link.symlink_to(f"../{name}")
    except OSError as error:
        raise writing_failed(link, error) from error


def _write(path: Path, text: str) -> None:
    make_folder(path.parent)
    with writing(path) as part:
        part.write_text(text)
