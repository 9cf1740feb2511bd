"""A weights file gives back the network that went in, or says why it does not."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from cryohush.core.errors import ModelError
from cryohush.core.models import MODELS
from cryohush.core.models import weights as weights_module
from cryohush.core.models.weights import list_models, load_model, save_model


def ship(folder: Path, weights: Path, **entry: object) -> None:
    """Make `folder` a folder of shipped models that holds one, named `small`."""
    folder.mkdir()
    (folder / "small.safetensors").write_bytes(weights.read_bytes())
    entry = {
        "file": "small.safetensors",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "measured": {"gain": 2.0},
        **entry,
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump({"small": entry}))


def test_a_saved_network_computes_the_same_after_loading(tmp_path: Path) -> None:
    arguments = {"widths": (8, 8), "blocks": (1, 1), "unshuffle": 2}
    module = MODELS["shuffle_unet"](**arguments)
    sha256 = save_model(tmp_path / "m.safetensors", module, "shuffle_unet", arguments, {"description": "d"})
    loaded = load_model(tmp_path / "m.safetensors")
    images = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(loaded.module(images), module(images), rtol=0, atol=0)
    assert loaded.sha256 == sha256 == hashlib.sha256(loaded.path.read_bytes()).hexdigest()
    assert loaded.card["description"] == "d"
    assert loaded.stride == 4
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_weights_stored_in_half_precision_run_in_single(tmp_path: Path) -> None:
    module = MODELS["shuffle_unet"](widths=(8, 8), blocks=(1, 1)).half()
    save_model(tmp_path / "m.safetensors", module, "shuffle_unet", {"widths": (8, 8), "blocks": (1, 1)}, {})
    loaded = load_model(tmp_path / "m.safetensors").module
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_shipped_model_is_known_by_its_name(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(tmp_path / "shipped", weights)
    monkeypatch.setattr(weights_module, "WEIGHTS_FOLDER", tmp_path / "shipped")
    assert list(list_models()) == ["small"]
    loaded = load_model("small")
    assert loaded.card["measured"] == {"gain": 2.0}
    assert loaded.card["description"] == "random weights"


def test_an_unknown_name_is_answered_with_those_known(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(tmp_path / "shipped", weights)
    monkeypatch.setattr(weights_module, "WEIGHTS_FOLDER", tmp_path / "shipped")
    with pytest.raises(ModelError, match=r"unknown model 'smal'\. Shipped models: small"):
        load_model("smal")


def test_shipped_weights_of_another_hash_are_refused(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ship(tmp_path / "shipped", weights, sha256="0" * 64)
    monkeypatch.setattr(weights_module, "WEIGHTS_FOLDER", tmp_path / "shipped")
    found = hashlib.sha256(weights.read_bytes()).hexdigest()
    with pytest.raises(ModelError, match=f"SHA-256 {'0' * 64} was expected, {found} found"):
        load_model("small")


@pytest.mark.parametrize("content", [b"", b"junk that is longer than its header", None])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is None:  # valid safetensors of another program
        content = safetensors.torch.save({"a": torch.zeros(2)}, metadata={"format": "pt"})
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="not a model of cryohush"):
        load_model(tmp_path / "x.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gone.safetensors: the weights cannot be read: No such file"):
        load_model(tmp_path / "gone.safetensors")


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        ({"name": "vgg", "arguments": {}}, "unknown network 'vgg'; this version has .*shuffle_unet"),
        ({"name": "shuffle_unet", "arguments": {"widths": [16, 8], "blocks": [1, 1]}}, "do not fit"),
        ({"name": "shuffle_unet", "arguments": {"colour": "red"}}, "do not fit .*colour"),
    ],
)
def test_weights_that_do_not_fit_their_network_are_refused_in_one_line(
    tmp_path: Path, weights: Path, network: dict[str, object], expected: str
) -> None:
    tensors = safetensors.torch.load(weights.read_bytes())
    path = tmp_path / "other.safetensors"
    path.write_bytes(safetensors.torch.save(tensors, metadata={"cryohush": json.dumps({"model": network})}))
    with pytest.raises(ModelError, match=expected) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
