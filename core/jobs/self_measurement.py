"""Whether denoising helped, measured on the user's own images: the verdict at the head of a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config.denoise import DenoiseOptions
from ..context.contexts import StackContexts, read_sample
from ..context.stack_context import fit_context, to_working_grid
from ..context.stack_map import unasked
from ..imaging.defects import fill_defects, filled, find_defects
from ..imaging.filters import background_power, floor_of, spectrum_of
from ..imaging.noise import image_generator
from ..imaging.normalise import circle_radius_px, normalise, usable
from ..inference.denoiser import Denoiser
from ..inference.devices import Precision
from ..inference.micrograph_denoiser import MicrographDenoiser
from ..inference.plan import StackPlan, spread_over
from ..io.mrc import StackReader
from ..io.particles import ParticleSet
from ..metrics.gain import RingGain, Spectra, recorrupted, spectra, verdict
from ..models.diffusion import DiffusionDenoiser
from ..models.weights import LoadedModel

#: images of a sample: their gains have standard errors of a few per cent
SAMPLE = 300
_FEWEST = 100
_BATCH = 16
#: shares of Nyquist's frequency between which the background is taken for white noise
_NOISE_RINGS = (0.35, 0.6)
#: micrographs of a sample, the side of what is denoised of each, and of the squares that count as images
_MICROGRAPHS, _MIDDLE_PX, _SQUARE_PX = 8, 1536, 384
#: share of a square that may be without noise
_MAX_NOISE_FREE = 0.1


def measure_gain(
    particles: ParticleSet,
    stacks: Sequence[StackPlan],
    model: LoadedModel,
    options: DenoiseOptions,
    precision: Precision,
    contexts: StackContexts | None,
    stop_if_asked: Callable[[], None] = unasked,
) -> dict[str, Any]:
    """Gain over the raw images of a sample, in Fourier rings, on recorrupted pairs (`metrics.gain`).

    Noise is what is white in the background, so that the structure of the ice counts as signal, as it does
    with an independent exposure. Where a context is used, it is found anew on the recorrupted sample, with a
    map where the run has one: that of the run has seen the noise which judges.

    Parameters
    ----------
    stop_if_asked
        Called now and then; may raise to stop.

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
    chosen = usable(normalised, std)
    normalised = normalised[chosen]
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
        known = optics[chosen.nonzero().squeeze(1)] if optics is not None else None
        small = torch.cat([to_working_grid(pair(number)[0]) for number in range(len(blocks))])
        try:
            context = fit_context(
                small,
                known,
                pixel_size_angstrom=pixel_size_angstrom,
                radius_px=radius,
                box_px=normalised.shape[-1],
                with_map=stop_if_asked if contexts.of_map else None,
            )
        except ValueError as error:
            return _not_measured(str(error))
    denoiser = Denoiser(model.module, "cpu", "fp32" if precision == "fp16" else precision)
    parts: list[list[Spectra]] = []
    for number, members in enumerate(torch.split(torch.arange(len(normalised)), _BATCH)):
        stop_if_asked()
        first, second = pair(number)
        channels = None
        if context is not None:
            channels = context.channels(first, None if known is None else known[members])
        denoised, _, _ = denoiser.denoise(
            first.numpy(),
            radius_px=radius,
            blend=options.blend,
            keep_above_px=stacks[0].in_pixels(options.keep_above_angstrom),
            context=None if channels is None else partial(_known, channels),
            finer=stacks[0].finer,
        )
        parts.append(
            [
                spectra(images, radius_px=radius, pixel_size_angstrom=pixel_size_angstrom)
                for images in (first, second, torch.from_numpy(denoised))
            ]
        )
    return _judged(parts)


def measure_gain_of_micrographs(
    stacks: Sequence[StackPlan],
    model: LoadedModel,
    options: DenoiseOptions,
    precision: Precision,
    stop_if_asked: Callable[[], None] = unasked,
) -> dict[str, Any]:
    """`measure_gain` of squares in the middle of a few micrographs, which are recorrupted as a whole."""
    sizes = {stack.pixel_size_angstrom for stack in stacks}
    pixel_size_angstrom = sizes.pop() if len(sizes) == 1 else None
    if pixel_size_angstrom is None:
        return _not_measured("that needs a pixel size, the same one for all micrographs")
    if isinstance(model.module, DiffusionDenoiser):
        return _not_measured("that would take as long as the run itself")
    denoiser = MicrographDenoiser(Denoiser(model.module, "cpu", "fp32" if precision == "fp16" else precision))
    parts: list[list[Spectra]] = []
    for number, (stack, _) in enumerate(spread_over(stacks, _MICROGRAPHS)):
        stop_if_asked()
        with StackReader(stack.source) as reader:
            whole = torch.from_numpy(reader.read([0])[0])
        top, left = (max(0, (side - _MIDDLE_PX) // 2) for side in whole.shape)
        image = whole[top : top + _MIDDLE_PX, left : left + _MIDDLE_PX]
        if not image.isfinite().all() or min(image.shape) < _SQUARE_PX:
            continue
        # both judges would hold hot pixels and masks as if they were signal
        defects = find_defects(image[None])
        real = torch.ones(len(_squares(image)), dtype=torch.bool)
        if defects is not None:
            image = fill_defects(image[None], defects)[0]
            real = _squares(defects.noise_free[0]).float().mean((1, 2)) < _MAX_NOISE_FREE
        if not real.any():
            continue
        image = image - image.mean()
        spectrum, side = spectrum_of(image)
        floor = torch.tensor([floor_of(spectrum, side // 2)])
        first, second = recorrupted(image[None], floor, image_generator(0, number, "recorrupted"))
        sign = -1 if stack.protein_dark else 1
        denoised, problem, _ = denoiser.denoise(
            (sign * first[0]).numpy(),
            pixel_size_angstrom=pixel_size_angstrom,
            blend=options.blend,
            keep_above_px=stack.in_pixels(options.keep_above_angstrom),
            finer=stack.finer,
        )
        if problem is None:
            three = first[0], second[0], sign * torch.from_numpy(denoised)
            parts.append([spectra_of_squares(one, pixel_size_angstrom, real) for one in three])
    if not parts:
        return _not_measured(f"that needs a micrograph with noise of at least {_SQUARE_PX} px a side")
    return _judged(parts)


def spectra_of_squares(image: Tensor, pixel_size_angstrom: float, chosen: Tensor | None = None) -> Spectra:
    """Spectra of (the `chosen`, bool `(n,)`) squares of a micrograph `(y, x)`, for `RingGain`."""
    squares = _squares(image)
    if chosen is not None:
        squares = squares[chosen]
    return spectra(squares, radius_px=0.45 * _SQUARE_PX, pixel_size_angstrom=pixel_size_angstrom)


def _squares(image: Tensor) -> Tensor:
    return image.unfold(0, _SQUARE_PX, _SQUARE_PX).unfold(1, _SQUARE_PX, _SQUARE_PX).flatten(0, 1)


def _judged(parts: Sequence[Sequence[Spectra]]) -> dict[str, Any]:
    """What a record says of a gain; `parts` are the spectra of raw images, their twins, and denoised ones."""
    raw, twin, ours = (Spectra.joined(some) for some in zip(*parts, strict=True))
    bands = RingGain(raw, twin).bands(ours)
    text, judgement = verdict(bands)
    return {
        "verdict": text,
        "judgement": judgement,
        "images": len(raw.values),
        "bands": [
            {name: None if math.isnan(value) else round(value, 4) for name, value in vars(band).items()}
            for band in bands
        ],
    }


def _white_floor(images: Tensor, radius_px: float) -> Tensor:
    """`(rings,)` power of the noise of `(n, y, x)` images, taken for white: that of the outer rings."""
    power = background_power(images, radius_px)
    nyquist = min(images.shape[-2:]) // 2
    floor = power[int(_NOISE_RINGS[0] * nyquist) : int(_NOISE_RINGS[1] * nyquist)].median()
    return floor.expand(len(power))


def _not_measured(why: str) -> dict[str, Any]:
    return {"verdict": f"What denoising adds to a low-pass filter was not measured: {why}."}


def _known(channels: Tensor, shown: Tensor) -> Tensor:
    return channels
