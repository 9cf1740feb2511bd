"""The plan of a batch: what is to be done to which data, and where it is calculated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ..errors import ConfigurationError
from .base import Section
from .denoise import DenoiseOptions
from .evaluate import EvaluateConfig
from .extract_noise import ExtractNoiseOptions
from .load import validate

Job = Literal["denoise", "extract-noise", "evaluate"]
Options = DenoiseOptions | ExtractNoiseOptions | EvaluateConfig
OPTIONS: Mapping[Job, type[Options]] = {
    "denoise": DenoiseOptions,
    "extract-noise": ExtractNoiseOptions,
    "evaluate": EvaluateConfig,
}
# The kinds of sources by the entry that makes one of it, and what each may say besides what all may.
_ENTRIES = {
    "file": {"root", "passthrough"},
    "relion": {"particles", "micrographs", "newest", "alias"},
    "cryosparc": {"particles", "micrographs", "newest", "workspace", "title"},
}
# The engine decides these for all sources.
_OF_THE_ENGINE = ("device", "threads")


class Certificates(Section):
    """Files in PEM format that driver, scheduler and workers know one another by."""

    authority: Path = Field(description="The certificate that has signed the others.")
    certificate: Path = Field(description="Of driver, scheduler and workers alike.")
    key: Path = Field(description="Of driver, scheduler and workers alike.")


class EngineConfig(Section):
    """Where a batch is calculated."""

    kind: Literal["local", "slurm", "pbs", "lsf", "scheduler"] = Field(
        default="local",
        description=(
            "`local`: workers on this machine. `slurm`, `pbs`, `lsf`: jobs of a queueing system, "
            "through dask-jobqueue. `scheduler`: a running dask scheduler."
        ),
    )
    device: str = Field(
        default="auto",
        description=("Of the workers: `auto`, `cpu`, or GPUs as `cuda:0,1`; a local worker has one of them."),
    )
    workers: int | None = Field(
        default=None, ge=1, description="How many; None is one per GPU, or one per eight CPUs."
    )
    threads: int | None = Field(
        default=None, ge=1, description="CPU threads of a worker; None is its share of this machine's."
    )
    memory: str | None = Field(
        default=None,
        pattern=r"^\d+(\.\d+)? ?[kMGT]i?B$",
        description=(
            "Of a worker, such as `16GB`; one that needs more is restarted. None is its share of "
            "this machine's."
        ),
    )
    range_mb: float = Field(
        default=256.0,
        gt=0,
        allow_inf_nan=False,
        description=(
            "Megabytes of images (as float32) that a worker takes at a time. What a lost worker "
            "loses, and the largest share of a large stack that waits on the disk for its turn."
        ),
    )
    attempts: int = Field(default=3, ge=1, description="How often a range is tried before it is set aside.")
    worker_timeout_seconds: float = Field(
        default=60.0,
        ge=5,
        description=(
            "A worker that has not been heard of for so long counts as lost; dask waits five "
            "seconds at least."
        ),
    )
    start_timeout_seconds: float = Field(
        default=300.0, gt=0, description="How long to wait for the first worker."
    )
    address: str | None = Field(default=None, description="Of the scheduler, `tcp://host:8786`.")
    queue: dict[str, Any] = Field(
        default={},
        description=(
            "What dask-jobqueue is told, such as `queue`, `account`, `walltime`, `cores`, "
            "`job_extra_directives`."
        ),
    )
    dashboard: str | None = Field(
        default=":8787",
        description=(
            "Where dask shows what the workers do: a port of this machine alone, `:8787`, or an "
            "address such as `0.0.0.0:8787`, which anybody on the network can then read; None is "
            "any free port of this machine."
        ),
    )
    interface: str | None = Field(
        default=None,
        description=(
            "The network interface that a queueing system's workers reach this machine by, such "
            "as `ib0`; None is the one that its name stands for."
        ),
    )
    certificates: Certificates | None = Field(
        default=None,
        description=(
            "Keys of the connections between driver, scheduler and workers; None makes new ones "
            "for each batch. A scheduler elsewhere has its own, which have to be named here."
        ),
    )

    @model_validator(mode="after")
    def _fits_together(self) -> EngineConfig:
        if self.interface is not None and self.kind in ("local", "scheduler"):
            raise ValueError("interface belongs to kind: slurm, pbs or lsf")
        if (
            self.kind == "scheduler"
            and self.address
            and self.address.startswith("tls") != bool(self.certificates)
        ):
            raise ValueError("address: tls://… and certificates go together: give both, or neither")
        if (self.kind == "scheduler") != (self.address is not None):
            raise ValueError("address belongs to kind: scheduler, which needs it")
        if self.queue and self.kind in ("local", "scheduler"):
            raise ValueError("queue belongs to kind: slurm, pbs or lsf")
        if self.kind in ("slurm", "pbs", "lsf") and (self.workers is None or self.memory is None):
            raise ValueError(f"kind: {self.kind} needs workers (how many jobs) and memory (of each)")
        return self


class Source(Section):
    """Data of a batch: exactly one of `file`, `relion` and `cryosparc`."""

    name: Annotated[str, Field(pattern=r"^[\w+-][\w.+-]*$")] | None = Field(
        default=None, description="What it is called in logs and reports; made from its path if left out."
    )
    file: str | None = Field(
        default=None, description="A table, stack or micrograph, or a pattern of such, without a project."
    )
    root: Path | None = Field(default=None, description="Of a file, as `cryohush denoise` has them.")
    passthrough: tuple[Path, ...] = Field(
        default=(), description="Of a file, as `cryohush denoise` has them."
    )
    relion: Path | None = Field(default=None, description="A project's folder.")
    cryosparc: Annotated[str, Field(pattern=r"^P\d+$")] | None = Field(
        default=None, description="A project, `P3`."
    )
    workspace: Annotated[str, Field(pattern=r"^W\d+$")] | None = Field(
        default=None,
        description=(
            "Of that project, `W1`: where the job is made, and the newest one is looked for; None "
            "is that of the job that has the images, and all of them."
        ),
    )
    particles: str | None = Field(
        default=None,
        description=(
            "In RELION a STAR file of the project, or a pattern; in cryoSPARC job and output, "
            "`J42:particles`."
        ),
    )
    micrographs: str | None = Field(
        default=None,
        description=(
            "In RELION a STAR file of the project, or a pattern; in cryoSPARC job and output, "
            "`J42:particles`."
        ),
    )
    newest: str | None = Field(
        default=None,
        description=(
            "Instead: a kind of job, of which the newest finished one with images is taken: "
            "`Extract` in RELION, `extract_micrographs_multi` or, with the output, "
            "`select_2D:particles_selected` in cryoSPARC."
        ),
    )
    alias: Annotated[str, Field(pattern=r"^\w[\w.-]+$")] | None = Field(
        default=None, description="What RELION is to call the job."
    )
    title: str | None = Field(default=None, description="What cryoSPARC is to call it.")
    job: Job | None = Field(default=None, description="If it is another than the plan's.")
    options: dict[str, Any] = Field(
        default={},
        description="What differs from the plan's; of a source with another job than the plan's, all.",
    )
    output: Path | None = Field(default=None, description="Folder of the results of a file.")

    @property
    def host(self) -> str:
        """Where the data are: the name of the one entry that says it."""
        return next((name for name in _ENTRIES if getattr(self, name) is not None), "file")

    @model_validator(mode="after")
    def _fits_together(self) -> Source:
        given = self.model_fields_set
        if len(given & set(_ENTRIES)) != 1:
            raise ValueError(f"expected exactly one of {', '.join(_ENTRIES)}")
        allowed = _ENTRIES[self.host] | {"name", "job", "options", self.host}
        allowed |= {"output"} if self.host == "file" else set()
        if wrong := sorted(given - allowed):
            raise ValueError(f"{', '.join(wrong)}: not for a source of the kind {self.host}")
        if self.host != "file" and len(given & {"particles", "micrographs", "newest"}) != 1:
            raise ValueError("expected exactly one of particles, micrographs and newest")
        return self


class BatchPlan(Section):
    """A batch."""

    job: Job = Field(default="denoise", description="What is done to sources that name no job of their own.")
    output: Path = Field(
        description="Folder of the batch's own files, and of the results of sources without a project."
    )
    options: dict[str, Any] = Field(
        default={}, description="Of all sources with the plan's job: those of the command of that name."
    )
    sources: tuple[Source, ...] = Field(min_length=1, description="The data.")
    sources_at_once: int = Field(
        default=3,
        ge=1,
        description="How many sources the workers share, so that none of them idles at the end of one.",
    )
    engine: EngineConfig = Field(default=EngineConfig(), description="Where it is calculated.")

    @field_validator("options")
    @classmethod
    def _are_of_the_sources(cls, options: dict[str, Any]) -> dict[str, Any]:
        for name in _OF_THE_ENGINE:
            if name in options:
                raise ValueError(f"{name} is the engine's: give engine.{name}")
        return options

    def job_of(self, number: int) -> Job:
        """Return what is done to source `number`."""
        return self.sources[number].job or self.job

    def options_of(self, number: int) -> Options:
        """Return the options of source `number` on top of the plan's.

        Those of an evaluation name the source itself as the denoised images.

        Raises
        ------
        ConfigurationError
            If they do not fit; names the source, counted from 1.
        """
        where = f"sources, number {number + 1}: options"
        job, source = self.job_of(number), self.sources[number]
        own = source.options if job != self.job else {**self.options, **source.options}
        for name in _OF_THE_ENGINE:
            if name in own:
                raise ConfigurationError(f"{where}: {name} is the engine's: give engine.{name}")
        if job == "evaluate":
            if "denoised" in own:
                raise ConfigurationError(f"{where}: denoised is the source itself: leave it out")
            own = {**own, "denoised": source.file or source.particles or source.micrographs or source.newest}
        return validate(own, OPTIONS[job], where)
