"""What all configuration shares: sections that refuse unknown keys, and options that command lines offer."""

from __future__ import annotations

import argparse
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

Style = Literal["shell", "relion"]
"""How options are spelt: `--keep-above 8`, or RELION's `--keep_above 8`, where a flag may have no value."""

_KEY = "cryohush"


def plain_types(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation is made of in the end."""
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        yield from map(type, parts)
    elif parts:
        for part in parts:
            yield from plain_types(part)
    else:
        yield annotation


class Section(BaseModel):
    """A mapping of a YAML file, or the options of a command: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_yes_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """`steps: yes` would be one step."""
        kinds = set(plain_types(cls.model_fields[info.field_name or ""].annotation))
        given = value if isinstance(value, (list, tuple)) else (value,)
        if kinds & {int, float} and not kinds & {bool, Any} and any(isinstance(one, bool) for one in given):
            raise ValueError("expected a number, not yes or no")
        return value


def option(
    default: Any,
    description: str,
    *,
    metavar: str | None = None,
    flag: str | None = None,
    shown: str | None = None,
    former: str | None = None,
    **limits: Any,
) -> Any:
    """A field of a `Section` that command lines and forms offer as well.

    Parameters
    ----------
    default
        As for `pydantic.Field`.
    description
        What it does, for `--help`, the reference and forms: a phrase with the unit, without a full stop.
    metavar
        Placeholder of its value.
    flag
        Its name on command lines; None is that of the field, without the unit `_angstrom`.
    shown
        What stands for the default; None is the default itself.
    former
        A flag that it had in release 0.1, which command lines still take and no longer show.
    limits
        `ge`, `gt` and so on, as for `pydantic.Field`.
    """
    facts: Any = {"metavar": metavar, "flag": flag, "shown": shown, "former": former}
    return Field(default=default, description=description, json_schema_extra={_KEY: facts}, **limits)


@dataclass(frozen=True)
class Option:
    """An option as command lines and forms see it.

    Attributes
    ----------
    name
        Of the field, and of the key in a YAML file.
    flag
        On the command line, without dashes, words joined by hyphens.
    metavar, description, shown
        See `option`.
    is_switch
        Whether it is yes or no.
    is_list
        Whether it takes several values.
    former
        See `option`.
    """

    name: str
    flag: str
    metavar: str
    description: str
    shown: str
    is_switch: bool
    is_list: bool
    former: str | None = None

    @property
    def help(self) -> str:
        """What `--help` says: the description and the default."""
        return f"{self.description} (default: {self.shown})"

    def flags(self, style: Style) -> list[str]:
        """Its spellings on a command line, the one that is documented first."""
        if style == "shell":
            return [f"--{self.flag}"]
        return list(dict.fromkeys([f"--{self.flag.replace('-', '_')}", f"--{self.name}"]))


def options_of(model: type[BaseModel]) -> list[Option]:
    """Return the options that `model` offers to command lines, in the order of its fields."""
    found = []
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra
        if not isinstance(extra, Mapping) or _KEY not in extra:
            continue
        facts: Any = extra[_KEY]
        flag = facts["flag"] or name.removesuffix("_angstrom").replace("_", "-")
        found.append(
            Option(
                name=name,
                flag=flag,
                metavar=facts["metavar"] or flag.rpartition("-")[2].upper(),
                description=(field.description or "").replace("`", ""),
                shown=facts["shown"] or _as_text(field.default),
                is_switch=field.annotation is bool,
                is_list=_is_list(field),
                former=facts["former"],
            )
        )
    return found


def _as_text(default: Any) -> str:
    if default is None or default == ():
        return "none"
    return "off" if default is False else f"{default:g}" if isinstance(default, float) else str(default)


def _is_list(field: FieldInfo) -> bool:
    """Whether the field, or one of its alternatives, is a tuple."""
    kind = field.annotation
    union = get_origin(kind) in (Union, types.UnionType)
    return any(get_origin(one) is tuple for one in (get_args(kind) if union else (kind,)))


def add_options(
    parser: argparse.ArgumentParser,
    model: type[BaseModel],
    style: Style = "shell",
    *,
    without: Collection[str] = (),
    describe: Callable[[Option], str] = lambda option: option.help,
) -> None:
    """Offer the options of `model`; those that are not given are absent from the parser's result.

    Parameters
    ----------
    parser
        Of the command.
    model
        What the command is told.
    style
        How options are spelt.
    without
        Names that the command has another way for.
    describe
        Returns what `--help` says of an option.
    """
    for one in options_of(model):
        if one.name in without:
            continue
        arguments: dict[str, Any] = {
            "dest": one.name,
            "default": argparse.SUPPRESS,
            "help": describe(one).replace("%", "%%"),
        }
        if style == "relion":
            arguments |= {"nargs": "?", "metavar": "YES" if one.is_switch else one.metavar}
        elif one.is_switch:
            arguments["action"] = "store_true"
        else:
            arguments |= {"metavar": one.metavar, "nargs": "+" if one.is_list else None}
        parser.add_argument(*one.flags(style), **arguments)
        if one.former is not None:
            former = f"--{one.former if style == 'shell' else one.former.replace('-', '_')}"
            if former not in one.flags(style):
                parser.add_argument(former, **{**arguments, "help": argparse.SUPPRESS})


def as_keys(text: str, model: type[BaseModel]) -> str:
    """Return a text in which the options of `model` are called by their keys instead of by their flags."""
    for one in options_of(model):
        text = re.sub(rf"--{one.flag}(?![\w-])( \(in forms: \w+\))?", one.name, text)
    return text


def given_options(values: Mapping[str, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Return those of a parser's `values` that are fields of `model`."""
    return {name: values[name] for name in model.model_fields if name in values}


def paths_in(section: BaseModel) -> Iterator[Path]:
    """Yield all paths of a configuration."""
    for _, value in section:
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path):
                yield one
            elif isinstance(one, BaseModel):
                yield from paths_in(one)


def files_in(section: BaseModel) -> list[Path]:
    """Return those files that a configuration names and that are there, each once."""
    return list(dict.fromkeys(path for path in paths_in(section) if path.is_file()))


def type_text(field: FieldInfo) -> str:
    """Return the type of a field in a reader's words, such as `number or none`."""
    return _type_text(field.annotation)


_NAMES = {
    "str": "text",
    "int": "whole number",
    "float": "number",
    "bool": "yes or no",
    "Path": "path",
    "NoneType": "none",
    "dict": "mapping",
    "Any": "anything",
}


def _type_text(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type_text(one) for one in get_args(kind)))
    if origin is tuple:
        inner = get_args(kind)
        if Ellipsis in inner:
            return f"list of {_type_text(inner[0])}"
        return f"[{', '.join(_type_text(one) for one in inner)}]"
    if origin is dict:
        return "mapping"
    if hasattr(kind, "__metadata__"):  # Annotated
        return _type_text(get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return f"section ({kind.__name__})"
    name = getattr(kind, "__name__", str(kind))
    return _NAMES.get(name, re.sub(r"^typing\.", "", name))


def limits_text(field: FieldInfo) -> str:
    """Return the limits of a field, such as `≥ 0, ≤ 1`; empty if there are none."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    limits: Iterable[tuple[str, Any]] = (
        (sign, getattr(limit, name))
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    )
    return ", ".join(f"{sign} {value:g}" for sign, value in limits)
