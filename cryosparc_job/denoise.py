"""`cryosparc_cryohush denoise`: particles or micrographs in, the same with other images out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.config.denoise import SUSPICIOUS, SUSPICIOUS_BELOW, TRUSTED, DenoiseOptions
from ..core.inference.plan import CS_TABLE_NAME, plan_stacks, read_images
from ..core.io.cs import SCORE_FIELD
from ..core.io.files import writing
from .command import Command, Given, Input, Prepared
from .growing import new_rows
from .job import ExternalJob
from .models import find_model, model_name
from .outputs import MICROGRAPHS, PARTICLES, SCOPE, Kind, filler, is_negative_stain, write_table
from .place import FOLDER, Place
from .project import Project


def denoising(project: Project, kind: Kind, options: DenoiseOptions, without: Sequence[str] = ()) -> Command:
    """Return the denoising of images of a project, but for those that the jobs `without` have denoised."""

    def prepare(place: Place, datasets: Mapping[str, Any]) -> Prepared:
        dataset, chosen = datasets[kind.name], options
        remarks = []
        if without:
            n_rows = len(dataset)
            dataset = new_rows(project, kind, dataset, without)
            remarks.append(f"{len(dataset)} of {n_rows} {kind.noun} are new: the others were denoised before")
        if options.limit is not None:
            dataset = dataset.take(np.arange(min(options.limit, len(dataset))))
        if kind is MICROGRAPHS and options.protein == "auto" and is_negative_stain(dataset):
            chosen = options.model_copy(update={"protein": "white"})
        chosen = chosen.model_copy(update={"model": find_model(project, place, options.model)})
        with tempfile.TemporaryDirectory(prefix="cryohush-") as folder:
            table = Path(folder) / kind.table
            names = write_table(kind, dataset, table)
            rows = table.read_bytes()
            stacks = plan_stacks(read_images(table, root=place.root)) if place.is_shared else []
        pixels = sum(len(stack.indices) * stack.shape[0] * stack.shape[1] for stack in stacks)

        def write(folder: Path) -> dict[str, Any]:
            with writing(folder / kind.table) as part:
                part.write_bytes(rows)
            return {
                "task": "denoise",
                "source": str(folder / kind.table),
                "output": str(folder),
                "root": str(place.root),
                "options": chosen.model_dump(mode="json"),
                "way_back": kind.way_back,
            }

        def save(job: ExternalJob, folder: Path, result: Mapping[str, Any]) -> None:
            images = read_images(folder / kind.table, root=place.root)
            prefix = f"{folder.parent.name}/{FOLDER}"
            ranges, dtype = result["grey_ranges"], options.output_dtype
            uids, stacks = np.asarray(dataset["uid"]), plan_stacks(images)

            def fill(rows: NDArray[np.intp] | slice) -> Callable[[Any], None]:
                return filler(kind, dataset, images, stacks, prefix, dtype, ranges, rows)

            job.save_output(kind.name, uids, fill(slice(None)))
            for part, rows in _parts(folder / CS_TABLE_NAME) if options.score else ():
                job.save_output(f"{kind.name}_{part}", uids[rows], fill(rows))
            # it holds blobs only: what is imported by it could not be classified
            (folder / CS_TABLE_NAME).with_suffix(".csg").unlink(missing_ok=True)

        return Prepared(
            names,
            write,
            save,
            remarks=remarks,
            n_bytes=pixels * np.dtype(options.output_dtype).itemsize,
            check={"model": chosen.model, "device": options.device},
        )

    name, trial = kind.name, "" if options.limit is None else f"the first {options.limit} of "
    also = (SCOPE,) if kind is MICROGRAPHS else ()
    return Command(
        f"Denoised {trial}{{source}} ({model_name(options.model)})",
        f"{kind.trust}\n\n{kind.way_back}\n\nModel: {options.model}",
        FOLDER,
        kind.noun,
        (Input(name, f"Raw {kind.noun}", kind.data, (kind.slot,), also=also),),
        prepare,
        Given(name, f"Denoised {kind.noun}", kind.data, (kind.output_slot,)),
        [
            Given(f"{name}_{part}", f"{part.capitalize()} ones of them", kind.data, (kind.output_slot,))
            for part in ((TRUSTED, SUSPICIOUS) if options.score and kind is PARTICLES else ())
        ],
        kind.trust,
    )


def _parts(table: Path) -> list[tuple[str, NDArray[np.intp]]]:
    """Return which rows of a denoised table are trusted and which suspicious; nothing if it has no scores."""
    rows = np.load(table, mmap_mode="r")
    if SCORE_FIELD not in (rows.dtype.names or ()):
        return []
    suspicious = rows[SCORE_FIELD] < SUSPICIOUS_BELOW
    return [(TRUSTED, np.flatnonzero(~suspicious)), (SUSPICIOUS, np.flatnonzero(suspicious))]
