"""Batches over outputs of cryoSPARC, by the real clients 5.0 and 4.7, against their doubles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from batch_driver import shorten
from cryosparc_project import add_micrographs, add_particles, particle_table, store_token, write_stacks
from double_server import Fault
from double_store import Job, Store
from double_v5 import Double5
from double_v47 import EMAIL, LICENSE, PASSWORD, Double47

from cryohush.core.io.mrc import StackReader
from cryohush.cryosparc_job.cli import main

pytest.importorskip("distributed")

ENGINE = {"device": "cpu", "workers": 1, "threads": 1, "memory": "2GB", "dashboard": None}
# What the two doubles call an operation.
CREATE = {"5": "jobs.create", "4.7": "create_external_job"}
LOG = {"5": "jobs.add_event_log", "4.7": "job_send_streamlog"}


@dataclass
class Client:
    """A client of either version, signed in to its double; its batches calculate in their own process."""

    version: str
    double: Double5 | Double47
    python: str
    capfd: pytest.CaptureFixture[str]

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `cryosparc_cryohush batch` as a program of its own."""
        driver = str(Path(__file__).with_name("batch_driver.py"))
        return subprocess.Popen(
            [self.python, driver, "batch", *words, "--url", self.double.url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> tuple[int, str, str]:
        """Run it and return its exit status, output and errors."""
        if self.version == "5":
            self.capfd.readouterr()
            return main(["batch", *words, "--url", self.double.url]), *self.capfd.readouterr()
        with self.start(*words) as process:
            said, errors = process.communicate(timeout=300)
        return process.returncode, said, errors


@pytest.fixture(params=["5", pytest.param("4.7", marks=pytest.mark.cryosparc47)])
def client(
    request: pytest.FixtureRequest,
    store: Store,
    clean_environment: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[Client]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    double: Double5 | Double47
    if request.param == "5":
        from cryosparc.auth import get_default_auth_config_path

        get_default_auth_config_path.cache_clear()
        double, python = Double5(store), sys.executable
        store_token(clean_environment, double.url)
        shorten(monkeypatch.setattr)
    else:
        double, python = Double47(store), os.environ["CRYOHUSH_CRYOSPARC47_PYTHON"]
        monkeypatch.setenv("CRYOSPARC_EMAIL", EMAIL)
        monkeypatch.setenv("CRYOSPARC_PASSWORD", PASSWORD)
        monkeypatch.setenv("CRYOSPARC_LICENSE_ID", LICENSE)
    yield Client(request.param, double, python, capfd)
    double.server.close()


@pytest.fixture
def write_plan(tmp_path: Path, weights: Path) -> Callable[..., str]:
    """Write a plan over some sources, all of project P3 unless they are files, and return its path."""

    def write(*sources: dict[str, Any], **more: Any) -> str:
        values = {
            "output": str(tmp_path / "batch"),
            "options": {"model": str(weights), "precision": "fp32", "batch_size": 4},
            "sources": [source if "file" in source else {"cryosparc": "P3", **source} for source in sources],
            "engine": ENGINE,
            **more,
        }
        path = tmp_path / "plan.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


def batch_state(tmp_path: Path) -> dict[str, Any]:
    """Return the entries of the batch's state."""
    entries = json.loads((tmp_path / "batch" / "batch.json").read_text())["items"]
    return {entry["name"]: entry for entry in entries}


def break_image(store: Store, job: Job) -> None:
    """Make an image constant."""
    path = store.directory / job.uid / "extract" / "exposure_0.mrc"
    data = bytearray(path.read_bytes())
    data[1024 : 1024 + 128 * 128 * 4] = bytes(128 * 128 * 4)
    path.write_bytes(data)


def test_several_sources_with_one_broken(
    client: Client, store: Store, tmp_path: Path, write_plan: Callable[..., str]
) -> None:
    broken = add_particles(store)
    add_micrographs(store)
    offline = tmp_path / "offline" / "J42_particles.cs"
    offline.parent.mkdir()
    table = particle_table()
    table["blob/path"] = [path.rpartition(b"/")[2] for path in table["blob/path"]]
    with offline.open("wb") as file:
        np.save(file, table)
    write_stacks(tmp_path, "offline")
    for path in (tmp_path / "offline" / "extract").iterdir():
        path.rename(offline.parent / path.name)
    break_image(store, broken)
    plan = write_plan(
        {"particles": "J42:particles", "title": "All of them"},
        {"name": "broken", "particles": f"{broken.uid}:particles"},
        {"name": "micrographs", "micrographs": "J44:exposures"},
        {"name": "offline", "file": str(offline)},
    )

    code, said, errors = client.run(plan, "--dry-run")
    assert code == 0, errors
    for shown in ("P3 J42:particles", "P3 J44:exposures", "4 sources, 74 images"):
        assert shown in said
    assert not store.external
    assert not (tmp_path / "batch").exists()

    code, said, errors = client.run(plan)
    assert code == 1, said + errors
    assert "1 of 4 sources failed: broken" in errors
    assert {name: entry["state"] for name, entry in batch_state(tmp_path).items()} == {
        "P3_J42_particles": "done",
        "broken": "failed",
        "micrographs": "done",
        "offline": "done",
    }
    jobs = {
        entry["origin"]: store.jobs[entry["details"]["job"]]
        for entry in batch_state(tmp_path).values()
        if entry["host"] == "cryosparc"
    }
    assert len(store.external) == len(jobs) == 3
    job = jobs[f"P3 {broken.uid}:particles"]
    assert job.status == "failed"
    assert not job.outputs["particles"].files
    assert "constant" in job.texts("error")[-1]
    assert "retry-failed" in job.texts("error")[-1]

    job = jobs["P3 J42:particles"]
    assert (job.status, job.title) == ("completed", "All of them")
    assert job.inputs["particles"].connections == [("J42", "particles")]
    own, before = np.load(store.directory / job.uid / f"{job.uid}_particles.cs"), particle_table()
    for name in ("uid", "blob/shape", "blob/psize_A", "blob/sign"):
        assert own[name].tobytes() == before[name].tobytes(), name
    assert store.load(job.uid, "particles")["ctf/df1_A"].tobytes() == before["ctf/df1_A"].tobytes()
    # the images are those of a file without cryoSPARC
    for row in (0, 7):
        path = store.directory / own["blob/path"][row].decode()
        without = tmp_path / "batch" / "offline" / path.with_suffix(".mrcs").name
        with StackReader(path) as ours, StackReader(without) as theirs:
            at = [int(own["blob/idx"][row])]
            np.testing.assert_array_equal(ours.read(at), theirs.read(at))
    assert any(text.startswith("24 of 24 particles (100 %)") for text in job.texts())
    assert any("SHA-256" in text for text in job.texts())
    assert [event["text"][:3] for event in job.events if event["images"]] == ["Raw"]
    if client.version == "5":
        assert job.tile is not None
        assert job.outputs["particles"].image is not None
    rows = store.load(jobs["P3 J44:exposures"].uid, "exposures")
    assert {"micrograph_blob/path", "micrograph_blob_denoised/path"} <= set(rows.dtype.names or ())

    # put right, and tried again in the same job
    write_stacks(store.directory, broken.uid)
    code, said, errors = client.run("retry-failed", plan)
    assert code == 0, said + errors
    assert [job.status for job in store.external] == ["completed"] * 3
    assert client.run("resume", plan)[0] == 0
    assert PASSWORD not in said + errors + str(store.external)


def test_what_can_be_known_before_is_told_before(
    client: Client, store: Store, tmp_path: Path, write_plan: Callable[..., str]
) -> None:
    running, missing, selected = add_particles(store), add_particles(store), add_particles(store)
    add_micrographs(store)
    table = particle_table()
    table["uid"] = np.arange(len(table))
    store.add_source("particle", table)
    running.status = "running"
    (store.directory / missing.uid / "extract" / "exposure_1.mrc").unlink()
    selected.kind, selected.outputs["others"] = "select_2D", selected.outputs["particles"]
    wrong = {
        "cannot find the project P9": {"cryosparc": "P9", "particles": "J42:particles"},
        "cannot find the job J9 of P3": {"particles": "J9:particles"},
        "J42 has no output 'others'; its outputs: particles": {"particles": "J42:others"},
        "J42:particles is of type particle, expected exposure": {"micrographs": "J42:particles"},
        "expected a job and its output as J42:particles": {"particles": "extract/particles.star"},
        "cannot find the workspace W9 of P3": {"particles": "J42:particles", "workspace": "W9"},
        f"{running.uid} is running: wait until it is completed": {"particles": f"{running.uid}:particles"},
        "exposure_1.mrc": {"particles": f"{missing.uid}:particles"},
        "no completed job of the type extract with particles": {"newest": "extract"},
        "types of its jobs: extract_micrographs_multi, select_2D": {"newest": "extract"},
        "has the outputs particles, others: name one, as select_2D:particles": {"newest": "select_2D"},
        "cannot find the external job J42": {"particles": "J42:particles", "options": {"model": "J42"}},
        "job extract-noise: expected an output with micrographs, found J42:particles with particles": {
            "particles": "J42:particles",
            "job": "extract-noise",
        },
        "job evaluate: expected an output with particles, found J46:exposures with micrographs": {
            "micrographs": "J46:exposures",
            "job": "evaluate",
            "options": {"raw": "J46:exposures"},
        },
        "J46:exposures is of type exposure, expected particle": {
            "particles": "J42:particles",
            "job": "evaluate",
            "options": {"raw": "J46:exposures"},
        },
        "expected a job and its output as J42:particles, found 'raw.star'": {
            "particles": "J42:particles",
            "job": "evaluate",
            "options": {"raw": "raw.star"},
        },
        "no particle is in all of particles, twin": {
            "particles": "J42:particles",
            "job": "evaluate",
            "options": {"twin": "J47:particles"},
        },
    }
    plan = write_plan(*({"name": f"wrong{number}", **entry} for number, entry in enumerate(wrong.values())))
    code, _, errors = client.run(plan)
    assert code == 1
    for number, problem in enumerate(wrong):
        assert any(f"wrong{number}: " in line and problem in line for line in errors.splitlines()), problem
    assert "Traceback" not in errors
    assert not store.external
    assert not (tmp_path / "batch" / "batch.json").exists()
    # the same images twice
    twice = [{"name": name, "particles": "J42:particles"} for name in ("one", "two")]
    code, _, errors = client.run(write_plan(*twice))
    assert code == 1
    assert "two: overlaps with one" in errors
    evaluation = {"job": "evaluate", "options": {"raw": f"{selected.uid}:others"}}
    code, _, errors = client.run(write_plan(*({**source, **evaluation} for source in twice)))
    assert code == 1
    assert "two: overlaps with one" in errors
    store.archived = True
    code, _, errors = client.run(write_plan({"particles": "J42:particles"}))
    assert code == 1
    assert "P3 is archived in cryoSPARC" in errors
    assert not store.external


def test_two_outputs_may_share_their_stacks(
    client: Client, store: Store, write_plan: Callable[..., str]
) -> None:
    store.add_source("particle", particle_table()[:5], "particles_selected")
    plan = write_plan({"particles": "J42:particles"}, {"particles": "J43:particles_selected"})
    code, said, errors = client.run(plan, "--dry-run")
    assert code == 0, errors
    assert "2 sources, 29 images" in said


def test_two_jobs_of_one_output_need_no_names(
    client: Client, store: Store, write_plan: Callable[..., str]
) -> None:
    add_micrographs(store)
    source = {"micrographs": "J43:exposures"}
    jobs = (source, {**source, "job": "extract-noise", "options": {"window_px": 64}})
    code, said, errors = client.run(write_plan(*jobs), "--dry-run")
    assert "two sources have this name" not in errors
    assert code == 0, errors
    assert "_exposures_denoise" in said
    assert "_exposures_extract-noise" in said


def test_the_newest_finished_job_is_taken(
    client: Client, store: Store, write_plan: Callable[..., str]
) -> None:
    store.workspaces.append("W2")
    other, newest = add_particles(store), add_particles(store)
    other.workspace = "W2"
    add_particles(store).status = "failed"
    add_micrographs(store)
    store.jobs["J46"].kind = "patch_ctf_estimation_multi"
    selected = add_particles(store, "particles_selected")
    selected.kind = "select_2D"
    selected.outputs["particles_excluded"] = selected.outputs["particles_selected"]
    plan = write_plan(
        {"newest": "extract_micrographs_multi"},
        {"newest": "extract_micrographs_multi", "workspace": "W2"},
        {"newest": "patch_ctf_estimation_multi"},
        {"newest": "select_2D:particles_selected"},
    )
    code, said, errors = client.run(plan, "--dry-run")
    assert code == 0, errors
    found = [line.split()[0] for line in said.splitlines() if line.startswith("P3_")]
    assert found == [
        f"P3_{newest.uid}_particles",
        f"P3_{other.uid}_particles",
        "P3_J46_exposures",
        f"P3_{selected.uid}_particles_selected",
    ]


def test_a_job_killed_in_cryosparc_stops_its_source_alone(
    client: Client, store: Store, tmp_path: Path, write_plan: Callable[..., str]
) -> None:
    other = add_particles(store)
    plan = write_plan(
        {"name": "killed", "particles": "J42:particles"},
        {"name": "other", "particles": f"{other.uid}:particles"},
        sources_at_once=1,
    )
    # after some lines: when it is at work
    client.double.server.faults = [Fault(LOG[client.version], lambda: store.kill("J44"), skip=3)]
    code, said, errors = client.run(plan)
    assert code == 2, said + errors
    assert [job.status for job in store.external] == ["killed", "completed"]
    states = batch_state(tmp_path)
    assert states["killed"]["state"] == "stopped"
    assert "J44 was ended in cryoSPARC: its status is 'killed'" in states["killed"]["error"]
    assert states["other"]["state"] == "done"
    assert client.run("resume", plan)[0] == 0
    assert [job.status for job in store.external] == ["completed", "completed"]


@pytest.mark.parametrize("operations", [CREATE, LOG], ids=["creating", "working"])
def test_a_killed_driver_is_resumed_in_the_same_job(
    client: Client,
    store: Store,
    tmp_path: Path,
    write_plan: Callable[..., str],
    operations: dict[str, str],
) -> None:
    """SIGKILL as the job is created, so that its name is nowhere noted, and later."""
    plan = write_plan({"name": "one", "particles": "J42:particles"})
    drivers: list[subprocess.Popen[str]] = []
    client.double.server.faults = [Fault(operations[client.version], lambda: drivers[0].kill())]
    with client.start(plan) as driver:
        drivers.append(driver)
        _, errors = driver.communicate(timeout=300)
    assert driver.returncode == -signal.SIGKILL, errors
    (job,) = store.external
    assert job.status == ("building" if operations is CREATE else "running")
    assert batch_state(tmp_path)["one"]["state"] in ("waiting", "running")
    code, said, errors = client.run("resume", plan)
    assert code == 0, said + errors
    assert [job.status for job in store.external] == ["completed"]


def other_jobs(store: Store, weights: Path) -> list[dict[str, Any]]:
    """Return sources of an extraction that takes any window of white noise, and of an evaluation."""
    add_micrographs(store)
    rows = particle_table()[::-1][:20]
    raw = store.add_source("particle", rows)
    return [
        {
            "name": "noise",
            "micrographs": "J43:exposures",
            "title": "Nothing but noise",
            "job": "extract-noise",
            "options": {
                "method": "similarity",
                "similarity_threshold": -1,
                "min_noise_probability": 0,
                "model": str(weights),
                "window_px": 64,
                "precision": "fp32",
            },
        },
        {
            "name": "quality",
            "particles": "J42:particles",
            "job": "evaluate",
            "options": {"reference": f"{raw.uid}:particles", "metrics": ["correlation"]},
        },
    ]


def test_extract_noise_and_evaluate_have_jobs_like_their_commands(
    client: Client, store: Store, tmp_path: Path, write_plan: Callable[..., str], weights: Path
) -> None:
    plan = write_plan(*other_jobs(store, weights))
    code, said, errors = client.run(plan, "--dry-run")
    assert code == 0, errors
    assert "P3 J43:exposures" in said
    assert not store.external
    code, said, errors = client.run(plan)
    assert code == 0, said + errors
    entries = batch_state(tmp_path)
    noise, quality = (store.jobs[entries[name]["details"]["job"]] for name in ("noise", "quality"))
    assert (noise.status, noise.title) == ("completed", "Nothing but noise")
    assert noise.inputs["exposures"].connections == [("J43", "exposures")]
    folder = store.directory / noise.uid / "noise"
    with StackReader(folder / "noise.mrcs") as reader:
        blocks = reader.read(range(reader.n_images))
    assert any(f"{len(blocks)} blocks of 64 px" in text for text in noise.texts())
    assert any("no output: cryoSPARC has no type for noise" in text for text in noise.texts())
    assert any(text.startswith("2 of 2 micrographs (100 %)") for text in noise.texts())
    assert sum(event["images"] for event in noise.events) == 2, "an overlay for each micrograph"
    # grey values are the micrographs' own
    table = (folder / "noise.star").read_text().splitlines()
    first = next(row.split() for row in table if row.startswith(f"000001@{noise.uid}/noise/noise.mrcs"))
    x, y = int(float(first[2])) - 32, int(float(first[3])) - 32
    with StackReader(store.directory / first[1]) as reader:
        np.testing.assert_array_equal(blocks[0], reader.read([0])[0, y : y + 64, x : x + 64])

    assert quality.status == "completed"
    assert {name: entry.connections for name, entry in quality.inputs.items()} == {
        "particles": [("J42", "particles")],
        "reference": [("J44", "particles")],
    }
    texts = quality.texts()
    assert "4 of 24 particles are left out: the other inputs lack them." in texts
    # images beside themselves, by their uids though the rows are in another order
    folder = store.directory / quality.uid / "evaluation"
    found = json.loads((folder / "evaluation.json").read_text())["against_clean"]["denoised"]["correlation"]
    assert found["images"] == 20
    assert found["mean"] == pytest.approx(1, abs=1e-6)  # float32
    assert any(text.startswith("Against the clean images\n") for text in texts)
    assert any(event["images"] and "Ring correlation" in event["text"] for event in quality.events)
    assert not noise.outputs
    assert not quality.outputs


@pytest.mark.parametrize(("number", "state"), [(0, "completed"), (1, "killed")], ids=["noise", "quality"])
def test_other_jobs_are_resumed_too(
    client: Client,
    store: Store,
    tmp_path: Path,
    write_plan: Callable[..., str],
    weights: Path,
    number: int,
    state: str,
) -> None:
    """By a driver that has only the batch's state: killed in cryoSPARC, or done and that alone lost."""
    plan = write_plan(other_jobs(store, weights)[number])
    if state == "killed":
        client.double.server.faults = [Fault(LOG[client.version], lambda: store.kill("J45"), skip=2)]
    code, said, errors = client.run(plan)
    assert code == (2 if state == "killed" else 0), said + errors
    (job,) = store.external
    assert job.status == state
    if state == "completed":
        path = tmp_path / "batch" / "batch.json"
        path.write_text(path.read_text().replace('"state": "done"', '"state": "running"'))
    code, said, errors = client.run("resume", plan)
    assert code == 0, said + errors
    assert [job.status for job in store.external] == ["completed"]


def test_nobody_signed_in(
    clean_environment: Path,
    double: Double5,
    tmp_path: Path,
    write_plan: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    from cryosparc.auth import get_default_auth_config_path

    get_default_auth_config_path.cache_clear()
    plan = write_plan({"particles": "J42:particles"})
    assert main(["batch", plan, "--url", double.url]) == 1
    assert "nobody is signed in" in capfd.readouterr().err
    assert main(["batch", plan]) == 1
    assert "--url is missing" in capfd.readouterr().err
    # no need to be, to ask how things stand
    assert main(["batch", "status", plan]) == 1
    assert "no batch was run here" in capfd.readouterr().err
    assert not (tmp_path / "batch" / "batch.json").exists()
