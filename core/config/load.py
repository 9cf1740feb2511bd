"""YAML and `key=value` text into a pydantic model, with errors that a user can act on."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ..errors import ConfigurationError
from .base import options_of, plain_types
from .preset_list import PRESET_FOLDER, preset_descriptions
from .strict_yaml import MAX_BYTES, parse

Model = TypeVar("Model", bound=BaseModel)

COMMAND_LINE = "command line"
"""The source of values that are of no file."""

MAX_PROBLEMS = 8
"""So many are told at once; after more, only their number."""

MAX_LETTERS = 600
"""Of a sentence."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlevel = 3


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
        hint = _nearest(str(kind), list(models))
        raise ConfigurationError(
            f"{path}: kind: expected {' or '.join(models)}, found {_SHORT.repr(kind)}{hint}"
        )
    return validate(values, models[kind], str(path))


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a YAML file, one mapping, without a model to fit; parameters and errors as in `load_yaml`."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}.") from error
    if len(raw) > MAX_BYTES:
        raise ConfigurationError(
            f"{path}: expected a YAML file, found more than {MAX_BYTES // 2**20} MB of data."
        )
    try:
        text = raw.decode("utf-8-sig")  # editors on Windows put a mark before the text
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{path}, line {line}: expected UTF-8 text, found the byte 0x{raw[error.start]:02x}. "
            "Save the file as UTF-8."
        ) from error
    try:
        values = parse(text)
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}{_yaml_problem(error)}") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected `key: value` lines, found a {type(values).__name__}.")
    for override in overrides:
        _override(values, override)
    return values


def _yaml_problem(error: yaml.YAMLError) -> str:
    """Say in one line where text is not YAML, and why; the file's name goes before it."""
    mark = getattr(error, "problem_mark", None)
    where = "" if mark is None else f", line {mark.line + 1}"
    text = _sentence(error)
    if "'\\t'" in text:
        text += "; indent with blanks instead of tabs"
    return f"{where}: not valid YAML: {text}."


def _sentence(error: yaml.YAMLError) -> str:
    context, problem = getattr(error, "context", None), getattr(error, "problem", None)
    if problem and context and problem.startswith("but"):
        problem = f"{context}, {problem}"
    return " ".join(str(problem or error).split())


def validate(values: Mapping[str, Any], model: type[Model], source: str) -> Model:
    """Return `model` made of `values`; `source` (a file, `COMMAND_LINE`) is named in errors.

    Raises
    ------
    ConfigurationError
        If a key is unknown or a value does not fit.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = _describe(error, values, model)
        if len(problems) > MAX_PROBLEMS:
            problems[MAX_PROBLEMS:] = [f"and {len(problems) - MAX_PROBLEMS} more"]
        text = "; ".join(problems)
        if source == COMMAND_LINE:  # its options are known by their flags
            for option in options_of(model):
                text = re.sub(rf"(^|; ){option.name}: ", rf"\1--{option.flag}: ", text)
                if "_" in option.name:  # is no other word
                    text = re.sub(rf"(^| ){option.name}(?=[ ,.;]|$)", rf"\1--{option.flag}", text)
            raise ConfigurationError(text) from error
        raise ConfigurationError(f"{source}: {text}") from error


def _override(values: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ConfigurationError(f"expected key=value, found {_SHORT.repr(text)}.")
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigurationError(f"{_SHORT.repr(text)}: {section} is not a section, it has no entries.")
    try:
        values[last] = parse(value)
    except yaml.YAMLError as error:
        raise ConfigurationError(
            f"{_SHORT.repr(text)}: the value is not valid YAML: {_sentence(error)}."
        ) from error


_EXPECTED = {
    **dict.fromkeys(("int_parsing", "int_type", "int_from_float"), "Input should be a whole number"),
    **dict.fromkeys(("float_parsing", "float_type"), "Input should be a number"),
    **dict.fromkeys(("bool_parsing", "bool_type"), "Input should be yes or no"),
    **dict.fromkeys(("model_type", "dict_type"), "Input should be a section, `key: value` lines"),
    "path_type": "Input should be a path",
    "string_type": "Input should be text",
    "tuple_type": "Input should be a list",
}
"""What is expected in a user's words, where pydantic speaks to programmers."""


def _describe(error: ValidationError, values: Mapping[str, Any], model: type[BaseModel]) -> list[str]:
    """Return one sentence for each entry that does not fit."""
    sentences: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        location = _location(problem, values)
        name, found = ".".join(map(str, location)), f", found {_SHORT.repr(problem['input'])}"
        message = _EXPECTED.get(problem["type"], problem["msg"]).removeprefix("Input should be ")
        if problem["type"] == "extra_forbidden":
            key = str(location[-1]) if location else name
            sentences[name] = _unknown(name, key, sorted(_keys(model, location[:-1])))
        elif problem["type"] == "missing":
            sentences[name] = f"{name} is missing"
        elif problem["type"] == "value_error":  # a validator's own sentence
            sentences[name] = _cut(f"{name}: {problem['ctx']['error']}".removeprefix(": "))
        elif message == problem["msg"]:  # a sentence of its own
            sentences[name] = f"{name}: {message[:1].lower()}{message[1:]}{found}".removeprefix(": ")
        elif name in sentences:
            sentences[name] = sentences[name].removesuffix(found) + f" or {message}{found}"
        else:
            sentences[name] = f"{name}: expected {message}{found}"
    return list(sentences.values())


def _cut(text: str) -> str:
    """Keep a sentence that quotes what a user wrote to one line, and not a page long."""
    text = " ".join(text.split())
    return text if len(text) <= MAX_LETTERS else f"{text[:MAX_LETTERS]}…"


def _location(problem: ErrorDetails, values: Any) -> list[int | str]:
    """Return the keys and indices that lead to what does not fit.

    Of a value that may be of several types, pydantic adds each type (`constrained-int`) to its place: what
    the user did not write is left out.
    """
    location: list[int | str] = []
    for part in problem["loc"]:
        inside = isinstance(values, Mapping) and part in values
        if inside or (isinstance(values, (list, tuple)) and isinstance(part, int) and part < len(values)):
            values = values[part]
            location.append(part)
        elif isinstance(values, Mapping) and problem["type"] == "missing" and part == problem["loc"][-1]:
            location.append(part)
    return location


def _unknown(name: str, key: str, valid: Sequence[str]) -> str:
    hint = _nearest(key, valid) or f"; expected one of {', '.join(valid)}"
    return f"unknown key {_SHORT.repr(name)}{hint}"


def _nearest(word: str, valid: Sequence[str]) -> str:
    """Return `; did you mean …?`, or nothing. Command lines spell keys with hyphens and without units."""
    spelt = word[:80].replace("-", "_").lower()
    by_flag = {
        stem: key
        for key in valid
        if f"{(stem := key.removesuffix('_angstrom'))}_px" not in valid  # else its flag has the unit
    }
    nearest = (
        [by_flag[spelt]] if spelt in by_flag else difflib.get_close_matches(spelt, valid, n=1, cutoff=0.5)
    )
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Names of the fields of the sections that may stand at `location`."""
    models = [model]
    for part in location:
        if isinstance(part, int):  # the sections of a list are alike
            continue
        fields = [one.model_fields[part] for one in models if part in one.model_fields]
        models = [found for field in fields for found in _sections(field.annotation)] or models
    return {name for one in models for name in one.model_fields}


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the sections that a type is made of, and their special cases."""
    for kind in plain_types(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
            for special in kind.__subclasses__():
                yield from _sections(special)
