"""What an extraction of noise came to, for the log, the record and the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..progress import counted
from .micrograph import MicrographCounts


@dataclass(frozen=True)
class NoiseSummary:
    """What a run wrote.

    Attributes
    ----------
    stack, table, record
        `noise.mrcs`, `noise.star` and `cryohush.json`.
    counts
        Of each micrograph, in their order.
    warnings
        What may be wrong with the micrographs.
    n_blocks, window_px
        Of the stack.
    is_smaller
        Whether the window is smaller than usual, where that found too little.
    overlays
        The pictures of the micrographs that have blocks.
    n_resumed
        Micrographs that an earlier run had done.
    seconds
        The whole run.
    was_complete
        Whether nothing was left to do, and nothing was written.
    """

    stack: Path
    table: Path
    record: Path
    counts: list[MicrographCounts]
    warnings: Sequence[str]
    n_blocks: int
    window_px: int
    is_smaller: bool
    overlays: list[Path]
    n_resumed: int
    seconds: float
    was_complete: bool = False

    @property
    def key_figures(self) -> dict[str, str]:
        """What a batch says of it, by name."""
        kept = [count.kept for count in self.counts]
        return {
            "blocks of noise": f"{self.n_blocks} of {self.window_px} x {self.window_px} px",
            "micrographs": f"{len(kept)}; {sum(map(bool, kept))} with blocks, at most {max(kept)} in one",
            "windows": self.explanation,
        }

    @property
    def picture(self) -> Path | None:
        """That of the micrograph with most blocks."""
        kept = [count.kept for count in self.counts if count.kept]
        return self.overlays[kept.index(max(kept))] if self.overlays else None

    @property
    def explanation(self) -> str:
        """What became of all windows, in one line, and why the blocks are small if they are."""
        text = explain(self.counts)
        if self.is_smaller:
            text += (
                f" The blocks are smaller than usual, {self.window_px} px, as too few larger windows hold "
                "nothing but noise; --window-px sets their size."
            )
        return text


def explain(counts: Sequence[MicrographCounts]) -> str:
    """What became of all windows, in one line."""
    excluded: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    for count in counts:
        excluded.update(count.excluded or {})
        rejected.update(count.rejected or {})
    total = sum(count.windows for count in counts)
    meaning = {
        "contamination": "touch contamination",
        "particle": "touch particles",
        "similarity": "are not alike all over (--similarity-threshold)",
        "noise": "have more energy than noise (--min-noise-probability)",
        "check": "are alike, but touch something or have more energy than noise (--min-noise-probability)",
    }
    parts = [
        f"{number} {meaning.get(reason, f'are left out by the method ({reason})')}"
        for reason, number in excluded.items()
        if number
    ]
    parts += [f"{number} exceed --max-{name}" for name, number in rejected.items() if number]
    parts += [f"{sum(c.beyond_cap for c in counts)} are beyond --max-per-micrograph"] * any(
        c.beyond_cap for c in counts
    )
    text = f"Of {total} windows {', '.join(parts) or 'none was excluded'}."
    best = [count.best_similarity for count in counts if count.best_similarity is not None]
    if best:
        text += f" The best similarity is {max(best):.2f}."
    left_out = [count for count in counts if not count.windows]
    if left_out:
        first = left_out[0]
        text += f" Left out: {counted(len(left_out), 'micrograph')}, {first.micrograph}: {first.remark}"
    return text
