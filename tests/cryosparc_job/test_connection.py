"""A connection that breaks: every request is repeated, none arrives twice, and nothing is left half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryosparc_project import Run, particle_table, scratch_of
from double_server import Fault
from double_store import Store
from double_v5 import Double5

OPERATIONS = (
    "projects.find_one",
    "workspaces.find_one",
    "jobs.load_output",
    "jobs.create",
    "jobs.add_external_input",
    "jobs.connect",
    "jobs.add_external_output",
    "jobs.mark_running",
    "jobs.get_output_fields",
    "jobs.save_output",
    "assets.upload",
    "jobs.set_tile_image",
    "jobs.mark_completed",
)


@pytest.mark.parametrize("kind", ["drop before", "drop after", "500", "slow"])
def test_each_request_may_be_lost(
    denoise: Run, store: Store, double: Double5, copying: None, kind: str
) -> None:
    double.server.faults = [Fault(operation, kind) for operation in OPERATIONS]
    assert denoise() == 0
    assert not double.server.faults, "every one happened"
    (job,) = store.external
    assert job.status == "completed"
    assert job.inputs["particles"].connections == [("J42", "particles")]
    saved = np.load(store.directory / job.uid / f"{job.uid}_particles.cs")
    assert saved["uid"].tobytes() == particle_table()["uid"].tobytes()
    assert all(data for _, data in store.assets), "no picture without bytes"


def test_a_lost_answer_to_the_creation_does_not_make_two_jobs(
    denoise: Run, store: Store, double: Double5, copying: None
) -> None:
    store.create("snowflake", "somebody else's")
    double.server.faults = [Fault("jobs.create", "drop after")]
    assert denoise() == 0
    assert [job.title for job in store.external] == [
        "somebody else's",
        "Denoised J42:particles (small)",
    ]
    assert double.server.operations.count("jobs.create") == 1


def test_files_travel_through_the_server_and_arrive_whole_whatever_is_lost(
    denoise: Run, store: Store, double: Double5, copying: None, tmp_path: Path
) -> None:
    double.server.faults = [
        Fault("projects.download_file", "drop before"),
        Fault("projects.upload_file", "drop before"),
        Fault("projects.upload_file", "drop after", skip=1),
        Fault("projects.mkdir", "drop after"),
    ]
    assert denoise("--scratch", str(tmp_path / "scratch")) == 0
    assert not double.server.faults
    saved = np.load(store.directory / "J43" / "J43_particles.cs")
    for name in {path.decode() for path in saved["blob/path"]}:
        sent = (scratch_of(tmp_path / "scratch") / name).read_bytes()
        assert (store.directory / name).read_bytes() == sent, name
        assert len(sent) > 100_000


def test_a_server_that_never_comes_back_ends_the_command(
    denoise: Run, double: Double5, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cryohush.cryosparc_job.instance.PATIENCE_SECONDS", 0.1)
    double.server.faults = [Fault("projects.find_one", "drop before") for _ in range(20)]
    assert denoise() == 1
    assert "cannot find the project P3: the connection is lost" in capsys.readouterr().err
