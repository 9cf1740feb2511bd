"""The classes of a simulated set: structures, and the states of conformational series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ..config.simulate import ParticlesConfig, StructureConfig
from ..errors import ConfigurationError
from ..imaging.maps import MAP_SUFFIXES, DensityMap, clean_map, read_map, resampled
from ..imaging.morph import conformational_series
from ..imaging.resample import low_pass_volume, volume_frequency
from ..imaging.structure import Structure, potential_map, read_structure

# The B that a grid needs so that atoms do not alias, times the squared pixel size.
_B_PER_SQUARED_PIXEL = 8.0


@dataclass(frozen=True, eq=False)
class ParticleClass:
    """One structure, or one state of a series.

    Attributes
    ----------
    name
        Of the file, or of the two ends of the series with the number of the state.
    share
        Of the images, relative to the other classes.
    volume
        Makes the `(z, y, x)` map in the set's box and pixel size; it is not kept.
    structural_noise
        Makes what noisy images show beside it: what a map holds and its model does not explain. None where
        there is no such thing.
    """

    name: str
    share: float
    volume: Callable[[], Tensor]
    structural_noise: Callable[[], Tensor] | None = None


def read_classes(config: ParticlesConfig) -> list[ParticleClass]:
    """The classes of a set, in the order of the configuration; files are read here, volumes made later.

    Raises
    ------
    InputError
        A structure or map cannot be read, or the two ends of a series have too few atoms in common.
    ConfigurationError
        A structure is larger than the box.
    """
    classes: list[ParticleClass] = []
    for entry in config.structures:
        if entry.path.name.lower().endswith(MAP_SUFFIXES):
            classes.append(_from_map(entry, config))
            continue
        if entry.model is not None:
            raise ConfigurationError(
                f"{entry.path}: a model frees a map of its noise; this file holds atoms."
            )
        volumes = [_from_atoms(structure, entry, config) for structure in _structures(entry)]
        share = entry.share / len(volumes)
        classes += [ParticleClass(name, share, volume) for name, volume in volumes]
    return classes


def _structures(entry: StructureConfig) -> list[Structure]:
    first = read_structure(entry.path)
    if entry.to is None:
        return [first]
    return conformational_series(first, read_structure(entry.to), entry.intermediates)


def _from_atoms(
    structure: Structure, entry: StructureConfig, config: ParticlesConfig
) -> tuple[str, Callable[[], Tensor]]:
    box, pixel_size = config.box_px, config.pixel_size_angstrom
    b_factor = entry.b_factor_square_angstrom
    if b_factor is None:
        b_factor = _B_PER_SQUARED_PIXEL * pixel_size**2
    if 2 * structure.radius_angstrom > box * pixel_size:
        raise ConfigurationError(
            f"{structure.name} has a diameter of {2 * structure.radius_angstrom:.0f} Å and does not fit into "
            f"{box} px of {pixel_size:g} Å. Raise box_px or pixel_size_angstrom."
        )
    return structure.name, lambda: potential_map(structure, box, pixel_size, b_factor)


def _from_map(entry: StructureConfig, config: ParticlesConfig) -> ParticleClass:
    if entry.to is not None:
        raise ConfigurationError(f"{entry.path}: a series needs atoms, a map has none: leave `to` out.")
    # read here for its errors, and again when its turn comes, so that one map at a time is in memory
    read_map(entry.path)
    if entry.model is not None:
        read_structure(entry.model)
    b_factor = entry.b_factor_square_angstrom or 0.0

    def in_box(density: DensityMap) -> Tensor:
        density = resampled(density, config.pixel_size_angstrom, config.box_px)
        frequency = volume_frequency(density.volume.shape) / config.pixel_size_angstrom
        transform = torch.fft.rfftn(density.volume) * torch.exp(-frequency.square() * (b_factor / 4))
        blurred: Tensor = torch.fft.irfftn(transform, s=density.volume.shape)
        return blurred

    def as_it_is() -> Tensor:
        return in_box(read_map(entry.path))

    def split() -> tuple[Tensor, Tensor]:
        return tuple(in_box(part) for part in split_map(entry))  # type: ignore[return-value]

    name = entry.path.name.split(".")[0]
    if entry.model is None:
        return ParticleClass(name, entry.share, as_it_is)
    return ParticleClass(name, entry.share, lambda: split()[0], lambda: split()[1])


def split_map(entry: StructureConfig) -> tuple[DensityMap, DensityMap]:
    """A map in two: what its model explains, and its structural noise.

    Raises
    ------
    InputError
        A file cannot be read, or the model was not fitted into the map.
    """
    if entry.model is None or entry.resolution_angstrom is None:
        raise ConfigurationError(f"{entry.path}: no model tells what of the map is noise.")
    return split_by_model(
        read_map(entry.path), read_structure(entry.model), entry.resolution_angstrom, entry.amplitudes
    )


def split_by_model(
    density: DensityMap,
    structure: Structure,
    resolution_angstrom: float,
    amplitudes: Literal["map", "model"] = "map",
) -> tuple[DensityMap, DensityMap]:
    """What `clean_map` leaves of a map, and what else there is to the resolution: its structural noise [1]_.

    References
    ----------
    .. [1] Zhang, Zhao, Hu & Zhao (2024), arXiv:2401.01097: clean images of maps freed of structural noise.
    """
    whole = low_pass_volume(density.volume, resolution_angstrom, density.pixel_size_angstrom)
    kept = clean_map(density, structure, resolution_angstrom=resolution_angstrom, amplitudes=amplitudes)
    return kept, replace(density, volume=whole - kept.volume)
