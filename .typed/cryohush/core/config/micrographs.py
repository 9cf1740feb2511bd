"""What `cryohush simulate` reads for whole micrographs: one YAML file, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("should be (lowest, highest)")
    return limits


_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Range = Annotated[tuple[_NotNegative, _NotNegative], AfterValidator(_rising)]


def _positive(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] <= 0:
        raise ValueError("should be greater than 0")
    return limits


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MicrographSettings(_Section):
    """What is drawn for each micrograph; pairs are (lowest, highest), drawn uniformly for each one.

    Attributes
    ----------
    shape_px
        (y, x).
    defocus_angstrom, astigmatism_angstrom
        Mean of defocus U and V, and U - V; the axis is random.
    amplitude_contrast
        It also sets how much thickness takes from the beam (`imaging.micrograph`).
    exposure_electrons_per_square_angstrom
        Electrons that count: exposure, e/Å², times the detector's efficiency and the share of them that an
        unfiltered beam did not lose to inelastic scattering. They set the noise.
    b_factor_square_angstrom
        Envelope of everything but the counting noise: motion, damage, coherence, detector. Dose-weighted,
        motion-corrected micrographs have 60 to 150, sums of frames that were not aligned 200 and more.
    detector_roll_off
        Share of the noise's power that is missing at Nyquist; between, it grows with the fourth power of
        the frequency.
    particles_per_square_micrometre
        Density of all species together.
    minimum_distance
        Between centres, in sums of the two radii: 1 lets particles touch, less lets them overlap. Random
        placing covers at most 55 % of the area with discs that do not overlap; what no longer finds a place
        is left out.
    ice_thickness_angstrom
        At the centre of the micrograph.
    ice_gradient
        Change of thickness across the longer side, as a share of the thickness; its direction is random.
    ice_roughness
        Standard deviation of the uneven rest of the thickness, as a share of the thickness.
    ice_structure_factor
        Power of the structure of the ice by that of molecules at random places: low, because water is nearly
        incompressible and moves during the exposure.
    carbon_probability
        Chance that the edge of a hole lies in the micrograph.
    carbon_thickness_angstrom, hole_diameter_angstrom
        Of the support film.
    discs_per_square_micrometre
        Mean density of ice contamination.
    disc_radius_angstrom, disc_thickness_angstrom
        Of an ice crystal, seen from above and at its centre.
    depth_layers
        The particles' heights in the ice are brought to that many layers, each with its own defocus.
    """

    shape_px: tuple[Annotated[int, Field(ge=64)], Annotated[int, Field(ge=64)]] = (4096, 4096)
    pixel_size_angstrom: _Positive = 1.0
    voltage_kv: _Positive = 300.0
    cs_mm: _NotNegative = 2.7
    amplitude_contrast: float = Field(0.1, ge=0, lt=1)
    defocus_angstrom: Range = (8000.0, 25000.0)
    astigmatism_angstrom: Range = (0.0, 500.0)
    exposure_electrons_per_square_angstrom: Annotated[Range, AfterValidator(_positive)] = (20.0, 50.0)
    b_factor_square_angstrom: Range = (80.0, 200.0)
    detector_roll_off: float = Field(0.15, ge=0, lt=1)
    particles_per_square_micrometre: Range = (2000.0, 5000.0)
    minimum_distance: _NotNegative = 0.9
    ice_thickness_angstrom: Range = (250.0, 600.0)
    ice_gradient: Range = (0.0, 0.8)
    ice_roughness: Range = (0.0, 0.08)
    ice_structure_factor: _NotNegative = 0.05
    carbon_probability: float = Field(0.15, ge=0, le=1)
    carbon_thickness_angstrom: Range = (120.0, 200.0)
    hole_diameter_angstrom: _Positive = 12000.0
    discs_per_square_micrometre: _NotNegative = 40.0
    disc_radius_angstrom: Range = (50.0, 150.0)
    disc_thickness_angstrom: Range = (100.0, 400.0)
    depth_layers: int = Field(3, ge=1)


class SpeciesConfig(_Section):
    """One kind of particle.

    Attributes
    ----------
    structure
        PDB or mmCIF file.
    assembly
        Its biological assembly to build, usually "1"; None takes the atoms as they are deposited.
    share
        How many of the particles are of this kind, relative to the other shares.
    """

    structure: Path
    assembly: str | None = None
    share: _Positive = 1.0


class MicrographsConfig(_Section):
    """A set of simulated micrographs.

    Attributes
    ----------
    micrographs
        How many.
    seed
        With the number of a micrograph it fixes everything about it.
    """

    kind: Literal["micrographs"]
    species: tuple[SpeciesConfig, ...] = Field(min_length=1)
    micrographs: int = Field(gt=0)
    seed: int = Field(1, ge=0)
    settings: MicrographSettings = MicrographSettings()
