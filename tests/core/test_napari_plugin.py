"""What napari gets: layers as tuples, raw images below denoised ones, and nothing of napari's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import yaml
from particle_files import noise, read_stack, write_stack, write_table

from cryohush.core.cli import main
from cryohush.core.errors import InputError
from cryohush.core.io.mrc import StackReader
from cryohush.core.napari_plugin import get_reader, read_layers, write_image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with particles in two stacks, one of them used backwards, and the same denoised."""
    folder = tmp_path_factory.mktemp("napari")
    for seed, name in enumerate(("a", "b")):
        write_stack(folder / f"{name}.mrcs", noise(4, 32, 32, seed=seed))
    names = ["2@b.mrcs", "1@a.mrcs", "4@b.mrcs", "1@b.mrcs"]
    write_table(folder / "particles.star", names, box_px=32)
    assert main(["denoise", str(folder / "particles.star"), "-o", str(folder / "out"), "--quiet"]) == 0
    return folder


def rows(folder: Path) -> np.ndarray:
    a, b = (read_stack(folder / f"{name}.mrcs") for name in ("a", "b"))
    return np.stack([b[1], a[0], b[3], b[0]])


@pytest.mark.parametrize("name", ["particles.star", "cryohush.json"])
def test_raw_images_lie_below_the_denoised_ones_row_by_row(run: Path, name: str) -> None:
    (raw, about_raw, kind), (denoised, about, _) = read_layers(str(run / "out" / name))
    assert kind == "image"
    np.testing.assert_array_equal(raw, rows(run))
    assert raw.shape == denoised.shape
    assert about_raw["name"] == "raw: particles"
    assert about["name"] == "particles"
    # denoised images have less of everything than the noise that they were
    assert (denoised.std((1, 2)) < raw.std((1, 2))).all()


def test_a_denoised_stack_finds_its_own_raw_images(run: Path) -> None:
    stack = next((run / "out").rglob("b.mrcs"))
    (raw, _, _), (denoised, _, _) = read_layers(str(stack))
    np.testing.assert_array_equal(denoised, read_stack(stack))
    assert len(raw) == 3
    by_hand = read_stack(run / "b.mrcs")
    # in the output each image stands once, in the order of the raw stack or of the rows
    assert sorted(image.std() for image in raw) == pytest.approx(sorted(by_hand[[0, 1, 3]].std((1, 2))))
    for before, after in zip(raw, denoised, strict=True):
        correlation = [np.corrcoef(before.ravel(), other.ravel())[0, 1] for other in denoised]
        assert np.argmax(correlation) == np.flatnonzero((denoised == after).all((1, 2)))[0]


def test_raw_images_are_found_by_name_after_the_table_was_sorted(run: Path) -> None:
    table = run / "particles.star"
    text = table.read_text()
    lines = text.splitlines(keepends=True)
    places = [k for k, line in enumerate(lines) if "@" in line]
    try:
        for place, line in zip(places, sorted(lines[k] for k in places), strict=True):
            lines[place] = line
        table.write_text("".join(lines))
        (raw, _, _), _ = read_layers(str(run / "out" / "particles.star"))
        np.testing.assert_array_equal(raw, rows(run))
        # of other images none is shown
        table.write_text(text.replace("b.mrcs", "a.mrcs"))
        assert len(read_layers(str(run / "out" / "particles.star"))) == 1
    finally:
        table.write_text(text)


def test_denoised_images_that_are_saved_still_say_so(run: Path, tmp_path: Path) -> None:
    layers = read_layers(str(run / "out" / "particles.star"))
    labels = []
    for name, (data, about, _) in zip(("raw", "denoised"), layers, strict=True):
        write_image(str(tmp_path / f"{name}.mrcs"), data, about)
        with StackReader(tmp_path / f"{name}.mrcs") as reader:
            labels.append(reader.header.denoised_label)
    with StackReader(next((run / "out").rglob("b.mrcs"))) as reader:
        assert labels == ["", reader.header.denoised_label]
    assert "denoised by" in labels[1]


def test_what_no_run_has_written_is_one_layer(run: Path) -> None:
    ((data, about, _),) = read_layers(str(run / "a.mrcs"))
    np.testing.assert_array_equal(data, read_stack(run / "a.mrcs"))
    low, high = about["contrast_limits"]
    assert low < float(np.median(data[0])) < high


def test_the_scale_of_a_layer_is_the_pixel_size_and_comes_back(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "m.mrc") as file:
        file.set_data(noise(1, 48, 48, seed=3)[0])
        file.voxel_size = 1.25
    ((data, about, kind),) = read_layers(str(tmp_path / "m.mrc"))
    assert data.shape == (48, 48)
    assert about["scale"] == pytest.approx((1.25, 1.25))
    assert write_image(str(tmp_path / "again.mrc"), data, about) == [str(tmp_path / "again.mrc")]
    with mrcfile.open(tmp_path / "again.mrc") as file:
        np.testing.assert_array_equal(np.squeeze(file.data), data)
        assert float(file.voxel_size.x) == pytest.approx(1.25)
    assert kind == "image"


def test_raw_images_lie_on_the_denoised_ones_whatever_the_table_says_of_pixels(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", noise(2, 32, 32, seed=1))
    write_table(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs"], box_px=32)
    words = ["denoise", str(tmp_path / "p.star"), "--pixel-size", "2.5", "--quiet"]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    for name in ("particles.star", "a.mrcs"):
        scales = [about["scale"] for _, about, _ in read_layers(str(tmp_path / "out" / name))]
        assert scales == [(1.0, 2.5, 2.5)] * 2


def test_denoised_images_are_shown_though_the_raw_ones_are_gone(tmp_path: Path) -> None:
    write_stack(tmp_path / "a.mrcs", noise(2, 32, 32, seed=1))
    write_table(tmp_path / "p.star", ["1@a.mrcs", "2@a.mrcs"], box_px=32)
    assert main(["denoise", str(tmp_path / "p.star"), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    (tmp_path / "p.star").unlink()
    for name in ("particles.star", "a.mrcs", "cryohush.json"):
        with pytest.warns(UserWarning, match="shown without its raw images: .*p.star"):
            ((data, _, _),) = read_layers(str(tmp_path / "out" / name))
        np.testing.assert_array_equal(data, read_stack(tmp_path / "out" / "a.mrcs"))


@pytest.mark.parametrize("text", ['{"version": "0.1.0", "seed": 1}', "[]", "{"])
def test_the_record_of_another_command_is_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "cryohush.json").write_text(text)
    with pytest.raises(InputError, match=r"cryohush\.json.*record"):
        read_layers(str(tmp_path / "cryohush.json"))


@pytest.mark.parametrize("path", ["notes.txt", ["a.mrc", "b.mrc"]])
def test_other_files_are_left_to_others(path: str | list[str]) -> None:
    assert get_reader(path) is None
    assert get_reader("A.MRC") is read_layers
    assert get_reader("run/cryohush.json") is read_layers


def test_asking_for_a_reader_imports_nothing_heavy() -> None:
    code = (
        "import sys; from cryohush.core.napari_plugin import get_reader; get_reader('a.mrc');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'matplotlib', 'napari')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_manifest_names_functions_that_there_are() -> None:
    manifest = yaml.safe_load((ROOT / "core" / "napari.yaml").read_text())
    commands = {entry["id"]: entry["python_name"] for entry in manifest["contributions"]["commands"]}
    assert set(commands.values()) == {
        "cryohush.core.napari_plugin:get_reader",
        "cryohush.core.napari_plugin:write_image",
    }
    for kind in ("readers", "writers"):
        assert {entry["command"] for entry in manifest["contributions"][kind]} <= set(commands)


# npe2 0.10 makes its models in a way that pydantic will drop
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_npe2_accepts_the_manifest_and_reads_with_it(run: Path) -> None:
    npe2 = pytest.importorskip("npe2")
    manager = npe2.PluginManager.instance()
    manager.discover()  # as it is installed, by its entry point
    assert manager.get_manifest("cryohush").display_name
    path = str(run / "out" / "particles.star")
    layers = npe2.read([path], stack=False)
    assert [about["name"] for _, about, _ in layers] == ["raw: particles", "particles"]
    assert json.loads((run / "out" / "cryohush.json").read_text())["table"] == "particles.star"
