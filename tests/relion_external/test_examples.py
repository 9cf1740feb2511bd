"""The Scheme and the Schedule that are shipped hold all that RELION wants to find in them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from relion_project import EMPTY_PIPELINE, processes, relion

from cryohush.core.io.star import read_tables, unquote
from cryohush.relion_external.cli import parse

EXAMPLES = Path(__file__).parents[2] / "examples" / "relion"
FLOWS = {
    "5": EXAMPLES / "relion5" / "Schemes" / "denoise",
    "3.1": EXAMPLES / "relion31" / "Schedules" / "denoise",
}
ENTRY = {"5": "scheme", "3.1": "schedule"}
JOBS = ("denoise", "class2d", "revert")

INPUTS = ("3dref", "coords", "mask", "mic", "mov", "part")
QUEUE = ("do_queue", "min_dedicated", "qsub", "qsubscript", "queuename")
EXTERNAL = {
    "fn_exe",
    "nr_threads",
    "other_args",
    *QUEUE,
    *(f"in_{name}" for name in INPUTS),
    *(f"param{number}_{part}" for number in range(1, 11) for part in ("label", "value")),
}
KINDS = {
    "5": {"denoise": "relion.external", "class2d": "relion.class2d", "revert": "relion.subtract"},
    "3.1": {"denoise": "99", "class2d": "8", "revert": "14"},
}


def tables(path: Path) -> dict[str, list[list[str]]]:
    """Return name to rows of the tables of a file; a list is one row per value."""
    found = {}
    for table in read_tables(path):
        rows = [[unquote(token) for token in tokens] for _, _, tokens in table.rows() if tokens]
        found[table.name] = rows or [[name, unquote(value)] for name, value in table.values.items()]
    return found


def options(flow: str, job: str) -> dict[str, str]:
    return dict(tables(FLOWS[flow] / job / "job.star")["joboptions_values"])  # type: ignore[arg-type]


@pytest.mark.parametrize("flow", FLOWS)
def test_the_external_job_has_every_option_of_the_form(flow: str) -> None:
    assert set(options(flow, "denoise")) == EXTERNAL


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("job", JOBS)
def test_each_job_is_of_its_kind_and_starts_new(flow: str, job: str) -> None:
    head = dict(tables(FLOWS[flow] / job / "job.star")["job"])  # type: ignore[arg-type]
    assert head["rlnJobTypeLabel" if flow == "5" else "rlnJobType"] == KINDS[flow][job]
    assert head["rlnJobIsContinue"] == "0"


@pytest.mark.parametrize("flow", FLOWS)
def test_the_jobs_follow_each_other_by_constant_names(flow: str) -> None:
    folder = f"{FLOWS[flow].parent.name}/denoise"
    assert options(flow, "class2d")["fn_img"] == f"{folder}/denoise/particles.star"
    revert, classify = options(flow, "revert"), options(flow, "class2d")
    iterations = int(classify["nr_iter_grad" if flow == "5" else "nr_iter"])
    assert revert["fn_fliplabel"] == f"{folder}/class2d/run_it{iterations:03d}_data.star"
    assert revert["do_fliplabel"] == "Yes"
    assert flow == "3.1" or (classify["do_grad"], classify["do_em"]) == ("Yes", "No")


@pytest.mark.parametrize("flow", FLOWS)
def test_every_variable_that_a_job_names_exists(flow: str) -> None:
    path = FLOWS[flow] / f"{ENTRY[flow]}.star"
    content = tables(path)
    variables = {row[0] for kind in ("floats", "strings") for row in content[f"{ENTRY[flow]}_{kind}"]}
    used = {v.removeprefix("$$") for job in JOBS for v in options(flow, job).values() if v.startswith("$$")}
    assert used == variables == {"particles", "model", "nr_classes", "particle_diameter"}


@pytest.mark.parametrize("flow", FLOWS)
def test_the_jobs_run_in_order_and_then_the_flow_ends(flow: str) -> None:
    name = ENTRY[flow]
    content = tables(FLOWS[flow] / f"{name}.star")
    general = [value for _, value in content[f"{name}_general"]]
    assert general == [f"{FLOWS[flow].parent.name}/denoise/", "denoise"]
    assert [row[:2] for row in content[f"{name}_edges"]] == [
        ["denoise", "class2d"],
        ["class2d", "revert"],
        ["revert", "EXIT"],
    ]
    assert [row[:2] for row in content[f"{name}_operators"]] == [["EXIT", "exit"]]
    assert {tuple(row) for row in content[f"{name}_jobs"]} == {(job, job, "new", "0") for job in JOBS}


@pytest.mark.parametrize("flow", FLOWS)
def test_no_value_needs_what_relion_cannot_read_back(flow: str) -> None:
    for job in JOBS:
        assert not any('"' in value for value in options(flow, job).values())


FORMS = sorted(EXAMPLES.glob("*/jobs/*/job.star"))
FIELD = {
    "denoise_particles": "in_part",
    "train": "in_part",
    "evaluate": "in_part",
    "denoise_micrographs": "in_mic",
    "extract_noise": "in_mic",
    "raw_picks": "in_coords",
}


def form(path: Path) -> dict[str, str]:
    return dict(tables(path)["joboptions_values"])  # type: ignore[arg-type]


def test_there_is_a_form_for_each_command_and_relion() -> None:
    assert {path.parent.name for path in FORMS if "relion4" in path.parts} == set(FIELD)
    # in 3.1 picks need no way back
    assert {path.parent.name for path in FORMS if "relion31" in path.parts} == set(FIELD) - {"raw_picks"}


@pytest.mark.parametrize("path", FORMS, ids=lambda path: f"{path.parts[-4]}-{path.parent.name}")
def test_a_form_holds_what_relion_asks_and_parameters_that_the_command_knows(path: Path) -> None:
    values = form(path)
    assert set(values) == EXTERNAL
    head = dict(tables(path)["job"])  # type: ignore[arg-type]
    assert head.get("rlnJobType" if "relion31" in path.parts else "rlnJobTypeLabel") in (
        "99",
        "relion.external",
    )
    words = values["fn_exe"].split()
    assert words[0] == "relion_cryohush"
    given = [
        f"--{values[f'param{number}_label']}={values[f'param{number}_value']}"
        for number in range(1, 11)
        if values[f"param{number}_label"]
    ]
    parse([*words[1:], "--o", "External/job001/", *given])


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="needs RELION 3.1 (Debian: relion)")
def test_relion_takes_each_form_with_its_input(tmp_path: Path) -> None:
    (tmp_path / "default_pipeline.star").write_text(EMPTY_PIPELINE)
    for path in (path for path in FORMS if "relion31" in path.parts):
        before = set(processes(tmp_path))
        option = f"{FIELD[path.parent.name]} == Some/job001/table.star"
        relion(tmp_path, "relion_pipeliner", "--addJobFromStar", str(path), "--addJobOptions", option)
        (name,) = set(processes(tmp_path)) - before
        # added as a job that is to be run
        assert processes(tmp_path)[name] == "1"
        kept = form(tmp_path / name / "job.star")
        assert kept == {**form(path), FIELD[path.parent.name]: "Some/job001/table.star"}
