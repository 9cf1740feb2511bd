"""The network with context: the same as the one without where there is none, and honest about its error."""

from __future__ import annotations

import torch

from cryohush.core.models.context_unet import LOG_VARIANCE, ContextAverage, ContextUNet
from cryohush.core.models.unet import ShuffleUNet

SMALL = {"widths": (8, 8), "blocks": (1, 1), "unshuffle": 2}


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@torch.inference_mode()
def test_without_context_it_is_the_network_without_that_starts_from_its_weights() -> None:
    single = disturbed(ShuffleUNet(**SMALL))  # type: ignore[arg-type]
    ours = ContextUNet(**SMALL)  # type: ignore[arg-type]
    missing = ours.load_state_dict(single.state_dict(), strict=False)
    assert missing.unexpected_keys == []
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(ours(x), single(x))
    # new channels have no say before training
    torch.testing.assert_close(ours(torch.cat([x, torch.randn(2, 3, 16, 16)], 1)), single(x))


@torch.inference_mode()
def test_a_context_of_zeros_is_no_context() -> None:
    ours = disturbed(ContextUNet(**SMALL))  # type: ignore[arg-type]
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(ours(torch.cat([x, torch.zeros(2, 3, 16, 16)], 1)), ours(x))
    assert not torch.allclose(ours(torch.cat([x, torch.ones(2, 3, 16, 16)], 1)), ours(x))


def test_the_error_learns_without_touching_the_image() -> None:
    ours = disturbed(ContextUNet(**SMALL))  # type: ignore[arg-type]
    image, log_variance = ours.with_error(torch.randn(2, 4, 16, 16))
    assert image.shape == log_variance.shape == (2, 1, 16, 16)
    assert float(log_variance.detach().min()) >= LOG_VARIANCE[0]
    assert float(log_variance.detach().max()) <= LOG_VARIANCE[1]
    log_variance.sum().backward()
    of_image = [name for name, value in ours.named_parameters() if value.grad is not None]
    assert of_image
    assert all(name.startswith("error_head") for name in of_image)


@torch.inference_mode()
def test_the_average_is_half_the_linear_estimate_where_there_is_a_context() -> None:
    torch.manual_seed(0)
    ours = ContextAverage(share=0.5, **SMALL).eval()  # type: ignore[arg-type]
    x = torch.randn(3, 4, 16, 16)
    x[1, 1:] = 0  # an image without
    x[[0, 2], 3] = 0.7
    found, alone = ours(x), ours(x[:, :1])
    torch.testing.assert_close(found[1], alone[1])
    torch.testing.assert_close(found[[0, 2]], (alone[[0, 2]] + x[[0, 2], 2:3]) / 2)
