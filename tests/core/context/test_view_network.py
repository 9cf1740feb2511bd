"""The networks of like views and of maps: any size of the working grid, and no denoiser of its own."""

from __future__ import annotations

import pytest
import torch

from cryohush.core.context.view_network import of_network, shown, view_model
from cryohush.core.errors import ModelError
from cryohush.core.models.weights import load_model

#: and the error that each may make where all agrees: that of maps looks more at the image itself
NETWORKS = {"like_views": 0.1, "map_views": 0.2}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("box", [64, 50, 36])
def test_any_even_grid_will_do(box: int, network: str) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, box, box, generator=generator)
    axis = torch.arange(box) - box // 2
    blob = torch.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (box / 8) ** 2)).expand(3, box, box)
    seen = shown(image + 0.3 * blob, 0.3 * blob.expand(4, 3, box, box), 0.3 * blob, 0.1)
    assert seen.shape == (3, 7, box, box)
    out = 0.1 * of_network(seen, network)
    assert out.shape == (3, box, box)
    # all estimates agree, and the image does not contradict them
    inside = blob > 0.3
    assert float((out - 0.3 * blob)[inside].square().mean()) < NETWORKS[network] * float(
        (0.3 * blob)[inside].square().mean()
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_it_is_offered_as_no_denoiser(network: str) -> None:
    assert view_model(network).card["model"]["name"] == "view_unet"
    with pytest.raises(ModelError, match="serves the context of stacks, where one that denoises"):
        load_model(network)
