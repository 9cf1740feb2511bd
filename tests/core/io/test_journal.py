"""The journal: a killed run goes on, and never with somebody else's results."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from cryohush.core.errors import OutputError
from cryohush.core.io.journal import Journal
from cryohush.core.io.mrc import WriterState

FINGERPRINT: dict[str, Any] = {"model": "abc", "options": {"blend": 0.1, "shape": (1, 2)}}
STATE = WriterState(3, -1.5, 2.25, 0.1 + 0.2, 1e-300, 12)


def test_states_extras_and_finished_stacks_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.open(path, FINGERPRINT, resume=True) as journal:
        journal.record("a.mrcs", WriterState())
        journal.record("a.mrcs", STATE, extra={"skipped": [4]})
        journal.finish("b.mrcs")
    with Journal.open(path, FINGERPRINT, resume=True) as journal:
        assert journal.states == {"a.mrcs": STATE}
        assert journal.extras == {"a.mrcs": {"skipped": [4]}}
        assert journal.finished == {"b.mrcs"}


def test_a_torn_last_line_is_ignored_and_the_next_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal.open(path, FINGERPRINT, resume=False) as journal:
        journal.finish("a")
    with path.open("ab") as file:
        file.write(b'{"finished": "b')
    with Journal.open(path, FINGERPRINT, resume=True) as journal:
        assert journal.finished == {"a"}
        journal.finish("c")
    with Journal.open(path, FINGERPRINT, resume=True) as journal:
        assert journal.finished == {"a", "c"}


def test_a_run_killed_before_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b'{"finger')
    with Journal.open(path, FINGERPRINT, resume=True) as journal:
        assert not journal.finished
    assert Journal.matches(path, FINGERPRINT)


def test_another_fingerprint_does_not_match_and_names_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    assert not Journal.matches(path, FINGERPRINT)
    with Journal.open(path, FINGERPRINT, resume=False) as journal:
        journal.finish("a")
    other = FINGERPRINT | {"model": "def"}
    assert Journal.matches(path, FINGERPRINT)
    assert not Journal.matches(path, other)
    with pytest.raises(OutputError, match=r"other settings \(model\)"):
        Journal.open(path, other, resume=True)
    assert Journal.matches(path, FINGERPRINT)
    with Journal.open(path, other, resume=False) as journal:
        assert not journal.finished
    assert Journal.matches(path, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"notes\n", "not a journal"), (b'{"fingerprint": {}}\nx\n{"finished": "a"}\n', "line 2: .*damaged")],
)
def test_a_damaged_journal_is_not_resumed(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "journal").write_bytes(text)
    with pytest.raises(OutputError, match=message):
        Journal.open(tmp_path / "journal", {}, resume=True)
    assert (tmp_path / "journal").read_bytes() == text


@pytest.mark.parametrize("resume", [True, False])
def test_a_second_run_in_the_same_directory_is_refused(tmp_path: Path, resume: bool) -> None:
    path = tmp_path / "journal"
    with Journal.open(path, FINGERPRINT, resume=False) as journal:
        journal.finish("a")
        with pytest.raises(OutputError, match="another run"):
            Journal.open(path, FINGERPRINT, resume=resume)
    with Journal.open(path, FINGERPRINT, resume=True) as journal:
        assert journal.finished == {"a"}


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal.open(tmp_path / "journal", FINGERPRINT, resume=False) as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match="the disk is full"):
            journal.finish("a")
        monkeypatch.undo()
        assert not journal.finished


def test_an_output_directory_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        Journal.open(tmp_path / "no" / "journal", FINGERPRINT, resume=False)
