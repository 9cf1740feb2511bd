"""The Fourier-Bessel basis against scipy and rotations, and the filter against its bounds."""

from __future__ import annotations

import math

import pytest
import scipy.special
import torch

from cryohush.core.classical.covariance import (
    ImageCovariance,
    _shrunk,
    covariance_of_backprojected,
    estimate_covariance,
    estimate_covariance_through_ctf,
)
from cryohush.core.classical.fourier_bessel import FourierBesselBasis, _bessel_roots, _BesselTable
from cryohush.core.imaging.ctf import CtfParameters, ctf, defocus_groups, nearest_group
from cryohush.core.imaging.filters import apply_transfer, radial_filter, wiener_gain
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.imaging.rings import frequency_grid, ring_mean

BOX = 32


def blobs(seed: int) -> torch.Tensor:
    """An asymmetric volume within the radius of the basis, with detail to about half of Nyquist."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(BOX).float() - BOX // 2
    volume = torch.zeros(BOX, BOX, BOX)
    for _ in range(40):
        centre = (torch.rand(3, generator=generator) - 0.5) * 0.45 * BOX
        z, y, x = (torch.exp(-((axis - c) ** 2) / (2 * 1.3**2)) for c in centre)
        volume += z[:, None, None] * y[:, None] * x
    return volume


def projections(n: int, seed: int = 1) -> torch.Tensor:
    transform = Projector(blobs(0)).slices(random_rotations(n, torch.Generator().manual_seed(seed)))
    images: torch.Tensor = torch.fft.irfft2(transform)
    return images / images.var((1, 2)).mean().sqrt()


def white(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_squared(x: torch.Tensor) -> float:
    return float(x.square().mean())


def test_bessel_functions_and_their_roots_are_those_of_scipy() -> None:
    table = _BesselTable(60, 60.0)
    argument = 60 * torch.rand(500, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for order in (0, 1, 7, 60):
        expected = torch.from_numpy(scipy.special.jv(order, argument.numpy()))
        torch.testing.assert_close(table(torch.tensor(order), argument), expected, atol=1e-7, rtol=0)
    orders, roots = _bessel_roots(50.0)
    for order in (0, 1, 5, 30):
        own = roots[orders == order]
        every = torch.from_numpy(scipy.special.jn_zeros(order, len(own) + 1))
        torch.testing.assert_close(own, every[:-1], atol=1e-7, rtol=0)
        # the rule of Zhao, Shkolnisky & Singer: the next root is within the limit, the one after is not
        assert float(every[-1]) <= 50.0 < float(scipy.special.jn_zeros(order, len(own) + 2)[-1])


def test_images_within_disc_and_band_come_back() -> None:
    basis = FourierBesselBasis(BOX)
    images = projections(8)
    back = basis.synthesise(basis.analyse(images))
    # samples on a grid are not quite orthogonal, and a little lies beyond the band: 0.1 % of the variance
    assert mean_squared(back - images) < 2e-3 * float(images.var())


def test_analysis_is_the_adjoint_of_synthesis() -> None:
    basis = FourierBesselBasis(BOX)
    coefficients = torch.complex(white(1, len(basis), seed=3), white(1, len(basis), seed=4))
    coefficients[:, basis.angular == 0] = coefficients[:, basis.angular == 0].real.to(torch.complex64)
    images = white(1, BOX, BOX)
    # functions with k > 0 stand for two
    pair = torch.where(basis.angular > 0, 2.0, 1.0)
    left = float((basis.analyse(images).conj() * coefficients * pair).real.sum())
    assert left == pytest.approx(float((images * basis.synthesise(coefficients)).sum()), rel=1e-4)


def test_turning_an_image_multiplies_by_a_phase() -> None:
    basis = FourierBesselBasis(BOX)
    image = projections(1)
    # about pixel 16: the quarter turn of an even box moves the centre by one pixel
    turned = torch.rot90(image, 1, (-2, -1)).roll(1, -2)
    mirrored = image.flip(-2).roll(1, -2)
    straight = basis.analyse(image)
    phase = torch.polar(torch.ones(len(basis)), math.pi / 2 * basis.angular)
    scale = float(straight.abs().max())
    torch.testing.assert_close(basis.analyse(turned), straight * phase, atol=1e-4 * scale, rtol=0)
    sign = 1 - 2.0 * (basis.angular % 2)
    torch.testing.assert_close(basis.analyse(mirrored), sign * straight.conj(), atol=1e-4 * scale, rtol=0)


def test_white_noise_keeps_its_variance_in_every_coefficient() -> None:
    basis = FourierBesselBasis(BOX)
    power = basis.analyse(2 * white(4000, BOX, BOX)).abs().square().mean(0)
    # 4000 samples of one or two squares: 2 % of sampling error, five times that for the worst of 268
    torch.testing.assert_close(power, torch.full_like(power, 4.0), atol=0.4, rtol=0)


def test_noise_alone_has_no_covariance() -> None:
    basis = FourierBesselBasis(BOX)
    found = estimate_covariance(3 * white(1000, BOX, BOX), 9.0, basis)
    # eigenvalues of pure noise end at the edge of Marchenko and Pastur, but for a few of some 270
    share = sum(float(values.sum()) for values in found.eigenvalues) / (9.0 * len(basis))
    assert share < 0.02


def test_shrinkage_finds_the_variance_along_a_spike() -> None:
    # a spike of variance 2 in 50 dimensions of unit noise, 200 samples
    direction = torch.zeros(50)
    direction[0] = 1.0
    found, true = [], []
    for seed in range(20):
        data = white(200, 50, seed=seed) + 2**0.5 * white(200, 1, seed=100 + seed) * direction
        values, vectors = torch.linalg.eigh((data.T @ data / 200).double())
        found.append(float(_shrunk(values, 50 / 200)[-1]))
        true.append(2 * float(vectors[0, -1]) ** 2)
    # 20 draws whose eigenvalue varies by 10 % each
    assert sum(found) / 20 == pytest.approx(sum(true) / 20, rel=0.1)
    # without shrinkage it would be read off as 2.4 or more
    assert sum(found) / 20 < 1.9


@pytest.fixture(scope="module")
def clean_covariance() -> ImageCovariance:
    return estimate_covariance(projections(3000), 0.0, FourierBesselBasis(BOX))


@pytest.mark.parametrize("snr", [0.3, 0.05])
def test_it_lies_between_the_radial_filter_and_the_best_linear_one(
    clean_covariance: ImageCovariance, snr: float
) -> None:
    clean = projections(1500, seed=7)
    noisy = clean + snr**-0.5 * white(*clean.shape)
    cwf = estimate_covariance(noisy, 1 / snr, clean_covariance.basis).denoise(noisy, 1 / snr)
    error = (cwf - clean).square().mean((1, 2))
    # the radial filter with the true spectrum, and the best linear one with the true covariance
    power = ring_mean(torch.fft.rfft2(clean, norm="ortho").abs().square().mean(0), (BOX, BOX))
    gain = wiener_gain(torch.full_like(power, 1 / snr), power + 1 / snr)
    assert float(error.mean()) < 0.8 * mean_squared(radial_filter(noisy, gain) - clean)
    best = (clean_covariance.denoise(noisy, 1 / snr) - clean).square().mean((1, 2))
    difference = error - best
    assert float(difference.mean()) > -3 * float(difference.std()) / 1500**0.5
    assert float(error.mean()) < 1.5 * float(best.mean())


@pytest.mark.parametrize("snr", [0.3, 0.05])
def test_the_best_linear_filter_errs_as_it_expects(clean_covariance: ImageCovariance, snr: float) -> None:
    clean = projections(1000, seed=8)
    noisy = clean + snr**-0.5 * white(*clean.shape)
    found = mean_squared(clean_covariance.denoise(noisy, 1 / snr) - clean)
    # of each eigenvalue the noise leaves so much; all but angular frequency 0 stand for its negative, too
    left = [float((values / (snr * values + 1)).sum()) for values in clean_covariance.eigenvalues]
    expected = (left[0] + 2 * sum(left[1:])) / BOX**2
    # the basis loses 0.1 % of the variance and is orthogonal to 3 %; 1000 views are a sample
    assert found == pytest.approx(expected, rel=0.06)


def test_a_radial_factor_acts_on_coefficients_as_on_the_transform() -> None:
    basis = FourierBesselBasis(BOX)
    transfer = torch.cos(40 * frequency_grid((BOX, BOX)).square())[None]
    images = projections(4)
    direct = basis.analyse(apply_transfer(images, transfer))
    coefficients = basis.analyse(images)
    by_operators = torch.empty_like(direct)
    for order, operator in enumerate(basis.radial_operators(transfer)):
        here = basis.angular == order
        by_operators[:, here] = coefficients[:, here] @ operator[0].to(torch.complex64)
    # samples on a grid are not quite orthogonal: the 0.1 % of variance that a round trip loses
    difference = (by_operators - direct).abs().square().sum()
    assert float(difference) < 2e-3 * float(direct.abs().square().sum())


def optics(n: int) -> CtfParameters:
    ones = torch.ones(n)
    defocus = 8000 + 12000 * torch.rand(n, generator=torch.Generator().manual_seed(3))
    half = torch.full((n,), 100.0)
    return CtfParameters(
        defocus + half, defocus - half, 30 * ones, 300 * ones, 2.7 * ones, 0.1 * ones, 0 * ones
    )


def test_without_a_ctf_restoring_is_denoising() -> None:
    clean = projections(1000, seed=7)
    noisy = clean + 3 * white(*clean.shape)
    basis = FourierBesselBasis(BOX)
    kept = estimate_covariance(noisy, 9.0, basis).denoise(noisy, 9.0)
    group = torch.arange(1000) % 3
    transfer = torch.ones(3, BOX, BOX // 2 + 1)
    through = estimate_covariance_through_ctf(noisy, 9.0, basis, transfer, group)
    # the one takes the basis for orthogonal, which it is to 3 %
    restored = through.restore(noisy, 9.0, transfer, group)
    assert mean_squared(restored - kept) < 2e-3 * mean_squared(clean)


def test_images_through_many_ctfs_are_restored_almost_as_if_the_covariance_were_known(
    clean_covariance: ImageCovariance,
) -> None:
    n, n_groups, pixel_size, variance = 1500, 20, 4.0, 4.0
    clean, parameters = projections(n, seed=7), optics(n)
    own = ctf(parameters, torch.full((n,), pixel_size), BOX)
    noisy = apply_transfer(clean, own) + variance**0.5 * white(*clean.shape)
    group, common = defocus_groups(parameters, n_groups)
    transfer = ctf(common, torch.full((n_groups,), pixel_size), BOX)
    covariance = estimate_covariance_through_ctf(noisy, variance, clean_covariance.basis, transfer, group)
    found = mean_squared(covariance.restore(noisy, variance, transfer, group) - clean)
    best = mean_squared(clean_covariance.restore(noisy, variance, transfer, group) - clean)
    # 1500 images for some 2500 numbers of the covariance
    assert best < found < 1.3 * best
    # flat images of the mean grey value would have 1
    assert found < 0.5


def test_images_of_a_phase_plate_are_grouped_by_their_phase_shift_too(
    clean_covariance: ImageCovariance,
) -> None:
    n, pixel_size, variance = 1500, 4.0, 4.0
    phase = torch.linspace(30, 120, n)[torch.randperm(n, generator=torch.Generator().manual_seed(1))]
    clean = projections(n, seed=7)
    parameters = CtfParameters(**{**vars(optics(n)), "phase_shift_degrees": phase})
    own = ctf(parameters, torch.full((n,), pixel_size), BOX)
    noisy = apply_transfer(clean, own) + variance**0.5 * white(*clean.shape)
    errors = []
    for known in (phase, phase.mean().expand(n)):
        seen = CtfParameters(**{**vars(parameters), "phase_shift_degrees": known})
        group, common = defocus_groups(seen, 30)
        transfer = ctf(common, torch.full((len(common),), pixel_size), BOX)
        covariance = estimate_covariance_through_ctf(noisy, variance, clean_covariance.basis, transfer, group)
        errors.append(mean_squared(covariance.restore(noisy, variance, transfer, group) - clean))
        spans = [float(known[group == number].max() - known[group == number].min()) for number in range(30)]
        assert max(spans) <= 15.1
        there = nearest_group(seen, common)
        assert float((common.phase_shift_degrees[there] - known).abs().max()) < 15.1
    assert errors[0] < 0.9 * errors[1]


def test_groups_are_of_like_defocus_and_size() -> None:
    parameters = optics(103)
    group, common = defocus_groups(parameters, 10)
    assert sorted(torch.bincount(group).tolist()) == [10] * 7 + [11] * 3
    mean = (parameters.defocus_u_angstrom + parameters.defocus_v_angstrom) / 2
    for number in range(10):
        own = mean[group == number]
        assert float(common.defocus_u_angstrom[number]) == pytest.approx(float(own.mean()), rel=1e-6)
        if number:
            assert float(own.min()) >= float(mean[group == number - 1].max())
    torch.testing.assert_close(common.defocus_u_angstrom, common.defocus_v_angstrom)
    mixed = CtfParameters(**{**vars(parameters), "voltage_kv": torch.linspace(200, 300, 103)})
    with pytest.raises(ValueError, match="voltage_kv"):
        defocus_groups(mixed, 10)
    with pytest.raises(ValueError, match="104 groups"):
        defocus_groups(parameters, 104)


def test_coefficients_through_their_own_ctf_are_enough() -> None:
    basis = FourierBesselBasis(BOX, BOX / 3, 0.3)
    optics_of_images = optics(400)
    group, of_groups = defocus_groups(optics_of_images, 10)
    transfer = ctf(of_groups, torch.full((10,), 3.0), BOX)
    images = apply_transfer(projections(400), transfer[group]) + white(400, BOX, BOX)
    expected = estimate_covariance_through_ctf(images, 1.0, basis, transfer, group)
    operators = basis.radial_operators(transfer)
    coefficients = basis.analyse(images)
    through, squared = [], []
    for order, operator in enumerate(operators):
        some = torch.view_as_real(coefficients[:, basis.angular == order])
        through.append(torch.view_as_complex((operator[group] @ some).contiguous()))
        squared.append(operator @ operator)
    found = covariance_of_backprojected(through, squared, group)
    # angular frequency 0 has a mean
    for one, vectors, values in zip(found[1:], expected.vectors[1:], expected.eigenvalues[1:], strict=True):
        there = (vectors * values) @ vectors.T
        torch.testing.assert_close(one, there, atol=1e-3 * float(there.abs().max()) + 1e-6, rtol=0)


def test_what_cannot_be_estimated_is_refused() -> None:
    flat, ones = torch.zeros(4, BOX, BOX), torch.ones(2, BOX, BOX // 2 + 1)
    basis = FourierBesselBasis(BOX)
    for variance, group in ((0.0, [0, 0, 1, 1]), (1.0, [0, 1, 2, 1]), (1.0, [0, 1])):
        with pytest.raises(ValueError, match="groups"):
            estimate_covariance_through_ctf(flat, variance, basis, ones, torch.tensor(group))
    with pytest.raises(ValueError, match="even"):
        FourierBesselBasis(31)
    with pytest.raises(ValueError, match="band limit"):
        FourierBesselBasis(32, band_limit=0.6)
    with pytest.raises(ValueError, match="two images"):
        estimate_covariance(torch.zeros(1, BOX, BOX), 1.0, FourierBesselBasis(BOX))
