"""A preview shows the images of a run, and leaves nothing but the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micrograph_files import micrograph, table_of, write_micrograph
from numpy.typing import NDArray
from particle_files import noise, read_stack, write_stack, write_table

from cryohush.core.cli import main
from cryohush.core.jobs import preview as module

OPTIONS = ["--precision", "fp32", "--threads", "1"]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was drawn."""
    seen: dict[str, Any] = {}

    def note(path: Path, raw: NDArray[np.float32], denoised: NDArray[np.float32], **given: Any) -> Any:
        seen.update(raw=raw, denoised=denoised, **given)
        return draw(path, raw, denoised, **given)

    draw = module.write_montage
    monkeypatch.setattr(module, "write_montage", note)
    return seen


def test_it_shows_what_a_run_would_make_of_evenly_spread_images(
    tmp_path: Path, weights: Path, drawn: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    stacks = {
        name: write_stack(tmp_path / f"S/{name}.mrcs", noise(10, 32, 32, seed=ord(name))) for name in "ab"
    }
    names = [f"{number + 1:06d}@S/{name}.mrcs" for name in "ab" for number in range(10)]
    write_table(tmp_path / "p.star", names, box_px=32)
    command = ["denoise", str(tmp_path / "p.star"), "--model", str(weights), *OPTIONS]
    assert main([*command, "-o", str(tmp_path / "out"), "--preview", "3"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["preview.png"]
    # of 20 images the first, the middle (9.5, to the even) and the last
    assert drawn["titles"] == ["1@a.mrcs", "1@b.mrcs", "10@b.mrcs"]
    expected = np.stack([stacks["a"][0], stacks["b"][0], stacks["b"][9]])
    np.testing.assert_array_equal(drawn["raw"], expected)
    told = capsys.readouterr().out
    assert "without --preview" in told
    # the whole run into the same folder is not in the way of its own preview
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    whole = read_stack(tmp_path / "out/S/b.mrcs")
    np.testing.assert_allclose(drawn["denoised"][2], whole[9], rtol=1e-5)


def test_of_micrographs_it_shows_the_middle(
    tmp_path: Path, weights: Path, drawn: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 3):
        write_micrograph(Path(f"{number}.mrc"), micrograph(64, 64, seed=number))
    Path("m.star").write_text(table_of(["1.mrc", "2.mrc", "3.mrc"]))
    command = ["denoise", "m.star", "-o", "out", "--preview", "2", "--model", str(weights), *OPTIONS]
    assert main(command) == 0
    assert drawn["titles"] == ["1.mrc", "3.mrc"]
    assert drawn["kind"] == "micrographs"


@pytest.mark.parametrize("number", ["0", "25"])
def test_a_number_that_makes_no_picture_is_refused(
    tmp_path: Path, weights: Path, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_stack(tmp_path / "x.mrcs", noise(3, 16, 16))
    command = ["denoise", str(tmp_path / "x.mrcs"), "-o", str(tmp_path / "out"), "--model", str(weights)]
    assert main([*command, "--preview", number]) == 1
    assert f"expected 1 to 24 images, found {number}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
