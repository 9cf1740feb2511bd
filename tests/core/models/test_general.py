"""The shipped model: what it must do at the least, on particles that it cannot have seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from cryohush.core.imaging.ctf import CtfParameters
from cryohush.core.imaging.filters import gaussian_filter
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.models.weights import WEIGHTS_FOLDER, load_model
from cryohush.core.simulation.image_formation import ImagingRanges, make_projection_bank, simulate_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """Noisy and clean images of an invented complex: seven balls of atoms, 128 px, SNR 0.05 to 0.1."""
    rng = np.random.default_rng(5)
    centres = rng.normal(scale=28, size=(7, 3))
    atoms = np.concatenate([centre + rng.normal(scale=9, size=(700, 3)) for centre in centres])
    path = tmp_path_factory.mktemp("structure") / "balls.pdb"
    lines = [
        f"ATOM  {i % 100000:5d}  CA  ALA A{i % 10000:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
        for i, (x, y, z) in enumerate(atoms, 1)
    ]
    path.write_text("\n".join([*lines, "END", ""]))
    generator = torch.Generator().manual_seed(1)
    bank = make_projection_bank(
        [path],
        box_px=128,
        volumes_per_structure=1,
        projections_per_volume=32,
        diameter_share=(0.6, 0.7),
        pixel_size_angstrom=(0.8, 6.0),
        generator=generator,
        log=lambda _: None,
    )
    optics = CtfParameters(*(torch.full((1,), v) for v in (2e4, 1.95e4, 20.0, 300.0, 2.7, 0.1, 0.0)))
    ranges = ImagingRanges(snr=(0.05, 0.1), empty_probability=0.0)
    noisy, clean, _ = simulate_pairs(bank, optics, ranges, 32, generator)
    return noisy[:, 0], clean[:, 0]


def error(estimate: Tensor, clean: Tensor) -> float:
    """Mean squared error over the variance of the clean images."""
    return float((estimate - clean).square().mean() / clean.var(dim=(1, 2)).mean())


def test_general_beats_the_best_gaussian_by_a_decibel(pairs: tuple[Tensor, Tensor]) -> None:
    noisy, clean = pairs
    denoised = torch.from_numpy(Denoiser(load_model("general").module)(noisy.numpy()))
    best = min(error(gaussian_filter(noisy, sigma), clean) for sigma in np.arange(1.0, 8.0, 0.5))
    assert 10 * np.log10(best / error(denoised, clean)) > 1.0


def test_shipped_weights_stay_within_their_size() -> None:
    assert (WEIGHTS_FOLDER / "general.safetensors").stat().st_size < 6e6
    assert (WEIGHTS_FOLDER / "segmentation.safetensors").stat().st_size < 1.5e6
