"""Conformations between two models of the same molecule."""

from __future__ import annotations

import gemmi
import numpy as np

from ..errors import InputError
from .structure import Structure

# Below this, two files are hardly two states of one molecule.
_LEAST_MATCHED_SHARE = 0.5

_AtomKey = tuple[str, str, str, str]


def conformational_series(first: Structure, last: Structure, intermediates: int) -> list[Structure]:
    """`intermediates + 2` states from one conformation to another, in equal steps along straight lines.

    Atoms are matched by chain, residue number, residue name and atom name; those that only one file has are
    left out of every state, so that nothing but the conformation changes. `last` is superposed on `first`
    first, over all matched atoms (least squares). Straight lines shorten what turns: bonds in the middle of
    a large rotation are too short, which matters to no map coarser than about 3 Å.

    Raises
    ------
    InputError
        Less than half of the atoms match.
    """
    one, other = _positions(first.model), _positions(last.model)
    common = [key for key in one if key in other]
    if len(common) < _LEAST_MATCHED_SHARE * min(len(one), len(other)):
        raise InputError(
            f"only {len(common)} of the {len(one)} atoms of {first.name} have a counterpart among the "
            f"{len(other)} of {last.name} (same chain, residue and atom names).",
            remedy="Give two models of one molecule with the same names of chains.",
        )
    fit = gemmi.superpose_positions([one[key] for key in common], [other[key] for key in common])
    begin = np.array([one[key].tolist() for key in common])
    end = np.array([gemmi.Position(fit.transform.apply(other[key])).tolist() for key in common])
    states = []
    for number in range(intermediates + 2):
        way = number / (intermediates + 1)
        positions = (1 - way) * begin + way * end
        positions -= positions.mean(0)
        model = _with_positions(first.model, dict(zip(common, positions.tolist(), strict=True)))
        radius = float(np.linalg.norm(positions, axis=1).max())
        states.append(Structure(f"{first.name}-{last.name}-{number + 1}", model, radius, len(common)))
    return states


def _positions(model: gemmi.Model) -> dict[_AtomKey, gemmi.Position]:
    return {
        (chain.name, str(residue.seqid), residue.name, atom.name): atom.pos
        for chain in model
        for residue in chain
        for atom in residue
    }


def _with_positions(model: gemmi.Model, positions: dict[_AtomKey, list[float]]) -> gemmi.Model:
    """A copy that holds the given atoms only, at the given places."""
    copy = model.clone()
    for chain in copy:
        for residue in chain:
            for index in reversed(range(len(residue))):
                key = (chain.name, str(residue.seqid), residue.name, residue[index].name)
                # popped, so that of two atoms with one name a single one stays
                place = positions.pop(key, None)
                if place is None:
                    del residue[index]
                else:
                    residue[index].pos = gemmi.Position(*place)
    return copy
