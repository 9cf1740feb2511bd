"""RELION projects as sources of a batch: each becomes an External job that the GUI shows from begin to end.

Where RELION is installed, `relion_pipeliner` makes the job and runs it; its command only follows the batch.
Where it is not, the job is written into the pipeline as RELION would write it, and RELION takes its outputs
in when it next looks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections import defaultdict
from pathlib import Path

from ..core.batch.kinds import Result
from ..core.batch.sources import item_names, matching
from ..core.batch.state import Item, log_path
from ..core.config.batch import Source
from ..core.config.denoise import DenoiseOptions
from ..core.errors import ConfigurationError, HostError, InputError, OutputError
from ..core.io.micrographs import lists_micrographs
from ..core.noise.output import TABLE_NAME as NOISE_TABLE_NAME
from ..core.report import PDF_NAME
from .denoise import TABLE_NAMES, WAY_BACK
from .follow import BATCH_NAME, END_NAME, write_note
from .job import ABORT_NOW, EXIT_ABORTED, EXIT_FAILURE, EXIT_SUCCESS
from .pipeline import add_running_job, processes, read_pipeline, refuse_if_busy
from .project import Kind, Project, write_output_nodes

PIPELINER = "relion_pipeliner"
COMMAND = "relion_cryohush follow"
# The pipeliner sees the end of a job after its own interval.
PIPELINER_SECONDS = 120.0
_TABLES = ("particles.star", "micrographs_ctf.star", "corrected_micrographs.star", "micrographs.star")


class RelionProjects:
    """The host of RELION's projects; see `Host`.

    Parameters
    ----------
    folder
        Of the batch.
    command
        The command line, for the reports.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self._folder, self._command = folder.absolute(), command
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._adding: dict[Path, threading.Lock] = defaultdict(threading.Lock)

    def find(self, source: Source) -> list[Item]:
        """Return an item for each table that the path or pattern names, or for that of the newest job."""
        assert source.relion is not None  # of this host
        project = source.relion.absolute()
        pipeline = read_pipeline(project)
        if source.newest is not None:
            paths = [newest_table(project, pipeline, source.newest)]
        else:
            paths = matching(source.particles or source.micrographs or "", project)
        names = item_names(source.name, paths)
        return [
            Item(
                name=name,
                host="relion",
                source=path,
                root=project,
                project=project,
                alias=source.alias if len(paths) == 1 or not source.alias else f"{source.alias}_{number}",
            )
            for number, (name, path) in enumerate(zip(names, paths, strict=True), 1)
        ]

    def check(self, item: Item) -> None:
        """Raise when RELION is at work in the project, or cannot take the result."""
        project = _project(item)
        refuse_if_busy(project)
        if not item.source.is_relative_to(project):
            raise ConfigurationError(f"{item.source} lies outside of the project {project}.")
        job = f"{'/'.join(_relative(item).split('/')[:2])}/"
        known = {process.name: process.is_finished for process in processes(read_pipeline(project))}
        if not known.get(job, True):
            raise InputError("the job that makes it has not finished.", path=item.source)
        if " " in _relative(item):
            raise ConfigurationError(f"{item.source}: RELION takes no paths with blanks.")
        is_float16 = isinstance(item.options, DenoiseOptions) and item.options.output_dtype == "float16"
        if is_float16 and "_rlnPipeLineProcessType " in read_pipeline(project):
            raise ConfigurationError("output_dtype float16: RELION 3.1 cannot read float16 images.")

    def open(self, item: Item) -> Path:
        """Make the job, or take up again the one that there is, and let RELION show it as running."""
        project, has_relion = _project(item), shutil.which(PIPELINER) is not None
        if item.output is None:
            with self._adding[project]:
                item.output = project / (self._add(item) if has_relion else self._add_by_hand(item))
        for name in (END_NAME, EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED, ABORT_NOW):
            (item.output / name).unlink(missing_ok=True)
        note = {"folder": str(self._folder), "log": str(log_path(self._folder, item.name))}
        write_note(item.output / BATCH_NAME, note)
        if has_relion:
            self._running[item.name] = self._start(item)
        return item.output

    def is_aborted(self, item: Item) -> bool:
        """Tell whether the user has stopped the job in RELION."""
        return item.output is not None and any((item.output / n).exists() for n in (ABORT_NOW, EXIT_ABORTED))

    def tell(self, item: Item, line: str) -> None:
        """RELION's job follows the source's log."""

    def show_progress(self, item: Item) -> None:
        """The log has that, too."""

    def close(self, item: Item, summary: Result | None) -> None:
        """Write the report and the job's outputs, and let RELION see its end."""
        if item.output is None:
            return
        if summary is not None:
            from ..core.batch.evaluate_kind import report_result

            report_result(summary, self._command, WAY_BACK[_kind(item)])
            _write_output_nodes(item, item.output)
        state = "done" if summary is not None else item.state
        write_note(item.output / END_NAME, {"state": state, "error": item.error})
        running = self._running.pop(item.name, None)
        if running is None:
            marker = {"done": EXIT_SUCCESS, "stopped": EXIT_ABORTED}.get(state, EXIT_FAILURE)
            (item.output / marker).touch()
            return
        try:
            running.wait(PIPELINER_SECONDS)
        except subprocess.TimeoutExpired as error:
            running.kill()
            running.wait()
            raise HostError(f"{item.output}: {PIPELINER} did not see the end of the job.") from error
        if state == "done" and not (item.output / EXIT_SUCCESS).exists():
            raise HostError(
                f"{item.output} holds the whole result, but RELION shows the job as failed: see its run.err."
            )

    def _add(self, item: Item) -> str:
        """Let RELION make the job, and return its name."""
        project = _project(item)
        field = {"micrographs": "in_mic", "particles": "in_part"}[_kind(item)]
        options = f"fn_exe == {COMMAND};{field} == {_relative(item)};nr_threads == 1;do_queue == No"
        before = {process.name for process in processes(read_pipeline(project))}
        words = [PIPELINER, "--addJob", "External", "--addJobOptions", options]
        words += ["--setJobAlias", item.alias] if item.alias else []
        try:
            done = subprocess.run(
                words, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"{project}: {PIPELINER} did not answer. Is the pipeline locked?") from error
        new = [p.name for p in processes(read_pipeline(project)) if p.name not in before]
        if done.returncode or len(new) != 1:
            raise HostError(
                f"{project}: {PIPELINER} made no job: {(done.stderr or done.stdout).strip()[-300:]}"
            )
        return new[0]

    def _add_by_hand(self, item: Item) -> str:
        return add_running_job(_project(item), _kind(item), _relative(item), COMMAND, item.alias)

    def _start(self, item: Item) -> subprocess.Popen[bytes]:
        """Let RELION run the job; the process ends when RELION has seen the job's end."""
        assert item.output is not None  # since `open`
        job = f"{item.output.relative_to(_project(item))}/"
        words = [
            PIPELINER,
            "--RunJobs",
            job,
            "--schedule",
            f"cryohush_{item.output.name}",
            "--sec_wait_after",
            "1",
        ]
        try:
            return subprocess.Popen(
                words,
                cwd=_project(item),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise OutputError(f"{PIPELINER} cannot be started: {os.strerror(error.errno or 0)}.") from error


def newest_table(project: Path, pipeline: str, kind: str) -> Path:
    """Return the table of particles or micrographs of the newest finished job of a kind.

    Raises
    ------
    InputError
        If there is none.
    """
    for process in reversed(processes(pipeline)):
        if process.name.startswith(f"{kind}/") and process.is_finished:
            for name in _TABLES:
                if (path := project / process.name / name).exists():
                    return path
    raise InputError(f"no finished job {kind} has one of {', '.join(_TABLES)}.", path=project)


def _write_output_nodes(item: Item, output: Path) -> None:
    kind = _kind(item)
    project = Project.of_job(output, _relative(item), kind)
    table = TABLE_NAMES[kind] if item.job == "denoise" else None
    if item.job == "extract-noise":
        # the blocks are a stack with a table of its own, which RELION knows as particles
        kind, project, table = "particles", project.listing("particles"), NOISE_TABLE_NAME
    job = output.relative_to(_project(item))
    write_output_nodes(job, project, table=table, pdf=PDF_NAME, kind=kind, root=_project(item))


def _kind(item: Item) -> Kind:
    return "micrographs" if lists_micrographs(item.source) else "particles"


def _project(item: Item) -> Path:
    assert item.project is not None  # of this host's items
    return item.project


def _relative(item: Item) -> str:
    return item.source.relative_to(_project(item)).as_posix()
