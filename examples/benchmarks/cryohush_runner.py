"""Denoise particles in memory and time the loop: the counterpart of `topaz_runner.py`.

    python cryohush_runner.py IN.npy OUT.npy [--model general] [--precision auto]

IN.npy holds `(n, y, x)` float32 images. Prints one line of JSON: the seconds spent in the loop, normalisation
included, without loading the model or choosing a precision.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.devices import (
    available_threads,
    choose_batch_size,
    choose_precision,
    keep_freed_memory,
)
from cryohush.core.models.weights import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description="Denoise particles with cryohush and time the loop.")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="general")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    keep_freed_memory()
    images = np.load(arguments.input)
    denoised = np.empty_like(images)
    device = torch.device("cpu")
    model = load_model(arguments.model)
    precision, _ = choose_precision(device, arguments.precision)
    denoiser = Denoiser(model.module, device, precision)
    batch = choose_batch_size(device, precision, model.module, images.shape[1:])
    threads = arguments.threads or available_threads()

    def denoise(first: int) -> None:
        denoised[first : first + batch] = denoiser(images[first : first + batch])

    # as in `cryohush denoise`: each worker is one thread and takes whole batches
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
        list(workers.map(denoise, [0] * 2 * threads))  # first calls: memory and kernels are set up
        begin = time.perf_counter()
        list(workers.map(denoise, range(0, len(images), batch)))
        seconds = time.perf_counter() - begin
    np.save(arguments.output, denoised)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "images": len(images),
                "threads": threads,
                "precision": precision,
            }
        )
    )


if __name__ == "__main__":
    main()
