"""What simulations of particles and of micrographs share: what they undertake, their record and summary."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from pydantic import BaseModel

from ... import __version__
from ..config.base import files_in
from ..inference.devices import DoneHere
from ..io.files import sha256_of, write_json
from ..io.journal import RECORD_NAME, Undertaking
from ..job_context import JobContext
from ..report import PNG_NAME
from .folder import JobFolder
from .job import Plan


@dataclass(frozen=True)
class SimulationSummary:
    """What a run wrote.

    Attributes
    ----------
    tables
        STAR files: one for each output, or that of the micrographs.
    record
        `cryohush.json`.
    n_images
        Of each stack, or of micrographs.
    seconds
        `total`, and of particles `volumes`, `forming` and `writing`.
    images_per_second
        Images that this process made, each in all outputs, per second of forming and writing.
    was_complete
        Whether nothing was left to do, and nothing was written.
    """

    tables: list[Path]
    record: Path
    n_images: int
    seconds: dict[str, float]
    images_per_second: float
    was_complete: bool = False


class SimulationWork(DoneHere, Protocol):
    """The images that are not made yet.

    Attributes
    ----------
    n_made
        How many it has made.
    seconds
        What it spent on what; `forming` and `writing` count for the speed.
    """

    n_made: int
    seconds: dict[str, float]


W = TypeVar("W", bound=SimulationWork)


class SimulationPlan(Plan[W, SimulationSummary]):
    """A simulation whose structures and tables were read and checked; see `Plan`.

    Parameters
    ----------
    config
        What is simulated.
    n_images, noun
        How much of what.
    parts, tables, files
        What it makes piece by piece, the tables, and other files.
    device
        Where.
    context
        Whom to ask and tell.
    clock
        When it began: seconds since 1970, and of the monotonic clock.
    """

    def __init__(
        self,
        config: BaseModel,
        n_images: int,
        noun: str,
        *,
        parts: Sequence[str],
        tables: Sequence[str],
        files: Sequence[str] = (),
        device: torch.device,
        context: JobContext,
        clock: tuple[float, float],
    ) -> None:
        self.inputs, self.context = files_in(config), context
        self._n_images, self._noun, self._tables, self._clock = n_images, noun, tables, clock
        self._results = [*parts, *tables, *files, RECORD_NAME]
        self._settings = config.model_dump(mode="json")
        self._digests = {str(path): sha256_of(path) for path in self.inputs}
        fingerprint = {
            "version": __version__,
            "config": self._settings,
            "inputs": self._digests,
            "device": device.type,
        }
        made = [*tables, *files, RECORD_NAME, PNG_NAME]
        self.undertaking = Undertaking("simulate", fingerprint, dict.fromkeys(parts, ""), made)

    @abstractmethod
    def write_tables(self, folder: JobFolder) -> dict[str, Any]:
        """Write the tables of all images, and return what the record says of these."""

    def finish(self, folder: JobFolder, work: W | None) -> SimulationSummary:
        """See `Plan`."""
        started, begin = self._clock
        facts = {} if work is None else self.write_tables(folder)
        seconds, rate = {"total": time.monotonic() - begin}, 0.0
        if work is not None:
            seconds |= work.seconds
            rate = work.n_made / max(seconds["forming"] + seconds["writing"], 1e-9)
            record = {
                "version": __version__,
                "command": self.context.command,
                "configuration": self._settings,
                "inputs": {path: {"sha256": digest} for path, digest in self._digests.items()},
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
                "seconds": {name: round(value, 3) for name, value in seconds.items()},
                "images_per_second": round(rate, 1),
                self._noun: self._n_images,
                f"resumed_{self._noun}": self._n_images - work.n_made,
                **facts,
            }
            write_json(folder.path / RECORD_NAME, record)
            folder.journal.complete(self._results)
        tables = [folder.path / name for name in self._tables]
        return SimulationSummary(
            tables, folder.path / RECORD_NAME, self._n_images, seconds, rate, was_complete=work is None
        )
