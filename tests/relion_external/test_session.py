"""A session on the fly in a project of the real RELION: micrographs that arrive in portions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from relion_project import EMPTY_PIPELINE, PICKS, SUCCEEDED, VERSION, processes, rows

from cryohush.core.io.mrc import StackWriter

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="needs RELION (Debian: relion)"),
]

SESSION = Path(__file__).parents[2] / "examples" / "relion" / "session.sh"
# the first one, one that is gone on with as all that follow it, and the last
N_PORTIONS, PORTION = 3, 8
SIDE, RADIUS, PIXEL_SIZE = 256, 10, 3.0
CENTRES = [(60, 60), (180, 80), (120, 190)]
TABLE = "CtfFind/job001/micrographs_ctf.star"
HEAD = (
    "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n"
    "_rlnMicrographOriginalPixelSize #3\n_rlnVoltage #4\n_rlnSphericalAberration #5\n"
    "_rlnAmplitudeContrast #6\n_rlnMicrographPixelSize #7\n"
    f"opticsGroup1 1 {PIXEL_SIZE} 300.0 2.7 0.1 {PIXEL_SIZE}\n\n\n# version 30001\n\ndata_micrographs\n\n"
    "loop_\n"
    "_rlnMicrographName #1\n_rlnOpticsGroup #2\n_rlnDefocusU #3\n_rlnDefocusV #4\n_rlnDefocusAngle #5\n"
)
# RELION looks every ten seconds whether a job has ended.
PATIENCE_SECONDS = 900


def micrograph(project: Path, number: int) -> str:
    """Write a micrograph of dark discs in noise, as a motion correction does."""
    name = f"MotionCorr/job001/Movies/m{number:02d}.mrc"
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.random.default_rng(number).normal(0, 1, (SIDE, SIDE)).astype(np.float32)
    for row, column in CENTRES:
        image -= 0.9 * ((y - row) ** 2 + (x - column) ** 2 < RADIUS**2)
    with StackWriter(project / name, (1, SIDE, SIDE), pixel_size_angstrom=PIXEL_SIZE, label="") as writer:
        writer.write(image[None])
    return name


def listed(project: Path, names: list[str]) -> None:
    """Write the table of all micrographs so far, as each pass of a CTF estimation does."""
    path = project / TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".new").write_text(HEAD + "".join(f"{n} 1 15000.0 15000.0 0.0\n" for n in names) + "\n")
    path.with_suffix(".new").replace(path)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, int]]]:
    """A project after a session, and when the files of each portion were written, in nanoseconds."""
    project = tmp_path_factory.mktemp("session")
    (project / "default_pipeline.star").write_text(EMPTY_PIPELINE)
    settings = {
        "micrographs": TABLE,
        "wait_sec": "1",
        "diameter_min": "50",
        "diameter_max": "70",
        "box_px": "32",
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with (project / "session.log").open("w") as log:
        scheduler = subprocess.Popen(
            [SESSION, *(f"{name}={value}" for name, value in settings.items())],
            cwd=project,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            names: list[str] = []
            portions = []
            for portion in range(N_PORTIONS):
                names += [micrograph(project, number) for number in range(len(names), len(names) + PORTION)]
                listed(project, names)
                if portion == N_PORTIONS - 1:
                    (project / "session.end").touch()
                deadline = time.monotonic() + PATIENCE_SECONDS
                while len(written(project)) < len(names) and time.monotonic() < deadline:
                    assert scheduler.poll() is None, (project / "session.log").read_text()
                    time.sleep(0.5)
                portions.append(written(project))
            assert scheduler.wait(timeout=PATIENCE_SECONDS) == 0, (project / "session.log").read_text()
        finally:
            scheduler.kill()
    return project, portions


def written(project: Path) -> dict[str, int]:
    """Return when each denoised micrograph was written."""
    return {path.name: path.stat().st_mtime_ns for path in project.glob("External/job002/Movies/*.mrc")}


def test_each_micrograph_is_denoised_once(session: tuple[Path, list[dict[str, int]]]) -> None:
    project, portions = session
    assert [len(portion) for portion in portions] == [PORTION * (n + 1) for n in range(N_PORTIONS)]
    # a file that was there after one portion is the same file at the end
    final = written(project)
    for portion in portions:
        assert portion.items() <= final.items()
    text = (project / "External/job002/run.out").read_text()
    found = re.findall(r"(\d+) micrographs in \S+\.star(?:, (\d+) images done by an earlier run)?", text)
    passes = [int(total) - int(earlier or 0) for total, earlier in found]
    assert passes == [PORTION] * N_PORTIONS


def test_all_jobs_are_gone_on_with_and_succeed(session: tuple[Path, list[dict[str, int]]]) -> None:
    project, _ = session
    picked = f"AutoPick/job003/{PICKS}"
    brought = "External/job004/raw_picks.star"
    # RELION 4 and 5 compare whole names, so that picks have to be brought to the raw micrographs
    between = [] if VERSION == 3 else [("External/job004/", picked, brought)]
    extract = f"Extract/job{4 + len(between):03d}/"
    jobs = ["External/job002/", "AutoPick/job003/", *(name for name, *_ in between), extract]
    assert list(processes(project)) == jobs
    assert set(processes(project).values()) == {SUCCEEDED}
    assert (project / "External/job002/run.err").read_text() == ""
    assert {(*edge,) for edge in rows(project, "input_edges")} == {
        (TABLE, "External/job002/"),
        ("External/job002/micrographs.star", "AutoPick/job003/"),
        *((source, name) for name, source, _ in between),
        (brought if between else picked, extract),
        (TABLE, extract),
    }


def test_what_is_extracted_are_the_discs_of_all_raw_micrographs(
    session: tuple[Path, list[dict[str, int]]],
) -> None:
    project, _ = session
    (extracted,) = project.glob("Extract/job*/particles.star")
    text = extracted.read_text()
    assert "External/" not in text
    found = [line.split() for line in text.splitlines() if "@" in line]
    places: dict[str, list[tuple[float, float]]] = {}
    for row in found:
        (name,) = (word for word in row if word.endswith(".mrc"))
        places.setdefault(name, []).append((float(row[1]), float(row[0])))
    assert len(places) == N_PORTIONS * PORTION
    near = [
        any(np.hypot(*np.subtract(place, centre)) < RADIUS for place in picked)
        for picked in places.values()
        for centre in CENTRES
    ]
    # a threshold of LoG picking loses a few in noise; by chance under a tenth would be near
    assert np.mean(near) > 0.9
