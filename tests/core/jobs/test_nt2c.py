import json

import mrcfile
import numpy as np
import pytest
import torch
from particle_files import write_stack

from cryohush.core.cli import main
from cryohush.core.config.load import PRESET_FOLDER, load_yaml, validate
from cryohush.core.config.nt2c import Nt2cConfig
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import Aborted, ConfigurationError, OutputError, StarError
from cryohush.core.imaging.ctf import read_ctf_table
from cryohush.core.job_context import JobContext
from cryohush.core.jobs.nt2c import session_ctf
from cryohush.core.jobs.train import train
from cryohush.core.models import MODELS
from cryohush.core.models.weights import load_model

HEAD = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnMicrographPixelSize #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
1 4.0 300.0 2.7 0.07

data_micrographs

loop_
_rlnMicrographName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
_rlnDefocusV #4
_rlnDefocusAngle #5
"""


def quiet(_: str) -> None:
    pass


@pytest.fixture(autouse=True)
def small_comparison(monkeypatch):
    """What tells how close drawn noise is to real noise has tests of its own."""
    monkeypatch.setattr("cryohush.core.training.synthesis._FIT_PIECES", 8)
    monkeypatch.setattr("cryohush.core.training.synthesis._JUDGED_PIECES", 16)
    monkeypatch.setattr("cryohush.core.noise.synthesis._CORRECTION_PIECES", 8)
    monkeypatch.setattr("cryohush.core.noise.synthesis._CLASSIFIER_STEPS", 2)


@pytest.fixture
def chain(tmp_path):
    """Two micrographs of white noise and a lump of atoms, as YAML would name them."""
    folder = tmp_path / "structures"
    folder.mkdir()
    atoms = np.random.default_rng(0).normal(scale=12, size=(150, 3))
    lines = [
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
        for i, (x, y, z) in enumerate(atoms, 1)
    ]
    (folder / "lump.pdb").write_text("\n".join([*lines, "END", ""]))
    for number in (1, 2):
        image = np.random.default_rng(number).normal(100, 3, (200, 200)).astype(np.float32)
        write_stack(tmp_path / f"m{number}.mrc", image[None], 4.0)
    table = tmp_path / "micrographs.star"
    table.write_text(HEAD + "m1.mrc 1 20000 19000 30\nm2.mrc 1 15000 14500 40\n\n")
    steps = {"steps": 4, "batch_size": 4, "warmup_steps": 1, "precision": "32-true"}
    return {
        "kind": "nt2c",
        "name": "tiny",
        "session": {
            "micrographs": table,
            "structures": folder,
            "box_px": 64,
            "volumes_per_structure": 1,
            "projections_per_volume": 8,
        },
        "network": {
            "name": "shuffle_unet",
            "arguments": {"widths": [8, 16], "blocks": [1, 1], "unshuffle": 2},
        },
        "coarse": steps,
        # a denoiser of four steps makes no empty place look empty, and white noise is none to the check
        "extraction": {
            "method": "similarity",
            "similarity_threshold": -1,
            "min_noise_probability": 0,
            "device": "cpu",
            "threads": 1,
        },
        "synthesiser": {
            "width": 2,
            "critic_steps": 1,
            "optimisation": {**steps, "steps": 2},
            "validate_every": 2,
        },
        "pairs": {"projections": 10, "noises_per_projection": 2},
        "fine": steps,
        "validate_every": 4,
        "validation_images": 4,
    }


def test_chain_runs_through_and_goes_on_after_a_stop(chain, tmp_path):
    """Stopped before each stage in turn, it ends with the same weights; no stage is done twice."""
    # blocks smaller than the box, as crowded micrographs have them
    chain["synthesiser"] = {"kind": "gaussian"}
    chain["extraction"]["window_px"] = 48
    config, output = Nt2cConfig.model_validate(chain), tmp_path / "run"
    lines: list[str] = []
    with pytest.raises(Aborted, match="before stage 3"):
        train(
            config,
            output,
            JobContext(should_stop=lambda: (output / "blocks/noise.mrcs").exists(), log=lines.append),
        )
    weights = train(config, output, JobContext(log=lines.append), earlier="resume")
    assert weights == output / "fine/weights.safetensors"
    assert sum("done before" in line for line in lines) == 2
    load_model(weights)
    with (
        mrcfile.mmap(output / "pairs/noisy.mrcs") as noisy,
        mrcfile.mmap(output / "pairs/clean.mrcs") as clean,
    ):
        assert noisy.data.shape == clean.data.shape == (20, 64, 64)
        assert float(noisy.voxel_size.x) == 4.0
        # the rows of one projection share its target but for what beta and chance do to alpha
        first, second = (clean.data[row].ravel() for row in (0, 1))
        assert np.corrcoef(first, second)[0, 1] > 0.99
        noises = [(noisy.data[row] - clean.data[row]).ravel() for row in (0, 1)]
        assert abs(np.corrcoef(*noises)[0, 1]) < 0.1
    assert set(json.loads((output / "synthesiser/comparison.json").read_text())) == {
        "other real blocks",
        "Gaussian field",
    }
    with pytest.raises(OutputError, match="holds another run"):
        train(config, output)
    other = Nt2cConfig.model_validate({**chain, "seed": 2})
    with pytest.raises(OutputError, match="other settings"):
        train(other, output, earlier="resume")


def test_chain_begins_with_a_shipped_model(chain, tmp_path, monkeypatch):
    """Nothing is trained before the fine denoiser, whose network and first weights are the model's."""
    from cryohush.core.models.weights import save_model

    network = {"name": "shuffle_unet", "arguments": {"widths": [4, 8], "blocks": [1, 1], "unshuffle": 2}}
    module = MODELS["shuffle_unet"](**network["arguments"])
    save_model(tmp_path / "given.safetensors", module, **network, card={})
    chain |= {"coarse": None, "coarse_model": str(tmp_path / "given.safetensors")}
    chain["synthesiser"] = {"kind": "gaussian"}
    lines: list[str] = []
    weights = train(Nt2cConfig.model_validate(chain), tmp_path / "run", JobContext(log=lines.append))
    assert "stage 1 of 5, coarse denoiser: " + chain["coarse_model"] in lines
    assert not (tmp_path / "run/coarse").exists()
    assert load_model(weights).card["model"] == network
    with pytest.raises(ConfigurationError, match="one of coarse and coarse_model is needed"):
        validate({**chain, "coarse_model": None}, Nt2cConfig, "nt2c.yaml")


def test_whole_micrographs_are_simulated_with_the_sessions_optics(chain, tmp_path):
    """Patches side by side train the coarse denoiser; the pairs have them as clean images, in their order."""
    from cryohush.core.simulation.micrograph import Species, simulate_micrograph

    settings = {"shape_px": [140, 200], "particles_per_square_micrometre": [3000, 3000]}
    chain["session"]["whole"] = {"count": 3, "settings": settings}
    chain["session"]["imaging"] = {"no_ctf_probability": 0.0, "defocus_scale": [1.0, 1.0]}
    chain["synthesiser"] = {"kind": "gaussian"}
    chain["pairs"]["projections"] = 20
    output = tmp_path / "run"
    config = Nt2cConfig.model_validate(chain)
    with pytest.raises(Aborted, match="micrographs were simulated"):
        train(config, output, JobContext(should_stop=lambda: (output / "coarse/patches").exists()))
    lines: list[str] = []
    load_model(train(config, output, JobContext(log=lines.append), earlier="resume"))
    assert not any("warning: paired" in line for line in lines)  # they are the chain's own
    noisy, clean = (mrcfile.read(output / f"coarse/patches/{name}.mrcs") for name in ("noisy", "clean"))
    assert noisy.shape == clean.shape == (3 * 2 * 3, 64, 64)

    assert config.session.whole is not None
    species = Species.from_structure(chain["session"]["structures"] / "lump.pdb", 4.0)
    for number, (defocus, astigmatism) in enumerate([(19500, 1000), (14750, 500), (19500, 1000)]):
        drawn = config.session.whole.settings.model_copy(
            update={
                "pixel_size_angstrom": 4.0,
                "amplitude_contrast": float(np.float32(0.07)),
                "cs_mm": float(np.float32(2.7)),
                "defocus_angstrom": (defocus, defocus),
                "astigmatism_angstrom": (astigmatism, astigmatism),
            }
        )
        made = simulate_micrograph([species], drawn, config.seed, number)
        for place, (row, column) in enumerate(np.ndindex(2, 3)):
            area = np.s_[64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
            assert np.array_equal(noisy[6 * number + place], made.image.numpy()[area])
            assert np.array_equal(clean[6 * number + place], made.clean.numpy()[area])

    # the 19th and 20th clean images are the first and second patch again
    targets = mrcfile.read(output / "pairs/clean.mrcs")
    for pair in range(20):
        target, patch = targets[2 * pair].ravel(), clean[pair % 18].ravel()
        if target.std() > 1e-6:  # alpha above 0
            assert np.corrcoef(target, patch)[0, 1] > 0.999


@pytest.mark.parametrize(
    ("shape", "phase", "message"),
    [([64, 64], 0.0, r"\(64, 64\) holds no patch of session.box_px, 128"), ([200, 200], 90.0, "phase plate")],
)
def test_micrographs_that_cannot_be_simulated_whole_are_refused(chain, tmp_path, shape, phase, message):
    table = chain["session"]["micrographs"]
    head = HEAD.replace("_rlnDefocusAngle #5", "_rlnDefocusAngle #5\n_rlnPhaseShift #6")
    table.write_text(head + f"m1.mrc 1 20000 19000 30 {phase}\n\n")
    chain["session"] |= {"box_px": 128, "whole": {"count": 1, "settings": {"shape_px": shape}}}
    with pytest.raises(ConfigurationError, match=message):
        train(Nt2cConfig.model_validate(chain), tmp_path / "run")


def test_generator_from_a_field_draws_pieces_larger_than_its_blocks(tmp_path):
    """Crowded micrographs have no empty place as large as a particle's box."""
    from cryohush.core.config.nt2c import SynthesiserConfig
    from cryohush.core.noise.synthesis import load_noise_model
    from cryohush.core.training import synthesis

    options = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "precision": "32-true"}
    config = SynthesiserConfig.model_validate(
        {"kind": "wgan_field", "width": 2, "critic_width": 2, "optimisation": options, "validate_every": 2}
    )
    blocks = np.random.default_rng(0).normal(size=(8, 40, 40)).astype(np.float32)
    write_stack(tmp_path / "noise.mrcs", blocks, 4.0)
    weights = synthesis.train(config, tmp_path / "noise.mrcs", 96, tmp_path / "run")
    drawn = load_noise_model(weights).draw(3, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 96, 96)
    merits = json.loads((tmp_path / "run/comparison.json").read_text())
    assert set(merits) == {"other real blocks", "Gaussian field", "WGAN-GP"}


@pytest.mark.parametrize(
    ("kind", "precision"), [("wgan", "32-true"), ("wgan_field", "32-true"), ("wgan", "bf16-mixed")]
)
def test_killed_generator_resumes_to_the_same_draws(tmp_path, kind, precision):
    from cryohush.core.config.nt2c import SynthesiserConfig
    from cryohush.core.models.synthesis import GaussianField
    from cryohush.core.training.synthesis import train_generator

    options = {"steps": 4, "batch_size": 4, "warmup_steps": 0, "precision": precision}
    config = SynthesiserConfig.model_validate(
        {
            "kind": kind,
            "width": 2,
            "critic_width": 2,
            "critic_steps": 2,
            "optimisation": options,
            "validate_every": 2,
        }
    )
    blocks = torch.randn(6, 64, 64, generator=torch.Generator().manual_seed(0))

    def run(name, resume, should_stop=lambda: False):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        model = train_generator(
            config,
            GaussianField(64),
            blocks[:3],
            blocks[3:],
            folder,
            resume=resume,
            context=JobContext(should_stop=should_stop),
        )
        return model.draw(2, torch.Generator().manual_seed(1))

    undisturbed = run("a", False)
    calls = iter(range(10))
    with pytest.raises(Aborted, match="step 3"):
        run("b", False, lambda: next(calls) == 3)
    assert torch.equal(run("b", True), undisturbed)


def test_ctf_parameters_are_those_of_the_table(chain, tmp_path):
    rows = session_ctf(chain["session"]["micrographs"], 64, 4.0)
    np.save(tmp_path / "ctf.npy", rows)
    optics = read_ctf_table(tmp_path / "ctf.npy")
    assert optics.defocus_u_angstrom.tolist() == [20000, 15000]
    assert optics.defocus_v_angstrom.tolist() == [19000, 14500]
    assert optics.amplitude_contrast.tolist() == pytest.approx([0.07, 0.07])
    assert optics.cs_mm.tolist() == pytest.approx([2.7, 2.7])


def test_structure_larger_than_the_box_is_refused(chain, tmp_path):
    """Two atoms 300 Å apart in a box of 64 px of 4 Å: the simulation would take larger pixels."""
    atom = "ATOM  {0:5d}  CA  ALA A{0:4d}    {1:8.3f}   0.000   0.000  1.00 20.00           C"
    path = chain["session"]["structures"] / "rod.pdb"
    path.write_text("\n".join([atom.format(1, 0.0), atom.format(2, 300.0), "END", ""]))
    with pytest.raises(ConfigurationError, match=r"rod is 30\d Å across, the box 256 Å"):
        train(Nt2cConfig.model_validate(chain), tmp_path / "run")


def test_table_without_defocus_is_refused(chain, tmp_path):
    table = tmp_path / "plain.star"
    text = HEAD[: HEAD.index("_rlnDefocusU")]
    table.write_text(text + "m1.mrc 1\n\n")
    with pytest.raises(StarError, match="no column _rlnDefocusU"):
        session_ctf(table, 64, 4.0)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("session", {"box_px": 48}, "the wgan draws 64, 96"),
        ("extraction", {"model": "general"}, "it is the coarse denoiser"),
        ("extraction", {"normalisation": "whiten"}, "lost the spectrum"),
        ("coarse", {"devices": 2}, "one process"),
        ("session", {"boxpx": 64}, "did you mean 'box_px'"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(chain, section, change, message):
    with pytest.raises(ConfigurationError, match=message):
        validate({**chain, section: {**chain[section], **change}}, Nt2cConfig, "nt2c.yaml")


def test_presets_are_valid():
    for name in ("nt2c", "nt2c_published"):
        assert load_yaml(PRESET_FOLDER / f"{name}.yaml", Nt2cConfig).name == name
    assert load_yaml(PRESET_FOLDER / "noise_blocks.yaml", TrainingConfig).name == "noise_blocks"


def test_command_line_finds_the_chain(chain, tmp_path, capsys):
    """The entry `kind` leads there: the chain reads the table of micrographs before anything else."""
    output = tmp_path / "run"
    assert (
        main(["train", "nt2c", "--output", str(output), "--set", f"session.micrographs={tmp_path}/x.star"])
        == 1
    )
    assert "x.star" in capsys.readouterr().err


def test_extracted_blocks_take_the_place_of_simulated_noise(chain, tmp_path):
    """The paired set of the segmentation method: `extract-noise`, then `data.noise_blocks`."""
    from cryohush.core.config.extract_noise import ExtractNoiseOptions
    from cryohush.core.jobs.extract_noise import run_extract_noise
    from cryohush.core.training.data import SimulatedParticles

    options = ExtractNoiseOptions(
        method="similarity",
        window_px=64,
        similarity_threshold=-1,
        min_noise_probability=0,
        device="cpu",
        precision="fp32",
        threads=1,
    )
    summary = run_extract_noise(chain["session"]["micrographs"], tmp_path / "noise", options)
    config = load_yaml(PRESET_FOLDER / "noise_blocks.yaml", TrainingConfig).data
    assert config is not None
    np.save(tmp_path / "ctf.npy", session_ctf(chain["session"]["micrographs"], 64, 4.0))
    changes = {
        "structures": chain["session"]["structures"],
        "ctf_tables": (tmp_path / "ctf.npy",),
        "noise_blocks": summary.stack,
        "box_px": 48,
        "volumes_per_structure": 1,
        "projections_per_volume": 4,
    }
    data = SimulatedParticles(
        config.model_copy(update=changes),
        held_out=False,
        seed=0,
        cache=tmp_path / "bank.safetensors",
        log=quiet,
    )
    noisy, clean, _ = data.batch(0, 3)
    blocks = mrcfile.read(summary.stack)
    found = (noisy - clean)[:, 0].numpy()
    for image in found:
        pieces = [np.rot90(side, turn) for side in (image, image[:, ::-1]) for turn in range(4)]
        # protein, and with it the noise, changes its sign from micrographs to particles
        assert max(largest_match(piece, -block) for piece in pieces for block in blocks) > 0.999


def largest_match(piece, block):
    """Largest correlation of a piece with a part of a block, by scikit-image."""
    from skimage.feature import match_template

    return float(match_template(block, np.ascontiguousarray(piece)).max())
