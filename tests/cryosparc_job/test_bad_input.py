"""What cannot be denoised is said before a job is made, in one line that names it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryosparc_project import Run, particle_table
from double_store import Store
from double_v5 import Double5
from numpy.typing import NDArray

from cryohush.cryosparc_job import place


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--project", "P9"], r"cannot find the project P9: HTTP status 404, no project P9"),
        (["--workspace", "W9"], r"cannot find the workspace W9 of P3: .*no workspace W9"),
        (["--particles", "J9:particles"], r"cannot find the job J9 of P3: .*no job J9"),
        (["--particles", "J42:micrographs"], r"no output 'micrographs'; its outputs: particles \(particle\)"),
        (["--particles", "J42:"], r"expected a job and its output as J42:particles, found 'J42:'"),
        (["--particles", "J43"], r"J43 has no output of type particle; its outputs: exposures"),
        (["--particles", "J43:exposures"], r"is of type exposure, expected particle"),
        (["--particles", "J44:particles"], r"J44 is running: wait until it is completed"),
        (["--particles", "J45:picks"], r"has no slot blob, only location.* not extracted"),
        (["--resume", "J42"], r"cannot find the external job J42 of P3: .*not an external job"),
        (["--resume", "J99"], r"cannot find the external job J99"),
        (["--blend", "2"], r"blend"),
        (["--url", "ftp://host"], r"expected the address at which a browser shows cryoSPARC"),
    ],
)
def test_names_that_do_not_fit(
    denoise: Run, store: Store, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    exposures = np.zeros(1, [("uid", "<u8"), ("micrograph_blob/path", "S8")])
    store.add_source("exposure", exposures, "exposures")
    store.add_source("particle", particle_table()).status = "running"
    store.add_source("particle", np.zeros(1, [("uid", "<u8"), ("location/x", "<f4")]), "picks")
    given = {"particles": "J42:particles", "workspace": "W1"}
    for name in given:
        if f"--{name}" in words:
            given[name] = None
    assert denoise(*words, **given) == 1
    error = capsys.readouterr().err
    assert error.count("ERROR") == 1
    assert "Traceback" not in error
    assert re.search(message, error), error
    assert not store.external


def repeated(table: NDArray[Any]) -> None:
    table["uid"][3] = table["uid"][1]


def mixed_boxes(table: NDArray[Any]) -> None:
    table["blob/shape"][table["blob/path"] == table["blob/path"][0]] = 64


def no_stack(table: NDArray[Any]) -> None:
    table["blob/path"][5] = b"J42/extract/gone.mrc"


def beyond(table: NDArray[Any]) -> None:
    table["blob/idx"][5] = 500


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (repeated, "1 uids are repeated"),
        (mixed_boxes, "128 px wide, the table says 64 px"),
        (no_stack, "ERROR: J43:particles: row 6: the stack J42/extract/gone.mrc does not exist"),
        (beyond, "image 501 is wanted by J43:particles, row 6"),
    ],
)
def test_tables_that_make_no_sense(
    denoise: Run,
    store: Store,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[NDArray[Any]], None],
    message: str,
) -> None:
    table = particle_table()
    change(table)
    store.add_source("particle", table)
    assert denoise(particles="J43:particles") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not store.external


@pytest.mark.parametrize("here", ["nothing", "another directory of that name"])
def test_a_project_directory_that_is_not_mounted(
    denoise: Run, store: Store, double: Double5, capsys: pytest.CaptureFixture[str], here: str, tmp_path: Path
) -> None:
    # the server's own files stay where they are; it says that they are elsewhere
    told = tmp_path / "not mounted" / "P3"
    if here != "nothing":
        told.mkdir(parents=True)
    double.operations.project_directory = told
    assert denoise() == 1
    error = capsys.readouterr().err
    assert "not on this machine" in error
    assert "--scratch" in error
    assert not store.external


def test_no_space(
    denoise: Run, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(place.shutil, "disk_usage", lambda path: usage)
    assert denoise() == 1
    # 24 images of 128 x 128 float32
    assert f"{24 * 128 * 128 * 4} bytes are needed, 1000 are free" in capsys.readouterr().err
    assert not store.external


def test_a_directory_that_may_not_be_written_to(
    denoise: Run, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # the tests may run as root, whom no mode stops
    monkeypatch.setattr(place.os, "access", lambda path, mode: Path(path) != store.directory)
    assert denoise() == 1
    assert "cannot be written to. Run as a user" in capsys.readouterr().err
    assert not store.external
    monkeypatch.setattr(place.os, "access", lambda path, mode: Path(path).name != "denoised")
    assert denoise() == 1
    (job,) = store.external
    assert job.status == "failed"
    assert "Run as a user" in job.texts("error")[-1]
