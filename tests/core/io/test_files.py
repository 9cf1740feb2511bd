"""A file is there whole or not at all, and a disk that fails is told as such."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cryohush.core.errors import CryohushError, OutputError
from cryohush.core.io import files
from cryohush.core.io.cs import CsTable
from cryohush.core.io.files import make_folder, write_text, writing
from cryohush.core.io.star import read_tables
from cryohush.core.models.weights import load_model


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


def raise_as(library: str) -> None:
    if library == "torch":
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")
    if library == "safetensors":
        raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    try:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")
    finally:
        raise AttributeError("'Stream' object has no attribute 'pos'")


@pytest.mark.parametrize("library", ["torch", "safetensors", "matplotlib"])
def test_a_full_disk_is_told_whatever_a_library_makes_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    if library == "torch":  # which does not say what was wrong: then the disk itself is asked
        monkeypatch.setattr(files.os, "fsync", lambda descriptor: full())

        def full() -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"last\.pt: the disk is full"), writing(tmp_path / "last.pt"):
        raise_as(library)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_has_nothing_to_do_with_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="sizes"), writing(tmp_path / "a.pt"):
        raise RuntimeError("sizes of tensors must match")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "a.txt.part").symlink_to(victim)
    (tmp_path / "a.txt").symlink_to(victim)
    write_text(tmp_path / "a.txt", "text")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "text"
    assert not (tmp_path / "a.txt").is_symlink()


@pytest.mark.parametrize("name", ["t.star", "t.cs", "w.safetensors"])
@pytest.mark.parametrize("linked", ["file", "folder"])
def test_whatever_a_broken_link_was_to_hold_is_told_with_its_target(
    tmp_path: Path, name: str, linked: str
) -> None:
    read = {".star": lambda path: list(read_tables(path)), ".cs": CsTable, ".safetensors": load_model}
    path = tmp_path / "J1" / name
    link = path if linked == "file" else path.parent
    link.parent.mkdir(exist_ok=True)
    link.symlink_to("/store/session12")
    with pytest.raises(CryohushError, match=r"link to /store/session12, which is not there"):
        read[path.suffix](path)
    with pytest.raises(OutputError, match=r"link to /store/session12, which is not there"):
        make_folder(link)
