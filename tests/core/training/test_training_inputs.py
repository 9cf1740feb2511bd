"""A training belongs to all that it reads: images, structures and picks as well as the tables."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_frame_halves
import test_pairs
import test_segmentation_training

from cryohush.core.config.segmentation import SegmentationConfig
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import Aborted, InputError, OutputError
from cryohush.core.io.journal import RECORD_NAME
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.train import train
from cryohush.core.models.weights import WEIGHTS_NAME, load_model
from cryohush.core.training.run import inputs_of

Config = TrainingConfig | SegmentationConfig


def own(tiny: dict[str, Any], pairs: dict[str, Any]) -> TrainingConfig:
    options = {**tiny["optimisation"], "steps": 2, "batch_size": 4}
    changes = {"data": None, "pairs": pairs, "optimisation": options, "validate_every": 1}
    return TrainingConfig.model_validate({**tiny, **changes})


def images() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(40, 32, 32)).astype(np.float32)


def stored_pairs(tiny: dict[str, Any], folder: Path) -> Config:
    noisy, target = (test_pairs.write_set(folder, name, images()) for name in ("noisy", "target"))
    return own(tiny, {"noisy": noisy, "target": target})


def frame_halves(tiny: dict[str, Any], folder: Path) -> Config:
    return own(tiny, {"noisy": test_frame_halves.write_session(folder), "box_px": 32})


def simulated(tiny: dict[str, Any], folder: Path) -> Config:
    return TrainingConfig.model_validate(tiny)


def segmentation(tiny: dict[str, Any], folder: Path) -> Config:
    test_segmentation_training.write_set(folder / "own")
    return test_segmentation_training.config(folder / "own")


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (stored_pairs, ["noisy.star", "noisy.mrcs", "target.star", "target.mrcs"]),
        (frame_halves, ["micrographs.star", "m0_EVN.mrc", "m2_ODD.mrc"]),
        (simulated, ["one.pdb", "kept.pdb", "ctf.npy"]),
        (segmentation, ["micrographs.star", "m1.mrc", "m1_manualpick.star"]),
    ],
)
def test_it_reads_what_its_tables_and_folders_hold(
    make: Callable[[dict[str, Any], Path], Config], names: list[str], tiny: dict[str, Any], tmp_path: Path
) -> None:
    assert set(names) <= {path.name for path in inputs_of(make(tiny, tmp_path))}


def test_it_does_not_go_on_with_other_images(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = own(tiny, {"noisy": test_pairs.write_set(tmp_path, "noisy", images())})
    steps: list[int] = []
    stop = JobContext(lambda done, total: steps.append(done), lambda: steps[-1:] == [1])
    with pytest.raises(Aborted):
        train(config, tmp_path / "run", stop)
    os.utime(tmp_path / "noisy.mrcs", ns=(0, 0))  # cut out again
    with pytest.raises(OutputError, match=r"other settings \(inputs\)"):
        train(config, tmp_path / "run", earlier="resume")
    train(config, tmp_path / "run", earlier="anew")
    os.utime(tmp_path / "noisy.mrcs", ns=(1, 1))
    with pytest.raises(OutputError, match=r"other settings \(inputs\)"):
        train(config, tmp_path / "run", earlier="resume")


def test_images_that_change_while_it_goes_on_leave_no_weights(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = own(tiny, {"noisy": test_pairs.write_set(tmp_path, "noisy", images())})

    def cut_out_again(done: int, total: int) -> None:
        if done == 1:
            os.utime(tmp_path / "noisy.mrcs", ns=(0, 0))

    with pytest.raises(
        InputError, match=r"noisy\.mrcs: the file was changed while it was in use, so weights"
    ):
        train(config, tmp_path / "run", JobContext(cut_out_again))
    assert not (tmp_path / "run" / WEIGHTS_NAME).exists()
    assert not (tmp_path / "run" / RECORD_NAME).exists()

    def grow(done: int, total: int) -> None:
        with (tmp_path / "noisy.star").open("a") as file:
            file.write("\n")

    # a table that grows was read before
    assert train(config, tmp_path / "run", JobContext(grow), earlier="replace").exists()


def test_a_table_that_is_written_again_is_the_same(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Hosts do so with that of a job which goes on."""
    config = own(tiny, {"noisy": test_pairs.write_set(tmp_path, "noisy", images())})
    weights = train(config, tmp_path / "run")
    os.utime(tmp_path / "noisy.star", ns=(0, 0))
    lines: list[str] = []
    assert train(config, tmp_path / "run", JobContext(log=lines.append), earlier="resume") == weights
    assert "nothing is left to do" in lines[0]
    (tmp_path / "noisy.star").write_text((tmp_path / "noisy.star").read_text() + "# another\n")
    with pytest.raises(OutputError, match=r"other settings \(inputs\)"):
        train(config, tmp_path / "run", earlier="resume")


def test_log_and_record_name_what_was_trained(tiny: dict[str, Any], tmp_path: Path) -> None:
    first = train(TrainingConfig.model_validate(tiny), tmp_path / "first")
    values = {**tiny, "initial_weights": first}
    del values["network"]
    lines: list[str] = []
    weights = train(TrainingConfig.model_validate(values), tmp_path / "second", JobContext(log=lines.append))
    assert lines[-1] == f"wrote {weights}"
    record = json.loads((tmp_path / "second" / RECORD_NAME).read_text())
    assert record["configuration"]["network"] == load_model(first).card["model"]
