"""What a batch's plan says of data in a project of RELION."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ..core.config.batch import ProjectSource


class RelionSource(ProjectSource):
    """Images in a project of RELION; exactly one of `particles`, `micrographs` and `newest`."""

    host = "relion"

    relion: Path = Field(description="The project's folder.")
    particles: str | None = Field(default=None, description="A STAR file of the project, or a pattern.")
    micrographs: str | None = Field(default=None, description="A STAR file of the project, or a pattern.")
    newest: str | None = Field(
        default=None,
        description=(
            "Instead: a kind of job, of which the newest finished one with images is taken: `Extract`."
        ),
    )
    alias: Annotated[str, Field(pattern=r"^\w[\w.-]+$")] | None = Field(
        default=None, description="What RELION is to call the job."
    )
