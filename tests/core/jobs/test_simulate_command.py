"""`cryohush simulate` makes what its configuration says, or tells what is wrong with it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import yaml
from matplotlib.image import imread
from numpy.typing import NDArray
from particle_files import read_stack
from simulated import BOX, blobs, settings, write_map

from cryohush.core.cli import main
from cryohush.core.config.load import load_yaml
from cryohush.core.config.simulate import ParticlesConfig


def write_config(folder: Path, **changes: Any) -> str:
    structure = write_map(folder / "cloud.mrc", changes.get("box_px", BOX))
    (folder / "set.yaml").write_text(yaml.safe_dump(settings(structure, **changes)))
    return str(folder / "set.yaml")


def test_a_set_is_made_and_a_second_run_needs_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["simulate", write_config(tmp_path), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "device cpu" in out
    assert "20 of 20 images (100 %)" in out
    for output in ("noisy", "ctf_only", "clean"):
        assert f"wrote {tmp_path / 'out' / output}.star" in out
        assert read_stack(tmp_path / "out" / f"{output}.mrcs").shape == (20, BOX, BOX)
    record = json.loads((tmp_path / "out" / "cryohush.json").read_text())
    assert record["command"].startswith("cryohush simulate ")
    assert record["seed"] == 1
    # three rows of six images, at 195 px each
    height, width, _ = imread(tmp_path / "out" / "montage.png").shape
    assert height > 3 * 195
    assert width > 6 * 195
    assert main(command) == 1
    assert "holds another run" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--set", "seed=2"]) == 0
    assert json.loads((tmp_path / "out" / "cryohush.json").read_text())["seed"] == 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"snr": -0.1}, "snr: expected greater than 0, found -0.1"),
        ({"snr": []}, "give a signal-to-noise ratio"),
        ({"box_pixels": 64}, "unknown key 'box_pixels'; did you mean 'box_px'?"),
        ({"noise": {"components": [{"kind": "gama"}]}}, "expected 'gaussian', 'poisson', 'gamma'"),
        ({"contamination": {"share": 0.1, "of": "noisy", "typ": 1}}, "unknown key 'contamination.typ'"),
        ({"contamination": {"share": 2, "of": "noisy"}}, "contamination.share: expected less than"),
        ({"particle_diameter_angstrom": 400}, "particle_diameter_angstrom: a circle of radius 25 px leaves"),
        ({"pixel_size_angstrom": 1}, "the CTF oscillates faster than a box of 32 px can hold"),
        ({"structures": [{"path": "absent.pdb"}]}, "absent.pdb"),
        ({"kind": "tomograms"}, "kind: expected particles or micrographs, found 'tomograms'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], problem: str
) -> None:
    assert main(["simulate", write_config(tmp_path, **changes), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert problem in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def shell_correlation(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    a, b = np.fft.fftn(one), np.fft.fftn(other)
    k = np.fft.fftfreq(len(one)) * len(one)
    shell = np.rint(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)).astype(int).ravel()
    cross, power_a, power_b = (
        np.bincount(shell, values.ravel()) for values in ((a * b.conj()).real, np.abs(a) ** 2, np.abs(b) ** 2)
    )
    return (cross / np.sqrt(power_a * power_b))[: len(one) // 2]


@pytest.mark.relion
def test_relion_reconstructs_the_map_from_each_stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong sign or order of an angle, an origin or a CTF parameter would leave no map at all."""
    config = write_config(
        tmp_path,
        n_images=400,
        snr=4.0,
        ctf={"defocus_angstrom": [10000, 20000], "astigmatism_angstrom": [500, 2000]},
    )
    monkeypatch.chdir(tmp_path)
    assert main(["simulate", config, "--output", "out", "--device", "cpu"]) == 0
    for output in ("clean", "ctf_only", "noisy"):
        command = ["relion_reconstruct", "--i", f"out/{output}.star", "--o", f"{output}.mrc"]
        command += ["--ctf"] * (output != "clean")
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        # its own columns are kept, and only they are not known
        unknown = {line.split()[-1] for line in done.stderr.splitlines() if "unknown label" in line}
        assert unknown <= {f"rlnCryohush{name}" for name in ("Structure", "Noise", "Snr", "Contaminated")}
        found = shell_correlation(mrcfile.read(tmp_path / f"{output}.mrc"), blobs())
        assert found[1:10].min() > (0.9 if output == "noisy" else 0.98), output


def test_the_example_is_a_valid_configuration() -> None:
    example = Path(__file__).parents[3] / "examples" / "simulate.yaml"
    assert load_yaml(example, ParticlesConfig).noise.combine == "one"
