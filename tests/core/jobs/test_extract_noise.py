"""An extraction from micrographs to a stack and its table: what is taken, undone, resumed and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micrograph_files import table_of
from numpy.typing import NDArray
from particle_files import read_alike, read_stack, write_stack

from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.load import validate
from cryohush.core.errors import (
    Aborted,
    ConfigurationError,
    CryohushError,
    ImageError,
    InputError,
    OutputError,
)
from cryohush.core.io.journal import JOURNAL_NAME
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.io.mrc import StackWriter
from cryohush.core.io.mrc_header import label_of_denoised
from cryohush.core.io.star import read_tables, unquote
from cryohush.core.job_context import JobContext
from cryohush.core.jobs import noise_search
from cryohush.core.jobs.extract_noise import plan_search, run_extract_noise
from cryohush.core.noise.micrograph import MicrographCounts, MicrographTask
from cryohush.core.noise.output import PARTS_FOLDER
from cryohush.core.noise.patches import whiten
from cryohush.core.noise.summary import NoiseSummary
from cryohush.core.report.overlays import write_overlay

SIDE, WINDOW, STRIDE = 640, 64, 32
# Two particles and a large dark crystal: (y, x, radius, darkness).
OBJECTS = ((120, 140, 45, 1.2), (130, 420, 45, 1.2), (470, 450, 110, 4.0))


def with_objects(seed: int = 1, scale: float = 3.0, offset: float = 100.0) -> NDArray[np.float32]:
    """White noise with dark discs, smooth at the rim."""
    image = np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE))
    rows, columns = np.ogrid[:SIDE, :SIDE]
    for y, x, radius, darkness in OBJECTS:
        distance = np.hypot(rows - y, columns - x)
        image -= darkness * np.clip((radius - distance) / 4 + 0.5, 0, 1)
    return (scale * image + offset).astype(np.float32)


def options(**changes: object) -> ExtractNoiseOptions:
    # the network knows real noise, not white noise: half and half is strict enough here
    given = {
        "min_background": 0.5,
        "window_px": WINDOW,
        "stride_px": STRIDE,
        "device": "cpu",
        "precision": "fp32",
        "threads": 1,
    }
    return validate({**given, **changes}, ExtractNoiseOptions, "test")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a", "b"), 1):
        write_stack(tmp_path / f"mics/{name}.mrc", with_objects(seed)[None], 1.5)
    path = tmp_path / "micrographs.star"
    path.write_text(table_of(["mics/a.mrc", "mics/b.mrc"]))
    return path


def rows_of(summary: NoiseSummary, name: str = "particles") -> list[dict[str, str]]:
    read_alike(summary.table)
    for table in read_tables(summary.table):
        rows = [tokens for _, _, tokens in table.rows() if tokens]
        if table.name == name:
            return [dict(zip(table.labels, map(unquote, row), strict=True)) for row in rows]
    return []


def origins(rows: list[dict[str, str]]) -> list[tuple[int, int]]:
    return [
        (round(float(row["rlnCoordinateY"])) - WINDOW // 2, round(float(row["rlnCoordinateX"])) - WINDOW // 2)
        for row in rows
    ]


def distance_to_objects(y: int, x: int) -> float:
    """From the nearest pixel of a window to the nearest rim; negative when it reaches inside."""
    nearest = []
    for centre_y, centre_x, radius, _ in OBJECTS:
        dy, dx = (
            max(begin - centre, 0, centre - (begin + WINDOW - 1))
            for begin, centre in ((y, centre_y), (x, centre_x))
        )
        nearest.append(float(np.hypot(dy, dx)) - radius)
    return min(nearest)


def test_segmentation_takes_blocks_of_the_original_where_nothing_is(table: Path, tmp_path: Path) -> None:
    summary = run_extract_noise(table, tmp_path / "out", options(), draw=write_overlay)
    rows = rows_of(summary)
    stack = read_stack(summary.stack)
    assert len(rows) == len(stack) == summary.n_blocks > 40
    for number, (row, (y, x)) in enumerate(zip(rows, origins(rows), strict=True)):
        image = with_objects(1 if "a.mrc" in row["rlnMicrographName"] else 2)
        assert np.array_equal(stack[number], image[y : y + WINDOW, x : x + WINDOW])
        assert row["rlnImageName"] == f"{number + 1:06d}@out/noise.mrcs"
        # the network's pixels are 7.5 Å, five of the micrograph's
        assert distance_to_objects(y, x) > -5
    labels = read_stack(tmp_path / "out/labels/mics/a.mrc")[0]
    assert labels.shape == (SIDE, SIDE)
    assert labels[470, 450] == 1
    assert labels[130, 420] != 0
    assert (tmp_path / "out/overlays/mics/b.png").exists()
    record = json.loads(summary.record.read_text())
    assert record["blocks"] == len(stack)
    # 19 x 19 windows a side
    assert [one["windows"] for one in record["micrographs"]] == [19 * 19] * 2


def test_similarity_alone_overlooks_corners_and_the_check_does_not(table: Path, tmp_path: Path) -> None:
    given = {"method": "similarity", "similarity_threshold": 0.5}
    published = run_extract_noise(table, tmp_path / "published", options(**given, min_noise_probability=0))
    checked = run_extract_noise(table, tmp_path / "checked", options(**given))
    rows, of_published = rows_of(checked), origins(rows_of(published))
    assert len(rows) > 5
    assert set(origins(rows)) < set(of_published)
    assert min(distance_to_objects(y, x) for y, x in of_published) < -10
    # the label map has pixels of 7.5 Å, five of the micrograph's
    assert min(distance_to_objects(y, x) for y, x in origins(rows)) > -5
    assert all(float(row["rlnCryohushNoiseSimilarity"]) > 0.5 for row in rows)
    assert (tmp_path / "checked/labels/mics/a.mrc").exists()
    excluded = checked.counts[0].excluded
    assert excluded is not None
    assert excluded["check"] > 0
    assert "are alike, but touch something" in checked.explanation


def test_blocks_with_more_energy_than_noise_are_not_taken(tmp_path: Path) -> None:
    """Stripes of 50 Å in a corner: nothing that the network was taught, and no noise."""
    image = np.random.default_rng(1).normal(0, 1, (SIDE, SIDE))
    image[:200, :200] += 0.3 * np.sin(2 * np.pi * np.arange(200) * 1.5 / 50)
    write_stack(tmp_path / "a.mrc", image[None].astype(np.float32), 1.5)
    # everything is background to this threshold
    free = {"min_background": 1e-6}
    every = run_extract_noise(
        tmp_path / "a.mrc", tmp_path / "every", options(**free, min_noise_probability=0)
    )
    noise = run_extract_noise(tmp_path / "a.mrc", tmp_path / "noise", options(**free))

    def in_the_corner(summary: NoiseSummary) -> int:
        return sum(y < 136 and x < 136 for y, x in origins(rows_of(summary)))

    assert in_the_corner(every) == 25
    assert in_the_corner(noise) == 0
    excluded = noise.counts[0].excluded
    assert excluded is not None
    # 36 windows touch the corner by half and more; of the others, noise, few are lost
    assert 25 <= excluded["noise"] < 90
    assert "have more energy than noise (--min-noise-probability)" in noise.explanation


def test_what_was_normalised_can_be_brought_back(table: Path, tmp_path: Path) -> None:
    raw = run_extract_noise(table, tmp_path / "raw", options())
    white = run_extract_noise(table, tmp_path / "white", options(normalisation="whiten"))
    rows, amplitudes = rows_of(white), {}
    for entry in rows_of(white, "whitening"):
        amplitudes.setdefault(entry["rlnMicrographName"], []).append(float(entry["rlnCryohushAmplitude"]))
    blocks, expected = torch.from_numpy(read_stack(white.stack)), read_stack(raw.stack)
    for row, block, original in zip(rows, blocks, expected, strict=True):
        back = whiten(block[None], 1 / torch.tensor(amplitudes[row["rlnMicrographName"]]))[0]
        back = back * float(row["rlnCryohushNoiseStd"]) + float(row["rlnCryohushNoiseMean"])
        # single precision of grey values about 100
        np.testing.assert_allclose(back.numpy(), original, atol=1e-3)


@pytest.mark.parametrize(
    ("scale", "offset", "dtype"), [(3.0, 20.0, "int8"), (0.2, 0.0, "float16"), (9.0, 4e3, "uint16")]
)
def test_scale_and_number_format_of_the_micrograph_do_not_matter(
    scale: float, offset: float, dtype: str, tmp_path: Path
) -> None:
    mrcfile = pytest.importorskip("mrcfile")
    image = with_objects(1, scale, offset)
    reference = tmp_path / "reference.mrc"
    write_stack(reference, with_objects(1)[None], 1.5)
    with mrcfile.new(
        tmp_path / "other.mrc", image.round().astype(dtype) if dtype != "float16" else image.astype(dtype)
    ) as file:
        file.voxel_size = 1.5
    one, other = (
        run_extract_noise(tmp_path / f"{name}.mrc", tmp_path / name, options())
        for name in ("reference", "other")
    )
    # rounding to whole numbers, a third of a standard deviation apart, may move a pixel of the label map
    assert len(set(origins(rows_of(one))) ^ set(origins(rows_of(other)))) <= 3


def test_the_cap_draws_the_same_blocks_again(table: Path, tmp_path: Path) -> None:
    everything = run_extract_noise(table, tmp_path / "all", options())
    first, second = (
        run_extract_noise(table, tmp_path / name, options(max_per_micrograph=7)) for name in ("x", "y")
    )
    assert first.n_blocks == 14
    assert origins(rows_of(first)) == origins(rows_of(second))
    assert set(origins(rows_of(first))) <= set(origins(rows_of(everything)))
    assert first.counts[0].beyond_cap == everything.counts[0].kept - 7


def test_an_interrupted_run_goes_on_to_the_same_result(table: Path, tmp_path: Path) -> None:
    whole = run_extract_noise(table, tmp_path / "whole", options())
    calls = iter([False, True])
    with pytest.raises(Aborted, match="--resume"):
        run_extract_noise(table, tmp_path / "torn", options(), JobContext(should_stop=lambda: next(calls)))
    assert not (tmp_path / "torn/noise.star").exists()
    with pytest.raises(OutputError, match="holds another run"):
        run_extract_noise(table, tmp_path / "torn", options())
    with pytest.raises(OutputError, match="window_px"):
        run_extract_noise(table, tmp_path / "torn", options(window_px=48), earlier="resume")
    resumed = run_extract_noise(table, tmp_path / "torn", options(), earlier="resume")
    assert resumed.n_resumed == 1
    assert resumed.stack.read_bytes() == whole.stack.read_bytes()
    assert resumed.table.read_text().replace("torn", "whole") == whole.table.read_text()
    assert sorted(path.name for path in (tmp_path / "torn").iterdir()) == [
        JOURNAL_NAME, "cryohush.json", "labels", "noise.mrcs", "noise.star",
    ]  # fmt: skip
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "torn").rglob("*")}
    again = run_extract_noise(table, tmp_path / "torn", options(), earlier="resume")
    assert again.was_complete
    assert (again.counts, again.n_blocks) == (whole.counts, whole.n_blocks)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "torn").rglob("*")} == before
    run_extract_noise(table, tmp_path / "torn", options(), earlier="replace")


def test_a_table_may_grow_meanwhile(table: Path, tmp_path: Path) -> None:
    """What is new in it is for the next run."""
    whole = run_extract_noise(table, tmp_path / "whole", options())
    text = table.read_text()
    write_stack(tmp_path / "mics/c.mrc", with_objects(3)[None], 1.5)

    def grow(*_: object) -> None:
        table.write_text(text.rstrip("\n") + "\n" + last_row(text).replace("b.mrc", "c.mrc") + "\n\n")

    summary = run_extract_noise(table, tmp_path / "out", options(), JobContext(progress=grow))
    assert (summary.counts, summary.n_blocks) == (whole.counts, whole.n_blocks)
    assert read_stack(summary.stack).tobytes() == read_stack(whole.stack).tobytes()
    again = run_extract_noise(table, tmp_path / "out", options(), earlier="resume")
    assert (len(again.counts), again.counts[:2]) == (3, whole.counts)


@pytest.mark.parametrize("normalisation", ["none", "whiten"])
@pytest.mark.parametrize("where", ["last", "first"])
def test_a_table_that_has_grown_costs_only_what_is_new(
    table: Path, tmp_path: Path, where: str, normalisation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"normalisation": normalisation, "max_per_micrograph": 9}
    run_extract_noise(table, tmp_path / "out", options(**how), draw=write_overlay)
    write_stack(tmp_path / "mics/c.mrc", with_objects(3)[None], 1.5)
    names = ["mics/a.mrc", "mics/b.mrc"]
    names.insert(0 if where == "first" else 2, "mics/c.mrc")
    table.write_text(table_of(names))
    whole = run_extract_noise(table, tmp_path / "whole", options(**how), draw=write_overlay)
    searched: list[str] = []
    search = noise_search.extract_from

    def spy(task: MicrographTask, *rest: Any) -> MicrographCounts:
        searched.append(task.name)
        return search(task, *rest)

    monkeypatch.setattr(noise_search, "extract_from", spy)
    grown = run_extract_noise(table, tmp_path / "out", options(**how), earlier="resume", draw=write_overlay)
    assert searched == ["mics/c.mrc"]
    assert (grown.counts, grown.n_resumed) == (whole.counts, 2)
    assert grown.stack.read_bytes() == whole.stack.read_bytes()
    assert grown.table.read_text().replace("@out/", "@whole/") == whole.table.read_text()
    assert not (tmp_path / "out" / PARTS_FOLDER).exists()
    # one that was taken out takes its blocks with it, and nothing is searched
    table.write_text(table_of(["mics/c.mrc", "mics/b.mrc"]))
    fewer = run_extract_noise(table, tmp_path / "out", options(**how), earlier="resume", draw=write_overlay)
    assert searched == ["mics/c.mrc"]
    assert [row["rlnMicrographName"] for row in rows_of(fewer)] == 9 * ["mics/c.mrc"] + 9 * ["mics/b.mrc"]


def test_blocks_whose_folder_was_moved_are_named_again(table: Path, tmp_path: Path) -> None:
    first = run_extract_noise(table, tmp_path / "out", options())
    text = first.table.read_text()
    (tmp_path / "out").rename(tmp_path / "moved")
    again = run_extract_noise(table, tmp_path / "moved", options(), earlier="resume")
    assert (again.counts, again.n_resumed) == (first.counts, 2)
    assert again.table.read_text() == text.replace("@out/", "@moved/") != text


@pytest.mark.parametrize("damage", ["no stack", "no table", "a row less", "nonsense"])
def test_blocks_that_were_damaged_are_searched_again_when_a_table_grows(
    table: Path, tmp_path: Path, damage: str
) -> None:
    first = run_extract_noise(table, tmp_path / "out", options())
    write_stack(tmp_path / "mics/c.mrc", with_objects(3)[None], 1.5)
    table.write_text(table_of(["mics/a.mrc", "mics/b.mrc", "mics/c.mrc"]))
    whole = run_extract_noise(table, tmp_path / "whole", options())
    if damage.startswith("no "):
        (first.stack if damage == "no stack" else first.table).unlink()
    else:
        lines = first.table.read_text().splitlines(keepends=True)
        last = max(number for number, line in enumerate(lines) if "@out/noise" in line)
        lines[last] = "" if damage == "a row less" else lines[last].replace("@out", "@x").replace(".", "x")
        first.table.write_text("".join(lines))
    grown = run_extract_noise(table, tmp_path / "out", options(), earlier="resume")
    assert grown.stack.read_bytes() == whole.stack.read_bytes()
    assert grown.table.read_text().replace("@out/", "@whole/") == whole.table.read_text()


def test_a_micrograph_may_not_change_meanwhile(table: Path, tmp_path: Path) -> None:
    def change(*_: object) -> None:
        write_stack(tmp_path / "mics/b.mrc", with_objects(3)[None], 1.5)

    with pytest.raises(InputError, match=r"mics/b\.mrc: the micrograph was changed while .*--resume"):
        run_extract_noise(table, tmp_path / "out", options(), JobContext(progress=change))
    assert not (tmp_path / "out" / "noise.star").exists()


def test_noise_is_not_taken_from_denoised_micrographs(table: Path, tmp_path: Path) -> None:
    path = tmp_path / "mics/b.mrc"
    with StackWriter(path, (1, SIDE, SIDE), pixel_size_angstrom=1.5, label=label_of_denoised("m")) as writer:
        writer.write(with_objects()[None])
    with pytest.raises(InputError, match=r"mics/b\.mrc: these images were denoised already"):
        run_extract_noise(table, tmp_path / "out", options())
    assert not (tmp_path / "out").exists()


def last_row(table: str) -> str:
    return table.rstrip("\n").splitlines()[-1]


def test_no_block_says_what_excluded_how_many(table: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no blocks .* 722 windows .*touch particles.*exceed --max-streak"):
        run_extract_noise(table, tmp_path / "out", options(max_streak=0.1))
    with pytest.raises(InputError, match=r"no blocks .* 722 are not alike.*best similarity is 0\.\d\d"):
        run_extract_noise(table, tmp_path / "other", options(method="similarity", similarity_threshold=0.999))
    with pytest.raises(InputError, match=r"1000 are needed"):
        run_extract_noise(table, tmp_path / "many", options(min_blocks=1000))


def test_the_other_contrast_is_warned_of(table: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    right = run_extract_noise(table, tmp_path / "right", options(), JobContext(log=lines.append))
    assert not right.warnings
    wrong = run_extract_noise(
        table, tmp_path / "wrong", options(protein="white"), JobContext(log=lines.append)
    )
    (said,) = wrong.warnings
    assert said.startswith("protein looks dark, but is taken for white: what stands out of the ice")
    assert [line for line in lines if "protein" in line] == [f"warning: {said}"]
    assert json.loads(wrong.record.read_text())["warnings"] == [said]


def test_carbon_and_its_rim_are_no_noise(tmp_path: Path) -> None:
    """On a third of the micrograph: where it rules, its level counts as the background's."""
    image = np.random.default_rng(1).normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    image[:, 440:] -= 4.0
    write_stack(tmp_path / "carbon.mrc", image[None], 1.5)
    summary = run_extract_noise(tmp_path / "carbon.mrc", tmp_path / "out", options())
    assert len(rows_of(summary)) > 20
    assert max(x for _, x in origins(rows_of(summary))) + WINDOW <= 440
    excluded = summary.counts[0].excluded
    assert excluded is not None
    assert excluded["contamination"] > 0


def test_streaks_are_rejected_and_named(tmp_path: Path) -> None:
    image = np.random.default_rng(1).normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    image[:, 300] += 3.0
    write_stack(tmp_path / "gain.mrc", image[None], 1.5)
    summary = run_extract_noise(tmp_path / "gain.mrc", tmp_path / "out", options())
    assert summary.counts[0].remark is not None
    assert "gain" in summary.counts[0].remark
    assert all(not x <= 300 < x + WINDOW for _, x in origins(rows_of(summary)))


@pytest.mark.parametrize("defect", ["constant", "nan"])
def test_bad_micrographs_stop_the_run_or_are_left_out(defect: str, table: Path, tmp_path: Path) -> None:
    bad = np.full((SIDE, SIDE), 7.0, dtype=np.float32)
    if defect == "nan":
        bad = with_objects()
        bad[3, 4] = np.nan
    write_stack(tmp_path / "mics/b.mrc", bad[None], 1.5)
    with pytest.raises(ImageError, match=r"b\.mrc.*(constant|NaN)"):
        run_extract_noise(table, tmp_path / "out", options())
    summary = run_extract_noise(table, tmp_path / "out", options(skip_bad=True), earlier="replace")
    assert [count.kept > 0 for count in summary.counts] == [True, False]


def test_by_default_eight_windows_go_across_a_small_micrograph(tmp_path: Path) -> None:
    for number, side in enumerate((SIDE, SIDE, 128), 1):  # the last one is an odd one out
        write_stack(tmp_path / f"{number}.mrc", np.zeros((1, side, side + 64), np.float32), 1.5)
    (tmp_path / "m.star").write_text(table_of(["1.mrc", "2.mrc", "3.mrc"]))
    default = options(window_px=None, stride_px=None)
    tasks, _ = plan_search(MicrographSet.read(tmp_path / "m.star", root=tmp_path), default)
    assert {(task.window_px, task.stride_px) for task in tasks} == {(SIDE // 8, SIDE // 16)}
    assert default.window_and_stride_px(1.5) == (320, 160)


def test_where_too_little_is_found_a_window_that_fits_is_named(table: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"With --window-px {WINDOW * 7 // 8}, [1-9]\d* windows touch neither"
    ):
        run_extract_noise(table, tmp_path / "out", options(min_blocks=10**6))


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """Particles in a lattice that leaves gaps of 120 px, where a usual window has 160."""
    for seed in (1, 2, 3):
        image = np.random.default_rng(seed).normal(0, 1, (1280, 1280))
        rows, columns = np.ogrid[:1280, :1280]
        for y in range(40 + 10 * seed, 1280, 150):
            for x in range(40 + 20 * seed, 1280, 210):
                distance = np.hypot(rows - y, columns - x)
                image -= 1.2 * np.clip((45 - distance) / 4 + 0.5, 0, 1)
        write_stack(tmp_path / f"mics/{seed}.mrc", (3 * image + 100).astype(np.float32)[None], 1.5)
    path = tmp_path / "crowded.star"
    path.write_text(table_of([f"mics/{seed}.mrc" for seed in (1, 2)]))
    return path


def test_between_crowded_particles_the_largest_window_that_fits_is_taken(
    crowded: Path, tmp_path: Path
) -> None:
    default = options(window_px=None, stride_px=None)
    lines: list[str] = []
    summary = run_extract_noise(crowded, tmp_path / "out", default, JobContext(log=lines.append))
    assert 64 <= summary.window_px < 1280 // 8
    assert summary.n_blocks >= 2
    assert any(line.startswith("warning: found no blocks") and "Trying smaller" in line for line in lines)
    assert f"smaller than usual, {summary.window_px} px" in summary.explanation
    assert read_stack(summary.stack).shape == (summary.n_blocks, summary.window_px, summary.window_px)
    # what is larger by two steps is nowhere free, or hardly
    larger = options(window_px=summary.window_px * 8 // 7 * 8 // 7, stride_px=None, min_blocks=2)
    with pytest.raises(InputError, match=r"found .* blocks? of noise, 2 are needed\."):
        run_extract_noise(crowded, tmp_path / "larger", larger)
    # the same as if the user had said so
    told = options(window_px=summary.window_px, stride_px=None)
    same = run_extract_noise(crowded, tmp_path / "told", told)
    assert same.stack.read_bytes() == summary.stack.read_bytes()
    assert "smaller than usual" not in same.explanation


def test_the_window_that_was_found_is_kept(crowded: Path, tmp_path: Path) -> None:
    default = options(window_px=None, stride_px=None)
    first = run_extract_noise(crowded, tmp_path / "out", default)
    again = run_extract_noise(crowded, tmp_path / "out", default, earlier="resume")
    assert again.was_complete
    crowded.write_text(table_of([f"mics/{seed}.mrc" for seed in (1, 2, 3)]))
    grown = run_extract_noise(crowded, tmp_path / "out", default, earlier="anew")
    assert (grown.n_resumed, grown.window_px) == (2, first.window_px)
    assert grown.is_smaller
    assert grown.counts[:2] == first.counts
    other = run_extract_noise(crowded, tmp_path / "out", options(window_px=48), earlier="anew")
    assert other.window_px == 48


def test_a_stop_between_two_windows_is_resumed(crowded: Path, tmp_path: Path) -> None:
    default = options(window_px=None, stride_px=None)
    whole = run_extract_noise(crowded, tmp_path / "whole", default)
    calls = iter([False, False, False, True])
    with pytest.raises(Aborted, match="--resume"):
        run_extract_noise(crowded, tmp_path / "torn", default, JobContext(should_stop=lambda: next(calls)))
    resumed = run_extract_noise(crowded, tmp_path / "torn", default, earlier="resume")
    assert resumed.stack.read_bytes() == whole.stack.read_bytes()
    assert resumed.counts == whole.counts


@pytest.mark.parametrize("given", [{"window_px": 160}, {"window_angstrom": 240.0}])
def test_a_window_that_was_asked_for_is_obeyed(given: dict[str, Any], crowded: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no blocks of noise"):
        run_extract_noise(
            crowded, tmp_path / "out", options(**{"window_px": None, "stride_px": None, **given})
        )


def test_where_nothing_fits_the_search_ends_at_the_smallest_window(crowded: Path, tmp_path: Path) -> None:
    default = options(window_px=None, stride_px=None, max_streak=0.1)
    lines: list[str] = []
    with pytest.raises(InputError, match="found no blocks of noise"):
        run_extract_noise(crowded, tmp_path / "out", default, JobContext(log=lines.append))
    tried = [int(line.split()[-2]) for line in lines if "Trying smaller windows" in line]
    assert tried == sorted(set(tried), reverse=True)
    assert tried[-1] == 64


def test_windows_have_to_suit_the_micrographs(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="larger than the 640 x 640 px"):
        run_extract_noise(table, tmp_path / "out", options(window_px=700))
    with pytest.raises(ConfigurationError, match="at least 22 px"):
        run_extract_noise(table, tmp_path / "out", options(method="similarity", window_px=20))
    with pytest.raises(CryohushError, match="exclude each other"):
        options(window_angstrom=100)


def test_sets_of_different_sizes_and_pixel_sizes(table: Path, tmp_path: Path) -> None:
    write_stack(tmp_path / "mics/b.mrc", with_objects(2)[None, :50, :300], 1.5)
    summary = run_extract_noise(table, tmp_path / "out", options())
    assert "larger than the 300 x 50 px" in str(summary.counts[1].remark)
    write_stack(tmp_path / "mics/b.mrc", with_objects(2)[None], 2.25)
    table.write_text(table_of(["mics/a.mrc", "mics/b.mrc"], [1, 2]))
    with pytest.raises(ConfigurationError, match="from 43 to 64 px"):
        run_extract_noise(
            table, tmp_path / "out", options(window_px=None, window_angstrom=96), earlier="replace"
        )
    mixed = run_extract_noise(table, tmp_path / "out", options(), earlier="replace")
    assert {row["rlnOpticsGroup"] for row in rows_of(mixed)} == {"1", "2"}
    assert [row["rlnImagePixelSize"] for row in rows_of(mixed, "optics")] == ["1.500000", "2.250000"]


def test_an_unknown_pixel_size_is_asked_for(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrc", with_objects()[None], None)
    with pytest.raises(ConfigurationError, match="Give --pixel-size"):
        run_extract_noise(tmp_path / "a.mrc", tmp_path / "out", options())
    assert run_extract_noise(tmp_path / "a.mrc", tmp_path / "out", options(pixel_size_angstrom=1.5)).n_blocks
