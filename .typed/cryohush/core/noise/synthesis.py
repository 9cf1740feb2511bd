"""How close drawn noise is to real noise, and the simplest model of it: a mapped Gaussian field.

References
----------
.. [1] Lopez-Paz & Oquab (2017) ICLR, arXiv:1610.06545: two-sample tests by a classifier.
.. [2] Villani (2009) Optimal Transport, remark 2.19: on a line the optimal transport sorts both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ..errors import MrcError
from ..imaging.noise import measure_spectrum, random_patch
from ..io.mrc import StackReader
from ..models.synthesis import NOISE_MODELS, GaussianField, NoiseModel, standardised
from ..models.weights import load_model

# Corrections of the field's spectrum for what the pointwise map does to it, and pieces drawn for each.
_CORRECTIONS, _CORRECTION_PIECES = 4, 256
_CLASSIFIER_STEPS, _CLASSIFIER_BATCH = 200, 32


def read_blocks(path: Path, side_px: int) -> Tensor:
    """`(n, y, x)` blocks of real noise from an MRC stack.

    Raises
    ------
    MrcError
        The blocks are smaller than the side.
    """
    with StackReader(path) as reader:
        n, height, width = reader.shape
        if min(height, width) < side_px:
            raise MrcError(
                f"expected blocks of noise of at least {side_px} px a side, found {width} x {height}.",
                path=path,
                remedy="Extract larger ones, or train with a smaller box.",
            )
        return torch.from_numpy(reader.read(range(n)))


def pieces_of(blocks: Tensor, side_px: int, n: int, generator: torch.Generator) -> Tensor:
    """`(n, y, x)` random pieces of blocks, turned and mirrored, mean 0 and variance 1 each."""
    return torch.stack([random_patch(blocks, (side_px, side_px), generator) for _ in range(n)])


def tiles_of(blocks: Tensor, side_px: int, most: int, generator: torch.Generator) -> Tensor:
    """`(n, y, x)` tiles of blocks that do not overlap, `most` at most, mean 0 and variance 1 each."""
    tiles = blocks.unfold(1, side_px, side_px).unfold(2, side_px, side_px).flatten(0, 2)
    return standardised(tiles[torch.randperm(len(tiles), generator=generator)[:most]].float())


def fit_gaussian_field(pieces: Tensor, generator: torch.Generator) -> GaussianField:
    """Measure spectrum and histogram of real pieces.

    The map to the histogram changes the spectrum a little; the field before it gets the spectrum that comes
    out right behind it, by a few rounds of drawing and comparing.

    Parameters
    ----------
    pieces
        `(n, y, x)`, square, mean 0 and variance 1 each.
    generator
        For the draws.
    """
    field = GaussianField(pieces.shape[-1])
    wanted = torch.from_numpy(measure_spectrum(pieces).power).float()
    ordered = pieces.flatten().sort().values
    level = torch.special.ndtr(field.deviates().double())
    field.values.copy_(ordered[(level * (len(ordered) - 1)).round().long()])
    field.power.copy_(wanted)
    for _ in range(_CORRECTIONS):
        found = torch.from_numpy(measure_spectrum(field.draw(_CORRECTION_PIECES, generator)).power).float()
        field.power.mul_(wanted / found.clamp_min(1e-12))
    return field


def load_noise_model(path: Path) -> NoiseModel:
    """A generator or a Gaussian field from its weights file.

    Raises
    ------
    ModelError
        It cannot be read or is no model of noise.
    """
    model: NoiseModel = load_model(path, NOISE_MODELS).module  # type: ignore[assignment]
    return model


@dataclass(frozen=True)
class NoiseMerit:
    """How close drawn pieces are to real ones, which the model of noise has never seen.

    Attributes
    ----------
    spectrum_error_db
        Root mean square over the rings of the ratio of powers, dB.
    histogram_distance
        Wasserstein distance of the two histograms of pixels [2]_, in standard deviations.
    skewness, kurtosis
        Third and fourth moment of the drawn pixels; of Gaussian ones 0 and 3.
    real_skewness, real_kurtosis
        Of the real ones.
    two_sample_accuracy
        Share of pieces that a small network, trained on others, tells rightly as drawn or real [1]_: 0.5 if
        it cannot.
    two_sample_error
        Standard error of that share if it is 0.5.
    degrees_of_freedom
        One over the mean squared correlation of two drawn pieces: for white noise the number of pixels less
        one, for a few pictures that come again and again little more than their number.
    real_degrees_of_freedom
        Of the real ones.
    """

    spectrum_error_db: float
    histogram_distance: float
    skewness: float
    kurtosis: float
    two_sample_accuracy: float
    two_sample_error: float
    degrees_of_freedom: float
    real_skewness: float
    real_kurtosis: float
    real_degrees_of_freedom: float


def judge_noise(drawn: Tensor, real: Tensor, seed: int = 0) -> NoiseMerit:
    """Compare `(n, y, x)` drawn pieces with as many held-back real ones, mean 0 and variance 1 each.

    Real pieces should not overlap: the same piece twice lowers the degrees of freedom.
    """
    powers = [torch.from_numpy(measure_spectrum(images).power) for images in (drawn, real)]
    decibels = 10 * torch.log10(powers[0] / powers[1])
    accuracy, n_judged = two_sample_accuracy(drawn, real, seed)
    return NoiseMerit(
        spectrum_error_db=float(decibels.square().mean().sqrt()),
        histogram_distance=histogram_distance(drawn, real),
        skewness=float(drawn.double().pow(3).mean()),
        kurtosis=float(drawn.double().pow(4).mean()),
        two_sample_accuracy=accuracy,
        two_sample_error=0.5 / math.sqrt(n_judged),
        degrees_of_freedom=degrees_of_freedom(drawn),
        real_skewness=float(real.double().pow(3).mean()),
        real_kurtosis=float(real.double().pow(4).mean()),
        real_degrees_of_freedom=degrees_of_freedom(real),
    )


def histogram_distance(one: Tensor, other: Tensor) -> float:
    """Wasserstein distance of the distributions of two tensors' values, each with equal weights [2]_."""
    if one.numel() == other.numel():
        difference = one.flatten().sort().values - other.flatten().sort().values
        return float(difference.abs().double().mean())
    share = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    ordered = [values.flatten().sort().values for values in (one, other)]
    at = [values[(share * len(values)).long()] for values in ordered]
    return float((at[0] - at[1]).abs().double().mean())


def degrees_of_freedom(pieces: Tensor) -> float:
    """One over the mean squared correlation of two of the `(n, y, x)` pieces."""
    flat = pieces.flatten(1).double()
    flat = flat - flat.mean(dim=1, keepdim=True)
    flat = flat / flat.norm(dim=1, keepdim=True)
    squared = (flat @ flat.T).square()
    n = len(flat)
    return float(n * (n - 1) / (squared.sum() - squared.diagonal().sum()))


def two_sample_accuracy(one: Tensor, other: Tensor, seed: int = 0) -> tuple[float, int]:
    """Accuracy of a small network in telling two sets of `(n, y, x)` images apart, and on how many [1]_.

    It learns on the first half of each set, turned and mirrored, and is asked about the other half.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Classifier()
    half = min(len(one), len(other)) // 2
    known = torch.cat([one[:half], other[:half]]).unsqueeze(1)
    labels = torch.cat([torch.ones(half), torch.zeros(half)])
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(_CLASSIFIER_STEPS):
        chosen = torch.randint(2 * half, (_CLASSIFIER_BATCH,), generator=generator)
        turn = int(torch.randint(4, (1,), generator=generator))
        batch = torch.rot90(known[chosen], turn, dims=(-2, -1))
        batch = batch.flip(-1) if torch.rand(1, generator=generator) < 0.5 else batch
        loss = binary_cross_entropy_with_logits(network(batch), labels[chosen])
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    with torch.inference_mode():
        taken_for_one = [
            int(sum((network(part.unsqueeze(1)) > 0).sum() for part in torch.split(images[half:], 64)))
            for images in (one, other)
        ]
    right = taken_for_one[0] + len(other) - half - taken_for_one[1]
    judged = len(one) + len(other) - 2 * half
    return right / judged, judged


class _Classifier(nn.Module):
    """Three convolutions, and the mean and spread of their channels over the image."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        widths = (1, width, width, width)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to logits `(n,)`."""
        features = self.features(x)
        pooled = torch.cat([features.mean(dim=(2, 3)), features.std(dim=(2, 3))], dim=1)
        score: Tensor = self.score(pooled)
        return score[:, 0]
