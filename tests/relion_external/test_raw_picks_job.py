"""Picks on denoised micrographs get the raw ones' names, and nothing else changes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import warm

from cryohush.relion_external.markers import EXIT_FAILURE, EXIT_SUCCESS
from cryohush.relion_external.project import OUTPUT_NODES

JOB, PICKS = "External/job009/", "AutoPick/job006/autopick.star"
RUN = "import sys; from cryohush.relion_external.cli import main; sys.exit(main())"
HEADER = "\n# version 50001\n\ndata_coordinate_files\n\nloop_ \n"
COLUMNS = "_rlnMicrographName #1 \n_rlnMicrographCoordinates #2 \n"


def micrographs(project: Path, job: str, raw_of: dict[str, str], label: str) -> None:
    """Write the table of a job that has denoised micrographs."""
    (project / job).mkdir(parents=True)
    rows = "".join(f"{job}{name} 1 {raw}\n" for name, raw in raw_of.items())
    (project / job / "micrographs.star").write_text(
        "\n# version 50001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n"
        "1 1.5\n\n\n"
        "# version 50001\n\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnOpticsGroup #2\n"
        f"_{label} #3\n{rows}\n"
    )


@pytest.fixture(params=["rlnCryohushRawMicrographName", "rlnImageOriginalName"])
def project(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A project in which External/job005 has denoised two micrographs, one of them with an awkward name."""
    raw_of = {"Movies/a.mrc": "MotionCorr/job002/Movies/a.mrc", "b.mrc": "Import/job001/deep/b.mrc"}
    micrographs(tmp_path, "External/job005/", raw_of, request.param)
    (tmp_path / PICKS).parent.mkdir(parents=True)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(RUN, "raw-picks", "--o", JOB, *arguments, folder=project)


def test_only_the_names_of_denoised_micrographs_change(project: Path) -> None:
    text = (
        f"{HEADER}{COLUMNS}External/job005/Movies/a.mrc AutoPick/job006/Movies/a_autopick.star \n"
        "External/job005/b.mrc   AutoPick/job006/b_autopick.star \n"
        "MotionCorr/job002/Movies/c.mrc AutoPick/job006/Movies/c_autopick.star \n \n"
    )
    (project / PICKS).write_text(text)
    result = run(project, "--in_coords", PICKS, "--j", "1", "--pipeline_control", JOB)
    assert (result.stderr, result.returncode) == ("", 0)
    assert (project / JOB / EXIT_SUCCESS).exists()
    expected = text.replace("External/job005/b.mrc", "Import/job001/deep/b.mrc")
    expected = expected.replace("External/job005/", "MotionCorr/job002/")
    assert (project / JOB / "raw_picks.star").read_text() == expected
    assert f"2 of 3 micrographs in {JOB}raw_picks.star are the raw ones now" in result.stdout


@pytest.mark.parametrize(
    ("row", "label"),
    [
        (f"{PICKS} MicrographsCoords.star.relion.autopick.log", "MicrographsCoords.star.relion"),
        (f"{PICKS} MicrographCoordsGroup.star.relion.autopick.log 1", "MicrographCoordsGroup.star.relion"),
    ],
)
def test_the_next_job_is_offered_the_list_under_the_name_of_its_relion(
    project: Path, row: str, label: str
) -> None:
    (project / PICKS).write_text(f"{HEADER}{COLUMNS}External/job005/b.mrc b.star \n")
    (project / JOB).mkdir(parents=True)
    (project / JOB / "job_pipeline.star").write_text(f"data_pipeline_nodes\n\nloop_\n_a #1\n_b #2\n{row}\n\n")
    assert run(project, "--in_coords", PICKS).returncode == 0
    assert f"{JOB}raw_picks.star {label}\n" in (project / JOB / OUTPUT_NODES).read_text()


def test_micrographs_that_were_denoised_twice_go_back_to_the_raw_ones(project: Path) -> None:
    again = {"External/job005/b.mrc": "External/job005/b.mrc"}
    micrographs(project, "External/job007/", again, "rlnImageOriginalName")
    (project / PICKS).write_text(f"{HEADER}{COLUMNS}External/job007/External/job005/b.mrc b.star \n")
    assert run(project, "--in_coords", PICKS).returncode == 0
    assert "Import/job001/deep/b.mrc b.star" in (project / JOB / "raw_picks.star").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}{COLUMNS}MotionCorr/job002/a.mrc a.star \n", "found 1 micrographs none of which is one"),
        (
            f"{HEADER}{COLUMNS}External/job008/a.mrc a.star \n",
            "External/job008/micrographs.star: the table of",
        ),
        (f"{HEADER}_rlnCoordinateX #1 \n_rlnCoordinateY #2 \n1 2 \n", "found none"),
        ("", "this is not a STAR file, or it is empty"),
    ],
)
def test_a_list_that_cannot_be_brought_back_is_refused(project: Path, text: str, message: str) -> None:
    (project / PICKS).write_text(text)
    result = run(project, "--in_coords", PICKS)
    assert result.returncode == 1
    assert message in result.stderr
    assert (project / JOB / EXIT_FAILURE).exists()
    assert not (project / JOB / "raw_picks.star").exists()


def test_without_coordinates_the_field_of_the_form_is_named(project: Path) -> None:
    assert "Fill in the field 'Input coordinates'" in run(project).stderr
