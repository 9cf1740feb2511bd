"""A map of the particle that a stack shows, and what the map says of an image.

The images of a stack are projections of one particle in many orientations. A map of it is found from nothing
by expectation maximisation over orientations [1]_, the posterior flattened at first [2]_; what it says of an
image is the mean of its projections, each weighted by how well it explains the image. Orientations are
searched on a coarse grid at a low resolution, then about the best of these on a fine one. Each image has a
contrast of its own, a number about 1, and its particle lies a little beside the middle.

The map is a means to predict images of its own stack and no more: nothing tells its hand, and it is no
reconstruction to be looked at.

References
----------
.. [1] Scheres (2012) J. Mol. Biol. 415, 406-418, doi:10.1016/j.jmb.2011.11.010. Differs in that the grid of
   orientations is traversed in a steerable basis, places are taken one at a time, and the prior of the map is
   the spectrum that the images' covariance has.
.. [2] Ueda & Nakano (1998) Neural Netw. 11, 271-282, doi:10.1016/S0893-6080(97)00133-0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..classical.covariance import ImageCovariance, angular_places
from ..classical.fourier_bessel import FourierBesselBasis
from ..imaging.projection import Projector, rotations_from_euler
from ..imaging.resample import shift_phases
from ..imaging.rings import ring_mean
from .centres import expected_places
from .prediction import Prediction, times

_BLOCK = 64
#: relative standard deviation of the images' contrast
_CONTRAST = 0.3
_PAD = 2
#: posterior of the second mean, as a power of that of the first; and that by which candidates are chosen
_LESS_SHARP, _OF_CANDIDATES = 0.3, 0.5
#: best templates of the coarse grid, and those of the fine one near each
_KEPT, _CHILDREN = 6, 8
#: smaller spreads of the places are taken for this one, pixels
_LEAST_PX = 1.0
#: on the map's spectrum: its voxels are a half of the images' pixels, and it has fewer of them than a ball
_PRIOR = 8.0
#: images of the first rounds
_FEW = 768
#: spread of the places along each axis, pixels, and from which sharpness on they are looked for
_STARTS = ((1.0, 2.0), (2.0, 0.0), (1.0, 0.4))
_ANNEALING = (*(10 ** (-1.3 + 1.3 * step / 15) for step in range(16)), 1.0, 1.0, 1.0, 1.0)
_SHORT, _FINE_ROUNDS = 5, 5


@dataclass(frozen=True)
class Grid:
    """Directions on half a sphere, angles in the plane, and the band that is looked at.

    Attributes
    ----------
    directions, angles
        How many.
    band_limit
        Cycles per pixel.
    """

    directions: int
    angles: int
    band_limit: float

    @cached_property
    def rotations(self) -> Tensor:
        """`(directions, 3, 3)`: the other half of the sphere has their mirror images."""
        place = torch.arange(self.directions) + 0.5
        turn = torch.rad2deg(place * math.pi * (3 - 5**0.5)) % 360
        tilt = torch.rad2deg(torch.arccos(place / self.directions))
        return rotations_from_euler(torch.stack([turn, tilt, torch.zeros_like(turn)], 1))


START, COARSE, FINE = Grid(100, 32, 0.12), Grid(256, 48, 0.18), Grid(1600, 96, 0.35)


class Templates:
    """Projections of a volume in the steerable basis, to be compared with images.

    Parameters
    ----------
    volume
        `(d, d, d)` in units of the noise.
    squared
        `(g, q, q)` squares of the CTF groups' operators, of each angular frequency.
    """

    def __init__(
        self, volume: Tensor, grid: Grid, basis: FourierBesselBasis, squared: Sequence[Tensor]
    ) -> None:
        self.grid, self.n_functions = grid, len(basis)
        side = volume.shape[-1]
        images = torch.fft.irfft2(Projector(volume).slices(grid.rotations), s=(side, side))
        coefficients = basis.analyse(images)
        orders = math.ceil(grid.band_limit * 2 * math.pi * basis.radius_px) + 1
        self.places = angular_places(basis)[: min(orders, grid.angles // 2)]
        self.tables, norms = [], torch.zeros(len(squared[0]), grid.directions)
        for order, (place, square) in enumerate(zip(self.places, squared, strict=False)):
            real, imaginary = coefficients[:, place].real, coefficients[:, place].imag
            # twice as many: as they are, and mirrored
            both = torch.cat([torch.cat([real, imaginary], 1), torch.cat([real, -imaginary], 1)])
            self.tables.append(both)
            pair = 1.0 if order == 0 else 2.0
            norms += pair * sum(((part @ square) * part).sum(-1) for part in (real, imaginary))
        self.norms = norms.repeat(1, 2)
        phase = torch.arange(grid.angles)[:, None] * torch.arange(len(self.places))
        phase = phase * (2 * math.pi / grid.angles)
        pairs = torch.where(torch.arange(len(self.places)) > 0, 2.0, 1.0)
        #: (angles, 2 orders): real parts, then imaginary ones
        self.waves = torch.cat([pairs * phase.cos(), -pairs * phase.sin()], 1)
        self.turns = torch.cat([phase.cos(), phase.sin()], 1).T.contiguous()

    def posterior(
        self, b: Tensor, group: Tensor, sharpness: float = 1.0, candidates: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weights `(angles, n, m)` of poses, the contrast with each, and log evidence `(n,)`.

        m are all templates, those as they are first, or of each image the `candidates` `(n, m)`.
        """
        n = len(b)
        m = len(self.tables[0]) if candidates is None else candidates.shape[1]
        spectrum = torch.empty(2, len(self.places), n, m)
        for order, (place, table) in enumerate(zip(self.places, self.tables, strict=True)):
            real, imaginary = b[:, place].real, b[:, place].imag
            if candidates is None:
                torch.mm(torch.cat([real, imaginary], 1), table.T, out=spectrum[0, order])
                torch.mm(torch.cat([-imaginary, real], 1), table.T, out=spectrum[1, order])
            else:
                columns = torch.stack([torch.cat([real, imaginary], 1), torch.cat([-imaginary, real], 1)], 2)
                products = torch.bmm(table[candidates], columns)
                spectrum[0, order], spectrum[1, order] = products[..., 0], products[..., 1]
        likeness = (self.waves @ spectrum.flatten(0, 1).flatten(1)).view(-1, n, m)
        norms = self.norms[group] if candidates is None else self.norms[group[:, None], candidates]
        # a Gaussian contrast about 1 is integrated over
        certainty = _CONTRAST**-2
        likeness.add_(certainty)
        contrast = likeness / (norms + certainty)
        constant = 0.5 * torch.log1p(norms / certainty) + 0.5 * certainty
        log_weight = likeness.mul_(contrast).mul_(0.5).sub_(constant).mul_(sharpness)
        largest = log_weight.amax((0, 2), keepdim=True)
        weight = log_weight.sub_(largest).exp_()
        total = weight.sum((0, 2), keepdim=True)
        evidence = (largest + total.log()).flatten() / sharpness
        return weight.div_(total), contrast, evidence

    def turned(self, weight: Tensor) -> Tensor:
        """`(2, orders, n, m)` sums of weights times `exp(i k angle)`."""
        flat = self.turns @ weight.flatten(1)
        return flat.view(2, len(self.places), *weight.shape[1:])

    def means(
        self, weights: Sequence[Tensor], contrast: Tensor, candidates: Tensor | None = None
    ) -> list[Tensor]:
        """`(n, functions)` means of the templates over the poses, for each of some weights of these."""
        turned = torch.cat([self.turned(weight * contrast) for weight in weights])
        many, n = len(turned), contrast.shape[1]
        means = torch.zeros(len(weights), n, self.n_functions, dtype=torch.complex64)
        for order, (place, table) in enumerate(zip(self.places, self.tables, strict=True)):
            if candidates is None:
                sums = (turned[:, order].flatten(0, 1) @ table).view(many, n, -1)
            else:
                sums = torch.bmm(turned[:, order].transpose(0, 1), table[candidates]).transpose(0, 1)
            along, across = sums[::2], sums[1::2]
            q = len(place)
            real = along[..., :q] - across[..., q:]
            means[:, :, place] = torch.complex(real, along[..., q:] + across[..., :q])
        return list(means)


def backprojected(
    templates: Templates,
    b: Tensor,
    group: Tensor,
    weight: Tensor,
    contrast: Tensor,
    sums: Tensor,
    counts: Tensor,
    candidates: Tensor | None = None,
) -> None:
    """Add images, turned back by their poses, to `(directions, functions)` and `(g, directions)`."""
    directions = templates.grid.directions
    number = (weight * contrast.square()).sum(0)
    turned = templates.turned(weight * contrast)
    if candidates is None:
        of_groups = torch.zeros(len(counts), number.shape[1]).index_add_(0, group, number)
    else:
        of_groups = torch.zeros(len(counts), 2 * directions)
        of_groups.index_put_((group[:, None].expand_as(candidates), candidates), number, accumulate=True)
    counts += of_groups[:, :directions] + of_groups[:, directions:]
    for order, place in enumerate(templates.places):
        cosine, sine = turned[:, order]
        # the sum of the weights times exp(-i k angle)
        back = torch.complex(cosine, -sine)
        if candidates is None:
            total = back.T @ b[:, place]
        else:
            each = (back[..., None] * b[:, None, place]).flatten(0, 1)
            total = torch.zeros(2 * directions, len(place), dtype=b.dtype)
            total.index_add_(0, candidates.flatten(), each)
        sums[:, place] += total[:directions] + total[directions:].conj()


class Reconstruction:
    """Volumes from back-projections in the steerable basis."""

    def __init__(self, basis: FourierBesselBasis, squared_transfer: Tensor, prior: Tensor) -> None:
        """`squared_transfer` `(g, rings)` and `prior` `(rings,)`: signal power over that of the noise."""
        self.basis, self.transfer = basis, squared_transfer
        box = self.box = basis.box_px
        big = self.big = _PAD * box
        axis, half = torch.fft.fftfreq(big, 1 / big), torch.arange(big // 2 + 1.0)
        self.radius = torch.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half**2) / _PAD
        self.signal = _at(prior, self.radius)
        centred = torch.arange(box) - box / 2
        sinc = torch.sinc(centred / big)
        self.correction = 1 / (sinc[:, None, None] * sinc[:, None] * sinc)
        distance = torch.sqrt(centred[:, None, None] ** 2 + centred[:, None] ** 2 + centred**2)
        self.ball = 0.5 + 0.5 * torch.cos(math.pi * ((distance - basis.radius_px) / 4 + 0.5).clamp(0, 1))

    def __call__(self, sums: Tensor, counts: Tensor, grid: Grid) -> Tensor:
        box, big = self.box, self.big
        y, x = torch.meshgrid(torch.fft.fftfreq(big, 1 / big), torch.arange(big // 2 + 1.0), indexing="ij")
        edge = grid.band_limit * big
        inside = (x.square() + y.square() <= edge**2) & ((x > 0) | (y >= 0))
        x, y = x[inside], y[inside]
        ring = torch.hypot(x, y) / _PAD
        plane = torch.stack([x, y, torch.zeros_like(x)])
        total = torch.zeros(big * big * (big // 2 + 1), 3)
        margin = (big - box) // 2
        weights = counts.T @ self.transfer
        for some in torch.split(torch.arange(grid.directions), 64):
            images = torch.nn.functional.pad(self.basis.synthesise(sums[some]), [margin] * 4)
            transform = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))[:, inside]
            seen = _at(weights[some].T, ring).T
            where = torch.round(grid.rotations[some] @ plane)
            flip = where[:, 0] < 0
            sign = torch.where(flip, -1.0, 1.0)
            px, py, pz = (where * sign[:, None]).long().unbind(1)
            index = ((pz % big) * big + py % big) * (big // 2 + 1) + px
            values = torch.stack([transform.real, transform.imag * sign, seen], -1)
            total.index_add_(0, index.flatten(), values.flatten(0, 1))
        total = total.view(big, big, big // 2 + 1, 3)
        # the plane x = 0 holds each pair of conjugates in one of its places
        face = total[:, :, 0]
        mirrored = torch.roll(face.flip(0, 1), (1, 1), (0, 1))
        face += mirrored * torch.tensor([1.0, -1.0, 1.0])
        transform = torch.complex(total[..., 0], total[..., 1])
        transform = transform / (total[..., 2] + 1 / self.signal.clamp_min(1e-9))
        transform = transform * (self.radius <= grid.band_limit * box)
        volume = torch.fft.fftshift(torch.fft.irfftn(transform, s=(big, big, big)))
        inner = slice(margin, margin + box)
        volume = volume[inner, inner, inner] * self.correction * self.ball
        rebuilt: Tensor = volume * support(volume)
        return rebuilt


def _at(profile: Tensor, radius: Tensor) -> Tensor:
    """`(rings, ...)` values at fractional rings."""
    low = radius.floor().long().clamp_max(len(profile) - 2)
    share = (radius - low).clamp(0, 1)
    while share.ndim < profile.ndim + radius.ndim - 1:
        share = share[..., None]
    result: Tensor = profile[low] * (1 - share) + profile[low + 1] * share
    return result


def support(volume: Tensor) -> Tensor:
    """Where the particle is, 0 to 1: a tenth of the brightest of a smooth map, grown by some pixels."""
    smooth = _smooth(volume, 2.5)
    level = 0.1 * float(smooth.flatten().topk(200).values[-1])
    return ((_smooth((smooth > level).float(), 3.0) - 0.02) / 0.3).clamp(0, 1)


def _smooth(volume: Tensor, sigma: float) -> Tensor:
    side = volume.shape[-1]
    axis, half = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
    squared = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + half**2
    smooth: Tensor = torch.fft.irfftn(
        torch.fft.rfftn(volume) * torch.exp(-2 * (math.pi * sigma) ** 2 * squared), s=volume.shape
    )
    return smooth


@dataclass(frozen=True, eq=False)
class Stage:
    """What particles are turned into before they are compared with a map.

    Attributes
    ----------
    basis
        Of the images' coefficients.
    operators
        `(g, q, q)` of the CTF groups, the noise made white, of each angular frequency.
    mask
        `(y, x)` 1 inside the particle's circle.
    """

    basis: FourierBesselBasis
    operators: list[Tensor]
    mask: Tensor

    def through(self, white: Tensor, group: Tensor) -> Tensor:
        """`(n, functions)` b of transforms of images (`rfft2`) in white noise of variance 1."""
        box = self.basis.box_px
        coefficients = self.basis.analyse(torch.fft.irfft2(white, s=(box, box)) * self.mask)
        return times(self.operators, self.places, coefficients, group)

    def places_px(
        self, white: Tensor, transfer: Tensor, particles: Tensor, spread_px: float
    ) -> tuple[Tensor, Tensor]:
        """`expected_places` of images that show `(n, functions)` particles through their CTFs `transfer`."""
        seen = torch.fft.rfft2(self.basis.synthesise(particles)) * transfer
        box = self.basis.box_px
        seen = torch.fft.rfft2(torch.fft.irfft2(seen, s=(box, box)) * self.mask)
        return expected_places(white * seen.conj(), spread_px)

    @cached_property
    def places(self) -> list[Tensor]:
        return angular_places(self.basis)

    @cached_property
    def squared(self) -> list[Tensor]:
        return [operator @ operator for operator in self.operators]


@dataclass(frozen=True, eq=False, kw_only=True)
class StackMap(Prediction):
    """A map that predicts images: what its projections in likely poses have in common, sharply and less so.

    Attributes
    ----------
    volume
        `(d, d, d)` without CTF, in units of the noise.
    spread_px
        Standard deviation of the particles' places along each axis.
    mean
        `(functions,)` the mean image, to which coefficients are relative.
    """

    network = "map_views"

    volume: Tensor
    spread_px: float
    mean: Tensor

    def _means_of_block(self, b: Tensor, wiener: Tensor, group: Tensor) -> list[Tensor]:
        b = self._with_mean(b, group)
        candidates = self._search.candidates(b, group)
        fine = self._search.fine
        weight, contrast, _ = fine.posterior(b, group, candidates=candidates)
        less = weight.pow(_LESS_SHARP)
        less = less / less.sum((0, 2), keepdim=True)
        return [mean - self.mean for mean in fine.means([weight, less], contrast, candidates)]

    def places_px(self, white: Tensor, transfer: Tensor, group: Tensor, stage: Stage) -> Tensor:
        """`(n, 2)` (y, x) of particles from the middle, pixels: see `Stage`."""
        places = torch.zeros(len(white), 2)
        for fine in (False, True):
            here = white * shift_phases(-places, (stage.basis.box_px,) * 2)
            b = stage.through(here, group)
            templates = self._search.fine if fine else self._search.coarse
            candidates = self._search.candidates(b, group) if fine else None
            weight, contrast, _ = templates.posterior(b, group, candidates=candidates)
            (particles,) = templates.means([weight], contrast, candidates)
            places, _ = stage.places_px(white, transfer, particles, self.spread_px)
        return places

    def _with_mean(self, b: Tensor, group: Tensor) -> Tensor:
        """Of images whose mean image was subtracted."""
        seen = torch.zeros(len(self.squared[0]), len(self.basis), dtype=b.dtype)
        place = self.places[0]
        seen[:, place] = (self.squared[0] @ self.mean[place].real).to(b.dtype)
        return b + seen[group]

    @cached_property
    def _search(self) -> Search:
        return Search(self.volume, self.basis, self.squared)


class Search:
    """Poses on a coarse grid, and about the best of these on a fine one."""

    def __init__(self, volume: Tensor, basis: FourierBesselBasis, squared: Sequence[Tensor]) -> None:
        self.coarse = Templates(volume, COARSE, basis, squared)
        self.fine = Templates(volume, FINE, basis, squared)

    def candidates(self, b: Tensor, group: Tensor) -> Tensor:
        """`(n, m)` templates of the fine grid about the best of the coarse one."""
        weight, _, _ = self.coarse.posterior(b, group, _OF_CANDIDATES)
        best = weight.amax(0).topk(_KEPT, 1).indices
        mirrored = best >= COARSE.directions
        near = _nearest_directions(COARSE, FINE, _CHILDREN)[best % COARSE.directions]
        return (near + mirrored[..., None] * FINE.directions).flatten(1)


@lru_cache(maxsize=1)
def _nearest_directions(coarse: Grid, fine: Grid, number: int) -> Tensor:
    """`(directions, number)` of the fine grid, nearest to each of the coarse one."""
    nearest: Tensor = (coarse.rotations[..., 2] @ fine.rotations[..., 2].T).topk(number, 1).indices
    return nearest


def unasked() -> None:
    """Nobody wants to stop the search for a map."""


def find_map(
    white: Tensor,
    transfer: Tensor,
    group: Tensor,
    stage: Stage,
    covariance: ImageCovariance,
    stop_if_asked: Callable[[], None],
) -> tuple[Tensor, float]:
    """A map of the particles, and how far they lie beside the middle, pixels.

    Parameters
    ----------
    white, transfer, group
        Of n images on the working grid: transforms (`rfft2`) in white noise of variance 1, CTFs (or one)
        with whatever made the noise white, and CTF groups.
    covariance
        Of the images without CTF.
    stop_if_asked
        Called now and then; may raise to stop.
    """
    shape = (stage.basis.box_px,) * 2
    powers = group_power(transfer, group, len(stage.operators[0]))
    of_groups = torch.stack([ring_mean(power, shape) for power in powers])
    reconstruct = Reconstruction(stage.basis, of_groups, _PRIOR * spectrum(covariance))
    few = torch.arange(0, len(white), max(1, round(len(white) / _FEW)))
    sample = _Sample(white[few], of_some(transfer, few), group[few], stage, stop_if_asked)
    best: tuple[float, Tensor, float] | None = None
    for seed, (spread, align_from) in enumerate(_STARTS):
        sample.begin(spread)
        volume = reconstruct(*sample.at_random(START, seed), START)
        volume, _ = sample.refine(volume, START, reconstruct, _ANNEALING, align_from)
        volume, evidence = sample.refine(volume, COARSE, reconstruct, (1.0,) * _SHORT, 0.0)
        if best is None or evidence > best[0]:
            best = evidence, volume, sample.spread_px
    assert best is not None
    _, volume, spread = best
    sample = _Sample(white, transfer, group, stage, stop_if_asked)
    sample.begin(spread)
    volume, _ = sample.refine(volume, COARSE, reconstruct, (1.0,) * _SHORT, 0.0)
    volume = sample.polish(volume, reconstruct)
    return volume, sample.spread_px


def group_power(transfer: Tensor, group: Tensor, number: int) -> Tensor:
    """`(g, y, x // 2 + 1)` mean squared CTF of each of so many groups, some of which may be empty."""
    if len(transfer) == 1:
        return transfer.square()
    total = torch.zeros(number, *transfer.shape[1:]).index_add_(0, group, transfer.square())
    return total / torch.bincount(group, minlength=number).clamp_min(1)[:, None, None]


def spectrum(covariance: ImageCovariance) -> Tensor:
    """`(rings,)` mean power of the images without CTF."""
    basis = covariance.basis
    images = [covariance.mean[None]]
    for place, vectors, values in zip(
        angular_places(basis), covariance.vectors, covariance.eigenvalues, strict=True
    ):
        along = torch.zeros(len(values), len(basis), dtype=torch.complex64)
        along[:, place] = (vectors * values.sqrt()).T.to(torch.complex64)
        images.append(along)
    transform = torch.fft.rfft2(basis.synthesise(torch.cat(images)), norm="ortho")
    return ring_mean(transform.abs().square().sum(0), (basis.box_px,) * 2)


def of_some(transfer: Tensor, rows: Tensor) -> Tensor:
    """CTFs of some images, or the one that all have."""
    return transfer if len(transfer) == 1 else transfer[rows]


class _Sample:
    """Images, where their particles lie, and steps of expectation maximisation."""

    def __init__(
        self, white: Tensor, transfer: Tensor, group: Tensor, stage: Stage, stop_if_asked: Callable[[], None]
    ) -> None:
        self.white, self.transfer, self.group, self.stage = white, transfer, group, stage
        self.stop_if_asked = stop_if_asked

    def begin(self, spread_px: float) -> None:
        self.spread_px = spread_px
        self._move(torch.zeros(len(self.white), 2))

    def _move(self, places: Tensor) -> None:
        shape = (self.stage.basis.box_px,) * 2
        blocks = [
            self.stage.through(self.white[rows] * shift_phases(-places[rows], shape), self.group[rows])
            for rows in torch.split(torch.arange(len(self.white)), 256)
        ]
        self.b = torch.cat(blocks)

    def at_random(self, grid: Grid, seed: int) -> tuple[Tensor, Tensor]:
        """Back-projections in poses drawn at random."""
        generator, n, basis = torch.Generator().manual_seed(seed), len(self.b), self.stage.basis
        direction = torch.randint(grid.directions, (n,), generator=generator)
        angle = 2 * math.pi * torch.rand(n, 1, generator=generator)
        turned = self.b * torch.polar(torch.ones(n, 1), -basis.angular * angle)
        sums = torch.zeros(grid.directions, len(basis), dtype=torch.complex64).index_add_(
            0, direction, turned
        )
        counts = torch.zeros(len(self.stage.operators[0]), grid.directions)
        return sums, counts.index_put_((self.group, direction), torch.ones(n), accumulate=True)

    def refine(
        self,
        volume: Tensor,
        grid: Grid,
        reconstruct: Reconstruction,
        sharpness: Sequence[float],
        align_from: float,
    ) -> tuple[Tensor, float]:
        """The map after a round for each sharpness of the posterior, and the mean log evidence."""
        evidence = 0.0
        for number, sharp in enumerate(sharpness):
            self.stop_if_asked()
            templates = Templates(volume, grid, self.stage.basis, self.stage.squared)
            if number % 3 == 1 and sharp >= align_from:
                self._align(templates, None, sharp)
            sums, counts, evidence = self._expected(templates, sharp)
            volume = reconstruct(sums, counts, grid)
        return volume, evidence

    def polish(self, volume: Tensor, reconstruct: Reconstruction) -> Tensor:
        """The map after rounds on the fine grid."""
        for number in range(_FINE_ROUNDS):
            self.stop_if_asked()
            search = Search(volume, self.stage.basis, self.stage.squared)
            candidates = torch.cat(
                [search.candidates(self.b[rows], self.group[rows]) for rows in self._blocks()]
            )
            if number % 2 == 1:
                self._align(search.fine, candidates, 1.0)
            sums, counts, _ = self._expected(search.fine, 1.0, candidates)
            volume = reconstruct(sums, counts, FINE)
        return volume

    def _blocks(self) -> Sequence[Tensor]:
        return list(torch.split(torch.arange(len(self.b)), _BLOCK))

    def _align(self, templates: Templates, candidates: Tensor | None, sharpness: float) -> None:
        places, squares = [], []
        for rows in self._blocks():
            some = None if candidates is None else candidates[rows]
            weight, contrast, _ = templates.posterior(self.b[rows], self.group[rows], sharpness, some)
            (particles,) = templates.means([weight], contrast, some)
            transfer = of_some(self.transfer, rows)
            place, square = self.stage.places_px(self.white[rows], transfer, particles, self.spread_px)
            places.append(place)
            squares.append(square)
        self.spread_px = max(_LEAST_PX, math.sqrt(float(torch.cat(squares).mean()) / 2))
        self._move(torch.cat(places))

    def _expected(
        self, templates: Templates, sharpness: float, candidates: Tensor | None = None
    ) -> tuple[Tensor, Tensor, float]:
        directions = templates.grid.directions
        sums = torch.zeros(directions, templates.n_functions, dtype=torch.complex64)
        counts = torch.zeros(len(self.stage.operators[0]), directions)
        evidence = 0.0
        for rows in self._blocks():
            some = None if candidates is None else candidates[rows]
            b, group = self.b[rows], self.group[rows]
            weight, contrast, found = templates.posterior(b, group, sharpness, some)
            backprojected(templates, b, group, weight, contrast, sums, counts, some)
            evidence += float(found.sum())
        return sums, counts, evidence / len(self.b)
