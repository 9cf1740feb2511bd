"""The work of `relion_cryohush extract-noise`: RELION's options in, a stack of noise and its table out."""

from __future__ import annotations

from pathlib import Path

from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.errors import ConfigurationError
from ..core.job_context import JobContext
from ..core.report import PDF_NAME
from .log import ProgressLine, begin_log, say, warn
from .project import NODE_LABELS, Project, write_output_nodes
from .request import Request, find_input, read_options


def extract_noise(request: Request) -> None:
    """Cut blocks of noise out of `in_mics` into the job directory, and leave the table of RELION's outputs.

    Raises
    ------
    CryohushError
        Whatever the user should know; `Aborted` when it was asked to stop.
    """
    options = read_options(request.given, ExtractNoiseOptions)
    kind, source = find_input(request.given)
    if kind != "micrographs":
        raise ConfigurationError(
            f"expected micrographs, found the particles {source}. Fill in the field 'Input micrographs' on "
            "the Input tab of the External job, and leave 'Input particles' empty."
        )
    project = Project.of_job(request.directory, source, kind)
    begin_log(project, request.command)
    # Heavy: torch. Nothing that a user can mistype is still unread by now.
    from ..core.jobs.extract_noise import run_extract_noise
    from ..core.noise.output import TABLE_NAME
    from ..core.report.noise import report_noise
    from ..core.report.overlays import write_overlay

    summary = run_extract_noise(
        source,
        request.directory,
        options,
        JobContext(ProgressLine(kind), request.should_stop, say, request.command),
        root=Path.cwd(),
        earlier="anew",
        draw=write_overlay,
    )
    report_noise(summary, request.command)
    # the blocks are a stack with a table of its own, which RELION knows as particles
    label = NODE_LABELS["particles"].get(project.version or "")
    write_output_nodes(request.directory, Project(project.version, label), table=TABLE_NAME, pdf=PDF_NAME)
    warn([f"{count.micrograph}: {count.remark}" for count in summary.counts if count.remark])
    say(f"{summary.n_blocks} blocks of {summary.window_px} px in {summary.table}\n{summary.explanation}")
