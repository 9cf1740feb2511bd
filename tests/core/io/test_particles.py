"""The particle set: which image each row means, and what its table looks like afterwards."""

# RELION ends its lines in a blank:
# ruff: noqa: W291, W293

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from particle_files import noise, write_stack, write_table

from cryohush.core.errors import ImageError, InputError, MrcError, OutputError, StarError
from cryohush.core.inference.plan import holds_micrographs
from cryohush.core.io.optics import OpticsGroup
from cryohush.core.io.particles import ParticleSet

DATA = Path(__file__).parents[2] / "data" / "io"
OPTICS = """
# version 30001

data_optics

loop_ 
_rlnOpticsGroup #1 
_rlnOpticsGroupName #2 
_rlnVoltage #3 
_rlnSphericalAberration #4 
_rlnAmplitudeContrast #5 
_rlnImagePixelSize #6 
_rlnImageSize #7 
_rlnImageDimensionality #8 
           1 first     300.000000     2.700000     0.100000     1.350000            8            2 
           2 second    200.000000     1.400000     0.070000     0.885000            8            2 
 
"""


def stack(path: Path, n: int = 3, side: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with mrcfile.new(path, data=np.zeros((n, side, side), dtype=np.float32), overwrite=True) as file:
        file.set_image_stack()
        file.voxel_size = 1.5


def table(rows: Sequence[str], name: str = "particles", labels: str = "rlnImageName rlnOpticsGroup") -> str:
    header = "".join(f"_{label} #{k} \n" for k, label in enumerate(labels.split(), 1))
    return (
        f"\n# version 30001\n\ndata_{name}\n\nloop_ \n{header}" + "".join(f"{row} \n" for row in rows) + " \n"
    )


def read(folder: Path, text: str, stacks: Sequence[str] = ("a.mrcs",)) -> ParticleSet:
    for name in stacks:
        stack(folder / name)
    (folder / "particles.star").write_text(text)
    return ParticleSet.read(folder / "particles.star", root=folder)


def test_rows_stacks_lines_and_optics_of_relion_3_1(tmp_path: Path) -> None:
    rows = ["000002@a.mrcs 1", "1@./sub/b.mrcs 2", "0003@./a.mrcs 1", "000002@a.mrcs 1"]
    particles = read(tmp_path, OPTICS + table(rows), ["a.mrcs", "sub/b.mrcs"])
    assert len(particles) == 4
    assert particles.has_table
    assert particles.stack_names == ["a.mrcs", "./sub/b.mrcs"]
    assert particles.stacks == [tmp_path / "a.mrcs", tmp_path / "sub" / "b.mrcs"]
    assert particles.stack.tolist() == [0, 1, 0, 0]
    assert particles.image.tolist() == [1, 0, 2, 1]
    assert particles.line.tolist() == [26, 27, 28, 29]
    assert particles.optics_group.tolist() == [1, 2, 1, 1]
    assert particles.optics[2] == OpticsGroup(2, "second", 0.885, 8, 200.0, 1.4, 0.07)
    assert [particles.pixel_size_angstrom(k) for k in range(2)] == [1.35, 0.885]
    assert {column.dtype for column in (particles.stack, particles.image, particles.line)} == {np.dtype("i4")}


def test_optics_may_follow_the_particles_and_general_may_lead(tmp_path: Path) -> None:
    general = "data_general\n\n_rlnTomoSubTomosAre2DStacks 0\n"
    particles = read(tmp_path, general + table(["1@a.mrcs 2"]) + OPTICS)
    assert particles.optics[2].name == "second"


def test_a_table_from_before_3_1_gets_one_group_per_kind_of_row(tmp_path: Path) -> None:
    labels = "rlnImageName rlnVoltage rlnMagnification rlnDetectorPixelSize"
    rows = ["1@a.mrcs 300 50000 5.0", "2@a.mrcs 300 50000 5.0", "3@a.mrcs 300 40000 5.0"]
    for name in ("", "images"):
        particles = read(tmp_path, table(rows, name, labels))
        assert particles.optics_group.tolist() == [1, 1, 2]
        assert particles.optics[1] == OpticsGroup(1, "opticsGroup1", 1.0, None, 300.0, None, None)
        assert particles.optics[2].pixel_size_angstrom == 1.25


def test_a_table_that_lost_its_optics_is_read_without_them(tmp_path: Path) -> None:
    particles = read(tmp_path, table(["1@a.mrcs 7"]))
    assert particles.optics == {7: OpticsGroup(7, "opticsGroup7", None, None, None, None, None)}
    assert particles.pixel_size_angstrom(0) is None


def test_quoted_and_absolute_names(tmp_path: Path) -> None:
    absolute = tmp_path / "my stack.mrcs"
    particles = read(tmp_path, table([f'"2@{absolute}" 1']), ["my stack.mrcs"])
    assert particles.stacks == [absolute]
    assert particles.stack_names == [str(absolute)]


@pytest.mark.parametrize(
    ("name", "n", "pixel_size", "kv"),
    [("empiar_10076_7", 7, 1.309998, 300.0), ("empiar_10059", 4, 4.88, 300.0)],
)
def test_real_tables_are_read_and_rewritten(
    tmp_path: Path, name: str, n: int, pixel_size: float, kv: float
) -> None:
    particles = ParticleSet.read(DATA / f"{name}.star")
    assert len(particles) == n
    assert particles.root == DATA
    assert particles.image.tolist() == list(range(n))
    assert particles.pixel_size_angstrom(0) == pytest.approx(pixel_size, abs=1e-6)  # written with six digits
    assert [group.voltage_kv for group in particles.optics.values()] == [kv]
    assert particles.check_images()[0][0] == n
    particles.write(tmp_path / "out.star", (f"{k + 1:06d}@new.mrcs" for k in range(n)))

    source, written = (DATA / f"{name}.star").read_text(), (tmp_path / "out.star").read_text()
    for row in particles.line.tolist():
        old, new = source.splitlines()[row - 1], written.splitlines()[row]  # one label more
        raw = next(token for token in old.split() if "@" in token)
        image = f"{row - particles.line[0] + 1:06d}@new.mrcs"
        assert new == old.replace(raw, image) + f" {raw}"
        written = written.replace(new, old)
    number = source.count("_rln") if name == "empiar_10076_7" else 15
    assert written.replace(f"_rlnImageOriginalName #{number + (name == 'empiar_10076_7')} \n", "") == source


def test_the_root_is_the_first_folder_that_holds_the_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    stack(project / "Extract" / "a.mrcs")
    (project / "Select").mkdir()
    star = project / "Select" / "particles.star"
    star.write_text(table(["1@Extract/a.mrcs 1"]))
    monkeypatch.chdir(tmp_path)
    assert ParticleSet.read(star).root == project
    stack(tmp_path / "Extract" / "a.mrcs")
    assert ParticleSet.read(star).root == tmp_path
    assert ParticleSet.read(star, root=project).root == project


def test_a_missing_stack_is_named_with_its_row_and_all_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.star").write_text(table(["1@a.mrcs 1", "1@b.mrcs 1"]))
    with pytest.raises(StarError, match=r"line 9: the stack a\.mrcs does not exist \(2 of 2") as caught:
        ParticleSet.read(tmp_path / "sub" / "x.star")
    for folder in (tmp_path, tmp_path / "sub", tmp_path.parent):
        assert str(folder) in str(caught.value)
    stack(tmp_path / "sub" / "a.mrcs")
    with pytest.raises(StarError, match=r"line 10: the stack b\.mrcs does not exist \(1 of 2"):
        ParticleSet.read(tmp_path / "sub" / "x.star")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (OPTICS, "no table of particles .* only data_optics"),
        (
            OPTICS + "\ndata_particles\n\n_rlnImageName 1@a.mrcs\n_rlnOpticsGroup 1\n",
            "data_particles is a list",
        ),
        (table([]), "no rows"),
        (
            table(["m.mrc 1"], labels="rlnMicrographName rlnOpticsGroup"),
            "no column _rlnImageName.*micrographs",
        ),
        (table(["1@a.mrcs"]), "line 9: a row of data_particles has 1 values, its header has 2"),
        (table(["0@a.mrcs 1"]), "line 9: expected an image name like"),
        (table(["x@a.mrcs 1"]), "line 9: expected an image name like"),
        (table(["1@ 1"]), "line 9: expected an image name like"),
        (table(["a.mrcs 1"]), "line 9: .*subtomograms"),
        (table(["1@a.mrcs one"]), "line 9: expected a number in _rlnOpticsGroup, found 'one'"),
        (table(["1@a.mrcs 1.5"]), "line 9: expected a whole number in _rlnOpticsGroup"),
        (OPTICS + table(["1@a.mrcs 1", "1@a.mrcs 3"]), r"line 27: optics group 3 is not in .* \[1, 2\]"),
        (
            OPTICS.replace("1 first", "2 first") + table(["1@a.mrcs 2"]),
            "line 16: optics group 2 appears twice",
        ),
        (
            OPTICS + table(["1@a.mrcs"], labels="rlnImageName"),
            r"line 25: data_optics has the groups \[1, 2\], and no column _rlnOpticsGroup",
        ),
        (OPTICS + OPTICS + table(["1@a.mrcs 1"]), "line 21: a second table data_optics"),
        (OPTICS.replace("1.350000", "x.350000") + table(["1@a.mrcs 1"]), "line 15: .*_rlnImagePixelSize"),
        (OPTICS.replace("1.350000", "-1.35000") + table(["1@a.mrcs 1"]), "positive pixel size"),
        (OPTICS.replace("8            2", "8  3") + table(["1@a.mrcs 1"]), "line 15: subtomograms"),
        ("data_general\n_rlnTomoSubTomosAre2DStacks 1\n" + table(["a.mrcs 1"]), "tomography"),
        (table(["a.mrcs [1,1]"], labels="rlnImageName rlnTomoVisibleFrames"), "tomography"),
        (table(["1@a.mrcs 1"]) + table(["1@a.mrcs 1"]), "second table"),
        (table(["1@a.mrcs 1"]).replace("\n", "\r\n"), r"line 1: .*CR\+LF"),
    ],
)
def test_what_cannot_be_denoised_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    stack(tmp_path / "a.mrcs")
    (tmp_path / "particles.star").write_text(text, newline="")
    with pytest.raises(StarError, match=message):
        ParticleSet.read(tmp_path / "particles.star", root=tmp_path)


def test_an_image_beyond_its_stack_is_named(tmp_path: Path) -> None:
    particles = read(tmp_path, table(["3@a.mrcs 1", "4@a.mrcs 1"]))
    with pytest.raises(MrcError, match=r"has 3 images, but image 4 is wanted by .*particles.star, line 10"):
        particles.check_images()


def test_a_box_that_disagrees_with_the_table_is_named(tmp_path: Path) -> None:
    particles = read(tmp_path, OPTICS.replace(" 8  ", " 16 ") + table(["1@a.mrcs 1"]))
    with pytest.raises(ImageError, match="8 px wide, the table says 16 px for optics group 1"):
        particles.check_images()


def test_boxes_that_differ_are_refused_inside_a_group_and_fine_between_groups(tmp_path: Path) -> None:
    particles = read(tmp_path, table(["1@a.mrcs 1", "1@b.mrcs 1"]), ["a.mrcs", "b.mrcs"])
    stack(tmp_path / "b.mrcs", side=10)
    with pytest.raises(ImageError, match=r"b\.mrcs: .*10 px wide.*a\.mrcs.*8 px"):
        particles.check_images()
    (tmp_path / "two.star").write_text(table(["1@a.mrcs 1", "1@b.mrcs 2"]))
    assert ParticleSet.read(tmp_path / "two.star", root=tmp_path).check_images() == [(3, 8, 8), (3, 10, 10)]


def test_a_bare_stack_has_one_row_per_image_and_no_table(tmp_path: Path) -> None:
    stack(tmp_path / "a.mrcs", n=4)
    particles = ParticleSet.read(tmp_path / "a.mrcs")
    assert not particles.has_table
    assert particles.image.tolist() == [0, 1, 2, 3]
    assert particles.pixel_size_angstrom(0) == 1.5
    assert particles.check_images() == [(4, 8, 8)]
    assert particles.distinct_images()[0].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="no table"):
        particles.write(tmp_path / "x.star", [])


def test_only_the_image_columns_of_the_table_change(tmp_path: Path) -> None:
    text = OPTICS + table(["  1@a.mrcs\t1", "000002@./a.mrcs   2"])
    read(tmp_path, text).write(tmp_path / "out.star", ["1@new/a.mrcs", "2@my new/a.mrcs"])
    expected = text.replace("_rlnOpticsGroup #2 \n", "_rlnOpticsGroup #2 \n_rlnImageOriginalName #3 \n")
    expected = expected.replace("  1@a.mrcs\t1 ", "  1@new/a.mrcs\t1 1@a.mrcs ")
    expected = expected.replace("000002@./a.mrcs   2 ", '"2@my new/a.mrcs"   2 000002@./a.mrcs ')
    assert (tmp_path / "out.star").read_text() == expected


def test_original_names_that_were_there_are_never_lost(tmp_path: Path) -> None:
    star, labels = tmp_path / "particles.star", "rlnImageName rlnImageOriginalName rlnOpticsGroup"
    particles = read(tmp_path, table(["1@a.mrcs 1@raw.mrcs 1"], labels=labels))
    for k in range(3):
        particles.write(tmp_path / f"{k}.star", [f"1@{k}.mrcs"])
        stack(tmp_path / f"{k}.mrcs")
        star = tmp_path / f"{k}.star"
        particles = ParticleSet.read(star, root=tmp_path)
    lines = star.read_text().splitlines()
    assert [line.split()[0] for line in lines if line.startswith("_rln")] == [
        "_rlnImageName",
        "_rlnImageOriginalName",
        "_rlnOpticsGroup",
        "_rlnCryohushPreviousOriginalName",
        "_rlnCryohushPreviousOriginalName2",
        "_rlnCryohushPreviousOriginalName3",
    ]
    assert lines[-2].split() == ["1@2.mrcs", "1@1.mrcs", "1", "1@raw.mrcs", "1@a.mrcs", "1@0.mrcs"]


def test_original_names_can_be_made_absolute(tmp_path: Path) -> None:
    particles = read(tmp_path, table(["1@./a.mrcs 1"]))
    particles.write(tmp_path / "out.star", ["1@new.mrcs"], absolute_originals=True)
    assert (tmp_path / "out.star").read_text().splitlines()[-2].split()[-1] == f"1@{tmp_path}/a.mrcs"


@pytest.mark.parametrize("names", [[], ["1@n.mrcs"], ["1@n.mrcs"] * 3])
def test_too_few_or_too_many_names_leave_no_file(tmp_path: Path, names: list[str]) -> None:
    particles = read(tmp_path, table(["1@a.mrcs 1", "2@a.mrcs 1"]))
    with pytest.raises(ValueError, match="image names were given"):
        particles.write(tmp_path / "out.star", names)
    assert not list(tmp_path.glob("out.star*"))


@pytest.mark.parametrize("rows", [["1@a.mrcs 1"], ["1@a.mrcs 1"] * 3])
def test_a_source_that_changed_meanwhile_is_noticed(tmp_path: Path, rows: list[str]) -> None:
    particles = read(tmp_path, table(["1@a.mrcs 1", "2@a.mrcs 1"]))
    particles.source.write_text(table(rows))
    with pytest.raises(StarError, match="was changed"):
        particles.write(tmp_path / "out.star", ["1@n.mrcs"] * 2)
    assert not list(tmp_path.glob("out.star*"))


def test_the_source_is_never_written_to(tmp_path: Path) -> None:
    particles = read(tmp_path, table(["1@a.mrcs 1"]))
    with pytest.raises(OutputError, match="the input itself"):
        particles.write(particles.source, ["1@n.mrcs"])


@settings(max_examples=50)
@given(rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=30))
def test_every_row_finds_its_image_in_the_output_stack(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    for number in range(4):
        (folder / f"{number}.mrcs").touch()
    (folder / "x.star").write_text(table([f"{image + 1}@{number}.mrcs 1" for number, image in rows]))
    particles = ParticleSet.read(folder / "x.star", root=folder)
    distinct, positions = particles.distinct_images(), particles.output_positions()
    assert len(distinct) == len(particles.stacks)
    for number, images in enumerate(distinct):
        assert images.tolist() == sorted(
            {image for k, image in rows if f"{k}.mrcs" == particles.stack_names[number]}
        )
    for row, (number, image) in enumerate(rows):
        assert particles.stack_names[particles.stack[row]] == f"{number}.mrcs"
        assert distinct[particles.stack[row]][positions[row]] == image


def big_table(folder: Path, n_rows: int, n_stacks: int) -> Path:
    for number in range(n_stacks):
        (folder / f"stack_{number:04d}.mrcs").touch()
    filler = " ".join(f"{k}.123456" for k in range(20))
    with (folder / "big.star").open("w") as file:
        file.write(
            OPTICS
            + table([], labels="rlnImageName rlnOpticsGroup " + " ".join(f"rln{k}" for k in range(20)))[:-2]
        )
        for row in range(n_rows):
            file.write(f"{row // n_stacks + 1:06d}@stack_{row % n_stacks:04d}.mrcs 1 {filler} \n")
    return folder / "big.star"


def test_memory_for_a_large_table_is_a_fraction_of_the_table(tmp_path: Path) -> None:
    n_rows = 30_000
    path = big_table(tmp_path, n_rows, n_stacks=100)
    # in a process of its own, where no thread of another test takes memory meanwhile
    code = f"""
import tracemalloc
from pathlib import Path
from cryohush.core.io.particles import ParticleSet
tracemalloc.start()
particles = ParticleSet.read({str(path)!r}, root=Path({str(tmp_path)!r}))
kept, reading = tracemalloc.get_traced_memory()
tracemalloc.reset_peak()
particles.write({str(tmp_path / "out.star")!r}, (f"{{row + 1}}@new.mrcs" for row in range({n_rows})))
print(len(particles), kept, reading, tracemalloc.get_traced_memory()[1])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found, kept, reading, writing = map(int, run.stdout.split())
    assert found == n_rows
    # Four int32 columns; a growing array holds an eighth more. Blocks of 1 MiB and their lines: 8 MB.
    assert kept < 18 * n_rows + 2e6
    assert reading < 40 * n_rows + 12e6
    assert writing < kept + 12e6
    assert (tmp_path / "out.star").stat().st_size > path.stat().st_size


@pytest.mark.slow
def test_a_million_rows_over_500_stacks_take_less_than_200_mb(tmp_path: Path) -> None:
    path = big_table(tmp_path, 1_000_000, n_stacks=500)
    code = f"""
from pathlib import Path
from cryohush.core.io.particles import ParticleSet
particles = ParticleSet.read({str(path)!r}, root=Path({str(tmp_path)!r}))
rows = zip(particles.output_positions().tolist(), particles.stack.tolist())
particles.write({str(tmp_path / "out.star")!r}, (f"{{image + 1}}@{{stack}}.mrcs" for image, stack in rows))
assert len(particles) == 1_000_000 and len(particles.stacks) == 500
# not ru_maxrss: that starts from what the process held that started this one
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # 30 MB for Python and numpy, 16 for the columns, 50 to find the distinct images, 70 for the lists here
    assert int(run.stdout) < 200_000  # KiB
    assert (tmp_path / "out.star").stat().st_size > path.stat().st_size


@pytest.mark.relion
@pytest.mark.parametrize("quoted", [False, True])
def test_relion_reads_the_table_that_was_written(tmp_path: Path, quoted: bool) -> None:
    text = OPTICS + table(
        ["1@a.mrcs 1 m.mrc", "3@a.mrcs 2 m.mrc"], labels="rlnImageName rlnOpticsGroup rlnMicrographName"
    )
    name = "my folder/new" if quoted else "new"
    particles = read(tmp_path, text)
    particles.write(tmp_path / "out.star", (f"{k + 1:06d}@{name}.mrcs" for k in range(2)))
    command = ["relion_star_handler", "--i", "out.star", "--o", "copy.star"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "WARNING" not in run.stderr
    rows = [line for line in (tmp_path / "copy.star").read_text().splitlines() if "@" in line]
    assert [[token.strip('"') for token in row.split() if "@a" in token] for row in rows] == [
        ["1@a.mrcs"],
        ["3@a.mrcs"],
    ]
    assert all(f"{k + 1:06d}@{name}.mrcs" in row for k, row in enumerate(rows))


@pytest.mark.parametrize("name", ["noname", "Particles", "0", "model_class_1", "particles", "images", ""])
def test_a_table_of_particles_is_known_by_its_column_of_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    stack(Path("a.mrcs"))
    Path("p.star").write_text(table(["1@a.mrcs", "3@a.mrcs"], name, "rlnImageName"))
    particles = ParticleSet.read("p.star")
    assert particles.image.tolist() == [0, 2]
    particles.write("new.star", ["1@b.mrcs", "2@b.mrcs"])
    assert "1@b.mrcs 1@a.mrcs" in Path("new.star").read_text()
    assert f"data_{name}\n" in Path("new.star").read_text()


@pytest.mark.parametrize("name", ["particles", "images", "", "coordinates"])
def test_coordinates_without_images_are_told_from_particles_and_micrographs(
    tmp_path: Path, name: str
) -> None:
    labels = "rlnMicrographName rlnCoordinateX rlnCoordinateY"
    (tmp_path / "p.star").write_text(table(["m.mrc 50 60"], name, labels))
    assert not holds_micrographs(tmp_path / "p.star")
    with pytest.raises(StarError, match="rlnImageName") as caught:
        ParticleSet.read(tmp_path / "p.star")
    assert name == "coordinates" or "Extract the particles first" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csg", "group: {name: particles}\n", r"\.csg file only lists .* Give the \.cs file"),
        ("p.star", "<!DOCTYPE html>\n<html>", "web page"),
        ("p.star", "\n<html><body>data_</body>", "web page"),
        ("p.star", "\ufeffdata_particles\n", "line 1: the file begins with a byte-order mark.*LC_ALL=C sed"),
    ],
)
def test_what_is_easily_mistaken_for_a_table_is_told(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(StarError, match=message):
        ParticleSet.read(tmp_path / name)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("p.star", "p.cs"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match="a pipe"):
            ParticleSet.read(tmp_path / name)


def test_a_link_that_leads_nowhere_is_shown(tmp_path: Path) -> None:
    (tmp_path / "J2").mkdir()
    (tmp_path / "J2" / "a.mrcs").symlink_to("/store/session12/a.mrcs")
    (tmp_path / "p.star").write_text(table(["1@J2/a.mrcs"], labels="rlnImageName"))
    with pytest.raises(
        StarError, match=r"a\.mrcs is a link to /store/session12/a\.mrcs, which does not exist"
    ):
        ParticleSet.read(tmp_path / "p.star", root=tmp_path)


def test_a_project_whose_files_differ_from_those_of_the_working_directory_is_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("mine", "yours")):
        stack(tmp_path / name / "Extract" / "a.mrcs")
        with mrcfile.open(tmp_path / name / "Extract" / "a.mrcs", "r+") as file:
            file.data[:] = number
    (tmp_path / "yours" / "p.star").write_text(table(["1@Extract/a.mrcs"], labels="rlnImageName"))
    monkeypatch.chdir(tmp_path / "mine")
    with pytest.raises(StarError, match=r"is in .*mine and in .*yours, and the two differ.*--root"):
        ParticleSet.read(tmp_path / "yours" / "p.star")
    for root in (tmp_path / "mine", tmp_path / "yours"):
        assert ParticleSet.read(tmp_path / "yours" / "p.star", root=root).root == root


@pytest.mark.skipif(os.getuid() == 0, reason="root may enter any folder")
def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    stack(tmp_path / "closed" / "a.mrcs")
    (tmp_path / "p.star").write_text(table(["1@closed/a.mrcs"], labels="rlnImageName"))
    (tmp_path / "closed").chmod(0o600)
    try:
        with pytest.raises(
            StarError, match=r"Permission denied .this user may not enter the folder .*closed"
        ):
            ParticleSet.read(tmp_path / "p.star", root=tmp_path)
    finally:
        (tmp_path / "closed").chmod(0o700)


@pytest.mark.parametrize(("name", "shape"), [("m.mrc", (3, 2048, 2048)), ("m.mrcs", (1, 2100, 3000))])
def test_frames_and_micrographs_are_no_particles_unless_a_table_says_so(
    tmp_path: Path, name: str, shape: tuple[int, int, int]
) -> None:
    with mrcfile.new(tmp_path / name, np.zeros(shape, np.int8)) as file:
        file.set_image_stack()
    with pytest.raises(MrcError, match=rf"found {shape[0]} images of {shape[2]} x {shape[1]} px: a movie"):
        ParticleSet.read(tmp_path / name)
    (tmp_path / "p.star").write_text(f"data_particles\n\nloop_\n_rlnImageName\n1@{name}\n")
    assert len(ParticleSet.read(tmp_path / "p.star", root=tmp_path)) == 1


def test_what_lies_below_an_output_folder_by_its_whole_path_is_not_the_raw_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Denoised images of absolute names, in a folder outside the working directory: `out/data/a.mrcs`."""
    raw, out = tmp_path / "data/a.mrcs", tmp_path / "out"
    inside = raw.relative_to("/")
    write_stack(raw, noise(2, 16, 16))
    write_stack(out / inside, noise(2, 16, 16, seed=2))
    write_table(out / "particles.star", [f"1@{inside}", f"2@{inside}"])
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ParticleSet.read(out / "particles.star").stacks == [out / inside]
    (out / inside).unlink()
    with pytest.raises(StarError, match="does not exist"):  # and not the raw images
        ParticleSet.read(out / "particles.star")
