"""What a run did: counts, times, a few images, and the record that stays with its output."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ... import __version__
from ..config.denoise import DenoiseOptions
from ..io.files import write_json
from ..io.journal import RECORD_NAME
from ..io.mrc import StackReader
from ..models.weights import LoadedModel
from ..progress import counted
from .devices import Precision
from .plan import StackPlan, spread_over
from .stream import ImageNote

# Of images that are conspicuous in the same way the record names so many.
RECORDED_IMAGES = 100
# Enough for a smooth mean power spectrum, few enough to read back in no time.
SAMPLED_IMAGES, SAMPLED_MICROGRAPHS = 48, 8
# Of a micrograph so much of its middle is shown: about ten particles across.
CROP_ANGSTROM, CROP_PX = 1500.0, (256, 1024)


ErrorOf = Callable[[NDArray[np.float32], StackPlan, NDArray[np.int64]], NDArray[np.float32]]
"""Of raw images `(n, y, x)`, their stack and positions in it: standard errors of the denoised pixels."""


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
    error
        `(n, y, x)` expected standard error of each denoised pixel; None where nobody knows it.
    """

    raw: NDArray[np.float32]
    denoised: NDArray[np.float32]
    titles: list[str]
    pixel_size_angstrom: float | None
    error: NDArray[np.float32] | None = None


@dataclass(frozen=True, eq=False)
class Summary:
    """What a run did.

    Attributes
    ----------
    kind
        What was denoised.
    source
        The input.
    options
        The options.
    output_dir
        Where everything is.
    table
        The output table; None when the input was a bare stack or micrograph.
    stacks
        The denoised stacks or micrographs, in the input's order.
    record
        `cryohush.json`.
    model
        The model with its card.
    devices, precision, batch_sizes, threads
        What was used; batch sizes by box, `"128x128"`, or of tiles by micrograph.
    n_rows
        Rows of the table.
    n_images
        Images written, each once however often the table names it.
    n_resumed
        Of these, how many an earlier process had finished.
    skipped
        Images that went through unchanged.
    remarks
        Images that were denoised though something is conspicuous about them.
    damaged
        Files that could not be read, and whose rows were left out.
    warnings
        What may be wrong with the input as a whole.
    pixel_sizes
        Each different pixel size in Å, None if unknown, and what says so.
    seconds
        `total`, and of it `reading`, `denoising` (summed over the workers) and `writing`, which overlap.
    context
        What the stacks knew of their particles, as it stands in the record.
    gain
        What denoising adds, measured on the particles themselves: `verdict` and numbers.
    suspicious
        How many particles look suspicious (`metrics.ordinary`); None if they were not scored.
    parts
        The tables of trusted and suspicious particles, if they were scored.
    samples
        Pairs for the report; empty when every image was skipped.
    was_complete
        Whether nothing was left to do, and nothing was written.
    """

    kind: Literal["particles", "micrographs"]
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
    n_rows: int
    n_images: int
    n_resumed: int
    skipped: list[ImageNote]
    remarks: list[ImageNote]
    damaged: list[str]
    warnings: list[str]
    pixel_sizes: list[tuple[float | None, str]]
    seconds: dict[str, float]
    samples: Samples
    was_complete: bool = False
    suspicious: int | None = None
    parts: list[Path] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)
    gain: dict[str, Any] = field(default_factory=dict)

    @property
    def noun(self) -> str:
        """What `n_images` counts."""
        return "micrographs" if self.kind == "micrographs" else "images"

    def remarks_by_kind(self) -> list[tuple[str, list[ImageNote]]]:
        """What is conspicuous, each once, and the images; a mask may be on all of a million."""
        kinds: dict[str, list[ImageNote]] = {}
        for note in self.remarks:
            kinds.setdefault(note.problem, []).append(note)
        return list(kinds.items())

    def facts(self) -> dict[str, str]:
        """What a report says of the run, as name and value."""
        output = ["denoised"]
        if self.options.blend:
            output.append(f"with {self.options.blend:g} of the raw image blended in")
        if self.options.keep_above_angstrom is not None:
            output.append(f"raw beyond {self.options.keep_above_angstrom:g} Å")
        facts = {
            "verdict": str(self.gain.get("verdict", "")),
            "input": str(self.source),
            self.kind: f"{self.n_rows} ({counted(self.n_images, 'image')} in "
            f"{counted(len(self.stacks), 'file')})",
            "trial": f"the first {self.options.limit} only (option limit)" if self.options.limit else "",
            "unchanged": f"{len(self.skipped)} images that could not be denoised" if self.skipped else "",
            "left out": f"the rows of {counted(len(self.damaged), 'damaged file')}" if self.damaged else "",
            "warning": " ".join(self.warnings),
            "pixel size": "; ".join(
                f"{size:g} Å, by {source}" for size, source in self.pixel_sizes[:5] if size is not None
            ),
            "conspicuous": f"{len(self.remarks)} images, see {RECORD_NAME}" if self.remarks else "",
            "model": f"{self.model.name}, SHA-256 {self.model.sha256}",
            "scores": ""
            if self.suspicious is None
            else f"{self.suspicious} of {self.n_rows} particles look suspicious",
            "context": self._context(),
            "output": f"{', '.join(output)}; {self.options.output_dtype}",
            "device": f"{', '.join(self.devices)}, {self.precision}, {counted(self.threads, 'worker')}",
            "time": f"{self.seconds['total']:.1f} s, {self.speed}",
            "version": f"cryohush {__version__}",
        }
        return {name: value for name, value in facts.items() if value}

    def _context(self) -> str:
        if not self.context.get("used"):
            return f"none: {self.context['why']}" if self.context.get("why") else ""
        return "; ".join(self.context["groups"])

    @property
    def images_per_second(self) -> float:
        """Images that this process denoised per second of its whole time."""
        return (self.n_images - self.n_resumed) / max(self.seconds["total"], 1e-9)

    @property
    def speed(self) -> str:
        """The same in words, per minute where images are large."""
        if self.n_resumed == self.n_images:
            return "all of them by an earlier run"
        if self.kind == "micrographs":
            return f"{60 * self.images_per_second:.1f} micrographs per minute"
        rate = self.images_per_second
        return f"{rate:.0f} images per second" if rate >= 1.5 else f"{1 / rate:.1f} s per image"


def read_samples(
    stacks: Sequence[StackPlan],
    output_dir: Path,
    skipped: Sequence[ImageNote],
    *,
    are_micrographs: bool = False,
    error_of: ErrorOf | None = None,
) -> Samples:
    """Read back pairs of images, evenly spread over the files that are like the first one.

    `error_of` tells the expected errors of raw images, by their stack and positions in it.
    """
    first = stacks[0]
    rows, columns = _middle(first) if are_micrographs else (slice(None), slice(None))
    unchanged = {(note.stack, note.image) for note in skipped}
    raw, denoised, errors = [], [], []
    titles: list[str] = []
    for stack, some in spread_over(stacks, SAMPLED_MICROGRAPHS if are_micrographs else SAMPLED_IMAGES):
        positions = np.array(
            [
                position
                for position in some.tolist()
                if (str(stack.source), int(stack.indices[position]) + 1) not in unchanged
            ],
            dtype=np.int64,
        )
        with StackReader(stack.source) as source, StackReader(output_dir / stack.name) as output:
            raw.append(source.read(stack.indices[positions])[:, rows, columns].copy())
            denoised.append(output.read(positions)[:, rows, columns].copy())
        if error_of is not None and len(positions):
            errors.append(error_of(raw[-1], stack, positions))
        # bytes of a name that are no text cannot be set in a figure
        name = os.fsencode(stack.source.name).decode("utf-8", "replace")
        names = [f"{index + 1}@{name}" for index in stack.indices[positions].tolist()]
        titles += [name] * len(positions) if are_micrographs else names
    error = np.concatenate(errors) if errors else None
    return Samples(np.concatenate(raw), np.concatenate(denoised), titles, first.pixel_size_angstrom, error)


def _middle(micrograph: StackPlan) -> tuple[slice, slice]:
    """Return rows and columns of the part of a micrograph that is shown."""
    smallest, largest = CROP_PX
    pixel_size = micrograph.pixel_size_angstrom
    wanted = largest // 2 if pixel_size is None else int(CROP_ANGSTROM / pixel_size)
    y, x = micrograph.shape
    side = min(y, x, max(smallest, min(wanted, largest)))
    return slice((y - side) // 2, (y + side) // 2), slice((x - side) // 2, (x + side) // 2)


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
        "context": summary.context,
        "gain": summary.gain,
        "suspicious_particles": summary.suspicious,
        "batch_size": summary.batch_sizes,
        "threads": summary.threads,
        "torch": torch.__version__,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": {name: round(value, 3) for name, value in summary.seconds.items()},
        "images_per_second": round(summary.images_per_second, 3),
        summary.kind: summary.n_rows,
        "images": summary.n_images,
        "resumed_images": summary.n_resumed,
        "pixel_sizes": [{"angstrom": size, "source": source or None} for size, source in summary.pixel_sizes],
        "warnings": summary.warnings,
        "damaged_files": summary.damaged,
        "skipped_images": [dataclasses.asdict(note) for note in summary.skipped],
        "conspicuous_images": [
            {
                "problem": problem,
                "count": len(notes),
                "first": [{"stack": note.stack, "image": note.image} for note in notes[:RECORDED_IMAGES]],
            }
            for problem, notes in summary.remarks_by_kind()
        ],
    }
    write_json(summary.record, record)
