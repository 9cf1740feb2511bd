"""`cryosparc_cryohush` as a program of its own, with batches in its own process and without drawing."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from cryohush.core.batch import driver as batch
from cryohush.core.batch.workers import Pool
from cryohush.core.config.batch import EngineConfig
from cryohush.core.inference.devices import LocalDevices
from cryohush.core.inference.summary import Summary
from cryohush.core.jobs import evaluation_files
from cryohush.core.report import PDF_NAME, PNG_NAME, VIEWER_NAME, noise, pdf
from cryohush.cryosparc_job import cli, guard, instance, job, plots


class Done(Future[Any]):
    """A future as dask has them."""

    status = "finished"


class OwnProcess(LocalDevices):
    """In place of a pool of workers, of which one is free at any moment."""

    dashboard = ""
    config = EngineConfig()
    do = Pool.do  # type: ignore[assignment]  # part by part, as the workers

    def replace_lost(self) -> None:
        pass

    def acquire(self, timeout: float) -> bool:
        return True

    def release(self) -> None:
        pass

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any) -> Done:
        future = Done()
        try:
            future.set_result(function(*arguments, LocalDevices(self.devices, 1)))
        except Exception as error:
            future.set_exception(error)
        return future


@contextlib.contextmanager
def open_own_process(
    config: EngineConfig, log_folder: Path, log: Callable[[str], None]
) -> Iterator[OwnProcess]:
    yield OwnProcess([torch.device("cpu")], 1)


def report_run(summary: Summary, command: str, **more: str) -> tuple[Path, Path, Path]:
    """Write what the report's files are, but for what they show."""
    names = PDF_NAME, PNG_NAME, VIEWER_NAME
    for name in names:
        (summary.output_dir / name).write_bytes(b"picture")
    return tuple(summary.output_dir / name for name in names)


def write_pages(path: Path, *shown: Any) -> Path:
    """Write a file in place of an evaluation's pages."""
    path.write_bytes(b"pages")
    return path


def shorten(change: Callable[[Any, str, Any], None]) -> None:
    """Take out what costs time: dask, drawing, waiting."""
    changes: Mapping[tuple[Any, str], Any] = {
        (batch, "open_pool"): open_own_process,
        (pdf, "report_run"): report_run,
        (plots, "draw_plots"): lambda summary: {},
        (evaluation_files, "write_pages"): write_pages,
        (noise, "report_noise"): lambda summary, command: write_pages(summary.record.parent / PDF_NAME),
        (instance, "FIRST_PAUSE_SECONDS"): 0.01,
        (instance, "PATIENCE_SECONDS"): 120.0,
        (instance, "ERROR_PATIENCE_SECONDS"): 10.0,
        (job, "CONFIRM_SECONDS"): 0.01,
        (guard, "LAST_WORD_SECONDS"): 2.0,
        (guard, "WATCH_SECONDS"): 0.0,
    }
    for (module, name), value in changes.items():
        change(module, name, value)


if __name__ == "__main__":
    gc.freeze()
    shorten(setattr)
    sys.exit(cli.main())
