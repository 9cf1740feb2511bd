"""CSDAT is read as cryosparc-tools writes it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from cryosparc.dataset import Dataset
from numpy.typing import NDArray

from cryohush.core.errors import CsError
from cryohush.core.io.cs import CsTable

DATA = Path(__file__).parents[2] / "data" / "io" / "empiar_10076_7.cs"


def save_stream(dataset: Dataset, path: Path, compression: Literal["lz4", None]) -> Path:
    path.write_bytes(b"".join(dataset.stream(compression=compression)))
    return path


@pytest.mark.parametrize("compression", [None, "lz4"])
def test_every_field_of_a_real_table_has_the_values_of_numpys_form(
    tmp_path: Path, compression: Literal["lz4", None]
) -> None:
    table = CsTable(save_stream(Dataset.load(DATA), tmp_path / "stream.cs", compression))
    expected: NDArray[np.void] = np.load(DATA)
    assert set(table.fields) == set(expected.dtype.names or ())
    for name in table.fields:
        # the strings are bytes in both, but cut to their own longest one here
        np.testing.assert_array_equal(table.column(name), expected[name], err_msg=name)
        assert table.column(name).dtype.kind == expected[name].dtype.kind


def test_strings_of_any_length_and_script_keep_their_bytes(tmp_path: Path) -> None:
    names = ["", "J1/µ.mrc", "x" * 300, "J1/µ.mrc"]
    dataset = Dataset.allocate(4, [("blob/path", "O"), ("pose", "3f4")])
    dataset["blob/path"], dataset["pose"] = names, np.arange(12).reshape(4, 3)
    table = CsTable(save_stream(dataset, tmp_path / "stream.cs", "lz4"))
    assert [name.decode() for name in table.column("blob/path").tolist()] == names
    assert table.column("pose").tolist() == np.arange(12).reshape(4, 3).tolist()


@pytest.mark.parametrize("kept", [6, 9, 40, 500, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, kept: int) -> None:
    path = save_stream(Dataset.load(DATA), tmp_path / "stream.cs", "lz4")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CsError, match="cut off or damaged"):
        CsTable(path)


def test_a_damaged_block_is_refused(tmp_path: Path) -> None:
    path = save_stream(Dataset.load(DATA), tmp_path / "stream.cs", "lz4")
    data = bytearray(path.read_bytes())
    begin = data.index(b"\x95CSDAT") + 10 + int.from_bytes(data[6:10], "little")
    data[begin + 8 * 7 + 8 : begin + 8 * 7 + 40] = b"\xff" * 32
    path.write_bytes(data)
    with pytest.raises(CsError, match="cut off or damaged"):
        CsTable(path)


def test_an_empty_table_is_refused_as_in_numpys_form(tmp_path: Path) -> None:
    path = save_stream(Dataset.allocate(0, [("blob/path", "O")]), tmp_path / "stream.cs", None)
    with pytest.raises(CsError, match="no rows"):
        CsTable(path)


def test_without_lz4_only_what_is_compressed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lz4", None)
    CsTable(save_stream(Dataset.load(DATA), tmp_path / "plain.cs", None))
    with pytest.raises(CsError, match=r"lz4 is not installed.*pip install lz4"):
        CsTable(save_stream(Dataset.load(DATA), tmp_path / "packed.cs", "lz4"))
