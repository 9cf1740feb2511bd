"""A batch whose driver is killed again and again, at any moment, ends with the bytes of undisturbed runs."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import warm
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
# `cryohush`, told how many file operations it has before it is killed; if it is not, it says how many it had.
DRIVER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1] / "jobs")!r})
import kill_anywhere
import warm
from cryohush.core import cli
moment = int(sys.argv.pop(1))
if moment:
    kill_anywhere.kill_itself_at(moment)
    with warm.workers():
        sys.exit(cli.main())
status = []
with warm.workers():
    print(kill_anywhere.counted(lambda: status.append(cli.main())), file=sys.stderr)
sys.exit(status[0])
"""
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
    whole, path = tmp_path / "whole.yaml", tmp_path / "plan.yaml"
    whole.write_text(yaml.safe_dump({**plan, "output": str(tmp_path / "at_once")}))
    path.write_text(yaml.safe_dump(plan))
    status, said = run(whole, "batch")
    assert status == 0, said
    n_operations = int(said.split()[-1])
    shares, killed = random.Random(SEED), 0
    for number in range(KILLS):
        # what is done is not done again: each kill meets less than the one before
        moment = max(1, int(n_operations * shares.uniform(0.05, 0.9 * 0.7**number)))
        killed += run(path, *words(tmp_path), moment=moment)[0] == -signal.SIGKILL
    status, said = run(path, *words(tmp_path))
    assert status == 0, said
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


def words(folder: Path) -> list[str]:
    """Return the words that begin the batch, or go on with it."""
    return ["batch", "resume"] if (folder / "batch" / STATE_NAME).exists() else ["batch"]


def run(plan: Path, *words: str, moment: int = 0) -> tuple[int, str]:
    """Run a driver, which is killed at its file operation of this number; its exit status and errors."""
    done = warm.run(DRIVER, str(moment), *words, plan, folder=plan.parent)
    return done.returncode, done.stderr
