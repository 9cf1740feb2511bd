"""What the child process does; see `worker`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ..core.errors import CryohushError
from .worker import SMALLER

PROGRESS_SECONDS = 2.0
# Every how many-th pixel, in x and y, decides what is black and white.
GREY_STEP = 4

Say = Callable[[dict[str, Any]], None]
ShouldStop = Callable[[], bool]


def denoise(task: dict[str, Any], say: Say, should_stop: ShouldStop) -> dict[str, Any]:
    """Denoise the images of a table and draw what the job shows."""
    from ..core.config.denoise import DenoiseOptions
    from ..core.inference.run import run_denoise
    from ..core.report.pdf import report_run
    from .plots import draw_plots

    last = [0.0]

    def progress(done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - last[0] >= PROGRESS_SECONDS:
            last[0] = now
            say({"done": done, "total": total})

    summary = run_denoise(
        task["source"],
        task["output"],
        DenoiseOptions(**task["options"]),
        root=Path(task["root"]),
        resume=True,
        on_mismatch="anew",
        progress=progress,
        should_stop=should_stop,
        log=lambda line: say({"log": line}),
        command=task["command"],
    )
    report, montage = report_run(summary, task["command"], way_back=task["way_back"])
    return {
        "stacks": [str(path) for path in summary.stacks],
        "record": str(summary.record),
        "report": str(report),
        "montage": str(montage),
        "plots": {text: str(path) for text, path in draw_plots(summary).items()},
        "facts": summary.facts(),
        "grey_ranges": [_grey_range(path) for path in summary.stacks]
        if summary.kind == "micrographs"
        else [],
        "resumed": summary.n_resumed,
        "skipped": [f"{image.image}@{image.stack}: {image.problem}" for image in summary.skipped],
    }


def _grey_range(path: Path) -> tuple[float, float]:
    """Return what cryoSPARC shows as black and white in a micrograph."""
    from ..core.io.mrc import StackReader
    from ..core.report.figures import grey_range

    with StackReader(path) as reader:
        return grey_range(reader.read([0])[:, ::GREY_STEP, ::GREY_STEP])


TASKS: dict[str, Callable[[dict[str, Any], Say, ShouldStop], dict[str, Any]]] = {
    "denoise": denoise,
}


def main() -> int:
    """Do the task on the standard input and answer on the standard output."""
    task = json.load(sys.stdin)
    parent, stopped = os.getppid(), []

    def note(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    signal.signal(signal.SIGTERM, note)

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), flush=True)

    try:
        say({"result": TASKS[task["task"]](task, say, lambda: bool(stopped) or os.getppid() != parent)})
    except CryohushError as error:
        say({"error": str(error), "details": ""})
        return 1
    except BaseException as error:
        text = f"unexpected {type(error).__name__}: {error}"
        if _is_out_of_memory(error):
            text = f"out of memory. {SMALLER}"
        say({"error": text, "details": traceback.format_exc()})
        return 1
    return 0


def _is_out_of_memory(error: BaseException) -> bool:
    # torch has an error of its own for GPUs and only a text for the CPU
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


if __name__ == "__main__":
    raise SystemExit(main())
