"""cryoSPARC's tables: which image each row means, what joins them, and that nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from cryohush.core.errors import ConfigurationError, CryohushError, CsError, ImageError, OutputError
from cryohush.core.inference.plan import output_names
from cryohush.core.io.cs import CsTable
from cryohush.core.io.mrc import StackReader
from cryohush.core.io.particles import ParticleSet
from cryohush.core.io.poses import CtfTable, read_ctf

DATA = Path(__file__).parents[2] / "data" / "io"
BLOB = [
    ("blob/path", "S40"),
    ("blob/idx", "<u4"),
    ("blob/shape", "<u4", (2,)),
    ("blob/psize_A", "<f4"),
    ("blob/sign", "<f4"),
    ("blob/import_sig", "<u8"),
]
CTF: list[Any] = [("ctf/type", "S6"), ("ctf/accel_kv", "<f4"), ("ctf/tetra_A", "<f4", (4,))]
# Fields of every kind, in no tidy order, two of them next to the blob's.
FIELDS: list[Any] = [CTF[0], ("uid", "<u8"), *BLOB, *CTF[1:], ("alignments3D/pose", "<f4", (3,))]


def rows(n: int = 6, fields: list[Any] = FIELDS, seed: int = 1) -> NDArray[Any]:
    """Return rows of random bits (many a NaN among them) about images of two stacks."""
    table = np.zeros(n, fields)
    random = np.random.default_rng(seed)
    table.view(np.uint8)[:] = random.integers(0, 256, table.nbytes, np.uint8)
    for name, kind in table.dtype.fields.items() if table.dtype.fields else ():
        if kind[0].kind == "S":
            table[name] = random.choice(["spline", "x", ""], n)
    table["uid"] = 2**63 + 7 * np.arange(n, dtype=np.uint64)[::-1]
    if "blob/path" in table.dtype.fields:
        table["blob/path"] = np.resize(["A/a.mrc", "A/a.mrc", "B/a.mrc"], n)
        table["blob/idx"] = np.resize([2, 0, 1, 1], n)
        table["blob/shape"], table["blob/psize_A"], table["blob/sign"] = 8, 1.5, -1
    if "ctf/accel_kv" in table.dtype.fields:
        table["ctf/accel_kv"] = 300
    return table


def save(path: Path, table: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        np.save(file, table)
    return path


def stack(path: Path, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, data=np.zeros((3, side, side), dtype=np.float32)) as file:
        file.set_image_stack()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two stacks and a folder for a job."""
    for name in ("A/a.mrc", "B/a.mrc"):
        stack(tmp_path / "P1" / name)
    (tmp_path / "P1" / "J7").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "P1"


def without(table: NDArray[Any], *names: str) -> dict[str, bytes]:
    return {name: table[name].tobytes() for name in table.dtype.names or () if name not in names}


def test_the_same_particles_of_both_programs_are_the_same() -> None:
    star, cs = (ParticleSet.read(DATA / f"empiar_10076_7.{suffix}") for suffix in ("star", "cs"))
    images = []
    for particles in (star, cs):
        assert particles.check_images() == [(7, 16, 16)]
        with StackReader(particles.stacks[0]) as reader:
            images.append(reader.read(particles.image))
    np.testing.assert_array_equal(*images)
    of_star, of_cs = star.optics[1], cs.optics[1]
    assert star.pixel_size_angstrom(0) == pytest.approx(1.309998, abs=1e-6)  # the text has that many digits
    # stored as float32
    assert cs.pixel_size_angstrom(0) == pytest.approx(star.pixel_size_angstrom(0), rel=1e-7)
    for name in ("voltage_kv", "cs_mm", "amplitude_contrast"):
        assert getattr(of_cs, name) == pytest.approx(getattr(of_star, name), rel=1e-7), name
    assert of_cs.box_px == 16
    assert (star.dark_stacks, cs.dark_stacks) == (frozenset(), frozenset({0}))


def test_star_and_cs_tables_of_the_same_particles_give_the_same_ctf() -> None:
    star, cs = (read_ctf(ParticleSet.read(DATA / f"empiar_10076_7.{suffix}")) for suffix in ("star", "cs"))
    for field in fields(CtfTable):
        # the .cs file has float32, radians and microns
        np.testing.assert_allclose(getattr(cs, field.name), getattr(star, field.name), rtol=1e-6, atol=1e-6)


def test_a_real_table_keeps_every_bit_but_those_of_its_image(tmp_path: Path) -> None:
    particles = ParticleSet.read(DATA / "empiar_10076_7.cs")
    particles.write_cs(tmp_path / "out.cs", ["new/denoised images of ü.mrcs"])
    before, after = np.load(DATA / "empiar_10076_7.cs"), np.load(tmp_path / "out.cs")
    changed = ("blob/path", "blob/import_sig")
    assert after.dtype.names == before.dtype.names
    assert without(after, *changed) == without(before, *changed)
    assert {os.fsdecode(path) for path in after["blob/path"]} == {">new/denoised images of ü.mrcs"}
    assert before["blob/import_sig"].all()
    assert not after["blob/import_sig"].any()

    group = yaml.safe_load((tmp_path / "out.csg").read_text())
    assert group["group"]["type"] == "particle"
    assert group["results"] == {
        slot: {"metafile": ">out.cs", "num_items": 7, "type": f"particle.{slot}"} for slot in ("blob", "ctf")
    }
    assert {path.name for path in tmp_path.iterdir()} == {"out.cs", "out.csg"}


def test_each_row_means_the_image_that_its_blob_says(project: Path) -> None:
    table = rows()
    particles = ParticleSet.read(save(project / "J7" / "particles.cs", table))
    assert (particles.root, particles.is_cs, particles.passthrough) == (project, True, ())
    assert particles.stacks == [project / "A/a.mrc", project / "B/a.mrc"]
    assert particles.stack.tolist() == [0, 0, 1, 0, 0, 1]
    assert particles.image.tolist() == table["blob/idx"].tolist() == [2, 0, 1, 1, 2, 0]
    assert [images.tolist() for images in particles.distinct_images()] == [[0, 1, 2], [0, 1]]

    particles.write_cs(project / "J7" / "out.cs", ["x.mrcs", "longer/than/the/name/of/the/old/stack/x.mrcs"])
    written = np.load(project / "J7" / "out.cs")
    assert written["blob/idx"].tolist() == [2, 0, 1, 1, 2, 0]
    assert written["blob/path"].tolist()[1:3] == [
        b">x.mrcs",
        b">longer/than/the/name/of/the/old/stack/x.mrcs",
    ]
    changed = ("blob/path", "blob/idx", "blob/import_sig")
    assert without(written, *changed) == without(table, *changed)


def test_an_index_is_that_in_a_stack_of_the_images_in_use(project: Path) -> None:
    table = rows(2)
    table["blob/idx"] = [2, 2]
    particles = ParticleSet.read(save(project / "J7" / "particles.cs", table))
    particles.write_cs(project / "J7" / "out.cs", ["x.mrcs"])
    assert np.load(project / "J7" / "out.cs")["blob/idx"].tolist() == [0, 0]


def test_paths_of_exports_lie_beside_their_table(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows(3)
    table["blob/path"] = [">A/a.mrc", ">./A/a.mrc", ">A//a.mrc"]
    export = project / "exports" / "J7"
    stack(export / "A" / "a.mrc")
    monkeypatch.chdir(project)
    particles = ParticleSet.read(save(export / "particles.cs", table))
    assert (particles.stacks, particles.stack_names) == ([export / "A/a.mrc"], ["A/a.mrc"])
    # the project has other images of that name: they are not meant
    with mrcfile.open(project / "A" / "a.mrc", "r+") as file:
        file.data[:] += 1
    assert ParticleSet.read(export / "particles.cs").stacks == [export / "A/a.mrc"]
    with mrcfile.open(project / "A" / "a.mrc", "r+") as file:
        file.data[:] -= 1
    table["blob/path"] = "A/a.mrc"
    assert ParticleSet.read(save(export / "particles.cs", table)).stacks == [project / "A/a.mrc"]


def test_some_paths_may_lie_beside_the_table_and_others_in_the_project(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = rows(3)
    table["blob/path"] = [">A/a.mrc", "A/a.mrc", "B/a.mrc"]
    export = project / "exports" / "J7"
    stack(export / "A" / "a.mrc")
    monkeypatch.chdir(project)
    path = save(export / "particles.cs", table)
    for root in (None, project):
        particles = ParticleSet.read(path, root=root)
        assert [particles.stacks[stack] for stack in particles.stack] == [
            export / "A/a.mrc",
            project / "A/a.mrc",
            project / "B/a.mrc",
        ]
        assert len(set(output_names(particles))) == 3
        particles.write_cs(export / "out.cs", [f"{number}.mrcs" for number in range(3)])
        assert np.load(export / "out.cs")["blob/path"].tolist() == [b">0.mrcs", b">1.mrcs", b">2.mrcs"]
    (project / "B/a.mrc").unlink()
    with pytest.raises(CsError, match=r"row 3: the stack B/a\.mrc does not exist"):
        ParticleSet.read(path)


def test_stacks_may_differ_in_contrast_and_box(project: Path) -> None:
    table = rows(6, FIELDS[1:])
    of_b = table["blob/path"] == b"B/a.mrc"
    table["blob/sign"][of_b], table["blob/shape"][of_b] = 1, 10
    (project / "B/a.mrc").unlink()
    stack(project / "B/a.mrc", side=10)
    particles = ParticleSet.read(save(project / "J7" / "particles.cs", table))
    assert particles.dark_stacks == {0}
    assert particles.check_images() == [(3, 8, 8), (3, 10, 10)]
    table["blob/shape"] = 8
    particles = ParticleSet.read(save(project / "J7" / "particles.cs", table))
    with pytest.raises(
        ImageError, match=r"images are 10 px wide, the table says 8 px .*particles\.cs, row 3\)"
    ):
        particles.check_images()


def split(table: NDArray[Any], job: Path, order: list[int], more: Any = ()) -> tuple[Path, Path]:
    """Save a table as cryoSPARC does after a selection: the alignments, and the rest in any order."""
    own = np.zeros(len(table), [FIELDS[1], FIELDS[-1], *more])
    for name in own.dtype.names or ():
        own[name] = table[name]
    return (
        save(job / "particles_selected.cs", own),
        save(job / "J7_passthrough_particles_selected.cs", table[order]),
    )


@pytest.mark.parametrize("told", [True, False])
def test_passthrough_files_are_joined_by_uid(project: Path, told: bool) -> None:
    table = rows(8)
    own, passthrough = split(table[:6], project / "J7", [3, 1, 5, 0, 2, 4])
    # more particles than are selected
    save(passthrough, np.concatenate([table[6:], np.load(passthrough)]))
    particles = ParticleSet.read(own, passthrough=[passthrough] if told else [])
    assert particles.passthrough == (passthrough,)
    assert particles.image.tolist() == [2, 0, 1, 1, 2, 0]
    particles.write_cs(project / "out.cs", ["a.mrcs", "b.mrcs"])
    written = np.load(project / "out.cs")
    assert without(written, "blob/path", "blob/import_sig") == without(
        table[:6], "blob/path", "blob/import_sig"
    )
    assert list(yaml.safe_load((project / "out.csg").read_text())["results"]) == [
        "alignments3D",
        "ctf",
        "blob",
    ]


def test_a_slot_comes_whole_from_the_first_file_that_has_it(project: Path) -> None:
    table = rows()
    own, passthrough = split(table, project / "J7", list(range(6)), more=[("ctf/accel_kv", "<f4")])
    other = table.copy()
    other["ctf/accel_kv"], other["blob/idx"] = 200, 0
    particles = ParticleSet.read(own, passthrough=[passthrough, save(project / "other.cs", other)])
    assert particles.optics[1].voltage_kv == 300
    assert particles.image.tolist() == [2, 0, 1, 1, 2, 0]
    particles.write_cs(project / "out.cs", ["a.mrcs", "b.mrcs"])
    assert {name for name in np.load(project / "out.cs").dtype.names if name[:3] == "ctf"} == {"ctf/accel_kv"}


def test_files_beside_count_only_with_all_particles_and_must_agree(project: Path) -> None:
    table = rows()
    own, passthrough = split(table, project / "J7", [5, 4, 3, 2, 1, 0])
    save(project / "J7" / "J7_passthrough_particles_excluded.cs", table[:5])
    save(project / "J7" / "J7_passthrough_particles_all.cs", table)
    (project / "J7" / "J7_passthrough_exposures.cs").symlink_to("nowhere")
    assert len(ParticleSet.read(own).passthrough) == 2
    other = table.copy()
    other["blob/idx"][4] += 1
    save(project / "J7" / "J7_passthrough_particles_all.cs", other)
    with pytest.raises(CsError, match=r"disagrees with .*passthrough_particles_all\.cs about blob/idx"):
        ParticleSet.read(own)
    assert ParticleSet.read(own, passthrough=[passthrough]).image[4] == 2


def test_a_passthrough_file_must_hold_all_particles_and_belong_to_a_cs_file(project: Path) -> None:
    own, passthrough = split(rows(), project / "J7", [0, 1, 2, 3])
    with pytest.raises(CsError, match=r"2 of the 6 particles of .* are not in this passthrough file"):
        ParticleSet.read(own, passthrough=[passthrough])
    passthrough.unlink()
    with pytest.raises(CsError, match=r"no field blob/path, .*are alignments3D\. Give the passthrough file"):
        ParticleSet.read(own)
    with pytest.raises(ConfigurationError, match="is none"):
        ParticleSet.read(DATA / "empiar_10076_7.star", passthrough=[own])


def changed(name: str, value: Any, row: int = 4) -> Callable[[NDArray[Any]], NDArray[Any]]:
    def change(table: NDArray[Any]) -> NDArray[Any]:
        table[name][row] = value
        return table

    return change


def retyped(name: str, kind: Any) -> Callable[[NDArray[Any]], NDArray[Any]]:
    fields = [(n, kind if n == name else np.dtype(FIELDS)[n]) for n in np.dtype(FIELDS).names or ()]
    return lambda table: np.zeros(1, fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed("uid", 2**63 + 35), r"1 uids are repeated, first 9223372036854775843 in rows 1 and 5"),
        (changed("blob/path", b"C/c.mrc"), r"row 5: the stack C/c\.mrc does not exist \(1 of 3 .*Looked in"),
        (changed("blob/path", b""), r"row 5: expected the path of a stack in blob/path"),
        (changed("blob/idx", 2**31), r"row 5: expected an index from 0 to 2147483647 in blob/idx"),
        (
            lambda table: changed("blob/idx", -1)(
                table.astype([(n, "<i8" if n == "blob/idx" else table.dtype[n]) for n in table.dtype.names])
            ),
            r"row 5: expected an index from 0 to 2147483647 in blob/idx, found -1",
        ),
        (changed("blob/sign", 0), r"row 5: expected 1 \(protein white\) or -1 .* found 0\.0"),
        (changed("blob/sign", 1), r"is 1 in some rows and -1 in others of the same stack A/a\.mrc"),
        (
            changed("blob/psize_A", np.nan),
            r"row 5: expected a positive pixel size in blob/psize_A, found nan",
        ),
        (changed("blob/shape", (8, 9)), r"row 5: expected square images in blob/shape, found \[8 9\]"),
        (lambda table: table[:0], "has no rows"),
        (lambda table: np.zeros(4), r"expected a table, found an array of \(4,\) x float64"),
        (lambda table: table[["blob/path", "blob/idx"]], "no field uid"),
        (lambda table: table[["uid", "blob/path"]], "no field blob/idx, blob/shape, blob/psize_A"),
        (
            lambda table: np.array([(1, b"x")], [("uid", "<u8"), ("micrograph_blob/path", "S1")]),
            "It is a table of micrographs",
        ),
        (retyped("blob/path", "<U4"), r"the field blob/path has the unexpected type <U4.*texts are bytes"),
        (retyped("blob/shape", "<u4"), "the field blob/shape has the unexpected type uint32"),
        (retyped("uid", "<u4"), "no field uid of 64 bits"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(
    project: Path, change: Callable[[NDArray[Any]], NDArray[Any]], message: str
) -> None:
    path = save(project / "J7" / "particles.cs", change(rows()))
    with pytest.raises(CsError, match=message) as caught:
        ParticleSet.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no .cs file"),
        (b"\ndata_\n", "is no .cs file"),
        (b"\x95CSDAT\x01", r"cut off or damaged \(it ends too early"),
        (b"\x93NUMPY\x01\x00\xf6", "cut off or damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00" + 16 * b"(", "cut off or damaged"),
        (None, "cut off or damaged"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.cs"
    path.write_bytes((DATA / "empiar_10076_7.cs").read_bytes()[:-1] if content is None else content)
    with pytest.raises(CsError, match=message):
        ParticleSet.read(path)
    with pytest.raises(CsError, match="cannot be read: No such file"):
        ParticleSet.read(tmp_path / "y.cs")


def test_python_objects_are_never_loaded(tmp_path: Path) -> None:
    table = np.array([(1, "x")], [("uid", "<u8"), ("blob/path", object)])
    with pytest.raises(CsError, match="Python objects"):
        ParticleSet.read(save(tmp_path / "x.cs", table))


@pytest.mark.filterwarnings("ignore:Stored array in format 2.0")
def test_hundreds_of_fields_are_read_and_written(project: Path) -> None:
    table = rows(3, [*FIELDS, *((f"components_mode_{k}/value_{'x' * 40}", "<f4") for k in range(1200))])
    particles = ParticleSet.read(save(project / "x.cs", table))
    particles.write_cs(project / "out.cs", ["a.mrcs", "b.mrcs"])
    written = np.load(project / "out.cs", max_header_size=10**6)
    assert without(written, *np.dtype(BLOB).names) == without(table, *np.dtype(BLOB).names)


def test_inputs_are_never_written_to(project: Path) -> None:
    own, passthrough = split(rows(), project / "J7", list(range(6)))
    particles = ParticleSet.read(own)
    before = [path.read_bytes() for path in (own, passthrough)]
    for path in (own, passthrough):
        with pytest.raises(OutputError, match="never written to"):
            particles.write_cs(path, ["a.mrcs", "b.mrcs"])
    save(own, np.load(own)[:5])
    with pytest.raises(CsError, match="changed while it was in use"):
        particles.write_cs(project / "out.cs", ["a.mrcs", "b.mrcs"])
    with pytest.raises(CryohushError, match="cannot be written"):
        ParticleSet.read(own).write_cs(project / "no" / "out.cs", ["a.mrcs", "b.mrcs"])
    assert passthrough.read_bytes() == before[1]
    assert not list(project.rglob("*.part"))


@pytest.mark.slow
def test_memory_for_many_rows_is_little_more_than_the_mapped_files(project: Path) -> None:
    table = rows(200_000, [*FIELDS, *((f"more/value_{k}", "<f4") for k in range(60))])
    own, _ = split(table, project / "J7", np.random.default_rng(0).permutation(200_000).tolist())
    code = f"""
from cryohush.core.io.particles import ParticleSet
particles = ParticleSet.read({str(own)!r})
particles.write_cs({str(project / "out.cs")!r}, ["a.mrcs", "b.mrcs"])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # 76 MB of input in mapped pages, which go first when memory is short; 40 of columns; 30 for Python
    assert int(run.stdout) < 190_000  # KiB
    written = np.load(project / "out.cs", mmap_mode="r")
    assert written["more/value_59"].tobytes() == table["more/value_59"].tobytes()


def test_a_table_that_is_cut_off_after_it_was_read_is_no_bus_error(project: Path) -> None:
    table = CsTable(save(project / "own.cs", rows()))
    before = table.column("uid")
    with (project / "own.cs").open("r+b") as file:
        file.truncate(0)
    np.testing.assert_array_equal(table.column("uid"), before)


def test_a_table_that_is_replaced_while_it_is_read_is_refused(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(project / "own.cs", rows())
    read_array = np.lib.format.read_array

    def replaced(*args: Any, **options: Any) -> Any:
        rows = read_array(*args, **options)
        (project / "own.cs").write_bytes(b"shorter")
        return rows

    monkeypatch.setattr(np.lib.format, "read_array", replaced)
    with pytest.raises(CsError, match=r"own\.cs: .*changed while it was read"):
        CsTable(project / "own.cs")


def test_a_failing_disk_is_told_as_one(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(project / "own.cs", rows())

    def failing(*args: Any, **options: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(np.lib.format, "read_array", failing)
    with pytest.raises(CsError, match=r"own\.cs: the file cannot be read: Input/output error"):
        CsTable(project / "own.cs")
