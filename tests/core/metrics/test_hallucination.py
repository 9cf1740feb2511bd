"""Pure-noise figures on denoisers whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryohush.core.imaging.filters import gaussian_filter, low_pass
from cryohush.core.imaging.projection import Projector
from cryohush.core.metrics.fourier import radial_power_spectrum
from cryohush.core.metrics.hallucination import (
    centre_to_border_variance,
    coloured_noise,
    half_set_frc,
    mean_pairwise_correlation,
    mirrored_map_figures,
    pure_noise_figures,
    unseen_structure_figures,
)


def white_noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_pairwise_correlation_is_the_mean_over_all_pairs() -> None:
    images = white_noise(7, 8, 9) + 0.5 * white_noise(8, 9, seed=2)
    matrix = np.corrcoef(images.flatten(1).numpy())
    expected = (matrix.sum() - 7) / 42
    assert mean_pairwise_correlation(images) == pytest.approx(expected, abs=1e-12)


def test_passing_noise_through_is_not_inventing() -> None:
    noise = white_noise(64, 32, 32)
    figures = pure_noise_figures(noise, noise)
    assert figures.variance_ratio == pytest.approx(1.0)
    assert figures.correlation_with_input == pytest.approx(1.0)
    assert figures.correlation_between_outputs == figures.correlation_between_inputs
    assert figures.half_set_frc == figures.half_set_frc_of_input
    # two averages of independent noise do not agree: ring 8 up holds 50 and more coefficients, 25 independent
    assert max(abs(value) for value in figures.half_set_frc[8:]) < 0.5
    assert figures.centre_to_border_variance == figures.centre_to_border_variance_of_input
    # 64 images of 1024 pixels, about a third of them on one side: each variance is known to about 1 %
    assert figures.centre_to_border_variance == pytest.approx(1.0, abs=0.05)


def test_a_denoiser_that_always_adds_one_particle_is_caught() -> None:
    noise = white_noise(64, 32, 32)
    particle = gaussian_filter(white_noise(32, 32, seed=9), 1.0)
    figures = pure_noise_figures(noise, particle + 0.05 * noise)
    assert figures.correlation_between_outputs > 0.9
    assert min(figures.half_set_frc[1:8]) > 0.99
    assert abs(figures.correlation_between_inputs) < 0.01


def test_variance_is_counted_within_images() -> None:
    noise = white_noise(8, 16, 16)
    offsets = torch.arange(8, dtype=torch.float64)[:, None, None]
    assert pure_noise_figures(noise, 0.1 * noise + offsets).variance_ratio == pytest.approx(0.01)


def test_a_denoiser_that_returns_nothing_has_zero_in_every_figure() -> None:
    noise = white_noise(8, 16, 16)
    figures = pure_noise_figures(noise, torch.zeros_like(noise))
    assert (
        figures.variance_ratio == figures.correlation_with_input == figures.correlation_between_outputs == 0
    )
    assert figures.half_set_frc == [0.0] * 9
    assert figures.centre_to_border_variance == 0


def test_half_sets_ignore_the_mean_grey_value() -> None:
    images = white_noise(8, 16, 16)
    torch.testing.assert_close(half_set_frc(images + 100.0), half_set_frc(images))
    assert float(half_set_frc(images)[0]) == 0.0


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        pure_noise_figures(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8))


def test_a_particle_in_the_middle_shows_in_the_variance() -> None:
    images = white_noise(32, 32, 32)
    images[:, 12:20, 12:20] *= 10
    assert centre_to_border_variance(images) > 5
    flat = torch.zeros(2, 32, 32)
    flat[:, 16, 16] = 1.0
    flat -= flat.mean((-2, -1), keepdim=True)
    assert centre_to_border_variance(flat) > 100


def test_coloured_noise_has_the_spectrum_of_its_model() -> None:
    model = low_pass(white_noise(50, 32, 32), 4.0, 1.0) * 3
    noise = coloured_noise(2000, model, torch.Generator().manual_seed(4)).double()
    expected, found = (radial_power_spectrum(stack).mean(0) for stack in (model, noise))
    # ring 1: 8 coefficients in 2000 images, 1 %; none of it is shared between images
    torch.testing.assert_close(found[1:], expected[1:], rtol=0.05, atol=1e-6)
    assert abs(mean_pairwise_correlation(noise)) < 1e-3


def test_a_low_pass_keeps_what_it_passes_and_invents_nothing() -> None:
    clean, noise = white_noise(20, 32, 32), white_noise(20, 32, 32, seed=2)
    figures = unseen_structure_figures(
        lambda images: low_pass(images, 32 / 8.5, 1.0, edge_rings=0.0), clean, noise
    )
    # up to ring 8 nothing changes; beyond it nothing is left
    np.testing.assert_allclose(figures.frc_of_output[:9], figures.frc_of_input[:9], atol=1e-6)
    assert figures.power_of_output[9:] == pytest.approx([0.0] * 8, abs=1e-6)
    # signal and noise of equal power: FRC sqrt(1/2), power 2
    assert np.mean(figures.frc_of_input[4:]) == pytest.approx(0.5**0.5, abs=0.02)
    assert np.mean(figures.power_of_output[2:9]) == pytest.approx(2.0, rel=0.05)


BOX = 24


def blobs(seed: int) -> torch.Tensor:
    """Twenty blobs without symmetry in a box of 24, projections with a variance near 1."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(BOX).float() - BOX // 2
    centres = (torch.rand(20, 3, generator=generator) - 0.5) * 0.5 * BOX
    z, y, x = (torch.exp(-((axis - centres[:, i : i + 1]) ** 2) / (2 * 1.3**2)) for i in range(3))
    return torch.einsum("bz,by,bx->zyx", z, y, x)


def test_a_map_and_its_mirror_image_have_the_same_projections() -> None:
    # mirrored along z, then half a turn about y: voxel 0 has no partner in an even box, and is empty
    volume = blobs(1)
    other_hand = volume.flip(0).roll(1, 0)
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    view, mirror = (Projector(v)(torch.eye(3)[None])[0] for v in (volume, other_hand))
    torch.testing.assert_close(mirror, view, atol=1e-4, rtol=0)
    from_behind = Projector(volume)(back[None])[0]
    torch.testing.assert_close(from_behind, view.flip(-1).roll(1, -1), atol=1e-3, rtol=0)


def test_only_a_model_that_knows_its_images_by_heart_fails_on_the_mirrored_map() -> None:
    clean, noise = white_noise(20, 24, 24), white_noise(20, 24, 24, seed=2)
    fair = mirrored_map_figures(lambda images: low_pass(images, 4.0, 1.0), clean, noise)
    assert fair.original == pytest.approx(fair.mirrored, abs=1e-9)
    rote = mirrored_map_figures(lambda images: clean, clean, noise)
    assert rote.original == pytest.approx(1.0)
    assert abs(rote.mirrored) < 0.1
