"""A conformational series goes from one model to another in equal steps, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cryohush.core.errors import InputError
from cryohush.core.imaging.morph import conformational_series
from cryohush.core.imaging.structure import read_structure


def write_model(path: Path, positions: np.ndarray, first_residue: int = 1) -> Path:
    path.write_text(
        "".join(
            f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C\n"
            for i, (x, y, z) in enumerate(positions, start=first_residue)
        )
        + "END\n"
    )
    return path


@pytest.fixture
def positions() -> np.ndarray:
    return np.random.default_rng(3).uniform(-20, 20, (40, 3)).round(3)


def test_states_lie_at_equal_steps_between_the_superposed_ends(tmp_path: Path, positions: np.ndarray) -> None:
    # a quarter turn about z and a shift, which superposition takes back, and a breathing that stays
    turned = 1.1 * positions @ np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]) + [5, 6, 7]
    first = read_structure(write_model(tmp_path / "closed.pdb", positions))
    last = read_structure(write_model(tmp_path / "open.pdb", turned))
    states = conformational_series(first, last, 1)
    assert [state.name for state in states] == ["closed-open-1", "closed-open-2", "closed-open-3"]
    centred = positions - positions.mean(0)
    for state, scale in zip(states, (1.0, 1.05, 1.1), strict=True):
        # PDB files hold three decimals
        np.testing.assert_allclose(state.positions_angstrom(), scale * centred, atol=0.003)
        assert state.radius_angstrom == pytest.approx(
            scale * np.linalg.norm(centred, axis=1).max(), abs=0.005
        )
        assert state.n_atoms == 40


def test_atoms_that_one_end_lacks_are_in_no_state(tmp_path: Path, positions: np.ndarray) -> None:
    first = read_structure(write_model(tmp_path / "a.pdb", positions))
    last = read_structure(write_model(tmp_path / "b.pdb", positions[10:], first_residue=11))
    states = conformational_series(first, last, 0)
    assert [state.n_atoms for state in states] == [30, 30]
    expected = positions[10:] - positions[10:].mean(0)
    for state in states:
        np.testing.assert_allclose(state.positions_angstrom(), expected, atol=0.003)


def test_two_different_molecules_are_refused(tmp_path: Path, positions: np.ndarray) -> None:
    first = read_structure(write_model(tmp_path / "a.pdb", positions))
    last = read_structure(write_model(tmp_path / "b.pdb", positions, first_residue=31))
    with pytest.raises(InputError, match="only 10 of the 40 atoms of a have a counterpart among the 40 of b"):
        conformational_series(first, last, 2)
