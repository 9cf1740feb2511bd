"""What the child process does; see `worker`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import CryohushError, is_out_of_memory, missing_package
from ..core.job_context import JobContext, import_torch
from .worker import SMALLER

if TYPE_CHECKING:
    from ..core.inference.summary import Summary
    from ..core.noise.summary import NoiseSummary

PROGRESS_SECONDS = 2.0
# Every how many-th pixel, in x and y, decides what is black and white.
GREY_STEP = 4
# Micrographs that an extraction of noise shows, and images that something is said of, one by one.
OVERLAYS, WARNINGS = 6, 8
MONTAGE = "Raw, denoised and removed images."

Say = Callable[[dict[str, Any]], None]
ShouldStop = Callable[[], bool]


def denoise(task: dict[str, Any], say: Say, should_stop: ShouldStop) -> dict[str, Any]:
    """Denoise the images of a table and draw what the job shows."""
    from ..core.config.denoise import DenoiseOptions
    from ..core.jobs.denoise import run_denoise

    summary = run_denoise(
        task["source"],
        task["output"],
        DenoiseOptions(**task["options"]),
        _context(task, say, should_stop),
        root=Path(task["root"]),
        earlier=_earlier(task),
    )
    return describe_run(summary, task["command"], task["way_back"])


def describe_run(summary: Summary, command: str, way_back: str) -> dict[str, Any]:
    """Report on a run and draw what its job shows; the result for `Work.finish`."""
    from ..core.report.pdf import report_run
    from .plots import draw_plots

    _, montage, _ = report_run(summary, command, way_back=way_back)
    # the table is a copy for the run: the job's input says where it is from
    facts = {name: text for name, text in summary.facts().items() if name != "input"}
    unchanged = [f"unchanged: {image.image}@{image.stack}: {image.problem}" for image in summary.skipped]
    if unchanged:
        unchanged = [*unchanged[:WARNINGS], f"{len(unchanged)} images were passed through unchanged"]
    return {
        "plots": {MONTAGE: str(montage), **{text: str(path) for text, path in draw_plots(summary).items()}},
        "warnings": unchanged,
        "lines": [*(f"{name}: {text}" for name, text in facts.items()), way_back],
        "grey_ranges": [_grey_range(path) for path in summary.stacks]
        if summary.kind == "micrographs"
        else [],
    }


def _grey_range(path: Path) -> tuple[float, float]:
    """Return what cryoSPARC shows as black and white in a micrograph."""
    from ..core.io.mrc import StackReader
    from ..core.report.figures import grey_range

    with StackReader(path) as reader:
        return grey_range(reader.read([0])[:, ::GREY_STEP, ::GREY_STEP])


def extract_noise(task: dict[str, Any], say: Say, should_stop: ShouldStop) -> dict[str, Any]:
    """Cut blocks of noise out of the micrographs of a table; overlays are what the job shows."""
    from ..core.config.extract_noise import ExtractNoiseOptions
    from ..core.jobs.extract_noise import run_extract_noise
    from ..core.report.overlays import write_overlay

    summary = run_extract_noise(
        task["source"],
        task["output"],
        ExtractNoiseOptions(**task["options"]),
        _context(task, say, should_stop),
        root=Path(task["root"]),
        earlier=_earlier(task),
        draw=write_overlay,
    )
    return describe_noise(summary, task["command"])


def describe_noise(summary: NoiseSummary, command: str) -> dict[str, Any]:
    """Report on an extraction; the result for `Work.finish`."""
    from ..core.report.noise import LOOK, report_noise

    report_noise(summary, command)
    step = max(1, -(-len(summary.overlays) // OVERLAYS))
    remarks = [f"{count.micrograph}: {count.remark}" for count in summary.counts if count.remark]
    return {
        "plots": {f"{path.stem}. {LOOK}": str(path) for path in summary.overlays[::step]},
        "lines": [
            *remarks[:WARNINGS],
            f"{summary.n_blocks} blocks of {summary.window_px} px: {summary.stack}, {summary.table.name}",
            summary.explanation,
        ],
    }


def evaluate(task: dict[str, Any], say: Say, should_stop: ShouldStop) -> dict[str, Any]:
    """Evaluate particles; the job shows the report's tables and figures."""
    from ..core.config.evaluate import EvaluateConfig
    from ..core.jobs.evaluate import run_evaluate

    output = Path(task["output"])
    found = run_evaluate(
        EvaluateConfig(**task["options"]),
        output,
        _context(task, say, should_stop),
        earlier="replace",
    )
    return describe_evaluation(found.tables, found.pictures, output)


def describe_evaluation(tables: Sequence[str], pictures: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return the result for `Work.finish`: tables and pictures as of `Evaluation`, in `folder`."""
    from ..core.jobs.evaluation_files import HTML_NAME

    return {
        "plots": {text: str(folder / name) for text, name in pictures.items()},
        "lines": [*tables, f"All of it: {folder / HTML_NAME}"],
    }


def train(task: dict[str, Any], say: Say, should_stop: ShouldStop) -> dict[str, Any]:
    """Train a network; the job shows the curves and held-out images."""
    from ..core.config.training import TrainingConfig
    from ..core.models.weights import load_model
    from ..core.report.training import CAPTIONS, write_training_report

    try:
        from ..core.jobs.train import train as run_training
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    output, config = Path(task["output"]), TrainingConfig(**task["options"])
    weights = run_training(config, output, _context(task, say, should_stop), earlier=_earlier(task))
    facts = {"weights": f"{weights}, SHA-256 {load_model(weights).sha256}", "command": task["command"]}
    write_training_report(output, [output], headline="A model trained on your particles", facts=facts)
    return {
        "plots": {text: str(output / name) for name, text in CAPTIONS.items()},
        "lines": [
            f"weights: {facts['weights']}",
            f"Denoise with them: cryosparc_cryohush denoise --model {task['job']}",
        ],
    }


def _context(task: dict[str, Any], say: Say, should_stop: ShouldStop) -> JobContext:
    """Return whom the work asks and tells: the parent."""
    return JobContext(_progress(say), should_stop, lambda line: say({"log": line}), task["command"])


def _earlier(task: dict[str, Any]) -> Literal["resume", "anew"]:
    """Return what to do with an earlier run in the job's folder."""
    return "anew" if task["anew"] else "resume"


def _progress(say: Say) -> Callable[[int, int], None]:
    """Return what tells the parent now and then how far the work is."""
    last = [0.0]

    def progress(done: int, total: int) -> None:
        now = time.monotonic()
        if done >= total or now - last[0] >= PROGRESS_SECONDS:
            last[0] = now
            say({"done": done, "total": total})

    return progress


def check(task: dict[str, Any], say: Say, should_stop: ShouldStop) -> dict[str, Any]:
    """Look whether the model and the device of a task are there, and its training could begin."""
    from ..core.inference.devices import resolve_devices
    from ..core.models.weights import load_model

    if task.get("model") is not None:
        load_model(task["model"])
    if task.get("noise") is not None:
        from ..core.config.extract_noise import ExtractNoiseOptions
        from ..core.noise.finders import load_noise_network

        load_noise_network(ExtractNoiseOptions(**task["noise"]))
    if task.get("device") is not None:
        resolve_devices(task["device"])
    if task.get("training") is not None:
        from ..core.config.training import TrainingConfig

        try:
            from ..core.training.run import with_network
        except ModuleNotFoundError as error:
            raise missing_package(error) from error

        with_network(TrainingConfig(**task["training"]))
    return {}


TASKS: dict[str, Callable[[dict[str, Any], Say, ShouldStop], dict[str, Any]]] = {
    "denoise": denoise,
    "extract-noise": extract_noise,
    "evaluate": evaluate,
    "train": train,
    "check": check,
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
        import_torch()
        say({"result": TASKS[task["task"]](task, say, lambda: bool(stopped) or os.getppid() != parent)})
    except CryohushError as error:
        say({"error": str(error), "details": ""})
        return 1
    except BaseException as error:
        text = f"unexpected {type(error).__name__}: {error}"
        if is_out_of_memory(error):
            text = f"out of memory. {SMALLER}"
        say({"error": text, "details": traceback.format_exc()})
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
