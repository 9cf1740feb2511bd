"""RELION as a host: what it is given when a job has ended, and how a batch makes jobs in its projects.

Where RELION is installed, `relion_pipeliner` makes a batch's job and runs it; its command only follows the
batch. Where it is not, the job is written into the pipeline as RELION would write it, and RELION takes its
outputs in when it next looks. Either way the GUI shows it from begin to end.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import subprocess
import threading
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.advice import PICKING, USE
from ..core.batch.state import Item, log_path
from ..core.config.batch import Source
from ..core.config.denoise import DenoiseOptions
from ..core.errors import ConfigurationError, HostError, InputError, OutputError
from ..core.inference.plan import MICROGRAPH_TABLE_NAME, TABLE_NAME
from ..core.io.inputs import item_names, matching
from ..core.io.micrographs import lists_micrographs
from ..core.noise.output import TABLE_NAME as NOISE_TABLE_NAME
from ..core.report import PDF_NAME
from .follow import BATCH_NAME, END_NAME, write_note
from .markers import ABORT_NOW, EXIT_ABORTED, EXIT_FAILURE, EXIT_SUCCESS
from .pipeline import (
    add_running_job,
    processes,
    read_pipeline,
    refuse_if_busy,
    relion_version,
    settled_jobs,
)
from .project import Kind, Project, write_output_nodes
from .source import RelionSource

if TYPE_CHECKING:
    from ..core.jobs.kinds import Result

PIPELINER = "relion_pipeliner"
COMMAND = "relion_cryohush follow"
# of RELION's External form, for the table
_FIELDS: dict[Kind, str] = {"micrographs": "in_mic", "particles": "in_part"}
# The pipeliner sees the end of a job after its own interval.
PIPELINER_SECONDS = 120.0
# What RELION leaves in the project's folder for each job that a batch runs, by the name of the schedule.
_PIPELINER_LOG = "pipeline_{}.log"
# What RELION's GUI fills the External form with next time.
_FORM = ".gui_externaljob.star"
_TABLES = ("particles.star", "micrographs_ctf.star", "corrected_micrographs.star", "micrographs.star")


def way_back(kind: Kind, version: str | None) -> str:
    """Return what the user can do with denoised images, and how to go back to the raw ones.

    Parameters
    ----------
    version
        Of RELION; None outside of a project: of all versions then.
    """
    if kind == "particles":
        return (
            f"{USE} 2D classes of denoised particles look better than those of raw ones, but where it was "
            "measured they were worse, and with the E-step limited to 25 Å no better (docs/relion.md). "
            "Back to the raw images: job type Particle subtraction, 'OR revert to original particles?' Yes, "
            "with the selected denoised particles as 'revert this particle star file'. Particles that are "
            "extracted again after that are raw already: do not revert those."
        )
    in_31 = "The extraction job takes the raw micrographs and the picked coordinates as they are."
    since_4 = (
        "Give the picked coordinates to an External job `relion_cryohush raw-picks`; the extraction job "
        "takes the raw micrographs and the raw_picks.star that it makes."
    )
    texts = {"3.1": in_31, None: f"RELION 3.1: {in_31} RELION 4 and 5: {since_4}"}
    return f"{PICKING} {texts.get(version, since_4)}"


def finish(
    result: Result,
    directory: Path,
    project: Project,
    kind: Kind,
    command: str,
    warnings: Sequence[str] = (),
    root: Path = Path(),
) -> str:
    """Write the report of a job and the table of its outputs, and return the way back to the raw images.

    Parameters
    ----------
    result
        What the job came to; an evaluation has written its own report.
    directory
        The job's, as RELION names it: relative to `root`, the project's folder.
    kind
        What it worked on.
    warnings
        What the user was warned of.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    from ..core.inference.summary import Summary
    from ..core.jobs.kinds import report_result
    from ..core.noise.summary import NoiseSummary

    back, table, parts = "", None, list[str]()
    if isinstance(result, Summary):
        back = way_back(kind, project.version)
        table = {"particles": TABLE_NAME, "micrographs": MICROGRAPH_TABLE_NAME}[kind]
        parts = [path.name for path in result.parts]
    elif isinstance(result, NoiseSummary):
        # the blocks are a stack with a table of its own, which RELION knows as particles
        kind, project, table = "particles", project.listing("particles"), NOISE_TABLE_NAME
    report_result(result, command, back, warnings)
    write_output_nodes(directory, project, table=table, pdf=PDF_NAME, kind=kind, parts=parts, root=root)
    return back


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
        self._forms: dict[Path, bytes | None] = {}

    def find(self, source: Source) -> list[Item]:
        """Return an item for each table that the path or pattern names, or for that of the newest job."""
        assert isinstance(source, RelionSource)  # of this host
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
        pipeline = read_pipeline(project)
        version = relion_version(pipeline)
        _refuse_other_version(project, version)
        if not item.source.is_relative_to(project):
            raise ConfigurationError(f"{item.source} lies outside of the project {project}.")
        job = f"{'/'.join(_relative(item).split('/')[:2])}/"
        known = {process.name: process.is_finished for process in processes(pipeline)}
        if not known.get(job, True):
            raise InputError("the job that makes it has not finished.", path=item.source)
        if " " in _relative(item):
            raise ConfigurationError(f"{item.source}: RELION takes no paths with blanks.")
        is_float16 = isinstance(item.options, DenoiseOptions) and item.options.output_dtype == "float16"
        if is_float16 and version == "3.1":
            raise ConfigurationError("output_dtype float16: RELION 3.1 cannot read float16 images.")

    def open(self, item: Item) -> Path:
        """Make the job, or take up again the one that there is, and let RELION show it as running."""
        project, has_relion = _project(item), shutil.which(PIPELINER) is not None
        with self._adding[project]:
            self._forms[project] = _remembered(project) or self._forms.get(project)
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
            kind, root = _kind(item), _project(item)
            project = Project.of_job(item.output, _relative(item), kind)
            finish(summary, item.output.relative_to(root), project, kind, self._command, root=root)
        state = "done" if summary is not None else item.state
        write_note(item.output / END_NAME, {"state": state, "error": item.error})
        running = self._running.pop(item.name, None)
        if running is None:
            marker = {"done": EXIT_SUCCESS, "stopped": EXIT_ABORTED}.get(state, EXIT_FAILURE)
            (item.output / marker).touch()
            return
        try:
            running.wait(PIPELINER_SECONDS)
            _tidy(_project(item), item.output)
            _restore_form(_project(item), self._forms.get(_project(item)))
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
        field = f"{_FIELDS[_kind(item)]} == {_relative(item)}"
        options = f"fn_exe == {COMMAND};{field};nr_threads == 1;do_queue == No"
        # jobs of the same batch may run in the project already, and RELION writes down their ends
        before = settled_jobs(project)
        words = [PIPELINER, "--addJob", "External", "--addJobOptions", options]
        words += ["--setJobAlias", item.alias] if item.alias else []
        try:
            done = subprocess.run(
                words, cwd=project, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"{project}: {PIPELINER} did not answer. Is the pipeline locked?") from error
        # somebody may have added another one meanwhile
        new = {name for name in settled_jobs(project) - before if _is_of(project / name, item)}
        if done.returncode or len(new) != 1:
            raise HostError(
                f"{project}: {PIPELINER} made no job: {(done.stderr or done.stdout).strip()[-300:]}"
            )
        return new.pop()

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
            _schedule(item.output),
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


@functools.cache
def _installed_version(program: str) -> str | None:
    """Return the version of RELION that a program on the PATH is of: 3.1, 4 or 5; None if it does not say."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version:?\s*(\d+)\.(\d+)", done.stdout)
    if found is None:
        return None
    return f"{found[1]}.{found[2]}" if found[1] == "3" else found[1]


def _refuse_other_version(project: Path, wanted: str | None) -> None:
    """Raise when the pipeliner on the PATH is of another RELION than the project, `wanted`.

    An older one cannot read the pipeline, ends with its lock in place, and the GUI waits for that for ever; a
    newer one rewrites the pipeline so that the older GUI cannot read it.

    Raises
    ------
    HostError
        Says both versions.
    """
    program = shutil.which(PIPELINER)
    installed = None if program is None else _installed_version(program)
    if wanted is not None and installed is not None and wanted != installed:
        raise HostError(
            f"{project}: expected the {PIPELINER} of RELION {wanted}, of which the project is, found that of "
            f"{installed} ({program}). Put RELION {wanted} first on the PATH, or none at all: the jobs are "
            "then written into the pipeline without it."
        )


def _is_of(job: Path, item: Item) -> bool:
    """Tell by RELION's form of a job, with our command and a source's table, whether it is that source's."""
    form = job / "job.star"
    text = form.read_text(errors="replace") if form.exists() else ""
    wanted = (("fn_exe", COMMAND), (_FIELDS[_kind(item)], _relative(item)))
    return all(
        re.search(rf'^\s*{name}\s+"?{re.escape(value)}"?\s*$', text, re.MULTILINE) for name, value in wanted
    )


def _remembered(project: Path) -> bytes | None:
    """Return what the GUI is going to fill its External form with, unless a batch has left it."""
    form = project / _FORM
    text = form.read_bytes() if form.exists() else None
    return None if text is None or COMMAND.encode() in text else text


def _restore_form(project: Path, before: bytes | None) -> None:
    """Take out of the GUI's External form what the pipeliner has filled it with: that was not the user."""
    form = project / _FORM
    if form.exists() and COMMAND.encode() in form.read_bytes():
        form.unlink()
        if before is not None:
            form.write_bytes(before)


def _schedule(job: Path) -> str:
    return f"cryohush_{job.name}"


def _tidy(project: Path, job: Path) -> None:
    """Move the pipeliner's log out of the project's folder, into that of its job."""
    log = project / _PIPELINER_LOG.format(_schedule(job))
    with contextlib.suppress(FileNotFoundError):
        log.replace(job / log.name)


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


def _kind(item: Item) -> Kind:
    return "micrographs" if lists_micrographs(item.source) else "particles"


def _project(item: Item) -> Path:
    assert item.project is not None  # of this host's items
    return item.project


def _relative(item: Item) -> str:
    return item.source.relative_to(_project(item)).as_posix()
