"""Where a run calculates: on the devices of this process, or, by the same methods, on a batch's workers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ..config.denoise import DenoiseOptions
from ..context.contexts import StackContexts
from ..errors import DeviceError
from ..io.journal import Journal
from ..models.weights import LoadedModel
from .denoiser import Denoiser
from .devices import Precision, available_threads, choose_batch_size, choose_precision, keep_freed_memory
from .feeding import Denoised, Feeding, Images, Worker
from .micrograph_denoiser import MicrographDenoiser
from .plan import Piece, StackPlan
from .stream import (
    BATCHES_PER_WORKER,
    MICROGRAPHS_PER_WORKER,
    ImageOptions,
    StreamResult,
    denoise_stacks,
    micrograph_worker,
    particle_worker,
)
from .tiling import Tiling, plan_tiles

# Two workers keep a GPU busy: one calculates while the other one's images travel.
WORKERS_PER_GPU = 2
# The longest batch, of a model that goes through its network a thousand times, takes minutes.
GPU_PATIENCE_SECONDS = 1800.0


@dataclass(frozen=True)
class Choices:
    """What `auto` came to when a run began; a resumed run keeps it, whatever would be measured now.

    Attributes
    ----------
    precision
        Number format of the network.
    batch_sizes
        Images at once by their `(y, x)`; of micrographs the batches are those of their tiles.
    """

    precision: Precision
    batch_sizes: dict[tuple[int, int], int]


@dataclass(frozen=True, eq=False)
class Task:
    """The stacks of a run and how they are denoised: all that an engine needs to know.

    Attributes
    ----------
    model, options, choices
        With what, and how.
    stacks
        The plan.
    are_micrographs
        Whether each is one whole micrograph.
    label
        Goes into the headers.
    contexts
        What the stacks know of their particles; None for networks without context.
    """

    model: LoadedModel
    options: DenoiseOptions
    choices: Choices
    stacks: Sequence[StackPlan]
    are_micrographs: bool
    label: str
    contexts: StackContexts | None = None


class Engine(Protocol):
    """Where a run calculates."""

    @property
    def names(self) -> list[str]:
        """The devices, for the log and the record."""

    @property
    def types(self) -> list[str]:
        """Their kinds, sorted: `cpu`, `cuda`. The last bit of a result depends on them."""

    @property
    def threads(self) -> int:
        """How many batches are denoised at the same time."""

    def choose(
        self,
        model: LoadedModel,
        options: DenoiseOptions,
        shapes: Sequence[tuple[int, int]],
        *,
        are_micrographs: bool,
    ) -> tuple[Choices, str]:
        """Return what suits the devices, and why this precision."""

    def denoise(
        self,
        task: Task,
        output_dir: Path,
        journal: Journal,
        progress: Callable[[int, int], None],
        should_stop: Callable[[], bool],
    ) -> StreamResult:
        """Denoise what the journal does not hold as finished; see `denoise_stacks`."""


class LocalDevices:
    """The devices of this process, each fed by threads."""

    def __init__(self, devices: Sequence[torch.device], threads: int | None = None) -> None:
        keep_freed_memory()
        self._devices = devices
        self.names = [_device_name(device) for device in devices]
        self.types = sorted({device.type for device in devices})
        if self.types == ["cpu"]:
            self.threads = threads or available_threads()
        else:
            self.threads = WORKERS_PER_GPU * len(devices)

    def choose(
        self,
        model: LoadedModel,
        options: DenoiseOptions,
        shapes: Sequence[tuple[int, int]],
        *,
        are_micrographs: bool,
    ) -> tuple[Choices, str]:
        """Return the precision and the batch sizes that suit all the devices, and why this precision."""
        kinds = {_kind(device): device for device in self._devices}
        chosen = [choose_precision(device, options.precision) for device in kinds.values()]
        precision, reason = chosen[0]
        if len({name for name, _ in chosen}) > 1:
            precision, reason = "fp32", f"no other suits all of {', '.join(kinds)}"
        sizes = {}
        for shape in shapes:
            if options.batch_size == "auto":
                once = tiling(model, shape).outer if are_micrographs else shape
                sizes[shape] = min(
                    choose_batch_size(device, precision, model.module, once) for device in self._devices
                )
            else:
                sizes[shape] = options.batch_size
        return Choices(precision, sizes), reason

    def denoisers(self, model: LoadedModel, precision: Precision) -> list[Denoiser]:
        """Return the model on each device."""
        return [Denoiser(model.module, device, precision) for device in self._devices]

    def denoise(
        self,
        task: Task,
        output_dir: Path,
        journal: Journal,
        progress: Callable[[int, int], None] = lambda done, total: None,
        should_stop: Callable[[], bool] = lambda: False,
        *,
        denoisers: Sequence[Denoiser] | None = None,
    ) -> StreamResult:
        """Denoise what the journal does not hold as finished; see `denoise_stacks`.

        `denoisers` are the model on each device, if it is already there.
        """
        threads, on_cpu = torch.get_num_threads(), self.types == ["cpu"]
        sizes, micrographs = task.choices.batch_sizes, task.are_micrographs
        denoisers = denoisers or self.denoisers(task.model, task.choices.precision)
        try:
            with self._workers(task, denoisers) as workers:
                return denoise_stacks(
                    task.stacks,
                    workers,
                    dict.fromkeys(sizes, 1) if micrographs else sizes,
                    output_dir,
                    journal,
                    feeding=Feeding(
                        MICROGRAPHS_PER_WORKER if micrographs else BATCHES_PER_WORKER,
                        one_thread_each=on_cpu,
                        readers=len(denoisers),
                        patience_seconds=None if on_cpu else GPU_PATIENCE_SECONDS,
                    ),
                    dtype=task.options.output_dtype,
                    label=task.label,
                    skip_bad=task.options.skip_bad,
                    progress=progress,
                    should_stop=should_stop,
                )
        finally:
            torch.set_num_threads(threads)

    @contextlib.contextmanager
    def _workers(self, task: Task, denoisers: Sequence[Denoiser]) -> Iterator[list[Worker]]:
        """Yield the workers.

        On the CPU the tiles of all micrographs under way share its threads: enough micrographs that none of
        these waits, and one more, which is normalised or put together meanwhile.
        """
        options = ImageOptions(
            task.options.particle_diameter_angstrom, task.options.blend, task.options.keep_above_angstrom
        )
        if not task.are_micrographs:
            yield [
                on_device(particle_worker(denoiser, options, task.stacks, task.contexts), denoiser.device)
                for _ in range(max(1, self.threads // len(denoisers)))
                for denoiser in denoisers
            ]
            return
        tiles_at_once = min(task.choices.batch_sizes.values())
        if self.types != ["cpu"]:
            on_gpus = [MicrographDenoiser(denoiser, at_once=tiles_at_once) for denoiser in denoisers]
            yield [
                on_device(micrograph_worker(on_gpu, options), denoiser.device)
                for _ in range(WORKERS_PER_GPU)
                for on_gpu, denoiser in zip(on_gpus, denoisers, strict=True)
            ]
            return
        fewest_tiles = min(len(tiling(task.model, shape).origins) for shape in task.choices.batch_sizes)
        n_workers = 1 + -(-self.threads // fewest_tiles)
        with ThreadPoolExecutor(self.threads, "tiles", torch.set_num_threads, (1,)) as executor:
            on_cpu = MicrographDenoiser(denoisers[0], at_once=tiles_at_once, executor=executor)
            yield [on_device(micrograph_worker(on_cpu, options), denoisers[0].device)] * n_workers


def on_device(worker: Worker, device: torch.device) -> Worker:
    """Return the worker with its device's name in what fails there, and on a GPU with a stream of its own.

    On one stream the workers of a GPU would wait for each other.
    """
    name = _device_name(device)
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def work(images: Images, stack: StackPlan, pieces: Sequence[Piece]) -> Denoised:
        try:
            with contextlib.nullcontext() if stream is None else torch.cuda.stream(stream):
                return worker(images, stack, pieces)
        except RuntimeError as error:  # all that torch raises about devices and their memory
            problem = str(error).partition("\n")[0]
            raise DeviceError(
                f"{name} failed: {problem} What is finished is kept: resume, on other devices or with a "
                "smaller batch if need be."
            ) from error

    return work


def tiling(model: LoadedModel, shape: tuple[int, int]) -> Tiling:
    """Return how a micrograph of `shape` `(y, x)` goes through the model."""
    return plan_tiles(shape, model.module.stride, model.module.receptive_field_px)


def _kind(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _device_name(device: torch.device) -> str:
    return f"{device} ({_kind(device)})" if device.type == "cuda" else "cpu"
