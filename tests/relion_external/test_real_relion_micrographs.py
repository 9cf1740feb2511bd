"""Micrographs in a project of the real RELION: denoise, pick on the result, extract from the raw ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from relion_project import (
    EMPTY_PIPELINE,
    PICKS,
    REPORT,
    SUCCEEDED,
    VERSION,
    nodes_of,
    processes,
    rows,
    run_job,
)
from relion_project import MICROGRAPHS as NODE_OF_MICROGRAPHS

from cryohush.core.io.mrc import StackReader, StackWriter

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="needs RELION (Debian: relion)"),
]

SIDE, RADIUS = 512, 20
CENTRES = [(100, 120), (260, 380), (400, 150), (380, 400), (120, 330)]
TABLE = "MotionCorr/job001/corrected_micrographs.star"
MICROGRAPHS = ["MotionCorr/job001/Movies/a.mrc", "MotionCorr/job001/Movies/b.mrc"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with two micrographs of dark discs in noise, as motion correction leaves them."""
    directory = tmp_path_factory.mktemp("project")
    y, x = np.mgrid[:SIDE, :SIDE]
    for seed, name in enumerate(MICROGRAPHS):
        image = np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE)).astype(np.float32)
        for row, column in CENTRES:
            image -= 0.7 * ((y - row) ** 2 + (x - column) ** 2 < RADIUS**2)
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with StackWriter(directory / name, (1, SIDE, SIDE), pixel_size_angstrom=3.0, label="") as writer:
            writer.write(image[None])
    listed = "".join(f"{name} 1 15000.0 15000.0 0.0\n" for name in MICROGRAPHS)
    (directory / TABLE).write_text(
        "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n"
        "_rlnMicrographOriginalPixelSize #3\n_rlnVoltage #4\n_rlnSphericalAberration #5\n"
        "_rlnAmplitudeContrast #6\n_rlnMicrographPixelSize #7\n"
        "opticsGroup1 1 3.0 300.0 2.7 0.1 3.0\n\n\n# version 30001\n\ndata_micrographs\n\nloop_\n"
        "_rlnMicrographName #1\n_rlnOpticsGroup #2\n_rlnDefocusU #3\n_rlnDefocusV #4\n_rlnDefocusAngle #5\n"
        f"{listed}\n"
    )
    (directory / "default_pipeline.star").write_text(EMPTY_PIPELINE)
    return directory


@pytest.fixture(scope="module")
def denoised(project: Path) -> str:
    options = {
        "fn_exe": "relion_cryohush denoise",
        "in_mic": TABLE,
        "param1_label": "device",
        "param1_value": "cpu",
        "nr_threads": "1",
    }
    return run_job(project, "External", options)


@pytest.fixture(scope="module")
def picked(project: Path, denoised: str) -> str:
    """The directory of a Laplacian-of-Gaussian picking of the denoised micrographs."""
    options = {
        "fn_input_autopick": f"{denoised}micrographs.star",
        "angpix": "-1",
        "do_log": "Yes",
        "log_diam_min": "100",
        "log_diam_max": "140",
    }
    return run_job(project, "AutoPick", options)


def test_relion_lists_the_denoised_micrographs(project: Path, denoised: str) -> None:
    assert processes(project)[denoised] == SUCCEEDED
    nodes = nodes_of(project)
    assert nodes[f"{denoised}micrographs.star"] == NODE_OF_MICROGRAPHS
    assert nodes[f"{denoised}logfile.pdf"] == REPORT
    assert (project / denoised / "run.err").read_text() == ""
    with StackReader(project / denoised / "Movies" / "a.mrc") as output:
        assert output.shape == (1, SIDE, SIDE)
        image = output.read([0])[0]
    # the discs stay dark, 0.7 below the rest; most of the noise is gone
    y, x = np.mgrid[:SIDE, :SIDE]
    disc = sum((y - row) ** 2 + (x - column) ** 2 < (RADIUS / 2) ** 2 for row, column in CENTRES) > 0
    assert image[disc].mean() < image[~disc].mean() - 0.3
    assert image.std() < 0.5


def test_picking_takes_them_and_extraction_the_raw_ones(project: Path, denoised: str, picked: str) -> None:
    assert processes(project)[picked] == SUCCEEDED
    assert [f"{denoised}micrographs.star", picked] in rows(project, "input_edges")
    picks = f"{picked}{PICKS}"
    if VERSION > 3:
        # which compare whole names: as the form raw_picks of the examples
        brought = run_job(
            project,
            "External",
            {"fn_exe": "relion_cryohush raw-picks", "in_coords": picks, "nr_threads": "1"},
        )
        picks = f"{brought}raw_picks.star"
    options = {
        "star_mics": TABLE,
        "coords_suffix": picks,
        "extract_size": "64",
        "bg_diameter": "48",
    }
    extracted = run_job(project, "Extract", options)
    assert processes(project)[extracted] == SUCCEEDED
    text = (project / extracted / "particles.star").read_text()
    found = [line.split() for line in text.splitlines() if "@" in line]
    # the raw micrograph, the denoised one nowhere
    assert {word for row in found for word in row if word.endswith(".mrc")} == set(MICROGRAPHS)
    assert denoised not in text
    places = [(float(row[1]), float(row[0])) for row in found]
    for centre in CENTRES:
        near = [place for place in places if np.hypot(*np.subtract(place, centre)) < RADIUS]
        assert len(near) == len(MICROGRAPHS)
