"""The same against cryoSPARC 4.7: the real client 4.7.1 in an environment of its own, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cryosparc_project import (
    add_micrographs,
    add_posed_particles,
    particle_table,
    scratch_of,
    training_file,
)
from double_server import Fault
from double_store import Store
from double_v5 import Double5
from double_v47 import EMAIL, LICENSE, PASSWORD, Double47

from cryohush.core.io.mrc import StackWriter

pytestmark = pytest.mark.cryosparc47
Run = Callable[..., subprocess.CompletedProcess[str]]

# The real command. The child process copies, unless the word is "denoise", and nothing waits for long.
DRIVER = """
import sys
from cryohush.cryosparc_job import cli, guard, instance, job, worker
kind, fake = sys.argv[1:3]
if kind != "denoise":
    worker.COMMAND = (sys.executable, fake, kind)
instance.FIRST_PAUSE_SECONDS, instance.PATIENCE_SECONDS, guard.WATCH_SECONDS = 0.01, 120.0, 0.05
instance.ERROR_PATIENCE_SECONDS, job.CONFIRM_SECONDS = 10.0, 0.01
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture
def double(store: Store) -> Iterator[Double47]:
    double = Double47(store)
    yield double
    double.server.close()


@pytest.fixture
def run(double: Double47, clean_environment: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> Run:
    """Run a command of the adapter with cryosparc-tools 4.7."""
    monkeypatch.setenv("CRYOSPARC_EMAIL", EMAIL)
    monkeypatch.setenv("CRYOSPARC_PASSWORD", PASSWORD)
    monkeypatch.setenv("CRYOSPARC_LICENSE_ID", LICENSE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    fake = str(Path(__file__).with_name("fake_work.py"))

    def run(kind: str, *words: str, command: str = "denoise") -> subprocess.CompletedProcess[str]:
        given = [command, "--url", double.url, "--project", "P3", *words]
        if command == "denoise":
            given += ["--model", str(weights), "--device", "cpu", "--threads", "1", "--precision", "fp32"]
        return subprocess.run(
            [os.environ["CRYOHUSH_CRYOSPARC47_PYTHON"], "-c", DRIVER, kind, fake, *given],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run


PARTICLES = ("--workspace", "W1", "--particles", "J42:particles")


def test_the_whole_flow_and_the_way_back(run: Run, store: Store, double: Double47) -> None:
    result = run("denoise", *PARTICLES)
    assert result.returncode == 0, result.stderr
    assert "cryosparc-tools 4.7.1" in result.stdout
    (job,) = store.external
    assert job.status == "completed"
    before, own = particle_table(), np.load(store.directory / "J43" / "J43_particles.cs")
    for name in ("uid", "blob/shape", "blob/psize_A", "blob/sign"):
        assert own[name].tobytes() == before[name].tobytes(), name
    assert {path.decode() for path in own["blob/path"]} == {
        f"J43/denoised/J42/extract/exposure_{number}.mrcs" for number in (0, 1)
    }
    assert all((store.directory / path.decode()).stat().st_size > 100_000 for path in own["blob/path"])
    assert store.load("J43", "particles")["ctf/df1_A"].tobytes() == before["ctf/df1_A"].tobytes()
    assert sum(event["images"] for event in job.events) == 3
    # how often the status is asked for depends on the time, which is short here
    assert sum(name != "get_job" for name in double.server.operations) <= 60
    # back to the raw images of a selection
    selected = store.load("J43", "particles")[::-3]
    store.add_source("particle", selected, "selected")
    result = run("copy", "--workspace", "W1", "--particles", "J44:selected", command="restore")
    assert result.returncode == 0, result.stderr
    raw = {row["uid"]: row["blob/path"] for row in before}
    restored = store.load("J45", "particles")
    assert restored["blob/path"].tolist() == [raw[uid] for uid in selected["uid"]]
    seen = result.stdout + result.stderr + str(store.external)
    assert PASSWORD not in seen
    assert LICENSE not in seen


def test_micrographs_get_their_slot(run: Run, store: Store) -> None:
    fields = [("path", "S40"), ("idx", "<u4"), ("shape", "<u4", (2,)), ("psize_A", "<f4"), ("vmin", "<f4")]
    table = np.zeros(1, [("uid", "<u8"), *((f"micrograph_blob/{name}", *kind) for name, *kind in fields)])
    table["uid"], table["micrograph_blob/path"] = 5, b"J43/m.mrc"
    table["micrograph_blob/shape"], table["micrograph_blob/psize_A"] = (96, 128), 1.5
    store.add_source("exposure", table, "exposures")
    with StackWriter(
        store.directory / "J43/m.mrc", (1, 96, 128), pixel_size_angstrom=1.5, label=""
    ) as writer:
        writer.write(np.random.default_rng(0).normal(size=(1, 96, 128)).astype(np.float32))
    result = run("denoise", "--workspace", "W1", "--micrographs", "J43:exposures")
    assert result.returncode == 0, result.stderr
    own = np.load(store.directory / "J44" / "J44_exposures.cs")
    assert (
        store.directory / own["micrograph_blob_denoised/path"][0].decode()
    ).stat().st_size == 1024 + 4 * 96 * 128
    assert store.load("J44", "exposures")["micrograph_blob/path"].tolist() == [b"J43/m.mrc"]


@pytest.mark.parametrize(
    ("command", "words", "connected"),
    [
        ("extract-noise", "--micrographs J43:exposures", {"exposures": ("J43", "exposures")}),
        (
            "evaluate",
            "--particles J42:particles --raw J42:particles",
            {"particles": ("J42", "particles"), "raw": ("J42", "particles")},
        ),
        (
            "train",
            "--particles J44:particles --volume J45:volume --mask J46:mask --half-set A --config CONFIG",
            {"particles": ("J44", "particles"), "volume": ("J45", "volume"), "mask": ("J46", "mask")},
        ),
    ],
)
def test_commands_whose_results_are_files(
    run: Run, store: Store, tmp_path: Path, command: str, words: str, connected: dict[str, tuple[str, str]]
) -> None:
    # the child, which does not know of cryoSPARC, is that of the tests with the client 5
    add_micrographs(store)
    add_posed_particles(store)
    words = words.replace("CONFIG", str(training_file(tmp_path)))
    result = run("report", "--workspace", "W1", *words.split(), command=command)
    assert result.returncode == 0, result.stderr
    (job,) = store.external
    assert job.status == "completed"
    assert {name: entry.connections for name, entry in job.inputs.items()} == {
        name: [pair] for name, pair in connected.items()
    }
    assert "a line" in job.texts()
    assert sum(event["images"] for event in job.events) == 1


@pytest.mark.parametrize("kind", ["drop before", "drop after"])
def test_each_request_may_be_lost(run: Run, store: Store, double: Double47, kind: str) -> None:
    double.server.faults = [
        Fault(operation, kind)
        for operation in (
            "get_project",
            "get_project_file",
            "connect_external_job",
            "add_external_job_output",
            "run_external_job",
            "dataset",
            "set_job_status",
        )
    ]
    result = run("copy", *PARTICLES)
    assert result.returncode == 0, result.stderr
    assert not double.server.faults
    (job,) = store.external
    assert job.status == "completed"
    assert job.inputs["particles"].connections == [("J42", "particles")]
    saved = np.load(store.directory / "J43" / "J43_particles.cs")
    assert saved["uid"].tobytes() == particle_table()["uid"].tobytes()


def test_files_travel_through_the_server(run: Run, store: Store, double: Double47, tmp_path: Path) -> None:
    double.server.faults = [Fault("files", "drop before")]
    result = run("copy", *PARTICLES, "--scratch", str(tmp_path / "scratch"))
    assert result.returncode == 0, result.stderr
    for path in np.load(store.directory / "J43" / "J43_particles.cs")["blob/path"].tolist():
        sent = (scratch_of(tmp_path / "scratch") / path.decode()).read_bytes()
        assert (store.directory / path.decode()).read_bytes() == sent


def test_a_lost_answer_to_the_creation_does_not_make_two_jobs(
    run: Run, store: Store, double: Double47
) -> None:
    double.server.faults = [Fault("create_external_job", "drop after")]
    result = run("copy", *PARTICLES)
    assert result.returncode == 1
    assert "go on in it with --resume" in result.stderr
    assert len(store.external) == 1
    assert run("copy", "--resume", "J43", "--particles", "J42:particles").returncode == 0
    assert [job.status for job in store.external] == ["completed"]


def test_a_failure_and_its_continuation(run: Run, store: Store) -> None:
    result = run("traceback", *PARTICLES)
    assert result.returncode == 1
    (job,) = store.external
    assert job.status == "failed"
    assert any(len(text) > 80000 for text in job.texts("error"))
    store.restart_needs_clear = True
    assert run("copy", "--resume", "J43").returncode == 0
    assert [job.status for job in store.external] == ["completed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"CRYOSPARC_PASSWORD": "wrong secret"}, "email, password or licence were refused"),
        ({"CRYOSPARC_LICENSE_ID": "no secret licence"}, "needs email, password and licence"),
        ({"CRYOSPARC_EMAIL": ""}, "needs email, password and licence"),
    ],
)
def test_signing_in_fails_without_showing_secrets(
    run: Run, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], message: str
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    result = run("copy", *PARTICLES)
    assert result.returncode == 1
    assert message in result.stderr
    assert "secret" not in result.stderr
    assert PASSWORD not in result.stderr
    assert "Traceback" not in result.stderr


def test_credentials_from_a_file(
    run: Run, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("EMAIL", "PASSWORD", "LICENSE_ID"):
        monkeypatch.delenv(f"CRYOSPARC_{name}")
    path = tmp_path / "instance-info.json"
    path.write_text(json.dumps({"email": EMAIL, "password": PASSWORD, "license": LICENSE}))
    result = run("copy", *PARTICLES, "--credentials", str(path))
    assert result.returncode == 1
    assert "chmod 600" in result.stderr
    path.chmod(0o600)
    assert run("copy", *PARTICLES, "--credentials", str(path)).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--project", "P9"), "cannot find the project P9: no project P9"),
        (("--workspace", "W9"), "cannot find the workspace W9 of P3: no workspace W9"),
        (("--particles", "J9:particles"), "cannot find the job J9 of P3: no job J9"),
        (("--particles", "J42:others"), "no output 'others'; its outputs: particles (particle)"),
        (("--url", "https://127.0.0.1:39000"), "cryosparc-tools 4 speaks http only"),
        (("--url", "http://127.0.0.1:9"), "Connection refused"),
    ],
)
def test_names_that_do_not_fit(run: Run, store: Store, words: tuple[str, ...], message: str) -> None:
    result = run("copy", *PARTICLES, *words)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not store.external


def test_a_server_of_version_5(run: Run, store: Store) -> None:
    other = Double5(store)
    result = run("copy", *PARTICLES, "--url", other.url)
    other.server.close()
    assert result.returncode == 1
    assert (
        "the server is cryoSPARC 5. Install its client: pip install 'cryosparc-tools~=5.0.0'" in result.stderr
    )


def test_a_job_cleared_in_cryosparc_stops_the_work(run: Run, store: Store, double: Double47) -> None:
    double.server.faults = [Fault("get_job", lambda: store.kill("J43"), skip=14)]
    result = run("wait", *PARTICLES)
    assert result.returncode == 2, result.stderr
    assert store.jobs["J43"].status == "killed"
