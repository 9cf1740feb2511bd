"""A file is there whole or not at all, and a disk that fails is told as such."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cryohush.core.errors import OutputError
from cryohush.core.io.files import write_text, writing


def write_and_fail(path: Path, error: BaseException) -> None:
    with writing(path, 4096) as part:
        part.write_text("half a ta")
        raise error


def test_a_file_gets_its_name_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "table.star"
    with writing(path) as part:
        part.write_bytes(b"first half")
        assert not path.exists()
        with part.open("ab") as file:
            file.write(b", second half")
    assert path.read_bytes() == b"first half, second half"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bad row")])
def test_what_ends_early_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "table.star"
    path.write_text("of an earlier run")
    with pytest.raises(type(error)):
        write_and_fail(path, error)
    assert path.read_text() == "of an earlier run"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_told_with_the_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "particles.mrcs"
    with pytest.raises(OutputError, match=r"particles.mrcs: the disk is full .* needs 4096 bytes"):
        write_and_fail(path, OSError(errno.ENOSPC, "No space left on device"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"missing/a.txt: cannot be written: No such file or directory"):
        write_text(tmp_path / "missing" / "a.txt", "text")


def test_text_is_written_in_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "3 Å")
    assert (tmp_path / "a.txt").read_bytes() == b"3 \xc3\x85"
