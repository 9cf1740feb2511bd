"""What RELION asks of a job: its directory, its input, and the parameters of its form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ..core.config.load import load_yaml, validate
from ..core.errors import ConfigurationError
from ..core.io.micrographs import lists_micrographs
from ..core.job_context import JobContext
from .log import ProgressLine, say, warn
from .project import Kind

Options = TypeVar("Options", bound=BaseModel)
# With this begins a line of a job's log that belongs into run.err.
WARNING = "WARNING: "


@dataclass(frozen=True)
class Request:
    """A job as RELION asks for it.

    Attributes
    ----------
    directory
        The job directory as RELION gave it, relative to the project, which is the working directory.
    given
        The command line: name to text, None for a bare flag.
    command
        The command line as it was, for the log and the record.
    should_stop
        Tells whether the job was asked to stop; the command then raises `Aborted`.
    warnings
        What the user was warned of, for the report.
    """

    directory: Path
    given: Mapping[str, str | None]
    command: str
    should_stop: Callable[[], bool] = lambda: False
    warnings: list[str] = field(default_factory=list)

    def context(self, noun: str = "particles") -> JobContext:
        """Return whom the work tells: RELION's log, and its `run.err` of what is a warning."""
        return JobContext(ProgressLine(noun), self.should_stop, self.log, self.command)

    def log(self, line: str) -> None:
        """Say a line; a warning goes to `run.err`, which RELION's GUI shows in red, and into the report."""
        if line.upper().startswith(WARNING):
            self.warn(line[len(WARNING) :])
        else:
            say(line)

    def warn(self, line: str) -> None:
        """Warn, in `run.err` and in the report."""
        self.warnings.append(line)
        warn([line])


def find_input(given: Mapping[str, str | None], only: Kind | None = None) -> tuple[Kind, str]:
    """Return what a job works on, and its STAR file; particles where both fields are filled in.

    Parameters
    ----------
    only
        What the command is for, if it is for one kind.

    Raises
    ------
    ConfigurationError
        If neither `in_parts` nor `in_mics` is given, or it is no STAR file, or one of another kind.
    StarError
        If the file cannot be read.
    """
    fields: dict[Kind, str | None] = {"particles": given.get("in_parts"), "micrographs": given.get("in_mics")}
    kind: Kind = "particles" if fields["particles"] else "micrographs"
    if only and fields[only]:
        kind = only
    source = fields[kind]
    wanted = f"'Input {only}'" if only else "'Input particles' or 'Input micrographs'"
    what = only or "particles or micrographs"
    if not source or not source.endswith(".star"):
        raise ConfigurationError(
            f"expected a STAR file of {what}, found {source or 'nothing'}. Fill in the field {wanted} on the "
            "Input tab of the External job."
        )
    listed: Kind = "micrographs" if lists_micrographs(source) else "particles"
    if only and listed != only:
        raise ConfigurationError(
            f"expected {only}, found the {listed} {source}. Fill in the field {wanted} on the Input tab of "
            f"the External job, and leave 'Input {listed}' empty."
        )
    if listed != kind:
        raise ConfigurationError(
            f"{source} lists {listed}. Fill it in as 'Input {listed}' and leave 'Input {kind}' empty."
        )
    return kind, source


def read_values(given: Mapping[str, str | None], model: type[BaseModel]) -> dict[str, Any]:
    """Return the parameters that are given; `gpu` as `device`.

    Parameters
    ----------
    given
        The command line. A flag without a value turns a switch on, and is as good as none otherwise.
    model
        Its fields are the parameters to be had.

    Raises
    ------
    ConfigurationError
        If both `gpu` and `device` are given.
    """
    values: dict[str, Any] = {}
    for name, about in model.model_fields.items():
        if given.get(name):
            values[name] = given[name]
        elif name in given and about.annotation is bool:
            values[name] = "yes"
    if given.get("gpu"):
        if "device" in values:
            raise ConfigurationError("both gpu and device are given: leave one of them out.")
        values["device"] = given["gpu"]
    return values


def read_options(given: Mapping[str, str | None], model: type[Options]) -> Options:
    """Return the parameters on top of the options of the configuration file that they may name.

    Raises
    ------
    ConfigurationError
        If one does not fit, or both `gpu` and `device` are given.
    """
    values = read_values(given, model)
    if given.get("config"):
        values = load_yaml(str(given["config"]), model).model_dump(exclude_unset=True) | values
    return validate(values, model, "parameters")
