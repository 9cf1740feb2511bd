"""A whole run on a table of cryoSPARC: dark protein stays dark, and the result can be read and imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from particle_files import CS_BLOB, noise, read_stack, save_cs, write_stack

from cryohush.core.cli import main
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import Aborted, OutputError
from cryohush.core.inference import stream
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.io.particles import ParticleSet
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.models.weights import load_model

ROWS = [("B/x.mrc", 2), ("A/x.mrc", 8), ("A/x.mrc", 0), ("C/y.mrc", 4), ("B/x.mrc", 1), ("A/x.mrc", 3)]


def options(weights: Path, **given: Any) -> DenoiseOptions:
    return DenoiseOptions(
        **{"model": str(weights), "precision": "fp32", "batch_size": 2, "threads": 1, **given}
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with dark protein in stacks A and B and white in C; the defocus is in another file."""
    folder = tmp_path / "project"
    for number, name in enumerate(("A/x.mrc", "B/x.mrc", "C/y.mrc")):
        write_stack(folder / name, noise(9, 16, 16, seed=number) * (1 if name[0] == "C" else -1))
    table = np.zeros(len(ROWS), CS_BLOB)
    table["uid"] = np.arange(len(ROWS)) + 2**60
    table["blob/path"], table["blob/idx"] = zip(*ROWS, strict=True)
    table["blob/shape"], table["blob/psize_A"] = 16, 2.0
    table["blob/sign"] = [1 if name[0] == "C" else -1 for name, _ in ROWS]
    save_cs(folder / "extracted.cs", table)
    ctf = np.zeros(len(ROWS), [("uid", "<u8"), ("ctf/df1_A", "<f4")])
    ctf["uid"], ctf["ctf/df1_A"] = table["uid"][::-1], np.arange(len(ROWS))
    save_cs(folder / "ctf.cs", ctf)
    monkeypatch.chdir(folder)
    return folder


def images_of(table: Path) -> NDArray[np.float32]:
    """Return the image of each row."""
    particles = ParticleSet.read(table)
    stacks = [read_stack(path) for path in particles.stacks]
    return np.stack(
        [stacks[stack][image] for stack, image in zip(particles.stack, particles.image, strict=True)]
    )


def test_a_trial_leaves_a_table_of_the_first_rows(project: Path, weights: Path) -> None:
    summary = run_denoise("extracted.cs", "out", options(weights, limit=3))
    assert summary.table is not None
    before, after = np.load("extracted.cs"), np.load(summary.table)
    assert after["uid"].tolist() == before["uid"][:3].tolist()
    np.testing.assert_array_equal(images_of(summary.table).shape, (3, 16, 16))


def test_the_network_sees_white_protein_and_the_output_has_the_sign_of_the_input(
    project: Path, weights: Path
) -> None:
    raw = images_of(project / "extracted.cs")
    summary = run_denoise("extracted.cs", "J9", options(weights), passthrough=["ctf.cs"])
    assert summary.table == Path("J9/particles.cs")
    sign = np.load("extracted.cs")["blob/sign"][:, None, None]
    expected = sign * Denoiser(load_model(weights).module)(sign * raw)
    # batches of another size: the last bits of values of about 100
    np.testing.assert_allclose(images_of(project / "J9/particles.cs"), expected, rtol=0, atol=1e-3)
    # it matters: this network makes something else of the negative
    other = Denoiser(load_model(weights).module)(raw)
    assert np.abs(other - expected)[sign[:, 0, 0] < 0].max() > 0.1


def test_the_table_keeps_its_rows_and_can_be_imported_from_anywhere(project: Path, weights: Path) -> None:
    words = (
        f"denoise extracted.cs --output J9 --passthrough ctf.cs --model {weights} --device cpu --threads 1"
    )
    assert main(words.split()) == 0
    before, after = np.load("extracted.cs"), np.load("J9/particles.cs")
    for name in ("uid", "blob/shape", "blob/psize_A", "blob/sign"):
        assert after[name].tobytes() == before[name].tobytes(), name
    assert after["ctf/df1_A"].tolist() == [5, 4, 3, 2, 1, 0]
    assert after["blob/path"].tolist()[:2] == [b">B/x.mrcs", b">A/x.mrcs"]
    assert after["blob/idx"].tolist() == [1, 2, 0, 0, 0, 1]
    group = yaml.safe_load(Path("J9/particles.csg").read_text())
    assert set(group["results"]) == {"blob", "ctf"}
    for result in group["results"].values():
        assert (result["metafile"], result["num_items"]) == (">particles.cs", 6)
    images = images_of(project / "J9/particles.cs")
    (project / "J9").rename(project.parent / "elsewhere")
    np.testing.assert_array_equal(images_of(project.parent / "elsewhere/particles.cs"), images)


def test_a_stopped_run_is_resumed_to_the_same_bytes(
    project: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_denoise("extracted.cs", "whole", options(weights))
    monkeypatch.setattr(stream, "CHECKPOINT_SECONDS", 0.0)
    answers = iter([False, True])
    with pytest.raises(Aborted):
        run_denoise("extracted.cs", "J9", options(weights), JobContext(should_stop=lambda: next(answers)))
    assert not list(Path("J9").glob("particles*"))
    with pytest.raises(OutputError, match=r"other settings \(input\)"):
        run_denoise("extracted.cs", "J9", options(weights), passthrough=["ctf.cs"], earlier="resume")
    summary = run_denoise("extracted.cs", "J9", options(weights), earlier="resume")
    assert summary.n_resumed == 2
    for name in ("particles.cs", "A/x.mrcs", "B/x.mrcs", "C/y.mrcs"):
        assert (project / "J9" / name).read_bytes() == (project / "whole" / name).read_bytes(), name


def test_neither_table_is_ever_written_over(project: Path, weights: Path) -> None:
    (project / "ctf.cs").rename(project / "particles.csg")
    with pytest.raises(OutputError, match=r"particles\.csg is an input of this run"):
        run_denoise("extracted.cs", ".", options(weights), passthrough=["particles.csg"], earlier="replace")
