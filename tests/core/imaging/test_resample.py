import pytest
import torch

from cryohush.core.imaging.resample import fourier_resample, low_pass_volume, resample_volume, shift_images


def gaussians(side: int, spacing: float) -> torch.Tensor:
    """Two Gaussians off the centre, smooth enough for either grid."""
    axis = (torch.arange(side) - side // 2) * spacing
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    one = torch.exp(-(grid - torch.tensor([3.0, -5.0, 7.0])).square().sum(-1) / (2 * 2.5**2))
    return one - 0.5 * torch.exp(-(grid - torch.tensor([-8.0, 2.0, 1.0])).square().sum(-1) / (2 * 3.0**2))


@pytest.mark.parametrize(("ratio", "box"), [(1.37, 36), (0.73, 64), (1.37, 33), (1.0, 40), (2.0, 24)])
def test_resampled_gaussians_are_gaussians_at_the_new_places(ratio, box):
    # no slip of half a voxel for even or odd boxes; at twice the spacing 1e-3 of their spectrum is cut off
    found, expected = resample_volume(gaussians(48, 1.0), ratio, box), gaussians(box, ratio)
    assert (found - expected).norm() / expected.norm() < 3e-3


def test_low_pass_keeps_a_coarse_wave_and_removes_a_fine_one():
    x = torch.arange(40.0)
    coarse, fine = torch.cos(2 * torch.pi * x * 4 / 40), torch.cos(2 * torch.pi * x * 12 / 40)
    volume = (coarse + fine).expand(40, 40, 40)
    # 4/40 per 2 Å voxel is 20 Å, 12/40 is 6.7 Å
    filtered = low_pass_volume(volume, 10.0, 2.0)
    torch.testing.assert_close(filtered, coarse.expand(40, 40, 40), atol=1e-5, rtol=0)


def test_shift_moves_towards_larger_indices_by_fractions_too():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")

    def spot(cy: float, cx: float) -> torch.Tensor:
        return torch.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)

    images = torch.stack([spot(16, 16), spot(14, 17)])
    moved = shift_images(images, torch.tensor([[2.5, -1.25], [0.0, 3.0]]))
    expected = torch.stack([spot(18.5, 14.75), spot(14, 20)])
    torch.testing.assert_close(moved, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("box", [32, 96])
def test_resampling_keeps_a_smooth_image(box):
    """A band-limited image has the same values on the new grid, wherever the two grids meet."""
    coordinate = torch.arange(64) / 64
    wave = torch.cos(2 * torch.pi * (3 * coordinate[:, None] + 5 * coordinate[None, :]) + 0.4)
    grid = torch.arange(box) / box
    expected = torch.cos(2 * torch.pi * (3 * grid[:, None] + 5 * grid[None, :]) + 0.4)
    torch.testing.assert_close(fourier_resample(wave[None], box)[0], expected, atol=1e-5, rtol=0)
