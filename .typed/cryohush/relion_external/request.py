"""What RELION asks of a job: its directory, its input, and the parameters of its form."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from ..core.config.load import load_yaml, validate
from ..core.errors import ConfigurationError
from ..core.io.micrographs import lists_micrographs
from .project import Kind

Options = TypeVar("Options", bound=BaseModel)


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
    """

    directory: Path
    given: Mapping[str, str | None]
    command: str
    should_stop: Callable[[], bool] = lambda: False


def find_input(given: Mapping[str, str | None]) -> tuple[Kind, str]:
    """Return what a job works on, and its STAR file; particles where both fields are filled in.

    Raises
    ------
    ConfigurationError
        If neither `in_parts` nor `in_mics` is given, or it is no STAR file, or one of the other kind.
    StarError
        If the file cannot be read.
    """
    kind: Kind = "particles" if given.get("in_parts") else "micrographs"
    source = given.get("in_parts") or given.get("in_mics")
    if not source or not source.endswith(".star"):
        raise ConfigurationError(
            f"expected a STAR file of particles or micrographs, found {source or 'nothing'}. Fill in the "
            "field 'Input particles' or 'Input micrographs' on the Input tab of the External job."
        )
    listed: Kind = "micrographs" if lists_micrographs(source) else "particles"
    if listed != kind:
        raise ConfigurationError(
            f"{source} lists {listed}. Fill it in as 'Input {listed}' and leave 'Input {kind}' empty."
        )
    return kind, source


def read_values(
    given: Mapping[str, str | None], names: Collection[str], switch: str = "skip_bad"
) -> dict[str, Any]:
    """Return the parameters that are given; `gpu` as `device`.

    Parameters
    ----------
    given
        The command line. A flag without a value is as good as none.
    names
        The parameters to be had.
    switch
        The one that such a flag turns on.

    Raises
    ------
    ConfigurationError
        If both `gpu` and `device` are given.
    """
    values: dict[str, Any] = {name: given[name] for name in names if given.get(name)}
    if switch in given and not given[switch]:
        values[switch] = "yes"
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
    values = read_values(given, model.model_fields)
    if given.get("config"):
        values = load_yaml(str(given["config"]), model).model_dump(exclude_unset=True) | values
    return validate(values, model, "parameters")
