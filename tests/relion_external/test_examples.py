"""The Scheme and the Schedule that are shipped hold all that RELION wants to find in them."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
from relion_project import EMPTY_PIPELINE, SCHEDULED, VERSION, processes, relion

from cryohush.core.io.star import read_tables, unquote
from cryohush.relion_external.cli import parse
from cryohush.relion_external.raw_picks import TABLE_NAME

EXAMPLES = Path(__file__).parents[2] / "examples" / "relion"
FLOWS = {
    "5": EXAMPLES / "relion5" / "Schemes" / "session",
    "3.1": EXAMPLES / "relion31" / "Schedules" / "session",
}
ENTRY = {"5": "scheme", "3.1": "schedule"}
# In 3.1 picks on denoised micrographs need no way back.
JOBS = {"5": ("denoise", "pick", "raw_picks", "extract"), "3.1": ("denoise", "pick", "extract")}

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
    "5": ("relion.external", "relion.autopick", "relion.external", "relion.extract"),
    "3.1": ("99", "4", "5"),
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
def test_the_external_jobs_have_every_option_of_the_form(flow: str) -> None:
    for job, kind in zip(JOBS[flow], KINDS[flow], strict=True):
        if kind in ("99", "relion.external"):
            assert set(options(flow, job)) == EXTERNAL


@pytest.mark.parametrize("flow", FLOWS)
def test_each_job_is_of_its_kind_and_starts_new(flow: str) -> None:
    for job, kind in zip(JOBS[flow], KINDS[flow], strict=True):
        head = dict(tables(FLOWS[flow] / job / "job.star")["job"])  # type: ignore[arg-type]
        assert head["rlnJobTypeLabel" if flow == "5" else "rlnJobType"] == kind
        assert head["rlnJobIsContinue"] == "0"


@pytest.mark.parametrize("flow", FLOWS)
def test_picking_gets_the_denoised_micrographs_and_extraction_the_raw_ones(flow: str) -> None:
    folder = f"{FLOWS[flow].parent.name}/session"
    assert options(flow, "denoise")["in_mic"] == options(flow, "extract")["star_mics"] == "$$micrographs"
    assert options(flow, "pick")["fn_input_autopick"] == f"{folder}/denoise/micrographs.star"
    if flow == "5":
        assert options(flow, "raw_picks")["in_coords"] == f"{folder}/pick/autopick.star"
        assert options(flow, "extract")["coords_suffix"] == f"{folder}/raw_picks/{TABLE_NAME}"
    else:
        assert options(flow, "extract")["coords_suffix"] == f"{folder}/pick/coords_suffix_autopick.star"


@pytest.mark.parametrize("flow", FLOWS)
def test_every_variable_that_a_job_or_an_operator_names_exists(flow: str) -> None:
    name = ENTRY[flow]
    content = tables(FLOWS[flow] / f"{name}.star")
    variables = {row[0] for kind in ("floats", "bools", "strings") for row in content[f"{name}_{kind}"]}
    used = {
        value.removeprefix("$$")
        for job in JOBS[flow]
        for value in options(flow, job).values()
        if value.startswith("$$")
    }
    named = {word for row in content[f"{name}_operators"] for word in row[2:] if word != "undefined"}
    assert used | named == variables
    assert used == {"micrographs", "model", "diameter_min", "diameter_max", "box_px"}


@pytest.mark.parametrize("flow", FLOWS)
def test_each_round_goes_through_all_jobs_and_ends_where_it_was_asked_to(flow: str) -> None:
    name = ENTRY[flow]
    content = tables(FLOWS[flow] / f"{name}.star")
    general = [value for _, value in content[f"{name}_general"]]
    assert general == [f"{FLOWS[flow].parent.name}/session/", "WAIT"]
    operators = {row[0]: row for row in content[f"{name}_operators"]}
    # a job that is not gone on with would be made anew in each round
    assert {tuple(row) for row in content[f"{name}_jobs"]} == {
        (job, job, "continue", "0") for job in JOBS[flow]
    }
    edges = {row[0]: row[1:] for row in content[f"{name}_edges"]}

    def visited(**true: bool) -> list[str]:
        """Return the nodes of a round, given the truth of the booleans."""
        nodes = ["WAIT"]
        while len(nodes) < 30:
            following, is_fork, if_true, boolean = edges[nodes[-1]]
            nodes.append(if_true if is_fork == "1" and true[boolean] else following)
            if nodes[-1] in ("WAIT", "EXIT"):
                return nodes
        return nodes

    assert set(edges) | {"EXIT"} == {*operators, *JOBS[flow]}
    asked, work = ["HAS_ENDED", "HAS_TABLE"], ["REMEMBER", *JOBS[flow]]
    first = ["WAIT", "EXIT_maxtime", *asked] if flow == "5" else ["WAIT", *asked]
    count = ["COUNT", "HAS_MORE"]
    for table, more, ended in itertools.product((False, True), repeat=3):
        wanted = [*first, *(count if table else []), *(work if table and more else []), "AGAIN"]
        wanted.append("EXIT" if ended else "WAIT")
        assert visited(has_table=table, has_more=more, has_ended=ended) == wanted


def test_in_31_the_input_that_a_job_made_comes_first() -> None:
    """RELION 3.1.3 leaves the names of a job's inputs as they are behind the first that no job has made."""
    edges = tables(FLOWS["3.1"] / "schedule_pipeline.star")["pipeline_input_edges"]
    inputs = [source for source, job in edges if job.endswith("/extract/")]
    assert inputs == ["Schedules/session/pick/coords_suffix_autopick.star", "$$micrographs"]


@pytest.mark.parametrize("flow", FLOWS)
def test_no_value_needs_what_relion_cannot_read_back(flow: str) -> None:
    for job in JOBS[flow]:
        assert not any('"' in value for value in options(flow, job).values())


FORMS = sorted(EXAMPLES.glob("*/jobs/*/job.star"))
FIELD = {
    "denoise_particles": "in_part",
    "train": "in_part",
    "evaluate": "in_part",
    "denoise_micrographs": "in_mic",
    "extract_noise": "in_mic",
    "raw_picks": "in_coords",
    "train_half_frames": "in_mic",
}
# RELION 3.1 finds picks on denoised micrographs by itself, and writes no sums of even and odd frames.
NOT_IN_31 = {"raw_picks", "train_half_frames"}


def form(path: Path) -> dict[str, str]:
    return dict(tables(path)["joboptions_values"])  # type: ignore[arg-type]


def test_there_is_a_form_for_each_command_and_relion() -> None:
    assert {path.parent.name for path in FORMS if "relion4" in path.parts} == set(FIELD)
    assert {path.parent.name for path in FORMS if "relion31" in path.parts} == set(FIELD) - NOT_IN_31


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
@pytest.mark.skipif(shutil.which("relion_pipeliner") is None, reason="needs RELION (Debian: relion)")
def test_relion_takes_each_form_with_its_input(tmp_path: Path) -> None:
    (tmp_path / "default_pipeline.star").write_text(EMPTY_PIPELINE)
    folder = "relion31" if VERSION == 3 else "relion4"
    for path in (path for path in FORMS if folder in path.parts):
        before = set(processes(tmp_path))
        option = f"{FIELD[path.parent.name]} == Some/job001/table.star"
        relion(tmp_path, "relion_pipeliner", "--addJobFromStar", str(path), "--addJobOptions", option)
        (name,) = set(processes(tmp_path)) - before
        # added as a job that is to be run
        assert processes(tmp_path)[name] == SCHEDULED
        kept = form(tmp_path / name / "job.star")
        assert kept == {**form(path), FIELD[path.parent.name]: "Some/job001/table.star"}
