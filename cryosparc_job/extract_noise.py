"""`cryosparc_cryohush extract-noise`: micrographs in, blocks of pure noise out, as files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.inference.plan import read_images
from .command import Command, Input, Prepared
from .models import find_model
from .outputs import MICROGRAPHS, SCOPE, is_negative_stain, write_table
from .place import FOLDERS, Place
from .project import Project

FOLDER = FOLDERS["extract-noise"]
# Particles are the only type that could hold them, and whatever takes particles aligns and averages them.
DESCRIPTION = (
    f"Blocks of pure noise out of micrographs, as files in the job's folder {FOLDER}. They are no output: "
    "cryoSPARC has no type for noise, and would treat them as particles."
)
EXPOSURES = Input(MICROGRAPHS.name, "Micrographs", MICROGRAPHS.data, (MICROGRAPHS.slot,), also=(SCOPE,))


def extraction(project: Project, options: ExtractNoiseOptions) -> Command:
    """Return the extraction of noise from micrographs of a project."""

    def prepare(place: Place, datasets: Mapping[str, Any]) -> Prepared:
        dataset, chosen = datasets[EXPOSURES.name], options
        if options.model is not None:
            model = find_model(project, place, options.model)
            chosen = options.model_copy(update={"model": model})
        if "protein" not in options.model_fields_set and is_negative_stain(dataset):
            chosen = chosen.model_copy(update={"protein": "white"})
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
                "options": chosen.model_dump(mode="json"),
            }

        return Prepared(
            names, write, check={"device": options.device, "noise": chosen.model_dump(mode="json")}
        )

    title = "Blocks of noise of {source}"
    return Command(title, DESCRIPTION, FOLDER, MICROGRAPHS.noun, (EXPOSURES,), prepare, trust=DESCRIPTION)
