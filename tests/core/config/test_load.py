"""A configuration says what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ConfigDict

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.evaluate import EvaluateConfig
from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.load import COMMAND_LINE, find_preset, load_yaml, validate
from cryohush.core.config.preset_list import PRESET_FOLDER, preset_descriptions
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import ConfigurationError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid")
    steps: int = 1
    rate: float = 0.1


class Whole(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    section: Section = Section()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_overrides_reach_into_sections(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", "name: a\nsection: {steps: 3}\n")
    loaded = load_yaml(path, Whole, ["section.steps=7", "section.rate=0.5"])
    assert loaded == Whole(name="a", section=Section(steps=7, rate=0.5))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\nsektion: {}\n", "unknown key 'sektion'; did you mean 'section'?"),
        ("name: a\nsection: {stepz: 1}\n", "unknown key 'section.stepz'; did you mean 'steps'?"),
        ("name: a\nqqq: 1\n", "unknown key 'qqq'; expected one of name, section"),
        ("section: {}\n", "name is missing"),
        ("name: a\nsection: {steps: many}\n", "section.steps: expected a whole number, found 'many'"),
        ("name: a\nsection: 3\n", "section: expected a section, `key: value` lines, found 3"),
        ("- a\n", "expected `key: value` lines, found a list"),
        ("name: [\n", "not valid YAML"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected) as caught:
        load_yaml(write(tmp_path / "c.yaml", text), Whole)
    assert "c.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "override", ["optimisation.steps=yes", "pairs.half_set=yes", "pairs.contrast=[1, yes]", "seed=no"]
)
def test_yes_is_no_number(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigurationError, match=f"{key}: expected a number, not yes or no"):
        load_yaml(find_preset("recorrupted"), TrainingConfig, [override])
    assert not load_yaml(
        find_preset("recorrupted"), TrainingConfig, ["loss.snr_weighted=no"]
    ).loss.snr_weighted


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone.yaml: cannot be read: No such file"):
        load_yaml(tmp_path / "gone.yaml", Whole)


@pytest.mark.parametrize("override", ["steps", "=3", "name.x=1"])
def test_an_override_that_is_none_is_quoted(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigurationError, match=override):
        load_yaml(write(tmp_path / "c.yaml", "name: a\n"), Whole, [override])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("blend", "1.5", "^--blend: .*less than or equal to 1.*'1.5'"),
        ("precision", "fp8", "^--precision: .*'auto'.*'fp8'"),
        ("keep_above_angstrom", "-3", "^--keep-above: .*greater than 0"),
        ("batch_size", "0", "^--batch-size: .*'0'"),
        ("batch_size", "big", "^--batch-size: .*'auto'.*'big'"),
        ("blind", "1", "unknown key 'blind'; did you mean 'blend'?"),
    ],
)
def test_an_option_out_of_its_range_is_refused(key: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=expected) as caught:
        validate({key: value}, DenoiseOptions, "command line")
    assert str(caught.value).count(";") == expected.count(";"), "one problem, told once"


def test_options_are_named_as_they_were_given(tmp_path: Path) -> None:
    """By their flags on a command line, by their keys in a file."""
    wrong = {"blend": "2", "pixel_size_angstrom": "0", "limit": "none"}
    with pytest.raises(ConfigurationError) as caught:
        validate(wrong, DenoiseOptions, "command line")
    flags = [part.split(":")[0] for part in str(caught.value).split("; ")]
    assert sorted(flags) == ["--blend", "--limit", "--pixel-size"]
    path = write(tmp_path / "c.yaml", "".join(f"{key}: {value}\n" for key, value in wrong.items()))
    with pytest.raises(ConfigurationError, match=f"^{path}: ") as caught:
        load_yaml(path, DenoiseOptions)
    assert all(f"{key}: expected" in str(caught.value) for key in wrong)


def test_text_becomes_what_the_option_is() -> None:
    options = validate(
        {"batch_size": "8", "blend": "0.25", "skip_bad": "yes"}, DenoiseOptions, "command line"
    )
    assert (options.batch_size, options.blend, options.skip_bad) == (8, 0.25, True)


def test_preset_is_found_by_name_and_a_file_by_its_path():
    assert find_preset("general").name == "general.yaml"
    assert find_preset("my/own.yaml") == Path("my/own.yaml")
    with pytest.raises(ConfigurationError, match=r"unknown preset 'genral': .*general, .*or the path"):
        find_preset("genral")


def test_presets_are_described_as_their_yaml_says() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in PRESET_FOLDER.glob("*.yaml")}
    assert preset_descriptions() == {
        name: yaml.safe_load(text)["description"] for name, text in texts.items()
    }


@pytest.mark.parametrize(
    ("model", "values", "named"),
    [
        (ExtractNoiseOptions, {"ssim": "parts", "coarse_pixel_angstrom": 8.0}, "needs --coarse-pixel 0,"),
        (ExtractNoiseOptions, {"window_px": 1}, "--window-px: "),
        (EvaluateConfig, {"denoised": "a.star", "twin": "b.star", "align_twin": True}, "--align-twin needs"),
    ],
)
def test_options_within_a_sentence_are_named_by_their_flags_as_well(
    model: type[BaseModel], values: dict[str, object], named: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        validate(values, model, COMMAND_LINE)
    assert named in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        validate(values, model, "options.yaml")
    assert "--" not in str(caught.value)
