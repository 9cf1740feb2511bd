"""The covariance Wiener filter: the best linear denoiser of particles whose views turn in the plane.

Images are expanded in a Fourier-Bessel basis, `J_k(root * frequency) exp(i k angle)` on a disc of Fourier
space. Since every in-plane rotation and its mirror image are equally probable, the covariance of the
coefficients has one real block for each angular frequency `k` and nothing between them [1]_. Each block is
estimated from the noisy images themselves, less the noise, and its eigenvalues shrunk for what a finite
sample adds to them [2]_; the Wiener filter follows.

It covers stacks without CTF, with one CTF, and phase-flipped or unflipped images of many CTFs taken together,
which keep their CTF; unlike in [1]_ the CTF of each image is not deconvolved.

References
----------
.. [1] Bhamre, Zhang & Singer (2016) J. Struct. Biol. 195, 72-81, doi:10.1016/j.jsb.2016.04.013.
.. [2] Donoho, Gavish & Johnstone (2018) Ann. Stat. 46, 1742-1778, doi:10.1214/17-AOS1601: shrinkage of the
   eigenvalues of spiked covariances, here for Frobenius loss.
.. [3] Zhao, Shkolnisky & Singer (2016) IEEE Trans. Comput. Imaging 2, 1-12, doi:10.1109/TCI.2016.2514700: the
   basis, and which of its functions a sampled image supports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class FourierBesselBasis:
    """Steerable basis of real square images.

    Parameters
    ----------
    box_px
        Side, even.
    radius_px
        The particle lies within this distance of the centre, pixel `box // 2`; half the box by default.
    band_limit
        Highest frequency in cycles per pixel, at most 0.5. The cost goes with its fourth power.

    Attributes
    ----------
    angular
        `(functions,)` angular frequency `k >= 0` of each function, ascending. Those with `-k` belong to them
        and have the conjugate coefficients (up to sign).

    Notes
    -----
    A function turns by a quarter with a factor `i**k`, so that analysis and synthesis need a quarter of the
    disc only, once for each `k mod 4`.
    """

    def __init__(self, box_px: int, radius_px: float | None = None, band_limit: float = 0.5) -> None:
        if box_px % 2 or box_px < 8:
            raise ValueError(f"the box must be even and at least 8 px, found {box_px}")
        if not 0 < band_limit <= 0.5:
            raise ValueError(f"the band limit must lie above 0 and at most at 0.5, found {band_limit}")
        self.box_px = box_px
        radius_px = min(radius_px or box_px / 2, box_px / 2)
        edge = band_limit * box_px  # radius of the disc in Fourier pixels
        orders, roots = _bessel_roots(2 * math.pi * band_limit * radius_px)
        self.angular = orders
        axis = torch.arange(math.ceil(edge))
        x, y = torch.meshgrid(axis, axis, indexing="xy")
        quarter = (x.square() + y.square() < edge**2) & ((x > 0) | ((x == 0) & (y == 0)))
        self._x, self._y = x[quarter], y[quarter]
        self._centre = int(((self._x == 0) & (self._y == 0)).nonzero())
        radius = torch.hypot(self._x.double(), self._y.double())
        angle = torch.atan2(self._y.double(), self._x.double())
        times = torch.full_like(radius, 4.0)
        times[self._centre] = 1.0
        table = _BesselTable(int(orders.max()), float(roots.max()))
        self._functions = []
        self._members = []
        for residue in range(4):
            members = (orders % 4 == residue).nonzero().squeeze(1)
            radial = table(orders[members, None], roots[members, None] * (radius / edge))
            radial /= (times * radial.square()).sum(1, keepdim=True).sqrt()
            phase = orders[members, None] * angle
            self._functions.append(torch.polar(radial, phase).to(torch.complex64))
            self._members.append(members)

    def __len__(self) -> int:
        return len(self.angular)

    def analyse(self, images: Tensor) -> Tensor:
        """`(n, y, x)` to `(n, functions)` complex64 coefficients; white noise keeps its variance in each."""
        transform = torch.fft.rfft2(torch.fft.ifftshift(images.float(), dim=(-2, -1)), norm="ortho")
        straight = transform[:, self._y, self._x]
        # a quarter turn takes (x, y) to (-y, x), the conjugate of (y, -x)
        turned = transform[:, (-self._x) % self.box_px, self._y].conj()
        straight[:, self._centre] /= 4  # the quarters meet there
        turned[:, self._centre] /= 4
        even, odd = straight.real, straight.imag
        even_turned, odd_turned = turned.real, turned.imag
        # twice the sum over the quarter turns j of i**(-j k) times the values there, for k mod 4
        by_residue = (
            (2 * (even + even_turned)).to(torch.complex64),
            2 * torch.complex(odd_turned, odd),
            (2 * (even - even_turned)).to(torch.complex64),
            2 * torch.complex(-odd_turned, odd),
        )
        coefficients = torch.empty(len(images), len(self), dtype=torch.complex64)
        for values, functions, members in zip(by_residue, self._functions, self._members, strict=True):
            coefficients[:, members] = values @ functions.conj().T
        return coefficients

    def synthesise(self, coefficients: Tensor) -> Tensor:
        """`(n, functions)` coefficients to `(n, y, x)` images."""
        pair = torch.where(self.angular > 0, 2.0, 1.0)
        parts = [
            (coefficients[:, members] * pair[members]) @ functions
            for functions, members in zip(self._functions, self._members, strict=True)
        ]
        straight = torch.complex((parts[0] + parts[2]).real, (parts[1] + parts[3]).imag)
        turned = torch.complex((parts[0] - parts[2]).real, (parts[1] - parts[3]).real)
        box = self.box_px
        transform = torch.zeros(len(coefficients), box, box // 2 + 1, dtype=torch.complex64)
        transform[:, self._y, self._x] = straight
        transform[:, (-self._x) % box, self._y] = turned.conj()
        # the column x = 0 holds both halves of its points
        column = self._y == 0
        transform[:, self._x[column], 0] = turned[:, column]
        images = torch.fft.irfft2(transform, s=(box, box), norm="ortho")
        centred: Tensor = torch.fft.fftshift(images, dim=(-2, -1))
        return centred


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

    def expected_squared_error(self, noise_variance: float) -> float:
        """Mean squared error per pixel that no linear filter falls below, if this is the true covariance.

        Without the energy that lies outside the basis (beyond the radius or the band limit), which is lost.
        """
        total = 0.0
        for order, values in enumerate(self.eigenvalues):
            left = (values * noise_variance / (values + noise_variance)).sum()
            total += float(left) * (1 if order == 0 else 2)
        return total / self.basis.box_px**2


def estimate_covariance(
    images: Tensor, noise_variance: float, basis: FourierBesselBasis, batch_size: int = 512
) -> ImageCovariance:
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
    if len(images) < 2 or noise_variance < 0:
        raise ValueError(
            f"expected two images or more and a variance of at least 0, found {len(images)}, {noise_variance}"
        )
    orders = int(basis.angular.max()) + 1
    places = [(basis.angular == order).nonzero().squeeze(1) for order in range(orders)]
    sums = [torch.zeros(len(place), len(place), dtype=torch.float64) for place in places]
    total = torch.zeros(len(places[0]), dtype=torch.float64)
    for batch in torch.split(images, batch_size):
        coefficients = basis.analyse(batch)
        total += coefficients[:, places[0]].real.double().sum(0)
        for place, outer in zip(places, sums, strict=True):
            own = coefficients[:, place]
            # mirror images have the conjugate coefficients: only the real part is left
            outer += (own.real.T @ own.real + own.imag.T @ own.imag).double()
    n = len(images)
    mean = total / n
    sums[0] -= n * torch.outer(mean, mean)
    vectors, eigenvalues = [], []
    for order, outer in enumerate(sums):
        values, columns = torch.linalg.eigh(outer / n)
        if noise_variance > 0:
            # a complex coefficient holds two independent numbers
            samples = n if order == 0 else 2 * n
            values = noise_variance * _shrunk(values / noise_variance, len(values) / samples)
        eigenvalues.append(values.clamp_min(0).float())
        vectors.append(columns.float())
    whole = torch.zeros(len(basis), dtype=torch.complex64)
    whole[places[0]] = mean.to(torch.complex64)
    return ImageCovariance(basis, whole, vectors, eigenvalues)


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


class _BesselTable:
    """Bessel functions of the first kind, by interpolation: torch has orders 0 and 1 only.

    `exp(i x sin t)` is the sum of `J_k(x) exp(i k t)`, so one Fourier transform over t gives all orders at x.
    """

    step = 1 / 32

    def __init__(self, largest_order: int, largest_argument: float) -> None:
        samples = 2 * (largest_order + math.ceil(largest_argument) + 64)
        argument = torch.arange(-1, math.ceil(largest_argument / self.step) + 3, dtype=torch.float64)
        t = torch.arange(samples, dtype=torch.float64) * (2 * torch.pi / samples)
        parts = []
        for piece in torch.split(argument * self.step, 1024):
            phase = piece[:, None] * t.sin()
            wave = torch.polar(torch.ones_like(phase), phase)
            parts.append((torch.fft.fft(wave, dim=1) / samples).real[:, : largest_order + 1])
        self.values = torch.cat(parts)

    def __call__(self, order: Tensor, argument: Tensor) -> Tensor:
        """`J_order(argument)` to 1e-7, by cubic interpolation; `order` expands to the arguments."""
        place = argument / self.step
        index = place.floor().long()
        f = place - index
        order = order.expand_as(index)
        weights = (
            -f * (f - 1) * (f - 2) / 6,
            (f + 1) * (f - 1) * (f - 2) / 2,
            -(f + 1) * f * (f - 2) / 2,
            (f + 1) * f * (f - 1) / 6,
        )
        # the table begins one step below 0
        return torch.stack([w * self.values[index + i, order] for i, w in enumerate(weights)]).sum(0)


def _bessel_roots(largest: float) -> tuple[Tensor, Tensor]:
    """Orders and roots of the functions that fit: those whose next root of the same order is below `largest`.

    Order 0 keeps one function at least.
    """
    largest_order = math.ceil(largest)
    table = _BesselTable(largest_order + 1, largest + 1)
    values = table.values[1:-4]
    orders, roots = [], []
    for order in range(largest_order + 1):
        column = values[1:, order]
        change = (column[:-1] * column[1:] < 0).nonzero().squeeze(1)
        change = change[change * table.step >= order]  # every root is above; below, rounding changes signs
        left, right = column[change], column[change + 1]
        root = (change + 1 + left / (left - right)) * table.step
        # J' = (J_{k-1} - J_{k+1}) / 2, and J_{-1} = -J_1: one step of Newton from 1e-4 off
        here = torch.tensor(order)
        before = -table(here + 1, root) if order == 0 else table(here - 1, root)
        root = root - table(here, root) / ((before - table(here + 1, root)) / 2)
        n = int((root <= largest).sum()) - 1
        n = max(n, 1) if order == 0 else n
        if n < 1:
            break
        orders.append(torch.full((n,), order))
        roots.append(root[:n])
    return torch.cat(orders), torch.cat(roots)
