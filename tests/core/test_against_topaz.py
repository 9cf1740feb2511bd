"""`cryohush-topaz` leaves what topaz-em 0.3.20 itself leaves, but for the pixels.

Runs where Topaz is: `topaz` on the PATH, or its path in CRYOHUSH_TOPAZ. It is GPL and no dependency of
cryohush: `pip install topaz-em==0.3.20 'setuptools<81'` in an environment of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest

TOPAZ = os.environ.get("CRYOHUSH_TOPAZ") or shutil.which("topaz")
pytestmark = pytest.mark.skipif(TOPAZ is None, reason="needs topaz-em: on the PATH or in CRYOHUSH_TOPAZ")
OURS = [sys.executable, "-c", "import sys; from cryohush.core.topaz_cli import main; sys.exit(main())"]
# on the CPU, one thread
CPU = ["-d", "-1", "-j", "1"]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same micrographs and stack: for Topaz, and for us."""
    generator = np.random.default_rng(0)
    images = {
        "a.mrc": generator.normal(5, 2, (128, 160)),
        "b.mrc": generator.normal(5, 2, (128, 160)).astype(np.float16),
        "s.mrcs": generator.normal(5, 2, (3, 64, 64)),
    }
    folders = tmp_path / "topaz", tmp_path / "ours"
    for folder in folders:
        folder.mkdir()
        for name, image in images.items():
            with mrcfile.new(folder / name) as file:
                file.set_data(image if image.dtype == np.float16 else image.astype(np.float32))
                file.voxel_size = 1.5
    return folders


def run(program: list[str], folder: Path, words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*program, "denoise", *CPU, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def lines(text: str) -> list[str]:
    """Return what is said of the images; versions, devices and models have other names."""
    return re.findall(r"# (?:\d+ of \d+ completed|denoising stack|writing to).*", text.replace("\r", "\n"))


@pytest.mark.parametrize(
    "words",
    [
        ["a.mrc", "b.mrc"],
        ["-o", "out", "a.mrc"],
        ["-o", "out/deep", "--suffix", "_dn", "a.mrc", "b.mrc"],
        ["--suffix", "_dn", "a.mrc"],
        ["--normalize", "a.mrc", "--patch-size", "512", "--patch-padding", "64"],
        ["--stack", "-o", "d.mrcs", "s.mrcs"],
        ["--stack", "--normalize", "-o", "d.mrcs", "s.mrcs"],
        ["-m", "unet", "--format", "mrc", "a.mrc"],
    ],
    ids=" ".join,
)
def test_files_headers_and_messages_are_those_of_topaz(folders: tuple[Path, Path], words: list[str]) -> None:
    before = files(folders[0])
    theirs = run([str(TOPAZ)], folders[0], words)
    ours = run(OURS, folders[1], words)
    assert (ours.returncode, theirs.returncode) == (0, 0), ours.stderr + theirs.stderr
    made = files(folders[0]) - before
    assert made
    assert files(folders[1]) - before == made
    assert (ours.stdout, theirs.stdout) == ("", "")
    # Topaz counts each image of a stack, we may count several at once: the last line is the same
    assert lines(ours.stderr)[-1] == lines(theirs.stderr)[-1]
    assert lines(ours.stderr)[0].split(":")[0] in [line.split(":")[0] for line in lines(theirs.stderr)]
    for name in made:
        with (
            mrcfile.open(folders[0] / name, permissive=True) as wanted,
            mrcfile.open(folders[1] / name) as found,
        ):
            assert found.data.shape == wanted.data.shape
            assert found.data.dtype == wanted.data.dtype == np.float32
            assert found.voxel_size.x == pytest.approx(float(wanted.voxel_size.x))
            if "--normalize" in words:
                for image in np.atleast_3d(found.data.T).T:
                    assert (float(image.mean()), float(image.std())) == pytest.approx((0, 1), abs=1e-3)
            else:
                # noise of mean 5 becomes nearly even, in both
                assert float(found.data.mean()) == pytest.approx(float(wanted.data.mean()), abs=0.05)
                assert float(found.data.std()) < 0.4
                assert float(wanted.data.std()) < 0.4


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["absent.mrc"], 1),
        (["--stack", "s.mrcs"], 1),
        (["s.mrcs", "-o", "out"], 1),
        (["-d", "x", "a.mrc"], 2),
        (["-o"], 2),
    ],
    ids=str,
)
def test_exit_codes_are_those_of_topaz(folders: tuple[Path, Path], words: list[str], code: int) -> None:
    theirs, ours = run([str(TOPAZ)], folders[0], words), run(OURS, folders[1], words)
    assert (ours.returncode, theirs.returncode) == (code, code), ours.stderr + theirs.stderr
    # one line where Topaz leaves a traceback
    assert "Traceback" not in ours.stderr
