"""YAML and `key=value` text into a pydantic model, with errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import ConfigurationError

Model = TypeVar("Model", bound=BaseModel)


def load_yaml(path: str | Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file into `model`.

    Parameters
    ----------
    path
        The file: one mapping.
    model
        The pydantic model that it must fit.
    overrides
        `key=value` texts that replace single entries; `a.b=value` reaches into a section, and the value is
        read as YAML.

    Raises
    ------
    ConfigurationError
        If the file is missing or not YAML, or a key or value does not fit; names all that do not, and for an
        unknown key the nearest valid one.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected `key: value` lines, found a {type(values).__name__}.")
    for override in overrides:
        _override(values, override)
    return validate(values, model, str(path))


def validate(values: Mapping[str, Any], model: type[Model], source: str) -> Model:
    """Return `model` made of `values`; `source` (a file, "command line") is named in errors.

    Raises
    ------
    ConfigurationError
        If a key is unknown or a value does not fit.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = "; ".join(_describe(problem, model) for problem in error.errors())
        raise ConfigurationError(f"{source}: {problems}") from error


def _override(values: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigurationError(f"expected key=value, found {text!r}.")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"{text!r}: {section} is a single value, it has no entries.")
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{text!r}: the value is not valid YAML.") from error


def _describe(problem: Any, model: type[BaseModel]) -> str:
    location = problem["loc"]
    name = ".".join(str(part) for part in location)
    if problem["type"] != "extra_forbidden":
        if problem["type"] == "missing":
            return f"{name} is missing"
        return f"{name}: {problem['msg'].lower()}, found {problem['input']!r}"
    valid = _keys(model, location[:-1])
    nearest = difflib.get_close_matches(str(location[-1]), valid, n=1, cutoff=0.5)
    if nearest:
        return f"unknown key {name!r}; did you mean {nearest[0]!r}?"
    return f"unknown key {name!r}; expected one of {', '.join(sorted(valid))}"


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section at `location`."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # an index into a list, or the name of a union's member
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
