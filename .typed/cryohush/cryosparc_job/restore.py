"""`cryosparc_cryohush restore`: the raw images back, for particles selected by their denoised ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..core.errors import HostError
from .guard import run_guarded, stop_signals
from .instance import Instance, Source
from .job import ExternalJob, find_job
from .kinds import PARTICLES
from .place import FOLDER
from .run import open_job

SELECTED, RAW, OUTPUT, SLOT = "particles", "raw", "particles", PARTICLES.slot
TITLE = "Raw particles of a selection (cryohush)"
DESCRIPTION = "The selected particles with their raw images, for refinement and reconstruction."


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes
    ----------
    project, workspace, particles
        As in `P3`, `W1`, `J80:particles_selected`.
    raw
        The output with the raw images, as in `J42:particles`; None to follow the job that denoised them.
    command
        The command line, for the record.
    """

    project: str
    workspace: str
    particles: str
    raw: str | None
    command: str


def restore(instance: Instance, request: Request) -> int:
    """Give denoised particles their raw images back in an external job; the exit status.

    Raises
    ------
    CryohushError
        If there is no job yet that could say what is wrong.
    """
    project = request.project
    instance.project_directory(project)
    instance.check_workspace(project, request.workspace)
    selected = instance.find_source(project, request.particles, "particle", [SLOT])
    dataset = instance.load(project, selected, [SLOT])
    raw = instance.find_source(
        project, request.raw or _raw_source(instance, project, selected, dataset), "particle", [SLOT]
    )
    raw_dataset = instance.load(project, raw, [SLOT])
    uids = np.asarray(dataset["uid"])
    rows = _rows(uids, np.asarray(raw_dataset["uid"]), selected, raw)

    def work() -> None:
        job.connect(SELECTED, selected, [SLOT], "Selected denoised particles")
        job.connect(RAW, raw, [SLOT], "Raw particles")
        job.add_output("particle", OUTPUT, [SLOT], SELECTED, "Raw particles of the selection")
        job.start()
        job.log(f"cryohush {__version__}: {request.command}")
        job.save_output(OUTPUT, uids, _fill(raw_dataset, rows))
        job.log(f"{len(uids)} particles of {selected} with their raw images from {raw}")

    with stop_signals() as signals:
        job: ExternalJob = open_job(instance, project, request.workspace, TITLE, DESCRIPTION, request.command)
        code = run_guarded(job, signals, work)
    if code == 0:
        print(f"{len(uids)} particles in {job.uid}:{OUTPUT}, with their raw images from {raw}")
    return code


def _raw_source(instance: Instance, project: str, selected: Source, dataset: Any) -> str:
    """Return the input of the job in whose directory the selected particles' images are."""
    remedy = "Name the output with the raw images: --raw J42:particles."
    folders = {PurePosixPath(path.lstrip(">")).parts[:2] for path in set(dataset["blob/path"])}
    jobs = sorted({parts[0] for parts in folders})
    if any(parts[1:] != (FOLDER,) for parts in folders):
        raise HostError(
            f"not all images of {selected} are from cryohush: they are in {', '.join(jobs)}. {remedy}"
        )
    if len(jobs) != 1:
        raise HostError(f"the images of {selected} are from several jobs: {', '.join(jobs)}. {remedy}")
    connected = find_job(instance, project, jobs[0]).connections(PARTICLES.name)
    if not connected:
        raise HostError(f"{jobs[0]} has no input {PARTICLES.name!r} any more. {remedy}")
    return ":".join(connected[0])


def _rows(
    uids: NDArray[np.uint64], raw_uids: NDArray[np.uint64], selected: Source, raw: Source
) -> NDArray[np.intp]:
    """Return the row of each uid among the raw ones."""
    order = np.argsort(raw_uids, kind="stable")
    place = np.minimum(np.searchsorted(raw_uids, uids, sorter=order), len(raw_uids) - 1)
    rows: NDArray[np.intp] = order[place]
    missing = raw_uids[rows] != uids
    if missing.any():
        raise HostError(
            f"{int(missing.sum())} of the {len(uids)} particles of {selected} are not in {raw}, first uid "
            f"{uids[missing.argmax()]}."
        )
    return rows


def _fill(raw: Any, rows: NDArray[np.intp]) -> Callable[[Any], None]:
    def fill(dataset: Any) -> None:
        known = set(raw.fields())
        for name in dataset.fields():
            if name in known and name != "uid":
                dataset[name] = np.asarray(raw[name])[rows]

    return fill
