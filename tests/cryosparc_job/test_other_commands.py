"""Extraction of noise, evaluation and training by the real client 5.0: files and pictures, no output."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryosparc_project import (
    DISCS,
    Run,
    add_half_exposures,
    add_micrographs,
    add_posed_particles,
    once_at_work,
    particle_table,
    scratch_of,
    training_file,
)
from double_store import Store
from double_v5 import Double5

from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.models.weights import load_model
from cryohush.cryosparc_job.cli import main

Does = Callable[[str], None]


@pytest.fixture
def command(double: Double5, signed_in: Path) -> Run:
    def run(name: str, *words: str, workspace: str | None = "W1") -> int:
        given = [name, "--url", double.url, "--project", "P3", *words]
        return main([*given, *(["--workspace", workspace] if workspace else [])])

    return run


def similarity(weights: Path) -> list[str]:
    """Words of an extraction that takes any window of white noise."""
    words = ["--method", "similarity", "--similarity-threshold", "-1", "--model", str(weights)]
    words += ["--min-noise-probability", "0"]
    return [*words, "--window-px", "64", "--device", "cpu", "--threads", "1", "--precision", "fp32"]


def test_noise_is_cut_out_of_micrographs(command: Run, store: Store, weights: Path) -> None:
    add_micrographs(store)
    assert command("extract-noise", "--micrographs", "J43:exposures", *similarity(weights)) == 0
    (job,) = store.external
    assert job.status == "completed"
    assert job.inputs["exposures"].connections == [("J43", "exposures")]
    assert not job.outputs
    folder = store.directory / "J44/noise"
    with StackReader(folder / "noise.mrcs") as reader:
        blocks = reader.read(range(reader.n_images))
    assert blocks.shape[1:] == (64, 64)
    assert any(f"{len(blocks)} blocks of 64 px" in text for text in job.texts())
    assert any("no output: cryoSPARC has no type for noise" in text for text in job.texts())
    # grey values are the micrographs' own
    table = (folder / "noise.star").read_text().splitlines()
    first = next(line.split() for line in table if line.startswith("000001@J44/noise/noise.mrcs"))
    x, y = int(float(first[2])) - 32, int(float(first[3])) - 32
    with StackReader(store.directory / first[1]) as reader:
        np.testing.assert_array_equal(blocks[0], reader.read([0])[0, y : y + 64, x : x + 64])
    pictures = [event["text"] for event in job.events if event["images"]]
    assert len(pictures) == 2, "an overlay for each micrograph"
    assert all("green frames are blocks that were taken" in text for text in pictures)
    assert job.tile is not None


def blurred(images: np.ndarray) -> np.ndarray:
    return np.real(np.fft.ifft2(np.fft.fft2(images) * np.exp(-200 * _squared(images.shape[-1])))).astype("f4")


def _squared(side: int) -> np.ndarray:
    frequency = np.fft.fftfreq(side)
    return frequency[:, None] ** 2 + frequency**2


def add_images(store: Store, name: str, images: np.ndarray, table: np.ndarray) -> None:
    """Add a job with particles whose images are `images`, row by row, protein dark."""
    table = table.copy()
    job = store.add_source("particle", table)
    table["blob/path"], table["blob/idx"] = f"{job.uid}/{name}.mrc".encode(), np.arange(len(table))
    store._write(job, "particles", table, passed=False)
    with StackWriter(
        store.directory / job.uid / f"{name}.mrc", images.shape, pixel_size_angstrom=1.5, label="test"
    ) as writer:
        writer.write(-images)


def test_particles_are_compared_by_their_uids(command: Run, store: Store) -> None:
    table, rng = particle_table(), np.random.default_rng(1)
    clean = blurred(rng.normal(size=(24, 128, 128)))
    denoised = clean + 0.02 * rng.normal(size=clean.shape).astype("f4")
    # the clean ones in another order, and four of them are missing
    order = rng.permutation(24)[:20]
    add_images(store, "denoised", denoised, table)
    add_images(store, "clean", clean[order], table[order])
    words = ("--particles", "J43:particles", "--reference", "J44:particles", "--raw", "J42:particles")
    assert command("evaluate", *words, "--metrics", "correlation", "mse", "--threads", "1") == 0
    (job,) = store.external
    assert job.status == "completed"
    assert {name: entry.connections for name, entry in job.inputs.items()} == {
        "particles": [("J43", "particles")],
        "reference": [("J44", "particles")],
        "raw": [("J42", "particles")],
    }
    folder = store.directory / "J45/evaluation"
    found = json.loads((folder / "evaluation.json").read_text())["against_clean"]["denoised"]
    expected = [np.corrcoef(clean[row].ravel(), denoised[row].ravel())[0, 1] for row in order]
    assert found["correlation"]["images"] == 20
    # float32 sums of 16384 pixels
    assert found["correlation"]["mean"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert (folder / "evaluation.html").exists()
    texts = job.texts()
    assert "4 of 24 particles are left out: the other inputs lack them." in texts
    (section,) = [text for text in texts if text.startswith("Against the clean images\n")]
    assert re.search(rf"\ncorrelation +{np.mean(expected):.5f} ± ", section), section
    assert any(event["images"] and "Ring correlation" in event["text"] for event in job.events)


def test_a_model_is_trained_and_denoises_by_the_name_of_its_job(
    command: Run, store: Store, tmp_path: Path, child_does: Does
) -> None:
    add_posed_particles(store)
    words = ("--particles", "J43:particles", "--volume", "J44:volume", "--mask", "J45:mask")
    config = ("--config", str(training_file(tmp_path)))
    assert command("train", *words, *config, "--half-set", "B", "--set", "optimisation.steps=4") == 0
    (job,) = store.external
    assert job.status == "completed"
    assert job.inputs["volume"].connections == [("J44", "volume")]
    weights = store.directory / "J46/training/weights.safetensors"
    card = load_model(weights).card["training"]
    assert card["optimisation"]["steps"] == 4
    assert (card["reference"]["map"], card["reference"]["mask"]) == ("map_half_B.mrc", "mask.mrc")
    assert card["reference"]["half_set"] == 2
    assert any(text.startswith("step 4/4 ") for text in job.texts())
    assert sum(event["images"] for event in job.events) == 2
    child_does("copy")
    assert command("denoise", "--particles", "J42:particles", "--model", "J46") == 0
    assert f"model: {weights}" in store.jobs["J47"].texts()
    # nothing connects the two jobs: what says it is the card
    assert "\nModel: J46" in store.jobs["J47"].description
    assert store.jobs["J47"].title.endswith("(J46)")
    # another training begins with them
    child_does("report")
    assert command("train", *words, *config, "--set", "initial_weights=J46") == 0
    task = json.loads((store.directory / "J48/training/task.json").read_text())
    assert task["options"]["initial_weights"] == str(weights)
    assert "\nModel to begin with: J46" in store.jobs["J48"].description


def test_a_model_learns_from_both_sums_of_the_frames_where_the_particles_are(
    command: Run, store: Store, tmp_path: Path
) -> None:
    add_half_exposures(store)
    words = ["--micrographs", "J43:micrographs", "--particles", "J44", "--box-px", "32"]
    words += ["--config", str(training_file(tmp_path)), "--set", "pairs.validation_share=0.25"]
    assert command("train", *words) == 0
    (job,) = store.external
    assert job.status == "completed", job.texts()
    assert job.title == "Denoiser trained on half exposures of J43:micrographs"
    assert {name: entry.connections for name, entry in job.inputs.items()} == {
        "exposures": [("J43", "micrographs")],
        "particles": [("J44", "particles")],
    }
    folder = store.directory / job.uid / "training"
    assert load_model(folder).card["training"]["pairs"]["target_is_clean"] is False
    with StackReader(folder / "frame_halves/even.mrcs") as even:
        boxes = even.read(range(even.n_images))
    row, column = DISCS[0]
    with StackReader(store.directory / "J43/motioncorrected/m0_non_dw_AB.mrc") as both:
        first = both.read([0])[0]
    # protein is white in boxes
    np.testing.assert_array_equal(boxes[0], -first[row - 16 : row + 16, column - 16 : column + 16])
    assert len(boxes) == 4 * len(DISCS)
    # in a clone the connected micrographs say which training it is
    clone = store.clone(job.uid)
    assert command("train", "--job", clone.uid, workspace=None) == 0
    assert clone.status == "completed", clone.texts()


@pytest.mark.parametrize("by", ["a map", "both sums of frames"])
def test_a_training_is_gone_on_with_from_anywhere(
    command: Run, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """Its tables are written anew for that."""
    monkeypatch.chdir(tmp_path)
    if by == "a map":
        add_posed_particles(store)
        words = ["--particles", "J43:particles", "--volume", "J44:volume"]
    else:
        add_half_exposures(store)
        words = ["--micrographs", "J43:micrographs", "--particles", "J44", "--box-px", "32"]
        words += ["--set", "pairs.validation_share=0.25"]
    assert command("train", *words, "--config", training_file(tmp_path).name) == 0
    (job,) = store.external
    monkeypatch.chdir(store.directory)
    weights = (store.directory / job.uid / "training/weights.safetensors").read_bytes()
    job.status = "failed"
    assert command("train", "--resume", job.uid, workspace=None) == 0
    assert "an earlier run is there and complete: nothing is left to do" in job.texts()
    assert (store.directory / job.uid / "training/weights.safetensors").read_bytes() == weights


def test_without_particles_boxes_lie_anywhere_and_files_may_travel(
    command: Run, store: Store, double: Double5, tmp_path: Path
) -> None:
    add_half_exposures(store)
    words = ["--micrographs", "J43:micrographs", "--box-px", "32", "--config", str(training_file(tmp_path))]
    words += ["--set", "pairs.validation_share=0.25", "--scratch", str(tmp_path / "scratch")]
    assert command("train", *words) == 0
    (job,) = store.external
    assert job.status == "completed", job.texts()
    assert double.server.operations.count("projects.download_file") == 4, "both sums of each, nothing else"
    assert (store.directory / job.uid / "training/weights.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--micrographs J43:exposures", "no slot micrograph_blob_non_dw_AB.*Output denoiser training data"),
        ("--micrographs J44:micrographs --volume J9:map", "--volume makes no sense with --micrographs"),
        ("--micrographs J44:micrographs --half-set A", "--half-set makes no sense with --micrographs"),
        (
            "--micrographs J44:micrographs --particles J42",
            "they have no location/micrograph_uid, location/center_y_frac",
        ),
        ("--micrographs J44:micrographs --particles J46", "no particle lies on one of the micrographs"),
        ("--micrographs J44:micrographs --box-px 8", "box_px"),
        ("--micrographs J44:micrographs", "expected both sums of frames as the two images .*, found 1"),
    ],
)
def test_micrographs_without_two_sums_are_refused(
    command: Run, store: Store, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    add_micrographs(store)
    add_half_exposures(store, n_sums=1)
    elsewhere = store.load("J45", "particles")
    elsewhere["location/micrograph_uid"] += 1
    store.add_source("particle", elsewhere)
    assert command("train", *words.split()) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert not store.external


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("path", b"", r"row 3 of the micrographs has no sums of frames .*Leave it out"),
        ("shape", (99, 98), r"m2_non_dw_AB\.mrc: expected 98 x 99 px by .*/shape, found 150 x 120 px"),
    ],
)
def test_sums_that_a_row_lacks_or_has_otherwise_are_refused(
    command: Run, store: Store, capsys: pytest.CaptureFixture[str], field: str, value: Any, message: str
) -> None:
    add_half_exposures(store)
    table = store.load("J43", "micrographs")
    table[f"micrograph_blob_non_dw_AB/{field}"][2] = value
    store._write(store.jobs["J43"], "micrographs", table, passed=False)
    assert command("train", "--micrographs", "J43:micrographs") == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not store.external


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"", "row 2 of the exposures names no micrograph"),
        (
            b"J43/gone.mrc",
            "ERROR: J43:exposures: the micrograph J43/gone.mrc does not exist (1 of 2 are missing)",
        ),
    ],
)
def test_a_micrograph_that_is_not_there_is_named_with_its_output(
    command: Run, store: Store, capsys: pytest.CaptureFixture[str], path: bytes, message: str
) -> None:
    add_micrographs(store)
    table = store.load("J43", "exposures")
    table["micrograph_blob/path"][1] = path
    store._write(store.jobs["J43"], "exposures", table, passed=False)
    assert command("extract-noise", "--micrographs", "J43:exposures") == 1
    assert message in capsys.readouterr().err
    assert not store.external


def test_only_a_finished_training_has_a_model(
    command: Run, store: Store, capsys: pytest.CaptureFixture[str], copying: None
) -> None:
    store.create("snowflake")
    assert command("denoise", "--particles", "J42:particles", "--model", "J43") == 1
    assert "J43 is building and has no training/weights.safetensors" in capsys.readouterr().err
    assert len(store.external) == 1


INPUTS = {
    "extract-noise": ["--micrographs", "J43:exposures"],
    "evaluate": ["--particles", "J42:particles", "--twin", "J45:particles"],
    "train": ["--particles", "J44:particles", "--volume", "J45:volume"],
}


def prepare(store: Store, name: str, folder: Path) -> list[str]:
    """Add what a command needs, and return its words."""
    add_micrographs(store)
    if name == "train":
        add_posed_particles(store)
        return [*INPUTS[name], "--config", str(training_file(folder))]
    store.add_source("particle", particle_table())
    store.add_source("particle", particle_table())
    return INPUTS[name]


@pytest.mark.parametrize("name", INPUTS)
def test_ctrl_c_fails_the_job_which_can_be_gone_on_with(
    command: Run, store: Store, child_does: Does, tmp_path: Path, name: str
) -> None:
    words = prepare(store, name, tmp_path)
    child_does("wait")
    thread = once_at_work(store, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert command(name, *words) == 2
    thread.join()
    (job,) = store.external
    assert job.status == "failed"
    assert f"stopped by SIGINT. Go on with --resume {job.uid}" in job.texts("error")[-1]
    assert list(store.directory.glob("*/*/stopped"))
    # in the same job, with the inputs that it has
    child_does("report")
    store.restart_needs_clear = True
    assert command(name, *words[4:], "--resume", job.uid, workspace=None) == 0
    assert job.status == "completed"
    assert "a line" in job.texts()
    assert list(store.directory.glob("*/*/ready")), "what was made is still there"


def test_files_travel_through_the_server(
    command: Run, store: Store, double: Double5, child_does: Does, tmp_path: Path
) -> None:
    words = prepare(store, "train", tmp_path)
    child_does("report")
    assert command("train", *words, "--scratch", str(tmp_path / "scratch")) == 0
    (job,) = store.external
    assert not list(scratch_of(tmp_path / "scratch").rglob("*.mrc")), "what was fetched is gone"
    assert double.server.operations.count("projects.download_file") == 2
    assert (store.directory / job.uid / "training/shown.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("extract-noise", "--micrographs is missing"),
        ("extract-noise --micrographs J42:particles", "is of type particle, expected exposure"),
        ("extract-noise --micrographs J43:exposures --window-px 2", "--window-px: expected"),
        ("extract-noise --micrographs J43:exposures --resume J42", "not an external job"),
        ("evaluate --particles J42:particles", "denoised needs something to be compared with"),
        ("evaluate --particles J42:particles --twin J44:particles", "no particle is in all of"),
        ("evaluate --particles J42:particles --twin J43:exposures", "is of type exposure"),
        ("evaluate --particles J42:particles --set x=1", "give --config"),
        ("train --particles J44:particles", "--volume is missing"),
        (
            "train --particles J42:particles --volume J45:volume",
            "no slot alignments3D, only .* Particles get poses",
        ),
        ("train --particles J44:particles --volume J46:mask", "is of type mask, expected volume"),
        (
            "train --particles J44:particles --volume J45:volume --set optimisation.devices=2",
            "trains on one device",
        ),
        ("train --particles J44:particles --volume J45:volume --config refrence", "unknown preset"),
    ],
)
def test_what_is_wrong_is_said_before_a_job_is_made(
    command: Run, store: Store, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    add_micrographs(store)
    add_posed_particles(store)
    assert command(*words.split()) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert not store.external
