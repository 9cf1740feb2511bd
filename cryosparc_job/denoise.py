"""`cryosparc_cryohush denoise`: particles or micrographs in, the same with other images out."""

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
from ..core.inference.plan import plan_stacks, read_images
from ..core.inference.progress import ProgressText
from ..core.io.files import part_path, rename_complete, writing_failed
from .guard import Watch, run_guarded, stop_signals
from .instance import ConnectionLost, Instance, Source
from .job import ExternalJob, create_job, find_job
from .kinds import KINDS, Kind, filler, write_table
from .place import FOLDER, Place, find_place
from .worker import run_work

# Version 4 gets a new line each time.
PROGRESS_SECONDS, PROGRESS_SECONDS_4 = 5.0, 60.0
# Bad images that are named one by one.
_WARNINGS = 8


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes
    ----------
    project, workspace
        As in `P3`, `W1`; the workspace may be None if `resume` is not.
    source, kind
        As in `J42:particles`, and what that is; None if `resume` is not.
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
    source: str | None
    kind: Kind | None
    resume: str | None
    options: DenoiseOptions
    scratch: Path | None
    command: str


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
                job = _create(instance, request, kind)
                print(f"job {job.uid} of {request.project}", flush=True)
            run = _Run(instance, request, job, source, kind, place, dataset, table, names)
            return run_guarded(job, signals, run)


def _find(instance: Instance, request: Request) -> tuple[ExternalJob | None, Source, Kind]:
    """Return the job to go on with, if there is one, and the images."""
    job, text, kind = None, request.source, request.kind
    if request.resume is not None:
        job = find_job(instance, request.project, request.resume)
        if job.status() == "completed":
            raise HostError(f"{job.uid} is completed: there is nothing to go on with.")
        for known in KINDS:
            for pair in job.connections(known.name):
                if text not in (None, ":".join(pair)):
                    raise ConfigurationError(f"{text}: {job.uid} has {':'.join(pair)}. Leave it out.")
                text, kind = ":".join(pair), known
    if text is None or kind is None:
        raise ConfigurationError(
            "neither --particles nor --micrographs is given, as in --particles J42:particles."
        )
    if job is None:
        if request.workspace is None:
            raise ConfigurationError("--workspace is missing, as in --workspace W1.")
        instance.check_workspace(request.project, request.workspace)
    return job, instance.find_source(request.project, text, kind.data, [kind.slot]), kind


def _create(instance: Instance, request: Request, kind: Kind) -> ExternalJob:
    description = f"{kind.trust}\n\n{kind.way_back}\n\n    {request.command}"
    mark = f"cryohush {__version__}, run {uuid.uuid4()}"
    title = f"Denoised {kind.noun} (cryohush)"
    return create_job(instance, request.project, str(request.workspace), title, description, mark)


@dataclass
class _Run:
    """The work on a job that there is."""

    instance: Instance
    request: Request
    job: ExternalJob
    source: Source
    kind: Kind
    place: Place
    dataset: Any
    table: Path
    stack_names: list[str]

    def __post_init__(self) -> None:
        self._watch = Watch(self.job)

    def __call__(self) -> None:
        """Do all of it, but for the end of the job."""
        directory = self.job.directory_name()
        self._begin(directory)
        folder = self.place.folder(directory)
        self._say(
            f"cryohush {__version__}, cryosparc-tools {self.instance.tools_version}: {self.request.command}"
        )
        self._say(self.kind.trust)
        table = folder / self.kind.table
        _copy(self.table, table)
        if not self.place.is_shared:
            self.place.fetch(self.instance, self.request.project, self.stack_names, self._say)
        show = _Progress(self.job, self.kind.noun)
        result = run_work(
            {
                "task": "denoise",
                "source": str(table),
                "output": str(folder),
                "root": str(self.place.root),
                "options": self.request.options.model_dump(mode="json"),
                "command": self.request.command,
                "way_back": self.kind.way_back,
            },
            on_message=lambda message: self._say(message["log"]) if "log" in message else show(message),
            on_tick=self._watch,
        )
        if not self.place.is_shared:
            for path in [*result["stacks"], result["record"], result["report"]]:
                self._say(f"sending {Path(path).name}")
                self.job.upload(Path(path), f"{FOLDER}/{Path(path).relative_to(folder).as_posix()}")
        images = read_images(table, root=self.place.root)
        fill = filler(
            self.kind,
            self.dataset,
            images,
            plan_stacks(images),
            f"{directory}/{FOLDER}",
            self.request.options.output_dtype,
            result["grey_ranges"],
        )
        self.job.save_output(self.kind.name, np.asarray(self.dataset["uid"]), fill)
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
        name, noun = self.kind.name, self.kind.noun
        self.job.connect(name, self.source, [self.kind.slot], f"Raw {noun}")
        self.job.add_output(self.kind.data, name, [self.kind.output_slot], name, f"Denoised {noun}")
        self.job.start()

    def _show(self, result: dict[str, Any]) -> None:
        """Show what was done; a picture that cannot be shown is no reason to fail."""
        montage = Path(result["montage"])
        pictures: list[Callable[[], None]] = [
            lambda: self.job.log_plot(montage, "Raw, denoised and removed, on the raw images' scale."),
            *(
                lambda text=text, path=path: self.job.log_plot(Path(path), text)
                for text, path in result["plots"].items()
            ),
            lambda: self.job.set_images(self.kind.name, montage),
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
        self._say(self.kind.way_back)

    def _say(self, line: str, level: str = "text") -> None:
        """Print a line, and write it into the event log if it can be reached and the job is still wanted."""
        print(self.instance.redact(line), flush=True)
        self._watch()
        with contextlib.suppress(ConnectionLost):
            self.job.log(line, level)


class _Progress:
    """The line of progress in the event log and on the terminal."""

    def __init__(self, job: ExternalJob, noun: str) -> None:
        self._job, self._text, self._last = job, ProgressText(noun), float("-inf")
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
