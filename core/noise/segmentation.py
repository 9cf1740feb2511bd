"""Which pixels of a micrograph are background, contamination or particle: what surrounds the network.

A network sees a micrograph binned to about 8 Å per pixel, where a particle is some ten pixels wide and every
pixel averages so many counts that it can be told from the noise at a glance.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BACKGROUND, CONTAMINATION, PARTICLE = 0, 1, 2
UNKNOWN = 255
"""Of training labels: pixels that teach nothing."""
WORKING_PIXEL_SIZE_ANGSTROM = 8.0
SURELY_BACKGROUND = 0.9
"""Where background is more probable than that, the level of the noise is measured."""

# Standard deviation of a Gaussian by its median absolute deviation.
_STD_OF_MAD = 1.4826


def working_bin(pixel_size_angstrom: float) -> int:
    """How many pixels a side make one of about 8 Å; 1 for pixels that are as large already."""
    return max(1, round(WORKING_PIXEL_SIZE_ANGSTROM / pixel_size_angstrom))


def bin_micrograph(micrograph: Tensor, factor: int) -> Tensor:
    """`(y, x)` means over squares of `factor` pixels; those at the far edges may hold fewer."""
    binned: Tensor = functional.avg_pool2d(micrograph[None], factor, ceil_mode=True)[0]
    return binned


def normalise_robustly(binned: Tensor) -> Tensor:
    """`(y, x)` with median 0 and, judged by its median absolute deviation, standard deviation 1.

    A tenth of the pixels being far off, as contamination is, hardly changes either.

    Raises
    ------
    ValueError
        When more than half of the pixels have one value.
    """
    centred = binned - binned.median()
    spread = _STD_OF_MAD * centred.abs().median()
    if not spread > 0:
        raise ValueError("more than half of the pixels have one value")
    return centred / spread


def bin_labels(labels: Tensor, factor: int) -> Tensor:
    """`(y, x)` uint8 labels of squares of `factor` pixels: of the class that fills half of it, or background.

    Contamination goes before particle.
    """

    def at_least_half(label: int) -> Tensor:
        return bin_micrograph((labels == label).float(), factor) >= 0.5

    binned = at_least_half(PARTICLE).to(torch.uint8).mul_(PARTICLE)
    binned[at_least_half(CONTAMINATION)] = CONTAMINATION
    return binned


def expand_labels(labels: Tensor, factor: int, shape: tuple[int, int]) -> Tensor:
    """`(y, x)` labels of squares of `factor` pixels back to a micrograph of `shape`."""
    whole = labels.repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    return whole[: shape[0], : shape[1]]


def labels_of_logits(logits: Tensor, min_background: float = 0.5) -> Tensor:
    """`(y, x)` uint8 labels of `(3, y, x)` logits.

    A pixel is background if that has a probability of more than `min_background`; otherwise it is whichever
    of the two others is more probable.
    """
    probability = logits.softmax(0)
    labels = torch.where(probability[CONTAMINATION] > probability[PARTICLE], CONTAMINATION, PARTICLE)
    labels[probability[BACKGROUND] > min_background] = BACKGROUND
    return labels.to(torch.uint8)


def labels_of_picks(
    shape: tuple[int, int], centres_px: Tensor, radius_px: float, contamination: Tensor | None = None
) -> Tensor:
    """`(y, x)` uint8 labels of a micrograph whose particles were picked.

    Parameters
    ----------
    shape
        `(y, x)`.
    centres_px
        `(n, 2)` (y, x); each becomes a disc of particle.
    radius_px
        Of the discs.
    contamination
        `(y, x)` mask, which goes before particle.
    """
    labels = torch.zeros(shape, dtype=torch.uint8)
    reach = int(radius_px) + 1
    for y, x in centres_px.tolist():
        top, left = max(round(y) - reach, 0), max(round(x) - reach, 0)
        area = labels[top : max(round(y) + reach + 1, 0), left : max(round(x) + reach + 1, 0)]
        rows, columns = (torch.arange(side) for side in area.shape)  # none of a disc that lies outside
        disc = (rows[:, None] + top - y) ** 2 + (columns[None, :] + left - x) ** 2 <= radius_px**2
        area[disc] = PARTICLE
    if contamination is not None:
        labels[contamination] = CONTAMINATION
    return labels


def confusion(found: Tensor, truth: Tensor) -> Tensor:
    """`(3, 3)` pixels of each true class (rows) that were given each label (columns); unknown ones apart."""
    known = truth != UNKNOWN
    pairs = truth[known].long() * 3 + found[known].long()
    return torch.bincount(pairs, minlength=9).reshape(3, 3)


def class_overlap(counts: Tensor) -> dict[str, float]:
    """Intersection over union of each class of a `confusion`; NaN for a class that is nowhere."""
    both = counts.diagonal().double()
    either = counts.sum(0) + counts.sum(1) - both
    names = ("background", "contamination", "particle")
    return {name: float(value) for name, value in zip(names, both / either, strict=True)}
