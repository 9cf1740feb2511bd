"""How fast this machine is at the simple things: its disk, its memory, a product of matrices."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from cryohush.core.inference.devices import DTYPES, Precision

DISK_BYTES = 2**28
COPIED_BYTES = 2**27
CHUNK_BYTES = 2**23
PRODUCT_SIDE = 2048
#: shortest time over which a rate is measured
LEAST_SECONDS = 0.2


def measure_machine(
    folder: Path, device: torch.device, precision: Precision, threads: int
) -> dict[str, float]:
    """Rates, in bytes and floating point operations per second."""
    machine = disk_rates(folder)
    source = np.ones(COPIED_BYTES // 4, dtype=np.float32)

    def copy() -> Callable[[], object]:
        target = np.empty_like(source)
        return lambda: np.copyto(target, source)

    # a copied byte is read and written
    machine["memory"] = 2 * COPIED_BYTES * calls_per_second(copy, torch.device("cpu"), threads)
    for name in dict.fromkeys(("fp32", precision)):
        side = PRODUCT_SIDE
        factor = torch.randn(side, side, device=device).to(DTYPES[name])
        rate = calls_per_second(lambda factor=factor: lambda: factor @ factor, device, threads)
        machine[f"product_{name}"] = 2 * side**3 * rate
    return machine


def disk_rates(folder: Path) -> dict[str, float]:
    """Bytes per second of writing to the disk, and of reading from the cache and from the disk."""
    path, block = folder / "disk", np.ones(CHUNK_BYTES, dtype=np.uint8)
    begin = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(DISK_BYTES // CHUNK_BYTES):
            file.write(block.data)
        os.fsync(file.fileno())
    rates = {"write": DISK_BYTES / (time.perf_counter() - begin)}
    for name in ("read_cached", "read_uncached"):
        with path.open("rb", buffering=0) as file:
            if name == "read_uncached":
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            begin = time.perf_counter()
            while file.readinto(block.data):
                pass
            rates[name] = DISK_BYTES / (time.perf_counter() - begin)
    path.unlink()
    return rates


def calls_per_second(make: Callable[[], Callable[[], object]], device: torch.device, threads: int) -> float:
    """Calls per second: on a GPU by the clock, on the CPU by the CPU time of so many threads.

    `make` gives each thread its own function to call.
    """

    def run() -> float:
        torch.set_num_threads(1)
        with torch.inference_mode():
            call, clock = make(), time.perf_counter if device.type == "cuda" else time.thread_time
            call()
            synchronise(device)
            calls, begin = 0, clock()
            while clock() - begin < LEAST_SECONDS:
                call()
                synchronise(device)
                calls += 1
            return calls / (clock() - begin)

    if device.type == "cuda":
        return run()
    with ThreadPoolExecutor(threads) as executor:
        return sum(future.result() for future in [executor.submit(run) for _ in range(threads)])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
