"""The work of `relion_cryohush denoise`: RELION's options in, RELION's files out."""

from __future__ import annotations

from pathlib import Path

from ..core.config.denoise import DenoiseOptions
from ..core.errors import ConfigurationError
from ..core.inference.plan import MICROGRAPH_TABLE_NAME, TABLE_NAME
from ..core.job_context import JobContext
from ..core.report import PDF_NAME
from .log import ProgressLine, begin_log, say, warn
from .project import Kind, Project, write_output_nodes
from .request import Request, find_input, read_options

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


def denoise(request: Request) -> None:
    """Denoise `in_parts` or `in_mics` into the job directory and leave the table of RELION's outputs.

    Raises
    ------
    CryohushError
        Whatever the user should know; `Aborted` when it was asked to stop.
    """
    options = read_options(request.given, DenoiseOptions)
    kind, source = find_input(request.given)
    project = Project.of_job(request.directory, source, kind)
    if project.version == "3.1" and options.output_dtype == "float16":
        raise ConfigurationError(
            "output_dtype float16: RELION 3.1 cannot read float16 images. Leave the parameter out."
        )
    begin_log(project, request.command)
    # Heavy: torch. Nothing that a user can mistype is still unread by now.
    from ..core.jobs.denoise import run_denoise
    from ..core.report.pdf import report_run

    summary = run_denoise(
        source,
        request.directory,
        options,
        JobContext(ProgressLine(kind), request.should_stop, say, request.command),
        root=Path.cwd(),
        earlier="anew",
    )
    report_run(summary, request.command, way_back=WAY_BACK[kind])
    write_output_nodes(request.directory, project, table=TABLE_NAMES[kind], pdf=PDF_NAME, kind=kind)
    for what, notes, in_all in (
        ("unchanged", summary.skipped, "images were passed through unchanged"),
        ("conspicuous", summary.remarks, "images are conspicuous"),
    ):
        warn([f"{what}: {note.image}@{note.stack}: {note.problem}" for note in notes], in_all)
    done_before = f", {summary.n_resumed} images done by an earlier run" if summary.n_resumed else ""
    say(f"{summary.n_rows} {kind} in {summary.table}{done_before}\n{WAY_BACK[kind]}")
