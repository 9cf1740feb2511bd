"""The scripts for shells hold every command and option, and shells accept them."""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

import pytest

from cryohush.core.cli import COMMANDS, build_parser, main
from cryohush.core.completion import SCRIPTS


def flags_of(command: str) -> set[str]:
    subparsers = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    return {flag for action in subparsers.choices[command]._actions for flag in action.option_strings}


def completed(script: Path, *words: str) -> list[str]:
    """Return what bash offers for the last of the words of a command line."""
    line = " ".join(f"'{word}'" for word in words)
    program = (
        f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _cryohush; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert not result.stderr
    return result.stdout.split()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "completion.bash"
    path.write_text(SCRIPTS["bash"](build_parser()))
    return path


def test_bash_completes_commands_options_and_their_values(script: Path) -> None:
    assert {word for word in completed(script, "cryohush", "") if word[0] != "-"} == set(COMMANDS)
    assert completed(script, "cryohush", "den") == ["denoise"]
    for command in COMMANDS:
        assert flags_of(command) <= {*completed(script, "cryohush", command, "-")}
    assert completed(script, "cryohush", "simulate", "--kind", "") == ["particles", "micrographs"]
    assert completed(script, "cryohush", "batch", "re") == ["resume", "retry-failed"]
    assert completed(script, "cryohush", "denoise", "particles.st") == []  # files, by bash itself


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_every_option_is_in_each_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert command in text
        for flag in flags_of(command):
            assert (
                f"'*{flag}["
                if shell == "zsh"
                else f"{' -l ' if flag[1] == '-' else ' -s '}{flag.lstrip('-')} "
            ) in text


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_shells_accept_their_script(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(SCRIPTS[shell](build_parser()))
    result = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
