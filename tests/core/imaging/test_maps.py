import gzip
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryohush.core.errors import InputError, MrcError
from cryohush.core.imaging.maps import DensityMap, clean_map, read_map, resampled
from cryohush.core.imaging.resample import low_pass_volume
from cryohush.core.imaging.structure import potential_map, read_structure

DATA = Path(__file__).parents[2] / "data" / "io"


def write_map(path, data, size=2.0, axes=(1, 2, 3), **header):
    """`data` (sections, rows, columns); `axes` MAPC, MAPR, MAPS."""
    with mrcfile.new(path) as mrc:
        mrc.set_data(data.astype(np.float32))
        mrc.set_volume()
        mrc.voxel_size = size
        mrc.header.mapc, mrc.header.mapr, mrc.header.maps = axes
        for name, value in header.items():
            setattr(mrc.header, name, value)
    return path


@pytest.mark.parametrize("axes", [(1, 2, 3), (2, 1, 3), (3, 2, 1), (3, 1, 2), (2, 3, 1)])
def test_any_order_of_axes_gives_z_y_x(tmp_path, axes):
    volume = np.random.default_rng(0).normal(size=(8, 8, 8))  # z, y, x
    # the file's columns run along axis MAPC, so its last dimension is that axis of the volume
    stored = volume.transpose([3 - axes[2], 3 - axes[1], 3 - axes[0]])
    density = read_map(write_map(tmp_path / "a.mrc", stored, axes=axes))
    np.testing.assert_array_equal(density.volume, volume.astype(np.float32))


def test_gzipped_big_endian_map_of_emdb_is_read(tmp_path):
    raw = (DATA / "emd_2479_big_endian.mrc").read_bytes()
    (tmp_path / "emd_2479.map.gz").write_bytes(gzip.compress(raw))
    density = read_map(tmp_path / "emd_2479.map.gz")
    assert density.pixel_size_angstrom == pytest.approx(4.36)
    expected = np.frombuffer(raw, ">f4", offset=1024).reshape(8, 8, 8)
    np.testing.assert_array_equal(density.volume, expected)


def test_oblong_map_is_padded_about_its_centre_and_keeps_its_frame(tmp_path):
    data = np.full((6, 9, 4), 0.5)
    data[3, 4, 2] = 7.0  # voxel n // 2 of each axis
    density = read_map(write_map(tmp_path / "a.mrc", data, size=1.5, nxstart=-2, nystart=10, nzstart=4))
    assert density.volume.shape == (10, 10, 10)
    assert density.volume[5, 5, 5] == 7.0
    assert density.volume[0, 0, 0] == 0.5
    # the centre is where it was: start plus n // 2
    assert density.centre_angstrom == pytest.approx((1.5 * (-2 + 2), 1.5 * (10 + 4), 1.5 * (4 + 3)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mapc": 1, "mapr": 1}, "1, 1, 3"),
        ({"mx": 16}, "cubic voxels"),
        ({"cella": (0, 0, 0)}, "pixel size"),
        ({"cellb": (90, 90, 120)}, "right angles"),
    ],
)
def test_wrong_header_is_refused_by_name(tmp_path, changes, message):
    path = write_map(tmp_path / "a.mrc", np.ones((8, 8, 8)), **changes)
    with pytest.raises(MrcError, match=rf"a\.mrc: .*{message}"):
        read_map(path)


def test_nan_is_refused_with_its_place(tmp_path):
    data = np.ones((8, 8, 8), dtype=np.float32)
    path = write_map(tmp_path / "a.mrc", data)
    with mrcfile.mmap(path, "r+") as mrc:
        mrc.data[1, 2, 3] = np.nan
    with pytest.raises(MrcError, match="voxel x 3, y 2, z 1 is nan"):
        read_map(path)


@pytest.mark.parametrize("content", [b"", b"not a map" * 300])
def test_file_that_is_no_map_is_refused(tmp_path, content):
    (tmp_path / "a.mrc").write_bytes(content)
    with pytest.raises(MrcError, match=r"a\.mrc"):
        read_map(tmp_path / "a.mrc")


def test_resampled_map_keeps_its_centre_in_the_models_frame():
    density = DensityMap(torch.rand(16, 16, 16), 2.0, (5.0, -3.0, 1.0))
    other = resampled(density, 1.3, 24)
    assert other.pixel_size_angstrom == 1.3
    assert other.volume.shape == (24, 24, 24)
    assert other.centre_angstrom == pytest.approx(density.centre_angstrom)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A model of 600 atoms off the origin, its potential, and a map of it with noise and a slab of carbon."""
    rng = np.random.default_rng(1)
    atoms = rng.normal(size=(600, 3)) * [9, 6, 7] + [120, 40, -30]
    lines = [
        f"ATOM  {i:5d}  N   ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           N"
        for i, (x, y, z) in enumerate(atoms, 1)
    ]
    path = tmp_path_factory.mktemp("model") / "model.pdb"
    path.write_text("\n".join([*lines, "END", ""]))
    structure = read_structure(path)
    size, box = 2.5, 48
    truth = potential_map(structure, box, size, 60)
    noise = truth.std() * torch.randn(truth.shape, generator=torch.Generator().manual_seed(2))
    noise[:6] += truth.max()
    x, y, z = (centre - box // 2 * size for centre in structure.centroid_angstrom)
    return structure, low_pass_volume(truth, 8.0, size), DensityMap(truth + noise, size, (x, y, z))


@pytest.mark.parametrize("amplitudes", ["map", "model"])
def test_cleaned_map_is_far_nearer_to_the_truth(fitted, amplitudes):
    structure, truth, density = fitted
    cleaned = clean_map(density, structure, resolution_angstrom=8.0, amplitudes=amplitudes).volume

    def correlation(volume: torch.Tensor) -> float:
        return float(torch.corrcoef(torch.stack([volume.flatten(), truth.flatten()]))[0, 1])

    assert correlation(density.volume) < 0.5
    assert correlation(cleaned) > 0.95
    assert cleaned[:6].abs().max() < 0.05 * cleaned.max()  # no carbon
    # the map's grey scale is kept
    assert (cleaned.norm() / truth.norm()).item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("move", "message"), [(35.0, "correlate"), (500.0, "outside of the map")])
def test_model_that_does_not_fit_is_refused(fitted, move, message):
    structure, _, density = fitted
    x, y, z = density.origin_angstrom
    moved = DensityMap(density.volume, density.pixel_size_angstrom, (x, y + move, z))
    with pytest.raises(InputError, match=message):
        clean_map(moved, structure, resolution_angstrom=8.0)
