"""A whole run over micrographs: names, table, contrast, resuming and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micrograph_files import micrograph, table_of, write_micrograph
from numpy.typing import NDArray

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import (
    Aborted,
    ConfigurationError,
    CryohushError,
    ImageError,
    InputError,
    OutputError,
)
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.micrograph_denoiser import MicrographDenoiser
from cryohush.core.inference.plan import output_names
from cryohush.core.io.journal import JOURNAL_NAME
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.io.mrc import StackReader
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.models.weights import LoadedModel

NAMES = [f"MotionCorr/job002/Movies/{name}.mrc" for name in "bcad"]
SHAPES = [(90, 110), (64, 70), (90, 110), (301, 202)]


def options(weights: Path, **given: Any) -> DenoiseOptions:
    return DenoiseOptions(**{"model": str(weights), "precision": "fp32", "threads": 2, **given})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with micrographs of different sizes and pixel sizes; one is in the table twice."""
    folder = tmp_path / "project"
    for number, (name, shape) in enumerate(zip(NAMES, SHAPES, strict=True)):
        write_micrograph(folder / name, micrograph(*shape, seed=number))
    (folder / "m.star").write_text(table_of([*NAMES, NAMES[1]], [1, 2, 1, 1, 2]))
    monkeypatch.chdir(folder)
    return folder


def read(path: Path | str) -> NDArray[np.float32]:
    with StackReader(path) as reader:
        assert reader.n_images == 1
        return reader.read([0])[0]


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (JOURNAL_NAME, "cryohush.json")
    }


def test_a_trial_denoises_the_first_micrographs(project: Path, weights: Path) -> None:
    summary = run_denoise("m.star", "Job", options(weights, limit=2))
    assert [path.name for path in summary.stacks] == ["b.mrc", "c.mrc"]
    assert summary.table is not None
    assert [path.name for path in MicrographSet.read(summary.table, root=project).stacks] == [
        "b.mrc",
        "c.mrc",
    ]


def test_each_micrograph_is_denoised_with_dark_protein(
    project: Path, weights: Path, model: LoadedModel
) -> None:
    summary = run_denoise("m.star", "External/job005", options(weights))
    assert (summary.kind, summary.n_rows, summary.n_images) == ("micrographs", 5, 4)
    denoiser = MicrographDenoiser(Denoiser(model.module))
    for name, stack in zip(NAMES, summary.stacks, strict=True):
        assert stack == Path("External/job005/Movies") / Path(name).name
        expected = -denoiser.denoise(-read(name))[0]
        np.testing.assert_allclose(read(stack), expected, rtol=0, atol=1e-3)
    white = run_denoise("m.star", "white", options(weights, protein="white"))
    np.testing.assert_allclose(read(white.stacks[0]), denoiser.denoise(read(NAMES[0]))[0], rtol=0, atol=1e-3)


def test_the_table_names_the_denoised_files_and_keeps_the_rest(project: Path, weights: Path) -> None:
    summary = run_denoise("m.star", "External/job005", options(weights))
    assert summary.table == Path("External/job005/micrographs.star")
    written = MicrographSet.read(summary.table, root=project)
    assert written.stacks == [project / path for path in summary.stacks]
    assert [written.pixel_size_angstrom(number) for number in range(4)] == [1.5, 2.25, 1.5, 1.5]
    rows = [line for line in summary.table.read_text().splitlines() if line.startswith("External")]
    assert rows[4] == f"External/job005/Movies/c.mrc  2 1.348548e+06 0012 {NAMES[1]}"
    with StackReader(summary.stacks[1]) as reader:
        assert (reader.mode, reader.pixel_size_angstrom) == (2, 2.25)


def test_the_samples_are_parts_of_micrographs_of_one_kind(project: Path, weights: Path) -> None:
    samples = run_denoise("m.star", "out", options(weights)).samples
    assert samples.titles == ["b.mrc", "a.mrc", "d.mrc"][: len(samples.raw)]
    assert samples.raw.shape == (2, 90, 90)
    np.testing.assert_array_equal(samples.raw[1], read(NAMES[2])[:, 10:100])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["MotionCorr/job002/M/a.mrc", "M/b.mrc"], ["M/a.mrc", "M/b.mrc"]),
        # without the job's folder these two would meet
        (["MotionCorr/job002/M/a.mrc", "MotionCorr/job003/M/a.mrc"], None),
        (["Import/job001/x.mrc", "../Import/job001/y.mrc"], ["x.mrc", "y.mrc"]),
        (["a/x.MRC", "../a/x.mrc"], ["a/x.mrc", "a/x_2.mrc"]),
    ],
)
def test_names_go_without_the_folder_of_the_job_and_never_meet(
    project: Path, names: list[str], expected: list[str] | None
) -> None:
    micrographs = MicrographSet.read("m.star")
    object.__setattr__(micrographs, "stack_names", names)
    assert output_names(micrographs) == (expected or names)


def test_a_single_micrograph(project: Path, weights: Path) -> None:
    summary = run_denoise(NAMES[3], "out", options(weights, output_dtype="float16"))
    assert (summary.table, summary.stacks) == (None, [Path("out/d.mrc")])
    with StackReader("out/d.mrc") as reader:
        assert (reader.mode, reader.shape, reader.pixel_size_angstrom) == (12, (1, 301, 202), 1.5)


def test_the_number_of_threads_changes_no_bit(
    project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # small tiles: several per micrograph
    monkeypatch.setattr(MicrographDenoiser.__init__, "__kwdefaults__", {
        "at_once": 1, "executor": None, "tile_px": 64,
    })  # fmt: skip
    run_denoise("m.star", "one", options(weights, threads=1))
    run_denoise("m.star", "three", options(weights, threads=3))
    one, three = outputs(Path("one")), outputs(Path("three"))
    assert {name: data for name, data in one.items() if name.endswith(".mrc")} == {
        name: data for name, data in three.items() if name.endswith(".mrc")
    }


def test_a_stopped_run_goes_on_where_it_was(project: Path, weights: Path) -> None:
    done: list[int] = []
    with pytest.raises(Aborted):
        run_denoise(
            "m.star",
            "out",
            options(weights),
            JobContext(lambda n, total: done.append(n), lambda: bool(done) and done[-1] == 2),
        )
    assert not Path("out/micrographs.star").exists()
    assert sorted(path.name for path in Path("out/Movies").iterdir()) == ["b.mrc", "c.mrc"]
    with pytest.raises(OutputError, match="holds another run"):
        run_denoise("m.star", "out", options(weights))
    summary = run_denoise("m.star", "out", options(weights), earlier="resume")
    assert summary.n_resumed == 2
    run_denoise("m.star", "whole", options(weights))
    resumed, whole = outputs(Path("out")), outputs(Path("whole"))
    assert resumed.pop("micrographs.star") == whole.pop("micrographs.star").replace(b"whole/", b"out/")
    assert resumed == whole


@pytest.mark.parametrize("bad", ["nan", "constant"])
def test_a_bad_micrograph_stops_the_run_or_goes_through(project: Path, weights: Path, bad: str) -> None:
    image = micrograph(*SHAPES[1])
    if bad == "nan":
        image[3, 4] = np.nan
    else:
        image[:] = 5.0
    write_micrograph(Path(NAMES[1]), image)
    with pytest.raises(ImageError, match=r"c\.mrc, image 1: the micrograph"):
        run_denoise("m.star", "out", options(weights))
    summary = run_denoise("m.star", "out", options(weights, skip_bad=True), earlier="replace")
    assert [Path(note.stack).name for note in summary.skipped] == ["c.mrc"]
    np.testing.assert_array_equal(read("out/Movies/c.mrc"), image)


def test_a_conspicuous_micrograph_is_counted_and_remembered(project: Path, weights: Path) -> None:
    image = micrograph(*SHAPES[0])
    image[:, 50] += 30
    write_micrograph(Path(NAMES[0]), image)
    with pytest.raises(Aborted):
        run_denoise(
            "m.star",
            "out",
            options(weights),
            JobContext(should_stop=lambda: Path("out/Movies/b.mrc").exists()),
        )
    summary = run_denoise("m.star", "out", options(weights), earlier="resume")
    (note,) = summary.remarks
    assert Path(note.stack).name == "b.mrc"
    assert "a row or column stands out" in note.problem
    assert len(json.loads(Path("out/cryohush.json").read_text())["conspicuous_images"]) == 1
    assert summary.facts()["conspicuous"] == "1 images, see cryohush.json"


@pytest.mark.parametrize("mode", [np.int8, np.int16, np.uint16, np.float16])
def test_every_scale_of_a_detector_is_read(project: Path, weights: Path, mode: type) -> None:
    import mrcfile

    counts = np.random.default_rng(1).poisson(20, (90, 110)).astype(mode)
    with mrcfile.new("counts.mrc", counts, overwrite=True):
        pass
    summary = run_denoise("counts.mrc", "out", options(weights, blend=1.0))
    np.testing.assert_allclose(read(summary.stacks[0]), counts.astype(np.float32), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["movie.tif", "movie.tiff", "movie.eer", "x.mrc.gz", "x.mrc.bz2"])
def test_movies_and_compressed_files_are_refused_by_name(project: Path, weights: Path, name: str) -> None:
    Path(name).write_bytes(b"\0" * 2000)
    with pytest.raises(InputError, match=rf"{name}: movies and compressed files"):
        run_denoise(name, "out", options(weights))


def test_truncated_and_missing_files_are_named(project: Path, weights: Path) -> None:
    path = Path(NAMES[2])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a\.mrc: truncated"):
        run_denoise("m.star", "out", options(weights))
    path.unlink()
    with pytest.raises(InputError, match=r"line 23: the micrograph .*a\.mrc does not exist"):
        run_denoise("m.star", "out", options(weights))
    assert not Path("out").exists()


def test_what_suits_no_micrograph_is_refused(project: Path, weights: Path) -> None:
    refused: list[tuple[dict[str, Any], dict[str, Any], type[CryohushError], str]] = [
        ({"particle_diameter_angstrom": 100.0}, {}, ConfigurationError, "is for particles, not micrographs"),
        ({}, {"passthrough": ["x.cs"]}, ConfigurationError, "passthrough files complete a .cs file"),
    ]
    for given, arguments, kind, problem in refused:
        with pytest.raises(kind, match=problem):
            run_denoise("m.star", "out", options(weights, **given), **arguments)


def test_a_disk_that_is_too_small_is_told_before_the_work(
    project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(OutputError, match="the disk is too full"):
        run_denoise("m.star", "out", options(weights))


def test_an_input_is_never_written_to(project: Path, weights: Path) -> None:
    (project / "plain.star").write_text(table_of(["x.mrc"]))
    write_micrograph(project / "x.mrc", micrograph())
    with pytest.raises(OutputError, match=r"x\.mrc is an input of this run"):
        run_denoise("plain.star", ".", options(weights), earlier="replace")


def test_a_table_that_has_grown_costs_only_the_new_micrographs_whatever_their_size(
    project: Path, weights: Path
) -> None:
    automatic = options(weights, batch_size="auto")
    (project / "m.star").write_text(table_of([NAMES[0], NAMES[2]], [1, 1]))
    first = run_denoise("m.star", "out", automatic)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.stacks}
    (project / "m.star").write_text(table_of(NAMES, [1, 2, 1, 1]))
    summary = run_denoise("m.star", "out", automatic, earlier="anew")
    assert (summary.n_images, summary.n_resumed) == (4, 2)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in first.stacks} == before
    assert summary.batch_sizes.items() > first.batch_sizes.items()
    run_denoise("m.star", "whole", automatic)
    whole, grown = outputs(Path("whole")), outputs(Path("out"))
    assert grown.pop("micrographs.star") == whole.pop("micrographs.star").replace(b"whole/", b"out/")
    assert grown == whole
