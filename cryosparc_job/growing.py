"""Sets that grow, such as the exports of a Live session: what earlier jobs have denoised is left out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..core.errors import HostError
from .instance import ConnectionLost
from .job import ACTIVE
from .outputs import Kind
from .project import Project, Source
from .recall import FREE, IMAGES, WHERE, Parser
from .record import Record, given_options


def leave_out_earlier(
    build_parser: Parser, words: Sequence[str], workspace: str, cards: Iterable[tuple[Any, Record]]
) -> list[str]:
    """Return the option that leaves out what cards of a workspace denoise with the same options.

    Parameters
    ----------
    build_parser
        Of all commands.
    words
        The command line, from the command on.
    workspace
        Where the cards are.
    cards
        Models of jobs with what they are made for.

    Raises
    ------
    HostError
        If the words are not those of a denoising.
    """
    if words[0] != "denoise":
        raise HostError(f"`new` is for denoising, not for {words[0]}.")
    asked, found = _options(build_parser, words), []
    for model, record in cards:
        if record.command == "denoise" and workspace in model.workspace_uids and not model.deleted:
            with contextlib.suppress(HostError):
                if _options(build_parser, record.words) == asked:
                    found.append(model.uid)
    return ["--without", *found] if found else []


def left_out(build_parser: Parser, record: Record) -> list[str]:
    """Return the jobs whose images a job leaves out."""
    with contextlib.suppress(HostError):
        return given_options(build_parser, record.words).get("without") or []
    return []


def _options(build_parser: Parser, words: Sequence[str]) -> dict[str, Any]:
    """Return what a command line says of how the work is done."""
    given = given_options(build_parser, words)
    return {name: value for name, value in given.items() if name not in (*WHERE, *IMAGES, *FREE, "without")}


def new_rows(project: Project, kind: Kind, dataset: Any, without: Sequence[str]) -> Any:
    """Return the rows of a dataset that none of some jobs has in its output, by uid.

    A job that has failed, or is gone, has none.

    Raises
    ------
    HostError
        If there is no such row, or a job is still at work.
    """
    done = [np.empty(0, np.uint64)]
    for uid in without:
        try:
            job = project.find_job(uid)
        except ConnectionLost:
            raise
        except HostError:
            continue
        if job.status in ("building", *ACTIVE):
            raise HostError(f"{uid} is {job.status}: wait until it has ended, or leave it out of --without.")
        output = project.outputs(job).get(kind.name)
        if job.status == "completed" and output is not None:
            source = Source(uid, kind.name, output.kind, output.slots)
            done.append(np.asarray(project.load(source, [kind.output_slot])["uid"], np.uint64))
    new = np.flatnonzero(~np.isin(np.asarray(dataset["uid"], np.uint64), np.concatenate(done)))
    if not len(new):
        raise HostError(f"all {len(dataset)} {kind.noun} were denoised before, by {', '.join(without)}.")
    return dataset.take(new)
