"""What there is in an instance: its projects, and the outputs of a project that can be worked on."""

from __future__ import annotations

from ..core.errors import ConfigurationError
from .instance import Instance
from .outputs import KINDS
from .project import Project

_LONGEST_TITLE = 60


def list_projects(instance: Instance) -> list[str]:
    """Return a line for each project.

    Raises
    ------
    ConfigurationError
        If the client is of version 4, which lists none.
    HostError
        If the server cannot be asked.
    """
    if not instance.is_5:
        raise ConfigurationError("the client of cryoSPARC 4 lists no projects: name one, as --project P3.")
    found = instance.call("list the projects", lambda: list(instance.client.find_projects()))
    return [f"{project.uid:6} {project.model.title}" for project in found] or ["no projects"]


def list_outputs(project: Project, workspace: str | None) -> list[str]:
    """Return a line for each output of a completed job that can be denoised, the newest jobs first.

    Raises
    ------
    HostError
        If the server cannot be asked.
    """
    lines = []
    for job in project.newest_jobs(workspace):
        if job.status != "completed":
            continue
        for name, output in project.outputs(job).items():
            if any(output.kind == kind.data and kind.slot in output.slots for kind in KINDS):
                rows = "" if output.n_rows is None else f"{output.n_rows:>10}"
                title = str(project.facts(job).get("title") or job.type)[:_LONGEST_TITLE]
                lines.append(f"{f'{job.uid}:{name}':32} {output.kind:9}{rows}  {title}")
    return lines or [f"{project} has no completed job with particles or micrographs"]
