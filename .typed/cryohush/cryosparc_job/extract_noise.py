"""`cryosparc_cryohush extract-noise`: micrographs in, blocks of pure noise out, as files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.inference.plan import read_images
from .command import Command, Input, Prepared, Request, run_command
from .instance import Instance
from .kinds import MICROGRAPHS, write_table
from .place import Place
from .train import trained_model

FOLDER = "noise"
# Particles are the only type that could hold them, and whatever takes particles aligns and averages them.
DESCRIPTION = (
    f"Blocks of pure noise out of micrographs, as files in the job's folder {FOLDER}. They are no output: "
    "cryoSPARC has no type for noise, and would treat them as particles."
)
EXPOSURES = Input(MICROGRAPHS.name, "Micrographs", MICROGRAPHS.data, (MICROGRAPHS.slot,))


def extract_noise(instance: Instance, request: Request, options: ExtractNoiseOptions) -> int:
    """Cut blocks of noise out of the micrographs of an output in an external job; the exit status.

    Raises
    ------
    CryohushError
        If there is no job yet that could say what is wrong.
    """
    return run_command(instance, request, extraction(instance, request.project, options))


def extraction(instance: Instance, project: str, options: ExtractNoiseOptions) -> Command:
    """Return the extraction of noise from micrographs of a project."""

    def prepare(place: Place, datasets: Mapping[str, Any]) -> Prepared:
        dataset, model = datasets[EXPOSURES.name], options.model
        if model is not None:
            model = trained_model(instance, place, project, model)
        with tempfile.TemporaryDirectory(prefix="cryohush-") as folder:
            table = Path(folder) / MICROGRAPHS.table
            names = write_table(MICROGRAPHS, dataset, table)
            if place.is_shared:
                read_images(table, root=place.root)

        def write(folder: Path) -> dict[str, Any]:
            table = folder / MICROGRAPHS.table
            write_table(MICROGRAPHS, dataset, table)
            return {
                "task": "extract-noise",
                "source": str(table),
                "output": str(folder),
                "root": str(place.root),
                "options": options.model_copy(update={"model": model}).model_dump(mode="json"),
            }

        return Prepared(names, write)

    title = "Blocks of noise (cryohush)"
    return Command(title, DESCRIPTION, FOLDER, MICROGRAPHS.noun, (EXPOSURES,), prepare)
