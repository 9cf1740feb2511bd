"""Poses of simulated particles are found to a fraction of the grid, and errors of poses that are known."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from cryohush.core.errors import InputError
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.imaging.projection import Projector, random_rotations, rotations_from_euler
from cryohush.core.imaging.symmetry import symmetry_operators
from cryohush.core.metrics.pose import PoseErrors, PoseMatcher, Poses, pose_errors
from cryohush.core.metrics.pose_grid import PoseGrid

BOX = 32


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    """Forty blobs without symmetry."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(BOX).float() - BOX // 2
    centres = (torch.rand(40, 3, generator=generator) - 0.5) * 0.45 * BOX
    z, y, x = (torch.exp(-((axis - centres[:, i : i + 1]) ** 2) / (2 * 1.3**2)) for i in range(3))
    return torch.einsum("bz,by,bx->zyx", z, y, x)


def particles(
    volume: torch.Tensor, n: int, transfer: torch.Tensor | float = 1.0
) -> tuple[torch.Tensor, Poses]:
    """Projections in random poses, shifted by up to 1.5 pixels."""
    generator = torch.Generator().manual_seed(1)
    rotations = random_rotations(n, generator)
    shifts = 3 * torch.rand(n, 2, generator=generator) - 1.5
    y, x = torch.fft.fftfreq(BOX)[:, None], torch.fft.rfftfreq(BOX)
    cycles = shifts[:, :1, None] * y + shifts[:, 1:, None] * x
    moved = torch.fft.rfft2(Projector(volume)(rotations)) * torch.exp(-2j * torch.pi * cycles)
    images: torch.Tensor = torch.fft.irfft2(moved * transfer, s=(BOX, BOX))
    return images / images.std(), Poses(rotations, shifts, torch.ones(n))


@pytest.fixture(scope="module")
def matcher(volume: torch.Tensor) -> PoseMatcher:
    return PoseMatcher(volume, PoseGrid.with_shifts(2, 2.0, 1.0), refinements=4, finest_ring=10)


def test_poses_of_clean_images_are_found_far_below_the_spacing(
    volume: torch.Tensor, matcher: PoseMatcher
) -> None:
    images, true = particles(volume, 24)
    found = matcher(5.0 + 3 * images)  # grey scale and offset do not matter
    errors = pose_errors(found, true)
    # 15 degrees and a pixel apart on the grid, halved five times by the refinements
    assert float(errors.angle_degrees.median()) < 1.0
    assert float(errors.shift_px.median()) < 0.06
    assert errors.share_within(3.0) > 0.9
    assert float(found.correlation.median()) > 0.99


def test_a_negative_has_no_pose(volume: torch.Tensor, matcher: PoseMatcher) -> None:
    images, true = particles(volume, 24)
    assert pose_errors(matcher(-images), true).share_within(10.0) < 0.2


def test_ctf_of_the_images_is_taken_into_account(volume: torch.Tensor, matcher: PoseMatcher) -> None:
    y, x = torch.fft.fftfreq(BOX)[:, None], torch.fft.rfftfreq(BOX)
    squared = y**2 + x**2
    transfer = torch.stack([torch.sin(40 * squared + 0.1), torch.sin(80 * squared + 0.1)]).repeat(12, 1, 1)
    images, true = particles(volume, 24, transfer)
    errors = pose_errors(matcher(images, transfer, at_once=7), true)
    assert float(errors.angle_degrees.median()) < 1.0
    assert errors.share_within(3.0) > pose_errors(matcher(images), true).share_within(3.0)


def test_noise_costs_accuracy_and_a_filter_that_blurs_all_does_not_help(
    volume: torch.Tensor, matcher: PoseMatcher
) -> None:
    images, true = particles(volume, 24)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(3))
    medians = [
        float(pose_errors(matcher(stack), true).angle_degrees.median())
        for stack in (images + 0.5 * noise, images + 2.5 * noise, gaussian_filter(images, 4.0))
    ]
    assert medians[0] < 3.0
    assert medians[1] > 2 * medians[0]
    assert medians[2] > medians[0]


def test_batches_do_not_change_the_result(volume: torch.Tensor, matcher: PoseMatcher) -> None:
    images, _ = particles(volume, 6)
    together, apart = matcher(images), matcher(images, at_once=1)
    torch.testing.assert_close(together.rotations, apart.rotations)
    torch.testing.assert_close(together.shifts_px, apart.shifts_px)


def test_errors_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = random_rotations(50, generator), random_rotations(50, generator)
    poses = [Poses(r, torch.zeros(50, 2), torch.ones(50)) for r in (a, b)]
    errors = pose_errors(*poses)
    between = Rotation.from_matrix(b.numpy()).inv() * Rotation.from_matrix(a.numpy())
    expected = torch.rad2deg(torch.from_numpy(between.magnitude()))
    # the matrices are float32: orthogonal to 1e-7
    torch.testing.assert_close(errors.angle_degrees, expected, rtol=0, atol=1e-4)
    directions = torch.rad2deg((a[:, :, 2] * b[:, :, 2]).sum(1).double().acos())
    torch.testing.assert_close(errors.direction_degrees, directions, rtol=0, atol=1e-3)


def test_errors_of_known_poses() -> None:
    true = torch.tensor([[10.0, 40.0, 20.0]] * 3)
    wrong = true + torch.tensor([[0.0, 0.0, 30.0], [0.0, 25.0, 0.0], [0.0, 0.0, 1e-3]])
    shifts = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    found = Poses(rotations_from_euler(wrong), shifts, torch.ones(3))
    errors = pose_errors(found, Poses(rotations_from_euler(true), torch.zeros(3, 2), torch.ones(3)))
    assert errors.direction_degrees.tolist() == pytest.approx([0.0, 25.0, 0.0], abs=1e-4)
    assert errors.angle_degrees.tolist() == pytest.approx([30.0, 25.0, 1e-3], abs=1e-4)
    assert errors.shift_px.tolist() == [5.0, 0.0, 1.0]
    assert errors.share_within(26.0) == pytest.approx(2 / 3)


@pytest.mark.parametrize("group", ["C4", "D3", "O"])
def test_equivalent_poses_of_a_symmetric_particle_are_no_error(group: str) -> None:
    operators = symmetry_operators(group).float()
    true = random_rotations(20, torch.Generator().manual_seed(4))
    pick = torch.arange(20) % len(operators)
    small = rotations_from_euler(torch.tensor([0.0, 2.0, 0.0]))
    nothing = torch.zeros(20, 2), torch.ones(20)
    errors = pose_errors(Poses(operators[pick] @ true @ small, *nothing), Poses(true, *nothing), operators)
    torch.testing.assert_close(
        errors.angle_degrees, torch.full((20,), 2.0, dtype=torch.float64), rtol=0, atol=1e-3
    )


def test_wrong_boxes_and_counts_are_refused(matcher: PoseMatcher) -> None:
    with pytest.raises(InputError, match=r"\(n, 32, 32\), found \(2, 30, 32\)"):
        matcher(torch.zeros(2, 30, 32))
    one, two = (Poses(torch.eye(3).expand(n, 3, 3), torch.zeros(n, 2), torch.ones(n)) for n in (1, 2))
    with pytest.raises(InputError, match="a true pose for each image, found 2 for 1"):
        pose_errors(one, two)
    assert isinstance(pose_errors(one, one), PoseErrors)
