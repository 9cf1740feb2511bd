"""The job in a project of the real RELION, on real particles, without a GUI."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from relion_project import (
    EMPTY_PIPELINE,
    FAILED,
    PARTICLES,
    REPORT,
    SUCCEEDED,
    VERSION,
    nodes_of,
    processes,
    relion,
    rows,
    run_job,
)

from cryohush.core.io.mrc import StackReader

pytestmark = [
    pytest.mark.relion,
    pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="needs RELION (Debian: relion)"),
]

EXAMPLES = Path(__file__).parents[2] / "examples"
RAW = "Extract/job001/particles.mrcs"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that has extracted the example particles, and done nothing else."""
    directory = tmp_path_factory.mktemp("project")
    extract = directory / "Extract" / "job001"
    extract.mkdir(parents=True)
    shutil.copy(EXAMPLES / "data" / "particles.mrcs", extract)
    text = (EXAMPLES / "data" / "particles.star").read_text()
    (extract / "particles.star").write_text(text.replace("@particles.mrcs", f"@{RAW}"))
    (directory / "default_pipeline.star").write_text(EMPTY_PIPELINE)
    return directory


def columns(path: Path, *labels: str) -> list[list[str]]:
    """Return the named columns of the particles of a STAR file."""
    body = path.read_text().partition("data_particles")[2].splitlines()
    names = [line.split()[0] for line in body if line.startswith("_rln")]
    positions = [names.index(f"_{label}") for label in labels]
    return [[line.split()[position] for position in positions] for line in body if "@" in line]


@pytest.fixture(scope="module")
def denoised(project: Path) -> str:
    """The directory of an External job that has run."""
    options = {
        "fn_exe": "relion_cryohush denoise",
        "in_part": "Extract/job001/particles.star",
        "param1_label": "gpu",
        "param2_label": "device",
        "param2_value": "cpu",
        "nr_threads": "1",
    }
    return run_job(project, "External", options)


@pytest.fixture(scope="module")
def classified(project: Path, denoised: str) -> str:
    """The directory of a 2D classification of the denoised particles."""
    options = {
        "fn_img": f"{denoised}particles.star",
        "nr_classes": "2",
        **({"nr_iter": "1"} if VERSION == 3 else {"do_em": "Yes", "do_grad": "No", "nr_iter_em": "1"}),
        "particle_diameter": "150",
        "psi_sampling": "12",
        "offset_range": "3",
        "nr_threads": "1",
    }
    return run_job(project, "Class2D", options)


def test_relion_lists_the_job_as_succeeded_with_its_outputs(project: Path, denoised: str) -> None:
    assert processes(project)[denoised] == SUCCEEDED
    nodes = nodes_of(project)
    assert nodes[f"{denoised}particles.star"] == PARTICLES
    assert nodes[f"{denoised}logfile.pdf"] == REPORT
    assert [denoised, f"{denoised}particles.star"] in rows(project, "output_edges")
    assert (project / denoised / "run.err").read_text() == ""
    assert f"RELION {3.1 if VERSION == 3 else VERSION}" in (project / denoised / "run.out").read_text()


def test_the_denoised_stack_can_be_read_by_relion(project: Path, denoised: str) -> None:
    relion(project, "relion_image_handler", "--i", f"{denoised}{RAW}", "--stats")
    with StackReader(project / denoised / RAW) as written, StackReader(project / RAW) as raw:
        assert written.shape == raw.shape
        # under a tenth of the variance is signal: with half of the noise left it would be over half
        assert written.read(range(56)).var() < 0.4 * raw.read(range(56)).var()


def test_2d_classification_takes_the_denoised_particles(
    project: Path, denoised: str, classified: str
) -> None:
    assert processes(project)[classified] == SUCCEEDED
    assert [f"{denoised}particles.star", classified] in rows(project, "input_edges")
    names = columns(project / classified / "run_it001_data.star", "rlnImageName", "rlnImageOriginalName")
    assert sorted(names) == [[f"{i:06d}@{denoised}{RAW}", f"{i:06d}@{RAW}"] for i in range(1, 57)]


def test_reverting_brings_the_raw_images_back_with_the_classes(project: Path, classified: str) -> None:
    table = f"{classified}run_it001_data.star"
    reverted = run_job(project, "Subtract", {"do_fliplabel": "Yes", "fn_fliplabel": table})
    assert processes(project)[reverted] == SUCCEEDED
    assert f"{reverted}original.star" in nodes_of(project)
    labels = ("rlnClassNumber", "rlnAnglePsi", "rlnOriginXAngst")
    raw = columns(project / reverted / "original.star", "rlnImageName", *labels)
    classes = columns(project / table, "rlnImageOriginalName", *labels)
    assert raw == classes
    assert {name.partition("@")[2] for name, *_ in raw} == {RAW}


def test_an_evaluation_shows_its_report_as_an_output(project: Path, denoised: str) -> None:
    options = {
        "fn_exe": "relion_cryohush evaluate",
        "in_part": f"{denoised}particles.star",
        "param1_label": "raw",
        "param1_value": "Extract/job001/particles.star",
        "nr_threads": "1",
    }
    evaluated = run_job(project, "External", options)
    assert processes(project)[evaluated] == SUCCEEDED
    assert (project / evaluated / "run.err").read_text() == ""
    assert nodes_of(project)[f"{evaluated}logfile.pdf"] == REPORT
    assert [f"{denoised}particles.star", evaluated] in rows(project, "input_edges")
    assert (project / evaluated / "evaluation.html").is_file()
    assert (project / evaluated / "evaluation.json").is_file()


def test_a_job_that_fails_is_shown_as_failed(project: Path) -> None:
    options = {"fn_exe": "relion_cryohush denoise", "in_part": "Extract/job001/particles.star"}
    failed = run_job(project, "External", {**options, "param1_label": "model", "param1_value": "no_such"})
    assert processes(project)[failed] == FAILED
    assert "unknown model 'no_such'" in (project / failed / "run.err").read_text()
