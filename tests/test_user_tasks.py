"""The scores of the benchmarks of users' tasks, against truths that need no program."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch

from cryohush.core.classical.covariance import estimate_covariance
from cryohush.core.context.stack_context import fit_context
from cryohush.core.imaging.ctf import CtfParameters
from cryohush.core.imaging.filters import low_pass
from cryohush.core.imaging.projection import Projector, random_rotations, rotations_from_euler
from cryohush.core.imaging.resample import shift_images

BENCHMARKS = Path(__file__).parents[1] / "examples/benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Any]:
    """Imports a script of the benchmarks by its name."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def sorting(benchmark: Any) -> ModuleType:
    return benchmark("sorting")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def classification(benchmark: Any) -> ModuleType:
    return benchmark("classification")  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def tasks(benchmark: Any) -> ModuleType:
    return benchmark("user_tasks")  # type: ignore[no-any-return]


def blobs(box: int = 32) -> torch.Tensor:
    """`(z, y, x)` some Gaussians within half the box, without symmetry."""
    axis = torch.arange(box).float() - box // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    generator = torch.Generator().manual_seed(3)
    places = (torch.rand(12, 3, generator=generator) - 0.5) * box * 0.4
    return sum(  # type: ignore[return-value]
        torch.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 8) for a, b, c in places.tolist()
    )


def test_purity_counts_what_has_to_be_kept_for_95_percent_of_the_particles(sorting: ModuleType) -> None:
    good = torch.tensor([True] * 20 + [False] * 10)
    # the 19th best particle stands behind 5 of the junk
    scores = torch.cat(
        [torch.arange(18) + 100.0, torch.tensor([50.0, 10.0]), torch.arange(5) + 60.0, torch.zeros(5)]
    )
    assert sorting.purity(scores, good) == pytest.approx(19 / 24)
    assert sorting.purity(torch.arange(30).flip(0).float(), good) == 1.0
    assert sorting.auc(scores, good) == pytest.approx((18 * 10 + 5 + 5) / 200)


def test_gaussian_images_have_the_distance_of_their_dimensions(sorting: ModuleType) -> None:
    """Of images from the Gaussian itself the mean squared Mahalanobis distance is their dimension."""
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(400, 32, 32, generator=generator)
    context = fit_context(images, None, pixel_size_angstrom=2.0, radius_px=12)
    found = sorting.covariance_scores(context, images, None)
    basis = context.covariance.basis
    # what the circle leaves of white noise in each function
    values = estimate_covariance(images * sorting.circle(32, 12.0), 0.0, basis).eigenvalues
    seen = sum(float(one.sum()) * (1 if order == 0 else 2) for order, one in enumerate(values))
    assert -float(found["typical"].mean()) == pytest.approx(seen / context.noise_variance, rel=0.05)


def test_views_of_one_direction_have_no_spread_and_random_ones_a_radian(classification: ModuleType) -> None:
    turns = rotations_from_euler(torch.tensor([[30.0, 50.0, psi] for psi in (0.0, 80.0, 200.0)]))
    # three turns in the plane are one view
    assert classification.view_spread(turns) == pytest.approx(0, abs=0.1)
    # the mean angle between two random axes without sign is one radian
    random = random_rotations(3000, torch.Generator().manual_seed(1))
    assert classification.view_spread(random) == pytest.approx(math.degrees(1), abs=0.5)


def test_turning_back_by_psi_and_moving_by_the_origin_brings_a_view_into_register(
    classification: ModuleType,
) -> None:
    projector = Projector(blobs())
    psi = torch.tensor([0.0, 40.0, 130.0, -75.0])
    euler = torch.tensor([[20.0, 65.0, 0.0]]).repeat(4, 1)
    upright = projector(rotations_from_euler(euler))
    euler[:, 2] = psi
    turned = projector(rotations_from_euler(euler))
    shifts = torch.tensor([[0.0, 0.0], [1.0, -2.0], [-1.5, 0.5], [2.0, 2.0]])
    # RELION's origin is the opposite of where the particle lies
    found = classification.aligned(shift_images(turned, shifts), -shifts, psi)
    error = (found - upright).square().mean() / upright.var()
    assert float(error) < 0.01
    wrong = classification.aligned(shift_images(turned, shifts), -shifts, -psi)
    assert float((wrong - upright)[1:].square().mean() / upright.var()) > 0.1


def test_equal_images_average_to_nyquist_and_unlike_ones_to_nothing(classification: ModuleType) -> None:
    generator = torch.Generator().manual_seed(4)
    one = torch.randn(1, 32, 32, generator=generator)
    assert classification.coherent_to(one.repeat(5, 1, 1), 2.0) == pytest.approx(1 / 4)
    noise = torch.randn(50, 32, 32, generator=generator)
    assert classification.coherent_to(noise, 2.0) == 0
    assert classification.coherent_to(noise[:1], 2.0) == 0


def test_the_angle_in_the_plane_is_judged_between_particles_seen_alike(classification: ModuleType) -> None:
    euler = torch.tensor([[20.0, 65.0, psi] for psi in (0.0, 40.0, 130.0)] + [[200.0, 65.0, 0.0]])
    rotations, psi = rotations_from_euler(euler), euler[:, 2]
    # of four particles three show one view: three pairs
    assert classification.plane_errors(rotations, psi).tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    # a class may lie in any turn
    assert classification.plane_errors(rotations, psi + 77).tolist() == pytest.approx([0, 0, 0], abs=1e-3)
    found = classification.plane_errors(rotations, psi + torch.tensor([0.0, 10.0, 0.0, 50.0]))
    assert sorted(found.tolist()) == pytest.approx([0, 10, 10], abs=1e-3)


def test_an_average_is_right_up_to_where_it_was_cut_off(classification: ModuleType) -> None:
    generator = torch.Generator().manual_seed(7)
    one = torch.randn(1, 64, 64, generator=generator)
    assert classification.faithful_to(one[0], one.repeat(3, 1, 1), 2.0) == pytest.approx(1 / 4)
    blurred = low_pass(one, 8.0, 2.0)[0]
    other = torch.randn(64, 64, generator=generator)
    # beyond 1/8 per Å the average shows something else
    mixed = blurred + other - low_pass(other[None], 8.0, 2.0)[0]
    assert classification.faithful_to(mixed, one.repeat(3, 1, 1), 2.0) == pytest.approx(1 / 8, abs=2 / 128)
    assert classification.faithful_to(other, one.repeat(3, 1, 1), 2.0) == pytest.approx(0, abs=2 / 128)


def test_classes_settle_where_no_later_iteration_moves_a_tenth(classification: ModuleType) -> None:
    assert classification.settled([1.0, 0.3, 0.05, 0.2, 0.09, 0.02]) == 5
    assert classification.settled([1.0, 0.5, 0.2]) == 4


def test_classes_stay_of_which_more_than_half_are_particles(benchmark: Any) -> None:
    classes = torch.tensor([1, 1, 1, 3, 3, 4])
    good = torch.tensor([True, True, False, True, False, False])
    stays = [True, True, True, False, False, False]
    assert benchmark("sorted_maps").good_classes(classes, good).tolist() == stays


def test_templates_are_views_of_half_a_sphere(benchmark: Any) -> None:
    picking = benchmark("hard_picking")

    class Views:
        def projector(self, rotations: torch.Tensor) -> torch.Tensor:
            self.directions = rotations[:, :, 2]
            return torch.zeros(len(rotations), 32, 32)

    views = Views()
    picking.templates(views)
    directions = views.directions
    assert float(directions[:, 2].min()) > 0
    # evenly: each has a neighbour, and none is nearer than a third of the mean angle between eight in 2 pi
    cosine = directions @ directions.T - 2 * torch.eye(len(directions))
    nearest = torch.rad2deg(cosine.amax(1).acos())
    assert float(nearest.min()) > 15
    assert float(nearest.max()) < 60


def test_flipped_phases_have_no_ring_of_the_wrong_sign(benchmark: Any) -> None:
    values = (torch.full((3,), value) for value in (20000.0, 20000.0, 0.0, 300.0, 2.7, 0.1, 0.0))
    optics = CtfParameters(*values)
    clean = torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(10))
    transfer = benchmark("projection_matching").Optics(optics, 4.0).transfer(64)
    seen = torch.fft.irfft2(torch.fft.rfft2(clean) * transfer, s=(64, 64))

    def share_of_wrong_sign(images: torch.Tensor) -> float:
        product = (torch.fft.rfft2(images) * torch.fft.rfft2(clean).conj()).real
        # the edge of the transform, where a value stands for itself and its conjugate, is left out
        return float((product[:, 1:32, 1:32] < 0).float().mean())

    assert share_of_wrong_sign(seen) > 0.3
    assert share_of_wrong_sign(benchmark("heterogeneity").phases_flipped(seen, optics, 4.0)) == 0


def test_a_gain_is_taken_within_cells(tasks: ModuleType) -> None:
    cells = [{"raw": {"x": 1.0}, "new": {"x": 1.5}}, {"raw": {"x": 3.0}, "new": {"x": 3.5}}]
    found = tasks.summary(cells, "x")
    assert found["new"]["mean"] == 2.5
    # the cells differ by 2, the gain by nothing
    assert found["new"]["error"] == pytest.approx(1.0)
    assert (found["new"]["gain"], found["new"]["gain_error"]) == (0.5, 0.0)


def test_a_finished_cell_is_not_made_again(tasks: ModuleType, tmp_path: Path) -> None:
    cells = tasks.Cells("task", {"n": 1}, tmp_path)
    assert cells("a", lambda: {"raw": {"x": 1.0}}) == {"raw": {"x": 1.0}}
    again = tasks.Cells("task", {"n": 1}, tmp_path)
    assert again("a", lambda: pytest.fail("made again")) == {"raw": {"x": 1.0}}
    with pytest.raises(SystemExit, match="other settings"):
        tasks.Cells("task", {"n": 2}, tmp_path)


def test_a_finished_cell_that_lacks_a_method_gets_it(tasks: ModuleType, tmp_path: Path) -> None:
    tasks.Cells("task", {"n": 1}, tmp_path, ["raw"])("a", lambda: {"raw": {"x": 1.0}})
    again = tasks.Cells("task", {"n": 1}, tmp_path, ["raw", "new"])
    assert again.method("a", "raw", lambda: pytest.fail("made again")) == {"x": 1.0}
    both = {"raw": {"x": 1.0}, "new": {"x": 2.0}}
    assert again("a", lambda: {"new": {"x": 2.0}}) == both
    assert json.loads((tmp_path / "task.json").read_text())["cells"] == {"a": both}
    assert tasks.Cells("task", {"n": 1}, tmp_path, ["raw"])("a", lambda: pytest.fail("made again")) == both


def test_methods_of_an_unfinished_cell_are_not_made_again(tasks: ModuleType, tmp_path: Path) -> None:
    tasks.Cells("task", {"n": 1}, tmp_path).method("a", "raw", lambda: {"x": 1.0})
    again = tasks.Cells("task", {"n": 1}, tmp_path)
    assert again.method("a", "raw", lambda: pytest.fail("made again")) == {"x": 1.0}
    again("a", lambda: {"raw": {"x": 1.0}})
    assert "unfinished" not in json.loads((tmp_path / "task.json").read_text())


def test_a_figure_of_one_set_has_no_error(tasks: ModuleType) -> None:
    shown = tasks.table([{"raw": {"x": 1.0}, "new": {"x": 1.5}}], {"figure": "x"})
    assert shown.splitlines()[2:] == ["| raw | 1.000 |", "| new | 1.500 (+0.500) |"]


def test_cells_of_another_model_of_that_name_are_not_gone_on_with(tasks: ModuleType, tmp_path: Path) -> None:
    tasks.Cells("task", {"model": "general"}, tmp_path)("a", lambda: {"raw": {"x": 1.0}})
    path = tmp_path / "task.json"
    record = json.loads(path.read_text())
    weights = (BENCHMARKS.parents[1] / "core/weights/general.safetensors").read_bytes()
    assert record["model_sha256"] == hashlib.sha256(weights).hexdigest()
    path.write_text(json.dumps(record | {"model_sha256": "0" * 64}))
    with pytest.raises(SystemExit, match="other weights"):
        tasks.Cells("task", {"model": "general"}, tmp_path)


def four_particles(tasks: ModuleType, path: Path) -> torch.Tensor:
    """Noise, written as a table of particles."""
    images = torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(8))
    values = (torch.full((4,), value) for value in (9000.0, 9000.0, 0.0, 300.0, 2.7, 0.1, 0.0))
    tasks.write_particles(path, images, 3.0, CtfParameters(*values))
    return images


def test_methods_that_were_not_asked_for_are_not_made(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = four_particles(tasks, tmp_path / "p.star")
    ran = []
    monkeypatch.setattr(tasks, "cryohush_denoise", lambda *words: ran.append(words) or images / 2)
    asked = argparse.Namespace(methods=["raw", "general, with its stack"], topaz_python=None)
    found = tasks.denoised_by_each(tmp_path / "p.star", asked)
    assert list(found) == asked.methods
    assert len(ran) == 1
    torch.testing.assert_close(found["raw"], images)


def test_a_model_that_was_trained_on_the_stack_takes_the_place_of_the_asked_one(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    four_particles(tasks, tmp_path / "p.star")
    commands: list[list[str]] = []

    def run(command: list[str]) -> str:
        commands.append(command)
        output = Path(command[command.index("--output") + 1])
        output.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "p.mrcs", output / "p.mrcs")
        return ""

    monkeypatch.setattr(tasks, "run", run)
    asked = argparse.Namespace(methods=[tasks.SESSION], topaz_python=None, model="general", threads=1)
    tasks.denoised_by_each(tmp_path / "p.star", asked)
    assert [command.count("--model") for command in commands if "denoise" in command] == [1]
    (model,) = [command[command.index("--model") + 1] for command in commands if "denoise" in command]
    assert Path(model).parent == tmp_path / "run"


def test_raw_images_are_among_the_methods_and_alone_need_no_denoising(
    tasks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    four_particles(tasks, tmp_path / "p.star")
    monkeypatch.setattr(tasks, "cryohush_denoise", lambda *words: pytest.fail("denoised"))
    # Topaz's network only where an environment with it was named
    asked = argparse.Namespace(methods=["Topaz"], topaz_python=None)
    assert list(tasks.denoised_by_each(tmp_path / "p.star", asked)) == ["raw"]
    assert tasks.asked_methods(argparse.Namespace(methods=["Topaz"], topaz_python="x")) == ["raw", "Topaz"]


def test_variants_are_made_of_methods_that_are_not_asked_for_themselves(
    classification: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    n = 6
    images = torch.randn(n, 64, 64, generator=torch.Generator().manual_seed(8))
    values = (torch.full((n,), value) for value in (9000.0, 9000.0, 0.0, 300.0, 2.7, 0.1, 0.0))
    zeros = torch.zeros(n, dtype=torch.int64)
    turns = random_rotations(n, torch.Generator().manual_seed(1))
    particles = classification.SimulatedParticles(
        images, CtfParameters(*values), zeros, turns, torch.zeros(n, 2)
    )
    monkeypatch.setattr(classification, "simulate_particles", lambda *_: (particles, [], 3.0))
    monkeypatch.setattr(classification, "structure_file", lambda *_: tmp_path)
    monkeypatch.setattr(classification, "projected", lambda *_: images)
    monkeypatch.setattr(importlib.import_module("user_tasks"), "cryohush_denoise", lambda *_: images / 2)

    def methods(methods: list[str], variants: list[str]) -> list[str]:
        asked = argparse.Namespace(
            methods=methods, variants=variants, particles=n, structures=tmp_path, topaz_python=None
        )
        return list(classification.cell("two species", 0, asked, lambda *_: {"purity": 1.0}))

    limited = "general, with its stack, limited"
    assert methods(["raw"], [limited]) == ["raw", limited]
    assert methods(["raw"], ["raw, limited"]) == ["raw", "raw, limited"]
    assert methods(["general, with its stack"], []) == ["raw", "general, with its stack"]


@pytest.mark.parametrize("number", ["0", "-1", "2.5"])
def test_a_number_of_sets_below_one_is_refused(
    classification: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: str,
) -> None:
    words = ["", "--structures", str(tmp_path), "--output", str(tmp_path), "--repeats", number]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        classification.main()
    assert f"argument --repeats: '{number}' is not a whole number from 1 on" in capsys.readouterr().err


def test_a_program_that_is_not_there_is_named(tasks: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"^no_such_program: no such program"):
        tasks.run(["no_such_program"])


def test_the_low_pass_keeps_as_much_variance_as_what_it_is_compared_with(tasks: ModuleType) -> None:
    generator = torch.Generator().manual_seed(5)
    white = torch.randn(20, 64, 64, generator=generator)
    # of white noise a cut-off at a quarter of a cycle per pixel keeps the disc's share of the square
    filtered, cut_off = tasks.low_pass_like(white, white * math.sqrt(math.pi / 16), 2.0)
    assert cut_off == pytest.approx(8.0, rel=0.03)
    assert float(filtered.var()) == pytest.approx(math.pi / 16, rel=0.03)


@pytest.fixture(scope="module")
def deposits(benchmark: Any) -> ModuleType:
    return benchmark("deposits")  # type: ignore[no-any-return]


def test_a_movie_is_one_frame_and_the_mean_of_the_others(deposits: ModuleType, tmp_path: Path) -> None:
    movie = np.random.default_rng(1).poisson(3, (5, 8, 6)).astype(np.float32)
    (tmp_path / "movies").mkdir()
    mrcfile.write(tmp_path / "movies/a.mrcs", movie)
    mrcfile.write(tmp_path / "gain.mrc", np.full((8, 6), 2, np.float32))
    arguments = argparse.Namespace(
        movies=tmp_path / "movies", gain=tmp_path / "gain.mrc", skip=1, frame=-1, bin=2, pixel_size=1.0
    )
    arguments.output = tmp_path
    deposits.split_movies(arguments)
    small = 2 * movie.reshape(5, 4, 2, 3, 2).mean((2, 4))
    np.testing.assert_allclose(mrcfile.read(tmp_path / "Micrographs/a_frame.mrc"), small[4], rtol=1e-6)
    np.testing.assert_allclose(
        mrcfile.read(tmp_path / "Micrographs/a_rest.mrc"), small[1:4].mean(0), rtol=1e-6
    )
    assert "2.000000" in (tmp_path / "micrographs_rest.star").read_text()


def test_files_that_changed_are_named(deposits: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.star").write_text("abc")
    arguments = argparse.Namespace(folder=tmp_path / "data", sums=tmp_path / "sums")
    deposits.check_sums(arguments)
    # the digest of "abc" that FIPS 180 gives
    assert (tmp_path / "sums").read_text().startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")
    deposits.check_sums(arguments)
    (tmp_path / "data/a.star").write_text("abd")
    with pytest.raises(SystemExit, match=r"1 of 1 files are missing or differ, first a\.star"):
        deposits.check_sums(arguments)


def test_the_other_half_shows_the_particle_and_not_this_image_s_noise(
    benchmark: Any, deposits: ModuleType
) -> None:
    generator = torch.Generator().manual_seed(6)
    volume, n = blobs(), 200
    rotations = random_rotations(n, generator)
    shifts = torch.randn(n, 2, generator=generator)
    values = (torch.full((n,), value) for value in (9000.0, 9000.0, 0.0, 300.0, 2.7, 0.1, 0.0))
    optics = benchmark("projection_matching").Optics(CtfParameters(*values), 3.0)
    seen = torch.fft.rfft2(Projector(volume)(rotations)) * optics.transfer(32)
    clean = shift_images(torch.fft.irfft2(seen, s=(32, 32)), shifts)
    noise = torch.randn(clean.shape, generator=generator) * clean.std()
    half = torch.arange(n) % 2
    twin = deposits.projections_of_other_half(clean + noise, optics, rotations, shifts, half, "C1")
    assert float(correlation(twin, clean).mean()) > 0.9
    # of 200 images of 1,024 pixels a chance correlation has a mean of 0 to 0.002
    assert abs(float(correlation(twin, noise).mean())) < 0.01


def test_files_of_an_entry_are_found_or_named(
    deposits: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = argparse.Namespace(entry="10028", folder=tmp_path)
    with pytest.raises(SystemExit, match=r"0 of at least 1 files .*shiny_2sets\.star; .*/10028/data/"):
        deposits.find_files(arguments)
    (tmp_path / "Particles/MRC_0601").mkdir(parents=True)
    for name in ("shiny_2sets.star", "MRC_0601/001.mrcs"):
        (tmp_path / "Particles" / name).touch()
    deposits.find_files(arguments)
    said = capsys.readouterr().out
    assert f"poses --particles {tmp_path}/Particles/shiny_2sets.star --symmetry C1" in said
    assert "line 5476" in said


def test_a_file_cut_short_is_named(deposits: ModuleType, tmp_path: Path) -> None:
    # 131,899 images of 320 x 320 float32 values behind a header of 1,024 bytes
    assert deposits.entries()["10076"]["bytes"] == {
        "**/L17Combine_weight_local.mrc*": 131899 * 320**2 * 4 + 1024
    }
    # 4096 x 4096 float32 values
    assert deposits.entries()["10017"]["bytes"] == {"**/Falcon_2012_*.mrc": 4096**2 * 4 + 1024}
    (tmp_path / "L17Combine_weight_local.mrc").write_bytes(b"half")
    with pytest.raises(SystemExit, match=r"L17Combine_weight_local\.mrc: 4 bytes, expected 54025831424"):
        deposits.find_files(argparse.Namespace(entry="10076", folder=tmp_path))


@pytest.mark.slow
def test_a_stand_in_for_an_entry_goes_from_its_files_to_the_table(
    benchmark: Any, deposits: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Simulated particles under the names of EMPIAR-10028; no filter changes the gain."""
    generator = torch.Generator().manual_seed(9)
    n, box = 120, 32
    rotations = random_rotations(n, generator)
    values = (torch.full((n,), value) for value in (12000.0, 12000.0, 0.0, 300.0, 2.7, 0.1, 0.0))
    optics = CtfParameters(*values)
    transfer = benchmark("projection_matching").Optics(optics, 3.0).transfer(box)
    clean = torch.fft.irfft2(torch.fft.rfft2(Projector(blobs(box))(rotations)) * transfer, s=(box, box))
    noisy = clean / clean.std() + torch.randn(clean.shape, generator=generator)
    angles = benchmark("reconstruction").euler(rotations)
    columns = {
        f"rlnAngle{name}": values.tolist()
        for name, values in zip(("Rot", "Tilt", "Psi"), angles, strict=True)
    }
    columns |= {"rlnOriginXAngst": [0.0] * n, "rlnOriginYAngst": [0.0] * n}
    benchmark("user_tasks").write_particles(tmp_path / "shiny_2sets.star", noisy, 3.0, optics, columns)
    words = ["poses", "--particles", str(tmp_path / "shiny_2sets.star"), "--box", str(box), "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["", *words, "--output", str(tmp_path / "out")])
    deposits.main()
    found = json.loads((tmp_path / "out/deposits.json").read_text())
    assert set(found) == {"general, each by itself", "general, with its stack"}
    # the last band is the whole range; isolated particles without neighbours or ice gain there
    assert all(gains[-1]["gain"] > 1.05 for gains in found.values())


def correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    first, second = (images.flatten(1) - images.mean((1, 2))[:, None] for images in (first, second))
    return (first * second).sum(1) / (first.norm(dim=1) * second.norm(dim=1))


def test_a_verdict_needs_more_than_chance(benchmark: Any) -> None:
    table = benchmark("what_helps")
    row = table.Row("", "", "x", better=-1)

    def sets(gains: list[float]) -> Any:
        values = {"raw": 5.0, "low-pass": 5.0}
        return [
            {name: {"x": value} for name, value in {**values, "new": 5.0 - gain}.items()} for gain in gains
        ]

    # three sets: the mean has to be more than 4.30 errors
    assert table.verdict(row, sets([1.0, 1.1, 1.2]), "low-pass", "new") == "use it"
    assert table.verdict(row, sets([-1.0, -1.1, -1.2]), "low-pass", "new") == "don't"
    assert table.verdict(row, sets([0.1, 1.0, 2.0]), "low-pass", "new") == "no difference shown"
    assert table.verdict(row, sets([1.0]), "low-pass", "new") == "one set: no verdict"


def test_the_published_table_is_that_of_the_published_figures(benchmark: Any) -> None:
    table = benchmark("what_helps")
    page = (BENCHMARKS.parents[1] / "docs/evidence.md").read_text()
    shown = page.split(table.HEAD)[1].split(table.FOOT)[0]
    assert shown.strip() == table.whole_table(BENCHMARKS / "results").strip()


def test_tables_are_written_from_results_and_between_their_lines_only(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, page = benchmark("what_helps"), tmp_path / "page.md"
    page.write_text(f"before\n{table.HEAD}\nold\n{table.FOOT}\nafter")
    words = ["", "--results", str(tmp_path), "--write", str(page)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match=r"has no results of a task, such as sorting\.json"):
        table.main()
    assert "old" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["", "--write", str(page)])
    table.main()
    before, *_, after = page.read_text().splitlines()
    assert (before, after) == ("before", "after")
    assert table.whole_table(BENCHMARKS / "results") in page.read_text()
    page.write_text("no such lines")
    with pytest.raises(SystemExit, match="nothing was written"):
        table.main()


def test_classes_of_more_particles_have_tables_of_their_own(benchmark: Any, tmp_path: Path) -> None:
    script = benchmark("what_helps")
    for number in (1000, 10000, 3000):
        record = {"settings": {"particles": number}, "cells": {"two species, 1": {"raw": {"nmi": 0.5}}}}
        name = "classification" if number == 1000 else f"classification_{number}"
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    shown = [line for line in script.whole_table(tmp_path).splitlines() if line.startswith("Class2D")]
    assert [line.split(" particles")[0] for line in shown] == [
        f"Class2D of {number}" for number in ("1,000", "3,000", "10,000")
    ]


def test_poses_that_were_found_are_not_found_again(
    benchmark: Any, tasks: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = benchmark("found_poses")
    n = 6
    images = torch.randn(n, 64, 64, generator=torch.Generator().manual_seed(8))
    values = (torch.full((n,), value) for value in (9000.0, 9000.0, 0.0, 300.0, 2.7, 0.1, 0.0))
    particles = script.SimulatedParticles(
        images,
        CtfParameters(*values),
        torch.zeros(n, dtype=torch.int64),
        random_rotations(n, torch.Generator().manual_seed(1)),
        torch.randn(n, 2, generator=torch.Generator().manual_seed(2)),
    )
    monkeypatch.setattr(script, "simulate_particles", lambda *_: (particles, [], 3.0))
    monkeypatch.setattr(script, "structure_file", lambda *_: tmp_path)
    monkeypatch.setattr(script, "read_structure", lambda *_: None)
    monkeypatch.setattr(script, "potential_map", lambda *_: blobs(64))
    monkeypatch.setattr(tasks, "cryohush_denoise", lambda *_: images / 2)
    ran = []

    def refined(place: Path, *_: Any) -> Any:
        assert {path.name for path in place.iterdir()} == {"in.star", "in.mrcs", "start.mrc"}
        ran.append(place.name)
        return script.Poses(particles.rotations, particles.shifts_px, torch.ones(n))

    monkeypatch.setattr(script, "refined", refined)
    asked = ["raw", "general, with its stack"]
    arguments = argparse.Namespace(methods=asked, particles=n, structures=tmp_path, topaz_python=None)
    cells = tasks.Cells("found_poses", {}, tmp_path, asked)
    cells.method("4zxb, 1", "raw", lambda: {"median": 9.0})
    found = script.cell("4zxb", 0, arguments, lambda *words: cells.method("4zxb, 1", *words))
    assert ran == ["refine1"]
    assert found["raw"] == {"median": 9.0}
    # those were the true poses
    assert found[asked[1]]["median"] == pytest.approx(0, abs=0.1)
    assert found[asked[1]]["within 15"] == 1.0


def run_quickly(monkeypatch: pytest.MonkeyPatch, script: ModuleType, output: Path, *more: str) -> Any:
    """What a script's --quick run on the structure of the examples writes."""
    structures = BENCHMARKS.parent / "data"
    command = [
        "",
        "--structures",
        str(structures),
        "--quick",
        "--output",
        str(output),
        "--threads",
        "1",
        *more,
    ]
    monkeypatch.setattr(sys, "argv", command)
    script.main()
    return json.loads((output / f"{script.__name__}.json").read_text())["cells"]


@pytest.mark.slow
def test_the_stacks_of_tasks_are_those_that_the_tasks_make(
    benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = benchmark("task_contexts")
    asked = []

    def made(files: list[Path], n: int, box_px: int, share: float, seed: int) -> Any:
        asked.append(([path.name for path in files], n, box_px, share, seed))
        raise SystemExit

    monkeypatch.setattr(script, "structure_file", lambda _, name: Path(name))
    monkeypatch.setattr(script, "simulate_particles", made)
    arguments = argparse.Namespace(structures=tmp_path, repeats=2, quick=False)
    for name, make in script.stacks(arguments):
        if name in ("classes of 5000, five species, 2", "poses, 4zxb, 1"):
            with pytest.raises(SystemExit):
                make()
    five = ["2cg9", "4zxb", "6cvm", "6xlu", "pdb7pbl"]
    assert asked == [(["4zxb"], 250, 64, 0.65, 200), (five, 5000, 64, 0.65, 101)]


def test_looking_runs_quickly(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (cell,) = run_quickly(monkeypatch, benchmark("looking"), tmp_path).values()
    # denoised or raw, particles have more contrast than ice
    assert min(cell[method]["eye"] for method in ("raw", "general")) > 0.6
    assert (tmp_path / "looking.png").stat().st_size > 10_000


@pytest.mark.relion
def test_picking_runs_quickly(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (cell,) = run_quickly(monkeypatch, benchmark("hard_picking"), tmp_path).values()
    assert min(cell["raw"][f"{picker} F1"] for picker in ("LoG", "RELION LoG", "RELION template")) > 0.5


@pytest.mark.slow
def test_sorting_runs_quickly(sorting: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (cell,) = run_quickly(monkeypatch, sorting, tmp_path, "--structure-names", "2cg9").values()
    assert cell["raw"]["ordinary auc"] > 0.7
