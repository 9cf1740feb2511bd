"""Projections of a user's map as clean counterparts, against particles made by closed forms alone.

The density is a sum of Gaussians, so that a projection is a sum of 2D Gaussians at the rotated centres; CTF,
Euler angles and shifts are written out in numpy.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from particle_files import CS_BLOB, save_cs

from cryohush.core.config.load import validate
from cryohush.core.config.training import NetworkConfig, ReferenceConfig, TrainingConfig
from cryohush.core.errors import ConfigurationError, ImageError, InputError
from cryohush.core.io.mrc import StackWriter
from cryohush.core.job_context import QUIET, JobContext
from cryohush.core.models.weights import load_model
from cryohush.core.training.references import ReferenceParticles, ReferenceProjections, open_reference
from cryohush.core.training.run import train, with_network
from cryohush.core.training.stored import StoredImages

N, BOX, PIXEL = 96, 32, 4.0
WIDTH = 7.0  # Å, sd of the Gaussians
CENTRES = np.array([[20.0, 0, 5], [-15, 12, 0], [0, -22, 10], [6, 8, -24]])  # x, y, z, Å
DEFOCUS, KV, CS, CONTRAST = 15000.0, 300.0, 2.7, 0.1
LABELS = [
    "rlnImageName",
    "rlnMicrographName",
    "rlnOpticsGroup",
    *("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"),
    *("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle"),
    "rlnRandomSubset",
]


def gaussians(places: np.ndarray, *axes: np.ndarray) -> np.ndarray:
    """Sum of Gaussians at `places` (x, y, ...) on the grid of `axes` (..., y, x)."""
    return sum(
        np.exp(-sum((axis - c) ** 2 for axis, c in zip(axes[::-1], place, strict=True)) / (2 * WIDTH**2))
        for place in places
    )


def write_map(
    path: Path, *, box: int = BOX, pixel: float = PIXEL, sign: int = 1, solvent: float = 0.0
) -> Path:
    axis = (np.arange(box) - box // 2) * pixel
    volume = gaussians(CENTRES, axis[:, None, None], axis[:, None], axis)
    with mrcfile.new(path, (sign * volume + solvent).astype(np.float32)) as file:
        file.voxel_size = pixel
    return path


def matrix(rot: float, tilt: float, psi: float) -> np.ndarray:
    """RELION's Euler_angles2matrix: volume coordinates (x, y, z) to those of the image."""
    a, b, g = np.deg2rad([rot, tilt, psi])
    ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


def transfer() -> tuple[np.ndarray, np.ndarray]:
    """The CTF of a defocus without astigmatism, positive at low frequency, and the squared frequency."""
    wavelength = 12.2643 / np.sqrt(KV * 1e3 * (1 + 0.978466e-6 * KV * 1e3))
    y, x = np.fft.fftfreq(BOX, PIXEL)[:, None], np.fft.rfftfreq(BOX, PIXEL)
    s2 = y**2 + x**2
    chi = np.pi * wavelength * DEFOCUS * s2 - np.pi / 2 * CS * 1e7 * wavelength**3 * s2**2
    return np.sin(chi + np.arcsin(CONTRAST)), s2


class Project:
    """Particles in a folder: twelve micrographs of eight, whose contrast differs, with their true images."""

    def __init__(self, folder: Path, *, noise: float = 1.0, b_factor: float = 0.0, sign: int = 1) -> None:
        rng = np.random.default_rng(3)
        self.folder, self.micrograph = folder, np.arange(N) // 8
        self.angles = np.stack(
            [
                rng.uniform(-180, 180, N),
                np.rad2deg(np.arccos(rng.uniform(-1, 1, N))),
                rng.uniform(-180, 180, N),
            ],
            1,
        )
        self.shift = rng.uniform(-8, 8, (N, 2))  # x, y from the box centre to the particle, Å
        self.contrast = rng.uniform(0.7, 1.4, 12)[self.micrograph]
        axis = (np.arange(BOX) - BOX // 2) * PIXEL
        values, s2 = transfer()
        values = values * np.exp(-b_factor * s2 / 4)
        projections = np.stack(
            [
                gaussians((matrix(*angles) @ CENTRES.T).T[:, :2] + shift, axis[:, None], axis)
                for angles, shift in zip(self.angles, self.shift, strict=True)
            ]
        )
        clean = np.fft.irfft2(np.fft.rfft2(projections) * values, s=(BOX, BOX))
        clean = clean * self.contrast[:, None, None]
        # the scale of the noise does not matter: images are normalised
        self.clean = clean / clean.std()
        self.images = (self.clean + noise * rng.normal(size=clean.shape)).astype(np.float32) * sign
        self.map = write_map(folder / "map.mrc")
        self.table = self.write()

    def write(self, name: str = "particles", leave_out: tuple[str, ...] = (), **columns: Any) -> Path:
        """The stack and its table, with other columns where given; the pixel size of two optics groups."""
        with StackWriter(
            self.folder / f"{name}.mrcs", self.images.shape, pixel_size_angstrom=PIXEL, label="test"
        ) as writer:
            writer.write(self.images)
        sizes = columns.pop("pixel_sizes", (PIXEL, PIXEL))
        values: dict[str, Any] = {
            "rlnImageName": [f"{i + 1:06d}@{name}.mrcs" for i in range(N)],
            "rlnMicrographName": [f"mic{number}.mrc" for number in self.micrograph],
            "rlnOpticsGroup": 1 + self.micrograph % 2,
            "rlnAngleRot": self.angles[:, 0],
            "rlnAngleTilt": self.angles[:, 1],
            "rlnAnglePsi": self.angles[:, 2],
            "rlnOriginXAngst": -self.shift[:, 0],
            "rlnOriginYAngst": -self.shift[:, 1],
            "rlnDefocusU": [DEFOCUS] * N,
            "rlnDefocusV": [DEFOCUS] * N,
            "rlnDefocusAngle": [0.0] * N,
            "rlnRandomSubset": 1 + np.arange(N) % 2,
            **columns,
        }
        labels = [label for label in LABELS if label not in leave_out]
        lines = ["data_optics", "", "loop_", "_rlnOpticsGroup #1", "_rlnImagePixelSize #2", "_rlnVoltage #3"]
        lines += ["_rlnSphericalAberration #4", "_rlnAmplitudeContrast #5"]
        lines += [f"{number} {size} {KV} {CS} {CONTRAST}" for number, size in enumerate(sizes, 1)]
        lines += ["", "data_particles", "", "loop_"]
        lines += [f"_{label} #{number}" for number, label in enumerate(labels, 1)]
        lines += [" ".join(str(values[label][i]) for label in labels) for i in range(N)]
        path = self.folder / f"{name}.star"
        path.write_text("\n".join([*lines, ""]))
        return path

    def config(self, **changes: Any) -> ReferenceConfig:
        return ReferenceConfig(**{"particles": self.table, "map": self.map, **changes})


def error_of_targets(project: Project, projections: ReferenceProjections) -> tuple[float, np.ndarray]:
    """Squared error of the clean images over their variance, and contrast found by the true one."""
    rows = np.arange(N)
    noisy, clean = (images.numpy() for images in projections.pairs(rows))
    raw = project.images
    # the noisy image tells the scale and level of the normalisation
    scale = raw.std(axis=(1, 2)) / noisy.std(axis=(1, 2))
    truth = project.clean / scale[:, None, None]
    truth -= truth.mean(axis=(1, 2), keepdims=True)
    found = clean - clean.mean(axis=(1, 2), keepdims=True)
    slope = (found * truth).sum((1, 2)) / (truth**2).sum((1, 2))
    return float(((found - truth) ** 2).sum() / (truth**2).sum()), slope


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


def projections_of(
    project: Project, config: ReferenceConfig, context: JobContext = QUIET
) -> ReferenceProjections:
    return ReferenceProjections(config, StoredImages(config.particles), np.arange(N), context)


def test_clean_images_are_the_true_ones_in_place_orientation_ctf_and_contrast(project):
    error, slope = error_of_targets(project, projections_of(project, project.config()))
    # interpolation of slices costs up to 2 %, contrasts from eight images of SNR 1 a few per cent
    assert error < 0.02
    assert slope.mean() == pytest.approx(1, abs=0.03)
    assert np.abs(slope - 1).max() < 0.15  # the true contrasts differ by a factor of 2


def test_a_map_of_other_pixel_and_box_is_resampled_and_the_log_says_so(project, tmp_path):
    coarse = write_map(tmp_path / "coarse.mrc", box=28, pixel=5.0, solvent=3.0)
    lines: list[str] = []
    error, _ = error_of_targets(
        project, projections_of(project, project.config(map=coarse), JobContext(log=lines.append))
    )
    assert error < 0.02
    assert any("28 px of 5 Å, resampled to the particles' 32 px of 4 Å" in line for line in lines)


def test_fall_off_of_the_images_is_found(tmp_path):
    project = Project(tmp_path, noise=0.3, b_factor=300)
    projections = projections_of(project, project.config())
    assert projections.fall_off_square_angstrom.numpy() == pytest.approx(300, abs=40)
    assert error_of_targets(project, projections)[0] < 0.02


def test_the_mask_cuts_the_clean_images(project, tmp_path):
    """A mask about the first Gaussian leaves that one alone, up to 16 Å, 2.286 of its standard deviations."""
    axis = (np.arange(BOX) - BOX // 2) * PIXEL
    far = sum(
        (a - c) ** 2 for a, c in zip((axis, axis[:, None], axis[:, None, None]), CENTRES[0], strict=True)
    )
    with mrcfile.new(tmp_path / "mask.mrc", (far < 16**2).astype(np.float32)) as file:
        file.voxel_size = PIXEL
    whole = projections_of(project, project.config())
    masked = projections_of(project, project.config(mask=tmp_path / "mask.mrc"))
    share = masked._projector(torch.eye(3)[None]).sum() / whole._projector(torch.eye(3)[None]).sum()
    # a chi variable of three dimensions is below 2.286 with this probability; voxels of 4 Å are coarse
    assert float(share) == pytest.approx(0.844 / 4, rel=0.05)


def test_low_pass_removes_what_is_finer(project):
    _, clean = projections_of(project, project.config(low_pass_angstrom=20)).pairs(np.arange(4))
    power = torch.fft.rfft2(clean).abs().square().mean(0)
    y, x = torch.fft.fftfreq(BOX, PIXEL)[:, None], torch.fft.rfftfreq(BOX, PIXEL)
    finer = torch.hypot(y, x) > 1.3 / 20
    assert float(power[finer].sum() / power.sum()) < 1e-3


def test_batches_are_a_function_of_their_number_with_the_snr_of_the_images(project):
    training, validation = open_reference(project.config(), seed=5)
    first, again = training.batch(3, 16), open_reference(project.config(), seed=5)[0].batch(3, 16)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)
    assert first[0].shape == first[1].shape == (16, 1, BOX, BOX)
    assert float(first[2].mean()) == pytest.approx(1, abs=0.3)  # signal and noise have sd 1
    assert not set(training.rows // 8) & set(validation.rows // 8)
    assert training.structures == ["map.mrc"]


def test_changed_contrast_changes_the_snr_of_training_alone(project):
    plain = [data.batch(0, 16)[2] for data in open_reference(project.config(), seed=5)]
    doubled = [data.batch(0, 16)[2] for data in open_reference(project.config(contrast=(2, 2)), seed=5)]
    torch.testing.assert_close(doubled[0], 4 * plain[0])
    torch.testing.assert_close(doubled[1], plain[1])


def test_images_are_mirrored_to_what_the_network_takes(project):
    config = project.config()
    images = StoredImages(config.particles)
    projections = ReferenceProjections(config, images, np.arange(N))
    data = ReferenceParticles(projections, np.arange(N), config, seed=1, stride=20)
    noisy, clean, _ = data.batch(0, 4)
    assert noisy.shape == clean.shape == (4, 1, 40, 40)
    torch.testing.assert_close(noisy[..., 3, :], noisy[..., 5, :])  # 4 px were added before


def test_a_half_set_alone_is_used_and_needs_its_own_half_map(project, tmp_path):
    half = write_map(tmp_path / "run_half2_class001_unfil.mrc")
    lines: list[str] = []
    data, held_out = open_reference(
        project.config(half_set=2, map=half), seed=1, context=JobContext(log=lines.append)
    )
    assert set(np.concatenate([data.rows, held_out.rows]) % 2) == {1}
    assert not any("WARNING" in line for line in lines)
    open_reference(project.config(half_set=2), seed=1, context=JobContext(log=lines.append))
    assert any("does not look like the half map of half set 2" in line for line in lines)
    values = {"particles": project.table, "map": half, "half_set": 1}
    with pytest.raises(ConfigurationError, match=r"half sets are mixed: half_set is 1, .* is of half 2"):
        validate(values, ReferenceConfig, "test")


def test_both_half_sets_in_one_model_are_warned_of(project):
    lines: list[str] = []
    open_reference(project.config(), seed=1, context=JobContext(log=lines.append))
    assert any("WARNING: the model learns from both half sets" in line for line in lines)


def test_half_sets_of_some_particles_only_are_refused(project):
    table = project.write("some", rlnRandomSubset=np.arange(N) % 3)
    with pytest.raises(InputError, match=r"some\.star, line \d+: row 1: expected 1 or 2 in rlnRandomSubset"):
        open_reference(project.config(particles=table, half_set=1), seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"leave_out": ("rlnAngleRot",)}, "no column _rlnAngleRot"),
        ({"leave_out": ("rlnDefocusU",)}, "no column _rlnDefocusU"),
        ({"rlnAngleTilt": ["nan"] * N}, "expected a number in _rlnAngleTilt"),
        (
            {"pixel_sizes": (4.0, 4.2)},
            r"one pixel size, found 4 Å \(optics group 1\), 4.2 Å \(optics group 2\)",
        ),
        ({"rlnMicrographName": ["one.mrc"] * N}, "no particle is left for training"),
    ],
)
def test_tables_that_lack_something_are_refused(project, changes, message):
    table = project.write("bad", **changes)
    with pytest.raises(InputError, match=message):
        open_reference(project.config(particles=table), seed=1)


@pytest.mark.parametrize("label", ["rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied"])
def test_images_whose_ctf_was_changed_are_refused(project, tmp_path, label):
    text = project.table.read_text().replace("#5\n", f"#5\n_{label} #6\n", 1)
    for value, name in ((0, "raw"), (1, "changed")):
        table = project.folder / f"{name}.star"
        table.write_text(text.replace(f" {CONTRAST}\n", f" {CONTRAST} {value}\n"))
    open_reference(project.config(particles=project.folder / "raw.star"), seed=1)
    with pytest.raises(InputError, match=rf"changed\.star, line 10: .* found {label} set"):
        open_reference(project.config(particles=project.folder / "changed.star"), seed=1)


def test_a_stack_without_table_has_no_poses(project):
    with pytest.raises(InputError, match="bare stack has no poses"):
        open_reference(project.config(particles=project.folder / "particles.mrcs"), seed=1)


def test_inverted_contrast_is_refused(project, tmp_path):
    dark = write_map(tmp_path / "dark.mrc", sign=-1)
    with pytest.raises(InputError, match="do not look like the particles: their contrast is -"):
        open_reference(project.config(map=dark), seed=1)


def test_a_map_that_is_larger_than_the_box_is_refused(project, tmp_path):
    """Four times the pixel size: its Gaussians lie outside of the particles' box."""
    path = write_map(tmp_path / "large.mrc")
    with mrcfile.open(path, "r+") as file:
        file.voxel_size = 4 * PIXEL
    with pytest.raises(
        InputError, match=r"large\.mrc: the map does not fit into the particles' box of 128 Å"
    ):
        open_reference(project.config(map=path), seed=1)


def test_orientations_of_other_particles_are_warned_of(project):
    order = np.random.default_rng(1).permutation(N)
    columns = {f"rlnAngle{name}": project.angles[order, k] for k, name in enumerate(("Rot", "Tilt", "Psi"))}
    lines: list[str] = []
    open_reference(
        project.config(particles=project.write("mixed", **columns)),
        seed=1,
        context=JobContext(log=lines.append),
    )
    assert any("WARNING: the particles look no more like" in line for line in lines)
    lines.clear()
    open_reference(project.config(), seed=1, context=JobContext(log=lines.append))
    assert not any("look no more like" in line for line in lines)


def test_an_image_that_is_no_image_is_named_and_left_out(tmp_path):
    project = Project(tmp_path)
    with mrcfile.open(tmp_path / "particles.mrcs", "r+") as file:
        file.data[6, 3, 3] = np.nan
    lines: list[str] = []
    parts = open_reference(project.config(), seed=1, context=JobContext(log=lines.append))
    assert sorted(np.concatenate([part.rows for part in parts])) == [row for row in range(N) if row != 6]
    found = [line for line in lines if "1 image left out" in line]
    assert len(found) == 1
    assert re.search(r"particles\.mrcs, image 7: the image holds NaN .*row 7", found[0])
    with mrcfile.open(tmp_path / "particles.mrcs", "r+") as file:
        file.data[:] = np.nan
    with pytest.raises(ImageError, match=r"particles\.mrcs, image \d+: the image holds NaN"):
        open_reference(project.config(), seed=1)


def test_cryosparc_tables_work_with_dark_protein(tmp_path):
    """The same particles as cryoSPARC describes them, their contrast inverted."""
    from scipy.spatial.transform import Rotation

    project = Project(tmp_path, sign=-1)
    fields: list[Any] = [
        *CS_BLOB,
        ("alignments3D/pose", "<f4", (3,)),
        ("alignments3D/shift", "<f4", (2,)),
        ("alignments3D/psize_A", "<f4"),
        ("alignments3D/split", "<u4"),
        ("location/micrograph_uid", "<u8"),
        *((f"ctf/{name}", "<f4") for name in ("accel_kv", "cs_mm", "amp_contrast", "df1_A", "df2_A")),
        *((f"ctf/{name}", "<f4") for name in ("df_angle_rad", "phase_shift_rad")),
    ]
    table = np.zeros(N, dtype=fields)
    table["uid"], table["blob/idx"] = np.arange(1, N + 1), np.arange(N)
    table["blob/path"], table["blob/shape"] = b"particles.mrcs", (BOX, BOX)
    table["blob/psize_A"] = table["alignments3D/psize_A"] = PIXEL
    table["blob/sign"] = -1
    # the image's frame to the volume's: the transpose of RELION's matrix
    rotations = np.stack([matrix(*angles).T for angles in project.angles])
    table["alignments3D/pose"] = Rotation.from_matrix(rotations).as_rotvec()
    table["alignments3D/shift"] = -project.shift / PIXEL
    table["alignments3D/split"] = np.arange(N) % 2
    table["location/micrograph_uid"] = 1000 + project.micrograph
    for name, value in (("accel_kv", KV), ("cs_mm", CS), ("amp_contrast", CONTRAST)):
        table[f"ctf/{name}"] = value
    table["ctf/df1_A"] = table["ctf/df2_A"] = DEFOCUS
    save_cs(tmp_path / "particles.cs", table)
    config = project.config(particles=tmp_path / "particles.cs")
    project.images = -project.images
    assert error_of_targets(project, projections_of(project, config))[0] < 0.02
    half = config.model_copy(update={"half_set": 2})
    data, _ = open_reference(half, seed=1)
    assert set(data.rows % 2) == {1}


def run_config(tiny: dict[str, Any], project: Project, **changes: Any) -> TrainingConfig:
    options = {**tiny["optimisation"], "steps": 60, "learning_rate": 4e-3}
    rest = {name: value for name, value in tiny.items() if name != "data"}
    reference = project.config().model_dump()
    return TrainingConfig.model_validate(
        {**rest, "reference": reference, "optimisation": options, "validate_every": 20, **changes}
    )


def test_a_run_learns_and_its_card_says_from_what(project, tiny, tmp_path):
    reference = project.config(half_set=1).model_dump()
    weights = train(run_config(tiny, project, reference=reference), tmp_path / "run")
    card = load_model(weights).card
    assert card["training"]["reference"]["half_set"] == 1
    assert card["training"]["reference"]["map"] == "map.mrc"
    network = load_model(weights).module
    projections = projections_of(project, project.config())
    noisy, clean = projections.pairs(np.flatnonzero(np.arange(N) % 2))
    with torch.inference_mode():
        estimate = network(noisy[:, None])[:, 0]
    # particles of the other half: the raw images' error over the variance of the clean ones is 1 at this SNR
    assert float((estimate - clean).square().mean() / clean.var()) < 0.6


def test_fine_tuning_takes_the_network_of_the_weights_that_it_begins_with(project):
    values = {"name": "own", "initial_weights": "general", "optimisation": {"steps": 1}}
    config = TrainingConfig.model_validate({**values, "reference": project.config().model_dump()})
    assert with_network(config).network.model_dump() == load_model("general").card["model"]
    assert with_network(config.model_copy(update={"initial_weights": None})).network == NetworkConfig()


def test_weights_of_another_network_are_refused(project, tiny, tmp_path):
    with pytest.raises(ConfigurationError, match=r"initial_weights: .* are of the network .*96.*, not of"):
        train(run_config(tiny, project, initial_weights="general"), tmp_path / "run")
