"""A network of single images, averaged with what the rest of the stack says, that knows how far it is off."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .unet import ShuffleUNet, from_cells

#: natural logarithms of the smallest and the largest predicted variance; the background of an image has 1
LOG_VARIANCE = (-12.0, 4.0)
#: so many channels of context, the first, are estimates of the image; the others are shares
ESTIMATES = 2
#: factors of the expected variance that a calibration stays between
ALONE_FACTORS = (0.75, 1.43)


class ContextAverage(ShuffleUNet):
    """A network of single images, averaged with the stack's own linear estimates where there are any.

    The network knows particles in general and nothing of this one's CTF. The Wiener filter of the context
    (second channel of `context.stack_context.StackContext.channels`) knows the CTF and the stack's spectrum,
    the covariance filter (its first) what this stack's particles have in common. Their errors have little in
    common, so that a mean is better than any of them. The covariance filter shows the particle alone: it
    takes part inside the particle's circle, by the share of the variance that it explains. The Wiener filter
    keeps the ice, which the network smooths: it takes part as the background is uneven. Without context this
    is the network alone.

    Parameters
    ----------
    share
        Of the Wiener filter in its mean with the network where the background is uneven, 0 to 1.
    covariance_share
        Of the covariance filter beside that mean where it explains everything, with an uneven background, 0
        to 1.
    even_covariance_share
        What the covariance filter has at most, 0 to 1, where the background is white noise: beside the
        network alone its share is that of the variance which it explains.
    views_share
        Of the first estimate, 0 to 1, where like views have their full part in it.
    spectrum_share
        Of a micrograph, which has no context, see `DenoisingNetwork`.
    widths, blocks, unshuffle
        As of `ShuffleUNet`.
    alone_error
        Offset and slope of a line in the logarithm of the expected variance of images without context that is
        added to it, within `ALONE_FACTORS`: a calibration of these weights.
    """

    def __init__(
        self,
        share: float = 0.5,
        covariance_share: float = 0.3,
        even_covariance_share: float = 0.6,
        views_share: float = 0.9,
        spectrum_share: float = 0.5,
        widths: Sequence[int] = (48, 96, 160, 160),
        blocks: Sequence[int] = (1, 1, 1, 2),
        unshuffle: int = 4,
        alone_error: Sequence[float] = (0.0, 0.0),
    ) -> None:
        super().__init__(widths, blocks, unshuffle)
        for value in (share, covariance_share, even_covariance_share, views_share, spectrum_share):
            if not 0 <= value <= 1:
                raise ValueError(f"a share lies between 0 and 1, found {value}")
        self.context_channels = 5
        self._share, self._covariance_share = share, covariance_share
        self._even_covariance_share, self._views_share = even_covariance_share, views_share
        self._alone_error, self.spectrum_share = tuple(alone_error), spectrum_share
        cell = unshuffle**2
        self.error_head = nn.Sequential(
            nn.Conv2d(widths[0] + 4 * cell, 64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, cell, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1 or 6, y, x)` to `(n, 1, y, x)`; y and x are multiples of `stride`."""
        return self._mean(x, super().forward(_image(x)))

    def _mean(self, x: Tensor, image: Tensor) -> Tensor:
        """The mean of the network's image and the estimates of the context."""
        if x.shape[1] == 1:
            return image
        # images without context have zeros in all of its channels
        covariance, wiener, explained, uneven, views = x[:, 1:].chunk(5, 1)
        mean = image + self._share * uneven * (wiener - image)
        share = torch.lerp(
            explained.clamp_max(self._even_covariance_share), self._covariance_share * explained, uneven
        )
        share = torch.lerp(share, torch.full_like(share, self._views_share), views)
        estimate: Tensor = mean + share * (covariance - mean)
        return estimate

    def with_error(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The image, and the natural logarithm of the variance of its error, `(n, 1, y, x)` each.

        The error is told from the features of the network, its image, and how far the estimates of the
        context differ from that. None of it has an influence on the image.
        """
        features = self.features(_image(x))
        image = from_cells(self.head(features), self._side)
        if x.shape[1] == 1:
            known = image.new_zeros(len(image), 1, 1, 1)
            differ = image.new_zeros(len(image), 3, *image.shape[-2:])
        else:
            known = (x[:, 3:4].amax((2, 3), keepdim=True) > 0).to(image.dtype)
            differ = torch.cat([known * (x[:, 1:3] - image), x[:, 3:4]], 1)
        cues = nn.functional.pixel_unshuffle(torch.cat([image, differ], 1), self._side)
        seen = torch.cat([features, cues], 1).detach()
        log_variance = from_cells(self.error_head(seen), self._side)
        alone = calibrated(log_variance, *self._alone_error)
        log_variance = alone + known * (log_variance - alone)
        return self._mean(x, image), log_variance.clamp(*LOG_VARIANCE)


def _image(x: Tensor) -> Tensor:
    """The image without its context, laid out as convolutions want it."""
    return x[:, :1].contiguous(memory_format=torch.channels_last)


def calibrated(log_variance: Tensor, offset: float, slope: float) -> Tensor:
    """Expected log variance with a line in it added, within the logarithms of `ALONE_FACTORS`."""
    low, high = map(math.log, ALONE_FACTORS)
    return log_variance + (offset + slope * log_variance).clamp(low, high)
