"""The page to look through the images works in a real browser, and asks nothing of a network."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from numpy.typing import NDArray

from cryohush.core.metrics.gain import Verdict
from cryohush.core.report.verdict import like_low_pass
from cryohush.core.report.viewer import MAX_PIXELS, write_viewer

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium: Debian's package of that name has one")
TITLES = ["1@plain.mrcs", "2@</script><script>alert(1)</script>.mrcs", "3@$x$ & é.mrcs"]


def images() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return three images of noise, and discs that keep more and more of their variance."""
    noise = np.random.default_rng(1).normal(0, 1, (3, 64, 64)).astype(np.float32)
    y, x = np.mgrid[:64, :64] - 32
    disc = (y**2 + x**2 < 200).astype(np.float32)
    return noise, disc * np.array([0.2, 0.8, 0.5], np.float32)[:, None, None]


def write(folder: Path, *, error: NDArray[np.float32] | None = None) -> Path:
    raw, denoised = images()
    return write_viewer(
        folder / "view.html",
        raw,
        denoised,
        titles=TITLES,
        pixel_size_angstrom=2.0,
        headline="3 <b>particles</b>",
        notes=[Verdict("loss <b>", "bad"), Verdict("look", "note")],
        total=9,
        filtered=like_low_pass(raw, denoised, 2.0),
        error=error,
    )


def data_of(page: Path) -> dict[str, object]:
    text = page.read_text(encoding="utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    values: dict[str, object] = json.loads(found)
    return values


def browse(page: Path, view: str, *more: str) -> str:
    """Open a view of the page, and return the document as it is after the page's program has run."""
    assert BROWSER is not None
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--user-data-dir={page.parent / 'browser'}",
        "--window-size=1000,700",
        "--virtual-time-budget=2000",
        "--enable-logging=stderr",
        *more,
        f"{page.absolute().as_uri()}#{view}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    # what the page's program complains of
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


def test_the_page_is_one_file_that_names_no_address() -> None:
    page = (Path(__file__).parents[3] / "core" / "report" / "view.html").read_text()
    assert not re.search(r"https?:|//[a-z]+\.|@import|\bfetch\(|XMLHttp|<link|src=\"[^\"]", page)
    assert "default-src 'none'" in page


def test_what_an_image_is_called_cannot_end_the_data(tmp_path: Path) -> None:
    page = write(tmp_path)
    names = [image["name"] for image in data_of(page)["images"]]  # type: ignore[index,attr-defined]
    assert names == [title.partition("@")[2] for title in TITLES]
    assert page.read_text().count("</script>") == 2


def test_many_large_images_do_not_make_a_huge_file(tmp_path: Path) -> None:
    raw = np.random.default_rng(1).normal(0, 1, (12, 900, 900)).astype(np.float32)
    titles = [str(number) for number in range(12)]
    page = write_viewer(
        tmp_path / "v.html", raw, raw, titles=titles, pixel_size_angstrom=None, headline="", notes=[]
    )
    shown = [image["name"] for image in data_of(page)["images"]]  # type: ignore[index,attr-defined]
    assert len(shown) == MAX_PIXELS // 900**2
    assert (shown[0], shown[-1]) == ("0", "11")
    assert page.stat().st_size < 20e6


@in_browser
def test_the_images_are_sorted_by_what_was_kept_of_them(tmp_path: Path) -> None:
    page = write(tmp_path)
    for sort, expected in (("order", "123"), ("most kept", "231"), ("least kept", "132")):
        document = browse(page, f"sort={sort}", "--dump-dom")
        assert "".join(re.findall(r'data-image="(\d)"', document)) == expected


@in_browser
def test_it_says_how_many_of_how_many_images_and_how_large(tmp_path: Path) -> None:
    document = browse(write(tmp_path), "", "--dump-dom")
    assert "3 of 9 particles, evenly spread: 64 × 64 px of 2 Å (128 × 128 Å)" in document
    # 40 % of 128 Å allows a bar of 50 Å
    assert '<div id="bar" style="width: 39.0625%;">50 Å</div>' in document


@in_browser
def test_a_verdict_has_its_colour_and_the_trust_text_waits_for_a_click(tmp_path: Path) -> None:
    document = browse(write(tmp_path), "", "--dump-dom")
    assert '<p class="note bad">loss' in document
    assert '<details class="note">' in document


@in_browser
def test_the_keyboard_is_enough(tmp_path: Path) -> None:
    page = write(tmp_path)
    press = "".join(
        f"document.body.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}', bubbles: true}}));"
        for key in ("ArrowDown", "ArrowDown", " ", "4")
    )
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</script>\n</body>", f"{press}</script>\n</body>"), encoding="utf-8")
    document = browse(page, "image=1&left=raw&right=denoised&at=50", "--dump-dom")
    (title,) = re.findall(r'<div id="title">(.*?)</div>', document)
    assert title.startswith("no. 3 of")
    assert 'id="line" style="left: 0%;"' in document
    assert '<div class="tag" id="tag-right">residual (raw − denoised)</div>' in document


@in_browser
def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    document = browse(write(tmp_path), "image=2", "--dump-dom")
    (title,) = re.findall(r'<div id="title">(.*?)</div>', document)
    number, name = TITLES[1].split("@")
    assert html.unescape(title).startswith(f"no. {number} of {name}: ")
    assert "3 &lt;b&gt;particles" in document
    assert "loss &lt;b&gt;" in document


@in_browser
def test_expected_errors_are_one_more_layer_and_one_more_order(tmp_path: Path) -> None:
    # errors of 0.1, 0.9 and 0.5 standard deviations of the denoised images
    spread = images()[1].std(axis=(1, 2))
    relative = np.array([0.1, 0.9, 0.5], np.float32)
    error = np.ones((3, 64, 64), np.float32) * (relative * spread)[:, None, None]
    document = browse(write(tmp_path, error=error), "image=2&right=error&sort=most error", "--dump-dom")
    assert re.findall(r'data-image="(\d)"', document) == ["2", "3", "1"]
    assert '<div class="tag" id="tag-right">expected error' in document
    assert "expected error in sd of the denoised image 0.90" in document
    assert '<option value="error">' not in browse(write(tmp_path), "", "--dump-dom")


@in_browser
@pytest.mark.parametrize("at", [25, 75])
def test_the_slider_parts_raw_and_denoised(tmp_path: Path, at: int) -> None:
    page, shot = write(tmp_path), tmp_path / "shot.png"
    browse(page, f"image=2&left=raw&right=denoised&at={at}", f"--screenshot={shot}")
    picture = imread(shot)
    # the orange line between the two
    line = np.abs(picture[..., :3] - np.array([0xE0, 0x8A, 0x1E]) / 255).max(-1) < 0.02
    rows = np.flatnonzero(line.sum(1))
    columns = np.flatnonzero(line.sum(0) > 200)
    assert len(columns)
    # below the labels and above the disc, whose radius is 14 of the 64 pixels
    height = rows[-1] - rows[0]
    strip = picture[rows[0] + height * 12 // 100 : rows[0] + height * 22 // 100, :, :3]
    left = strip[:, columns[0] - 60 : columns[0] - 10]
    right = strip[:, columns[-1] + 14 : columns[-1] + 64]
    assert left.std() > 10 * right.std()
