"""`cryosparc_cryohush restore`: the raw images back, for particles selected by their denoised ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import HostError
from ..core.progress import counted
from .command import Command, Given, Input, Prepared
from .job import ExternalJob, find_job
from .outputs import PARTICLES
from .place import FOLDER, FOLDERS, Place
from .project import Project, Source

SLOT = PARTICLES.slot
SELECTED = Input("particles", "Selected denoised particles", PARTICLES.data, (SLOT,))
RAW = Input("raw", "Raw particles", PARTICLES.data, (SLOT,))
DESCRIPTION = "The selected particles with their raw images, for refinement and reconstruction."
_REMEDY = "Name the outputs with the raw images: --raw J42:particles."


def restoring(project: Project, raw: Sequence[str]) -> Command:
    """Return the way back to raw images.

    Parameters
    ----------
    project
        Where the particles are.
    raw
        Outputs with the raw images, as in `J42:particles`; none to follow the jobs that denoised them.
    """

    def prepare(place: Place, datasets: Mapping[str, Any]) -> Prepared:
        selected = datasets[SELECTED.name]
        uids = np.asarray(selected["uid"])
        found = _Found(project, uids)
        if raw:
            for text in raw:
                found.take(project.find_source(text, RAW.data, RAW.slots), np.ones(len(uids), bool))
        else:
            found.follow(np.asarray(selected["blob/path"], dtype=object))
        found.check()

        def save(job: ExternalJob, folder: Any, result: Mapping[str, Any]) -> None:
            job.save_output(PARTICLES.name, uids, found.fill)

        names = ", ".join(map(str, found.sources))
        remarks = [f"{counted(len(uids), 'particle')}, with raw images from {names}"]
        return Prepared((), None, save, remarks=remarks, also=[(RAW, source) for source in found.sources])

    return Command(
        "Raw particles of {source}",
        DESCRIPTION,
        FOLDERS["restore"],
        PARTICLES.noun,
        (SELECTED,),
        prepare,
        Given(PARTICLES.name, "Raw particles of the selection", PARTICLES.data, (SLOT,)),
        needs_files=False,
    )


class _Found:
    """Where the raw images of some particles are.

    Attributes
    ----------
    sources
        The outputs that have them.
    """

    def __init__(self, project: Project, uids: NDArray[np.uint64]) -> None:
        self._project, self._uids = project, uids
        self.sources: list[Source] = []
        self._tables: list[Any] = []
        # of each particle: in which table it is, and in which row
        self._table = np.full(len(uids), -1)
        self._row = np.zeros(len(uids), np.intp)

    def take(self, source: Source, wanted: NDArray[np.bool_]) -> None:
        """Take from an output those of the wanted particles that it has and that have none yet."""
        table = self._project.load(source, RAW.slots)
        known = np.asarray(table["uid"])
        order = np.argsort(known, kind="stable")
        places = np.minimum(np.searchsorted(known, self._uids, sorter=order), len(known) - 1)
        rows = order[places]
        taken = wanted & (self._table < 0) & (known[rows] == self._uids)
        self._table[taken], self._row[taken] = len(self._tables), rows[taken]
        self.sources.append(source)
        self._tables.append(table)

    def follow(self, paths: NDArray[Any]) -> None:
        """Follow each particle to the input of the job that denoised it, and on, if that was denoised, too.

        Raises
        ------
        HostError
            If some are not from cryohush, or an input is gone.
        """
        open_paths: list[tuple[NDArray[np.bool_], NDArray[Any]]] = [(np.ones(len(paths), bool), paths)]
        for depth in range(_DEEPEST):
            following: list[tuple[NDArray[np.bool_], NDArray[Any]]] = []
            for wanted, of in open_paths:
                jobs = _jobs(of[wanted])
                denoised = {job for job in jobs if self._is_ours(job)}
                if depth == 0 and denoised != set(jobs):
                    others = ", ".join(sorted({job.partition("/")[0] for job in set(jobs) - denoised}))
                    raise HostError(
                        f"not all of the images are from cryohush: some are in {others}. {_REMEDY}"
                    )
                for job in sorted(denoised):
                    rows = wanted & np.array([_job(path) == job for path in of])
                    source = self._input(job.partition("/")[0])
                    again = self._again(source, rows)
                    if again is None:
                        self.take(source, rows)
                    else:
                        following.append((rows, again))
            if not following:
                return
            open_paths = following
        raise HostError(f"the particles were denoised more than {_DEEPEST} times over. {_REMEDY}")

    def _again(self, source: Source, rows: NDArray[np.bool_]) -> NDArray[Any] | None:
        """Return the paths of particles in an output whose images were denoised; None if they are raw."""
        table = self._project.load(source, RAW.slots)
        known = dict(zip(np.asarray(table["uid"]).tolist(), table["blob/path"], strict=True))
        paths = np.array([known.get(uid, "") for uid in self._uids.tolist()], dtype=object)
        if not any(self._is_ours(job) for job in _jobs(paths[rows])):
            return None
        return paths

    def _is_ours(self, folder: str) -> bool:
        """Tell whether a folder, as in `J57/denoised`, is that of a job of cryohush's."""
        job, _, name = folder.partition("/")
        if name != FOLDER:
            return False
        try:
            return find_job(self._project, job).record() is not None
        except HostError:
            return False

    def _input(self, job: str) -> Source:
        connected = find_job(self._project, job).connections(PARTICLES.name)
        if not connected:
            raise HostError(f"{job} has no input {PARTICLES.name!r} any more. {_REMEDY}")
        return self._project.find_source(":".join(connected[0]), RAW.data, RAW.slots)

    def check(self) -> None:
        """
        Raises
        ------
        HostError
            If a particle was found nowhere.
        """
        missing = self._table < 0
        if missing.any():
            names = ", ".join(map(str, self.sources))
            raise HostError(
                f"{int(missing.sum())} of the {len(missing)} particles are not in {names}, first uid "
                f"{self._uids[missing.argmax()]}. {_REMEDY}"
            )

    def fill(self, dataset: Any) -> None:
        """Fill a dataset of the particles with the raw images' entries."""
        for name in dataset.fields():
            if name == "uid":
                continue
            for number, table in enumerate(self._tables):
                if name in table.fields():
                    rows = self._table == number
                    values = np.asarray(dataset[name])
                    values[rows] = np.asarray(table[name])[self._row[rows]]
                    dataset[name] = values


# Particles that were denoised, and those denoised again.
_DEEPEST = 8


def _job(path: str) -> str:
    """Return job and folder of a file, as in `J57/denoised`."""
    return "/".join(PurePosixPath(str(path).lstrip(">")).parts[:2])


def _jobs(paths: NDArray[Any]) -> list[str]:
    return sorted({_job(path) for path in set(paths.tolist())})
