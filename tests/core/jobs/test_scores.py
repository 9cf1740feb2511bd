"""Scores of particles: what is empty falls behind, and the table of suspicious ones holds it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile
from particle_files import CS_BLOB, save_cs, write_stack, write_table

from cryohush.core.config.denoise import SUSPICIOUS_BELOW, DenoiseOptions
from cryohush.core.io.cs import SCORE_FIELD
from cryohush.core.io.particles import SCORE_LABEL
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.denoise import run_denoise

BOX, N, EMPTY = 32, 240, 24
LAST_OF_FIRST = 100


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Blobs of several sizes in two stacks; every tenth image shows none."""
    axis = np.arange(BOX) - BOX // 2
    width = np.random.default_rng(1).uniform(4, 6, size=N)
    blobs = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * width[:, None, None] ** 2))
    blobs[::10] = 0
    images = (np.random.default_rng(3).normal(size=blobs.shape) + blobs).astype(np.float32)
    write_stack(tmp_path / "a.mrcs", images[:LAST_OF_FIRST])
    write_stack(tmp_path / "b.mrcs", images[LAST_OF_FIRST:])
    names = [f"{i + 1:06d}@a.mrcs" for i in range(LAST_OF_FIRST)]
    names += [f"{i + 1:06d}@b.mrcs" for i in range(N - LAST_OF_FIRST)]
    order = np.random.default_rng(2).permutation(N)
    write_table(tmp_path / "particles.star", [names[i] for i in order], box_px=BOX)
    np.save(tmp_path / "order.npy", order)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "particles.star"


def options(**given: Any) -> DenoiseOptions:
    return DenoiseOptions(
        **{"precision": "fp32", "batch_size": 16, "context": "none", "score": True, **given}
    )


def rows(path: str) -> Any:
    return starfile.read(path)["particles"]


def test_images_without_a_particle_score_lowest(table: Path) -> None:
    summary = run_denoise(table, "out", options())
    scores = rows("out/particles.star")[SCORE_LABEL].to_numpy()
    empty = np.load("order.npy") % 10 == 0
    assert scores[empty].max() < np.quantile(scores[~empty], 0.1)
    assert (scores[empty] < SUSPICIOUS_BELOW).mean() > 0.9
    assert (scores[~empty] < SUSPICIOUS_BELOW).mean() < 0.05
    assert summary.suspicious == int((scores < SUSPICIOUS_BELOW).sum())
    assert json.loads(summary.record.read_text())["suspicious_particles"] == summary.suspicious


def test_trusted_and_suspicious_rows_make_up_the_table(table: Path) -> None:
    run_denoise(table, "out", options())
    whole, trusted, suspicious = (
        rows(f"out/particles{part}.star") for part in ("", "_trusted", "_suspicious")
    )
    assert set(trusted.rlnImageName).isdisjoint(suspicious.rlnImageName)
    assert sorted([*trusted.rlnImageName, *suspicious.rlnImageName]) == sorted(whole.rlnImageName)
    assert trusted[SCORE_LABEL].min() >= SUSPICIOUS_BELOW > suspicious[SCORE_LABEL].max()
    # the way back goes for them, too
    assert set(suspicious.rlnImageOriginalName) <= set(rows(str(table)).rlnImageName)


def test_scores_can_be_had_afterwards_without_denoising_anew(table: Path) -> None:
    run_denoise(table, "once", options())
    run_denoise(table, "later", options(score=False))
    assert SCORE_LABEL not in rows("later/particles.star")
    summary = run_denoise(table, "later", options(), earlier="resume")
    assert summary.n_resumed == summary.n_images == N
    for name in ("particles.star", "particles_trusted.star", "particles_suspicious.star"):
        assert (
            Path("later", name).read_bytes().replace(b"later/", b"once/") == Path("once", name).read_bytes()
        )


def test_the_tables_own_scores_are_replaced_and_all_else_stays(table: Path) -> None:
    text = table.read_text().replace("_rlnImageName #1", f"_rlnImageName #1\n_{SCORE_LABEL} #2")
    lines = [f"{line.rstrip()} 7.5" if "@" in line else line for line in text.splitlines()]
    labels = [line.split()[0] for line in lines if line.startswith("_rln")]
    assert labels.count(f"_{SCORE_LABEL}") == 1
    # the new label is the last of its table
    lines.remove(f"_{SCORE_LABEL} #2")
    last = max(i for i, line in enumerate(lines) if line.startswith("_rln"))
    n_labels = int(lines[last].split("#")[1]) + 1
    lines.insert(last + 1, f"_{SCORE_LABEL} #{n_labels}")
    table.write_text("\n".join(lines) + "\n")
    run_denoise(table, "out", options())
    found = rows("out/particles.star")
    assert list(found.columns).count(SCORE_LABEL) == 1
    assert found[SCORE_LABEL].max() <= 1


def test_too_few_particles_get_no_scores_and_the_log_says_so(table: Path) -> None:
    lines: list[str] = []
    summary = run_denoise(table, "out", options(limit=60), JobContext(log=lines.append))
    assert any("no scores: at least 100 particles" in line and "60" in line for line in lines)
    assert summary.suspicious is None
    assert SCORE_LABEL not in rows("out/particles.star")
    assert not Path("out/particles_suspicious.star").exists()


def test_images_that_could_not_be_denoised_score_0(table: Path) -> None:
    import mrcfile

    with mrcfile.open("a.mrcs", mode="r+") as stack:
        stack.data[5] = np.nan
    run_denoise(table, "out", options(skip_bad=True))
    found = rows("out/particles.star")
    bad = found.rlnImageOriginalName == "000006@a.mrcs"
    assert found[SCORE_LABEL][bad].tolist() == [0.0]


def mask(images: Any) -> None:
    """Zeros outside a circle, on counts around 100, as RELION and cryoSPARC mask particles."""
    axis = np.arange(BOX) - BOX // 2
    images += 100
    images[:, np.hypot(axis[:, None], axis) > 14] = 0


def hot_pixel(images: Any) -> None:
    images[:, 3, 25] = 1000


def hot_pixel_on_the_particle(images: Any) -> None:
    images[:, 14, 17] = -1000


def strip(images: Any) -> None:
    """As beyond the edge of a micrograph; it hides hardly anything of the particle."""
    images[:, :, :5] = images.mean()


@pytest.mark.parametrize("spoil", [mask, hot_pixel, hot_pixel_on_the_particle, strip])
def test_masks_and_hot_pixels_do_not_decide_how_ordinary_a_particle_is(
    table: Path, spoil: Callable[[Any], None]
) -> None:
    import mrcfile

    run_denoise(table, "clean", options())
    clean = rows("clean/particles.star")
    chosen = [1, 7, 20, 44, 63, 95]  # 20: empty
    with mrcfile.open("a.mrcs", mode="r+") as stack:
        some = stack.data[chosen].copy()
        spoil(some)
        stack.data[chosen] = some
    run_denoise(table, "spoilt", options())
    spoilt = rows("spoilt/particles.star")
    number = spoilt.rlnImageOriginalName.str.split("@").str[0].astype(int) - 1
    are_spoilt = (number.isin(chosen) & spoilt.rlnImageOriginalName.str.endswith("@a.mrcs")).to_numpy()
    before, after = clean[SCORE_LABEL].to_numpy(), spoilt[SCORE_LABEL].to_numpy()
    # the half of the stack by which all are judged may be another one by a few images
    np.testing.assert_allclose(after[~are_spoilt], before[~are_spoilt], atol=0.1)
    np.testing.assert_allclose(after[are_spoilt], before[are_spoilt], atol=0.35)
    assert ((after < SUSPICIOUS_BELOW) == (before < SUSPICIOUS_BELOW))[are_spoilt].all()


def test_cs_tables_get_a_field_and_two_tables(table: Path) -> None:
    names = rows(str(table)).rlnImageName
    cs = np.zeros(N, CS_BLOB)
    cs["uid"] = np.arange(N) + 1
    cs["blob/path"] = [name.split("@")[1] for name in names]
    cs["blob/idx"] = [int(name.split("@")[0]) - 1 for name in names]
    cs["blob/shape"], cs["blob/psize_A"], cs["blob/sign"] = BOX, 2.0, 1.0
    save_cs(Path("particles.cs"), cs)
    run_denoise(Path("particles.cs"), "out", options())
    run_denoise(table, "star", options(pixel_size_angstrom=2.0))
    whole, trusted, suspicious = (
        np.load(f"out/particles{part}.cs") for part in ("", "_trusted", "_suspicious")
    )
    of_star = rows("star/particles.star")[SCORE_LABEL].to_numpy()
    np.testing.assert_allclose(whole[SCORE_FIELD], of_star, atol=2e-6)
    assert sorted([*trusted["uid"], *suspicious["uid"]]) == cs["uid"].tolist()
    assert trusted[SCORE_FIELD].min() >= SUSPICIOUS_BELOW > suspicious[SCORE_FIELD].max()
    for part in (trusted, suspicious):  # each row still names its own image
        at = {uid: (path, idx) for uid, path, idx in whole[["uid", "blob/path", "blob/idx"]].tolist()}
        assert all(
            at[uid] == (path, idx) for uid, path, idx in part[["uid", "blob/path", "blob/idx"]].tolist()
        )
