"""The classes of a simulated set: structures, and the states of conformational series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.simulate import ParticlesConfig, StructureConfig
from ..errors import ConfigurationError
from ..imaging.maps import read_map, resampled
from ..imaging.morph import conformational_series
from ..imaging.resample import volume_frequency
from ..imaging.structure import Structure, potential_map, read_structure

# The B that a grid needs so that atoms do not alias, times the squared pixel size.
_B_PER_SQUARED_PIXEL = 8.0
_MAP_SUFFIXES = (".mrc", ".map", ".mrc.gz", ".map.gz")


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
    """

    name: str
    share: float
    volume: Callable[[], Tensor]


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
        if entry.path.name.lower().endswith(_MAP_SUFFIXES):
            volumes = [_from_map(entry, config)]
        else:
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


def _from_map(entry: StructureConfig, config: ParticlesConfig) -> tuple[str, Callable[[], Tensor]]:
    if entry.to is not None:
        raise ConfigurationError(f"{entry.path}: a series needs atoms, a map has none: leave `to` out.")
    # read here for its errors, and again when its turn comes, so that one map at a time is in memory
    read_map(entry.path)
    b_factor = entry.b_factor_square_angstrom or 0.0

    def volume() -> Tensor:
        density = resampled(read_map(entry.path), config.pixel_size_angstrom, config.box_px)
        frequency = volume_frequency(density.volume.shape) / config.pixel_size_angstrom
        transform = torch.fft.rfftn(density.volume) * torch.exp(-frequency.square() * (b_factor / 4))
        blurred: Tensor = torch.fft.irfftn(transform, s=density.volume.shape)
        return blurred

    return entry.path.name.split(".")[0], volume
