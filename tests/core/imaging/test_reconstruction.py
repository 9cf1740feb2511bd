import subprocess

import mrcfile
import numpy as np
import pytest
import torch
from direct_inversion import Reconstruction, reconstruct
from torch_fourier_shell_correlation import fsc

from cryohush.core.imaging.ctf import CtfParameters, ctf
from cryohush.core.imaging.projection import Projector, random_rotations, rotations_from_euler

BOX = 32


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return blobs(BOX, 12)


@pytest.fixture(scope="module")
def rotations() -> torch.Tensor:
    return random_rotations(200, torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def images(volume, rotations) -> torch.Tensor:
    return Projector(volume)(rotations)


def blobs(side: int, n: int, spread: float = 0.4) -> torch.Tensor:
    """An asymmetric volume of Gaussian blobs, smooth enough for the grid and far from the box's edge."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(side) - side // 2
    volume = torch.zeros(side, side, side)
    for _ in range(n):
        centre = (torch.rand(3, generator=generator) - 0.5) * side * spread
        z, y, x = (torch.exp(-((axis - c) ** 2) / (2 * 1.2**2)) for c in centre)
        volume += z[:, None, None] * y[:, None] * x
    return volume


def rolled(images: torch.Tensor, shifts: torch.Tensor) -> torch.Tensor:
    """Images moved by whole pixels (y, x)."""
    return torch.stack(
        [image.roll(tuple(s), (0, 1)) for image, s in zip(images, shifts.tolist(), strict=True)]
    )


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def optics(n: int) -> CtfParameters:
    generator = torch.Generator().manual_seed(5)
    defocus = 8000 + 10000 * torch.rand(n, generator=generator)
    angle = 180 * torch.rand(n, generator=generator)
    return CtfParameters(
        defocus, defocus - 700, angle, *(torch.full((n,), v) for v in (300.0, 2.7, 0.1, 0.0))
    )


def with_ctf(images: torch.Tensor, transfer: torch.Tensor) -> torch.Tensor:
    """The CTF acts on the padded image, so that what it carries out of the box is gone."""
    box, padded = images.shape[-1], transfer.shape[-2]
    margin = (padded - box) // 2
    wide = torch.nn.functional.pad(images, [margin] * 4)
    wide = torch.fft.irfft2(torch.fft.rfft2(wide) * transfer)
    return wide[:, margin : margin + box, margin : margin + box]


# linear interpolation both ways leaves about 2 %; a wrong hand, sign, centre or scale costs more than 10 %
def test_projections_give_their_volume_back_on_its_grey_scale(volume, images, rotations):
    assert error(reconstruct(images, rotations), volume) < 0.03


def test_ctf_is_taken_back(volume, images, rotations):
    transfer = ctf(optics(len(images)), torch.full((len(images),), 3.0), 2 * BOX)
    observed = with_ctf(images, transfer)
    # the CTF spreads some of each particle out of its box, for good: 10 % are lost
    assert error(reconstruct(observed, rotations, transfer=transfer), volume) < 0.12


def test_shifts_are_where_the_particle_lies(images, rotations):
    some = images[:50], rotations[:50]
    shifts = torch.randint(-3, 4, (50, 2), generator=torch.Generator().manual_seed(2))
    found = reconstruct(rolled(some[0], shifts), some[1], shifts_px=shifts.float())
    # whole pixels: the phase undoes the roll, but for the little that the roll wrapped around
    assert error(found, reconstruct(*some)) < 0.01


def test_a_weight_of_zero_leaves_an_image_out_and_two_counts_it_twice(images, rotations):
    weights = torch.ones(60)
    weights[:10], weights[10:20] = 0, 2
    order = [*range(10, 60), *range(10, 20)]
    expected = reconstruct(images[order], rotations[order])
    torch.testing.assert_close(
        reconstruct(images[:60], rotations[:60], weights=weights), expected, atol=1e-4, rtol=0
    )


def test_batches_change_nothing(images, rotations):
    at_once = reconstruct(images[:50], rotations[:50])
    streamed = Reconstruction(BOX)
    for first in range(0, 50, 7):
        here = slice(first, min(first + 7, 50))
        streamed.add(images[here], rotations[here])
    # float32 sums in another order
    torch.testing.assert_close(streamed.volume(), at_once, atol=1e-4, rtol=0)


def test_symmetry_stands_in_for_images(volume, rotations):
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0]))
    twofold = (volume + half_turned(volume)) / 2
    few = Projector(twofold)(rotations[:30]), rotations[:30]
    symmetric = reconstruct(*few, symmetry=torch.stack([torch.eye(3), half_turn]))
    # the half turn takes the grid to itself, but for the first row and column, so only rounding is left
    difference = (symmetric - half_turned(symmetric))[:, 1:, 1:]
    assert difference.abs().max() < 1e-4
    assert error(symmetric, twofold) < 0.75 * error(reconstruct(*few), twofold)


def half_turned(volume: torch.Tensor) -> torch.Tensor:
    """Half a turn about the z axis through the centre voxel."""
    return volume.flip(1, 2).roll((1, 1), (1, 2))


def test_without_images_the_volume_is_zero():
    assert not Reconstruction(8).volume().any()


def test_what_does_not_fit_is_refused(images, rotations):
    with pytest.raises(ValueError, match="even"):
        Reconstruction(31)
    with pytest.raises(ValueError, match=r"images: expected the shape \(2, 16, 16\), found \(2, 32, 32\)"):
        Reconstruction(16).add(images[:2], rotations[:2])
    with pytest.raises(ValueError, match=r"transfer: expected the shape \(2, 64, 33\)"):
        Reconstruction(BOX).add(images[:2], rotations[:2], transfer=torch.ones(2, BOX, BOX // 2 + 1))


@pytest.mark.relion
def test_reconstruction_agrees_with_relion_reconstruct(tmp_path):
    """FSC above 0.99 to 80 % of Nyquist, with CTF, shifts and noise: same hand, sign, centre and shift."""
    n, box, pixel_size = 300, 40, 3.0
    generator = torch.Generator().manual_seed(3)
    euler = torch.rand(n, 3, generator=generator) * torch.tensor([360.0, 1.0, 360.0])
    euler[:, 1] = torch.rad2deg(torch.acos(1 - 2 * euler[:, 1]))
    rotations = rotations_from_euler(euler)
    shifts = torch.randint(-2, 3, (n, 2), generator=generator)
    parameters = optics(n)
    transfer = ctf(parameters, torch.full((n,), pixel_size), 2 * box)
    volume = torch.zeros(box, box, box)  # points carry signal to Nyquist
    volume[tuple(torch.randint(13, 27, (3, 60), generator=generator))] = 1
    images = rolled(Projector(volume)(rotations), shifts)
    images = with_ctf(images, transfer)
    images += 0.2 * images.std() * torch.randn(images.shape, generator=generator)
    with mrcfile.new(tmp_path / "stack.mrcs") as mrc:
        mrc.set_data(images.numpy())
        mrc.set_image_stack()
        mrc.voxel_size = pixel_size
    labels = ["ImageName", "OpticsGroup", "AngleRot", "AngleTilt", "AnglePsi"]
    labels += ["OriginYAngst", "OriginXAngst", "DefocusU", "DefocusV", "DefocusAngle"]
    defocus = torch.stack(
        [parameters.defocus_u_angstrom, parameters.defocus_v_angstrom, parameters.angle_degrees], 1
    )
    table = torch.cat([euler, -pixel_size * shifts, defocus], 1)
    rows = "\n".join(
        f"{i}@stack.mrcs 1 " + " ".join(f"{value:.4f}" for value in row)
        for i, row in enumerate(table.tolist(), 1)
    )
    (tmp_path / "particles.star").write_text(
        "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnOpticsGroupName #2\n"
        "_rlnVoltage #3\n_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n_rlnImagePixelSize #6\n"
        f"_rlnImageSize #7\n_rlnImageDimensionality #8\n1 one 300 2.7 0.1 {pixel_size} {box} 2\n\n"
        "# version 30001\n\ndata_particles\n\nloop_\n"
        + "".join(f"_rln{label} #{i}\n" for i, label in enumerate(labels, 1))
        + rows
        + "\n\n"
    )
    subprocess.run(
        ["relion_reconstruct", "--i", "particles.star", "--o", "relion.mrc", "--ctf"],
        cwd=tmp_path, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    relion = torch.from_numpy(np.array(mrcfile.read(tmp_path / "relion.mrc")))
    ours = reconstruct(images, rotations, transfer=transfer, shifts_px=shifts.float())
    curve = fsc(ours, relion)
    assert curve[1 : int(0.8 * box / 2)].min() > 0.99, curve
