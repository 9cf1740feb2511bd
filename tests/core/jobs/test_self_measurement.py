"""What a job says of its own gain is that of the images that it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from particle_files import write_stack, write_table

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.inference.plan import plan_stacks
from cryohush.core.io.particles import ParticleSet
from cryohush.core.jobs.self_measurement import measure_gain
from cryohush.core.models.base import DenoisingNetwork
from cryohush.core.models.weights import LoadedModel

BOX, N, PIXEL = 32, 120, 5.0


class OnGrid(DenoisingNetwork):
    """Leaves images of one size as they are, and makes nothing of others."""

    stride = 1
    receptive_field_px = 1

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * (x.shape[-1] == self.side)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Particles of random detail within a disc, in white noise that is weaker."""
    generator = np.random.default_rng(1)
    y, x = np.ogrid[:BOX, :BOX]
    disc = np.hypot(y - BOX // 2, x - BOX // 2) < BOX / 4
    images = generator.normal(0, 1, (N, BOX, BOX)) + disc * generator.normal(0, 2, (N, BOX, BOX))
    write_stack(tmp_path / "a.mrcs", images.astype(np.float32), PIXEL)
    write_table(tmp_path / "particles.star", [f"{i + 1}@a.mrcs" for i in range(N)], PIXEL, BOX)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "particles.star"


def gains(table: Path, network: DenoisingNetwork, finer: int = 1, **given: Any) -> dict[float, float]:
    """The gain of each band by its finest resolution, Å."""
    particles = ParticleSet.read(table)
    stacks = [replace(stack, finer=finer) for stack in plan_stacks(particles)]
    model = LoadedModel("test", network, "", {}, Path("test.safetensors"))
    found = measure_gain(particles, stacks, model, DenoiseOptions(**given), "fp32", None)
    return {band["finest_angstrom"]: band["gain"] for band in found["bands"] if band["gain"] is not None}


def test_a_gain_is_that_of_what_is_written_with_the_raw_image_in_it(table: Path) -> None:
    """Of what a network makes nothing of, the raw image that is put back is all there is."""
    nothing = OnGrid(0)
    assert max(abs(gain) for gain in gains(table, nothing).values()) < 1e-6
    np.testing.assert_allclose(list(gains(table, nothing, blend=0.5).values()), 1.0, rtol=1e-3)
    kept = gains(table, nothing, keep_above_angstrom=25.0)
    assert kept[19.0] == pytest.approx(1.0, rel=0.02)  # the edge of the mask mixes frequencies
    assert kept[47.0] < 0.5


@pytest.mark.parametrize("finer", [1, 2])
def test_a_gain_is_that_of_the_grid_on_which_the_images_were_seen(table: Path, finer: int) -> None:
    np.testing.assert_allclose(list(gains(table, OnGrid(finer * BOX), finer).values()), 1.0, rtol=0.01)
