"""Going on in a job that there is: it must be cryohush's own, and it says itself with which options."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from typing import Any

from ..core.errors import ConfigurationError, HostError
from .job import ExternalJob, find_job
from .project import Project
from .record import PROGRAM, Record, given_options, new_mark

# What says where and by whom the work is done, not what it is: of these a job's record does not count.
WHERE = (
    "command", "work", "make", "command_line", "url", "credentials", "project", "workspace", "resume", "job",
    "force", "watched", "scratch", "title",
)  # fmt: skip
# The outputs at the job's inputs: if there are some, those count.
IMAGES = ("particles", "micrographs", "reference", "twin", "raw", "volume", "mask")
INPUTS = {"micrographs": "exposures"}
# What is done already stays right with any value of these.
FREE = ("device", "threads", "batch_size", "skip_bad")

Parser = Callable[[], argparse.ArgumentParser]


def recall(
    build_parser: Parser, project: Project, arguments: argparse.Namespace
) -> tuple[ExternalJob, argparse.Namespace, Record]:
    """Return the job that a command line names, and the command line with what the job itself says.

    Parameters
    ----------
    build_parser
        Of all commands.
    project
        Where the job is.
    arguments
        With `resume` or `job`, and `command_line`.

    Raises
    ------
    HostError
        If there is no such job, it is completed, or not one to go on in.
    ConfigurationError
        If it was made with other options than are given, and these are not to be forced.
    """
    uid = arguments.resume or arguments.job
    job = find_job(project, uid)
    status = job.status()
    if status == "completed":
        raise HostError(f"{uid} is completed: there is nothing to go on with.")
    record = job.record()
    if arguments.job is not None:
        if status != "building":
            raise HostError(
                f"{uid} is {status}: --job takes a job that is being built. Go on in one of cryohush's with "
                f"--resume {uid}."
            )
        if record is None and project.instance.is_5:  # made there, for whatever the command line says
            return job, arguments, Record(_line(_words(arguments.command_line)), new_mark())
    if record is None:
        raise HostError(
            f"{uid} is none of cryohush's jobs, and going on in it could empty its directory. Name one that "
            "cryosparc_cryohush has made."
        )
    made = given_options(build_parser, record.words)
    if made["command"] != arguments.command:
        way = "cryosparc_cryohush batch resume" if made["command"] == "batch" else (
            f"cryosparc_cryohush {made['command']} --resume {uid}"
        )  # fmt: skip
        raise HostError(f"{uid} is a job of `{made['command']}`, not of `{arguments.command}`: {way}.")
    given = given_options(build_parser, _words(arguments.command_line))
    _refuse_others(uid, made, given, arguments)
    values = vars(arguments) | {name: value for name, value in made.items() if name not in (*WHERE, *given)}
    for name in (name for name in IMAGES if name in values and name not in given):
        connected = [":".join(pair) for pair in job.connections(INPUTS.get(name, name))]
        if connected or job.is_clone():  # what is connected counts, not what the clone's original had
            found = arguments.command == "restore" and name == "raw" and not job.is_clone()
            values[name] = connected if found else None
    if set(given) - {*WHERE, *FREE}:
        line = _line([*record.words, *_words(arguments.command_line)[1:]])
        record = Record(line, record.mark, record.origin)
    return job, argparse.Namespace(**values), record


def _words(command_line: str) -> list[str]:
    return Record(command_line, "").words


def _line(words: list[str]) -> str:
    """Return a command line for the record, without what says how a job was taken up."""
    kept, rest = list[str](), iter(words)
    for word in rest:
        if word in ("--resume", "--job"):
            next(rest, None)
        elif word not in ("--force", "--watched") and not word.startswith(("--resume=", "--job=")):
            kept.append(word)
    return shlex.join([PROGRAM, *kept])


def _refuse_others(
    uid: str, made: dict[str, Any], given: dict[str, Any], arguments: argparse.Namespace
) -> None:
    """Raise if options are given that the job was made without, or with another value."""
    others = {
        name: value
        for name, value in given.items()
        if name not in (*WHERE, *IMAGES, *FREE) and made.get(name) != value
    }
    if others and not arguments.force:
        was = {name: made.get(name, "its default") for name in others}
        told = ", ".join(f"{name} was {was[name]}, now {value}" for name, value in others.items())
        raise ConfigurationError(
            f"{uid} was made with other options: {told}. Leave them out, or begin anew in it with --force."
        )
