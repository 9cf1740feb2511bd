"""What a command says in odd surroundings: other locales, closed streams, readers that are gone."""

from __future__ import annotations

import configparser
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from particle_files import noise, write_stack

from cryohush.core.console import FAILED, exit_status, in_one_line
from cryohush.core.errors import EXTRAS, Aborted, ImageError, InputError

WORDS = ["--device", "cpu", "--precision", "fp32", "--batch-size", "4", "--threads", "1"]


@pytest.fixture
def command(tmp_path: Path, weights: Path) -> list[str]:
    """A command that denoises a few images of a stack."""
    write_stack(tmp_path / "x.mrcs", noise(6, 16, 16))
    entry = "import sys; from cryohush.core.cli import main; sys.exit(main())"
    paths = [str(tmp_path / "x.mrcs"), "--output", str(tmp_path / "out"), "--model", str(weights)]
    return [sys.executable, "-c", entry, "denoise", *paths, *WORDS]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_locale_without_our_letters_is_no_obstacle(
    command: list[str], tmp_path: Path, encoding: str
) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    result = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"wrote" in result.stdout
    assert (tmp_path / "out" / "x.mrcs").exists()


def test_a_reader_that_has_gone_does_not_end_the_work(command: list[str], tmp_path: Path) -> None:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert b"Traceback" not in errors
    assert (tmp_path / "out" / "x.mrcs").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_on_a_full_disk_does_not_end_the_work(command: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out" / "x.mrcs").exists()


@pytest.mark.parametrize("closed", [[1], [2], [0, 1, 2]])
def test_closed_streams_do_not_end_the_work(command: list[str], tmp_path: Path, closed: list[int]) -> None:
    redirections = " ".join(f"{stream}>&-" for stream in closed)
    result = subprocess.run(["bash", "-c", f'"$@" {redirections}', "bash", *command], check=False)
    assert result.returncode == 0
    assert (tmp_path / "out" / "x.mrcs").exists()


def test_signals_have_the_shells_exit_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(KeyboardInterrupt()) == 130
    assert exit_status(Aborted("Stopped on request."), signal.SIGINT) == 130
    assert exit_status(Aborted("Stopped on request."), signal.SIGTERM) == 143
    assert capsys.readouterr().err.count("with --resume") == 3
    exit_status(Aborted("stopped; nothing was written"))
    assert "stopped; nothing was written. Run the same command with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (InputError("it is damaged.", path="a.mrcs", image=3), "a.mrcs, image 3: it is damaged."),
        (PermissionError(13, "Permission denied", "/closed/a.mrcs"), "/closed/a.mrcs: Permission denied."),
        (OSError(28, "No space left on device"), "No space left on device."),
        (MemoryError(), "out of memory. Ask for a smaller --batch-size or fewer --threads."),
        (
            RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory"),
            "out of memory. Ask for a smaller --batch-size or fewer --threads.",
        ),
    ],
)
def test_an_error_is_one_line(error: BaseException, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(error) == FAILED
    assert capsys.readouterr().err == f"error: {text}\n"


def test_a_package_that_is_missing_is_named_as_pip_knows_it() -> None:
    assert "pip install scikit-image" in in_one_line(ModuleNotFoundError("no", name="skimage.feature"))


def test_all_that_an_extra_lacks_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cryohush.core.errors.EXTRAS", {"train": ("gemmi", "no-such-1", "no-such-2")})
    line = in_one_line(ModuleNotFoundError("no", name="no_such_1"))
    assert line.endswith("-m pip install no-such-1 no-such-2")
    assert "packages no-such-1, no-such-2, which are not installed" in line


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({}, "it is odd."),
        ({"image": 3}, "image 3: it is odd."),
        ({"path": "a.mrcs", "image": 3}, "a.mrcs, image 3: it is odd."),
    ],
)
def test_an_error_says_where_as_far_as_that_is_known(where: dict[str, Any], text: str) -> None:
    assert str(ImageError("it is odd.", **where)) == text


def test_the_extras_are_those_of_the_package() -> None:
    config = configparser.ConfigParser()
    config.read(Path(__file__).parents[2] / "setup.cfg")
    for extra, packages in EXTRAS.items():
        assert set(packages) <= set(re.findall(r"^([\w-]+)", config["options.extras_require"][extra], re.M))


def test_what_nobody_expected_leaves_its_traceback_in_a_file() -> None:
    try:
        {}["key"]
    except KeyError as error:
        line = in_one_line(error)
    assert line.startswith("unexpected KeyError: 'key'")
    found = re.search(r"; (\S+\.txt)", line)
    assert found is not None
    path = Path(found[1])
    assert "test_what_nobody_expected" in path.read_text()
    path.unlink()
