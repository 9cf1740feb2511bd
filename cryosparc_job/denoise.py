"""`cryosparc_cryohush denoise`: particles in, the same particles with other images out."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..core.config.denoise import DenoiseOptions
from ..core.errors import ConfigurationError, HostError
from ..core.inference.progress import ProgressText
from ..core.io.cs import CsTable, read_images
from ..core.io.files import part_path, rename_complete, writing_failed
from ..core.io.particles import ParticleSet
from .guard import Watch, run_guarded, stop_signals
from .instance import ConnectionLost, Instance, Source
from .job import ExternalJob, create_job, find_job
from .place import FOLDER, Place, find_place
from .worker import run_work

INPUT, OUTPUT, SLOT = "particles", "particles", "blob"
INPUT_TABLE = "input.cs"
TITLE = "Denoised particles (cryohush)"
# Version 4 gets a new line each time.
PROGRESS_SECONDS, PROGRESS_SECONDS_4 = 5.0, 60.0
WAY_BACK = (
    "Back to the raw images: cryosparc_cryohush restore, with the denoised particles that you have selected."
)
TRUST = (
    "Look at, sort and classify these particles. Refine, reconstruct and measure resolution with the raw "
    "ones: a denoiser adds what it has learnt, the same to both half sets."
)
# Bad images that are named one by one.
_WARNINGS = 8


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes
    ----------
    project, workspace, particles
        As in `P3`, `W1`, `J42:particles`; the last two may be None if `resume` is not.
    resume
        The job to go on with, as in `J57`.
    options
        How to denoise.
    scratch
        A folder to work in if the project's directory is not mounted here.
    command
        The command line, for the record.
    """

    project: str
    workspace: str | None
    particles: str | None
    resume: str | None
    options: DenoiseOptions
    scratch: Path | None
    command: str


def denoise(instance: Instance, request: Request) -> int:
    """Denoise the particles of an output in an external job; the exit status.

    All that can be wrong with the input is found before the job is made.

    Raises
    ------
    CryohushError
        If there is no job yet that could say what is wrong.
    """
    directory = instance.project_directory(request.project)
    job, source = _find(instance, request)
    place = find_place(directory, request.project, source.job, request.scratch)
    with tempfile.TemporaryDirectory(prefix="cryohush-") as folder:
        table = Path(folder) / INPUT_TABLE
        instance.load(request.project, source, [SLOT]).save(str(table))
        names = read_images(CsTable(table)).stack_names
        if place.is_shared:
            particles = ParticleSet.read(table, root=place.root)
            if job is None:
                place.check_space(particles, request.options.output_dtype)
        with stop_signals() as signals:
            if job is None:
                job = _create(instance, request)
                print(f"job {job.uid} of {request.project}", flush=True)
            run = _Run(instance, request, job, source, place, table, names)
            return run_guarded(job, signals, run)


def _find(instance: Instance, request: Request) -> tuple[ExternalJob | None, Source]:
    """Return the job to go on with, if there is one, and the particles."""
    job, particles = None, request.particles
    if request.resume is not None:
        job = find_job(instance, request.project, request.resume)
        if job.status() == "completed":
            raise HostError(f"{job.uid} is completed: there is nothing to go on with.")
        connected = [":".join(pair) for pair in job.connections(INPUT)]
        if connected and particles not in (None, connected[0]):
            raise ConfigurationError(f"--particles {particles}: {job.uid} has {connected[0]}. Leave it out.")
        particles = connected[0] if connected else particles
    if particles is None:
        raise ConfigurationError("--particles is missing, as in --particles J42:particles.")
    if job is None:
        if request.workspace is None:
            raise ConfigurationError("--workspace is missing, as in --workspace W1.")
        instance.check_workspace(request.project, request.workspace)
    return job, instance.find_source(request.project, particles, "particle", [SLOT])


def _create(instance: Instance, request: Request) -> ExternalJob:
    description = f"{TRUST}\n\n{WAY_BACK}\n\n    {request.command}"
    mark = f"cryohush {__version__}, run {uuid.uuid4()}"
    return create_job(instance, request.project, str(request.workspace), TITLE, description, mark)


@dataclass
class _Run:
    """The work on a job that there is."""

    instance: Instance
    request: Request
    job: ExternalJob
    source: Source
    place: Place
    table: Path
    stack_names: list[str]

    def __call__(self) -> None:
        """Do all of it, but for the end of the job."""
        directory = self.job.directory_name()
        self._begin(directory)
        folder = self.place.folder(directory)
        self._say(
            f"cryohush {__version__}, cryosparc-tools {self.instance.tools_version}: {self.request.command}"
        )
        self._say(TRUST)
        table = folder / INPUT_TABLE
        _copy(self.table, table)
        if not self.place.is_shared:
            self.place.fetch(self.instance, self.request.project, self.stack_names, self._say)
        show = _Progress(self.job)
        result = run_work(
            {
                "task": "denoise_particles",
                "source": str(table),
                "output": str(folder),
                "root": str(self.place.root),
                "options": self.request.options.model_dump(mode="json"),
                "command": self.request.command,
                "way_back": WAY_BACK,
            },
            on_message=lambda message: self._say(message["log"]) if "log" in message else show(message),
            on_tick=Watch(self.job),
        )
        if not self.place.is_shared:
            for path in [*result["stacks"], result["record"], result["report"]]:
                self._say(f"sending {Path(path).name}")
                self.job.upload(Path(path), f"{FOLDER}/{Path(path).relative_to(folder).as_posix()}")
        self._save(CsTable(result["table"]), f"{directory}/{FOLDER}")
        self._show(result)

    def _begin(self, directory: str) -> None:
        """Bring the job, new or found, to where its work can begin."""
        if self.job.status() in ("failed", "killed"):
            try:
                self.job.start()
            except ConnectionLost:
                raise
            except HostError:
                self.place.clear(self.job, directory)
        self.job.connect(INPUT, self.source, [SLOT], "Raw particles")
        self.job.add_output("particle", OUTPUT, [SLOT], INPUT, "Denoised particles")
        self.job.start()

    def _save(self, table: CsTable, prefix: str) -> None:
        """Save the rows of the denoised table as the job's output."""

        def fill(dataset: Any) -> None:
            for name in dataset.fields():
                if name == "blob/path":
                    paths, rows = np.unique(table.column(name), return_inverse=True)
                    stacks = [f"{prefix}/{path.decode().removeprefix('>')}" for path in paths.tolist()]
                    dataset[name] = np.array(stacks, dtype=object)[rows]
                elif name in table.fields and name != "uid":
                    dataset[name] = table.column(name)

        self.job.save_output(OUTPUT, table.column("uid"), fill)

    def _show(self, result: dict[str, Any]) -> None:
        """Show what was done; a picture that cannot be shown is no reason to fail."""
        montage = Path(result["montage"])
        pictures: list[Callable[[], None]] = [
            lambda: self.job.log_plot(montage, "Raw, denoised and removed, on the raw images' scale."),
            *(
                lambda text=text, path=path: self.job.log_plot(Path(path), text)
                for text, path in result["plots"].items()
            ),
            lambda: self.job.set_images(OUTPUT, montage),
        ]
        for picture in pictures:
            try:
                picture()
            except ConnectionLost:
                raise
            except HostError as error:
                self._say(str(error), "warning")
        for image in result["skipped"][:_WARNINGS]:
            self._say(f"unchanged: {image}", "warning")
        if result["skipped"]:
            self._say(f"{len(result['skipped'])} images were passed through unchanged", "warning")
        for name, text in result["facts"].items():
            self._say(f"{name}: {text}")
        self._say(WAY_BACK)

    def _say(self, line: str, level: str = "text") -> None:
        """Print a line, and write it into the event log if it can be reached."""
        print(self.instance.redact(line), flush=True)
        with contextlib.suppress(ConnectionLost):
            self.job.log(line, level)


class _Progress:
    """The line of progress in the event log and on the terminal."""

    def __init__(self, job: ExternalJob) -> None:
        self._job, self._text, self._last = job, ProgressText(), float("-inf")
        self._pause = PROGRESS_SECONDS if job.instance.is_5 else PROGRESS_SECONDS_4

    def __call__(self, message: dict[str, Any]) -> None:
        text, now = self._text(message["done"], message["total"]), time.monotonic()
        if message["done"] < message["total"] and now - self._last < self._pause:
            return
        self._last = now
        print(text, flush=True)
        with contextlib.suppress(ConnectionLost):
            self._job.show_progress(text)


def _copy(source: Path, path: Path) -> None:
    part = part_path(path)
    try:
        shutil.copyfile(source, part)
        rename_complete(part, path)
    except OSError as error:
        raise writing_failed(path, error) from error
