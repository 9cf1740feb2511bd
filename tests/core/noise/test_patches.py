"""Windows without signal and the statistics of blocks, against NumPy loops and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cryohush.core.noise.patches import (
    BlockLimits,
    block_statistics,
    count_in_windows,
    cut_blocks,
    excesses,
    ring_amplitudes,
    whiten,
)


@settings(max_examples=30)
@given(
    y=st.integers(5, 40), x=st.integers(5, 40), window=st.integers(1, 5), stride=st.integers(1, 7),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_counts_in_windows_are_those_of_a_loop(y: int, x: int, window: int, stride: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random((y, x)) < 0.2
    expected = [
        [mask[top : top + window, left : left + window].sum() for left in range(0, x - window + 1, stride)]
        for top in range(0, y - window + 1, stride)
    ]
    assert count_in_windows(torch.from_numpy(mask), window, stride).tolist() == expected


def test_a_single_pixel_excludes_exactly_the_windows_that_hold_it() -> None:
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[50, 50] = True
    # windows of 20 px every pixel: those that begin from 31 to 50, in both directions
    assert int((count_in_windows(mask, 20, 1) > 0).sum()) == 20 * 20


def test_blocks_are_cut_where_they_say() -> None:
    image = torch.arange(30 * 40).reshape(30, 40).float()
    blocks = cut_blocks(image, torch.tensor([[0, 0], [7, 11], [22, 32]]), 8)
    assert torch.equal(blocks[1], image[7:15, 11:19])
    assert torch.equal(blocks[2], image[22:, 32:])


def test_statistics_of_a_plane_are_its_own() -> None:
    # a plane of 0.01 per row and 0.02 per column in noise of standard deviation 1
    generator = torch.Generator().manual_seed(1)
    side = 64
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    block = torch.randn(side, side, generator=generator) + 0.01 * rows + 0.02 * columns + 5
    statistics = block_statistics(block[None])
    expected = math.hypot(0.01, 0.02) * (side - 1) / float(block.std(correction=0))
    # a slope fitted to m x m noisy pixels is uncertain by sqrt(12)/m²: 0.05 across the block
    assert float(statistics.gradient) == pytest.approx(expected, abs=0.2)
    assert float(statistics.mean) == pytest.approx(float(block.double().mean()), rel=1e-6)


def test_a_gradient_without_noise_is_exact() -> None:
    block = torch.arange(32.0).expand(32, 32)
    # 31 grey values across, standard deviation of 0 to 31: sqrt((32² - 1) / 12)
    assert float(block_statistics(block[None]).gradient) == pytest.approx(31 / math.sqrt(1023 / 12), rel=1e-5)


@pytest.mark.parametrize(
    ("defect", "name"),
    [
        (lambda block: block[10].add_(2.0), "streak"),
        (lambda block: block[:, 40].add_(2.0), "streak"),
        (lambda block: block[20, 20].fill_(30.0), "deviation"),
        (lambda block: block.mul_(1.5), "spread"),
        (lambda block: block.add_(1.0), "level"),
        (lambda block: block.add_(torch.linspace(-1, 1, 64)), "gradient"),
    ],
)
def test_each_defect_exceeds_its_limit_and_white_noise_none(defect, name: str) -> None:  # type: ignore[no-untyped-def]
    blocks = torch.randn(30, 64, 64, generator=torch.Generator().manual_seed(2)) + 100
    assert not torch.stack(list(excesses(block_statistics(blocks), BlockLimits()).values())).any()
    block = blocks[3] - 100
    defect(block)
    blocks[3] = block + 100
    exceeded = excesses(block_statistics(blocks), BlockLimits())
    assert exceeded[name].nonzero().flatten().tolist() == [3]


def test_a_constant_block_is_rejected() -> None:
    blocks = torch.randn(5, 32, 32, generator=torch.Generator().manual_seed(2))
    blocks[2] = 0.25
    assert (
        excesses(block_statistics(blocks), BlockLimits())["spread"].tolist()
        == [False] * 2 + [True] + [False] * 2
    )


def test_statistics_do_not_depend_on_the_grey_scale() -> None:
    blocks = torch.randn(6, 48, 48, generator=torch.Generator().manual_seed(3))
    one, other = block_statistics(blocks), block_statistics(blocks * 700 + 40000)
    for name in ("level", "spread", "gradient", "streak", "deviation"):
        # grey values of 40000 have steps of 0.004 in single precision, of a standard deviation of 700
        torch.testing.assert_close(getattr(one, name), getattr(other, name), atol=2e-4, rtol=1e-3)


def test_whitening_makes_the_rings_even_and_can_be_undone() -> None:
    white = torch.randn(40, 48, 48, generator=torch.Generator().manual_seed(4))
    coloured = torch.fft.irfft2(torch.fft.rfft2(white) * torch.linspace(2, 0.5, 25), s=(48, 48))
    coloured = (coloured - coloured.mean((1, 2), keepdim=True)) / coloured.std((1, 2), keepdim=True)
    amplitudes = ring_amplitudes(coloured)
    whitened = whiten(coloured, amplitudes)
    torch.testing.assert_close(
        ring_amplitudes(whitened)[1:], torch.ones(len(amplitudes) - 1), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(whiten(whitened, 1 / amplitudes), coloured, atol=1e-5, rtol=1e-4)


def test_white_noise_has_amplitude_1_in_every_ring() -> None:
    white = torch.randn(400, 32, 32, generator=torch.Generator().manual_seed(4))
    # the emptiest ring is the corner, one real coefficient of 400 blocks: its amplitude is known to 0.035
    torch.testing.assert_close(ring_amplitudes(white), torch.ones(24), atol=0.12, rtol=0)
