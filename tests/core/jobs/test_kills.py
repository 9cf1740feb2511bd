"""A job that is killed at any moment, several times over, goes on to the bytes of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micrograph_files import table_of
from particle_files import noise, write_stack, write_table
from simulated import settings, write_map

from cryohush.core.io.journal import JOURNAL_NAME, RECORD_NAME

# Of each job, in the slow suite, and of their moments; CONTRIBUTING.md tells of the variables.
KILLS = int(os.environ.get("CRYOHUSH_KILLS", "24"))
SEED = int(os.environ.get("CRYOHUSH_KILLS_SEED", "2"))
SCRIPT = Path(__file__).with_name("kill_anywhere.py")
CPU = {"device": "cpu", "precision": "fp32", "threads": 1}
# What tells how long it took, and so never is the same twice.
TIMES = (JOURNAL_NAME, RECORD_NAME, "last.pt", "log.jsonl", "curves.png", "tensorboard")


def denoise(folder: Path, weights: Path) -> dict[str, Any]:
    for number, name in enumerate(("a.mrcs", "b.mrcs")):
        write_stack(folder / name, noise(9, 16, 16, seed=number))
    rows = [f"{image:06d}@{name}" for image in range(1, 10) for name in ("b.mrcs", "a.mrcs")]
    write_table(folder / "particles.star", rows)
    options = {**CPU, "model": str(weights), "batch_size": 4}
    return {"source": str(folder / "particles.star"), "options": options}


def extract_noise(folder: Path, weights: Path) -> dict[str, Any]:
    for seed, name in enumerate(("a", "b")):
        image = np.random.default_rng(seed).normal(100, 3, (1, 320, 320)).astype(np.float32)
        write_stack(folder / f"{name}.mrc", image, 1.5)
    (folder / "micrographs.star").write_text(table_of(["a.mrc", "b.mrc"]))
    options = {**CPU, "min_background": 0.5, "window_px": 64, "min_noise_probability": 0.0}
    return {"source": str(folder / "micrographs.star"), "options": options}


def simulate_particles(folder: Path, weights: Path) -> dict[str, Any]:
    return {"options": settings(write_map(folder / "cloud.mrc"))}


def write_atoms(folder: Path, *names: str) -> Path:
    """Balls of atoms as PDB files."""
    folder.mkdir()
    for number, name in enumerate(names):
        atoms = np.random.default_rng(number).normal(scale=12, size=(120, 3))
        lines = [
            f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
            for i, (x, y, z) in enumerate(atoms, 1)
        ]
        (folder / f"{name}.pdb").write_text("\n".join([*lines, "END", ""]))
    return folder


def simulate_micrographs(folder: Path, weights: Path) -> dict[str, Any]:
    structure = write_atoms(folder / "structures", "one") / "one.pdb"
    given = {"shape_px": [96, 128], "pixel_size_angstrom": 4.0, "depth_layers": 2}
    species = [{"structure": str(structure)}]
    options = {"kind": "micrographs", "species": species, "micrographs": 2, "seed": 3, "settings": given}
    return {"options": options}


def train(folder: Path, weights: Path) -> dict[str, Any]:
    data = {
        "structures": str(write_atoms(folder / "structures", "one", "two")),
        "held_out": ["two"],
        "box_px": 32,
        "volumes_per_structure": 1,
        "projections_per_volume": 4,
        "imaging": {"snr": [0.2, 1.0], "no_ctf_probability": 1.0},
    }
    options = {
        "name": "tiny",
        "network": {
            "name": "shuffle_unet",
            "arguments": {"widths": [4, 8], "blocks": [1, 1], "unshuffle": 2},
        },
        "data": data,
        "optimisation": {"steps": 4, "batch_size": 2, "warmup_steps": 1, "precision": "32-true"},
        "validate_every": 2,
        "validation_images": 4,
    }
    return {"options": options}


JOBS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {
    "denoise": denoise,
    "extract-noise": extract_noise,
    "simulate particles": simulate_particles,
    "simulate micrographs": simulate_micrographs,
    "train": train,
}


def files(folder: Path, name: str) -> dict[str, bytes]:
    """Content of all that does not tell of times; tables name the folder that they are in."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes().replace(f"{name}/".encode(), b"")
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & set(TIMES)
    }


def check(jobs: Iterable[str], folder: Path, weights: Path, runs: int, seed: int) -> None:
    """Kill each job three times at random moments in every run, go on, and compare with a whole one."""
    shares, tasks = random.Random(seed), []
    for job in jobs:
        own = folder / job.replace(" ", "-")
        own.mkdir()
        # what is done is not done again: each kill meets less than the one before
        kills = [[shares.uniform(0.05, most) for most in (1.0, 0.7, 0.4)] for _ in range(runs)]
        paths = {name: str(own / name) for name in ("whole", "torn")}
        tasks.append({**JOBS[job](own, weights), **paths, "job": job, "kills": kills})
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], input=json.dumps(tasks), capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    assert all(int(n) > 15 for n in done.stdout.split())  # else hardly anything was interrupted
    for task in tasks:
        whole, torn = Path(task["whole"]), Path(task["torn"])
        expected = files(whole, "whole")
        assert expected
        for number in range(runs):
            assert files(torn / str(number), f"torn/{number}") == expected, (
                task["job"],
                task["kills"][number],
            )


def test_killed_jobs_go_on_to_the_same_bytes(tmp_path: Path, weights: Path) -> None:
    check(JOBS, tmp_path, weights, runs=1, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_jobs_killed_at_many_moments_go_on_to_the_same_bytes(job: str, tmp_path: Path, weights: Path) -> None:
    check([job], tmp_path, weights, runs=-(-KILLS // 3), seed=SEED)
