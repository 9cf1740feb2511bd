"""The Python interface: arrays in, arrays out. Everything here is also in the namespace `cryohush`.

>>> import cryohush
>>> images = cryohush.read_images("examples/data/particles.star", rows=range(8))
>>> denoised = cryohush.denoise(images, pixel_size=1.5)
>>> denoised.shape == images.shape
True
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .context.contexts import context_of_images
from .context.stack_map import unasked
from .errors import ConfigurationError, ImageError, missing_package
from .imaging.ctf import CtfParameters, ctf_parameters_of
from .imaging.normalise import background_mask
from .inference.denoiser import Denoiser
from .inference.devices import CPU_BATCH_PX, DTYPES, choose_precision, resolve_devices
from .inference.inputs import check_limit
from .inference.micrograph_denoiser import MicrographDenoiser
from .inference.plan import PLAUSIBLE_ANGSTROM, SAMPLE, SMALLEST_PX, finer_grid, sample
from .inference.plan import read_images as read_image_set
from .io.mrc import StackReader
from .io.particles import ParticleSet
from .io.poses import PREMULTIPLIED, changed_ctf, why_impossible
from .models.weights import LoadedModel, list_models, load_model
from .spread import evenly_spread

if TYPE_CHECKING:
    from pandas import DataFrame

    from .jobs.folder import Earlier

__all__ = [
    "denoise",
    "denoise_micrograph",
    "list_models",
    "load_model",
    "read_ctf",
    "read_images",
    "read_table",
    "train",
]

Protein = Literal["white", "dark"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]


def denoise(
    images: ArrayLike,
    *,
    pixel_size: float | None = None,
    model: str | Path | LoadedModel = "general",
    particle_diameter: float | None = None,
    keep_above: float | None = None,
    blend: float = 0.0,
    protein: Protein = "white",
    context: Literal["stack", "map", "none"] = "stack",
    ctf: CtfParameters | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
) -> NDArray[np.float32]:
    """Denoise particle images.

    Parameters
    ----------
    images
        `(n, y, x)`, or one image `(y, x)`; boxes of any size, each at least 8 pixels a side.
    pixel_size
        Å. Coarse pixels are made finer for the network, so give it for binned images.
        `particle_diameter` and `keep_above` need it.
    model
        A shipped model (`list_models`), a `.safetensors` file, the folder of a training, or what `load_model`
        returned.
    particle_diameter
        Diameter of the circle, Å, outside which an image is background; None is three quarters of the box.
    keep_above
        Resolution, Å, beyond which the image stays raw; None denoises all of it.
    blend
        Share of the raw image in the result, 0 to 1.
    protein
        Whether protein is brighter (`white`, as in extracted particles) or darker than the background.
    context
        What the other images say about each: `stack` takes all of them, if there are a hundred or more, as
        one set of particles; `map` lets a map of the particle that is found from them take part, too, where
        it predicts images better, which takes a minute; `none` denoises each by itself, which suits images
        that have little in common.
    ctf
        CTF of each image (`read_ctf`), which the context makes use of; None is not known. It needs the pixel
        size.
    device
        `auto`, `cpu`, or a GPU such as `cuda:0`.
    precision
        Number format inside the network. `auto` takes the fastest that the device computes natively.
    batch_size
        Images that the network gets at once; None is what suits a CPU's cache.

    Returns
    -------
    denoised
        float32 of the shape of `images`, on their grey scale. (An array does not say whether it was denoised
        before: twice is worse than once.)

    Raises
    ------
    ConfigurationError
        If a value is out of its range, or a length is given without the pixel size.
    ImageError
        If the array is not of images, or one of them is constant, or holds NaN or infinite pixels; names it.
    ModelError, DeviceError
        If there is no such model or device.

    Warns
    -----
    UserWarning
        If a part of an image went round the network, such as a mask, which stays as it was, or hot
        pixels, which come out no brighter than the rest.

    Notes
    -----
    The result is for looking, picking and sorting. Refine and reconstruct from the raw images: what a
    denoiser adds is the same in both half sets, so that their FSC is no evidence.
    """
    stack, was_one = _as_stack(images)
    diameter_px = _in_pixels("particle_diameter", particle_diameter, pixel_size)
    keep_above_px = _in_pixels("keep_above", keep_above, pixel_size)
    _check(blend, protein, precision)
    if keep_above is not None:
        check_limit(keep_above, [((stack.shape[1], stack.shape[2]), pixel_size)])
    if diameter_px is not None:
        try:
            background_mask((stack.shape[1], stack.shape[2]), diameter_px / 2)
        except ValueError as error:
            raise ConfigurationError(f"particle_diameter: {error}.") from error
    if context not in ("stack", "map", "none"):
        raise ConfigurationError(f"context: expected 'stack', 'map' or 'none', found {context!r}.")
    if ctf is not None and pixel_size is None:
        raise ConfigurationError("ctf needs the pixel size (Å): pixel_size has to be given as well.")
    if ctf is not None and len(ctf) != len(stack):
        raise ConfigurationError(f"ctf: expected those of {len(stack)} images, found {len(ctf)}.")
    if ctf is not None and (impossible := why_impossible(ctf)) is not None:
        raise ConfigurationError(f"ctf: image {impossible[0] + 1}: {impossible[1]}.")
    if batch_size is not None and batch_size < 1:
        raise ConfigurationError(f"batch_size: expected 1 or more, found {batch_size}.")
    loaded = _loaded(model)
    denoiser = _denoiser(loaded, device, precision)
    channels = None
    if context != "none" and bool(getattr(loaded.module, "context_channels", None)):
        dark, of_map = protein == "dark", unasked if context == "map" else None
        channels = _context(stack, ctf, pixel_size, particle_diameter, dark=dark, with_map=of_map)
    finer = finer_grid(pixel_size, loaded.trained_pixel_sizes_angstrom, lambda: _sampled(stack, ctf))
    size = batch_size or max(1, CPU_BATCH_PX // (stack.shape[1] * stack.shape[2]))
    result = np.empty_like(stack)
    conspicuous: dict[int, str] = {}
    for first in range(0, len(stack), size):
        some = slice(first, first + size)
        result[some], problems, remarks = denoiser.denoise(
            stack[some],
            radius_px=None if diameter_px is None else diameter_px / 2,
            blend=blend,
            keep_above_px=keep_above_px,
            protein_dark=protein == "dark",
            context=None if channels is None else partial(channels, some),
            finer=finer,
        )
        for index, problem in problems.items():
            raise ImageError(problem, image=first + index + 1)
        conspicuous |= {first + index + 1: remark for index, remark in remarks.items()}
    for number, remark in list(conspicuous.items())[:1]:
        warnings.warn(f"{len(conspicuous)} images, first image {number}: {remark}", stacklevel=2)
    return result[0] if was_one else result


def denoise_micrograph(
    image: ArrayLike,
    *,
    pixel_size: float | None = None,
    model: str | Path | LoadedModel = "general",
    keep_above: float | None = None,
    blend: float = 0.0,
    protein: Protein = "dark",
    device: str = "auto",
    precision: Precision = "auto",
) -> NDArray[np.float32]:
    """Denoise one micrograph `(y, x)` of any size, with dark protein unless `protein` says otherwise.

    Parameters, exceptions, warnings and notes as for `denoise`. Uneven ice is kept, and so is contamination.
    """
    stack, was_one = _as_stack(image)
    if not was_one:
        raise ImageError(f"expected one micrograph (y, x), found an array of the shape {stack.shape}.")
    keep_above_px = _in_pixels("keep_above", keep_above, pixel_size)
    _check(blend, protein, precision)
    if keep_above is not None:
        check_limit(keep_above, [((stack.shape[1], stack.shape[2]), pixel_size)])
    sign = np.float32(-1 if protein == "dark" else 1)
    loaded = _loaded(model)
    result, problem, remark = MicrographDenoiser(_denoiser(loaded, device, precision)).denoise(
        sign * stack[0],
        pixel_size_angstrom=pixel_size,
        blend=blend,
        keep_above_px=keep_above_px,
        finer=finer_grid(pixel_size, loaded.trained_pixel_sizes_angstrom, None),
    )
    if problem is not None:
        raise ImageError(problem)
    if remark is not None:
        warnings.warn(remark, stacklevel=2)
    return sign * result


def read_images(
    source: str | Path, rows: Sequence[int] | NDArray[Any] | None = None, *, root: str | Path | None = None
) -> NDArray[np.float32]:
    """Read the images of a table, in the order of its rows, or of a stack.

    Parameters
    ----------
    source
        `particles.star`, `particles.cs`, or an MRC stack.
    rows
        Which, counted from 0, or a mask with an entry for each row; None is all of them. They all come into
        memory: 100,000 boxes of 256 px are 24 GiB.
    root
        Folder that the table's image names are relative to; None looks for it as `cryohush denoise` does.

    Returns
    -------
    images
        `(n, y, x)` float32.

    Raises
    ------
    CryohushError
        If the table or one of its stacks cannot be read, or the images are not of one size.

    Warns
    -----
    UserWarning
        If images were denoised by cryohush, or extracted from micrographs that were: the array does not
        show it, and denoised again, or taken for raw, they mislead.
    """
    particles, chosen = _particles(source, rows, root)
    result: NDArray[np.float32] | None = None
    denoised = particles.denoised_micrographs()
    for stack in np.unique(particles.stack[chosen]):
        here = np.flatnonzero(particles.stack[chosen] == stack)
        with StackReader(particles.stacks[stack]) as reader:
            images = reader.read(particles.image[chosen[here]].tolist())
            if reader.header.denoised_label:
                denoised[str(particles.stacks[stack])] = reader.header.denoised_label
        if result is None:
            result = np.empty((len(chosen), *images.shape[1:]), dtype=np.float32)
        elif result.shape[1:] != images.shape[1:]:
            raise ImageError(
                f"expected images of {result.shape[1]} x {result.shape[2]} px, found {images.shape[1]} x "
                f"{images.shape[2]} px: read each optics group by itself.",
                path=particles.stacks[stack],
            )
        result[here] = images
    for name, label in list(denoised.items())[:1]:
        warnings.warn(
            f"{source}: {name} was denoised already ({label}), so these are no raw images. Denoised again "
            "they are worse.",
            stacklevel=2,
        )
    return np.empty((0, 0, 0), dtype=np.float32) if result is None else result


def read_ctf(
    source: str | Path, rows: Sequence[int] | NDArray[Any] | None = None, *, root: str | Path | None = None
) -> CtfParameters:
    """Read the CTF of each image of a table, for `denoise`. Parameters as of `read_images`.

    Raises
    ------
    CryohushError
        If the table cannot be read, does not hold them, or its images were multiplied by them.
    """
    particles, chosen = _particles(source, rows, root)
    if changed_ctf(particles, [PREMULTIPLIED]) is not None:
        raise ConfigurationError(
            f"{source}: its images were multiplied by their CTF. Denoise them with context='none'."
        )
    return ctf_parameters_of(particles)[torch.from_numpy(chosen)]


def read_table(source: str | Path, block: str | None = None) -> DataFrame:
    """Read a table of a STAR file as a pandas DataFrame, numbers as numbers.

    Parameters
    ----------
    source
        A `.star` file.
    block
        The name of the table; None is `particles` or `micrographs`, or the only one there is.

    Raises
    ------
    ConfigurationError
        If the file has no such table.
    """
    import starfile

    tables = starfile.read(source, always_dict=True)
    name = block
    if name is None:
        candidates = [found for found in ("particles", "micrographs", "") if found in tables]
        name = candidates[0] if candidates else next(iter(tables)) if len(tables) == 1 else None
    if name is None or name not in tables:
        raise ConfigurationError(
            f"{source}: expected the table {block or 'particles or micrographs'}, found {', '.join(tables)}."
        )
    return tables[name]


def train(config: str | Path, output: str | Path, *, resume: bool = False, **settings: Any) -> Path:
    """Train a network, as `cryohush train` does, and return the weights file.

    Parameters
    ----------
    config
        A YAML file, or a preset such as `noise2noise`.
    output
        A new folder, or with `resume` that of an interrupted training.
    settings
        What differs from the file: `train("general", "run", **{"optimisation.steps": 100})`.

    Raises
    ------
    CryohushError
        If the configuration is wrong, the data cannot be read, or a package of the extra `train` is missing.
    """
    from .config.load import find_preset, load_yaml
    from .config.training import TrainingConfig
    from .job_context import JobContext

    try:
        from .jobs.train import train as run_training
    except ModuleNotFoundError as error:
        raise missing_package(error) from error

    overrides = [f"{name}={value}" for name, value in settings.items()]
    training = load_yaml(find_preset(str(config)), TrainingConfig, overrides)
    earlier: Earlier = "resume" if resume else "refuse"
    return run_training(training, Path(output), JobContext(log=print), earlier=earlier)


def _particles(
    source: str | Path, rows: Sequence[int] | NDArray[Any] | None, root: str | Path | None
) -> tuple[ParticleSet, NDArray[np.int64]]:
    """A set of particles, and the numbers of those of its rows that are wanted."""
    particles = read_image_set(source, root=None if root is None else Path(root))
    if not isinstance(particles, ParticleSet):
        raise ConfigurationError(f"{source} lists micrographs, not particles: read them one by one.")
    every = np.arange(len(particles))
    return particles, every if rows is None else every[_row_numbers(rows, len(particles))]


def _row_numbers(rows: Sequence[int] | NDArray[Any], n_rows: int) -> NDArray[np.int64]:
    """The numbers of wanted rows; a mask, as comparing a column gives it, stands for its true ones."""
    wanted = np.asarray(rows)
    if wanted.dtype == np.bool_ and wanted.shape == (n_rows,):
        return np.flatnonzero(wanted).astype(np.int64)
    if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size):
        raise ConfigurationError(
            f"rows: expected numbers, or a mask of {n_rows}, found {wanted.dtype} {wanted.shape}."
        )
    outside = wanted[(wanted < -n_rows) | (wanted >= n_rows)]
    if outside.size:
        raise ConfigurationError(f"rows: row {outside[0]} was asked for, counted from 0, of {n_rows}.")
    return wanted.astype(np.int64)


def _sampled(
    images: NDArray[np.float32], ctf: CtfParameters | None
) -> tuple[torch.Tensor, CtfParameters | None]:
    """A sample of images, and their CTFs."""
    chosen = torch.from_numpy(evenly_spread(len(images), SAMPLE))
    return sample(images), None if ctf is None else ctf[chosen]


def _context(
    images: NDArray[np.float32],
    ctf: CtfParameters | None,
    pixel_size: float | None,
    particle_diameter: float | None,
    *,
    dark: bool,
    with_map: Callable[[], None] | None,
) -> Callable[[slice, torch.Tensor], torch.Tensor] | None:
    """What makes the channels of context of some of the images; None where they have none."""
    found, _ = context_of_images(
        torch.from_numpy(images),
        ctf,
        protein_dark=dark,
        pixel_size_angstrom=pixel_size,
        diameter_angstrom=particle_diameter,
        with_map=with_map,
    )
    if found is None:
        return None

    def channels(some: slice, normalised: torch.Tensor) -> torch.Tensor:
        return found.channels(normalised, None if found.group_optics is None or ctf is None else ctf[some])

    return channels


def _as_stack(images: ArrayLike) -> tuple[NDArray[np.float32], bool]:
    """`(n, y, x)`, and whether it was one image."""
    if np.ma.is_masked(images):
        raise ImageError("expected an array of numbers, found a masked one. Fill it first.")
    array = np.asarray(images)
    if array.dtype.kind not in "fiu":
        raise ImageError(f"expected an array of real numbers, found one of {array.dtype}.")
    if array.ndim not in (2, 3) or not array.size:
        raise ImageError(
            f"expected images (n, y, x) or one (y, x), found an array of the shape {array.shape}."
        )
    if min(array.shape[-2:]) < SMALLEST_PX:
        raise ImageError(
            f"images of {array.shape[-1]} x {array.shape[-2]} px are too small: at least {SMALLEST_PX} px "
            "are needed."
        )
    one = array.ndim == 2
    # torch warns of arrays that may not be written to, as mrcfile gives them
    return np.require(array[None] if one else array, np.float32, ["C", "W"]), one


def _in_pixels(name: str, length: float | None, pixel_size: float | None) -> float | None:
    low, high = PLAUSIBLE_ANGSTROM
    if pixel_size is not None and not low <= pixel_size <= high:
        raise ConfigurationError(
            f"pixel_size: expected a positive number of Å, {low:g} to {high:g}, found {pixel_size}."
        )
    if length is None:
        return None
    if not length > 0:
        raise ConfigurationError(f"{name}: expected a positive number of Å, found {length}.")
    if pixel_size is None:
        raise ConfigurationError(f"{name} is in Å, so pixel_size (Å) has to be given as well.")
    return length / pixel_size


def _check(blend: float, protein: str, precision: str) -> None:
    if not 0 <= blend <= 1:
        raise ConfigurationError(f"blend: expected 0 to 1, found {blend}.")
    if protein not in ("white", "dark"):
        raise ConfigurationError(f"protein: expected 'white' or 'dark', found {protein!r}.")
    if precision not in ("auto", *DTYPES):
        raise ConfigurationError(f"precision: expected auto, {', '.join(DTYPES)}, found {precision!r}.")


def _loaded(model: str | Path | LoadedModel) -> LoadedModel:
    return model if isinstance(model, LoadedModel) else load_model(model)


def _denoiser(model: LoadedModel, device: str, precision: Precision) -> Denoiser:
    place: torch.device = resolve_devices(device)[0]
    chosen, _ = choose_precision(place, precision)
    return Denoiser(model.module, place, chosen)
