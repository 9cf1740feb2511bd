from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from cryohush.core.errors import CsError, InputError, StarError
from cryohush.core.imaging.ctf import ctf_parameters_of
from cryohush.core.imaging.poses import poses_of, uniform_poses
from cryohush.core.imaging.projection import rotations_from_euler
from cryohush.core.io.particles import ParticleSet

DATA = Path(__file__).parents[2] / "data" / "io"


def test_poses_and_ctf_of_a_relion_table_are_its_numbers():
    particles = ParticleSet.read(DATA / "empiar_10059.star")
    poses, optics = poses_of(particles), ctf_parameters_of(particles)
    # first row: -30.073301 137.509323 167.963364 -8.149219 -6.120969 14657.509766 15222.730469 53.749996
    expected = rotations_from_euler(torch.tensor([-30.073301, 137.509323, 167.963364]))
    torch.testing.assert_close(poses.rotations[0], expected, atol=1e-5, rtol=0)
    # RELION's origin points from the particle to the image's centre
    torch.testing.assert_close(poses.shifts_angstrom[0], torch.tensor([6.120969, 8.149219]))
    assert optics.defocus_u_angstrom[0].item() == pytest.approx(14657.51, abs=0.01)
    assert (optics.voltage_kv[0], optics.cs_mm[0]) == (300, 2)
    assert optics.amplitude_contrast[0].item() == pytest.approx(0.1)


def test_cryosparc_and_relion_tell_the_same_ctf():
    one, other = (
        ctf_parameters_of(ParticleSet.read(DATA / name))
        for name in ("empiar_10076_7.star", "empiar_10076_7.cs")
    )
    for name in one.__dataclass_fields__:
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-5, atol=1e-4)


def write_cs(path, **columns):
    """The table of the test data with other columns added."""
    rows = np.load(DATA / "empiar_10076_7.cs")
    fields = [*rows.dtype.descr, *((name, "f4", value.shape[1:]) for name, value in columns.items())]
    table = np.zeros(len(rows), fields)
    for name in rows.dtype.names:
        table[name] = rows[name]
    for name, value in columns.items():
        table[name] = value
    with path.open("wb") as file:
        np.save(file, table)
    (path.parent / "empiar_10076_7.mrc").write_bytes((DATA / "empiar_10076_7.mrc").read_bytes())
    return path


def test_cryosparc_pose_is_a_rotation_vector_from_image_to_volume(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
    vectors[0] = 0
    shift = np.tile(np.float32([3, -2]), (7, 1))
    path = write_cs(
        tmp_path / "p.cs",
        **{
            "alignments3D/pose": vectors,
            "alignments3D/shift": shift,
            "alignments3D/psize_A": np.full(7, 1.5, np.float32),
        },
    )
    poses = poses_of(ParticleSet.read(path))
    # the exponential of what turns any v into vector x v
    crossed = np.stack([np.cross(vector, np.eye(3)).T for vector in vectors])
    np.testing.assert_allclose(poses.rotations, expm(crossed), atol=1e-5)
    # x 3 px and y -2 px of 1.5 Å as RELION's origin, which is the opposite of a shift
    torch.testing.assert_close(poses.shifts_angstrom[0], torch.tensor([3.0, -4.5]))


def test_table_without_poses_is_refused():
    with pytest.raises(CsError, match="alignments3D/pose"):
        poses_of(ParticleSet.read(DATA / "empiar_10076_7.cs"))
    with pytest.raises(StarError, match="rlnAngleRot"):
        poses_of(ParticleSet.read(DATA / "empiar_10076_7.star"))
    with pytest.raises(InputError, match="bare stack"):
        poses_of(ParticleSet.read(DATA / "batch_0_restacked.mrc"))


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("300 2.7 0.07", "300 2.7 7", "an amplitude contrast from 0 to 1, found 7"),
        ("15301.1 14916.4", "1.53011 1.49164", "a defocus in Å, not in µm, found 1.53011"),
    ],
)
def test_impossible_value_is_refused_with_its_line(tmp_path, right, wrong, problem):
    text = (DATA / "empiar_10076_7.star").read_text().replace(right, wrong, 1)
    (tmp_path / "p.star").write_text(text)
    (tmp_path / "empiar_10076_7.mrc").write_bytes((DATA / "empiar_10076_7.mrc").read_bytes())
    with pytest.raises(StarError, match=rf"line \d+: row 1: expected {problem}"):
        ctf_parameters_of(ParticleSet.read(tmp_path / "p.star"))


def test_uniform_poses_stay_within_the_unit_and_the_shift():
    poses = uniform_poses(500, torch.Generator().manual_seed(1), symmetry="D2", max_shift_angstrom=12.0)
    assert poses.rotations[:, 2, 2].min() >= 0
    assert 11 < poses.shifts_angstrom.abs().max() <= 12
