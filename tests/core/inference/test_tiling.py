"""Tiles give what the whole image gives: no seam, at any size."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from cryohush.core.inference.denoiser import Denoiser
from cryohush.core.inference.tiling import Tiling, plan_tiles, run_in_tiles
from cryohush.core.models.weights import LoadedModel

# Sums of single-precision products in another order; the outputs are about 1.
ROUNDING = 2e-5


def image(y: int, x: int) -> torch.Tensor:
    return torch.randn(y, x, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def denoiser(model: LoadedModel) -> Denoiser:
    return Denoiser(model.module)


@pytest.mark.parametrize("shape", [(4096, 4096), (3838, 3710), (5760, 4092), (100, 2049), (1, 1)])
def test_tiles_cover_the_image_in_equal_parts(shape: tuple[int, int]) -> None:
    tiling = plan_tiles(shape, 32, 308)
    assert tiling.border_px == 320
    for side, tile in zip(shape, tiling.tile, strict=True):
        count = -(-side // tile)
        assert tile % 32 == 0
        assert tile <= 2048
        # no larger tile than needed, but for rounding up to the stride
        assert 0 <= count * tile - side < 32 * count
    covered = torch.zeros(shape, dtype=torch.int32)
    for y, x in tiling.origins:
        covered[y : y + tiling.tile[0], x : x + tiling.tile[1]] += 1
    assert int(covered.min()) == int(covered.max()) == 1


def test_tiles_equal_the_whole_image_away_from_its_border(denoiser: Denoiser) -> None:
    reach = denoiser.receptive_field_px
    raw = image(160, 224)
    whole = denoiser.run(raw[None])[0]
    tiled = run_in_tiles(raw, plan_tiles((160, 224), denoiser.stride, reach, 48), denoiser.run)
    inner = (slice(reach, -reach), slice(reach, -reach))
    assert whole[inner].numel() > 10_000
    torch.testing.assert_close(tiled[inner], whole[inner], rtol=0, atol=ROUNDING)


def test_a_border_short_of_the_receptive_field_shows_seams(denoiser: Denoiser) -> None:
    """What the test above would look like if it failed."""
    raw = image(160, 224)
    reach = denoiser.receptive_field_px
    tiled = run_in_tiles(raw, Tiling((160, 224), (48, 48), 0), denoiser.run)
    error = (tiled - denoiser.run(raw[None])[0])[reach:-reach, reach:-reach].abs().max()
    assert error > 1000 * ROUNDING


@pytest.mark.parametrize("shape", [(97, 130), (64, 31), (5, 200)])
def test_the_number_of_tiles_makes_no_difference_up_to_the_border(
    denoiser: Denoiser, shape: tuple[int, int]
) -> None:
    raw, stride, reach = image(*shape), denoiser.stride, denoiser.receptive_field_px
    one = run_in_tiles(raw, plan_tiles(shape, stride, reach), denoiser.run)
    many = run_in_tiles(raw, plan_tiles(shape, stride, reach, 32), denoiser.run)
    # the last tile reaches beyond the image by another length, where the mirrored image is the same
    torch.testing.assert_close(many, one, rtol=0, atol=ROUNDING)


def test_tiles_side_by_side_and_in_batches_give_the_same(denoiser: Denoiser) -> None:
    raw = image(100, 120)
    tiling = plan_tiles((100, 120), denoiser.stride, denoiser.receptive_field_px, 32)
    alone = run_in_tiles(raw, tiling, denoiser.run)
    with ThreadPoolExecutor(3) as executor:
        torch.testing.assert_close(run_in_tiles(raw, tiling, denoiser.run, executor=executor), alone)
    batched = run_in_tiles(raw, tiling, denoiser.run, at_once=5)
    torch.testing.assert_close(batched, alone, rtol=0, atol=ROUNDING)


def test_an_error_in_a_tile_is_raised() -> None:
    def broken(tiles: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no memory")

    with ThreadPoolExecutor(2) as executor, pytest.raises(RuntimeError, match="no memory"):
        run_in_tiles(image(64, 64), plan_tiles((64, 64), 4, 8, 16), broken, executor=executor)
