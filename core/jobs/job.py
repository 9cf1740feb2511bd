"""What a job is, whoever runs it: a command line, RELION, cryoSPARC or a batch.

A job reads and checks its source (`Job.plan`), does what its folder lacks (`Plan.begin`), and finishes with
table and record (`Plan.finish`). A single command does the work whole, on the devices of its process, into
the job's folder. A batch has it done in parts, each by a worker into a folder of the part's own, and takes
them together: it is the same work, and the same files to the byte. What a batch can run is a `BatchJob`.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import torch

from ..inference.devices import DoneHere, LocalDevices
from ..inference.plan import path_below
from ..io.journal import Undertaking
from ..job_context import QUIET, JobContext
from .folder import Earlier, JobFolder

T = TypeVar("T")


class Part(Protocol):
    """What a worker does at a time, with all that it needs for that; small, and fit to travel."""

    @property
    def name(self) -> str:
        """Unique in the job."""

    @property
    def n_images(self) -> int:
        """Number of images."""

    def describe(self) -> str:
        """Return the images in words."""

    def do(self, devices: LocalDevices) -> None:
        """Do the part into a folder of its own; see `parts.do_in_folder`."""


P = TypeVar("P", bound=Part)


@dataclass(frozen=True, eq=False)
class Parts(Generic[P]):
    """Work that was cut.

    Attributes
    ----------
    title
        Of the work, for the dashboard.
    waiting
        What is still to be done, in any order.
    n_parts, n_images
        In all, with what was done before.
    take
        Takes a part that is done from its folder.
    is_whole
        Whether nothing can be cut: then the failure of the one part is that of the job.
    """

    title: str
    waiting: Sequence[P]
    n_parts: int
    n_images: int
    take: Callable[[P], None]
    is_whole: bool = False


class Work(DoneHere, Protocol):
    """What is missing of a job of a batch, to be done whole (`do`) or in parts."""

    def in_parts(self, part_bytes: int) -> AbstractContextManager[Parts[Any]]:
        """Return the work in parts of about so many bytes of float32 pixels.

        When the context is left without an error, all of it is done.
        """


class Devices(Protocol):
    """Where a job calculates: `LocalDevices`, or the workers of a batch."""

    names: list[str]
    types: list[str]
    threads: int

    def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Return what a function makes of the arguments and the devices of a process; for choices."""

    def do(self, work: Work, context: JobContext) -> None:
        """Do all of the work.

        Raises
        ------
        CryohushError
            What keeps it from being done. What is finished is kept.
        Aborted
            If `context.should_stop` said so; what is finished is kept.
        """


@dataclass(frozen=True)
class JobSize:
    """What a job would read and write, and how much.

    Attributes
    ----------
    kind
        What the images are.
    n_images, n_pixels
        Of the images that would be worked on.
    bytes
        Of the files that would be written.
    inputs
        The files that would be read.
    """

    kind: Literal["particles", "micrographs"]
    n_images: int
    n_pixels: int
    bytes: int
    inputs: list[Path]


def placed(undertaking: Undertaking, tables: Sequence[str], output_dir: Path, root: Path) -> Undertaking:
    """Return an undertaking whose tables, some of its parts, are of another make in a folder that was moved.

    They name files below `output_dir` as seen from `root`.
    """
    place = os.fsencode(path_below(output_dir, root) or "")
    parts = {name: undertaking.parts[name] + hashlib.sha256(place).hexdigest()[:16] for name in tables}
    return replace(undertaking, parts={**undertaking.parts, **parts})


W = TypeVar("W", bound=DoneHere)
R = TypeVar("R")


class Plan(ABC, Generic[W, R]):
    """A job whose source was read and checked.

    Attributes
    ----------
    undertaking
        What it is going to make.
    inputs
        The files that it reads.
    smaller
        What a user can do to need less room on the disk.
    """

    undertaking: Undertaking
    inputs: Sequence[Path]
    smaller: ClassVar[str] = "do less at a time"

    def undertaking_in(self, output_dir: Path) -> Undertaking:
        """Return the undertaking for a folder: what names files by their folder depends on it, too."""
        return self.undertaking

    def bytes_left(self, folder: JobFolder) -> int:
        """Return how much the folder lacks of the files whose size is known before they are made."""
        return 0

    @abstractmethod
    def begin(self, folder: JobFolder) -> W:
        """Return what the folder lacks."""

    @abstractmethod
    def finish(self, folder: JobFolder, work: W | None) -> R:
        """Write the table and the record of work that is done, and return what the job came to.

        Without work the job was complete before: nothing is written.
        """


class Job(ABC, Generic[R]):
    """What a command does to one source."""

    #: what hosts, whose users press the same button again, do with an earlier run in the folder
    earlier_in_hosts: ClassVar[Earlier] = "anew"

    def devices(self) -> LocalDevices:
        """Return where it calculates if nobody says."""
        return LocalDevices([torch.device("cpu")])

    @abstractmethod
    def plan(self, devices: Devices, context: JobContext) -> Plan[Any, R]:
        """Read and check the source, and tell of it; nothing is written."""

    def run(
        self,
        output_dir: str | Path,
        context: JobContext = QUIET,
        *,
        earlier: Earlier = "refuse",
        devices: Devices | None = None,
    ) -> R:
        """Do the job, or what an earlier run in the folder has left of it.

        Parameters
        ----------
        output_dir
            Made if missing.
        context
            Whom to ask and tell.
        earlier
            What to do with an earlier run in the folder; see `jobs.folder`.
        devices
            Where to calculate, instead of on those of the options.

        Raises
        ------
        InputError
            If the input cannot be read, or was changed while the job went on.
        OutputError
            If the folder is in use or holds another run, or the disk is full or too small.
        ModelError, DeviceError, ConfigurationError
            If the options cannot be met.
        Aborted
            If `context.should_stop` said so; the job can be resumed.
        """
        devices = self.devices() if devices is None else devices
        plan, work = self.plan(devices, context), None
        undertaking = plan.undertaking_in(Path(output_dir))
        with JobFolder(output_dir, undertaking, earlier, inputs=plan.inputs, log=context.log) as folder:
            if not folder.journal.is_complete:
                folder.check_room(plan.bytes_left(folder), plan.smaller)
                work = plan.begin(folder)
                devices.do(work, context)
            return plan.finish(folder, work)


class BatchJob(Job[R]):
    """A job that batches run as well, whose work is a `Work`."""

    @abstractmethod
    def measure(self, output_dir: Path) -> JobSize:
        """Check all that can be checked without a device, and return how large it is; nothing is written."""

    @abstractmethod
    def forecast(self, size: JobSize, devices: LocalDevices) -> tuple[JobSize, float]:
        """Return the size as a trial shows it, and the seconds that the job takes on such devices."""
