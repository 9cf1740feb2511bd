"""Forms the images of a simulated set, any stretch of it at a time.

In the order of nature::

    projection, shifted -> x envelope x CTF -> + structure of the ice x envelope x CTF -> + detector noise

The envelope is a B factor, radiation damage and the detector's MTF, as far as the configuration names them.

What is random in a pixel is drawn on the CPU from a generator of the image's own, so an image comes out the
same in whatever company, and on a GPU but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config.denoise import PARTICLE_SHARE_OF_BOX
from ..config.simulate import NoiseComponent, Output, ParticlesConfig
from ..errors import ConfigurationError, InputError
from ..imaging import noise
from ..imaging.ctf import b_factor_envelope, ctf
from ..imaging.detector import detector_gains, read_detector_curve
from ..imaging.exposure import damage_envelope
from ..imaging.normalise import background_mask, background_statistics
from ..imaging.projection import Projector, rotations_from_euler
from ..imaging.resample import shift_phases
from ..imaging.rings import frequency_grid, hermitian_weight
from ..io.mrc import StackReader
from ..io.particles import STACK_SUFFIXES
from ..spread import evenly_spread
from .classes import read_classes
from .draws import ParticleDraws

# Side of the pieces of a micrograph whose spectrum is measured, px.
_PIECE_PX = 256
# Images of real noise that are kept in memory.
_MOST_IMAGES = 1000


@dataclass(frozen=True, eq=False)
class _Component:
    """A kind of noise with what it needs: a power spectrum on the grid, or real images."""

    config: NoiseComponent
    power: Tensor | None
    images: Tensor | None


class ParticleImages:
    """Makes the images of one set.

    Parameters
    ----------
    config
        The set.
    draws
        From `draw_particles`.
    device
        Where projections, transfer functions and Fourier transforms are calculated.

    Raises
    ------
    ConfigurationError
        The particle's circle does not fit into the box.
    InputError
        A file of noise or of the detector cannot be read, or images of noise are smaller than the box.
    """

    def __init__(self, config: ParticlesConfig, draws: ParticleDraws, device: torch.device) -> None:
        self._config, self._draws, self._device = config, draws, device
        self._shape = (config.box_px, config.box_px)
        diameter = config.particle_diameter_angstrom
        diameter = (
            PARTICLE_SHARE_OF_BOX * config.box_px
            if diameter is None
            else (diameter / config.pixel_size_angstrom)
        )
        self._radius_px = diameter / 2
        try:
            self._mask = ~background_mask(self._shape, self._radius_px)
        except ValueError as error:
            raise ConfigurationError(f"particle_diameter_angstrom: {error}.") from error
        self._structural = [one.structural_noise for one in read_classes(config)]
        self._projector: tuple[int, Projector] | None = None
        self._mtf, self._noise_gain = self._detector()
        self._components = [_load(component, self._shape) for component in config.noise.components]

    def form(self, projector: Projector, numbers: Sequence[int]) -> dict[Output, Tensor]:
        """`(n, y, x)` images on the CPU by kind, for 0-based numbers of images of one structure.

        `noisy` less `ctf_only` is the noise, structural noise of a map included. `clean` is on the same
        scale, its surroundings at 0. The signal-to-noise ratio is that of `ctf_only` to the noise of the
        detector and the ice.

        Raises
        ------
        ConfigurationError
            The signal-to-noise ratio cannot be had.
        """
        rows = torch.tensor(numbers)
        clean, signal, transfer = self._signal(projector, rows)
        try:
            fields = self._noise(numbers, signal, transfer, "noise")
            snr = self._draws.snr[rows].to(self._device)
            fields = noise.scale_to_snr(signal, fields, snr, self._mask.to(self._device))
            noisy = signal + fields
            beside = self._structural_noise(int(self._draws.structure[numbers[0]]))
            if beside is not None:
                noisy = noisy + self._signal(beside, rows)[1]
            images = self._contaminated(
                numbers, {"noisy": noisy, "ctf_only": signal, "clean": clean}, transfer
            )
        except ValueError as error:
            raise ConfigurationError(f"images {numbers[0] + 1} to {numbers[-1] + 1}: {error}.") from error
        if self._config.normalise:
            mean, std = background_statistics(images["noisy"], self._radius_px)
            mean, std = mean[:, None, None], std[:, None, None]
            images = {
                "noisy": (images["noisy"] - mean) / std,
                "ctf_only": (images["ctf_only"] - mean) / std,
                "clean": images["clean"] / std,
            }
        return {name: images[name].cpu() for name in self._config.outputs}

    def _detector(self) -> tuple[Tensor | None, Tensor | None]:
        """Factors `(y, x // 2 + 1)` on the amplitudes of the signal and of the noise; that of the noise has a
        mean square of 1 over the full transform, so that the noise keeps its variance."""
        settings = self._config.detector
        if settings is None:
            return None, None
        mtf = read_detector_curve(settings.mtf)
        dqe = None if settings.dqe is None else read_detector_curve(settings.dqe)
        try:
            signal, gain = detector_gains(mtf, self._config.box_px, dqe=dqe, binning=settings.binning)
        except InputError as error:
            raise InputError(error.problem, path=settings.dqe) from error
        weight = hermitian_weight(self._shape)
        gain = gain * (self._config.box_px / (gain.square() * weight).sum().sqrt())
        return signal.to(self._device), None if dqe is None else gain.to(self._device)

    def _structural_noise(self, number: int) -> Projector | None:
        """What projects the structural noise of a class; the last one is kept."""
        volume = self._structural[number]
        if volume is None:
            return None
        if self._projector is None or self._projector[0] != number:
            self._projector = (number, Projector(volume().to(self._device)))
        return self._projector[1]

    def _signal(self, projector: Projector, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projections without and with the microscope's transfer function, and that function."""
        config, draws, device = self._config, self._draws, self._device
        rotations = rotations_from_euler(draws.rot_tilt_psi_degrees[rows])
        specimen = torch.fft.rfft2(projector(rotations.to(device)))
        specimen = specimen * shift_phases(draws.shift_px[rows].to(device), self._shape)
        pixel_size = torch.full((len(rows),), config.pixel_size_angstrom, device=device)
        b_factor = draws.b_factor_square_angstrom[rows].to(device)
        transfer = b_factor_envelope(b_factor, pixel_size, config.box_px)
        if self._mtf is not None:
            transfer = transfer * self._mtf
        if config.exposure is not None:
            voltage = 300.0 if draws.optics is None else draws.optics.voltage_kv[rows, None, None].to(device)
            transfer = transfer * damage_envelope(
                frequency_grid(self._shape, device) / config.pixel_size_angstrom,
                config.exposure.electrons_per_square_angstrom,
                before_electrons_per_square_angstrom=config.exposure.before_electrons_per_square_angstrom,
                voltage_kv=voltage,
                dose_weighted=config.exposure.dose_weighted,
            )
        if draws.optics is not None:
            optics = draws.optics[rows].to(device)
            transfer = transfer * ctf(optics, pixel_size, config.box_px)
        clean: Tensor = torch.fft.irfft2(specimen, s=self._shape)
        signal: Tensor = torch.fft.irfft2(specimen * transfer, s=self._shape)
        return clean, signal, transfer

    def _noise(self, numbers: Sequence[int], signal: Tensor | None, transfer: Tensor, purpose: str) -> Tensor:
        """`(n, y, x)` noise of variance 1, of images that show the signal, or nothing at all."""
        settings, fields, ice = self._config.noise, [], []
        for position, number in enumerate(numbers):
            generator = noise.image_generator(self._config.seed, number, purpose)
            shown = None if signal is None else signal[position].cpu()
            fields.append(self._detector_noise(number, shown, generator))
            if settings.ice_share:
                ice.append(noise.gaussian(self._shape, generator))
        detector = torch.stack(fields).to(self._device)
        if self._noise_gain is not None:
            detector = noise.coloured(detector, self._noise_gain.square())
        if not settings.ice_share:
            return detector
        power = noise.ice_power(transfer, settings.ice_frequency)
        structure = noise.coloured(torch.stack(ice).to(self._device), power)
        return math.sqrt(settings.ice_share) * structure + math.sqrt(1 - settings.ice_share) * detector

    def _detector_noise(self, number: int, signal: Tensor | None, generator: torch.Generator) -> Tensor:
        """`(y, x)` of variance 1: one kind, or the sum of all in the shares of their weights."""
        chosen = int(self._draws.component[number])
        kinds = self._components if chosen < 0 else [self._components[chosen]]
        total = sum(kind.config.weight for kind in kinds)
        shares = [kind.config.weight / total for kind in kinds]
        field = torch.zeros(self._shape)
        for kind, share in zip(kinds, shares, strict=True):
            # the ratio of the signal to this part of the noise alone
            snr = float(self._draws.snr[number]) / (share * (1 - self._config.noise.ice_share))
            field += math.sqrt(share) * self._one_kind(kind, signal, snr, generator)
        return field

    def _one_kind(
        self, kind: _Component, signal: Tensor | None, snr: float, generator: torch.Generator
    ) -> Tensor:
        config = kind.config
        if config.kind == "patches" and kind.images is not None:
            return noise.random_patch(kind.images, self._shape, generator)
        if config.kind == "poisson" and config.electrons_per_pixel is not None:
            dose = config.electrons_per_pixel
            if signal is None:
                expected = torch.full(self._shape, dose)
            else:
                expected = noise.expected_counts(signal, dose, snr, self._mask)
            return (noise.poisson(expected, generator) - expected) / math.sqrt(dose)
        if config.kind == "gamma":
            field = noise.gamma(self._shape, config.gamma_order, generator)
        elif config.kind == "rayleigh":
            field = noise.rayleigh(self._shape, generator)
        else:
            field = noise.gaussian(self._shape, generator)
        return field if kind.power is None else noise.coloured(field, kind.power)

    def _contaminated(
        self, numbers: Sequence[int], images: dict[Output, Tensor], transfer: Tensor
    ) -> dict[Output, Tensor]:
        """Replace what the configuration says by noise as strong as the noisy image's own."""
        positions = [k for k, number in enumerate(numbers) if self._draws.contaminated[number]]
        if self._config.contamination is None or not positions:
            return images
        strength = (images["noisy"] - images["ctf_only"])[positions].std(dim=(1, 2), keepdim=True)

        def pure_noise(purpose: str) -> Tensor:
            own = [numbers[k] for k in positions]
            field = self._noise(own, None, transfer[positions], purpose)
            return field * strength / field.std(dim=(1, 2), keepdim=True)

        replaced = {name: image.clone() for name, image in images.items()}
        if self._config.contamination.of in ("noisy", "both"):
            replaced["noisy"][positions] = pure_noise("noisy contaminant")
        if self._config.contamination.of in ("clean", "both"):
            replaced["ctf_only"][positions] = replaced["clean"][positions] = pure_noise("clean contaminant")
        return replaced


def _load(config: NoiseComponent, shape: tuple[int, int]) -> _Component:
    power = images = None
    if config.spectrum is not None:
        spectrum = (
            noise.measure_spectrum(_read_pieces(config.spectrum))
            if config.spectrum.suffix.lower() in STACK_SUFFIXES
            else noise.read_spectrum(config.spectrum)
        )
        power = spectrum.on_grid(shape)
    if config.images is not None:
        with StackReader(config.images) as reader:
            if min(reader.shape[1:]) < max(shape):
                raise InputError(
                    f"the images are {reader.shape[2]} x {reader.shape[1]} px, the simulated ones "
                    f"{shape[1]} x {shape[0]} px.",
                    path=config.images,
                    remedy="Pieces of noise are cut from them, so they must not be smaller: lower box_px.",
                )
            images = torch.from_numpy(reader.read(evenly_spread(reader.n_images, _MOST_IMAGES)))
    return _Component(config, power, images)


def _read_pieces(path: Path) -> Tensor:
    """`(n, y, x)` images of a stack, or the square pieces of micrographs."""
    with StackReader(path) as reader:
        images = torch.from_numpy(reader.read(evenly_spread(reader.n_images, _MOST_IMAGES)))
    if min(images.shape[-2:]) < 2 * _PIECE_PX:
        return images
    pieces = images.unfold(1, _PIECE_PX, _PIECE_PX).unfold(2, _PIECE_PX, _PIECE_PX)
    return pieces.reshape(-1, _PIECE_PX, _PIECE_PX)
