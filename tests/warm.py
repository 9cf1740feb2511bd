"""Programs (`python -c CODE WORDS...`) and workers that need not import torch first, which takes seconds.

Each is a copy of a process that has imported libraries, but nothing of cryohush: what is tested is imported
anew, in a process of its own, with its own arguments, folder, output, exit status and signals. Not for tests
of what is imported, nor of variables that Python or a library reads as it starts. No search for garbage goes
through the libraries, as none goes through torch in the programs themselves.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

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
        "mrcfile",
        "torch_ctf",
        "torch_fourier_slice",
        "distributed",
    ]
)


@contextlib.contextmanager
def workers() -> Iterator[None]:
    """Have batches that are run in this process start such workers."""
    import dask

    if multiprocessing.parent_process() is None:
        # before dask, which would have it import other libraries
        forkserver.ensure_running()
    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        yield


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


class Child:
    """In place of a `subprocess.Popen` of `python -m MODULE`, with pipes; errors go where its output goes."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], umask: int, pass_fds: Sequence[int]
    ):
        program, dash_m, module = command
        assert (program, dash_m) == (sys.executable, "-m")
        given, ours = _context.Pipe(duplex=False)
        mine, said = _context.Pipe(duplex=False)
        kept = [Connection(os.dup(number)) for number in pass_fds]
        self._process = _context.Process(target=_work, args=(module, dict(env), umask, given, said, kept))
        self._process.start()
        self.args, self.pid = command, self._process.pid
        self.stdin: IO[bytes] | None = os.fdopen(os.dup(ours.fileno()), "wb")
        self.stdout: IO[bytes] | None = os.fdopen(os.dup(mine.fileno()), "rb")
        for end in (given, ours, mine, said, *kept):
            end.close()

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal that has ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end."""
        self._process.join(timeout)
        status = self.poll()
        if status is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self.args, timeout)
        return status

    def communicate(self, timeout: float | None = None) -> None:
        """Wait for its end; what it still says is lost."""
        self.wait(timeout)

    def terminate(self) -> None:
        """Ask it to stop."""
        self._process.terminate()

    def kill(self) -> None:
        """Make it stop."""
        self._process.kill()


def _work(
    module: str,
    environment: dict[str, str],
    umask: int,
    given: Connection,
    said: Connection,
    kept: list[Connection],
) -> None:
    """Be the module; `kept` stays open as long as this runs."""
    gc.freeze()
    os.setsid()
    if umask >= 0:
        os.umask(umask)
    os.environ.clear()
    os.environ.update(environment)
    os.dup2(given.fileno(), 0)
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    given.close()
    said.close()
    sys.stdin = os.fdopen(0, closefd=False)
    _speak()
    runpy.run_module(module, run_name="__main__")


def _speak() -> None:
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)


def _become(given: list[str], folder: Path, environment: dict[str, str], said: list[Path]) -> None:
    """Be the program; the libraries that the process has imported stay."""
    assert "cryohush" not in sys.modules
    gc.freeze()
    for number, path in enumerate(said, 1):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    _speak()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # the workers of its batches come from where it comes from itself
    forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign]
    _, _, code, *words = given
    sys.argv = ["-c", *words]
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    finally:
        atexit._run_exitfuncs()
