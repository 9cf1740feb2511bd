"""What a job says of its own gain is that of the images that it writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from particle_files import write_stack, write_table

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.inference.plan import plan_stacks, read_images
from cryohush.core.io.particles import ParticleSet
from cryohush.core.jobs.self_measurement import measure_gain, measure_gain_of_micrographs, spectra_of_squares
from cryohush.core.metrics.gain import RingGain, Spectra
from cryohush.core.models.base import DenoisingNetwork
from cryohush.core.models.weights import LoadedModel

BOX, N, PIXEL = 32, 120, 5.0


class OnGrid(DenoisingNetwork):
    """Leaves images of one size as they are, and makes nothing of others."""

    stride = 1
    receptive_field_px = 1

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :1] * (x.shape[-1] == self.side)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Particles of random detail within a disc, in white noise that is weaker."""
    generator = np.random.default_rng(1)
    y, x = np.ogrid[:BOX, :BOX]
    disc = np.hypot(y - BOX // 2, x - BOX // 2) < BOX / 4
    images = generator.normal(0, 1, (N, BOX, BOX)) + disc * generator.normal(0, 2, (N, BOX, BOX))
    write_stack(tmp_path / "a.mrcs", images.astype(np.float32), PIXEL)
    write_table(tmp_path / "particles.star", [f"{i + 1}@a.mrcs" for i in range(N)], PIXEL, BOX)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "particles.star"


def gains(table: Path, network: DenoisingNetwork, finer: int = 1, **given: Any) -> dict[float, float]:
    """The gain of each band by its finest resolution, Å."""
    particles = ParticleSet.read(table)
    stacks = [replace(stack, finer=finer) for stack in plan_stacks(particles)]
    model = LoadedModel("test", network, "", {}, Path("test.safetensors"))
    found = measure_gain(particles, stacks, model, DenoiseOptions(**given), "fp32", None)
    return {band["finest_angstrom"]: band["gain"] for band in found["bands"] if band["gain"] is not None}


def test_a_gain_is_that_of_what_is_written_with_the_raw_image_in_it(table: Path) -> None:
    """Of what a network makes nothing of, the raw image that is put back is all there is."""
    nothing = OnGrid(0)
    assert max(abs(gain) for gain in gains(table, nothing).values()) < 1e-6
    np.testing.assert_allclose(list(gains(table, nothing, blend=0.5).values()), 1.0, rtol=1e-3)
    kept = gains(table, nothing, keep_above_angstrom=25.0)
    assert kept[19.0] == pytest.approx(1.0, rel=0.02)  # the edge of the mask mixes frequencies
    assert kept[47.0] < 0.5


@pytest.mark.parametrize("finer", [1, 2])
def test_a_gain_is_that_of_the_grid_on_which_the_images_were_seen(table: Path, finer: int) -> None:
    np.testing.assert_allclose(list(gains(table, OnGrid(finer * BOX), finer).values()), 1.0, rtol=0.01)


class AlongX(DenoisingNetwork):
    """A mean over some pixels along x, or nothing, if it is of one."""

    stride = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.receptive_field_px = self.width = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(x, (self.width // 2,) * 2 + (0, 0), mode="replicate")
        return padded.unfold(-1, self.width, 1).mean(-1)


def threads_along_x(n: int, side: int) -> torch.Tensor:
    """Signals that a mean along x leaves as they are, nearly, and noise is not; none in the finest rings."""
    white = torch.randn(n, side, side, generator=torch.Generator().manual_seed(3))
    y, x = torch.fft.fftfreq(side)[:, None].abs(), torch.fft.rfftfreq(side)
    return 4 * torch.fft.irfft2(torch.fft.rfft2(white) * ((y < 0.25) & (x < 0.015)), s=(side, side))


def gain_of_micrographs(folder: Path, images: torch.Tensor, width: int, **given: Any) -> list[dict[str, Any]]:
    for number, image in enumerate(images):
        write_stack(folder / f"{number}.mrc", image[None].numpy(), PIXEL)
    rows = "".join(f"{number}.mrc\n" for number in range(len(images)))
    (folder / "m.star").write_text(f"data_micrographs\n\nloop_\n_rlnMicrographName\n{rows}\n")
    model = LoadedModel("test", AlongX(width), "", {}, Path("test.safetensors"))
    found = measure_gain_of_micrographs(
        plan_stacks(read_images(folder / "m.star"), pixel_size_angstrom=PIXEL),
        model,
        DenoiseOptions(**given),
        "fp32",
    )
    bands: list[dict[str, Any]] = found["bands"]
    return [band for band in bands if band["gain"] is not None]


def test_the_gain_of_micrographs_is_that_over_independent_ones(tmp_path: Path) -> None:
    """Judges have the same signal in other noise. What is judged has a quarter more noise of its own."""
    signal = threads_along_x(3, 800)
    noise = torch.randn(2, *signal.shape, generator=torch.Generator().manual_seed(4))
    noisier, twin = signal + 1.25**0.5 * noise[0], signal + noise[1]
    denoised = AlongX(9)(noisier[:, None])[:, 0]
    of_twin = [
        Spectra.joined([spectra_of_squares(one, PIXEL) for one in images])
        for images in (noisier, twin, denoised)
    ]
    expected = {band.finest_angstrom: band for band in RingGain(*of_twin[:2]).bands(of_twin[2])}
    measured = gain_of_micrographs(tmp_path, signal + noise[0], 9)
    assert len(measured) >= 4
    for band in measured:
        # their standard errors come to 4 %
        assert band["gain"] == pytest.approx(expected[band["finest_angstrom"]].gain, rel=0.1)
    assert max(band["gain"] for band in measured) > 1.3


def test_a_micrograph_left_as_it_is_gains_nothing(tmp_path: Path) -> None:
    for band in gain_of_micrographs(tmp_path, threads_along_x(2, 800), 1):
        assert band["gain"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("defect", ["hot pixels", "mask"])
def test_defects_of_a_micrograph_are_no_signal_that_is_lost(tmp_path: Path, defect: str) -> None:
    clean = threads_along_x(2, 1200) + torch.randn(2, 1200, 1200, generator=torch.Generator().manual_seed(5))
    damaged = clean.clone()
    if defect == "mask":
        damaged[:, :300] = 0
    else:
        damaged[:, 7::90, 5::90] += 60
    gains = []
    for name, images in (("clean", clean), ("damaged", damaged)):
        (tmp_path / name).mkdir()
        gains.append(
            {band["finest_angstrom"]: band for band in gain_of_micrographs(tmp_path / name, images, 9)}
        )
    assert len(gains[0]) >= 4
    assert gains[1].keys() == gains[0].keys()
    for ring, band in gains[0].items():
        # as in the first test
        assert gains[1][ring]["gain"] == pytest.approx(band["gain"], rel=0.1)


def test_small_micrographs_are_not_measured(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrc", threads_along_x(1, 200).numpy(), PIXEL)
    model = LoadedModel("test", AlongX(9), "", {}, Path("test.safetensors"))
    stacks = plan_stacks(read_images(tmp_path / "a.mrc"))
    found = measure_gain_of_micrographs(stacks, model, DenoiseOptions(), "fp32")
    assert "not measured: that needs a micrograph with noise of at least 384 px a side" in found["verdict"]


def test_micrographs_of_two_pixel_sizes_are_not_measured(tmp_path: Path) -> None:
    """Their Fourier rings are not at the same places, in Å."""
    rows = []
    for name, size in (("a.mrc", PIXEL), ("b.mrc", 2 * PIXEL)):
        write_stack(tmp_path / name, threads_along_x(1, 400).numpy(), size)
        rows += plan_stacks(read_images(tmp_path / name))
    model = LoadedModel("test", AlongX(9), "", {}, Path("test.safetensors"))
    found = measure_gain_of_micrographs(rows, model, DenoiseOptions(), "fp32")
    assert found["verdict"].endswith(
        "not measured: that needs a pixel size, the same one for all micrographs."
    )
