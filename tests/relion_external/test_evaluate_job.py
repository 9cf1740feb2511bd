"""`relion_cryohush evaluate` as RELION runs it: a process in the project's directory, judged by its files."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import warm

from cryohush.core.config.evaluate import EvaluateConfig
from cryohush.core.errors import ConfigurationError
from cryohush.core.io.mrc import StackWriter
from cryohush.relion_external.cli import parameters_of, parse
from cryohush.relion_external.commands import evaluate, read_evaluate_config
from cryohush.relion_external.markers import (
    ABORT_NOW,
    EXIT_ABORTED,
    EXIT_FAILURE,
    EXIT_SUCCESS,
    run_as_external_job,
)
from cryohush.relion_external.project import OUTPUT_NODES
from cryohush.relion_external.request import Request

MARKERS = {EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED}
DATA = Path(__file__).parents[1] / "data"
JOB = "External/job012/"
# the pipeline of the fixtures knows this table as the input of the job
DENOISED, TWIN = "Extract/job007/particles.star", "Extract/job008/particles.star"
N, BOX = 12, 32
RUN = "import sys; from cryohush.relion_external.cli import main; sys.exit(main())"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with two tables of the same particles."""
    generator = np.random.default_rng(5)
    signal = generator.normal(size=(N, BOX, BOX))
    for table in (DENOISED, TWIN):
        folder = (tmp_path / table).parent
        folder.mkdir(parents=True)
        images = (signal + generator.normal(size=signal.shape)).astype(np.float32)
        with StackWriter(folder / "a.mrcs", images.shape, pixel_size_angstrom=3.0, label="test") as writer:
            writer.write(images)
        rows = "".join(f"{i + 1:06d}@{Path(table).parent}/a.mrcs 1 mic{i % 3}.mrc\n" for i in range(N))
        (tmp_path / table).write_text(
            "\n# version 30001\n\ndata_optics\n\nloop_\n"
            f"_rlnOpticsGroup #1\n_rlnImagePixelSize #2\n_rlnImageSize #3\n1 3.000000 {BOX}\n\n\n"
            "# version 30001\n\ndata_particles\n\nloop_\n"
            f"_rlnImageName #1\n_rlnOpticsGroup #2\n_rlnMicrographName #3\n{rows}\n"
        )
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(RUN, "evaluate", "--o", JOB, *arguments, folder=project)


def markers(project: Path) -> set[str]:
    return {path.name for path in (project / JOB).iterdir()} & MARKERS


def test_a_job_leaves_its_report_and_one_node(project: Path) -> None:
    shutil.copytree(DATA / "relion4" / "External", project / "External")
    unused = ["--in_3dref", "x.mrc", "--gpu", "--pipeline_control", JOB]
    result = run(project, "--in_parts", DENOISED, "--twin", TWIN, "--align_twin", "No", "--j", "1", *unused)
    assert (result.stderr, result.returncode, markers(project)) == ("", 0, {EXIT_SUCCESS})
    nodes = (project / JOB / OUTPUT_NODES).read_text()
    assert [line for line in nodes.splitlines() if JOB in line] == [f"{JOB}logfile.pdf LogFile.pdf.relion"]
    assert (project / JOB / "logfile.pdf").read_bytes().startswith(b"%PDF")
    assert (project / JOB / "evaluation.html").is_file()
    found = json.loads((project / JOB / "evaluation.json").read_text())["against_twin"]["denoised"]
    # signal and noise of variance 1 in either: half of the variance is common; 12 k pixels
    assert found["correlation"]["mean"] == pytest.approx(0.5, abs=0.04)
    assert "\r12 of 12 particles (100 %)" in result.stdout
    assert "project of RELION 4" in result.stdout
    # "Continue!" runs the same command in the same place
    result = run(project, "--in_parts", DENOISED, "--twin", TWIN, "--j", "1")
    assert (result.stderr, result.returncode, markers(project)) == ("", 0, {EXIT_SUCCESS})


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--in_parts", DENOISED], "something to be compared with: reference, twin or raw", 1),
        (["--in_parts", DENOISED, "--twim", TWIN], "unknown parameter 'twim': did you mean 'twin'?", 2),
        (["--in_parts", DENOISED, "--twin", "no.star"], "no.star", 1),
        (["--in_parts", DENOISED, "--reference", TWIN, "--metrics", "psnr,sim"], "did you mean 'ssim'?", 1),
        (["--twin", TWIN], "found nothing. Fill in the field 'Input particles'", 1),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    project: Path, arguments: list[str], message: str, code: int
) -> None:
    result = run(project, *arguments)
    assert message in result.stderr
    assert result.stderr.count("ERROR") == 1
    assert (result.returncode, markers(project)) == (code, {EXIT_FAILURE})
    assert not (project / JOB / OUTPUT_NODES).exists()


def test_relions_abort_is_obeyed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    Path(JOB).mkdir(parents=True)
    (Path(JOB) / ABORT_NOW).touch()
    given = {"in_parts": DENOISED, "twin": TWIN, "threads": "1"}

    def work(should_stop: Callable[[], bool]) -> None:
        # however fast the machine is, the request comes before the end
        give_up = time.monotonic() + 300
        while not should_stop() and time.monotonic() < give_up:
            time.sleep(0.01)
        evaluate(Request(Path(JOB), given, "command", should_stop))

    assert run_as_external_job(Path(JOB), work) == 2
    assert markers(project) == {EXIT_ABORTED}
    assert not (project / JOB / "evaluation.json").exists()


def config(*arguments: str) -> EvaluateConfig:
    given = parse(["evaluate", "--o", "x", "--in_parts", "a.star", "--twin", "b.star", *arguments])
    return read_evaluate_config(given, "a.star")


def test_every_flag_is_an_option_of_an_evaluation() -> None:
    assert {name for _, name, *_ in parameters_of("evaluate")} <= {
        *EvaluateConfig.model_fields,
        "gpu",
        "config",
    }


@pytest.mark.parametrize(
    "flag",
    [
        flag
        for flag, name, *_ in parameters_of("evaluate")
        if name not in ("align_twin", "pair_by_order", "twin")
    ],
)
def test_a_flag_whose_value_was_left_empty_is_as_good_as_none(flag: str) -> None:
    assert config(flag) == config()


def test_a_bare_switch_is_on() -> None:
    assert config("--align_twin", "--raw", "r.star").align_twin
    assert config("--pair_by_order").pair_by_order


def test_lists_have_commas() -> None:
    found = config("--raw", "r.star", "--baselines", "gaussian,mean")
    assert found.baselines == ("gaussian", "mean")


def test_the_command_line_goes_before_the_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("twin: other.star\ncoarsest_angstrom: 80\n")
    found = config("--config", str(tmp_path / "e.yaml"))
    assert (found.twin, found.coarsest_angstrom) == (Path("b.star"), 80)


def test_gpu_and_device_exclude_each_other() -> None:
    assert config("--gpu", "1").device == "1"
    with pytest.raises(ConfigurationError, match="both gpu and device"):
        config("--gpu", "0", "--device", "cpu")
