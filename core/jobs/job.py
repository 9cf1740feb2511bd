"""What the work of a job is, whoever does it: one process, or the workers of a batch.

A single command does the work whole, on the devices of its process, into the job's folder. A batch has it
done in parts, each by a worker into a folder of the part's own, and takes them together. It is the same work,
and the same files to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from ..inference.devices import DoneHere, LocalDevices
from ..job_context import JobContext

T = TypeVar("T")


class Part(Protocol):
    """What a worker does at a time."""

    @property
    def name(self) -> str:
        """Unique in the job."""

    @property
    def n_images(self) -> int:
        """Number of images."""

    def describe(self) -> str:
        """Return the images in words."""


P = TypeVar("P", bound=Part)


class Order(Protocol):
    """A part with all that a worker needs to do it; small, and fit to travel."""

    def do(self, devices: LocalDevices) -> None:
        """Do the part into a folder of its own; see `parts.do_in_folder`."""


class Parts(Protocol[P]):
    """Work that was cut."""

    @property
    def title(self) -> str:
        """Of the work, for the dashboard."""

    @property
    def waiting(self) -> Sequence[P]:
        """What is still to be done, in any order."""

    @property
    def n_parts(self) -> int:
        """All of them."""

    @property
    def n_images(self) -> int:
        """Those of all parts, and what was done before."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing can be cut: then the failure of the one part is that of the job."""

    def order(self, part: P) -> Order:
        """Return what a worker needs to do a part; asked for each attempt."""

    def take(self, part: P) -> None:
        """Take a part that is done from its folder."""


class Work(DoneHere, Protocol):
    """What is missing of a job, to be done whole (`do`) or in parts."""

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
