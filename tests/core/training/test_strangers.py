"""A network of another package: found by its name or place, trained and run, or refused with a reason."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from particle_files import write_stack
from stranger import installed

from cryohush.core.cli import main
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import ConfigurationError, ModelError
from cryohush.core.models import MODELS, build_network
from cryohush.core.models.weights import load_model, save_model
from cryohush.core.registry import Registry, is_place
from cryohush.core.training.run import train

SOURCE = """
from torch import nn
from cryohush.core.models.base import DenoisingNetwork


class Blur(DenoisingNetwork):
    def __init__(self, side: int = 5):
        super().__init__()
        self.stride, self.receptive_field_px = 2, side // 2
        self.layer = nn.Conv2d(1, 1, side, padding=side // 2)

    def forward(self, x):
        return self.layer(x)


class Plain(nn.Module):  # derived from nothing of cryohush
    def __init__(self, **attributes):
        super().__init__()
        self.layer = nn.Conv2d(1, attributes.pop("channels", 1), 3, padding=attributes.pop("padding", 1))
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.layer(x)


def not_a_network():
    return 3
"""
POINTS = "[cryohush.networks]\nblur = strange_networks:Blur\nplain = strange_networks:Plain\n"


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    with installed(tmp_path / "site", "strange_networks", SOURCE, POINTS):
        yield tmp_path / "site"


@pytest.mark.parametrize("name", ["blur", "strange_networks:Blur"])
def test_a_network_of_another_package_is_trained_and_denoises(
    stranger: Path, tiny: dict[str, Any], tmp_path: Path, name: str
) -> None:
    config = TrainingConfig.model_validate({**tiny, "network": {"name": name, "arguments": {"side": 3}}})
    weights = train(config, tmp_path / "run")
    model = load_model(weights)
    assert type(model.module).__name__ == "Blur"
    assert model.card["model"] == {"name": name, "arguments": {"side": 3}}
    images = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    write_stack(tmp_path / "x.mrcs", images, 2.0)
    command = ["denoise", str(tmp_path / "x.mrcs"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*command, "--model", str(weights), "--precision", "fp32"]) == 0
    assert "blur" in list(MODELS)


def test_a_module_that_derives_from_nothing_of_ours_will_do(stranger: Path) -> None:
    network = build_network("plain", {"stride": 1, "receptive_field_px": 1})
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("plain", {"receptive_field_px": 1}, "should have stride, an integer of at least 1, and lacks it"),
        ("plain", {"stride": 0, "receptive_field_px": 1}, "should have stride, .* and has 0"),
        ("plain", {"stride": 2.0, "receptive_field_px": 1}, r"should have stride, .* and has 2\.0"),
        ("plain", {"stride": 2}, "should have receptive_field_px, an integer of at least 0, and lacks it"),
        ("plain", {"stride": 2, "receptive_field_px": 1, "channels": 3}, r"returns \(1, 3, 2, 4\)"),
        ("plain", {"stride": 4, "receptive_field_px": 1, "padding": 0}, r"returns \(1, 1, 2, 6\)"),
        ("plain", {"stride": 1, "receptive_field_px": 1, "padding": 0}, "fails on an image of 2 x 1 px"),
        ("strange_networks:not_a_network", {}, r"is no torch\.nn\.Module but a int"),
        ("blur", {"sides": 3}, r"network\.arguments: blur cannot be made of them: .*'sides'"),
        ("strange_networks:Sharpen", {}, "strange_networks has no Sharpen"),
        ("nowhere_to_be_found:Net", {}, "cannot be imported from nowhere_to_be_found: ModuleNotFoundError"),
        (
            "blurr",
            {},
            r"network\.name: expected one of shuffle_unet, .*, plain, or its place .* not blurr",
        ),
    ],
)
def test_what_is_no_network_is_refused_with_the_reason(
    stranger: Path, name: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message) as raised:
        build_network(name, arguments)
    assert "\n" not in str(raised.value)


def test_a_package_that_cannot_be_imported_harms_nobody_who_does_not_ask_for_it(tmp_path: Path) -> None:
    points = "[cryohush.networks]\nbroken = broken_networks:Net\n"
    with installed(tmp_path / "site", "broken_networks", "import no_such_library\n", points):
        assert load_model("general").stride > 1
        assert "broken" in list(MODELS)
        with pytest.raises(ConfigurationError, match=r"network broken cannot be imported .*no_such_library"):
            build_network("broken", {})


def test_names_of_our_own_are_ours_and_two_strangers_are_told_apart(stranger: Path, tmp_path: Path) -> None:
    points = "[cryohush.networks]\nblur = others:Blur\ndncnn = others:Blur\n"
    with installed(tmp_path / "other", "others", SOURCE, points):
        assert type(build_network("dncnn", {"width": 4, "depth": 3})).__name__ == "DnCNN"
        with pytest.raises(ConfigurationError, match=r"blur is offered by .* and .*: uninstall one"):
            build_network("blur", {})
        assert type(build_network("others:Blur", {})).__name__ == "Blur"


def test_weights_bring_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that names code is refused, until somebody other than the file has named it."""
    network = torch.nn.Conv2d(1, 1, 3)
    source = "from pathlib import Path\nPath('imported').touch()\n" + SOURCE
    monkeypatch.chdir(tmp_path)
    with installed(tmp_path / "site", "strange_networks", source, ""):
        save_model("harm.safetensors", network, "strange_networks:Blur", {}, {})
        with pytest.raises(ModelError, match="no code is imported because a file says so"):
            load_model("harm.safetensors")
        assert not Path("imported").exists()
        monkeypatch.setenv("CRYOHUSH_NETWORKS", "some.other:Net,strange_networks:Blur")
        with pytest.raises(ModelError, match="do not fit the network"):
            load_model("harm.safetensors")
        assert Path("imported").exists()
    # modules that are there already are no way in either: only networks are called
    for name, arguments in (
        ("subprocess:run", {"args": ["touch", "harm"]}),
        ("subprocess:Popen", {"args": ["touch", "harm"]}),
        ("os:system", {"command": "touch harm"}),
    ):
        save_model("harm.safetensors", network, name, arguments, {})
        with pytest.raises(ModelError, match="which is no network"):
            load_model("harm.safetensors")
    assert not Path("harm").exists()


def test_a_card_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    for card in ('{"model": {"name": 3, "arguments": {}}}', '{"model": {"name": "dncnn", "arguments": [1]}}'):
        path.write_bytes(safetensors.torch.save({"x": torch.zeros(1)}, {"cryohush": card}))
        with pytest.raises(ModelError, match="not a model of cryohush"):
            load_model(path)


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    script = (
        "import sys; from cryohush.core.registry import Registry; "
        "r = Registry('thing', {'a': 'colorsys:rgb_to_hls'}, 'cryohush.networks'); "
        "assert 'a' in r and list(r); assert 'colorsys' not in sys.modules; "
        "assert r['a'](0, 0, 0) == (0, 0, 0); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300)


def test_a_registry_without_a_door_takes_no_places() -> None:
    closed: Registry[Any] = Registry("thing", {"a": 1})
    assert "os:system" not in closed
    with pytest.raises(ConfigurationError, match=r"key: expected one of a, not os:system\."):
        closed.find("os:system", "key")
    assert not any(map(is_place, ("a", "a:", ":b", "a b:c", "C:/x", "a:b:c")))
