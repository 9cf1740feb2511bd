"""`cryohush-topaz` obeys the command line of `topaz denoise`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from particle_files import noise, write_stack

from cryohush import denoise
from cryohush.core.cli import main as command
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import InputError
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.topaz_cli import main, split_ignored

CPU = ("-d", "-1", "-j", "1")


def write(path: Path, n: int = 1, side: int = 96) -> Path:
    images = np.random.default_rng(n).normal(5, 2, (n, side, side)).astype(np.float32)
    with StackWriter(path, images.shape, pixel_size_angstrom=1.5, label="") as writer:
        writer.write(images)
    return path


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((), "a.denoised.mrc"),
        (("--suffix", "_dn"), "a_dn.mrc"),
        (("-o", "out"), "out/a.mrc"),
        (("--output", "out", "--suffix", ".x"), "out/a.x.mrc"),
    ],
)
def test_a_micrograph_is_written_where_topaz_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.mrc"))
    assert main(["denoise", *CPU, *options, "a.mrc"]) == 0
    with StackReader(name) as output:
        assert output.shape == (1, 96, 96)
        assert output.pixel_size_angstrom == pytest.approx(1.5)
        # white noise is nearly all noise
        assert output.read([0]).std() < 1


def test_a_stack_holds_what_the_model_makes_of_each_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = write(tmp_path / "s.mrcs", 3), tmp_path / "d.mrcs"
    words = ["--stack", "-m", "unet", "--patch-size", "512", "--lowpass", "2", "--new", "7", "--deconvolve"]
    assert main(["denoise", *words, *CPU, "-o", str(target), str(source)]) == 0
    with StackReader(source) as reader, StackReader(target) as output:
        wanted = denoise(reader.read(range(3)), device="cpu")
        np.testing.assert_allclose(output.read(range(3)), wanted, atol=1e-5)
    said = capsys.readouterr().err
    assert "ignored: --patch-size, --lowpass, --new, --deconvolve" in said
    assert "model general of cryohush instead of unet" in said


@pytest.mark.parametrize(("words", "name"), [(("--stack", "-o", "x.denoised.mrc"), "x.mrcs"), ((), "x.mrc")])
def test_what_it_has_made_is_not_taken_for_raw(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(name), 3 if "--stack" in words else 1)
    assert main(["denoise", *CPU, *words, name]) == 0
    with pytest.raises(InputError, match="denoised already"):
        run_denoise("x.denoised.mrc", "again", DenoiseOptions(device="cpu"))
    again = ["--stack", "-o", "y.mrc"] if "--stack" in words else ["--suffix", "_2"]
    assert main(["denoise", *CPU, *again, "x.denoised.mrc"]) == 1
    assert "x.denoised.mrc: these images were denoised already" in capsys.readouterr().err


@pytest.mark.parametrize("pixel_size", [1.5, 7.5])
@pytest.mark.parametrize("options", [(), ("--protein", "white"), ("--protein", "dark")])
@pytest.mark.parametrize("name", ["x.mrc", "x.mrcs"])
def test_its_images_are_those_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: tuple[str, ...], pixel_size: float
) -> None:
    """Coarse pixels and the protein's contrast are treated alike, so that no image is worse for the door."""
    monkeypatch.chdir(tmp_path)
    is_stack = name == "x.mrcs"
    write(Path(name), 3 if is_stack else 1)
    words = [*options, "--pixel-size", str(pixel_size)]
    assert main(["denoise", *CPU, *words, *(["--stack", "-o", "d.mrc"] if is_stack else []), name]) == 0
    assert command(["denoise", name, "-o", "out", *words, "--device", "cpu"]) == 0
    with StackReader("d.mrc" if is_stack else "x.denoised.mrc") as made, StackReader(f"out/{name}") as wanted:
        assert made.pixel_size_angstrom == wanted.pixel_size_angstrom == pixel_size
        # the two may make batches of other sizes, which can decide the last bit
        np.testing.assert_allclose(made.read(range(made.n_images)), wanted.read(range(made.n_images)), 2e-3)


def test_negative_devices_are_no_options() -> None:
    assert split_ignored(["-d", "-1", "x.mrc"]) == (["-d", "-1", "x.mrc"], [])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-a", "x", "-b", "y"], "does not train"),
        (["--format", "png", "a.mrc"], "expected mrc, found 'png'"),
        (["--stack", "a.mrc"], "the file to write"),
        (["absent.mrc"], "absent.mrc"),
        (["-o", ".", "a.mrc"], "an input itself"),
        (["a.mrc", "a.denoised.mrc"], "an input itself"),
        (["-o", "out", "a.mrc", "b/a.mrc"], "two inputs, a.mrc and b/a.mrc"),
        (["nan.mrc"], "nan.mrc: the micrograph holds NaN"),
        (["--stack", "-o", "d.mrcs", "nan.mrcs"], "nan.mrcs, image 30: the image holds NaN"),
        (["a.mrc", "absent.mrc", "nan.mrcs"], "2 of 3 files cannot be used"),
        (["--stack", "-o", "d.mrcs", "wide.mrcs"], "expected square particle images"),
        (["a.tif"], "expected an MRC file"),
        (["--pixel-size", "0", "a.mrc"], "expected a positive number of Å"),
        (["-o", "a.mrc/under", "a.mrc"], "cannot be written"),
        (["--stack", "-o", "folder", "nan.mrcs"], "folder: cannot be written: it is a folder"),
        (["-m", "no_such", "a.mrc"], "no_such"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("a.mrc"))
    Path("folder").mkdir()
    write_stack(Path("nan.mrc"), np.full((1, 96, 96), np.nan, np.float32))
    many = write_stack(Path("nan.mrcs"), noise(32, 128, 128))
    many[29, 5, 5] = np.nan
    write_stack(Path("nan.mrcs"), many)
    write_stack(Path("wide.mrcs"), noise(2, 96, 120))
    assert main(["denoise", *CPU, *words]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ERROR")]
    assert message in line
