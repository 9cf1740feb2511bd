"""Peak memory against the number of particles, and the cost of a table of a million rows.

    python memory.py [--model general] [--output memory.json] [--scratch FOLDER]

Runs `cryohush denoise` on 1,000 and on 20,000 particles of 128 px in a process of its own each and prints
the ratio of their peak resident memory. Then reads a table of 1,000,000 rows over 500 stacks and rewrites
it, images renamed, and prints time and peak memory, beside those of a table of one row: the difference is
what rows cost. Needs 3 GB of disk for temporary files.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import CRYOHUSH, run_measured, write_noise_stack

PARTICLES = (1_000, 20_000)
BOX_PX = 128
ROWS, STACKS = 1_000_000, 500
REWRITE = """
import sys
from cryohush.core.io.particles import ParticleSet
particles = ParticleSet.read(sys.argv[1])
particles.check_images()
positions = particles.output_positions()
names = (f"{p + 1:06d}@denoised/{s}.mrcs" for p, s in zip(positions.tolist(), particles.stack.tolist()))
particles.write(sys.argv[2], names)
"""


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        result = {"denoise": denoise(Path(folder), arguments), "table": rewrite_table(Path(folder))}
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Peak memory against the number of particles.")
    parser.add_argument("--model", default="general", help="name or .safetensors file (default: general)")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--scratch", type=Path, help="folder for temporary files, 3 GB")
    parser.add_argument("--output", type=Path, help="JSON file")
    return parser.parse_args()


def denoise(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Denoise a small and a large stack; return peaks and times by number of particles."""
    found: dict[str, Any] = {}
    options = ["--model", arguments.model, "--device", "cpu", "--precision", arguments.precision]
    options += ["--threads", str(arguments.threads)]
    for count in PARTICLES:
        stack = folder / f"{count}.mrcs"
        write_noise_stack(stack, count, BOX_PX)
        with tempfile.TemporaryDirectory(dir=folder) as output:
            command = [*CRYOHUSH, "denoise", str(stack), "--output", f"{output}/run", *options]
            measured = run_measured(command, arguments.threads)
        stack.unlink()
        found[str(count)] = {"seconds": measured.seconds, "peak_bytes": measured.peak_bytes}
        print(
            f"{count} particles: {measured.seconds:.1f} s, peak {measured.peak_bytes / 1e6:.0f} MB",
            flush=True,
        )
    small, large = (found[str(count)]["peak_bytes"] for count in PARTICLES)
    found["ratio"] = large / small
    print(f"peak memory of {PARTICLES[1]} over that of {PARTICLES[0]} particles: {large / small:.3f}")
    return found


def rewrite_table(folder: Path) -> dict[str, Any]:
    """Read and rewrite a large table and one of a single row; return time and peak of each."""
    stacks = folder / "stacks"
    stacks.mkdir()
    per_stack = ROWS // STACKS
    for number in range(STACKS):
        write_noise_stack(stacks / f"{number}.mrcs", per_stack, 4)
    found: dict[str, Any] = {}
    for rows in (1, ROWS):
        table, copy = folder / f"{rows}.star", folder / f"{rows}_denoised.star"
        write_table(table, rows, per_stack)
        measured = run_measured([sys.executable, "-c", REWRITE, str(table), str(copy)])
        found[str(rows)] = {
            "seconds": measured.seconds,
            "peak_bytes": measured.peak_bytes,
            "file_bytes": table.stat().st_size,
        }
        print(
            f"table of {rows} rows ({table.stat().st_size / 1e6:.0f} MB): read and rewritten in "
            f"{measured.seconds:.1f} s, peak {measured.peak_bytes / 1e6:.0f} MB",
            flush=True,
        )
    extra = found[str(ROWS)]["peak_bytes"] - found["1"]["peak_bytes"]
    found["peak_bytes_for_rows"] = extra
    print(f"memory that {ROWS} rows cost: {extra / 1e6:.0f} MB")
    return found


def write_table(path: Path, rows: int, per_stack: int) -> None:
    """Write a RELION 3.1 table with the columns of an extraction job."""
    columns = ["ImageName", "MicrographName", "CoordinateX", "CoordinateY", "DefocusU", "DefocusV"]
    columns += ["DefocusAngle", "CtfMaxResolution", "PhaseShift", "OpticsGroup"]
    with path.open("w", encoding="ascii") as file:
        file.write("\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n")
        file.write("_rlnImagePixelSize #3\n_rlnImageSize #4\n_rlnImageDimensionality #5\n")
        file.write("opticsGroup1 1 1.500000 4 2\n\n\n# version 30001\n\ndata_particles\n\nloop_\n")
        file.writelines(f"_rln{name} #{number}\n" for number, name in enumerate(columns, 1))
        for row in range(rows):
            stack, image = divmod(row, per_stack)
            file.write(
                f"{image + 1:06d}@stacks/{stack}.mrcs Micrographs/{stack:05d}.mrc {100 + image:.6f} "
                f"{200 + image:.6f} 15000.{image:06d} 14800.{image:06d} 45.100000 3.900000 0.000000 1\n"
            )
        file.write("\n")


if __name__ == "__main__":
    main()
