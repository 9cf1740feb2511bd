"""Conformations that separate, and groupings whose scores are known."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
import torch

from cryohush.core.config.evaluate import Embedding
from cryohush.core.errors import InputError
from cryohush.core.metrics import clustering


def conformations(noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Three images, 40 times each, with noise of this standard deviation per pixel (their own is 1)."""
    generator = torch.Generator().manual_seed(1)
    kind = torch.arange(120) % 3
    return torch.randn(3, 12, 12, generator=generator)[kind] + noise * torch.randn(
        120, 12, 12, generator=generator
    ), kind


def scores_of(images: torch.Tensor, kind: torch.Tensor, embedding: Embedding) -> clustering.ClusteringScores:
    return clustering.clustering_scores(clustering.group(clustering.embed(images, embedding), 3), kind)


@pytest.mark.parametrize("embedding", get_args(Embedding))
@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_clear_conformations_are_told_apart(embedding: Embedding, noise: float) -> None:
    # two images are 144 * 2 = 17² apart in squared distance: 5 standard deviations of the larger noise
    images, kind = conformations(noise)
    scores = scores_of(images, kind, embedding)
    assert scores == clustering.ClusteringScores(1.0, 1.0)


@pytest.mark.parametrize("embedding", get_args(Embedding))
def test_the_seed_fixes_the_layout(embedding: Embedding) -> None:
    images, _ = conformations(1.5)
    first, second = (clustering.embed(images, embedding, seed=3) for _ in range(2))
    assert first.shape == (120, 2)
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_conformations_that_do_not_differ_cannot_be_told_apart() -> None:
    images, _ = conformations(1.0)
    alike = images[0] + torch.randn(120, 12, 12, generator=torch.Generator().manual_seed(5))
    scores = scores_of(alike, torch.arange(120) % 3, "pca")
    # by chance: a third, plus what the best of 6 assignments finds in 120 images
    assert scores.accuracy < 0.5
    assert abs(scores.adjusted_rand_index) < 0.1


def test_scores_by_hand() -> None:
    true = torch.tensor([0, 0, 0, 1, 1, 1])
    assert clustering.clustering_scores(torch.tensor([5, 5, 5, 2, 2, 2]), true).accuracy == 1.0
    found = clustering.clustering_scores(torch.tensor([7, 7, 3, 3, 3, 3]), true)
    assert found.accuracy == pytest.approx(5 / 6)
    # pairs together in both 1 + 3, in the true one 6, in the groups 1 + 6, of 15: (4 - 42/15) / (6.5 - 42/15)
    assert found.adjusted_rand_index == pytest.approx((4 - 2.8) / (6.5 - 2.8))
    # one group for all: half are right, and the agreement is that of chance
    assert clustering.clustering_scores(torch.zeros(6), true) == clustering.ClusteringScores(0.5, 0.0)


def test_what_cannot_be_clustered_is_refused() -> None:
    with pytest.raises(InputError, match="25 neighbours need more images than that, found 25"):
        clustering.embed(torch.zeros(25, 2, 2), "isomap")


@pytest.mark.parametrize(
    ("module", "imported", "package"),
    [("clustering", "sklearn", "scikit-learn"), ("picking", "skimage", "scikit-image")],
)
def test_a_missing_package_is_named_as_pip_knows_it(module: str, imported: str, package: str) -> None:
    code = f"import sys; sys.modules['{imported}'] = None; import cryohush.core.metrics.{module}"
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert f"ConfigurationError: this needs the Python package {package}, which is not" in result.stderr
    assert f"-m pip install {package}" in result.stderr


def test_denoising_never_loads_the_extra() -> None:
    code = (
        "import sys; import cryohush.core.inference.stream, cryohush.core.report.figures; "
        "sys.exit(bool({'sklearn', 'skimage'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
