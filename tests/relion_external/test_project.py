"""The output table suits the RELION that started the job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cryohush.relion_external.project import OUTPUT_NODES, Project, write_output_nodes

DATA = Path(__file__).parents[1] / "data"
PARTICLES = "Extract/job007/particles.star"
LABELS = {"3.1": None, "4": "ParticlesData.star.relion", "5": "ParticleGroupMetadata.star.relion"}


def job_of(version: str) -> Path:
    return DATA / f"relion{version.replace('.', '')}" / "External" / "job012"


@pytest.mark.parametrize("version", LABELS)
def test_the_label_is_the_one_of_the_input_node(version: str) -> None:
    assert Project.of_job(job_of(version), PARTICLES) == Project(version, LABELS[version])


@pytest.mark.parametrize("version", LABELS)
def test_an_input_that_is_no_node_leaves_the_job_file(version: str) -> None:
    assert Project.of_job(job_of(version), "elsewhere/particles.star") == Project(version, LABELS[version])


@pytest.mark.parametrize(
    ("version", "node", "label"),
    [
        ("3.1", "1", None),
        ("4", "MicrographsData.star.relion", "MicrographsData.star.relion"),
        ("5", "MicrographGroupMetadata.star.relion.ctf", "MicrographGroupMetadata.star.relion"),
    ],
)
def test_the_label_of_micrographs(tmp_path: Path, version: str, node: str, label: str | None) -> None:
    found = Project(version, label)
    shutil.copy(job_of(version) / "job.star", tmp_path)
    assert Project.of_job(tmp_path, "CtfFind/job003/micrographs_ctf.star", "micrographs") == found
    # the row of the input decides
    (tmp_path / "job.star").unlink()
    (tmp_path / "job_pipeline.star").write_text(f"CtfFind/job003/micrographs_ctf.star {node} 1\n")
    assert Project.of_job(tmp_path, "CtfFind/job003/micrographs_ctf.star", "micrographs") == found


def test_early_betas_of_5_know_the_labels_of_4(tmp_path: Path) -> None:
    shutil.copy(job_of("4") / "job_pipeline.star", tmp_path)
    shutil.copy(job_of("5") / "job.star", tmp_path)
    assert Project.of_job(tmp_path, PARTICLES).label == LABELS["4"]


def test_a_keyword_after_the_general_label_is_left_out(tmp_path: Path) -> None:
    text = (job_of("5") / "job_pipeline.star").read_text()
    (tmp_path / "job_pipeline.star").write_text(text.replace(".star.relion ", ".star.relion.class2d "))
    assert Project.of_job(tmp_path, PARTICLES) == Project("5", LABELS["5"])


def test_another_file_whose_name_ends_alike_is_not_the_input(tmp_path: Path) -> None:
    text = (job_of("4") / "job_pipeline.star").read_text().replace(PARTICLES, f"Other/{PARTICLES}")
    (tmp_path / "job_pipeline.star").write_text(text)
    assert Project.of_job(tmp_path, PARTICLES) == Project(None, None)


def test_a_directory_that_relion_never_saw(tmp_path: Path) -> None:
    assert Project.of_job(tmp_path, PARTICLES) == Project(None, None)


@pytest.mark.parametrize(
    ("project", "rows"),
    [
        (
            Project("3.1", None),
            [
                ["_rlnPipeLineNodeName", "#1"],
                ["_rlnPipeLineNodeType", "#2"],
                ["External/job012/particles.star", "3"],
                ["External/job012/logfile.pdf", "13"],
            ],
        ),
        (
            Project("5", LABELS["5"]),
            [
                ["_rlnPipeLineNodeName", "#1"],
                ["_rlnPipeLineNodeTypeLabel", "#2"],
                ["External/job012/particles.star", "ParticleGroupMetadata.star.relion"],
                ["External/job012/logfile.pdf", "LogFile.pdf.relion"],
            ],
        ),
        (
            Project(None, None),
            [
                ["_rlnPipeLineNodeName", "#1"],
                ["_rlnPipeLineNodeType", "#2"],
                ["_rlnPipeLineNodeTypeLabel", "#3"],
                ["External/job012/particles.star", "3", "ParticleGroupMetadata.star.relion"],
                ["External/job012/logfile.pdf", "13", "LogFile.pdf.relion"],
            ],
        ),
    ],
)
def test_the_table_of_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, project: Project, rows: list[list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    directory = Path("External/job012")
    directory.mkdir(parents=True)
    write_output_nodes(directory, project, table="particles.star", pdf="logfile.pdf")
    lines = (directory / OUTPUT_NODES).read_text().split("\n")
    assert lines[:4] == ["", "data_output_nodes", "", "loop_"]
    assert [line.split() for line in lines[4:] if line] == rows
    assert [path.name for path in directory.iterdir()] == [OUTPUT_NODES]


def test_the_table_of_outputs_of_micrographs(tmp_path: Path) -> None:
    write_output_nodes(
        tmp_path, Project(None, None), table="micrographs.star", pdf="logfile.pdf", kind="micrographs"
    )
    text = (tmp_path / OUTPUT_NODES).read_text()
    assert f"{tmp_path}/micrographs.star 1 MicrographGroupMetadata.star.relion\n" in text


def test_tables_of_parts_are_outputs_of_the_same_kind(tmp_path: Path) -> None:
    parts = ("particles_trusted.star", "particles_suspicious.star")
    write_output_nodes(tmp_path, Project("3.1", None), table="particles.star", pdf=None, parts=parts)
    lines = [line for line in (tmp_path / OUTPUT_NODES).read_text().splitlines() if "/" in line]
    assert lines == [f"{tmp_path}/{name} 3" for name in ("particles.star", *parts)]


def test_a_job_without_images_has_its_report_as_only_output(tmp_path: Path) -> None:
    write_output_nodes(tmp_path, Project("3.1", None), table=None, pdf="logfile.pdf")
    lines = (tmp_path / OUTPUT_NODES).read_text().splitlines()
    assert [line for line in lines if "/" in line] == [f"{tmp_path}/logfile.pdf 13"]
