"""The work of `relion_cryohush evaluate`: RELION's options in, `logfile.pdf` and the report out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.config.evaluate import EvaluateConfig, read_config
from ..core.errors import ConfigurationError
from ..core.report import PDF_NAME
from .denoise import ProgressLine, find_input
from .project import Project, write_output_nodes

# Of lists RELION's form takes the names with commas between, because it splits at blanks.
_LISTS = ("metrics", "baselines")


def evaluate(
    directory: Path,
    given: Mapping[str, str | None],
    command: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Evaluate the denoised `in_parts` or `in_mics`, and leave the table of RELION's outputs.

    Parameters
    ----------
    directory
        The job directory as RELION gave it, relative to the project, which is the working directory. What an
        earlier run of the job has left is replaced.
    given
        The command line: name to text, None for a bare flag.
    command
        The command line as it was, for the log and the report.
    should_stop
        Asked once per batch.

    Raises
    ------
    CryohushError
        Whatever the user should know; `Aborted` when `should_stop` said so.
    """
    kind, source = find_input(given)
    config = read_evaluate_config(given, source)
    project = Project.of_job(directory, source, kind)
    host = f"project of RELION {project.version}" if project.version else "not started by RELION"
    print(f"cryohush {__version__}, {host}\ncommand: {command}", flush=True)
    # Heavy: torch. Nothing that a user can mistype is still unread by now.
    from ..core.report.evaluate import run_evaluate

    evaluation = run_evaluate(
        config,
        directory,
        overwrite=True,
        progress=ProgressLine(kind=kind),
        should_stop=should_stop,
        log=lambda line: print(line, flush=True),
        command=command,
    )
    write_output_nodes(directory, project, table=None, pdf=PDF_NAME, kind=kind)
    for path in evaluation.files:
        print(f"wrote {path}")


def read_evaluate_config(given: Mapping[str, str | None], source: str) -> EvaluateConfig:
    """Return the configuration of a job; its parameters override its file.

    Parameters
    ----------
    given
        The command line. A parameter whose value was left empty counts as not given, but for `align_twin`,
        which it turns on.
    source
        The denoised images.

    Raises
    ------
    ConfigurationError
        If an option does not fit, or both `gpu` and `device` are given.
    """
    values: dict[str, Any] = {name: given[name] for name in EvaluateConfig.model_fields if given.get(name)}
    values |= {name: values[name].split(",") for name in _LISTS if name in values}
    if "align_twin" in given and not given["align_twin"]:
        values["align_twin"] = True
    if given.get("gpu"):
        if "device" in values:
            raise ConfigurationError("both gpu and device are given: leave one of them out.")
        values["device"] = given["gpu"]
    path = given.get("config")
    return read_config({**values, "denoised": source}, Path(path) if path else None)
