"""Two states of an RNA polymerase that differ by its clamp, for the tables of conformations of `papers.py`.

    python open_clamp.py --structures DIR --output DIR [--angle 20]

DIR holds 1WCM, yeast RNA polymerase II with its clamp closed. Written are clamp_closed.cif, its ten subunits
without Rpb4 and Rpb7, which sit on the clamp, and clamp_open.cif, with the clamp turned as a rigid body about
its base, away from the other side of the cleft. In crystals it swings by up to 30 degrees. Then:

    python papers.py --structures DIR --molecule clamp_closed clamp_open ...

References
----------
.. [1] Cramer, Bushnell & Kornberg (2001) Science 292, 1863-1876: modules, switches, the clamp's two states.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from test_set import find_structure

from cryohush.core.imaging.structure import read_structure

Ranges = tuple[tuple[str, int, int], ...]
#: chain, first and last residue: A is Rpb1, B Rpb2
CLAMP: Ranges = (("A", 1, 346), ("A", 1395, 1435), ("B", 1151, 1224))
SWITCHES: Ranges = (("A", 328, 346), ("A", 1384, 1406), ("B", 1107, 1129), ("B", 1152, 1159))
#: Rpb2's protrusion and lobe, across the cleft
OPPOSITE: Ranges = (("B", 44, 405),)
LEFT_OUT = ("D", "G")


def main() -> None:
    parser = argparse.ArgumentParser(description="RNA polymerase II with its clamp closed and open.")
    parser.add_argument("--structures", type=Path, required=True, help="folder with 1WCM")
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--angle", type=float, default=20.0, help="degrees by which the clamp opens")
    arguments = parser.parse_args()
    model = read_structure(find_structure(arguments.structures, "1WCM")).model
    for name in LEFT_OUT:
        model.remove_chain(name)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(model, arguments.output / "clamp_closed.cif")
    print(f"the clamp moves by {opened(model, arguments.angle):.1f} Å (root mean square of its atoms)")
    write(model, arguments.output / "clamp_open.cif")


def opened(model: gemmi.Model, angle_degrees: float) -> float:
    """Turn the clamp away from the cleft; return how far its atoms move, root mean square in Å."""
    base = centre(model, SWITCHES)
    to_clamp, to_opposite = centre(model, CLAMP) - base, centre(model, OPPOSITE) - base
    # from the other side of the cleft to the clamp: a right-handed turn opens
    axis = np.cross(to_opposite, to_clamp)
    axis /= np.linalg.norm(axis)
    turn = rotation(axis, math.radians(angle_degrees))
    moved = []
    for atom in atoms(model, CLAMP):
        old = np.array(atom.pos.tolist())
        new = base + turn @ (old - base)
        atom.pos = gemmi.Position(*new)
        moved.append(new - old)
    return float(np.sqrt(np.square(moved).sum(1).mean()))


def atoms(model: gemmi.Model, ranges: Ranges) -> list[gemmi.Atom]:
    return [
        atom
        for name, first, last in ranges
        for residue in model[name]
        if first <= residue.seqid.num <= last
        for atom in residue
    ]


def centre(model: gemmi.Model, ranges: Ranges) -> NDArray[np.float64]:
    return np.array([atom.pos.tolist() for atom in atoms(model, ranges)]).mean(0)


def rotation(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """About a unit vector, by Rodrigues' formula."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross


def write(model: gemmi.Model, path: Path) -> None:
    whole = gemmi.Structure()
    whole.add_model(model)
    whole.setup_entities()
    whole.make_mmcif_document().write_file(str(path))


if __name__ == "__main__":
    main()
