"""Options stand in one place: all command lines, forms and pages are made from the models."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from cryohush.core import cli
from cryohush.core.config.base import Section, add_options, given_options, option, options_of
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.evaluate import EvaluateConfig
from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.load import validate
from cryohush.core.config.reference import PAGES, as_yaml, reference_page
from cryohush.cryosparc_job import cli as cryosparc
from cryohush.relion_external import cli as relion

ROOT = Path(__file__).parents[3]
COMMANDS: dict[str, type[BaseModel]] = {
    "denoise": DenoiseOptions,
    "extract-noise": ExtractNoiseOptions,
    "evaluate": EvaluateConfig,
}
# What is a job's input in a host, and so not an option there.
INPUTS = {
    "relion": {"evaluate": {"denoised"}},
    "cryosparc": {"evaluate": {"denoised"}},
}


class Example(Section):
    """A model of a test."""

    low_angstrom: float | None = option(None, "a length of 5 % or so, Å", metavar="L", gt=0)
    names: tuple[str, ...] = option((), "some names", metavar="NAME")
    quick: bool = option(False, "whether to hurry")
    hidden: int = 3


def parser(style: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser()
    add_options(made, Example, style)  # type: ignore[arg-type]
    return made


def test_a_field_is_an_option_of_both_styles() -> None:
    shell = vars(parser("shell").parse_args(["--low", "8", "--names", "a", "b", "--quick"]))
    assert given_options(shell, Example) == {"low_angstrom": "8", "names": ["a", "b"], "quick": True}
    in_relion = vars(parser("relion").parse_args(["--low_angstrom", "8", "--names", "--quick"]))
    assert in_relion == {"low_angstrom": "8", "names": None, "quick": None}
    assert vars(parser("shell").parse_args([])) == {}
    assert "a length of 5 % or so, Å (default: none)" in " ".join(parser("shell").format_help().split())


@pytest.mark.parametrize("style", ["shell", "relion"])
def test_flags_of_release_0_1_are_still_taken_and_no_longer_shown(style: str) -> None:
    made = argparse.ArgumentParser()
    add_options(made, ExtractNoiseOptions, style)  # type: ignore[arg-type]
    flag = "--least-p-value" if style == "shell" else "--least_p_value"
    assert vars(made.parse_args([flag, "0"])) == {"min_noise_probability": "0"}
    assert flag not in made.format_help()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("host", ["core", "relion", "cryosparc"])
def test_every_host_offers_every_option(host: str, command: str) -> None:
    wanted = {option.name for option in options_of(COMMANDS[command])}
    builders = {"core": cli.build_parser, "relion": relion.build_parser, "cryosparc": cryosparc.build_parser}
    subparsers = next(
        action for action in builders[host]()._actions if isinstance(action, argparse._SubParsersAction)
    )
    offered = {action.dest for action in subparsers.choices[command]._actions}
    assert wanted - INPUTS.get(host, {}).get(command, set()) <= offered


@pytest.mark.parametrize("model", COMMANDS.values())
def test_every_field_of_a_command_is_described_and_most_are_options(model: type[BaseModel]) -> None:
    sections = {"half_maps", "picking", "clustering", "pose"}
    assert {option.name for option in options_of(model)} == set(model.model_fields) - sections
    assert all(field.description for field in model.model_fields.values())
    flags = [option.flag for option in options_of(model)]
    assert len(set(flags)) == len(flags)


def test_the_reference_is_what_the_program_has() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == reference_page(), "python -m cryohush.core.config.reference > docs/reference.md"


def test_a_printed_configuration_is_read_again() -> None:
    given = DenoiseOptions(blend=0.25, keep_above_angstrom=8.0, batch_size=4)
    assert validate(yaml.safe_load(as_yaml(given)), DenoiseOptions, "printed") == given


@pytest.mark.parametrize("command", ["", *COMMANDS, "train", "batch", "simulate", "models", "doctor"])
def test_help_brings_in_nothing_heavy(command: str) -> None:
    heavy = ["torch", "matplotlib", "pandas", "scipy", "numpy", "distributed"]
    words = [*([command] if command else []), "--help"]
    code = (
        f"import sys; from cryohush.core.cli import main; main({words});"
        f"sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_pages_show_every_section() -> None:
    assert set(COMMANDS) <= set(PAGES)
