"""`cryosparc_cryohush watch`: what is asked for in cryoSPARC's own pages becomes jobs, with no shell.

Two things ask: an External job that is being built, has cryohush's mark (a clone of a finished one has it)
and connected inputs; and a completed job with a tag such as `cryohush` or `cryohush: model=J60`, for which a
card is made (`tag_cards`). All that is known is in cryoSPARC and in the locks of the jobs. So a watcher that
was killed leaves nothing half done, and several share the work: who has the lock of a job does it, who has
that of the project makes its cards.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ConfigurationError, CryohushError, HostError
from .drivers import SLURM_JOB, Drivers, Local, Slurm, is_in_queue
from .growing import left_out
from .guard import end_as_failed
from .instance import Instance
from .job import ACTIVE, find_job
from .lock import Holder, JobBusy, is_locked, read_holder, this_program
from .place import FOLDERS, Place, find_place
from .project import EXTERNAL, Project
from .record import Record
from .tag_cards import TagCards, find_jobs, say

# A card that nobody has touched for so long is ready: somebody may still be dragging outputs onto it.
QUIET_SECONDS = 20.0
# A driver that was started needs that long at most until it has the lock.
CLAIM_SECONDS = 60.0
# Every so many looks all completed jobs are seen: whether a tag makes a job a changed one is not documented.
FULL_LOOK_EVERY = 20
# With nothing to do the pauses grow by this factor up to so many times the first, after errors to minutes.
SLOWER, SLOWEST, LONGEST_PAUSE_SECONDS = 1.1, 4.0, 600.0
POLL_SECONDS, REPORT_SECONDS = 1.0, 3600.0
# Commands that can be told which device to use.
_WITH_DEVICE = ("denoise", "extract-noise", "evaluate")


@dataclass(frozen=True)
class Card:
    """An external job of cryohush's.

    Attributes
    ----------
    project, uid
        Where, and as in `J99`.
    record
        What it is made for.
    place
        Where its files and its lock are.
    job_directory
        Its directory's name in that of the project.
    """

    project: Project
    uid: str
    record: Record
    place: Place
    job_directory: str

    @property
    def key(self) -> str:
        """Project and job."""
        return f"{self.project} {self.uid}"

    @property
    def lock_path(self) -> Path:
        """See `Place`."""
        return self.place.lock_path(self.job_directory)


def watch(
    instance: Instance,
    arguments: argparse.Namespace,
    build_parser: Callable[[], argparse.ArgumentParser],
    should_stop: Callable[[], bool],
) -> int:
    """Watch until stopped; the exit status.

    Raises
    ------
    ConfigurationError
        If the instance is of version 4, whose client lists no jobs, or an option makes no sense.
    OutputError
        If a project's directory is not here.
    HostError
        If a project is not there.
    """
    if not instance.is_5:
        raise ConfigurationError("watch needs cryoSPARC 5: the client of version 4 lists no jobs.")
    if arguments.every <= 0:
        raise ConfigurationError(f"--every {arguments.every:g}: expected seconds above 0.")
    drivers: Drivers = (
        Slurm(arguments.sbatch, arguments.at_once) if arguments.sbatch else Local(arguments.gpus or ())
    )
    directories = {}
    for uid in arguments.project:
        directories[uid] = Project(instance, uid).directory()
        find_place(directories[uid], uid, "", None)
    words = ["--credentials", str(arguments.credentials.absolute())] if arguments.credentials else []
    watcher = Watcher(instance, directories, drivers, words, build_parser)
    say(f"watching {', '.join(directories)} of {instance.url}, every {arguments.every:g} s")
    try:
        run(watcher, arguments.every, should_stop)
    finally:
        drivers.stop()
    say(f"stopped after {instance.requests} requests")
    return 0


def run(watcher: Watcher, every: float, should_stop: Callable[[], bool]) -> None:
    """Look again and again, more seldom where there is nothing to do or no answer."""
    pause, next_look, reported, requests = every, time.monotonic(), time.monotonic(), 0
    while not should_stop():
        try:
            watcher.tend()
            if time.monotonic() >= next_look:
                found = watcher.look()
                pause = every if found else min(pause * SLOWER, every * SLOWEST)
                next_look = time.monotonic() + pause
        except HostError as error:
            pause = min(2 * max(pause, every), LONGEST_PAUSE_SECONDS)
            next_look = time.monotonic() + pause
            say(f"{error} Looking again in {pause:.0f} s.")
        if time.monotonic() - reported >= REPORT_SECONDS:
            count = watcher.instance.requests
            say(f"{count - requests} requests in the last hour")
            reported, requests = time.monotonic(), count
        time.sleep(min(POLL_SECONDS, every))


class Watcher:
    """What a watcher sees and does; see the module.

    Parameters
    ----------
    instance
        Signed in.
    directories
        Of the projects that are watched, by their names.
    drivers
        Where the jobs are worked on.
    words
        For the command line of each driver.
    build_parser
        Of all commands.
    """

    def __init__(
        self,
        instance: Instance,
        directories: dict[str, Path],
        drivers: Drivers,
        words: list[str],
        build_parser: Callable[[], argparse.ArgumentParser],
    ) -> None:
        self.instance = instance
        instance.refusals_may_pass = True
        self._directories, self._drivers, self._words = directories, drivers, words
        self._build_parser = build_parser
        self._tag_cards = TagCards(instance, directories, build_parser)
        self._looks = 0
        # what a card looked like, and since when it has
        self._seen: dict[str, tuple[Any, float]] = {}
        self._records: dict[str, Record | None] = {}
        self._started: dict[str, Card] = {}
        self._waiting: set[str] = set()
        # external jobs that have not ended
        self._unfinished: set[str] = set()

    def look(self) -> bool:
        """Look once at all projects and start what is ready; tell whether there was anything to do.

        Raises
        ------
        HostError
            If the server does not answer.
        """
        found = self._tag_cards.make(full=self._looks % FULL_LOOK_EVERY == 0)
        states = ["building", *ACTIVE]
        states = states if self._looks else [*states, "failed"]
        jobs = find_jobs(self.instance, self._directories, type=EXTERNAL, status=states)
        self._unfinished = {f"{job.project_uid} {job.uid}" for job in jobs if job.status != "failed"}
        # one that failed, and is gone on with, is called so until its driver has begun
        self._unfinished.update(self._started)
        for job in jobs:
            card = self._read(job)
            if card is None or card.key in self._started:
                continue
            claim = last_claim(card.lock_path)
            how = self._ready(card, job)
            if how is not None:
                found = True
                if self._drivers.has_room():
                    self._start(card, how, claim)
                elif card.key not in self._waiting:
                    self._waiting.add(card.key)
                    with contextlib.suppress(HostError):
                        find_job(card.project, card.uid).log(
                            f"cryohush watch ({this_program()}): this waits for those before it"
                        )
        self._looks += 1
        return found or bool(self._started)

    def tend(self) -> None:
        """See to the drivers that have ended: a job that none of them has begun is told so, and fails."""
        for ended in self._drivers.ended():
            card = self._started.pop(ended.key)
            say(f"{card.key}: {ended.status or 'done'}")
            with contextlib.suppress(CryohushError):
                job = find_job(card.project, card.uid)
                if ended.status and job.status() == "building" and not is_locked(card.lock_path):
                    end_as_failed(job, f"the work could not begin ({ended.status}); see the log of watch.")

    def _read(self, job: Any) -> Card | None:
        """Return the card that a job is, or None if it is none of cryohush's, or cannot run by itself."""
        project = Project(self.instance, job.project_uid)
        record = Record.read(job.model.description)
        if record is None and job.model.cloned_from:
            original = f"{project} {job.model.cloned_from}"
            if original not in self._records:
                found = project.find_job(job.model.cloned_from)
                self._records[original] = Record.read(project.description(found))
            record = self._records[original]
        if record is None or (command := record.command) not in FOLDERS:
            return None
        place = Place(self._directories[project.uid], is_shared=True, name=FOLDERS[command])
        return Card(project, job.uid, record, place, Path(job.model.job_dir or job.uid).name)

    def _ready(self, card: Card, job: Any) -> str | None:
        """Return how a card is to be started: by `--job` or `--resume`; None if it is not, or not yet."""
        holder = read_holder(card.lock_path)
        if job.status == "building":
            connections = [
                (name, connection.job_uid, connection.output)
                for name, entry in job.model.spec.inputs.root.items()
                for connection in entry.connections
            ]
            # a card made for a tag knows its input; the clone of one waits for one of its own
            if not connections and (not card.record.origin or job.model.cloned_from):
                return None
            looks = job.model.description, connections, job.model.updated_at
            before, since = self._seen.get(card.key, (None, 0.0))
            if looks != before:
                self._seen[card.key] = looks, time.monotonic()
                return None
            if time.monotonic() - since < QUIET_SECONDS or is_locked(card.lock_path):
                return None
            if holder.slurm and is_in_queue(holder.slurm):
                return None
            # what they have made is left out, and only known in the end
            if any(
                f"{card.project} {uid}" in self._unfinished
                for uid in left_out(self._build_parser, card.record)
            ):
                return None
            return None if holder.watched and _is_fresh(card.lock_path) else "--job"
        # the lock of a dead driver is free; one without a file is none of a watcher's
        if not holder.watched or is_locked(card.lock_path):
            return None
        if job.status == "failed" and not holder.interrupted:
            return None
        return "--resume" if find_job(card.project, card.uid).status() == job.status else None

    def _start(self, card: Card, how: str, claim: Claim) -> None:
        job = find_job(card.project, card.uid)
        words = [card.record.command, "--url", self.instance.url, "--project", card.project.uid]
        words += [how, card.uid, "--watched", *self._words]
        if isinstance(self._drivers, Local) and card.record.command in _WITH_DEVICE:
            words += ["--device", "auto"]  # of those that it sees
        try:
            with card.place.lock(card.job_directory) as lock:
                # since it was found ready, whose driver may not have the lock yet
                if last_claim(card.lock_path) != claim:
                    raise JobBusy(f"{card.uid}: another watcher has taken it")
                where = self._drivers.start(card.key, words)
                slurm = where.removeprefix(SLURM_JOB) if where.startswith(SLURM_JOB) else ""
                lock.note(Holder(this_program(), watched=True, slurm=slurm))
        except JobBusy as error:
            say(f"{card.project} {error}")
            return
        except CryohushError as error:
            say(f"{card.key}: {error}")
            end_as_failed(job, str(error))
            return
        self._started[card.key] = card
        self._waiting.discard(card.key)
        line = f"cryohush watch ({this_program()}) starts this {where}"
        say(f"{card.key}: {where}")
        with contextlib.suppress(HostError):
            job.log(line)


def fail_card(project: Project, uid: str, command: str, message: str) -> None:
    """Tell a job, for whose driver it is too late to say so itself, what is wrong with it, and fail it."""
    with contextlib.suppress(CryohushError):
        job = find_job(project, uid)
        place = Place(project.directory(), is_shared=True, name=FOLDERS[command])
        if job.status() in ("building", *ACTIVE) and not is_locked(place.lock_path(job.directory_name())):
            end_as_failed(job, message)


Claim = tuple[bytes, int]


def last_claim(path: Path) -> Claim:
    """Return what was last noted in the file of a lock, and when; nothing of one that is not there."""
    with contextlib.suppress(OSError):
        if text := path.read_bytes():
            return text, path.stat().st_mtime_ns
    return b"", 0


def _is_fresh(path: Path) -> bool:
    """Tell whether a watcher has claimed a card a moment ago, whose driver may not have the lock yet."""
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime < CLAIM_SECONDS
    return False
