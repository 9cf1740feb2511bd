"""A training from its configuration to weights: the folder around the loops of `core.training`."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

from ... import __version__
from ..config.nt2c import Nt2cConfig
from ..config.segmentation import SegmentationConfig
from ..config.training import TrainingConfig
from ..inference.devices import keep_freed_memory
from ..io.files import sha256_of, write_json
from ..io.journal import RECORD_NAME, Undertaking
from ..job_context import QUIET, JobContext
from ..report import PDF_NAME
from ..training.frame_halves import FOLDER as HALVES_FOLDER
from ..training.run import train as run_loop
from ..training.segmentation import train_segmentation
from . import nt2c
from .folder import Earlier, JobFolder

WEIGHTS_NAME = "weights.safetensors"
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


def train(
    config: TrainingConfig | SegmentationConfig | Nt2cConfig,
    output_dir: Path,
    context: JobContext = QUIET,
    *,
    earlier: Earlier = "refuse",
) -> Path:
    """Train a network and return the path of its weights.

    Of several processes that train together, one has the folder, and the others nothing to do with it.

    Parameters
    ----------
    config
        What to train, and by which loop; see `training` and `jobs.nt2c`.
    output_dir
        Made if missing.
    context
        Whom to ask and tell.
    earlier
        What to do with an earlier training in the folder; see `jobs.folder`.

    Raises
    ------
    OutputError
        The folder is in use, holds another training or files of somebody else, or the disk is full.
    CryohushError
        See the loops.
    Aborted
        `context.should_stop` said so; `last.pt` holds the state.
    """
    keep_freed_memory()
    weights = output_dir / WEIGHTS_NAME
    if isinstance(config, Nt2cConfig):
        return nt2c.train(config, output_dir, context, earlier=earlier)
    if any(int(os.environ.get(name) or 0) for name in _RANKS):
        return _loop(config, output_dir, context, resume=earlier in ("resume", "anew"))
    started, begin = time.time(), time.monotonic()
    fingerprint = {"config": config.model_dump(mode="json")}
    files = (WEIGHTS_NAME, RECORD_NAME, PDF_NAME, *FILES)
    undertaking = Undertaking("train", fingerprint, {}, files, [EVENTS_FOLDER, HALVES_FOLDER])
    with JobFolder(output_dir, undertaking, earlier, log=context.log) as folder:
        if not folder.journal.is_complete:
            _loop(config, output_dir, context, resume=folder.goes_on)
            record = {
                "version": __version__,
                "command": context.command,
                "configuration": config.model_dump(mode="json"),
                "weights": {"name": WEIGHTS_NAME, "sha256": sha256_of(weights)},
                "torch": torch.__version__,
                "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
                "seconds": round(time.monotonic() - begin, 3),
            }
            write_json(output_dir / RECORD_NAME, record)
            folder.journal.complete([WEIGHTS_NAME, RECORD_NAME])
    return weights


def _loop(
    config: TrainingConfig | SegmentationConfig, output_dir: Path, context: JobContext, *, resume: bool
) -> Path:
    if isinstance(config, SegmentationConfig):
        return train_segmentation(config, output_dir, resume=resume, context=context)
    return run_loop(config, output_dir, resume=resume, context=context)
