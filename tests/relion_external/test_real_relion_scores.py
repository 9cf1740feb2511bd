"""Scores of particles in a project of the real RELION: outputs of the job, and a subset by the score."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import starfile
from relion_project import EMPTY_PIPELINE, PARTICLES, SUCCEEDED, nodes_of, processes, run_job

from cryohush.core.io.mrc import StackWriter
from cryohush.core.io.particles import SCORE_LABEL

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="needs RELION (Debian: relion)"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
RAW = "Extract/job001/particles.mrcs"
N, BOX = 120, 128


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with blobs in noise, every tenth of them missing, in the form of the example particles."""
    directory = tmp_path_factory.mktemp("project")
    extract = directory / "Extract" / "job001"
    extract.mkdir(parents=True)
    axis = np.arange(BOX) - BOX // 2
    width = np.random.default_rng(1).uniform(14, 18, size=N)
    images = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * width[:, None, None] ** 2))
    images[::10] = 0
    images += np.random.default_rng(2).normal(size=images.shape)
    with StackWriter(extract / "particles.mrcs", images.shape, pixel_size_angstrom=1.5, label="test") as file:
        file.write(images.astype(np.float32))
    tables = starfile.read(EXAMPLES / "data" / "particles.star")
    particles = tables["particles"].iloc[np.arange(N) % len(tables["particles"])].reset_index(drop=True)
    particles["rlnImageName"] = [f"{i + 1:06d}@{RAW}" for i in range(N)]
    starfile.write({**tables, "particles": particles}, extract / "particles.star")
    (directory / "default_pipeline.star").write_text(EMPTY_PIPELINE)
    return directory


def test_relion_selects_by_the_score_what_the_job_calls_trusted(project: Path) -> None:
    job = run_job(
        project,
        "External",
        {
            "fn_exe": "relion_cryohush denoise",
            "in_part": "Extract/job001/particles.star",
            "param1_label": "score",
            "param2_label": "device",
            "param2_value": "cpu",
            "param3_label": "context",
            "param3_value": "none",
            "nr_threads": "1",
        },
    )
    assert processes(project)[job] == SUCCEEDED
    nodes = nodes_of(project)
    for part in ("", "_trusted", "_suspicious"):
        assert nodes[f"{job}particles{part}.star"] == PARTICLES
    trusted, suspicious = (
        starfile.read(project / job / f"particles_{part}.star")["particles"]
        for part in ("trusted", "suspicious")
    )
    assert len(trusted) + len(suspicious) == N
    empty = {f"{i:06d}@{RAW}" for i in range(1, N + 1, 10)}
    assert len(empty & set(suspicious.rlnImageOriginalName)) > 10
    # RELION's own job, by its own label
    selected = run_job(
        project,
        "Select",
        {
            "fn_data": f"{job}particles.star",
            "do_select_values": "Yes",
            "select_label": SCORE_LABEL,
            "select_minval": f"{trusted[SCORE_LABEL].min() - 1e-5:.6f}",
            "select_maxval": "1.1",
        },
    )
    assert processes(project)[selected] == SUCCEEDED
    found = starfile.read(project / selected / "particles.star")["particles"]
    assert sorted(found.rlnImageName) == sorted(trusted.rlnImageName)
