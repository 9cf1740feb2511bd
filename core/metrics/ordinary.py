"""How ordinary a particle is among its stack: a score without truth, template or training.

Of each image four features are taken: power and contrast within the particle's circle, agreement with the raw
image, and likeness to the mean image of the stack in all turns. What is empty lacks them, and contamination
and aggregates have too much of them. So the score is the distance from where most of the stack lies, in the
robust covariance of the four together [1]_.

References
----------
.. [1] Hubert, Rousseeuw & Verdonck (2012) J. Comput. Graph. Stat. 21, 618-637,
   doi:10.1080/10618600.2012.672100: minimum covariance determinant from deterministic starts, here the one of
   medians and median absolute deviations.
"""

from __future__ import annotations

import torch
from torch import Tensor

N_FEATURES = 4
#: share of the images by which the stack is judged: up to half of it may be junk
_CORE = 0.5
_STEPS = 50


def image_features(
    denoised: Tensor, raw: Tensor, inside: Tensor, outside: Tensor, mean_image: Tensor
) -> Tensor:
    """`(n, 4)`: power, contrast, agreement with the raw image and likeness to the mean image.

    Parameters
    ----------
    denoised, raw
        `(n, y, x)` on one grey scale: background mean 0 and standard deviation 1 in the raw images.
    inside, outside
        `(y, x)` weights of the particle's circle, and of the background.
    mean_image
        `(y, x)`, see `turned_mean`.

    Returns
    -------
    Power: variance within the circle, dB of the background's; contrast: mean within the circle over that
    outside; the other two are correlations, the first of them within the circle.
    """
    return torch.stack(
        [
            10 * torch.log10(_variance(denoised, inside).clamp_min(1e-6)),
            _mean(denoised, inside) - _mean(denoised, outside),
            correlation(denoised, raw, inside),
            correlation(denoised, mean_image[None], torch.ones_like(inside)),
        ],
        1,
    )


def turned_mean(images: Tensor) -> Tensor:
    """`(y, x)` mean of `(n, y, x)` images in all turns about the centre, pixel `(y // 2, x // 2)`."""
    mean = images.mean(0)
    y, x = (torch.arange(side).float() - side // 2 for side in mean.shape)
    ring = torch.hypot(y[:, None], x[None]).round().long()
    total = torch.zeros(int(ring.max()) + 1).index_add_(0, ring.flatten(), mean.flatten())
    of_ring: Tensor = total / torch.bincount(ring.flatten()).clamp_min(1)
    return of_ring[ring]


def squared_distances(features: Tensor) -> Tensor:
    """`(n,)` squared robust Mahalanobis distance of `(n, k)` features from where most of them lie.

    Scaled so that its median is that of chi square with k degrees of freedom, as it is for normal features.

    Raises
    ------
    ValueError
        Fewer than 10 k rows.
    """
    n, k = features.shape
    if n < 10 * k:
        raise ValueError(f"at least {10 * k} rows are needed for {k} features, found {n}")
    values = features.double()
    centre = values.median(0).values
    scale = (values - centre).abs().median(0).values.clamp_min(1e-12)
    values = (values - centre) / scale
    distance = values.square().sum(1)
    core = torch.zeros(0, dtype=torch.int64)
    for _ in range(_STEPS):  # each step makes the determinant of the core's covariance smaller
        before, core = core, distance.argsort(stable=True)[: round(_CORE * n)].sort().values
        if torch.equal(core, before):
            break
        middle = values[core].mean(0)
        spread = torch.cov(values[core].T) + 1e-9 * torch.eye(k, dtype=torch.float64)
        rest = values - middle
        distance = (rest * torch.linalg.solve(spread, rest.T).T).sum(1)
    # Wilson & Hilferty's median of chi square
    expected = k * (1 - 2 / (9 * k)) ** 3
    return distance * (expected / distance.median().clamp_min(1e-12))


def figure_of_merit(squared: Tensor) -> Tensor:
    """Squared distances as scores between 0 and 1: a half where the distance is what it is on average."""
    return 1 / (1 + squared / N_FEATURES)


def _mean(images: Tensor, weight: Tensor) -> Tensor:
    return (images * weight).sum((1, 2)) / weight.sum()


def _variance(images: Tensor, weight: Tensor) -> Tensor:
    return _mean((images - _mean(images, weight)[:, None, None]).square(), weight)


def correlation(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """`(n,)` correlation of `(n, y, x)` images, or of them with one, under `(y, x)` weights."""
    first, second = (image - _mean(image, weight)[:, None, None] for image in (first, second))
    power = (first.square() * weight).sum((1, 2)) * (second.square() * weight).sum((1, 2))
    cross: Tensor = (first * second * weight).sum((1, 2))
    return cross / power.sqrt().clamp_min(1e-12)
