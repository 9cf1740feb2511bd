"""What like views among the other images add to the covariance Wiener filter of an image.

The images of a stack show one particle in many orientations: each has some that show nearly the same, turned
in the plane or mirrored. They are found by the distance of what the covariance Wiener filter makes of them,
turned onto the image and averaged through their CTFs [1]_. A linear prediction of the image from two such
means, one of the nearest and one of more, takes the place of the mean image; what it leaves has a covariance
of its own, whose Wiener filter adds what the image itself says. How much of this estimate is taken beside
the covariance Wiener filter is measured on the stack, and is nothing where images do not predict each other.

Everything is told by `b = O y`, an image's coefficients through its own CTF, and by the squares of the CTFs'
operators O: the posterior mean under a covariance C is `(C O² + 1)^-1 C b`, and b and O² of images add up.

References
----------
.. [1] Zhao & Singer (2014) J. Struct. Biol. 186, 153-166, doi:10.1016/j.jsb.2014.03.003: like views found
   and averaged in a steerable basis. Here the means are predictors beside the image itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..classical.covariance import angular_places, covariance_of_backprojected
from ..classical.fourier_bessel import FourierBesselBasis

#: neighbours whose weights fall to 0 with their distance, of each mean
NEIGHBOURS = (12, 64)
#: highest angular frequency of the search, and its angles
_HIGHEST, _ANGLES = 15, 32
#: images whose difference is less than this share of what independent noise makes it are one and the same,
#: which is looked for among the nearest
_SAME, _SELF_AMONG = 0.25, 4
#: candidates more than wanted: their distances are known better than by which they were chosen
_MORE = 16
_BLOCK = 32
_RIDGE = 1e-3
#: noise that some images get to measure what the views explain, relative to their own, and how many these are
_TAU, MEASURED = 0.5, 512
#: relative to the covariance filter's; hardly less is not worth its time
_LARGEST_ERROR = 0.97
#: images of the trial, and its error, which is a little larger than that of all
_TRIED, _HOPELESS_ERROR = 64, 0.99
#: standard errors
_SIGNIFICANT = 4.0
#: with fewer, the neighbours of the larger mean are more than a quarter of all
_FEWEST = 256


@dataclass(frozen=True, eq=False)
class LikeViews:
    """The sample whose views are looked at, and how they predict.

    Attributes
    ----------
    basis
        Of all coefficients, which are relative to the mean image in units of the noise.
    vectors, prior
        `(q, q)` eigenvectors and covariance of the images, of each angular frequency.
    squared
        `(g, q, q)` squares of the CTF groups' operators, of each angular frequency.
    sample
        `(n, functions)` b of the sample's images.
    group
        `(n,)` CTF group of each.
    weights
        `(2, q)` of each mean along the eigenvectors, of each angular frequency.
    residual
        `(q, q)` covariance of what the prediction leaves.
    share
        Of this estimate beside the covariance Wiener filter, 0 to 1.
    error
        Mean squared error with that share, over that of the covariance Wiener filter.
    """

    basis: FourierBesselBasis
    vectors: list[Tensor]
    prior: list[Tensor]
    squared: list[Tensor]
    sample: Tensor
    group: Tensor
    weights: list[Tensor]
    residual: list[Tensor]
    share: float
    error: float

    def restored(self, b: Tensor, group: Tensor) -> Tensor:
        """`(n, functions)` b of images to their coefficients without CTF."""
        predicted = self.predicted(self.means(b, group))
        left = b - times(self.squared, self.places, predicted, group)
        return predicted + times(self._of_residual, self.places, left, group)

    def wiener(self, b: Tensor, group: Tensor) -> Tensor:
        """The covariance Wiener filter."""
        return times(self._of_prior, self.places, b, group)

    def means(self, b: Tensor, group: Tensor) -> list[Tensor]:
        """`(n, functions)` what the nearest images share, for each number of `NEIGHBOURS`."""
        parts = [
            self._means_of_block(b[some], group[some]) for some in torch.split(torch.arange(len(b)), _BLOCK)
        ]
        return [torch.cat(means) for means in zip(*parts, strict=True)]

    def _means_of_block(self, b: Tensor, group: Tensor) -> list[Tensor]:
        index, angle, mirrored, distance = self._nearest(b, group)
        phase = angle[..., None] * torch.arange(int(self.basis.angular.max()) + 1)
        turned = torch.polar(torch.ones_like(phase), phase)[..., self.basis.angular]
        parts = torch.view_as_real(self.sample)[index]
        parts[..., 1] *= torch.where(mirrored, -1.0, 1.0)[..., None]
        turned *= torch.view_as_complex(parts)
        weights = []
        for number in NEIGHBOURS:
            nearest, limit = distance[:, :1], distance[:, number : number + 1]
            weight = 1 - (distance - nearest) / (limit - nearest).clamp_min(1e-12)
            weights.append(weight.clamp(0, 1)[:, : index.shape[1]])
        totals = torch.stack(weights, 1) @ torch.view_as_real(turned).flatten(2)
        means = []
        for weight, total in zip(weights, totals.view(*totals.shape[:2], -1, 2).unbind(1), strict=True):
            total = torch.view_as_complex(total.contiguous())
            counts = torch.zeros(len(b), len(self.squared[0])).scatter_add_(1, self.group[index], weight)
            mean = torch.zeros_like(total)
            for place, prior, squared in zip(self.places, self.prior, self.squared, strict=True):
                seen = (counts @ squared.flatten(1)).view(-1, *prior.shape)
                gain = torch.linalg.solve(prior @ seen + torch.eye(len(prior)), prior)
                mean[:, place] = _product(gain, total[:, place])
            means.append(mean)
        return means

    def _nearest(self, b: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index, angle, whether mirrored, and squared distance of the nearest other images, and of more."""
        coefficients = self.wiener(b, group)
        highest = len(self._searched)
        n, many = len(b), len(self.sample)
        products = torch.empty(highest, 2 * n, 2 * many)
        for number, (place, theirs) in enumerate(zip(self.places, self._searched, strict=False)):
            mine = torch.view_as_real(coefficients[:, place]).permute(2, 0, 1).flatten(0, 1)
            torch.mm(mine, theirs, out=products[number])
        (rr, ri), (ir, ii) = (part.unbind(2) for part in products.view(-1, 2, n, 2, many).unbind(1))
        likeness = torch.stack(
            [
                self._waves @ torch.cat([real.flatten(1), imaginary[1:].flatten(1)])
                for real, imaginary in ((rr + ii, ir - ri), (rr - ii, ir + ri))
            ]
        ).view(2, _ANGLES, n, many)
        best, at = likeness.max(1)
        best, mirrored = best.max(0)
        norm = self._norm
        n_wanted = min(max(NEIGHBOURS) + _MORE, len(self.sample))
        _, index = (norm - 2 * best).topk(n_wanted, largest=False)
        mirrored = mirrored.gather(1, index)
        at = at.gather(2, index[None].expand(2, -1, -1)).gather(0, mirrored[None])[0]
        # between the angles: the parabola through the largest and its neighbours
        row = torch.arange(len(b))[:, None]
        low, peak, high = (likeness[mirrored, (at + step) % _ANGLES, row, index] for step in (-1, 0, 1))
        bend = (2 * peak - low - high).clamp_min(1e-12)
        beside = ((high - low) / (2 * bend)).clamp(-0.5, 0.5)
        peak = peak + bend * beside.square() / 2
        angle = (at + beside) * (2 * torch.pi / _ANGLES)
        distance = norm[index] - 2 * peak
        # the image itself, if it is one of the sample, is among the nearest
        few = index[:, :_SELF_AMONG]
        different = (self.sample[few] - b[:, None]).abs().square() @ self.pair
        same = different < _SAME * 2 * self._noise[group][:, None]
        distance[:, :_SELF_AMONG].masked_fill_(same, torch.inf)
        distance, order = distance.sort(dim=1, stable=True)
        order = order[:, : max(NEIGHBOURS)]
        return index.gather(1, order), angle.gather(1, order), mirrored.gather(1, order).bool(), distance

    def predicted(self, means: Sequence[Tensor]) -> Tensor:
        predicted = torch.zeros_like(means[0])
        for place, vectors, weights in zip(self.places, self.vectors, self.weights, strict=True):
            for mean, weight in zip(means, weights, strict=True):
                predicted[:, place] += mean[:, place] @ ((vectors * weight) @ vectors.T).to(mean.dtype)
        return predicted

    def _posteriors(self, covariance: Sequence[Tensor]) -> list[Tensor]:
        return [
            torch.linalg.solve(c @ squared + torch.eye(len(c)), c.expand_as(squared))
            for c, squared in zip(covariance, self.squared, strict=True)
        ]

    def expected_error(self) -> Tensor:
        """`(g,)` squared error of the covariance Wiener filter, seen through each group's CTF."""
        traces = [
            (gain * squared).sum((-2, -1)) for gain, squared in zip(self._of_prior, self.squared, strict=True)
        ]
        return traces[0] + 2 * torch.stack(traces[1:]).sum(0)

    @cached_property
    def places(self) -> list[Tensor]:
        return angular_places(self.basis)

    @cached_property
    def pair(self) -> Tensor:
        return torch.where(self.basis.angular > 0, 2.0, 1.0)

    @cached_property
    def _of_prior(self) -> list[Tensor]:
        return self._posteriors(self.prior)

    @cached_property
    def _of_residual(self) -> list[Tensor]:
        return self._posteriors(self.residual)

    @cached_property
    def _restored_sample(self) -> Tensor:
        return self.wiener(self.sample, self.group)

    @cached_property
    def _waves(self) -> Tensor:
        """`(angles, 2 orders - 1)` what real parts add to the likeness at each angle, then imaginary ones."""
        orders = torch.arange(len(self._searched))
        phase = torch.arange(_ANGLES)[:, None] * orders * (2 * torch.pi / _ANGLES)
        pair = torch.where(orders > 0, 2.0, 1.0)
        return torch.cat([pair * phase.cos(), (pair * phase.sin())[:, 1:]], 1)

    @cached_property
    def _searched(self) -> list[Tensor]:
        """`(q, 2 n)` real, then imaginary parts of the sample's coefficients, of each angular frequency."""
        places = self.places[: _HIGHEST + 1]
        of_sample = torch.view_as_real(self._restored_sample)
        return [of_sample[:, place].permute(1, 2, 0).flatten(1).contiguous() for place in places]

    @cached_property
    def _norm(self) -> Tensor:
        searched = self.pair * (self.basis.angular <= _HIGHEST)
        norm: Tensor = self._restored_sample.abs().square() @ searched
        return norm

    @cached_property
    def _noise(self) -> Tensor:
        """`(g,)` squared norm of b of noise."""
        traces = [squared.diagonal(dim1=-2, dim2=-1).sum(-1) for squared in self.squared]
        return traces[0] + 2 * torch.stack(traces[1:]).sum(0)


def _product(matrices: Tensor, coefficients: Tensor) -> Tensor:
    """`(n or nothing, q, q)` real matrices times `(n, q)`."""
    return torch.view_as_complex((matrices @ torch.view_as_real(coefficients)).contiguous())


def times(
    matrices: Sequence[Tensor], places: Sequence[Tensor], coefficients: Tensor, group: Tensor
) -> Tensor:
    """`(n, functions)` coefficients, multiplied by the `(g, q, q)` matrices of their groups."""
    out = torch.zeros_like(coefficients)
    for place, of_groups in zip(places, matrices, strict=True):
        out[:, place] = _product(of_groups[group], coefficients[:, place])
    return out


def find_like_views(views: LikeViews, rows: Tensor, noise: Tensor) -> LikeViews | None:
    """How the images of a sample predict each other; None where they do not.

    A few of `rows` are looked at first, and tried on a few others: where they show nothing, that is all.

    Parameters
    ----------
    views
        The sample, without weights and residual.
    rows, noise
        `(m,)` images to measure with, and `(m, functions)` b of white noise like theirs, independent of it.
    """
    n = len(views.sample)
    if n < _FEWEST:
        return None
    step = max(2, len(rows) // _TRIED)
    others = slice(step // 2, None, step)
    if _measured(_fitted(views, rows[::step]), rows[others], noise[others]).error > _HOPELESS_ERROR:
        return None
    views = _measured(_fitted(views, torch.arange(n)), rows, noise)
    return views if views.error < _LARGEST_ERROR else None


def _fitted(views: LikeViews, rows: Tensor) -> LikeViews:
    """With the weights by which means predict the images in `rows`, and the covariance of what they leave."""
    sample, group = views.sample[rows], views.group[rows]
    means = views.means(sample, group)
    weights = []
    for place, vectors, double in zip(views.places, views.vectors, views.squared, strict=True):
        of_means = torch.cat([torch.view_as_real(mean[:, place]).mT @ vectors for mean in means], -1).double()
        seen = (torch.view_as_real(sample[:, place]).mT @ vectors).double()
        operators = (vectors.T @ double @ vectors).double().repeat(1, len(means), len(means))
        normal = torch.zeros_like(operators[0])
        for number, operator in enumerate(operators):
            some = of_means[group == number].flatten(0, 1)
            normal += (some.T @ some) * operator
        right = (of_means * seen.repeat(1, 1, len(means))).sum((0, 1))
        normal.diagonal().add_(_RIDGE * float(normal.diagonal().mean()) + 1e-9)
        weights.append(torch.linalg.solve(normal, right).float().view(len(means), -1))
    views = replace(views, weights=weights)
    left = sample - times(views.squared, views.places, views.predicted(means), group)
    residual = covariance_of_backprojected([left[:, place] for place in views.places], views.squared, group)
    return replace(views, residual=residual)


def _measured(views: LikeViews, rows: Tensor, noise: Tensor) -> LikeViews:
    """With the share that explains the images in `rows` best, and the error that it leaves.

    Noise is added to them and subtracted, scaled: what is made of the one is compared with the other, whose
    noise is independent.
    """
    group = views.group[rows]
    first = views.sample[rows] + _TAU * noise
    second = views.sample[rows] - noise / _TAU
    linear = views.wiener(first, group)
    step = views.restored(first, group) - linear
    seen = times(views.squared, views.places, step, group)
    missing = second - times(views.squared, views.places, linear, group)
    of_images = (step.conj() * missing).real @ views.pair
    explained = float(of_images.sum())
    if explained <= _SIGNIFICANT * float(of_images.std()) * len(of_images) ** 0.5:
        return views
    power = float(((step.conj() * seen).real @ views.pair).sum())
    share = min(1.0, explained / power)
    expected = float(views.expected_error()[group].sum())
    gained = share * (2 * explained - share * power)
    return replace(views, share=share, error=min(1.0, max(0.0, 1 - gained / max(expected, 1e-12))))
