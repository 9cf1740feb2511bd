"""The scores of the benchmarks of users' tasks, against truths that need no program."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cryohush.core.classical.covariance import estimate_covariance
from cryohush.core.context.stack_context import fit_context
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


def test_what_is_ordinary_is_the_crowd_and_neither_more_nor_less(sorting: ModuleType) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(300, 2, generator=generator)
    features[:10], features[10:20] = -6.0, 6.0
    scores = sorting.ordinary(features)
    assert float(scores[:20].max()) < float(scores[20:].quantile(0.02))


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


def test_the_low_pass_keeps_as_much_variance_as_what_it_is_compared_with(tasks: ModuleType) -> None:
    generator = torch.Generator().manual_seed(5)
    white = torch.randn(20, 64, 64, generator=generator)
    # of white noise a cut-off at a quarter of a cycle per pixel keeps the disc's share of the square
    filtered, cut_off = tasks.low_pass_like(white, white * math.sqrt(math.pi / 16), 2.0)
    assert cut_off == pytest.approx(8.0, rel=0.03)
    assert float(filtered.var()) == pytest.approx(math.pi / 16, rel=0.03)
