"""What a run did: counts, times, a few images, and the record that stays with its output."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ... import __version__
from ..config.denoise import DenoiseOptions
from ..io.files import part_path, rename_complete, writing_failed
from ..io.mrc import StackReader
from ..models.weights import LoadedModel
from .devices import Precision
from .plan import StackPlan
from .stream import SkippedImage

RECORD_NAME = "cryohush.json"
# Enough for a smooth mean power spectrum, few enough to read back in no time.
SAMPLED_IMAGES = 48


@dataclass(frozen=True, eq=False)
class Samples:
    """A few images, evenly spread over the run, for the report.

    Attributes
    ----------
    raw, denoised
        `(n, y, x)`.
    titles
        Stack and number of each.
    pixel_size_angstrom
        None if unknown.
    """

    raw: NDArray[np.float32]
    denoised: NDArray[np.float32]
    titles: list[str]
    pixel_size_angstrom: float | None


@dataclass(frozen=True, eq=False)
class Summary:
    """What a run did.

    Attributes
    ----------
    source
        The input.
    options
        The options.
    output_dir
        Where everything is.
    table
        The output table; None when the input was a bare stack.
    stacks
        The denoised stacks, in the input's order.
    record
        `cryohush.json`.
    model
        The model with its card.
    devices, precision, batch_sizes, threads
        What was used; batch sizes by box, `"128x128"`.
    n_particles
        Rows of the table.
    n_images
        Images written, each once however often the table names it.
    n_resumed
        Of these, how many an earlier process had finished.
    skipped
        Images that went through unchanged.
    seconds
        `total`, and of it `reading`, `denoising` (summed over the workers) and `writing`, which overlap.
    samples
        Pairs for the report; empty when every image was skipped.
    """

    source: Path
    options: DenoiseOptions
    output_dir: Path
    table: Path | None
    stacks: list[Path]
    record: Path
    model: LoadedModel
    devices: list[str]
    precision: Precision
    batch_sizes: dict[str, int]
    threads: int
    n_particles: int
    n_images: int
    n_resumed: int
    skipped: list[SkippedImage]
    seconds: dict[str, float]
    samples: Samples

    def facts(self) -> dict[str, str]:
        """What a report says of the run, as name and value."""
        output = ["denoised"]
        if self.options.blend:
            output.append(f"with {self.options.blend:g} of the raw image blended in")
        if self.options.keep_above_angstrom is not None:
            output.append(f"raw beyond {self.options.keep_above_angstrom:g} Å")
        facts = {
            "input": str(self.source),
            "particles": f"{self.n_particles} ({self.n_images} images in {len(self.stacks)} stacks)",
            "unchanged": f"{len(self.skipped)} images that could not be denoised" if self.skipped else "",
            "model": f"{self.model.name}, SHA-256 {self.model.sha256}",
            "output": f"{', '.join(output)}; {self.options.output_dtype}",
            "device": f"{', '.join(self.devices)}, {self.precision}, {self.threads} workers",
            "time": f"{self.seconds['total']:.1f} s, {self.images_per_second:.0f} images per second",
            "version": f"cryohush {__version__}",
        }
        return {name: value for name, value in facts.items() if value}

    @property
    def images_per_second(self) -> float:
        """Images that this process denoised per second of its whole time."""
        return (self.n_images - self.n_resumed) / max(self.seconds["total"], 1e-9)


def read_samples(stacks: Sequence[StackPlan], output_dir: Path, skipped: Sequence[SkippedImage]) -> Samples:
    """Read back pairs of images, evenly spread over the stacks that are like the first one."""
    first = stacks[0]
    alike = [
        stack
        for stack in stacks
        if (stack.shape, stack.pixel_size_angstrom) == (first.shape, first.pixel_size_angstrom)
    ]
    ends = np.cumsum([len(stack.indices) for stack in alike])
    picks = np.unique(np.linspace(0, ends[-1] - 1, SAMPLED_IMAGES).astype(np.int64))
    unchanged = {(image.stack, image.image) for image in skipped}
    raw, denoised, titles = [], [], []
    for number in np.unique(np.searchsorted(ends, picks, side="right")).tolist():
        stack = alike[number]
        begin = int(ends[number]) - len(stack.indices)
        positions = np.array(
            [
                position
                for position in (picks[(picks >= begin) & (picks < ends[number])] - begin).tolist()
                if (str(stack.source), int(stack.indices[position]) + 1) not in unchanged
            ],
            dtype=np.int64,
        )
        with StackReader(stack.source) as source, StackReader(output_dir / stack.name) as output:
            raw.append(source.read(stack.indices[positions]))
            denoised.append(output.read(positions))
        titles += [f"{index + 1}@{stack.source.name}" for index in stack.indices[positions].tolist()]
    return Samples(np.concatenate(raw), np.concatenate(denoised), titles, first.pixel_size_angstrom)


def write_record(summary: Summary, command: str | None, started: float) -> None:
    """Write `cryohush.json`: what made these stacks, and how it went."""
    record = {
        "version": __version__,
        "command": command,
        "input": str(summary.source.absolute()),
        "table": None if summary.table is None else summary.table.name,
        "stacks": [path.relative_to(summary.output_dir).as_posix() for path in summary.stacks],
        "model": {"name": summary.model.name, "sha256": summary.model.sha256, **summary.model.card},
        "options": summary.options.model_dump(mode="json"),
        "device": summary.devices,
        "precision": summary.precision,
        "batch_size": summary.batch_sizes,
        "threads": summary.threads,
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": {name: round(value, 3) for name, value in summary.seconds.items()},
        "images_per_second": round(summary.images_per_second, 1),
        "particles": summary.n_particles,
        "images": summary.n_images,
        "resumed_images": summary.n_resumed,
        "skipped_images": [dataclasses.asdict(image) for image in summary.skipped],
    }
    part = part_path(summary.record)
    try:
        with part.open("w", encoding="utf-8") as file:
            json.dump(record, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        rename_complete(part, summary.record)
    except OSError as error:
        raise writing_failed(summary.record, error) from error
