"""What a batch's plan says of data in a project of cryoSPARC."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ..core.config.batch import ProjectSource


class CryosparcSource(ProjectSource):
    """Images in a project of cryoSPARC; exactly one of `particles`, `micrographs` and `newest`."""

    host = "cryosparc"

    cryosparc: Annotated[str, Field(pattern=r"^P\d+$")] = Field(description="The project, `P3`.")
    workspace: Annotated[str, Field(pattern=r"^W\d+$")] | None = Field(
        default=None,
        description=(
            "Of that project, `W1`: where the job is made, and the newest one is looked for; None "
            "is that of the job that has the images, and all of them."
        ),
    )
    particles: str | None = Field(default=None, description="Job and output, `J42:particles`.")
    micrographs: str | None = Field(default=None, description="Job and output, `J42:micrographs`.")
    newest: str | None = Field(
        default=None,
        description=(
            "Instead: a kind of job, of which the newest finished one with images is taken: "
            "`extract_micrographs_multi` or, with the output, `select_2D:particles_selected`."
        ),
    )
    title: str | None = Field(default=None, description="What cryoSPARC is to call the job.")
