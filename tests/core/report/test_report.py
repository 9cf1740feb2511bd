"""The pictures show what they say they show."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from cryohush.core.errors import OutputError
from cryohush.core.metrics.gain import Verdict
from cryohush.core.report.figures import (
    Row,
    bar_length,
    column_title,
    comparison_rows,
    contrast,
    draw_gain,
    draw_montage,
    draw_side_by_side,
    draw_spectra,
    grey_range,
    limits_of,
    montage_rows,
)
from cryohush.core.report.html import Picture, Section
from cryohush.core.report.pages import write_pages
from cryohush.core.report.paper import PAGE_HEIGHT, PAGE_WIDTH, Paper
from cryohush.core.report.pdf import write_report
from cryohush.core.report.text import width
from cryohush.core.report.verdict import like_low_pass, low_pass


def particles(n: int = 4, side: int = 32) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return noise about a disc, and the disc."""
    generator = np.random.default_rng(7)
    y, x = np.mgrid[:side, :side] - side // 2
    clean = np.repeat((y**2 + x**2 < (side // 4) ** 2)[None].astype(np.float32), n, axis=0)
    return clean + generator.normal(0, 3, clean.shape).astype(np.float32), clean


def draw(n: int = 4, title: str = "stack.mrcs") -> Figure:
    raw, clean = particles(n)
    figure = Figure(figsize=(2.0 * n, 6.0))
    titles = [f"{i}@{title}" for i in range(n)]
    draw_montage(
        figure,
        raw,
        clean,
        titles=titles,
        pixel_size_angstrom=2.0,
        filtered=like_low_pass(raw, clean, 2.0),
    )
    return figure


def gaussian(images: NDArray[np.float32], half_at: float) -> NDArray[np.float32]:
    """Return images after a filter that passes half of the amplitude at `half_at` cycles per pixel."""
    y, x = images.shape[-2:]
    squared = np.fft.fftfreq(y)[:, None] ** 2 + np.fft.fftfreq(x)[None] ** 2
    passed = 2.0 ** -(squared / half_at**2)
    return np.fft.ifft2(np.fft.fft2(images) * passed).real.astype(np.float32)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda raw, smooth: 0.999 * raw, "kept 100 % of the variance"),
        (lambda raw, smooth: 0.01 * raw, "kept 0.01 % of the variance"),
        (lambda raw, smooth: 5 * raw, "have 2500 % of the variance of the raw ones: more, which is odd"),
        (lambda raw, smooth: -smooth, r"like no plain low-pass .*\(a correlation of -\d\.\d\d at best\)"),
        (lambda raw, smooth: smooth, "most like a plain low-pass at "),
    ],
)
@pytest.mark.parametrize("n", [1, 4])
def test_the_low_pass_that_is_named_is_true_of_odd_images(made: Any, words: str, n: int) -> None:
    raw = np.random.default_rng(1).normal(size=(n, 32, 32)).astype(np.float32)
    smooth = low_pass(raw, 0.2)
    found = like_low_pass(raw, made(raw, smooth), 2.0)
    assert found is not None
    assert re.search(words, found.verdict)
    assert "e+" not in found.verdict


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_of_images_that_show_nothing_no_low_pass_is_named(value: float) -> None:
    raw = np.random.default_rng(1).normal(size=(2, 32, 32)).astype(np.float32)
    with np.errstate(invalid="ignore"):
        assert like_low_pass(raw, np.full_like(raw, value), 2.0) is None


def test_each_column_holds_raw_low_pass_denoised_and_their_difference() -> None:
    raw, clean = particles()
    (panel,) = draw().axes
    shown = [np.asarray(image.get_array()) for image in panel.images]
    columns, lines = (np.array([image.get_extent() for image in panel.images])[:, n] for n in (0, 3))
    # in rows, as they are read
    assert np.array_equal(np.lexsort((columns, lines)), np.arange(16))
    for row, expected in ((0, raw), (2, clean)):
        np.testing.assert_array_equal(shown[4 * row : 4 * row + 4], expected)
    labels = [text.get_text() for text in panel.texts[:4]]
    assert [text.split("\n")[0] for text in labels] == ["raw", "raw, plain", "denoised", "removed,"]
    filtered = like_low_pass(raw, clean, 2.0)
    assert filtered is not None
    removed = np.stack(shown[12:16])
    np.testing.assert_allclose(removed, gaussian(raw - clean, filtered.cutoff), atol=1e-5)


def test_what_was_taken_away_has_the_contrast_of_the_raw_image_after_the_same_filter() -> None:
    raw, clean = particles()
    rows = comparison_rows(raw, clean, like_low_pass(raw, clean, 2.0))
    for taken, scale in (("residual", "raw"), ("removed", "low-pass")):
        for column in range(4):
            limits = limits_of(rows[taken], column)
            assert np.ptp(limits) == pytest.approx(np.ptp(limits_of(rows[scale], column)))
            assert np.mean(limits) == pytest.approx(np.median(rows[taken].images[column]), abs=1e-5)


def test_without_a_filter_the_montage_shows_the_plain_residual() -> None:
    raw, clean = particles()
    assert [row.label for row in montage_rows(raw, clean, None)][-1].startswith("residual")


@pytest.mark.parametrize(("n", "first"), [(1, "Needs a look: no. 0"), (3, "3 images need a look")])
def test_few_conspicuous_images_are_named_at_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int, first: str
) -> None:
    said: list[tuple[str, str]] = []
    monkeypatch.setattr(Paper, "note", lambda self, text, kind: said.append((text, kind)))
    raw, clean = particles(1)
    remarks = [f"no. {number}" for number in range(n)]
    write_report(
        tmp_path, raw, clean, titles=["1"], pixel_size_angstrom=1.0, headline="", facts={}, remarks=remarks
    )
    (bad,) = (text for text, kind in said if kind == "bad")
    assert bad.startswith(first)


def test_one_hot_pixel_does_not_change_the_grey_scale() -> None:
    raw, _ = particles()
    hot = raw.copy()
    hot[0, 0, 0] = 1e6
    # one pixel of 4096 moves a percentile by less than the spacing of the values next to it
    np.testing.assert_allclose(grey_range(hot), grey_range(raw), atol=0.1)


def test_white_noise_is_shown_to_three_standard_deviations() -> None:
    noise = np.random.default_rng(5).normal(10, 2, (256, 256)).astype(np.float32)
    # the 95th percentile lies at 1.645 sd, known here to 0.01 sd
    np.testing.assert_allclose(contrast(noise), (10 - 6.58, 10 + 6.58), atol=0.15)


@pytest.mark.parametrize("value", [-50.0, 50.0])
@pytest.mark.parametrize("side", [40, 90])
def test_an_ice_crystal_does_not_wash_out_the_rest_of_a_micrograph(value: float, side: int) -> None:
    noise = np.random.default_rng(5).normal(0, 1, (200, 200)).astype(np.float32)
    crystal = noise.copy()
    crystal[:side, :side] = value
    # of four per cent of the area the percentiles of a normal distribution move by up to 0.55 sd; of twenty
    # by 0.3, and one side is three times the other
    limit = 1.6 if side == 40 else 2.4
    assert np.ptp(contrast(crystal, "micrographs")) < limit * np.ptp(contrast(noise, "micrographs"))


def test_a_small_bright_particle_is_not_cut_off() -> None:
    image = np.random.default_rng(5).normal(0, 1, (200, 200)).astype(np.float32)
    image[90:118, 90:118] += np.linspace(5, 40, 28, dtype=np.float32)  # two per cent of the area
    low, high = contrast(image)
    # a quarter of the particle, half a per cent of the image, may be clipped; the noise is there as well
    assert np.mean(image[90:118, 90:118] > high) < 0.26
    assert low < -2.5


def test_a_dark_particle_on_flat_ice_keeps_its_grey_values() -> None:
    _, clean = particles(1)
    assert contrast(clean[0]) == (0.0, 1.0)


@pytest.mark.parametrize("scale", [grey_range, contrast])
def test_an_image_of_one_value_can_be_drawn(scale: object) -> None:
    low, high = scale(np.full((8, 8), 3.0, dtype=np.float32))  # type: ignore[operator]
    assert low == 3.0 < high


@pytest.mark.parametrize(
    ("box", "expected"), [(192.0, 50), (300.0, 100), (48.0, 10), (20000.0, 5000), (2.0, 1)]
)
def test_the_scale_bar_is_round_and_at_most_two_fifths_of_the_box(box: float, expected: int) -> None:
    assert bar_length(box) == expected


def test_the_scale_bar_has_its_length_in_pixels_of_the_image() -> None:
    (panel,) = draw().axes
    (bar,) = panel.lines
    assert np.ptp(np.asarray(bar.get_xdata())) == pytest.approx(20 / 2.0)
    left, right, *_ = panel.images[12].get_extent()
    assert (bar.get_xdata()[0], right - left) == (left, 32)
    assert panel.texts[-1].get_text() == "20 Å"


def test_the_spectrum_of_white_noise_is_its_variance() -> None:
    noise = np.random.default_rng(3).normal(0, 2, (64, 32, 32)).astype(np.float32)
    axes = Figure().subplots()
    draw_spectra(axes, noise, np.zeros_like(noise), pixel_size_angstrom=1.5)
    raw, _, residual = (np.asarray(line.get_ydata()) for line in axes.lines)
    # 64 images with at least 8 coefficients in a ring, half of them independent: 4 s.e. is under 30 %
    np.testing.assert_allclose(raw, 4.0, rtol=0.3)
    np.testing.assert_allclose(residual, raw)
    assert axes.lines[0].get_xdata()[-1] == pytest.approx(1 / 3)


@pytest.mark.parametrize("resolution", [8.0, 15.0, 30.0])
def test_a_plain_filter_is_recognised_as_what_it_is(resolution: float) -> None:
    noise = np.random.default_rng(2).normal(0, 1, (6, 96, 96)).astype(np.float32)
    filtered = like_low_pass(noise, 0.7 * gaussian(noise, 2.0 / resolution), 2.0)
    assert filtered is not None
    # resolutions are tried in steps of 3 %; another factor changes nothing
    assert filtered.resolution == pytest.approx(resolution, rel=0.03)
    # the curve is sampled at the rings: within the 3rd one it falls by a tenth
    assert filtered.correlation > 0.998
    assert "nearly the same" in filtered.verdict


def test_what_no_plain_filter_does_is_not_called_the_same() -> None:
    raw, clean = particles(8)
    filtered = like_low_pass(raw, clean, None)
    assert filtered is not None
    # a disc out of noise of three times its contrast: no radial filter can do that
    assert filtered.correlation < 0.8
    assert "beyond that filter" in filtered.verdict
    assert filtered.unit == "px"


@pytest.mark.parametrize("images", [np.zeros((0, 32, 32)), np.zeros((3, 32, 32)), np.ones((1, 4, 4))])
def test_where_nothing_can_be_compared_there_is_no_filter(images: NDArray[np.float64]) -> None:
    assert like_low_pass(images.astype(np.float32), images.astype(np.float32), 1.0) is None


AWKWARD = "$x_1^{$ a/very_long_path" * 20 + " \udcff\n日本 <b>"


@pytest.mark.parametrize("kind", ["particles", "micrographs"])
@pytest.mark.parametrize("pixel_size_angstrom", [1.5, None])
@pytest.mark.parametrize("n", [1, 8])
def test_the_report_is_written_under_constant_names(
    tmp_path: Path, n: int, pixel_size_angstrom: float | None, kind: str
) -> None:
    raw, clean = particles(n)
    written = write_report(
        tmp_path,
        raw,
        clean,
        titles=[f"{i + 1}@{AWKWARD}" for i in range(n)],
        pixel_size_angstrom=pixel_size_angstrom,
        headline=f"8 {AWKWARD}",
        facts={"model": "general", AWKWARD: "a long command " * 20, "nothing": "", "name": AWKWARD},
        kind=kind,  # type: ignore[arg-type]
        remarks=[AWKWARD] * 70,
    )
    names = ("logfile.pdf", "montage.png", "view.html")
    assert written == tuple(tmp_path / name for name in names)
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert written[0].read_bytes().startswith(b"%PDF")
    assert written[1].read_bytes().startswith(b"\x89PNG")


def sizes(path: Path) -> set[tuple[float, float]]:
    """Return the sizes of the pages of a PDF, in points."""
    boxes = re.findall(rb"/MediaBox \[\s*0 0 ([\d.]+) ([\d.]+)\s*\]", path.read_bytes())
    return {(float(width), float(height)) for width, height in boxes}


def test_every_page_is_a4_however_much_there_is_to_say(tmp_path: Path) -> None:
    figures = [Figure(figsize=size) for size in ((3.0, 2.0), (20.0, 4.0), (4.0, 20.0))]
    sections = [
        Section(
            "A title",
            ["A note. " * 100],
            ["name", "a column", "another", "more", "psnr"],
            [["method", "1.00 ± 0.01", "2", "3", "4"]] * 90,
            [Picture("p", "What it shows. " * 20, figure) for figure in figures],
            Verdict("Better.", "good"),
        )
    ]
    write_pages(tmp_path / "x.pdf", "h", "w", {"command": "c" * 3000}, sections)
    ((page_width, page_height),) = sizes(tmp_path / "x.pdf")
    # A4 is 210 x 297 mm
    assert page_width == pytest.approx(210 / 25.4 * 72, abs=0.5)
    assert page_height == pytest.approx(297 / 25.4 * 72, abs=0.5)


def texts(page: Figure) -> list[tuple[str, float, float, float, float]]:
    """Return the texts of a page with left, bottom, right and top edge in inches, as they are drawn."""
    # at the resolution of a screen letters are moved to whole pixels, in a PDF they are not
    page.set_dpi(600)
    renderer = FigureCanvasAgg(page).get_renderer()
    found = []
    for text in page.findobj(Text):
        assert isinstance(text, Text)
        if text.get_text().strip() and text.get_visible():
            box = text.get_window_extent(renderer)
            found.append((text.get_text(), *(edge / page.dpi for edge in box.extents.tolist())))
    return found


def test_no_text_leaves_its_page_or_lies_on_another() -> None:
    paper = Paper(f"A headline that is long enough to need a second line, as {AWKWARD[:120]}")
    paper.note("A note about what is to be seen. " * 12, "bad")
    paper.facts({f"name {number}": AWKWARD for number in range(9)})
    for columns in (2, 5, 9):
        paper.heading(f"{columns} columns")
        header = ["method", *(f"column {number}" for number in range(1, columns))]
        paper.table(header, [["covariance Wiener filter, oracle", *["0.0123 ± 0.0012"] * (columns - 1)]] * 12)
        paper.paragraph("What the table says. " * 30)
    assert len(paper.pages) > 1
    for page in paper.pages:
        shown = texts(page)
        for text, left, bottom, right, top in shown:
            assert min(left, PAGE_WIDTH - right) >= 0.5, text
            assert min(bottom, PAGE_HEIGHT - top) >= 0.4, text
        for number, (text, left, bottom, right, top) in enumerate(shown):
            for other, other_left, other_bottom, other_right, other_top in shown[number + 1 :]:
                # the boxes of lines below each other touch: half a point is no overlap
                apart = min(right, other_right) - max(left, other_left) < 0.01
                apart |= min(top, other_top) - max(bottom, other_bottom) < 0.03
                assert apart, f"{text!r} lies on {other!r}"


@pytest.mark.parametrize("name", ["s.mrcs", "May08_03.15.02_noDW_a_long_name_of_a_micrograph.mrcs", AWKWARD])
def test_the_titles_of_a_montage_never_run_into_each_other(name: str) -> None:
    figure = draw(4, name)
    FigureCanvasAgg(figure).draw()
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts[4:8]]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_title_that_is_too_long_keeps_both_ends_and_its_number() -> None:
    short = column_title("123456@May08_03.15.02_a_very_long_name_of_a_stack_0042.mrcs", 1.2)
    name, number = short.split("\n")
    assert number == "no. 123456"
    assert name.startswith("May")
    assert name.endswith("0042.mrcs")
    assert "…" in name
    assert width(name, 7.0) <= 1.2


def test_a_directory_that_is_gone_is_named(tmp_path: Path) -> None:
    raw, clean = particles(1)
    with pytest.raises(OutputError, match=r"gone/logfile\.pdf: cannot be written: No such file"):
        write_report(
            tmp_path / "gone", raw, clean, titles=["1"], pixel_size_angstrom=None, headline="", facts={}
        )


def test_pyplot_is_never_imported() -> None:
    program = "import sys, cryohush.core.report.pdf; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=300).returncode == 0


def test_a_report_of_nothing_but_skipped_images_is_written_all_the_same(tmp_path: Path) -> None:
    none = np.zeros((0, 32, 32), dtype=np.float32)
    write_report(tmp_path, none, none, titles=[], pixel_size_angstrom=1.0, headline="none", facts={})
    assert {path.name for path in tmp_path.iterdir()} == {"logfile.pdf", "montage.png", "view.html"}


@pytest.mark.parametrize("is_writable", [True, False])
def test_matplotlib_says_nothing_where_the_home_folder_cannot_be_written_to(
    tmp_path: Path, is_writable: bool
) -> None:
    home = tmp_path / "home"
    if is_writable:
        home.mkdir()
    else:
        # also root cannot make a folder below a file
        home.write_text("")
    program = (
        "from cryohush.core.report import quiet_matplotlib; quiet_matplotlib();"
        "import matplotlib; print(matplotlib.get_configdir())"
    )
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stderr == ""
    assert done.stdout.startswith(str(home) if is_writable else str(tmp_path / "cryohush-matplotlib"))


def test_what_denoising_added_stands_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    note = Paper.note
    monkeypatch.setattr(
        Paper, "note", lambda self, text, *kind: (said.append(text), note(self, text, *kind))[1]
    )
    raw, clean = particles(4)
    write_report(
        tmp_path,
        raw,
        clean,
        titles=[str(number) for number in range(4)],
        pixel_size_angstrom=1.5,
        headline="4",
        facts={"model": "general"},
        verdict=Verdict("Denoising adds 10 %.", "good"),
    )
    assert said[0] == "Denoising adds 10 %."
    assert "Denoising adds 10 %." in (tmp_path / "view.html").read_text(encoding="utf-8")


def test_the_gain_is_drawn_where_it_was_measured() -> None:
    bands = [
        {"coarsest_angstrom": 40.0, "finest_angstrom": 20.0, "gain": 1.25, "standard_error": 0.05},
        {"coarsest_angstrom": 20.0, "finest_angstrom": 10.0, "gain": None, "standard_error": None},
    ]
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_gain(axes, bands)
    (points,) = axes.containers
    # (1/40 + 1/20) / 2, and two standard errors either way
    np.testing.assert_allclose(points.lines[0].get_xydata(), [[0.0375, 1.25]])
    (ends,) = points.lines[2][1].get_segments()
    np.testing.assert_allclose(ends[:, 1], [1.15, 1.35])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["40-20 Å"]


def test_images_side_by_side_are_of_one_size() -> None:
    """The first one has the scale bar, which once made it smaller."""
    figure = Figure(figsize=(9, 2))
    rows = [Row(label, np.zeros((1, 60, 60), np.float32), (0.0, 1.0)) for label in "abc"]
    draw_side_by_side(figure, rows, 0, columns=3, pixel_size_angstrom=1.5)
    FigureCanvasAgg(figure).draw()
    widths = [panel.get_window_extent().width for panel in figure.axes]
    assert widths == pytest.approx([widths[0]] * 3)
