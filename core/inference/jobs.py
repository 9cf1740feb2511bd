"""What the jobs of a batch leave behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .extract_noise import NoiseSummary
from .summary import Summary


@dataclass(frozen=True)
class EvaluationSummary:
    """What an evaluation found and wrote.

    Attributes
    ----------
    numbers
        What `evaluation.json` holds.
    files
        All that was written.
    """

    numbers: dict[str, Any]
    files: list[Path]


# Of the jobs `denoise`, `extract-noise` and `evaluate`.
Result = Summary | NoiseSummary | EvaluationSummary
