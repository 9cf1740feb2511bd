"""The plan of a batch: what is to be done to which data, and where it is calculated."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from ..errors import ConfigurationError
from ..registry import Registry
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
    """Data of a batch, by the host that has them: what every source may say, whatever its host.

    A host's own model names the host as `host`, which is also the entry that makes a source one of that host.
    """

    host: ClassVar[str]

    name: Annotated[str, Field(pattern=r"^[\w+-][\w.+-]*$")] | None = Field(
        default=None, description="What it is called in logs and reports; made from its path if left out."
    )
    job: Job | None = Field(default=None, description="If it is another than the plan's.")
    options: dict[str, Any] = Field(
        default={},
        description="What differs from the plan's; of a source with another job than the plan's, all.",
    )

    @property
    @abstractmethod
    def images(self) -> str:
        """What it says of its images: until the host has found them, an evaluation's denoised ones."""


class FileSource(Source):
    """A table, stack or micrograph without a project."""

    host = "file"

    file: str = Field(description="A table, stack or micrograph, or a pattern of such.")
    root: Path | None = Field(default=None, description="As `cryohush denoise` has it.")
    passthrough: tuple[Path, ...] = Field(default=(), description="As `cryohush denoise` has them.")
    output: Path | None = Field(default=None, description="Folder of the results.")

    @property
    def images(self) -> str:
        """See `Source`."""
        return self.file


class ProjectSource(Source):
    """Images in a project of a host; exactly one of `particles`, `micrographs` and `newest`."""

    particles: str | None = Field(default=None, description="Particles of the project.")
    micrographs: str | None = Field(default=None, description="Micrographs of the project.")
    newest: str | None = Field(
        default=None,
        description="Instead: a kind of job, of which the newest finished one with images is taken.",
    )

    @property
    def images(self) -> str:
        """See `Source`."""
        return self.particles or self.micrographs or self.newest or ""

    @model_validator(mode="after")
    def _says_which(self) -> ProjectSource:
        if len(self.model_fields_set & {"particles", "micrographs", "newest"}) != 1:
            raise ValueError("expected exactly one of particles, micrographs and newest")
        return self


#: the models of sources, by the host that has them
HOSTS: Registry[type[Source]] = Registry("host", {"file": FileSource}, "cryohush.hosts")


@functools.cache
def host_sources() -> Mapping[str, type[Source]]:
    """Return `HOSTS`, which are looked for once."""
    return dict(HOSTS)


def _of_its_host(values: Any) -> Any:
    """Return the source that a mapping is: which of the hosts it names decides what else it may say."""
    if not isinstance(values, Mapping):
        return values
    models = host_sources()
    named = [name for name in models if name in values]
    if len(named) != 1:
        raise ValueError(f"expected exactly one of {', '.join(models)}")
    model = models[named[0]]
    known = {key for one in models.values() for key in one.model_fields}
    if wrong := sorted(known & set(values) - set(model.model_fields)):
        raise ValueError(f"{', '.join(wrong)}: not for a source of the kind {named[0]}")
    return model.model_validate(values)


class BatchPlan(Section):
    """A batch."""

    job: Job = Field(default="denoise", description="What is done to sources that name no job of their own.")
    output: Path = Field(
        description="Folder of the batch's own files, and of the results of sources without a project."
    )
    options: dict[str, Any] = Field(
        default={}, description="Of all sources with the plan's job: those of the command of that name."
    )
    sources: tuple[Annotated[SerializeAsAny[Source], BeforeValidator(_of_its_host)], ...] = Field(
        min_length=1, description="The data."
    )
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
            own = {**own, "denoised": source.images}
        return validate(own, OPTIONS[job], where)
