"""A whole run: every image arrives, under the right name, once, whatever happens on the way."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import threading
import time
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import warm
from particle_files import noise, read_alike, read_stack, write_stack, write_table

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import (
    Aborted,
    ConfigurationError,
    ImageError,
    InputError,
    OutputError,
    StarError,
    TableChanged,
)
from cryohush.core.inference import devices, engine, feeding, stream
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.summary import Summary
from cryohush.core.io.journal import JOURNAL_NAME
from cryohush.core.io.particles import ParticleSet
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.jobs.folder import Earlier
from cryohush.core.models.weights import load_model

# A run in a process of its own that is killed or stopped when so many images are done.
CHILD = """
import json, os, signal, sys
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.inference import stream
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.io.journal import Journal
from cryohush.core.job_context import JobContext
source, output, limit, how, options = sys.argv[1:]
stream.CHECKPOINT_SECONDS = 0.0 if how != "late" else 1e9
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if how == "finish":
    Journal.finish = die
run_denoise(
    source, output, DenoiseOptions(**json.loads(options)),
    JobContext(progress=lambda done, total: done >= int(limit) and die()),
)
"""


def options(weights: Path, **given: Any) -> DenoiseOptions:
    return DenoiseOptions(
        **{"model": str(weights), "precision": "fp32", "batch_size": 4, "threads": 2, **given}
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with three stacks and a table of some of their images, out of order and repeated."""
    folder = tmp_path / "project"
    for number, name in enumerate(("A/x.mrcs", "B/x.mrcs", "B/y.mrcs")):
        write_stack(folder / name, noise(9, 16, 16, seed=number))
    rows = [("B/x.mrcs", 3), ("A/x.mrcs", 9), ("A/x.mrcs", 1), ("B/y.mrcs", 5), ("B/x.mrcs", 2)]
    rows += [("A/x.mrcs", 9), *[("B/y.mrcs", i) for i in (9, 8, 1, 2, 3)], ("A/x.mrcs", 4), ("B/x.mrcs", 3)]
    write_table(folder / "particles.star", [f"{image:06d}@{name}" for name, image in rows])
    monkeypatch.chdir(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """Content of everything but the record and the journal, which hold times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (JOURNAL_NAME, "cryohush.json")
    }


def images_of(table: Path, root: Path) -> np.ndarray[Any, Any]:
    """Return the image of each row."""
    particles = ParticleSet.read(table, root=root)
    stacks = [read_stack(path) for path in particles.stacks]
    return np.stack(
        [stacks[stack][image] for stack, image in zip(particles.stack, particles.image, strict=True)]
    )


def column(table: Path, number: int) -> list[str]:
    return [line.split()[number] for line in table.read_text().splitlines() if "@" in line]


def test_a_bare_stack_becomes_a_stack(tmp_path: Path, weights: Path) -> None:
    raw = write_stack(tmp_path / "x.mrc", noise(11, 18, 18))
    summary = run_denoise(tmp_path / "x.mrc", tmp_path / "out", options(weights))
    expected = Denoiser(load_model(weights).module)(raw)
    # batches of another size: the last bits of values of about 100
    np.testing.assert_allclose(read_stack(tmp_path / "out" / "x.mrcs"), expected, rtol=0, atol=1e-3)
    assert summary.table is None
    assert summary.stacks == [tmp_path / "out" / "x.mrcs"]
    assert set(files(tmp_path / "out")) == {"x.mrcs"}


def test_a_trial_denoises_the_first_rows_and_its_table_has_only_these(project: Path, weights: Path) -> None:
    whole = run_denoise("particles.star", "Job/whole", options(weights))
    lines: list[str] = []
    trial = run_denoise(
        "particles.star", "Job/trial", options(weights, limit=4), JobContext(log=lines.append)
    )
    assert "a trial: only the first 4 of 13 particles" in lines
    assert trial.facts()["trial"]
    # the fourth row is the first of B/y.mrcs
    assert [path.relative_to("Job/trial").as_posix() for path in trial.stacks] == [
        "B/x.mrcs",
        "A/x.mrcs",
        "B/y.mrcs",
    ]
    assert trial.table is not None
    assert whole.table is not None
    assert column(trial.table, 1) == column(whole.table, 1)[:4]
    images = images_of(whole.table, project)[:4]
    # batches of another size: the last bits of values of about 100
    np.testing.assert_allclose(images_of(trial.table, project), images, rtol=0, atol=1e-3)
    # a trial is a run of its own: it does not become the whole one
    with pytest.raises(OutputError, match=r"other settings \(limit\)"):
        run_denoise("particles.star", "Job/trial", options(weights), earlier="resume")
    again = run_denoise("particles.star", "Job/all", options(weights, limit=99), JobContext(log=lines.append))
    assert again.n_rows == 13
    assert len([line for line in lines if line.startswith("a trial")]) == 1


def test_a_trial_of_a_bare_stack_has_its_first_images(tmp_path: Path, weights: Path) -> None:
    raw = write_stack(tmp_path / "x.mrcs", noise(11, 18, 18))
    run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights, limit=3))
    expected = Denoiser(load_model(weights).module)(raw[:3])
    np.testing.assert_allclose(read_stack(tmp_path / "out" / "x.mrcs"), expected, rtol=0, atol=1e-3)


def test_every_row_gets_the_denoised_image_of_its_own_raw_one(project: Path, weights: Path) -> None:
    raw = images_of(project / "particles.star", project)
    summary = run_denoise("particles.star", "Job/out", options(weights))
    assert summary.table == Path("Job/out/particles.star")
    denoised = images_of(summary.table, project)
    expected = Denoiser(load_model(weights).module)(raw)
    np.testing.assert_allclose(denoised, expected, rtol=0, atol=1e-3)
    assert (summary.n_rows, summary.n_images, summary.n_resumed) == (13, 11, 0)
    assert sum(len(read_stack(path)) for path in summary.stacks) == 11


def test_the_table_keeps_everything_but_the_image_columns(project: Path, weights: Path) -> None:
    run_denoise("particles.star", "Job/out", options(weights))
    before, after = project / "particles.star", project / "Job/out/particles.star"
    read_alike(after)
    assert column(after, 1) == column(before, 1)
    assert column(after, 3) == column(before, 0)
    assert column(after, 0)[:3] == [
        "000002@Job/out/B/x.mrcs",
        "000003@Job/out/A/x.mrcs",
        "000001@Job/out/A/x.mrcs",
    ]


def test_an_output_outside_the_root_can_still_be_resolved(
    project: Path, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "elsewhere"
    run_denoise("particles.star", output, options(weights))
    inside = run_denoise("particles.star", "out", options(weights)).table
    assert column(output / "particles.star", 0)[0] == "000002@B/x.mrcs"
    assert column(output / "particles.star", 3)[0] == f"000003@{project}/B/x.mrcs"
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(
        images_of(output / "particles.star", output), images_of(project / str(inside), project)
    )


def test_the_record_tells_how_the_images_were_made(project: Path, weights: Path) -> None:
    summary = run_denoise("particles.star", "out", options(weights), JobContext(command="cryohush denoise"))
    record = json.loads((project / "out" / "cryohush.json").read_text())
    model = load_model(weights)
    assert record["model"]["sha256"] == model.sha256
    assert record["model"]["description"] == "random weights"
    assert record["command"] == "cryohush denoise"
    assert (record["device"], record["precision"], record["batch_size"]) == (["cpu"], "fp32", {"16x16": 4})
    assert (record["particles"], record["images"], record["skipped_images"]) == (13, 11, [])
    assert record["stacks"] == ["B/x.mrcs", "A/x.mrcs", "B/y.mrcs"]
    assert record["options"]["blend"] == 0.0
    assert set(record["seconds"]) == {"total", "reading", "denoising", "writing"}
    assert summary.facts()["model"].endswith(model.sha256)


def test_samples_are_pairs_of_raw_and_denoised(project: Path, weights: Path) -> None:
    samples = run_denoise("particles.star", "out", options(weights)).samples
    expected = Denoiser(load_model(weights).module)(samples.raw)
    assert len(samples.titles) == len(samples.raw) == 11
    np.testing.assert_allclose(samples.denoised, expected, rtol=0, atol=1e-3)
    assert samples.titles[0] == "2@x.mrcs"
    assert samples.pixel_size_angstrom == 2.0


def test_the_order_does_not_depend_on_which_worker_is_quick(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(40, 16, 16))
    run_denoise(tmp_path / "x.mrcs", tmp_path / "quick", options(weights))
    denoise, calls, lock = Denoiser.denoise, [0], threading.Lock()

    def slow(self: Denoiser, images: Any, **given: Any) -> Any:
        with lock:
            calls[0] += 1
            turn = calls[0]
        time.sleep(0.02 * (turn % 3))
        return denoise(self, images, **given)

    monkeypatch.setattr(Denoiser, "denoise", slow)
    run_denoise(tmp_path / "x.mrcs", tmp_path / "slow", options(weights, threads=4))
    assert files(tmp_path / "slow") == files(tmp_path / "quick")


def test_no_more_than_a_few_batches_are_ever_in_memory(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(100, 16, 16))
    read, write, in_memory, most = feeding.Reader.read, stream.Output.write, [0], [0]
    changes = threading.Condition()

    def counted_read(self: Any, pieces: Any) -> Any:
        with changes:
            in_memory[0] += 1
            most[0] = max(most[0], in_memory[0])
            changes.notify()
        return read(self, pieces)

    def counted_write(self: Any, *given: Any) -> None:
        with changes:  # a slow disk: nothing is written before the next batch is read, too
            assert changes.wait_for(lambda: most[0] >= 2, 300)
        time.sleep(0.005)  # the others would run ahead if they could
        write(self, *given)
        with changes:
            in_memory[0] -= 1

    monkeypatch.setattr(feeding.Reader, "read", counted_read)
    monkeypatch.setattr(stream.Output, "write", counted_write)
    run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights))
    assert in_memory[0] == 0
    assert 2 <= most[0] <= 2 * stream.BATCHES_PER_WORKER + 1


def killed(source: Path | str, output: Path, limit: int, weights: Path, how: str = "") -> None:
    """Run in a child that kills itself as soon as `limit` images are done."""
    given = options(weights).model_dump_json()
    result = warm.run(CHILD, source, output, str(limit), how, given, folder=Path())
    assert result.returncode == -signal.SIGKILL, result.stderr


@pytest.mark.parametrize(
    ("limit", "how", "least_resumed"),
    [(1, "", 4), (4, "", 4), (8, "", 8), (11, "", 11), (8, "late", 3), (99, "finish", 0)],
)
def test_after_a_kill_the_rest_is_done_and_the_result_is_the_same_to_the_byte(
    project: Path, weights: Path, limit: int, how: str, least_resumed: int
) -> None:
    run_denoise("particles.star", "whole", options(weights))
    killed("particles.star", project / "out", limit, weights, how)
    assert not (project / "out" / "particles.star").exists()
    summary = run_denoise("particles.star", "out", options(weights), earlier="resume")
    assert summary.n_resumed >= least_resumed
    expected = files(project / "whole")
    table = expected.pop("particles.star").replace(b"whole/", b"out/")
    result = files(project / "out")
    assert result.pop("particles.star") == table
    assert result == expected


def test_what_is_finished_is_not_denoised_again(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(40, 16, 16))
    killed(tmp_path / "x.mrcs", tmp_path / "out", 24, weights)
    denoise, sizes = Denoiser.denoise, []

    def counted(self: Denoiser, images: Any, **given: Any) -> Any:
        sizes.append(len(images))
        return denoise(self, images, **given)

    monkeypatch.setattr(Denoiser, "denoise", counted)
    summary = run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights), earlier="resume")
    assert sum(sizes) == 40 - summary.n_resumed <= 16
    sizes.clear()
    again = run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights), earlier="resume")
    assert sizes == []
    assert again.n_resumed == 40


def stop_after(images: int) -> tuple[JobContext, list[int]]:
    """Return what stops a run, and the list of what was done."""
    seen: list[int] = []
    return JobContext(
        progress=lambda done, total: seen.append(done),
        should_stop=lambda: bool(seen) and seen[-1] >= images,
    ), seen


def test_a_run_that_is_asked_to_stop_can_be_resumed(tmp_path: Path, weights: Path) -> None:
    write_stack(tmp_path / "x.mrcs", noise(40, 16, 16))
    given, seen = stop_after(12)
    with pytest.raises(Aborted):
        run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights), given)
    assert seen[-1] == 12
    assert not (tmp_path / "out" / "x.mrcs").exists()
    summary = run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights), earlier="resume")
    assert summary.n_resumed == 12
    run_denoise(tmp_path / "x.mrcs", tmp_path / "whole", options(weights))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_what_auto_chose_is_kept_by_a_resumed_run(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(40, 16, 16))
    auto = options(weights, precision="auto", batch_size="auto")
    monkeypatch.setattr(devices, "CPU_BATCH_PX", 5 * 16 * 16)
    monkeypatch.setattr(engine, "choose_precision", lambda *_: ("bf16", "so said the test"))
    given, _ = stop_after(10)
    with pytest.raises(Aborted):
        run_denoise(tmp_path / "x.mrcs", tmp_path / "out", auto, given)
    monkeypatch.setattr(devices, "CPU_BATCH_PX", 8 * 16 * 16)
    monkeypatch.setattr(engine, "choose_precision", lambda *_: ("fp32", "so said the test"))
    summary = run_denoise(tmp_path / "x.mrcs", tmp_path / "out", auto, earlier="resume")
    assert (summary.precision, summary.batch_sizes) == ("bf16", {"16x16": 5})


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A stack of 10 images, of which number 3 holds NaN, 7 Inf, and 8 is constant."""
    images = noise(10, 16, 16)
    images[2, 4, 4], images[6, 0, 0], images[7] = np.nan, np.inf, 5.0
    write_stack(tmp_path / "bad.mrcs", images)
    return tmp_path / "bad.mrcs"


def test_a_bad_image_stops_the_run_and_is_named(spoiled: Path, tmp_path: Path, weights: Path) -> None:
    with pytest.raises(ImageError, match=r"bad\.mrcs, image 3: .*NaN.*skip_bad"):
        run_denoise(spoiled, tmp_path / "out", options(weights))
    assert not (tmp_path / "out" / "bad.mrcs").exists()


@pytest.mark.parametrize("output_dtype", ["float32", "float16"])
def test_skip_bad_passes_bad_images_through_and_counts_them(
    spoiled: Path, tmp_path: Path, weights: Path, output_dtype: str
) -> None:
    given = options(weights, skip_bad=True, output_dtype=output_dtype)
    summary = run_denoise(spoiled, tmp_path / "out", given)
    assert [(image.image, image.stack) for image in summary.skipped] == [
        (number, str(spoiled)) for number in (3, 7, 8)
    ]
    raw, denoised = read_stack(spoiled), read_stack(tmp_path / "out" / "bad.mrcs")
    exact = raw.astype(output_dtype).astype(np.float32)
    np.testing.assert_array_equal(denoised[[2, 6, 7]], exact[[2, 6, 7]])
    assert not np.allclose(denoised[[0, 1, 3]], raw[[0, 1, 3]])
    assert len(summary.samples.titles) == 7
    record = json.loads((tmp_path / "out" / "cryohush.json").read_text())
    assert [image["image"] for image in record["skipped_images"]] == [3, 7, 8]


@pytest.mark.parametrize("done", [4, 8])
def test_bad_images_of_the_finished_part_are_still_counted_after_a_resume(
    spoiled: Path, tmp_path: Path, weights: Path, done: int
) -> None:
    given, _ = stop_after(done)
    with pytest.raises(Aborted):
        run_denoise(spoiled, tmp_path / "out", options(weights, skip_bad=True), given)
    for _ in range(2):  # the second time everything is finished
        summary = run_denoise(spoiled, tmp_path / "out", options(weights, skip_bad=True), earlier="resume")
        assert [image.image for image in summary.skipped] == [3, 7, 8]


def test_a_stack_of_bad_images_only_has_no_samples(tmp_path: Path, weights: Path) -> None:
    write_stack(tmp_path / "x.mrcs", np.zeros((3, 16, 16), dtype=np.float32))
    summary = run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights, skip_bad=True))
    assert summary.samples.raw.shape == (0, 16, 16)
    assert len(summary.skipped) == 3


@pytest.fixture
def earlier(tmp_path: Path, weights: Path) -> Path:
    """The output of a complete run on `x.mrcs`."""
    write_stack(tmp_path / "x.mrcs", noise(8, 16, 16))
    run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights))
    return tmp_path / "out"


def run_again(folder: Path, weights: Path, blend: float = 0.5, **given: Any) -> Summary:
    return run_denoise(folder.parent / "x.mrcs", folder, options(weights, blend=blend), **given)


def test_a_directory_with_another_run_is_left_alone(earlier: Path, weights: Path) -> None:
    before = files(earlier)
    with pytest.raises(OutputError, match=r"holds another run .*--resume.*--overwrite"):
        run_again(earlier, weights)
    (earlier / JOURNAL_NAME).unlink()
    with pytest.raises(OutputError, match=r"holds another run"):
        run_again(earlier, weights)
    assert files(earlier) == before


def test_overwrite_replaces_an_earlier_run(earlier: Path, weights: Path) -> None:
    before = read_stack(earlier / "x.mrcs")
    assert run_again(earlier, weights, earlier="replace").n_resumed == 0
    assert not np.allclose(read_stack(earlier / "x.mrcs"), before)


def test_a_run_with_other_options_is_not_resumed_on_the_command_line(earlier: Path, weights: Path) -> None:
    before = files(earlier)
    with pytest.raises(OutputError, match=r"other settings \(blend\)"):
        run_again(earlier, weights, earlier="resume")
    assert files(earlier) == before


def test_a_host_begins_anew_when_an_option_was_changed(earlier: Path, weights: Path) -> None:
    lines: list[str] = []
    summary = run_again(earlier, weights, earlier="anew", context=JobContext(log=lines.append))
    assert summary.n_resumed == 0
    assert any("starting anew" in line for line in lines)
    assert run_again(earlier, weights, earlier="anew").n_resumed == 8


def test_another_model_is_another_run(earlier: Path, weights: Path) -> None:
    from cryohush.core.models.weights import save_model

    loaded = load_model(weights)
    save_model(weights, loaded.module.half(), "shuffle_unet", loaded.card["model"]["arguments"], {})
    with pytest.raises(OutputError, match=r"other settings \(model\)"):
        run_again(earlier, weights, blend=0.0, earlier="resume")


def test_what_was_made_of_a_stack_that_has_changed_is_made_again(earlier: Path, weights: Path) -> None:
    write_stack(earlier.parent / "x.mrcs", noise(8, 16, 16, seed=2))
    os.utime(earlier.parent / "x.mrcs", ns=(0, 0))
    assert run_again(earlier, weights, blend=0.0, earlier="resume").n_resumed == 0
    run_denoise(earlier.parent / "x.mrcs", earlier.parent / "fresh", options(weights))
    assert files(earlier) == files(earlier.parent / "fresh")


def test_an_interrupted_new_run_leaves_no_table_of_the_old_one(project: Path, weights: Path) -> None:
    run_denoise("particles.star", "out", options(weights))
    given, _ = stop_after(4)
    with pytest.raises(Aborted):
        run_denoise("particles.star", "out", options(weights, blend=0.5), given, earlier="replace")
    assert {path for path in files(project / "out") if path.endswith((".star", ".mrcs"))} <= {"B/x.mrcs"}


def test_a_disk_that_is_too_small_is_told_before_the_work(
    project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6, 4000))
    monkeypatch.setattr(Denoiser, "denoise", lambda *_, **__: pytest.fail("worked"))
    needed = 11 * 16 * 16 * 4 + (project / "particles.star").stat().st_size
    with pytest.raises(OutputError, match=f"{needed} bytes are needed, 4000 are free"):
        run_denoise("particles.star", "out", options(weights))


def test_a_write_that_fails_is_an_error_and_leaves_nothing_under_a_final_name(
    tmp_path: Path, weights: Path
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(40, 16, 16))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"x\.mrcs.* too large"):
            run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "out" / "x.mrcs").exists()
    summary = run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights), earlier="resume")
    run_denoise(tmp_path / "x.mrcs", tmp_path / "whole", options(weights))
    assert files(tmp_path / "out") == files(tmp_path / "whole")
    assert summary.n_images == 40


@pytest.mark.parametrize("option", ["keep_above_angstrom", "particle_diameter_angstrom"])
def test_lengths_in_angstrom_need_a_pixel_size(tmp_path: Path, weights: Path, option: str) -> None:
    write_stack(tmp_path / "x.mrcs", noise(2, 16, 16), pixel_size_angstrom=None)
    with pytest.raises(ConfigurationError, match="need a pixel size"):
        run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights, **{option: 10.0}))


@pytest.mark.parametrize(("limit", "is_refused"), [(1.0, True), (3.9, True), (4.1, False), (30.0, False)])
def test_a_limit_finer_than_two_pixels_keeps_nothing_and_is_refused(
    tmp_path: Path, weights: Path, limit: float, is_refused: bool
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(2, 16, 16), pixel_size_angstrom=2.0)
    chosen = options(weights, keep_above_angstrom=limit)
    if is_refused:
        with pytest.raises(ConfigurationError, match="two pixels are 4 Å"):
            run_denoise(tmp_path / "x.mrcs", tmp_path / "out", chosen)
        assert not (tmp_path / "out").exists()
    else:
        run_denoise(tmp_path / "x.mrcs", tmp_path / "out", chosen)


def test_a_limit_coarser_than_the_images_leaves_all_raw_and_is_refused(tmp_path: Path, weights: Path) -> None:
    write_stack(tmp_path / "x.mrcs", noise(2, 16, 16), pixel_size_angstrom=2.0)
    with pytest.raises(ConfigurationError, match="images 32 Å wide is coarser than 32 Å"):
        run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights, keep_above_angstrom=32.0))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_no_table_can_name_is_refused_before_the_work(tmp_path: Path, weights: Path) -> None:
    write_stack(tmp_path / "x.mrcs", noise(2, 16, 16))
    write_table(tmp_path / "p.star", ["1@x.mrcs", "2@x.mrcs"])
    with pytest.raises(OutputError, match=r"cannot stand in a STAR file.*Choose another directory"):
        run_denoise(tmp_path / "p.star", tmp_path / "a\nb", options(weights), root=tmp_path)
    assert not list(tmp_path.glob("a*b/*"))


def test_a_circle_that_fills_the_box_is_refused(tmp_path: Path, weights: Path) -> None:
    write_stack(tmp_path / "x.mrcs", noise(2, 16, 16))
    with pytest.raises(ConfigurationError, match=r"a particle diameter of 90 Å: .* 0\.75 of the box: 24 Å"):
        run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights, particle_diameter_angstrom=90.0))


def test_lengths_are_turned_into_pixels(tmp_path: Path, weights: Path) -> None:
    raw = write_stack(tmp_path / "x.mrcs", noise(4, 16, 16))  # 2 Å per pixel
    given = options(weights, keep_above_angstrom=8.0, particle_diameter_angstrom=20.0, blend=0.1)
    run_denoise(tmp_path / "x.mrcs", tmp_path / "out", given)
    expected = Denoiser(load_model(weights).module)(raw, radius_px=5.0, keep_above_px=4.0, blend=0.1)
    # workers compute on one thread: the order of sums, so the last bit, may differ
    np.testing.assert_allclose(read_stack(tmp_path / "out" / "x.mrcs"), expected, rtol=1e-6)


def test_the_number_of_threads_is_given_back(tmp_path: Path, weights: Path) -> None:
    import torch

    write_stack(tmp_path / "x.mrcs", noise(2, 16, 16))
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        run_denoise(tmp_path / "x.mrcs", tmp_path / "out", options(weights))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def table_of(names: Sequence[str], images: int = 4) -> None:
    """Write `particles.star` of the first images of stacks."""
    write_table(Path("particles.star"), [f"{i:06d}@{name}" for name in names for i in range(1, images + 1)])


@pytest.mark.parametrize("earlier", ["resume", "anew"])
@pytest.mark.parametrize("complete", [True, False])
def test_a_table_that_has_grown_costs_only_what_is_new(
    project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, earlier: Earlier, complete: bool
) -> None:
    table_of(["A/x.mrcs", "B/x.mrcs"])
    given, _ = stop_after(8 if complete else 4)
    context = JobContext() if complete else given
    with contextlib.nullcontext() if complete else pytest.raises(Aborted):
        run_denoise("particles.star", "out", options(weights), context)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.mrcs")}
    assert before
    table_of(["A/x.mrcs", "B/x.mrcs", "B/y.mrcs"])
    denoise, sizes = Denoiser.denoise, list[int]()

    def counted(self: Denoiser, images: Any, **given: Any) -> Any:
        sizes.append(len(images))
        return denoise(self, images, **given)

    monkeypatch.setattr(Denoiser, "denoise", counted)
    summary = run_denoise("particles.star", "out", options(weights), earlier=earlier)
    assert sum(sizes) == summary.n_images - summary.n_resumed == (4 if complete else 8)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run_denoise("particles.star", "whole", options(weights))
    whole = files(project / "whole")
    whole["particles.star"] = whole["particles.star"].replace(b"whole/", b"out/")
    assert files(project / "out") == whole


def test_a_stack_whose_images_in_the_table_are_others_now_is_made_again(project: Path, weights: Path) -> None:
    table_of(["A/x.mrcs", "B/x.mrcs"])
    run_denoise("particles.star", "out", options(weights))
    table_of(["A/x.mrcs", "B/x.mrcs"], images=5)
    assert run_denoise("particles.star", "out", options(weights), earlier="resume").n_resumed == 0
    assert len(read_stack(Path("out/A/x.mrcs"))) == 5


def test_a_complete_run_is_left_as_it_is(project: Path, weights: Path) -> None:
    lines: list[str] = []
    first = run_denoise("particles.star", "out", options(weights))
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    again = run_denoise(
        "particles.star", "out", options(weights), JobContext(log=lines.append), earlier="resume"
    )
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before
    assert again.was_complete
    assert (again.n_images, again.n_resumed, again.stacks) == (11, 11, first.stacks)
    assert (again.precision, again.batch_sizes) == (first.precision, first.batch_sizes)
    assert any("nothing is left to do" in line for line in lines)


def test_the_table_of_a_run_whose_folder_was_moved_names_its_stacks_again(
    project: Path, weights: Path
) -> None:
    run_denoise("particles.star", "out", options(weights))
    before = images_of(Path("out/particles.star"), project)
    Path("out").rename("moved")
    again = run_denoise("particles.star", "moved", options(weights), earlier="resume")
    assert again.n_resumed == again.n_images
    np.testing.assert_array_equal(images_of(Path("moved/particles.star"), project), before)
    assert run_denoise("particles.star", "moved", options(weights), earlier="resume").was_complete


@pytest.mark.parametrize("damage", ["cut", "gone"])
@pytest.mark.parametrize("finished", [True, False])
def test_an_own_stack_that_was_damaged_is_made_again(
    project: Path, weights: Path, damage: str, finished: bool
) -> None:
    run_denoise("particles.star", "whole", options(weights))
    if finished:
        run_denoise("particles.star", "out", options(weights))
    else:
        killed("particles.star", project / "out", 8, weights)
    (path, *_) = sorted(Path("out").rglob("*.mrcs" if finished else "*.mrcs.part"))
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size - 700)
    run_denoise("particles.star", "out", options(weights), earlier="resume")
    expected = files(project / "whole")
    expected["particles.star"] = expected["particles.star"].replace(b"whole/", b"out/")
    assert files(project / "out") == expected


def rewritten(how: str) -> None:
    """Do to the input what another job or a script may do during hours of denoising."""
    table = Path("particles.star")
    lines = table.read_text().splitlines(keepends=True)
    rows = [number for number, line in enumerate(lines) if "@" in line]
    if how == "re-sorted":
        for number, line in zip(rows, [lines[number] for number in reversed(rows)], strict=True):
            lines[number] = line
    elif how == "grown":
        lines.insert(rows[-1], lines[rows[-1]])
    elif how == "stack replaced":
        write_stack(Path("A/x.mrcs"), noise(9, 16, 16, seed=7))
        os.utime("A/x.mrcs", ns=(0, 0))
    table.write_text("".join(lines))


@pytest.mark.parametrize("how", ["re-sorted", "grown", "stack replaced"])
def test_an_input_that_changes_while_it_is_in_use_is_refused_and_then_done(
    project: Path, weights: Path, how: str
) -> None:
    def change(done: int, total: int) -> None:
        if done == total:
            rewritten(how)

    name = r"A/x\.mrcs" if how == "stack replaced" else r"particles\.star"
    kind = InputError if how == "stack replaced" else TableChanged
    with pytest.raises(kind, match=rf"{name}: the file was changed while it was in use.*--resume"):
        run_denoise("particles.star", "out", options(weights), JobContext(change))
    assert not Path("out/particles.star").exists()
    summary = run_denoise("particles.star", "out", options(weights), earlier="resume")
    assert summary.table is not None
    raw = images_of(Path("particles.star"), project)
    np.testing.assert_allclose(
        images_of(summary.table, project), Denoiser(load_model(weights).module)(raw), rtol=0, atol=1e-3
    )


def test_a_row_that_names_another_image_than_it_did_is_never_renamed(project: Path) -> None:
    particles = ParticleSet.read("particles.star")
    rewritten("re-sorted")
    with pytest.raises(StarError, match="the file was changed while it was in use"):
        particles.write("new.star", (f"{row:06d}@new.mrcs" for row in range(1, 14)))
    assert not Path("new.star").exists()


def test_a_second_resume_leaves_a_running_one_alone(project: Path, weights: Path) -> None:
    def resume_too(done: int, total: int) -> None:
        with pytest.raises(OutputError, match="another run is writing to this directory"):
            run_denoise("particles.star", "out", options(weights), earlier="resume")

    run_denoise("particles.star", "out", options(weights), JobContext(resume_too))
    run_denoise("particles.star", "whole", options(weights))
    assert files(project / "out").keys() == files(project / "whole").keys()


def test_the_journal_of_many_bad_images_does_not_grow_with_their_square(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CHECKPOINT_SECONDS", 0.0)

    def journal_bytes(n: int) -> int:
        write_stack(tmp_path / f"{n}.mrcs", np.zeros((n, 16, 16), dtype=np.float32))
        run_denoise(tmp_path / f"{n}.mrcs", tmp_path / str(n), options(weights, skip_bad=True))
        return (tmp_path / str(n) / JOURNAL_NAME).stat().st_size

    assert journal_bytes(80) < 2.1 * journal_bytes(40)
