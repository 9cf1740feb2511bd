"""`relion_cryohush train` as RELION runs it, on particles that `cryohush simulate` makes."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from relion_project import EMPTY_PIPELINE, REPORT, SUCCEEDED, nodes_of, processes, run_job

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.load import validate
from cryohush.core.config.simulate import ParticlesConfig
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import Aborted, ConfigurationError, DeviceError, InputError, ModelError
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.jobs.denoise import run_denoise
from cryohush.core.jobs.simulate import SimulateJob
from cryohush.core.models import MODELS
from cryohush.core.models.weights import WEIGHTS_NAME, load_model, save_model
from cryohush.relion_external import commands, train_inputs
from cryohush.relion_external.cli import parse
from cryohush.relion_external.half_sets import subsets
from cryohush.relion_external.markers import EXIT_FAILURE, EXIT_SUCCESS
from cryohush.relion_external.project import OUTPUT_NODES
from cryohush.relion_external.request import Request

N = 64
PARTICLES, MAP = "Refine3D/job003/run_data.star", "Refine3D/job003/run_class001.mrc"
JOB = "External/job012/"
RUN = "import sys; from cryohush.relion_external.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a refinement: particles with poses of eight micrographs, the map and its half maps."""
    project = tmp_path_factory.mktemp("project")
    rng = np.random.default_rng(0)
    atoms = "\n".join(
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
        for i, (x, y, z) in enumerate(rng.normal(scale=14, size=(150, 3)), 1)
    )
    (project / "lump.pdb").write_text(f"{atoms}\nEND\n")
    values = {
        "n_images": N,
        "box_px": 32,
        "pixel_size_angstrom": 4.0,
        "structures": [{"path": project / "lump.pdb"}],
        "snr_range": [0.5, 1.0],
        "ctf": {"defocus_angstrom": [9000, 11000]},
        "half_sets": True,
        "particles_per_micrograph": 8,
        "noise": {"components": [{"kind": "gaussian"}]},
    }
    config = validate(values, ParticlesConfig, "test")
    SimulateJob(config, "cpu").run(project / "Sim")
    folder = project / "Refine3D" / "job003"
    folder.mkdir(parents=True)
    for name in ("run_class001.mrc", "run_half1_class001_unfil.mrc", "run_half2_class001_unfil.mrc"):
        shutil.copy(project / "Sim/volume_001.mrc", folder / name)
    text = re.sub(r"@\S*noisy\.mrcs", "@Sim/noisy.mrcs", (project / "Sim/noisy.star").read_text())
    (project / PARTICLES).write_text(text)
    arguments = {"widths": [8, 8], "blocks": [1, 1], "unshuffle": 2}
    torch.manual_seed(0)
    save_model(
        project / "tiny.safetensors", MODELS["shuffle_unet"](**arguments), "shuffle_unet", arguments, {}
    )
    (project / "default_pipeline.star").write_text(EMPTY_PIPELINE)
    return project


def work_in(copy: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a project and work in the copy, as RELION does."""
    shutil.copytree(project, copy, dirs_exist_ok=True)
    monkeypatch.chdir(copy)
    # the job sets it; undone with the test
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return copy


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return work_in(tmp_path, finished, monkeypatch)


@pytest.fixture(scope="module")
def trained(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A project whose job has trained a model for each half set, and what the job said."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(said):
        project = work_in(tmp_path_factory.mktemp("trained"), finished, monkeypatch)
        commands.train(Request(Path(JOB), given("--half_sets"), "command"))
    return project, said.getvalue()


@pytest.fixture
def halves(trained: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project with a model for each half set."""
    return work_in(tmp_path, trained[0], monkeypatch)


def given(*extra: str, reference: str | None = MAP) -> dict[str, str | None]:
    """A parsed command line as RELION gives it, for a quick run."""
    quick = [
        "--steps",
        "8",
        "--batch_size",
        "8",
        "--model",
        "tiny.safetensors",
        "--device",
        "cpu",
        "--j",
        "1",
    ]
    inputs = ["--in_parts", PARTICLES, *(["--in_3dref", reference] if reference else [])]
    return parse(["train", "--o", JOB, *inputs, *quick, *extra])


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(RUN, "train", "--o", JOB, *arguments, folder=project)


def test_a_job_leaves_a_model_that_the_next_one_takes_by_name(project, capsys):
    commands.train(Request(Path(JOB), given(), "command"))
    model = load_model(JOB)
    assert model.path == Path(JOB) / "weights.safetensors"
    reference = model.card["training"]["reference"]
    assert (reference["particles"], reference["map"]) == ("run_data.star", "run_class001.mrc")
    for name in ("curves.png", "validation.png", "log.jsonl", "last.pt"):
        assert (Path(JOB) / name).stat().st_size > 0
    assert (Path(JOB) / "logfile.pdf").read_bytes().startswith(b"%PDF")
    nodes = (Path(JOB) / OUTPUT_NODES).read_text()
    assert f"{JOB}logfile.pdf 13 LogFile.pdf.relion" in nodes
    assert "weights" not in nodes
    assert re.search(
        r"held-out particles, error \(lower is better\): \S+ before, \S+ after", capsys.readouterr().out
    )


def test_half_sets_get_a_model_each_from_their_own_half_map(halves):
    for half in (1, 2):
        reference = load_model(f"{JOB}half{half}").card["training"]["reference"]
        assert reference["half_set"] == half
        assert reference["map"] == f"run_half{half}_class001_unfil.mrc"


def test_one_job_denoises_each_half_set_with_the_model_of_the_other_one(trained, halves):
    assert f"model {JOB.rstrip('/')} denoises each half set with the model of the other one" in trained[1]
    after = "External/job013/"
    arguments = [
        "denoise",
        "--o",
        after,
        "--in_parts",
        PARTICLES,
        "--model",
        JOB,
        "--device",
        "cpu",
        "--j",
        "1",
    ]
    request = Request(Path(after), parse([*arguments, "--precision", "fp32"]), "command")
    commands.denoise(request)
    assert not request.warnings
    halves = subsets(PARTICLES)
    names = [image_of(line) for line in Path(after, "particles.star").read_text().splitlines() if "@" in line]
    assert len(names) == len(halves) == N
    for half in (1, 2):
        # half by half as a job with the other half's model alone
        alone = Path(f"alone{half}")
        options = DenoiseOptions(model=f"{JOB}half{3 - half}", device="cpu", threads=1, precision="fp32")
        (stack,) = run_denoise(PARTICLES, alone, options, root=Path.cwd()).stacks
        for row in (row for row in range(N) if halves[row] == str(half)):
            index, _, name = names[row].partition("@")
            assert name.startswith(f"{after}half{half}/")
            with StackReader(name) as found, StackReader(stack) as wanted:
                # other images share the batch: the sums of a network are the same to the last bits only
                np.testing.assert_allclose(
                    found.read([int(index) - 1]), wanted.read([row]), rtol=1e-4, atol=1e-4
                )
    # every other column keeps its text, and the raw images can be had back
    rows = [line.split() for line in Path(PARTICLES).read_text().splitlines() if "@" in line]
    written = [line.split() for line in Path(after, "particles.star").read_text().splitlines() if "@" in line]
    for before, line in zip(rows, written, strict=True):
        raw = next(value for value in before if "@" in value)
        assert [value for value in line if "@" not in value] == [
            value for value in before if "@" not in value
        ]
        assert line[-1] == raw


def image_of(line: str) -> str:
    """The image of a row: the original one stands last."""
    return next(value for value in line.split() if "@" in value)


def test_a_trial_goes_with_one_model(project):
    for half in (1, 2):
        Path(JOB, f"half{half}").mkdir(parents=True)
        Path(JOB, f"half{half}", WEIGHTS_NAME).touch()
    after = Path("External/job013")
    arguments = ["denoise", "--o", f"{after}/", "--in_parts", PARTICLES, "--model", JOB, "--limit", "4"]
    with pytest.raises(ConfigurationError, match="limit goes with one model"):
        commands.denoise(Request(after, parse(arguments), "command"))


def test_a_model_that_meets_its_own_half_set_is_warned_of(halves, capsys):
    after = Path("External/job013/")
    arguments = ["denoise", "--o", f"{after}/", "--in_parts", PARTICLES, "--device", "cpu", "--j", "1"]
    request = Request(after, parse([*arguments, "--model", f"{JOB}half1"]), "command")
    commands.denoise(request)
    warned = f"WARNING: {subsets(PARTICLES).count('1')} particles belong to half set 1, on which the model"
    assert warned in capsys.readouterr().err
    assert len(request.warnings) == 1


def test_rows_of_a_damaged_stack_are_left_out_of_both_half_sets(halves):
    rows = [line for line in Path(PARTICLES).read_text().splitlines() if "@" in line]
    Path("Sim/cut.mrcs").write_bytes(b"")
    lost = [image_of(rows[row]) for row in (1, 4, 5)]
    text = Path(PARTICLES).read_text()
    for name in lost:
        text = text.replace(name, name.replace("noisy", "cut"))
    Path("damaged.star").write_text(text)
    after = "External/job013/"
    arguments = ["denoise", "--o", after, "--in_parts", "damaged.star", "--model", JOB, "--skip_bad"]
    request = Request(Path(after), parse([*arguments, "--device", "cpu", "--j", "1"]), "command")
    commands.denoise(request)
    raw = [line.split()[-1] for line in Path(after, "particles.star").read_text().splitlines() if "@" in line]
    assert raw == [image_of(row) for row in rows if image_of(row) not in lost]


def test_particles_without_half_sets_are_refused_for_models_of_half_sets(halves):
    Path("none.star").write_text(Path(PARTICLES).read_text().replace("_rlnRandomSubset", "_rlnOther"))
    arguments = ["denoise", "--o", "External/job013/", "--in_parts", "none.star", "--model", JOB]
    with pytest.raises(InputError, match="expected rlnRandomSubset 1 and 2, found no such column"):
        commands.denoise(Request(Path("External/job013"), parse([*arguments, "--device", "cpu"]), "command"))


def test_poses_that_explain_nothing_are_warned_of_in_run_err_and_in_the_report(project, capsys):
    lines = Path(PARTICLES).read_text().splitlines(keepends=True)
    rows = [number for number, line in enumerate(lines) if "@" in line]
    words = [lines[number].split() for number in rows]
    image = next(column for column, value in enumerate(words[0]) if "@" in value)
    # each particle has the pose and all else of the next one
    for number, own, other in zip(rows, words, words[1:] + words[:1], strict=True):
        lines[number] = " ".join([*other[:image], own[image], *other[image + 1 :]]) + "\n"
    Path(PARTICLES).write_text("".join(lines))
    request = Request(Path(JOB), given(), "command")
    commands.train(request)
    shown = capsys.readouterr()
    assert "WARNING: the particles look no more like" in shown.err
    assert "WARNING" not in shown.out
    assert any("look no more like" in line for line in request.warnings)


def test_twins_train_noise2noise(project):
    twin = Path("twin.star")
    with StackReader("Sim/noisy.mrcs") as reader:
        images = reader.read(range(reader.n_images))
    images += np.random.default_rng(1).normal(scale=images.std(), size=images.shape).astype(np.float32)
    with StackWriter("Sim/twin.mrcs", images.shape, pixel_size_angstrom=4.0, label="") as writer:
        writer.write(images)
    twin.write_text(Path(PARTICLES).read_text().replace("Sim/noisy.mrcs", "Sim/twin.mrcs"))
    commands.train(Request(Path(JOB), given("--twin", str(twin), reference=None), "command"))
    assert load_model(JOB).card["training"]["pairs"]["target_is_clean"] is False


def test_an_aborted_job_goes_on_where_it_was_and_anew_with_other_parameters(project, capsys):
    calls = iter(range(100))
    with pytest.raises(Aborted, match="step 5"):
        commands.train(Request(Path(JOB), given(), "command", lambda: next(calls) == 5))
    commands.train(Request(Path(JOB), given(), "command"))
    assert "resumed at step 5" in capsys.readouterr().out
    commands.train(Request(Path(JOB), given("--learning_rate", "0.01"), "command"))
    out = capsys.readouterr().out
    assert "starting anew" in out
    assert "resumed" not in out


def test_a_run_that_diverges_fails_with_its_reason_and_keeps_the_last_good_state(project):
    Path("wild.yaml").write_text(
        "name: wild\noptimisation: {steps: 8, learning_rate: 1.0e+30, gradient_clip: 1.0e+30}\n"
        "validate_every: 1\ninitial_weights: tiny.safetensors\n"
    )
    result = run(
        project, "--in_parts", PARTICLES, "--in_3dref", MAP, "--config", "wild.yaml", "--device", "cpu"
    )
    assert result.returncode == 1, result.stderr
    assert "the loss is not finite near step" in result.stderr
    assert (project / JOB / EXIT_FAILURE).exists()
    assert not (project / JOB / "weights.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "reference", "message"),
    [
        ((), None, "found neither"),
        (("--twin", PARTICLES), MAP, "found both"),
        (("--half_set", "3"), MAP, "half_set: expected '1' or '2'"),
        (("--half_set", "1", "--half_sets"), MAP, "both half_set and half_sets"),
        (("--half_set", "1"), "lump.mrc", "no half map was found beside lump.mrc"),
        (("--config", "no_such"), MAP, "unknown preset 'no_such'"),
        (("--steps", "0"), MAP, "steps: expected greater than 0"),
        (("--gpu", "0"), MAP, "both gpu and device"),
        (("--device", "0,1"), MAP, "expected one GPU as 0"),
    ],
)
def test_what_does_not_fit_is_refused(project, arguments, reference, message):
    with pytest.raises(ConfigurationError, match=message):
        commands.train(Request(Path(JOB), given(*arguments, reference=reference), "command"))


def test_weights_of_another_network_than_the_preset_are_refused(project):
    with pytest.raises(ConfigurationError, match=r"initial_weights: .* are of the network"):
        commands.train(Request(Path(JOB), given("--config", "denoise_l2"), "command"))


def test_a_job_without_weights_is_no_model(project):
    Path("External/job001").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"job001/weights\.safetensors: the weights cannot be read"):
        commands.train(Request(Path(JOB), given("--model", "External/job001/"), "command"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_a_gpu_that_is_not_there_is_refused(project):
    with pytest.raises(DeviceError, match="GPU 1 was asked for"):
        commands.train(Request(Path(JOB), {**given(), "device": "1"}, "command"))


def test_presets_keep_their_loss_and_lose_their_images(project):
    options = train_inputs.read_train_options(
        given("--config", "noise2noise", "--twin", PARTICLES, reference=None)
    )
    values = train_inputs.plan_runs(Path(JOB), options, {}, PARTICLES)[Path(JOB)]
    config = validate(values, TrainingConfig, "test")
    assert config.pairs is not None
    assert config.data is None
    assert config.optimisation.steps == 8


@pytest.mark.parametrize("half", [1, 2])
def test_the_half_map_is_found_from_the_map_and_from_the_other_half(project, half):
    wanted = Path(f"Refine3D/job003/run_half{half}_class001_unfil.mrc")
    assert train_inputs.half_map(Path(MAP), half) == wanted
    assert train_inputs.half_map(wanted.with_name(f"run_half{3 - half}_class001_unfil.mrc"), half) == wanted


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="needs RELION (Debian: relion)")
def test_relion_trains_and_denoises_with_the_result(project):
    options = {
        "fn_exe": "relion_cryohush train",
        "in_part": PARTICLES,
        "in_3dref": MAP,
        "nr_threads": "1",
        **{f"param{number}_label": label for number, label in enumerate(("steps", "model", "device"), 1)},
        **{f"param{number}_value": value for number, value in enumerate(("8", "tiny.safetensors", "cpu"), 1)},
    }
    trained = run_job(project, "External", options)
    assert processes(project)[trained] == SUCCEEDED, (project / trained / "run.err").read_text()
    assert (project / trained / EXIT_SUCCESS).exists()
    assert nodes_of(project)[f"{trained}logfile.pdf"] == REPORT
    options = {
        "fn_exe": "relion_cryohush denoise",
        "in_part": PARTICLES,
        "nr_threads": "1",
        **{"param1_label": "model", "param1_value": trained, "param2_label": "device", "param2_value": "cpu"},
    }
    denoised = run_job(project, "External", options)
    assert processes(project)[denoised] == SUCCEEDED, (project / denoised / "run.err").read_text()
    record = json.loads((project / denoised / "cryohush.json").read_text())
    assert record["model"]["sha256"] == load_model(project / trained).sha256


MICS, PICKED = "MotionCorr/job002/corrected_micrographs.star", "Extract/job007/particles.star"
PLACES = [(50, 60), (110, 50), (90, 120)]


def write_half_frames(project: Path) -> None:
    """Write five micrographs with the sums of their even and odd frames, as RELION 4 and 5 leave them."""
    y, x = np.ogrid[:160, :176]
    disc = sum(((y - row) ** 2 + (x - column) ** 2 < 100).astype(np.float32) for row, column in PLACES)
    names = []
    for number in range(5):
        names.append([f"MotionCorr/job002/Movies/m{number}{end}.mrc" for end in ("", "_EVN", "_ODD")])
        (project / names[-1][0]).parent.mkdir(parents=True, exist_ok=True)
        for which, name in enumerate(names[-1]):
            noise = np.random.default_rng([number, which]).normal(size=(160, 176))
            with StackWriter(project / name, (1, 160, 176), pixel_size_angstrom=2.0, label="") as writer:
                writer.write((noise - disc).astype(np.float32)[None])
    rows = "".join(f"{' '.join(row)} 1\n" for row in names)
    (project / MICS).write_text(
        "\n# version 50001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n"
        "1 2.0\n\n\n"
        "# version 50001\n\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnMicrographNameEven #2\n"
        f"_rlnMicrographNameOdd #3\n_rlnOpticsGroup #4\n{rows}\n"
    )
    # as extracted and binned by two
    stack = (project / PICKED).with_name("m.mrcs")
    stack.parent.mkdir(parents=True)
    with StackWriter(stack, (15, 32, 32), pixel_size_angstrom=4.0, label="") as writer:
        writer.write(np.random.default_rng(0).normal(size=(15, 32, 32)).astype(np.float32))
    particles = "".join(
        f"{5 * i + k + 1 - 2 * i:06d}@Extract/job007/m.mrcs {names[i][0]} {x} {y} 1\n"
        for i in range(5)
        for k, (y, x) in enumerate(PLACES)
    )
    (project / PICKED).write_text(
        "\n# version 50001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n"
        "_rlnImageSize #3\n1 4.0 32\n\n\n# version 50001\n\ndata_particles\n\nloop_\n_rlnImageName #1\n"
        "_rlnMicrographName #2\n"
        f"_rlnCoordinateX #3\n_rlnCoordinateY #4\n_rlnOpticsGroup #5\n{particles}\n"
    )


def half_frames(*extra: str) -> dict[str, str | None]:
    words = [
        "train",
        "--o",
        JOB,
        "--in_mics",
        MICS,
        "--j",
        "1",
        "--device",
        "cpu",
        "--validation_share",
        "0.2",
    ]
    return parse([*words, "--model", "tiny.safetensors", "--steps", "8", "--batch_size", "8", *extra])


@pytest.mark.parametrize(
    ("extra", "box", "n"),
    [((), 128, None), (("--box", "48"), 48, None), (("--in_parts", PICKED), 64, 15)],
    ids=["anywhere", "a box that is given", "particles of twice the pixel size"],
)
def test_even_and_odd_frames_train_noise2noise(project, capsys, extra, box, n):
    write_half_frames(project)
    commands.train(Request(Path(JOB), half_frames(*extra), "command"))
    with StackReader(Path(JOB) / "frame_halves/even.mrcs") as boxes:
        assert boxes.shape[1:] == (box, box)
        # 64 of each micrograph, but for places that were drawn twice
        assert boxes.n_images in ([n] if n else range(9 * 32, 10 * 32 + 1))
        told = f"{boxes.n_images} pairs of boxes of even and odd frames, from 5 micrographs"
    assert told in capsys.readouterr().out
    section = load_model(JOB).card["training"]["pairs"]
    assert (section["target_is_clean"], section["box_px"]) == (False, box)
    # and the next job denoises the micrographs with it
    words = ["denoise", "--o", "External/job013/", "--in_mics", MICS, "--model", "External/job012"]
    commands.denoise(Request(Path("External/job013"), parse([*words, "--device", "cpu"]), "command"))
    assert "MotionCorr/job002/Movies/m0_EVN.mrc" in Path("External/job013/micrographs.star").read_text()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("--in_3dref", MAP), "'Input 3D reference' makes no sense"),
        (("--twin", PARTICLES, "--half_sets", "Yes"), "twin, half_sets makes no sense"),
        (("--in_parts", PICKED, "--in_coords", "AutoPick/job004/autopick.star"), "leave one of them out"),
        (("--in_parts", PARTICLES), "no table with rlnMicrographName, rlnCoordinateX and rlnCoordinateY"),
        (("--box", "400"), "no box of 400 px lies within a micrograph"),
    ],
)
def test_what_does_not_go_with_half_frames_is_refused(project, extra, message):
    write_half_frames(project)
    with pytest.raises((ConfigurationError, InputError), match=message):
        commands.train(Request(Path(JOB), half_frames(*extra), "command"))


def test_a_box_without_half_frames_is_refused(project):
    with pytest.raises(ConfigurationError, match="box is for even and odd frames"):
        commands.train(Request(Path(JOB), given("--box", "64"), "command"))
