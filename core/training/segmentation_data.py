"""Labelled micrographs for training a segmentation: simulated ones, or the user's with picks and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config.segmentation import OwnMicrographs, SimulatedMicrographs
from ..errors import ConfigurationError, MrcError
from ..imaging.noise import image_generator, uniform
from ..io.coordinates import find_coordinates, read_coordinates
from ..io.micrographs import MicrographSet
from ..io.mrc import StackReader
from ..noise.segmentation import (
    bin_labels,
    bin_micrograph,
    labels_of_picks,
    normalise_robustly,
    working_bin,
)
from ..simulation.micrograph import Species, simulate_micrograph
from .cache import kept_tensors
from .data import structures_in

# Simulated at half of the network's pixel size: nothing finer than 16 Å reaches the network.
_SIMULATED_BIN = 2
_LARGE_DISCS = 5.0


@dataclass(frozen=True, eq=False)
class LabelledMicrographs:
    """Micrographs at the network's pixel size.

    Attributes
    ----------
    names
        Of the structures, or of the micrographs.
    images
        `(y, x)` float16 each, normalised, protein white.
    labels
        `(y, x)` uint8 each.
    """

    names: list[str]
    images: list[Tensor]
    labels: list[Tensor]

    def batch(self, size: int, crop_px: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random crops `(n, 1, y, x)` float32 and their labels `(n, y, x)` int64, in random orientations.

        The grey scale of each is changed a little, as the median and spread of a micrograph depend on what
        else it shows.
        """
        crops, truths = [], []
        for chosen in torch.randint(len(self.images), (size,), generator=generator).tolist():
            pair = torch.stack([self.images[chosen].float(), self.labels[chosen].float()])
            y, x = (
                int(torch.randint(max(side - crop_px, 0) + 1, (1,), generator=generator))
                for side in pair.shape[1:]
            )
            pair = _turned(pair[:, y : y + crop_px, x : x + crop_px], generator)
            scale = 2.0 ** uniform(1, (-0.5, 0.5), generator)
            offset = uniform(1, (-0.4, 0.4), generator)
            crops.append(pair[:1] * scale + offset)
            truths.append(pair[1].long())
        return torch.stack(crops), torch.stack(truths)

    def subset(self, chosen: Sequence[int]) -> LabelledMicrographs:
        """Those micrographs."""
        return LabelledMicrographs(
            [self.names[index] for index in chosen],
            [self.images[index] for index in chosen],
            [self.labels[index] for index in chosen],
        )


def _turned(image: Tensor, generator: torch.Generator) -> Tensor:
    """A random one of the eight orientations."""
    turns, mirrored = (int(torch.randint(limit, (1,), generator=generator)) for limit in (4, 2))
    turned = torch.rot90(image, turns, (-2, -1))
    return turned.flip(-1) if mirrored else turned


def simulated_micrographs(
    config: SimulatedMicrographs, *, held_out: bool, seed: int, cache: Path, log: Callable[[str], None]
) -> LabelledMicrographs:
    """Simulate micrographs of each structure, or read those that `cache` keeps of the same settings.

    Raises
    ------
    ConfigurationError
        A held-out name does not exist, or no structure is left.
    InputError
        A structure cannot be read.
    """
    files = structures_in(config.structures, config.held_out, "simulated", held_out=held_out)
    names = [path.name.split(".")[0] for path in files for _ in range(config.micrographs_per_structure)]

    def simulate() -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        for number, path in enumerate(files):
            generator = image_generator(seed, number, "structure")
            pixel_size = uniform(1, config.pixel_size_angstrom, generator).item()
            species = Species.from_structure(path, pixel_size)
            for repeat in range(config.micrographs_per_structure):
                index = number * config.micrographs_per_structure + repeat
                image, labels = _simulate(config, species, pixel_size, seed, index)
                made[f"image_{index:05d}"], made[f"labels_{index:05d}"] = image, labels
            log(f"{names[index]}: {index + 1} of {len(names)} micrographs")
        return made

    settings = config.model_dump(mode="json", exclude={"structures", "held_out"})
    kept = kept_tensors(cache, {**settings, "seed": seed}, files, simulate, log)
    return LabelledMicrographs(
        names,
        [kept[f"image_{index:05d}"] for index in range(len(names))],
        [kept[f"labels_{index:05d}"] for index in range(len(names))],
    )


def own_micrographs(config: OwnMicrographs, seed: int) -> tuple[LabelledMicrographs, LabelledMicrographs]:
    """Read the user's micrographs with their picks and masks: those to train on, and those to validate with.

    Raises
    ------
    ConfigurationError
        Fewer than two micrographs have picks, or their pixel size is not known.
    InputError
        A file cannot be read, or a mask has another size than its micrograph.
    """
    micrographs = MicrographSet.read(config.micrographs)
    micrographs.check_images()
    labelled = LabelledMicrographs([], [], [])
    for index, path in enumerate(micrographs.stacks):
        picks = find_coordinates(config.picks, path)
        if picks is None:
            continue
        pixel_size = micrographs.pixel_size_angstrom(index)
        if pixel_size is None:
            raise ConfigurationError(f"{config.micrographs} does not say the pixel size of {path.name}.")
        with StackReader(path) as reader:
            image = torch.from_numpy(-reader.read([0])[0])  # protein white
        factor, shape = working_bin(pixel_size), (image.shape[0], image.shape[1])
        labels = labels_of_picks(
            shape,
            torch.from_numpy(read_coordinates(picks)),
            config.particle_radius_angstrom / pixel_size,
            None if config.masks is None else _mask(config.masks / path.name, shape),
        )
        try:
            normalised = normalise_robustly(bin_micrograph(image, factor))
        except ValueError as error:
            raise MrcError(f"{error}.", path=path) from error
        labelled.names.append(path.stem)
        labelled.images.append(normalised.half())
        labelled.labels.append(bin_labels(labels, factor))
    if len(labelled.names) < 2:
        raise ConfigurationError(
            f"own.picks: of the {len(micrographs.stacks)} micrographs of {config.micrographs}, "
            f"{len(labelled.names)} have a coordinate file in {config.picks}; at least two are needed."
        )
    order = torch.randperm(len(labelled.names), generator=torch.Generator().manual_seed(seed)).tolist()
    n_validation = max(1, round(config.validation_share * len(order)))
    return labelled.subset(order[n_validation:]), labelled.subset(order[:n_validation])


def _mask(path: Path, shape: tuple[int, int]) -> Tensor | None:
    """Contamination of a micrograph; None where there is no file, as most have none."""
    if not path.exists():
        return None
    with StackReader(path) as reader:
        if reader.shape != (1, *shape):
            raise MrcError(
                f"expected a mask of {shape[1]} x {shape[0]} px, found {reader.shape[2]} x {reader.shape[1]} "
                f"px and {reader.shape[0]} images.",
                path=path,
            )
        return torch.from_numpy(reader.read([0])[0]) > 0


def _simulate(
    config: SimulatedMicrographs, species: Species, pixel_size_angstrom: float, seed: int, index: int
) -> tuple[Tensor, Tensor]:
    generator = image_generator(seed, index, "contamination")
    density = uniform(1, config.discs_per_square_micrometre, generator).item()
    radius = config.settings.disc_radius_angstrom
    if torch.rand(1, generator=generator).item() < config.large_discs_probability:
        # as much of the area is covered as by the small ones
        density, radius = density / _LARGE_DISCS**2, (radius[1], radius[1] * _LARGE_DISCS)
    settings = config.settings.model_copy(
        update={
            "pixel_size_angstrom": pixel_size_angstrom,
            "discs_per_square_micrometre": density,
            "disc_radius_angstrom": radius,
            "min_distance": uniform(1, config.min_distance, generator).item(),
        }
    )
    simulated = simulate_micrograph([species], settings, seed, index)
    image = normalise_robustly(bin_micrograph(simulated.image, _SIMULATED_BIN))
    return image.half(), bin_labels(simulated.labels, _SIMULATED_BIN)
