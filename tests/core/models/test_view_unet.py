"""The network that sees an image beside estimates of it."""

from __future__ import annotations

import torch

from cryohush.core.models.view_unet import ViewUNet

SMALL = {"estimates": 3, "widths": (8, 8), "blocks": (1, 1), "unshuffle": 2}


@torch.inference_mode()
def test_it_starts_near_the_first_estimate() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 16, 16)
    found = ViewUNet(**SMALL)(x)  # type: ignore[arg-type]
    assert float((found - x[:, 1:2]).square().mean()) < 0.1


@torch.inference_mode()
def test_estimates_pass_in_single_precision_where_the_rest_is_in_bf16() -> None:
    torch.manual_seed(0)
    network = ViewUNet(**SMALL)  # type: ignore[arg-type]
    for parameter in network.head.parameters():
        parameter.zero_()
    x = torch.randn(2, 4, 16, 16)
    torch.testing.assert_close(network.in_bf16()(x), x[:, 1:2], atol=0, rtol=0)


def test_every_part_of_it_learns() -> None:
    torch.manual_seed(0)
    network = ViewUNet(**SMALL)  # type: ignore[arg-type]
    with torch.no_grad():  # last convolutions of blocks start at zero
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network(torch.randn(2, 4, 16, 16)).square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in network.parameters())
