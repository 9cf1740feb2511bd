"""A training from its configuration to weights: the folder around the loops of `core.training`."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from ... import __version__
from ..config.nt2c import Nt2cConfig
from ..config.segmentation import SegmentationConfig
from ..config.training import TrainingConfig
from ..inference.devices import LocalDevices
from ..io.files import digest_of, sha256_of, states_of, write_json
from ..io.journal import RECORD_NAME, Undertaking
from ..job_context import QUIET, JobContext
from ..models.weights import WEIGHTS_NAME
from ..report import PDF_NAME
from ..training.frame_halves import FOLDER as HALVES_FOLDER
from ..training.run import bytes_of, inputs_of, with_network
from ..training.run import train as run_loop
from ..training.segmentation import train_segmentation
from .folder import Earlier, JobFolder
from .job import Devices, Job, Plan
from .nt2c import Nt2cPlan

# What the loops leave besides the weights.
FILES = (
    "last.pt",
    "log.jsonl",
    "curves.png",
    "validation.png",
    "projections-train.safetensors",
    "projections-held-out.safetensors",
    "micrographs-train.safetensors",
    "micrographs-held-out.safetensors",
)
EVENTS_FOLDER = "tensorboard"
# How launchers tell the processes of one training apart.
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


class TrainJob(Job[Path]):
    """Trains a network; comes to the path of its weights.

    Parameters
    ----------
    config
        What to train, and by which loop; see `training` and `jobs.nt2c`.
    """

    def __init__(self, config: TrainingConfig | SegmentationConfig | Nt2cConfig) -> None:
        self.config = config

    def plan(self, devices: Devices, context: JobContext) -> TrainPlan | Nt2cPlan:
        """See `Job`; Fabric finds the devices by itself."""
        if isinstance(self.config, Nt2cConfig):
            return Nt2cPlan(self.config, context)
        return TrainPlan(self.config, context)


class TrainPlan(Plan["Loop", Path]):
    """A training in one loop; see `Plan`."""

    smaller = "train a smaller network, or with fewer projections"

    def __init__(self, config: TrainingConfig | SegmentationConfig, context: JobContext) -> None:
        if isinstance(config, TrainingConfig):
            config = with_network(config)
        self.config, self.context, self._clock = config, context, (time.time(), time.monotonic())
        self.inputs = inputs_of(config)
        self._states = states_of(self.inputs)
        fingerprint = {"config": config.model_dump(mode="json"), "inputs": digest_of(self._states)}
        files = (WEIGHTS_NAME, RECORD_NAME, PDF_NAME, *FILES)
        self.undertaking = Undertaking("train", fingerprint, {}, files, [EVENTS_FOLDER, HALVES_FOLDER])

    def bytes_left(self, folder: JobFolder) -> int:
        """See `Plan`; not of the micrographs of a segmentation."""
        if isinstance(self.config, SegmentationConfig):
            return 0
        made = [path for name in FILES if (path := folder.path / name).is_file()]
        return max(0, bytes_of(self.config) - sum(path.stat().st_size for path in made))

    def begin(self, folder: JobFolder) -> Loop:
        """See `Plan`."""
        return Loop(self.config, folder.path, folder.goes_on)

    def finish(self, folder: JobFolder, work: Loop | None) -> Path:
        """See `Plan`."""
        weights, (started, begin) = folder.path / WEIGHTS_NAME, self._clock
        if work is not None:
            folder.refuse_changed(self._states, WEIGHTS_NAME)
            record = {
                "version": __version__,
                "command": self.context.command,
                "configuration": self.config.model_dump(mode="json"),
                "weights": {"name": WEIGHTS_NAME, "sha256": sha256_of(weights)},
                "torch": torch.__version__,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
                "seconds": round(time.monotonic() - begin, 3),
            }
            write_json(folder.path / RECORD_NAME, record)
            folder.journal.complete([WEIGHTS_NAME, RECORD_NAME])
        self.context.log(f"wrote {weights}")
        return weights


@dataclass(frozen=True)
class Loop:
    """The steps that a training lacks: `last.pt` knows how many; see `Work`."""

    config: TrainingConfig | SegmentationConfig
    output_dir: Path
    goes_on: bool

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Train, on the devices of the configuration."""
        if isinstance(self.config, SegmentationConfig):
            train_segmentation(self.config, self.output_dir, resume=self.goes_on, context=context)
        else:
            run_loop(self.config, self.output_dir, resume=self.goes_on, context=context)


def train(
    config: TrainingConfig | SegmentationConfig | Nt2cConfig,
    output_dir: Path,
    context: JobContext = QUIET,
    *,
    earlier: Earlier = "refuse",
) -> Path:
    """Train, as `TrainJob` does it, and return the path of the weights.

    Of several processes that train together, one has the folder, and the others nothing to do with it.

    Raises
    ------
    CryohushError
        See `Job.run` and the loops.
    Aborted
        If `context.should_stop` said so; `last.pt` holds the state.
    """
    job = TrainJob(config)
    if not isinstance(config, Nt2cConfig) and any(int(os.environ.get(name) or 0) for name in _RANKS):
        Loop(config, output_dir, earlier in ("resume", "anew")).do(job.devices(), context)
        return output_dir / WEIGHTS_NAME
    return job.run(output_dir, context, earlier=earlier)
