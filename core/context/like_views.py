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

import itertools
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
_BLOCK, _TILE = 64, 128
#: share of the variance of the filtered images in the directions that are searched
_SEARCHED = 0.99
_RIDGE = 1e-3


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

    def estimates(self, b: Tensor, group: Tensor) -> Tensor:
        """`(n, functions)` b of images to estimates of their coefficients without CTF.

        Returns
        -------
        `(2 + len(NEIGHBOURS), n, functions)`: the linear one, the covariance Wiener filter's, the means.
        """
        wiener = self.wiener(b, group)
        means = self._means(b, wiener, group)
        predicted = self.predicted(means)
        left = b - times(self.squared, self.places, predicted, group)
        linear = predicted + times(self._of_residual, self.places, left, group)
        return torch.stack([linear, wiener, *means])

    def wiener(self, b: Tensor, group: Tensor) -> Tensor:
        """The covariance Wiener filter."""
        return times(self._of_prior, self.places, b, group)

    def means(self, b: Tensor, group: Tensor) -> list[Tensor]:
        """`(n, functions)` what the nearest images share, for each number of `NEIGHBOURS`."""
        return self._means(b, self.wiener(b, group), group)

    def _means(self, b: Tensor, wiener: Tensor, group: Tensor) -> list[Tensor]:
        blocks = zip(*(torch.split(each, _BLOCK) for each in (b, wiener, group)), strict=True)
        parts = [self._means_of_block(*block) for block in blocks]
        return [torch.cat(means) for means in zip(*parts, strict=True)]

    def _means_of_block(self, b: Tensor, wiener: Tensor, group: Tensor) -> list[Tensor]:
        index, angle, mirrored, distance = self._nearest(b, wiener, group)
        n, many = index.shape
        weights = []
        for number in NEIGHBOURS:
            nearest, limit = distance[:, :1], distance[:, number : number + 1]
            weight = 1 - (distance - nearest) / (limit - nearest).clamp_min(1e-12)
            weights.append(weight.clamp(0, 1)[:, :many])
        groups = self.group[index]
        counts = torch.cat(
            [torch.zeros(n, len(self.squared[0])).scatter_add_(1, groups, weight) for weight in weights]
        )
        # what real and imaginary parts of a neighbour, turned and mirrored, add to those of the means
        phase = angle[..., None] * torch.arange(len(self.places))
        mirror = torch.where(mirrored, -1.0, 1.0)[..., None]
        of_real = torch.stack([phase.cos(), -mirror * phase.sin()], 2)
        of_imaginary = torch.stack([phase.sin(), mirror * phase.cos()], 2)
        turn = torch.stack([of_real, of_imaginary], 1).flatten(2, 3)
        neighbours = self._planes[index].flatten(1, 2)
        means = torch.zeros(len(NEIGHBOURS) * n, len(self.basis), dtype=b.dtype)
        each = torch.stack(weights, 1).repeat_interleave(2, 2)[:, :, None]
        for order, (place, prior, squared) in enumerate(
            zip(self.places, self.prior, self.squared, strict=True)
        ):
            add = (each * turn[:, None, ..., order]).flatten(1, 2)
            total = torch.bmm(add, neighbours[..., int(place[0]) : int(place[-1]) + 1])
            total = total.view(n, len(NEIGHBOURS), 2, -1).transpose(0, 1).flatten(0, 1)
            seen = (counts @ squared.flatten(1)).view(-1, *prior.shape)
            right = prior @ total.mT
            solved = torch.linalg.solve(prior @ seen + torch.eye(len(prior)), right)
            means[:, place] = torch.view_as_complex(solved.contiguous())
        return list(torch.split(means, n))

    def _nearest(self, b: Tensor, wiener: Tensor, group: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Index, angle, whether mirrored, and squared distance of the nearest other images, and of more."""
        mine = self._reduced(wiener)
        norm = self._norm
        rows = self._search_rows(mine)
        likeness = torch.cat([self._likeness(rows, tile) for tile in self._tiles], 2)
        best, mirrored = likeness.max(0)
        n_wanted = min(max(NEIGHBOURS) + _MORE, len(self.sample))
        _, index = (norm - 2 * best).topk(n_wanted, largest=False)
        mirrored = mirrored.gather(1, index).bool()
        # these again at all angles, and between them: the parabola through the largest and its neighbours
        theirs = torch.view_as_real(self._reduced_sample)[index]
        theirs[..., 1] *= torch.where(mirrored, 1.0, -1.0)[..., None]
        products = torch.view_as_real(mine[:, None] * torch.view_as_complex(theirs))
        profile = products.flatten(2) @ self._waves
        peak, at = profile.max(2, keepdim=True)
        low, high = (profile.gather(2, (at + step) % _ANGLES) for step in (-1, 1))
        bend = (2 * peak - low - high).clamp_min(1e-12)
        beside = ((high - low) / (2 * bend)).clamp(-0.5, 0.5)
        peak = peak + bend * beside.square() / 2
        angle = (at + beside).squeeze(2) * (2 * torch.pi / _ANGLES)
        distance = norm[index] - 2 * peak.squeeze(2)
        # the image itself, if it is one of the sample, is among the nearest
        few = index[:, :_SELF_AMONG]
        different = (self.sample[few] - b[:, None]).abs().square() @ self.pair
        same = different < _SAME * 2 * self._noise[group][:, None]
        distance[:, :_SELF_AMONG].masked_fill_(same, torch.inf)
        distance, order = distance.sort(dim=1, stable=True)
        order = order[:, : max(NEIGHBOURS)]
        return index.gather(1, order), angle.gather(1, order), mirrored.gather(1, order), distance

    def _search_rows(self, mine: Tensor) -> list[list[Tensor]]:
        """As they are, and mirrored: of each order `(2 n, 2 r)`, for products' real and imaginary parts."""
        parts = [torch.view_as_real(mine[:, place]).unbind(-1) for place in self._searched]
        return [
            [
                torch.cat([torch.cat([real, sign * imaginary], 1), torch.cat([imaginary, -sign * real], 1)])
                for real, imaginary in parts
            ]
            for sign in (1.0, -1.0)
        ]

    def _likeness(self, rows: list[list[Tensor]], tile: list[Tensor]) -> Tensor:
        """`(2, n, some)` largest real products over all angles with images of the sample, and mirrored."""
        twice, some = len(rows[0][0]), tile[0].shape[1]
        largest = []
        for of_orders in rows:
            halves = []
            for parity, waves in enumerate(self._half_waves):
                products = torch.empty(len(of_orders[parity::2]), twice, some)
                for out, mine, theirs in zip(products, of_orders[parity::2], tile[parity::2], strict=True):
                    torch.mm(mine, theirs, out=out)
                halves.append(waves @ products.view(-1, twice // 2 * some))
            # half a turn on, sums of even orders are the same, those of odd ones have changed their sign
            even, odd = halves
            largest.append(even.add_(odd.abs_()).amax(0).view(-1, some))
        return torch.stack(largest)

    def predicted(self, means: Sequence[Tensor]) -> Tensor:
        together, predicted = torch.stack(list(means)), torch.zeros_like(means[0])
        for place, matrices in zip(self.places, self._of_means, strict=True):
            # row vectors, real and imaginary parts at once
            parts = torch.view_as_real(together[..., place]).mT @ matrices[:, None]
            predicted[:, place] = torch.view_as_complex(parts.sum(0).mT.contiguous())
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
    def power(self) -> float:
        """Sum of the variances of the particles' coefficients, as they are seen."""
        pairs = zip(self.prior, self.squared, strict=True)
        of_orders = [float((prior * squared.mean(0)).sum()) for prior, squared in pairs]
        return of_orders[0] + 2 * sum(of_orders[1:])

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
    def _of_means(self) -> list[Tensor]:
        """`(2, q, q)` what each mean is multiplied by, of each angular frequency."""
        return [(v * w[:, None]) @ v.T for v, w in zip(self.vectors, self.weights, strict=True)]

    @cached_property
    def _planes(self) -> Tensor:
        """`(images, 2, functions)` real and imaginary parts of the sample."""
        return torch.stack([self.sample.real, self.sample.imag], 1)

    @cached_property
    def _restored_sample(self) -> Tensor:
        return self.wiener(self.sample, self.group)

    @cached_property
    def _kept(self) -> list[Tensor]:
        """`(q, r)` directions in which nearly all of the sample's variance lies, of each order searched."""
        spread = []
        for order, (place, vectors) in enumerate(zip(self.places, self.vectors, strict=True)):
            along = self._restored_sample[:, place] @ vectors.to(self.sample.dtype)
            spread.append((2.0 if order else 1.0) * along.abs().square().sum(0))
        spread = spread[: _HIGHEST + 1]
        values = torch.cat(spread).sort(descending=True).values
        enough = int((values.cumsum(0) < _SEARCHED * values.sum()).sum())
        least = values[min(enough, len(values) - 1)]
        return [v[:, along >= least].contiguous() for v, along in zip(self.vectors, spread, strict=False)]

    @cached_property
    def _searched(self) -> list[slice]:
        """Where the reduced coefficients of each order are."""
        ends = list(itertools.accumulate(vectors.shape[1] for vectors in self._kept))
        return [slice(end - vectors.shape[1], end) for end, vectors in zip(ends, self._kept, strict=True)]

    def _reduced(self, coefficients: Tensor) -> Tensor:
        """`(n, functions)` coefficients along `_kept`, those for which a search is worth its time."""
        parts = zip(self.places, self._kept, strict=False)
        return torch.cat([coefficients[:, place] @ kept.to(coefficients.dtype) for place, kept in parts], 1)

    @cached_property
    def _reduced_sample(self) -> Tensor:
        return self._reduced(self._restored_sample)

    @cached_property
    def _tiles(self) -> list[list[Tensor]]:
        """Of some images at a time, `(2 r, some)` real, then imaginary parts for each order."""
        tiles = torch.split(torch.view_as_real(self._reduced_sample).permute(2, 1, 0), _TILE, 2)
        return [[tile[:, place].flatten(0, 1).contiguous() for place in self._searched] for tile in tiles]

    @cached_property
    def _orders(self) -> Tensor:
        """`(r,)` angular frequency of each reduced coefficient."""
        return torch.cat([torch.full((v.shape[1],), order) for order, v in enumerate(self._kept)])

    @cached_property
    def _norm(self) -> Tensor:
        pair = torch.where(self._orders > 0, 2.0, 1.0)
        norm: Tensor = self._reduced_sample.abs().square() @ pair
        return norm

    @cached_property
    def _waves(self) -> Tensor:
        """`(2 r, angles)` what real and imaginary parts of products add to the likeness at each angle."""
        return _waves(self._orders, _ANGLES)

    @cached_property
    def _half_waves(self) -> list[Tensor]:
        """`(angles / 2, 2 orders)` the same over half a turn, for even and for odd orders."""
        orders = torch.arange(len(self._kept))
        return [_waves(orders[parity::2], _ANGLES)[:, : _ANGLES // 2].T.contiguous() for parity in (0, 1)]

    @cached_property
    def _noise(self) -> Tensor:
        """`(g,)` squared norm of b of noise."""
        traces = [squared.diagonal(dim1=-2, dim2=-1).sum(-1) for squared in self.squared]
        return traces[0] + 2 * torch.stack(traces[1:]).sum(0)


def _waves(orders: Tensor, n_angles: int) -> Tensor:
    phase = orders[:, None] * torch.arange(n_angles) * (2 * torch.pi / n_angles)
    pair = torch.where(orders > 0, 2.0, 1.0)[:, None]
    return torch.stack([pair * phase.cos(), pair * phase.sin()], 1).flatten(0, 1)


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


def fitted(views: LikeViews, rows: Tensor) -> LikeViews:
    """`views` with the weights by which means predict the images in `rows`, and the residual's covariance."""
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
