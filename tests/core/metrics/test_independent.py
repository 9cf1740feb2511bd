"""The score against an independent twin: its closed form and its standard error."""

from __future__ import annotations

import math

import pytest
import torch

from cryohush.core.errors import InputError
from cryohush.core.imaging.filters import gaussian_filter, low_pass
from cryohush.core.metrics.independent import (
    align_twin,
    bootstrap_score,
    independent_correlation,
)


def white_noise(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_perfect_denoiser_reaches_the_root_of_the_share_of_signal() -> None:
    clean = white_noise(50, 64, 64)
    raw, twin = clean + 3 * white_noise(50, 64, 64, seed=2), clean + 3 * white_noise(50, 64, 64, seed=3)
    # signal 1, noise 9: the share of signal in the twin is 0.1; 50 x 4096 pixels give an error of 0.002
    assert float(independent_correlation(clean, twin).mean()) == pytest.approx(math.sqrt(0.1), abs=0.01)
    # the raw image carries the same noise again: 1 / (1 + 9)
    assert float(independent_correlation(raw, twin).mean()) == pytest.approx(0.1, abs=0.01)


def test_removing_noise_raises_the_score() -> None:
    clean = gaussian_filter(white_noise(20, 64, 64), 3.0) * 3
    raw, twin = clean + white_noise(20, 64, 64, seed=2), clean + white_noise(20, 64, 64, seed=3)
    before, after = (
        independent_correlation(raw, twin),
        independent_correlation(gaussian_filter(raw, 2.0), twin),
    )
    assert bool((after > before).all())


def test_an_invented_particle_gains_nothing() -> None:
    twin = white_noise(200, 32, 32)
    invented = gaussian_filter(white_noise(32, 32, seed=5), 3.0).expand(200, 32, 32)
    score = bootstrap_score(independent_correlation(invented, twin))
    assert abs(score.mean) < 4 * score.standard_error


def test_standard_error_of_single_images_is_that_of_the_mean() -> None:
    values = white_noise(400)
    score = bootstrap_score(values, n_resamples=4000)
    assert score.mean == pytest.approx(float(values.mean()), abs=1e-6)
    # a bootstrap of 4000 draws knows its standard deviation to about 1 %
    assert score.standard_error == pytest.approx(float(values.std()) / math.sqrt(400), rel=0.05)
    assert score.n_images == 400


def test_images_of_one_micrograph_count_as_one() -> None:
    # 50 micrographs, 8 images each that all share one value: no more is known than from 50 images
    per_micrograph = white_noise(50)
    values = per_micrograph.repeat_interleave(8)
    names = [f"micrograph{number // 8}" for number in range(400)]
    grouped = bootstrap_score(values, names, n_resamples=4000)
    assert grouped.standard_error == pytest.approx(float(per_micrograph.std()) / math.sqrt(50), rel=0.06)
    assert bootstrap_score(values).standard_error < 0.5 * grouped.standard_error


def test_group_names_need_not_be_sorted_and_the_seed_is_fixed() -> None:
    values, names = white_noise(12), list("aabbccddeeff")
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    shuffled = bootstrap_score(values[order], [names[i] for i in order], n_resamples=20_000)
    plain = bootstrap_score(values, names, n_resamples=20_000)
    assert plain == bootstrap_score(values, names, n_resamples=20_000)
    assert shuffled.mean == pytest.approx(plain.mean, abs=1e-12)
    assert shuffled.standard_error == pytest.approx(plain.standard_error, rel=0.05)  # other draws


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        independent_correlation(torch.zeros(2, 8, 8), torch.zeros(3, 8, 8))
    with pytest.raises(ValueError, match="pixel_size_angstrom"):
        independent_correlation(torch.zeros(2, 8, 8), torch.zeros(2, 8, 8), coarsest_angstrom=100.0)
    with pytest.raises(ValueError, match="at least two"):
        bootstrap_score(torch.zeros(3), ["a", "a", "a"])
    with pytest.raises(ValueError, match="one group name per image"):
        bootstrap_score(torch.zeros(3), ["a", "b"])


def test_drift_of_each_micrograph_is_found_and_taken_back() -> None:
    generator = torch.Generator().manual_seed(4)
    smooth = low_pass(torch.randn(40, 64, 64, generator=generator), 16.0, 1.0)
    smooth /= smooth.std()
    groups = ["one"] * 20 + ["two"] * 20
    shifts = {"one": (3, -2), "two": (0, 5)}
    moved = torch.stack(
        [image.roll(shifts[name], (-2, -1)) for image, name in zip(smooth, groups, strict=True)]
    )
    raw = smooth + 0.5 * torch.randn(smooth.shape, generator=generator)
    twin = moved + torch.randn(smooth.shape, generator=generator)
    aligned, drift = align_twin(raw, twin, groups)
    assert drift == {name: (float(y), float(x)) for name, (y, x) in shifts.items()}
    # whole pixels of a periodic image: taken back exactly, noise and all
    pairs = zip(twin, groups, strict=True)
    back = torch.stack([image.roll((-shifts[name][0], -shifts[name][1]), (-2, -1)) for image, name in pairs])
    torch.testing.assert_close(aligned, back, atol=1e-3, rtol=0)
