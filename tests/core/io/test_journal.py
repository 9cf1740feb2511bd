"""The journal: a killed run goes on, and never with somebody else's results."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from cryohush.core.errors import OutputError
from cryohush.core.io.journal import Journal, Undertaking
from cryohush.core.io.mrc import WriterState

FINGERPRINT: dict[str, Any] = {"model": "abc", "options": {"blend": 0.1, "shape": (1, 2)}}
WHOLE = Undertaking("denoise", FINGERPRINT, {"a.mrcs": "1", "b.mrcs": "2"}, ["cryohush.json"], ["parts"])
STATE = WriterState(3, -1.5, 2.25, 0.1 + 0.2, 1e-300, 12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal of a job that has made three files."""
    for name in ("a.mrcs", "b.mrcs", "c.mrcs"):
        (tmp_path / name).write_bytes(b"four")
    with Journal(tmp_path / "journal") as journal:
        journal.begin(WHOLE)
    return tmp_path / "journal"


def test_states_extras_notes_and_finished_parts_come_back_exactly(path: Path) -> None:
    with Journal(path) as journal:
        journal.record("a.mrcs", WriterState(), notes=[["x.mrcs", 1, "NaN", True]])
        # what an interrupted attempt has noted comes once more
        journal.record(
            "a.mrcs", STATE, {"batch": [4]}, notes=[["x.mrcs", 1, "NaN", True], ["x.mrcs", 3, "", False]]
        )
        journal.finish("b.mrcs")
        journal.finish("group", ["b.mrcs", "c.mrcs"])
    with Journal(path) as journal:
        assert journal.undertaking is not None
        assert journal.undertaking.job == "denoise"
        assert not journal.differences(WHOLE)
        assert journal.states == {"a.mrcs": STATE}
        assert journal.extras == {"a.mrcs": {"batch": [4]}}
        assert list(journal.notes["a.mrcs"]) == [("x.mrcs", 1, "NaN", True), ("x.mrcs", 3, "", False)]
        assert journal.finished == {"b.mrcs": {"b.mrcs": 4}, "group": {"b.mrcs": 4, "c.mrcs": 4}}


def test_notes_are_written_once_however_many_follow(path: Path) -> None:
    def size_of(n: int) -> int:
        with Journal(path) as journal:
            journal.begin(WHOLE)
            begin = path.stat().st_size
            for number in range(n):
                journal.record("a.mrcs", STATE, notes=[["x.mrcs", number, "NaN", True]])
        return path.stat().st_size - begin

    # it would be four times as large for twice as many, were all of them written each time
    assert size_of(200) < 2.1 * size_of(100)


def test_a_part_counts_as_finished_only_while_its_files_are_whole(path: Path) -> None:
    with Journal(path) as journal:
        journal.finish("a.mrcs")
        journal.complete(["a.mrcs", "b.mrcs"])
    (path.parent / "b.mrcs").write_bytes(b"fou")
    with Journal(path) as journal:
        assert journal.is_finished("a.mrcs")
        assert not journal.is_complete
        (path.parent / "b.mrcs").write_bytes(b"four")
        assert journal.is_complete
        (path.parent / "a.mrcs").unlink()
        assert not journal.is_finished("a.mrcs")
        assert not journal.is_complete


def test_what_is_made_of_something_else_now_is_forgotten_and_the_rest_kept(path: Path) -> None:
    with Journal(path) as journal:
        for name in ("a.mrcs", "b.mrcs"):
            journal.record(name, STATE)
            journal.finish(name)
        journal.complete(["a.mrcs", "b.mrcs"])
    grown = replace(WHOLE, parts={"a.mrcs": "1", "b.mrcs": "other", "c.mrcs": "3"})
    with Journal(path) as journal:
        journal.go_on(grown)
        assert not journal.is_complete
    for _ in range(2):  # as written, and with nothing new to write
        with Journal(path) as journal:
            journal.go_on(grown)
            assert set(journal.finished) == set(journal.states) == {"a.mrcs"}
            assert {"a.mrcs", "b.mrcs", "c.mrcs"} < set(journal.files)


def test_a_torn_last_line_is_ignored_and_the_next_one_is_whole(path: Path) -> None:
    with Journal(path) as journal:
        journal.finish("a.mrcs")
    with path.open("ab") as file:
        file.write(b'{"finished": "b')
    with Journal(path) as journal:
        assert set(journal.finished) == {"a.mrcs"}
        journal.go_on(WHOLE)
        journal.finish("c.mrcs")
    with Journal(path) as journal:
        assert set(journal.finished) == {"a.mrcs", "c.mrcs"}


def test_a_job_killed_before_its_first_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b'{"job')
    with Journal(tmp_path / "journal") as journal:
        assert journal.undertaking is None
        journal.go_on(WHOLE)
    with Journal(tmp_path / "journal") as journal:
        assert journal.undertaking is not None
        assert not journal.differences(WHOLE)


def test_another_fingerprint_names_what_differs_and_changes_nothing(path: Path) -> None:
    with Journal(path) as journal:
        journal.finish("a.mrcs")
    before = path.read_bytes()
    other = replace(WHOLE, fingerprint=FINGERPRINT | {"model": "def"})
    with Journal(path) as journal:
        assert journal.differences(other) == ["model"]
        with pytest.raises(OutputError, match=r"other settings \(model\)"):
            journal.go_on(other)
    assert path.read_bytes() == before
    with Journal(path) as journal:
        journal.begin(other)
        assert not journal.finished
    with Journal(path) as journal:
        assert not journal.differences(other)


FIRST = json.dumps(asdict(WHOLE)).encode() + b"\n"


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"[]",
        b"null",
        b"{}",
        b'{"finished": "a"}',
        b'{"finished": "a", "files": {"a": "x"}}',
        b'{"finished": "a", "files": {"../a": 4}}',
        b'{"complete": 1}',
        b'{"key": "a", "state": {"n": 1}, "extra": 1, "notes": []}',
        b'{"key": "a", "state": {}, "extra": 1, "notes": 1}',
        b'{"job": "denoise", "parts": []}',
        b'{"job": "denoise", "files": ["../../notes"]}',
        b'{"job": "denoise", "folders": ["/home"]}',
        b'{"job": "denoise", "folders": [""]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_journal_is_not_resumed(tmp_path: Path, line: bytes) -> None:
    path, text = tmp_path / "journal", FIRST + line + b"\n"
    path.write_bytes(text)
    with Journal(path) as journal:
        with pytest.raises(OutputError, match=r"line 2: the journal is damaged"):
            journal.go_on(WHOLE)
        assert set(journal.files) == {"a.mrcs", "b.mrcs", "cryohush.json"}
    assert path.read_bytes() == text


@pytest.mark.parametrize(
    "text", [b"notes\n", b'{"fingerprint": {}}\n', b'{"job": "denoise", "files": ["../x"]}\n']
)
def test_another_file_is_no_journal(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "journal").write_bytes(text)
    with pytest.raises(OutputError, match="not a journal of this version"):
        Journal(tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == text


def test_a_second_job_in_the_same_folder_is_refused(path: Path) -> None:
    with Journal(path) as journal:
        journal.finish("a.mrcs")
        with pytest.raises(OutputError, match="another run"):
            Journal(path)
        journal.finish("b.mrcs")
    with Journal(path) as journal:
        assert set(journal.finished) == {"a.mrcs", "b.mrcs"}


def test_a_journal_is_not_opened_through_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(path)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="link: cannot be written"):
        Journal(tmp_path / "link")
    assert path.read_bytes() == before


def test_a_full_disk_is_an_output_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Journal(path) as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(OutputError, match="the disk is full"):
            journal.finish("a.mrcs")
        monkeypatch.undo()
        assert not journal.finished


def test_an_output_directory_that_is_not_there_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file"):
        Journal(tmp_path / "no" / "journal")
