import re
import subprocess

import pytest
import torch

from cryohush.core.errors import ConfigurationError
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.symmetry import (
    rotations_from_vectors,
    symmetry_operators,
    to_asymmetric_unit,
)

ORDERS = {"C1": 1, "C5": 5, "D3": 6, "T": 12, "O": 24, "I1": 60, "I2": 60, "I3": 60, "I4": 60}


@pytest.mark.parametrize(("group", "order"), ORDERS.items())
def test_operators_are_a_group_of_the_right_order(group, order):
    operators = symmetry_operators(group)
    assert len(operators) == order
    assert torch.equal(operators[0], torch.eye(3, dtype=torch.float64))
    products = torch.einsum("aij,bjk->abik", operators, operators)
    nearest = (products[:, :, None] - operators).abs().amax((-2, -1)).amin(-1)
    assert nearest.max() < 1e-9
    assert (torch.linalg.det(operators) - 1).abs().max() < 1e-9


@pytest.mark.relion
@pytest.mark.parametrize("group", ["C1", "C7", "D2", "D7", "T", "O", "I", "I1", "I2", "I3", "I4"])
def test_operators_are_those_that_relion_prints(group):
    printed = subprocess.run(
        ["relion_refine", "--sym", group, "--print_symmetry_ops"], capture_output=True, text=True, timeout=300
    ).stdout
    numbers = [
        line.split() for line in printed.splitlines() if re.fullmatch(r"(\s*-?[\d.]+(e-\d+)?){3}\s*", line)
    ]
    relion = torch.tensor([[float(value) for value in row] for row in numbers], dtype=torch.float64)
    relion = relion.reshape(-1, 3, 3)
    ours = symmetry_operators(group)
    assert len(ours) == len(relion)
    difference = (ours[:, None] - relion).abs().amax((-2, -1))
    assert difference.amin(1).max() < 1e-5  # RELION's axes have five digits
    assert difference.amin(0).max() < 1e-5


@pytest.mark.parametrize("group", ["C4", "D3", "O", "I1", "I3"])
def test_uniform_rotations_fill_one_unit_and_symmetry_mates_share_a_representative(group):
    operators = symmetry_operators(group)
    rotations = random_rotations(1000, torch.Generator().manual_seed(3)).double()
    representatives = to_asymmetric_unit(rotations, operators)
    for operator in operators[:: max(1, len(operators) // 5)]:
        torch.testing.assert_close(to_asymmetric_unit(operator @ rotations, operators), representatives)
    # each one is a symmetry mate, chosen equally often: 1 / k of the rotations stay where they are
    stayed = (representatives - rotations).abs().amax((1, 2)) < 1e-9
    k = len(operators)
    assert stayed.double().mean().item() == pytest.approx(1 / k, abs=4 * (1 / k / 1000) ** 0.5)


def test_unit_of_dihedral_groups_is_that_of_relion():
    # rot within 180/n degrees, tilt up to 90 degrees
    rotations = random_rotations(2000, torch.Generator().manual_seed(1)).double()
    direction = to_asymmetric_unit(rotations, symmetry_operators("D5"))[:, :, 2]
    rot = torch.rad2deg(torch.atan2(direction[:, 1], direction[:, 0]))
    assert rot.abs().max() <= 36
    assert direction[:, 2].min() >= 0


def test_projections_of_a_symmetric_volume_do_not_change():
    axis = torch.arange(32) - 16
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    volume = torch.zeros(32, 32, 32)
    for turn in range(4):  # exactly on the grid
        vx, vy = ((6, 2), (-2, 6), (-6, -2), (2, -6))[turn]
        volume += torch.exp(-((x - vx) ** 2 + (y - vy) ** 2 + (z - 3) ** 2) / 8.0)
    rotations = random_rotations(6, torch.Generator().manual_seed(1))
    projector = Projector(volume, 3)
    one = projector(rotations)
    other = projector(to_asymmetric_unit(rotations, symmetry_operators("C4")))
    assert (one - other).norm() / one.norm() < 0.02  # interpolation in Fourier space


def test_quarter_turn_about_z_takes_x_to_y():
    turn = rotations_from_vectors(torch.tensor([0.0, 0.0, torch.pi / 2], dtype=torch.float64))
    expected = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(turn @ torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), expected)


@pytest.mark.parametrize("group", ["C0", "X", "I5", "D", ""])
def test_unknown_group_is_refused(group):
    with pytest.raises(ConfigurationError, match="point group"):
        symmetry_operators(group)
