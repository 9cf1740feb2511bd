"""`cryosparc_cryohush denoise`: particles or micrographs in, the same with other images out."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.config.denoise import DenoiseOptions
from ..core.errors import ConfigurationError
from ..core.inference.plan import plan_stacks, read_images
from ..core.io.files import writing
from .guard import run_guarded, stop_signals
from .instance import Instance, Source
from .job import ExternalJob
from .kinds import KINDS, Kind, filler, write_table
from .place import FOLDER, Place, find_place
from .run import JobRequest, JobRun, connected_output, find_job_to_resume, open_job
from .train import trained_model

# Bad images that are named one by one.
_WARNINGS = 8


@dataclass(frozen=True)
class Request(JobRequest):
    """What the command line asks for.

    Attributes
    ----------
    source, kind
        As in `J42:particles`, and what that is; None if `resume` is not.
    options
        How to denoise.
    """

    source: str | None
    kind: Kind | None
    options: DenoiseOptions


def denoise(instance: Instance, request: Request) -> int:
    """Denoise the images of an output in an external job; the exit status.

    All that can be wrong with the input is found before the job is made.

    Raises
    ------
    CryohushError
        If there is no job yet that could say what is wrong.
    """
    directory = instance.project_directory(request.project)
    job, source, kind = _find(instance, request)
    place = find_place(directory, request.project, source.job, request.scratch)
    model = trained_model(instance, place, request.project, request.options.model)
    with tempfile.TemporaryDirectory(prefix="cryohush-") as folder:
        table = Path(folder) / kind.table
        dataset = instance.load(request.project, source, [kind.slot])
        names = write_table(kind, dataset, table)
        if place.is_shared:
            stacks = plan_stacks(read_images(table, root=place.root))
            if job is None:
                place.check_space(stacks, request.options.output_dtype)
        with stop_signals() as signals:
            if job is None:
                job = open_denoising(instance, request.project, str(request.workspace), kind, request.command)
            options = request.options.model_copy(update={"model": model})
            run = JobRun(job, place, kind.noun)
            work = Denoising(run, source, kind, place, dataset, table, options, request.command)

            def do() -> None:
                folder = work.begin()
                if not place.is_shared:
                    place.fetch(instance, request.project, names, run.say)
                result = run.do(work.task(folder))
                if not place.is_shared:
                    made = [*result["stacks"], result["record"], result["report"]]
                    run.send([Path(path) for path in made], folder)
                work.finish(folder, result)

            return run_guarded(job, signals, do)


def open_denoising(
    instance: Instance,
    project: str,
    workspace: str,
    kind: Kind,
    command: str,
    title: str | None = None,
    mark: str | None = None,
) -> ExternalJob:
    """Create the job; see `open_job`."""
    title = title or f"Denoised {kind.noun} (cryohush)"
    return open_job(instance, project, workspace, title, f"{kind.trust}\n\n{kind.way_back}", command, mark)


def _find(instance: Instance, request: Request) -> tuple[ExternalJob | None, Source, Kind]:
    """Return the job to go on with, if there is one, and the images."""
    text, kind = request.source, request.kind
    job = find_job_to_resume(instance, request.project, request.resume)
    if job is not None:
        for known in KINDS:
            if found := connected_output(job, known.name, text):
                text, kind = found, known
    if text is None or kind is None:
        raise ConfigurationError(
            "neither --particles nor --micrographs is given, as in --particles J42:particles."
        )
    if job is None:
        request.check_workspace(instance)
    return job, instance.find_source(request.project, text, kind.data, [kind.slot]), kind


@dataclass
class Denoising:
    """The work on a job that there is, before and after the images are denoised.

    Attributes
    ----------
    run
        The job.
    source, kind
        The images.
    place
        Where the files are.
    dataset
        The rows of `source`.
    table
        A copy of them for the job's folder, as a run reads them.
    options, command
        How to denoise, and who says so.
    """

    run: JobRun
    source: Source
    kind: Kind
    place: Place
    dataset: Any
    table: Path
    options: DenoiseOptions
    command: str

    def begin(self) -> Path:
        """Start the job, and return its folder with the table in it."""
        run = self.run
        folder = run.begin(self._build, self.command)
        run.say(self.kind.trust)
        with writing(folder / self.kind.table) as part:
            shutil.copyfile(self.table, part)
        return folder

    def task(self, folder: Path) -> dict[str, Any]:
        """Return the task for `work.main`."""
        return {
            "task": "denoise",
            "source": str(folder / self.kind.table),
            "output": str(folder),
            "root": str(self.place.root),
            "options": self.options.model_dump(mode="json"),
            "command": self.command,
            "way_back": self.kind.way_back,
        }

    def finish(self, folder: Path, result: dict[str, Any]) -> None:
        """Save the job's output and show what was done: all but the end of the job."""
        images = read_images(folder / self.kind.table, root=self.place.root)
        fill = filler(
            self.kind,
            self.dataset,
            images,
            plan_stacks(images),
            f"{folder.parent.name}/{FOLDER}",
            self.options.output_dtype,
            result["grey_ranges"],
        )
        self.run.job.save_output(self.kind.name, np.asarray(self.dataset["uid"]), fill)
        self._show(result)

    def _build(self) -> None:
        """Connect the input and add the output."""
        name, noun = self.kind.name, self.kind.noun
        self.run.job.connect(name, self.source, [self.kind.slot], f"Raw {noun}")
        self.run.job.add_output(self.kind.data, name, [self.kind.output_slot], name, f"Denoised {noun}")

    def _show(self, result: dict[str, Any]) -> None:
        """Show what was done."""
        say = self.run.say
        pictures = {"Raw, denoised and removed, on the raw images' scale.": result["montage"]}
        pictures |= result["plots"]
        self.run.show({text: Path(path) for text, path in pictures.items()}, self.kind.name)
        for image in result["skipped"][:_WARNINGS]:
            say(f"unchanged: {image}", "warning")
        if result["skipped"]:
            say(f"{len(result['skipped'])} images were passed through unchanged", "warning")
        for name, text in result["facts"].items():
            say(f"{name}: {text}")
        say(self.kind.way_back)
