"""Jobs for the CCP-EM pipeliner and its GUI Doppio, one for each command of `relion_cryohush`.

The pipeliner finds the classes by entry points, such as `cryohush.denoise.particles`. Nothing else imports
this module: `ccpem-pipeliner` is no dependency of cryohush. It goes by exit codes and stops a job with
SIGTERM. The options of a form are those of the command line, in their order and with their help.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from pipeliner.display_tools import create_results_display_object, mini_montage_from_starfile
from pipeliner.external_program_utils import ExternalProgram
from pipeliner.job_options import (
    BooleanJobOption,
    FileDescription,
    FloatJobOption,
    InputNodeJobOption,
    IntJobOption,
    JobOption,
    JobOptionValidationResult,
    MultipleChoiceJobOption,
    StringJobOption,
)
from pipeliner.nodes import (
    NODE_DENSITYMAP,
    NODE_LOGFILE,
    NODE_MASK3D,
    NODE_MICROGRAPHCOORDSGROUP,
    NODE_MICROGRAPHGROUPMETADATA,
    NODE_MLMODEL,
    NODE_PARTICLEGROUPMETADATA,
)
from pipeliner.pipeliner_job import PipelinerCommand, PipelinerJob
from pipeliner.results_display_objects import ResultsDisplayObject
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .. import __version__
from ..core.advice import USE
from ..core.config.denoise import DenoiseOptions
from ..core.config.evaluate import EvaluateConfig
from ..core.config.extract_noise import ExtractNoiseOptions
from ..core.inference.plan import MICROGRAPH_TABLE_NAME, TABLE_NAME
from ..core.models.weights import WEIGHTS_NAME
from ..core.report import PDF_NAME, PNG_NAME
from .cli import THREADS, Parameter, parameters_of
from .raw_picks import TABLE_NAME as PICKS_NAME
from .train_inputs import TrainOptions

PROGRAM = "relion_cryohush"
_STAR, _MRC = [".star"], [".mrc"]


@dataclass(frozen=True)
class Input:
    """A file of another job.

    Attributes
    ----------
    flag
        Of the command line, without dashes; also the name in the form.
    node_type, kind
        What the pipeliner offers for it, and what is said of it.
    is_required
        Whether the job cannot do without.
    """

    flag: str
    node_type: str
    kind: str
    endings: Sequence[str]
    is_required: bool = True


PARTICLES = Input("in_parts", NODE_PARTICLEGROUPMETADATA, "particles", _STAR)
MICROGRAPHS = Input("in_mics", NODE_MICROGRAPHGROUPMETADATA, "micrographs", _STAR)
COORDINATES = Input("in_coords", NODE_MICROGRAPHCOORDSGROUP, "coordinates", _STAR)


class CryohushJob(PipelinerJob):  # type: ignore[misc]  # the pipeliner has no type information
    """A command of `relion_cryohush`; the subclasses say which."""

    COMMAND: ClassVar[str]
    OPTIONS: ClassVar[type[BaseModel] | None] = None
    INPUTS: ClassVar[Sequence[Input]]
    TITLE: ClassVar[str]
    SHORT: ClassVar[str]
    LONG: ClassVar[str] = ""
    # File, type and keywords of each output, but for the report.
    OUTPUTS: ClassVar[Sequence[tuple[str, str, list[str]]]] = ()
    HAS_REPORT: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.jobinfo.display_name = self.TITLE
        self.jobinfo.short_desc = self.SHORT
        self.jobinfo.long_desc = self.LONG or self.SHORT
        self.jobinfo.version = __version__
        self.jobinfo.job_author = "cryohush"
        self.jobinfo.programs = [ExternalProgram(command=PROGRAM, vers_com=[PROGRAM, "--version"])]
        for entry in self.INPUTS:
            self.joboptions[entry.flag] = InputNodeJobOption(
                label=f"Input {entry.kind}:",
                node_type=entry.node_type,
                pattern=FileDescription(entry.kind.capitalize(), list(entry.endings)),
                help_text=f"{entry.kind.capitalize()} of RELION 3.1 or newer, or of another job.",
                is_required=entry.is_required,
            )
        self._defaults: dict[str, str] = {}
        for parameter in self._parameters():
            made = _job_option(parameter, self.OPTIONS)
            self.joboptions[_name(parameter)] = made
            self._defaults[_name(parameter)] = made.get_string()
        self.get_runtab_options(threads=True, addtl_args=True)

    def _parameters(self) -> list[Parameter]:
        """Return the options of the command; the pipeliner has a form of its own for the threads."""
        return [] if self.OPTIONS is None else [one for one in parameters_of(self.COMMAND) if one != THREADS]

    def create_output_nodes(self) -> None:
        """Name what the job is going to write."""
        for name, node_type, keywords in self.OUTPUTS:
            self.add_output_node(name, node_type, keywords)
        if self.HAS_REPORT:
            self.add_output_node(PDF_NAME, NODE_LOGFILE, ["cryohush"])

    def get_commands(self) -> list[PipelinerCommand]:
        """Return the command line; options that were left as they are, or empty, are left out."""
        command = [PROGRAM, self.COMMAND, "--o", self.output_dir]
        for entry in self.INPUTS:
            if path := self.joboptions[entry.flag].get_string():
                command += [f"--{entry.flag}", path]
        for name, default in self._defaults.items():
            text = self.joboptions[name].get_string()
            if text not in ("", default):
                command += [f"--{name}", text]
        command += ["--j", str(self.joboptions["nr_threads"].get_number())]
        return [PipelinerCommand(command + self.parse_additional_args())]

    def create_results_display(self) -> Sequence[ResultsDisplayObject]:
        """Return what Doppio shows: the report."""
        path = Path(self.output_dir) / PDF_NAME
        if not path.exists():
            return []
        return [create_results_display_object("pdffile", title="Report", file_path=str(path))]


class _DenoiseJob(CryohushJob):
    """Denoising, whose pictures are shown."""

    OUT_DIR = "Denoise"
    COMMAND = "denoise"
    OPTIONS = DenoiseOptions

    def create_results_display(self) -> Sequence[ResultsDisplayObject]:
        """Return the pictures, and a montage of the denoised images."""
        directory = Path(self.output_dir)
        table = str(directory / self.OUTPUTS[0][0])
        shown = [
            create_results_display_object(
                "image",
                title="Raw, denoised and removed",
                image_path=str(directory / PNG_NAME),
                image_desc="Top: raw. Middle: denoised. Bottom: what was removed, on the raw images' scale.",
                associated_data=[table],
            )
        ]
        if self.INPUTS == (PARTICLES,):
            shown.append(
                mini_montage_from_starfile(
                    starfile=table,
                    block="particles",
                    column="_rlnImageName",
                    outputdir=self.output_dir,
                    title="Denoised particles",
                )
            )
        return [*shown, *super().create_results_display()]


class DenoiseParticlesJob(_DenoiseJob):
    """Denoise the particles of a STAR file."""

    PROCESS_NAME = "cryohush.denoise.particles"
    INPUTS = (PARTICLES,)
    OUTPUTS = ((TABLE_NAME, NODE_PARTICLEGROUPMETADATA, ["relion", "cryohush", "denoised"]),)
    TITLE = "cryohush particle denoising"
    SHORT = "Denoise particle images for viewing and sorting"
    LONG = (
        f"Gives back the same particles with denoised images. {USE} RELION's particle subtraction job can "
        "revert them."
    )


class DenoiseMicrographsJob(_DenoiseJob):
    """Denoise the micrographs of a STAR file."""

    PROCESS_NAME = "cryohush.denoise.micrographs"
    INPUTS = (MICROGRAPHS,)
    OUTPUTS = ((MICROGRAPH_TABLE_NAME, NODE_MICROGRAPHGROUPMETADATA, ["relion", "cryohush", "denoised"]),)
    TITLE = "cryohush micrograph denoising"
    SHORT = "Denoise micrographs for viewing and picking"
    LONG = "Pick on the denoised micrographs, bring the picks to the raw ones, and extract from those."


class RawPicksJob(CryohushJob):
    """Bring picks on denoised micrographs to the raw ones."""

    PROCESS_NAME = "cryohush.raw_picks"
    OUT_DIR = "RawPicks"
    COMMAND = "raw-picks"
    INPUTS = (COORDINATES,)
    OUTPUTS = ((PICKS_NAME, NODE_MICROGRAPHCOORDSGROUP, ["relion", "cryohush"]),)
    HAS_REPORT = False
    TITLE = "cryohush picks for raw micrographs"
    SHORT = "Bring picks on denoised micrographs to the raw ones"
    LONG = "The same coordinates under the raw micrographs' names, for extraction."


class ExtractNoiseJob(CryohushJob):
    """Cut blocks of noise out of micrographs."""

    PROCESS_NAME = "cryohush.extract_noise"
    OUT_DIR = "ExtractNoise"
    COMMAND = "extract-noise"
    OPTIONS = ExtractNoiseOptions
    INPUTS = (MICROGRAPHS,)
    TITLE = "cryohush blocks of noise"
    SHORT = "Cut blocks of pure noise out of raw micrographs"


class TrainJob(CryohushJob):
    """Train a model on particles and their map, on twins of them, or on even and odd frames."""

    PROCESS_NAME = "cryohush.train"
    OUT_DIR = "TrainDenoiser"
    COMMAND = "train"
    OPTIONS = TrainOptions
    INPUTS = (
        replace(PARTICLES, is_required=False),
        replace(MICROGRAPHS, kind="micrographs with even and odd frames", is_required=False),
        replace(COORDINATES, is_required=False),
        Input("in_3dref", NODE_DENSITYMAP, "3D reference", _MRC, is_required=False),
        Input("in_mask", NODE_MASK3D, "3D mask", _MRC, is_required=False),
    )
    TITLE = "cryohush training"
    SHORT = "Train a denoiser on your own particles or micrographs"
    LONG = (
        "Needs particles of a 3D refinement and its map; or a second set of the same particles (twin); or "
        "micrographs of a motion correction that kept the sums of even and of odd frames, and then, if you "
        "like, particles or coordinates that say where to look."
    )

    def additional_joboption_validation(self) -> list[JobOptionValidationResult]:
        """Return what is wrong with the form: nothing to learn from."""
        sources = [self.joboptions[entry.flag] for entry in self.INPUTS[:2]]
        if any(source.value for source in sources):
            return []
        return [JobOptionValidationResult("error", sources, "Particles or micrographs are needed.")]

    def create_output_nodes(self) -> None:
        """Name the model, of which there are two in folders of their own for half sets, and the report."""
        halves = ("half1/", "half2/") if self.joboptions["half_sets"].get_boolean() else ("",)
        for half in halves:
            self.add_output_node(f"{half}{WEIGHTS_NAME}", NODE_MLMODEL, ["cryohush"])
        super().create_output_nodes()


class EvaluateJob(CryohushJob):
    """Measure denoised images."""

    OUT_DIR = "EvaluateDenoised"
    COMMAND = "evaluate"
    OPTIONS = EvaluateConfig


class EvaluateParticlesJob(EvaluateJob):
    """Measure denoised particles."""

    PROCESS_NAME = "cryohush.evaluate.particles"
    INPUTS = (PARTICLES,)
    TITLE = "cryohush evaluation of particles"
    SHORT = "Measure how good denoised particles are"


class EvaluateMicrographsJob(EvaluateJob):
    """Measure denoised micrographs."""

    PROCESS_NAME = "cryohush.evaluate.micrographs"
    INPUTS = (MICROGRAPHS,)
    TITLE = "cryohush evaluation of micrographs"
    SHORT = "Measure how good denoised micrographs are"


def _name(parameter: Parameter) -> str:
    return parameter[0].lstrip("-")


def _job_option(parameter: Parameter, model: type[BaseModel] | None) -> JobOption[Any]:
    """Return the entry of the form for an option of the command line."""
    _, name, _, text = parameter
    label = text.partition(" (default")[0]
    given: dict[str, Any] = {"label": f"{label[0].upper()}{label[1:]}:", "help_text": text}
    field = None if model is None else model.model_fields.get(name)
    if field is None:
        return StringJobOption(**given)
    kinds = _kinds(field)
    if kinds == [bool]:
        return BooleanJobOption(default_value=bool(field.default), **given)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if len(kinds) == 1 and choices and field.default is not None:
        return MultipleChoiceJobOption(choices=choices, default_value=field.default, **given)
    for kind, made in ((int, IntJobOption), (float, FloatJobOption)):
        if kinds == [kind]:
            return made(default_value=field.default, **given)
    default = "" if field.default in (None, ()) else str(field.default)
    return StringJobOption(default_value=default, **given)


def _kinds(field: FieldInfo) -> list[Any]:
    """Return the alternatives of a field's type, without None."""
    kind = field.annotation
    kinds = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return [one for one in kinds if one is not type(None)]
