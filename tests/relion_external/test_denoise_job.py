"""`relion_cryohush denoise` as RELION runs it: a process in the project's directory, judged by its files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import warm

from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.models import MODELS
from cryohush.core.models.weights import save_model
from cryohush.relion_external.markers import ABORT_NOW, EXIT_ABORTED, EXIT_FAILURE, EXIT_SUCCESS
from cryohush.relion_external.project import OUTPUT_NODES

MARKERS = {EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED}
DATA = Path(__file__).parents[1] / "data"
JOB = "External/job012/"
TABLE = "Extract/job007/particles.star"
STACK = "Extract/job007/Micrographs/a.mrcs"
N_PARTICLES, BOX = 12, 32
RUN = "import sys; from cryohush.relion_external.cli import main; sys.exit(main())"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that is quick to load; what it does to an image is of no concern here."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    arguments = {"widths": [4, 4], "blocks": [1, 1], "unshuffle": 2}
    save_model(path, MODELS["shuffle_unet"](**arguments), "shuffle_unet", arguments, {"description": "tiny"})
    return path


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project directory with a particle stack and its table."""
    (tmp_path / STACK).parent.mkdir(parents=True)
    images = np.random.default_rng(5).normal(size=(N_PARTICLES, BOX, BOX)).astype(np.float32)
    with StackWriter(tmp_path / STACK, images.shape, pixel_size_angstrom=3.0, label="test") as writer:
        writer.write(images)
    rows = "".join(f"{i + 1:06d}@{STACK} 1 {0.5 * i:.6f}\n" for i in range(N_PARTICLES))
    (tmp_path / TABLE).write_text(
        "\n# version 30001\n\ndata_optics\n\nloop_\n"
        f"_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n1 3.000000 {BOX}\n\n\n"
        "# version 30001\n\ndata_particles\n\nloop_\n"
        f"_rlnImageName #1\n_rlnOpticsGroup #2\n_rlnAnglePsi #3\n{rows}\n"
    )
    return tmp_path


def prepare(project: Path, version: str) -> None:
    """Make the job directory as RELION does before it starts a job."""
    shutil.copytree(DATA / f"relion{version}" / "External", project / "External")


def run(project: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a job to its end."""
    return warm.run(RUN, "denoise", "--o", JOB, *arguments, folder=project)


def run_anew(
    project: Path, *arguments: str | Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a job to its end, in a Python that has yet to import all."""
    command = [sys.executable, "-c", RUN, "denoise", "--o", JOB, *map(str, arguments)]
    result = subprocess.run(
        command,
        cwd=project,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=600,
    )
    # not text=True, which would turn the carriage returns of the progress line into line feeds
    stdout, stderr = result.stdout.decode(), result.stderr.decode()
    return subprocess.CompletedProcess(command, result.returncode, stdout, stderr)


def run_until(project: Path, model: Path, stop: str) -> subprocess.CompletedProcess[str]:
    """Start a job of one image per batch, stop it after four images, and wait for its end.

    `stop` is the name of a signal, or `file` for RELION's abort file. The job goes no further on its own, so
    that it does not matter how fast the machine is.
    """
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cryohush.relion_external.commands import denoise\n"
        "from cryohush.relion_external.markers import run_as_external_job\n"
        "from cryohush.relion_external.request import Request\n"
        f"given = {{'in_parts': {TABLE!r}, 'model': {str(model)!r}, 'batch_size': '1', 'device': 'cpu',\n"
        "         'precision': 'fp32', 'threads': '1'}\n"
        "def work(should_stop):\n"
        "    asked = 0\n"
        "    def gate():\n"
        "        nonlocal asked\n"
        "        asked += 1\n"
        "        if asked > 4:\n"
        "            Path('ready').touch()\n"
        "            while not should_stop():\n"
        "                time.sleep(0.01)\n"
        "        return should_stop()\n"
        f"    denoise(Request(Path({JOB!r}), given, 'command', gate))\n"
        f"sys.exit(run_as_external_job(Path({JOB!r}), work))\n"
    )
    job = warm.Program(program, folder=project)
    give_up = time.monotonic() + 600
    while not (project / "ready").exists():
        assert job.poll() is None, job.end()
        assert time.monotonic() < give_up
        time.sleep(0.02)
    if stop == "file":
        (project / JOB / ABORT_NOW).touch()
    else:
        job.send_signal(signal.Signals[stop])
    return job.end()


def markers(project: Path) -> set[str]:
    return {path.name for path in (project / JOB).iterdir()} & MARKERS


def assert_failed(
    project: Path, result: subprocess.CompletedProcess[str], message: str, code: int = 1
) -> None:
    """Check all that a failure has to leave: its marker, its code, one clear line, and no table."""
    assert markers(project) == {EXIT_FAILURE}
    assert result.returncode == code
    assert message in result.stderr
    assert result.stderr.count("ERROR") == 1
    assert "Traceback" not in result.stderr
    assert not (project / JOB / "particles.star").exists()
    assert not (project / JOB / OUTPUT_NODES).exists()


@pytest.mark.parametrize(
    ("version", "label"),
    [("31", "3"), ("4", "ParticlesData.star.relion"), ("5", "ParticleGroupMetadata.star.relion")],
)
def test_a_job_leaves_what_the_next_job_needs(project: Path, model: Path, version: str, label: str) -> None:
    prepare(project, version)
    unused = ["--in_mics", "x.star", "--in_3dref", "x.mrc", "--gpu"]
    result = run(
        project, "--in_parts", TABLE, *unused, "--model", model, "--j", "1", "--pipeline_control", JOB
    )
    assert (result.stderr, result.returncode, markers(project)) == ("", 0, {EXIT_SUCCESS})
    nodes = (project / JOB / OUTPUT_NODES).read_text()
    assert f"{JOB}particles.star {label}\n" in nodes
    written = (project / JOB / "particles.star").read_text().splitlines()
    for number, row in enumerate([line for line in written if "@" in line], 1):
        psi = f"{0.5 * (number - 1):.6f}"
        assert row.split() == [f"{number:06d}@{JOB}{STACK}", "1", psi, f"{number:06d}@{STACK}"]
    assert (project / JOB / "logfile.pdf").read_bytes().startswith(b"%PDF")
    with StackReader(project / JOB / STACK) as reader:
        assert reader.shape == (N_PARTICLES, BOX, BOX)


def test_the_log_says_what_ran(project: Path, model: Path) -> None:
    prepare(project, "5")
    result = run(project, "--in_parts", TABLE, "--model", model, "--device", "cpu", "--j", "1")
    assert result.returncode == 0, result.stderr
    sha256 = json.loads((project / JOB / "cryohush.json").read_text())["model"]["sha256"]
    assert result.stdout.startswith("cryohush 0.")
    for text in ("RELION 5", "command: relion_cryohush denoise --o", str(model), sha256[:16], "device cpu"):
        assert text in result.stdout
    assert "\r12 of 12 particles (100 %)" in result.stdout
    # a line that ended in a carriage return would be shown as an empty one
    assert "\r\n" not in result.stdout
    assert "\r" not in result.stdout.split("\n")[-1]


def test_relion_31_cannot_read_float16(project: Path, model: Path) -> None:
    prepare(project, "31")
    result = run(project, "--in_parts", TABLE, "--model", model, "--output_dtype", "float16")
    assert_failed(project, result, "RELION 3.1 cannot read float16")


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--in_parts", TABLE, "--modle", "x"], "unknown parameter 'modle': did you mean 'model'?", 2),
        (
            ["--in_parts", TABLE, "--nonsense"],
            "unknown parameter 'nonsense': expected one of j, gpu, model",
            2,
        ),
        (["--in_parts", TABLE, "--model", "a", "b"], "unexpected 'b'. RELION splits at blanks", 2),
        (["--in_mics", TABLE], f"{TABLE} lists particles. Fill it in as 'Input particles'", 1),
        (["--in_mics"], "or 'Input micrographs' on the Input tab", 1),
        (["--in_parts", STACK], f"expected a STAR file of particles or micrographs, found {STACK}", 1),
        (["--in_parts", TABLE, "--model", "no_such"], "unknown model 'no_such'", 1),
        (
            ["--in_parts", TABLE, "--blend", "2"],
            "parameters: blend: ",
            1,
        ),
        (["--in_parts", TABLE, "--gpu", "0", "--device", "cpu"], "both gpu and device are given", 1),
        (["--in_parts", TABLE, "--config", "no.yaml"], "no.yaml: cannot be read: No such file", 1),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    project: Path, arguments: Sequence[str], message: str, code: int
) -> None:
    assert_failed(project, run(project, *arguments), message, code)


def test_a_table_that_is_not_there(project: Path, model: Path) -> None:
    assert_failed(project, run(project, "--in_parts", "no.star", "--model", model), "no.star")


def test_a_stack_that_is_gone(project: Path, model: Path) -> None:
    (project / STACK).unlink()
    result = run(project, "--in_parts", TABLE, "--model", model)
    assert_failed(project, result, f"the stack {STACK} does not exist")


@pytest.mark.parametrize("image", ["nan", "constant"])
def test_an_image_that_cannot_be_denoised(project: Path, model: Path, image: str) -> None:
    images = np.memmap(project / STACK, np.float32, "r+", 1024, (N_PARTICLES, BOX, BOX))
    images[6] = np.nan if image == "nan" else 1.0
    images.flush()
    arguments = ["--in_parts", TABLE, "--model", model, "--device", "cpu"]
    result = run(project, *arguments)
    assert_failed(project, result, f"{STACK}, image 7")
    # a bare flag, as RELION gives it for a label without a value
    result = run(project, *arguments, "--skip_bad", "--j", "1")
    assert (result.returncode, markers(project)) == (0, {EXIT_SUCCESS})
    assert result.stderr.splitlines()[-1] == "WARNING: 1 images were passed through unchanged"


def test_a_torch_that_cannot_be_imported(project: Path, model: Path) -> None:
    broken = project / "site"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")
    result = run_anew(project, "--in_parts", TABLE, "--model", model, environment={"PYTHONPATH": str(broken)})
    assert_failed(project, result, "cannot import what cryohush needs: libcudart.so.12: cannot open")


def test_a_gpu_that_is_asked_for_and_absent(project: Path, model: Path) -> None:
    arguments = ["--in_parts", TABLE, "--model", model, "--gpu", "0"]
    result = run_anew(project, *arguments, environment={"CUDA_VISIBLE_DEVICES": ""})
    assert_failed(project, result, "0")


@pytest.mark.parametrize("stop", ["SIGTERM", "file"])
def test_a_job_that_is_stopped_goes_on_where_it_was(project: Path, model: Path, stop: str) -> None:
    result = run_until(project, model, stop)
    assert (result.stderr, result.returncode, markers(project)) == ("", 2, {EXIT_ABORTED})
    assert not (project / JOB / "particles.star").exists()
    assert not (project / JOB / STACK).exists()
    assert not (project / JOB / ABORT_NOW).exists()

    arguments = ["--in_parts", TABLE, "--model", model, "--batch_size", "1", "--device", "cpu"]
    arguments += ["--precision", "fp32", "--j", "1"]
    result = run(project, *arguments)
    assert (result.stderr, result.returncode, markers(project)) == ("", 0, {EXIT_SUCCESS})
    record = json.loads((project / JOB / "cryohush.json").read_text())
    assert 4 <= record["resumed_images"] < N_PARTICLES
    resumed = (project / JOB / STACK).read_bytes()
    shutil.rmtree(project / JOB)
    assert run(project, *arguments).returncode == 0
    assert (project / JOB / STACK).read_bytes() == resumed


def test_a_continued_job_with_another_parameter_starts_anew(project: Path, model: Path) -> None:
    run_until(project, model, "SIGTERM")
    result = run(project, "--in_parts", TABLE, "--model", model, "--blend", "0.5", "--device", "cpu")
    assert (result.stderr, result.returncode, markers(project)) == ("", 0, {EXIT_SUCCESS})
    assert "starting anew" in result.stdout
    assert json.loads((project / JOB / "cryohush.json").read_text())["resumed_images"] == 0


def test_what_is_added_to_the_table_during_the_run_is_denoised_in_it(
    project: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cryohush.relion_external.commands import denoise
    from cryohush.relion_external.request import Request

    monkeypatch.chdir(project)
    added = STACK.replace("a.mrcs", "b.mrcs")

    def another_job_goes_on() -> bool:
        if not Path(added).exists():
            shutil.copy(STACK, added)
            text = Path(TABLE).read_text().rstrip("\n")
            Path(TABLE).write_text(f"{text}\n000003@{added} 1 0.000000\n\n")
        return False

    given = {"in_parts": TABLE, "model": str(model), "device": "cpu"}
    denoise(Request(Path(JOB), given, "relion_cryohush denoise", another_job_goes_on))
    said = capsys.readouterr().out
    assert f"{TABLE} has changed meanwhile: going on with what is new in it" in said
    assert (
        f"{N_PARTICLES + 1} particles in {JOB}particles.star, {N_PARTICLES} images done by an earlier" in said
    )
    table = (project / JOB / "particles.star").read_text()
    assert f"000001@{JOB}{added} 1 0.000000 000003@{added}\n" in table
    with StackReader(project / JOB / added) as output:
        # the one image that the table names
        assert output.shape == (1, BOX, BOX)
