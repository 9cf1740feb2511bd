"""Pictures of what was taken where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from cryohush.core.report.overlays import REJECTED, TAKEN, draw_overlay, write_overlay

IMAGE = np.random.default_rng(1).normal(size=(90, 120)).astype(np.float32)


def test_frames_stand_where_the_blocks_are() -> None:
    picture = draw_overlay(IMAGE, None, np.array([[10, 20]]), np.array([[50, 60]]), 16)
    assert picture.shape == (90, 120, 3)
    for y, x in ((10, 20), (25, 35), (10, 35), (17, 20)):
        assert picture[y, x] == pytest.approx(TAKEN)
    assert picture[50, 60] == pytest.approx(REJECTED)
    # inside, and outside of the frames, it is the micrograph in grey
    assert picture[18, 28, 0] == picture[18, 28, 1] == picture[18, 28, 2]


def test_labels_are_tinted() -> None:
    labels = np.zeros(IMAGE.shape, dtype=np.uint8)
    labels[:30], labels[60:] = 1, 2
    none = np.zeros((0, 2), dtype=np.int64)
    picture = draw_overlay(IMAGE, labels, none, none, 16)
    red, green, blue = (picture[..., channel] for channel in range(3))
    assert (red[:30] > green[:30]).all()
    assert (blue[60:] > red[60:]).all()
    assert (red[30:60] == green[30:60]).all()


def test_large_micrographs_are_reduced(tmp_path: Path) -> None:
    large = np.tile(IMAGE, (20, 25))
    write_overlay(tmp_path / "x/a.png", large, None, np.array([[1000, 2000]]), np.zeros((0, 2), int), 100)
    # 3,000 px by a factor of 3
    assert imread(tmp_path / "x/a.png").shape[:2] == (600, 1000)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["a.png"]
