"""A batch over real projects of RELION 3.1.3 and offline files of cryoSPARC, one of them broken."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml
from relion_project import FAILED, SUCCEEDED, VERSION, nodes_of, processes, relion, rows

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.errors import HostError
from cryohush.core.io.mrc import StackReader, StackWriter
from cryohush.core.jobs.denoise import run_denoise
from cryohush.relion_external import host as relion_batch
from cryohush.relion_external import pipeline
from cryohush.relion_external.cli import main
from cryohush.relion_external.pipeline import LOCK, PIPELINE, Process, read_pipeline, settled_jobs
from cryohush.relion_external.source import RelionSource

pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("warm_workers")

ROOT = Path(__file__).parents[2]
N_PROJECTS, N_IMAGES, BROKEN = 5, 12, 2
of_31 = pytest.mark.skipif(VERSION != 3, reason="the projects of these tests are of RELION 3.1")
LOCAL = {
    "device": "cpu",
    "workers": 2,
    "threads": 1,
    "memory": "2GB",
    "dashboard": None,
    "range_mb": 0.25,
}
SLURM = {
    **LOCAL,
    "kind": "slurm",
    "queue": {"cores": 1, "walltime": "00:10:00", "scheduler_options": {"host": "127.0.0.1"}},
}
PIPELINE_31 = """
# version 30001

data_pipeline_general

_rlnPipeLineJobCounter                       2


# version 30001

data_pipeline_processes

loop_
_rlnPipeLineProcessName #1
_rlnPipeLineProcessAlias #2
_rlnPipeLineProcessType #3
_rlnPipeLineProcessStatus #4
Extract/job001/       None            5            2


# version 30001

data_pipeline_nodes

loop_
_rlnPipeLineNodeName #1
_rlnPipeLineNodeType #2
Extract/job001/particles.star            3


# version 30001

data_pipeline_output_edges

loop_
_rlnPipeLineEdgeProcess #1
_rlnPipeLineEdgeToNode #2
Extract/job001/ Extract/job001/particles.star

"""


def make_project(folder: Path, number: int) -> None:
    """Real particles, other ones in each project, as a finished extraction."""
    job = folder / "Extract" / "job001"
    job.mkdir(parents=True)
    with StackReader(ROOT / "examples" / "data" / "particles.mrcs") as reader:
        images = reader.read((np.arange(N_IMAGES) + 5 * number) % reader.n_images)
    if number == BROKEN:
        images[7, 3, 3] = np.nan
    with StackWriter(job / "particles.mrcs", images.shape, pixel_size_angstrom=1.5, label="") as writer:
        writer.write(images, unchecked=range(N_IMAGES))
    lines = (ROOT / "examples" / "data" / "particles.star").read_text().splitlines(keepends=True)
    particles = [line for line in lines if "@" in line]
    text = "".join(line for line in lines if line not in particles[N_IMAGES:])
    (job / "particles.star").write_text(text.replace("@particles.mrcs", "@Extract/job001/particles.mrcs"))
    (folder / PIPELINE).write_text(PIPELINE_31)


def expected(source: Path, folder: Path, root: Path | None = None) -> bytes:
    options = DenoiseOptions(precision="fp32", batch_size=4, device="cpu", threads=1)
    (stack,) = run_denoise(source, folder, options, root=root).stacks
    return stack.read_bytes()


def write_plan(path: Path, sources: list[dict[str, object]], engine: Mapping[str, object] = LOCAL) -> Path:
    options = {"precision": "fp32", "batch_size": 4}
    values = {
        "output": str(path.parent / "batch"),
        "options": options,
        "sources": sources,
        "engine": dict(engine),
    }
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.relion
@of_31
@pytest.mark.parametrize(
    "engine", [LOCAL, pytest.param(SLURM, marks=pytest.mark.slurm)], ids=["local", "slurm"]
)
def test_several_projects_with_one_broken(
    engine: Mapping[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # RELION looks for the job's program, as it would in a user's shell
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    sources: list[dict[str, object]] = []
    for number in range(N_PROJECTS):
        make_project(tmp_path / f"p{number}", number)
        what = {"newest": "Extract"} if number % 2 else {"particles": "Extract/*/particles.star"}
        sources.append({"name": f"p{number}", "relion": str(tmp_path / f"p{number}"), **what})
    sources[0]["alias"] = "denoised_by_batch"
    # what the user has last typed into the GUI's External form
    form = tmp_path / "p1" / ".gui_externaljob.star"
    form.write_text("the user's own\n")
    for number in range(2):
        folder = tmp_path / f"cs{number}"
        folder.mkdir()
        for suffix in ("cs", "mrc"):
            shutil.copy(ROOT / "tests" / "data" / "io" / f"empiar_10076_7.{suffix}", folder)
        sources.append({"name": f"cs{number}", "file": str(folder / "empiar_10076_7.cs")})
    plan = write_plan(tmp_path / "plan.yaml", sources, engine)

    assert main(["batch", str(plan), "--dry-run"]) == 0
    assert "7 sources, 74 images" in capsys.readouterr().out
    assert not (tmp_path / "batch").exists()

    assert main(["batch", str(plan)]) == 1
    assert "1 of 7 sources failed: p2" in capsys.readouterr().err
    batch_state = json.loads((tmp_path / "batch" / "batch.json").read_text())
    states = {item["name"]: item["state"] for item in batch_state["items"]}
    assert states == {source["name"]: "failed" if source["name"] == "p2" else "done" for source in sources}
    problem = batch_state["items"][BROKEN]["error"]
    for text in ("images 5 to 8", "image 8", "NaN"):
        assert text in problem
    assert main(["batch", "status", str(plan)]) == 0
    assert "1 failed" in capsys.readouterr().out
    page = (tmp_path / "batch" / "batch.html").read_text()
    assert page.count("<img ") == 6

    job = "External/job002/"
    for number in range(N_PROJECTS):
        project = tmp_path / f"p{number}"
        if number == BROKEN:
            assert processes(project)[job] == FAILED
            assert "NaN" in (project / job / "run.err").read_text()
            continue
        assert processes(project)[job] == SUCCEEDED
        assert nodes_of(project)[f"{job}particles.star"] == "3"
        assert [f"{job}particles.star"] == [
            name for edge, name in rows(project, "output_edges") if edge == job and name.endswith("star")
        ]
        assert ["Extract/job001/particles.star", job] in rows(project, "input_edges")
        done = expected(project / "Extract/job001/particles.star", tmp_path / f"whole{number}", project)
        assert (project / job / "Extract/job001/particles.mrcs").read_bytes() == done
    assert rows(tmp_path / "p0", "processes")[-1][1] == "External/denoised_by_batch/"
    whole = expected(tmp_path / "cs0" / "empiar_10076_7.cs", tmp_path / "whole_cs")
    for number in range(2):
        assert (tmp_path / "batch" / f"cs{number}" / "empiar_10076_7.mrcs").read_bytes() == whole

    # the project's folder is as tidy as before, and the GUI's form is not the batch's
    left = {path.name for path in (tmp_path / "p0").iterdir()}
    assert not {name for name in left if name.startswith(("pipeline_cryohush", ".gui_external"))}
    assert form.read_text() == "the user's own\n"
    assert (tmp_path / "p0" / job / "pipeline_cryohush_job002.log").stat().st_size > 0

    # repaired, and tried again in the same job
    table = tmp_path / f"p{BROKEN}" / "Extract" / "job001"
    with StackReader(table / "particles.mrcs") as reader:
        images = np.nan_to_num(reader.read(range(N_IMAGES)))
    with StackWriter(table / "particles.mrcs", images.shape, pixel_size_angstrom=1.5, label="") as writer:
        writer.write(images)
    assert main(["batch", "retry-failed", str(plan)]) == 0
    assert processes(tmp_path / f"p{BROKEN}")[job] == SUCCEEDED
    assert main(["batch", "resume", str(plan)]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.relion
@of_31
def test_without_relion_the_job_is_written_and_relion_takes_it_in_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_project(tmp_path / "p", 0)
    plan = write_plan(tmp_path / "plan.yaml", [{"relion": str(tmp_path / "p"), "newest": "Extract"}])
    monkeypatch.setattr(relion_batch, "PIPELINER", "no_such_program")
    assert main(["batch", str(plan)]) == 0
    job = "External/job002/"
    assert processes(tmp_path / "p")[job] == "0"
    relion(tmp_path / "p", "relion_pipeliner", "--check_job_completion")
    assert processes(tmp_path / "p")[job] == SUCCEEDED
    assert nodes_of(tmp_path / "p")[f"{job}particles.star"] == "3"
    assert ["Extract/job001/particles.star", job] in rows(tmp_path / "p", "input_edges")
    # RELION reads its form: a copy of the job has the same command
    relion(tmp_path / "p", "relion_pipeliner", "--addJobFromStar", f"{job}job.star")
    assert processes(tmp_path / "p")["External/job003/"] == "1"


def make_micrographs(folder: Path) -> None:
    """Empty micrographs as a finished CTF estimation, and a table of others."""
    job = folder / "CtfFind" / "job001"
    job.mkdir(parents=True)
    for table, first in (("micrographs_ctf", 1), ("twin", 3)):
        rows = ""
        for seed in (first, first + 1):
            image = np.random.default_rng(seed).normal(50, 4, (1, 320, 320)).astype(np.float32)
            with StackWriter(job / f"m{seed}.mrc", image.shape, pixel_size_angstrom=1.5, label="") as writer:
                writer.write(image)
            rows += f"CtfFind/job001/m{seed}.mrc 1\n"
        (job / f"{table}.star").write_text(
            "\n# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n"
            "_rlnVoltage #3\n_rlnSphericalAberration #4\n_rlnAmplitudeContrast #5\n1 1.500000 300.0 2.7 0.1\n"
            "\n\n# version 30001\n\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n"
            f"_rlnOpticsGroup #2\n{rows}\n"
        )
    pipeline = PIPELINE_31.replace("None            5", "None            2").replace(
        "star            3", "star 1"
    )
    pipeline = pipeline.replace("Extract", "CtfFind").replace("particles.star", "micrographs_ctf.star")
    (folder / PIPELINE).write_text(pipeline)


@pytest.mark.relion
@of_31
@pytest.mark.parametrize("pipeliner", ["relion_pipeliner", "no_such_program"])
def test_noise_and_an_evaluation_are_jobs_of_the_project(
    pipeliner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(relion_batch, "PIPELINER", pipeliner)
    project, table = tmp_path / "p", "CtfFind/job001/micrographs_ctf.star"
    make_micrographs(project)
    of_both = {"relion": str(project), "newest": "CtfFind"}
    noise = {"job": "extract-noise", "alias": "noise", "options": {"window_px": 64, "min_background": 0.5}}
    # a path in the project; of other micrographs, which only their order brings together
    options = {"twin": "CtfFind/job001/twin.star", "pair_by_order": True}
    quality = {"job": "evaluate", "alias": "quality", "options": options}
    sources: list[dict[str, object]] = [
        {"name": "n", **of_both, **noise},
        {"name": "q", **of_both, **quality},
    ]
    assert main(["batch", str(write_plan(tmp_path / "plan.yaml", sources))]) == 0
    if pipeliner != "relion_pipeliner":
        relion(project, "relion_pipeliner", "--check_job_completion")
    names = {row[1]: row[0] for row in rows(project, "processes")}
    nodes, edges = nodes_of(project), rows(project, "output_edges")
    for alias, outputs in (
        ("noise", {"noise.star": "3", "logfile.pdf": "13"}),
        ("quality", {"logfile.pdf": "13"}),
    ):
        job = names[f"External/{alias}/"]
        assert processes(project)[job] == SUCCEEDED
        assert (project / "External" / alias).resolve() == project / job
        assert [table, job] in rows(project, "input_edges")
        assert {node for edge, node in edges if edge == job} == {f"{job}{name}" for name in outputs}
        assert {name: nodes[f"{job}{name}"] for name in outputs} == outputs
        assert (project / job / "logfile.pdf").stat().st_size > 1000
    with StackReader(project / names["External/noise/"] / "noise.mrcs") as reader:
        assert reader.n_images > 20
    # the blocks are named from the project, so RELION finds them
    relion(project, "relion_stack_create", "--i", f"{names['External/noise/']}noise.star", "--o", "copy")
    assert json.loads((project / "External/quality/evaluation.json").read_text())["against_twin"]


@pytest.mark.relion
@of_31
def test_a_job_that_somebody_else_adds_at_the_same_moment_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, program = tmp_path / "p", tmp_path / "pipeliner"
    make_project(project, 0)
    other = "--addJob External --addJobOptions 'fn_exe == other;in_part == Extract/job001/particles.star'"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --addJob ] && relion_pipeliner {other}\nexec relion_pipeliner "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(relion_batch, "PIPELINER", str(program))
    sources: list[dict[str, object]] = [{"name": "a", "relion": str(project), "newest": "Extract"}]
    assert main(["batch", str(write_plan(tmp_path / "plan.yaml", sources))]) == 0
    assert list(processes(project).items())[1:] == [
        ("External/job002/", "1"),
        ("External/job003/", SUCCEEDED),
    ]
    assert not (project / "External/job002/particles.star").exists()


PIPELINE_4 = PIPELINE_31.replace("_rlnPipeLineProcessType #3", "_rlnPipeLineProcessTypeLabel #3")
PIPELINE_5 = PIPELINE_4.replace("# version 30001", "# version 50001")


def write_pipeliner(folder: Path, version: str) -> Path:
    """Write a `relion_pipeliner` that tells its version, and fails a test that lets it do anything else."""
    folder.mkdir()
    program = folder / "relion_pipeliner"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || {{ touch {folder}/used; exit 1; }}\n'
        f'echo "RELION version: {version}"\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("pipeline", "version", "is_refused"),
    [
        (PIPELINE_31, "3.1.3 ", False),
        (PIPELINE_31, "4.0.2-commit-abc123 ", True),
        (PIPELINE_4, "4.0.1", False),
        (PIPELINE_4, "5.0.1", True),
        (PIPELINE_5, "3.1.3", True),
        (PIPELINE_5, "5.0.1-commit-d476e6", False),
    ],
)
def test_a_pipeliner_of_another_relion_is_refused_before_anything_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str, version: str, is_refused: bool
) -> None:
    make_project(tmp_path / "p", 0)
    (tmp_path / "p" / PIPELINE).write_text(pipeline)
    before = {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()}
    program = write_pipeliner(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    host = relion_batch.RelionProjects(tmp_path / "batch", "command")
    relion_batch._installed_version.cache_clear()
    (item,) = host.find(
        RelionSource(name="s", relion=tmp_path / "p", particles="Extract/job001/particles.star")
    )
    if is_refused:
        with pytest.raises(HostError, match=r"expected the relion_pipeliner of RELION \S+, .* found that of"):
            host.check(item)
    else:
        host.check(item)
    assert {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()} == before
    assert not (program.parent / "used").exists()


def test_the_jobs_are_read_while_nobody_writes_them(tmp_path: Path) -> None:
    make_project(tmp_path, 0)
    path, lock = tmp_path / PIPELINE, tmp_path / LOCK
    whole = path.read_text()
    lock.mkdir()
    path.write_text(whole[: whole.index("_rlnPipeLineProcessName")])  # as RELION leaves it for a moment

    def end() -> None:
        path.write_text(whole)
        lock.rmdir()

    writer = threading.Timer(0.3, end)
    writer.start()
    assert settled_jobs(tmp_path) == {"Extract/job001/"}
    writer.join()
    assert not lock.exists()


@pytest.mark.parametrize("is_locked", [True, False])
def test_the_pipeline_is_read_whole_though_it_is_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_locked: bool
) -> None:
    make_project(tmp_path, 0)
    path, lock = tmp_path / PIPELINE, tmp_path / LOCK
    whole, read = path.read_text(), Path.read_text
    path.write_text(whole[: whole.index("_rlnPipeLineProcessName")])
    if is_locked:
        lock.mkdir()

    def end(*_: object) -> None:
        path.write_text(whole)
        if is_locked:
            lock.rmdir()

    def read_and_end(file: Path) -> str:  # RELION had begun before, and ends before the lock is looked for
        text = read(file)
        if text != whole:
            end()
        return text

    if is_locked:
        monkeypatch.setattr(time, "sleep", end)
    else:
        monkeypatch.setattr(Path, "read_text", read_and_end)
        monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert pipeline.processes(read_pipeline(tmp_path)) == [Process("Extract/job001/", True)]


def test_a_lock_that_was_left_hides_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SETTLING_SECONDS", 0.0)
    make_project(tmp_path, 0)
    (tmp_path / LOCK).mkdir()
    assert pipeline.processes(read_pipeline(tmp_path)) == [Process("Extract/job001/", True)]


def test_a_locked_or_busy_project_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_project(tmp_path / "locked", 0)
    make_project(tmp_path / "busy", 1)
    make_project(tmp_path / "unfinished", 2)
    (tmp_path / "locked" / ".relion_lock").mkdir()
    (tmp_path / "busy" / "RUNNING_PIPELINER_x").touch()
    pipeline = tmp_path / "unfinished" / PIPELINE
    pipeline.write_text(pipeline.read_text().replace("None            5            2", "None 5 0"))
    names = ("locked", "busy", "unfinished", "absent")
    sources: list[dict[str, object]] = [
        {"name": name, "relion": str(tmp_path / name), "particles": "Extract/job001/particles.star"}
        for name in names
    ]
    assert main(["batch", str(write_plan(tmp_path / "plan.yaml", sources))]) == 1
    message = capsys.readouterr().err
    for name, problem in zip(
        names, ("pipeline is locked", "scheduled jobs", "has not finished", PIPELINE), strict=True
    ):
        assert any(f"{name}: " in part and problem in part for part in message.split("; ")), message
    assert not (tmp_path / "batch" / "batch.json").exists()
