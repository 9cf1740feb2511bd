"""Expected errors of denoised particles: on the right scale, in stacks of their own, now or later."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from particle_files import read_stack, write_stack, write_table

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import InputError, OutputError
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.models.context_average import ContextAverage
from cryohush.core.models.weights import save_model

SMALL: dict[str, Any] = {"widths": [8, 8], "blocks": [1, 1], "unshuffle": 2}
BOX, N = 32, 40
SD = 3.0


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network that says 0 of every pixel, and a variance of 4 on the normalised scale."""
    network = ContextAverage(**SMALL)
    with torch.no_grad():
        for part in (network.head, network.error_head[-1]):
            for parameter in part.parameters():
                parameter.zero_()
        network.error_head[-1].bias.fill_(np.log(4.0))
    save_model(tmp_path / "weights.safetensors", network, "context_average", SMALL, {})
    return tmp_path / "weights.safetensors"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    images = np.random.default_rng(1).normal(100, SD, (N, BOX, BOX)).astype(np.float32)
    images[3, :, :8] = 0.0  # an area without noise
    write_stack(tmp_path / "a.mrcs", images)
    write_table(tmp_path / "particles.star", [f"{i + 1:06d}@a.mrcs" for i in range(N)], box_px=BOX)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "particles.star"


def options(weights: Path, **given: Any) -> DenoiseOptions:
    usual = {"model": str(weights), "precision": "fp32", "context": "none", "error_stacks": True}
    return DenoiseOptions(**{**usual, **given})


def test_errors_are_standard_deviations_on_the_images_own_grey_scale(table: Path, weights: Path) -> None:
    summary = run_denoise(table, "out", options(weights))
    error = read_stack(Path("out/a_error.mrcs"))
    # a variance of 4 where the background has 1: twice the background's standard deviation
    assert np.median(error) == pytest.approx(2 * SD, rel=0.05)
    assert (error[3, :, :8] == 0).all()  # returned as it was
    assert summary.samples.error is not None
    assert summary.samples.error.shape == summary.samples.raw.shape


@pytest.mark.parametrize("given", [{"blend": 0.5}, {"keep_above_angstrom": 10.0}, {}])
def test_errors_are_said_to_leave_out_the_raw_image(
    table: Path, weights: Path, given: dict[str, float]
) -> None:
    lines: list[str] = []
    run_denoise(table, "out", options(weights, **given), JobContext(log=lines.append))
    assert any("errors are those of the denoised images alone" in line for line in lines) is bool(given)


def test_errors_can_be_had_afterwards_without_denoising_anew(table: Path, weights: Path) -> None:
    run_denoise(table, "once", options(weights))
    run_denoise(table, "later", options(weights, error_stacks=False))
    assert not Path("later/a_error.mrcs").exists()
    summary = run_denoise(table, "later", options(weights), earlier="resume")
    assert summary.n_resumed == N
    np.testing.assert_array_equal(
        read_stack(Path("later/a_error.mrcs")), read_stack(Path("once/a_error.mrcs"))
    )


def test_a_stack_that_is_named_like_the_errors_of_another_has_its_own(table: Path, weights: Path) -> None:
    write_stack(Path("a_error.mrcs"), np.random.default_rng(2).normal(0, 3 * SD, (2, BOX, BOX)).astype("f4"))
    write_table(table, [f"{i}@{name}.mrcs" for name in ("a", "a_error") for i in (1, 2)], box_px=BOX)
    run_denoise(table, "out", options(weights))
    # twice the background's standard deviation, which is SD and 3 SD
    medians = {path.stem: float(np.median(read_stack(path))) for path in Path("out").glob("*.mrcs")}
    assert sorted(medians) == ["a", "a_error", "a_error_2", "a_error_error"]
    assert medians["a_error_2"] == pytest.approx(2 * SD, rel=0.05)
    assert medians["a_error_error"] == pytest.approx(6 * SD, rel=0.05)
    assert run_denoise(table, "out", options(weights), earlier="resume").was_complete


def test_the_disk_has_to_have_room_for_the_errors_as_well(
    table: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = N * BOX * BOX * 4 * 3 // 2 + 2**16  # for the images and half of their errors, and the reports
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 0, free))
    run_denoise(table, "without", options(weights, error_stacks=False))
    with pytest.raises(OutputError, match="the disk is too full"):
        run_denoise(table, "out", options(weights))
    assert not list(Path("out").iterdir())


def test_a_stack_of_errors_is_not_taken_for_raw_images(table: Path, weights: Path) -> None:
    run_denoise(table, "out", options(weights))
    with pytest.raises(InputError, match="denoised already"):
        run_denoise(Path("out/a_error.mrcs"), "again", options(weights))


def test_a_network_that_does_not_know_says_so(table: Path, tmp_path: Path) -> None:
    from cryohush.core.models.unet import ShuffleUNet

    save_model(tmp_path / "plain.safetensors", ShuffleUNet(**SMALL), "shuffle_unet", SMALL, {})
    lines: list[str] = []
    summary = run_denoise(table, "out", options(tmp_path / "plain.safetensors"), JobContext(log=lines.append))
    assert any("does not know the errors" in line for line in lines)
    assert summary.samples.error is None
    assert not Path("out/a_error.mrcs").exists()
