"""The folder of a job: what is its own may go, what is somebody else's never does."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from cryohush.core.errors import Aborted, OutputError
from cryohush.core.io.journal import JOURNAL_NAME, Undertaking
from cryohush.core.jobs.folder import Earlier, JobFolder

JOB = Undertaking("denoise", {"blend": 0.0}, {"a.mrcs": "1", "M/b.mrcs": "2"}, ["cryohush.json"], ["parts"])
OTHER = replace(JOB, fingerprint={"blend": 0.5})


def begun(folder: JobFolder) -> Aborted:
    """A stop, once there is something to go on with."""
    fill(folder, "a.mrcs.part")
    return Aborted("stopped")


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the journal."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != JOURNAL_NAME
    }


def fill(folder: JobFolder, *names: str) -> None:
    """Make files of the job."""
    for name in names:
        path = folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("ours")


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The folder of a job that has made all that it undertook."""
    with JobFolder(tmp_path / "out", JOB) as folder:
        fill(folder, "a.mrcs", "M/b.mrcs", "cryohush.json", "parts/1", "parts/2.part")
        folder.journal.finish("a.mrcs")
        folder.journal.complete(["a.mrcs", "M/b.mrcs", "cryohush.json"])
    return tmp_path / "out"


def test_an_earlier_run_is_left_alone_without_a_word(done: Path) -> None:
    before = contents(done)
    with pytest.raises(OutputError, match=r"out holds another run \(a\.mrcs\).*--resume.*--overwrite"):
        JobFolder(done, JOB)
    assert contents(done) == before


@pytest.mark.parametrize("earlier", ["resume", "anew"])
def test_the_same_job_goes_on_and_touches_nothing(done: Path, earlier: Earlier) -> None:
    before, lines = contents(done), list[str]()
    with JobFolder(done, JOB, earlier, log=lines.append) as folder:
        assert folder.goes_on
        assert folder.journal.is_complete
    assert contents(done) == before
    assert lines == ["an earlier run is there and complete: nothing is left to do"]


def test_other_options_are_refused_on_resuming_and_begin_anew_for_a_host(done: Path) -> None:
    before = contents(done)
    with pytest.raises(OutputError, match=r"other settings \(blend\)"):
        JobFolder(done, OTHER, "resume")
    assert contents(done) == before
    lines: list[str] = []
    with JobFolder(done, OTHER, "anew", log=lines.append) as folder:
        assert not folder.goes_on
        assert contents(done) == {}
        fill(folder, "a.mrcs")
    assert any("starting anew" in line for line in lines)


@pytest.mark.parametrize(("job", "earlier"), [(JOB, "replace"), (OTHER, "replace"), (OTHER, "anew")])
def test_only_what_the_job_has_made_is_replaced(done: Path, job: Undertaking, earlier: Earlier) -> None:
    for name in ("notes.txt", "M/c.mrcs", "a.mrcs.bak"):
        (done / name).write_text("mine")
    (done / "a.mrcs.part").write_text("ours, unfinished")
    with JobFolder(done, job, earlier) as folder:
        assert contents(done) == dict.fromkeys(["notes.txt", "M/c.mrcs", "a.mrcs.bak"], b"mine")
        assert not (done / "parts").exists()
        fill(folder, "a.mrcs")


@pytest.mark.parametrize("earlier", get_args(Earlier))
@pytest.mark.parametrize("name", ["a.mrcs", "M/b.mrcs", "cryohush.json", "parts/notes.txt"])
def test_files_that_no_journal_names_are_never_replaced(tmp_path: Path, earlier: Earlier, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"files of your own .*Choose another directory"):
        JobFolder(tmp_path / "out", JOB, earlier)
    assert contents(tmp_path / "out") == {name: b"mine"}
    assert not (tmp_path / "out" / JOURNAL_NAME).exists()


@pytest.mark.parametrize("earlier", get_args(Earlier))
def test_the_folder_of_another_command_is_never_replaced(done: Path, earlier: Earlier) -> None:
    before = contents(done)
    with pytest.raises(
        OutputError, match=r"another run \(of denoise\), which extract-noise does not replace"
    ):
        JobFolder(done, replace(JOB, job="extract-noise"), earlier)
    assert contents(done) == before


@pytest.mark.parametrize("earlier", get_args(Earlier))
def test_inputs_are_never_written_to(done: Path, tmp_path: Path, earlier: Earlier) -> None:
    before = contents(done)
    (tmp_path / "link").symlink_to(done)
    for name in ("a.mrcs", "parts/1"):
        for folder in (done, tmp_path / "link"):
            with pytest.raises(OutputError, match="is an input of this run"):
                JobFolder(folder, JOB, earlier, inputs=[done / name])
    assert contents(done) == before


def test_an_input_that_only_an_earlier_run_has_made_is_not_removed(done: Path) -> None:
    before = contents(done)
    with pytest.raises(OutputError, match=r"a\.mrcs is an input of this run"):
        JobFolder(done, replace(OTHER, parts={"new.mrcs": ""}), "replace", inputs=[done / "a.mrcs"])
    assert contents(done) == before


@pytest.mark.parametrize("earlier", get_args(Earlier))
def test_a_second_run_does_not_disturb_a_running_one(tmp_path: Path, earlier: Earlier) -> None:
    with JobFolder(tmp_path / "out", JOB) as folder:
        fill(folder, "a.mrcs.part", "parts/1")
        before = contents(tmp_path / "out")
        for job in (JOB, OTHER):
            with pytest.raises(OutputError, match="another run is writing to this directory"):
                JobFolder(tmp_path / "out", job, earlier)
        assert contents(tmp_path / "out") == before
        fill(folder, "a.mrcs")
        folder.journal.finish("a.mrcs")
    with JobFolder(tmp_path / "out", JOB, "resume") as folder:
        assert folder.journal.is_finished("a.mrcs")


def test_a_grown_job_keeps_what_is_the_same_and_removes_what_is_not(done: Path) -> None:
    with JobFolder(done, JOB, "resume") as folder:
        folder.journal.finish("M/b.mrcs")
    grown = replace(JOB, parts={"a.mrcs": "1", "M/b.mrcs": "changed", "c.mrcs": "3"})
    with JobFolder(done, grown, "resume") as folder:
        assert not folder.journal.is_complete
        assert folder.journal.is_finished("a.mrcs")
        assert not folder.journal.is_finished("M/b.mrcs")
        assert not (done / "M/b.mrcs").exists()
    (done / "d.mrcs").write_text("mine")
    with pytest.raises(OutputError, match=r"files of your own \(d\.mrcs\)"):
        JobFolder(done, replace(grown, parts={**grown.parts, "d.mrcs": "4"}), "resume")


def test_files_named_late_belong_to_the_job_too(tmp_path: Path) -> None:
    with JobFolder(tmp_path / "out", JOB) as folder:
        (tmp_path / "out/mine.png").write_text("mine")
        with pytest.raises(OutputError, match=r"files of your own \(mine\.png\)"):
            folder.add_files(["ours.png", "mine.png"])
        folder.add_files(["ours.png"])
        fill(folder, "ours.png")
    with JobFolder(tmp_path / "out", JOB, "replace"):
        assert contents(tmp_path / "out") == {"mine.png": b"mine"}


def test_what_came_to_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Aborted), JobFolder(tmp_path / "out", JOB):
        raise Aborted("stopped")
    assert list((tmp_path / "out").iterdir()) == []
    folder = JobFolder(tmp_path / "out", JOB)
    with pytest.raises(Aborted), folder:
        raise begun(folder)
    with JobFolder(tmp_path / "out", JOB, "resume") as folder:
        assert folder.goes_on


def test_a_folder_that_was_swapped_for_a_link_is_not_emptied_through_it(done: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (done / "parts").rename(elsewhere)
    (done / "parts").symlink_to(elsewhere)
    with JobFolder(done, JOB, "replace"):
        assert {path.name for path in elsewhere.iterdir()} == {"1", "2.part"}


def test_a_folder_that_cannot_be_made_or_has_no_room_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/out: cannot be written"):
        JobFolder(tmp_path / "file/out", JOB)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10, 6, 4))
    with JobFolder(tmp_path / "out", JOB) as folder:
        folder.check_room(4, "do less")
        with pytest.raises(OutputError, match=r"too full: 5 bytes are needed, 4 are free.* or do less\."):
            folder.check_room(5, "do less")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [JOURNAL_NAME]
