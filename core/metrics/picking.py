"""Pick particles on denoised micrographs, and count the picks that agree with labelled ones.

Both pickers are deliberately plain, without training or templates: what they find depends on the contrast
that a denoiser gives, not on what they know. Coordinates are `(n, 2)` (y, x) in pixels, counted from the
centre of the first pixel; protein is white.

Needs the extra `evaluate`.

References
----------
.. [1] Lindeberg (1998) Int. J. Comput. Vis. 30, 79-116, doi:10.1023/A:1008045108935: blobs as extrema of the
   scale-normalised Laplacian of Gaussian, largest for a disc of radius r at sigma = r / sqrt(2).
.. [2] Comaniciu & Meer (2002) IEEE Trans. Pattern Anal. Mach. Intell. 24, 603-619, doi:10.1109/34.1000236:
   mean shift.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError, missing_package

try:
    from scipy import ndimage
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial import cKDTree
    from scipy.spatial.distance import cdist
    from skimage.feature import peak_local_max
    from skimage.filters import threshold_otsu
    from sklearn.cluster import MeanShift
except ModuleNotFoundError as error:
    raise missing_package(error) from error

# Pixels per diameter of the reduced micrographs that are searched: places are good to a fraction of a pixel
# of those, a few hundredths of a diameter, and time goes with the square.
_BLOB_DIAMETER_PX, _CLUSTER_DIAMETER_PX = 20, 6
# The Laplacian of Gaussian falls to 0 over this many standard deviations.
_REACH = 4.0
# Of the particle's disc, that a cluster of bright pixels has to fill.
_LEAST_SHARE = 0.2


@dataclass(frozen=True)
class Picks:
    """Particles found on one micrograph, the best first.

    Attributes
    ----------
    centres_px
        `(n, 2)` (y, x), pixels.
    scores
        `(n,)`: height of the filtered maximum over its noise, or share of a particle's area that is bright.
    """

    centres_px: Tensor
    scores: Tensor


def pick_blobs(
    micrograph: Tensor, diameter_px: float, *, threshold: float = 0.5, distance_px: float | None = None
) -> Picks:
    """Pick white blobs of a size: maxima of the Laplacian of Gaussian of `(y, x)` [1]_.

    Parameters
    ----------
    micrograph
        `(y, x)`, protein white.
    diameter_px
        Of the particle.
    threshold
        Least height of a maximum above the median of the filtered micrograph, in its robust standard
        deviations. Where particles are crowded those are of the particles themselves, so the default is low:
        choose by `scores`, or judge by `average_precision`, which needs no threshold.
    distance_px
        Least distance of two picks; 0.7 diameters by default, because projections of neighbours overlap.
    """
    reduced, block = _reduced(micrograph, diameter_px / _BLOB_DIAMETER_PX)
    sigma = diameter_px / block / 2 / math.sqrt(2)
    response = -(sigma**2) * ndimage.gaussian_laplace(reduced, sigma, truncate=_REACH)
    median = np.median(response)
    # the normal distribution has its quartiles at 0.6745 standard deviations
    spread = np.median(np.abs(response - median)) / 0.6745
    if spread == 0:
        return Picks(torch.zeros(0, 2), torch.zeros(0))
    height = (response - median) / spread
    found = peak_local_max(  # type: ignore[no-untyped-call]
        height,
        min_distance=max(1, round((distance_px or 0.7 * diameter_px) / block)),
        threshold_abs=threshold,
        exclude_border=False,
        p_norm=2,
    )
    scores = height[found[:, 0], found[:, 1]]
    order = np.argsort(-scores, kind="stable")
    return _picks(found[order], scores[order], block)


def pick_by_mean_shift(micrograph: Tensor, diameter_px: float) -> Picks:
    """Pick clusters of bright pixels of `(y, x)`: modes of mean shift [2]_ with a flat disc of the particle.

    Pixels are bright from Otsu's threshold on. Clusters that fill less than `_LEAST_SHARE` of the particle's
    disc are left out.

    Parameters
    ----------
    micrograph
        `(y, x)`, protein white. It is reduced to about 6 px per diameter by averaging first.
    diameter_px
        Of the particle; the bandwidth is its half.
    """
    reduced, block = _reduced(micrograph, diameter_px / _CLUSTER_DIAMETER_PX)
    if reduced.min() == reduced.max():
        return Picks(torch.zeros(0, 2), torch.zeros(0))
    bright = np.argwhere(reduced > threshold_otsu(reduced))  # type: ignore[no-untyped-call]
    if not len(bright):
        return Picks(torch.zeros(0, 2), torch.zeros(0))
    radius = diameter_px / 2 / block
    clusters = MeanShift(bandwidth=radius, bin_seeding=True).fit(bright.astype(np.float64))
    tree = cKDTree(bright)
    area = np.array([len(inside) for inside in tree.query_ball_point(clusters.cluster_centers_, radius)])
    share = area / (math.pi * radius**2)
    order = np.argsort(-share, kind="stable")
    order = order[share[order] >= _LEAST_SHARE]
    return _picks(clusters.cluster_centers_[order], share[order], block)


@dataclass(frozen=True)
class PickingScores:
    """How picks agree with labels; a score without anything to divide by is 0."""

    n_picks: int
    n_labels: int
    n_matched: int

    @property
    def precision(self) -> float:
        """Share of the picks that are right."""
        return self.n_matched / self.n_picks if self.n_picks else 0.0

    @property
    def recall(self) -> float:
        """Share of the labelled particles that were found."""
        return self.n_matched / self.n_labels if self.n_labels else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.n_picks + self.n_labels
        return 2 * self.n_matched / total if total else 0.0

    def __add__(self, other: PickingScores) -> PickingScores:
        """Scores of two micrographs together."""
        return PickingScores(
            self.n_picks + other.n_picks,
            self.n_labels + other.n_labels,
            self.n_matched + other.n_matched,
        )


def score_picks(picks_px: Tensor, labels_px: Tensor, radius_px: float) -> PickingScores:
    """Match picks with labels one to one, as many as lie within `radius_px` of each other.

    Parameters
    ----------
    picks_px, labels_px
        `(n, 2)` and `(m, 2)` (y, x) on one micrograph.
    radius_px
        Half the particle's diameter is the usual choice.
    """
    if not len(picks_px) or not len(labels_px):
        return PickingScores(len(picks_px), len(labels_px), 0)
    distance = cdist(picks_px.double().numpy(), labels_px.double().numpy())
    # a match that is too far costs more than all good ones: the most matches win, then the nearest
    cost = np.where(distance <= radius_px, distance, (min(distance.shape) + 1) * (radius_px + 1))
    pairs = linear_sum_assignment(cost)
    return PickingScores(len(picks_px), len(labels_px), int((distance[pairs] <= radius_px).sum()))


def average_precision(found: Sequence[Picks], labels_px: Sequence[Tensor], radius_px: float) -> float:
    """Mean precision over the labels of all micrographs, as picks are taken in the order of their scores.

    A pick is right when a label that no better pick took lies within `radius_px`. The threshold drops out, so
    that denoisers which change the contrast compare fairly.

    Parameters
    ----------
    found
        Picks of each micrograph.
    labels_px
        `(n, 2)` (y, x) labels of each micrograph.

    Raises
    ------
    InputError
        When there is not one set of labels for each micrograph, or no label at all.
    """
    n_labels = sum(len(labels) for labels in labels_px)
    if len(found) != len(labels_px) or not n_labels:
        raise InputError(
            f"expected labels for each micrograph, found {n_labels} on {len(labels_px)} for {len(found)}."
        )
    right = [
        _in_order(picks.centres_px, labels, radius_px) for picks, labels in zip(found, labels_px, strict=True)
    ]
    scores, matched = torch.cat([picks.scores for picks in found]), torch.cat(right)
    matched = matched[scores.argsort(descending=True, stable=True)].double()
    precision = matched.cumsum(0) / torch.arange(1, len(matched) + 1)
    return float((precision * matched).sum() / n_labels)


def square_regions(micrograph: Tensor, centres_px: Tensor, side_px: int) -> Tensor:
    """Squares of `(y, x)` about `(n, 2)` (y, x) centres: `(n, side, side)`, moved inside at the border.

    Raises
    ------
    ValueError
        When the micrograph is smaller than a square.
    """
    limits = torch.tensor(micrograph.shape) - side_px
    if bool((limits < 0).any()):
        raise ValueError(f"no square of {side_px} px fits into a micrograph {tuple(micrograph.shape)} (y, x)")
    corners = (centres_px - (side_px - 1) / 2).round().long().clamp_min(0).minimum(limits)
    span = torch.arange(side_px)
    return micrograph[corners[:, :1, None] + span[:, None], corners[:, 1:, None] + span]


def nearest_background(
    shape: tuple[int, int], particles_px: Tensor, distance_px: float, side_px: int
) -> tuple[Tensor, Tensor]:
    """Find a place without particles near each particle, for `image.region_variance_ratio` and its like.

    Parameters
    ----------
    shape
        `(y, x)` of the micrograph.
    particles_px
        `(n, 2)` (y, x) of all particles.
    distance_px
        Least distance of a background region's centre from any particle's.
    side_px
        Of the square region, which must lie on the micrograph.

    Returns
    -------
    centres
        `(m, 2)` (y, x) of the background regions, each used once, so that no noise counts twice.
    particle
        `(m,)` the particle each belongs to. `m < n` where the micrograph is too crowded.
    """
    free = np.ones(shape, dtype=bool)
    rows, columns = particles_px.round().long().numpy().T
    inside = (rows >= 0) & (rows < shape[0]) & (columns >= 0) & (columns < shape[1])
    free[rows[inside], columns[inside]] = False
    away = ndimage.distance_transform_edt(free) if inside.any() else np.full(shape, np.inf)
    half = side_px // 2 + 1
    candidates = np.argwhere(away[half:-half:side_px, half:-half:side_px] >= distance_px) * side_px + half
    if not len(candidates) or not len(particles_px):
        return torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64)
    particle, place = linear_sum_assignment(cdist(particles_px.double().numpy(), candidates))
    return torch.from_numpy(candidates[place]).float(), torch.from_numpy(particle)


def _in_order(picks_px: Tensor, labels_px: Tensor, radius_px: float) -> Tensor:
    """`(n,)` True for each pick, in order, whose nearest free label lies within the radius."""
    distance = torch.cdist(picks_px.double(), labels_px.double())
    right = torch.zeros(len(picks_px), dtype=torch.bool)
    for pick in range(len(picks_px) if len(labels_px) else 0):
        nearest = distance[pick].argmin()
        right[pick] = distance[pick, nearest] <= radius_px
        if right[pick]:
            distance[:, nearest] = torch.inf
    return right


def _reduced(micrograph: Tensor, factor: float) -> tuple[NDArray[np.float64], int]:
    """Means of square blocks of `(y, x)`, and the side of a block: `factor` rounded down, at least 1."""
    block = max(1, int(factor))
    means = torch.nn.functional.avg_pool2d(micrograph[None].double().cpu(), block)[0]
    return means.numpy(), block


def _picks(places: NDArray[Any], scores: NDArray[np.float64], block: int) -> Picks:
    """Places on a reduced micrograph as picks on the whole one."""
    centres = (torch.from_numpy(places).double() + 0.5) * block - 0.5
    return Picks(centres.float(), torch.from_numpy(scores).float())
