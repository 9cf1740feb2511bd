"""The jobs for the CCP-EM pipeliner, tried with the real one where a Python has it beside cryohush.

CRYOHUSH_CCPEM_PYTHON names that Python (`tests/run_tests.sh` makes one): ccpem-pipeliner is no dependency.
"""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cryohush.core.config.load import validate
from cryohush.core.config.simulate import ParticlesConfig
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.jobs.simulate import SimulateJob
from cryohush.core.models import MODELS
from cryohush.core.models.weights import save_model
from cryohush.relion_external.cli import COMMANDS, parameters_of

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("CRYOHUSH_CCPEM_PYTHON")
with_pipeliner = pytest.mark.skipif(
    PYTHON is None, reason="CRYOHUSH_CCPEM_PYTHON does not name a Python with ccpem-pipeliner and cryohush"
)
SIDE = 320
RAW = [f"MotionCorr/job900/m{number}.mrc" for number in (1, 2)]
QUICK = {"model": "tiny.safetensors", "device": "cpu"}
# The first job is that of the micrographs, on whose result the picks were made.
DENOISED = "Denoise/job001/"
JOBS: dict[str, dict[str, str]] = {
    "cryohush.denoise.micrographs": {"in_mics": "micrographs.star", **QUICK},
    "cryohush.raw_picks": {"in_coords": "picks.star"},
    "cryohush.denoise.particles": {"in_parts": "particles.star", "keep_above": "9.0", **QUICK},
    "cryohush.evaluate.particles": {
        "in_parts": "{2}particles.star",
        "raw": "particles.star",
        "twin": "twin.star",
        "align_twin": "No",
        "device": "cpu",
    },
    "cryohush.evaluate.micrographs": {
        "in_mics": "{0}micrographs.star",
        "raw": "micrographs.star",
        "twin": "other_micrographs.star",
        "device": "cpu",
    },
    "cryohush.extract_noise": {
        "in_mics": "micrographs.star",
        "window_px": "64",
        "min_background": "0.5",
        "device": "cpu",
    },
    "cryohush.train": {
        "in_parts": "particles.star",
        "twin": "twin.star",
        "steps": "4",
        "batch_size": "8",
        **QUICK,
    },
    "cryohush.train on even and odd frames": {
        "in_mics": "half_frames.star",
        "box": "64",
        "steps": "4",
        "batch_size": "8",
        "validation_share": "0.5",
        **QUICK,
    },
}
NODES = {
    "cryohush.denoise.micrographs": ["micrographs.star", "logfile.pdf"],
    "cryohush.raw_picks": ["raw_picks.star"],
    "cryohush.denoise.particles": ["particles.star", "logfile.pdf"],
    "cryohush.evaluate.particles": ["logfile.pdf"],
    "cryohush.evaluate.micrographs": ["logfile.pdf"],
    "cryohush.extract_noise": ["logfile.pdf"],
    "cryohush.train": ["weights.safetensors", "logfile.pdf"],
    "cryohush.train on even and odd frames": ["weights.safetensors", "logfile.pdf"],
}


def entry_points() -> dict[str, str]:
    """Return name to class of the jobs that setup.cfg registers."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options.entry_points"]["ccpem_pipeliner.jobs"].strip().splitlines()
    found = {}
    for line in lines:
        name, _, target = line.partition(" = ")
        module, _, found[name] = target.partition(":")
        assert module == "cryohush.relion_external.ccpem_pipeliner"
    return found


def test_each_entry_point_names_its_class_and_each_command_has_one() -> None:
    tree = ast.parse((ROOT / "relion_external" / "ccpem_pipeliner.py").read_text())
    constants: dict[str, dict[str, str]] = {}
    for job in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        values = {ast.unparse(n.targets[0]): n.value for n in job.body if isinstance(n, ast.Assign)}
        base = constants.get(" ".join(map(ast.unparse, job.bases)), {})
        texts = {n: ast.literal_eval(v) for n, v in values.items() if n in ("PROCESS_NAME", "COMMAND")}
        constants[job.name] = {**base, **texts}
    registered = entry_points()
    assert {name: constants[job]["PROCESS_NAME"] for name, job in registered.items()} == {
        name: name for name in registered
    }
    assert {constants[job]["COMMAND"] for job in registered.values()} == {*COMMANDS, "raw-picks"}
    assert set(registered) == {name.split()[0] for name in JOBS}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with particles, micrographs, picks on denoised micrographs, and a quick model."""
    folder = tmp_path_factory.mktemp("ccpem")
    generator = np.random.default_rng(0)
    atoms = "\n".join(
        f"ATOM  {i:5d}  CA  ALA A{i:4d}    {x:8.3f}{y:8.3f}{z:8.3f}  1.00 20.00           C"
        for i, (x, y, z) in enumerate(generator.normal(scale=14, size=(150, 3)), 1)
    )
    (folder / "lump.pdb").write_text(f"{atoms}\nEND\n")
    values = {
        "n_images": 64,
        "box_px": 32,
        "pixel_size_angstrom": 4.0,
        "structures": [{"path": folder / "lump.pdb"}],
        "snr_range": [0.5, 1.0],
        "particles_per_micrograph": 8,
        "noise": {"components": [{"kind": "gaussian"}]},
    }
    SimulateJob(validate(values, ParticlesConfig, "test"), "cpu").run(folder / "Sim")
    for name, kind in (("particles", "noisy"), ("twin", "ctf_only")):
        text = re.sub(rf"@\S*{kind}\.mrcs", f"@Sim/{kind}.mrcs", (folder / f"Sim/{kind}.star").read_text())
        (folder / f"{name}.star").write_text(text)
    (folder / RAW[0]).parent.mkdir(parents=True)
    (folder / "Other").mkdir()
    others = [f"Other/{Path(name).name}" for name in RAW]
    for number, name in enumerate((*RAW, *others)):
        image = np.random.default_rng(number).normal(50, 4, (1, SIDE, SIDE)).astype(np.float32)
        with StackWriter(folder / name, image.shape, pixel_size_angstrom=1.5, label="test") as writer:
            writer.write(image)
    (folder / "half_frames.star").write_text(
        "\n# version 50001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n"
        "1 1.5\n\n\n# version 50001\n\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n"
        "_rlnMicrographNameEven #2\n_rlnMicrographNameOdd #3\n_rlnOpticsGroup #4\n"
        # both halves of two exposures
        f"{RAW[0]} {RAW[0]} {others[0]} 1\n{RAW[1]} {RAW[1]} {others[1]} 1\n\n"
    )
    for table, names in (("micrographs", RAW), ("other_micrographs", others)):
        rows = "".join(f"{name} 1\n" for name in names)
        (folder / f"{table}.star").write_text(
            "\n# version 50001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n"
            "1 1.5\n\n\n"
            "# version 50001\n\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnOpticsGroup #2\n"
            f"{rows}\n"
        )
    (folder / "picks.star").write_text(
        "\n# version 50001\n\ndata_coordinate_files\n\nloop_\n_rlnMicrographName #1\n"
        f"_rlnMicrographCoordinates #2\n{DENOISED}m1.mrc a.star\n{DENOISED}m2.mrc b.star\n\n"
    )
    arguments = {"widths": [8, 8], "blocks": [1, 1], "unshuffle": 2}
    torch.manual_seed(0)
    network = MODELS["shuffle_unet"](**arguments)
    save_model(folder / "tiny.safetensors", network, "shuffle_unet", arguments, {})
    return folder


@pytest.fixture(scope="module")
def ran(project: Path) -> dict[str, Any]:
    """What came of all jobs, run one after the other by the pipeliner."""
    jobs = [
        {"_rlnJobTypeLabel": name.split()[0], "nr_threads": "1", **options} for name, options in JOBS.items()
    ]
    (project / "jobs.json").write_text(json.dumps(jobs))
    assert PYTHON is not None
    done = subprocess.run(
        [PYTHON, Path(__file__).with_name("ccpem_project.py"), project, project / "jobs.json"],
        env={
            **os.environ,
            # where its relion_cryohush is
            "PATH": f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return {"types": found["types"], **dict(zip(JOBS, found["jobs"], strict=True))}


@with_pipeliner
def test_the_pipeliner_knows_all_jobs_and_finds_their_program(ran: dict[str, Any]) -> None:
    assert ran["types"] == dict.fromkeys(entry_points(), True)


@with_pipeliner
@pytest.mark.parametrize("name", JOBS)
def test_a_job_runs_to_its_end_and_leaves_its_outputs(ran: dict[str, Any], name: str) -> None:
    job = ran[name]
    assert job["status"] == ["PIPELINER_JOB_EXIT_SUCCESS"], job["out"] + job["err"]
    assert job["err"] == ""
    assert job["missing"] == []
    assert [node.removeprefix(job["directory"]) for node in job["nodes"]] == NODES[name]


@with_pipeliner
def test_a_training_learns_from_even_and_odd_frames(ran: dict[str, Any]) -> None:
    assert (
        "pairs of boxes of even and odd frames, from 2 micrographs"
        in (ran["cryohush.train on even and odd frames"]["out"])
    )


@pytest.fixture(scope="module")
def said() -> list[str]:
    """What forms say in the pipeliner's environment: their options, and what a training needs."""
    code = (
        "import json; from cryohush.relion_external import ccpem_pipeliner as jobs; "
        "made = [c() for c in vars(jobs).values() if hasattr(c, 'PROCESS_NAME') and hasattr(c, 'TITLE')]; "
        "print(json.dumps({job.COMMAND: list(job._defaults) for job in made})); job = jobs.TrainJob(); "
        "print([found.message for found in job.additional_joboption_validation()]); "
        "job.joboptions['in_mics'].value = 'm.star'; print(job.additional_joboption_validation())"
    )
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@with_pipeliner
def test_a_training_without_anything_to_learn_from_is_refused_in_the_form(said: list[str]) -> None:
    assert said[1:] == ["['Particles or micrographs are needed.']", "[]"]


@with_pipeliner
def test_pictures_and_reports_are_shown(ran: dict[str, Any]) -> None:
    assert ran["cryohush.denoise.particles"]["shown"] == ["image", "montage", "pdffile"]
    assert ran["cryohush.denoise.micrographs"]["shown"] == ["image", "pdffile"]
    assert ran["cryohush.evaluate.particles"]["shown"] == ["pdffile"]
    assert ran["cryohush.raw_picks"]["shown"] == []


@with_pipeliner
def test_what_was_filled_in_reaches_the_command(ran: dict[str, Any], project: Path) -> None:
    def options_of(name: str) -> Any:
        return json.loads((project / ran[name]["directory"] / "cryohush.json").read_text())["options"]

    denoised = options_of("cryohush.denoise.particles")
    assert (denoised["keep_above_angstrom"], denoised["device"], denoised["threads"]) == (9.0, "cpu", 1)
    # what was left as it is has cryohush's default
    assert (denoised["blend"], denoised["skip_bad"], denoised["context"]) == (0.0, False, "auto")
    assert options_of("cryohush.extract_noise")["window_px"] == 64


@with_pipeliner
def test_picks_are_those_of_the_raw_micrographs(ran: dict[str, Any], project: Path) -> None:
    assert ran["cryohush.denoise.micrographs"]["directory"] == DENOISED
    text = (project / ran["cryohush.raw_picks"]["directory"] / "raw_picks.star").read_text()
    assert f"{RAW[0]} a.star\n{RAW[1]} b.star\n" in text
    with StackReader(project / DENOISED / "m1.mrc") as micrograph:
        assert micrograph.shape == (1, SIDE, SIDE)


@with_pipeliner
@pytest.mark.parametrize("command", COMMANDS)
def test_the_form_has_each_option_of_the_command_line_but_the_threads(said: list[str], command: str) -> None:
    wanted = [flag.lstrip("-") for flag, *_ in parameters_of(command) if flag != "--j"]
    assert json.loads(said[0])[command] == wanted
