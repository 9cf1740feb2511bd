"""What a run leaves for people: a line for each validation, curves, a picture, TensorBoard's events."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from torch import Tensor

from ..io.files import write_text, writing, writing_failed
from ..report.figures import Row, draw_rows

LOG_NAME, CURVES_NAME, PICTURE_NAME = "log.jsonl", "curves.png", "validation.png"
# Drawing takes about half a second: most of a short training, if it were done at each validation.
PICTURE_SECONDS = 10.0
Line = dict[str, float]

# What the figures of a line mean, by how their names begin; told once in each run.
MEANINGS = {
    "loss": "what the network minimises, mean over the steps since the line before",
    "adversarial": "how well the critic tells the network's images from clean ones, mean likewise",
    "critic": "loss of the critic, mean likewise",
    "nmse_snr": "mean squared error over the variance of the clean image, of held-out images with an SNR "
    "between the two figures",
    "score": "error on held-out images, the lower the better: mean squared error over the variance of the "
    "clean image (a flat image has 1), geometric mean over the ranges of SNR; without clean images, mean "
    "squared error to the target, whose own noise is in it",
    "iou": "area that found and true pixels of a class share over the area of both, in held-out "
    "micrographs; 1 is perfect",
    "wasserstein": "distance between drawn and real noise as the critic sees it, mean over the steps since "
    "the line before",
    "penalty": "how far the critic's gradient is from 1, mean likewise",
    "spectrum_error_db": "difference between the power spectra of drawn noise and of held-back blocks, dB",
    "histogram_distance": "distance between the grey values of drawn noise and of held-back blocks, standard "
    "deviations",
}


# How the names of those begin that are measured on held-out images or micrographs.
HELD_OUT = ("score", "nmse", "iou", "spectrum_error", "histogram_distance")


class PreviewRow(NamedTuple):
    """Images `(n, y, x)` side by side in a picture.

    Rows of one `scale` share the greys of each column, unless `limits` say what is black and what is white.
    """

    label: str
    images: Tensor
    scale: int
    limits: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Preview:
    """A picture of what a network makes of held-out images: a column each.

    Attributes
    ----------
    rows
        From top to bottom.
    titles
        One for each column.
    pixel_size_angstrom
        For the scale bar, which is in pixels where this is None.
    """

    rows: Sequence[PreviewRow]
    titles: Sequence[str]
    pixel_size_angstrom: float | None = None


class Record:
    """The files of a run in `output_dir`: `log.jsonl`, `curves.png`, `validation.png`, TensorBoard's events.

    Parameters
    ----------
    output_dir
        Where they go.
    first_step
        TensorBoard hides what an interrupted run has told of this step and later ones.

    Raises
    ------
    OutputError
        A file cannot be written.
    """

    def __init__(self, output_dir: Path, first_step: int) -> None:
        self._folder, self._events_folder = output_dir, output_dir / "tensorboard"
        self._draw_at = -math.inf
        try:
            self._events_folder.mkdir(exist_ok=True)
            self._events = EventsWriter(str(self._events_folder / "events"))
            start = SessionLog(status=SessionLog.START)
            self._events.write_event(Event(step=first_step, wall_time=time.time(), session_log=start))
        except OSError as error:
            raise writing_failed(self._events_folder, error) from error

    def write(self, lines: Sequence[Line], preview: Preview, *, last: bool = False) -> None:
        """Write all lines so far, of which the last one is new, and the pictures that belong to it.

        The pictures are left out if the latest ones are younger than `PICTURE_SECONDS`, but never at the
        `last` line of a run.

        Raises
        ------
        OutputError
            A file cannot be written.
        """
        write_text(self._folder / LOG_NAME, "".join(json.dumps(line) + "\n" for line in lines))
        if last or time.monotonic() > self._draw_at:
            _save(_curves(lines), self._folder / CURVES_NAME)
            _save(_picture(preview, int(lines[-1]["step"])), self._folder / PICTURE_NAME)
            self._draw_at = time.monotonic() + PICTURE_SECONDS
        try:
            for name, value in values_of(lines[-1]).items():
                event = Event(step=int(lines[-1]["step"]), wall_time=time.time(), summary=scalar(name, value))
                self._events.write_event(event)
            self._events.flush()
        except OSError as error:
            raise writing_failed(self._events_folder, error) from error

    def close(self) -> None:
        """Close TensorBoard's events."""
        self._events.close()


def values_of(line: Mapping[str, float]) -> dict[str, float]:
    """Losses and scores of a line."""
    return {name: value for name, value in line.items() if name not in ("step", "seconds")}


def meanings_of(line: Mapping[str, float]) -> list[str]:
    """What its figures mean, a sentence each."""
    return [
        f"{name}{'_…' if any(given.startswith(f'{name}_') for given in line) else ''}: {meaning}"
        for name, meaning in MEANINGS.items()
        if any(given == name or given.startswith(f"{name}_") for given in line)
    ]


def _save(figure: Figure, path: Path) -> None:
    with writing(path) as part, part.open("wb") as file:
        figure.savefig(file, format="png", dpi=100)


def _curves(lines: Sequence[Line]) -> Figure:
    """Losses above, scores of held-out images below, over the steps.

    An axis is logarithmic where its values span more than a decade; what falls below 0 is left out there.
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    names = list(dict.fromkeys(name for line in lines for name in values_of(line)))
    scores = [name for name in names if name.startswith(HELD_OUT)]
    groups = {"loss, mean since the last": [name for name in names if name not in scores]}
    groups["held-out images"] = scores
    shown = {label: members for label, members in groups.items() if members}
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, members) in zip(panels, shown.items(), strict=True):
        found = {name: np.array([line.get(name, math.nan) for line in lines]) for name in members}
        finite = np.concatenate(list(found.values()))
        finite = finite[np.isfinite(finite)]
        is_wide = bool(len(finite)) and finite.max() > 10 * max(finite.min(), 0.0) and finite.max() > 0
        for name, values in found.items():
            positive = np.where(values > 0, values, math.nan) if is_wide else values
            axes.plot([line["step"] for line in lines], positive, marker=".", label=name)
        axes.set(ylabel=label, yscale="log" if is_wide else "linear")
        axes.ticklabel_format(axis="x", style="plain")
        if not is_wide:
            axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(color="0.9", linewidth=0.6)
        axes.legend(fontsize=8)
    panels[-1].set_xlabel("step")
    return figure


def _picture(preview: Preview, step: int) -> Figure:
    """The rows of a preview with their names, and a scale bar."""
    n_columns = len(preview.titles)
    height, width = preview.rows[0].images.shape[-2:]
    panel = 1.3 * height / width
    wide, tall = 1.3 * n_columns + 0.6, panel * len(preview.rows) + 0.8
    figure = Figure(figsize=(wide, tall))
    figure.subplots_adjust(0.45 / wide, 0.3 / tall, 1 - 0.1 / wide, 1 - 0.45 / tall)
    rows = [Row(row.label, _scaled(row, preview.rows), row.limits or (0.0, 1.0)) for row in preview.rows]
    draw_rows(figure, rows, titles=preview.titles, pixel_size_angstrom=preview.pixel_size_angstrom)
    figure.suptitle(f"held-out images, step {step}", fontsize=8, y=0.995)
    return figure


def _scaled(row: PreviewRow, rows: Sequence[PreviewRow]) -> NDArray[np.float32]:
    """Greys of 0 to 1: from the darkest to the brightest half per cent of a column in all rows of a scale."""
    images = row.images.float().numpy()
    if row.limits is not None:
        return images
    alike = np.stack([other.images.float().numpy() for other in rows if other.scale == row.scale])
    low, high = np.quantile(alike, [0.005, 0.995], axis=(0, 2, 3))[..., None, None]
    scaled: NDArray[np.float32] = ((images - low) / np.maximum(high - low, 1e-6)).astype(np.float32)
    return scaled
