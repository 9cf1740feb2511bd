"""Rows of two tables are paired by what says that they are one particle, or refused; never taken blindly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from particle_files import write_stack

from cryohush.core.errors import InputError
from cryohush.core.inference.plan import read_images
from cryohush.core.io.same_rows import SameRows, match_rows

N, BOX, MICROGRAPH_PX = 30, 16, (3838, 3710)
RNG = np.random.default_rng(4)
PLACES = RNG.uniform(100, 3600, (N, 2))  # (y, x)
OF_MICROGRAPH = np.arange(N) // 10
Column = Callable[[int], str]


def micrograph(i: int) -> str:
    return f"MotionCorr/job002/Movies/m{OF_MICROGRAPH[i]}.mrc"


def place(i: int, axis: int, digits: int = 6) -> str:
    return f"{PLACES[i, axis]:.{digits}f}"


ON_MICROGRAPHS: dict[str, Column] = {
    "rlnMicrographName": micrograph,
    "rlnCoordinateX": lambda i: place(i, 1),
    "rlnCoordinateY": lambda i: place(i, 0),
}


def write_star(
    folder: Path, name: str, order: Sequence[int], columns: dict[str, Column], stack: str | None = None
) -> Path:
    """A table of particles in some order; particle i is image i + 1 of the stack, whatever its row."""
    stack = stack or f"{name}.mrcs"
    write_stack(folder / stack, np.zeros((N, BOX, BOX), dtype=np.float32) + np.arange(N)[:, None, None], 2.0)
    labels = ["rlnImageName", "rlnOpticsGroup", *columns]
    rows = [f"{i + 1:06d}@{stack} 1 {' '.join(column(i) for column in columns.values())}" for i in order]
    head = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n1 2.0 16\n\n"
    lines = [
        "data_particles",
        "",
        "loop_",
        *(f"_{label} #{k}" for k, label in enumerate(labels, 1)),
        *rows,
        "",
    ]
    path = folder / f"{name}.star"
    path.write_text(head + "\n".join(lines) + "\n")
    return path


def write_cs(
    folder: Path,
    name: str,
    order: Sequence[int],
    *,
    uids: NDArray[np.uint64] | None,
    located: bool = True,
    stack: str | None = None,
) -> Path:
    """A `.cs` table of the same particles; None gives each table uids of its own."""
    stack = stack or f"{name}.mrcs"
    write_stack(folder / stack, np.zeros((N, BOX, BOX), dtype=np.float32), 2.0)
    own = np.random.default_rng(abs(hash(name)) % 1000).integers(1, 2**62, N, dtype=np.uint64)
    fields: list[tuple[Any, ...]] = [
        ("uid", "<u8"), ("blob/path", "S60"), ("blob/idx", "<u4"), ("blob/shape", "<u4", (2,)),
        ("blob/psize_A", "<f4"), ("blob/sign", "<f4"), ("blob/import_sig", "<u8"),
    ]  # fmt: skip
    if located:
        fields += [
            ("location/micrograph_uid", "<u8"), ("location/micrograph_path", "S60"),
            ("location/micrograph_shape", "<u4", (2,)), ("location/center_x_frac", "<f4"),
            ("location/center_y_frac", "<f4"),
        ]  # fmt: skip
    rows = np.zeros(len(order), dtype=fields)
    order = np.asarray(order)
    rows["uid"] = (own if uids is None else uids)[order]
    rows["blob/path"], rows["blob/idx"], rows["blob/shape"] = stack, order, BOX
    rows["blob/psize_A"], rows["blob/sign"] = 2.0, 1.0
    if located:
        rows["location/micrograph_uid"] = 1000 + OF_MICROGRAPH[order]
        rows["location/micrograph_path"] = [
            f"J2/motioncorrected/m{k}.mrc".encode() for k in OF_MICROGRAPH[order]
        ]
        rows["location/micrograph_shape"] = MICROGRAPH_PX
        rows["location/center_y_frac"] = PLACES[order, 0] / MICROGRAPH_PX[0]
        rows["location/center_x_frac"] = PLACES[order, 1] / MICROGRAPH_PX[1]
    path = folder / f"{name}.cs"
    with path.open("wb") as file:
        np.save(file, rows)
    return path


def match(first: Path, other: Path) -> SameRows:
    return match_rows(read_images(first), read_images(other))


def particles(found: SameRows, first: Sequence[int], other: Sequence[int]) -> tuple[list[int], list[int]]:
    """Which particles were paired, for tables in these orders."""
    return [first[row] for row in found.first], [other[row] for row in found.other]


def assert_paired(found: SameRows, first: Sequence[int], other: Sequence[int]) -> None:
    ours, theirs = particles(found, list(first), list(other))
    assert ours == theirs
    assert set(ours) == set(first) & set(other)
    # in the order of the first table
    assert list(found.first) == sorted(found.first)


SHUFFLED = [int(i) for i in RNG.permutation(N)]
SOME = [int(i) for i in RNG.permutation(N)[: N // 2]]
UIDS = RNG.integers(1, 2**62, N, dtype=np.uint64)


@pytest.mark.parametrize("order", [range(N), SHUFFLED, SOME, SHUFFLED[::-1]])
def test_twins_in_star_files_are_paired_by_micrograph_and_place(tmp_path: Path, order: Sequence[int]) -> None:
    first = write_star(tmp_path, "a", SHUFFLED, ON_MICROGRAPHS)
    other = write_star(tmp_path, "b", order, ON_MICROGRAPHS)
    found = match(first, other)
    assert_paired(found, SHUFFLED, order)
    assert found.by == "micrograph and coordinates"
    if len(order) < N:
        assert f"{len(order)} of {len(order)} rows, of {N} on the other side" in found.note
    else:
        assert "rows" not in found.note


@pytest.mark.parametrize("digits", [1, 2, 3, 6])
def test_places_may_be_rounded_and_micrographs_moved(tmp_path: Path, digits: int) -> None:
    other = {
        "rlnMicrographName": lambda i: f"/data/frames/m{OF_MICROGRAPH[i]}.mrc",
        "rlnCoordinateX": lambda i: place(i, 1, digits),
        "rlnCoordinateY": lambda i: place(i, 0, digits),
    }
    found = match(
        write_star(tmp_path, "a", range(N), ON_MICROGRAPHS), write_star(tmp_path, "b", SHUFFLED, other)
    )
    assert_paired(found, range(N), SHUFFLED)


def denoised(tmp_path: Path, order: Sequence[int], original: Column, **columns: Column) -> Path:
    return write_star(tmp_path, "denoised", order, {"rlnImageOriginalName": original, **columns})


@pytest.mark.parametrize("order", [range(N), SHUFFLED, SOME])
def test_a_denoised_particle_finds_its_raw_one(tmp_path: Path, order: Sequence[int]) -> None:
    raw = write_star(tmp_path, "raw", order, {})
    for original in (lambda i: f"{i + 1:06d}@raw.mrcs", lambda i: f"{i + 1}@{tmp_path}/raw.mrcs"):
        assert_paired(match(denoised(tmp_path, SHUFFLED, original), raw), SHUFFLED, order)
        # the other way round, and from a bare stack
        assert_paired(match(raw, denoised(tmp_path, SHUFFLED, original)), order, SHUFFLED)
        assert_paired(
            match(denoised(tmp_path, SHUFFLED, original), tmp_path / "raw.mrcs"), SHUFFLED, range(N)
        )


def test_a_chain_of_originals_leads_to_the_raw_image(tmp_path: Path) -> None:
    raw = write_star(tmp_path, "raw", SHUFFLED, {})
    twice = denoised(
        tmp_path,
        range(N),
        lambda i: f"{i + 1:06d}@once.mrcs",
        rlnCryohushPreviousOriginalName=lambda i: f"{i + 1:06d}@raw.mrcs",
    )
    assert_paired(match(twice, raw), range(N), SHUFFLED)
    # two tables that were denoised from the same raw images
    again = write_star(tmp_path, "again", SOME, {"rlnImageOriginalName": lambda i: f"{i + 1:06d}@raw.mrcs"})
    assert_paired(match(twice, again), range(N), SOME)


def test_a_denoised_stack_numbers_its_images_anew(tmp_path: Path) -> None:
    """Both stacks have one name, each in its folder: only the original name tells which image is which."""
    (tmp_path / "raw").mkdir()
    (tmp_path / "out").mkdir()
    raw = write_star(tmp_path / "raw", "particles", range(N), {})
    new = write_star(
        tmp_path / "out",
        "particles",
        range(N // 2),
        {"rlnImageOriginalName": lambda i: f"{2 * i + 1:06d}@{tmp_path}/raw/particles.mrcs"},
    )
    found = match(new, raw)
    assert list(found.other) == list(range(0, N, 2))


@pytest.mark.parametrize("order", [range(N), SHUFFLED, SOME])
@pytest.mark.parametrize("located", [True, False])
def test_cs_tables_are_paired_by_uid(tmp_path: Path, order: Sequence[int], located: bool) -> None:
    first = write_cs(tmp_path, "a", SHUFFLED, uids=UIDS, located=located)
    found = match(first, write_cs(tmp_path, "b", order, uids=UIDS, located=located))
    assert found.by == "uid"
    assert_paired(found, SHUFFLED, order)


def test_cs_tables_with_uids_of_their_own_are_paired_by_place_or_refused(tmp_path: Path) -> None:
    first = write_cs(tmp_path, "a", range(N), uids=None)
    assert_paired(match(first, write_cs(tmp_path, "b", SHUFFLED, uids=None)), range(N), SHUFFLED)
    with pytest.raises(InputError, match=r"d\.cs: its rows are not those of .*c\.cs.*compared: uid"):
        match(
            write_cs(tmp_path, "c", range(N), uids=None, located=False),
            write_cs(tmp_path, "d", range(N), uids=None, located=False),
        )


@pytest.mark.parametrize("order", [range(N), SHUFFLED, SOME])
def test_star_and_cs_tables_are_paired(tmp_path: Path, order: Sequence[int]) -> None:
    star = write_star(tmp_path, "a", SHUFFLED, ON_MICROGRAPHS)
    cs = write_cs(tmp_path, "b", order, uids=None)
    found = match(star, cs)
    assert "files' names" in found.by
    assert_paired(found, SHUFFLED, order)
    assert_paired(match(cs, star), order, SHUFFLED)
    # of one stack: the image itself
    bare = write_star(tmp_path, "c", SHUFFLED, {}, stack="b.mrcs")
    assert_paired(match(bare, cs), SHUFFLED, order)


def test_other_particles_are_refused_and_the_first_row_is_named(tmp_path: Path) -> None:
    elsewhere = {**ON_MICROGRAPHS, "rlnCoordinateX": lambda i: f"{PLACES[i, 1] + 5:.3f}"}
    first = write_star(tmp_path, "a", range(N), ON_MICROGRAPHS)
    with pytest.raises(
        InputError, match=r"b\.star: its rows are not those of .*row 1 m0\.mrc at x .*compared: image"
    ) as e:
        match(first, write_star(tmp_path, "b", range(N), elsewhere))
    assert "\n" not in str(e.value)
    assert "micrograph and coordinates" in str(e.value)


def test_a_row_that_disagrees_is_named_where_micrographs_have_other_names(tmp_path: Path) -> None:
    """Frames of odd numbers: no name of a micrograph is the same, but coordinates are, row by row."""
    odd = {**ON_MICROGRAPHS, "rlnMicrographName": lambda i: f"m{OF_MICROGRAPH[i]}_ODD.mrc"}
    first = write_star(tmp_path, "a", range(N), ON_MICROGRAPHS)
    found = match(first, write_star(tmp_path, "b", range(N), odd))
    assert_paired(found, range(N), range(N))
    assert found.by == "their order; their coordinates agree; their micrographs agree"
    swapped = [1, 0, *range(2, N)]
    with pytest.raises(InputError, match=r"row 1 m0_ODD\.mrc at"):
        match(first, write_star(tmp_path, "c", swapped, odd))


def test_micrographs_alone_show_that_rows_are_mixed(tmp_path: Path) -> None:
    """The numbers in the stacks are other particles' in one of them."""
    only = {"rlnMicrographName": micrograph}
    first = write_star(tmp_path, "a", range(N), only)
    assert_paired(match(first, write_star(tmp_path, "b", SHUFFLED, only)), range(N), SHUFFLED)
    other = {"rlnMicrographName": lambda i: micrograph(SHUFFLED[i])}
    with pytest.raises(InputError, match=r"its rows are not those of .*compared: micrographs, row by row"):
        match(first, write_star(tmp_path, "c", range(N), other))


@pytest.mark.parametrize("order", [range(N), SHUFFLED, SOME])
def test_two_stacks_of_one_length_go_together_image_by_image(tmp_path: Path, order: Sequence[int]) -> None:
    first = write_star(tmp_path, "a", SHUFFLED, {})
    found = match(first, write_star(tmp_path, "b", order, {}))
    assert_paired(found, SHUFFLED, order)
    assert found.note.startswith("warning: paired by their numbers in two stacks")
    assert_paired(match(first, tmp_path / "b.mrcs"), SHUFFLED, range(N))
    # a denoised stack numbers its images anew, and its table says what they were
    new = {"rlnImageOriginalName": lambda i: f"{SHUFFLED[i] + 1:06d}@a.mrcs"}
    assert_paired(match(write_star(tmp_path, "new", range(N), new), tmp_path / "b.mrcs"), SHUFFLED, range(N))


def shorter(path: Path) -> None:
    write_stack(path, np.zeros((N - 1, BOX, BOX), dtype=np.float32), 2.0)


def in_two_stacks(path: Path) -> None:
    write_stack(path.with_name("more.mrcs"), np.zeros((N, BOX, BOX), dtype=np.float32), 2.0)
    path.with_suffix(".star").write_text(
        path.with_suffix(".star").read_text().replace("000004@b", "000004@more")
    )


@pytest.mark.parametrize("change", [shorter, in_two_stacks])
def test_rows_that_nothing_brings_together_are_refused_or_taken_in_order_if_the_user_says_so(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    some = range(10)
    first, other = write_star(tmp_path, "a", some, {}), write_star(tmp_path, "b", some, {})
    change(tmp_path / "b.mrcs")
    with pytest.raises(InputError, match=r"b\.star: .*nothing in the tables shows .*--pair-by-order") as e:
        match(first, other)
    assert "\n" not in str(e.value)
    found = match_rows(read_images(first), read_images(other), by_order=True)
    assert_paired(found, some, some)
    assert found.note.startswith("warning: paired by their order")
    fewer = write_star(tmp_path, "c", SOME, {}, stack="c.mrcs")
    shorter(tmp_path / "c.mrcs")
    with pytest.raises(InputError, match=r"c\.star: expected the 10 particles of .* found 15, and nothing"):
        match_rows(read_images(first), read_images(fewer), by_order=True)


def test_order_is_not_taken_where_the_tables_speak_against_it(tmp_path: Path) -> None:
    elsewhere = {**ON_MICROGRAPHS, "rlnCoordinateX": lambda i: f"{PLACES[i, 1] + 5:.3f}"}
    first = write_star(tmp_path, "a", range(N), ON_MICROGRAPHS)
    other = write_star(tmp_path, "b", range(N), elsewhere)
    with pytest.raises(InputError, match="its rows are not those of"):
        match_rows(read_images(first), read_images(other), by_order=True)


def test_repeated_rows_of_one_image_are_one_and_two_images_of_a_particle_are_refused(tmp_path: Path) -> None:
    """Symmetry expansion repeats rows; two extractions of one particle leave open which one is meant."""
    expanded = [i for i in range(N) for _ in range(4)]
    first = write_star(tmp_path, "a", expanded, ON_MICROGRAPHS)
    other = write_star(tmp_path, "b", SHUFFLED, ON_MICROGRAPHS)
    found = match(first, other)
    assert particles(found, expanded, SHUFFLED)[0] == particles(found, expanded, SHUFFLED)[1]
    assert len(found.first) == 4 * N
    same_place = {
        label: (lambda i, column=column: column(0 if i == 7 else i))
        for label, column in ON_MICROGRAPHS.items()
    }
    twice = write_star(tmp_path, "c", range(N), same_place)
    with pytest.raises(
        InputError, match=r"rows 1 and 8 are different images of one particle .* Remove duplicates"
    ):
        match(other, twice)


def test_images_that_were_made_from_one_are_told_apart_by_their_own_names(tmp_path: Path) -> None:
    """Subtracted images of a symmetric particle share their original: their own names still pair them."""
    subtracted = {"rlnImageOriginalName": lambda i: f"{i // 4 + 1:06d}@raw.mrcs"}
    first = write_star(tmp_path, "a", SHUFFLED, subtracted)
    new = write_star(
        tmp_path,
        "denoised",
        range(N),
        {
            "rlnImageOriginalName": lambda i: f"{i + 1:06d}@a.mrcs",
            "rlnCryohushPreviousOriginalName": lambda i: f"{i // 4 + 1:06d}@raw.mrcs",
        },
    )
    write_star(tmp_path, "raw", range(N), {})
    assert_paired(match(new, first), range(N), SHUFFLED)


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2], [2, 0]])
def test_micrographs_are_paired_by_name_wherever_they_lie(tmp_path: Path, order: Sequence[int]) -> None:
    def table(folder: str, numbers: Sequence[int]) -> Path:
        for number in range(4):
            write_stack(tmp_path / folder / f"m{number}.mrc", np.zeros((1, 40, 40), dtype=np.float32), 2.0)
        rows = "".join(f"{folder}/m{number}.mrc 1\n" for number in numbers)
        head = "data_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n1 2.0\n\n"
        path = tmp_path / f"{folder}.star"
        path.write_text(
            f"{head}data_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnOpticsGroup #2\n{rows}\n"
        )
        return path

    found = match(table("raw", range(4)), table("denoised", order))
    assert_paired(found, range(4), order)


def test_micrographs_with_other_names_need_the_users_word(tmp_path: Path) -> None:
    """Sums of other frames: nothing but the order of the rows says which belong together."""
    tables = []
    for kind in ("even", "odd"):
        for number in range(3):
            write_stack(tmp_path / f"m{number}_{kind}.mrc", np.zeros((1, 40, 40), dtype=np.float32), 2.0)
        rows = "".join(f"m{number}_{kind}.mrc\n" for number in range(3))
        path = tmp_path / f"{kind}.star"
        path.write_text(f"data_micrographs\n\nloop_\n_rlnMicrographName #1\n{rows}\n")
        tables.append(path)
    with pytest.raises(InputError, match=r"expected the 3 micrographs .*--pair-by-order"):
        match(*tables)
    found = match_rows(*map(read_images, tables), by_order=True)
    assert_paired(found, range(3), range(3))
    assert found.by == "their order"
