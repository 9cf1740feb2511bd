"""The diffusion model runs in bfloat16, in which the CPU denoises by default where that is faster."""

from __future__ import annotations

import torch

from cryohush.core.inference.devices import DTYPES, prepare, run_network
from cryohush.core.models.diffusion import DiffusionDenoiser


def test_bfloat16_gives_what_float32_gives() -> None:
    torch.manual_seed(0)
    small = {"widths": [8, 8, 8], "blocks": [1, 1, 1], "unshuffle": 2}
    network = DiffusionDenoiser(predictor=small, post=small, steps=3, draws=2)
    images = torch.randn(2, 1, 32, 32)
    outputs = [
        run_network(prepare(network, torch.device("cpu"), precision), images, DTYPES[precision])
        for precision in ("fp32", "bf16")
    ]
    # bfloat16 has 8 bits: half a percent for each of some ten layers and three steps
    difference = (outputs[1] - outputs[0]).std() / outputs[0].std()
    assert difference < 0.05
