"""The diffusion loop's noise levels reach the predictor unrounded in mixed precision."""

from __future__ import annotations

import torch

from cryohush.core.models.diffusion import DiffusionDenoiser
from cryohush.core.training.diffusion import _Stages
from cryohush.core.training.session import start_fabric


def test_a_level_near_one_is_finite_in_bfloat16() -> None:
    # 0.9987 is 1 in bfloat16, whose neighbour below is 0.9961: the logarithm of g / (1 - g) was infinite
    network = DiffusionDenoiser(
        predictor={"widths": [8, 8, 8], "blocks": [1, 1, 1], "unshuffle": 2},
        clean_scale=0.3,
        steps=2,
        draws=1,
    )
    fabric = start_fabric("bf16-mixed")
    trained = fabric.setup(_Stages(network))
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).to(fabric.device)
    seen: list[torch.Tensor] = []
    network.predictor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2].cpu()))
    v = trained(image, image, [0.9987, 0.5])
    assert v.isfinite().all()
    assert torch.equal(seen[0], torch.tensor([0.9987, 0.5]))
