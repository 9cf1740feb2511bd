"""The work of `relion_cryohush denoise`: RELION's options in, RELION's files out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from .. import __version__
from ..core.config.denoise import DenoiseOptions
from ..core.config.load import load_yaml, validate
from ..core.errors import ConfigurationError
from ..core.inference.plan import MICROGRAPH_TABLE_NAME, TABLE_NAME
from ..core.io.micrographs import lists_micrographs
from ..core.report import PDF_NAME
from .project import Kind, Project, write_output_nodes

if TYPE_CHECKING:
    from ..core.inference.stream import ImageNote

PROGRESS_SECONDS = 2.0
# Bad images that are named one by one; RELION's GUI shows the last ten lines.
WARNINGS = 8

TABLE_NAMES: dict[Kind, str] = {"particles": TABLE_NAME, "micrographs": MICROGRAPH_TABLE_NAME}

WAY_BACK: dict[Kind, str] = {
    "particles": (
        "Classify and sort with these; refine and measure resolution with the raw images. Back to the raw "
        "images: job type Particle subtraction, 'OR revert to original particles?' Yes, with the selected "
        "denoised particles as 'revert this particle star file'."
    ),
    "micrographs": (
        "Pick on these; extract particles from the raw micrographs. In RELION 3.1 the extraction job takes "
        "the raw micrographs and the picked coordinates as they are. In 4 and 5 the list of coordinates "
        "names the denoised micrographs: write the raw names into a copy of it first (docs/relion.md)."
    ),
}


def denoise(
    directory: Path,
    given: Mapping[str, str | None],
    command: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Denoise `in_parts` or `in_mics` into the job directory and leave the table of RELION's outputs.

    Parameters
    ----------
    directory
        The job directory as RELION gave it, relative to the project, which is the working directory.
    given
        The command line: name to text, None for a bare flag.
    command
        The command line as it was, for the log and the record.
    should_stop
        Asked once per batch.

    Raises
    ------
    CryohushError
        Whatever the user should know; `Aborted` when `should_stop` said so.
    """
    options = read_options(given)
    kind, source = find_input(given)
    project = Project.of_job(directory, source, kind)
    if project.version == "3.1" and options.output_dtype == "float16":
        raise ConfigurationError(
            "output_dtype float16: RELION 3.1 cannot read float16 images. Leave the parameter out."
        )
    host = f"project of RELION {project.version}" if project.version else "not started by RELION"
    print(f"cryohush {__version__}, {host}\ncommand: {command}", flush=True)
    # Heavy: torch. Nothing that a user can mistype is still unread by now.
    from ..core.inference.run import run_denoise
    from ..core.report.pdf import report_run

    summary = run_denoise(
        source,
        directory,
        options,
        root=Path.cwd(),
        resume=True,
        on_mismatch="anew",
        progress=ProgressLine(kind=kind),
        should_stop=should_stop,
        log=lambda line: print(line, flush=True),
        command=command,
    )
    report_run(summary, command, way_back=WAY_BACK[kind])
    write_output_nodes(directory, project, table=TABLE_NAMES[kind], pdf=PDF_NAME, kind=kind)
    _warn("unchanged", summary.skipped, "images were passed through unchanged")
    _warn("conspicuous", summary.remarks, "images are conspicuous")
    done_before = f", {summary.n_resumed} images done by an earlier run" if summary.n_resumed else ""
    print(f"{summary.n_rows} {kind} in {summary.table}{done_before}")
    print(WAY_BACK[kind])


def _warn(what: str, notes: Sequence[ImageNote], in_all: str) -> None:
    for note in notes[:WARNINGS]:
        print(f"WARNING: {what}: {note.image}@{note.stack}: {note.problem}", file=sys.stderr)
    if notes:
        print(f"WARNING: {len(notes)} {in_all}", file=sys.stderr)


def find_input(given: Mapping[str, str | None]) -> tuple[Kind, str]:
    """Return what is to be denoised, and its STAR file; particles where both fields are filled in.

    Raises
    ------
    ConfigurationError
        If neither `in_parts` nor `in_mics` is given, or it is no STAR file, or one of the other kind.
    StarError
        If the file cannot be read.
    """
    kind: Kind = "particles" if given.get("in_parts") else "micrographs"
    source = given.get("in_parts") or given.get("in_mics")
    if not source or not source.endswith(".star"):
        raise ConfigurationError(
            f"expected a STAR file of particles or micrographs, found {source or 'nothing'}. Fill in the "
            "field 'Input particles' or 'Input micrographs' on the Input tab of the External job."
        )
    listed: Kind = "micrographs" if lists_micrographs(source) else "particles"
    if listed != kind:
        raise ConfigurationError(
            f"{source} lists {listed}. Fill it in as 'Input {listed}' and leave 'Input {kind}' empty."
        )
    return kind, source


def read_options(given: Mapping[str, str | None]) -> DenoiseOptions:
    """Return the options of the command line on top of those of the configuration file that it may name.

    Parameters
    ----------
    given
        Name of the option to its text; None for a flag without a value, which is as good as none, but for
        `skip_bad`, which it turns on.

    Raises
    ------
    ConfigurationError
        If an option does not fit, or both `gpu` and `device` are given.
    """
    values = {name: given[name] for name in DenoiseOptions.model_fields if given.get(name)}
    if "skip_bad" in given and not given["skip_bad"]:
        values["skip_bad"] = "yes"
    if given.get("gpu"):
        if "device" in values:
            raise ConfigurationError("both gpu and device are given: leave one of them out.")
        values["device"] = given["gpu"]
    if given.get("config"):
        values = load_yaml(str(given["config"]), DenoiseOptions).model_dump(exclude_unset=True) | values
    return validate(values, DenoiseOptions, "parameters")


class ProgressLine:
    """One line on stdout that is drawn again and again, as RELION's own programs do it.

    The carriage return stands in front: RELION's GUI shows what follows the last one. Lines are at least
    `PROGRESS_SECONDS` apart, because the log file keeps them all.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        kind: Kind = "particles",
    ) -> None:
        self._kind, self._stream, self._clock = kind, stream or sys.stdout, clock
        self._begin = self._last = clock()
        self._first_done: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """Draw the line when it is due; the last one ends with a line feed."""
        now = self._clock()
        if self._first_done is None:
            # A continued job starts with what an earlier one has done: that says nothing of the speed.
            self._first_done = done
        if done < total and now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        line = f"\r{done} of {total} {self._kind} ({100 * done // max(total, 1)} %)"
        seconds = now - self._begin
        if seconds > 0 and done > self._first_done:
            speed = (done - self._first_done) / seconds
            pace = f"{speed:.0f} per second" if speed >= 1 else f"{60 * speed:.1f} per minute"
            line += f", {pace}, {_duration((total - done) / speed)} to go"
        print(f"{line:<78}", end="\n" if done >= total else "", file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
