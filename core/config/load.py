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
    if not isinstance(kind, str) or kind not in models:
        raise ConfigurationError(f"{path}: kind: expected {' or '.join(models)}, found {kind!r}")
    return validate(values, models[kind], str(path))


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file, one mapping, without a model to fit; parameters and errors as of `load_yaml`."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: expected UTF-8 text, found the byte 0x{error.object[error.start]:02x} at "
            f"{error.start}. Save it as UTF-8."
        ) from error
    values = _parse(text, str(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected `key: value` lines, found a {type(values).__name__}.")
    for override in overrides:
        _override(values, override)
    return values


class _Loader(yaml.SafeLoader):
    """YAML as written: a key that is given twice is refused, not silently the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is given twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, OverflowError) as error:  # the 31st of February, 5,000 digits
            raise yaml.constructor.ConstructorError(
                None, None, f"the value cannot be read ({error})", node.start_mark
            ) from error


def _parse(text: str, source: str) -> Any:
    """Return what YAML `text` says.

    Raises
    ------
    ConfigurationError
        If it is not YAML, or brackets are nested by the thousand.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        problem = error.problem or error.context
        raise ConfigurationError(f"{source}{where}: not valid YAML: {problem}.") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{source}: brackets are nested too deeply.") from error


def validate(values: Mapping[str, Any], model: type[Model], source: str) -> Model:
    """Return `model` made of `values`; `source` (a file, "command line") is named in errors.

    Raises
    ------
    ConfigurationError
        If a key is unknown or a value does not fit.
    """
    if wrong := next((key for key in values if not isinstance(key, str)), None):
        raise ConfigurationError(f"{source}: expected names as keys, found {_shortened(wrong)}.")
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigurationError(f"{source}: {'; '.join(_describe(error, model))}") from error
    except RecursionError as error:
        raise ConfigurationError(f"{source}: sections are nested too deeply.") from error


def _override(values: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigurationError(f"expected key=value, found {text!r}.")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"{text!r}: {section} is a single value, it has no entries.")
    values[last] = _parse(value, repr(text))


def _describe(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Return one sentence for each entry that does not fit."""
    sentences: dict[str, str] = {}
    for problem in error.errors():
        if problem["type"] == "extra_forbidden":
            location = problem["loc"]
            name = ".".join(map(str, location))
            sentences[name] = _unknown(name, str(location[-1]), _keys(model, location[:-1]))
            continue
        # Of a value that may be of several types, pydantic adds each type (`constrained-int`) to its place.
        known = [part for part in problem["loc"] if isinstance(part, int) or part.isidentifier()]
        name, found = ".".join(map(str, known)), f", found {_shortened(problem['input'])}"
        message = problem["msg"].removeprefix("Input should be ")
        if problem["type"] == "missing":
            sentences[name] = f"{name} is missing"
        elif problem["type"] == "value_error":  # a validator's own sentence
            sentences[name] = f"{name}: {problem['ctx']['error']}".removeprefix(": ")
        elif name in sentences:
            sentences[name] = sentences[name].removesuffix(found) + f" or {message}{found}"
        else:
            sentences[name] = f"{name}: expected {message}{found}"
    return list(sentences.values())


def _shortened(value: Any, most: int = 80) -> str:
    """`repr` of a value that may be a whole file."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number with thousands of digits; a list that holds itself
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _unknown(name: str, key: str, valid: Sequence[str]) -> str:
    name = _shortened(name)
    spelt = key.replace("-", "_")  # as on the command line
    by_flag = {field.removesuffix("_angstrom"): field for field in valid}
    nearest = (
        [by_flag[spelt]] if spelt in by_flag else difflib.get_close_matches(spelt, valid, n=1, cutoff=0.5)
    )
    if nearest:
        return f"unknown key {name}; did you mean {nearest[0]!r}?"
    return f"unknown key {name}; expected one of {', '.join(sorted(valid))}"


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Names of the fields of the section at `location`."""
    for part in location:
        field = model.model_fields.get(str(part))
        if field is None:  # an index into a list
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
