"""What people type first: several inputs, folders, patterns, -o, --print-config, --quiet, --log-file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from particle_files import noise, write_stack, write_table

from cryohush.core import cli
from cryohush.core.cli import main
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.evaluate import EvaluateConfig
from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.load import find_preset, load_kind
from cryohush.core.config.nt2c import Nt2cConfig
from cryohush.core.config.preset_list import preset_descriptions
from cryohush.core.config.segmentation import SegmentationConfig
from cryohush.core.config.training import TrainingConfig
from cryohush.core.io.inputs import find_inputs, folder_names

SUFFIXES = (".mrc", ".mrcs", ".star", ".cs")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("M/a.mrc", "M/b.mrc", "M/b.mrcs", "M/p.star", "M/job.star", "M/job_pipeline.star", "M/x.txt",
                 "M/J1_passthrough_particles.cs", "M/.hidden.mrc", "N/a.mrc", "N/c[1].mrc"):  # fmt: skip
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    Path("M/linked.mrc").symlink_to("a.mrc")
    Path("M/sub.mrc").mkdir()
    return tmp_path


def test_folders_and_patterns_stand_for_files_each_once(folder: Path) -> None:
    def found(*words: str) -> set[str]:
        return {path.absolute().relative_to(folder).as_posix() for path in find_inputs(words, SUFFIXES).paths}

    assert found("M", "M/a.mrc") == {"M/a.mrc", "M/b.mrc", "M/b.mrcs", "M/p.star"}
    assert found("*/a.mrc") == {"M/a.mrc", "N/a.mrc"}
    assert found("N/c[1].mrc", "M/b.mrc") == {"N/c[1].mrc", "M/b.mrc"}
    assert {path.name for path in find_inputs(["M/"], (".star",)).paths} == {"p.star"}


def test_in_a_folder_a_table_stands_for_the_stack_of_its_name(folder: Path) -> None:
    Path("M/p.mrcs").touch()
    names = {path.name for path in find_inputs(["M"], SUFFIXES).paths}
    assert names == {"a.mrc", "b.mrc", "b.mrcs", "p.star"}
    # whoever names the stack means it
    assert [path.name for path in find_inputs(["M/p.mrcs", "M/p.star"], SUFFIXES).paths] == [
        "p.mrcs",
        "p.star",
    ]


def test_one_file_alone_is_single_whatever_its_name(folder: Path) -> None:
    for word in ("M/a.mrc", "N/c[1].mrc", "gone.star"):
        inputs = find_inputs([word], SUFFIXES)
        assert (inputs.paths, inputs.is_single) == ([Path(word)], True)
    assert not find_inputs(["N/a*.mrc"], SUFFIXES).is_single
    assert not find_inputs(["N"], SUFFIXES).is_single


def test_words_that_stand_for_nothing_are_told(folder: Path) -> None:
    Path("empty").mkdir()
    inputs = find_inputs(["empty", "M/z*.mrc", "M/a.mrc"], SUFFIXES)
    assert inputs.paths == [Path("M/a.mrc")]
    assert set(inputs.problems) == {"empty", "M/z*.mrc"}
    assert "holds no file" in str(inputs.problems["empty"])


def test_no_two_inputs_share_a_folder(folder: Path) -> None:
    paths = [Path(name) for name in ("M/a.mrc", "N/a.mrc", "M/b.mrc", "M/b.mrcs", "M/b mrc", "M/b_mrc")]
    names = folder_names(paths)
    assert len(set(names)) == len(paths)
    assert names[0].endswith("M_a")
    assert names[2].endswith("M_b_mrc")
    assert folder_names(paths[:2]) == names[:2]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--pixelsize", "1.5"], "--pixelsize 1.5; did you mean --pixel-size?"),
        (["--keep-abov=8"], None),  # an abbreviation is no mistake
        (["--keep-abve=8"], "--keep-abve=8; did you mean --keep-above?"),
        (["--zzz"], "--zzz\n"),
    ],
)
def test_a_mistyped_option_is_told_with_the_one_that_was_meant(
    words: list[str], problem: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["denoise", "gone.star", "-o", "out", *words]) == (1 if problem is None else 2)
    errors = capsys.readouterr().err
    assert ("unrecognized" in errors) == (problem is not None)
    if problem is not None:
        assert f"cryohush denoise: error: unrecognized arguments: {problem}" in errors


def test_of_many_inputs_that_failed_only_the_first_are_named_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"gone{number}/*.star" for number in range(7)]
    assert main(["denoise", *names, "-o", "out"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == f"error: 7 of 7 inputs failed: {', '.join(names[:3])} and 4 more"


def test_each_input_has_a_folder_and_a_bad_one_stops_none(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("S/a.mrcs", "S/c.mrcs")):
        write_stack(Path(name), noise(3, 16, 16, seed=number))
    Path("S/b.mrcs").write_bytes(b"nonsense")
    options = ["--model", str(weights), "--precision", "fp32", "--threads", "1"]
    command = ["denoise", "S/", "gone/*.star", "--output", "out", *options]
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert "S/b.mrcs" in errors
    assert "error: 2 of 4 inputs failed: gone/*.star, S/b.mrcs" in errors
    for name in ("a", "c"):
        assert len(list(Path("out").glob(f"*S_{name}/{name}.mrcs"))) == 1
    # once it is mended, the others are not done again
    Path("S/b.mrcs").unlink()
    write_stack(Path("S/b.mrcs"), noise(3, 16, 16))
    assert main(["denoise", "S", "-o", "out", *options, "--resume"]) == 0
    assert capsys.readouterr().out.count("nothing is left to do") == 2


def test_print_config_shows_what_is_in_effect_and_can_be_given_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, model, words in (
        ("denoise", DenoiseOptions, ["--blend", "0.25", "--keep-above", "8"]),
        ("extract-noise", ExtractNoiseOptions, ["--window-px", "128"]),
        ("evaluate", EvaluateConfig, ["--denoised", "d.star", "--raw", "r.star", "--twin", "t.star"]),
    ):
        assert main([command, *words, "--print-config"]) == 0
        text = capsys.readouterr().out
        (tmp_path / "c.yaml").write_text(text)
        values = yaml.safe_load(text)
        assert set(values) == set(model.model_fields)
        assert model(**values) == model.model_validate(values)
        assert main([command, "--config", str(tmp_path / "c.yaml"), "--print-config"]) == 0
        assert capsys.readouterr().out == text
    assert values["twin"] == "t.star"


@pytest.mark.parametrize("preset", preset_descriptions())
def test_a_printed_preset_is_the_preset(
    preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", preset, "--print-config"]) == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    kinds = {"denoiser": TrainingConfig, "segmentation": SegmentationConfig, "nt2c": Nt2cConfig}
    given, printed = (load_kind(path, kinds) for path in (find_preset(preset), tmp_path / "c.yaml"))
    assert printed == given
    # a network that is given has to be that of the initial weights
    if isinstance(given, TrainingConfig) and isinstance(printed, TrainingConfig):
        assert printed.takes_network == given.takes_network


def test_the_command_line_overrides_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("blend: 0.5\nskip_bad: true\n")
    assert main(["denoise", "--config", str(tmp_path / "c.yaml"), "--blend", "0.125", "--print-config"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["blend"], values["skip_bad"]) == (0.125, True)
    (tmp_path / "c.yaml").write_text("blendd: 0.5\n")
    assert main(["denoise", "x.star", "-o", "o", "--config", str(tmp_path / "c.yaml")]) == 1
    assert "did you mean 'blend'?" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["particles", "micrographs"])
def test_a_blank_configuration_tells_what_has_to_be_filled_in(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "--print-config", "--kind", kind]) == 0
    text = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(text)
    assert yaml.safe_load(text)["kind"] == kind
    assert main(["simulate", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    wanted = re.findall(r"^(\w+):  # needed", text, re.MULTILINE)
    assert wanted
    for name in wanted:
        assert name in error


def test_every_preset_is_shown_as_a_file_that_means_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in preset_descriptions():
        assert main(["train", name, "--print-config"]) == 0
        text = capsys.readouterr().out
        (tmp_path / "c.yaml").write_text(text)
        assert main(["train", str(tmp_path / "c.yaml"), "--print-config"]) == 0
        assert capsys.readouterr().out == text


def test_quiet_leaves_warnings_and_errors_and_the_log_has_everything(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(3, 16, 16))
    command = ["denoise", str(tmp_path / "x.mrcs"), "--model", str(weights), "--precision", "fp32"]
    command += ["--threads", "1", "--quiet", "--log-file", str(tmp_path / "log.txt"), "-o"]
    assert main([*command, str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert all(line.startswith("warning:") for line in captured.err.splitlines())
    assert main([*command, str(tmp_path / "out")]) == 1  # holds a run: appended
    assert capsys.readouterr().err.startswith("error: ")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d \S", line) for line in lines)
    text = "\n".join(lines)
    assert text.count("cryohush denoise ") == 2
    assert "3 of 3 images (100 %)" in text
    assert "wrote " in text
    assert "error: " in text


def test_a_log_that_cannot_be_written_is_an_error_before_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", "--log-file", str(tmp_path / "gone/log.txt")]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}/gone/log.txt: cannot be written")
    assert "Name a file in a folder that is there." in said


def test_a_log_is_not_appended_to_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.mrcs").write_bytes(b"pixels")
    assert main(["models", "--log-file", str(tmp_path / "a.mrcs")]) == 1
    assert "not appended to images" in capsys.readouterr().err
    assert (tmp_path / "a.mrcs").read_bytes() == b"pixels"


def test_verbose_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["denoise", str(tmp_path / "gone.star"), "-o", str(tmp_path / "out")]
    assert main(command) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert main([*command, "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert main([*command, "--verbose", "--quiet"]) == 2


def test_one_of_a_thing_is_one(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_stack(tmp_path / "x.mrcs", noise(1, 16, 16))
    write_table(tmp_path / "p.star", ["000001@x.mrcs"])
    command = ["denoise", str(tmp_path / "p.star"), "-o", str(tmp_path / "out"), "--model", str(weights)]
    assert main([*command, "--precision", "fp32", "--threads", "1"]) == 0
    told = capsys.readouterr().out
    assert "1 particle, 1 image in 1 stack" in told
    assert "1 of 1 image (100 %)" in told
    assert not re.search(r"\b1 (particles|images|stacks)\b", told)


def test_every_example_in_the_help_is_of_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.EXAMPLES.keys() == cli.COMMANDS.keys()
    for command, lines in cli.EXAMPLES.items():
        assert all(line.split()[:2] == ["cryohush", command] for line in lines)
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {line}\n" in text for line in lines)
