"""What is read, what is written and in which batches follows from the table alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from particle_files import noise, write_stack, write_table

from cryohush.core.errors import OutputError
from cryohush.core.inference.plan import (
    StackPlan,
    batches,
    output_names,
    plan_stacks,
    refuse_to_replace_inputs,
    written_image_names,
)
from cryohush.core.io.particles import ParticleSet


def stack(n: int, side: int = 16, pixel_size_angstrom: float | None = 1.0) -> StackPlan:
    return StackPlan(Path("x"), "x", np.arange(n, dtype=np.int32), (side, side), pixel_size_angstrom)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.integers(1, 9))
def test_batches_hold_each_image_once_in_order_and_are_full_but_the_last(
    counts: list[int], size: int
) -> None:
    made = list(batches([stack(n) for n in counts], {(16, 16): size}))
    images = [(piece.stack, i) for pieces in made for piece in pieces for i in range(piece.begin, piece.end)]
    assert images == [(number, i) for number, n in enumerate(counts) for i in range(n)]
    sizes = [sum(piece.end - piece.begin for piece in pieces) for pieces in made]
    assert set(sizes[:-1]) <= {size}
    assert 1 <= sizes[-1] <= size


def test_a_batch_never_mixes_boxes_or_pixel_sizes() -> None:
    stacks = [stack(3), stack(3, side=20), stack(3, side=20, pixel_size_angstrom=2.0), stack(3)]
    made = list(batches(stacks, {(16, 16): 4, (20, 20): 2}))
    assert [[piece.stack for piece in pieces] for pieces in made] == [[0], [1], [1], [2], [2], [3]]


def test_stacks_keep_their_names_apart_below_the_output(tmp_path: Path) -> None:
    project = tmp_path / "project"
    inside, outside = project / "Extract" / "deep.mrc", tmp_path / "elsewhere" / "a.mrcs"
    written = {
        "A/a.mrcs": project / "A" / "a.mrcs",
        "B/a.mrcs": project / "B" / "a.mrcs",
        "A/a.mrc": project / "A" / "a.mrc",
        "../elsewhere/b.mrcs": tmp_path / "elsewhere" / "b.mrcs",
        str(outside): outside,
        str(inside): inside,
    }
    for path in written.values():
        write_stack(path, noise(1, 16, 16))
    write_table(project / "p.star", [f"1@{name}" for name in written])
    names = output_names(ParticleSet.read(project / "p.star", root=project))
    assert names == [
        "A/a.mrcs",
        "B/a.mrcs",
        "A/a_2.mrcs",
        "elsewhere/b.mrcs",
        str(outside.relative_to(outside.anchor)),
        "Extract/deep.mrcs",
    ]


@pytest.mark.parametrize("output", [".", "sub/.."])
def test_an_output_that_would_replace_an_input_is_refused(tmp_path: Path, output: str) -> None:
    write_stack(tmp_path / "a.mrcs", noise(2, 16, 16))
    (tmp_path / "sub").mkdir()
    particles = ParticleSet.read(tmp_path / "a.mrcs")
    with pytest.raises(OutputError, match=r"a\.mrcs is an input of this run"):
        refuse_to_replace_inputs(particles, plan_stacks(particles), tmp_path / output)


def test_a_stack_and_a_folder_of_one_name_stay_apart(tmp_path: Path) -> None:
    written = ["a.mrc", "a.mrcs/b.mrcs", "c.mrcs/d.mrcs/e.mrcs", "c.mrcs/d.mrc"]
    for name in written:
        write_stack(tmp_path / name, noise(1, 16, 16))
    write_table(tmp_path / "p.star", [f"1@{name}" for name in written])
    names = output_names(ParticleSet.read(tmp_path / "p.star", root=tmp_path))
    assert names == ["a_2.mrcs", "a.mrcs/b.mrcs", "c.mrcs/d.mrcs/e.mrcs", "c.mrcs/d_2.mrcs"]


def test_an_output_folder_beyond_a_link_is_named_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    write_stack(tmp_path / "a.mrcs", noise(1, 16, 16))
    write_table(tmp_path / "p.star", ["1@a.mrcs"])
    images = ParticleSet.read(tmp_path / "p.star", root=tmp_path)
    for place, name in (("link/../out", "real/out/a.mrcs"), ("real/../out", "out/a.mrcs")):
        (written,) = written_image_names(images, plan_stacks(images), tmp_path / place)
        assert written == f"000001@{name}"
