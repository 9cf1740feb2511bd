"""Whatever stands in a configuration, it is valid, or there is one line that says what is wrong."""

from __future__ import annotations

import copy
import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from cryohush.core.config.batch import BatchPlan
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.evaluate import EvaluateConfig
from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.load import load_kind, load_yaml, validate
from cryohush.core.config.micrographs import MicrographsConfig
from cryohush.core.config.nt2c import Nt2cConfig
from cryohush.core.config.preset_list import PRESET_FOLDER
from cryohush.core.config.segmentation import SegmentationConfig
from cryohush.core.config.simulate import ParticlesConfig
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import ConfigurationError

TRAINING: dict[str, type[BaseModel]] = {
    "denoiser": TrainingConfig,
    "segmentation": SegmentationConfig,
    "nt2c": Nt2cConfig,
}
MODELS: dict[str, type[BaseModel]] = {
    "denoise": DenoiseOptions,
    "extract-noise": ExtractNoiseOptions,
    "evaluate": EvaluateConfig,
    "batch": BatchPlan,
    "particles": ParticlesConfig,
    "micrographs": MicrographsConfig,
    **TRAINING,
}

# Valid ones to begin with, so that mutations get past the first check.
PLAN = {
    "job": "denoise",
    "output": "out",
    "options": {"model": "general", "blend": 0.1},
    "sources": [{"file": "a.star"}, {"name": "b", "file": "b.mrcs", "options": {"skip_bad": True}}],
    "engine": {"kind": "local", "workers": 2},
}
EVALUATE = {"denoised": "a.star", "reference": "b.star", "metrics": ["ssim"], "pose": {"map": "m.mrc"}}
PARTICLES = {
    "structures": [{"path": "1abc.pdb"}],
    "n_images": 10,
    "box_px": 64,
    "pixel_size_angstrom": 2.0,
    "snr": [0.1],
    "noise": {},
}
BEGINNINGS: list[tuple[type[BaseModel], Any]] = [
    (DenoiseOptions, {"model": "general", "batch_size": "auto", "threads": 2}),
    (ExtractNoiseOptions, {"window_px": 64, "method": "similarity"}),
    (EvaluateConfig, EVALUATE),
    (BatchPlan, PLAN),
    (ParticlesConfig, PARTICLES),
]

ODD = st.sampled_from(
    [
        "2020-13-41", "12:99:99", "!!python/object:os.system x", datetime.date(2020, 1, 31), 10**40,
        None, True, -1, 0, 2**62, 1e400, float("nan"), -0.0, "", " ", "auto", "1e9999", "nan", "µÅ", "a/../b",
        "x" * 5000, "a\nb", [], [[]], {}, {"a": {"b": {"c": 1}}}, ["a", 1, None], [0.0] * 50, "\x7f\n",
    ]
)  # fmt: skip


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Each key and index of nested data."""
    items = list(
        data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    )
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn, beginning: Any) -> Any:
    """A copy with one to three entries replaced, removed, added or misspelt."""
    data = copy.deepcopy(beginning)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([place for place in places(data) if place] or [()]))
        if not path:
            break
        holder = data
        for part in path[:-1]:
            holder = holder[part]
        change = draw(st.sampled_from(["replace", "remove", "add", "misspell"]))
        if change == "replace":
            holder[path[-1]] = copy.deepcopy(draw(ODD))
        elif change == "remove":
            del holder[path[-1]]
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(draw(ODD)))
        elif change == "add":
            holder[draw(st.text(max_size=6))] = copy.deepcopy(draw(ODD))
        else:
            name = str(path[-1])
            holder[draw(st.sampled_from([name.replace("_", "-"), name.upper(), name[1:], f"{name}s"]))] = 1
    return data


def says_one_line(error: ConfigurationError) -> None:
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 4000, "read by a person"


@pytest.mark.parametrize(("model", "beginning"), BEGINNINGS, ids=lambda value: getattr(value, "__name__", ""))
def test_beginnings_are_valid(model: type[BaseModel], beginning: Any) -> None:
    assert isinstance(validate(beginning, model, "fuzz.yaml"), model)


@pytest.mark.parametrize(("model", "beginning"), BEGINNINGS, ids=lambda value: getattr(value, "__name__", ""))
@given(data=st.data())
@settings(max_examples=60)
def test_mutated_configurations(model: type[BaseModel], beginning: Any, data: st.DataObject) -> None:
    values = data.draw(mutated(beginning))
    try:
        loaded = validate(values, model, "fuzz.yaml")
    except ConfigurationError as error:
        says_one_line(error)
        return
    if isinstance(loaded, BatchPlan):
        for number in range(len(loaded.sources)):
            try:
                loaded.options_of(number)
            except ConfigurationError as error:
                says_one_line(error)


@pytest.mark.parametrize("preset", sorted(PRESET_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
@given(data=st.data(), cut=st.integers(0, 60))
@settings(max_examples=25)
def test_mutated_presets(preset: Path, data: st.DataObject, cut: int, tmp_path: Path) -> None:
    values = data.draw(mutated(yaml.safe_load(preset.read_text(encoding="utf-8"))))
    path, text = tmp_path / "fuzz.yaml", yaml.safe_dump(values)
    for version in (text, text[: len(text) - cut]):
        path.write_text(version, encoding="utf-8")
        try:
            load_kind(path, TRAINING)
        except ConfigurationError as error:
            says_one_line(error)


@pytest.mark.parametrize("name", MODELS)
@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
@settings(max_examples=40)
def test_any_bytes(name: str, raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(raw)
    try:
        load_yaml(path, MODELS[name])
    except ConfigurationError as error:
        says_one_line(error)


@given(
    key=st.text("abcdefgh._-[]0 ", max_size=12)
    | st.sampled_from(["options", "sources", "engine.workers", "."]),
    value=st.text(max_size=30)
    | st.sampled_from(["[", "!!int x", "2020-13-41", "9" * 5000, "*a", "\t", "{a: "]),
)
@settings(max_examples=300)
def test_any_set(key: str, value: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(PLAN), encoding="utf-8")
    try:
        load_yaml(path, BatchPlan, [f"{key}={value}"])
    except ConfigurationError as error:
        says_one_line(error)


@given(values=st.dictionaries(st.sampled_from(sorted(DenoiseOptions.model_fields)), st.text(max_size=12)))
@settings(max_examples=200)
def test_any_options_of_a_command_line(values: dict[str, str]) -> None:
    try:
        validate(values, DenoiseOptions, "command line")
    except ConfigurationError as error:
        says_one_line(error)
