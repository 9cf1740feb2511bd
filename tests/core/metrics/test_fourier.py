"""Ring correlation and power against brute force, closed forms and independent programs."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
import torch_fourier_shell_correlation as library

from cryohush.core.errors import InputError
from cryohush.core.imaging import filters
from cryohush.core.imaging.rings import ring_mean
from cryohush.core.metrics import fourier, image


def white_noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rings_of(shape: tuple[int, int]) -> np.ndarray:
    rows, columns = np.fft.fftfreq(shape[0]), np.fft.fftfreq(shape[1])
    return np.round(np.hypot(rows[:, None], columns[None, :]) * min(shape)).astype(int)


@pytest.mark.parametrize("shape", [(16, 16), (15, 15), (12, 17)])
def test_ring_correlation_equals_brute_force_on_the_full_transform(shape: tuple[int, int]) -> None:
    a = white_noise(*shape)
    b = a + white_noise(*shape, seed=2)
    f, g = np.fft.fft2(a.numpy()), np.fft.fft2(b.numpy())
    rings = rings_of(shape)
    expected = []
    for ring in range(min(shape) // 2 + 1):
        x, y = f[rings == ring], g[rings == ring]
        norm = np.sqrt((np.abs(x) ** 2).sum() * (np.abs(y) ** 2).sum())
        expected.append((x * y.conj()).sum().real / norm)
    np.testing.assert_allclose(fourier.fourier_ring_correlation(a, b), expected, rtol=1e-9)


def test_ring_correlation_agrees_with_torch_fourier_shell_correlation() -> None:
    signal = filters.gaussian_filter(white_noise(64, 64), 1.0)
    a, b = signal + 0.2 * white_noise(64, 64, seed=2), signal + 0.2 * white_noise(64, 64, seed=3)
    found = fourier.fourier_ring_correlation(a, b)
    # the library spreads each coefficient over two rings and counts half of the transform, so only the course
    # of the curve is the same; beyond ring 5 a ring holds enough coefficients to compare
    expected = library.fourier_ring_correlation(a.float(), b.float()).double()
    torch.testing.assert_close(found[5:-1], expected[5:-1], rtol=0.0, atol=0.15)
    assert float((found - expected)[5:-1].abs().mean()) < 0.04


def test_ring_correlation_of_an_image_with_itself_and_its_negative() -> None:
    images = white_noise(3, 12, 12)
    ones = torch.ones(3, 7, dtype=torch.float64)
    torch.testing.assert_close(fourier.fourier_ring_correlation(images, 2 * images), ones)
    torch.testing.assert_close(fourier.fourier_ring_correlation(images, -images), -ones)


def test_empty_rings_correlate_with_nothing() -> None:
    images = filters.low_pass(white_noise(32, 32), 8.0, 1.0, edge_rings=0.0)
    flat = torch.zeros_like(images)
    assert fourier.fourier_ring_correlation(flat, images).tolist() == [0.0] * 17


def test_pooled_ring_correlation_finds_the_share_of_signal() -> None:
    # signal and noise of equal variance: the correlation is 1/2 in every ring
    signal = white_noise(300, 16, 16)
    a, b = signal + white_noise(300, 16, 16, seed=2), signal + white_noise(300, 16, 16, seed=3)
    found = fourier.pooled_fourier_ring_correlation(a, b)
    # ring 1 holds 8 coefficients, 4 independent ones of 2 numbers: 2400 samples, error about 0.02
    torch.testing.assert_close(found[1:], torch.full((8,), 0.5, dtype=found.dtype), rtol=0.0, atol=0.08)


def test_pooling_weighs_pairs_by_what_they_hold() -> None:
    strong = white_noise(1, 16, 16)
    images = torch.cat([strong, 1e-6 * white_noise(9, 16, 16, seed=2)])
    twins = torch.cat([strong, 1e-6 * white_noise(9, 16, 16, seed=3)])
    pooled = fourier.pooled_fourier_ring_correlation(images, twins)
    # the faint pairs hold 1e-12 of the power and do not agree; the mean over pairs would be near 0.1
    torch.testing.assert_close(pooled, torch.ones_like(pooled), rtol=0.0, atol=1e-9)
    assert float(fourier.fourier_ring_correlation(images, twins).mean(0)[4:].max()) < 0.5


def test_power_spectrum_of_white_noise_is_its_variance() -> None:
    power = fourier.radial_power_spectrum(2.0 * white_noise(500, 16, 16)).mean(0)
    assert power.shape == (9,)
    # ring 0 averages 500 squared normals: relative error sqrt(2 / 500) = 0.06
    torch.testing.assert_close(power, torch.full((9,), 4.0, dtype=power.dtype), rtol=0.25, atol=0.0)


def test_power_over_all_rings_adds_up_to_the_mean_square() -> None:
    images = white_noise(2, 15, 15)  # Parseval, with the corner rings included
    power = ring_mean(torch.fft.rfft2(images, norm="ortho").abs().square(), (15, 15))
    counts = torch.from_numpy(np.bincount(rings_of((15, 15)).ravel()))
    torch.testing.assert_close((power * counts).sum(-1) / 225, images.square().mean((-2, -1)))
    torch.testing.assert_close(fourier.radial_power_spectrum(images), power[..., :8])


@pytest.mark.parametrize("shape", [(16, 16), (15, 12)])
def test_correlation_in_the_whole_band_is_the_pearson_correlation(shape: tuple[int, int]) -> None:
    a, b = white_noise(3, *shape) + 4.0, white_noise(3, *shape, seed=2) - 1.0
    b = b + 0.3 * a
    torch.testing.assert_close(fourier.band_correlation(a, b, 1.5), image.correlation(a, b))


def test_band_correlation_is_blind_to_a_common_gradient() -> None:
    pixel_size, side = 1.5, 128  # 192 Å: rings 0 and 1 are coarser than 100 Å
    a, b = white_noise(side, side), white_noise(side, side, seed=2)
    wave = 100 * torch.cos(2 * math.pi * torch.arange(side) / side)[:, None]
    assert float(image.correlation(a + wave, b + wave)) > 0.99
    kept = fourier.band_correlation(a + wave, b + wave, pixel_size, coarsest_angstrom=100.0)
    torch.testing.assert_close(kept, fourier.band_correlation(a, b, pixel_size, coarsest_angstrom=100.0))
    # independent noise: 0 within 5 standard errors of 1 / side
    assert abs(float(kept)) < 5 / side


def test_band_correlation_equals_that_of_band_passed_images() -> None:
    a = white_noise(32, 32)
    b = a + white_noise(32, 32, seed=2)
    limits = {"coarsest_angstrom": 32 * 2 / 4.5, "finest_angstrom": 32 * 2 / 9.5}  # between rings

    def band_passed(images: torch.Tensor) -> torch.Tensor:
        fine = filters.low_pass(images, limits["finest_angstrom"], 2.0, edge_rings=0.0)
        return fine - filters.low_pass(images, limits["coarsest_angstrom"], 2.0, edge_rings=0.0)

    torch.testing.assert_close(
        fourier.band_correlation(a, b, 2.0, **limits), image.correlation(band_passed(a), band_passed(b))
    )


def test_ring_frequencies_end_at_nyquist() -> None:
    frequencies = fourier.ring_frequencies((128, 128), 1.5)
    assert frequencies.shape == (65,)
    assert float(frequencies[-1]) == pytest.approx(1 / 3.0)


def half_maps(side: int = 48) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Two noisy copies of a band-limited blob, and a soft mask about it."""
    axis = (torch.arange(side) - side // 2).double()
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    frequency = torch.fft.fftfreq(side).double()
    k2 = frequency[:, None, None] ** 2 + frequency[:, None] ** 2 + torch.fft.rfftfreq(side).double() ** 2
    gain = torch.exp(-k2 / 0.09**2)
    blob = torch.fft.irfftn(torch.fft.rfftn(white_noise(side, side, side)) * gain, s=(side,) * 3)
    blob *= torch.exp(-((radius / 11) ** 4))  # smooth, so that cutting it out adds no fine detail
    halves = [blob / blob.std() + 1.5 * white_noise(side, side, side, seed=seed) for seed in (2, 3)]
    mask = 0.5 + 0.5 * torch.cos(math.pi * ((radius - 15) / 5).clamp(0, 1))
    return halves, mask


@pytest.mark.parametrize("side", [12, 13])
def test_shell_correlation_equals_brute_force_on_the_full_transform(side: int) -> None:
    a = white_noise(side, side, side)
    b = a + white_noise(side, side, side, seed=2)
    f, g = np.fft.fftn(a.numpy()), np.fft.fftn(b.numpy())
    k = np.fft.fftfreq(side)
    shells = np.round(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2) * side).astype(int)
    expected = []
    for shell in range(side // 2 + 1):
        x, y = f[shells == shell], g[shells == shell]
        norm = np.sqrt((np.abs(x) ** 2).sum() * (np.abs(y) ** 2).sum())
        expected.append((x * y.conj()).sum().real / norm)
    np.testing.assert_allclose(fourier.fourier_shell_correlation(a, b), expected, rtol=1e-9)


def test_shell_correlation_agrees_with_torch_fourier_shell_correlation() -> None:
    (a, b), _ = half_maps()
    found = fourier.fourier_shell_correlation(a, b)
    # the library spreads each coefficient over two shells: the course is the same, the noise of a shell not
    expected = library.fourier_shell_correlation(a.float(), b.float()).double()
    torch.testing.assert_close(found[2:-1], expected[2:-1], rtol=0.0, atol=0.03)


def test_resolution_lies_where_the_curve_crosses() -> None:
    curve = torch.tensor([[1.0, 0.9, 0.7, 0.3, 0.1, 0.2, 0.0], [1.0, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9]])
    found = fourier.resolution_angstrom(curve, (12, 12), 2.0, 0.5)
    # half way between rings 2 and 3 of 24 Å; already below in ring 1
    assert found.tolist() == pytest.approx([24 / 2.5, math.inf])
    assert float(fourier.resolution_angstrom(curve[0], (12, 12, 12), 2.0, 0.2)) == pytest.approx(24 / 3.5)
    # never below: Nyquist
    assert float(fourier.resolution_angstrom(torch.ones(7), (12, 12), 2.0)) == pytest.approx(4.0)


@pytest.mark.parametrize("shape", [(24, 24), (12, 12, 12), (11, 11, 11)])
def test_randomised_phases_keep_amplitudes_and_coarse_rings(shape: tuple[int, ...]) -> None:
    values = white_noise(*shape)
    found = fourier.randomise_phases(values, 3, torch.Generator().manual_seed(5))
    before, after = torch.fft.rfftn(values), torch.fft.rfftn(found)
    torch.testing.assert_close(after.abs(), before.abs())
    correlate = fourier.fourier_ring_correlation if len(shape) == 2 else fourier.fourier_shell_correlation
    curve = correlate(values, found)
    torch.testing.assert_close(curve[:3], torch.ones(3, dtype=curve.dtype))
    assert float(curve[3:].abs().max()) < 0.7


def test_masked_noise_is_corrected_to_nothing() -> None:
    # Both halves end at the same sharp mask and agree on nothing beyond their coarse shells: a constant that
    # the mask turns into fine detail, which the randomised phases cannot touch.
    side = 32
    halves = [100.0 + white_noise(side, side, seed=seed) for seed in (1, 2)]
    mask = torch.zeros(side, side, dtype=torch.float64)
    mask[9:23, 9:23] = 1.0
    found = fourier.masked_correlation(*halves, mask)
    assert float(found.masked[4:].min()) > 0.8
    assert float(found.randomised[4:].min()) > 0.8
    assert float(found.corrected[found.randomised_from + 2 :].mean()) < 0.3


def test_images_are_treated_as_volumes_are() -> None:
    (a, b), mask = half_maps()
    flat = [half.mean(0) for half in (a, b)]
    found = fourier.masked_correlation(*flat, mask[24])
    torch.testing.assert_close(found.unmasked, fourier.fourier_ring_correlation(*flat))
    masked = [half * mask[24] for half in flat]
    torch.testing.assert_close(found.masked, fourier.fourier_ring_correlation(*masked))


def test_halves_without_noise_and_wrong_shapes_are_refused() -> None:
    cube = white_noise(8, 8, 8)
    with pytest.raises(InputError, match="no noise to randomise"):
        fourier.masked_correlation(cube, cube, torch.ones_like(cube))
    with pytest.raises(InputError, match="one shape"):
        fourier.fourier_shell_correlation(cube, cube[1:])
    with pytest.raises(InputError, match="cubic"):
        fourier.fourier_shell_correlation(cube[1:], cube[1:])
    with pytest.raises(InputError, match="one shape"):
        fourier.fourier_ring_correlation(cube, cube[1:])


def write_maps(folder: Path, **volumes: torch.Tensor) -> None:
    for name, volume in volumes.items():
        with mrcfile.new(folder / f"{name}.mrc") as file:
            file.set_data(volume.float().numpy())
            file.voxel_size = 2.0


def star_columns(text: str, first: str) -> dict[str, np.ndarray]:
    """Columns of the loop of a RELION table that starts with `first`."""
    lines = iter(text.splitlines())
    names = [next(line for line in lines if line.startswith(first)).split()[0]]
    rows = []
    for line in lines:
        if line.startswith("_"):
            names.append(line.split()[0])
        elif fields := line.split():
            rows.append([float(field) for field in fields])
        elif rows:
            break
    return dict(zip(names, np.array(rows).T, strict=True))


@pytest.mark.relion
def test_shell_correlation_is_that_of_relion(tmp_path: Path) -> None:
    (a, b), _ = half_maps()
    write_maps(tmp_path, half1=a, half2=b)
    command = "relion_image_handler --i half1.mrc --fsc half2.mrc --angpix 2"
    result = subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True, text=True)
    expected = star_columns(result.stdout, "_rlnSpectralIndex")["_rlnFourierShellCorrelation"]
    found = fourier.fourier_shell_correlation(a, b)
    # RELION counts the half transform, so the plane x = 0 twice; that matters less in larger shells
    np.testing.assert_allclose(found[2:], expected[2:], atol=0.03)
    np.testing.assert_allclose(found[8:], expected[8:], atol=0.012)


@pytest.mark.relion
def test_masked_and_corrected_correlation_is_that_of_relion_postprocess(tmp_path: Path) -> None:
    (a, b), mask = half_maps()
    write_maps(tmp_path, half1=a, half2=b, mask=mask)
    (tmp_path / "post").mkdir()
    command = "relion_postprocess --i half1.mrc --i2 half2.mrc --mask mask.mrc --angpix 2 --o post"
    result = subprocess.run(command.split(), cwd=tmp_path, check=False, capture_output=True, text=True)
    written = tmp_path / "post.star"
    assert written.is_file(), result.stderr  # it may still fail at a PDF, for which it wants Ghostscript
    text = written.read_text()
    columns = star_columns(text, "_rlnSpectralIndex")
    found = fourier.masked_correlation(a, b, mask)
    start = 48 * 2.0 / float(text.split("_rlnRandomiseFrom")[1].split()[0])
    assert found.randomised_from == round(start)
    masked = columns["_rlnFourierShellCorrelationMaskedMaps"]
    np.testing.assert_allclose(found.masked[2:], masked[2:], atol=0.03)
    # RELION draws the phases once, which here gives a shell a standard deviation of up to 0.04
    corrected = columns["_rlnFourierShellCorrelationCorrected"]
    np.testing.assert_allclose(found.corrected[2:], corrected[2:], atol=0.12)
    assert abs(float(np.mean(found.corrected.numpy()[9:] - corrected[9:]))) < 0.04
    # RELION names the last shell before the curve falls below 0.143, we the place between that and the next
    relion = 96.0 / float(text.split("_rlnFinalResolution")[1].split()[0])
    curves = torch.from_numpy(corrected), found.corrected
    same, own = (96.0 / float(fourier.resolution_angstrom(curve, (48,) * 3, 2.0)) for curve in curves)
    assert relion <= same + 1e-4 <= relion + 1
    assert own == pytest.approx(same, abs=1.0)
