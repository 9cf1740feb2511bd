"""What `cryohush simulate` reads for particles: one YAML file, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from .base import Section

Output = Literal["noisy", "ctf_only", "clean"]
_T = TypeVar("_T")


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError("should be [lowest, highest]")
    return limits


def _not_empty(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if not values:
        raise ValueError("at least one is needed")
    return values


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (int, float, str)) else value


_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Range = Annotated[tuple[_NotNegative, _NotNegative], AfterValidator(_rising)]
_PositiveRange = Annotated[tuple[_Positive, _Positive], AfterValidator(_rising)]
_OneOrMore = BeforeValidator(_as_list)
_NotEmpty = AfterValidator(_not_empty)


class StructureConfig(Section):
    """One structure, or a series of conformations."""

    path: Path = Field(description="PDB or mmCIF file, or a map (`.mrc`, `.map`, gzipped or not).")
    model: Path | None = Field(
        default=None,
        description=(
            "Of a map: the atomic model fitted into it. Noisy images then show the map with its structural "
            "noise, the others what `imaging.maps.clean_map` leaves of it within the model."
        ),
    )
    resolution_angstrom: _Positive | None = Field(
        default=None, description="Of a map with a `model`: what is finer is left out of all images."
    )
    amplitudes: Literal["map", "model"] = Field(
        default="map",
        description=(
            "Of a map with a `model`: whether the cleaned map is the masked `map`, or the `model`'s "
            "potential with the map's power in each shell."
        ),
    )
    to: Path | None = Field(
        default=None, description="A second conformation of the same atoms: with `path` the ends of a series."
    )
    intermediates: int = Field(
        default=0,
        ge=0,
        description=(
            "States between the two, at equal steps of each atom's way. Every state is a class of its own."
        ),
    )
    share: _Positive = Field(
        default=1.0,
        description=(
            "How many of the images show it, relative to the other shares; the states of a series "
            "share alike."
        ),
    )
    b_factor_square_angstrom: _NotNegative | None = Field(
        default=None,
        description=(
            "Of every atom, B in Å², or of the whole map; None is 8 times the squared pixel size "
            "for atoms and 0 for maps."
        ),
    )

    @model_validator(mode="after")
    def _series(self) -> StructureConfig:
        if self.to is None and "intermediates" in self.model_fields_set:
            raise ValueError("intermediates need a second conformation: set `to`")
        if (self.model is None) != (self.resolution_angstrom is None):
            raise ValueError("model and resolution_angstrom belong together: give both, or neither")
        return self


class CtfConfig(Section):
    """Contrast transfer; pairs are [lowest, highest], drawn uniformly for each image."""

    tables: Annotated[tuple[Path, ...], _OneOrMore] = Field(
        default=(),
        description=(
            "`.npy` tables of real CTF parameters (`cryohush.core.imaging.ctf.read_ctf_table`), "
            "of which a row is drawn for each image. They take the place of everything else here."
        ),
    )
    defocus_angstrom: _Range = Field(
        default=(8000.0, 25000.0), description="Mean of defocus U and V, underfocus positive."
    )
    astigmatism_angstrom: _Range = Field(
        default=(0.0, 300.0), description="Defocus U minus V; the axis is random."
    )
    phase_shift_degrees: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=180)], Annotated[float, Field(ge=0, lt=180)]],
        AfterValidator(_rising),
    ] = (0.0, 0.0)
    voltage_kv: _Positive = 300.0
    cs_mm: _NotNegative = 2.7
    amplitude_contrast: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _tables_or_ranges(self) -> CtfConfig:
        others = sorted(self.model_fields_set - {"tables"})
        if self.tables and others:
            raise ValueError(f"tables already fix {', '.join(others)}: give either")
        return self


class NoiseComponent(Section):
    """One kind of detector noise."""

    kind: Literal["gaussian", "poisson", "gamma", "rayleigh", "patches"] = Field(
        description=(
            "`poisson` is the shot noise of the image itself; `patches` are pieces of real noise; "
            "the others are white unless `spectrum` is given."
        )
    )
    weight: _Positive = Field(
        default=1.0,
        description=(
            "Share of the detector noise's variance, or of the images (`NoiseConfig.combine`), "
            "relative to the other components."
        ),
    )
    spectrum: Path | None = Field(
        default=None,
        description=(
            "Colours the noise: a text file of frequency (cycles per pixel) and power, or a stack "
            "or micrograph of the same pixel size (`.mrc`, `.mrcs`) whose spectrum is measured."
        ),
    )
    gamma_order: _Positive = Field(
        default=2.0, description="Shape of the gamma distribution: 1 is speckle, a large one nearly Gaussian."
    )
    electrons_per_pixel: _Positive | None = Field(
        default=None,
        description="Mean dose of `poisson`; with the signal-to-noise ratio it fixes the contrast.",
    )
    images: Path | None = Field(
        default=None,
        description="MRC stack of real noise for `patches`, each image at least as large as the box.",
    )

    @model_validator(mode="after")
    def _fits_kind(self) -> NoiseComponent:
        used = {"poisson": {"electrons_per_pixel"}, "patches": {"images"}}.get(self.kind, {"spectrum"})
        needed = used - {"spectrum"}
        if missing := sorted(name for name in needed if getattr(self, name) is None):
            raise ValueError(f"{self.kind} noise needs {', '.join(missing)}")
        allowed = {"kind", "weight", *used, *({"gamma_order"} if self.kind == "gamma" else ())}
        if useless := sorted(self.model_fields_set - allowed):
            raise ValueError(f"{self.kind} noise has no {', '.join(useless)}")
        return self


class NoiseConfig(Section):
    """All noise of an image."""

    components: Annotated[tuple[NoiseComponent, ...], _NotEmpty] = Field(
        default=(NoiseComponent(kind="gaussian"),),
        description="Kinds of the detector noise, which is added after the CTF.",
    )
    combine: Literal["sum", "one"] = Field(
        default="sum",
        description="Whether each image gets the `sum` of them or `one` of them, drawn by weight.",
    )
    ice_share: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description=(
            "Share of the variance of all noise that is structure of the ice, which passes through the CTF."
        ),
    )
    ice_frequency: _Positive = Field(
        default=0.15, description="Width of the ice's Gaussian power spectrum, cycles per pixel."
    )


class DetectorConfig(Section):
    """What the detector does to signal and noise (`imaging.detector`)."""

    mtf: Path = Field(
        description=(
            "STAR file of the MTF, which damps the signal: `rlnResolutionInversePixel` and `rlnMtfValue`, as "
            "RELION's own MTF files."
        )
    )
    dqe: Path | None = Field(
        default=None,
        description=(
            "The DQE in the same columns; with the MTF it gives the noise its spectrum. None leaves it "
            "white, which that of counting detectors nearly is."
        ),
    )
    binning: _Positive = Field(
        default=1.0,
        description="Pixel size of the images over that of the detector; 0.5 is super-resolution.",
    )


class ExposureConfig(Section):
    """Radiation damage (Grant & Grigorieff 2015, doi:10.7554/eLife.06980), which damps the signal."""

    electrons_per_square_angstrom: _Positive = Field(description="Of the exposure.")
    before_electrons_per_square_angstrom: _NotNegative = Field(
        default=0.0, description="What the specimen had suffered before."
    )
    dose_weighted: bool = Field(
        default=True, description="Whether frames were weighted by what the damage left, or just added up."
    )


class ContaminationConfig(Section):
    """Images replaced by pure noise, to try the robustness of training (Gu et al., arXiv 2008.07307)."""

    share: float = Field(gt=0, le=1, description="Of all images; exactly so many, rounded, are drawn.")
    of: Literal["clean", "noisy", "both"] = Field(
        description=(
            "Which counterpart is replaced: the `clean` ones (with and without CTF; type 1), the "
            "`noisy` one (type 2), or `both` (type 3)."
        )
    )


class ParticlesConfig(Section):
    """A set of simulated particle images."""

    kind: Literal["particles"] = "particles"
    structures: Annotated[tuple[StructureConfig, ...], _NotEmpty]
    n_images: int = Field(gt=0)
    box_px: int = Field(ge=16, multiple_of=2)
    pixel_size_angstrom: _Positive
    snr: Annotated[tuple[_Positive, ...], _OneOrMore] = Field(
        default=(),
        description=(
            "Variance of the signal (after the CTF) inside the particle's circle by the variance "
            "of all noise: a number, or a list of which one is drawn for each image."
        ),
    )
    snr_range: _PositiveRange | None = Field(
        default=None, description="In place of `snr`: [lowest, highest], drawn log-uniformly for each image."
    )
    particle_diameter_angstrom: _Positive | None = Field(
        default=None,
        description=(
            "Of the circle, for the ratio and for the background; None is three quarters of the box."
        ),
    )
    symmetry: str = Field(
        default="C1",
        description=(
            "Point group, RELION's name (C4, D7, O, I1 ...): directions are uniform on its asymmetric unit."
        ),
    )
    poses: Path | None = Field(
        default=None,
        description=(
            "Table (.star or .cs) whose first `n_images` rows give poses and shifts, in place of random ones."
        ),
    )
    max_shift_angstrom: _NotNegative = Field(
        default=0.0, description="Of the particle off the centre, along x and y each; drawn uniformly."
    )
    ctf: CtfConfig | None = CtfConfig()
    envelope_b_factor_square_angstrom: _Range = Field(
        default=(0.0, 0.0),
        description="B in Å² of an envelope that damps the signal: [lowest, highest], drawn uniformly.",
    )
    exposure: ExposureConfig | None = None
    detector: DetectorConfig | None = None
    noise: NoiseConfig = NoiseConfig()
    contamination: ContaminationConfig | None = None
    normalise: bool = Field(
        default=True,
        description=(
            "Scale and shift each image so that the background of the noisy one has mean 0 and "
            "standard deviation 1, as RELION's extraction does; else the signal keeps its own "
            "scale."
        ),
    )
    half_sets: bool = Field(default=True, description="Write `rlnRandomSubset`.")
    particles_per_micrograph: int = Field(
        default=25,
        gt=0,
        description=(
            "Images that share a name in `rlnMicrographName`, so that what goes by micrograph (a "
            "split for validation) has several. Each holds particles of every class, as a real "
            "one does."
        ),
    )
    outputs: Annotated[tuple[Output, ...], _NotEmpty] = Field(
        default=("noisy", "ctf_only", "clean"),
        description=(
            "The stacks: `noisy`; `ctf_only`, the same without noise; `clean`, without CTF and envelope too."
        ),
    )
    seed: int = Field(
        default=1, ge=0, description="With the number of an image it fixes everything that is drawn for it."
    )

    @model_validator(mode="after")
    def _consistent(self) -> ParticlesConfig:
        if bool(self.snr) == (self.snr_range is not None):
            raise ValueError("give a signal-to-noise ratio: either `snr` or `snr_range`")
        drawn = sorted(self.model_fields_set & {"symmetry", "max_shift_angstrom"})
        if self.poses is not None and drawn:
            raise ValueError(f"the table of `poses` already fixes {', '.join(drawn)}: give either")
        measured = any(one.spectrum or one.images for one in self.noise.components)
        if measured and self.detector is not None and self.detector.dqe is not None:
            raise ValueError("noise of a `spectrum` or `patches` has seen a detector: leave `dqe` out")
        if len(set(self.outputs)) != len(self.outputs):
            raise ValueError("an output is named twice")
        return self
