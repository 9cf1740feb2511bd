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


ASSEMBLY = """\
REMARK 350 BIOMOLECULE: 1
REMARK 350 APPLY THE FOLLOWING TO CHAINS: A
REMARK 350   BIOMT1   1  1.000000  0.000000  0.000000        0.00000
REMARK 350   BIOMT2   1  0.000000  1.000000  0.000000        0.00000
REMARK 350   BIOMT3   1  0.000000  0.000000  1.000000        0.00000
REMARK 350   BIOMT1   2 -1.000000  0.000000  0.000000       20.00000
REMARK 350   BIOMT2   2  0.000000 -1.000000  0.000000        0.00000
REMARK 350   BIOMT3   2  0.000000  0.000000  1.000000        0.00000
"""


def test_assembly_is_built_by_its_operators(tmp_path):
    path = write_pdb(tmp_path / "a.pdb", [(4, 1, 0, "C"), (5, 2, 3, "N")])
    path.write_text(ASSEMBLY + path.read_text())
    assert read_structure(path).n_atoms == 2
    structure = read_structure(path, "1")
    found = structure.positions_angstrom() + structure.centroid_angstrom
    expected = [(4, 1, 0), (5, 2, 3), (16, -1, 0), (15, -2, 3)]  # x to 20 - x, y to -y
    assert sorted(map(tuple, np.round(found, 3).tolist())) == sorted(expected)


def test_missing_assembly_is_refused_with_those_there_are(tmp_path):
    path = write_pdb(tmp_path / "a.pdb", [(4, 1, 0, "C")])
    path.write_text(ASSEMBLY + path.read_text())
    with pytest.raises(InputError, match="no assembly '7', only 1"):
        read_structure(path, "7")


def test_unknown_element_is_refused_by_the_atoms_name(tmp_path):
    path = write_pdb(tmp_path / "a.pdb", [(0, 0, 0, "C"), (5, 0, 0, "Q")])
    with pytest.raises(InputError, match="residue ALA 2, chain A: the element 'X'"):
        read_structure(path)


def test_sharp_atoms_give_the_same_map_on_a_coarse_grid_as_on_a_fine_one(tmp_path):
    rng = np.random.default_rng(0)
    path = write_pdb(tmp_path / "a.pdb", [(*xyz, "O") for xyz in rng.normal(size=(40, 3)) * 4])
    structure = read_structure(path)
    coarse, fine = potential_map(structure, 24, 2.0, 10), potential_map(structure, 96, 0.5, 10)
    a, b = torch.fft.rfftn(coarse), torch.fft.rfftn(fine) / 64
    # without the finer grid and its sharpening they differ by more than half here
    kept = slice(0, 9)  # up to 3/4 of the coarse Nyquist
    assert (a[kept, kept, kept] - b[kept, kept, kept]).norm() / b[kept, kept, kept].norm() < 0.03
