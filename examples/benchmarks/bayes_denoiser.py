"""The Bayes limit: the best that any denoiser can do on images of a known map in unknown poses.

An image is `y = transfer * shift(projection of the map) + noise`, the noise Gaussian of known power, the pose
uniform on a grid. The posterior mean over the grid has the smallest mean squared error of all functions of
`y` [1]_. It is a bound only for particles whose poses are drawn from that grid; for others refine the grid
until the error no longer changes.

Everything happens in Fourier space, where the noise is white after division and a shift is a phase. For the
poses `m` with templates `T_m`, log weights are `<y, T_m> - |T_m|² / 2`, both in units of the noise: matrix
products of images and templates, taken chunk by chunk with a running maximum, so that neither all templates
nor all weights are ever held.

Notes
-----
Cost per image: 16 y (x/2 + 1) operations per orientation and shift, and the making of the templates, which
all images of a call share.

References
----------
.. [1] Xu, Balanov, Singer & Bendory (2024), arXiv:2412.03723: the Bayesian view of poses in cryo-EM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cryohush.core.imaging.projection import Projector
from cryohush.core.imaging.rings import frequency_grid, hermitian_weight
from cryohush.core.metrics.pose_grid import PoseGrid


@dataclass(frozen=True)
class Posterior:
    """What is known of n clean images once the noisy ones were seen.

    Attributes
    ----------
    mean
        `(n, y, x)` posterior mean: the denoised image of least expected squared error.
    most_probable
        `(n, y, x)` image of the one most probable pose: sharper, and further from the truth on average.
    log_evidence
        `(n,)` ln of the probability of the image with a particle over that of pure noise.
    effective_poses
        `(n,)` exp of the posterior's entropy: how many poses are still possible.
    expected_squared_error
        `(n,)` mean over pixels of the posterior variance: the error that the mean expects of itself.
    """

    mean: Tensor
    most_probable: Tensor
    log_evidence: Tensor
    effective_poses: Tensor
    expected_squared_error: Tensor


class BayesDenoiser:
    """The posterior mean of images of one map.

    Parameters
    ----------
    volume
        `(d, d, d)`, on the grey scale of the images: a projection is the sum of the voxels.
    grid
        The poses.
    noise_power
        Variance of the noise per pixel, or its power spectrum `(d, d // 2 + 1)` on the grid of
        `torch.fft.rfft2`, where white noise of variance v has v everywhere.
    refine_from_box_px
        None takes every pose of `grid`. Otherwise a coarse stage takes them on images reduced to this box,
        and a second one takes, at full size, the parts (`PoseGrid.refined`) of those that the coarse stage
        leaves possible: practical at 128 px. The result is then that of the refined grid.
    mass
        Share of the posterior that the coarse stage hands on, at least.
    slack
        What it hands on besides: all poses whose log weight lies within 10 plus this share of the range
        between a typical pose and the best, because a coarse template never fits quite.
    memory_bytes
        About how much memory templates and weights may take.
    """

    def __init__(
        self,
        volume: Tensor,
        grid: PoseGrid,
        noise_power: float | Tensor,
        *,
        refine_from_box_px: int | None = None,
        mass: float = 0.999,
        slack: float = 0.2,
        memory_bytes: int = 2**30,
    ) -> None:
        self.box_px = volume.shape[0]
        self.grid = grid
        self.memory_bytes = memory_bytes
        self.mass, self.slack = mass, slack
        shape = (self.box_px, self.box_px // 2 + 1)
        self.noise_power = torch.as_tensor(noise_power, dtype=torch.float32).expand(shape)
        if not bool((self.noise_power > 0).all()):
            raise ValueError("the power of the noise must be positive at every frequency")
        self._projector = Projector(volume)
        self._coarse: tuple[int, Projector] | None = None
        if refine_from_box_px is not None:
            if refine_from_box_px % 2 or not 4 <= refine_from_box_px <= self.box_px:
                raise ValueError(f"the coarse box must be even and at most {self.box_px} px")
            reduced = Projector(_reduce_volume(volume, refine_from_box_px))
            self._coarse = (refine_from_box_px, reduced)
        self._kept: list[Tensor] | None = None

    def __call__(self, images: Tensor, transfer: Tensor | None = None) -> Posterior:
        """Denoise `(n, y, x)` images.

        Parameters
        ----------
        images
            Noisy, of the box of the volume.
        transfer
            `(n, y, x // 2 + 1)` CTF of each image, with its envelope, on the grid of `torch.fft.rfft2`. The
            result carries it, too. None: no CTF.

        Raises
        ------
        ValueError
            When the images are not of the volume's box.
        """
        if images.ndim != 3 or images.shape[1:] != (self.box_px, self.box_px):
            raise ValueError(f"expected (n, {self.box_px}, {self.box_px}), found {tuple(images.shape)}")
        n_shifts = len(self.grid.shifts_px)
        per_image = 8 * n_shifts * self.noise_power.numel() * 3  # data, sums and what is added to them
        if self._coarse is not None:
            # four times the shifts at most, and the coarse weights
            per_image = 4 * per_image + 16 * len(self.grid)
        batch = max(1, self.memory_bytes // 4 // per_image)
        parts = []
        for first in range(0, len(images), batch):
            here = slice(first, first + batch)
            one = None if transfer is None else transfer[here]
            if self._coarse is None:
                parts.append(self._one_stage(images[here], one))
            else:
                parts.append(self._two_stages(self._coarse, images[here], one))
        return Posterior(
            *(torch.cat([getattr(part, name) for part in parts]) for name in Posterior.__dataclass_fields__)
        )

    def _one_stage(self, images: Tensor, transfer: Tensor | None) -> Posterior:
        observed = _Observed(images, transfer, self.noise_power)
        running = _Running(observed, self.grid.shifts_px)
        for templates in self._templates(running.rows):
            running.add(templates)
        return running.finish(self.grid.shifts_px, len(self.grid))

    def _templates(self, rows: int) -> Iterator[Tensor]:
        """All templates `(m, pixels)` complex, chunk by chunk; kept for the next call when they fit."""
        if self._kept is not None:
            yield from self._kept
            return
        pixels = self.noise_power.numel()
        chunk = max(16, self.memory_bytes // 4 // (4 * rows + 40 * pixels))
        kept: list[Tensor] | None = []
        if 8 * pixels * self.grid.n_orientations > self.memory_bytes:
            kept = None
        for index in torch.split(torch.arange(self.grid.n_orientations), min(chunk, 1024)):
            templates = _ortho_slices(self._projector, self.grid.rotations(index))
            if kept is not None:
                kept.append(templates)
            yield templates
        self._kept = kept

    def _two_stages(
        self, coarse: tuple[int, Projector], images: Tensor, transfer: Tensor | None
    ) -> Posterior:
        fine = self.grid.refined()
        candidates = self._coarse_candidates(coarse, images, transfer)
        wanted, members = torch.unique(torch.cat([poses for poses, _ in candidates]), return_inverse=True)
        split = torch.split(members, [len(poses) for poses, _ in candidates])
        per_image = [positions.sort().values for positions in split]
        running = []
        for i, (_, shifts) in enumerate(candidates):
            one = None if transfer is None else transfer[i : i + 1]
            observed = _Observed(images[i : i + 1], one, self.noise_power)
            running.append(_Running(observed, fine.shifts_px[shifts]))
        chunk = max(16, min(1024, self.memory_bytes // 4 // (64 * self.noise_power.numel())))
        for first in range(0, len(wanted), chunk):
            index = wanted[first : first + chunk]
            templates = _ortho_slices(self._projector, fine.rotations(index))
            bounds = torch.tensor([first, first + len(index)])
            for one_running, positions in zip(running, per_image, strict=True):
                low, high = torch.searchsorted(positions, bounds).tolist()
                if high > low:
                    one_running.add(templates[positions[low:high] - first])
        posteriors = [
            one.finish(fine.shifts_px[shifts], len(fine))
            for one, (_, shifts) in zip(running, candidates, strict=True)
        ]
        return Posterior(
            *(torch.cat([getattr(p, name) for p in posteriors]) for name in Posterior.__dataclass_fields__)
        )

    def _coarse_candidates(
        self, coarse: tuple[int, Projector], images: Tensor, transfer: Tensor | None
    ) -> list[tuple[Tensor, Tensor]]:
        """For each image the orientations and shifts of the fine grid that the coarse stage hands on."""
        box, projector = coarse
        cut = _central_block(self.box_px, box)
        noise_power = self.noise_power.flatten()[cut].reshape(box, -1).clone()
        if box < self.box_px:
            noise_power[frequency_grid((box, box)) * box > box // 2 - 0.5] = torch.inf
        # the same coefficients with norm="ortho" at either size
        reduced = torch.fft.rfft2(images, norm="ortho").flatten(1)[:, cut].reshape(len(images), box, -1)
        filtered = None if transfer is None else transfer.flatten(1)[:, cut].reshape(len(images), box, -1)
        observed = _Observed.from_transform(reduced, filtered, noise_power)
        data = observed.shifted(self.grid.shifts_px * (box / self.box_px))
        weights = torch.empty(len(images), len(self.grid.shifts_px), self.grid.n_orientations)
        for index in torch.split(torch.arange(self.grid.n_orientations), 1024):
            templates = _ortho_slices(projector, self.grid.rotations(index))
            weights[:, :, index[0] : index[-1] + 1] = observed.log_weights(data, templates)
        return [self._parts_of_possible(one) for one in weights]

    def _parts_of_possible(self, log_weights: Tensor) -> tuple[Tensor, Tensor]:
        """`(s, m)` coarse log weights of one image to the fine orientations and shifts to be tried."""
        flat = log_weights.flatten()
        best = flat.max()
        descending, order = flat.sort(descending=True)
        share = torch.softmax(descending.double(), 0).cumsum(0)
        by_mass = int((share < self.mass).sum()) + 1
        near = best - 10 - self.slack * (best - flat.mean())
        by_weight = int((descending >= near).sum())
        kept = order[: max(by_mass, by_weight)]
        shifts = torch.unique(kept // log_weights.shape[1])
        orientations = torch.unique(kept % log_weights.shape[1])
        return (
            self.grid.orientation_parts(orientations).flatten(),
            self.grid.shift_parts(shifts).flatten(),
        )


class _Observed:
    """Noisy images in units of the noise, as matrices over the Fourier coefficients.

    With `h` the number of times that a coefficient occurs in the full transform, `c` the CTF and `v` the
    power of the noise: `data = h c y / v`, `fit = h c² / v` and `energy = h c²`, the last two with one row
    for all images where there is no CTF.
    """

    def __init__(self, images: Tensor, transfer: Tensor | None, noise_power: Tensor) -> None:
        self._prepare(torch.fft.rfft2(images.float(), norm="ortho"), transfer, noise_power)

    @classmethod
    def from_transform(cls, transform: Tensor, transfer: Tensor | None, noise_power: Tensor) -> _Observed:
        self = cls.__new__(cls)
        self._prepare(transform, transfer, noise_power)
        return self

    def _prepare(self, transform: Tensor, transfer: Tensor | None, noise_power: Tensor) -> None:
        n, self.box_px = transform.shape[0], transform.shape[1]
        times = hermitian_weight((self.box_px, self.box_px))
        ctf = torch.ones(1, *transform.shape[1:]) if transfer is None else transfer.float()
        self.transfer = ctf
        self.data = (times * ctf / noise_power * transform).reshape(n, -1)
        self.fit = (times * ctf.square() / noise_power).flatten(1)
        self.energy = (times * ctf.square()).flatten(1)

    def shifted(self, shifts_px: Tensor) -> Tensor:
        """`(n * s, 2 pixels)` data as seen by a centred template when the particle is shifted."""
        data = self.data[:, None] * _phases(shifts_px, self.box_px).conj()
        return torch.view_as_real(data).flatten(-2).flatten(0, 1)

    def log_weights(self, data: Tensor, templates: Tensor) -> Tensor:
        """`(n, s, m)` of `shifted` data and `(m, pixels)` templates."""
        power = _power(templates)
        product = data @ torch.view_as_real(templates).flatten(1).T
        product = product.reshape(len(self.data), -1, len(templates))
        return product.sub_(0.5 * (self.fit @ power.T)[:, None])


class _Running:
    """Sums over the poses seen so far, relative to the largest weight so far, for n images and s shifts."""

    def __init__(self, observed: _Observed, shifts_px: Tensor) -> None:
        self._observed = observed
        self._data = observed.shifted(shifts_px)
        n = len(observed.data)
        self.rows = len(self._data)
        self._largest = torch.full((n,), -torch.inf)
        self._total = torch.zeros(n, dtype=torch.float64)
        self._log_sum = torch.zeros(n, dtype=torch.float64)  # sum of weight times (log weight - largest)
        self._energy = torch.zeros(n, dtype=torch.float64)
        self._sum = torch.zeros(n, len(shifts_px), self._data.shape[1])
        self._best = torch.zeros(n, observed.data.shape[1], dtype=torch.complex64)
        self._best_shift = torch.zeros(n, dtype=torch.int64)

    def add(self, templates: Tensor) -> None:
        """Take in `(m, pixels)` templates."""
        log_weights = self._observed.log_weights(self._data, templates)
        n, _, m = log_weights.shape
        largest, where = log_weights.flatten(1).max(1)
        better = largest > self._largest
        self._best[better] = templates[where[better] % m]
        self._best_shift[better] = where[better] // m
        new = torch.maximum(self._largest, largest)
        drop = (self._largest - new).double()
        factor = drop.exp()  # 0 for the first chunk
        log_weights -= new[:, None, None]
        weights = log_weights.exp()
        moved = torch.where(self._total > 0, drop * self._total, torch.zeros_like(drop))
        self._log_sum = factor * (self._log_sum + moved) + (weights * log_weights).sum((1, 2)).double()
        self._total = factor * self._total + weights.sum((1, 2)).double()
        # mean square of each template's image over its pixels
        energy = (self._observed.energy @ _power(templates).T) / self._observed.box_px**2
        self._energy = factor * self._energy + (weights.sum(1) * energy).sum(1).double()
        real = torch.view_as_real(templates).flatten(1)
        added = (weights.reshape(-1, m) @ real).reshape(n, -1, real.shape[1])
        self._sum.mul_(factor.float()[:, None, None]).add_(added)
        self._largest = new

    def finish(self, shifts_px: Tensor, n_poses: int) -> Posterior:
        box, n = self._observed.box_px, len(self._total)
        phases = _phases(shifts_px, box)
        total = self._total.float()
        sums = torch.view_as_complex(self._sum.reshape(n, len(shifts_px), -1, 2))
        mean = self._image((sums * phases).sum(1) / total[:, None])
        log_total = self._total.log() + self._largest.double()
        entropy = self._total.log() - self._log_sum / self._total
        spread = self._energy / self._total - mean.double().square().mean((1, 2))
        return Posterior(
            mean=mean,
            most_probable=self._image(self._best * phases[self._best_shift]),
            log_evidence=(log_total - math.log(n_poses)).float(),
            effective_poses=entropy.exp().float(),
            expected_squared_error=spread.clamp_min(0).float(),
        )

    def _image(self, transform: Tensor) -> Tensor:
        box = self._observed.box_px
        carried = transform.reshape(-1, box, box // 2 + 1) * self._observed.transfer
        image: Tensor = torch.fft.irfft2(carried, s=(box, box), norm="ortho")
        return image


def _ortho_slices(projector: Projector, rotations: Tensor) -> Tensor:
    """`(m, pixels)` transforms of projections with `norm="ortho"`."""
    return projector.slices(rotations).flatten(1) / projector.box_px


def _power(templates: Tensor) -> Tensor:
    return torch.view_as_real(templates).square().sum(-1)


def _phases(shifts_px: Tensor, box_px: int) -> Tensor:
    """`(s, pixels)` factors that shift an image by `(s, 2)` (y, x) pixels."""
    y, x = torch.fft.fftfreq(box_px)[:, None], torch.fft.rfftfreq(box_px)[None, :]
    cycles = shifts_px[:, :1, None] * y + shifts_px[:, 1:, None] * x
    phases: Tensor = torch.polar(torch.ones_like(cycles), -2 * torch.pi * cycles).flatten(1)
    return phases


def _central_block(box_px: int, smaller_px: int) -> Tensor:
    """Places, in a flattened `rfft2` of `box_px`, of the coefficients that `rfft2` of a smaller box has."""
    rows: Tensor = torch.fft.fftfreq(smaller_px, 1 / smaller_px).long() % box_px
    columns = torch.arange(smaller_px // 2 + 1)
    return (rows[:, None] * (box_px // 2 + 1) + columns).flatten()


def _reduce_volume(volume: Tensor, box_px: int) -> Tensor:
    """Cut the transform of a volume, so that `norm="ortho"` slices keep their values."""
    old = volume.shape[0]
    if old == box_px:
        return volume
    # centre at the origin, so that cutting does not shift
    transform = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(volume.float())))
    inside = slice(old // 2 - box_px // 2, old // 2 + box_px // 2)
    transform = torch.fft.ifftshift(transform[inside, inside, inside])
    reduced: Tensor = torch.fft.fftshift(torch.fft.ifftn(transform)).real
    # ortho slices divide the same coefficients by the box
    return reduced * (box_px / old)
