"""The devices of a process: which, what number format, how many images at once; memory that is kept."""

from __future__ import annotations

import copy
import ctypes
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import ConfigurationError, DeviceError
from ..job_context import JobContext
from ..models.base import DenoisingNetwork
from ..models.precision import bf16_instructions, threads_kept

T = TypeVar("T")
Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}

# Pixels that one CPU thread takes through the network at once: enough to hide the cost of calling each layer,
# the many small ones of a stack's context too, few enough for the memory.
CPU_BATCH_PX = 2**20
# Pixels at once beyond which a GPU gets no faster.
GPU_BATCH_PX = 2**24
# Two workers keep a GPU busy: one calculates while the other one's images travel.
WORKERS_PER_GPU = 2


class DoneHere(Protocol):
    """Work that the devices of one process can do."""

    def do(self, devices: LocalDevices, context: JobContext) -> None:
        """Do it."""


class LocalDevices:
    """The devices of this process: where a single job calculates, and each worker of a batch.

    Attributes
    ----------
    devices
        One or more.
    names
        What log and record call them.
    types
        Their kinds, sorted: `cpu`, `cuda`. The last bit of a result depends on them.
    cpu_threads
        CPU threads that may be used.
    threads
        How many batches are denoised at the same time.
    """

    def __init__(self, devices: Sequence[torch.device], threads: int | None = None) -> None:
        keep_freed_memory()
        self.devices = tuple(devices)
        self.names = [f"{one} ({kind_of(one)})" if one.type == "cuda" else "cpu" for one in devices]
        self.types = sorted({device.type for device in devices})
        self.cpu_threads = threads or available_threads()
        self.threads = self.cpu_threads if self.on_cpu else WORKERS_PER_GPU * len(devices)

    @property
    def on_cpu(self) -> bool:
        """Whether there is no GPU."""
        return self.types == ["cpu"]

    def ask(self, question: Callable[..., T], *arguments: Any) -> T:
        """Return what a function makes of the arguments and these devices."""
        return question(*arguments, self)

    def do(self, work: DoneHere, context: JobContext) -> None:
        """Do all of the work."""
        work.do(self, context)


def kind_of(device: torch.device) -> str:
    """Return what a device is: the name of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def resolve_devices(text: str) -> list[torch.device]:
    """Return the devices that `text` names.

    Parameters
    ----------
    text
        `cpu`; GPUs as `cuda`, `cuda:0`, `cuda:0,1`, `0,1` or `0:1`; `auto`, empty or `,` (RELION's "all of
        them") for every visible GPU, or the CPU where there is none.

    Raises
    ------
    ConfigurationError
        If the text is none of these.
    DeviceError
        If a GPU is asked for that is not there.
    """
    wanted = text.strip().lower()
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu":
        return [torch.device("cpu")]
    if wanted == "auto" or not wanted.strip(",:"):
        return [torch.device("cuda", index) for index in range(present)] or [torch.device("cpu")]
    numbers = re.fullmatch(r"(?:cuda|gpu)?:?((?:\d+[,:]?)*)", wanted)
    if numbers is None:
        raise ConfigurationError(f"device {text!r}: expected auto, cpu, or GPUs such as cuda:0,1 or 0,1.")
    indices = [int(index) for index in re.findall(r"\d+", numbers[1])] or list(range(max(present, 1)))
    absent = [index for index in indices if index >= present]
    if absent:
        found = f"only GPUs 0 to {present - 1} are" if present else "no CUDA GPU is"
        raise DeviceError(
            f"device {text!r}: GPU {absent[0]} was asked for, but {found} visible to this process. "
            "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or choose auto or cpu."
        )
    return [torch.device("cuda", index) for index in dict.fromkeys(indices)]


def available_threads() -> int:
    """Number of CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(module: nn.Module, device: torch.device, precision: Precision) -> nn.Module:
    """Return a copy of `module` on `device` in that number format, laid out channels last.

    Weights are converted once. Autocast would convert them in every call, and keeps some layers in float32.
    """
    moved = copy.deepcopy(module).eval().requires_grad_(False)
    # nn.Module.to knows memory_format, its type stubs do not in every supported version
    return moved.to(device=device, dtype=DTYPES[precision]).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def choose_precision(
    device: torch.device, requested: Literal["auto", "fp32", "bf16", "fp16"]
) -> tuple[Precision, str]:
    """Return the number format to run a network in on `device`, and why.

    `auto` takes what the device computes natively, by its flags and not by a stopwatch, so that a machine
    gives the same result under any load: bf16 (it has float32's range) on GPUs from compute capability
    8.0 and on CPUs with instructions for it, fp16 on GPUs with tensor cores (7.0), else float32.

    Raises
    ------
    DeviceError
        If the format is asked for and the device cannot calculate in it.
    """
    on_gpu = device.type == "cuda"
    capability = torch.cuda.get_device_capability(device) if on_gpu else (0, 0)
    # Ampere is the first generation that calculates in bf16; older ones emulate it, slowly.
    has_bf16 = not on_gpu or capability >= (8, 0)
    if requested == "fp16" and not on_gpu:
        raise DeviceError("precision fp16 needs a GPU. Choose auto, bf16 or fp32 on the CPU.")
    if requested == "bf16" and not has_bf16:
        raise DeviceError(
            f"precision bf16: {torch.cuda.get_device_name(device)} lacks it. Choose fp16 or fp32."
        )
    if requested != "auto":
        return requested, "as asked for"
    if on_gpu:
        precision: Precision = "bf16" if has_bf16 else "fp16" if capability >= (7, 0) else "fp32"
        return precision, f"a GPU of compute capability {capability[0]}.{capability[1]}"
    native = bf16_instructions()
    if native:
        return "bf16", f"the processor has {', '.join(native)}"
    return "fp32", "the processor has no instructions for bf16"


def pixels_per_second(module: DenoisingNetwork, device: torch.device, precision: Precision) -> float:
    """Return about how many pixels a GPU, or one thread of the CPU, takes through `module` in a second."""
    pixels = (4 if device.type == "cpu" else 128) * _multiple(128, module) ** 2
    return pixels / _seconds_per_batch(module, device, precision)


def _seconds_per_batch(module: DenoisingNetwork, device: torch.device, precision: Precision) -> float:
    """Shortest of a few runs over a small batch."""
    side = _multiple(128, module)
    images = torch.randn(4 if device.type == "cpu" else 128, 1, side, side, device=device)
    network = prepare(module, device, precision)
    best = float("inf")
    with threads_kept(1 if device.type == "cpu" else None):
        for attempt in range(4):
            begin = time.perf_counter()
            run_network(network, images, DTYPES[precision])
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if attempt:  # the first one sets up
                best = min(best, time.perf_counter() - begin)
    return best


def _multiple(side: int, module: DenoisingNetwork) -> int:
    return -(-side // module.stride) * module.stride


def run_network(network: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    """`(n, channels, y, x)` float32 through a network that `prepare` gave, back to float32.

    Images with context stay planes, one after the other in memory, which are mixed pixel by pixel.
    """
    layout = torch.channels_last if images.shape[1] == 1 else torch.contiguous_format
    with torch.inference_mode():
        out: Tensor = network(images.to(dtype, memory_format=layout))
        return out.float()


def upload(images: NDArray[np.float32], device: torch.device) -> Tensor:
    """Return images on a device, as float32; on the CPU they may share their memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))
    # a GPU fetches page-locked memory by itself, at the full speed of the bus
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def download(images: Tensor) -> NDArray[np.float32]:
    """Return images of a device in the main memory; on the CPU they share it."""
    if not images.is_cuda:
        return images.numpy()
    host = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    host.copy_(images, non_blocking=True)
    torch.cuda.current_stream(images.device).synchronize()
    return host.numpy()


def choose_batch_size(
    device: torch.device, precision: Precision, module: DenoisingNetwork, shape: tuple[int, int]
) -> int:
    """Return how many images of `shape` `(y, x)` to take through `module` at once.

    On the CPU it depends on the shape alone, so that the same job gives the same bytes again. On a GPU it is
    what fits into two fifths of the memory that is free: two workers share it.
    """
    y, x = (_multiple(side, module) for side in shape)
    if device.type == "cpu":
        return max(1, CPU_BATCH_PX // (y * x))
    largest = max(1, GPU_BATCH_PX // (y * x))
    trial = min(largest, 4)
    network = prepare(module, device, precision)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_network(network, torch.zeros(trial, 1, y, x, device=device), DTYPES[precision])
    bytes_per_image = (torch.cuda.max_memory_allocated(device) - before) / trial
    # the normalised images, the result and its Fourier transforms come on top
    bytes_per_image += 8 * 4 * y * x
    free, _ = torch.cuda.mem_get_info(device)
    return int(max(1, min(largest, 0.4 * free / bytes_per_image)))


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next batch; False where the C library is another.

    By default each freed activation goes back to the kernel, which clears its pages again for the next one:
    up to a third of the whole time. From now on all threads of the process share one arena, never trimmed.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # M_* of malloc.h
    largest = 2**31 - 1
    return all(
        mallopt(parameter, value) == 1
        for parameter, value in ((trim_threshold, largest), (mmap_threshold, largest), (arena_max, 1))
    )
