"""Whether denoising helped, measured on the user's own particles: the verdict at the head of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config.denoise import DenoiseOptions
from ..context.contexts import StackContexts, read_sample
from ..context.stack_context import fit_context, to_working_grid
from ..imaging.defects import filled
from ..imaging.filters import background_power
from ..imaging.noise import image_generator
from ..imaging.normalise import circle_radius_px, normalise
from ..imaging.resample import fourier_resample
from ..inference.denoiser import Denoiser
from ..inference.devices import Precision
from ..inference.plan import StackPlan
from ..io.particles import ParticleSet
from ..metrics.gain import RingGain, recorrupted, verdict
from ..models.diffusion import DiffusionDenoiser
from ..models.weights import LoadedModel

#: images of a sample: their gains have standard errors of a few per cent
SAMPLE = 300
_FEWEST = 100
_BATCH = 32
#: a box of 500 Å has its Nyquist frequency at 8 Å there
_JUDGES_BOX_PX = 128
#: shares of Nyquist's frequency between which the background is taken for white noise
_NOISE_RINGS = (0.35, 0.6)


def measure_gain(
    particles: ParticleSet,
    stacks: Sequence[StackPlan],
    model: LoadedModel,
    options: DenoiseOptions,
    precision: Precision,
    contexts: StackContexts | None,
) -> dict[str, Any]:
    """Gain over the raw images of a sample, in Fourier rings, on recorrupted pairs (`metrics.gain`).

    Noise is what is white in the background, so that the structure of the ice counts as signal, as it does
    with an independent exposure. Where a context is used, it is found anew on the recorrupted sample: that of
    the run has seen the noise which judges.

    Returns
    -------
    For the record: `verdict`, a sentence; and, where there was something to measure, its `judgement` (`good`,
    `note` or `bad`), `images` and `bands`.
    """
    sizes = {stack.pixel_size_angstrom for stack in stacks}
    pixel_size_angstrom = sizes.pop() if len(sizes) == 1 else None
    dark_stacks = frozenset(number for number, stack in enumerate(stacks) if stack.protein_dark)
    if len(particles) < _FEWEST:
        return _not_measured(f"that needs at least {_FEWEST} particles, and there are {len(particles)}")
    if pixel_size_angstrom is None:
        return _not_measured("that needs a pixel size, the same one for all particles")
    if isinstance(model.module, DiffusionDenoiser):
        return _not_measured("that would take as long as the run itself")
    sample = read_sample(particles, contexts, dark_stacks, SAMPLE)
    if sample is None:
        return _not_measured(f"that needs at least {_FEWEST} particles of one kind")
    images, optics = sample
    shape = (images.shape[-2], images.shape[-1])
    radius = circle_radius_px(shape, options.particle_diameter_angstrom, pixel_size_angstrom)
    # masked areas have no noise, and outlying pixels too much
    normalised, _, std = normalise(filled(images, radius), radius)
    usable = torch.isfinite(normalised.sum((1, 2))) & (std > 0)
    normalised = normalised[usable]
    if len(normalised) < _FEWEST:
        return _not_measured(f"that needs at least {_FEWEST} usable particles")
    floor = _white_floor(normalised, radius)
    blocks = torch.split(normalised, _BATCH)

    def pair(number: int) -> tuple[Tensor, Tensor]:
        generator = image_generator(0, number, "recorrupted")
        first, second = recorrupted(blocks[number], floor, generator)
        return normalise(first, radius)[0], second

    context = known = None
    if contexts is not None:
        known = optics[usable.nonzero().squeeze(1)] if optics is not None else None
        small = torch.cat([to_working_grid(pair(number)[0]) for number in range(len(blocks))])
        try:
            context = fit_context(
                small,
                known,
                pixel_size_angstrom=pixel_size_angstrom,
                radius_px=radius,
                box_px=normalised.shape[-1],
            )
        except ValueError as error:
            return _not_measured(str(error))
    denoiser = Denoiser(model.module, "cpu", "fp32" if precision == "fp16" else precision)
    parts = []
    for number, members in enumerate(torch.split(torch.arange(len(normalised)), _BATCH)):
        first, second = pair(number)
        channels = None
        if context is not None:
            channels = context.channels(first, None if known is None else known[members])
        denoised = torch.from_numpy(_denoised(denoiser, first, radius, channels))
        parts.append([_on_judges_grid(images) for images in (first, second, denoised)])
    raw, twin, denoised = (torch.cat(some) for some in zip(*parts, strict=True))
    ratio = raw.shape[-1] / normalised.shape[-1]
    judge = RingGain(raw, twin, radius_px=radius * ratio, pixel_size_angstrom=pixel_size_angstrom / ratio)
    bands = judge.bands(denoised)
    text, judgement = verdict(bands)
    return {
        "verdict": text,
        "judgement": judgement,
        "images": len(raw),
        "bands": [
            {name: None if math.isnan(value) else round(value, 4) for name, value in vars(band).items()}
            for band in bands
        ],
    }


def _white_floor(images: Tensor, radius_px: float) -> Tensor:
    """`(rings,)` power of the noise of `(n, y, x)` images, taken for white: that of the outer rings."""
    powers = [len(block) * background_power(block, radius_px) for block in torch.split(images, _BATCH)]
    power = torch.stack(powers).sum(0) / len(images)
    nyquist = min(images.shape[-2:]) // 2
    floor = power[int(_NOISE_RINGS[0] * nyquist) : int(_NOISE_RINGS[1] * nyquist)].median()
    return floor.expand(len(power))


def _on_judges_grid(images: Tensor) -> Tensor:
    """Square images on a grid that is fine enough for the bands that are measured."""
    y, x = images.shape[-2:]
    return fourier_resample(images, _JUDGES_BOX_PX) if y == x > _JUDGES_BOX_PX else images


def _not_measured(why: str) -> dict[str, Any]:
    return {"verdict": f"What denoising adds to a low-pass filter was not measured: {why}."}


def _denoised(
    denoiser: Denoiser, images: Tensor, radius_px: float, channels: Tensor | None
) -> NDArray[np.float32]:
    context = None if channels is None else lambda shown: channels
    denoised: NDArray[np.float32] = denoiser.denoise(images.numpy(), radius_px=radius_px, context=context)[0]
    return denoised
