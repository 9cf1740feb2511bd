"""How much signal a denoised stack holds, judged on independent noisy images of the same particles.

Some frames of an exposure are denoised and compared with the others, which no filter has seen. The noise of
the two is independent, so it adds nothing to the expected correlation: whatever raises it is signal that the
filter kept, or noise that it removed. No clean truth is needed. A perfect denoiser reaches the square root of
the share of signal in the variance of the noisy twin, which is far below 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..imaging.resample import shift_images
from ..imaging.rings import frequency_grid, hermitian_weight
from .fourier import band_correlation, radial_power_spectrum
from .image import correlation, require_same_shape

# Periods, pixels, and shifts, pixels, among which the drift between two halves of an exposure is looked for.
_DRIFT_SHORTEST_PERIOD_PX = 12.0
_DRIFT_LARGEST_PX, _DRIFT_STEP_PX = 8.0, 0.25
# Rings, as shares of Nyquist, that show the noise alone.
_NOISE_ONLY = (0.6, 0.9)


def align_twin(
    raw: Tensor, twin: Tensor, groups: Sequence[str]
) -> tuple[Tensor, dict[str, tuple[float, float]]]:
    """Move the twin images `(n, y, x)` back by the drift between the two halves of each exposure.

    Frames that are not motion-corrected show the specimen at different places. Against a displaced twin
    every fine detail counts as an error, and the blurrier of two estimates wins. The drift of each micrograph
    (group) is where the cross-correlation of its raw images with the twins, summed over them, is highest: the
    denoised images have no part in it.

    Returns
    -------
    aligned
        `(n, y, x)`.
    drift
        `(y, x)` in pixels by which the twin of each group is displaced.
    """
    shape = (raw.shape[-2], raw.shape[-1])
    y, x = torch.fft.fftfreq(shape[0])[:, None], torch.fft.rfftfreq(shape[1])[None, :]
    # the two coarsest rings hold gradients of the ice, which correlate whatever the shift
    radius = frequency_grid(shape)
    band = (radius * min(shape) >= 2) & (radius <= 1 / _DRIFT_SHORTEST_PERIOD_PX)
    weight = band * hermitian_weight(shape)
    shifts = torch.arange(-_DRIFT_LARGEST_PX, _DRIFT_LARGEST_PX + 1e-6, _DRIFT_STEP_PX)
    along_y = torch.exp(2j * torch.pi * shifts[:, None] * y[:, 0])
    along_x = torch.exp(2j * torch.pi * shifts[:, None] * x[0])
    aligned, drift = torch.empty_like(twin), {}
    for name in dict.fromkeys(groups):
        members = torch.tensor([group == name for group in groups])
        transform = torch.fft.rfft2(twin[members])
        cross = (torch.fft.rfft2(raw[members]).conj() * transform).sum(0) * weight
        correlations = (along_y @ cross @ along_x.mT).real
        row, column = divmod(int(correlations.argmax()), len(shifts))
        drift[name] = (float(shifts[row]), float(shifts[column]))
        aligned[members] = shift_images(twin[members], -torch.stack([shifts[row], shifts[column]]))
    return aligned, drift


@dataclass(frozen=True)
class Score:
    """A mean over images and its standard error."""

    mean: float
    standard_error: float
    n_images: int


def independent_correlation(
    denoised: Tensor,
    twin: Tensor,
    *,
    pixel_size_angstrom: float | None = None,
    coarsest_angstrom: float | None = None,
) -> Tensor:
    """Pearson correlation of each denoised image with its noisy twin: `(n, y, x)` both, `(n,)` out.

    With `coarsest_angstrom` only finer frequencies count: gradients of ice thickness are common to both
    halves of an exposure and would pass for signal.

    Raises
    ------
    InputError
        When the stacks differ in shape.
    ValueError
        When a band is asked for without a pixel size.
    """
    require_same_shape(denoised, twin)
    if coarsest_angstrom is None:
        return correlation(denoised, twin)
    if pixel_size_angstrom is None:
        raise ValueError("a band in Å needs pixel_size_angstrom")
    return band_correlation(denoised, twin, pixel_size_angstrom, coarsest_angstrom=coarsest_angstrom)


def white_noise_power(images: Tensor) -> Tensor:
    """`(n,)` variance per pixel of the noise in `(n, y, x)` images, if it is white: no empty place is needed.

    It is the median power of the Fourier rings from 0.6 to 0.9 of Nyquist, where neither signal nor the
    roll-off of a detector or of an interpolation counts for much.
    """
    power = radial_power_spectrum(images)[:, 1:]
    rings = power.shape[1]
    return power[:, int(_NOISE_ONLY[0] * rings) : int(_NOISE_ONLY[1] * rings)].median(1).values


def bootstrap_score(values: Tensor, groups: Sequence[str] | None = None, *, n_resamples: int = 2000) -> Score:
    """Mean of `values` `(n,)` with the standard error that a bootstrap over groups finds.

    Images of one micrograph share its ice, defocus and overlapping neighbours, so whole micrographs are
    drawn: `groups` names the micrograph of each image. Without it every image is drawn for itself. To compare
    two filters, pass the difference of their values: what is common to both then cancels.

    Raises
    ------
    ValueError
        When there are fewer than two groups, or not one name per value.
    """
    if groups is None:
        group_index = torch.arange(len(values))
    else:
        if len(groups) != len(values):
            raise ValueError(
                f"expected one group name per image, found {len(groups)} for {len(values)} images"
            )
        order = {name: number for number, name in enumerate(dict.fromkeys(groups))}
        group_index = torch.tensor([order[name] for name in groups])
    n_groups = int(group_index.max()) + 1
    if n_groups < 2:
        raise ValueError("a standard error needs images from at least two micrographs")
    values = values.detach().cpu().double()
    sums = torch.zeros(n_groups, dtype=torch.float64).index_add_(0, group_index, values)
    counts = torch.bincount(group_index, minlength=n_groups).double()
    drawn = torch.randint(n_groups, (n_resamples, n_groups), generator=torch.Generator().manual_seed(0))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return Score(float(values.mean()), float(means.std()), len(values))
