"""What a command is: the outputs of jobs that it takes, the work of a child process, and what it gives back.

`execution` carries one out in an external job of its own; a batch takes it apart (`host`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .job import ExternalJob
from .place import Place
from .project import Source

# Options that are not named as the inputs that they fill.
OPTIONS = {"exposures": "micrographs"}


@dataclass(frozen=True)
class Input:
    """An input of a command.

    Attributes
    ----------
    name, title
        Of the input; the option is `--name`, but for those of `OPTIONS`.
    data
        cryoSPARC's type.
    slots
        What is connected and read.
    unconnected
        What is read besides: the server need not know such slots by their names.
    also
        The same, where it is there.
    needed
        Whether the command does nothing without.
    """

    name: str
    title: str
    data: str
    slots: tuple[str, ...]
    unconnected: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    needed: bool = True

    def read(self, source: Source) -> list[str]:
        """Return the slots that are read of an output."""
        return [*self.slots, *self.unconnected, *(slot for slot in self.also if slot in source.slots)]


@dataclass(frozen=True)
class Given:
    """An output that a command gives back; what it does not hold passes through from the input of its name.

    Attributes
    ----------
    name, title
        Of the output.
    data
        cryoSPARC's type.
    slots
        What it holds itself.
    """

    name: str
    title: str
    data: str
    slots: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """Work that nothing is wrong with as far as could be seen.

    Attributes
    ----------
    names
        Files that it reads, relative to the project's directory.
    write
        Given the folder to work in, writes its tables and returns the task for `work.main`. The task's result
        has the texts and files of `plots`, and the `lines` and `warnings` for the event log. None if there is
        no work for a child.
    save
        Given the job, the folder and the task's result, saves the output.
    remarks
        What is to be said of the input.
    n_bytes
        Room that the result takes.
    also
        More outputs that are connected, and to which inputs.
    check
        What a child looks for before a job is made; see `work.check`.
    """

    names: Sequence[str]
    write: Callable[[Path], dict[str, Any]] | None
    save: Callable[[ExternalJob, Path, Mapping[str, Any]], None] | None = None
    remarks: Sequence[str] = ()
    n_bytes: int = 0
    also: Sequence[tuple[Input, Source]] = ()
    check: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Command:
    """What a command takes, does and gives back.

    Attributes
    ----------
    title
        Of the job; `{source}` in it stands for the first input's output.
    description
        Of the job.
    folder
        In the job's own, with all that the command writes.
    noun
        What is counted.
    inputs
        The first one says which images the work is about.
    prepare
        Given the place and the dataset of each input, checks what can be checked before a job is made.
    output
        What is given back, if that is more than files.
    parts
        Parts of it, as outputs of their own.
    trust
        What is said first, in the event log.
    needs_files
        Whether it reads or writes any: else the project's directory need not be here.
    """

    title: str
    description: str
    folder: str
    noun: str
    inputs: Sequence[Input]
    prepare: Callable[[Place, Mapping[str, Any]], Prepared]
    output: Given | None = None
    parts: Sequence[Given] = ()
    trust: str = ""
    needs_files: bool = True
