"""A run on the devices of one process: what suits them, and the stacks through the network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from ..config.denoise import DenoiseOptions
from ..context.contexts import StackContexts
from ..errors import DeviceError
from ..io.journal import Journal
from ..job_context import QUIET, JobContext
from ..models.precision import threads_kept
from ..models.weights import LoadedModel, Weights
from .denoiser import Denoiser
from .devices import (
    WORKERS_PER_GPU,
    LocalDevices,
    Precision,
    choose_batch_size,
    choose_precision,
    kind_of,
)
from .feeding import Denoised, Feeding, Images, Worker
from .micrograph_denoiser import MicrographDenoiser
from .plan import Piece, StackPlan
from .stream import (
    BATCHES_PER_WORKER,
    MICROGRAPHS_PER_WORKER,
    Output,
    StreamResult,
    denoise_stacks,
    micrograph_worker,
    particle_worker,
)
from .tiling import Tiling, plan_tiles

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
    """The stacks of a run, or of a part of it, and how they are denoised.

    Attributes
    ----------
    weights, options, choices
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

    weights: Weights
    options: DenoiseOptions
    choices: Choices
    stacks: Sequence[StackPlan]
    are_micrographs: bool
    label: str
    contexts: StackContexts | None = None

    @property
    def batch_sizes(self) -> dict[tuple[int, int], int]:
        """Images that are written together, by their `(y, x)`: micrographs one by one."""
        sizes = self.choices.batch_sizes
        return dict.fromkeys(sizes, 1) if self.are_micrographs else sizes


def choose(
    weights: Weights,
    options: DenoiseOptions,
    shapes: Sequence[tuple[int, int]],
    are_micrographs: bool,
    devices: LocalDevices,
) -> tuple[Choices, str]:
    """Return the precision and the batch sizes that suit all the devices, and why this precision."""
    model, kinds = weights.load(), {kind_of(device): device for device in devices.devices}
    chosen = [choose_precision(device, options.precision) for device in kinds.values()]
    precision, reason = chosen[0]
    if len({name for name, _ in chosen}) > 1:
        precision, reason = "fp32", f"no other suits all of {', '.join(kinds)}"
    sizes = {}
    for shape in shapes:
        if options.batch_size == "auto":
            once = tiling(model, shape).outer if are_micrographs else shape
            sizes[shape] = min(
                choose_batch_size(device, precision, model.module, once) for device in devices.devices
            )
        else:
            sizes[shape] = options.batch_size
    return Choices(precision, sizes), reason


def make_denoisers(
    model: LoadedModel, precision: Precision, devices: Sequence[torch.device]
) -> list[Denoiser]:
    """Return the model on each device."""
    return [Denoiser(model.module, device, precision) for device in devices]


def denoise(
    task: Task,
    output_dir: Path,
    journal: Journal,
    devices: LocalDevices,
    context: JobContext = QUIET,
    *,
    denoisers: Sequence[Denoiser] | None = None,
) -> StreamResult:
    """Denoise what the journal does not hold as finished; see `denoise_stacks`.

    `denoisers` are the model on each device, if it is already there.
    """
    if denoisers is None:
        denoisers = make_denoisers(task.weights.load(), task.choices.precision, devices.devices)
    feeding = Feeding(
        MICROGRAPHS_PER_WORKER if task.are_micrographs else BATCHES_PER_WORKER,
        one_thread_each=devices.on_cpu,
        readers=len(denoisers),
        patience_seconds=None if devices.on_cpu else GPU_PATIENCE_SECONDS,
    )
    with (
        threads_kept(),
        _workers(task, devices, denoisers) as workers,
        _output(task, output_dir, journal) as output,
    ):
        denoise_stacks(output, workers, task.batch_sizes, feeding, context)
        return output.result


def _output(task: Task, output_dir: Path, journal: Journal) -> Output:
    options = task.options
    return Output(
        task.stacks,
        output_dir,
        journal,
        dtype=options.output_dtype,
        label=task.label,
        skip_bad=options.skip_bad,
    )


@contextlib.contextmanager
def _workers(task: Task, devices: LocalDevices, denoisers: Sequence[Denoiser]) -> Iterator[list[Worker]]:
    """Yield the workers.

    On the CPU the tiles of all micrographs under way share its threads: enough micrographs that none of
    these waits, and one more, which is normalised or put together meanwhile.
    """
    options = task.options
    if not task.are_micrographs:
        yield [
            on_device(particle_worker(denoiser, options, task.stacks, task.contexts), denoiser.device)
            for _ in range(max(1, devices.threads // len(denoisers)))
            for denoiser in denoisers
        ]
        return
    tiles_at_once = min(task.choices.batch_sizes.values())
    if not devices.on_cpu:
        on_gpus = [MicrographDenoiser(denoiser, at_once=tiles_at_once) for denoiser in denoisers]
        yield [
            on_device(micrograph_worker(on_gpu, options), denoiser.device)
            for _ in range(WORKERS_PER_GPU)
            for on_gpu, denoiser in zip(on_gpus, denoisers, strict=True)
        ]
        return
    model = task.weights.load()
    fewest_tiles = min(len(tiling(model, shape).origins) for shape in task.choices.batch_sizes)
    n_workers = 1 + -(-devices.threads // fewest_tiles)
    with ThreadPoolExecutor(devices.threads, "tiles", torch.set_num_threads, (1,)) as executor:
        on_cpu = MicrographDenoiser(denoisers[0], at_once=tiles_at_once, executor=executor)
        yield [on_device(micrograph_worker(on_cpu, options), denoisers[0].device)] * n_workers


def on_device(worker: Worker, device: torch.device) -> Worker:
    """Return the worker with its device's name in what fails there, and on a GPU with a stream of its own.

    On one stream the workers of a GPU would wait for each other.
    """
    name = f"{device} ({kind_of(device)})" if device.type == "cuda" else "cpu"
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
