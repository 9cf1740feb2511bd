"""The page about a training run: what it learnt from, how it went, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.image import imread

from ..advice import USE
from . import PDF_NAME
from .paper import Paper

CAPTIONS = {
    "curves.png": "Losses and scores",
    "validation.png": "What the model makes of images that it has never seen",
}

TRUST = (
    "The model has learnt what these particles look like, and puts it into every image that it is given. "
    f"{USE} A lower error on held-out particles is agreement with the map that the model was taught, not "
    "with a truth."
)


def write_training_report(
    directory: Path,
    runs: Sequence[Path],
    *,
    headline: str,
    facts: Mapping[str, str],
    verdict: str = "",
    warnings: Sequence[str] = (),
) -> Path:
    """Write `logfile.pdf` with the facts, and the curves and validation pictures of each run's folder.

    Parameters
    ----------
    verdict
        What came of it, in a sentence.
    warnings
        What the user was warned of, a line each.

    Raises
    ------
    OutputError
        The file cannot be written.
    """
    paper = Paper(headline)
    if verdict:
        paper.note(verdict, "good")
    for warning in warnings:
        paper.note(warning, "bad")
    paper.note(TRUST)
    for run in runs:
        where = f", {run.name}" if len(runs) > 1 else ""
        for name, caption in CAPTIONS.items():
            if (run / name).exists():
                paper.image(imread(run / name), caption + where)
    paper.heading("How it was made")
    paper.facts(facts)
    return paper.write(directory / PDF_NAME)
