"""`relion_cryohush extract-noise` as RELION runs it: a process in the project, judged by its files."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import warm

from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.errors import Aborted, ConfigurationError
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.relion_external.cli import parameters_of, parse
from cryohush.relion_external.commands import extract_noise
from cryohush.relion_external.markers import EXIT_ABORTED, EXIT_FAILURE, EXIT_SUCCESS
from cryohush.relion_external.project import OUTPUT_NODES
from cryohush.relion_external.request import Request, read_options

JOB, TABLE, SIDE = "External/job012/", "CtfFind/job003/micrographs.star", 320
OPTIONS = ("--window_px", "64", "--min_background", "0.5", "--gpu", "--device", "cpu", "--j", "1")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project directory with two empty micrographs and their table."""
    (tmp_path / TABLE).parent.mkdir(parents=True)
    (tmp_path / "MotionCorr/job002").mkdir(parents=True)
    for seed in (1, 2):
        image = np.random.default_rng(seed).normal(50, 4, (1, SIDE, SIDE)).astype(np.float32)
        path = tmp_path / f"MotionCorr/job002/m{seed}.mrc"
        with StackWriter(path, image.shape, pixel_size_angstrom=1.5, label="test") as writer:
            writer.write(image)
    (tmp_path / TABLE).write_text(
        "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroupName #1\n_rlnOpticsGroup #2\n"
        "_rlnMicrographPixelSize #3\n_rlnVoltage #4\n_rlnSphericalAberration #5\n_rlnAmplitudeContrast #6\n"
        "opticsGroup1 1 1.500000 300.0 2.7 0.1\n\n\n# version 30001\n\ndata_micrographs\n\nloop_\n"
        "_rlnMicrographName #1\n_rlnOpticsGroup #2\n"
        "MotionCorr/job002/m1.mrc 1\nMotionCorr/job002/m2.mrc 1\n\n"
    )
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from cryohush.relion_external.cli import main; sys.exit(main())"
    return warm.run(code, "extract-noise", "--o", JOB, *arguments, folder=project)


def markers(project: Path) -> set[str]:
    found = {path.name for path in (project / JOB).iterdir()}
    return found & {EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED}


def test_a_job_leaves_noise_table_labels_overlays_nodes_and_marker(project: Path) -> None:
    result = run(project, "--in_mics", TABLE, *OPTIONS, "--pipeline_control", JOB)
    assert result.returncode == 0, result.stderr
    assert markers(project) == {EXIT_SUCCESS}
    nodes = (project / JOB / OUTPUT_NODES).read_text()
    assert f"{JOB}noise.star 3 ParticleGroupMetadata.star.relion" in nodes
    assert f"{JOB}logfile.pdf 13" in nodes
    names = {str(path.relative_to(project / JOB)) for path in (project / JOB).rglob("*") if path.is_file()}
    assert {"labels/m1.mrc", "labels/m2.mrc", "overlays/m1.png", "noise.mrcs", "cryohush.json"} <= names
    with StackReader(project / JOB / "noise.mrcs") as reader:
        # 9 x 9 windows in each
        assert 40 < reader.n_images <= 162
        assert reader.shape[1:] == (64, 64)
    assert "2 of 2 micrographs (100 %)" in result.stdout
    # two overlays and twelve blocks, each an image of the PDF
    pdf = (project / JOB / "logfile.pdf").read_bytes()
    assert pdf.count(b"/Subtype /Image") >= 14


def test_failure_is_marked_and_explained(project: Path) -> None:
    result = run(project, "--in_mics", TABLE, "--window_px", "5000", "--device", "cpu")
    assert result.returncode == 1
    assert markers(project) == {EXIT_FAILURE}
    assert "larger than the 320 x 320 px" in result.stderr
    assert not (project / JOB / OUTPUT_NODES).exists()


def test_a_search_that_finds_nothing_shows_what_was_in_the_way(project: Path) -> None:
    strict = ["--method", "similarity", "--similarity_threshold", "0.5", "--min_blocks", "500"]
    result = run(project, "--in_mics", TABLE, *OPTIONS, *strict)
    assert markers(project) == {EXIT_FAILURE}, result.stderr
    assert f"is to be seen in {JOB}logfile.pdf and {JOB}overlays." in result.stderr
    pdf = (project / JOB / "logfile.pdf").read_bytes()
    assert pdf.count(b"/Subtype /Image") == 2
    assert not (project / JOB / OUTPUT_NODES).exists()


def test_an_aborted_job_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    given = parse(["extract-noise", "--o", JOB, "--in_mics", TABLE, *OPTIONS])
    calls = iter([False, True])
    with pytest.raises(Aborted):
        extract_noise(Request(Path(JOB), given, "command", lambda: next(calls)))
    extract_noise(Request(Path(JOB), given, "command"))
    assert "done already: 1 micrograph" in capsys.readouterr().out
    # other options: the job begins anew
    extract_noise(Request(Path(JOB), {**given, "window_px": "48"}, "command"))
    with StackReader("External/job012/noise.mrcs") as reader:
        assert reader.shape[1:] == (48, 48)


def test_particles_are_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    (project / "p.star").write_text("\ndata_particles\n\nloop_\n_rlnImageName #1\n1@a.mrcs\n\n")
    with pytest.raises(ConfigurationError, match="Input micrographs"):
        extract_noise(Request(Path(JOB), {"in_parts": "p.star"}, "command"))


def test_every_option_is_a_parameter_of_the_job() -> None:
    names = {name for _, name, _, _ in parameters_of("extract-noise")}
    assert names == {*ExtractNoiseOptions.model_fields, "gpu", "config"}


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "noise.yaml"
    path.write_text("window_px: 128\nmethod: similarity\n")
    options = read_options(
        {"config": str(path), "window_px": "96", "skip_bad": None, "gpu": None}, ExtractNoiseOptions
    )
    assert (options.window_px, options.method, options.skip_bad) == (96, "similarity", True)


@pytest.mark.relion
def test_relion_reads_the_table_and_the_stack(project: Path) -> None:
    assert run(project, "--in_mics", TABLE, *OPTIONS).returncode == 0
    program = shutil.which("relion_stack_create")
    assert program is not None
    subprocess.run(
        [program, "--i", f"{JOB}noise.star", "--o", "copy"], cwd=project, check=True, capture_output=True
    )
    with StackReader(project / "copy.mrcs") as copy, StackReader(project / JOB / "noise.mrcs") as original:
        assert np.array_equal(copy.read([0, 5]), original.read([0, 5]))
