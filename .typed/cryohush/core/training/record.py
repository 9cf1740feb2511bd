"""What a run leaves for people: a line for each validation, curves, pictures, TensorBoard events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imsave
from tensorboardX import SummaryWriter
from torch import Tensor


class Record:
    """Log of a run in `output_dir`: `log.jsonl`, `curves.png`, `validation.png` and TensorBoard's events.

    A resumed run goes on with the lines of the interrupted one, less those after the checkpoint.
    """

    def __init__(self, output_dir: Path, first_step: int) -> None:
        self._folder = output_dir
        self._lines: list[dict[str, float]] = []
        path = output_dir / "log.jsonl"
        if first_step and path.exists():
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            self._lines = [line for line in lines if line["step"] <= first_step]
        path.write_text("".join(json.dumps(line) + "\n" for line in self._lines))
        self._events = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step)
        self._started = time.monotonic() - (self._lines[-1]["seconds"] if self._lines else 0.0)

    def add(self, step: int, values: Mapping[str, float], shown: Sequence[Tensor]) -> None:
        """One validation: losses and scores; noisy images, estimates, targets `(n, 1, y, x)` to show."""
        line = {"step": step, "seconds": time.monotonic() - self._started, **values}
        self._lines.append(line)
        with (self._folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()
        _draw_curves(self._lines, self._folder / "curves.png")
        _draw_images(shown, self._folder / "validation.png")

    def last_line(self) -> str:
        """The last values, for a log."""
        values = self._lines[-1].items()
        return " ".join(f"{name} {value:.5f}" for name, value in values if name not in ("step", "seconds"))

    def is_best(self, name: str) -> bool:
        """Whether the last line has the lowest value of `name` so far."""
        return self._lines[-1][name] <= min(line[name] for line in self._lines)

    def since_best(self, name: str) -> int:
        """Validations since the lowest value of `name`."""
        values = [line[name] for line in self._lines]
        return len(values) - 1 - min(range(len(values)), key=lambda number: values[number])

    def close(self) -> None:
        """Flush TensorBoard's events."""
        self._events.close()


def _draw_curves(lines: Sequence[Mapping[str, float]], path: Path) -> None:
    """All losses and scores over the steps, on a logarithmic axis: what falls below 0 is left out."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for name in lines[-1]:
        if name not in ("step", "seconds"):
            values = [line[name] if line[name] > 0 else math.nan for line in lines]
            axes.plot([line["step"] for line in lines], values, marker=".", label=name)
    axes.set(xlabel="step", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=100)


def _draw_images(rows: Sequence[Tensor], path: Path) -> None:
    """Noisy images, estimates and targets below each other; the latter two share their greys."""
    noisy, estimate, target = (images[:, 0].numpy() for images in rows)
    columns = []
    for x, y, z in zip(noisy, estimate, target, strict=True):
        own, shared = np.quantile(x, [0.01, 0.99]), np.quantile(np.stack([y, z]), [0.005, 0.995])
        scaled = [
            (image - low) / max(high - low, 1e-6)
            for image, (low, high) in ((x, own), (y, shared), (z, shared))
        ]
        columns.append(np.vstack([np.pad(image.clip(0, 1), 1, constant_values=1) for image in scaled]))
    imsave(path, np.hstack(columns), cmap="gray", vmin=0, vmax=1)
