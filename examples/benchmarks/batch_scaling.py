"""Images per second of a batch with one and more workers, and the driver's memory as the data grow.

The real particles of `examples/data` again and again, through the shipped model, on CPU workers of one
thread. Time counts from the first range to the last: starting the workers takes some seconds more.

    python examples/benchmarks/batch_scaling.py --workers 1 2 --images 1000 4000 --output DIR
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import time
from pathlib import Path

import numpy as np

from cryohush.core.config.batch import EngineConfig
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.inference.pool import open_pool
from cryohush.core.inference.run import run_denoise
from cryohush.core.io.mrc import StackReader, StackWriter

PARTICLES = Path(__file__).parents[1] / "data" / "particles.mrcs"


def write_images(path: Path, count: int) -> None:
    """Write the particles of `examples/data` as often as it takes."""
    with StackReader(PARTICLES) as reader:
        images = reader.read(range(reader.n_images))
    with StackWriter(path, (count, *images.shape[1:]), pixel_size_angstrom=1.5, label="repeated") as writer:
        for begin in range(0, count, len(images)):
            writer.write(images[: min(len(images), count - begin)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    options = DenoiseOptions(precision="fp32")
    rows = []
    for count in sorted(arguments.images):
        source = arguments.output / f"{count}.mrcs"
        write_images(source, count)
        for workers in arguments.workers:
            config = EngineConfig(device="cpu", workers=workers, threads=1, dashboard=None, range_mb=8)
            times: list[tuple[float, int]] = []
            target = arguments.output / f"{count}_{workers}"
            with open_pool(config, arguments.output) as pool:
                run_denoise(
                    source,
                    target,
                    options,
                    overwrite=True,
                    engine=pool,
                    progress=lambda done, total, times=times: times.append((time.monotonic(), done)),
                )
            # the first range also loads the model
            (begin, first), (end, last) = times[min(workers, len(times) - 2)], times[-1]
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            rows.append(
                {
                    "images": count,
                    "workers": workers,
                    "images_per_second": float(np.round((last - first) / (end - begin), 1)),
                    "driver_peak_mb": round(memory),
                }
            )
            print(rows[-1], flush=True)
            shutil.rmtree(target)
        source.unlink()
    (arguments.output / "batch_scaling.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
