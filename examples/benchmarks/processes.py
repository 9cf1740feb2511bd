"""Running a command and measuring it from outside: wall time and peak memory of the whole process."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryohush.core.io.mrc import StackWriter

CRYOHUSH = [sys.executable, "-c", "import sys; from cryohush.core.cli import main; sys.exit(main())"]


@dataclass(frozen=True)
class Measured:
    """What a process cost and said."""

    seconds: float
    #: largest resident set, bytes
    peak_bytes: int
    output: str
    #: user and system time of all its threads
    cpu_seconds: float


def run_measured(command: Sequence[str], threads: int = 0) -> Measured:
    """Run `command` to its end and measure it by `wait4`.

    Linux lets a child start with its parent's resident set as its peak, so a script that uses this must stay
    small itself: no torch, no stacks.

    Raises
    ------
    RuntimeError
        When the command fails; shows the end of what it printed.
    """
    environment = dict(os.environ)
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as messages:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=messages, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        for stream in (output, messages):
            stream.seek(0)
        if process.returncode != 0:
            tail = (output.read() + messages.read())[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
        cpu_seconds = usage.ru_utime + usage.ru_stime
        return Measured(seconds, usage.ru_maxrss * 1024, output.read(), cpu_seconds)


def write_noise_stack(path: Path, n_images: int, side_px: int) -> None:
    """Write a stack of white noise of mean 0 and sd 1 at 1.5 Å per pixel, a few images at a time."""
    rng = np.random.default_rng(1)
    batch = max(1, 2**20 // side_px**2)
    with StackWriter(
        path, (n_images, side_px, side_px), pixel_size_angstrom=1.5, label="white noise for a benchmark"
    ) as writer:
        for begin in range(0, n_images, batch):
            shape = (min(batch, n_images - begin), side_px, side_px)
            writer.write(rng.standard_normal(shape, dtype=np.float32))
