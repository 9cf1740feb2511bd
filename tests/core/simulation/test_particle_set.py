"""A simulated set holds what was asked for, and depends on nothing but its configuration."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from particle_files import read_alike, read_stack, write_stack
from simulated import BOX, PIXEL_SIZE_ANGSTROM, settings, write_map

from cryohush.core.config.load import validate
from cryohush.core.config.simulate import ParticlesConfig
from cryohush.core.errors import Aborted, ConfigurationError, InputError, OutputError
from cryohush.core.imaging.projection import Projector, rotations_from_euler
from cryohush.core.imaging.symmetry import symmetry_operators, to_asymmetric_unit
from cryohush.core.io.particles import ParticleSet
from cryohush.core.io.star import read_tables
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.simulate import SimulateJob
from cryohush.core.simulation.classes import read_classes
from cryohush.core.simulation.draws import deal, draw_particles
from cryohush.core.simulation.particle_images import ParticleImages

CPU = torch.device("cpu")
ALL_KINDS: list[dict[str, Any]] = [
    {"kind": "gaussian"},
    {"kind": "gamma"},
    {"kind": "rayleigh"},
    {"kind": "poisson", "electrons_per_pixel": 100},
]
Y, X = np.ogrid[:BOX, :BOX]
FREQUENCY = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.rfftfreq(BOX))
INSIDE = (Y - BOX // 2) ** 2 + (X - BOX // 2) ** 2 <= (0.375 * BOX) ** 2


@pytest.fixture
def structure(tmp_path: Path) -> Path:
    return write_map(tmp_path / "cloud.mrc")


def configuration(structure: Path, **changes: Any) -> ParticlesConfig:
    return validate(settings(structure, **changes), ParticlesConfig, "test")


def simulate(config: ParticlesConfig, folder: Path, **options: Any) -> dict[str, NDArray[np.float32]]:
    SimulateJob(config, "cpu").run(folder, **options)
    return {output: read_stack(folder / f"{output}.mrcs") for output in config.outputs}


def column(path: Path, label: str) -> list[str]:
    for table in read_tables(path):
        if table.name == "particles":
            index = table.labels.index(label)
            return [tokens[index].decode() for _, _, tokens in table.rows()]
    raise AssertionError(path)


def test_an_image_is_the_same_in_any_company(structure: Path) -> None:
    config = configuration(structure, noise={"components": ALL_KINDS[:3], "ice_share": 0.3})
    draws = draw_particles(config, [1.0])
    images, projector = ParticleImages(config, draws, CPU), Projector(read_classes(config)[0].volume())
    together = images.form(projector, range(20))
    for number in (0, 7, 19):
        for output, image in images.form(projector, [number]).items():
            # but for the rounding of vectorised arithmetic, which differs with the number of images
            torch.testing.assert_close(image[0], together[output][number], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kinds", [ALL_KINDS[:3], ALL_KINDS[3:]], ids=["sum", "poisson"])
def test_ratio_is_that_of_the_particles_circle_in_every_image(
    structure: Path, tmp_path: Path, kinds: list[dict[str, Any]]
) -> None:
    config = configuration(
        structure, snr_range=[0.05, 2], snr=[], noise={"components": kinds, "ice_share": 0.2}
    )
    made = simulate(config, tmp_path / "out")
    noise = made["noisy"] - made["ctf_only"]
    found = made["ctf_only"][:, INSIDE].var(axis=1) / noise.var(axis=(1, 2))
    expected = np.array(column(tmp_path / "out" / "noisy.star", "rlnCryohushSnr"), dtype=float)
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # float32, and six decimals in the table
    assert expected.min() > 0.05
    assert expected.max() < 2
    assert np.ptp(np.log(expected)) > 1


def test_background_of_the_noisy_image_is_normalised_and_the_clean_one_shares_its_scale(
    structure: Path, tmp_path: Path
) -> None:
    made = simulate(configuration(structure, ctf=None), tmp_path / "out")
    outside = made["noisy"][:, ~INSIDE]
    np.testing.assert_allclose(outside.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(outside.std(axis=1), 1, atol=1e-5)
    # without CTF and envelope both clean images are one, but for the level
    difference = made["ctf_only"] - made["clean"]
    np.testing.assert_allclose(difference.std(axis=(1, 2)), 0, atol=1e-5)


def test_other_noise_leaves_the_particles_as_they_were(structure: Path, tmp_path: Path) -> None:
    one = simulate(configuration(structure, normalise=False), tmp_path / "one")
    other = simulate(
        configuration(structure, normalise=False, noise={"components": ALL_KINDS[1:2]}), tmp_path / "other"
    )
    np.testing.assert_array_equal(one["ctf_only"], other["ctf_only"])
    assert not np.allclose(one["noisy"], other["noisy"])
    again = simulate(configuration(structure, normalise=False), tmp_path / "again")
    np.testing.assert_array_equal(one["noisy"], again["noisy"])
    elsewhere = simulate(configuration(structure, normalise=False, seed=2), tmp_path / "elsewhere")
    assert not np.allclose(one["clean"], elsewhere["clean"])


@pytest.mark.parametrize("of", ["clean", "noisy", "both"])
def test_contaminated_images_show_nothing_of_the_particle(structure: Path, tmp_path: Path, of: str) -> None:
    plain = simulate(configuration(structure, snr=5.0), tmp_path / "plain")
    made = simulate(
        configuration(structure, snr=5.0, contamination={"share": 0.3, "of": of}), tmp_path / "out"
    )
    chosen = np.array(column(tmp_path / "out" / "noisy.star", "rlnCryohushContaminated")) == "1"
    assert chosen.sum() == 6
    for output in ("noisy", "ctf_only", "clean"):
        replaced = of == "both" or of == ("noisy" if output == "noisy" else "clean")
        np.testing.assert_array_equal(made[output][~chosen], plain[output][~chosen])
        for image, before in zip(made[output][chosen], plain[output][chosen], strict=True):
            correlation = np.corrcoef(image.ravel(), before.ravel())[0, 1]
            # pure noise of 1024 pixels: a standard error of 1 / 32
            assert abs(correlation) < 0.15 if replaced else correlation > 0.95
    if of == "both":
        assert abs(np.corrcoef(made["noisy"][chosen].ravel(), made["clean"][chosen].ravel())[0, 1]) < 0.1


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(structure: Path, tmp_path: Path) -> None:
    other = write_map(tmp_path / "other.mrc", seed=1)
    config = configuration(structure, structures=[{"path": str(structure), "share": 2}, {"path": str(other)}])
    simulate(config, tmp_path / "whole")
    for _ in range(2):
        answers = itertools.chain([False], itertools.repeat(True))
        with pytest.raises(Aborted, match=r"after \d+ of 20 images.*--resume"):
            simulate(
                config,
                tmp_path / "stopped",
                context=JobContext(should_stop=answers.__next__),
                earlier="resume",
            )
        assert not list((tmp_path / "stopped").glob("*.star"))
        assert not list((tmp_path / "stopped").glob("*.mrcs"))
    seen: list[tuple[int, int]] = []
    simulate(
        config,
        tmp_path / "stopped",
        earlier="resume",
        context=JobContext(lambda done, total: seen.append((done, total))),
    )
    assert seen[0] > (0, 20)
    assert seen[-1] == (20, 20)
    for name in ("noisy.mrcs", "ctf_only.mrcs", "clean.mrcs", "volume_002.mrc"):
        whole, resumed = ((tmp_path / run / name).read_bytes() for run in ("whole", "stopped"))
        assert whole == resumed, name


def test_an_occupied_folder_is_left_alone(structure: Path, tmp_path: Path) -> None:
    simulate(configuration(structure), tmp_path / "out")
    before = (tmp_path / "out" / "noisy.mrcs").read_bytes()
    other = configuration(structure, seed=5)
    with pytest.raises(OutputError, match="holds another run"):
        simulate(other, tmp_path / "out")
    with pytest.raises(OutputError, match="other settings"):
        simulate(other, tmp_path / "out", earlier="resume")
    assert (tmp_path / "out" / "noisy.mrcs").read_bytes() == before
    simulate(other, tmp_path / "out", earlier="replace")
    assert (tmp_path / "out" / "noisy.mrcs").read_bytes() != before


def test_table_and_record_say_what_each_image_is(structure: Path, tmp_path: Path) -> None:
    other = write_map(tmp_path / "other.mrc", seed=1)
    config = configuration(
        structure,
        n_images=40,
        structures=[{"path": str(structure), "share": 3}, {"path": str(other)}],
        noise={"components": [*ALL_KINDS[:2], {"kind": "rayleigh", "weight": 2}], "combine": "one"},
    )
    simulate(config, tmp_path / "out")
    table = tmp_path / "out" / "noisy.star"
    read_alike(table)
    assert column(table, "rlnCryohushStructure") == ["cloud"] * 30 + ["other"] * 10
    assert column(table, "rlnClassNumber") == ["1"] * 30 + ["2"] * 10
    assert column(table, "rlnRandomSubset") == ["1", "2"] * 20
    assert set(column(table, "rlnCryohushNoise")) == {"gaussian", "gamma", "rayleigh"}
    particles = ParticleSet.read(table)
    assert particles.stacks == [tmp_path / "out" / "noisy.mrcs"]
    assert particles.image.tolist() == list(range(40))
    assert particles.optics[1].pixel_size_angstrom == PIXEL_SIZE_ANGSTROM
    assert (
        "rlnDefocusU"
        not in next(t for t in read_tables(tmp_path / "out" / "clean.star") if t.name == "particles").labels
    )
    record = json.loads((tmp_path / "out" / "cryohush.json").read_text())
    assert [(one["name"], one["images"]) for one in record["classes"]] == [("cloud", 30), ("other", 10)]
    assert record["images"] == 40
    assert record["configuration"]["snr"] == [0.5]


def test_origin_in_the_table_takes_the_particle_back_to_the_centre(tmp_path: Path) -> None:
    structure = tmp_path / "ball.mrc"
    write_map(structure)
    config = configuration(structure, ctf=None, normalise=False, outputs=["clean"])
    images = simulate(config, tmp_path / "out")["clean"]
    still = simulate(
        configuration(structure, ctf=None, normalise=False, outputs=["clean"], max_shift_angstrom=0.0),
        tmp_path / "still",
    )["clean"]

    # the phase of the lowest frequency along an axis turns in proportion to the shift, cyclic as it is
    ratio = np.fft.fft2(images) / np.fft.fft2(still)
    for waves, label in ((ratio[:, 0, 1], "rlnOriginXAngst"), (ratio[:, 1, 0], "rlnOriginYAngst")):
        origin = np.array(column(tmp_path / "out" / "clean.star", label), dtype=float)
        moved = -np.angle(waves) * BOX / (2 * np.pi) * PIXEL_SIZE_ANGSTROM
        np.testing.assert_allclose(moved, -origin, atol=0.01)
        assert np.abs(origin).max() > 6


def test_images_are_dealt_out_exactly() -> None:
    assert deal(10, [1, 1, 1]) == [4, 3, 3]
    assert deal(7, [0.5, 0.25, 0.25]) == [3, 2, 2]
    assert deal(1, [1, 9]) == [0, 1]


def test_noise_images_smaller_than_the_box_are_named(structure: Path, tmp_path: Path) -> None:
    write_stack(tmp_path / "ice.mrcs", np.zeros((2, 16, 40), dtype=np.float32))
    component = {"kind": "patches", "images": str(tmp_path / "ice.mrcs")}
    with pytest.raises(InputError, match=r"ice\.mrcs: the images are 40 x 16 px, the simulated ones 32 x 32"):
        simulate(configuration(structure, noise={"components": [component]}), tmp_path / "out")


def test_patches_and_a_measured_spectrum_come_from_real_images(structure: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    walk = np.cumsum(random.normal(size=(30, 48, 48)), axis=2).astype(np.float32)
    write_stack(tmp_path / "ice.mrcs", walk)
    made = simulate(
        configuration(
            structure,
            noise={
                "components": [
                    {"kind": "patches", "images": str(tmp_path / "ice.mrcs")},
                    {"kind": "gaussian", "spectrum": str(tmp_path / "ice.mrcs")},
                ],
                "combine": "one",
            },
        ),
        tmp_path / "out",
    )
    noise = made["noisy"] - made["ctf_only"]
    power = np.abs(np.fft.rfft2(noise)) ** 2
    kind = np.array(column(tmp_path / "out" / "noisy.star", "rlnCryohushNoise"))
    for one in ("patches", "gaussian"):  # a random walk is red
        mean = power[kind == one].mean(axis=0)
        assert mean[1, 1] > 3 * mean[10, 10]


def write_curve(path: Path, rows: list[tuple[float, float]]) -> str:
    lines = "\n".join(f"{frequency} {value}" for frequency, value in rows)
    path.write_text(f"data_\n\nloop_\n_rlnResolutionInversePixel #1\n_rlnMtfValue #2\n{lines}\n")
    return str(path)


def test_mtf_and_damage_multiply_the_amplitudes_of_the_signal(structure: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"normalise": False, "ctf": None, "outputs": ["ctf_only", "clean"]}
    mtf = write_curve(tmp_path / "mtf.star", [(0, 1), (0.5, 0.4)])
    detected = simulate(configuration(structure, **common, detector={"mtf": mtf}), tmp_path / "detected")
    dose = {"electrons_per_square_angstrom": 40, "dose_weighted": False}
    damaged = simulate(configuration(structure, **common, exposure=dose), tmp_path / "damaged")
    critical = 0.24499 * np.maximum(FREQUENCY / PIXEL_SIZE_ANGSTROM, 1e-9) ** -1.6649 + 2.8141
    left = 2 * critical / 40 * (1 - np.exp(-40 / (2 * critical)))  # the mean of exp(-N / 2 Nc) up to 40 e/Å²
    for made, factor in ((detected, np.interp(FREQUENCY, [0, 0.5], [1, 0.4])), (damaged, left)):
        expected = np.fft.irfft2(np.fft.rfft2(made["clean"]) * factor, s=(BOX, BOX))
        # both have a level of their own; float32
        pair = made["ctf_only"], expected
        found, expected = (images - images.mean(axis=(1, 2), keepdims=True) for images in pair)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_dqe_gives_the_noise_its_spectrum_and_leaves_the_ratio(structure: Path, tmp_path: Path) -> None:
    detector = {
        "mtf": write_curve(tmp_path / "mtf.star", [(0, 1), (0.5, 0.4)]),
        "dqe": write_curve(tmp_path / "dqe.star", [(0, 0.8), (0.75, 0.8)]),
    }
    made = simulate(configuration(structure, snr=0.5, n_images=200, detector=detector), tmp_path / "out")
    noise = made["noisy"] - made["ctf_only"]
    power = (np.abs(np.fft.rfft2(noise)) ** 2).mean(axis=0)
    # a flat DQE: the noise goes through the MTF. 200 images know the power of a coefficient to 7 %
    expected = np.interp(FREQUENCY, [0, 0.5], [1, 0.4]) ** 2
    ratio = (power / expected)[:, 1:-1].ravel()[1:]
    assert ratio.std() / ratio.mean() < 0.1
    np.testing.assert_allclose(made["ctf_only"][:, INSIDE].var(1) / noise.var(axis=(1, 2)), 0.5, rtol=1e-3)


def test_dqe_that_falls_to_nothing_or_for_noise_that_has_one_is_refused(
    structure: Path, tmp_path: Path
) -> None:
    mtf, dqe = (write_curve(tmp_path / f"{name}.star", [(0, 1), (0.5, 0)]) for name in ("mtf", "dqe"))
    with pytest.raises(InputError, match=r"dqe\.star: the DQE falls to 0"):
        simulate(configuration(structure, detector={"mtf": mtf, "dqe": dqe}), tmp_path / "out")
    component = {"kind": "gaussian", "spectrum": "ice.mrcs"}
    with pytest.raises(ConfigurationError, match="has seen a detector"):
        configuration(structure, detector={"mtf": mtf, "dqe": dqe}, noise={"components": [component]})


@pytest.mark.parametrize("changed", ["mtf", "dqe", "poses"])
def test_a_run_does_not_go_on_with_other_input_files(structure: Path, tmp_path: Path, changed: str) -> None:
    write_curve(tmp_path / "mtf.star", [(0, 1), (0.5, 0.4)])
    write_curve(tmp_path / "dqe.star", [(0, 0.8), (0.75, 0.8)])
    simulate(configuration(structure, outputs=["clean"], ctf=None), tmp_path / "poses")
    table = tmp_path / "poses" / "clean.star"
    files = {"mtf": tmp_path / "mtf.star", "dqe": tmp_path / "dqe.star", "poses": table}
    values = settings(structure, ctf=None, detector={name: str(files[name]) for name in ("mtf", "dqe")})
    del values["max_shift_angstrom"]
    config = validate({**values, "poses": table}, ParticlesConfig, "test")
    answers = itertools.chain([False], itertools.repeat(True))
    with pytest.raises(Aborted):
        simulate(config, tmp_path / "out", context=JobContext(should_stop=answers.__next__))
    files[changed].write_text(files[changed].read_text() + "\n")
    with pytest.raises(OutputError, match="other settings"):
        simulate(config, tmp_path / "out", earlier="resume")


def test_a_ctf_finer_than_the_pixels_is_refused(structure: Path, tmp_path: Path) -> None:
    config = configuration(structure, pixel_size_angstrom=2.0, ctf={"defocus_angstrom": [20000, 20000]})
    with pytest.raises(ConfigurationError, match="oscillates faster than a box of 32 px can hold"):
        simulate(config, tmp_path / "out")


def test_a_ratio_that_the_dose_cannot_give_is_refused(structure: Path, tmp_path: Path) -> None:
    noise = {"components": [{"kind": "poisson", "electrons_per_pixel": 0.01}]}
    with pytest.raises(ConfigurationError, match=r"images 1 to 8: .* cannot be had from 0\.01 electrons"):
        simulate(configuration(structure, snr=10.0, noise=noise), tmp_path / "out")


def test_poses_of_a_table_give_the_same_images_again(structure: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"n_images": 12, "outputs": ["clean"], "ctf": None}
    first = simulate(configuration(structure, **changes, max_shift_angstrom=6.0), tmp_path / "first")
    values = {**settings(structure, **changes), "poses": tmp_path / "first/clean.star"}
    del values["max_shift_angstrom"]
    again = validate(values, ParticlesConfig, "test")
    # the table has angles to 1e-6 degrees or so, and the images float32
    np.testing.assert_allclose(simulate(again, tmp_path / "again")["clean"], first["clean"], atol=2e-3)
    with pytest.raises(InputError, match=r"clean\.star: expected poses of 13 particles, found 12"):
        draw_particles(again.model_copy(update={"n_images": 13}), [1.0])


def test_symmetry_keeps_directions_to_its_part_of_the_sphere(structure: Path) -> None:
    config = configuration(structure, symmetry="D3", n_images=400, ctf=None)
    rotations = rotations_from_euler(draw_particles(config, [1.0]).rot_tilt_psi_degrees)
    unique = to_asymmetric_unit(rotations, symmetry_operators("D3"))
    torch.testing.assert_close(unique, rotations, atol=1e-4, rtol=0)
    with pytest.raises(ConfigurationError, match="Q7"):
        draw_particles(configuration(structure, symmetry="Q7", ctf=None), [1.0])


def test_a_micrograph_has_a_few_particles_of_every_class(structure: Path, tmp_path: Path) -> None:
    structures = [{"path": structure}, {"path": structure}]
    config = configuration(structure, structures=structures, n_images=60, outputs=["noisy"])
    simulate(config, tmp_path / "out")
    names = column(tmp_path / "out" / "noisy.star", "rlnMicrographName")
    classes = column(tmp_path / "out" / "noisy.star", "rlnClassNumber")
    assert sorted(Counter(names).values()) == [20, 20, 20]  # of 25 at most
    assert Counter(zip(names, classes, strict=True)).keys() == set(itertools.product(names, classes))
