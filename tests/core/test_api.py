"""The Python interface: the same images as the command line's, and one clear error for what cannot be."""

from __future__ import annotations

import dataclasses
import doctest
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from particle_files import noise, read_stack, write_stack, write_table

import cryohush
from cryohush.core import api
from cryohush.core.cli import main
from cryohush.core.errors import CryohushError
from cryohush.core.io.mrc import StackWriter
from cryohush.core.io.mrc_header import label_of_denoised

ROOT = Path(__file__).parents[2]
STAR = ROOT / "examples" / "data" / "particles.star"
DEFOCUS = ("defocus_u_angstrom", "defocus_v_angstrom")


def test_importing_it_brings_in_nothing_heavy() -> None:
    heavy = ["torch", "numpy", "matplotlib", "pandas", "scipy", "mrcfile", "yaml", "pydantic"]
    code = f"import cryohush, sys; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_name_it_offers_is_there_and_documented() -> None:
    assert set(cryohush.__all__) == set(api.__all__)
    for name in cryohush.__all__:
        assert getattr(cryohush, name).__doc__, name
        assert name in dir(cryohush)
    with pytest.raises(AttributeError, match="no attribute 'denoize'"):
        cryohush.denoize  # noqa: B018


def test_the_examples_in_its_documentation_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert doctest.testmod(api).failed == 0
    page = ROOT / "docs" / "python.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 5
    assert result.failed == 0


def test_an_array_comes_out_as_the_command_line_writes_it(tmp_path: Path) -> None:
    words = ["--device", "cpu", "--precision", "fp32", "--batch-size", "8", "--protein", "white"]
    assert main(["denoise", str(STAR), "--output", str(tmp_path / "out"), *words]) == 0
    with pytest.warns(UserWarning, match="was denoised already"):
        written = cryohush.read_images(next((tmp_path / "out").glob("*.star")))
    images = cryohush.read_images(STAR)
    denoised = cryohush.denoise(images, device="cpu", precision="fp32", batch_size=8)
    np.testing.assert_array_equal(denoised, written)


@pytest.mark.parametrize("protein", ["white", "dark"])
def test_a_hundred_images_help_each_other_as_on_the_command_line(tmp_path: Path, protein: Any) -> None:
    """The shipped particles twice over: of a bare stack, and with the CTFs of their table."""
    sign = 1 if protein == "white" else -1
    images = sign * np.tile(cryohush.read_images(STAR), (2, 1, 1))
    stack = tmp_path / "twice.mrcs"
    write_stack(stack, images, 1.5)
    text = STAR.read_text()
    rows = re.findall(r"^\d+@.*$", text, re.MULTILINE)
    head = text[: text.index(rows[0])]
    names = (f"{n + 1:06d}@{stack} {row.split(maxsplit=1)[1]}" for n, row in enumerate(rows + rows))
    (tmp_path / "twice.star").write_text(head + "\n".join(names) + "\n")
    how: dict[str, Any] = {"device": "cpu", "precision": "fp32", "batch_size": 16, "protein": protein}
    words = ["--device", "cpu", "--precision", "fp32", "--batch-size", "16", "--protein", protein]
    single = cryohush.denoise(images, pixel_size=1.5, context="none", **how)
    for source, settings in (
        ("twice.mrcs", {}),
        ("twice.star", {"ctf": cryohush.read_ctf(tmp_path / "twice.star")}),
    ):
        out = tmp_path / f"{source}.out"
        assert main(["denoise", str(tmp_path / source), "--output", str(out), *words]) == 0
        denoised = cryohush.denoise(images, pixel_size=1.5, **settings, **how)
        np.testing.assert_array_equal(denoised, read_stack(next(out.rglob("twice.mrcs"))))
        assert not np.allclose(denoised, single, atol=0.01)


def test_ctfs_are_of_the_images_and_of_images_as_they_were() -> None:
    images = cryohush.read_images(STAR, rows=[0, 1, 2])
    for settings, message in (
        ({"ctf": cryohush.read_ctf(STAR, rows=[0, 1]), "pixel_size": 1.5}, "of 3 images, found 2"),
        ({"ctf": cryohush.read_ctf(STAR, rows=[0, 1, 2])}, "needs the pixel size"),
        ({"context": "all"}, "expected 'stack', 'map' or 'none', found 'all'"),
    ):
        with pytest.raises(CryohushError, match=message):
            cryohush.denoise(images, **settings)  # type: ignore[arg-type]


def test_ctfs_of_premultiplied_images_are_refused(tmp_path: Path) -> None:
    text = STAR.read_text().replace("_rlnImageDimensionality", "_rlnCtfDataAreCtfPremultiplied", 1)
    (tmp_path / "x.star").write_text(text)
    with pytest.raises(CryohushError, match="multiplied by their CTF"):
        cryohush.read_ctf(tmp_path / "x.star", root=STAR.parent)


def test_one_image_is_a_stack_of_one() -> None:
    image = cryohush.read_images(STAR, rows=[3])[0]
    alone = cryohush.denoise(image, device="cpu", precision="fp32")
    assert alone.shape == image.shape
    assert alone.dtype == np.float32
    np.testing.assert_array_equal(alone, cryohush.denoise(image[None], device="cpu", precision="fp32")[0])


def test_dark_protein_is_the_negative_of_white() -> None:
    images = cryohush.read_images(STAR, rows=[0, 1])
    white = cryohush.denoise(images, device="cpu", precision="fp32")
    np.testing.assert_allclose(
        cryohush.denoise(-images, protein="dark", device="cpu", precision="fp32"), -white, atol=1e-5
    )
    micrograph = noise(1, 96, 80)[0]
    dark = cryohush.denoise_micrograph(micrograph, device="cpu", precision="fp32")
    assert dark.shape == (96, 80)
    light = cryohush.denoise_micrograph(-micrograph, protein="white", device="cpu", precision="fp32")
    np.testing.assert_allclose(light, -dark, atol=1e-5)


@pytest.mark.parametrize("pixel_size", [3.0, 5.0, 14.0])
@pytest.mark.parametrize("shape", [(4, 40, 40), (1, 90, 110)])
@pytest.mark.parametrize("height", [0.0, 20.0])
def test_coarse_pixels_come_out_as_the_command_line_writes_them(
    tmp_path: Path, pixel_size: float, shape: tuple[int, int, int], height: float
) -> None:
    """Coarse micrographs and bright particles are seen on a finer grid by both, weak particles as they are.

    A micrograph's spectrum counts by its frequencies in Å, which it has with a pixel size only.
    """
    y, x = np.ogrid[: shape[1], : shape[2]]
    waves = height * np.sin(y / 7) * np.sin(x / 5)
    images = write_stack(tmp_path / "x.mrc", noise(*shape) + waves.astype(np.float32), pixel_size)
    words = ["--device", "cpu", "--precision", "fp32", "--batch-size", "4"]
    assert main(["denoise", str(tmp_path / "x.mrc"), "--output", str(tmp_path / "out"), *words]) == 0
    (written,) = (read_stack(path) for path in (tmp_path / "out").glob("x.mrc*"))
    how: dict[str, Any] = {"device": "cpu", "precision": "fp32"}

    def denoised(**size: float) -> Any:
        if shape[0] == 1:
            return cryohush.denoise_micrograph(images[0], **size, **how)[None]
        return cryohush.denoise(images, **size, batch_size=4, **how)

    np.testing.assert_array_equal(denoised(pixel_size=pixel_size), written)
    if shape[0] == 1 or (pixel_size > 4.5 and height):
        assert not np.allclose(denoised(), written, atol=0.01)
    else:
        np.testing.assert_array_equal(denoised(), written)


def test_lengths_are_in_angstrom() -> None:
    images = cryohush.read_images(STAR, rows=[0])
    fine = cryohush.denoise(images, pixel_size=1.5, keep_above=12.0, device="cpu", precision="fp32")
    scaled = cryohush.denoise(images, pixel_size=3.0, keep_above=24.0, device="cpu", precision="fp32")
    np.testing.assert_array_equal(fine, scaled)  # 8 pixels both
    beyond = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.rfftfreq(128), indexing="ij")) > 1.5 / 12
    np.testing.assert_allclose(
        np.fft.rfft2(fine)[:, beyond], np.fft.rfft2(images)[:, beyond], atol=1e-2 * np.abs(images).max()
    )


@pytest.mark.parametrize(
    ("images", "settings", "message"),
    [
        (np.zeros(5), {}, r"expected images \(n, y, x\)"),
        (np.zeros((2, 16, 16), complex), {}, "real numbers"),
        (np.zeros((0, 16, 16)), {}, "found an array of the shape"),
        (np.zeros((2, 32, 32)), {}, "image 1.*constant"),
        (np.full((1, 32, 32), np.nan), {}, "NaN"),
        (np.ones((2, 3, 3)), {}, "3 x 3 px are too small"),
        (np.ones((32, 32)), {"keep_above": 8.0}, "pixel_size .* has to be given"),
        (np.ones((32, 32)), {"pixel_size": 0.0}, "positive number of Å"),
        (np.ones((32, 32)), {"pixel_size": 250.0}, "positive number of Å, 0.1 to 40"),
        (np.ones((32, 32)), {"pixel_size": float("nan")}, "positive number of Å"),
        (np.ones((32, 32)), {"pixel_size": 1.0, "particle_diameter": -3.0}, "particle_diameter"),
        (np.ones((32, 32)), {"blend": 2.0}, "blend: expected 0 to 1"),
        (np.ones((32, 32)), {"protein": "grey"}, "'white' or 'dark'"),
        (np.ones((32, 32)), {"batch_size": 0}, "batch_size"),
        (np.ones((32, 32)), {"model": "generall"}, "unknown model"),
        (np.ones((32, 32)), {"device": "cuda:99"}, "99"),
    ],
)
def test_what_cannot_be_denoised_is_said(images: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CryohushError, match=message):
        cryohush.denoise(images, **{"device": "cpu", **settings})


def test_images_come_in_the_order_of_the_rows(tmp_path: Path) -> None:
    first, second = noise(3, 16, 16), noise(2, 16, 16, seed=1)
    write_stack(tmp_path / "a.mrcs", first)
    write_stack(tmp_path / "b.mrcs", second)
    names = ["000002@b.mrcs", "000001@a.mrcs", "000003@a.mrcs", "000001@b.mrcs"]
    write_table(tmp_path / "particles.star", names)
    images = cryohush.read_images(tmp_path / "particles.star")
    np.testing.assert_array_equal(images, np.stack([second[1], first[0], first[2], second[0]]))
    some = cryohush.read_images(tmp_path / "particles.star", rows=[2, 0, 2])
    np.testing.assert_array_equal(some, images[[2, 0, 2]])
    np.testing.assert_array_equal(cryohush.read_images(tmp_path / "a.mrcs"), first)


@pytest.mark.parametrize("denoised", ["stack", "micrograph"])
def test_denoised_images_are_read_with_a_warning(tmp_path: Path, denoised: str) -> None:
    images, label = noise(4, 16, 16), label_of_denoised("general")
    write_stack(tmp_path / "raw.mrcs", images)
    for name, shape in (("a.mrcs", (4, 16, 16)), ("m.mrc", (1, 64, 64))):
        with StackWriter(tmp_path / name, shape, pixel_size_angstrom=2.0, label=label) as writer:
            writer.write(noise(*shape))
    stack = "a.mrcs" if denoised == "stack" else "raw.mrcs"
    micrograph = "m.mrc" if denoised == "micrograph" else "raw_m.mrc"
    rows = [f"{number}@{stack} {micrograph}" for number in (1, 2)]
    lines = ["data_", "loop_", "_rlnImageName", "_rlnMicrographName", *rows, "1@raw.mrcs raw_m.mrc", ""]
    (tmp_path / "particles.star").write_text("\n".join(lines))
    with pytest.warns(UserWarning, match=r"(a\.mrcs|m\.mrc) was denoised already \(.*general.*no raw images"):
        cryohush.read_images(tmp_path / "particles.star")
    if denoised == "stack":  # of the rows that are read
        some = cryohush.read_images(tmp_path / "particles.star", rows=[2])
        np.testing.assert_array_equal(some, images[:1])


def test_tables_are_data_frames() -> None:
    table = cryohush.read_table(STAR)
    assert len(table) == 56
    assert table["rlnDefocusU"].dtype.kind == "f"
    assert "rlnVoltage" in cryohush.read_table(STAR, "optics")
    with pytest.raises(CryohushError, match="expected the table classes, found optics"):
        cryohush.read_table(STAR, "classes")


def test_images_of_two_sizes_are_not_one_array(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", noise(1, 16, 16))
    write_stack(tmp_path / "b.mrcs", noise(1, 20, 20))
    rows = "\n".join(["data_", "loop_", "_rlnImageName", "1@a.mrcs", "1@b.mrcs", ""])
    (tmp_path / "both.star").write_text(rows)
    with pytest.raises(CryohushError, match="expected images of 16 x 16 px, found 20 x 20 px"):
        cryohush.read_images(tmp_path / "both.star")


def test_a_mask_stands_for_the_rows_that_are_true() -> None:
    mask = np.arange(56) % 3 == 1
    np.testing.assert_array_equal(cryohush.read_images(STAR, rows=mask), cryohush.read_images(STAR)[mask])
    assert len(cryohush.read_ctf(STAR, rows=mask)) == mask.sum()


@pytest.mark.parametrize("rows", [[0.5], [56], [-57], np.ones(3, bool), ["1"]])
def test_rows_that_are_none_are_refused(rows: Any) -> None:
    with pytest.raises(CryohushError, match="rows: "):
        cryohush.read_images(STAR, rows=rows)


def test_masked_pixels_are_not_taken_for_numbers() -> None:
    images = noise(2, 32, 32)
    with pytest.raises(CryohushError, match="found a masked one"):
        cryohush.denoise(np.ma.masked_greater(images, 105))
    with pytest.raises(CryohushError, match="found a masked one"):
        cryohush.denoise_micrograph(np.ma.masked_greater(images[0], 105))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"keep_above": 2.9}, "two pixels are 3 Å, so that nothing would be kept"),
        ({"keep_above": 500.0}, "images 48 Å wide is coarser than 500 Å.* all would stay raw"),
        ({"particle_diameter": 500.0}, "particle_diameter: .* fewer than 16"),
        ({"precision": "bf17"}, "precision: expected auto"),
    ],
)
def test_what_does_not_suit_the_images_is_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(CryohushError, match=problem):
        cryohush.denoise(noise(2, 32, 32), pixel_size=1.5, **given)


@pytest.mark.parametrize(("factor", "problem"), [(1e-4, "not in µm"), (np.nan, "below 20 µm")])
def test_ctfs_that_cannot_be_are_refused(factor: float, problem: str) -> None:
    ctf = cryohush.read_ctf(STAR, rows=[0, 1])
    wrong = dataclasses.replace(ctf, **{name: getattr(ctf, name) * factor for name in DEFOCUS})
    with pytest.raises(CryohushError, match=f"ctf: image 1: .*{problem}"):
        cryohush.denoise(cryohush.read_images(STAR, rows=[0, 1]), pixel_size=1.5, ctf=wrong)


def test_arrays_that_may_not_be_written_to_are_taken(recwarn: pytest.WarningsRecorder) -> None:
    images = noise(2, 32, 32)
    images.flags.writeable = False
    cryohush.denoise(images, device="cpu")
    assert not recwarn.list
