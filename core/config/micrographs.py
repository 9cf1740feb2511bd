"""What `cryohush simulate` reads for whole micrographs: one YAML file, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from .base import Section


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


class MicrographSettings(Section):
    """What is drawn for each micrograph; pairs are (lowest, highest), drawn uniformly for each one."""

    shape_px: tuple[Annotated[int, Field(ge=64)], Annotated[int, Field(ge=64)]] = Field(
        default=(4096, 4096), description="(y, x)."
    )
    pixel_size_angstrom: _Positive = 1.0
    voltage_kv: _Positive = 300.0
    cs_mm: _NotNegative = 2.7
    amplitude_contrast: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="It also sets how much thickness takes from the beam (`imaging.micrograph`).",
    )
    defocus_angstrom: Range = Field(
        default=(8000.0, 25000.0), description="Mean of defocus U and V, and U - V; the axis is random."
    )
    astigmatism_angstrom: Range = Field(
        default=(0.0, 500.0), description="Mean of defocus U and V, and U - V; the axis is random."
    )
    exposure_electrons_per_square_angstrom: Annotated[Range, AfterValidator(_positive)] = Field(
        default=(20.0, 50.0),
        description=(
            "Electrons that count: exposure, e/Å², times the detector's efficiency and the share "
            "of them that an unfiltered beam did not lose to inelastic scattering. They set the "
            "noise."
        ),
    )
    b_factor_square_angstrom: Range = Field(
        default=(80.0, 200.0),
        description=(
            "Envelope of everything but the counting noise: motion, damage, coherence, detector. "
            "Dose-weighted, motion-corrected micrographs have 60 to 150, sums of frames that were "
            "not aligned 200 and more."
        ),
    )
    detector_roll_off: float = Field(
        default=0.15,
        ge=0,
        lt=1,
        description=(
            "Share of the noise's power that is missing at Nyquist; between, it grows with the "
            "fourth power of the frequency."
        ),
    )
    particles_per_square_micrometre: Range = Field(
        default=(2000.0, 5000.0), description="Density of all species together."
    )
    min_distance: _NotNegative = Field(
        default=0.9,
        description=(
            "Between centres, in sums of the two radii: 1 lets particles touch, less lets them "
            "overlap. Random placing covers at most 55 % of the area with discs that do not "
            "overlap; what no longer finds a place is left out."
        ),
    )
    ice_thickness_angstrom: Range = Field(
        default=(250.0, 600.0), description="At the centre of the micrograph."
    )
    ice_gradient: Range = Field(
        default=(0.0, 0.8),
        description=(
            "Change of thickness across the longer side, as a share of the thickness; its "
            "direction is random."
        ),
    )
    ice_roughness: Range = Field(
        default=(0.0, 0.08),
        description="Standard deviation of the uneven rest of the thickness, as a share of the thickness.",
    )
    ice_structure_factor: _NotNegative = Field(
        default=0.05,
        description=(
            "Power of the structure of the ice by that of molecules at random places: low, "
            "because water is nearly incompressible and moves during the exposure."
        ),
    )
    carbon_probability: float = Field(
        default=0.15, ge=0, le=1, description="Chance that the edge of a hole lies in the micrograph."
    )
    carbon_thickness_angstrom: Range = Field(default=(120.0, 200.0), description="Of the support film.")
    hole_diameter_angstrom: _Positive = Field(default=12000.0, description="Of the support film.")
    discs_per_square_micrometre: _NotNegative = Field(
        default=40.0, description="Mean density of ice contamination."
    )
    disc_radius_angstrom: Range = Field(
        default=(50.0, 150.0), description="Of an ice crystal, seen from above and at its centre."
    )
    disc_thickness_angstrom: Range = Field(
        default=(100.0, 400.0), description="Of an ice crystal, seen from above and at its centre."
    )
    depth_layers: int = Field(
        default=3,
        ge=1,
        description=(
            "The particles' heights in the ice are brought to that many layers, each with its own defocus."
        ),
    )


class SpeciesConfig(Section):
    """One kind of particle."""

    structure: Path = Field(description="PDB or mmCIF file.")
    assembly: str | None = Field(
        default=None,
        description=(
            'Its biological assembly to build, usually "1"; None takes the atoms as they are deposited.'
        ),
    )
    share: _Positive = Field(
        default=1.0, description="How many of the particles are of this kind, relative to the other shares."
    )


class MicrographsConfig(Section):
    """A set of simulated micrographs."""

    kind: Literal["micrographs"]
    species: tuple[SpeciesConfig, ...] = Field(min_length=1)
    micrographs: int = Field(gt=0, description="How many.")
    seed: int = Field(
        default=1, ge=0, description="With the number of a micrograph it fixes everything about it."
    )
    settings: MicrographSettings = MicrographSettings()
