"""The Bayes limit against its limits, its own expectations, identities and a brute-force posterior."""

from __future__ import annotations

import math

import pytest
import torch
from bayes_denoiser import BayesDenoiser, Posterior

from cryohush.core.imaging.projection import Projector
from cryohush.core.imaging.rings import hermitian_weight
from cryohush.core.metrics.pose_grid import PoseGrid, _healpix_centre

BOX = 32


def blobs(side: int = BOX, n: int = 40, seed: int = 0) -> torch.Tensor:
    """An asymmetric volume that the box holds, with detail to about half of Nyquist, grey scale near 1."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(side).float() - side // 2
    volume = torch.zeros(side, side, side)
    for _ in range(n):
        centre = (torch.rand(3, generator=generator) - 0.5) * 0.45 * side
        z, y, x = (torch.exp(-((axis - c) ** 2) / (2 * 1.3**2)) for c in centre)
        volume += z[:, None, None] * y[:, None] * x
    return volume / 8


@pytest.fixture(scope="module")
def volume() -> torch.Tensor:
    return blobs()


def draw(
    volume: torch.Tensor, grid: PoseGrid, n: int, seed: int = 1, transfer: torch.Tensor | None = None
) -> torch.Tensor:
    """Clean images `(n, y, x)` whose poses are drawn from the grid."""
    generator = torch.Generator().manual_seed(seed)
    side = volume.shape[0]
    index = torch.randint(grid.n_orientations, (n,), generator=generator)
    shift = grid.shifts_px[torch.randint(len(grid.shifts_px), (n,), generator=generator)]
    transform = Projector(volume).slices(grid.rotations(index))
    cycles = shift[:, :1, None] * torch.fft.fftfreq(side)[:, None] + shift[:, 1:, None] * torch.fft.rfftfreq(
        side
    )
    transform = transform * torch.polar(torch.ones_like(cycles), -2 * torch.pi * cycles)
    images: torch.Tensor = torch.fft.irfft2(
        transform if transfer is None else transform * transfer, s=(side, side)
    )
    return images


def white(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_squared(x: torch.Tensor) -> float:
    return float(x.square().mean())


def ctf_like(n: int) -> torch.Tensor:
    """Transfer functions `(n, y, x // 2 + 1)` that oscillate, each at another defocus."""
    y, x = torch.fft.fftfreq(BOX)[:, None], torch.fft.rfftfreq(BOX)
    squared = (y**2 + x**2)[None]
    return torch.sin(0.1 + torch.linspace(30, 60, n)[:, None, None] * squared) * torch.exp(-4 * squared)


def test_directions_are_the_centres_of_healpix() -> None:
    # the first pixels of nested order 1 and the base pixels, from the definition in Górski et al.
    cosine, azimuth = _healpix_centre(0, torch.arange(12))
    torch.testing.assert_close(cosine, torch.tensor([2 / 3] * 4 + [0.0] * 4 + [-2 / 3] * 4).double())
    quarters = torch.tensor([0.25, 0.75, 1.25, 1.75, 0.0, 0.5, 1.0, 1.5, 0.25, 0.75, 1.25, 1.75]).double()
    torch.testing.assert_close(azimuth % (2 * math.pi), quarters * math.pi)
    for order in (1, 2):
        cosine, azimuth = _healpix_centre(order, torch.arange(12 * 4**order))
        sine = (1 - cosine**2).sqrt()
        points = torch.stack([sine * azimuth.cos(), sine * azimuth.sin(), cosine], 1)
        apart = (points[:, None] - points).norm(dim=2) + 2 * torch.eye(len(points))
        # all different, as far apart as pixels of equal area are (side sqrt(4 pi / n), corners nearer)
        assert float(apart.min()) > 0.6 * math.sqrt(4 * math.pi / len(points))
        # equal areas: every component has mean 0 and mean square 1/3
        assert float(points.mean(0).abs().max()) < 1e-12
        torch.testing.assert_close(
            points.square().mean(0), torch.full((3,), 1 / 3).double(), atol=0.01, rtol=0
        )
        # nested: the mean of four parts is the centre of their whole, within its curvature
        if order > 1:
            whole = _healpix_centre(order - 1, torch.arange(12 * 4 ** (order - 1)))
            parts = points.reshape(-1, 4, 3).mean(1)
            assert float((parts[:, 2] - whole[0]).abs().max()) < 0.5 / 4 ** (order - 1)


def test_parts_lie_around_what_they_are_parts_of() -> None:
    grid = PoseGrid.with_shifts(2, radius_px=2, step_px=1)
    index = torch.arange(0, grid.n_orientations, 37)
    fine = grid.refined()
    assert len(fine) == 32 * len(grid)
    assert (
        torch.unique(grid.orientation_parts(torch.arange(grid.n_orientations))).numel() == fine.n_orientations
    )
    whole = grid.rotations(index)
    parts = fine.rotations(grid.orientation_parts(index).flatten()).reshape(-1, 8, 3, 3)
    angle = torch.rad2deg(torch.acos(((whole[:, None] * parts).sum((-2, -1)) / 2 - 0.5).clamp(-1, 1)))
    # steps of 15 degrees: a part's centre is a quarter step off in each of three directions (6.5 degrees),
    # more in the long corners of the pixels at the poles
    assert float(angle.max()) < 15
    assert 4 < float(angle.mean()) < 9
    shifts = fine.shifts_px[grid.shift_parts(torch.arange(len(grid.shifts_px)))]
    torch.testing.assert_close(shifts.mean(1), grid.shifts_px)


def test_little_noise_gives_the_truth(volume: torch.Tensor) -> None:
    grid = PoseGrid.with_shifts(1, radius_px=1, step_px=1)
    clean = draw(volume, grid, 16)
    variance = float(clean.var()) / 10
    found = BayesDenoiser(volume, grid, variance)(clean + variance**0.5 * white(*clean.shape))
    # poses 30 degrees apart differ by far more than the noise
    torch.testing.assert_close(found.mean, clean, atol=1e-3 * float(clean.max()), rtol=0)
    torch.testing.assert_close(found.most_probable, clean, atol=1e-3 * float(clean.max()), rtol=0)
    torch.testing.assert_close(found.effective_poses, torch.ones(16), atol=1e-3, rtol=0)
    assert float(found.log_evidence.min()) > 10


def test_all_noise_gives_the_mean_projection(volume: torch.Tensor) -> None:
    grid = PoseGrid.with_shifts(1, radius_px=1, step_px=1)
    variance = 1e8 * float(draw(volume, grid, 16).var())
    found = BayesDenoiser(volume, grid, variance)(variance**0.5 * white(4, BOX, BOX))
    every = Projector(volume).slices(grid.rotations(torch.arange(grid.n_orientations)))
    mean = torch.fft.irfft2(every.mean(0))
    mean = torch.stack([mean.roll(tuple(s), (0, 1)) for s in grid.shifts_px.long().tolist()]).mean(0)
    # weights differ by e^(+-1e-3) or so
    torch.testing.assert_close(found.mean, mean.expand(4, -1, -1), atol=2e-3 * float(mean.max()), rtol=0)
    torch.testing.assert_close(found.effective_poses, torch.full((4,), float(len(grid))), rtol=1e-3, atol=0)
    assert float(found.log_evidence.abs().max()) < 0.01


def brute_force(
    volume: torch.Tensor, grid: PoseGrid, images: torch.Tensor, power: torch.Tensor, transfer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Posterior means and log evidence from the Gaussian density over the full transform, in float64."""
    slices = Projector(volume).slices(grid.rotations(torch.arange(grid.n_orientations)))
    templates = torch.fft.irfft2(slices)
    templates = torch.stack([templates.roll(tuple(s), (1, 2)) for s in grid.shifts_px.long().tolist()])
    weight = (hermitian_weight((BOX, BOX)) / power).double()
    means, evidence = [], []
    for image, ctf in zip(images, transfer, strict=True):
        carried = torch.fft.irfft2(torch.fft.rfft2(templates.flatten(0, 1)) * ctf)
        misfit = torch.fft.rfft2(image - carried, norm="ortho").abs().double().square()
        logs = -0.5 * (misfit * weight).sum((1, 2))
        nothing = -0.5 * (torch.fft.rfft2(image, norm="ortho").abs().double().square() * weight).sum()
        means.append((torch.softmax(logs, 0)[:, None, None] * carried).sum(0))
        evidence.append(torch.logsumexp(logs - nothing, 0) - math.log(len(grid)))
    return torch.stack(means).float(), torch.stack(evidence).float()


@pytest.mark.parametrize("memory_bytes", [2**30, 2**18])
def test_ctf_and_coloured_noise_against_brute_force(volume: torch.Tensor, memory_bytes: int) -> None:
    grid = PoseGrid.with_shifts(0, radius_px=1, step_px=1)
    transfer = ctf_like(3)
    clean = draw(volume, grid, 3, transfer=transfer)
    frequency = torch.hypot(torch.fft.fftfreq(BOX)[:, None], torch.fft.rfftfreq(BOX))
    power = 400 * clean.var() * (0.3 + torch.exp(-((frequency / 0.15) ** 2)))
    noise = torch.fft.irfft2(torch.fft.rfft2(white(3, BOX, BOX)) * power.sqrt())
    # little memory: many chunks, one image at a time, nothing kept
    found = BayesDenoiser(volume, grid, power, memory_bytes=memory_bytes)(clean + noise, transfer)
    mean, evidence = brute_force(volume, grid, clean + noise, power, transfer)
    torch.testing.assert_close(found.mean, mean, atol=1e-4 * float(mean.abs().max()), rtol=0)
    torch.testing.assert_close(found.log_evidence, evidence, atol=2e-3, rtol=1e-4)
    assert 2 < float(found.effective_poses.max()) < 0.9 * len(grid)


def test_the_posterior_is_calibrated_and_beats_its_mode(volume: torch.Tensor) -> None:
    grid = PoseGrid.centred(2)
    clean = draw(volume, grid, 400)
    variance = float(clean.var((1, 2)).mean()) / 0.05
    found = BayesDenoiser(volume, grid, variance)(clean + variance**0.5 * white(*clean.shape))
    error = (found.mean - clean).square().mean((1, 2))
    difference = error - found.expected_squared_error
    standard_error = float(difference.std()) / 20
    assert abs(float(difference.mean())) < 4 * standard_error
    assert standard_error < 0.1 * float(error.mean())  # the test can see a wrong expectation
    # images that expect a larger error have one: most certain against least certain quarter
    order = found.expected_squared_error.argsort()
    assert float(error[order[:100]].mean()) < 0.5 * float(error[order[300:]].mean())
    assert mean_squared(found.most_probable - clean) > 1.1 * mean_squared(found.mean - clean)


def test_information_equals_the_integral_of_the_error(volume: torch.Tensor) -> None:
    """I-MMSE (Guo, Shamai & Verdú 2005): the integral of N mmse over 1 / variance is 2 ln M."""
    grid = PoseGrid.centred(0)  # M = 72, all different
    clean = draw(volume, grid, 250)
    scale = 1 / float(clean.var((1, 2)).mean())
    # in log gamma: from where nothing is known to where the pose is certain
    log_gamma = torch.linspace(math.log(1e-5), math.log(3.0), 30)
    errors = []
    for step, gamma in enumerate((scale * log_gamma.exp()).tolist()):
        noisy = clean + gamma**-0.5 * white(*clean.shape, seed=10 + step)
        errors.append(mean_squared(BayesDenoiser(volume, grid, 1 / gamma)(noisy).mean - clean))
    integrand = BOX**2 * torch.tensor(errors) * scale * log_gamma.exp()
    # below the first gamma the error is that of the mean image
    found = float(torch.trapezoid(integrand, log_gamma)) + float(integrand[0])
    # 250 images at each of some ten values of gamma that matter: 2 % of sampling error
    assert found == pytest.approx(2 * math.log(72), rel=0.06)


@pytest.mark.parametrize(("snr", "refine_from"), [(1.0, 32), (0.1, 32), (0.1, 16), (0.02, 16)])
def test_two_stages_agree_with_one(volume: torch.Tensor, snr: float, refine_from: int) -> None:
    coarse = PoseGrid.with_shifts(1, radius_px=1, step_px=2) if snr == 1 else PoseGrid.centred(1)
    fine = coarse.refined()
    clean = draw(volume, fine, 6)
    variance = float(clean.var((1, 2)).mean()) / snr
    noisy = clean + variance**0.5 * white(*clean.shape)
    one = BayesDenoiser(volume, fine, variance)(noisy)
    two = BayesDenoiser(volume, coarse, variance, refine_from_box_px=refine_from)(noisy)
    # what the coarse stage leaves out weighs less than a hundredth of the evidence
    assert mean_squared(two.mean - one.mean) < 1e-4 * float(clean.var((1, 2)).mean())
    torch.testing.assert_close(two.log_evidence, one.log_evidence, atol=0.05, rtol=0)


def test_what_cannot_be_denoised_is_refused(volume: torch.Tensor) -> None:
    denoiser = BayesDenoiser(volume, PoseGrid.centred(0), 1.0)
    with pytest.raises(ValueError, match="expected"):
        denoiser(torch.zeros(2, 16, 16))
    with pytest.raises(ValueError, match="positive"):
        BayesDenoiser(volume, PoseGrid.centred(0), 0.0)
    with pytest.raises(ValueError, match="coarse box"):
        BayesDenoiser(volume, PoseGrid.centred(0), 1.0, refine_from_box_px=64)


def test_posterior_has_one_entry_per_image_in_batches(volume: torch.Tensor) -> None:
    grid = PoseGrid.centred(0)
    noisy = draw(volume, grid, 7) + white(7, BOX, BOX)
    whole = BayesDenoiser(volume, grid, 1.0)(noisy)
    single = [BayesDenoiser(volume, grid, 1.0)(image[None]) for image in noisy]
    for name in Posterior.__dataclass_fields__:
        parts = torch.cat([getattr(one, name) for one in single])
        torch.testing.assert_close(getattr(whole, name), parts, atol=1e-4, rtol=1e-3)
