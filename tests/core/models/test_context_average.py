"""The network with context: the same as the one without where there is none, and honest about its error."""

from __future__ import annotations

import pytest
import torch

from cryohush.core.models.context_average import ALONE_FACTORS, LOG_VARIANCE, ContextAverage, calibrated

SMALL = {"widths": (8, 8), "blocks": (1, 1), "unshuffle": 2}


def disturbed(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("uneven", "explained", "views", "wiener", "part"),
    [
        (1.0, 0.5, 0.0, 0.5, 0.2),
        (0.0, 0.5, 0.0, 0.0, 0.5),
        (0.0, 0.9, 0.0, 0.0, 0.6),
        (0.5, 0.5, 0.0, 0.25, 0.35),
        (1.0, 0.5, 1.0, 0.5, 0.8),
        (0.0, 0.5, 0.5, 0.0, 0.65),
    ],
)
def test_the_average_takes_the_estimates_where_there_is_a_context(
    uneven: float, explained: float, views: float, wiener: float, part: float
) -> None:
    torch.manual_seed(0)
    ours = ContextAverage(0.5, 0.4, 0.6, 0.8, **SMALL).eval()  # type: ignore[arg-type]
    x = torch.randn(3, 6, 16, 16)
    x[1, 1:] = 0  # an image without
    x[[0, 2], 3] = x[[0, 2], 5] = 0.0
    x[[0, 2], 3, 4:12, 4:12] = explained  # within the particle
    x[[0, 2], 5, 4:12, 4:12] = views
    x[[0, 2], 4] = uneven
    found, alone = ours(x), ours(x[:, :1])
    torch.testing.assert_close(found[1], alone[1])
    mean = (1 - wiener) * alone + wiener * x[:, 2:3]
    torch.testing.assert_close(found[[0, 2], :, :4], mean[[0, 2], :, :4])
    within = (slice(None, None, 2), slice(None), slice(4, 12), slice(4, 12))
    torch.testing.assert_close(found[within], ((1 - part) * mean + part * x[:, 1:2])[within])


@pytest.mark.parametrize(
    "shares",
    [{"share": 1.1}, {"covariance_share": -0.1}, {"even_covariance_share": 2.0}, {"views_share": -1.0}],
)
def test_shares_lie_between_0_and_1(shares: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="a share lies between 0 and 1"):
        ContextAverage(**shares, **SMALL)  # type: ignore[arg-type]


def test_the_error_of_the_average_is_told_without_touching_it() -> None:
    ours = disturbed(ContextAverage(**SMALL))  # type: ignore[arg-type]
    for channels in (1, 6):
        x = torch.randn(2, channels, 16, 16)
        ours.zero_grad()
        image, log_variance = ours.with_error(x)
        torch.testing.assert_close(image, ours(x))
        assert log_variance.shape == (2, 1, 16, 16)
        log_variance.sum().backward()
        learnt = [name for name, value in ours.named_parameters() if value.grad is not None]
        assert learnt
        assert all(name.startswith("error_head") for name in learnt)


def test_images_without_context_have_the_same_error_beside_others_that_have_one() -> None:
    ours = disturbed(ContextAverage(**SMALL, alone_error=(-0.64, -0.26))).eval()  # type: ignore[arg-type]
    x = torch.randn(3, 6, 16, 16)
    x[1, 1:] = 0
    torch.testing.assert_close(ours.with_error(x)[1][1], ours.with_error(x[:, :1])[1][1])


def test_the_calibration_keeps_the_order_and_stays_within_what_was_measured() -> None:
    told = torch.linspace(*LOG_VARIANCE, 500)
    found = calibrated(told, -0.64, -0.26)
    assert bool((found.diff() > 0).all())
    factor = (found - told).exp()
    assert float(factor.min()) == pytest.approx(min(ALONE_FACTORS))
    assert float(factor.max()) == pytest.approx(max(ALONE_FACTORS))
