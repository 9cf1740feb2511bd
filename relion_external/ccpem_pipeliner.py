"""A job for the CCP-EM pipeliner and its GUI Doppio.

The pipeliner finds the class by the entry point `cryohush.denoise.particles`. Nothing else imports this
module: `ccpem-pipeliner` is no dependency of cryohush. It goes by exit codes and stops a job with SIGTERM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeliner.display_tools import create_results_display_object, mini_montage_from_starfile
from pipeliner.external_program_utils import ExternalProgram
from pipeliner.job_options import (
    BooleanJobOption,
    FileDescription,
    FloatJobOption,
    InputNodeJobOption,
    StringJobOption,
)
from pipeliner.nodes import NODE_LOGFILE, NODE_PARTICLEGROUPMETADATA
from pipeliner.pipeliner_job import PipelinerCommand, PipelinerJob
from pipeliner.results_display_objects import ResultsDisplayObject

from .. import __version__
from ..core.inference.plan import TABLE_NAME
from ..core.report import PDF_NAME, PNG_NAME

COMMAND = "relion_cryohush"


class DenoiseParticlesJob(PipelinerJob):  # type: ignore[misc]  # the pipeliner has no type information
    """Denoise the particles of a RELION STAR file."""

    PROCESS_NAME = "cryohush.denoise.particles"
    OUT_DIR = "Denoise"

    def __init__(self) -> None:
        super().__init__()
        self.jobinfo.display_name = "cryohush particle denoising"
        self.jobinfo.short_desc = "Denoise particle images for viewing and sorting"
        self.jobinfo.long_desc = (
            "Gives back the same particles with denoised images. Final refinement, FSC and deposition belong "
            "to the raw images, to which RELION's particle subtraction job can revert the result."
        )
        self.jobinfo.version = __version__
        self.jobinfo.job_author = "cryohush"
        self.jobinfo.programs = [ExternalProgram(command=COMMAND, vers_com=[COMMAND, "--version"])]
        self.joboptions["input_particles"] = InputNodeJobOption(
            label="Input particles:",
            node_type=NODE_PARTICLEGROUPMETADATA,
            node_kwds=["relion"],
            pattern=FileDescription("Particles STAR file", [".star"]),
            help_text="A particles STAR file of RELION 3.1 or newer.",
            is_required=True,
        )
        self.joboptions["model"] = StringJobOption(
            label="Model:",
            default_value="general",
            help_text="A shipped model, or the path of a .safetensors file.",
            is_required=True,
        )
        self.joboptions["gpu"] = StringJobOption(
            label="GPUs to use:",
            help_text="As 0 or 0,1. Empty: all that there are, else the CPU.",
            in_continue=True,
        )
        self.joboptions["blend"] = FloatJobOption(
            label="Share of the raw image in the output:",
            default_value=0.0,
            hard_min=0.0,
            hard_max=1.0,
            step_value=0.05,
            help_text="0 gives the denoised image, 1 the raw one.",
            is_required=True,
        )
        self.joboptions["keep_above"] = FloatJobOption(
            label="Keep the raw image beyond this resolution (Å):",
            hard_min=0.0,
            help_text="Empty: the whole image is denoised.",
        )
        self.joboptions["particle_diameter"] = FloatJobOption(
            label="Particle diameter (Å):",
            hard_min=0.0,
            help_text="Outside of it an image is background. Empty: three quarters of the box.",
        )
        self.joboptions["skip_bad"] = BooleanJobOption(
            label="Pass bad images through unchanged?",
            default_value=False,
            help_text="Images with NaN or Inf, or of one value only. No: the job stops at the first one.",
        )
        self.get_runtab_options(threads=True, addtl_args=True)

    def create_output_nodes(self) -> None:
        """Name what the job is going to write."""
        self.add_output_node(TABLE_NAME, NODE_PARTICLEGROUPMETADATA, ["relion", "cryohush", "denoised"])
        self.add_output_node(PDF_NAME, NODE_LOGFILE, ["cryohush"])

    def get_commands(self) -> list[PipelinerCommand]:
        """Return the command line; options that were left empty are left out."""
        command = [COMMAND, "denoise", "--o", self.output_dir]
        command += ["--in_parts", self.joboptions["input_particles"].get_string()]
        command += ["--model", self.joboptions["model"].get_string()]
        command += ["--gpu", self.joboptions["gpu"].get_string()]
        command += ["--j", str(self.joboptions["nr_threads"].get_number())]
        for name in ("blend", "keep_above", "particle_diameter"):
            # get_number() raises on an option that was left empty
            if self.joboptions[name].value is not None:
                command += [f"--{name}", str(self.joboptions[name].get_number())]
        if self.joboptions["skip_bad"].get_boolean():
            command += ["--skip_bad"]
        return [PipelinerCommand(command + self.parse_additional_args())]

    def create_results_display(self) -> Sequence[ResultsDisplayObject]:
        """Return the pictures that Doppio shows."""
        directory = Path(self.output_dir)
        return [
            create_results_display_object(
                "image",
                title="Raw, denoised and removed",
                image_path=str(directory / PNG_NAME),
                image_desc="Top: raw. Middle: denoised. Bottom: what was removed, on the raw images' scale.",
                associated_data=[str(directory / TABLE_NAME)],
            ),
            mini_montage_from_starfile(
                starfile=str(directory / TABLE_NAME),
                block="particles",
                column="_rlnImageName",
                outputdir=self.output_dir,
                title="Denoised particles",
            ),
        ]
