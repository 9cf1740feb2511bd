"""Particles with their clean counterparts and noisy twins, for tests of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cryohush.core.io.mrc import StackWriter

N, BOX, PIXEL_SIZE = 24, 32, 3.0
MICROGRAPHS = 4
NOISE = 1.5


@dataclass(frozen=True)
class Files:
    """Tables of the same particles, and the images that they list."""

    folder: Path
    images: dict[str, NDArray[np.float32]]

    def __getitem__(self, name: str) -> Path:
        return self.folder / f"{name}.star"


def write_particles(
    folder: Path, name: str, images: NDArray[np.float32], pixel_size_angstrom: float = PIXEL_SIZE
) -> Path:
    """Write a stack and its RELION table, with a micrograph and a class for each particle."""
    with StackWriter(
        folder / f"{name}.mrcs", images.shape, pixel_size_angstrom=pixel_size_angstrom, label="test"
    ) as writer:
        writer.write(images, unchecked=range(len(images)))
    rows = "".join(
        f"{i + 1:06d}@{name}.mrcs 1 mic{i % MICROGRAPHS}.mrc {1 + i % 2}\n" for i in range(len(images))
    )
    path = folder / f"{name}.star"
    path.write_text(
        "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n"
        f"_rlnImageSize #3\n1 {pixel_size_angstrom:.6f} {images.shape[-1]}\n\n\n# version 30001\n\n"
        "data_particles\n\nloop_\n_rlnImageName #1\n_rlnOpticsGroup #2\n_rlnMicrographName #3\n"
        f"_rlnClassNumber #4\n{rows}\n"
    )
    return path


def write_files(folder: Path) -> Files:
    """Write clean, raw, twin and denoised: discs of two sizes; signal and noise of known strength."""
    generator = np.random.default_rng(11)
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    radius = np.hypot(y, x)
    clean = np.stack(
        [np.exp(-((radius / (4 + 4 * (i % 2))) ** 2)) * (1 + 0.02 * i) for i in range(N)]
    ).astype(np.float32)
    raw, twin = (clean + generator.normal(0, NOISE, clean.shape).astype(np.float32) for _ in range(2))
    # what is left of the noise, and a wrong scale and offset
    denoised = (0.8 * clean + 0.1 * (raw - clean) + 0.3).astype(np.float32)
    images = {"clean": clean, "raw": raw, "twin": twin, "denoised": denoised}
    for name, stack in images.items():
        write_particles(folder, name, stack)
    return Files(folder, images)
