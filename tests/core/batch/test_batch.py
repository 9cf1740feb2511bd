"""A whole batch by its command line: refused for a reason, or finished, whoever is killed on the way."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import yaml
from particle_files import noise, write_stack, write_table

from cryohush.core.batch.state import LOCK_NAME
from cryohush.core.cli import main
from cryohush.core.config.batch import BatchPlan
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.load import load_yaml
from cryohush.core.jobs.denoise import run_denoise

pytest.importorskip("distributed")

EXAMPLES = Path(__file__).parents[3] / "examples" / "data"
ENGINE = {"device": "cpu", "workers": 2, "threads": 1, "memory": "2GB", "dashboard": None}


@pytest.fixture
def plan(tmp_path: Path, weights: Path) -> dict[str, Any]:
    """A sound plan over two tables."""
    for name in ("one", "two"):
        write_stack(tmp_path / name / "x.mrcs", noise(6, 16, 16))
        write_table(tmp_path / name / "particles.star", [f"{i + 1:06d}@x.mrcs" for i in range(6)])
    return {
        "output": str(tmp_path / "batch"),
        "options": {"model": str(weights), "precision": "fp32", "batch_size": 4},
        "sources": [
            {"name": name, "file": str(tmp_path / name / "particles.star")} for name in ("one", "two")
        ],
        "engine": ENGINE,
    }


def write(tmp_path: Path, plan: dict[str, Any]) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return str(path)


def changed(plan: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """Return the plan with one entry set: `sources.0.file`."""
    copy = json.loads(json.dumps(plan))
    *sections, last = (int(key) if key.isdigit() else key for key in where.split("."))
    entry = copy
    for section in sections:
        entry = entry[section]
    entry[last] = value
    return dict(copy)


def test_the_example_is_a_plan() -> None:
    plan = load_yaml(EXAMPLES.parent / "batch" / "plan.yaml", BatchPlan)
    hosts = [source.host for source in plan.sources]
    jobs = [plan.job_of(number) for number in range(len(hosts))]
    assert hosts == ["relion", "relion", "relion", "file", "relion", "file"]
    assert jobs == ["denoise"] * 4 + ["extract-noise", "evaluate"]
    for number in range(len(hosts)):
        plan.options_of(number)
    options = plan.options_of(1)
    assert isinstance(options, DenoiseOptions)
    assert options.blend == 0.2


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("sourcess", [], "did you mean 'sources'"),
        ("sources.0.files", "x", "did you mean 'file'"),
        ("sources.0.name", "..", "name: string should match"),
        ("sources.0.name", ".", "name: string should match"),
        ("sources.0.relion", "x", "exactly one of file, cryosparc, relion"),
        ("sources.0.alias", "name", "alias: not for a source of the kind file"),
        ("options.device", "cpu", "give engine.device"),
        ("sources.1.options", {"blend": 2}, "blend"),
        ("sources.1.options", {"threads": 2}, "give engine.threads"),
        ("engine.kind", "slurm_", "engine.kind"),
        ("engine.queue", {"queue": "gpu"}, "queue belongs to kind: slurm"),
        ("engine.memory", "much", "memory"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(
    tmp_path: Path,
    plan: dict[str, Any],
    where: str,
    value: Any,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["batch", write(tmp_path, changed(plan, where, value))]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "batch" / "batch.json").exists()


@pytest.mark.parametrize(
    ("where", "value", "messages"),
    [
        ("sources.1.file", "/no/such.star", ["two: /no/such.star: no such file"]),
        ("sources.1.options", {"model": "none_such"}, ["two: unknown model"]),
        ("sources.1.file", "{tmp}/one/particles.star", ["two: overlaps with one: both read"]),
        ("sources.1.output", "{tmp}/batch/one", ["two: overlaps with one: both write"]),
        ("sources.1.output", "{tmp}/one/x.mrcs", ["two: ", "is no folder that you may write to"]),
        ("sources.1.output", "{tmp}/one", ["one is not empty"]),
        ("sources.1.name", "one", ["two sources have this name"]),
        ("sources.1", {"relion": "/project", "newest": "Extract"}, ["relion_cryohush batch"]),
    ],
)
def test_what_can_be_known_before_is_told_before(
    tmp_path: Path,
    plan: dict[str, Any],
    where: str,
    value: Any,
    messages: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    value = json.loads(json.dumps(value).replace("{tmp}", str(tmp_path)))
    assert main(["batch", write(tmp_path, changed(plan, where, value))]) == 1
    error = capsys.readouterr().err
    assert "nothing was run" in error
    for message in messages:
        assert message in error
    assert not (tmp_path / "batch" / "batch.json").exists()


def test_all_sources_on_a_disk_must_fit_on_it(
    tmp_path: Path, plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    # one of them is 6 x 16 x 16 x 4 = 6144 bytes and its table
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6, 10_000))
    assert main(["batch", write(tmp_path, plan)]) == 1
    assert "the disk is too full" in capsys.readouterr().err


def test_an_unreachable_cluster_is_told(
    tmp_path: Path, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plan["engine"] = {"kind": "scheduler", "address": "tcp://127.0.0.1:9", "start_timeout_seconds": 1}
    assert main(["batch", write(tmp_path, plan)]) == 1
    assert "the cluster (scheduler, tcp://127.0.0.1:9) cannot be reached" in capsys.readouterr().err


def test_a_second_batch_on_the_same_plan_is_refused(
    tmp_path: Path, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "batch").mkdir()
    with (tmp_path / "batch" / LOCK_NAME).open("w") as other:
        other.write("process 1 on elsewhere")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        assert main(["batch", write(tmp_path, plan)]) == 1
    assert "running already (process 1 on elsewhere)" in capsys.readouterr().err


def test_a_dry_run_says_what_would_run_and_writes_nothing(
    tmp_path: Path, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["batch", write(tmp_path, plan), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "2 sources, 12 images" in said
    assert not (tmp_path / "batch").exists()
    assert main(["batch", "status", write(tmp_path, plan)]) == 1


# `cryohush`, whose batch stands still when ten ranges at least are done: the last two are under way.
FREEZES = """
import os, signal, sys
from cryohush.core import cli
from cryohush.core.batch import retry
from cryohush.core.batch.workers import Pool
submit, sent = Pool.submit, []
def counted(self, key, function, *arguments):
    future = submit(self, key, function, *arguments)
    if function is retry._do:
        sent.append(key)
    if len(sent) == 12:
        os.kill(os.getpid(), signal.SIGSTOP)
    return future
Pool.submit = counted
sys.exit(cli.main())
"""


def test_a_killed_driver_is_resumed_and_the_stacks_are_those_of_an_undisturbed_run(
    tmp_path: Path, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Real particles in 42 small ranges; the driver gets SIGKILL in the middle of a source."""
    names = ("a", "b", "c")
    for name in names:
        (tmp_path / name).mkdir()
        for file in ("particles.mrcs", "particles.star"):
            shutil.copy(EXAMPLES / file, tmp_path / name)
    plan["sources"] = [{"name": name, "file": str(tmp_path / name / "particles.star")} for name in names]
    plan["engine"] = {**ENGINE, "range_mb": 0.25}
    path, batch_state = write(tmp_path, plan), tmp_path / "batch" / "batch.json"
    driver = subprocess.Popen([sys.executable, "-c", FREEZES, "batch", path], stdout=subprocess.DEVNULL)
    _, status = os.waitpid(driver.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert main(["batch", "status", path]) == 0
    assert "running (process" in capsys.readouterr().out
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    assert main(["batch", "status", path]) == 0
    assert "interrupted" in capsys.readouterr().out
    assert main(["batch", path]) == 1
    assert "holds this batch already" in capsys.readouterr().err

    assert main(["batch", "resume", path]) == 0
    options = DenoiseOptions(**plan["options"], device="cpu", threads=2)
    run_denoise(tmp_path / "a" / "particles.star", tmp_path / "whole", options)
    expected = (tmp_path / "whole" / "particles.mrcs").read_bytes()
    for name in names:
        assert (tmp_path / "batch" / name / "particles.mrcs").read_bytes() == expected
    items = json.loads(batch_state.read_text())["items"]
    assert {item["state"] for item in items} == {"done"}
    assert any(item["n_done_before"] > 0 for item in items)
