"""Particle stacks for benchmarks: whole in memory, with the micrograph that each image comes from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cryohush.core.errors import InputError
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.devices import choose_precision
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.io.particles import ParticleSet
from cryohush.core.models.weights import LoadedModel

Requested = Literal["auto", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Particles:
    """Images `(n, y, x)` float32 in the order of the table's rows."""

    images: Tensor
    pixel_size_angstrom: float
    #: one name per image; None when the table has none
    micrographs: list[str] | None


def read_particles(path: Path) -> Particles:
    """Read all images of a STAR file or stack.

    Raises
    ------
    InputError
        When the files cannot be read, or the pixel size is not known.
    """
    table = ParticleSet.read(path)
    sides = {shape[1:] for shape in table.check_images()}
    if len(sides) != 1:
        raise InputError(f"expected images of one size, found {sorted(sides)}.", path=path)
    pixel_size = table.pixel_size_angstrom(0)
    if pixel_size is None:
        raise InputError("the pixel size is not known.", path=path)
    images = np.empty((len(table), *sides.pop()), dtype=np.float32)
    for number, stack in enumerate(table.stacks):
        rows = np.flatnonzero(table.stack == number)
        with StackReader(stack) as reader:
            images[rows] = reader.read(table.image[rows])
    return Particles(torch.from_numpy(images), pixel_size, _micrographs(table))


def denoise(model: LoadedModel, images: Tensor, device: str, precision: Requested, batch: int = 32) -> Tensor:
    """Denoise `(n, y, x)` images as `cryohush denoise` does with its defaults."""
    chosen = torch.device(device)
    number_format, _ = choose_precision(chosen, precision)
    denoiser = Denoiser(model.module, chosen, number_format)
    parts = [denoiser(images[i : i + batch].numpy()) for i in range(0, len(images), batch)]
    return torch.from_numpy(np.concatenate(parts))


def write_stack(path: Path, images: Tensor, pixel_size_angstrom: float | None) -> None:
    """Write `(n, y, x)` images as an MRC stack."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (images.shape[0], images.shape[1], images.shape[2])
    label = "cryohush benchmark"
    with StackWriter(path, shape, pixel_size_angstrom=pixel_size_angstrom, label=label) as writer:
        writer.write(images.numpy())


def file_name(name: str) -> str:
    """The name of a row without what a file's name cannot hold."""
    return "".join(letter if letter.isalnum() or letter == "." else "_" for letter in name)


def _micrographs(table: ParticleSet) -> list[str] | None:
    names = table.column("rlnMicrographName")
    return None if names is None else names.tolist()
