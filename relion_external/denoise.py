"""The work of `relion_cryohush denoise`: RELION's options in, RELION's files out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from ..core.config.denoise import DenoiseOptions
from ..core.config.load import load_yaml, validate
from ..core.errors import ConfigurationError

PROGRESS_SECONDS = 2.0


def read_options(given: Mapping[str, str | None]) -> DenoiseOptions:
    """Return the options of the command line on top of those of the configuration file that it may name.

    Parameters
    ----------
    given
        Name of the option to its text; None for a flag without a value, which is as good as none, but for
        `skip_bad`, which it turns on.

    Raises
    ------
    ConfigurationError
        If an option does not fit, or both `gpu` and `device` are given.
    """
    values = {name: given[name] for name in DenoiseOptions.model_fields if given.get(name)}
    if "skip_bad" in given and not given["skip_bad"]:
        values["skip_bad"] = "yes"
    if given.get("gpu"):
        if "device" in values:
            raise ConfigurationError("both gpu and device are given: leave one of them out.")
        values["device"] = given["gpu"]
    if given.get("config"):
        values = load_yaml(str(given["config"]), DenoiseOptions).model_dump(exclude_unset=True) | values
    return validate(values, DenoiseOptions, "parameters")


class ProgressLine:
    """One line on stdout that is drawn again and again, as RELION's own programs do it.

    The carriage return stands in front: RELION's GUI shows what follows the last one. Lines are at least
    `PROGRESS_SECONDS` apart, because the log file keeps them all.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream or sys.stdout, clock
        self._begin = self._last = clock()
        self._first_done: int | None = None

    def __call__(self, done: int, total: int) -> None:
        """Draw the line when it is due; the last one ends with a line feed."""
        now = self._clock()
        if self._first_done is None:
            # A continued job starts with what an earlier one has done: that says nothing of the speed.
            self._first_done = done
        if done < total and now - self._last < PROGRESS_SECONDS:
            return
        self._last = now
        line = f"\r{done} of {total} particles ({100 * done // max(total, 1)} %)"
        seconds = now - self._begin
        if seconds > 0 and done > self._first_done:
            speed = (done - self._first_done) / seconds
            line += f", {speed:.0f} per second, {_duration((total - done) / speed)} to go"
        print(f"{line:<78}", end="\n" if done >= total else "", file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
