"""What like views among the other images add to the covariance Wiener filter of an image.

The images of a stack show one particle in many orientations: each has some that show nearly the same, turned
in the plane or mirrored. They are found by the distance of what the covariance Wiener filter makes of them,
turned onto the image and averaged through their CTFs [1]_, the nearest ones and more of them.

References
----------
.. [1] Zhao & Singer (2014) J. Struct. Biol. 186, 153-166, doi:10.1016/j.jsb.2014.03.003: like views found
   and averaged in a steerable basis. Here the means are predictors beside the image itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .prediction import Prediction

#: neighbours whose weights fall to 0 with their distance, of each mean
NEIGHBOURS = (12, 64)
#: highest angular frequency of the search, and its angles
_HIGHEST, _ANGLES = 15, 32
#: images whose difference is less than this share of what independent noise makes it are one and the same,
#: which is looked for among the nearest
_SAME, _SELF_AMONG = 0.25, 4
#: candidates more than wanted: their distances are known better than by which they were chosen
_MORE = 16
_TILE = 128
#: share of the variance of the filtered images in the directions that are searched
_SEARCHED = 0.99


@dataclass(frozen=True, eq=False, kw_only=True)
class LikeViews(Prediction):
    """The sample whose views are looked at.

    Attributes
    ----------
    sample
        `(n, functions)` b of the sample's images.
    group
        `(n,)` CTF group of each.
    """

    network = "like_views"

    sample: Tensor
    group: Tensor

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
