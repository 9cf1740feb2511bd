"""Do the conformations of a particle separate, once it is denoised?

Images are laid out in a few dimensions by manifold learning and grouped by k-means, and the groups compared
with the conformations that the images were made from. The methods are those of [1]_; the images are taken as
vectors of pixels, so they must show one view, or views that were aligned.

Needs the extra `evaluate`.

References
----------
.. [1] Gu, Unarta, Huang & Yao, arXiv:2008.07307: conformations of RNA polymerase in two dimensions,
   25 neighbours.
.. [2] Hubert & Arabie (1985) J. Classif. 2, 193-218, doi:10.1007/BF01908075: adjusted Rand index.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config.evaluate import Embedding
from ..errors import InputError, missing_package

try:
    from scipy.optimize import linear_sum_assignment
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA
    from sklearn.manifold import MDS, TSNE, Isomap, SpectralEmbedding
    from sklearn.metrics import adjusted_rand_score
    from sklearn.metrics.cluster import contingency_matrix
except ModuleNotFoundError as error:
    raise missing_package(error) from error


@dataclass(frozen=True)
class ClusteringScores:
    """How groups agree with the true conformations.

    Attributes
    ----------
    accuracy
        Share of the images in the right group, once each group was given the conformation that suits all
        best, one to one.
    adjusted_rand_index
        1 for the same grouping, 0 on average for a random one [2]_.
    """

    accuracy: float
    adjusted_rand_index: float


def embed(images: Tensor, embedding: Embedding, *, n_neighbours: int = 25, seed: int = 0) -> Tensor:
    """Lay out `(n, y, x)` images as points `(n, 2)`, similar images side by side.

    Parameters
    ----------
    embedding
        "isomap" and "spectral" (Laplacian eigenmaps) keep `n_neighbours`; "mds" (stress, from the principal
        components) keeps all distances, "tsne" the near ones, with `n_neighbours` as its perplexity; "pca" is
        the linear one.

    Raises
    ------
    InputError
        When there are no more images than neighbours.
    """
    if len(images) <= n_neighbours:
        raise InputError(f"{n_neighbours} neighbours need more images than that, found {len(images)}.")
    vectors = images.flatten(1).double().cpu().numpy()
    common: dict[str, Any] = {"n_components": 2}
    model: Any
    if embedding == "isomap":
        model = Isomap(n_neighbors=n_neighbours, **common)
    elif embedding == "spectral":
        model = SpectralEmbedding(n_neighbors=n_neighbours, random_state=seed, **common)
    elif embedding == "mds":
        model = MDS(n_init=1, random_state=seed, **common)
    elif embedding == "tsne":
        model = TSNE(perplexity=n_neighbours, init="pca", random_state=seed, **common)
    else:
        model = PCA(random_state=seed, **common)
    # MDS begins with the principal components; only some versions know a name for that
    start = {"init": PCA(2, random_state=seed).fit_transform(vectors)} if embedding == "mds" else {}
    with warnings.catch_warnings():
        # that neighbours fall into separate groups, which is what one hopes for, and what that costs
        warnings.simplefilter("ignore")
        points = model.fit_transform(vectors, **start)
    return torch.from_numpy(np.asarray(points, dtype=np.float64))


def group(points: Tensor, n_groups: int) -> Tensor:
    """k-means of `(n, dimensions)` points: the number `(n,)` of each one's group, the best of 10 starts."""
    labels = KMeans(n_groups, n_init=10, random_state=0).fit_predict(points.numpy())
    return torch.from_numpy(labels.astype(np.int64))


def clustering_scores(groups: Tensor, conformations: Tensor) -> ClusteringScores:
    """Compare groups `(n,)` with conformations `(n,)`, whatever the numbers they go by."""
    found, true = groups.numpy(), conformations.numpy()
    shared = contingency_matrix(true, found)
    rows, columns = linear_sum_assignment(shared, maximize=True)
    return ClusteringScores(
        accuracy=float(shared[rows, columns].sum() / len(true)),
        adjusted_rand_index=float(adjusted_rand_score(true, found)),
    )
