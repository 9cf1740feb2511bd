import math
from pathlib import Path

import gemmi
import mrcfile
import numpy as np
import pytest
import torch
from particle_files import read_alike
from pydantic import ValidationError
from scipy.constants import c, e, h, m_e, pi
from scipy.spatial.distance import pdist

from cryohush.core.config.load import load_yaml
from cryohush.core.config.micrographs import MicrographsConfig, MicrographSettings
from cryohush.core.errors import Aborted, ConfigurationError, OutputError
from cryohush.core.imaging.exposure import interaction_parameter
from cryohush.core.imaging.projection import Projector
from cryohush.core.io.micrographs import MicrographSet
from cryohush.core.io.star import read_tables
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.simulate import SimulateJob
from cryohush.core.metrics.fourier import radial_power_spectrum
from cryohush.core.simulation.micrograph import (
    BACKGROUND,
    CONTAMINATION,
    PARTICLE,
    Species,
    noise_power,
    simulate_micrograph,
)
from cryohush.core.simulation.placement import place_particles

SHAPE = (160, 224)
QUIET = {
    "shape_px": SHAPE,
    "pixel_size_angstrom": 4.0,
    "carbon_probability": 0.0,
    "discs_per_square_micrometre": 0.0,
    "ice_gradient": (0.0, 0.0),
    "ice_roughness": (0.0, 0.0),
    "ice_structure_factor": 0.0,
    "particles_per_square_micrometre": (1500.0, 1500.0),
}


def ball(radius_px: float, box_px: int = 32, potential: float = 0.08, share: float = 1.0) -> Species:
    z, y, x = torch.meshgrid(*[torch.arange(box_px) - box_px // 2] * 3, indexing="ij")
    inside = ((z**2 + y**2 + x**2).sqrt() - radius_px).mul(-1).add(0.5).clamp(0, 1)
    return Species(f"ball {radius_px:g}", Projector(potential * inside), radius_px, share)


def simulate(index: int = 0, species: tuple[Species, ...] = (ball(10.0),), **changes: object):
    return simulate_micrograph(species, MicrographSettings(**{**QUIET, **changes}), 7, index)


def test_same_seed_and_index_give_the_same_micrograph_and_another_index_another():
    one, again, other = simulate(0), simulate(0), simulate(1)
    assert torch.equal(one.image, again.image)
    assert torch.equal(one.labels, again.labels)
    assert not torch.equal(one.image, other.image)


def test_interaction_parameter_is_that_of_relativistic_electrons():
    volts = 300e3
    momentum = math.sqrt(2 * m_e * e * volts * (1 + e * volts / (2 * m_e * c**2)))
    mass = m_e * (1 + e * volts / (m_e * c**2))
    expected = 2 * pi * mass * e * (h / momentum) / h**2 * 1e-10  # rad per V Å
    assert interaction_parameter(300) == pytest.approx(expected, rel=1e-6)


def test_grey_scale_is_mean_0_and_standard_deviation_1_with_white_protein():
    # close to focus a phase object shows little: far from it, and without its fringes, the sign is plain
    micrograph = simulate(defocus_angstrom=(30000.0, 30000.0))
    assert micrograph.image.mean().item() == pytest.approx(0, abs=1e-4)
    assert micrograph.image.std().item() == pytest.approx(1, abs=1e-4)
    protein = micrograph.labels == PARTICLE
    assert micrograph.clean[protein].mean() > micrograph.clean[~protein].mean()
    assert micrograph.image[protein].mean() > micrograph.image[~protein].mean()


def test_image_less_clean_is_poisson_noise_of_the_detectors_spectrum():
    micrograph = simulate(
        particles_per_square_micrometre=(0.0, 0.0),
        exposure_electrons_per_square_angstrom=(30.0, 30.0),
        ice_thickness_angstrom=(0.0, 0.0),
        detector_roll_off=0.4,
    )
    noise = micrograph.image - micrograph.clean
    power = radial_power_spectrum(noise)
    assert noise.std() == pytest.approx(1, abs=1e-3)  # nothing else is in the image
    # bands of about 7000 coefficients: 1.2 % each, so 5 % is four standard errors
    assert power[60:80].mean() / power[5:40].mean() == pytest.approx(
        float(torch.linspace(60 / 160, 80 / 160, 20).mul(2).pow(4).mul(-0.4).add(1).mean()), rel=0.05
    )
    assert noise_power(SHAPE, 0.4)[0, 0] == 1
    assert noise_power(SHAPE, 0.4).min() == pytest.approx(0.6)


def test_thicker_ice_takes_electrons_by_beers_law():
    def signal_to_noise(thickness: float) -> float:
        one = simulate(
            particles_per_square_micrometre=(0.0, 0.0),
            ice_thickness_angstrom=(thickness, thickness),
            ice_gradient=(0.8, 0.8),
            amplitude_contrast=0.1,
            exposure_electrons_per_square_angstrom=(1e6, 1e6),
        )
        return float(one.clean.std() / (one.image - one.clean).std())

    # N electrons show a relative change of thickness with contrast 2 A sigma V t and noise sqrt(N), and
    # N = N0 exp(-2 A sigma V t)
    expected = 2 * math.exp(-0.1 * interaction_parameter(300) * 3.5 * 200)
    # the exponential's curve over the gradient
    assert signal_to_noise(400.0) / signal_to_noise(200.0) == pytest.approx(expected, rel=0.01)


def test_particles_keep_their_distance_and_have_the_wanted_density():
    species = (ball(6.0, 24, share=3.0), ball(10.0, share=1.0))
    micrograph = simulate(
        species=species,
        shape_px=(600, 600),
        min_distance=0.0,
        particles_per_square_micrometre=(400.0, 400.0),
    )
    n = len(micrograph.particles)
    expected = 400 * (600 * 4e-4) ** 2
    assert n == pytest.approx(expected, abs=4 * math.sqrt(expected))
    first = (micrograph.particles.species == 0).mean()
    assert first == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / n))
    tight = simulate(min_distance=0.9).particles
    assert pdist(np.stack([tight.y_px, tight.x_px], axis=1)).min() >= 0.9 * 20


def test_random_sequential_placement_stops_short_of_its_jamming_limit():
    radii = np.full(400, 1.0)
    centres, placed = place_particles(
        radii, ((0.0, 30.0), (0.0, 30.0)), 1.0, torch.Generator().manual_seed(1)
    )
    assert len(centres) == len(placed) < 400
    assert pdist(centres).min() >= 2
    # 0.547 in the limit of endless tries and without a rim, over which discs reach by half
    assert 0.42 < len(placed) * math.pi / 32**2 < 0.56


def test_label_of_a_ball_is_its_disc_a_little_wider():
    micrograph = simulate(particles_per_square_micrometre=(600.0, 600.0))
    particles = micrograph.particles
    assert len(particles) > 0
    assert not particles.hidden.any()
    y, x = np.indices(SHAPE)
    distance = np.full(SHAPE, np.inf)
    for centre_y, centre_x in zip(particles.y_px, particles.x_px, strict=True):
        distance = np.minimum(distance, np.hypot(y - centre_y, x - centre_x))
    labels = micrograph.labels.numpy()
    # a rim of 1 px (4 Å) about a radius of 10 px
    assert (labels[distance < 9.5] == PARTICLE).all()
    inner = (slice(14, -14), slice(14, -14))  # centres outside of the micrograph are not told
    assert (labels[inner][distance[inner] > 12.5] == BACKGROUND).all()


def test_contamination_is_dark_on_micrographs_and_wins_over_particles():
    dirty = {"carbon_probability": 1.0, "discs_per_square_micrometre": 40.0}
    micrograph = simulate(defocus_angstrom=(10000.0, 10000.0), **dirty)
    labels = micrograph.labels
    assert labels.dtype == torch.uint8
    assert labels.shape == SHAPE
    assert set(labels.unique().tolist()) == {BACKGROUND, CONTAMINATION, PARTICLE}
    assert micrograph.clean[labels == CONTAMINATION].mean() > micrograph.clean[labels == BACKGROUND].mean()
    particles = micrograph.particles
    at = labels[np.rint(particles.y_px).astype(int), np.rint(particles.x_px).astype(int)].numpy()
    assert (particles.hidden == (at == CONTAMINATION)).all()
    assert (at[~particles.hidden] == PARTICLE).all()
    assert particles.hidden.any()


def test_particle_reaches_in_from_outside():
    hits = 0
    for index in range(4):
        micrograph = simulate(index, shape_px=(64, 64))
        centres = np.stack([micrograph.particles.y_px, micrograph.particles.x_px])
        labelled = (micrograph.labels == PARTICLE).nonzero().numpy().T
        distance = np.hypot(*(labelled[:, :, None] - centres[:, None, :])).min(axis=1, initial=np.inf)
        hits += int((distance > 13).sum())
    assert hits > 0


def test_large_particle_may_reach_in_from_outside():
    # a radius beyond the margin that the rings of the CTF need
    micrograph = simulate(species=(ball(70.0, 144),), min_distance=0.0)
    assert (micrograph.labels == PARTICLE).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"defocus_angstrom": (2e4, 1e4)},
        {"exposure_electrons_per_square_angstrom": (0.0, 10.0)},
        {"shape_px": (64, 16)},
        {"unknown": 1},
    ],
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValidationError):
        MicrographSettings(**wrong)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """One species of 80 atoms in a ball of 20 Å."""
    random = np.random.default_rng(1)
    structure, model, chain = gemmi.Structure(), gemmi.Model(1), gemmi.Chain("A")
    for number, xyz in enumerate(random.uniform(-11, 11, (80, 3)), start=1):
        residue, atom = gemmi.Residue(), gemmi.Atom()
        atom.name, atom.element, atom.pos = "C", gemmi.Element("C"), gemmi.Position(*xyz)
        residue.name, residue.seqid = "UNK", gemmi.SeqId(number, " ")
        residue.add_atom(atom)
        chain.add_residue(residue)
    model.add_chain(chain)
    structure.add_model(model)
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(tmp_path / "small.cif"))
    path = tmp_path / "set.yaml"
    path.write_text(
        f"kind: micrographs\nspecies:\n- structure: {tmp_path}/small.cif\nmicrographs: 2\nseed: 3\n"
        "settings:\n  shape_px: [96, 128]\n  pixel_size_angstrom: 2.0\n  depth_layers: 2\n"
        "  particles_per_square_micrometre: [30000, 30000]\n  discs_per_square_micrometre: 60\n"
    )
    return path


def test_written_set_is_what_was_simulated_with_dark_protein(config, tmp_path):
    settings = load_yaml(config, MicrographsConfig)
    folder, steps = tmp_path / "out", []
    summary = SimulateJob(settings).run(folder, JobContext(lambda *step: steps.append(step)))
    assert steps == [(0, 2), (1, 2), (2, 2)]
    (table,) = summary.tables
    for written in folder.rglob("*.star"):
        read_alike(written)
    micrographs = MicrographSet.read(table)
    assert micrographs.check_images() == [(96, 128)] * 2
    assert micrographs.pixel_size_angstrom(0) == 2.0
    kind = Species.from_structure(tmp_path / "small.cif", 2.0)
    expected = simulate_micrograph([kind], settings.settings, 3, 1)
    with mrcfile.open(micrographs.stacks[1]) as file:
        assert file.voxel_size.x == 2.0
        assert file.data.dtype == np.float32
        np.testing.assert_array_equal(file.data, -expected.image.numpy())
    np.testing.assert_array_equal(mrcfile.read(folder / "clean/mic_00002.mrc"), -expected.clean.numpy())
    with mrcfile.open(folder / "labels/mic_00002.mrc") as file:
        assert file.header.mode == 0
        np.testing.assert_array_equal(file.data, expected.labels.numpy())
    (picks,) = [
        [tokens for _, _, tokens in table.rows() if tokens]
        for table in read_tables(folder / "coordinates/mic_00002_manualpick.star")
        if table.labels
    ]
    visible = expected.particles[~expected.particles.hidden]
    np.testing.assert_allclose([float(row[0]) for row in picks], visible.x_px, atol=1e-6)
    np.testing.assert_allclose([float(row[1]) for row in picks], visible.y_px, atol=1e-6)
    assert not list(folder.rglob("*.part"))


def test_stopped_or_repeated_run_says_so(config, tmp_path):
    settings = load_yaml(config, MicrographsConfig)
    with pytest.raises(Aborted, match="after 0 of 2"):
        SimulateJob(settings).run(tmp_path / "out", JobContext(should_stop=lambda: True))
    assert not (tmp_path / "out/micrographs.star").exists()
    SimulateJob(settings).run(tmp_path / "out")
    with pytest.raises(OutputError, match="holds another run"):
        SimulateJob(settings).run(tmp_path / "out")


def test_particle_larger_than_the_micrograph_is_refused_by_name(config, tmp_path):
    settings = load_yaml(config, MicrographsConfig, ["settings.pixel_size_angstrom=0.4"])
    with pytest.raises(ConfigurationError, match="small needs"):
        SimulateJob(settings).run(tmp_path / "out")
