"""The pictures show what they say they show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cryohush.core.errors import OutputError
from cryohush.core.report.figures import bar_length, draw_montage, draw_spectra, grey_range, shorten
from cryohush.core.report.pdf import model_facts, write_report


def particles(n: int = 4, side: int = 32) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return noise about a disc, and the disc."""
    generator = np.random.default_rng(7)
    y, x = np.mgrid[:side, :side] - side // 2
    clean = np.repeat((y**2 + x**2 < (side // 4) ** 2)[None].astype(np.float32), n, axis=0)
    return clean + generator.normal(0, 3, clean.shape).astype(np.float32), clean


def draw(n: int = 4) -> Figure:
    raw, clean = particles(n)
    figure = Figure()
    draw_montage(figure, raw, clean, titles=[str(i) for i in range(n)], pixel_size_angstrom=2.0)
    return figure


def test_each_column_holds_raw_denoised_and_their_difference() -> None:
    raw, clean = particles()
    shown = [np.asarray(axes.images[0].get_array()) for axes in draw().axes]
    for row, expected in enumerate((raw, clean, raw - clean)):
        np.testing.assert_array_equal(shown[4 * row : 4 * row + 4], expected)


def test_the_images_of_a_row_share_one_grey_scale() -> None:
    limits = [axes.images[0].get_clim() for axes in draw().axes]
    for row in range(3):
        assert len(set(limits[4 * row : 4 * row + 4])) == 1


def test_the_residual_is_shown_with_the_contrast_of_the_raw_images() -> None:
    limits = [axes.images[0].get_clim() for axes in draw().axes]
    assert np.ptp(limits[8]) == pytest.approx(np.ptp(limits[0]))
    assert np.ptp(limits[4]) < 0.5 * np.ptp(limits[0])


def test_one_hot_pixel_does_not_change_the_grey_scale() -> None:
    raw, _ = particles()
    hot = raw.copy()
    hot[0, 0, 0] = 1e6
    # one pixel of 4096 moves a percentile by less than the spacing of the values next to it
    np.testing.assert_allclose(grey_range(hot), grey_range(raw), atol=0.1)


def test_an_image_of_one_value_can_be_drawn() -> None:
    low, high = grey_range(np.full((1, 8, 8), 3.0, dtype=np.float32))
    assert low == 3.0 < high


@pytest.mark.parametrize(
    ("box", "expected"), [(192.0, 50), (300.0, 100), (48.0, 10), (20000.0, 5000), (2.0, 1)]
)
def test_the_scale_bar_is_round_and_at_most_two_fifths_of_the_box(box: float, expected: int) -> None:
    assert bar_length(box) == expected


def test_the_scale_bar_has_its_length_in_pixels_of_the_image() -> None:
    panel = draw().axes[8]
    (bar,) = panel.lines
    assert np.ptp(np.asarray(bar.get_xdata())) == pytest.approx(20 / 2.0)
    assert panel.texts[0].get_text() == "20 Å"


def test_the_spectrum_of_white_noise_is_its_variance() -> None:
    noise = np.random.default_rng(3).normal(0, 2, (64, 32, 32)).astype(np.float32)
    axes = Figure().subplots()
    draw_spectra(axes, noise, np.zeros_like(noise), pixel_size_angstrom=1.5)
    raw, _, residual = (np.asarray(line.get_ydata()) for line in axes.lines)
    # 64 images with at least 8 coefficients in a ring, half of them independent: 4 s.e. is under 30 %
    np.testing.assert_allclose(raw, 4.0, rtol=0.3)
    np.testing.assert_allclose(residual, raw)
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(1 / 3)


@pytest.mark.parametrize("pixel_size_angstrom", [1.5, None])
@pytest.mark.parametrize("n", [1, 8])
def test_the_report_is_written_under_constant_names(
    tmp_path: Path, n: int, pixel_size_angstrom: float | None
) -> None:
    raw, clean = particles(n)
    written = write_report(
        tmp_path,
        raw,
        clean,
        titles=[f"particle {i + 1}" for i in range(n)],
        pixel_size_angstrom=pixel_size_angstrom,
        headline="8 particles",
        facts={"model": "general", "command": "a long command " * 20, "nothing": ""},
    )
    assert {path.name for path in tmp_path.iterdir()} == {"logfile.pdf", "montage.png"}
    assert written == (tmp_path / "logfile.pdf", tmp_path / "montage.png")
    assert (tmp_path / "logfile.pdf").read_bytes().startswith(b"%PDF")
    assert (tmp_path / "montage.png").read_bytes().startswith(b"\x89PNG")


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    raw, clean = particles(1)
    with pytest.raises(OutputError, match=r"gone/logfile\.pdf: cannot be written: No such file"):
        write_report(
            tmp_path / "gone", raw, clean, titles=["1"], pixel_size_angstrom=None, headline="", facts={}
        )


def test_pyplot_is_never_imported() -> None:
    program = "import sys, cryohush.core.report.pdf; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_a_report_of_nothing_but_skipped_images_is_written_all_the_same(tmp_path: Path) -> None:
    none = np.zeros((0, 32, 32), dtype=np.float32)
    write_report(tmp_path, none, none, titles=[], pixel_size_angstrom=1.0, headline="none", facts={})
    assert {path.name for path in tmp_path.iterdir()} == {"logfile.pdf", "montage.png"}


def test_what_a_model_card_says_is_put_into_words() -> None:
    card = {"measured": {"gain": 2.5, "test_set": ["a", "b"]}, "description": "A  model.\n", "training": {}}
    assert model_facts(card) == {"description": "A model.", "measured": "gain: 2.5; test set: a, b"}
    assert model_facts({"description": None}) == {}


@pytest.mark.parametrize(
    "title", ["1@particles.mrcs", "123456@a_very_long_name_of_a_stack_of_particles.mrcs"]
)
def test_a_title_fits_its_column(title: str) -> None:
    short = shorten(title)
    assert len(short) <= 22
    assert short[:7] == title[:7]
    assert short[-5:] == ".mrcs"
