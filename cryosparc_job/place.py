"""Where the files of a job go: into the project's directory, or through a folder of one's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..core.errors import HostError, OutputError
from ..core.io.files import make_folder, writing, writing_failed
from .job import ExternalJob
from .lock import LOCK_NAME, JobBusy, Lock, locked
from .project import Project

# The folder in the job's own with all that a command writes.
FOLDERS = {
    "denoise": "denoised",
    "extract-noise": "noise",
    "train": "training",
    "evaluate": "evaluation",
    "restore": "restored",
}
FOLDER = FOLDERS["denoise"]
_KEPT = "_cryohush_kept"
# The work of a driver that was killed needs a moment to notice.
LOCK_PATIENCE_SECONDS = 5.0
# In a folder that stands for a project's directory: of which state the files are that were fetched.
_FETCHED = ".cryohush-fetched.jsonl"
# How many of the fetched files are said by name.
_SAID_EVERY = 20

_PERMISSION = (
    "Run as a user that can write there: the one that cryoSPARC runs as, or a member of its group where the "
    "project's directory is writable for the group."
)


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

    @contextlib.contextmanager
    def lock(self, job_directory: str) -> Iterator[Lock]:
        """Have the job to oneself, before anything in it is touched.

        Raises
        ------
        JobBusy
            If another program works on it.
        OutputError
            If nothing can be written into its directory.
        """
        give_up = time.monotonic() + LOCK_PATIENCE_SECONDS
        with contextlib.ExitStack() as held:
            while True:
                try:
                    lock = held.enter_context(locked(self.folder(job_directory) / LOCK_NAME, job_directory))
                    break
                except JobBusy:
                    if time.monotonic() > give_up:
                        raise
                    time.sleep(0.1)
            yield lock

    def lock_path(self, job_directory: str) -> Path:
        """Return where the lock of a job is; one that was set aside has it with its files."""
        kept = self.root / f"{job_directory}{_KEPT}"
        return (kept if kept.exists() else self.root / job_directory / self.name) / LOCK_NAME

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
                with locked(kept / LOCK_NAME, job_directory):
                    kept.rename(folder)
            folder.mkdir(exist_ok=True)
            _open_like(folder.parent, folder)
        except OSError as error:
            raise writing_failed(folder, error) from error
        if not os.access(folder, os.W_OK):
            raise OutputError(f"{folder}: cannot be written to. {_PERMISSION}")
        return folder

    def clear(self, job: ExternalJob, job_directory: str) -> None:
        """Clear a job, whose lock is held, but keep what it has already made."""
        folder, kept = self.root / job_directory / self.name, self.root / f"{job_directory}{_KEPT}"
        if not self.is_shared or not folder.exists():
            job.clear()
            return
        folder.rename(kept)
        try:
            job.clear()
        finally:
            folder.parent.mkdir(exist_ok=True)
            kept.rename(folder)

    def umask(self, job_directory: str) -> int:
        """Return the umask that lets others do with the work's files what they may do with the job's."""
        if not self.is_shared:
            return stat.S_IRWXG | stat.S_IRWXO
        with contextlib.suppress(OSError):
            return ~(self.root / job_directory).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)
        return stat.S_IWGRP | stat.S_IRWXO

    def hand_over(self, job_directory: str) -> str | None:
        """Let cryoSPARC's user do with the job's files what he may do with its directory; what is amiss.

        Returns
        -------
        str or None
            Why cryoSPARC will not be able to delete them, if so.
        """
        directory = self.root / job_directory
        if not self.is_shared:
            return None
        with contextlib.suppress(OSError):
            for folder, _, names in os.walk(directory / self.name):
                for path in (Path(folder), *(Path(folder, name) for name in names)):
                    with contextlib.suppress(OSError):
                        _open_like(directory, path)
            return _warning(directory, directory / self.name)
        return None

    def check_space(self, needed: int) -> None:
        """Raise an OutputError if the disk has no room for so many bytes."""
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise OutputError(
                f"{self.root}: the disk is too full: {needed} bytes are needed, {free} are free. Free some "
                "space, or write float16 (half the size)."
            )

    def fetch(self, project: Project, names: Sequence[str], log: Callable[[str], None]) -> None:
        """Bring files of the project here; those that are here of the same state of their jobs are not again.

        Parameters
        ----------
        project
            Where from.
        names
            The files, relative to the project's directory.
        log
            Told of some.

        Raises
        ------
        HostError
            If a name leads out of the project's directory, or a file cannot be had.
        OutputError
            If the disk is full.
        """
        known, ages = self._fetched(), dict[str, str | None]()
        step = max(1, len(names) // _SAID_EVERY)
        for number, name in enumerate(names, 1):
            path = self.root / name
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise HostError(f"{name}: is not in the project's directory, so the server does not send it.")
            job = name.partition("/")[0]
            age = ages[job] if job in ages else ages.setdefault(job, project.age_of(name))
            if age is not None and known.get(name) == age and path.exists():
                continue
            if number % step == 0 or number == len(names):
                log(f"fetching {name} ({number} of {len(names)})")
            make_folder(path.parent)
            with writing(path) as part:
                project.download(name, part)
            with (self.root / _FETCHED).open("a", encoding="utf-8") as file:
                file.write(json.dumps([name, age]) + "\n")

    def drop(self, names: Sequence[str]) -> None:
        """Remove files that were fetched: the work is done."""
        if self.is_shared:
            return
        for name in names:
            with contextlib.suppress(OSError):
                (self.root / name).unlink(missing_ok=True)

    def _fetched(self) -> dict[str, str | None]:
        """Return the state of each file that was fetched; a torn line is as good as none."""
        found: dict[str, str | None] = {}
        with contextlib.suppress(OSError):
            for line in (self.root / _FETCHED).read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError):
                    name, age = json.loads(line)
                    found[name] = age
        return found


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
    try:
        directory_there = stat.S_ISDIR(directory.stat().st_mode)
        job_there = directory_there and stat.S_ISDIR((directory / source_job).stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        directory_there, job_there = directory.is_dir(), False
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise OutputError(f"{error.filename or directory}: {reason}. {_PERMISSION}") from error
    if not job_there:
        found = f"it has no {source_job}" if directory_there else "it does not exist"
        raise OutputError(
            f"{directory}: the project's directory is not on this machine ({found}). Run where cryoSPARC's "
            "file system is mounted under the same path, or let the files travel through the server: "
            "--scratch DIR (not in a batch)."
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OutputError(f"{directory}: cannot be written to. {_PERMISSION}")
    return Place(directory, is_shared=True, name=name)


def _open_like(directory: Path, path: Path) -> None:
    """Give group and others the access to a file or folder of ours that they have to a directory."""
    ours, wanted = path.lstat(), directory.stat()
    if stat.S_ISLNK(ours.st_mode):
        return
    bits = wanted.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    if not stat.S_ISDIR(ours.st_mode):
        bits &= ~(stat.S_IXGRP | stat.S_IXOTH)
    if os.geteuid() == 0 and ours.st_uid != wanted.st_uid:
        os.chown(path, wanted.st_uid, wanted.st_gid)
    elif ours.st_gid != wanted.st_gid:
        with contextlib.suppress(OSError):  # not a member of it
            os.chown(path, -1, wanted.st_gid)
    if ours.st_mode & bits != bits and os.geteuid() in (0, ours.st_uid):
        path.chmod(stat.S_IMODE(ours.st_mode) | bits)


def _warning(directory: Path, folder: Path) -> str | None:
    """Return why cryoSPARC's user cannot delete a folder's files, if he cannot."""
    ours, theirs = folder.stat(), directory.stat()
    by_group = ours.st_gid == theirs.st_gid and ours.st_mode & stat.S_IWGRP
    if ours.st_uid == theirs.st_uid or by_group or ours.st_mode & stat.S_IWOTH:
        return None
    return (
        f"{folder} belongs to another user than {directory}, and cryoSPARC cannot write to it: clearing or "
        "deleting the job in cryoSPARC will leave these files. "
        f"{_PERMISSION}"
    )
