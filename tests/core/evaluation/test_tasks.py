"""What images are good for, and what a model invents, on images whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from evaluation_files import BOX, PIXEL_SIZE, Files, write_files, write_particles
from numpy.typing import NDArray

from cryohush.core.cli import main
from cryohush.core.config.evaluate import EvaluateConfig, HalfMapsSection, PickingSection, PoseSection
from cryohush.core.errors import InputError, StarError
from cryohush.core.evaluation.comparison import Sources
from cryohush.core.evaluation.model_section import model_figures
from cryohush.core.evaluation.picking import picking
from cryohush.core.evaluation.tasks import half_maps, pose_accuracy
from cryohush.core.imaging.projection import Projector, rotations_from_euler
from cryohush.core.metrics.fourier import fourier_shell_correlation
from cryohush.core.models import MODELS
from cryohush.core.models.weights import save_model


def check() -> None:
    """Nobody asks to stop."""


def write_volume(path: Path, volume: NDArray[np.float32], pixel_size: float = PIXEL_SIZE) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(volume)
        file.voxel_size = pixel_size
        file.set_volume()
    return path


def blobs(side: int = 24) -> NDArray[np.float32]:
    """An asymmetric particle of four blobs."""
    z, y, x = np.mgrid[:side, :side, :side] - side // 2
    places = ((0, 0, 0, 2.0), (5, 0, 2, 1.5), (-2, 6, 0, 1.0), (0, -3, 6, 0.7))
    parts = [w * np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 4.0) for a, b, c, w in places]
    return np.sum(parts, axis=0).astype(np.float32)


def test_half_maps_given_as_pairs_are_compared_by_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(2)
    volume = blobs()
    halves = [volume + generator.normal(0, 0.1, volume.shape).astype(np.float32) for _ in range(2)]
    paths = [write_volume(tmp_path / f"half{i}.mrc", half) for i, half in enumerate(halves)]
    radius = np.sqrt(sum((axis - 12.0) ** 2 for axis in np.mgrid[:24, :24, :24]))
    mask = write_volume(tmp_path / "mask.mrc", np.clip((11 - radius) / 2, 0, 1).astype(np.float32))
    output = tmp_path / "out"
    assert main(["evaluate", "--pairs", *map(str, paths), "--mask", str(mask), "--output", str(output)]) == 0
    found = json.loads((output / "evaluation.json").read_text())["half_maps"]
    expected = fourier_shell_correlation(*(torch.from_numpy(half) for half in halves))
    np.testing.assert_allclose(found["fsc"]["unmasked"], expected.numpy(), atol=1e-5)
    assert set(found["fsc"]) == {"unmasked", "masked", "phases randomised", "corrected"}
    # Gaussians of sd 1.4 voxels: their detail ends well before Nyquist, 6 Å
    assert 6.0 < found["resolution_angstrom"]["unmasked"]["0.143"] < 24 * PIXEL_SIZE


def test_half_maps_of_different_size_are_refused(tmp_path: Path) -> None:
    first = write_volume(tmp_path / "a.mrc", blobs(24))
    second = write_volume(tmp_path / "b.mrc", blobs(32))
    with pytest.raises(InputError, match=r"b\.mrc.*32 px at 3 Å, but .*a\.mrc has 24 px"):
        half_maps(HalfMapsSection(first=first, second=second))


@pytest.fixture
def micrographs(tmp_path: Path) -> tuple[Path, NDArray[np.float32]]:
    """Two micrographs with dark discs at known places, and their labels in a folder."""
    centres = np.array([[40, 50], [60, 150], [120, 90], [170, 180], [180, 40]], dtype=np.float32)
    y, x = np.mgrid[:220, :230]
    image = np.random.default_rng(4).normal(0, 0.2, y.shape).astype(np.float32)
    for row, column in centres:
        image -= (np.hypot(y - row, x - column) <= 10).astype(np.float32)
    names = ("one.mrc", "two.mrc")
    for name in names:
        with mrcfile.new(tmp_path / name) as file:
            file.set_data(image)
            file.voxel_size = 4.0
    (tmp_path / "micrographs.star").write_text(
        "\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n1 4.0\n\n\n"
        "data_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnOpticsGroup #2\n"
        + "".join(f"{name} 1\n" for name in names)
    )
    (tmp_path / "Picks").mkdir()
    for name in names:
        rows = "".join(f"{column:.2f} {row:.2f}\n" for row, column in centres)
        text = f"\ndata_\n\nloop_\n_rlnCoordinateX #1\n_rlnCoordinateY #2\n{rows}\n"
        (tmp_path / "Picks" / name.replace(".mrc", "_manualpick.star")).write_text(text)
    return tmp_path / "micrographs.star", centres


def section(micrographs: Path, labels: str) -> PickingSection:
    return PickingSection(
        micrographs=micrographs, labels=micrographs.parent / labels, diameter_angstrom=80, raw=micrographs
    )


def test_clear_particles_are_all_found(micrographs: tuple[Path, NDArray[np.float32]]) -> None:
    table, centres = micrographs
    found, report = picking(section(table, "Picks"), check)
    assert found["labels"] == 2 * len(centres)
    for kind in ("denoised", "raw"):
        assert found[kind]["blobs"]["recall"] == 1.0
        assert found[kind]["blobs"]["average_precision"] == pytest.approx(1.0)
        # contrast 1 over noise of 0.2: 14 dB; the square of half a diameter lies inside the disc
        assert found[kind]["region_contrast_db"] == pytest.approx(14.0, abs=1.0)
        # the particle is flat: nothing but the same noise varies in either region
        assert found[kind]["region_variance_ratio_db"] == pytest.approx(0.0, abs=1.0)
    assert [picture.name for picture in report.pictures] == ["picks_denoised", "picks_raw"]


def test_labels_come_from_one_table_too(micrographs: tuple[Path, NDArray[np.float32]]) -> None:
    table, centres = micrographs
    rows = "".join(
        f"raw/{name}.mrc {column:.2f} {row:.2f}\n" for name in ("one", "two") for row, column in centres
    )
    (table.parent / "labels.star").write_text(
        "\ndata_particles\n\nloop_\n_rlnMicrographName #1\n_rlnCoordinateX #2\n_rlnCoordinateY #3\n" + rows
    )
    assert picking(section(table, "labels.star"), check)[0]["labels"] == 2 * len(centres)


def test_a_micrograph_without_labels_is_named(micrographs: tuple[Path, NDArray[np.float32]]) -> None:
    table, _ = micrographs
    (table.parent / "Picks" / "two_manualpick.star").unlink()
    with pytest.raises(StarError, match=r"two_manualpick\.star"):
        picking(section(table, "Picks"), check)


def test_the_poses_of_clean_projections_are_found(tmp_path: Path) -> None:
    volume = blobs()
    degrees = torch.tensor([[10.0, 40.0, 70.0], [200.0, 95.0, 15.0], [300.0, 130.0, 250.0]])
    images = Projector(torch.from_numpy(volume))(rotations_from_euler(degrees)).numpy()
    path = write_particles(tmp_path, "projections", images.astype(np.float32))
    text = path.read_text().replace(
        "_rlnClassNumber #4\n", "_rlnAngleRot #4\n_rlnAngleTilt #5\n_rlnAnglePsi #6\n"
    )
    lines = iter(degrees.tolist())
    path.write_text(
        "\n".join(
            " ".join([*line.split()[:3], *(f"{angle:.1f}" for angle in next(lines))]) if "@" in line else line
            for line in text.split("\n")
        )
    )
    density = write_volume(tmp_path / "map.mrc", volume)
    config = EvaluateConfig(denoised=path, pose=PoseSection(map=density, order=1, apply_ctf=False))
    assert config.pose is not None
    found, _ = pose_accuracy(config.pose, Sources.open(config), check)
    # steps of 30 degrees, halved three times in the refinement
    assert found["denoised"]["median_angle_degrees"] < 4.0
    assert found["denoised"]["share_within_10_degrees"] == 1.0


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return write_files(tmp_path)


def test_a_model_gets_pure_noise_and_what_is_known(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    arguments = {"widths": [4, 4], "blocks": [1, 1], "unshuffle": 2}
    save_model(path, MODELS["shuffle_unet"](**arguments), "shuffle_unet", arguments, {"description": "tiny"})
    config = EvaluateConfig(denoised=files["denoised"], raw=files["raw"], reference=files["clean"])
    found, report = model_figures(str(path), Sources.open(config), 8, "cpu", check)
    assert set(found["pure_noise"]) == {"white", "spectrum of the raw images"}
    assert all(figures["n_images"] == 8 for figures in found["pure_noise"].values())
    assert len(found["unseen_structure"]["frc_of_output"]) == BOX // 2 + 1
    assert len(report.pictures) == 2
    alone, _ = model_figures(str(path), None, 4, "cpu", check)
    assert set(alone["pure_noise"]) == {"white"}
