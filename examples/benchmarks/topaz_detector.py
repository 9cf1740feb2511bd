"""Topaz's pretrained detector, which its package brings. Protein is dark; sizes in Å."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mrcfile
import torch
from torch import Tensor
from user_tasks import run

from cryohush.core.metrics.picking import Picks

# the pixels that it was trained on are about this wide
DETECTOR_PIXEL_ANGSTROM = 8.0


def detect(images: Tensor, pixel_size: float, diameter: float, python: str, threads: int) -> list[Picks]:
    """Picks on micrographs `(n, y, x)`; `python` is that of Topaz's environment."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_numbered(folder, images, pixel_size)
        return detector_picks(folder, len(images), pixel_size, diameter, python, threads)


def write_numbered(folder: Path, images: Tensor, pixel_size: float) -> None:
    """Write micrographs `(n, y, x)` as 0.mrc, 1.mrc, ..."""
    for number, image in enumerate(images):
        with mrcfile.new(folder / f"{number}.mrc") as file:
            file.set_data(image.numpy())
            file.voxel_size = pixel_size


def detector_picks(
    folder: Path, n: int, pixel_size: float, diameter: float, python: str, threads: int
) -> list[Picks]:
    """Topaz's pretrained `resnet16`, on micrographs brought to the pixels that it knows."""
    scale = max(1, round(DETECTOR_PIXEL_ANGSTROM / pixel_size))
    files = [f"{number}.mrc" for number in range(n)]
    topaz_command = str(Path(python).with_name("topaz"))
    run(
        [topaz_command, "preprocess", "-s", str(scale), "--affine", "-d", "-1", "-o", "small", *files], folder
    )
    radius = max(2, round(0.35 * diameter / pixel_size / scale))
    command = [topaz_command, "extract", "-r", str(radius), "-x", str(scale), "-d", "-1", "-j", str(threads)]
    run([*command, "-o", "detected.txt", *(f"small/{name}" for name in files)], folder)
    rows = [line.split("\t") for line in (folder / "detected.txt").read_text().splitlines()[1:]]
    found = []
    for number in range(n):
        here = [row for row in rows if row[0] == str(number)]
        places = torch.tensor([[float(row[2]), float(row[1])] for row in here]).reshape(-1, 2)
        scores = torch.tensor([float(row[3]) for row in here])
        order = scores.argsort(descending=True, stable=True)
        found.append(Picks(places[order], scores[order]))
    return found
