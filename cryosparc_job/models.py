"""Models by their names in cryoSPARC: a shipped one, a file, or the job that has trained it."""

from __future__ import annotations

import re
from pathlib import Path

from ..core.errors import HostError
from .job import find_job
from .place import FOLDERS, Place
from .project import Project

# The folder in a training's job, and the weights in it.
FOLDER, WEIGHTS = FOLDERS["train"], "weights.safetensors"


def find_model(project: Project, place: Place, name: str) -> str:
    """Return the weights that a job's name, as in `J57`, stands for; any other name as it is.

    Raises
    ------
    HostError
        If the job has not trained a model, or not finished.
    """
    if not re.fullmatch(r"J\d+", name):
        return name
    job = find_job(project, name)
    status, weights = job.status(), f"{job.directory_name()}/{FOLDER}/{WEIGHTS}"
    path = place.root / weights
    if status == "completed" and not place.is_shared:
        place.fetch(project, [weights], print)
    if status != "completed" or not path.is_file():
        raise HostError(
            f"{name} is {status} and has no {FOLDER}/{WEIGHTS}: expected a completed job of "
            "cryosparc_cryohush train."
        )
    return str(path)


def model_name(name: str) -> str:
    """Return how a title calls a model: the weights of a training are called as its job or folder."""
    path = Path(name)
    if path.name == WEIGHTS:
        path = path.parent.parent if path.parent.name == FOLDER else path.parent
    return path.stem or name
