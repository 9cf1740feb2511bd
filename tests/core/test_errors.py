"""Whatever a user's file, key or value is called, an error about it is one line that can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cryohush.core.cli import main
from cryohush.core.config.load import load_kind, validate
from cryohush.core.config.preset_list import PRESET_FOLDER
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import ConfigurationError, CryohushError, InputError, OutputError, several
from cryohush.core.job_context import JobContext

ODD = {
    "\n": r"\n",
    "a\nb": r"a\nb",
    "a\r\nb": r"a\r\nb",
    "tab\there": r"tab\there",
    "\x1bM up": r"\x1bM up",
    "\x7f": r"\x7f",
    "line\u2028paragraph\u2029": r"line\u2028paragraph\u2029",
    "next\x85": r"next\x85",
    "turned \u202e round": r"turned \u202e round",
    "not UTF-8 \udcff": r"not UTF-8 \udcff",
    "5 Å, µm, é, 結": "5 Å, µm, é, 結",
}
"""What may stand in a name, and how it is said."""


def is_one_line(text: str) -> bool:
    return len(text.splitlines()) == 1 and text.isprintable()


@pytest.mark.parametrize(("odd", "said"), ODD.items(), ids=range(len(ODD)))
def test_what_a_name_holds_is_spelt(odd: str, said: str) -> None:
    error = InputError(f"no column {odd}", path=f"/data/{odd}.star", line=3, remedy="Write one.")
    assert str(error) == f"/data/{said}.star, line 3: no column {said} Write one."
    assert error.path == f"/data/{odd}.star"
    assert str(OutputError(f"{error}")) == str(error), "said again, it is the same"
    assert is_one_line(str(several([error, error], 2, "files")))
    lines = list[str]()
    JobContext(log=lines.append).warn(odd)
    assert lines == [f"WARNING: {said}"]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("where", [(), ("loss", "pixel"), ("schedule",), ("network",), ("data",)])
def test_keys_of_a_preset(tmp_path: Path, odd: str, where: tuple[str, ...]) -> None:
    values = yaml.safe_load((PRESET_FOLDER / "general.yaml").read_text(encoding="utf-8"))
    place = values
    for key in where:
        place = place.setdefault(key, {})
    place[odd] = odd
    with pytest.raises(ConfigurationError) as caught:
        validate(values, TrainingConfig, f"{odd}.yaml")
    assert is_one_line(str(caught.value))
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        load_kind(path, {"denoiser": TrainingConfig})
    assert is_one_line(str(caught.value))


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("suffix", [".star", ".cs", ".mrcs", "", ".yaml"])
@pytest.mark.parametrize("content", [None, b"data_\n\nloop_\n_rlnImageName\nx y\n"])
def test_names_of_files_on_a_command_line(
    tmp_path: Path, odd: str, suffix: str, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{odd}{suffix}"
    if content is not None:
        path.write_bytes(content)
    command = ["simulate", str(path)] if suffix == ".yaml" else ["denoise", str(path), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 1
    (error,) = capsys.readouterr().err.split("\n")[:-1]
    assert is_one_line(error)
    assert error.startswith("error: ")


@pytest.mark.parametrize("kind", CryohushError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_kind_of_error_is_one_line(kind: type[CryohushError]) -> None:
    assert str(kind("a\nb")) == r"a\nb"
