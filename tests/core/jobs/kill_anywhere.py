"""Runs jobs again and again in children that kill themselves at a file operation, and goes on each time.

`test_kills.py` starts it as a process that has not calculated yet: only such a one can be copied by a fork.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.micrographs import MicrographsConfig
from cryohush.core.config.simulate import ParticlesConfig
from cryohush.core.config.training import TrainingConfig
from cryohush.core.inference import stream
from cryohush.core.jobs import particle_stream
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.jobs.extract_noise import run_extract_noise
from cryohush.core.jobs.folder import Earlier
from cryohush.core.jobs.simulate import SimulateJob
from cryohush.core.jobs.train import train

OPERATIONS = ("fsync", "write", "replace", "ftruncate", "unlink", "mkdir")


def main() -> None:
    """Do the tasks on the standard input, and print how many file operations each has as a whole."""
    # so that no child searches all that was imported for garbage
    gc.freeze()
    stream.CHECKPOINT_SECONDS = particle_stream.CHECKPOINT_SECONDS = 0.0
    for task in json.load(sys.stdin):
        print(do(task))


def do(task: dict[str, Any]) -> int | None:
    """Run a job as a whole, and again with kills at moments that are shares of the whole."""
    work, whole, folder = JOBS[task["job"]], Path(task["whole"]), Path(task["torn"])
    n = in_a_child(lambda: counted(lambda: work(task, whole, "refuse")), whole.with_suffix(".n"))
    for number, kills in enumerate(task["kills"]):
        torn = folder / str(number)

        def go_on(torn: Path = torn) -> None:
            work(task, torn, "resume")

        for share in kills:
            in_a_child(go_on, kill_at=int(share * (n or 0)))
        in_a_child(go_on)
    return n


def in_a_child(
    work: Callable[[], int | None], told: Path | None = None, kill_at: int | None = None
) -> int | None:
    """Fork, work, and wait; what `work` returns comes back through the file `told`."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        if kill_at is not None:
            kill_itself_at(kill_at)
        status = 1
        try:
            result = work()
            if told is not None:
                told.write_text(str(result))
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        if os.WTERMSIG(status) != signal.SIGKILL or kill_at is None:
            sys.exit(f"killed by signal {os.WTERMSIG(status)}")
    elif os.WEXITSTATUS(status):
        sys.exit("a run failed")
    return int(told.read_text()) if told is not None else None


def counted(work: Callable[[], object]) -> int:
    """Return how many file operations a piece of work has."""
    done = [0]
    watch(lambda: done.__setitem__(0, done[0] + 1))
    work()
    return done[0]


def kill_itself_at(moment: int) -> None:
    """Arrange for SIGKILL right before file operation number `moment`."""
    left = [moment]

    def count_down() -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(count_down)


def watch(before: Callable[[], None]) -> None:
    """Have something done before each operation on files."""

    def watched(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            before()
            return operation(*given, **named)

        return call

    for name in OPERATIONS:
        setattr(os, name, watched(getattr(os, name)))


def denoise(task: dict[str, Any], folder: Path, earlier: Earlier) -> None:
    run_denoise(task["source"], folder, DenoiseOptions(**task["options"]), earlier=earlier)


def extract_noise(task: dict[str, Any], folder: Path, earlier: Earlier) -> None:
    run_extract_noise(task["source"], folder, ExtractNoiseOptions(**task["options"]), earlier=earlier)


def simulate_particles(task: dict[str, Any], folder: Path, earlier: Earlier) -> None:
    SimulateJob(ParticlesConfig(**task["options"]), "cpu").run(folder, earlier=earlier)


def simulate_micrographs(task: dict[str, Any], folder: Path, earlier: Earlier) -> None:
    SimulateJob(MicrographsConfig(**task["options"])).run(folder, earlier=earlier)


def train_network(task: dict[str, Any], folder: Path, earlier: Earlier) -> None:
    train(TrainingConfig(**task["options"]), folder, earlier=earlier)


JOBS: dict[str, Callable[[dict[str, Any], Path, Earlier], None]] = {
    "denoise": denoise,
    "extract-noise": extract_noise,
    "simulate particles": simulate_particles,
    "simulate micrographs": simulate_micrographs,
    "train": train_network,
}

if __name__ == "__main__":
    main()
