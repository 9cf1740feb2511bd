import math

import numpy as np
import pytest
import torch

from cryohush.core.noise.reweight import fit_weights, reweight


def patches(*seeds, n=5, side=16):
    return [torch.randn(n, side, side, generator=torch.Generator().manual_seed(seed)) for seed in seeds]


def test_weights_are_those_of_numpys_least_squares():
    clean, noise, rest = patches(1, 2, 3)
    clean, noise = 7 * clean + 3, 0.2 * noise - 5
    reference = 0.3 * clean + 0.7 * noise + rest + 11
    weights = fit_weights(clean, noise, reference)
    for k in range(len(clean)):
        v = (noise[k] - noise[k].mean()).flatten().double().numpy()
        matrix = np.stack([clean[k].flatten().double().numpy(), v, np.ones(256)], axis=1)
        expected = np.linalg.lstsq(matrix, reference[k].flatten().double().numpy(), rcond=None)[0]
        found = [float(value[k]) for value in (weights.alpha, weights.beta, weights.gamma)]
        np.testing.assert_allclose(found, expected, rtol=1e-4)  # float32 images


def test_exact_combination_is_recovered():
    clean, noise = patches(1, 2)
    weights = fit_weights(clean, noise, 2 * clean - 0.5 * (noise - noise.mean((1, 2), keepdim=True)) + 4)
    torch.testing.assert_close(weights.alpha, torch.full((5,), 2.0))
    torch.testing.assert_close(weights.beta, torch.full((5,), -0.5))
    torch.testing.assert_close(weights.gamma, torch.full((5,), 4.0))


def test_any_leading_dimensions_are_a_batch():
    clean, noise, reference = patches(1, 2, 3, n=6)
    flat = fit_weights(clean, noise, reference)
    nested = fit_weights(*(images.view(2, 3, 16, 16) for images in (clean, noise, reference)))
    torch.testing.assert_close(nested.beta, flat.beta.view(2, 3))


@pytest.mark.parametrize("level", [0.0, 4.0, 1e4])
def test_constant_clean_patch_gets_no_weight(level):
    noise, reference = patches(1, 2)
    weights = fit_weights(torch.full_like(noise, level), noise, reference)
    assert bool((weights.alpha == 0).all())
    torch.testing.assert_close(weights.gamma, reference.mean((1, 2)))


def test_constant_noise_gets_no_weight_and_leaves_that_of_the_clean_patch():
    clean, reference = patches(1, 2)
    weights = fit_weights(clean, torch.full_like(clean, 3.3), reference)
    assert bool((weights.beta == 0).all())
    pairs = zip(clean.flatten(1).numpy(), reference.flatten(1).numpy(), strict=True)
    slope = [np.polyfit(one, other, 1)[0] for one, other in pairs]
    np.testing.assert_allclose(weights.alpha.numpy(), slope, rtol=1e-4)


@pytest.mark.parametrize("factor", [3.0, -0.5])
def test_collinear_patches_share_the_weight(factor):
    """Of all exact solutions the one of the smallest norm in standard deviations: half of it each."""
    (clean,) = patches(1)
    weights = fit_weights(clean, factor * clean + 2, 4 * clean)
    torch.testing.assert_close(weights.alpha, torch.full((5,), 2.0))
    torch.testing.assert_close(weights.beta, torch.full((5,), 2.0 / factor))


def test_pair_has_the_contrast_and_the_noise_of_the_reference():
    """X = 0.5 S + noise of sd 2 about 10: the pair's target is 0.5 S + 10, its noise of sd 2, but V's."""
    clean, noise, other = patches(1, 2, 3, n=40, side=64)
    reference = 0.5 * clean + 2 * other + 10
    noisy, target = reweight(clean, 100 * noise + 7, reference)
    error = 2 / 64  # of a regression on 64 x 64 pixels with noise of sd 2
    deviation = target - (0.5 * clean + 10)
    assert float(deviation.std()) < 1.5 * error
    added = noisy - target
    assert float(added.std()) == pytest.approx(2, rel=0.02)
    similarity = (added * noise).mean((1, 2)) / (added.std((1, 2)) * noise.std((1, 2)))
    assert float(similarity.min()) > 0.99


def test_modulation_varies_the_noise_by_the_chance_of_its_size():
    clean, noise, other = patches(1, 2, 3, n=200, side=16)
    noisy, target = reweight(clean, noise, clean + other)
    share = (noisy - target).std((1, 2), correction=0) / other.std((1, 2), correction=0)
    # beta is a correlation of two independent images of 256 pixels
    assert float(share.std()) == pytest.approx(1 / math.sqrt(256), rel=0.25)


def test_particle_of_inverted_contrast_becomes_noise_alone():
    clean, noise, other = patches(1, 2, 3)
    _, target = reweight(clean, noise, -2 * clean + 0.01 * other)
    assert float(target.std((1, 2)).max()) < 1e-6


@pytest.mark.parametrize("which", ["clean", "noise", "reference", "collinear"])
def test_degenerate_pairs_are_finite(which):
    images = dict(zip(("clean", "noise", "reference"), patches(1, 2, 3), strict=True))
    if which == "collinear":
        images["noise"] = 2 * images["clean"]
    else:
        images[which] = torch.full_like(images[which], 5.0)
    for made in reweight(**images):
        assert bool(torch.isfinite(made).all())


def test_equation_4_by_hand():
    # S, V and r are at right angles and have mean 0 and mean square 1: X = 3 S + V / 2 + 2 + 0.7 r
    s, v, r = (
        torch.tensor([[a, b], [c, d]], dtype=torch.float64)
        for a, b, c, d in ((1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))
    )
    reference = 3 * s + v / 2 + 2 + 0.7 * r
    weights = fit_weights(s, v, reference)
    found = [float(value) for value in (weights.alpha, weights.beta, weights.gamma)]
    assert found == pytest.approx([3.0, 0.5, 2.0], abs=1e-12)
    # the noise gets the spread of X - 3 S, (1/4 + 0.49)^(1/2) = 0.8602; beta of it is 0.5 / 0.8602, and
    # 1 + beta times it is 0.8602 + 0.5
    noisy, clean = reweight(s, v, reference)
    torch.testing.assert_close(clean, 3 * s + 2)
    torch.testing.assert_close(noisy, 3 * s + 2 + (math.sqrt(0.74) + 0.5) * v)
