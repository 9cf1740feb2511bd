"""Projections per second, and the share of the machine's own speed that they reach.

    python examples/benchmarks/projection_speed.py [--box 128] [--threads 1]

`Projector.__call__` ends in the transforms of padded images: its yardstick is `irfft2` of the same padded
images alone. `Projector.slices` reads eight complex values per frequency: its yardstick is the memory's
bandwidth, as a copy of that many values. Both are measured in the same run; run it on an idle machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from cryohush.core.imaging.ctf import CtfParameters, ctf
from cryohush.core.imaging.projection import Projector, random_rotations


def per_second(work: Callable[[], object], n: int, device: torch.device) -> float:
    """Images per second, the best of five runs after one to warm up."""
    times = []
    for _ in range(6):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return n / min(times[1:])


def measure(device: torch.device, box: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    projector = Projector(torch.randn(box, box, box, generator=generator).to(device))
    rotations = random_rotations(batch, generator).to(device)
    optics = CtfParameters(
        *(torch.full((batch,), v, device=device) for v in (15000.0, 14000.0, 30.0, 300.0, 2.7, 0.1, 0.0))
    )
    size = torch.full((batch,), 1.5, device=device)
    padded = torch.randn(batch, 2 * box, box + 1, dtype=torch.complex64, device=device)
    read = torch.randn(batch, 8, box * (box // 2 + 1), dtype=torch.complex64, device=device)
    written = torch.empty_like(read)
    fft = per_second(lambda: torch.fft.irfft2(padded, s=(2 * box, 2 * box)), batch, device)
    copied = per_second(lambda: written.copy_(read), batch, device)
    for name, work, peak in (
        ("projector(rotations)", lambda: projector(rotations), fft),
        ("projector.slices(rotations)", lambda: projector.slices(rotations), copied),
        ("slices x CTF", lambda: projector.slices(rotations) * ctf(optics, size, box), copied),
    ):
        rate = per_second(work, batch, device)
        print(f"  {name:28} {rate:9.0f} per s, {100 * rate / peak:5.1f} % of {peak:.0f} per s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box", type=int, default=128, help="side of the images, px (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images at once (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"CPU, {arguments.threads} thread(s), {arguments.box} px:")
    measure(torch.device("cpu"), arguments.box, arguments.batch)
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}, {arguments.box} px:")
        measure(torch.device("cuda"), arguments.box, max(arguments.batch, 512))


if __name__ == "__main__":
    main()
