"""Every option and key of every command, as text: the reference page and `--print-config`."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from .base import limits_text, options_of, plain_types, type_text
from .batch import BatchPlan, Source, host_sources
from .denoise import DenoiseOptions
from .evaluate import EvaluateConfig
from .extract_noise import ExtractNoiseOptions
from .micrographs import MicrographsConfig
from .nt2c import Nt2cConfig
from .segmentation import SegmentationConfig
from .simulate import ParticlesConfig
from .training import TrainingConfig

PAGES: dict[str, type[BaseModel]] = {
    "denoise": DenoiseOptions,
    "extract-noise": ExtractNoiseOptions,
    "evaluate": EvaluateConfig,
    "simulate: particles": ParticlesConfig,
    "simulate: micrographs": MicrographsConfig,
    "train": TrainingConfig,
    "train: segmentation": SegmentationConfig,
    "train: NT2C": Nt2cConfig,
    "batch": BatchPlan,
}


def reference_page() -> str:
    """Return docs/reference.md."""
    lines = [
        "# Reference",
        "",
        "All options and keys, as the program has them (`python -m cryohush.core.config.reference`). A key",
        "with a flag is an option of `cryohush` and `cryosparc_cryohush`; in RELION's form its label is",
        "the flag without dashes and with underscores (`keep_above`). All keys stand in YAML files: of",
        "`--config`, of a plan's `options`, of `simulate` and `train`. `--print-config` shows the values",
        "of a command.",
    ]
    for title, model in PAGES.items():
        lines += ["", f"## {title}", "", _first_line(model)]
        lines += _table(model)
        for section in _sections(model):
            lines += ["", f"### {title}: {section.__name__}", "", _first_line(section), *_table(section)]
    return "\n".join(lines) + "\n"


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().partition("\n")[0]


def _table(model: type[BaseModel]) -> Iterator[str]:
    flags = {option.name: f"`--{option.flag}`" for option in options_of(model)}
    yield from ("", "| key | flag | type | default | meaning |", "|---|---|---|---|---|")
    for name, field in model.model_fields.items():
        limits = limits_text(field)
        kind = type_text(field) + (f"; {limits}" if limits else "")
        meaning = (field.description or "").replace("|", "\\|")
        cells = [f"`{name}`", flags.get(name, ""), kind, _default(field), meaning]
        yield f"| {' | '.join(cells)} |"


def _default(field: FieldInfo) -> str:
    default = field.default
    if default is PydanticUndefined:
        return "needed"
    if isinstance(default, BaseModel):
        return "the section's own"
    if default is None or default in ((), {}, ""):
        return "none"
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"`{list(default) if isinstance(default, tuple) else default}`"


def _sections(model: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> Iterator[type[BaseModel]]:
    """Yield the models of the sections below `model`, each once."""
    seen = set() if seen is None else seen
    for field in model.model_fields.values():
        for found in _models_in(field.annotation):
            if found not in seen:
                seen.add(found)
                yield found
                yield from _sections(found, seen)


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    for one in plain_types(kind):
        if one is Source:
            yield from host_sources().values()
        elif isinstance(one, type) and issubclass(one, BaseModel):
            yield one


def as_yaml(config: BaseModel, leave_out: Collection[str] = ()) -> str:
    """Return the values of a configuration as a YAML file that gives them again, each with its meaning."""
    import yaml

    meanings = {name: field.description or "" for name, field in type(config).model_fields.items()}
    parts = []
    for name, value in config.model_dump(mode="json", exclude=set(leave_out)).items():
        comment = f"# {meanings[name]}\n" if meanings[name] else ""
        parts.append(comment + yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True))
    return "".join(parts)


def blank_yaml(model: type[BaseModel]) -> str:
    """Return all keys of a configuration with their defaults as a YAML file, each with its meaning.

    Those without a default have no value: the file is for filling in.
    """
    return "".join(_blank_lines(model, ""))


def _blank_lines(model: type[BaseModel], indent: str) -> Iterator[str]:
    import yaml

    for name, field in model.model_fields.items():
        if field.description:
            yield f"{indent}# {field.description}\n"
        section = field.annotation
        if field.default is not PydanticUndefined:
            default = TypeAdapter(Any).dump_python(field.default, mode="json")
            yield textwrap.indent(
                yaml.safe_dump({name: default}, sort_keys=False, allow_unicode=True), indent
            )
        elif get_origin(section) is Literal and len(get_args(section)) == 1:
            yield f"{indent}{name}: {get_args(section)[0]}\n"
        elif isinstance(section, type) and issubclass(section, BaseModel):
            yield f"{indent}{name}:\n"
            yield from _blank_lines(section, f"{indent}  ")
        elif get_origin(section) is tuple and (entries := list(_models_in(section))):
            # a list: one entry to fill in, which begins with a dash
            yield f"{indent}{name}:\n{indent}-\n"
            yield from _blank_lines(entries[0], f"{indent}  ")
        else:
            yield f"{indent}{name}:  # needed: {type_text(field)}\n"


if __name__ == "__main__":
    print(reference_page(), end="")
