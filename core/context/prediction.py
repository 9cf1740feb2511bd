"""What other images of its stack say of an image, beside the covariance Wiener filter of the image itself.

Two means that other images give take the place of the mean image in a linear prediction; what it leaves has a
covariance of its own, whose Wiener filter adds what the image itself says. How much of this estimate is taken
beside the covariance Wiener filter is measured on the stack, and is nothing where images do not predict each
other. Where the means come from differs: `like_views` and `stack_map`.

Everything is told by `b = O y`, an image's coefficients through its own CTF, and by the squares of the CTFs'
operators O: the posterior mean under a covariance C is `(C O² + 1)^-1 C b`, and b and O² of images add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from ..classical.covariance import angular_places, covariance_of_backprojected
from ..classical.fourier_bessel import FourierBesselBasis

#: of a prediction
MEANS = 2
_BLOCK = 64
_RIDGE = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(ABC):
    """Where means of an image come from, and how they predict it.

    Attributes
    ----------
    basis
        Of all coefficients, which are relative to the mean image in units of the noise.
    vectors, prior
        `(q, q)` eigenvectors and covariance of the images, of each angular frequency.
    squared
        `(g, q, q)` squares of the CTF groups' operators, of each angular frequency.
    weights
        `(2, q)` of each mean along the eigenvectors, of each angular frequency.
    residual
        `(q, q)` covariance of what the prediction leaves.
    share
        Of this estimate beside the covariance Wiener filter, 0 to 1.
    error
        Mean squared error with that share, over that of the covariance Wiener filter.
    """

    #: shipped weights that see the estimates
    network: ClassVar[str]

    basis: FourierBesselBasis
    vectors: list[Tensor]
    prior: list[Tensor]
    squared: list[Tensor]
    weights: list[Tensor] = field(default_factory=list)
    residual: list[Tensor] = field(default_factory=list)
    share: float = 0.0
    error: float = 1.0

    @abstractmethod
    def _means_of_block(self, b: Tensor, wiener: Tensor, group: Tensor) -> list[Tensor]:
        """What `means` gives, of some images whose covariance Wiener filter is at hand."""

    def estimates(self, b: Tensor, group: Tensor) -> Tensor:
        """`(n, functions)` b of images to estimates of their coefficients without CTF.

        Returns
        -------
        `(2 + MEANS, n, functions)`: the linear one, the covariance Wiener filter's, the means.
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
        """`(n, functions)` each of the means."""
        return self._means(b, self.wiener(b, group), group)

    def _means(self, b: Tensor, wiener: Tensor, group: Tensor) -> list[Tensor]:
        blocks = zip(*(torch.split(each, _BLOCK) for each in (b, wiener, group)), strict=True)
        parts = [self._means_of_block(*block) for block in blocks]
        return [torch.cat(means) for means in zip(*parts, strict=True)]

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


Some = TypeVar("Some", bound=Prediction)


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


def fitted(views: Some, sample: Tensor, group: Tensor) -> Some:
    """`views` with weights by which means predict images, unless it has some, and the residual's covariance.

    `sample` `(n, functions)` are b of the images, `group` their CTF groups.
    """
    means = views.means(sample, group)
    if not views.weights:
        views = replace(views, weights=_weights(views, means, sample, group))
    left = sample - times(views.squared, views.places, views.predicted(means), group)
    residual = covariance_of_backprojected([left[:, place] for place in views.places], views.squared, group)
    return replace(views, residual=residual)


def _weights(views: Prediction, means: Sequence[Tensor], sample: Tensor, group: Tensor) -> list[Tensor]:
    """Of the means along the eigenvectors, by least squares over images."""
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
    return weights
