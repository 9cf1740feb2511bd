"""On a GPU the results are those of the CPU, to the rounding of the number format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from particle_files import read_stack

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.inference.denoiser import Denoiser, Precision
from cryohush.core.inference.run import run_denoise
from cryohush.core.models.weights import load_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
PARTICLES = Path(__file__).parents[3] / "examples/data/particles.mrcs"


# relative to the spread of the output: TF32 and half precision keep 10 bits, bfloat16 7
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("fp16", 5e-3), ("bf16", 3e-2)])
def test_shipped_model_gives_what_it_gives_on_the_cpu(precision: Precision, tolerance: float) -> None:
    images = read_stack(PARTICLES)
    module = load_model("general").module
    expected = Denoiser(module)(images)
    found = Denoiser(module, "cuda:0", precision)(images)
    assert np.sqrt(np.mean((found - expected) ** 2)) < tolerance * expected.std()


def test_a_whole_run_gives_what_it_gives_on_the_cpu(tmp_path: Path) -> None:
    table = PARTICLES.with_suffix(".star")
    stacks = []
    for device in ("cpu", "cuda:0"):
        options = DenoiseOptions.model_validate({"device": device, "precision": "fp32"})
        run_denoise(table, tmp_path / device.partition(":")[0], options)
        stacks.append(read_stack(next((tmp_path / device.partition(":")[0]).rglob("*.mrcs"))))
    assert np.sqrt(np.mean((stacks[0] - stacks[1]) ** 2)) < 2e-3 * stacks[0].std()


def test_projections_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    volume, rotations = torch.randn(32, 32, 32, generator=generator), random_rotations(8, generator)
    expected = Projector(volume).slices(rotations)
    found = Projector(volume.cuda()).slices(rotations.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * float(expected.abs().max()))
