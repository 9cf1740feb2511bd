"""Coordinate files of RELION: which belongs to which micrograph, and what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cryohush.core.errors import StarError
from cryohush.core.io.coordinates import find_coordinates, read_coordinates

TABLE = "\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n10.5 20\n30 40.25\n\n"


def test_centres_are_y_x(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text(TABLE)
    assert read_coordinates(path).tolist() == [[20.0, 10.5], [40.25, 30.0]]


def test_a_table_may_be_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text("\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n\n")
    assert read_coordinates(path).shape == (0, 2)


def test_bad_numbers_and_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text(TABLE.replace("20\n", "twenty\n"))
    with pytest.raises(StarError, match=r"line 7.*expected a number.*twenty"):
        read_coordinates(path)
    path.write_text("\ndata_\n\nloop_\n_rlnMicrographName #1\na.mrc\n")
    with pytest.raises(StarError, match="no table with _rlnCoordinateX"):
        read_coordinates(path)


@pytest.mark.parametrize("stem", ["Pos_1_[-61.00]_EER", "grid[2]sq3", "a*b", "what?", "plain"])
def test_brackets_and_stars_in_a_name_are_themselves(tmp_path: Path, stem: str) -> None:
    for name in (
        f"{stem}_autopick.star",
        "grid2sq3_autopick.star",
        "aXb_autopick.star",
        "Pos_1_6_EER_x.star",
    ):
        (tmp_path / name).write_text(TABLE)
    assert find_coordinates(tmp_path, Path(f"{stem}.mrc")) == tmp_path / f"{stem}_autopick.star"


def test_the_file_of_a_micrograph_is_found_by_its_name(tmp_path: Path) -> None:
    for name in ("mic_1_autopick.star", "mic_1_2_manualpick.star", "mic_3.star", "mic_3_autopick.star"):
        (tmp_path / name).write_text(TABLE)

    def found(name: str) -> str | None:
        path = find_coordinates(tmp_path, Path("folder") / name)
        return path and path.name

    assert found("mic_1.mrc") == "mic_1_autopick.star"
    assert found("mic_1_2.mrc") == "mic_1_2_manualpick.star"
    assert found("mic_3.mrc") == "mic_3.star"
    assert found("mic_4.mrc") is None
    (tmp_path / "mic_1_manualpick.star").write_text(TABLE)
    with pytest.raises(StarError, match="several"):
        found("mic_1.mrc")
