"""On a GPU the results are those of the CPU, to the rounding of the number format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from particle_files import read_stack

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.imaging.projection import Projector, random_rotations
from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.devices import Precision, download, upload
from cryohush.core.jobs.denoise import run_denoise
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


def run(output: Path, device: str, batch_size: int | str = "auto") -> NDArray[np.float32]:
    """Denoise the particles of the examples."""
    options = DenoiseOptions.model_validate({"device": device, "precision": "fp32", "batch_size": batch_size})
    run_denoise(PARTICLES.with_suffix(".star"), output, options)
    return read_stack(next(output.rglob("*.mrcs")))


# in small batches the workers of a GPU, each with a stream of its own, take turns many times
@pytest.mark.parametrize("batch_size", ["auto", 2])
def test_a_whole_run_gives_what_it_gives_on_the_cpu(tmp_path: Path, batch_size: int | str) -> None:
    expected, found = run(tmp_path / "cpu", "cpu"), run(tmp_path / "gpu", "cuda:0", batch_size)
    assert np.sqrt(np.mean((found - expected) ** 2)) < 2e-3 * expected.std()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is only one CUDA device")
def test_all_gpus_together_give_what_one_gives(tmp_path: Path) -> None:
    one, all_ = run(tmp_path / "one", "cuda:0", 2), run(tmp_path / "all", "cuda", 2)
    assert np.sqrt(np.mean((all_ - one) ** 2)) < 2e-3 * one.std()


def test_images_come_back_from_a_gpu_as_they_went() -> None:
    images = read_stack(PARTICLES)
    there = upload(images, torch.device("cuda:0"))
    assert there.is_cuda
    np.testing.assert_array_equal(download(there), images)


def test_projections_are_those_of_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    volume, rotations = torch.randn(32, 32, 32, generator=generator), random_rotations(8, generator)
    expected = Projector(volume).slices(rotations)
    found = Projector(volume.cuda()).slices(rotations.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3 * float(expected.abs().max()))
