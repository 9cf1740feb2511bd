"""How far a run is, in words."""

from __future__ import annotations

import time
from collections.abc import Callable


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, given in the singular, as in `1 stack`, `2 stacks`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


class ProgressText:
    """Says how much is done, how fast it goes and how long it will take; the clock starts when it is made."""

    def __init__(self, noun: str = "particles", clock: Callable[[], float] = time.monotonic) -> None:
        self._noun, self._clock, self._begin = noun, clock, clock()
        self._first_done: int | None = None

    def __call__(self, done: int, total: int) -> str:
        """Return the text, such as `50 of 200 particles (25 %), 10 per second, 0 min 15 s to go`."""
        if self._first_done is None:
            # A continued job starts with what an earlier one has done: that says nothing of the speed.
            self._first_done = done
        noun = self._noun.removesuffix("s") if total == 1 else self._noun
        text = f"{done} of {total} {noun} ({100 * done // max(total, 1)} %)"
        seconds = self._clock() - self._begin
        if seconds > 0 and done > self._first_done:
            speed = (done - self._first_done) / seconds
            pace = f"{speed:.0f} per second" if speed >= 1 else f"{1 / speed:.1f} s each"
            text += f", {pace}"
            if done < total:
                text += f", {duration((total - done) / speed)} to go"
        return text


def duration(seconds: float) -> str:
    """Return `3 min 20 s` or `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
