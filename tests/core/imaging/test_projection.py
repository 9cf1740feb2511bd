import subprocess

import mrcfile
import numpy as np
import pytest
import torch

from cryohush.core.imaging.ctf import CtfParameters, b_factor_envelope, ctf
from cryohush.core.imaging.projection import (
    Projector,
    euler_from_rotations,
    random_rotations,
    rotations_from_euler,
)
from cryohush.core.imaging.resample import shift_images


def blobs(side: int = 48, seed: int = 0) -> torch.Tensor:
    """An asymmetric volume of Gaussian blobs, far from the box's edge and smooth enough for the grid."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.stack(torch.meshgrid(*[torch.arange(side) - side // 2] * 3, indexing="ij"), -1).float()
    volume = torch.zeros(side, side, side)
    for _ in range(12):
        centre = (torch.rand(3, generator=generator) - 0.5) * side * 0.5
        volume += torch.exp(-((grid - centre) ** 2).sum(-1) / (2 * 1.6**2))
    return volume


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


# A slice along the axes falls on the grid, where nothing is interpolated and yet interpolation is corrected
# for: the worst case, off by 1 / sinc² at the blobs, which reach a quarter of the box: 6 % with twofold
# padding and 1.4 % with fourfold.
def test_identity_is_the_sum_along_z():
    volume = blobs()
    errors = [relative_error(Projector(volume, pad)(torch.eye(3)[None])[0], volume.sum(0)) for pad in (2, 4)]
    assert errors[0] < 0.07
    assert errors[1] < 0.02


def test_quarter_turn_about_y_is_the_sum_along_x():
    volume = blobs()
    image = Projector(volume, 4)(rotations_from_euler(torch.tensor([[0.0, 90.0, 0.0]])))[0]
    # the image's x axis is then the volume's -z axis: flip about the centre voxel
    expected = volume.sum(2).flip(0).roll(1, 0).T
    assert relative_error(image, expected) < 0.02


def test_delta_at_the_rotation_centre_never_moves():
    volume = torch.zeros(32, 32, 32)
    volume[16, 16, 16] = 1
    images = Projector(volume)(random_rotations(8, torch.Generator().manual_seed(1)))
    assert images.flatten(1).argmax(1).tolist() == [16 * 32 + 16] * 8


def test_random_rotations_are_proper_and_uniform():
    rotations = random_rotations(20000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotations @ rotations.mT, torch.eye(3).expand(20000, 3, 3), atol=1e-5, rtol=0)
    assert torch.linalg.det(rotations).min() > 0.99
    # uniform: each entry has mean 0 and variance 1/3; the standard errors are 0.004 and 0.002
    assert rotations.mean(0).abs().max() < 0.02
    assert (rotations.var(0) - 1 / 3).abs().max() < 0.012


def test_angles_of_a_rotation_give_it_back():
    generator = torch.Generator().manual_seed(7)
    rotations = random_rotations(200, generator)
    poles = rotations_from_euler(torch.tensor([[30.0, 0.0, 50.0], [30.0, 180.0, 50.0]]))
    rotations = torch.cat([rotations, poles])
    angles = euler_from_rotations(rotations)
    torch.testing.assert_close(rotations_from_euler(angles), rotations, atol=1e-5, rtol=0)
    # rot and psi are one turn at the poles
    torch.testing.assert_close(
        angles[200:], torch.tensor([[0.0, 0.0, 80.0], [0.0, 180.0, 20.0]]), atol=1e-3, rtol=0
    )


# interpolation leaves ghosts beyond the box, which slices fold back into it: less with more padding
@pytest.mark.parametrize(("pad", "tolerance"), [(2, 0.04), (4, 0.01)])
def test_slices_are_the_transforms_of_the_projections(pad, tolerance):
    projector = Projector(blobs(32), pad)
    rotations = random_rotations(40, torch.Generator().manual_seed(1))
    rotations[0] = torch.eye(3)
    expected = torch.fft.rfft2(projector(rotations))
    found = projector.slices(rotations)
    assert found.shape == expected.shape
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() / other.norm() < tolerance


def test_odd_or_oblong_volume_is_refused():
    with pytest.raises(ValueError, match="cubic volume of even side"):
        Projector(torch.zeros(31, 31, 31))


@pytest.mark.relion
def test_projections_and_ctf_agree_with_relion(tmp_path):
    """Fourier ring correlation above 0.99 to 90 % of Nyquist: no sign, axis, hand or half-pixel slip."""
    box = 64
    volume = torch.zeros(box, box, box)
    generator = torch.Generator().manual_seed(2)
    for _ in range(
        60
    ):  # points carry signal to Nyquist; inside half the box, where twofold padding serves both
        z, y, x = (torch.rand(3, generator=generator) * 24 + 20).long().tolist()
        volume[z, y, x] = 1
    with mrcfile.new(tmp_path / "map.mrc") as mrc:
        mrc.set_data(volume.numpy())
        mrc.voxel_size = 2.0
    angles = torch.tensor([[0.0, 0, 0], [30, 0, 0], [0, 50, 0], [10, 80, -140], [-60, 130, 25]])
    origins = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, -5.0], [1.7, 4.1], [-6.3, 2.2]])  # x, y in Å
    optics = CtfParameters(*(torch.full((5,), v) for v in (12000.0, 10500.0, 35.0, 300.0, 2.7, 0.1, 50.0)))
    rows = "\n".join(
        f"{i}@none.mrcs 1 12000.0 10500.0 35.0 50.0 80.0 " + " ".join(f"{value:.3f}" for value in row)
        for i, row in enumerate(torch.cat([angles, origins], 1).tolist(), 1)
    )
    labels = [
        "ImageName",
        "OpticsGroup",
        "DefocusU",
        "DefocusV",
        "DefocusAngle",
        "PhaseShift",
        "CtfBfactor",
        "AngleRot",
        "AngleTilt",
        "AnglePsi",
        "OriginXAngst",
        "OriginYAngst",
    ]
    (tmp_path / "angles.star").write_text(
        "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnOpticsGroupName #2\n"
        "_rlnVoltage #3\n_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n_rlnImagePixelSize #6\n"
        f"_rlnImageSize #7\n_rlnImageDimensionality #8\n1 one 300 2.7 0.1 2.0 {box} 2\n\n"
        "# version 30001\n\ndata_particles\n\nloop_\n"
        + "".join(f"_rln{label} #{i}\n" for i, label in enumerate(labels, 1))
        + rows
        + "\n\n"
    )
    subprocess.run(
        ["relion_project", "--i", "map.mrc", "--ang", "angles.star", "--o", "out", "--angpix", "2", "--ctf"],
        cwd=tmp_path, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    relion = mrcfile.read(tmp_path / "out.mrcs")
    size = torch.full((5,), 2.0)
    transfer = ctf(optics, size, box) * b_factor_envelope(torch.full((5,), 80.0), size, box)
    images = torch.fft.irfft2(torch.fft.rfft2(Projector(volume)(rotations_from_euler(angles))) * transfer)
    # RELION's origin is what would bring the particle back to the centre
    ours = shift_images(images, -origins.flip(1) / 2.0).numpy()
    ring = np.rint(np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)[None]) * box).astype(int)
    powers: dict[int, list[float]] = {}
    for one, other in zip(ours, relion, strict=True):
        a, b = np.fft.rfft2(one), np.fft.rfft2(other)
        for radius in range(1, 29):
            here = ring == radius
            frc = (a[here] * b[here].conj()).real.sum() / np.sqrt(
                (np.abs(a[here]) ** 2).sum() * (np.abs(b[here]) ** 2).sum()
            )
            assert frc > 0.99, f"ring {radius}: {frc:.4f}"
            # the same envelope too, on a scale of RELION's own
            powers.setdefault(radius, []).append(np.linalg.norm(a[here]) / np.linalg.norm(b[here]))
    scale = np.array([np.mean(powers[radius]) for radius in sorted(powers)])
    assert np.ptp(scale) < 0.1 * scale.mean()  # interpolation
