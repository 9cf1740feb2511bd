"""Jobs that are found by what they are, not by their names."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from ..core.errors import HostError
from .instance import ConnectionLost, Instance
from .kinds import KINDS, Kind

# What cryoSPARC calls the type of external jobs.
EXTERNAL = "snowflake"
LISTED_JOBS = 100


def newest_jobs(
    instance: Instance, project: str, workspace: str | None = None, kind: str | None = None
) -> Iterator[Any]:
    """Yield the jobs of a project, the newest first, at most a hundred.

    The client of version 4 lists none. There a job is whatever has a directory in that of the project, as far
    as it is mounted here.

    Parameters
    ----------
    project, workspace
        As in `P3`, `W1`; without a workspace, of all.
    kind
        Such as `extract_micrographs_multi`; without it, of all.
    """
    if instance.is_5:
        search = {} if kind is None else {"type": kind}
        found = instance.call(
            f"list the jobs of {project}",
            lambda: list(
                islice(instance.client.find_jobs(project, workspace, order=-1, **search), LISTED_JOBS)
            ),
        )
        yield from sorted(found, key=lambda job: int(job.uid[1:]), reverse=True)
        return
    jobs = (
        job
        for job in _jobs_with_a_directory(instance, project)
        if kind in (None, job.type) and workspace in (None, *instance.workspaces(job))
    )
    yield from islice(jobs, LISTED_JOBS)


def _jobs_with_a_directory(instance: Instance, project: str) -> Iterator[Any]:
    names = [path.name[1:] for path in instance.project_directory(project).glob("J*")]
    for number in sorted((int(name) for name in names if name.isdigit()), reverse=True):
        try:
            yield instance.find_job(project, f"J{number}")
        except ConnectionLost:
            raise
        except HostError:  # of a job that was deleted
            continue


def find_marked(instance: Instance, project: str, workspace: str, mark: str) -> str | None:
    """Return the external job that has a mark in its description, as `J57`."""
    jobs = newest_jobs(instance, project, workspace, EXTERNAL)
    return next((job.uid for job in jobs if mark in instance.description(job)), None)


def find_newest(
    instance: Instance, project: str, text: str, workspace: str | None = None
) -> tuple[str, Kind]:
    """Return an output of the newest completed job of a kind, as `J42:particles`, and what it holds.

    Parameters
    ----------
    project, workspace
        Where to look.
    text
        The kind, and perhaps the output, as in `select_2D:particles_selected`. Without an output it is the
        one with particles, or else that with micrographs.

    Raises
    ------
    HostError
        If there is none, or the job has several.
    """
    kind, _, wanted = text.partition(":")
    for job in newest_jobs(instance, project, workspace, kind):
        if job.status != "completed":
            continue
        for images in KINDS:
            names = [
                name
                for name, (data, slots) in instance.outputs(job).items()
                if wanted in ("", name) and data == images.data and images.slot in slots
            ]
            if len(names) > 1:
                raise HostError(
                    f"{job.uid} has the outputs {', '.join(names)}: name one, as {kind}:{names[0]}."
                )
            if names:
                return f"{job.uid}:{names[0]}", images
    kinds = sorted({job.type for job in newest_jobs(instance, project, workspace)})
    where = project if workspace is None else f"{project} {workspace}"
    raise HostError(
        f"{where} has no completed job of the type {text} with particles or micrographs. The types of its "
        f"jobs: {', '.join(kinds) or 'none'}."
    )
