"""A noise finder of another package is asked for by name, and refused with the reason where it is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from micrograph_files import table_of
from particle_files import write_stack
from stranger import installed

from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.load import validate
from cryohush.core.errors import ConfigurationError
from cryohush.core.jobs.extract_noise import run_extract_noise

SOURCE = """
import torch
from cryohush.core.noise.finders import NoiseFinder, Windows

class Corners:
    def __init__(self, model, device, precision, options):
        self.device = device

    def find(self, image, pixel_size_angstrom, window_px, stride_px):
        y, x = image.shape
        origins = torch.tensor([[0, 0], [y - window_px, x - window_px]])
        return Windows(origins, n_windows=9, excluded={"middle": 7})

corners = NoiseFinder(Corners, smallest_window_px=lambda options: 20, remedy="or ask the stranger")
something = 3
"""
POINTS = "[cryohush.noise_finders]\ncorners = strange_finder:corners\nsomething = strange_finder:something\n"
WIDE = {"max_level": 9.0, "max_spread": 9.0, "max_gradient": 9.0, "max_streak": 99.0}


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[Path]:
    image = np.random.default_rng(0).normal(size=(1, 96, 96)).astype(np.float32)
    write_stack(tmp_path / "m.mrc", image, 2.0)
    (tmp_path / "micrographs.star").write_text(table_of(["m.mrc"]))
    with installed(tmp_path / "site", "strange_finder", SOURCE, POINTS):
        yield tmp_path


def options(**changes: object) -> ExtractNoiseOptions:
    given = {"method": "corners", "window_px": 32, "device": "cpu", "precision": "fp32", "threads": 1}
    return validate({**given, **WIDE, **changes}, ExtractNoiseOptions, "test")


def test_its_windows_become_blocks(stranger: Path) -> None:
    summary = run_extract_noise(stranger / "micrographs.star", stranger / "out", options())
    blocks, image = mrcfile.read(summary.stack), mrcfile.read(stranger / "m.mrc")
    np.testing.assert_array_equal(blocks, np.stack([image[:32, :32], image[-32:, -32:]]))
    assert not (stranger / "out/labels").exists()
    assert "7 are left out by the method (middle)" in summary.explanation


def test_what_it_needs_and_advises_is_said(stranger: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"a window of 16 px .* method corners: at least 20 px"):
        run_extract_noise(stranger / "micrographs.star", stranger / "a", options(window_px=16))
    with pytest.raises(Exception, match="or wider limits, or ask the stranger"):
        run_extract_noise(stranger / "micrographs.star", stranger / "b", options(min_blocks=3))


def test_what_is_no_finder_is_refused(stranger: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"something is no .*\.NoiseFinder but a int"):
        run_extract_noise(stranger / "micrographs.star", stranger / "c", options(method="something"))
    with pytest.raises(ConfigurationError, match=r"expected one of segmentation, .*similarity, .*corners"):
        options(method="edges")
