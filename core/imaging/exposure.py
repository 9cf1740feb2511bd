"""What the exposure does: the phase that a specimen gives to electrons, and radiation damage.

References
----------
.. [1] Grant & Grigorieff (2015) eLife 4, e06980: critical dose and exposure filter.
       doi:10.7554/eLife.06980
.. [2] Vulović et al. (2013) J. Struct. Biol. 183, 19-32: from potential to phase.
       doi:10.1016/j.jsb.2013.05.008
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigurationError
from .ctf import electron_wavelength_angstrom

_REST_ENERGY_KEV = 510.99895
# h² / (2 pi m e) in V Å²: the potential, in volt, of a scattering factor of 1 Å in each Å³.
VOLT_SQUARE_ANGSTROM = 47.87765


def interaction_parameter(voltage_kv: float) -> float:
    """Radians by which 1 V Å of projected potential advances the electrons' phase [2]_: 0.00065 at 300 kV.

    `m e wavelength / 2π ħ²` with the relativistic mass m, which is `gamma wavelength` by `h² / 2π m0 e`.
    """
    wavelength = float(electron_wavelength_angstrom(torch.tensor([voltage_kv]))[0])
    return (1 + voltage_kv / _REST_ENERGY_KEV) * wavelength / VOLT_SQUARE_ANGSTROM


def phase_shift(projections: Tensor, pixel_size_angstrom: float, voltage_kv: float) -> Tensor:
    """Radians by which the specimen advances the electrons' phase: `interaction_parameter` times potential.

    Parameters
    ----------
    projections
        `(..., y, x)` sums along z of a `potential_map`, Å of scattering factor per Å³.
    """
    return projections * (interaction_parameter(voltage_kv) * VOLT_SQUARE_ANGSTROM * pixel_size_angstrom)


def critical_dose(frequency_per_angstrom: Tensor, voltage_kv: float | Tensor = 300.0) -> Tensor:
    """Dose (e/Å²) that leaves 1/e of the intensity of a frequency: `0.245 k^-1.665 + 2.81` at 300 kV [1]_.

    At 200 kV it is 0.8 times as much [1]_; other voltages go by the line through these two.
    """
    share = 0.8 + 0.2 * (voltage_kv - 200.0) / 100.0
    return share * (0.24499 * frequency_per_angstrom.clamp_min(1e-6) ** -1.6649 + 2.8141)


def damage_envelope(
    frequency_per_angstrom: Tensor,
    dose_electrons_per_square_angstrom: float,
    *,
    before_electrons_per_square_angstrom: float = 0.0,
    voltage_kv: float | Tensor = 300.0,
    dose_weighted: bool = False,
) -> Tensor:
    """Amplitude that radiation damage leaves of each frequency in the sum of an exposure, from 0 to 1 [1]_.

    The amplitude after a dose N is `exp(-N / 2 Nc)`, with Nc the `critical_dose`. A plain sum of all frames
    has the mean of it. Dose weighting multiplies each frame by that same amplitude and divides by the root of
    the weights' mean square, so that the noise stays as it was: the signal is left with the root mean square.

    Parameters
    ----------
    dose_electrons_per_square_angstrom
        Of the exposure.
    before_electrons_per_square_angstrom
        What the specimen had suffered before.

    Raises
    ------
    ConfigurationError
        A dose is negative, or there is none.
    """
    begin, dose = before_electrons_per_square_angstrom, dose_electrons_per_square_angstrom
    if not (dose > 0 and begin >= 0):
        raise ConfigurationError(f"expected a positive dose, found {dose} e/Å² after {begin} e/Å².")
    scale = critical_dose(frequency_per_angstrom, voltage_kv) * (1.0 if dose_weighted else 2.0)
    mean = scale / dose * (torch.exp(-begin / scale) - torch.exp(-(begin + dose) / scale))
    return mean.sqrt() if dose_weighted else mean
