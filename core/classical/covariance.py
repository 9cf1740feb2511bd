"""The covariance Wiener filter: the best linear denoiser of particles whose views turn in the plane.

Images are expanded in a steerable basis. Since every in-plane rotation and its mirror image are equally
probable, the covariance of the coefficients has one real block for each angular frequency `k` and nothing
between them [1]_. Each block is estimated from the noisy images themselves, less the noise, and its
eigenvalues shrunk for what a finite sample adds to them [2]_; the Wiener filter follows.

Two estimates:

- `estimate_covariance`: images without CTF, with one CTF, or with many taken together, which they keep.
- `estimate_covariance_through_ctf`: images of CTF groups, whose CTF is taken back as in [1]_. A CTF acts
  within each angular frequency as far as it is radial; astigmatism, which couples them, is neglected, and so
  is the spread of the defocus within a group.

References
----------
.. [1] Bhamre, Zhang & Singer (2016) J. Struct. Biol. 195, 72-81, doi:10.1016/j.jsb.2016.04.013.
.. [2] Donoho, Gavish & Johnstone (2018) Ann. Stat. 46, 1742-1778, doi:10.1214/17-AOS1601: shrinkage of the
   eigenvalues of spiked covariances, here for Frobenius loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .fourier_bessel import FourierBesselBasis

_BATCH = 512


@dataclass(frozen=True)
class ImageCovariance:
    """Mean and covariance of clean images, over all their in-plane rotations and mirror images.

    Attributes
    ----------
    basis
        What the other attributes refer to.
    mean
        `(functions,)`, 0 but for angular frequency 0.
    vectors
        For each angular frequency its eigenvectors, columns of `(q, q)`.
    eigenvalues
        For each angular frequency the variances along them, `(q,)`, not negative.
    """

    basis: FourierBesselBasis
    mean: Tensor
    vectors: list[Tensor]
    eigenvalues: list[Tensor]

    def denoise(self, images: Tensor, noise_variance: float) -> Tensor:
        """Wiener filter of `(n, y, x)` images with white noise of `noise_variance` per pixel."""
        coefficients = self.basis.analyse(images) - self.mean
        filtered = torch.zeros_like(coefficients)
        for order, (vectors, values) in enumerate(zip(self.vectors, self.eigenvalues, strict=True)):
            here = self.basis.angular == order
            gain = (vectors * (values / (values + noise_variance))) @ vectors.T
            filtered[:, here] = coefficients[:, here] @ gain.to(torch.complex64)
        return self.basis.synthesise(filtered + self.mean)

    def restore(self, images: Tensor, noise_variance: float, transfer: Tensor, group: Tensor) -> Tensor:
        """Wiener filter of `(n, y, x)` images of several CTFs, to images without CTF.

        `filters.apply_transfer` with the CTF of each image gives what the image showed without its noise, the
        target of a denoiser that keeps the CTF.

        Parameters
        ----------
        images, noise_variance, transfer, group
            As for `estimate_covariance_through_ctf`.
        """
        operators = self.basis.radial_operators(transfer)
        gains = []
        for order, (vectors, values) in enumerate(zip(self.vectors, self.eigenvalues, strict=True)):
            # C A (A C A + v)^-1 for all groups, with C = V values V'
            spread = operators[order] @ (vectors * values.sqrt())
            seen = spread @ spread.mT
            seen.diagonal(dim1=-2, dim2=-1).add_(noise_variance)
            right = spread @ (vectors * values.sqrt()).T
            gains.append(torch.linalg.solve(seen, right))
        zeroth = self.basis.angular == 0
        seen_means = operators[0] @ self.mean[zeroth].real
        restored = torch.empty_like(images, dtype=torch.float32)
        for number, members in _group_members(group, len(transfer)):
            coefficients = self.basis.analyse(images[members])
            coefficients[:, zeroth] -= seen_means[number]
            filtered = torch.empty_like(coefficients)
            for order, gain in enumerate(gains):
                here = self.basis.angular == order
                filtered[:, here] = coefficients[:, here] @ gain[number].to(torch.complex64)
            restored[members] = self.basis.synthesise(filtered + self.mean)
        return restored


def estimate_covariance(images: Tensor, noise_variance: float, basis: FourierBesselBasis) -> ImageCovariance:
    """Covariance of the clean images in noisy `(n, y, x)` ones, by least squares with shrinkage.

    Parameters
    ----------
    images
        With white noise. Coloured noise has to be whitened first (`filters.radial_filter`).
    noise_variance
        Of the noise per pixel; 0 for clean images, whose sample covariance is then taken as it is: the best
        linear filter for them.

    Raises
    ------
    ValueError
        When there are fewer than two images or the variance is negative.
    """
    _check(images, noise_variance)
    places = angular_places(basis)
    sums = [torch.zeros(len(place), len(place), dtype=torch.float64) for place in places]
    total = torch.zeros(len(places[0]), dtype=torch.float64)
    for batch in torch.split(images, _BATCH):
        coefficients = basis.analyse(batch)
        total += coefficients[:, places[0]].real.double().sum(0)
        for place, outer in zip(places, sums, strict=True):
            outer += _second_moment(coefficients[:, place])
    n = len(images)
    mean = total / n
    sums[0] -= n * torch.outer(mean, mean)
    vectors, eigenvalues = [], []
    for order, outer in enumerate(sums):
        values, columns = torch.linalg.eigh(outer / n)
        if noise_variance > 0:
            values = noise_variance * _shrunk(values / noise_variance, _ratio(order, len(values), n))
        eigenvalues.append(values.clamp_min(0).float())
        vectors.append(columns.float())
    return ImageCovariance(basis, _whole(mean, basis), vectors, eigenvalues)


def estimate_covariance_through_ctf(
    images: Tensor, noise_variance: float, basis: FourierBesselBasis, transfer: Tensor, group: Tensor
) -> ImageCovariance:
    """Covariance of images without CTF from noisy ones with it, by least squares over groups with shrinkage.

    Minimises the sum over the groups g of `n_g |A_g C A_g + noise - S_g|²`, with the group's CTF `A_g` and
    its sample covariance `S_g` ([1]_), and likewise for the mean. As in [1]_, eigenvalues are
    shrunk where the noise of the right-hand side of the normal equations is white.

    Parameters
    ----------
    images
        `(n, y, x)` with white noise. Coloured noise is whitened first: both `images` and `transfer` are
        divided by the root of its power spectrum.
    noise_variance
        Of the noise per pixel, positive.
    transfer
        `(g, y, x // 2 + 1)` CTF of each group on the grid of `torch.fft.rfft2`, with whatever else acts on
        all of its images alike (envelope, whitening); radial, see `FourierBesselBasis.radial_operators`.
    group
        `(n,)` which of them each image belongs to. About 50 images or more each make the means meaningful;
        with 100 groups the spread of the defocus within each hardly matters.

    Raises
    ------
    ValueError
        When there are fewer than two images, the variance is not positive or `group` does not fit.

    Notes
    -----
    Differs from the paper in the basis (its authors later moved from Fourier-Bessel functions to others) and
    in that the covariance is projected on the positive ones after the least squares.
    """
    _check(images, noise_variance)
    if noise_variance == 0 or len(group) != len(images) or int(group.max()) >= len(transfer):
        raise ValueError(
            f"expected noise, and for each of {len(images)} images one of {len(transfer)} groups; found a "
            f"variance of {noise_variance} and {len(group)} groups up to {int(group.max())}"
        )
    places, operators = angular_places(basis), basis.radial_operators(transfer)
    counts = torch.bincount(group, minlength=len(transfer)).double()
    filtered = [torch.zeros(len(place), len(place), dtype=torch.float64) for place in places]
    group_sums = torch.zeros(len(transfer), len(places[0]), dtype=torch.float64)
    zeroth = torch.zeros(len(transfer), len(places[0]), len(places[0]), dtype=torch.float64)
    for number, members in _group_members(group, len(transfer)):
        coefficients = basis.analyse(images[members])
        group_sums[number] += coefficients[:, places[0]].real.double().sum(0)
        zeroth[number] += _second_moment(coefficients[:, places[0]])
        for place, operator, outer in zip(places[1:], operators[1:], filtered[1:], strict=True):
            outer += _second_moment(coefficients[:, place] @ operator[number].to(torch.complex64))
    mean = _least_squares_mean(operators[0].double(), group_sums, counts)
    seen = operators[0].double() @ mean
    crossed = group_sums[:, :, None] * seen[:, None, :]
    centred = zeroth - crossed - crossed.mT + counts[:, None, None] * seen[:, :, None] * seen[:, None, :]
    filtered[0] = (operators[0].double() @ centred @ operators[0].double()).sum(0)
    vectors, eigenvalues = [], []
    for order, (outer, operator) in enumerate(zip(filtered, operators, strict=True)):
        squared = operator.double() @ operator.double()
        ratio = _ratio(order, len(outer), len(images))
        right = _shrunk_right_hand_side(outer / len(images), squared, counts, noise_variance, ratio)
        values, columns = torch.linalg.eigh(_least_squares_covariance(squared, counts, right))
        eigenvalues.append(values.clamp_min(0).float())
        vectors.append(columns.float())
    return ImageCovariance(basis, _whole(mean, basis), vectors, eigenvalues)


def covariance_of_backprojected(
    coefficients: Sequence[Tensor], squared: Sequence[Tensor], group: Tensor
) -> list[Tensor]:
    """Covariance by angular frequency from coefficients `(n, q)` through their own CTF, mean 0, noise 1.

    As of `estimate_covariance_through_ctf`: `A_g y` in place of y, and `A_g²` `(g, q, q)`.
    """
    counts = torch.bincount(group, minlength=len(squared[0])).double()
    covariances = []
    for order, (some, double) in enumerate(zip(coefficients, squared, strict=True)):
        ratio = _ratio(order, some.shape[1], len(some))
        outer = _second_moment(some) / len(some)
        right = _shrunk_right_hand_side(outer, double.double(), counts, 1.0, ratio)
        values, columns = torch.linalg.eigh(_least_squares_covariance(double.double(), counts, right))
        covariances.append(((columns * values.clamp_min(0)) @ columns.T).float())
    return covariances


def _least_squares_mean(operators: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """`(q,)` mean m least in `sum_g n_g |sums_g / n_g - A_g m|²`."""
    normal = (counts[:, None, None] * operators @ operators).sum(0)
    # what no CTF of the stack shows stays 0 rather than being made of noise
    values, columns = torch.linalg.eigh(normal)
    inverse = torch.where(values > _LEAST_SEEN * values[-1], 1 / values, 0.0)
    mean: Tensor = columns @ (inverse * (columns.T @ (operators @ sums[:, :, None]).sum(0).squeeze(1)))
    return mean


def _shrunk_right_hand_side(
    outer: Tensor, squared: Tensor, counts: Tensor, noise_variance: float, ratio: float
) -> Tensor:
    """`(q, q)` mean of `A_g (S_g - noise) A_g`, without what noise alone would leave of it."""
    weight = counts / counts.sum()
    values, columns = torch.linalg.eigh((weight[:, None, None] * squared).sum(0))
    values = values.clamp_min(_LEAST_SEEN * float(values[-1]))
    half, inverse_half = ((columns * values**power) @ columns.T for power in (0.5, -0.5))
    found, directions = torch.linalg.eigh(inverse_half @ outer @ inverse_half / noise_variance)
    spread = half @ directions
    right: Tensor = noise_variance * (spread * _shrunk(found, ratio)) @ spread.T
    return right


def _least_squares_covariance(squared: Tensor, counts: Tensor, right: Tensor) -> Tensor:
    """`(q, q)` C with `sum_g n_g A_g² C A_g² / n = right`, by conjugate gradients.

    The mean of `A_g²` on both sides is the preconditioner: exact when all groups have the same CTF.
    """
    weighted = squared * (counts / counts.sum())[:, None, None]
    values, columns = torch.linalg.eigh(weighted.sum(0))
    values = values.clamp_min(_LEAST_SEEN * float(values[-1]))
    inverse = (columns / values) @ columns.T
    solution = torch.zeros_like(right)
    residual = right.clone()
    direction = conditioned = inverse @ residual @ inverse
    product = (residual * conditioned).sum()
    largest = float(right.norm())
    for _ in range(_MOST_ITERATIONS):
        if float(residual.norm()) <= _TOLERANCE * largest:
            break
        image = (weighted @ direction @ squared).sum(0)
        step = product / (direction * image).sum()
        solution = solution + step * direction
        residual = residual - step * image
        conditioned = inverse @ residual @ inverse
        previous, product = product, (residual * conditioned).sum()
        direction = conditioned + (product / previous) * direction
    return (solution + solution.T) / 2


#: relative to what the CTFs show best; below it nothing is seen
_LEAST_SEEN = 1e-4
_TOLERANCE = 1e-4
_MOST_ITERATIONS = 50


def _check(images: Tensor, noise_variance: float) -> None:
    if len(images) < 2 or noise_variance < 0:
        raise ValueError(
            f"expected two images or more and a variance of at least 0, found {len(images)}, {noise_variance}"
        )


def angular_places(basis: FourierBesselBasis) -> list[Tensor]:
    """For each angular frequency the numbers of its functions."""
    orders = int(basis.angular.max()) + 1
    return [(basis.angular == order).nonzero().squeeze(1) for order in range(orders)]


def _group_members(group: Tensor, n_groups: int) -> Iterator[tuple[int, Tensor]]:
    """The images of each group, a batch at a time."""
    for number in range(n_groups):
        for members in torch.split((group == number).nonzero().squeeze(1), _BATCH):
            if len(members):
                yield number, members


def _second_moment(coefficients: Tensor) -> Tensor:
    """`(q, q)` sum over `(n, q)`; mirror images have the conjugate, so that only the real part is left."""
    real, imaginary = coefficients.real, coefficients.imag
    return (real.T @ real + imaginary.T @ imaginary).double()


def _ratio(order: int, dimensions: int, n: int) -> float:
    """Dimensions over samples: a complex coefficient holds two independent numbers."""
    return dimensions / (n if order == 0 else 2 * n)


def _whole(mean: Tensor, basis: FourierBesselBasis) -> Tensor:
    whole = torch.zeros(len(basis), dtype=torch.complex64)
    whole[basis.angular == 0] = mean.to(torch.complex64)
    return whole


def _shrunk(values: Tensor, ratio: float) -> Tensor:
    """Signal variance along each sample eigenvector, in units of the noise, from sample eigenvalues [2]_.

    `ratio` is dimensions over samples. Eigenvalues that noise alone explains become 0.
    """
    above = values > (1 + math.sqrt(ratio)) ** 2
    half = (values + 1 - ratio).clamp_min(0) / 2
    spike = half + (half.square() - values).clamp_min(0).sqrt()
    signal = (spike - 1).clamp_min(1e-12)
    overlap = (1 - ratio / signal.square()) / (1 + ratio / signal)
    return torch.where(above, signal * overlap, torch.zeros_like(values)).clamp_min(0)
