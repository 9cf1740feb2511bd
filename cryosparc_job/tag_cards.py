"""Cards for tags: a completed job with a tag such as `cryohush: model=J60` gets an external job to run.

Who has the lock of a project makes its cards, once for each time that a job was completed; `watch` then finds
them as it finds the cards that people have cloned.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..core.console import show
from ..core.errors import CryohushError, HostError
from .command import Command
from .growing import leave_out_earlier
from .guard import end_as_failed
from .instance import Instance
from .job import create_job
from .lock import JobBusy, locked
from .outputs import KINDS, MICROGRAPHS, PARTICLES
from .project import EXTERNAL, Project
from .record import ORIGIN, PROGRAM, Record, given_options, new_mark
from .tags import Tag, read_tag

PROJECT_LOCK = ".cryohush-watch.lock"
_PAGE = 100
_END_OF_TIME = datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)


class TagCards:
    """Makes the cards of the tags of some projects.

    Parameters
    ----------
    instance
        Signed in.
    directories
        Of the projects, by their names.
    build_parser
        Of all commands.
    """

    def __init__(
        self,
        instance: Instance,
        directories: Mapping[str, Path],
        build_parser: Callable[[], argparse.ArgumentParser],
    ) -> None:
        self._instance, self._directories, self._build_parser = instance, directories, build_parser
        self._tags: dict[str, Tag | None] = {}
        self._titles: dict[str, str] = {}
        self._handled: set[str] = set()
        self._since: datetime.datetime | None = None

    def make(self, *, full: bool) -> bool:
        """Make a card for each tag that asks for something; tell whether there was one.

        With `full` all completed jobs are seen, else those that have changed since the last look.

        Raises
        ------
        HostError
            If the server does not answer.
        """
        window = {} if full or self._since is None else {"updated_at": (self._since, _END_OF_TIME)}
        if full:
            self._tags.clear()
        wanted = []
        for job in find_jobs(self._instance, self._directories, status="completed", **window):
            self._since = max(self._since or job.model.updated_at, job.model.updated_at)
            if any(uid not in self._tags for uid in job.model.tags):
                self._read_tags()
            for uid in job.model.tags:
                tag = self._tags.setdefault(uid, read_tag(uid))  # one without a title is called as it is
                if tag is not None and Record.read(job.model.description) is None:
                    wanted.append((job, tag, _origin(job, self._titles.get(uid, uid))))
        made = False
        for job, tag, origin in wanted:
            if f"{job.project_uid} {origin}" not in self._handled:
                made |= self._make_card(Project(self._instance, job.project_uid), job, tag, origin)
        return made

    def _read_tags(self) -> None:
        """Read the titles of all tags."""
        for tag in self._all("list the tags", self._instance.client.api.tags.find, patience_seconds=0.0):
            self._tags[tag.uid], self._titles[tag.uid] = read_tag(tag.title), tag.title

    def _all(
        self, doing: str, find: Callable[..., Any], *, patience_seconds: float | None = None
    ) -> Iterator[Any]:
        """Yield all that the server finds, page by page."""
        after = None
        while True:
            ask = partial(find, after=after, limit=_PAGE)
            page = self._instance.call(doing, ask, patience_seconds=patience_seconds)
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].id

    def _make_card(self, project: Project, job: Any, tag: Tag, origin: str) -> bool:
        """Make a card, unless there is one already, or another watcher is at it."""
        try:
            with locked(self._directories[project.uid] / PROJECT_LOCK, project.uid):
                cards = list(self._cards_of_tags(project))
                self._handled |= {f"{project} {record.origin}" for _, record in cards}
                if f"{project} {origin}" in self._handled:
                    return False
                self._create(project, job, tag, origin, cards)
                self._handled.add(f"{project} {origin}")
        except JobBusy:
            return False
        return True

    def _cards_of_tags(self, project: Project) -> Iterator[tuple[Any, Record]]:
        """Yield each card of a project that was made for a tag, also those that were deleted."""
        find = partial(self._instance.client.api.jobs.find, project_uid=[project.uid], type=[EXTERNAL])
        for deleted in (False, True):
            doing = f"list the external jobs of {project}"
            for model in self._all(doing, partial(find, deleted=deleted)):
                record = Record.read(model.description)
                if record is not None and record.origin and not model.cloned_from:
                    yield model, record

    def _create(
        self, project: Project, job: Any, tag: Tag, origin: str, cards: list[tuple[Any, Record]]
    ) -> None:
        """Make the card, or, if there is something wrong with the tag, one that says so."""
        workspace = job.model.workspace_uids[0]
        words = [tag.command, "--project", project.uid, "--workspace", workspace]
        problem = None
        try:
            option, source = _input(project, job.uid, tag)
            words += [option, source, *tag.words]
            if tag.only_new:
                words += leave_out_earlier(self._build_parser, words, workspace, cards)
            command = self._command(project, words)
            title, description = command.title.replace("{source}", source), command.description
        except CryohushError as error:
            problem = str(error)
            title, description = f"cryohush: the tag of {job.uid}", f"Something is wrong with it: {problem}"
        record = Record(_line(words), new_mark(), origin)
        card = create_job(project, workspace, title, description, record)
        say(f"{project} {card.uid}: made for the tag of {job.uid}")
        if problem is not None:
            end_as_failed(card, f"{problem} Put the tag right; it is read again.")

    def _command(self, project: Project, words: list[str]) -> Command:
        """Return what a command line does.

        Raises
        ------
        HostError
            If it makes no sense.
        """
        given_options(self._build_parser, words)
        arguments = self._build_parser().parse_args(words)
        command: Command = arguments.make(arguments)(project, None)
        return command


def find_jobs(instance: Instance, projects: Iterable[str], **search: Any) -> list[Any]:
    """Return the jobs of some projects that are as searched for."""
    return instance.call(
        "list jobs", lambda: list(instance.client.find_jobs(list(projects), **search)), patience_seconds=0.0
    )


def _input(project: Project, uid: str, tag: Tag) -> tuple[str, str]:
    """Return the option and the output, as in `J42:particles`, for what a tag asks for."""
    kinds = {"extract-noise": (MICROGRAPHS,), "restore": (PARTICLES,)}.get(tag.command, KINDS)
    text = uid if tag.output is None else f"{uid}:{tag.output}"
    errors = []
    for kind in kinds:
        try:
            found = project.find_source(text, kind.data, [kind.slot])
        except HostError as error:
            errors.append(str(error))
        else:
            return f"--{kind.noun}", str(found)
    raise HostError(f"{errors[0]} Tag it as cryohush: output=NAME.")


def _origin(job: Any, title: str) -> str:
    completed = job.model.completed_at
    return f"{ORIGIN}{job.uid}, completed {completed:%Y-%m-%d %H:%M:%S}: {' '.join(title.split())}"


def _line(words: list[str]) -> str:
    return shlex.join([PROGRAM, *words])


def say(line: str) -> None:
    """Say a line with the time."""
    show(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}")
