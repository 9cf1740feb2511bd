"""Tables of micrographs: which file each row means, and a rewrite that loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from micrograph_files import micrograph, table_of, write_micrograph
from particle_files import noise, write_stack

from cryohush.core.errors import InputError, MrcError, StarError
from cryohush.core.io.micrographs import MicrographSet, lists_micrographs


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MotionCorr/job002/Movies/a.mrc", "MotionCorr/job002/Movies/b.mrc"):
        write_micrograph(tmp_path / name, micrograph())
    monkeypatch.chdir(tmp_path)
    return tmp_path


NAMES = ["MotionCorr/job002/Movies/b.mrc", "MotionCorr/job002/Movies/a.mrc"]


def test_rows_name_files_and_their_optics(project: Path) -> None:
    (project / "m.star").write_text(table_of([*NAMES, f"./{NAMES[0]}"], [2, 1, 2]))
    micrographs = MicrographSet.read("m.star")
    assert micrographs.stacks == [project / name for name in NAMES]
    assert micrographs.stack.tolist() == [0, 1, 0]
    assert [micrographs.pixel_size_angstrom(number) for number in (0, 1)] == [2.25, 1.5]
    assert micrographs.check_images() == [(90, 110)] * 2


def test_a_table_of_relion_3_0_has_its_optics_in_the_rows(project: Path) -> None:
    text = "\ndata_\n\nloop_\n_rlnMicrographName #1\n_rlnMagnification #2\n_rlnDetectorPixelSize #3\n"
    (project / "m.star").write_text(f"{text}{NAMES[0]} 35714.285 5.0\n{NAMES[1]} 50000 5.0\n\n")
    micrographs = MicrographSet.read("m.star")
    # detector pixel 5 um over the magnification
    assert micrographs.pixel_size_angstrom(0) == pytest.approx(1.4)
    assert micrographs.pixel_size_angstrom(1) == pytest.approx(1.0)
    micrographs.write("new.star", ["x.mrc", "y.mrc"])
    assert "version" not in Path("new.star").read_text()
    assert f"x.mrc 35714.285 5.0 {NAMES[0]}\n" in Path("new.star").read_text()


@pytest.mark.parametrize(
    "label", ["rlnMicrographPixelSize", "rlnMicrographOriginalPixelSize", "rlnPixelSize"]
)
def test_rows_without_optics_groups_may_have_a_pixel_size(project: Path, label: str) -> None:
    text = f"\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n_{label} #2\n"
    (project / "m.star").write_text(f"{text}{NAMES[0]} 1.4\n{NAMES[1]} 1.0\n\n")
    micrographs = MicrographSet.read("m.star")
    assert [micrographs.pixel_size_angstrom(number) for number in (0, 1)] == [1.4, 1.0]


def test_only_the_names_change_and_the_raw_ones_are_kept(project: Path) -> None:
    text = table_of(NAMES)
    (project / "m.star").write_text(text)
    MicrographSet.read("m.star").write("new.star", ["out/b.mrc", "out/a.mrc"])
    expected = text.replace(
        "_rlnBeamTiltClass #4 \n", "_rlnBeamTiltClass #4 \n_rlnCryohushRawMicrographName #5 \n"
    )
    for new, old in zip(("out/b.mrc", "out/a.mrc"), NAMES, strict=True):
        expected = expected.replace(f"{old}  1 1.348548e+06 0012", f"{new}  1 1.348548e+06 0012 {old}")
    assert (project / "new.star").read_text() == expected
    MicrographSet.read("m.star").write("far.star", ["b.mrc", "a.mrc"], absolute_originals=True)
    assert f" {project}/{NAMES[0]}\n" in (project / "far.star").read_text()


def test_denoising_twice_keeps_both_origins(project: Path) -> None:
    (project / "m.star").write_text(table_of(NAMES))
    MicrographSet.read("m.star").write("once.star", NAMES[::-1])
    MicrographSet.read("once.star").write("twice.star", ["x.mrc", "y.mrc"])
    text = (project / "twice.star").read_text()
    assert "_rlnCryohushPreviousOriginalName #6" in text
    assert f"x.mrc  1 1.348548e+06 0012 {NAMES[1]} {NAMES[0]}\n" in text


def test_a_table_that_changed_is_not_written(project: Path) -> None:
    (project / "m.star").write_text(table_of(NAMES))
    micrographs = MicrographSet.read("m.star")
    for rows in (NAMES[:1], [*NAMES, NAMES[0]]):
        (project / "m.star").write_text(table_of(rows))
        with pytest.raises(StarError, match="changed while it was in use"):
            micrographs.write("new.star", ["x.mrc", "y.mrc"])
        assert not (project / "new.star").exists()


def test_a_bare_micrograph_has_its_headers_pixel_size(project: Path) -> None:
    micrographs = MicrographSet.read(NAMES[0])
    assert (len(micrographs), micrographs.has_table, micrographs.pixel_size_angstrom(0)) == (1, False, 1.5)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            table_of(["Movies/a.tiff"]),
            r"line 21: expected a micrograph in MRC format, found a movie or compr",
        ),
        (table_of(["a.mrc.gz"]), r"compressed file \(.gz\): a.mrc.gz"),
        (
            table_of(["000001@a.mrcs"]),
            "line 21: expected a micrograph in MRC format, found an image of a stack: 000001@a.mrcs",
        ),
        (table_of(["gone.mrc"]), "line 21: the micrograph gone.mrc does not exist"),
        (table_of([NAMES[0]], [3]), "line 21: optics group 3 is not in data_optics"),
        (table_of([]), "has no rows"),
        ("data_movies\n\nloop_\n_rlnMicrographMovieName #1\na.tif\n", "lists movies"),
        (
            "data_coordinate_files\n\nloop_\n_rlnMicrographName #1\n_rlnMicrographCoordinates #2\n"
            "a.mrc a.star\n",
            "lists coordinate files",
        ),
        ("data_particles\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n", "no table of micrographs"),
        *(
            (
                f"data_{block}\n\nloop_\n_rlnMicrographName #1\n_{label} #2\n{NAMES[0]} 3.0\n",
                f"tomography .{label}",
            )
            for block, label in (
                ("TS_01", "rlnTomoNominalStageTiltAngle"),
                ("TS_01", "rlnTomoYTilt"),
                ("global", "rlnTomoTiltSeriesStarFile"),
                ("tomograms", "rlnTomoReconstructedTomogram"),
            )
        ),
        (
            "data_optimisation_set\n\n_rlnTomoParticlesFile particles.star\n",
            "tomography .rlnTomoParticlesFile",
        ),
        (
            "data_micrographs\n\n_rlnMicrographName a.mrc\n_rlnOpticsGroup 1\n",
            "data_micrographs is a list",
        ),
    ],
)
def test_what_is_no_table_of_micrographs_is_refused(project: Path, text: str, problem: str) -> None:
    (project / "m.star").write_text(text)
    with pytest.raises(StarError, match=problem):
        MicrographSet.read("m.star")


def test_a_stack_of_frames_is_refused(project: Path) -> None:
    write_stack(project / "movie.mrc", noise(3, 20, 20))
    (project / "m.star").write_text(table_of(["movie.mrc"]))
    with pytest.raises(MrcError, match=r"movie\.mrc: expected a micrograph, found 3 images"):
        MicrographSet.read("m.star").check_images()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (table_of(["a.mrc"]), True),
        ("data_\n\nloop_\n_rlnMicrographName #1\na.mrc\n", True),
        ("data_movies\n\nloop_\n_rlnMicrographMovieName #1\na.tif\n", True),
        ("data_particles\n\nloop_\n_rlnImageName #1\n_rlnMicrographName #2\n1@a.mrcs a.mrc\n", False),
    ],
)
def test_tables_of_micrographs_are_told_from_tables_of_particles(
    tmp_path: Path, text: str, expected: bool
) -> None:
    (tmp_path / "t.star").write_text(text)
    assert lists_micrographs(tmp_path / "t.star") is expected


def test_a_file_that_is_no_table_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.star").write_bytes(b"\0\1\2")
    with pytest.raises(InputError, match="binary data"):
        lists_micrographs(tmp_path / "t.star")
    (tmp_path / "t.star").write_text(table_of(["a.mrc"]), encoding="utf-16")
    with pytest.raises(InputError, match="UTF-16"):
        lists_micrographs(tmp_path / "t.star")
