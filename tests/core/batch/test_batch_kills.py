"""A batch whose driver is killed again and again, at any moment, ends with the bytes of undisturbed runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from micrograph_files import empty_micrograph, table_of
from particle_files import noise, write_stack, write_table

from cryohush.core.batch.state import STATE_NAME
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.jobs.extract_noise import run_extract_noise

pytest.importorskip("distributed")

# Fewer than of other jobs, as a driver takes seconds to begin; CONTRIBUTING.md tells of the variables.
KILLS = int(os.environ.get("CRYOHUSH_KILLS", "24")) // 6
SEED = int(os.environ.get("CRYOHUSH_KILLS_SEED", "2"))
# A driver is at work after so many seconds at the earliest, and done after so many at the latest.
BEGINS, ENDS = 2.0, 14.0
NOISE = {"window_px": 64, "min_background": 0.5, "precision": "fp32", "min_noise_probability": 0.0}


@pytest.mark.slow
def test_a_driver_killed_at_many_moments_is_resumed_to_the_same_bytes(tmp_path: Path, weights: Path) -> None:
    for name in ("one", "two"):
        write_stack(tmp_path / name / "x.mrcs", noise(400, 16, 16))
        rows = [f"{i + 1:06d}@{name}/x.mrcs" for i in range(400)]
        write_table(tmp_path / f"{name}.star", rows)
    for number in range(3):
        write_stack(tmp_path / f"m{number}.mrc", empty_micrograph(number), 1.5)
    (tmp_path / "mics.star").write_text(table_of([f"m{number}.mrc" for number in range(3)]))
    denoising = {"model": str(weights), "precision": "fp32", "batch_size": 4}
    sources: list[dict[str, object]] = [
        {"name": name, "file": str(tmp_path / f"{name}.star"), "options": denoising}
        for name in ("one", "two")
    ]
    sources.append(
        {"name": "mics", "file": str(tmp_path / "mics.star"), "job": "extract-noise", "options": NOISE}
    )
    plan = {
        "output": str(tmp_path / "batch"),
        "sources": sources,
        "engine": {"device": "cpu", "workers": 2, "threads": 1, "dashboard": None, "range_mb": 0.01},
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    times = random.Random(SEED)
    killed = 0
    for _ in range(KILLS):
        killed += run(path, times.uniform(BEGINS, ENDS)) == -signal.SIGKILL
    assert run(path) == 0
    assert killed  # else nothing was interrupted

    options = DenoiseOptions(**denoising, device="cpu", threads=1)  # type: ignore[arg-type]
    run_denoise(tmp_path / "one.star", tmp_path / "whole", options)
    run_extract_noise(
        tmp_path / "mics.star",
        tmp_path / "noise",
        ExtractNoiseOptions(**NOISE, device="cpu"),  # type: ignore[arg-type]
    )
    wanted = (tmp_path / "whole" / "one" / "x.mrcs").read_bytes()
    for name in ("one", "two"):
        assert (tmp_path / "batch" / name / name / "x.mrcs").read_bytes() == wanted
    made = (tmp_path / "batch" / "mics" / "noise.mrcs").read_bytes()
    assert made == (tmp_path / "noise" / "noise.mrcs").read_bytes()


def run(plan: Path, seconds: float | None = None) -> int:
    """Begin the batch or go on with it, kill its driver after some seconds, and return its exit status."""
    has_begun = (plan.parent / "batch" / STATE_NAME).exists()
    words = ["batch", *(["resume"] if has_begun else []), str(plan)]
    driver = subprocess.Popen([sys.executable, "-m", "cryohush.core.cli", *words], stdout=subprocess.DEVNULL)
    try:
        return driver.wait(seconds if seconds is not None else 600)
    except subprocess.TimeoutExpired:
        driver.kill()
        return driver.wait()
