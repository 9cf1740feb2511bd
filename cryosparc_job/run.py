"""A job at work, whatever the command: begun, told of in its event log, its work done."""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..core.console import show
from ..core.errors import HostError
from ..core.progress import ProgressText
from .guard import Watch
from .instance import Refused
from .job import ExternalJob
from .lock import Lock
from .place import Place
from .worker import run_work

# Version 4 gets a new line each time.
PROGRESS_SECONDS, PROGRESS_SECONDS_4 = 5.0, 60.0
# Lines for the event log that could not be written, until they can be.
_LINES_KEPT = 1000


class JobRun:
    """A job that is being worked on: what is said and shown stops the work if the job is no longer wanted.

    Parameters
    ----------
    job
        As it was made or found.
    place
        Where its files go.
    noun
        What is counted in its line of progress.
    echo
        Gets what is said, besides the event log.
    """

    def __init__(self, job: ExternalJob, place: Place, noun: str, echo: Callable[[str], None] = show) -> None:
        self.job, self._place, self._noun, self._echo = job, place, noun, echo
        self.watch = Watch(job)
        self._progress: ProgressText | None = None
        self._shown = float("-inf")
        self._unsaid: deque[tuple[str, str]] = deque(maxlen=_LINES_KEPT)

    def begin(self, build: Callable[[], object], command: str) -> Path:
        """Bring the job, new or found, to where its work can begin, and return the folder for its files.

        Parameters
        ----------
        build
            Connects the inputs and adds the outputs, before the job is started.
        command
            The command line, for the event log.
        """
        directory = self.job.directory_name()
        if self.job.status() in ("failed", "killed"):
            try:
                self.job.start()
            except Refused:  # then it has to be cleared first
                self._place.clear(self.job, directory)
        build()
        self.job.start()
        folder = self._place.folder(directory)
        self.say(f"cryohush {__version__}, cryosparc-tools {self.job.instance.tools_version}: {command}")
        if (warning := self._place.hand_over(directory)) is not None:
            self.say(warning, "warning")
        return folder

    def say(self, line: str, level: str = "text") -> None:
        """Echo a line, and write it into the event log; if that cannot be done now, with one of the next.

        Raises
        ------
        JobEnded
            If the job is no longer wanted.
        """
        self._echo(self.job.instance.redact(line))
        self.watch()
        self._unsaid.append((line, level))
        try:
            while self._unsaid:
                self.job.log(*self._unsaid[0])
                self._unsaid.popleft()
        except HostError:
            pass

    def do(self, task: Mapping[str, Any], lock: Lock) -> dict[str, Any]:
        """Let a child do the work, which holds the lock as well, and return its result."""

        def hear(message: dict[str, Any]) -> None:
            if "log" in message:
                self.say(message["log"])
            else:
                self.show_progress(message["done"], message["total"])

        self._progress = ProgressText(self._noun)
        return run_work(
            task,
            on_message=hear,
            on_tick=self.watch,
            umask=self._place.umask(self.job.directory_name()),
            keep_open=[lock.descriptor],
        )

    def show_progress(self, done: int, total: int) -> None:
        """Renew the line of progress, unless that was a moment ago."""
        self._progress = self._progress or ProgressText(self._noun)
        text, now = self._progress(done, total), time.monotonic()
        pause = PROGRESS_SECONDS if self.job.instance.is_5 else PROGRESS_SECONDS_4
        if done < total and now - self._shown < pause:
            return
        self._shown = now
        self._echo(text)
        with contextlib.suppress(HostError):
            self.job.show_progress(text)

    def send(self, paths: Sequence[Path], folder: Path) -> None:
        """Send files below the folder into that of the job."""
        for path in paths:
            self.say(f"sending {path.name}")
            self.job.upload(path, f"{self._place.name}/{path.relative_to(folder).as_posix()}")

    def show(self, pictures: Mapping[str, Path], output: str | None = None) -> None:
        """Show pictures in the event log, and the first one on the job's card and that of its output.

        One that cannot be shown is no reason to fail.
        """
        shown = [functools.partial(self.job.log_plot, path, text) for text, path in pictures.items()]
        first = next(iter(pictures.values()), None)
        if first is not None:
            shown.append(functools.partial(self.job.set_images, output, first))
        for picture in shown:
            try:
                picture()
            except HostError as error:
                self.say(str(error), "warning")
