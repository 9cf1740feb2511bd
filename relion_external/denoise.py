"""The work of `relion_cryohush denoise`: RELION's options in, RELION's files out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

from .. import __version__
from ..core.config.denoise import DenoiseOptions
from ..core.config.load import load_yaml, validate
from ..core.errors import ConfigurationError
from ..core.inference.plan import TABLE_NAME
from ..core.report import PDF_NAME
from .project import Project, write_output_nodes

PROGRESS_SECONDS = 2.0
# Bad images that are named one by one; RELION's GUI shows the last ten lines.
WARNINGS = 8

WAY_BACK = (
    "Back to the raw images: job type Particle subtraction, 'OR revert to original particles?' Yes, with the "
    "selected denoised particles as 'revert this particle star file'."
)


def denoise(
    directory: Path,
    given: Mapping[str, str | None],
    command: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Denoise `in_parts` into the job directory and leave the table of outputs that RELION reads.

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
    source = given.get("in_parts")
    if not source or not source.endswith(".star"):
        raise ConfigurationError(
            f"expected a particles STAR file, found {source or 'nothing'}. "
            "Fill in the field 'Input particles' on the Input tab of the External job."
        )
    project = Project.of_job(directory, source)
    if project.version == "3.1" and options.output_dtype == "float16":
        raise ConfigurationError(
            "output_dtype float16: RELION 3.1 cannot read float16 stacks. Leave the parameter out."
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
        progress=ProgressLine(),
        should_stop=should_stop,
        log=lambda line: print(line, flush=True),
        command=command,
    )
    report_run(summary, command, way_back=WAY_BACK)
    write_output_nodes(directory, project, particles=TABLE_NAME, pdf=PDF_NAME)
    for image in summary.skipped[:WARNINGS]:
        print(f"WARNING: unchanged: {image.image}@{image.stack}: {image.problem}", file=sys.stderr)
    if summary.skipped:
        print(f"WARNING: {len(summary.skipped)} images were passed through unchanged", file=sys.stderr)
    done_before = f", {summary.n_resumed} images done by an earlier run" if summary.n_resumed else ""
    print(f"{summary.n_particles} particles in {summary.table}{done_before}")
    print(f"Classify and sort with these; refine and measure resolution with the raw images. {WAY_BACK}")


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

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream or sys.stdout, clock
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
        line = f"\r{done} of {total} particles ({100 * done // max(total, 1)} %)"
        seconds = now - self._begin
        if seconds > 0 and done > self._first_done:
            speed = (done - self._first_done) / seconds
            line += f", {speed:.0f} per second, {_duration((total - done) / speed)} to go"
        print(f"{line:<78}", end="\n" if done >= total else "", file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
