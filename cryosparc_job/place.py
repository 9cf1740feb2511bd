"""Where the files of a job go: into the project's directory, or through a folder of one's own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ..core.errors import HostError, OutputError
from ..core.inference.plan import StackPlan
from ..core.io.files import make_folder, writing, writing_failed
from .instance import Instance
from .job import ExternalJob

# The folder in the job's own with all that a run of `denoise` writes.
FOLDER = "denoised"
_KEPT = "_cryohush_kept"


@dataclass(frozen=True)
class Place:
    """A project's directory as it is seen here.

    Attributes
    ----------
    root
        What the paths in tables are relative to: the project's directory, or the folder that stands for it.
    is_shared
        Whether `root` is the project's own. If not, files come and go through the server.
    name
        The folder in the job's own with all that a run writes.
    """

    root: Path
    is_shared: bool
    name: str = FOLDER

    def folder(self, job_directory: str) -> Path:
        """Return the folder of a job's files; made if need be.

        Raises
        ------
        OutputError
            If nothing can be written into it.
        """
        folder = self.root / job_directory / self.name
        kept = self.root / f"{job_directory}{_KEPT}"
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            if kept.exists() and not folder.exists():
                kept.rename(folder)
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise writing_failed(folder, error) from error
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{folder}: cannot be written to. {_PERMISSION}")
        return folder

    def clear(self, job: ExternalJob, job_directory: str) -> None:
        """Clear a job, but keep what it has already made."""
        folder = self.root / job_directory / self.name
        if self.is_shared and folder.exists():
            folder.rename(self.root / f"{job_directory}{_KEPT}")
        job.clear()
        self.folder(job_directory)

    def check_space(self, stacks: Sequence[StackPlan], dtype: str) -> None:
        """Raise an OutputError if the disk cannot hold the denoised images."""
        pixels = sum(len(stack.indices) * stack.shape[0] * stack.shape[1] for stack in stacks)
        needed = pixels * np.dtype(dtype).itemsize
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise OutputError(
                f"{self.root}: the disk is too small: {needed} bytes are needed, {free} are free. Free some "
                "space, or write float16 (half the size)."
            )

    def fetch(
        self, instance: Instance, project: str, names: Sequence[str], log: Callable[[str], None]
    ) -> None:
        """Bring stacks of the project here, unless they are here already.

        Parameters
        ----------
        instance, project
            Where from.
        names
            The stacks, relative to the project's directory.
        log
            Told of each.

        Raises
        ------
        HostError
            If a name leads out of the project's directory, or a file cannot be had.
        OutputError
            If the disk is full.
        """
        for number, name in enumerate(names, 1):
            path = self.root / name
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise HostError(f"{name}: is not in the project's directory, so the server does not send it.")
            if path.exists():
                continue
            log(f"fetching {name} ({number} of {len(names)})")
            make_folder(path.parent)
            with writing(path) as part:
                instance.download(project, name, part)


_PERMISSION = (
    "Run as a user that can write there: the one that cryoSPARC runs as, or a member of its group where the "
    "project's directory is writable for the group."
)


def find_place(
    directory: Path, project: str, source_job: str, scratch: Path | None, name: str = FOLDER
) -> Place:
    """Return where to read and write.

    Parameters
    ----------
    directory
        The project's directory as the server knows it.
    project, source_job
        As in `P3`, `J42`.
    scratch
        A folder to work in if the project's directory is not mounted here.
    name
        The folder in the job's own with all that a run writes.

    Raises
    ------
    OutputError
        If the project's directory is not here or cannot be written to, and there is no `scratch`.
    """
    if scratch is not None:
        root = scratch.absolute() / project
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise writing_failed(root, error) from error
        return Place(root, is_shared=False, name=name)
    if not directory.is_dir() or not (directory / source_job).is_dir():
        found = f"it has no {source_job}" if directory.is_dir() else "it does not exist"
        raise OutputError(
            f"{directory}: the project's directory is not on this machine ({found}). Run where cryoSPARC's "
            "file system is mounted under the same path, or let the files travel through the server: "
            "--scratch DIR (not in a batch)."
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(f"{directory}: cannot be written to. {_PERMISSION}")
    return Place(directory, is_shared=True, name=name)
