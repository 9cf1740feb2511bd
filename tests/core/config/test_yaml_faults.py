"""What a YAML file must not hold is refused in one line that says where and what instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryohush.core.config.batch import BatchPlan
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.load import load_kind, load_yaml
from cryohush.core.config.simulate import ParticlesConfig
from cryohush.core.errors import ConfigurationError


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch-size: 4", ["batch-size", "did you mean 'batch_size'?"]),
        ("keep-above: 4", ["did you mean 'keep_above_angstrom'?"]),
        ("keep_above: 4", ["did you mean 'keep_above_angstrom'?"]),
        ("blend: 2020-13-41", ["blend", "number", "found '2020-13-41'"]),
        ("blend: " + "9" * 5000, ["line 1", "too large"]),
        ("blend: [[" * 3000, ["line 1", "levels deep"]),
        ("blend: " + "[" * 3000 + "]" * 3000, ["line 1", "levels deep"]),
        ("blend: 0.1\nblend: 0.2", ["line 2", "'blend' stands twice"]),
        ("blend: 0.1\n\tx: 1", ["line 2", "not valid YAML", "blanks instead of tabs"]),
        ("- blend", ["expected `key: value` lines, found a list"]),
        ("just text", ["found a str"]),
        ("5: 4", ["unknown key '5'"]),
        ("0: 4", ["unknown key '0'"]),
        (b"model: caf\xe9", ["UTF-8", "0xe9"]),
        ("model: !!python/object:os.system x", ["not valid YAML"]),
        ("&a [*a]", ["holds itself"]),
    ],
)
def test_a_file_is_refused_in_one_line(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_yaml(write(tmp_path / "options.yaml", text), DenoiseOptions)
    message = str(caught.value)
    assert "options.yaml" in message
    assert "\n" not in message
    assert len(message) < 600
    assert all(word in message for word in words), message


def test_a_hyphen_one_level_down_is_told_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "plan.yaml", "output: o\nsources: [{file: a.star}]\nengine: {range-mb: 4}\n")
    with pytest.raises(ConfigurationError, match=r"engine.range-mb.*did you mean 'range_mb'"):
        load_yaml(path, BatchPlan)


@pytest.mark.parametrize("kind", ["[x]", "{a: b}", "3", "null", "nt3c"])
def test_a_kind_that_is_none_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ConfigurationError, match="kind: expected particles or other"):
        load_kind(
            write(tmp_path / "c.yaml", f"kind: {kind}"),
            {"particles": ParticlesConfig, "other": DenoiseOptions},
        )


def test_an_empty_file_leaves_the_defaults(tmp_path: Path) -> None:
    assert load_yaml(write(tmp_path / "empty.yaml", ""), DenoiseOptions) == DenoiseOptions()
