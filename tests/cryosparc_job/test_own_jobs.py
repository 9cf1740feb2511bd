"""What is gone on in is cryohush's own, alone, and with the options that it was made with."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryosparc_project import (
    Run,
    add_posed_particles,
    particle_table,
    process_at_work,
    scratch_of,
    training_file,
    write_stacks,
)
from double_server import Fault
from double_store import Store
from double_v5 import Double5

from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.cryosparc_job import guard, place
from cryohush.cryosparc_job.cli import main
from cryohush.cryosparc_job.record import Record, new_mark

Does = Callable[[str], None]


def resume(double: Double5, *words: str, command: str = "denoise", way: str = "--resume") -> int:
    return main([command, "--url", double.url, "--project", "P3", way, "J43", *words])


@pytest.mark.parametrize("status", ["failed", "killed", "running", "building"])
@pytest.mark.parametrize(
    "description",
    [
        "",
        "cryohush",
        "Particles for cryohush 0.1.0",
        "    cryosparc_cryohush denoise --project P3",
        pytest.param(new_mark(), id="a mark"),  # another one in each process
    ],
)
def test_a_foreign_job_is_left_alone(
    double: Double5,
    store: Store,
    signed_in: Path,
    copying: None,
    capfd: pytest.CaptureFixture[str],
    status: str,
    description: str,
) -> None:
    job = store.create("snowflake", "cryoDRGN particle filter", description)
    store.add_input("J43", "particles", "particle", ["blob"])
    store.connect("J43", "particles", "J42", "particles")
    precious = store.directory / "J43/precious/latent.pkl"
    precious.parent.mkdir()
    precious.touch()
    job.status = status
    assert resume(double) == 1
    assert "none of cryohush's jobs" in capfd.readouterr().err
    assert precious.exists()
    assert (job.status, job.texts(), job.outputs) == (status, [], {})


def test_a_job_of_another_command_is_left_alone(
    double: Double5,
    store: Store,
    signed_in: Path,
    child_does: Does,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    add_posed_particles(store)
    child_does("error")
    words = ["train", "--url", double.url, "--project", "P3", "--workspace", "W1"]
    words += ["--particles", "J43:particles", "--volume", "J44:volume"]
    assert main([*words, "--config", str(training_file(tmp_path))]) == 1
    (job,) = store.external
    weights = store.directory / job.uid / "training/weights.safetensors"
    weights.touch()
    store.restart_needs_clear = True
    assert main(["denoise", "--url", double.url, "--project", "P3", "--resume", job.uid]) == 1
    error = capfd.readouterr().err
    assert f"{job.uid} is a job of `train`, not of `denoise`" in error
    assert f"cryosparc_cryohush train --resume {job.uid}" in error
    assert weights.exists()
    assert job.status == "failed"


def test_the_printed_hint_goes_on_with_the_same_options(
    denoise: Run, double: Double5, store: Store, child_does: Does, capfd: pytest.CaptureFixture[str]
) -> None:
    child_does("error")
    assert denoise("--blend", "0.5", "--output-dtype", "float16", "--skip-bad") == 1
    assert "Then go on with --resume J43" in capfd.readouterr().err
    child_does("options")
    assert resume(double) == 1
    options = json.loads((store.directory / "J43/denoised/task.json").read_text())["options"]
    assert (options["blend"], options["output_dtype"], options["skip_bad"]) == (0.5, "float16", True)
    assert options["model"].endswith("small.safetensors")
    # what does not change the result may change, what does not without saying so
    assert resume(double, "--device", "cpu", "--blend", "0.5") == 1
    assert "made with other options" not in capfd.readouterr().err
    assert resume(double, "--blend", "0.25") == 1
    assert "J43 was made with other options: blend was 0.5, now 0.25" in capfd.readouterr().err
    assert json.loads((store.directory / "J43/denoised/task.json").read_text())["anew"] is False
    assert resume(double, "--blend", "0.25", "--force") == 1
    task = json.loads((store.directory / "J43/denoised/task.json").read_text())
    assert (task["options"]["blend"], task["anew"]) == (0.25, True)
    # which are its options from now on
    capfd.readouterr()
    assert resume(double) == 1
    options = json.loads((store.directory / "J43/denoised/task.json").read_text())["options"]
    assert (options["blend"], options["output_dtype"]) == (0.25, "float16")


def test_a_second_driver_leaves_the_first_alone(
    denoise: Run, double: Double5, store: Store, child_does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRYOHUSH_FAKE_WORK", "copy")
    monkeypatch.setattr(guard, "WATCH_SECONDS", 600.0)  # the first one never looks at it
    child_does("wait")
    ended: list[subprocess.CompletedProcess[str]] = []

    def second() -> None:
        child = process_at_work(store)
        store.restart_needs_clear = True
        driver = [sys.executable, str(Path(__file__).with_name("fake_driver.py")), "denoise"]
        driver += ["--url", double.url, "--project", "P3", "--resume", "J43"]
        for status in ("running", "failed"):  # as it is, and as somebody may have marked it
            store.jobs["J43"].status = status
            ended.append(subprocess.run(driver, capture_output=True, text=True, check=False))
        store.jobs["J43"].status = "running"
        os.kill(child, signal.SIGTERM)

    thread = threading.Thread(target=second)
    thread.start()
    assert denoise() == 1  # the work was stopped
    thread.join()
    for process in ended:
        assert process.returncode == 1
        assert f"process {os.getpid()} on" in process.stderr
    assert (store.directory / "J43/denoised/ready").exists(), "nothing was cleared"
    assert "stopped" in store.jobs["J43"].texts("error")[-1]


def test_a_job_that_was_built_in_cryosparc(
    denoise: Run,
    double: Double5,
    store: Store,
    child_does: Does,
    capfd: pytest.CaptureFixture[str],
) -> None:
    job = store.create("snowflake", "My card", "For the paper.")
    store.add_input("J43", "particles", "particle", ["blob"])
    store.connect("J43", "particles", "J42", "particles")
    child_does("error")
    assert denoise("--job", "J43", "--blend", "0.5", particles=None, workspace=None) == 1
    assert job.status == "failed"
    assert job.description.startswith("For the paper.")
    assert denoise("--job", "J43", particles=None, workspace=None) == 1
    assert "J43 is failed: --job takes a job that is being built" in capfd.readouterr().err
    child_does("copy")
    assert resume(double) == 0
    assert job.status == "completed"
    assert "--blend 0.5" in str(Record.read(job.description))


def test_several_outputs_get_a_job_each(denoise: Run, store: Store, copying: None) -> None:
    store.add_source("particle", particle_table())
    assert denoise("--particles", "J42", "J43:particles", particles=None) == 0
    assert [job.inputs["particles"].connections for job in store.external] == [
        [("J42", "particles")],
        [("J43", "particles")],
    ]
    assert "J42" not in str(Record.read(store.external[1].description))
    assert denoise("--title", "Mine") == 0
    assert store.external[-1].title == "Mine"


def test_stacks_in_scratch_are_those_of_the_job_as_it_is_now(
    denoise: Run, store: Store, double: Double5, child_does: Does, tmp_path: Path
) -> None:
    words = ("--scratch", str(tmp_path / "scratch"))
    child_does("error")
    assert denoise(*words) == 1
    assert len(list(scratch_of(tmp_path / "scratch").rglob("exposure_*.mrc"))) == 2
    asked = double.server.operations.count("projects.download_file")
    # the same run goes on with them
    assert resume(double, *words) == 1
    assert double.server.operations.count("projects.download_file") == asked
    # the extraction is run again: the same names, other pixels
    for path in (store.directory / "J42/extract").iterdir():
        with StackReader(path) as reader:
            images = reader.read(range(reader.n_images)) + 100
        with StackWriter(path, images.shape, pixel_size_angstrom=1.5, label="") as writer:
            writer.write(images)
    store._complete(store.jobs["J42"])
    child_does("copy")
    assert denoise(*words) == 0
    made = store.load("J44", "particles")["blob/path"][0].decode()
    with StackReader(store.directory / made) as reader:
        assert reader.read([0]).mean() == pytest.approx(100, abs=1)
    assert not list(scratch_of(tmp_path / "scratch").rglob("exposure_*.mrc")), "nothing stays behind"


@pytest.mark.parametrize(("mode", "folder", "file"), [(0o2775, 0o775, 0o664), (0o2750, 0o750, 0o640)])
@pytest.mark.parametrize("work", ["copy", "error"])
def test_cryosparc_may_do_with_the_files_what_it_may_with_its_own(
    denoise: Run,
    store: Store,
    double: Double5,
    child_does: Does,
    mode: int,
    folder: int,
    file: int,
    work: str,
) -> None:
    umask = os.umask(0o077)
    try:
        child_does(work)
        # cryoSPARC makes the directory as its own user wants it
        double.server.faults = [Fault("jobs.get_directory", lambda: (store.directory / "J43").chmod(mode))]
        assert denoise() == (0 if work == "copy" else 1)
    finally:
        os.umask(umask)
    made = list((store.directory / "J43/denoised").rglob("*"))
    assert made
    for path in made:
        wanted = folder if path.is_dir() else file
        assert stat.S_IMODE(path.stat().st_mode) & 0o777 & wanted == wanted, path
    assert stat.S_IMODE((store.directory / "J43/denoised").stat().st_mode) & 0o777 & folder == folder


def test_files_that_cryosparc_cannot_delete_are_told(
    denoise: Run, store: Store, copying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # another user than this one cannot be had in a test
    monkeypatch.setattr(place, "_warning", lambda directory, folder: f"{folder}: cannot be deleted")
    assert denoise() == 0
    assert any("cannot be deleted" in text for text in store.external[0].texts("warning"))


def test_a_model_that_is_not_there_makes_no_card(
    denoise: Run, double: Double5, store: Store, signed_in: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["denoise", "--url", double.url, "--project", "P3", "--workspace", "W1", "--particles", "J42"]
    assert main([*words, "--model", "generl"]) == 1
    assert "unknown model 'generl'" in capfd.readouterr().err
    assert main([*words, "--device", "cuda:7"]) == 1
    assert "cuda" in capfd.readouterr().err
    assert not store.external


@pytest.mark.slow
def test_training_as_it_is_documented(double: Double5, store: Store, signed_in: Path) -> None:
    add_posed_particles(store)
    words = ["train", "--url", double.url, "--project", "P3", "--workspace", "W1"]
    words += ["--particles", "J43:particles", "--volume", "J44:volume", "--mask", "J45:mask"]
    short = ["optimisation.steps=1", "optimisation.batch_size=2", "validate_every=1", "validation_images=8"]
    assert main([*words, *(word for entry in short for word in ("--set", entry))]) == 0
    (job,) = store.external
    assert job.status == "completed"
    assert (store.directory / job.uid / "training/weights.safetensors").exists()


def test_training_begins_with_the_network_of_its_weights(
    double: Double5, store: Store, signed_in: Path, child_does: Does
) -> None:
    add_posed_particles(store)
    child_does("options")
    words = ["train", "--url", double.url, "--project", "P3", "--workspace", "W1"]
    assert main([*words, "--particles", "J43:particles", "--volume", "J44:volume"]) == 1
    (job,) = store.external
    options = json.loads((store.directory / job.uid / "training/task.json").read_text())["options"]
    assert options["initial_weights"] == "general"
    assert "network" not in options, "a network that nobody names is that of the weights"


def test_what_is_merged_is_restored_from_each_of_its_jobs(
    denoise: Run, double: Double5, store: Store, copying: None
) -> None:
    table = particle_table()
    table["uid"] = np.arange(len(table))
    table["blob/path"] = [name.replace(b"J42", b"J43") for name in table["blob/path"]]
    other = store.add_source("particle", table)
    write_stacks(store.directory, other.uid)
    assert denoise() == 0
    assert denoise(particles="J43:particles") == 0
    # denoised twice over
    assert denoise(particles="J45:particles") == 0
    merged = np.concatenate([store.load("J44", "particles")[:5], store.load("J46", "particles")[::-3]])
    selection = store.add_source("particle", merged, "particles_selected")
    words = ["restore", "--url", double.url, "--project", "P3", "--workspace", "W1"]
    assert main([*words, "--particles", selection.uid]) == 0
    job = store.external[-1]
    assert job.status == "completed"
    assert job.title == f"Raw particles of {selection.uid}:particles_selected"
    assert sorted(job.inputs["raw"].connections) == [("J42", "particles"), ("J43", "particles")]
    raw = {row["uid"]: row for row in np.concatenate([particle_table(), table])}
    result = store.load(job.uid, "particles")
    assert result["uid"].tolist() == merged["uid"].tolist()
    for row in result:
        for name in ("blob/path", "blob/idx", "blob/sign"):
            assert np.array_equal(row[name], raw[row["uid"]][name]), name
    # or from those that are named
    assert main([*words, "--particles", selection.uid, "--raw", "J43", "J42"]) == 0
    assert (
        store.load(store.external[-1].uid, "particles")["blob/path"].tolist() == result["blob/path"].tolist()
    )


def test_a_large_picture_is_sent_small(
    denoise: Run, store: Store, copying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io

    from PIL import Image

    large = io.BytesIO()
    Image.effect_noise((4000, 2000), 50).save(large, "png")
    monkeypatch.setattr(Path, "read_bytes", _with(Path.read_bytes, "montage.png", large.getvalue()))
    assert denoise() == 0
    sizes = [Image.open(io.BytesIO(data)).size for _, data in store.assets]
    assert sizes == [(1600, 800)] * 3


def _with(read: Callable[[Path], bytes], name: str, data: bytes) -> Callable[[Path], bytes]:
    return lambda path: data if path.name == name else read(path)
