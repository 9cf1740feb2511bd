"""What is odd about an input is said before it is denoised, and what is not is left unsaid."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from particle_files import CS_BLOB, save_cs, write_stack

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import InputError, MrcError
from cryohush.core.inference.inputs import InputNotes, look_at_inputs
from cryohush.core.inference.plan import finer_grid, plan_stacks, read_images
from cryohush.core.io.mrc import StackReader
from cryohush.core.io.particles import ParticleSet
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.denoise import run_denoise

SIDE = 48


def particles(height: float, n: int = 40) -> NDArray[np.float32]:
    """White noise with a blob of `height` standard deviations in the middle."""
    y, x = np.ogrid[:SIDE, :SIDE]
    blob = height * np.exp(-((y - SIDE // 2) ** 2 + (x - SIDE // 2) ** 2) / 50)
    return (blob + np.random.default_rng(1).normal(size=(n, SIDE, SIDE))).astype(np.float32)


def micrograph(height: float, seed: int = 1) -> NDArray[np.float32]:
    """Noise about 20 with 60 discs of `height` standard deviations."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:600, :600]
    image = rng.normal(20, 1, (600, 600))
    for cy, cx in rng.uniform(40, 560, (60, 2)):
        image += height * ((y - cy) ** 2 + (x - cx) ** 2 < 400)
    return image.astype(np.float32)


def look(path: Path, protein: str = "auto", size: float | None = None) -> InputNotes:
    images = read_images(path)
    stacks = plan_stacks(images, protein, pixel_size_angstrom=size, trained_angstrom=(0.8, 6.0))  # type: ignore[arg-type]
    return look_at_inputs(images, stacks, (0.8, 6.0))


@pytest.mark.parametrize(
    ("height", "protein"), [(0.5, "auto"), (0.5, "white"), (-0.5, "dark"), (0.0, "auto")]
)
def test_particles_of_the_contrast_that_they_are_taken_for(
    tmp_path: Path, height: float, protein: str
) -> None:
    write_stack(tmp_path / "p.mrcs", particles(height))
    assert look(tmp_path / "p.mrcs", protein).warnings == []


@pytest.mark.parametrize(("height", "protein", "found"), [(-0.5, "auto", "dark"), (0.5, "dark", "white")])
def test_particles_of_the_other_contrast_are_warned_of(
    tmp_path: Path, height: float, protein: str, found: str
) -> None:
    write_stack(tmp_path / "p.mrcs", 1000 + 7 * particles(height))
    (warning,) = look(tmp_path / "p.mrcs", protein).warnings
    assert f"protein looks {found}" in warning
    assert f"--protein {found}" in warning


@pytest.mark.parametrize("other", [0.5, -0.5])
def test_one_stack_of_the_other_contrast_among_several_is_warned_of(tmp_path: Path, other: float) -> None:
    for name, height in (("a", 0.5), ("b", 0.5), ("c", other)):
        write_stack(tmp_path / f"{name}.mrcs", particles(height))
    rows = "".join(f"{i + 1}@{name}.mrcs\n" for name in "abc" for i in range(40))
    (tmp_path / "p.star").write_text(f"data_\n\nloop_\n_rlnImageName\n{rows}\n")
    warnings = look(tmp_path / "p.star").warnings
    assert len(warnings) == (other < 0)
    assert all("looks dark in 1 of 3 stacks" in text and "c.mrcs" in text for text in warnings)


@pytest.mark.parametrize(("header", "said"), [(3.0, True), (1.53, False), (1.0, False), (None, False)])
def test_a_header_of_another_pixel_size_than_the_tables_is_told(
    tmp_path: Path, header: float | None, said: bool
) -> None:
    write_stack(tmp_path / "p.mrcs", particles(0.5), header)
    (tmp_path / "p.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n1 1.5\n\n"
        "data_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n1@p.mrcs 1\n\n"
    )
    told = "its header says pixels of 3 Å, rlnImagePixelSize of p.star 1.5 Å"
    assert any(told in text for text in look(tmp_path / "p.star").warnings) is said
    assert look(tmp_path / "p.star", size=1.5).warnings == []


@pytest.mark.parametrize(("columns", "rows", "said"), [(1, 2, False), (2, 1, True), (0, 0, False)])
def test_a_header_of_other_axes_is_told(tmp_path: Path, columns: int, rows: int, said: bool) -> None:
    with mrcfile.new(tmp_path / "m.mrc", micrograph(-1.5)) as file:
        file.voxel_size = 1.5
        file.header.mapc, file.header.mapr = columns, rows
    warnings = look(tmp_path / "m.mrc").warnings
    assert any("columns run along y and rows along x" in text for text in warnings) is said


@pytest.mark.parametrize(("height", "protein", "n"), [(-1.5, "auto", 0), (1.5, "auto", 1), (1.5, "white", 0)])
def test_inverted_micrographs_are_warned_of(tmp_path: Path, height: float, protein: str, n: int) -> None:
    for number in range(3):
        write_stack(tmp_path / f"m{number}.mrc", micrograph(height, number)[None])
    rows = "".join(f"{tmp_path}/m{number}.mrc\n" for number in range(3))
    (tmp_path / "m.star").write_text(f"data_micrographs\n\nloop_\n_rlnMicrographName\n{rows}\n")
    assert len(look(tmp_path / "m.star", protein).warnings) == n


def test_a_micrograph_of_ice_alone_says_nothing_about_contrast(tmp_path: Path) -> None:
    write_stack(tmp_path / "m.mrc", micrograph(0.0)[None])
    assert look(tmp_path / "m.mrc").warnings == []


def test_the_pixel_size_and_what_says_so(tmp_path: Path) -> None:
    write_stack(tmp_path / "p.mrcs", particles(0.5), 1.5)
    assert "pixel size 1.5 Å, by the header of p.mrcs" in look(tmp_path / "p.mrcs").facts
    given = look(tmp_path / "p.mrcs", size=2.0)
    assert "pixel size 2 Å, by the option --pixel-size, where the header of p.mrcs says 1.5 Å" in given.facts
    (tmp_path / "p.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n_rlnImageSize\n1 1.25 48\n\n"
        f"data_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n1@{tmp_path}/p.mrcs 1\n\n"
    )
    notes = look(tmp_path / "p.star")
    assert "pixel size 1.25 Å, by rlnImagePixelSize of p.star" in notes.facts
    assert notes.pixel_sizes == [(1.25, "rlnImagePixelSize of p.star")]


def test_a_header_that_says_1_angstrom_is_not_trusted_in_silence(tmp_path: Path) -> None:
    write_stack(tmp_path / "p.mrcs", particles(0.5), 1.0)
    assert "what many programs write" in look(tmp_path / "p.mrcs").warnings[0]
    assert look(tmp_path / "p.mrcs", size=1.0).warnings == []


@pytest.mark.parametrize(("other", "said"), [(2.0, True), (3.01, False)])
def test_two_pixel_sizes_in_one_stack_are_warned_of(tmp_path: Path, other: float, said: bool) -> None:
    write_stack(tmp_path / "a.mrcs", particles(1.0, n=4))
    rows = "".join(f"{i + 1}@a.mrcs {1 + i % 2}\n" for i in range(4))
    table = tmp_path / "particles.star"
    table.write_text(
        f"data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n1 3.0\n2 {other}\n\n"
        f"data_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n{rows}\n"
    )
    assert any("2 and 3 Å" in warning for warning in look(table).warnings) is said
    assert not any("of one stack" in warning for warning in look(table, size=2.5).warnings)


def test_pixels_that_are_not_square_are_refused_unless_the_user_says_the_size(tmp_path: Path) -> None:
    with mrcfile.new(tmp_path / "p.mrcs", particles(0.5)) as file:
        file.set_image_stack()
        file.voxel_size = (1.5, 3.0, 1.5)
    with pytest.raises(MrcError, match=r"1.5 along x and 3 Å along y.*--pixel-size"):
        look(tmp_path / "p.mrcs")
    assert look(tmp_path / "p.mrcs", size=1.5).pixel_sizes[0][0] == 1.5


@pytest.mark.parametrize("size", [0.025, 120.0, 1e4])
def test_pixels_of_another_unit_are_refused_unless_the_user_says_the_size(
    tmp_path: Path, size: float
) -> None:
    """A grid that is finer by hundreds would fill the memory."""
    write_stack(tmp_path / "p.mrcs", particles(1.0, 4), size)
    with pytest.raises(MrcError, match=rf"p\.mrcs: no cryo-EM image .* of {size:g} Å.*header.*--pixel-size"):
        look(tmp_path / "p.mrcs")
    images = read_images(tmp_path / "p.mrcs")
    assert plan_stacks(images, pixel_size_angstrom=1.2)[0].pixel_size_angstrom == 1.2


def test_pixels_finer_than_any_that_the_model_knows_are_warned_of(tmp_path: Path) -> None:
    write_stack(tmp_path / "p.mrcs", particles(0.5), 0.4)
    assert "finer than those that the model was trained on" in look(tmp_path / "p.mrcs").warnings[0]


@pytest.mark.parametrize(
    ("size", "of_particles", "of_micrographs"),
    [(1.0, 1, 1), (3.3, 1, 1), (3.6, 1, 2), (4.5, 1, 2), (6.0, 2, 2), (7.5, 2, 2), (9.6, 3, 3), (None, 1, 1)],
)
def test_coarse_pixels_get_a_finer_grid_and_particles_if_they_are_bright(
    size: float | None, of_particles: int, of_micrographs: int
) -> None:
    bright, weak = (torch.from_numpy(particles(height, 8)) for height in (4.0, 0.3))
    assert finer_grid(size, (0.8, 6.0), lambda: (bright, None)) == of_particles
    assert finer_grid(size, (0.8, 6.0), lambda: (weak, None)) == 1
    assert finer_grid(size, (0.8, 6.0), None) == of_micrographs
    assert finer_grid(size, None, lambda: (bright, None)) == 1


def test_stacks_of_one_pixel_size_have_one_grid(tmp_path: Path) -> None:
    """Else images of one particle would look different by the stack that they are in."""
    heights = {"a": 4.0, "b": 0.3, "c": 4.0}
    for name, height in heights.items():
        write_stack(tmp_path / f"{name}.mrcs", particles(height, 8), 6.0)
    rows = "".join(f"{number}@{name}.mrcs\n" for name in heights for number in range(1, 9))
    (tmp_path / "p.star").write_text(f"data_particles\n\nloop_\n_rlnImageName\n{rows}\n")
    table = read_images(tmp_path / "p.star")
    plans = plan_stacks(table, pixel_size_angstrom=6.0, trained_angstrom=(0.8, 6.0))
    assert [plan.finer for plan in plans] == [2, 2, 2]
    weak = plan_stacks(read_images(tmp_path / "b.mrcs"), trained_angstrom=(0.8, 6.0))
    assert [plan.finer for plan in weak] == [1]


@pytest.mark.parametrize(("columns", "finer"), [("defocus", 1), ("alike", 2), ("none", 2), ("multiplied", 2)])
def test_coloured_noise_does_not_make_particles_bright(tmp_path: Path, columns: str, finer: int) -> None:
    """What is stronger at some frequencies is noise where CTFs that differ leave no trace in it."""
    n, box = 128, 64
    ring = 64 * np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box))
    amplitude = np.sqrt(1 + np.exp(-((ring - 12) ** 2) / 32))
    white = np.random.default_rng(7).standard_normal((n, box, box))
    coloured = np.fft.irfft2(np.fft.rfft2(white) * amplitude, s=(box, box)).astype(np.float32)
    # two stacks whose images the table names in reverse: each CTF has to find its image
    for name, images in zip("ab", np.split(coloured, 2), strict=True):
        write_stack(tmp_path / f"{name}.mrcs", images, 6.0)
    names = [f"{number}@{name}.mrcs" for name in "ba" for number in range(n // 2, 0, -1)]
    labels = "_rlnImageName\n"
    if columns != "none":
        labels += "_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n_rlnVoltage\n_rlnSphericalAberration\n"
        labels += "_rlnAmplitudeContrast\n_rlnCtfDataAreCtfPremultiplied\n"
        spread = 0 if columns == "alike" else 9000
        multiplied = int(columns == "multiplied")
        defoci = 15000 + spread * np.linspace(-1, 1, n)
        names = [
            f"{name} {u:.1f} {u:.1f} 0 300 2.7 0.1 {multiplied}"
            for name, u in zip(names, defoci, strict=True)
        ]
    (tmp_path / "p.star").write_text("data_particles\n\nloop_\n" + labels + "\n".join(names) + "\n")
    plans = plan_stacks(
        read_images(tmp_path / "p.star"), pixel_size_angstrom=6.0, trained_angstrom=(0.8, 6.0)
    )
    assert [plan.finer for plan in plans] == [finer, finer]


def density() -> NDArray[np.float32]:
    """A 3D map of a few blobs."""
    z, y, x = np.mgrid[:SIDE, :SIDE, :SIDE] - SIDE // 2
    volume = np.zeros(z.shape)
    for a, b, c in np.random.default_rng(3).uniform(-10, 10, (30, 3)):
        volume += np.exp(-((z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) / 8)
    return (volume + 0.02 * np.random.default_rng(4).normal(size=volume.shape)).astype(np.float32)


@pytest.mark.parametrize("name", ["map.mrc", "map.mrcs"])
def test_a_3d_map_is_no_stack_of_particles(tmp_path: Path, name: str) -> None:
    mrcfile.write(tmp_path / name, density(), voxel_size=1.5)
    with pytest.raises(MrcError, match="3D map"):
        look(tmp_path / name)
    (tmp_path / "p.star").write_text(f"data_particles\n\nloop_\n_rlnImageName\n1@{tmp_path}/{name}\n\n")
    with pytest.raises(MrcError, match="3D map"):
        look(tmp_path / "p.star")


def test_a_map_with_a_stacks_header_is_warned_of(tmp_path: Path) -> None:
    write_stack(tmp_path / "p.mrcs", density(), 1.5)
    assert any(
        "a 3D map of 48 x 48 x 48 voxels?" in warning for warning in look(tmp_path / "p.mrcs").warnings
    )


@pytest.mark.parametrize("n", [5, 40, SIDE])
@pytest.mark.parametrize("masked", [False, True])
def test_particles_with_the_header_of_a_map_are_particles(tmp_path: Path, n: int, masked: bool) -> None:
    images = 100 + particles(0.5, n)
    if masked:
        images[:, :, :12] = 0.0
    mrcfile.write(tmp_path / "p.mrcs", images, voxel_size=1.5)
    assert look(tmp_path / "p.mrcs").warnings == []


def test_what_was_denoised_is_not_denoised_again(tmp_path: Path, weights: Path) -> None:
    write_stack(tmp_path / "p.mrcs", particles(0.5, 4))
    options = DenoiseOptions(model=str(weights), device="cpu", precision="fp32", threads=1)
    summary = run_denoise(tmp_path / "p.mrcs", tmp_path / "out", options)
    with pytest.raises(InputError, match=r"were denoised already.*Give the raw images"):
        run_denoise(summary.stacks[0], tmp_path / "again", options)
    assert not (tmp_path / "again").exists()


def cs_rows(n: int) -> NDArray[Any]:
    """Rows of a `.cs` table for the images of `p.mrcs`, protein white."""
    rows = np.zeros(n, CS_BLOB)
    rows["uid"], rows["blob/path"], rows["blob/idx"] = np.arange(n) + 7, b"p.mrcs", np.arange(n)
    rows["blob/shape"], rows["blob/psize_A"], rows["blob/sign"] = SIDE, 1.5, 1.0
    return rows


def denoised_micrographs(folder: Path, weights: Path, names: list[str]) -> list[str]:
    """Denoise some micrographs, and return the new ones' names relative to the working directory."""
    made = []
    for seed, name in enumerate(names):
        write_stack(folder / f"{name}.mrc", micrograph(-1.0, seed)[None], 1.5)
        options = DenoiseOptions(model=str(weights), device="cpu", precision="fp32", threads=1)
        summary = run_denoise(folder / f"{name}.mrc", folder / f"denoised_{name}", options)
        made.append(str(summary.stacks[0].relative_to(folder)))
    return made


@pytest.mark.parametrize("other_label", [False, True])
@pytest.mark.parametrize("later_columns", ["", "_rlnCoordinateX\n"])
def test_particles_from_denoised_micrographs_are_refused(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, other_label: bool, later_columns: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (denoised,) = denoised_micrographs(tmp_path, weights, ["m1"])
    if other_label:  # as programs do that note what they did to a file
        with mrcfile.open(denoised, "r+") as file:
            file.header.label[1], file.header.label[0] = file.header.label[0], b"newstack: pixels shifted"
    write_stack(Path("p.mrcs"), particles(0.5, 4))
    value = " 12.5" if later_columns else ""
    rows = "".join(
        f"{micrograph}{value} {number}@p.mrcs\n"
        for number, micrograph in enumerate(["m1.mrc", f'"{denoised}"', "gone.mrc"], start=1)
    )
    Path("p.star").write_text(
        f"data_particles\n\nloop_\n_rlnMicrographName\n{later_columns}_rlnImageName\n{rows}\n"
    )
    with pytest.raises(InputError, match=r"denoised already, such as denoised_m1.*from the raw ones"):
        look(Path("p.star"))
    Path("p.star").write_text(Path("p.star").read_text().replace(f'"{denoised}"', "m1.mrc"))
    assert look(Path("p.star")).warnings == []


def test_particles_of_cryosparc_from_denoised_micrographs_are_refused(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = np.array([b"m1.mrc", b"m2.mrc", b"gone.mrc", b"m1.mrc"])
    denoised = denoised_micrographs(tmp_path, weights, ["m1", "m2"])
    write_stack(tmp_path / "p.mrcs", particles(0.5, 4), 1.5)
    blob = cs_rows(4)
    save_cs(Path("J1_particles.cs"), blob)
    places = np.zeros(
        4, [("uid", "u8"), ("location/micrograph_path", "S40"), ("location/center_x_frac", "f4")]
    )
    places["uid"], places["location/micrograph_path"] = blob["uid"][::-1], raw
    save_cs(Path("J1_passthrough_particles.cs"), places)
    assert look(Path("J1_particles.cs")).warnings == []
    places["location/micrograph_path"][2] = f">{denoised[1]}".encode()
    save_cs(Path("J1_passthrough_particles.cs"), places)
    with pytest.raises(InputError, match=r"denoised already, such as denoised_m2.*from the raw ones"):
        look(Path("J1_particles.cs"))


@pytest.mark.parametrize("is_cs", [False, True])
def test_only_rows_that_are_read_tell_of_denoised_micrographs_and_few_are_opened(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, is_cs: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (denoised,) = denoised_micrographs(tmp_path, weights, ["m"])
    names = [f"raw/m{number}.mrc" for number in range(200)] + [denoised]
    write_stack(Path("p.mrcs"), particles(0.5, len(names)))
    if is_cs:
        rows = np.zeros(len(names), [*CS_BLOB, ("location/micrograph_path", "S60")])
        for field in CS_BLOB:
            rows[field[0]] = cs_rows(len(names))[field[0]]
        rows["location/micrograph_path"] = [name.encode() for name in names]
        save_cs(Path("p.cs"), rows)
    else:
        lines = "".join(f"{name} {number}@p.mrcs\n" for number, name in enumerate(names, 1))
        Path("p.star").write_text(f"data_particles\n\nloop_\n_rlnMicrographName\n_rlnImageName\n{lines}\n")
    images = read_images(Path("p.cs" if is_cs else "p.star"))
    assert isinstance(images, ParticleSet)
    assert list(images.micrograph_names) == names
    opened: list[str] = []

    class Counting(StackReader):
        def __init__(self, path: str | Path) -> None:
            opened.append(str(path))
            super().__init__(path)

    monkeypatch.setattr("cryohush.core.io.particles.StackReader", Counting)
    assert list(images.denoised_micrographs()) == [denoised]
    assert len(opened) <= 20
    assert list(images.first(200).micrograph_names) == names[:200]
    assert images.first(200).denoised_micrographs() == {}
    assert images.first(3).first(2).micrograph_names == ("raw/m0.mrc", "raw/m1.mrc")


@pytest.mark.parametrize(("protein", "said"), [("auto", True), ("white", False), ("dark", False)])
def test_a_table_of_cryosparc_without_a_sign_says_what_was_taken_for_granted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protein: str, said: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    write_stack(Path("p.mrcs"), particles(0.0, 4), 1.5)
    rows = cs_rows(4)
    save_cs(Path("p.cs"), rows[[name for name in rows.dtype.names or () if name != "blob/sign"]])
    warnings = look(Path("p.cs"), protein).warnings
    assert any("no field blob/sign" in text and "taken for white" in text for text in warnings) is said
    assert [stack.protein_dark for stack in plan_stacks(read_images("p.cs"), protein)] == [protein == "dark"]  # type: ignore[arg-type]


def test_what_follows_the_images_that_a_header_counts_is_told(tmp_path: Path) -> None:
    path = tmp_path / "p.mrcs"
    write_stack(path, particles(0.5, 5))
    assert look(path).warnings == []
    with path.open("r+b") as file:  # as a program leaves it that appends images before it counts them
        file.seek(8)
        file.write((3).to_bytes(4, "little"))
    (warning,) = look(path).warnings
    assert f"goes on for {2 * 4 * SIDE * SIDE} bytes after the 3 images" in warning
    assert "2 more would fit" in warning


SPOTS = {
    "a hot pixel in the middle": lambda y, x: (y == 24) & (x == 24),
    "a hot pixel in a corner": lambda y, x: (y == 2) & (x == 2),
    "a rectangle in the middle": lambda y, x: (y >= 18) & (y < 26) & (x >= 18) & (x < 28),
    "a rectangle in a corner": lambda y, x: (y < 12) & (x < 14),
    "a column": lambda y, x: (x == 24) & (y >= 0),
    "all but a circle": lambda y, x: (y - 24) ** 2 + (x - 24) ** 2 > 400,
}


@pytest.mark.parametrize("label", ["rlnCtfDataAreCtfPremultiplied", "rlnCtfDataArePhaseFlipped"])
@pytest.mark.parametrize("value", ["0", "1"])
@pytest.mark.parametrize("in_optics", [False, True])
def test_ctf_premultiplied_particles_are_warned_of(
    tmp_path: Path, label: str, value: str, in_optics: bool
) -> None:
    write_stack(tmp_path / "p.mrcs", particles(1.0, 4), 1.5)
    optics, extra = ("", value) if not in_optics else (value, "")
    rows = "".join(f"{i}@p.mrcs 1 {extra}\n" for i in range(1, 5))
    columns = [f"_{label}\n" if text else "" for text in (optics, extra)]
    (tmp_path / "p.star").write_text(
        f"data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnImagePixelSize\n{columns[0]}1 1.5 {optics}\n\n"
        f"data_particles\n\nloop_\n_rlnImageName\n_rlnOpticsGroup\n{columns[1]}{rows}\n"
    )
    warnings = look(tmp_path / "p.star").warnings
    # where phases were flipped the noise is the microscope's
    assert len(warnings) == int(value == "1" and "Premultiplied" in label)
    assert all(f"{label} says that the images were multiplied by their CTF" in text for text in warnings)


@pytest.mark.parametrize(
    ("name", "side", "said"), [("m.mrc", 64, True), ("m.mrcs", 64, False), ("m.mrc", 300, False)]
)
def test_one_small_square_image_may_be_a_particle(tmp_path: Path, name: str, side: int, said: bool) -> None:
    images = np.random.default_rng(1).normal(size=(1, side, side)).astype(np.float32)
    write_stack(tmp_path / name, images, 1.5)
    warnings = look(tmp_path / name).warnings
    assert any("is taken for a micrograph" in warning for warning in warnings) is said


@pytest.mark.parametrize(
    ("name", "shape"), [("p.mrcs", (4, 3, 3)), ("p.mrcs", (1, 7, 7)), ("m.mrc", (1, 5, 300))]
)
def test_images_of_a_few_pixels_are_refused(tmp_path: Path, name: str, shape: tuple[int, int, int]) -> None:
    write_stack(tmp_path / name, np.random.default_rng(1).normal(size=shape).astype(np.float32), 1.5)
    with pytest.raises(MrcError, match=rf"{name}: images of {shape[2]} x {shape[1]} px are too small"):
        look(tmp_path / name)


@pytest.mark.parametrize("of_micrographs", [False, True])
def test_images_without_noise_at_high_frequencies_are_warned_of(tmp_path: Path, of_micrographs: bool) -> None:
    images = micrograph(-1.0)[None] if of_micrographs else particles(1.0)
    path = tmp_path / ("m.mrc" if of_micrographs else "p.mrcs")
    write_stack(path, images, 1.5)
    assert look(path).warnings == []
    transform = np.fft.rfft2(images)
    y, x = np.fft.fftfreq(images.shape[1]), np.fft.rfftfreq(images.shape[2])
    transform[:, np.hypot(y[:, None], x) > 0.25] = 0
    write_stack(path, np.fft.irfft2(transform, s=images.shape[1:]).astype(np.float32), 1.5)
    (warning,) = look(path).warnings
    found = re.search(r"hardly any noise finer than ([\d.]+) Å", warning)
    assert found is not None
    # small boxes have few rings
    assert float(found[1]) == pytest.approx(1.5 / 0.25, abs=1.0)
    assert "give the images as they were" in warning


@pytest.mark.parametrize("value", [-30.0, 30.0, 1e5])
@pytest.mark.parametrize("where", SPOTS)
def test_masks_and_outlying_pixels_do_not_decide_what_is_dark(
    tmp_path: Path, where: str, value: float
) -> None:
    y, x = np.ogrid[:SIDE, :SIDE]
    for height, protein in ((0.5, "white"), (-0.5, "dark"), (0.5, "dark"), (-0.5, "white")):
        images = particles(height)
        images[:, SPOTS[where](y, x)] = value
        write_stack(tmp_path / "p.mrcs", images)
        warned = any("protein looks" in text for text in look(tmp_path / "p.mrcs", protein).warnings)
        assert warned == ((height > 0) == (protein == "dark"))


@pytest.mark.parametrize("sign", [1, -1])
def test_hollow_particles_show_their_contrast_too(tmp_path: Path, sign: int) -> None:
    """Shells as of apoferritin: behind a CTF their middle is no brighter than what is around them."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    radius = np.hypot(y, x) / SIDE
    shell = np.exp(-(((radius - 0.2) / 0.05) ** 2)) - 0.4 * np.exp(-(((radius - 0.36) / 0.06) ** 2))
    middle = radius < 0.19
    shell[middle] -= shell[middle].mean() - shell[radius > 0.38].mean()
    images = particles(0.0, 200) + np.float32(sign) * shell.astype(np.float32)
    write_stack(tmp_path / "p.mrcs", images)
    right, wrong = ("white", "dark")[::sign]
    assert not look(tmp_path / "p.mrcs", right).warnings
    (warning,) = look(tmp_path / "p.mrcs", wrong).warnings
    assert f"protein looks {right}, but is taken for {wrong}: what stands out of the images" in warning


def test_brightness_that_rises_across_particles_has_no_contrast(tmp_path: Path) -> None:
    images = particles(0.0) + np.arange(SIDE, dtype=np.float32) / 4
    write_stack(tmp_path / "p.mrcs", images)
    for protein in ("white", "dark"):
        assert look(tmp_path / "p.mrcs", protein).warnings == []


@pytest.mark.parametrize("spoilt", ["hot pixels", "a rectangle", "a column", "a border", "a bright hole"])
def test_defects_of_a_micrograph_do_not_decide_what_is_dark(tmp_path: Path, spoilt: str) -> None:
    y, x = np.ogrid[:600, :600]
    for height, protein in ((-1.0, "dark"), (1.0, "white"), (1.0, "dark"), (-1.0, "white")):
        image = micrograph(height)
        if spoilt == "hot pixels":
            image[::97, ::89] = 1e4
        elif spoilt == "a rectangle":
            image[100:300, 100:200] = 60 * np.sign(height)
        elif spoilt == "a column":
            image[:, 300] = -30
        elif spoilt == "a border":
            image[:60] = 0
        else:
            image += 60 * ((y - 300) ** 2 + (x - 300) ** 2 < 900)
        write_stack(tmp_path / "m.mrc", image[None], 1.5)
        warned = any("protein looks" in text for text in look(tmp_path / "m.mrc", protein).warnings)
        assert warned == ((height > 0) == (protein == "dark"))


def test_all_damaged_files_are_named_at_once_and_left_out_if_asked(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abcde":
        write_stack(tmp_path / f"{name}.mrcs", particles(0.5, 3))
    Path("b.mrcs").write_bytes(b"")
    Path("d.mrcs").write_bytes(Path("d.mrcs").read_bytes()[:5000])
    rows = "".join(f"{number}@{name}.mrcs {name}{number}\n" for number in (1, 2) for name in "abcde")
    Path("p.star").write_text(f"data_particles\n\nloop_\n_rlnImageName\n_rlnNote\n{rows}\n")
    options = DenoiseOptions(model=str(weights), device="cpu", precision="fp32", threads=1)
    with pytest.raises(MrcError, match=r"2 of 5 stacks cannot be used.*b\.mrcs.*d\.mrcs"):
        run_denoise("p.star", "out", options)
    lines: list[str] = []
    summary = run_denoise(
        "p.star", "out", options.model_copy(update={"skip_bad": True}), JobContext(log=lines.append)
    )
    assert any("b.mrcs" in line and "d.mrcs" in line and "left out" in line for line in lines)
    assert summary.table is not None
    written = [line.split() for line in summary.table.read_text().splitlines() if "@" in line]
    assert [note for _, note, *_ in written] == ["a1", "c1", "e1", "a2", "c2", "e2"]
    for name, note, original in written:
        assert Path(name.split("@")[1]).name == f"{note[0]}.mrcs"
        assert original == f"{note[1]}@{note[0]}.mrcs"
        assert int(name.split("@")[0]) == int(note[1])
    record = json.loads(summary.record.read_text())
    assert len(record["damaged_files"]) == 2
    assert record["pixel_sizes"] == [{"angstrom": None, "source": None}]


def test_a_table_of_which_all_files_are_damaged_is_refused(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.mrcs").write_bytes(b"")
    Path("p.star").write_text("data_particles\n\nloop_\n_rlnImageName\n1@a.mrcs\n\n")
    options = DenoiseOptions(model=str(weights), device="cpu", skip_bad=True)
    with pytest.raises(MrcError, match=r"a\.mrcs"):
        run_denoise("p.star", "out", options)
