"""A run of a network that takes context: found once, the same however the run goes, and only where wanted."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from particle_files import noise, read_stack, write_stack, write_table

from cryohush.core.advice import COMPANY
from cryohush.core.config.denoise import CONTEXT_NAME, DenoiseOptions
from cryohush.core.context.contexts import find_contexts
from cryohush.core.errors import Aborted, OutputError
from cryohush.core.io.particles import ParticleSet
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.denoise import denoise, run_denoise
from cryohush.core.models.context_average import ContextAverage
from cryohush.core.models.weights import save_model

SMALL: dict[str, Any] = {"widths": [8, 8], "blocks": [1, 1], "unshuffle": 2}
BOX, N = 32, 130
NAMES = [f"{i + 1:06d}@a.mrcs" for i in range(50)] + [f"{i + 1:06d}@b.mrcs" for i in range(N - 50)]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network that returns a share of the first estimate of its context, and nothing else."""
    network = ContextAverage(share=0.0, **SMALL)
    with torch.no_grad():
        for parameter in network.head.parameters():
            parameter.zero_()
    save_model(tmp_path / "weights.safetensors", network, "context_average", {"share": 0.0, **SMALL}, {})
    return tmp_path / "weights.safetensors"


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Blobs of several sizes in noise, in two stacks."""
    axis = np.arange(BOX) - BOX // 2
    width = np.random.default_rng(1).uniform(2, 6, size=N)
    blobs = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * width[:, None, None] ** 2))
    images = (noise(N, BOX, BOX, seed=3) + 2 * blobs).astype(np.float32)
    write_stack(tmp_path / "a.mrcs", images[:50])
    write_stack(tmp_path / "b.mrcs", images[50:])
    write_table(tmp_path / "particles.star", NAMES, box_px=32)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "particles.star"


def options(weights: Path, **given: Any) -> DenoiseOptions:
    return DenoiseOptions(
        **{"model": str(weights), "precision": "fp32", "batch_size": 8, "threads": 2, **given}
    )


def write_ctfs(
    table: Path,
    names: Sequence[str],
    defocus_angstrom: Iterable[int],
    amplitude_contrast: float = 0.1,
    phase_shift: float = 0.0,
    changed: tuple[str, int] = ("rlnCtfDataAreCtfPremultiplied", 0),
) -> None:
    """A table of images with their defocus; `changed` says what was done to their CTFs."""
    label, value = changed
    rows = "".join(
        f"{name} 1 {defocus} {defocus} 0 {phase_shift}\n"
        for name, defocus in zip(names, defocus_angstrom, strict=True)
    )
    table.write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n_rlnVoltage\n"
        f"_rlnSphericalAberration\n_rlnAmplitudeContrast\n_{label}\n"
        f"1 3.0 300 2.7 {amplitude_contrast:g} {value}\n\n"
        "data_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n_rlnDefocusU\n_rlnDefocusV\n"
        f"_rlnDefocusAngle\n_rlnPhaseShift\n{rows}\n"
    )


def stacks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.mrcs"))}


def test_the_rest_of_the_stack_reaches_the_network_and_the_record(table: Path, weights: Path) -> None:
    denoise(table, "with", options(weights))
    denoise(table, "without", options(weights, context="none"))
    assert np.abs(read_stack(Path("with/a.mrcs"))).max() > 0.1
    record = json.loads(Path("with/cryohush.json").read_text())
    assert record["context"]["used"] is True
    assert f"{N} images" in record["context"]["groups"][0]
    # a network that shows its context alone shows a flat image without
    assert np.ptp(read_stack(Path("without/a.mrcs")), axis=(1, 2)).max() < 1e-5
    assert json.loads(Path("without/cryohush.json").read_text())["context"]["used"] is False
    assert not (Path("without") / CONTEXT_NAME).exists()
    said = {
        name: COMPANY in html.unescape(Path(name, "view.html").read_text()) for name in ("with", "without")
    }
    assert said == {"with": True, "without": False}


def test_a_run_that_was_stopped_goes_on_with_the_same_context(table: Path, weights: Path) -> None:
    run_denoise(table, "once", options(weights))
    seen = 0

    def stop() -> bool:
        nonlocal seen
        seen += 1
        return seen > 4

    with pytest.raises(Aborted):
        run_denoise(table, "twice", options(weights), JobContext(should_stop=stop))
    assert (Path("twice") / CONTEXT_NAME).exists()
    run_denoise(table, "twice", options(weights), earlier="resume")
    assert stacks(Path("twice")) == stacks(Path("once"))
    assert Path("twice", CONTEXT_NAME).read_bytes() == Path("once", CONTEXT_NAME).read_bytes()


def test_other_images_under_the_same_names_have_a_context_of_their_own(table: Path, weights: Path) -> None:
    """Extracted again, with another box size, or of another kind: the earlier context is not theirs."""
    run_denoise(table, "twice", options(weights))
    rows = table.read_text()
    for box in (BOX, 40):
        axis = np.arange(box) - box // 2
        rings = np.exp(-((np.hypot(axis[:, None], axis) - 8) ** 2) / 8)
        for seed, (name, n) in enumerate([("a.mrcs", 50), ("b.mrcs", N - 50)]):
            write_stack(Path(name), (noise(n, box, box, seed=seed) - 2 * rings).astype(np.float32))
        table.write_text(rows.replace(f" {BOX} ", f" {box} "))
        run_denoise(table, "twice", options(weights), earlier="resume")
        run_denoise(table, f"once{box}", options(weights))
        assert stacks(Path("twice")) == stacks(Path(f"once{box}"))


def test_corrected_ctfs_are_taken_when_a_run_goes_on(table: Path, weights: Path) -> None:
    defocus = 80 * np.arange(N)
    write_ctfs(table, NAMES, 1000 + defocus)
    run_denoise(table, "twice", options(weights))
    write_ctfs(table, NAMES, 10000 + defocus)
    run_denoise(table, "once", options(weights))
    assert stacks(Path("twice")) != stacks(Path("once"))
    run_denoise(table, "twice", options(weights), earlier="resume")
    assert stacks(Path("twice")) == stacks(Path("once"))


@pytest.mark.parametrize("lost", [["logfile.pdf", "montage.png", "view.html"], ["view.html"]])
def test_a_report_that_was_not_finished_is_made_as_if_it_had_been(
    table: Path, weights: Path, lost: list[str]
) -> None:
    """By a kill or a full disk: the verdict, and what the stack added, are in the record."""
    once = denoise(table, "out", options(weights))
    page = Path("out/view.html").read_bytes()
    for name in lost:
        Path("out", name).unlink()
    again = denoise(table, "out", options(weights), earlier="resume")
    assert again.was_complete
    assert (again.gain, again.context, again.suspicious) == (once.gain, once.context, once.suspicious)
    assert again.gain["verdict"]
    assert Path("out/view.html").read_bytes() == page
    assert all(Path("out", name).exists() for name in lost)


def test_a_page_of_the_users_own_is_not_replaced(table: Path, weights: Path) -> None:
    Path("out").mkdir()
    Path("out/view.html").write_text("mine")
    with pytest.raises(OutputError, match=r"view\.html"):
        denoise(table, "out", options(weights))
    assert Path("out/view.html").read_text() == "mine"


def test_the_result_does_not_depend_on_the_number_of_workers(table: Path, weights: Path) -> None:
    run_denoise(table, "one", options(weights, threads=1))
    run_denoise(table, "three", options(weights, threads=3))
    assert stacks(Path("one")) == stacks(Path("three"))


def test_a_table_of_few_images_is_denoised_without(table: Path, weights: Path) -> None:
    write_table(table.with_name("few.star"), [f"{i + 1:06d}@a.mrcs" for i in range(20)], box_px=32)
    run_denoise(table.with_name("few.star"), "few", options(weights))
    record = json.loads(Path("few/cryohush.json").read_text())
    assert record["context"]["used"] is False
    assert "20 images, at least 100 are needed" in record["context"]["groups"][0]


def test_a_context_of_few_images_is_found_anew_once_there_are_many(table: Path, weights: Path) -> None:
    """As on the fly: stacks to come get the new one, those that are done stay as they are."""
    names: list[str] = []
    for stack, n, told in (("c", 110, 110), ("d", 200, 110), ("e", 200, 510)):
        write_stack(Path(f"{stack}.mrcs"), noise(n, BOX, BOX, seed=n + told))
        names += [f"{i + 1:06d}@{stack}.mrcs" for i in range(n)]
        write_table(table, names, box_px=BOX)
        before = stacks(Path("grown"))
        run_denoise(table, "grown", options(weights), earlier="resume")
        group = json.loads(Path("grown/cryohush.json").read_text())["context"]["groups"][0]
        assert group.startswith(f"optics group 1: {told} images")
        assert stacks(Path("grown")).items() >= before.items()


def test_copies_of_an_image_are_no_like_views_of_it(table: Path, weights: Path) -> None:
    """A table that was expanded by symmetry names each image many times: it says no more than one name."""
    write_table(table.with_name("expanded.star"), np.repeat(NAMES, 14).tolist(), box_px=32)
    run_denoise(table, "once", options(weights))
    run_denoise(table.with_name("expanded.star"), "expanded", options(weights))
    assert stacks(Path("expanded")) == stacks(Path("once"))
    once, expanded = (json.loads(Path(name, "cryohush.json").read_text()) for name in ("once", "expanded"))
    assert expanded["context"]["groups"] == once["context"]["groups"]
    assert expanded["gain"] == once["gain"]


@pytest.mark.parametrize("other", ["absolute", "link.mrcs", "folder/../b.mrcs"])
def test_a_stack_with_two_names_is_one_stack(table: Path, weights: Path, other: str) -> None:
    """Two names of it, as in joined tables: an image keeps its own CTF."""
    Path("folder").mkdir()
    Path("link.mrcs").symlink_to("b.mrcs")
    name = str(Path("b.mrcs").absolute()) if other == "absolute" else other
    rows = [(f"{i + 1:06d}@{name}", 9000 + 300 * i) for i in range(40, 80)]
    rows += [(f"{i + 1:06d}@b.mrcs", 9000 + 300 * i) for i in range(40)]
    rows += [(f"{i + 1:06d}@a.mrcs", 20000) for i in range(50)]
    write_ctfs(table, *zip(*rows, strict=True))
    found = find_contexts(ParticleSet.read(table))
    for stack in found.images.values():
        wanted = [9000 + 300 * i for i in range(80)] if len(stack.index) == 80 else [20000] * 50
        assert stack.optics.defocus_u_angstrom.tolist() == wanted
    run_denoise(table, "out", options(weights))
    assert json.loads(Path("out/cryohush.json").read_text())["context"]["used"] is True


def test_ctfs_that_are_not_used_are_said(table: Path) -> None:
    write_ctfs(table, NAMES, [10000] * N, amplitude_contrast=7)
    lines: list[str] = []
    assert find_contexts(ParticleSet.read(table), log=lines.append).contexts[0].group_optics is None
    assert any("not used" in line and "amplitude contrast from 0 to 1, found 7" in line for line in lines)


@pytest.mark.parametrize(("phase_shift", "is_odd"), [(0, False), (1.5708, True), (90, False)])
def test_phase_shifts_in_radians_are_noticed(table: Path, phase_shift: float, is_odd: bool) -> None:
    write_ctfs(table, NAMES, [10000] * N, phase_shift=phase_shift)
    lines: list[str] = []
    found = find_contexts(ParticleSet.read(table), log=lines.append)
    (stack, *_) = found.images.values()
    assert stack.optics.phase_shift_degrees.tolist() == pytest.approx([phase_shift] * 50)
    assert any("radians" in line for line in lines) is is_odd


@pytest.mark.parametrize(
    ("defocus", "said"),
    [
        ([10000] * N, ""),
        ([-10000] * 20 + [10000] * (N - 20), ""),  # as it may be close to focus
        (
            [10000] * 20 + [-10000] * (N - 20),
            "110 of 130 particles have a negative defocus",
        ),
        ([0] * N, "every defocus is 0"),
        ([0] * (N - 1) + [300], ""),
    ],
)
def test_a_defocus_of_the_other_sign_and_none_at_all_are_noticed(
    table: Path, defocus: list[int], said: str
) -> None:
    write_ctfs(table, NAMES, defocus)
    lines: list[str] = []
    find_contexts(ParticleSet.read(table), log=lines.append)
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == bool(said)
    assert said in "".join(warnings)


@pytest.mark.parametrize("label", ["rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"])
def test_ctf_premultiplied_images_have_no_context(table: Path, label: str) -> None:
    """Their noise is as coloured as their signal; where phases were flipped it is not."""
    found = {}
    for value in (0, 1):
        write_ctfs(table, NAMES, range(10000, 10000 + 80 * N, 80), changed=(label, value))
        found[value] = find_contexts(ParticleSet.read(table))
    assert len(found[0].contexts) == 1
    if "Premultiplied" in label:
        assert not found[1].contexts
        assert "multiplied by their CTF" in next(iter(found[1].notes.values()))
    else:
        assert len(found[1].contexts) == 1


def test_masks_and_hot_pixels_do_not_reach_the_context(table: Path) -> None:
    whole = find_contexts(ParticleSet.read(table)).contexts[0]
    axis = np.arange(BOX) - BOX // 2
    masked = axis[:, None] ** 2 + axis**2 > 14**2
    for name in ("a.mrcs", "b.mrcs"):
        images = read_stack(Path(name))
        images[:, masked] = 0.0
        images[::4, 3 + BOX // 4, BOX // 2] += 500.0
        write_stack(Path(name), images)
    found = find_contexts(ParticleSet.read(table)).contexts[0]
    assert found.noise_variance == pytest.approx(whole.noise_variance, rel=0.15)
    # the mean image through the CTF: the particle, not the mask
    ours, theirs = found.covariance.mean, whole.covariance.mean
    assert float((ours - theirs).norm() / theirs.norm()) < 0.3
