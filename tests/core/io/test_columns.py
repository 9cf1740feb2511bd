"""Columns of a table, and those of a set that has only some of its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from particle_files import CS_BLOB, save_cs, write_stack

from cryohush.core.errors import StarError
from cryohush.core.io.columns import find_table, read_columns
from cryohush.core.io.particles import ParticleSet
from cryohush.core.io.poses import read_ctf, read_poses

TABLES = """data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
1 300

data_particles

loop_
_rlnMicrographName #1
_rlnCoordinateX #2
m1.mrc 1.5
# a comment
"m 2.mrc" -2e1
'it''s.mrc' "3"
"""


def test_texts_lose_their_quotes_and_numbers_are_numbers(tmp_path: Path) -> None:
    (tmp_path / "x.star").write_text(TABLES)
    found = read_columns(tmp_path / "x.star", ("rlnMicrographName",), ("rlnCoordinateX",))
    assert found is not None
    assert found.table.name == "particles"
    assert found.text == {"rlnMicrographName": ["m1.mrc", "m 2.mrc", "it''s.mrc"]}
    assert found.number["rlnCoordinateX"].tolist() == [1.5, -20.0, 3.0]
    # counted in the text above
    assert list(found.lines) == [13, 15, 16]


def test_a_table_without_a_column_is_passed_by(tmp_path: Path) -> None:
    path = tmp_path / "x.star"
    path.write_text(TABLES)
    assert read_columns(path, ("rlnMicrographName", "rlnVoltage")) is None
    found = read_columns(path, number=("rlnVoltage", "rlnCoordinateX"), optional=("rlnCoordinateX",))
    assert found is not None
    assert {label: list(values) for label, values in found.number.items()} == {"rlnVoltage": [300.0]}
    assert read_columns(path, number=("rlnVoltage",), among=lambda table: table.name == "particles") is None
    table = find_table(path, lambda table: "rlnVoltage" in table.labels)
    assert table is not None
    assert table.name == "optics"


@pytest.mark.parametrize("value", ["x", "nan", "1e999", '"1 2"'])
def test_what_is_no_number_is_told_with_its_line(tmp_path: Path, value: str) -> None:
    (tmp_path / "x.star").write_text(TABLES.replace("-2e1", value))
    with pytest.raises(StarError, match=r"x\.star, line 15: expected a number in _rlnCoordinateX, found"):
        read_columns(tmp_path / "x.star", number=("rlnCoordinateX",))


def write_star(folder: Path) -> Path:
    rows = "".join(
        f"{number}@{'ab'[number > 2]}.mrcs {10 * number} 20 30 1000{number} 11000 45 {1 + number % 2}\n"
        for number in range(1, 5)
    )
    labels = ("ImageName", "AngleRot", "AngleTilt", "AnglePsi", "DefocusU", "DefocusV", "DefocusAngle")
    names = "".join(f"_rln{label}\n" for label in (*labels, "RandomSubset"))
    optics = (
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n"
        "_rlnImagePixelSize\n_rlnImageSize\n1 300 2.7 0.1 2.0 16\n\n"
    )
    (folder / "x.star").write_text(f"{optics}data_particles\n\nloop_\n{names}{rows}")
    return folder / "x.star"


def write_cs(folder: Path) -> Path:
    columns: list[Any] = [
        *CS_BLOB, ("alignments3D/pose", "<f4", (3,)), ("alignments3D/shift", "<f4", (2,)),
        ("alignments3D/psize_A", "<f4"), ("alignments3D/split", "<u4"),
        *((f"ctf/{name}", "<f4") for name in ("df1_A", "df2_A", "df_angle_rad", "accel_kv", "cs_mm",
                                              "amp_contrast", "phase_shift_rad")),
    ]  # fmt: skip
    rows = np.zeros(4, columns)
    rows["uid"], rows["blob/idx"] = range(1, 5), range(4)
    rows["blob/path"] = [b"a.mrcs"] * 2 + [b"b.mrcs"] * 2
    rows["blob/shape"], rows["blob/psize_A"], rows["blob/sign"] = 16, 2.0, -1
    rows["alignments3D/pose"][:, 2] = np.arange(4) / 10
    rows["alignments3D/psize_A"], rows["alignments3D/split"] = 2.0, [0, 1, 0, 1]
    rows["ctf/df1_A"], rows["ctf/df2_A"] = 10001 + np.arange(4), 11000
    rows["ctf/accel_kv"], rows["ctf/cs_mm"], rows["ctf/amp_contrast"] = 300, 2.7, 0.1
    save_cs(folder / "x.cs", rows)
    return folder / "x.cs"


@pytest.mark.parametrize("write", [write_star, write_cs])
def test_a_set_of_some_rows_has_the_columns_of_these(tmp_path: Path, write: Any) -> None:
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / name, np.zeros((4, 16, 16), dtype=np.float32))
    whole = ParticleSet.read(write(tmp_path))
    poses, ctf = read_poses(whole), read_ctf(whole)
    halves = whole.column("rlnRandomSubset", "alignments3D/split")
    assert halves is not None
    for some, rows in ((whole.first(3), slice(3)), (whole.without([0]), slice(2, 4))):
        np.testing.assert_array_equal(read_poses(some).rotations, poses.rotations[rows])
        np.testing.assert_array_equal(read_ctf(some).defocus_u_angstrom, ctf.defocus_u_angstrom[rows])
        found = some.column("rlnRandomSubset", "alignments3D/split")
        assert found is not None
        assert found.tolist() == halves[rows].tolist()
    assert ctf.defocus_u_angstrom.tolist() == [10001, 10002, 10003, 10004]
    assert whole.column("rlnGroupName", "no/such") is None


def test_a_file_that_was_changed_is_told(tmp_path: Path) -> None:
    for name in ("a.mrcs", "b.mrcs"):
        write_stack(tmp_path / name, np.zeros((4, 16, 16), dtype=np.float32))
    path = write_star(tmp_path)
    particles = ParticleSet.read(path)
    path.write_text(path.read_text().rpartition("4@")[0])
    with pytest.raises(StarError, match=r"x\.star: the file was changed"):
        read_poses(particles)
