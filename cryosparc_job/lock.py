"""Who works on a job: one program at a time, on whatever machine, for as long as it lives.

The lock is a file in the folder of the job that cryohush's files go to. It moves with that folder, so that it
holds while cryoSPARC empties the job's directory. What is written in the file outlives the program: whoever
finds the lock free reads there who had it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.errors import OutputError
from ..core.io.files import writing_failed

LOCK_NAME = ".cryohush-driver.lock"
# File systems without locks: then it is the user who must not start two.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


class JobBusy(OutputError):
    """Another program has the lock."""


@dataclass(frozen=True)
class Holder:
    """Who has, or had, a lock.

    Attributes
    ----------
    program
        Process and machine, in words.
    watched
        Whether `watch` has started it.
    interrupted
        Whether a signal stopped it, so that its work is to be gone on with.
    slurm
        Job of SLURM that was submitted to take the lock, if it is not yet there.
    """

    program: str = ""
    watched: bool = False
    interrupted: bool = False
    slurm: str = ""


def this_program() -> str:
    """Return process and machine, in words."""
    return f"process {os.getpid()} on {socket.gethostname()}"


class Lock:
    """A lock that this program has.

    Attributes
    ----------
    descriptor
        Of the file; whoever inherits it has the lock, too.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def note(self, holder: Holder) -> None:
        """Say who has it."""
        with contextlib.suppress(OSError):  # a full disk: it is held all the same
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(asdict(holder)).encode(), 0)


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[Lock]:
    """Have a lock.

    Parameters
    ----------
    path
        The file; its folder is there.
    what
        It is on, for the message.

    Raises
    ------
    JobBusy
        If another program has it.
    OutputError
        If the file cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise writing_failed(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = read_holder(path).program or "another program"
            raise JobBusy(f"{what}: {who} works on it. Wait until it has ended, or end it there.") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise writing_failed(path, error) from error
        yield Lock(descriptor)
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Tell whether a program has the lock at this moment."""
    try:
        with locked(path, "") if path.exists() else contextlib.nullcontext():
            return False
    except JobBusy:
        return True


def read_holder(path: Path) -> Holder:
    """Return who has the lock, or had it last; of a file that is not there, or torn, nobody."""
    try:
        values = json.loads(path.read_bytes())
        return Holder(**values)
    except (OSError, ValueError, TypeError):
        return Holder()
