"""The context of an image: what the other images of its stack say about it.

A first pass over a sample of the stack estimates the level of the noise, the spectrum of the particles and
the steerable covariance of their images, all with the CTF taken back. The second pass streams: each image
comes with what these linear estimates make of it, as further channels for a network that was trained with
them.

Everything happens on a working grid of at most `WORKING_BOX_PX` pixels a side, so that the cost hardly grows
with the box. It holds the band in which single particles carry signal.

References
----------
.. [1] Bhamre, Zhang & Singer (2016) J. Struct. Biol. 195, 72-81, doi:10.1016/j.jsb.2016.04.013: covariance
   Wiener filter through the CTF.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..classical.covariance import ImageCovariance, estimate_covariance_through_ctf
from ..classical.fourier_bessel import FourierBesselBasis
from ..imaging.ctf import CtfParameters, ctf, defocus_groups, nearest_group
from ..imaging.filters import apply_transfer, background_power, floor_of
from ..imaging.noise import image_generator
from ..imaging.resample import fourier_resample, shift_phases
from ..imaging.rings import ring_index, ring_mean
from ..spread import evenly_spread
from .centres import Centres, find_centres
from .like_views import LikeViews
from .noise_spectrum import beyond_noise, noise_spectrum, unmodulated_power
from .prediction import MEANS, Prediction, fitted, times
from .stack_map import StackMap, Stage, find_map, of_some, unasked
from .view_network import of_network, shown

WORKING_BOX_PX = 64
#: of `StackContext.channels`
CHANNELS = 5
#: cycles per working pixel, of the covariance
BAND_LIMIT = 0.35
#: below it a covariance is mostly noise
FEWEST_IMAGES = 100
MOST_IMAGES = 2048
_MOST_GROUPS, _FEWEST_OF_GROUP = 100, 20
_EDGE_PX = 6.0
_BLOCK = 64
#: with fewer images like views are not looked for: the neighbours of the larger mean were a quarter of all
FEWEST_OF_VIEWS = 256
#: noise that some images get to measure what the views explain, relative to their own, and how many these are
_TAU, _MEASURED = 0.5, 512
#: draws of noise where a map is judged, which fails sooner than other means when images are noisier
_DRAWS = 4
#: images that take no part in a map at most
_HELD_OUT = 256
#: images to which the linear prediction is fitted
FITTED = 600
#: relative to the covariance filter's, with an even and with an uneven background: hardly less is not worth
#: its time, and where there is more than noise beside the particle, it is not known as well
_LARGEST_ERROR = (0.97, 0.9)
#: images of the trial, and by how much its error may be larger than that of all
_TRIED, _WORSE = 64, 0.02
#: standard errors: of what is certain
_SIGNIFICANT = 4.0
#: by how many the covariance filter has to gain from places in the images, and how many it may lose where
#: like views take part, which gain more
_SURE, _LOSS = 2.0, 1.0
_SMALLEST_BOX_PX = 32


class _Filters(NamedTuple):
    """Wiener filters of each CTF group.

    `gains`: of each angular frequency the place of its coefficients and `(g, q, q)`; `seen_means` `(g, q)`:
    the mean image's coefficients of angular frequency 0 through the CTF; `explained` `(g,)`.
    """

    gains: list[tuple[tuple[int, int], Tensor]]
    seen_means: Tensor
    explained: Tensor


@dataclass(frozen=True, eq=False)
class StackContext:
    """What the sample said.

    Attributes
    ----------
    box_px, radius_px
        Side of the images and radius of the particle, pixels.
    pixel_size_angstrom
        Of the images.
    noise_variance
        Per pixel of the working grid: the white floor of the background.
    noise_power
        `(rings,)` of the working grid: see `noise_spectrum`. Whatever else is uneven in the background (the
        structure of the ice) counts as signal.
    signal_power
        `(rings,)` of the particles and the ice without CTF, working grid.
    covariance
        Of the images without CTF, particle masked, in units of `noise_variance`.
    unevenness
        How much the background holds beside white noise, such as the structure of the ice and neighbours, 0
        (nothing) to 1 (a fifth of the noise's power and more, as real images have).
    group_optics
        CTF of each group of like defocus and phase shift; None where the CTF is not known, which then counts
        as the particles' own.
    n_images
        Images of the sample.
    centres
        What tells how far beside the middle of their images particles lie; None where it is of no use. The
        covariance and like views are of particles in the middle.
    views
        What like views of the sample, or a map of the particle, add to the covariance filter; None where that
        is nothing.
    """

    box_px: int
    radius_px: float
    pixel_size_angstrom: float
    noise_variance: float
    noise_power: Tensor
    signal_power: Tensor
    covariance: ImageCovariance
    unevenness: float
    group_optics: CtfParameters | None
    n_images: int
    centres: Centres | None = None
    views: Prediction | None = None

    @property
    def working_box_px(self) -> int:
        return self.covariance.basis.box_px

    def channels(self, images: Tensor, optics: CtfParameters | None = None) -> Tensor:
        """The context of `(n, y, x)` normalised images (background mean 0 and sd 1, protein white).

        Parameters
        ----------
        optics
            Of the n images; None exactly where the context has no CTF.

        Returns
        -------
        `(n, 5, y, x)`: the covariance Wiener filter's image, with like views of other images where they add
        to it, which shows the particle alone; the image
        filtered by its own CTF and the stack's signal-to-noise ratio; inside the particle's circle, the share
        of the particle's variance that the first explains; `unevenness`, everywhere; and inside the circle
        the share of like views in the first. Both images are seen through the CTF.
        """
        n, box, working = len(images), self.box_px, self.working_box_px
        transform = _cropped(torch.fft.rfft2(images.float()), working) * (working / box) ** 2
        own, group = self.own_ctf(optics, n)
        wiener = self._by_own_ctf(transform, own)
        to_middle = self._to_middle(transform, own)
        transform = transform * to_middle
        particle = self._particles(transform, own, group) * to_middle.conj()
        both = _padded(torch.stack([particle, wiener], 1), box) * (box / working) ** 2
        both = torch.fft.irfft2(both, s=(box, box))
        inside = circle(box, self.radius_px)
        of_views = inside * (0.0 if self.views is None else self.views.share)
        known = torch.stack([torch.full_like(inside, self.unevenness), of_views]).expand(n, 2, box, box)
        return torch.cat([both, (self.explained[group, None, None] * inside)[:, None], known], 1)

    @property
    def working_pixel_size_angstrom(self) -> float:
        return self.pixel_size_angstrom * self.box_px / self.working_box_px

    @property
    def working_radius_px(self) -> float:
        return self.radius_px * self.working_box_px / self.box_px

    def own_ctf(self, optics: CtfParameters | None, n: int) -> tuple[Tensor, Tensor]:
        """CTFs on the working grid, and their groups."""
        working = self.working_box_px
        if optics is None:
            return torch.ones(1, working, working // 2 + 1), torch.zeros(n, dtype=torch.int64)
        assert self.group_optics is not None
        own = ctf(optics, torch.full((n,), self.working_pixel_size_angstrom), working)
        return own, nearest_group(optics, self.group_optics)

    def _to_middle(self, transform: Tensor, own: Tensor) -> Tensor:
        """Factors on transforms of images that bring their particles to the middle."""
        return torch.ones(()) if self.centres is None else self.centres.to_middle(transform, own)

    def to_map(self, views: Prediction | None, transform: Tensor, own: Tensor, group: Tensor) -> Tensor:
        """Factors on transforms of images that bring their particles to where a map, if any, has them."""
        if not isinstance(views, StackMap):
            return torch.ones(())
        white = transform * self.whitening / self.noise_variance**0.5
        places = views.places_px(white, own * self.whitening, group, self._stage)
        return shift_phases(-places, (self.working_box_px,) * 2)

    def _in_the_middle(self, images: Tensor, optics: CtfParameters | None) -> Tensor:
        """`(n, y, x)` images on the working grid, with their particles moved to the middle."""
        moved = []
        for some in torch.split(torch.arange(len(images)), 256):
            transform = torch.fft.rfft2(images[some])
            own, _ = self.own_ctf(None if optics is None else optics[some], len(some))
            moved.append(torch.fft.irfft2(transform * self._to_middle(transform, own), s=images.shape[-2:]))
        return torch.cat(moved)

    def _by_own_ctf(self, transform: Tensor, own: Tensor) -> Tensor:
        """Transforms of images behind the Wiener filter by their own CTFs."""
        ring = ring_index((self.working_box_px, self.working_box_px))
        signal = own.square() * self.signal_power[ring]
        return transform * (signal / (signal + self.noise_power[ring]))

    def _coefficients(self, transform: Tensor, group: Tensor) -> Tensor:
        """`(n, functions)` of particles in white noise of variance 1, without their mean image."""
        working, basis = self.working_box_px, self.covariance.basis
        masked = torch.fft.irfft2(transform * self.whitening, s=(working, working))
        coefficients = basis.analyse(
            masked * (circle(working, self.working_radius_px) / self.noise_variance**0.5)
        )
        coefficients[:, basis.angular == 0] -= self._filters.seen_means[group]
        return coefficients

    def _by_covariance(self, transform: Tensor, group: Tensor) -> Tensor:
        """`(n, y, x)` particles without CTF: what the covariance makes of images."""
        coefficients = self._coefficients(transform, group)
        filtered = torch.zeros_like(coefficients)
        for (first, last), gain in self._filters.gains:
            # row vector times matrix, real and imaginary part at once
            values = torch.view_as_real(coefficients[:, first:last])
            product = gain[group].mT @ values
            filtered[:, first:last] = torch.view_as_complex(product.contiguous())
        covariance = self.covariance
        particles: Tensor = covariance.basis.synthesise(filtered + covariance.mean) * self.noise_variance**0.5
        return particles

    def _particles(self, transform: Tensor, own: Tensor, group: Tensor) -> Tensor:
        """Transforms of particles through their CTFs: what images show in the light of the stack."""
        if self.views is None:
            seen: Tensor = torch.fft.rfft2(self._by_covariance(transform, group)) * own
            return seen
        estimate, better = self._beside_views(self.views, transform, own, group)
        inside = circle(self.working_box_px, self.working_radius_px)
        seen = torch.fft.rfft2(
            torch.lerp(estimate, better, self.views.share * inside) * self.noise_variance**0.5
        )
        return seen

    def _beside_views(
        self, views: Prediction, transform: Tensor, own: Tensor, group: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`(n, y, x)` particles through their CTFs, in units of the noise: by covariance, and by all."""
        scale = self.view_scale(views)
        if not isinstance(views, StackMap):
            seen = self.view_channels(views, transform, own, group)
            return scale * seen[:, 2], scale * of_network(seen, views.network)
        sides = (self.working_box_px, self.working_box_px)
        estimate = torch.fft.rfft2(self._by_covariance(transform, group) / self.noise_variance**0.5) * own
        to_map = self.to_map(views, transform, own, group)
        seen = self.view_channels(views, transform * to_map, own, group)
        better = torch.fft.rfft2(of_network(seen, views.network)) * to_map.conj()
        return torch.fft.irfft2(estimate, s=sides), scale * torch.fft.irfft2(better, s=sides)

    def view_scale(self, views: Prediction) -> float:
        """Standard deviation of the particles as they are seen, in their circle, in units of the noise."""
        area = float(circle(self.working_box_px, self.working_radius_px).square().sum())
        return math.sqrt(max(views.power / area, 1e-12))

    def view_channels(self, views: Prediction, transform: Tensor, own: Tensor, group: Tensor) -> Tensor:
        """What the network of like views sees, `(n, 7, y, x)`, see `view_network.shown`.

        Parameters
        ----------
        transform
            Of n images on the working grid (`rfft2`), their particles in the middle.
        own, group
            Their CTFs there, or one that is 1, and their CTF groups.
        """
        working = self.working_box_px
        through = times(self._operators, views.places, self._coefficients(transform, group), group)
        estimates = self.covariance.basis.synthesise(
            (views.estimates(through, group) + self.covariance.mean).flatten(0, 1)
        ).view(-1, len(group), working, working)
        estimates = torch.fft.irfft2(torch.fft.rfft2(estimates) * own, s=(working, working))
        others = torch.stack([transform, self._by_own_ctf(transform, own)])
        image, wiener = torch.fft.irfft2(others, s=(working, working)) / self.noise_variance**0.5
        return shown(image, estimates, wiener, self.view_scale(views))

    @property
    def explained(self) -> Tensor:
        """`(g,)` share of the variance of each group's particles that their covariance explains, 0 to 1."""
        return self._filters.explained

    @cached_property
    def _filters(self) -> _Filters:
        covariance, basis = self.covariance, self.covariance.basis
        operators = self._operators
        seen_means = operators[0] @ covariance.mean[basis.angular == 0].real
        gains = []
        total = torch.zeros(len(operators[0]))
        left = torch.zeros(len(operators[0]))
        first = 0
        for order, (vectors, values) in enumerate(
            zip(covariance.vectors, covariance.eigenvalues, strict=True)
        ):
            last = first + len(values)
            root = vectors * values.sqrt()
            spread = operators[order] @ root
            prior = spread @ spread.mT
            seen = prior.clone()
            seen.diagonal(dim1=-2, dim2=-1).add_(1.0)
            if bool(values.any()):
                gains.append(((first, last), torch.linalg.solve(seen, spread @ root.T)))
            times = 1 if order == 0 else 2
            total += times * prior.diagonal(dim1=-2, dim2=-1).sum(-1)
            left += times * (prior * torch.linalg.solve(seen, prior)).sum((-2, -1))
            first = last
        explained = (left / total.clamp_min(1e-6)).clamp(0, 1)
        if self.views is not None:
            explained = 1 - self.views.error * (1 - explained)
        return _Filters(gains, seen_means, explained)

    @cached_property
    def _operators(self) -> list[Tensor]:
        return self.covariance.basis.radial_operators(self.group_transfer())

    @property
    def of_prediction(self) -> dict[str, Any]:
        """What any `Prediction` has of this context."""
        covariance = self.covariance
        prior = [(v * e) @ v.T for v, e in zip(covariance.vectors, covariance.eigenvalues, strict=True)]
        squared = self._stage.squared
        return {"basis": covariance.basis, "vectors": covariance.vectors, "prior": prior, "squared": squared}

    @cached_property
    def _stage(self) -> Stage:
        mask = circle(self.working_box_px, self.working_radius_px)
        return Stage(self.covariance.basis, self._operators, mask)

    def with_centres(
        self,
        images: Tensor,
        optics: CtfParameters | None,
        covariance_of: Callable[[Tensor], ImageCovariance],
    ) -> tuple[StackContext, float]:
        """Look for the places of particles in `(n, y, x)` images on the working grid.

        Returns the context of images whose particles were moved to the middle, and by how many standard
        errors its covariance filter explains more.
        """
        rows = torch.from_numpy(evenly_spread(len(images), _MEASURED))
        tried, known = images[rows], None if optics is None else optics[rows]
        own, _ = self.own_ctf(known, len(rows))
        centres = find_centres(torch.fft.rfft2(tried), own, self.signal_power, self.noise_power)
        context = replace(self, centres=centres)
        context = replace(context, covariance=covariance_of(context._in_the_middle(images, optics)))
        explained = context.explained_power(tried, known)
        if _sureness(explained) <= _SIGNIFICANT:
            return context, -math.inf
        return context, _sureness(explained - self.explained_power(tried, known))

    def with_views(self, images: Tensor, optics: CtfParameters | None) -> StackContext:
        """Look for like views among `(n, y, x)` images on the working grid.

        A few are looked at first, and tried on a few others: where they show nothing, that is all.
        """
        n = len(images)
        if n < FEWEST_OF_VIEWS:
            return self
        sample, group = self.sample(images, optics)
        views = LikeViews(**self.of_prediction, sample=sample, group=group)
        rows, of_fit = (torch.from_numpy(evenly_spread(n, most)) for most in (_MEASURED, FITTED))
        step = max(2, len(rows) // _TRIED)

        def measured(fit: Tensor, judged: Tensor) -> Prediction:
            return self._measured(fitted(views, sample[fit], group[fit]), images, optics, judged)

        if measured(rows[::step], rows[step // 2 :: step]).error > self._largest_error + _WORSE:
            return self
        found = measured(of_fit, rows)
        return replace(self, views=found) if found.error < self._largest_error else self

    def with_map(
        self,
        images: Tensor,
        optics: CtfParameters | None,
        found: StackContext,
        stop_if_asked: Callable[[], None],
    ) -> StackContext:
        """The context with a map that explains `(n, y, x)` images on the working grid better, or `found`.

        Of a context without like views. Some images take no part in the map: they tell how well it predicts.
        """
        n = len(images)
        if n < FEWEST_OF_VIEWS:
            return found
        judged = torch.from_numpy(evenly_spread(n, min(_HELD_OUT, n // 6)))
        tried, known = images[judged], None if optics is None else optics[judged]
        if _sureness(self.explained_power(tried, known)) <= _SIGNIFICANT:
            return found
        others = torch.ones(n, dtype=torch.bool).index_fill_(0, judged, False).nonzero().squeeze(1)
        context = self.of_map(images, optics, others, stop_if_asked)
        assert context.views is not None
        views = context._measured(context.views, images, optics, judged, _DRAWS)
        if views.error >= self._largest_error:
            return found
        context = replace(self, views=views)
        of_map, of_others = (each.explained_power(tried, known, _DRAWS).sum() for each in (context, found))
        return context if of_map > of_others else found

    def of_map(
        self,
        images: Tensor,
        optics: CtfParameters | None,
        rows: Tensor,
        stop_if_asked: Callable[[], None] = unasked,
    ) -> StackContext:
        """The context with a map of some of `(n, y, x)` images on the working grid, its use not measured."""
        own, group = self.own_ctf(optics, len(images))
        own, group = of_some(own, rows), group[rows]
        white = self._white_in_the_middle(images[rows], own, group)
        volume, spread = find_map(
            white, own * self.whitening, group, self._stage, self.covariance, stop_if_asked
        )
        # weights by least squares would count on what the map has of these images' own noise
        weights = [torch.full((MEANS, len(values)), 1 / MEANS) for values in self.covariance.eigenvalues]
        views = StackMap(
            **self.of_prediction, volume=volume, spread_px=spread, mean=self.covariance.mean, weights=weights
        )
        context = replace(self, views=views)
        of_fit = torch.from_numpy(evenly_spread(len(images), FITTED))
        sample, group = context.sample(images[of_fit], None if optics is None else optics[of_fit])
        return replace(self, views=fitted(views, sample, group))

    @property
    def _largest_error(self) -> float:
        even, uneven = _LARGEST_ERROR
        return even + self.unevenness * (uneven - even)

    def _white_in_the_middle(self, images: Tensor, own: Tensor, group: Tensor) -> Tensor:
        """Transforms of `(n, y, x)` images with white noise of variance 1."""
        parts = []
        for some in torch.split(torch.arange(len(images)), _BLOCK):
            transform = torch.fft.rfft2(images[some])
            to_middle = self._to_middle(transform, of_some(own, some))
            parts.append(transform * to_middle * (self.whitening / self.noise_variance**0.5))
        return torch.cat(parts)

    def sample(self, images: Tensor, optics: CtfParameters | None) -> tuple[Tensor, Tensor]:
        """`(n, functions)` b of `(n, y, x)` images on the working grid, and their CTF groups."""
        own, group = self.own_ctf(optics, len(images))
        sample, places = [], self._stage.places
        for some in torch.split(torch.arange(len(images)), _BLOCK):
            ctfs, transform = of_some(own, some), torch.fft.rfft2(images[some])
            transform = transform * self._to_middle(transform, ctfs)
            transform = transform * self.to_map(self.views, transform, ctfs, group[some])
            coefficients = self._coefficients(transform, group[some])
            sample.append(times(self._operators, places, coefficients, group[some]))
        return torch.cat(sample), group

    def _measured(
        self,
        views: Prediction,
        images: Tensor,
        optics: CtfParameters | None,
        rows: Tensor,
        draws: int = 1,
    ) -> Prediction:
        """`views` with the share that explains some of `(n, y, x)` images best, and the error that it leaves.

        Noise is added to them and subtracted, scaled: what is made of the one is compared with the other,
        whose noise is independent.
        """
        images, optics = images[rows], None if optics is None else optics[rows]
        own, group = self.own_ctf(optics, len(images))
        inside = circle(self.working_box_px, self.working_radius_px)
        products, powers = [], []
        for some, noisier, other in self._recorrupted(images, draws):
            ctfs = of_some(own, some)
            to_middle = self._to_middle(noisier, ctfs)
            estimate, better = self._beside_views(views, noisier * to_middle, ctfs, group[some])
            step = inside * self._white(torch.fft.rfft2(better - estimate))
            other = other * to_middle / self.noise_variance**0.5
            missing = inside * self._white(other - torch.fft.rfft2(estimate))
            products.append((step * missing).sum((1, 2)))
            powers.append(step.square().sum((1, 2)))
        of_images = torch.cat(products).view(draws, -1).mean(0)
        if _sureness(of_images) <= _SIGNIFICANT:
            return replace(views, share=0.0, error=1.0)
        explained, power = float(of_images.sum()), float(torch.cat(powers).sum()) / draws
        share = min(1.0, explained / power)
        expected = float(views.expected_error()[group].sum())
        gained = share * (2 * explained - share * power)
        error = min(1.0, max(0.0, 1 - gained / max(expected, 1e-12)))
        return replace(views, share=share, error=error)

    def explained_power(self, images: Tensor, optics: CtfParameters | None, draws: int = 1) -> Tensor:
        """`(n,)` power of `(n, y, x)` images that the context explains, told as in `_measured`."""
        own, group = self.own_ctf(optics, len(images))
        inside = circle(self.working_box_px, self.working_radius_px)
        explained = []
        for some, noisier, other in self._recorrupted(images, draws):
            ctfs = of_some(own, some)
            to_middle = self._to_middle(noisier, ctfs)
            particle = self._particles(noisier * to_middle, ctfs, group[some])
            seen = inside * self._white(particle * to_middle.conj())
            explained.append((seen * (2 * inside * self._white(other) - seen)).sum((1, 2)))
        return torch.cat(explained).view(draws, -1).mean(0)

    def _recorrupted(self, images: Tensor, draws: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Numbers of some of `(n, y, x)` images, and transforms of two versions with independent noise.

        The more draws, the less noise is added, so that the mean over them is as sure as one.
        """
        working = self.working_box_px
        colour = self.noise_power[ring_index((working, working))].sqrt()
        much = _TAU / draws**0.5
        for draw in range(draws):
            noise = torch.randn(images.shape, generator=image_generator(0, draw, "like views"))
            for some in torch.split(torch.arange(len(images)), _BLOCK):
                transform, more = torch.fft.rfft2(images[some]), torch.fft.rfft2(noise[some]) * colour
                yield some, transform + much * more, transform - more / much

    def _white(self, transform: Tensor) -> Tensor:
        """`(n, y, x)` images of transforms on the working grid, their noise made white."""
        sides = (self.working_box_px, self.working_box_px)
        image: Tensor = torch.fft.irfft2(transform * self.whitening, s=sides)
        return image

    def group_transfer(self) -> Tensor:
        """`(g, y, x // 2 + 1)` CTF of each group on the working grid, where the noise was made white."""
        working = self.working_box_px
        if self.group_optics is None:
            return self.whitening[None]
        size = torch.full((len(self.group_optics),), self.working_pixel_size_angstrom)
        return ctf(self.group_optics, size, working) * self.whitening

    @cached_property
    def whitening(self) -> Tensor:
        """`(y, x // 2 + 1)` what makes the noise of `noise_power` white, on the working grid."""
        return _whitening(self.noise_power, self.noise_variance, self.working_box_px)


def fit_context(
    images: Tensor,
    optics: CtfParameters | None,
    *,
    pixel_size_angstrom: float,
    radius_px: float,
    box_px: int | None = None,
    with_views: bool = True,
    with_map: Callable[[], None] | None = None,
) -> StackContext:
    """First pass: what a sample of a stack says.

    Parameters
    ----------
    images
        `(n, y, x)` normalised, square, of even side; at least `FEWEST_IMAGES`.
    optics
        Their CTFs, which differ in nothing but defocus, astigmatism and phase shift; None where they are not
        known.
    radius_px
        Of the particle.
    box_px
        Side of the images, where these are on their working grid already (`to_working_grid`).
    with_views
        Whether to look for like views, which takes most of the time.
    with_map
        Look for a map, too, and take what predicts images better; called in each round of the search.

    Raises
    ------
    ValueError
        Too few images, or they show no noise.
    """
    n, box = len(images), box_px or images.shape[-1]
    if n < FEWEST_IMAGES or box % 2 or box < _SMALLEST_BOX_PX or images.shape[-2] != images.shape[-1]:
        raise ValueError(
            f"expected {FEWEST_IMAGES} square images or more, of an even side of at least "
            f"{_SMALLEST_BOX_PX} px, found {tuple(images.shape)}"
        )
    small = images.float()
    if images.shape[-1] > WORKING_BOX_PX:
        small = torch.cat([to_working_grid(block) for block in torch.split(small, 256)])
    working = small.shape[-1]
    ratio = working / box
    power = background_power(small, radius_px * ratio)
    nyquist = working // 2
    noise = floor_of(power, nyquist)
    if not noise > 0:
        raise ValueError("the images' background holds no noise")
    working_size = pixel_size_angstrom / ratio
    without_ctf = (
        None if optics is None else unmodulated_power(small, optics, working_size, radius_px * ratio)
    )
    noise_power = noise_spectrum(power, nyquist, without_ctf)
    whitening = _whitening(noise_power, noise, working)
    if optics is None:
        group, group_optics = torch.zeros(n, dtype=torch.int64), None
        transfer = whitening[None]
    else:
        group, group_optics = defocus_groups(optics, max(1, min(_MOST_GROUPS, n // _FEWEST_OF_GROUP)))
        transfer = ctf(group_optics, torch.full((len(group_optics),), working_size), working)
        transfer = transfer * whitening
    basis = working_basis(working, radius_px * ratio + _EDGE_PX / 2 + 1)
    mask = circle(working, radius_px * ratio) / noise**0.5

    def covariance_of(images: Tensor) -> ImageCovariance:
        masked = torch.cat([apply_transfer(block, whitening) * mask for block in torch.split(images, 256)])
        covariance = estimate_covariance_through_ctf(masked, 1.0, basis, transfer, group)
        # as a file of it is read again: products depend on the layout in their last bits
        return replace(covariance, vectors=[vectors.contiguous() for vectors in covariance.vectors])

    covariance = covariance_of(small)
    signal = _signal_power(small, noise_power, optics, working_size)
    uneven = beyond_noise(power, noise_power, nyquist)
    context = StackContext(
        box, radius_px, pixel_size_angstrom, noise, noise_power, signal, covariance, uneven, group_optics, n
    )
    centred, gain = context.with_centres(small, optics, covariance_of)
    if gain > _SURE:
        context = centred
    found = context
    if with_views and context is not centred and gain > -_LOSS:
        found = centred.with_views(small, optics)
    if with_views and found.views is None:
        found = context.with_views(small, optics)
    if with_map is not None:
        return context.with_map(small, optics, found, with_map)
    return found


def to_working_grid(images: Tensor) -> Tensor:
    """Square `(n, y, x)` images on a grid of at most `WORKING_BOX_PX` pixels a side."""
    return fourier_resample(images, min(images.shape[-1], WORKING_BOX_PX))


def _signal_power(
    images: Tensor, noise: Tensor, optics: CtfParameters | None, pixel_size_angstrom: float
) -> Tensor:
    """`(rings,)` power without CTF, by least squares over the images: power = CTF² signal + noise."""
    shape = (images.shape[-2], images.shape[-1])
    top = bottom = torch.zeros(())
    noise = noise[ring_index(shape)]
    for members in torch.split(torch.arange(len(images)), 256):
        power = torch.fft.rfft2(images[members], norm="ortho").abs().square()
        if optics is None:
            squared = torch.ones_like(power)
        else:
            size = torch.full((len(members),), pixel_size_angstrom)
            squared = ctf(optics[members], size, shape[0]).square()
        top = top + ring_mean((squared * (power - noise)).sum(0), shape)
        bottom = bottom + ring_mean(squared.square().sum(0), shape)
    return (top / bottom.clamp_min(1e-6)).clamp_min(0.0)


def _sureness(values: Tensor) -> float:
    """The mean of values, in standard errors."""
    return float(values.mean() / values.std().clamp_min(1e-30)) * math.sqrt(len(values))


def _whitening(noise_power: Tensor, floor: float, box_px: int) -> Tensor:
    return (floor / noise_power).sqrt()[ring_index((box_px, box_px))]


@lru_cache(maxsize=4)
def working_basis(box_px: int, radius_px: float) -> FourierBesselBasis:
    return FourierBesselBasis(box_px, radius_px, BAND_LIMIT)


@lru_cache(maxsize=8)
def circle(box_px: int, radius_px: float) -> Tensor:
    """`(y, x)` 1 inside the particle's circle and 0 outside, with a soft edge of `_EDGE_PX` at 64 px."""
    axis = (torch.arange(box_px) - box_px // 2).float()
    edge = _EDGE_PX * box_px / WORKING_BOX_PX
    beyond = (torch.hypot(axis[:, None], axis[None]) - radius_px) / edge + 0.5
    return 0.5 + 0.5 * torch.cos(torch.pi * beyond.clamp(0, 1))


def _cropped(transform: Tensor, box_px: int) -> Tensor:
    """Transforms of `rfft2` on the grid of a smaller (or equal) box, without its Nyquist frequency."""
    half = box_px // 2
    small = transform.new_zeros(*transform.shape[:-2], box_px, half + 1)
    small[..., :half, :half] = transform[..., :half, :half]
    small[..., 1 - half :, :half] = transform[..., 1 - half :, :half]
    return small


def _padded(transform: Tensor, box_px: int) -> Tensor:
    """Transforms of `rfft2` on the grid of a larger (or equal) box."""
    half = transform.shape[-2] // 2
    large = transform.new_zeros(*transform.shape[:-2], box_px, box_px // 2 + 1)
    large[..., :half, :half] = transform[..., :half, :half]
    large[..., 1 - half :, :half] = transform[..., 1 - half :, :half]
    return large
