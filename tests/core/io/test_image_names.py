"""Names of images: which number, and which file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from particle_files import CS_BLOB, noise, read_stack, save_cs, write_stack, write_table

from cryohush.core.errors import StarError
from cryohush.core.io.columns import read_columns
from cryohush.core.io.image_names import split_image_name
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.io.particles import ParticleSet

TABLE = "data_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnVoltage #2\n"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("000012@a/b.mrcs", ("000012", "a/b.mrcs")),
        ("3@me@lab/x.mrcs", ("3", "me@lab/x.mrcs")),
        ("me@lab/x.mrc", ("", "me@lab/x.mrc")),
        ("2024@", ("2024", "")),
        ("@x.mrcs", ("", "@x.mrcs")),
        ("²@x.mrcs", ("", "²@x.mrcs")),
        ("x.mrc", ("", "x.mrc")),
    ],
)
def test_the_first_at_sign_after_digits_alone_separates(name: str, parts: tuple[str, str]) -> None:
    assert split_image_name(name) == parts
    assert split_image_name(name.encode()) == tuple(part.encode() for part in parts)


def test_micrographs_in_folders_with_an_at_sign_are_read_and_renamed(tmp_path: Path) -> None:
    write_stack(tmp_path / "me@lab/m.mrc", noise(1, 32, 32))
    (tmp_path / "m.star").write_text(f"{TABLE}me@lab/m.mrc 300\n")
    micrographs = MicrographSet.read(tmp_path / "m.star", root=tmp_path)
    assert micrographs.stack_names == ["me@lab/m.mrc"]
    for absolute, raw in ((False, "me@lab/m.mrc"), (True, f"{tmp_path}/me@lab/m.mrc")):
        micrographs.write(tmp_path / "new.star", ["out/me@lab/m.mrc"], absolute_originals=absolute)
        assert (tmp_path / "new.star").read_text().splitlines()[-1].split() == [
            "out/me@lab/m.mrc",
            "300",
            raw,
        ]


def test_images_of_a_stack_are_no_micrographs(tmp_path: Path) -> None:
    (tmp_path / "m.star").write_text(f"{TABLE}000001@stack.mrcs 300\n")
    with pytest.raises(StarError, match=r"line 6: .* found an image of a stack: 000001@stack\.mrcs"):
        MicrographSet.read(tmp_path / "m.star")


@pytest.mark.parametrize("suffix", [".star", ".cs"])
def test_two_dots_after_a_link_lead_where_its_target_says(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    here = write_stack(tmp_path / "s.mrcs", noise(1, 16, 16, seed=1))
    there = write_stack(tmp_path / "real" / "s.mrcs", noise(1, 16, 16, seed=2))
    names = ["link/../s.mrcs", "./s.mrcs", "s.mrcs"]
    table = tmp_path / f"p{suffix}"
    if suffix == ".star":
        write_table(table, [f"1@{name}" for name in names])
    else:
        rows = np.zeros(3, CS_BLOB)
        rows["uid"], rows["blob/path"], rows["blob/shape"], rows["blob/psize_A"] = [1, 2, 3], names, 16, 2
        rows["blob/sign"] = 1
        save_cs(table, rows)
    images = ParticleSet.read(table, root=tmp_path)
    assert images.stack.tolist() == [0, 1, 1]
    for stack, pixels in zip(images.stacks, (there, here), strict=True):
        np.testing.assert_array_equal(read_stack(stack), pixels)
    if suffix == ".star":
        images.write(tmp_path / "new.star", [f"1@{k}.mrcs" for k in range(3)], absolute_originals=True)
        originals = read_columns(tmp_path / "new.star", ("rlnImageOriginalName",), ()).text
        assert originals["rlnImageOriginalName"] == [
            f"1@{tmp_path}/{name}" for name in ("real/s.mrcs", "s.mrcs", "s.mrcs")
        ]
