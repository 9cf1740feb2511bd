"""Images per second of a batch with one and more workers, and the driver's memory, as the data grow.

    python batch_scaling.py --output DIR [--workers 1 2] [--images 1000 10000 100000] [--box 64] [--threads 1]

A table of so many particles, white noise in one stack, goes through the shipped model on CPU workers of
this machine. Each run has a driver of its own, so that its peak memory is its own; rates count from the
first ranges, which also load the model, to the last. Time per particle and the driver's memory should not
grow with the number of particles, and two workers on two free cores should take half the time of one. Needs
three times the size of the largest stack (100,000 particles of 64 px: 1.6 GB) on the disk. Writes
batch_scaling.json and .md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from processes import run_measured, write_noise_stack

RANGE_MB = 8


def main() -> None:
    arguments = parse_arguments()
    if arguments.drive:
        drive(arguments)
        return
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for count in sorted(arguments.images):
            table = write_particles(Path(folder), count, arguments.box)
            for workers in arguments.workers:
                rows.append(measure(table, count, workers, arguments))
                print(rows[-1], flush=True)
            table.with_suffix(".mrcs").unlink()
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"box_px": arguments.box, "threads": arguments.threads, "rows": rows}, indent=1)
    (arguments.output / "batch_scaling.json").write_text(text + "\n", encoding="utf-8")
    lines = markdown(rows)
    (arguments.output / "batch_scaling.md").write_text(lines, encoding="utf-8")
    print("\n" + lines)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Scaling of a batch with its workers and its data.")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--box", type=int, default=64, help="pixels (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of each worker (default: %(default)s)")
    parser.add_argument("--scratch", type=Path, help="folder for temporary files")
    parser.add_argument("--output", type=Path, help="folder for the result")
    # what this script calls itself with, in a process of its own
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.drive or arguments.output):
        parser.error("--output is needed")
    return arguments


def write_particles(folder: Path, count: int, box: int) -> Path:
    """Write a stack and its table; return the table."""
    table = folder / f"{count}.star"
    write_noise_stack(table.with_suffix(".mrcs"), count, box)
    with table.open("w", encoding="ascii") as file:
        file.write("\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n")
        file.write(f"_rlnImageSize #3\n1 1.500000 {box}\n\n\n# version 30001\n\ndata_particles\n\nloop_\n")
        file.write("_rlnImageName #1\n_rlnOpticsGroup #2\n")
        file.writelines(f"{image + 1:06d}@{count}.mrcs 1\n" for image in range(count))
    return table


def measure(table: Path, count: int, workers: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a driver to its end; return how fast it went and the memory that it took."""
    command = [sys.executable, __file__, "--drive", str(table), "--workers", str(workers)]
    measured = run_measured([*command, "--threads", str(arguments.threads)], arguments.threads)
    found = json.loads(measured.output.splitlines()[-1])
    seconds = found["seconds"] / found["images"]
    return {
        "images": count,
        "workers": workers,
        "images_per_second": round(1 / seconds, 1),
        "worker_milliseconds_per_image": round(1e3 * workers * seconds, 3),
        "driver_peak_mb": round(measured.peak_bytes / 1e6),
        "whole_seconds": round(measured.seconds, 1),
    }


def drive(arguments: argparse.Namespace) -> None:
    """Denoise one table; print the images and seconds after the first ranges."""
    from cryohush.core.batch.workers import open_pool
    from cryohush.core.config.batch import EngineConfig
    from cryohush.core.config.denoise import DenoiseOptions
    from cryohush.core.job_context import JobContext
    from cryohush.core.jobs.denoise import DenoiseJob

    (workers,) = arguments.workers
    config = EngineConfig(
        device="cpu", workers=workers, threads=arguments.threads, dashboard=None, range_mb=RANGE_MB
    )
    times: list[tuple[float, int]] = []
    target = arguments.drive.with_name("denoised")
    with open_pool(config, target) as pool:
        context = JobContext(lambda done, total: times.append((time.monotonic(), done)))
        DenoiseJob(arguments.drive, DenoiseOptions(precision="fp32")).run(target, context, devices=pool)
    shutil.rmtree(target)
    (begin, first), (end, last) = times[min(workers, len(times) - 2)], times[-1]
    print(json.dumps({"seconds": end - begin, "images": last - first}))


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table, each row beside the run of the same particles with the fewest workers."""
    lines = [
        "| particles | workers | particles per second | worker's ms for each | speed-up | driver's peak |",
        "|---|---|---|---|---|---|",
    ]
    fewest = min(row["workers"] for row in rows)
    alone = {row["images"]: row["images_per_second"] for row in rows if row["workers"] == fewest}
    lines += [
        f"| {row['images']:,} | {row['workers']} | {row['images_per_second']:.0f} | "
        f"{row['worker_milliseconds_per_image']:.2f} | "
        f"{row['images_per_second'] / alone[row['images']]:.2f} | {row['driver_peak_mb']} MB |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
