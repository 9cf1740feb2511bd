"""`cryosparc_cryohush evaluate`: denoised particles against clean or independent ones, in figures."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.config.evaluate import EvaluateConfig
from ..core.config.load import validate
from ..core.errors import ConfigurationError, HostError
from ..core.io.particles import ParticleSet
from .command import Command, Input, Prepared
from .models import find_model
from .outputs import PARTICLES, write_particles, write_table
from .place import FOLDERS, Place
from .project import Project

FOLDER = FOLDERS["evaluate"]
DESCRIPTION = (
    "How good denoised particles are, in figures that blur and invention cannot please alike. A figure says "
    "nothing of the resolution of a map."
)
# Input to the entry of `EvaluateConfig`.
ENTRIES = {"particles": "denoised", "reference": "reference", "twin": "twin", "raw": "raw"}
_TITLES = {
    "particles": "Denoised particles",
    "reference": "The same without noise",
    "twin": "The same with independent noise",
    "raw": "The same before denoising",
}
INPUTS = tuple(
    Input(name, title, "particle", ("blob",), also=("location",), needed=name == "particles")
    for name, title in _TITLES.items()
)


def evaluation(project: Project, values: Mapping[str, Any]) -> Command:
    """Return the evaluation of particles of a project.

    Parameters
    ----------
    project
        Where the particles are; `reference`, `twin` and `raw` belong to `particles` by their uids.
    values
        Entries of `EvaluateConfig` without the images.

    Raises
    ------
    ConfigurationError
        If images are among them.
    """
    named = [entry for entry in ENTRIES.values() if entry in values]
    if named:
        raise ConfigurationError(
            f"{', '.join(named)}: the images are outputs of jobs. Leave them out of the configuration."
        )

    def prepare(place: Place, datasets: Mapping[str, Any]) -> Prepared:
        files = {ENTRIES[name]: f"{ENTRIES[name]}.cs" for name in datasets}
        config = validate({**values, **files}, EvaluateConfig, "evaluate")
        if config.model is not None:
            config = config.model_copy(update={"model": find_model(project, place, config.model)})
        names: list[str] = []
        with tempfile.TemporaryDirectory(prefix="cryohush-") as folder:
            for name, dataset in datasets.items():
                table = Path(folder) / f"{name}.cs"
                names += write_table(PARTICLES, dataset, table)
                if place.is_shared:
                    ParticleSet.read(table, root=place.root).check_images()
        rows = common_rows({name: np.asarray(dataset["uid"]) for name, dataset in datasets.items()})
        n, total = len(rows["particles"]), len(datasets["particles"])

        def write(folder: Path) -> dict[str, Any]:
            paths = {entry: folder / file for entry, file in files.items()}
            for name, dataset in datasets.items():
                write_particles(dataset.take(rows[name]), paths[ENTRIES[name]], place.root)
            options = config.model_copy(update=paths)
            return {
                "task": "evaluate",
                "output": str(folder),
                "options": options.model_dump(mode="json"),
            }

        remarks = [f"{total - n} of {total} particles are left out: the other inputs lack them."] * (
            n < total
        )
        check = {"model": config.model, "device": config.device}
        return Prepared(list(dict.fromkeys(names)), write, remarks=remarks, check=check)

    title = "Evaluation of {source}"
    return Command(title, DESCRIPTION, FOLDER, PARTICLES.noun, INPUTS, prepare, trust=DESCRIPTION)


def common_rows(uids: Mapping[str, NDArray[np.uint64]]) -> dict[str, NDArray[np.intp]]:
    """Return rows of each table that belong together, in the order of the first; no table repeats a uid.

    Raises
    ------
    HostError
        If no uid is in all tables.
    """
    first, *others = uids.values()
    kept = np.logical_and.reduce([np.ones(len(first), bool), *(np.isin(first, other) for other in others)])
    wanted = first[kept]
    if not len(wanted):
        raise HostError(
            f"no particle is in all of {', '.join(uids)}: their uids differ, as those of other picks and of "
            "imported particles do. Compare those with cryohush evaluate, which goes by rows of tables."
        )
    rows = {}
    for name, of in uids.items():
        order = np.argsort(of)
        rows[name] = order[np.searchsorted(of, wanted, sorter=order)]
    return rows
