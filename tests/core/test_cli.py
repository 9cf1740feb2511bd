"""`cryohush` does what its help says, and its exit code says how it went."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from micrograph_files import micrograph, table_of, write_micrograph
from particle_files import noise, read_stack, write_stack, write_table

from cryohush.core import cli, commands
from cryohush.core.cli import build_parser, main
from cryohush.core.config.base import options_of
from cryohush.core.config.denoise import PARTICLE_SHARE_OF_BOX, DenoiseOptions
from cryohush.core.config.preset_list import preset_descriptions
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.models.weights import load_model


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([command, "--help"]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from cryohush.core.cli import main; main(['denoise', '--help']); "
        "sys.exit(bool({'torch', 'numpy', 'pandas', 'tqdm', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300).returncode == 0


def test_a_program_leaves_torch_out_of_searches_for_garbage(tmp_path: Path) -> None:
    """Torch alone comes with a few hundred thousand objects."""
    program = (
        "import gc, sys; from cryohush.core.cli import main; "
        "assert main(['evaluate', '--pairs', 'a.star', 'b.star', '--output', 'out']) == 1; "
        "sys.exit(gc.get_freeze_count() < 100_000)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=False).returncode == 0


def test_help_tells_the_true_default_of_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("denoise", capsys).partition(" options: ")[2]
    for option in options_of(DenoiseOptions):
        match = re.search(rf"--{option.flag}( \S+)? .*?\(default: (.*?)\)", text)
        assert match is not None, option.name
        true = DenoiseOptions.model_fields[option.name].default
        if isinstance(true, float):
            assert float(match[2]) == true
        elif isinstance(true, str) and option.name != "protein":
            assert match[2] == true
        else:  # what stands for the default, in words
            assert len(match[2]) > 3
    assert "--particle-diameter D diameter" in text
    assert "(default: three quarters of the box)" in text
    assert PARTICLE_SHARE_OF_BOX == 0.75
    assert "--skip-bad pass images with NaN or Inf, and constant ones, through" in text


@pytest.mark.parametrize("command", ["denoise", "simulate", "train", "evaluate", "models"])
def test_every_option_tells_its_default(command: str) -> None:
    subparsers = next(action for action in build_parser()._actions if isinstance(action.choices, dict))
    assert isinstance(subparsers.choices, dict)
    for action in subparsers.choices[command]._actions:
        if not action.required and action.dest != "help":
            assert "(default: " in str(action.help), action.dest


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["denoise"],
        ["denoise", "x.star"],
        ["denoise", "x.star", "--output", "o", "--resume", "--overwrite"],
        ["denoise", "x.star", "--output", ""],
        ["restore", "x.star", "--output", ""],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: cryohush" in capsys.readouterr().err


def test_denoising_a_table_leaves_all_that_the_help_promises(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = write_stack(tmp_path / "S" / "x.mrcs", noise(6, 32, 32))
    names = [f"{number + 1:06d}@S/x.mrcs" for number in range(6)]
    write_table(tmp_path / "p.star", names, box_px=32)
    command = [
        "denoise",
        str(tmp_path / "p.star"),
        "--output",
        str(tmp_path / "out"),
        "--model",
        str(weights),
    ]
    command += ["--precision", "fp32", "--blend", "0.25", "--keep-above", "8", "--threads", "1"]
    assert main(command) == 0
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert written == {
        ".cryohush-progress.jsonl",
        "S/x.mrcs",
        "cryohush.json",
        "logfile.pdf",
        "montage.png",
        "particles.star",
        "view.html",
    }
    expected = Denoiser(load_model(weights).module)(raw, blend=0.25, keep_above_px=4.0)
    # workers compute on one thread: the order of sums, so the last bit, may differ
    np.testing.assert_allclose(read_stack(tmp_path / "out" / "S" / "x.mrcs"), expected, rtol=1e-6)
    record = json.loads((tmp_path / "out" / "cryohush.json").read_text())
    assert record["command"] == " ".join(["cryohush", *command])
    lines = capsys.readouterr().out
    assert "device cpu, precision fp32 (as asked for)" in lines
    assert "6 of 6 images (100 %)" in lines
    assert f"wrote {tmp_path}/out/particles.star" in lines


def test_micrographs_are_counted_as_micrographs(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2):
        write_micrograph(Path(f"{number}.mrc"), micrograph(64, 64, seed=number))
    Path("m.star").write_text(table_of(["1.mrc", "2.mrc"]))
    options = ["--model", str(weights), "--precision", "fp32", "--threads", "1"]
    assert main(["denoise", "m.star", "--output", "out", *options]) == 0
    told = capsys.readouterr().out
    assert "2 of 2 micrographs (100 %)" in told
    assert "2 micrographs in " in told
    assert "images" not in told


def test_the_help_of_train_lists_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert ["general", preset_descriptions()["general"]] in lines
    assert preset_descriptions().keys() <= {line[0] for line in lines if line}


def test_an_error_is_one_line_and_1(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, expected in {
        ("gone.star", "--model", str(weights)): "gone.star",
        ("gone.star", "--model", "nonsense"): "error: unknown model 'nonsense'",
        ("gone.star", "--blend", "2"): "error: --blend: expected less than or equal to 1",
        ("gone.star", "--model", str(weights), "--device", "cuda:99"): "GPU 99 was asked for",
    }.items():
        assert main(["denoise", *command, "--output", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert expected in error
        assert error.startswith("error: ")
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_leaves_what_resume_goes_on_from(
    tmp_path: Path, weights: Path, number: signal.Signals
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(64, 16, 16))
    program = (
        "import os, sys; from cryohush.core import cli; from cryohush.core.inference import stream; "
        "write = stream.Output.write\n"
        "def stopped(self, *given):\n"
        "    write(self, *given)\n"
        f"    os.kill(os.getpid(), {int(number)}) if self.written[0] == 16 else None\n"
        "stream.Output.write = stopped; sys.exit(cli.main())"
    )
    command = ["denoise", str(tmp_path / "x.mrcs"), "--model", str(weights), "--precision", "fp32"]
    command += ["--batch-size", "8", "--threads", "1", "--output"]
    result = subprocess.run(
        [sys.executable, "-c", program, *command, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 128 + number, result.stderr
    assert "--resume" in result.stderr
    assert not (tmp_path / "out" / "x.mrcs").exists()
    assert main([*command, str(tmp_path / "out"), "--resume"]) == 0
    record = json.loads((tmp_path / "out" / "cryohush.json").read_text())
    assert record["resumed_images"] == 16
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert (tmp_path / "out" / "x.mrcs").read_bytes() == (tmp_path / "whole" / "x.mrcs").read_bytes()


def test_signals_are_handled_as_before_once_a_command_is_done() -> None:
    before = [signal.getsignal(number) for number in cli.STOP_SIGNALS]
    with cli.stop_flag() as should_stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert should_stop()
        assert signal.getsignal(signal.SIGTERM) == before[1]
    assert [signal.getsignal(number) for number in cli.STOP_SIGNALS] == before


def test_progress_is_a_line_for_every_few_per_cent(capsys: pytest.CaptureFixture[str]) -> None:
    with commands.shown_progress() as progress:
        for done in range(0, 1001, 10):
            progress(done, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 100 / commands.PROGRESS_PERCENT + 1
    assert lines[0] == "0 of 1000 images (0 %)"
    assert re.fullmatch(r"500 of 1000 images \(50 %\), \d+ per second, 0 min \d s to go", lines[10])
    assert re.fullmatch(r"1000 of 1000 images \(100 %\), \d+ per second", lines[-1])


def test_on_a_terminal_progress_is_a_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with commands.shown_progress() as progress:
        for done in (40, 60, 100):  # the first 40 were done by an earlier run
            progress(done, 100)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "100/100" in captured.err


def test_info_tells_all_that_is_known_of_a_model(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "info", str(weights)]) == 0
    text = capsys.readouterr().out
    assert f"sha256: {load_model(weights).sha256}" in text
    assert "description: random weights" in text
    assert "shuffle_unet" in text


def test_the_shipped_models_are_listed_with_their_description(capsys: pytest.CaptureFixture[str]) -> None:
    from cryohush.core.models.weights import list_models

    assert main(["models"]) == 0
    text = capsys.readouterr().out
    for name, entry in list_models().items():
        assert f"{name} " in text
        assert entry["description"] in text


def test_a_wrong_key_in_a_training_configuration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "c.yaml").write_text("name: a\noptimisation: {stepz: 3}\n")
    assert main(["train", str(tmp_path / "c.yaml"), "--output", str(tmp_path / "out")]) == 1
    assert "unknown key 'optimisation.stepz'; did you mean 'steps'?" in capsys.readouterr().err
