"""Denoised images against clean or independent ones, chunk by chunk: memory does not grow with the stack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..classical.baselines import BASELINES
from ..config.evaluate import IMAGE_METRICS, EvaluateConfig
from ..errors import ConfigurationError, InputError
from ..imaging.filters import background_power
from ..imaging.normalise import background_mask, default_radius_px
from ..imaging.rings import hermitian_weight, ring_index
from ..io.same_rows import was_made_from
from ..job_context import QUIET, JobContext
from ..metrics import image as image_figures
from ..metrics.fourier import ring_frequencies, ring_products
from ..metrics.independent import Score, align_twin, bootstrap_score, independent_correlation
from ..progress import counted
from .image_rows import ImageRows, batches, bring_together

DENOISED, RAW = "denoised", "raw"
# A circle of fewer pixels is a slip of the unit.
_FEWEST_PX = 16
FINE = "correlation_fine"

# Pixels that are read at once; more when a baseline has to learn the noise from them, and fewer that SSIM,
# in double precision, sees at once.
READ_PX, BASELINE_PX, SCORED_PX = 2**22, 2**24, 2**21
# Standard errors come from so many independent parts of the data at most, drawn again so often.
MOST_GROUPS, RESAMPLES = 1000, 500


@dataclass(frozen=True)
class Sources:
    """The images that go together, opened and checked.

    Attributes
    ----------
    denoised, reference, twin, raw
        As in `EvaluateConfig`.
    micrographs
        Of each row; None when no table says it.
    groups
        `(n,)` the part of the data that each row belongs to when a standard error is found: its micrograph,
        or without micrographs the row itself, several to a part when there are more than `MOST_GROUPS`.
    notes
        How rows were paired, for the user.
    """

    denoised: ImageRows
    reference: ImageRows | None
    twin: ImageRows | None
    raw: ImageRows | None
    micrographs: list[str] | None
    groups: NDArray[np.int64]
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, config: EvaluateConfig) -> Sources:
        """Open the files of a configuration that has denoised images.

        Raises
        ------
        InputError
            If a file cannot be read, they do not go together, or a baseline needs another kind of box.
        """
        if config.denoised is None:
            raise ConfigurationError("there are no denoised images: give denoised.")
        denoised = ImageRows(config.denoised)
        reference = None if config.reference is None else ImageRows(config.reference)
        # of the gain of denoised images over denoised ones nobody asks
        twin, raw = (
            None if path is None else ImageRows(path, is_raw=True) for path in (config.twin, config.raw)
        )
        if denoised.path in [rows.path for rows in (reference, twin) if rows is not None]:
            raise InputError("compared with itself.", path=denoised.path, remedy="Give other images.")
        if reference is not None and (made := reference.table.examine().denoised):
            number, label = next(iter(made.items()))
            raise InputError(
                f"the images to compare with were denoised ({label}): they are no truth.",
                path=reference.table.stacks[number],
                remedy="Give clean images as reference; denoised ones are given as denoised.",
            )
        for rows in (reference, twin):
            if rows is not None and was_made_from(denoised.table, rows.table):
                raise InputError(
                    "these are the raw images: their noise is what was to be removed.",
                    path=rows.path,
                    remedy="Give them as raw, and clean images (reference) or other frames (twin) beside.",
                )
        given = {"reference": reference, "twin": twin, "raw": raw}
        names = [name for name, rows in given.items() if rows is not None]
        (denoised, *present), notes = bring_together(
            denoised, [rows for rows in given.values() if rows], by_order=config.pair_by_order
        )
        given |= dict(zip(names, present, strict=True))
        reference, twin, raw = given["reference"], given["twin"], given["raw"]
        first = np.zeros(1, np.int64)
        for other in (raw, reference):
            if twin is not None and other is not None and torch.equal(twin.read(first), other.read(first)):
                raise InputError(
                    f"the images are those of {other.path} themselves: their noise has to be independent.",
                    path=twin.path,
                    remedy="Give other images of the same particles, such as of other frames.",
                )
        micrographs = next(filter(None, (rows.micrographs() for rows in (denoised, *present))), None)
        if micrographs is None and config.align_twin:
            raise InputError(
                "aligning the twin needs the micrograph of each particle: no table has rlnMicrographName.",
                path=denoised.path,
            )
        if micrographs is None:
            groups = np.arange(len(denoised))
        else:
            groups = np.unique(np.asarray(micrographs), return_inverse=True)[1].reshape(-1)
        return cls(denoised, reference, twin, raw, micrographs, groups % MOST_GROUPS, tuple(notes))

    @property
    def pixel_size_angstrom(self) -> float | None:
        """Of the first table that knows it."""
        tables = (self.denoised, self.raw, self.reference, self.twin)
        return next((rows.pixel_size_angstrom for rows in tables if rows and rows.pixel_size_angstrom), None)


class RingSums:
    """Sums over images of ring means of `|a|²`, `|b|²` and `a b*`, for each group: `(groups, rings)`."""

    def __init__(self, n_groups: int, shape: tuple[int, int]) -> None:
        rings = min(shape) // 2 + 1
        self.shape = shape
        self.n = torch.zeros(n_groups, dtype=torch.float64)
        self.cross, self.power, self.power_of_target = torch.zeros(
            3, n_groups, rings, dtype=torch.float64
        ).unbind()

    def add(self, images: Tensor, target: Tensor, groups: Tensor) -> None:
        """Add `(k, y, x)` pairs that belong to `groups` `(k,)`."""
        self.n.index_add_(0, groups, torch.ones(len(groups), dtype=torch.float64))
        sums = (self.cross, self.power, self.power_of_target)
        for total, product in zip(sums, ring_products(images, target), strict=True):
            total.index_add_(0, groups, product.double())

    def estimate(self, figure: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return a function of the sums over all groups, and over groups that are drawn again.

        It gets numbers of images `(..., 1)` and sums `(..., rings)`. The second, `(resamples, ...)`, has the
        standard error as its standard deviation; the same groups are drawn each time, so that
        differences can be taken. NaN with fewer than two groups.
        """
        sums = (self.n[:, None], self.cross, self.power, self.power_of_target)
        value = figure(*(part.sum(0) for part in sums))
        n_groups = len(self.n)
        if n_groups < 2:
            return value, torch.full((RESAMPLES, *value.shape), torch.nan, dtype=value.dtype)
        drawn = torch.randint(n_groups, (RESAMPLES, n_groups), generator=torch.Generator().manual_seed(0))
        times = torch.zeros(RESAMPLES, n_groups, dtype=torch.float64)
        times.scatter_add_(1, drawn, torch.ones_like(times))
        return value, figure(*(times @ part for part in sums))

    def correlation(self) -> tuple[Tensor, Tensor]:
        """Pooled Fourier ring correlation and its standard error, `(rings,)` each."""
        curve, drawn = self.estimate(lambda n, cross, a, b: cross / (a * b).sqrt().clamp_min(1e-300))
        return curve, drawn.std(0)

    def unbiased_error(self, noise: Tensor, inside: Tensor, *, best_scale: bool) -> tuple[Tensor, Tensor]:
        """Mean squared error per pixel against the clean images that nobody has, as `estimate` returns it.

        The twin `clean + noise` lies `|denoised - clean|² + |noise|²` from the denoised image on average,
        because its noise is independent of all that went into that image; what is known of the noise is taken
        off. The difference between two denoisers does not depend on it.

        Parameters
        ----------
        noise
            `(rings,)` power of the target's noise.
        inside
            `(rings,)` bool.
        best_scale
            Whether the images are first multiplied by the one factor that brings them closest.
        """
        ring = ring_index(self.shape).flatten()
        weight = hermitian_weight(self.shape).expand(self.shape[0], -1).flatten().double()
        counts = torch.zeros(int(ring.max()) + 1, dtype=torch.float64).index_add_(0, ring, weight)
        weights = counts[: len(inside)] * inside / (self.shape[0] * self.shape[1])

        def figure(n: Tensor, cross: Tensor, a: Tensor, b: Tensor) -> Tensor:
            c, power, target = ((part * weights).sum(-1) for part in (cross, a, b))
            scale = c / power.clamp_min(1e-300) if best_scale else torch.ones_like(c)
            total = scale.square() * power - 2 * scale * c + target
            result: Tensor = total / n[..., 0] - (noise.double() * weights).sum()
            return result

        return self.estimate(figure)


@dataclass
class Comparison:
    """One kind of images (denoised, raw, a baseline's) against one target.

    Attributes
    ----------
    values
        Figures of each row by name, `(n,)`.
    rings
        What the pooled curves are made of.
    """

    rings: RingSums
    values: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass
class Result:
    """All comparisons: by kind of images, against the clean images and against the twins.

    Attributes
    ----------
    frequency
        `(rings,)`, 1/Å, or cycles per pixel where the pixel size is unknown.
    noise_power
        `(rings,)` of the twins, from their background; None for micrographs, which have none.
    drift_px
        (y, x) by which each micrograph's twin was displaced, when that was taken back.
    constant
        How many images of each kind have one grey value all over, for the kinds that have any.
    same
        How many images of a first kind are those of a second one themselves, for the kinds that have any.
    """

    frequency: Tensor
    reference: dict[str, Comparison]
    twin: dict[str, Comparison]
    noise_power: Tensor | None = None
    drift_px: dict[str, tuple[float, float]] = field(default_factory=dict)
    constant: Counter[str] = field(default_factory=Counter)
    same: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def remarks(self) -> list[str]:
        """What is to be said of images that correlate with nothing, or are the same, for each kind."""
        constant = [
            f"{counted(n, f'{name} image')} without any contrast: a correlation of 0 is counted. See whether "
            "this is the right file."
            for name, n in self.constant.items()
        ]
        return constant + [
            f"{counted(n, f'{name} image')}, pixel by pixel the same as the {other}: a comparison of these "
            "says nothing. See whether this is the right file."
            for (name, other), n in self.same.items()
        ]


def compare(sources: Sources, config: EvaluateConfig, context: JobContext = QUIET) -> Result:
    """Compare all rows with what there is to compare them with.

    Raises
    ------
    InputError
        If an image cannot be read or is not finite.
    ConfigurationError
        If a baseline cannot run, or the circle does not fit into the box.
    Aborted
        If `context` said so.
    """
    denoised, shape = sources.denoised, sources.denoised.shape
    n, n_groups = len(denoised), int(sources.groups.max()) + 1
    names = [DENOISED, *([RAW] if sources.raw else []), *config.baselines]
    result = Result(
        frequency=ring_frequencies(shape, sources.pixel_size_angstrom or 1.0),
        reference={name: Comparison(RingSums(n_groups, shape)) for name in names if sources.reference},
        twin={name: Comparison(RingSums(n_groups, shape)) for name in names if sources.twin},
    )
    if not (sources.reference or sources.twin):
        return result
    mask = _circle(sources, config)
    _refuse_no_band(sources, config)
    noise: Tensor = torch.zeros(1)
    done = 0

    def check() -> None:
        context.stop_if_asked("Stopped. Nothing was written.")

    context.progress(0, n)
    pixels = BASELINE_PX if config.baselines else READ_PX
    for rows in batches(n, shape, sources.micrographs if config.align_twin else None, pixels):
        check()
        images = {DENOISED: denoised.read(rows)}
        if sources.raw:
            images[RAW] = sources.raw.read(rows)
        for name, read in images.items():
            result.constant += _constant(name, read)
        if sources.raw:
            result.same += _same(RAW, images[RAW], {DENOISED: images[DENOISED]})
        given = dict(images)
        for name in config.baselines:
            images[name] = BASELINES[name].denoise(images[RAW], BASELINES[name].default)
            check()
        if sources.reference:
            clean = sources.reference.read(rows)
            result.constant += _constant("clean", clean)
            result.same += _same("clean", clean, given)
            for name, comparison in result.reference.items():
                _against_clean(comparison, images[name], clean, rows, sources, config, mask)
                check()
        if sources.twin:
            twin = sources.twin.read(rows)
            result.constant += _constant("twin", twin)
            result.same += _same("twin", twin, given)
            if config.align_twin and sources.micrographs:
                twin, drift = align_twin(images[RAW], twin, [sources.micrographs[row] for row in rows])
                result.drift_px.update(drift)
            for name, comparison in result.twin.items():
                _against_twin(comparison, images[name], twin, rows, sources, config)
            if denoised.kind == "particles":
                noise = noise + background_power(twin, default_radius_px(shape)) * (len(rows) / n)
        done += len(rows)
        context.progress(done, n)
    if sources.twin and denoised.kind == "particles":
        result.noise_power = noise[: len(result.frequency)]
    return result


def _constant(name: str, images: Tensor) -> Counter[str]:
    """How many of `(k, y, x)` images have one grey value all over, by the name of their kind."""
    flat = images.flatten(1)
    n = int((flat.amax(1) == flat.amin(1)).sum())
    return Counter({name: n} if n else {})


def _same(name: str, images: Tensor, others: Mapping[str, Tensor]) -> Counter[tuple[str, str]]:
    """How many of `(k, y, x)` images are those of another kind, by the names of both."""
    found = {(name, other): int((images == those).flatten(1).all(1).sum()) for other, those in others.items()}
    return Counter({names: n for names, n in found.items() if n})


def _refuse_no_band(sources: Sources, config: EvaluateConfig) -> None:
    """Raise when no detail is finer than the coarsest that the second correlation leaves out."""
    finest = 2 * (sources.pixel_size_angstrom or 0.0)
    if sources.twin and config.coarsest_angstrom <= finest:
        raise ConfigurationError(
            f"nothing in the images is finer than {config.coarsest_angstrom:g} Å, the coarsest detail that "
            f"was to count against the twin: two pixels are {finest:g} Å. Give a coarser limit."
        )


def _circle(sources: Sources, config: EvaluateConfig) -> Tensor | None:
    """`(y, x)` True within the particle's circle; None when all pixels count."""
    if config.particle_diameter_angstrom is None:
        return None
    if sources.pixel_size_angstrom is None:
        raise ConfigurationError("a particle diameter in Å needs a pixel size, and no table says it.")
    radius = config.particle_diameter_angstrom / sources.pixel_size_angstrom / 2
    try:
        inside = ~background_mask(sources.denoised.shape, radius)
    except ValueError as error:
        raise ConfigurationError(f"the particle diameter: {error}.") from error
    if int(inside.sum()) < _FEWEST_PX:
        raise ConfigurationError(
            f"the particle diameter: a circle of radius {radius:g} px holds {int(inside.sum())} pixels, too "
            "few to compare."
        )
    return inside


def _against_clean(
    comparison: Comparison,
    images: Tensor,
    clean: Tensor,
    rows: NDArray[np.int64],
    sources: Sources,
    config: EvaluateConfig,
    mask: Tensor | None,
) -> None:
    """Add `(k, y, x)` images, which are `rows` of the tables, and their clean ones to a comparison."""
    comparison.rings.add(images, clean, torch.from_numpy(sources.groups[rows]))
    parts = zip(_split(images), _split(clean), strict=True)
    found = [_image_figures(part, truth, config, mask) for part, truth in parts]
    for metric in found[0]:
        values = torch.cat([part[metric] for part in found])
        _put(comparison, metric, rows, values, len(sources.denoised))


def _image_figures(
    images: Tensor, clean: Tensor, config: EvaluateConfig, mask: Tensor | None
) -> dict[str, Tensor]:
    names = config.metrics or IMAGE_METRICS
    span: Tensor | float
    if config.data_range == "unit":
        images, clean = image_figures.to_unit_range(images), image_figures.to_unit_range(clean)
        span = 1.0
    elif config.data_range == "reference":
        span = image_figures.grey_value_span(clean)
    else:
        span = config.data_range
    return image_figures.image_metrics(images, clean, names, data_range=span, mask=mask)


def _against_twin(
    comparison: Comparison,
    images: Tensor,
    twin: Tensor,
    rows: NDArray[np.int64],
    sources: Sources,
    config: EvaluateConfig,
) -> None:
    """Add `(k, y, x)` images, which are `rows` of the tables, and their twins to a comparison."""
    n, pixel_size = len(sources.denoised), sources.pixel_size_angstrom
    comparison.rings.add(images, twin, torch.from_numpy(sources.groups[rows]))
    _put(comparison, "correlation", rows, independent_correlation(images, twin), n)
    if pixel_size is not None:
        coarsest = config.coarsest_angstrom
        fine = independent_correlation(
            images, twin, pixel_size_angstrom=pixel_size, coarsest_angstrom=coarsest
        )
        _put(comparison, FINE, rows, fine, n)


def _put(comparison: Comparison, metric: str, rows: NDArray[np.int64], values: Tensor, n: int) -> None:
    comparison.values.setdefault(metric, np.full(n, np.nan))[rows] = values.numpy()


def _split(images: Tensor) -> Sequence[Tensor]:
    most = max(1, SCORED_PX // (images.shape[-2] * images.shape[-1]))
    return [images[begin : begin + most] for begin in range(0, len(images), most)]


def score(values: NDArray[np.float64], groups: NDArray[np.int64]) -> Score:
    """Mean of the finite values with the standard error over groups; NaN where it cannot be known."""
    finite = np.isfinite(values)
    kept, of_groups = torch.from_numpy(values[finite]), groups[finite]
    if len(np.unique(of_groups)) < 2:
        mean = float(kept.mean()) if len(kept) else float("nan")
        return Score(mean, float("nan"), len(kept))
    return bootstrap_score(kept, [str(group) for group in of_groups.tolist()], n_resamples=RESAMPLES)
