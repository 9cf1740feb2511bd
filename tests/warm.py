"""Programs (`python -c CODE WORDS...`) that need not import torch first, which takes each some seconds.

Each is a copy of a process that has imported libraries, but nothing of cryohush: what is tested is imported
anew, in a process of its own, with its own arguments, folder, output, exit status and signals. Not for tests
of what is imported, nor of variables that Python or a library reads as it starts.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torch",
        "scipy.spatial.transform",
        "matplotlib.figure",
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_pdf",
        "pydantic",
        "yaml",
    ]
)


class Program:
    """A program that was started in a folder, with an output that is read at its end."""

    def __init__(self, code: str, *words: str | Path, folder: Path) -> None:
        self._said = [Path(tempfile.mkstemp(prefix=name)[1]) for name in ("stdout", "stderr")]
        self._given = [sys.executable, "-c", code, *map(str, words)]
        self._process = _context.Process(
            target=_become, args=(self._given, folder, dict(os.environ), self._said)
        )
        self._process.start()

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal that has ended it; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self, timeout_seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """Wait for its end; return its status and what it said, with the line ends that this has."""
        self._process.join(timeout_seconds)
        status = self.poll()
        if status is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self._given, timeout_seconds)
        said = [path.read_bytes().decode() for path in self._said]
        for path in self._said:
            path.unlink()
        return subprocess.CompletedProcess(self._given, status, *said)


def run(code: str, *words: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return Program(code, *words, folder=folder).end()


def _become(given: list[str], folder: Path, environment: dict[str, str], said: list[Path]) -> None:
    """Be the program; the libraries that the process has imported stay."""
    assert not any(name.partition(".")[0] == "cryohush" for name in sys.modules)
    for number, path in enumerate(said, 1):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    _, _, code, *words = given
    sys.argv = ["-c", *words]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
