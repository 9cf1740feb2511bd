"""The jobs that a batch can do, each by its options, and the report of each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config.batch import Options
from ..config.denoise import DenoiseOptions
from ..config.extract_noise import ExtractNoiseOptions
from ..inference.summary import Summary
from ..noise.summary import NoiseSummary
from ..report.noise import report_noise
from ..report.overlays import write_overlay
from ..report.pdf import report_run
from .denoise import DenoiseJob
from .evaluate import EvaluateJob
from .evaluation_files import Evaluation
from .extract_noise import ExtractNoiseJob
from .job import BatchJob

# What the jobs come to.
Result = Summary | NoiseSummary | Evaluation


def job_of(
    source: Path, options: Options, *, root: Path | None = None, passthrough: Sequence[Path] = ()
) -> BatchJob[Any]:
    """Return the job whose options these are; those of an evaluation name the source themselves."""
    if isinstance(options, DenoiseOptions):
        return DenoiseJob(source, options, root=root, passthrough=passthrough)
    if isinstance(options, ExtractNoiseOptions):
        return ExtractNoiseJob(source, options, root=root, draw=write_overlay)
    return EvaluateJob(options)


def report_result(result: Result, command: str, way_back: str = "", warnings: Sequence[str] = ()) -> None:
    """Write the report of a job into its folder; an evaluation has written its own.

    Parameters
    ----------
    result
        What the job came to.
    command
        The command line.
    way_back
        How to return to the raw images in the host that the job ran in.
    warnings
        What the user was warned of.

    Raises
    ------
    OutputError
        When it cannot be written.
    """
    if isinstance(result, Summary):
        report_run(result, command, way_back=way_back, warnings=warnings)
    elif isinstance(result, NoiseSummary):
        report_noise(result, command, warnings)
