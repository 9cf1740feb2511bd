"""The whole flow for particles, by the real client 5.0 and on real particles."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from cryosparc_project import Run, particle_table
from double_store import Store
from double_v5 import Double5

from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.models.weights import load_model
from cryohush.cryosparc_job.cli import main


def test_particles_come_back_with_other_images_and_nothing_else(
    denoise: Run, store: Store, double: Double5, weights: Path
) -> None:
    assert denoise() == 0
    (job,) = store.external
    assert job.status == "completed"
    before = particle_table()
    own = np.load(store.directory / job.uid / f"{job.uid}_particles.cs")
    for name in ("uid", "blob/shape", "blob/psize_A", "blob/sign"):
        assert own[name].tobytes() == before[name].tobytes(), name
    assert {name.partition("/")[0] for name in own.dtype.names} == {"uid", "blob"}
    assert set(own["blob/import_sig"]) == {0}
    # the rest is passed through, rows in order
    whole = store.load(job.uid, "particles")
    for name in ("ctf/df1_A", "location/micrograph_path", "location/center_x_frac"):
        assert whole[name].tobytes() == before[name].tobytes(), name
    # paths are relative to the project, and each row has the denoised image of its raw one
    model = Denoiser(load_model(weights).module)
    for row in range(0, len(own), 5):
        with StackReader(store.directory / before["blob/path"][row].decode()) as reader:
            raw = reader.read([int(before["blob/idx"][row])])
        with StackReader(store.directory / own["blob/path"][row].decode()) as reader:
            denoised = reader.read([int(own["blob/idx"][row])])
        # dark protein: the network sees the negative; batches of another size differ in the last bits
        np.testing.assert_allclose(denoised, -model(-raw), rtol=0, atol=1e-4)

    assert_the_job_shows_what_it_does(store)
    assert_requests_are_few(double)


def test_a_trial_gives_the_first_particles_with_all_their_slots(denoise: Run, store: Store) -> None:
    assert denoise("--limit", "5") == 0
    (job,) = store.external
    assert job.title.startswith("Denoised the first 5 of J42:particles")
    whole, before = store.load(job.uid, "particles"), particle_table()
    for name in ("uid", "ctf/df1_A", "location/center_x_frac"):
        assert whole[name].tolist() == before[name][:5].tolist(), name


def assert_the_job_shows_what_it_does(store: Store) -> None:
    (job,) = store.external
    assert job.inputs["particles"].connections == [("J42", "particles")]
    assert "Classify, refine" in job.description
    texts = job.texts()
    assert sum("24 of 24 particles (100 %)" in text for text in texts) == 1, "one line of progress"
    assert any("SHA-256" in text for text in texts)
    assert any("restore" in text for text in texts)
    pictures = [event["text"] for event in job.events if event["images"]]
    assert [text.split(",")[0] for text in pictures] == [
        "Raw",
        "Power by resolution",
        "Correlation of raw and denoised",
    ]
    assert job.tile is not None
    assert job.outputs["particles"].image is not None
    assert all(data.startswith(b"\x89PNG") for _, data in store.assets)


def assert_requests_are_few(double: Double5) -> None:
    counts = Counter(double.server.operations)
    for once in ("jobs.create", "jobs.connect", "jobs.add_external_output", "jobs.mark_running"):
        assert counts[once] == 1, once
    assert counts["jobs.save_output"] == counts["jobs.mark_completed"] == 1
    # too short a run for more progress and for watching: all others are needed once
    assert sum(counts.values()) <= 65, counts


def test_a_bad_image_ends_the_job_or_is_named(denoise: Run, store: Store) -> None:
    path = store.directory / particle_table()["blob/path"][0].decode()
    data = bytearray(path.read_bytes())
    data[1024 : 1024 + 128 * 128 * 4] = bytes(128 * 128 * 4)
    path.write_bytes(data)
    assert denoise() == 1
    (job,) = store.external
    assert job.status == "failed"
    assert "constant" in job.texts("error")[-1]
    assert not list((store.directory / job.uid).rglob("*.mrcs"))
    assert not job.outputs["particles"].files
    # in the same job, with another option
    assert denoise("--skip-bad", "--resume", job.uid, particles=None, workspace=None) == 0
    assert any(text.startswith("unchanged: 1@") for text in job.texts("warning"))
    assert len(store.external) == 1
    assert job.status == "completed"


def test_scored_particles_have_outputs_for_the_trusted_and_the_suspicious(
    double: Double5, signed_in: Path, store: Store
) -> None:
    """Blobs of which every tenth is missing, dark as cryoSPARC's are."""
    n, box = 120, 128
    rng = np.random.default_rng(1)
    table = np.resize(particle_table(), n)
    table["uid"], table["blob/idx"] = np.arange(1, n + 1), np.arange(n)
    table["ctf/df1_A"] = np.arange(n)
    job = store.add_source("particle", table, "blobs")
    name = f"{job.uid}/extract/blobs.mrc"
    table["blob/path"] = name.encode()
    store._write(job, "blobs", table, passed=False)
    axis = np.arange(box) - box // 2
    width = rng.uniform(14, 18, size=n)
    images = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * width[:, None, None] ** 2))
    images[::10] = 0
    images = (rng.normal(size=images.shape) - images).astype(np.float32)
    (store.directory / name).parent.mkdir(parents=True)
    with StackWriter(store.directory / name, images.shape, pixel_size_angstrom=1.5, label="test") as writer:
        writer.write(images)
    where = ["--url", double.url, "--project", "P3", "--workspace", "W1", "--particles", f"{job.uid}:blobs"]
    assert main(["denoise", *where, "--score", "--context", "none", "--device", "cpu", "--threads", "1"]) == 0
    (made,) = store.external
    assert list(made.outputs) == ["particles", "particles_trusted", "particles_suspicious"]
    whole, trusted, suspicious = (store.load(made.uid, name) for name in made.outputs)
    assert sorted([*trusted["uid"], *suspicious["uid"]]) == sorted(whole["uid"])
    empty = set(range(1, n + 1, 10))
    assert len(empty & set(suspicious["uid"].tolist())) > 10
    for part in (trusted, suspicious):  # each row has its own image, and what passes through
        rows = part["uid"].astype(int) - 1
        assert part["blob/idx"].tolist() == whole["blob/idx"][rows].tolist()
        assert part["ctf/df1_A"].tolist() == rows.tolist()
