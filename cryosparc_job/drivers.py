"""Programs that `watch` starts: one `cryosparc_cryohush` per job, on a GPU of this machine or by SLURM."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..core.errors import ConfigurationError, HostError
from .lock import JobBusy, locked

COMMAND = (sys.executable, "-m", "cryohush.cryosparc_job.cli")
# What a driver may need to end its job, after it was told to stop.
GRACE_SECONDS = 25.0
# SLURM is asked that often, and waited for that long.
ASK_SECONDS, _SQUEUE_SECONDS = 15.0, 30.0


@dataclass
class Ended:
    """A driver that has ended.

    Attributes
    ----------
    key
        What it was started with.
    status
        How it ended, in words; empty if well.
    """

    key: str
    status: str


class Drivers(Protocol):
    """Where drivers run."""

    def has_room(self) -> bool:
        """Tell whether one more can be started."""

    def start(self, key: str, words: Sequence[str]) -> str:
        """Start one with the words of its command line, and return in words where.

        Raises
        ------
        HostError
            If it cannot be started.
        """

    def ended(self) -> list[Ended]:
        """Return those that have ended since they were last asked for."""

    def stop(self) -> None:
        """End them all, in good order."""


class Local:
    """Drivers on this machine, one at a time on each GPU, also if several watchers share them.

    Parameters
    ----------
    gpus
        Numbers of the GPUs; none for one driver that chooses its device itself.
    """

    def __init__(self, gpus: Sequence[str]) -> None:
        self._slots = list(gpus) or [""]
        self._running: dict[str, tuple[str, subprocess.Popen[bytes]]] = {}

    def _lock_path(self, slot: str) -> Path:
        folder = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
        return Path(folder, f"cryohush-{os.getuid()}-gpu{slot or 's'}.lock")

    def _free(self) -> str | None:
        for slot in self._slots:
            if slot in self._running:
                continue
            with contextlib.suppress(JobBusy), locked(self._lock_path(slot), slot):
                return slot
        return None

    def has_room(self) -> bool:
        """See `Drivers`."""
        return self._free() is not None

    def start(self, key: str, words: Sequence[str]) -> str:
        """See `Drivers`; the driver holds the lock of its GPU as long as it lives."""
        slot = self._free()
        if slot is None:
            raise HostError("every GPU is at work.")
        environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": slot} if slot else {})
        with locked(self._lock_path(slot), slot) as lock:
            driver = subprocess.Popen(
                [*COMMAND, *words],
                stdin=subprocess.DEVNULL,
                env=environment,
                # a signal from the terminal is for the watcher, which hands it on
                start_new_session=True,
                pass_fds=(lock.descriptor,),
            )
        self._running[slot] = key, driver
        return f"on GPU {slot} of this machine" if slot else "on this machine"

    def ended(self) -> list[Ended]:
        """See `Drivers`."""
        found = []
        for slot, (key, driver) in list(self._running.items()):
            code = driver.poll()
            if code is not None:
                del self._running[slot]
                found.append(Ended(key, "" if code == 0 else _how(code)))
        return found

    def stop(self) -> None:
        """See `Drivers`."""
        drivers = [driver for _, driver in self._running.values()]
        for driver in drivers:
            driver.terminate()
        give_up = time.monotonic() + GRACE_SECONDS
        for driver in drivers:
            try:
                driver.wait(max(0.1, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                driver.kill()
                driver.wait()


class Slurm:
    """Drivers as jobs of SLURM's.

    Parameters
    ----------
    script
        For sbatch; gets the command line of a driver as its arguments.
    at_once
        How many may wait or run at a time.

    Raises
    ------
    ConfigurationError
        If there is no such script, or no SLURM.
    """

    def __init__(self, script: Path, at_once: int) -> None:
        if not script.is_file():
            raise ConfigurationError(f"--sbatch {script}: no such file.")
        if shutil.which("sbatch") is None or shutil.which("squeue") is None:
            raise ConfigurationError("--sbatch: the commands sbatch and squeue are not on this machine.")
        self._script, self._at_once = script, at_once
        self._submitted: dict[str, str] = {}
        self._asked = float("-inf")

    def has_room(self) -> bool:
        """See `Drivers`."""
        return len(self._submitted) < self._at_once

    def start(self, key: str, words: Sequence[str]) -> str:
        """See `Drivers`."""
        command = ["sbatch", "--parsable", str(self._script), *COMMAND, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            problem = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise HostError(f"sbatch {self._script}: {problem}")
        number = done.stdout.strip().partition(";")[0]
        self._submitted[key] = number
        return f"{SLURM_JOB}{number}"

    def ended(self) -> list[Ended]:
        """See `Drivers`; how they ended, their jobs say."""
        if time.monotonic() - self._asked < ASK_SECONDS:
            return []
        self._asked = time.monotonic()
        gone = [key for key, number in self._submitted.items() if not is_in_queue(number)]
        return [Ended(key, f"{SLURM_JOB}{self._submitted.pop(key)} has ended") for key in gone]

    def stop(self) -> None:
        """See `Drivers`: SLURM's go on without a watcher."""


SLURM_JOB = "SLURM job "


def is_in_queue(number: str) -> bool:
    """Tell whether a job of SLURM's has not ended; if SLURM cannot be asked, it has not."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", "--jobs", number, "--format", "%T"],
            capture_output=True,
            text=True,
            timeout=_SQUEUE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return True
    if done.returncode != 0:
        return "invalid job id" not in done.stderr.lower()
    return bool(done.stdout.strip())


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
