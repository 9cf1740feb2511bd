"""The way back: selections, other orders and joined tables of denoised images get their raw ones again."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micrograph_files import micrograph, table_of, write_micrograph
from particle_files import CS_BLOB, noise, read_alike, save_cs, write_stack, write_table

from cryohush.core.cli import main
from cryohush.core.errors import CryohushError
from cryohush.core.io.star import read_tables, unquote
from cryohush.core.jobs.restore import restore

OPTIONS = ["--precision", "fp32", "--threads", "1", "--quiet"]


def columns(path: str | Path, name: str, *labels: str) -> list[tuple[str, ...]]:
    for table in read_tables(path):
        if table.name == name:
            places = [table.column(label) for label in labels]
            return [tuple(unquote(row[k]) for k in places) for _, _, row in table.rows() if row]
    raise AssertionError(f"no data_{name}")


def edited(source: str, destination: str, change: Any) -> None:
    """Write a table with its rows of particles changed: those lines that name an image."""
    lines = Path(source).read_text().splitlines(keepends=True)
    rows = [number for number, line in enumerate(lines) if "@" in line or ".mrc " in line]
    head, tail = lines[: rows[0]], lines[rows[-1] + 1 :]
    Path(destination).write_text("".join([*head, *change(lines[rows[0] : rows[-1] + 1]), *tail]))


@pytest.fixture(scope="module")
def project(weights_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which the particles of two stacks are denoised."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        names = []
        for stack in ("a", "b"):
            write_stack(Path(f"S/{stack}.mrcs"), noise(4, 16, 16))
            names += [f"{number:06d}@S/{stack}.mrcs" for number in range(1, 5)]
        write_table(Path("raw.star"), names)
        assert main(["denoise", "raw.star", "-o", "D", "--model", str(weights_file), *OPTIONS]) == 0
    return folder


@pytest.fixture
def denoised(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project to work in."""
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_selection_in_another_order_has_its_raw_images_and_all_other_text(denoised: Path) -> None:
    edited("D/particles.star", "selected.star", lambda rows: [rows[6], rows[1], rows[3]])
    restored = restore("selected.star", "back.star")
    read_alike("back.star")
    assert (restored.n_rows, restored.n_restored, restored.n_missing) == (3, 3, 0)
    labels = ("rlnImageName", "rlnDefocusU", "rlnOpticsGroup")
    raw = columns("raw.star", "particles", *labels)
    assert columns("back.star", "particles", *labels) == [raw[6], raw[1], raw[3]]
    text = Path("selected.star").read_text()
    for number in (6, 1, 3):
        text = text.replace(f"D/S/{'ab'[number // 4]}", f"S/{'ab'[number // 4]}")
    assert Path("back.star").read_text() == text


def test_rows_that_are_raw_already_stay_as_they_are(denoised: Path) -> None:
    edited("D/particles.star", "one.star", lambda rows: rows[:2])
    edited("one.star", "joined.star", lambda rows: [*rows, "000003@S/b.mrcs 9.50 1 None\n"])
    restored = restore("joined.star", "back.star")
    assert (restored.n_rows, restored.n_restored) == (3, 2)
    assert [name for (name,) in columns("back.star", "particles", "rlnImageName")] == [
        "000001@S/a.mrcs",
        "000002@S/a.mrcs",
        "000003@S/b.mrcs",
    ]


def test_denoised_images_that_are_gone_are_no_obstacle(denoised: Path) -> None:
    shutil.copy("D/particles.star", "kept.star")
    shutil.rmtree("D")
    assert restore("kept.star", "back.star").n_restored == 8
    assert columns("back.star", "particles", "rlnImageName") == columns(
        "raw.star", "particles", "rlnImageName"
    )


def test_an_original_name_of_the_source_comes_back(denoised: Path, weights: Path) -> None:
    # as after RELION's subtraction: the images have an original of their own
    text = (
        Path("raw.star")
        .read_text()
        .replace("_rlnOpticsGroup #3\n", "_rlnOpticsGroup #3\n_rlnImageOriginalName #4\n")
    )
    Path("subtracted.star").write_text(text)
    edited(
        "subtracted.star",
        "subtracted2.star",
        lambda rows: [f"{row.rstrip()} 000001@gone/x.mrcs\n" for row in rows],
    )
    assert main(["denoise", "subtracted2.star", "-o", "E", "--model", str(weights), *OPTIONS]) == 0
    restore("E/particles.star", "back.star")
    labels = ("rlnImageName", "rlnImageOriginalName")
    assert columns("back.star", "particles", *labels) == columns("subtracted2.star", "particles", *labels)


def test_raw_files_that_are_gone_are_told(denoised: Path) -> None:
    Path("S/b.mrcs").unlink()
    restored = restore("D/particles.star", "back.star")
    assert (restored.n_missing, restored.missing) == (1, "S/b.mrcs")


def test_micrographs_have_their_raw_names_again(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 3):
        write_micrograph(Path(f"M/{number}.mrc"), micrograph(64, 64, seed=number))
    names = [f"M/{number}.mrc" for number in (1, 2, 3)]
    Path("m.star").write_text(table_of(names))
    assert main(["denoise", "m.star", "-o", "D", "--model", str(weights), *OPTIONS]) == 0
    edited("D/micrographs.star", "some.star", lambda rows: [rows[2], rows[0]])
    assert restore("some.star", "back.star").n_restored == 2
    assert columns("back.star", "micrographs", "rlnMicrographName", "rlnDefocusU") == [
        ("M/3.mrc", "1.348548e+06"),
        ("M/1.mrc", "1.348548e+06"),
    ]


@pytest.mark.parametrize(
    ("source", "destination", "expected"),
    [
        ("raw.star", "back.star", "has no column _rlnImageOriginalName"),
        ("D/S/a.mrcs", "back.star", r"expected a table \(.star or .cs\)"),
        ("D/particles.star", "back.cs", r"expected a table \(.star\)"),
        ("D/particles.star", "D/particles.star", "is the input itself"),
        (
            "unknown.star",
            "back.star",
            r"unknown.star, line \d+: the raw image of 000002@D/S/a.mrcs is not known: .* is 'None'",
        ),
        ("back_already.star", "back.star", "expected denoised images, found 8 rows whose images are raw"),
    ],
)
def test_what_cannot_be_restored_is_refused(
    denoised: Path, source: str, destination: str, expected: str
) -> None:
    restore("D/particles.star", "back_already.star")
    edited(
        "D/particles.star", "unknown.star", lambda rows: [rows[0], f"{rows[1].rsplit(maxsplit=1)[0]} None\n"]
    )
    before = Path("D/particles.star").read_bytes()
    with pytest.raises(CryohushError, match=expected):
        restore(source, destination)
    assert Path("D/particles.star").read_bytes() == before
    assert not Path("back.star").exists()
    assert not Path("back.cs").exists()


CS_FIELDS: list[Any] = [*CS_BLOB, ("blob/import_sig", "<u8"), ("ctf/df1_A", "<f4")]


def cs_table(path: Path, stack: str, n: int, first_uid: int) -> Any:
    table = np.zeros(n, CS_FIELDS)
    table["uid"] = np.arange(n) + first_uid
    table["blob/path"], table["blob/idx"] = stack.encode(), np.arange(n)
    table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = 16, 2.0, 1
    table["blob/import_sig"], table["ctf/df1_A"] = 77, np.arange(n)
    save_cs(path, table)
    return table


def test_selections_of_cryosparc_find_their_raw_images_by_uid(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = {}
    for number, name in enumerate(("a", "b")):
        write_stack(Path(f"J{number}/{name}.mrc"), noise(5, 16, 16, seed=number))
        raw[name] = cs_table(Path(f"{name}.cs"), f"J{number}/{name}.mrc", 5, 2**60 + 10 * number)
        assert main(["denoise", f"{name}.cs", "-o", f"D{name}", "--model", str(weights), *OPTIONS]) == 0
    parts = [np.load(f"D{name}/particles.cs") for name in ("a", "b")]
    longer: list[Any] = [
        (name, "S40" if name == "blob/path" else kind, *shape) for name, kind, *shape in CS_FIELDS
    ]
    one, other = (part.astype(longer) for part in parts)
    for name, part in zip(("a", "b"), (one, other), strict=True):
        part["blob/path"] = [f"D{name}/".encode() + path.removeprefix(b">") for path in part["blob/path"]]
    joined = np.concatenate([other[[3, 1]], one[[4]], raw["a"][[0]].astype(longer)])
    joined["blob/path"][3] = b"J0/a.mrc"
    joined["ctf/df1_A"] = [50, 51, 52, 53]  # refined meanwhile
    with Path("joined.cs").open("wb") as file:
        np.save(file, joined)
    restored = restore("joined.cs", "back.cs")
    assert (restored.n_rows, restored.n_restored) == (4, 3)
    back = np.load("back.cs")
    expected = np.concatenate([raw["b"][[3, 1]], raw["a"][[4, 0]]])
    for name in (field[0] for field in CS_FIELDS if field[0].startswith("blob/") or field[0] == "uid"):
        np.testing.assert_array_equal(back[name], expected[name], err_msg=name)
    np.testing.assert_array_equal(back["ctf/df1_A"], joined["ctf/df1_A"])
    assert "Raw particles" in Path("back.csg").read_text()


def test_a_table_of_cryosparc_without_its_record_needs_the_raw_one(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stack(Path("J0/a.mrc"), noise(5, 16, 16))
    raw = cs_table(Path("a.cs"), "J0/a.mrc", 5, 2**60)
    assert main(["denoise", "a.cs", "-o", "D", "--model", str(weights), *OPTIONS]) == 0
    Path("D/cryohush.json").unlink()
    with pytest.raises(CryohushError, match=r"no cryohush.json .* --raw"):
        restore("D/particles.cs", "back.cs")
    cs_table(Path("others.cs"), "J0/a.mrc", 5, 2**61)
    with pytest.raises(CryohushError, match=r"5 of the 5 particles of D/particles\.cs are not in this table"):
        restore("D/particles.cs", "back.cs", raw=Path("others.cs"))
    restore("D/particles.cs", "back.cs", raw=Path("a.cs"))
    np.testing.assert_array_equal(np.load("back.cs")["blob/path"], raw["blob/path"])


def test_a_table_in_a_folder_of_its_own_is_not_taken_for_the_raw_one(
    denoised: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # outside the project the new names are relative to the table, so that raw stacks have the same ones
    outside = tmp_path_factory.mktemp("outside")
    assert main(["denoise", "raw.star", "-o", str(outside), "--model", str(weights), *OPTIONS]) == 0
    names = columns(outside / "particles.star", "particles", "rlnImageName")
    assert names == columns("raw.star", "particles", "rlnImageName")
    assert restore(outside / "particles.star", outside / "back.star").n_restored == 8
    assert columns(outside / "back.star", "particles", "rlnImageName") == [
        (name.replace("@", f"@{denoised}/"),) for (name,) in names
    ]


def test_the_way_back_does_not_depend_on_where_it_is_gone(
    denoised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("D")
    assert restore("particles.star", "../back.star").n_restored == 8
    assert columns("../back.star", "particles", "rlnImageName") == columns(
        "../raw.star", "particles", "rlnImageName"
    )


def test_a_table_that_is_there_is_not_replaced(denoised: Path) -> None:
    before = Path("raw.star").read_bytes()
    with pytest.raises(CryohushError, match=r"raw\.star: is there already"):
        restore("D/particles.star", "raw.star")
    assert Path("raw.star").read_bytes() == before


def test_raw_images_in_a_folder_with_an_at_sign_stay_as_they_are(denoised: Path) -> None:
    (name, original), *_ = columns("D/particles.star", "particles", "rlnImageName", "rlnImageOriginalName")
    folder = Path("me@lab")
    folder.mkdir()
    file = original.partition("@")[2]
    (folder / "raw.mrcs").write_bytes(Path(file).read_bytes())
    text = Path("D/particles.star").read_text()
    Path("D/joined.star").write_text(text.replace(name, "000002@me@lab/raw.mrcs", 1))
    restored = restore("D/joined.star", "back.star")
    assert (restored.n_restored, restored.n_missing) == (7, 0)
    assert columns("back.star", "particles", "rlnImageName")[0] == ("000002@me@lab/raw.mrcs",)


def test_a_table_of_cryosparc_is_restored_into_a_linked_folder(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stack(Path("J0/a.mrc"), noise(3, 16, 16))
    cs_table(Path("a.cs"), ">J0/a.mrc", 3, 2**60)
    assert main(["denoise", "a.cs", "-o", "D", "--model", str(weights), *OPTIONS]) == 0
    Path("far/away").mkdir(parents=True)
    Path("near").symlink_to("far/away")
    restore("D/particles.cs", "near/back.cs")
    (path,) = set(np.load("near/back.cs")["blob/path"].tolist())
    assert Path("near", os.fsdecode(path[1:])).samefile("J0/a.mrc")
