"""The work of `relion_cryohush evaluate`: RELION's options in, `logfile.pdf` and the report out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.config.evaluate import EvaluateConfig, read_config
from ..core.job_context import JobContext
from ..core.report import PDF_NAME
from .log import ProgressLine, begin_log, say
from .project import Project, write_output_nodes
from .request import Request, find_input, read_values

# Of lists RELION's form takes the names with commas between, because it splits at blanks.
_LISTS = ("metrics", "baselines")


def evaluate(request: Request) -> None:
    """Evaluate the denoised `in_parts` or `in_mics`, and leave the table of RELION's outputs.

    What an earlier run of the job has left is replaced.

    Raises
    ------
    CryohushError
        Whatever the user should know; `Aborted` when it was asked to stop.
    """
    kind, source = find_input(request.given)
    config = read_evaluate_config(request.given, source)
    project = Project.of_job(request.directory, source, kind)
    begin_log(project, request.command)
    # Heavy: torch. Nothing that a user can mistype is still unread by now.
    from ..core.jobs.evaluate import run_evaluate

    evaluation = run_evaluate(
        config,
        request.directory,
        JobContext(ProgressLine(kind), request.should_stop, say, request.command),
        earlier="replace",
    )
    write_output_nodes(request.directory, project, table=None, pdf=PDF_NAME, kind=kind)
    for path in evaluation.files:
        say(f"wrote {path}")


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
    values = read_values(given, EvaluateConfig.model_fields, "align_twin")
    values |= {name: values[name].split(",") for name in _LISTS if name in values}
    path = given.get("config")
    return read_config({**values, "denoised": source}, Path(path) if path else None)
