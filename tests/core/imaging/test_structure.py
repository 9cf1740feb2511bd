import gzip

import gemmi
import numpy as np
import pytest
import torch

from cryohush.core.errors import InputError
from cryohush.core.imaging.structure import potential_map, read_structure


def write_pdb(path, atoms):
    """Atoms as (x, y, z, element)."""
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00          {element:>2}"
        for i, (x, y, z, element) in enumerate(atoms, 1)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    return path


def test_atom_off_centre_appears_at_its_place_in_z_y_x(tmp_path):
    # the centroid is the origin; the heavy atom at x = +8 Å, y = -4 Å, z = +2 Å rules the map
    path = write_pdb(tmp_path / "a.pdb", [(8, -4, 2, "ZN"), (-8, 4, -2, "C")])
    volume = potential_map(read_structure(path), 32, 2.0, b_factor=60)
    z, y, x = np.unravel_index(int(volume.argmax()), volume.shape)
    assert (z, y, x) == (16 + 1, 16 - 2, 16 + 4)


def test_map_is_not_mirrored(tmp_path):
    # four different atoms at the corners of a chiral frame: heaviest at +x, then +y, then +z
    atoms = [(12, 0, 0, "HG"), (0, 12, 0, "ZN"), (0, 0, 12, "P"), (-12, -12, -12, "C")]
    volume = potential_map(read_structure(write_pdb(tmp_path / "a.pdb", atoms)), 32, 2.0, b_factor=60)
    structure = read_structure(tmp_path / "a.pdb")
    for atom in (atom for chain in structure.model for residue in chain for atom in residue):
        x, y, z = (round(16 + value / 2) for value in atom.pos.tolist())
        around = volume[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2].max()
        if atom.element.name != "C":  # carbon barely differs from the ice that it displaces
            assert around > 0.3 * {"Hg": 1.0, "Zn": 0.4, "P": 0.3}[atom.element.name] * volume.max()


def test_protein_is_white_against_the_ice(tmp_path):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(-12, 13, 2.55)] * 3), -1).reshape(-1, 3)  # an atom per 16.5 Å3
    elements = rng.choice(["C", "N", "O"], size=len(grid), p=[0.63, 0.17, 0.2])
    path = write_pdb(tmp_path / "a.pdb", [(*xyz, e) for xyz, e in zip(grid, elements, strict=True)])
    volume = potential_map(read_structure(path), 32, 2.0, b_factor=80)
    inside, outside = volume[13:20, 13:20, 13:20].mean(), volume[:3].mean()
    assert outside.abs() < 0.01 * inside
    assert inside > 0


def test_integral_is_the_scattering_above_that_of_the_displaced_ice(tmp_path):
    path = write_pdb(tmp_path / "a.pdb", [(0, 0, 0, "O")])
    volume = potential_map(read_structure(path), 32, 1.0, b_factor=30)
    oxygen = sum(gemmi.Element("O").c4322.a)
    water = oxygen + 2 * sum(gemmi.Element("H").c4322.a)
    expected = oxygen + 0.529 - 0.0311 * water * 16.5  # one implied hydrogen; 0.0311 waters per Å3
    # gemmi cuts each atom's density off at 1e-5, losing under 1 % of the oxygen
    assert float(volume.sum()) == pytest.approx(expected, abs=0.02 * oxygen)


def test_gzipped_file_gives_the_same_structure(tmp_path):
    path = write_pdb(tmp_path / "a.pdb", [(8, -4, 2, "ZN"), (-8, 4, -2, "C")])
    (tmp_path / "b.pdb.gz").write_bytes(gzip.compress(path.read_bytes()))
    one, two = read_structure(path), read_structure(tmp_path / "b.pdb.gz")
    assert torch.equal(potential_map(one, 32, 2.0, 60), potential_map(two, 32, 2.0, 60))


@pytest.mark.parametrize("text", ["not a structure\n", ""])
def test_file_without_atoms_is_refused_by_name(tmp_path, text):
    path = tmp_path / "empty.pdb"
    path.write_text(text)
    with pytest.raises(InputError, match=r"empty\.pdb"):
        read_structure(path)


def test_complex_larger_than_the_box_is_refused(tmp_path):
    path = write_pdb(tmp_path / "a.pdb", [(40, 0, 0, "C"), (-40, 0, 0, "C")])
    with pytest.raises(ValueError, match="diameter of 80 Å"):
        potential_map(read_structure(path), 32, 2.0, 60)
