"""Poses of particle images by matching them with projections of a reference, from coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from bayes_bound import resampled
from torch import Tensor

from cryohush.core.imaging.ctf import CtfParameters, ctf
from cryohush.core.imaging.projection import Projector
from cryohush.core.imaging.rings import frequency_grid, hermitian_weight
from cryohush.core.metrics.pose_grid import PoseGrid

CANDIDATES = 8
"""Poses of each image whose neighbourhood the next finer search looks into."""
REFINEMENTS = 2


@dataclass(frozen=True)
class Poses:
    """Rotations `(n, 3, 3)`, shifts `(n, 2)` (y, x) in pixels, and scores `(n,)`.

    A score is the product of image and template over the template's norm. References can be compared by it on
    one image: half its square is the log likelihood ratio at the contrast that fits best.
    """

    rotations: Tensor
    shifts_px: Tensor
    score: Tensor


@dataclass(frozen=True)
class Optics:
    """CTF parameters of n images of one pixel size."""

    parameters: CtfParameters
    pixel_size_angstrom: float

    def __getitem__(self, index: Tensor) -> Optics:
        return Optics(self.parameters[index], self.pixel_size_angstrom)

    def __len__(self) -> int:
        return len(self.parameters)

    def transfer(self, box_px: int, reduction: float = 1.0) -> Tensor:
        """`(n, box, box // 2 + 1)` CTF of images whose pixels were made 1 / `reduction` as wide."""
        pixel_size = torch.full((len(self),), self.pixel_size_angstrom / reduction)
        return ctf(self.parameters, pixel_size, box_px)


def phases(shifts_px: Tensor, box_px: int) -> Tensor:
    """`(..., 2)` shifts (y, x) to the `(..., y, x // 2 + 1)` factors that move an image by them."""
    y, x = torch.fft.fftfreq(box_px)[:, None], torch.fft.rfftfreq(box_px)
    cycles = shifts_px[..., :1, None] * y + shifts_px[..., 1:, None] * x
    return torch.polar(torch.ones_like(cycles), -2 * torch.pi * cycles)


class Reference:
    """Finds the pose in which a map's projection, times the CTF, correlates best with an image.

    Parameters
    ----------
    volume
        `(d, d, d)`.
    search_box_px
        Images and map are reduced to this box, which cuts the reference off at its Nyquist frequency.
    order
        HEALPix order of the first search; `REFINEMENTS` finer ones follow about the best candidates.
    largest_shift_px
        Of the particles, in pixels of the whole box; also the step of the first search.
    """

    def __init__(self, volume: Tensor, search_box_px: int, order: int, largest_shift_px: float) -> None:
        self.box_px = search_box_px
        self.reduction = search_box_px / volume.shape[0]
        self._projector = Projector(resampled(volume, search_box_px))
        reach = largest_shift_px * self.reduction
        self._grid = PoseGrid.with_shifts(order, reach, reach)
        orientations = torch.split(torch.arange(self._grid.n_orientations), 2048)
        self._templates = [self._slices(self._grid, index) for index in orientations]

    def poses(self, images: Tensor, optics: Optics, noise_power: Tensor) -> Poses:
        """The best poses of `(n, d, d)` images.

        Parameters
        ----------
        images, optics
            n images of the volume's box.
        noise_power
            `(search_box, search_box // 2 + 1)`: correlations are in units of the noise, which is best for
            white and coloured noise alike; ones for images without noise.
        """
        shape = (self.box_px, self.box_px)
        weight = hermitian_weight(shape) * (frequency_grid(shape) < 0.5 - 0.5 / self.box_px) / noise_power
        rows = torch.fft.fftfreq(self.box_px, 1 / self.box_px).long()
        parts = []
        for index in torch.split(torch.arange(len(images)), 100):
            transfer = optics[index].transfer(self.box_px, self.reduction)
            spectrum = torch.fft.rfft2(images[index])[:, rows, : self.box_px // 2 + 1]
            parts.append(self._best(spectrum * transfer * weight, (transfer.square() * weight).flatten(1)))
        return Poses(
            torch.cat([part.rotations for part in parts]),
            torch.cat([part.shifts_px for part in parts]) / self.reduction,
            torch.cat([part.score for part in parts]),
        )

    def _best(self, data: Tensor, fit: Tensor) -> Poses:
        """`(n, y, x)` transforms times CTF and weight, and `(n, y x)` CTF² times weight, to poses."""
        grid = self._grid
        orientation, shift = self._everywhere(data, fit)
        for _ in range(REFINEMENTS):
            score, orientation, shift = self._parts(data, fit, grid, orientation, shift)
            grid = grid.refined()
        return Poses(grid.rotations(orientation[:, 0]), grid.shifts_px[shift[:, 0]], score[:, 0])

    def _everywhere(self, data: Tensor, fit: Tensor) -> tuple[Tensor, Tensor]:
        """`(n, k)` orientations, each with its best shift, of the first grid."""
        n, s = len(data), len(self._grid.shifts_px)
        moved = self._moved(data, self._grid.shifts_px.expand(n, s, 2)).flatten(0, 1)
        score = torch.full((n, CANDIDATES), -torch.inf)
        orientation, shift = (torch.zeros(n, CANDIDATES, dtype=torch.int64) for _ in range(2))
        first = 0
        for templates in self._templates:
            power = templates.unflatten(1, (-1, 2)).square().sum(-1)
            product = (moved @ templates.T).reshape(n, s, -1) / (fit @ power.T).sqrt()[:, None]
            product, here = product.max(1)
            index = torch.arange(first, first + len(templates)).expand(n, -1)
            score, order = torch.cat([score, product], 1).topk(CANDIDATES)
            orientation = torch.cat([orientation, index], 1).gather(1, order)
            shift = torch.cat([shift, here], 1).gather(1, order)
            first += len(templates)
        return orientation, shift

    def _parts(
        self, data: Tensor, fit: Tensor, grid: PoseGrid, orientation: Tensor, shift: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The best of the parts of `(n, k)` candidates, numbered on the refined grid."""
        n, k = orientation.shape
        fine = grid.refined()
        orientations = grid.orientation_parts(orientation.flatten())
        shifts = grid.shift_parts(shift.flatten())
        turns, moves = orientations.shape[1], shifts.shape[1]
        templates = self._slices(fine, orientations.flatten()).reshape(n, k * turns, -1)
        power = templates.unflatten(2, (-1, 2)).square().sum(-1)
        norm = (power @ fit[:, :, None]).sqrt().reshape(n * k, turns, 1)
        moved = self._moved(data, fine.shifts_px[shifts].reshape(n, k * moves, 2))
        product = templates.reshape(n * k, turns, -1) @ moved.reshape(n * k, moves, -1).mT / norm
        score, place = product.reshape(n, -1).topk(CANDIDATES)
        candidate, part = place // (turns * moves), place % (turns * moves)
        row = torch.arange(n)[:, None] * k + candidate
        return score, orientations[row, part // moves], shifts[row, part % moves]

    def _slices(self, grid: PoseGrid, index: Tensor) -> Tensor:
        """`(m, 2 pixels)` real and imaginary parts of templates."""
        return torch.view_as_real(self._projector.slices(grid.rotations(index))).flatten(1)

    @staticmethod
    def _moved(data: Tensor, shifts_px: Tensor) -> Tensor:
        """`(n, s, 2 pixels)` data as a centred template sees them when the particle is shifted."""
        moved = data[:, None] * phases(shifts_px, data.shape[-2]).conj()
        return torch.view_as_real(moved).flatten(2)
