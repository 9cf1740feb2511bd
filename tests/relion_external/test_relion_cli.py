"""How the command line that RELION builds is read."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import ConfigurationError
from cryohush.relion_external.cli import COMMANDS, main, parameters_of, parse
from cryohush.relion_external.log import PROGRESS_SECONDS, ProgressLine
from cryohush.relion_external.request import read_options

RELION = ["denoise", "--o", "External/job001/", "--in_parts", "p.star"]


def options(*arguments: str) -> DenoiseOptions:
    return read_options(parse([*RELION, *arguments]), DenoiseOptions)


def test_everything_that_relion_may_pass_is_accepted() -> None:
    inputs = ("movies", "mics", "coords", "3dref", "mask")
    unused = [text for name in inputs for text in (f"--in_{name}", "file")]
    given = parse(
        [*RELION, *unused, "--gpu", "--blend", "0.5", "--j", "4", "--pipeline_control", "External/job001/"]
    )
    assert (given["in_parts"], given["gpu"], given["threads"]) == ("p.star", None, "4")


@pytest.mark.parametrize("extra", [["--in_3Dref", "m.mrc"], ["--pipeline-control", "External/job001/"]])
def test_what_newer_hosts_pass_is_accepted(extra: list[str]) -> None:
    assert options(*extra) == DenoiseOptions()


@pytest.mark.parametrize("flag", ["--keep_above", "--keep-above", "----keep_above", "--keep_above_angstrom"])
@pytest.mark.parametrize("joint", [" ", "="])
def test_a_flag_may_be_spelt_as_users_spell_it(flag: str, joint: str) -> None:
    assert options(*f"{flag}{joint}8.5".split()).keep_above_angstrom == 8.5


SWITCHES = ("skip_bad", "score", "error_stacks")


@pytest.mark.parametrize(
    "flag", [flag for flag, name, *_ in parameters_of("denoise") if name not in SWITCHES]
)
def test_a_flag_whose_value_was_left_empty_is_as_good_as_none(flag: str) -> None:
    assert options(flag, "--j", "2").model_dump(exclude={"threads"}) == DenoiseOptions().model_dump(
        exclude={"threads"}
    )


@pytest.mark.parametrize(
    ("value", "is_on"), [([], True), (["Yes"], True), (["1"], True), (["No"], False), (["false"], False)]
)
@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_may_come_without_its_value(switch: str, value: list[str], is_on: bool) -> None:
    assert getattr(options(f"--{switch}", *value), switch) is is_on


@pytest.mark.parametrize(("gpu", "device"), [("0", "0"), ("0,1", "0,1"), ("0:1", "0:1"), (",", ",")])
def test_relions_name_for_gpus_is_the_device(gpu: str, device: str) -> None:
    assert options("--gpu", gpu).device == device


def test_every_option_of_denoising_has_a_flag() -> None:
    assert {name for _, name, *_ in parameters_of("denoise")} == {
        *DenoiseOptions.model_fields,
        "gpu",
        "config",
    }


def test_abbreviations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        options("--prec", "fp32")
    assert "unknown parameter 'prec': did you mean 'precision'?" in capsys.readouterr().err


def test_the_command_line_goes_before_the_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("model: other\nblend: 0.25\nbatch_size: 8\n")
    found = options("--config", str(tmp_path / "c.yaml"), "--blend", "0.5", "--model")
    assert (found.model, found.blend, found.batch_size) == ("other", 0.5, 8)


def test_an_unknown_key_of_the_configuration_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("modle: other\n")
    with pytest.raises(ConfigurationError, match="unknown key 'modle'; did you mean 'model'"):
        options("--config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("arguments", [[], ["--o", "x"], ["denoise"], ["denoise", "--in_parts", "p.star"]])
def test_a_command_that_lacks_something_ends_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(arguments)
    assert capsys.readouterr().err.startswith("ERROR: relion_cryohush")


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom cryohush.relion_external.cli import main\n"
        "try:\n    main(['denoise', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stderr) == (0, "")
    assert "relion_cryohush denoise" in result.stdout


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out.startswith("relion_cryohush 0.")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_progress_line_is_redrawn_after_a_carriage_return_and_not_too_often() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine("particles", stream, clock)
    for done in range(0, 1001):
        clock.now = done * 0.01
        line(done, 1000)
    shown = stream.getvalue()
    assert shown.endswith("\n")
    assert shown.count("\n") == 1
    drawn = shown.split("\r")
    assert drawn[0] == ""
    assert len(drawn) - 1 == 10.0 / PROGRESS_SECONDS
    assert drawn[1].strip() == "200 of 1000 particles (20 %), 100 per second, 0 min 8 s to go"
    # a shorter line leaves nothing of a longer one behind
    assert len({len(text.rstrip("\n")) for text in drawn[1:]}) == 1


def test_the_speed_does_not_count_what_an_earlier_run_did() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine("particles", stream, clock)
    line(900, 1000)
    clock.now = 10.0
    line(950, 1000)
    assert "5 per second, 0 min 10 s to go" in stream.getvalue()


def test_hours_are_shown_as_hours() -> None:
    stream, clock = io.StringIO(), Clock()
    line = ProgressLine("particles", stream, clock)
    line(0, 100_000)
    clock.now = 10.0
    line(100, 100_000)
    assert "2 h 46 min to go" in stream.getvalue()


@pytest.mark.parametrize("host", ["relion_external", "cryosparc_job"])
def test_letters_that_the_locale_lacks_end_no_job(host: str) -> None:
    code = f"""
import contextlib
from cryohush.{host}.cli import main
with contextlib.suppress(SystemExit):
    main([])
print(chr(0x2026))
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        capture_output=True,
        check=True,
    )
    assert run.stdout.endswith(b"?\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_has_a_table_of_parameters_that_the_command_knows(command: str) -> None:
    """By their labels in the first column; the sections of docs/relion.md name the executable."""
    page = (Path(__file__).parents[2] / "docs/relion.md").read_text()
    sections = [part for part in page.split("\n## ") if f"`relion_cryohush {command}`" in part]
    tables = [table for part in sections for table in re.findall(r"^\| label \|.*?\n\n", part, re.M | re.S)]
    labels = {
        label
        for table in tables
        for row in table.split("\n\n")[0].splitlines()[2:]
        for label in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    flags = {flag.lstrip("-") for flag, *_ in parameters_of(command)} | {"gpu", "device", "config"}
    assert len(labels) > 8
    assert labels <= flags
