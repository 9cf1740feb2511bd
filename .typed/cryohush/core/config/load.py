"""YAML and `key=value` text into a pydantic model, with errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ..errors import ConfigurationError
from .preset_list import PRESET_FOLDER, preset_descriptions

Model = TypeVar("Model", bound=BaseModel)


def find_preset(name_or_path: str) -> Path:
    """Return the file of a shipped preset, or the path of a user's own `.yaml` file.

    Raises
    ------
    ConfigurationError
        If it is neither; names the presets.
    """
    preset = PRESET_FOLDER / f"{name_or_path}.yaml"
    if preset.is_file():
        return preset
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        known = ", ".join(preset_descriptions())
        raise ConfigurationError(f"unknown preset {name_or_path!r}: {known}, or the path of a .yaml file.")
    return path


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
    return validate(read_yaml(path, overrides), model, str(path))


def load_kind(
    path: str | Path, models: Mapping[str, type[BaseModel]], overrides: Sequence[str] = ()
) -> BaseModel:
    """Read a YAML file into the model that its entry `kind` names; without one, into the first model.

    Raises
    ------
    ConfigurationError
        As `load_yaml`, or if the kind is unknown.
    """
    values = read_yaml(path, overrides)
    kind = values.get("kind", next(iter(models)))
    if kind not in models:
        raise ConfigurationError(f"{path}: kind: expected {' or '.join(models)}, found {kind!r}")
    return validate(values, models[kind], str(path))


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file, one mapping, without a model to fit; parameters and errors as of `load_yaml`."""
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
    return values


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
        raise ConfigurationError(f"{source}: {'; '.join(_describe(error, model))}") from error


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


def _describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one sentence for each entry that does not fit."""
    sentences: dict[str, str] = {}
    for problem in error.errors():
        # Of a value that may be of several types, pydantic adds each type (`constrained-int`) to its place.
        location = [part for part in problem["loc"] if isinstance(part, int) or part.isidentifier()]
        name, found = ".".join(map(str, location)), f", found {problem['input']!r}"
        message = problem["msg"].removeprefix("Input should be ")
        if problem["type"] == "extra_forbidden":
            sentences[name] = _unknown(name, str(location[-1]), _keys(model, location[:-1]))
        elif problem["type"] == "missing":
            sentences[name] = f"{name} is missing"
        elif problem["type"] == "value_error":  # a validator's own sentence
            sentences[name] = f"{name}: {problem['ctx']['error']}".removeprefix(": ")
        elif name in sentences:
            sentences[name] = sentences[name].removesuffix(found) + f" or {message}{found}"
        else:
            sentences[name] = f"{name}: expected {message}{found}"
    return list(sentences.values())


def _unknown(name: str, key: str, valid: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    if nearest:
        return f"unknown key {name!r}; did you mean {nearest[0]!r}?"
    return f"unknown key {name!r}; expected one of {', '.join(sorted(valid))}"


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section at `location`."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # an index into a list
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
