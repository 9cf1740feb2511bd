"""What `cryohush simulate` reads for particles: one YAML file, unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

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


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StructureConfig(_Section):
    """One structure, or a series of conformations.

    Attributes
    ----------
    path
        PDB or mmCIF file, or a map (`.mrc`, `.map`, gzipped or not).
    to
        A second conformation of the same atoms: with `path` the ends of a series.
    intermediates
        States between the two, at equal steps of each atom's way. Every state is a class of its own.
    share
        How many of the images show it, relative to the other shares; the states of a series share alike.
    b_factor_square_angstrom
        Of every atom, B in Å², or of the whole map; None is 8 times the squared pixel size for atoms and
        0 for maps.
    """

    path: Path
    to: Path | None = None
    intermediates: int = Field(0, ge=0)
    share: _Positive = 1.0
    b_factor_square_angstrom: _NotNegative | None = None

    @model_validator(mode="after")
    def _series(self) -> StructureConfig:
        if self.to is None and "intermediates" in self.model_fields_set:
            raise ValueError("intermediates need a second conformation: set `to`")
        return self


class CtfConfig(_Section):
    """Contrast transfer; pairs are [lowest, highest], drawn uniformly for each image.

    Attributes
    ----------
    tables
        `.npy` tables of real CTF parameters (`cryohush.core.imaging.ctf.read_ctf_table`), of which a row is
        drawn for each image. They take the place of everything else here.
    defocus_angstrom
        Mean of defocus U and V, underfocus positive.
    astigmatism_angstrom
        Defocus U minus V; the axis is random.
    """

    tables: Annotated[tuple[Path, ...], _OneOrMore] = ()
    defocus_angstrom: _Range = (8000.0, 25000.0)
    astigmatism_angstrom: _Range = (0.0, 300.0)
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


class NoiseComponent(_Section):
    """One kind of detector noise.

    Attributes
    ----------
    kind
        `poisson` is the shot noise of the image itself; `patches` are pieces of real noise; the others are
        white unless `spectrum` is given.
    weight
        Share of the detector noise's variance, or of the images (`NoiseConfig.combine`), relative to the
        other components.
    spectrum
        Colours the noise: a text file of frequency (cycles per pixel) and power, or a stack or micrograph of
        the same pixel size (`.mrc`, `.mrcs`) whose spectrum is measured.
    gamma_order
        Shape of the gamma distribution: 1 is speckle, a large one nearly Gaussian.
    electrons_per_pixel
        Mean dose of `poisson`; with the signal-to-noise ratio it fixes the contrast.
    images
        MRC stack of real noise for `patches`, each image at least as large as the box.
    """

    kind: Literal["gaussian", "poisson", "gamma", "rayleigh", "patches"]
    weight: _Positive = 1.0
    spectrum: Path | None = None
    gamma_order: _Positive = 2.0
    electrons_per_pixel: _Positive | None = None
    images: Path | None = None

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


class NoiseConfig(_Section):
    """All noise of an image.

    Attributes
    ----------
    components
        Kinds of the detector noise, which is added after the CTF.
    combine
        Whether each image gets the `sum` of them or `one` of them, drawn by weight.
    ice_share
        Share of the variance of all noise that is structure of the ice, which passes through the CTF.
    ice_frequency
        Width of the ice's Gaussian power spectrum, cycles per pixel.
    """

    components: Annotated[tuple[NoiseComponent, ...], _NotEmpty] = (NoiseComponent(kind="gaussian"),)
    combine: Literal["sum", "one"] = "sum"
    ice_share: float = Field(0.0, ge=0, lt=1)
    ice_frequency: _Positive = 0.15


class ContaminationConfig(_Section):
    """Images replaced by pure noise, to try the robustness of training (Gu et al., arXiv 2008.07307).

    Attributes
    ----------
    share
        Of all images; exactly so many, rounded, are drawn.
    of
        Which counterpart is replaced: the `clean` ones (with and without CTF; type 1), the `noisy` one
        (type 2), or `both` (type 3).
    """

    share: float = Field(gt=0, le=1)
    of: Literal["clean", "noisy", "both"]


class ParticlesConfig(_Section):
    """A set of simulated particle images.

    Attributes
    ----------
    snr
        Variance of the signal (after the CTF) inside the particle's circle by the variance of all noise:
        a number, or a list of which one is drawn for each image.
    snr_range
        In place of `snr`: [lowest, highest], drawn log-uniformly for each image.
    particle_diameter_angstrom
        Of the circle, for the ratio and for the background; None is three quarters of the box.
    symmetry
        Point group, RELION's name (C4, D7, O, I1 ...): directions are uniform on its asymmetric unit.
    poses
        Table (.star or .cs) whose first `n_images` rows give poses and shifts, in place of random ones.
    largest_shift_angstrom
        Of the particle off the centre, along x and y each; drawn uniformly.
    envelope_b_factor_square_angstrom
        B in Å² of an envelope that damps the signal: [lowest, highest], drawn uniformly.
    normalise
        Scale and shift each image so that the background of the noisy one has mean 0 and standard deviation
        1, as RELION's extraction does; else the signal keeps its own scale.
    half_sets
        Write `rlnRandomSubset`.
    particles_per_micrograph
        Images that share a name in `rlnMicrographName`, so that what goes by micrograph (a split for
        validation) has several. Each holds particles of every class, as a real one does.
    outputs
        The stacks: `noisy`; `ctf_only`, the same without noise; `clean`, without CTF and envelope too.
    seed
        With the number of an image it fixes everything that is drawn for it.
    """

    kind: Literal["particles"] = "particles"
    structures: Annotated[tuple[StructureConfig, ...], _NotEmpty]
    n_images: int = Field(gt=0)
    box_px: int = Field(ge=16, multiple_of=2)
    pixel_size_angstrom: _Positive
    snr: Annotated[tuple[_Positive, ...], _OneOrMore] = ()
    snr_range: _PositiveRange | None = None
    particle_diameter_angstrom: _Positive | None = None
    symmetry: str = "C1"
    poses: Path | None = None
    largest_shift_angstrom: _NotNegative = 0.0
    ctf: CtfConfig | None = CtfConfig()
    envelope_b_factor_square_angstrom: _Range = (0.0, 0.0)
    noise: NoiseConfig = NoiseConfig()
    contamination: ContaminationConfig | None = None
    normalise: bool = True
    half_sets: bool = True
    particles_per_micrograph: int = Field(25, gt=0)
    outputs: Annotated[tuple[Output, ...], _NotEmpty] = ("noisy", "ctf_only", "clean")
    seed: int = Field(1, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> ParticlesConfig:
        if bool(self.snr) == (self.snr_range is not None):
            raise ValueError("give a signal-to-noise ratio: either `snr` or `snr_range`")
        drawn = sorted(self.model_fields_set & {"symmetry", "largest_shift_angstrom"})
        if self.poses is not None and drawn:
            raise ValueError(f"the table of `poses` already fixes {', '.join(drawn)}: give either")
        if len(set(self.outputs)) != len(self.outputs):
            raise ValueError("an output is named twice")
        return self
