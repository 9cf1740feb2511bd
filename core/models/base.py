"""What a network that denoises has to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError


class DenoisingNetwork(nn.Module, ABC):
    """A network from noisy to denoised images, of any size that is a multiple of `stride`.

    Images have a background of mean 0 and standard deviation 1, protein white. Their denoised versions are on
    the same scale. The result for an image depends on nothing but that image: not on the others of its batch,
    nor on earlier ones. Constructors take what JSON can hold, and never load or download anything.

    Attributes
    ----------
    stride
        What y and x must be multiples of.
    receptive_field_px
        Distance beyond which an input pixel has no influence on an output pixel. Micrographs are denoised in
        tiles that overlap by as much, so that no seam shows: too large costs time, too small shows.
    spectrum_share
        What the Wiener filter by a micrograph's spectrum has in its mean with the network, 0 to 1.
    """

    stride: int
    receptive_field_px: int
    spectrum_share: float = 0.0

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """`(n, 1, y, x)` to `(n, 1, y, x)`."""


def require_denoising_network(module: object, name: str) -> DenoisingNetwork:
    """What another package has made, if it is what it should be, derived from `DenoisingNetwork` or not.

    Raises
    ------
    ConfigurationError
        It is no module of torch, lacks an attribute, or does not return an image for an image.
    """

    def wrong(problem: str) -> ConfigurationError:
        return ConfigurationError(
            f"the network {name} {problem}. What it has to be: cryohush.core.models.base.DenoisingNetwork."
        )

    if not isinstance(module, nn.Module):
        raise wrong(f"is no torch.nn.Module but a {type(module).__name__}")
    for attribute, smallest in (("stride", 1), ("receptive_field_px", 0)):
        value = getattr(module, attribute, None)
        if not isinstance(value, int) or value < smallest:
            found = "lacks it" if value is None else f"has {value!r}"
            raise wrong(f"should have {attribute}, an integer of at least {smallest}, and {found}")
    side = cast(DenoisingNetwork, module).stride
    was_training = module.training
    image = torch.zeros(1, 1, side, 2 * side)
    try:
        with torch.inference_mode():
            denoised = module.eval()(image)
    except Exception as error:  # whatever a stranger's code does
        raise wrong(
            f"fails on an image of {2 * side} x {side} px: {type(error).__name__}: {error}"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(denoised, Tensor) or denoised.shape != image.shape:
        returned = tuple(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
        raise wrong(f"should return the shape of its images, {tuple(image.shape)}, and returns {returned}")
    return cast(DenoisingNetwork, module)
