"""A selection of denoised particles gets its raw images back, by uid."""

from __future__ import annotations

import numpy as np
import pytest
from cryosparc_project import Run, particle_table
from double_store import Store
from double_v5 import Double5

from cryohush.cryosparc_job.cli import main


def select(store: Store, uid: str = "J43") -> str:
    """Select every third particle, in another order, as Select 2D does, with what it adds."""
    table = store.load(uid, "particles")[::-3]
    selected = np.zeros(
        len(table),
        [*((name, table.dtype[name]) for name in table.dtype.names), ("alignments2D/class", "<u4")],
    )
    for name in table.dtype.names:
        selected[name] = table[name]
    selected["alignments2D/class"] = np.arange(len(table))
    return store.add_source("particle", selected, "particles_selected").uid


def restore(double: Double5, *words: str) -> int:
    return main(["restore", "--url", double.url, "--project", "P3", "--workspace", "W1", *words])


def test_the_raw_images_come_back_with_the_selection(
    denoise: Run, store: Store, double: Double5, copying: None
) -> None:
    assert denoise() == 0
    selection = select(store)
    assert restore(double, "--particles", f"{selection}:particles_selected") == 0
    job = store.external[-1]
    assert job.status == "completed"
    raw = {row["uid"]: row for row in particle_table()}
    selected = store.load(selection, "particles_selected")
    result = store.load(job.uid, "particles")
    assert result["uid"].tolist() == selected["uid"].tolist()
    for row in result:
        for name in ("blob/path", "blob/idx", "blob/psize_A", "blob/sign", "ctf/df1_A"):
            assert np.array_equal(row[name], raw[row["uid"]][name]), name
    assert result["alignments2D/class"].tolist() == list(range(len(selected)))
    assert job.inputs["raw"].connections == [("J42", "particles")]


def test_what_cannot_be_followed_is_said_and_can_be_named(
    denoise: Run, store: Store, double: Double5, copying: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert restore(double, "--particles", "J42:particles") == 1
    error = capfd.readouterr().err
    assert "not all of the images are from cryohush: some are in J42. Name the outputs" in error
    assert not store.external
    assert denoise() == 0
    selection = select(store)
    store.jobs["J43"].inputs.clear()
    words = ("--particles", f"{selection}:particles_selected")
    assert restore(double, *words) == 1
    assert "J43 has no input 'particles' any more" in capfd.readouterr().err
    assert restore(double, *words, "--raw", "J42:particles") == 0


def test_particles_that_the_raw_set_lacks_are_refused(
    denoise: Run, store: Store, double: Double5, copying: None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert denoise() == 0
    selection = select(store)
    other = store.add_source("particle", particle_table()[:10]).uid
    words = ("--particles", f"{selection}:particles_selected", "--raw", f"{other}:particles")
    assert restore(double, *words) == 1
    error = capfd.readouterr().err
    assert f"of the 8 particles are not in {other}:particles, first uid" in error
    assert "--raw J42:particles" in error


def test_particles_of_two_denoised_jobs_are_followed_to_both(
    denoise: Run, store: Store, double: Double5, copying: None
) -> None:
    assert denoise() == 0
    assert denoise() == 0
    first, second = store.load("J43", "particles")[:3], store.load("J44", "particles")[3:]
    both = store.add_source("particle", np.concatenate([first, second])).uid
    assert restore(double, "--particles", f"{both}:particles") == 0
    restored = store.load(store.external[-1].uid, "particles")
    assert restored["blob/path"].tolist() == particle_table()["blob/path"].tolist()
