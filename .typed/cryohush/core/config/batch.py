"""The plan of a batch: what is to be done to which data, and where it is calculated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ..errors import ConfigurationError
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
# What each kind of source may say besides what all may.
_ENTRIES = {
    "file": {"root", "passthrough"},
    "relion": {"particles", "micrographs", "newest", "alias"},
    "cryosparc": {"particles", "micrographs", "newest", "workspace", "title"},
}
# The engine decides these for all sources.
_OF_THE_ENGINE = ("device", "threads")


class Certificates(BaseModel):
    """Files in PEM format that driver, scheduler and workers know one another by.

    Attributes
    ----------
    authority
        The certificate that has signed the others.
    certificate, key
        Of driver, scheduler and workers alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    authority: Path
    certificate: Path
    key: Path


class EngineConfig(BaseModel):
    """Where a batch is calculated.

    Attributes
    ----------
    kind
        `local`: workers on this machine. `slurm`, `pbs`, `lsf`: jobs of a queueing system, through
        dask-jobqueue. `scheduler`: a running dask scheduler.
    device
        Of the workers: `auto`, `cpu`, or GPUs as `cuda:0,1`; a local worker has one of them.
    workers
        How many; None is one per GPU, or one per eight CPUs.
    threads
        CPU threads of a worker; None is its share of this machine's.
    memory
        Of a worker, such as `16GB`; one that needs more is restarted. None is its share of this machine's.
    range_mb
        Megabytes of images (as float32) that a worker takes at a time. What a lost worker loses, and the
        largest share of a large stack that waits on the disk for its turn.
    attempts
        How often a range is tried before it is set aside.
    worker_timeout_seconds
        A worker that has not been heard of for so long counts as lost; dask waits five seconds at least.
    start_timeout_seconds
        How long to wait for the first worker.
    address
        Of the scheduler, `tcp://host:8786`.
    queue
        What dask-jobqueue is told, such as `queue`, `account`, `walltime`, `cores`, `job_extra_directives`.
    dashboard
        Where dask shows what the workers do: a port of this machine alone, `:8787`, or an address such as
        `0.0.0.0:8787`, which anybody on the network can then read; None is any free port of this machine.
    interface
        The network interface that a queueing system's workers reach this machine by, such as `ib0`; None is
        the one that its name stands for.
    certificates
        Keys of the connections between driver, scheduler and workers; None makes new ones for each batch. A
        scheduler elsewhere has its own, which have to be named here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["local", "slurm", "pbs", "lsf", "scheduler"] = "local"
    device: str = "auto"
    workers: int | None = Field(default=None, ge=1)
    threads: int | None = Field(default=None, ge=1)
    memory: str | None = Field(default=None, pattern=r"^\d+(\.\d+)? ?[kMGT]i?B$")
    range_mb: float = Field(default=256.0, gt=0, allow_inf_nan=False)
    attempts: int = Field(default=3, ge=1)
    worker_timeout_seconds: float = Field(default=60.0, ge=5)
    start_timeout_seconds: float = Field(default=300.0, gt=0)
    address: str | None = None
    queue: dict[str, Any] = {}
    dashboard: str | None = ":8787"
    interface: str | None = None
    certificates: Certificates | None = None

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


class Source(BaseModel):
    """Data of a batch: exactly one of `file`, `relion` and `cryosparc`.

    Attributes
    ----------
    name
        What it is called in logs and reports; made from its path if left out.
    file
        A table, stack or micrograph, or a pattern of such, without a project.
    root, passthrough
        Of a file, as `cryohush denoise` has them.
    relion
        A project's folder.
    cryosparc
        A project, `P3`.
    workspace
        Of that project, `W1`: where the job is made, and the newest one is looked for; None is that of the
        job that has the images, and all of them.
    particles, micrographs
        In RELION a STAR file of the project, or a pattern; in cryoSPARC job and output, `J42:particles`.
    newest
        Instead: a kind of job, of which the newest finished one with images is taken: `Extract` in RELION,
        `extract_micrographs_multi` or, with the output, `select_2D:particles_selected` in cryoSPARC.
    alias
        What RELION is to call the job.
    title
        What cryoSPARC is to call it.
    job
        If it is another than the plan's.
    options
        What differs from the plan's; of a source with another job than the plan's, all.
    output
        Folder of the results of a file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")] | None = None
    file: str | None = None
    root: Path | None = None
    passthrough: tuple[Path, ...] = ()
    relion: Path | None = None
    cryosparc: Annotated[str, Field(pattern=r"^P\d+$")] | None = None
    workspace: Annotated[str, Field(pattern=r"^W\d+$")] | None = None
    particles: str | None = None
    micrographs: str | None = None
    newest: str | None = None
    alias: Annotated[str, Field(pattern=r"^\w[\w.-]+$")] | None = None
    title: str | None = None
    job: Job | None = None
    options: dict[str, Any] = {}
    output: Path | None = None

    @property
    def host(self) -> Literal["file", "relion", "cryosparc"]:
        """Where the data are."""
        return "relion" if self.relion else "cryosparc" if self.cryosparc else "file"

    @model_validator(mode="after")
    def _fits_together(self) -> Source:
        given = self.model_fields_set
        if len(given & set(_ENTRIES)) != 1:
            raise ValueError("expected exactly one of file, relion and cryosparc")
        allowed = _ENTRIES[self.host] | {"name", "job", "options", self.host}
        allowed |= {"output"} if self.host == "file" else set()
        if wrong := sorted(given - allowed):
            raise ValueError(f"{', '.join(wrong)}: not for a source of the kind {self.host}")
        if self.host != "file" and len(given & {"particles", "micrographs", "newest"}) != 1:
            raise ValueError("expected exactly one of particles, micrographs and newest")
        return self


class BatchPlan(BaseModel):
    """A batch.

    Attributes
    ----------
    job
        What is done to sources that name no job of their own.
    output
        Folder of the batch's own files, and of the results of sources without a project.
    options
        Of all sources with the plan's job: those of the command of that name.
    sources
        The data.
    sources_at_once
        How many sources the workers share, so that none of them idles at the end of one.
    engine
        Where it is calculated.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: Job = "denoise"
    output: Path
    options: dict[str, Any] = {}
    sources: tuple[Source, ...] = Field(min_length=1)
    sources_at_once: int = Field(default=3, ge=1)
    engine: EngineConfig = EngineConfig()

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
