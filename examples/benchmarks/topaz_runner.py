"""Denoise particles with Topaz-Denoise through its Python API; runs in Topaz's own environment.

    TOPAZ_PYTHON topaz_runner.py IN.npy OUT.npy --arch unet [--threads N]

IN.npy holds `(n, y, x)` float32 images. Each goes through `topaz.denoise.denoise_image` with the settings of
`topaz denoise --stack`. Prints one line of JSON: the seconds spent in the loop, without loading the model.
Topaz (GPL-3) is never imported by cryohush: this script is the only place that does.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from topaz.denoise import Denoise, denoise_image


def main() -> None:
    parser = argparse.ArgumentParser(description="Denoise particles with Topaz.")
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--arch", default="unet")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--whole", action="store_true", help="each image as one piece, without padded tiles")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    images = np.load(arguments.input)
    denoised = np.empty_like(images)
    models = [Denoise(arguments.arch, use_cuda=False)]
    pieces = {} if arguments.whole else {"patch_size": 1024, "padding": 500}
    if not arguments.whole:  # first call: memory and kernels are set up
        denoise_image(images[0], models, **pieces)
    begin = time.perf_counter()
    for number, image in enumerate(images):
        denoised[number] = denoise_image(image, models, **pieces)
    seconds = time.perf_counter() - begin
    np.save(arguments.output, denoised)
    print(json.dumps({"seconds": seconds, "images": len(images), "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
