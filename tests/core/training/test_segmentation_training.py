"""Training of the segmentation: it learns, from the user's picks and masks, and says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from micrograph_files import table_of
from particle_files import write_stack

from cryohush.core.config.load import validate
from cryohush.core.config.segmentation import SegmentationConfig
from cryohush.core.errors import Aborted, ConfigurationError, CryohushError, ModelError, MrcError
from cryohush.core.job_context import JobContext
from cryohush.core.models import MODELS, SEGMENTERS
from cryohush.core.models.weights import load_model
from cryohush.core.training.segmentation import train_segmentation
from cryohush.core.training.segmentation_data import LabelledMicrographs, own_micrographs

SIDE = 320
NETWORK = {"widths": [8, 8], "blocks": [1, 1], "unshuffle": 2}


def write_set(folder: Path, n: int = 4) -> None:
    """Micrographs with dark discs of 20 px for particles and one of 50 px for contamination."""
    (folder / "picks").mkdir(parents=True)
    rows, columns = np.ogrid[:SIDE, :SIDE]
    for number in range(n):
        random = np.random.default_rng(number)
        image = random.normal(0, 1, (SIDE, SIDE))
        centres = random.uniform(20, SIDE - 20, (12, 2))
        for y, x in centres:
            image -= 2.0 * ((rows - y) ** 2 + (columns - x) ** 2 <= 20**2)
        crystal = (rows - 200) ** 2 + (columns - 90) ** 2 <= 50**2
        image -= 8.0 * crystal
        write_stack(folder / f"m{number}.mrc", image[None].astype(np.float32), 1.5)
        write_stack(folder / f"masks/m{number}.mrc", crystal[None].astype(np.float32), 1.5)
        text = "".join(f"{x:.3f} {y:.3f}\n" for y, x in centres)
        table = f"\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{text}\n"
        (folder / f"picks/m{number}_manualpick.star").write_text(table)
    (folder / "micrographs.star").write_text(table_of([f"m{number}.mrc" for number in range(n)]))


def config(folder: Path, **changes: object) -> SegmentationConfig:
    own = {
        "micrographs": str(folder / "micrographs.star"),
        "picks": str(folder / "picks"),
        "masks": str(folder / "masks"),
        "particle_radius_angstrom": 30.0,
        "validation_share": 0.25,
    }
    optimisation = {
        "steps": 150, "batch_size": 4, "crop_px": 32, "warmup_steps": 10, "validate_every": 150,
        "ema_decay": 0.9, "learning_rate": 1e-2,
    }  # fmt: skip
    values = {"kind": "segmentation", "arguments": NETWORK, "own": own, "optimisation": optimisation}
    return validate({**values, **changes}, SegmentationConfig, "test")


def test_it_learns_to_tell_three_classes_apart_from_picks_and_masks(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = train_segmentation(config(tmp_path), tmp_path / "out")
    model = load_model(path, SEGMENTERS)
    # of a micrograph that was not trained on; at even chance they would be about 0.2 each
    measured = model.card["measured"]
    assert measured["iou_background"] > 0.6
    assert measured["iou_contamination"] > 0.6
    assert measured["iou_particle"] > 0.4
    with pytest.raises(ModelError, match="labels micrographs, where one that denoises"):
        load_model(path)
    refined = config(tmp_path, initial_weights=str(path), optimisation={"steps": 1, "crop_px": 32})
    again = train_segmentation(refined, tmp_path / "again")
    # one step with the rate of the warm-up changes next to nothing
    assert load_model(again, SEGMENTERS).card["measured"]["iou_background"] > 0.6


def test_own_micrographs_carry_their_labels_at_the_networks_scale(tmp_path: Path) -> None:
    write_set(tmp_path)
    own = config(tmp_path).own
    assert own is not None
    training, validation = own_micrographs(own, seed=1)
    assert (len(training.names), len(validation.names)) == (3, 1)
    for image, labels in zip(training.images, training.labels, strict=True):
        assert image.shape == labels.shape == (SIDE // 5, SIDE // 5)
        assert labels[40, 18] == 1
        # protein white: what is dark in the micrograph is bright here
        assert image[labels == 2].float().mean() > image[labels == 0].float().mean() + 1
        # a circle of 50 px, in squares of 5 px
        assert int((labels == 1).sum()) == pytest.approx(np.pi * 50**2 / 25, rel=0.05)


def test_micrographs_without_picks_are_left_out_and_one_is_too_few(tmp_path: Path) -> None:
    write_set(tmp_path, 3)
    own = config(tmp_path).own
    assert own is not None
    (tmp_path / "picks/m0_manualpick.star").unlink()
    training, validation = own_micrographs(own, seed=1)
    assert sorted(training.names + validation.names) == ["m1", "m2"]
    (tmp_path / "picks/m1_manualpick.star").unlink()
    with pytest.raises(ConfigurationError, match=r"3 micrographs .* 1 have a coordinate file"):
        own_micrographs(own, seed=1)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, 2)
    write_stack(tmp_path / "masks/m1.mrc", np.zeros((1, 10, 10), dtype=np.float32))
    own = config(tmp_path).own
    assert own is not None
    with pytest.raises(MrcError, match="expected a mask of 320 x 320 px"):
        own_micrographs(own, seed=1)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    write_set(tmp_path, 2)
    short = config(tmp_path, optimisation={"steps": 6, "batch_size": 2, "crop_px": 32, "validate_every": 2})
    whole = load_model(train_segmentation(short, tmp_path / "whole"), SEGMENTERS)
    # after step 3, in the middle between two validations
    answers = iter([False] * 3 + [True])
    with pytest.raises(Aborted, match="stopped at step 3; run again with --resume"):
        train_segmentation(short, tmp_path / "torn", context=JobContext(should_stop=lambda: next(answers)))
    other = config(tmp_path, seed=2)
    with pytest.raises(CryohushError, match="belongs to another configuration"):
        train_segmentation(other, tmp_path / "torn", resume=True)
    path = train_segmentation(short, tmp_path / "torn", resume=True)
    resumed = load_model(path, SEGMENTERS)
    for one, same in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        torch.testing.assert_close(one, same, rtol=0, atol=0)
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "torn")
    ]
    for line in (*logs[0], *logs[1]):
        assert line.pop("seconds") > 0
    # also the loss, which is the mean over steps before and after the interruption
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3
    assert resumed.card["measured"] == whole.card["measured"]


def test_one_source_of_micrographs_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CryohushError, match="exactly one of the sections simulated and own"):
        config(tmp_path, own=None)


def test_batches_keep_image_and_labels_together() -> None:
    labels = torch.randint(3, (50, 60), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    data = LabelledMicrographs(["a"], [labels.half()], [labels])
    images, truths = data.batch(16, 32, torch.Generator().manual_seed(2))
    assert images.shape == (16, 1, 32, 32)
    for image, truth in zip(images[:, 0], truths, strict=True):
        # an image that is its own labels stays a straight line of them, whatever the orientation
        levels = torch.stack([image[truth == label].mean() for label in range(3)])
        torch.testing.assert_close(levels[truth], image, atol=1e-5, rtol=1e-5)
    assert len({tuple(truth.flatten().tolist()) for truth in truths}) == 16


def test_the_shipped_network_is_a_segmentation_and_small() -> None:
    model = load_model("segmentation", SEGMENTERS)
    assert model.path.stat().st_size < 1.5e6
    logits = model.module(torch.zeros(1, 1, 64, 96))
    assert logits.shape == (1, 3, 64, 96)
    assert "segmentation_unet" not in MODELS
    with pytest.raises(ModelError, match="labels micrographs"):
        load_model("segmentation")
    with pytest.raises(ModelError, match="denoises, where one that labels"):
        load_model("general", SEGMENTERS)
