"""Denoise particles in memory and time the loop: the counterpart of `topaz_runner.py`.

    python cryohush_runner.py IN.npy OUT.npy [--model general] [--precision auto]

IN.npy holds `(n, y, x)` float32 images. Prints one line of JSON: the seconds spent in the loop, normalisation
included, without loading the model or choosing a precision.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.devices import choose_batch_size, choose_precision, keep_freed_memory
from cryohush.core.inference.weights import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description="Denoise particles with cryohush and time the loop.")
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", default="general")
    parser.add_argument("--precision", default="auto", choices=["auto", "fp32", "bf16", "fp16"])
    parser.add_argument("--threads", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    keep_freed_memory()
    images = np.load(arguments.input)
    denoised = np.empty_like(images)
    device = torch.device("cpu")
    model = load_model(arguments.model)
    precision, _ = choose_precision(device, arguments.precision, model.module)
    denoiser = Denoiser(model.module, device, precision)
    batch = torch.get_num_threads() * choose_batch_size(device, precision, model.module, images.shape[1:])
    denoiser(images[:batch])  # first call: memory and kernels are set up
    begin = time.perf_counter()
    for first in range(0, len(images), batch):
        denoised[first : first + batch] = denoiser(images[first : first + batch])
    seconds = time.perf_counter() - begin
    np.save(arguments.output, denoised)
    print(
        json.dumps(
            {
                "seconds": seconds,
                "images": len(images),
                "threads": torch.get_num_threads(),
                "precision": precision,
            }
        )
    )


if __name__ == "__main__":
    main()
