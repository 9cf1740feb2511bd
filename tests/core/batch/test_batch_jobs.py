"""Batches that extract noise and evaluate: refused for a reason, foretold, done though a source is broken."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from micrograph_files import empty_micrograph, table_of
from particle_files import noise, read_alike, read_stack, write_stack, write_table

from cryohush.core.batch import driver
from cryohush.core.batch.sources import Files
from cryohush.core.batch.state import BatchState, Item
from cryohush.core.cli import main
from cryohush.core.config.batch import BatchPlan
from cryohush.core.config.evaluate import EvaluateConfig
from cryohush.core.errors import Aborted, InputError, OutputError
from cryohush.core.io.journal import JOURNAL_NAME
from cryohush.core.jobs.evaluate import run_evaluate

pytest.importorskip("distributed")
pytestmark = pytest.mark.usefixtures("warm_workers")

ENGINE = {"device": "cpu", "workers": 2, "threads": 1, "memory": "2GB", "dashboard": None}
# the network knows real noise, not white noise: half and half is strict enough here
NOISE = {"window_px": 64, "min_background": 0.5, "precision": "fp32", "max_per_micrograph": 20}


def write_micrographs(folder: Path, *, broken: bool = False) -> Path:
    names = [f"mics/m{number}.mrc" for number in range(3)]
    for seed, name in enumerate(names):
        image = empty_micrograph(seed)
        if broken and seed == 1:
            image[0, 5, 5] = np.nan
        write_stack(folder / name, image, 1.5)
    (folder / "micrographs.star").write_text(table_of(names))
    return folder / "micrographs.star"


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """A sound plan: noise of two sets of micrographs, and an evaluation."""
    clean = noise(12, 32, 32) - noise(12, 32, 32, seed=2)
    for name, share in (("denoised", 0.2), ("raw", 1.0), ("twin", -1.0)):
        images = clean + share * np.random.default_rng(3).normal(0, 3, clean.shape).astype(np.float32)
        write_stack(tmp_path / f"{name}.mrcs", images)
        write_table(tmp_path / f"{name}.star", [f"{i + 1:06d}@{name}.mrcs" for i in range(12)], box_px=32)
    return {
        "job": "extract-noise",
        "output": str(tmp_path / "batch"),
        "options": NOISE,
        "sources": [
            {"name": "good", "file": str(write_micrographs(tmp_path / "good"))},
            {"name": "broken", "file": str(write_micrographs(tmp_path / "broken", broken=True))},
            {
                "name": "quality",
                "file": str(tmp_path / "denoised.star"),
                "job": "evaluate",
                "options": {"raw": str(tmp_path / "raw.star"), "twin": str(tmp_path / "twin.star")},
            },
        ],
        "engine": ENGINE,
    }


def write(tmp_path: Path, plan: dict[str, Any]) -> str:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan))
    return str(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"job": "extract_noise"}, "expected 'denoise', 'extract-noise' or 'evaluate'"),
        ({"options": {"blend": 0.5}}, "sources, number 1: options: unknown key 'blend'"),
        ({"options": {"window": 64}}, "did you mean 'window_px'"),
        ({"options": {"device": "cpu"}}, "give engine.device"),
        ({"source": {"file": "{tmp}/raw.star"}}, "raw.star"),
        ({"source": {"options": {"window_px": 400}}}, "good: the window of 400 px is larger than"),
        ({"source": {"options": {"model": "general"}}}, "a model that denoises, where one that labels"),
        # the plan's options are not those of another job
        ({"source": {"job": "evaluate"}}, "denoised needs something to be compared with"),
        (
            {"quality": {"options": {"window_px": 64, "raw": "x"}}},
            "number 3: options: unknown key",
        ),
        ({"quality": {"options": {"denoised": "x"}}}, "denoised is the source itself"),
        ({"quality": {"options": {"threads": 2}}}, "give engine.threads"),
        ({"quality": {"options": {"raw": "/no/such.star"}}}, "quality: /no/such.star: no such file"),
        ({"quality": {"options": {"twin": "{tmp}/denoised.star"}}}, "compared with itself"),
        ({"quality": {"options": {"raw": "{tmp}/raw.star", "model": "none_such"}}}, "unknown model"),
        ({"quality": {"root": "/"}}, "root and passthrough are not for evaluations"),
    ],
)
def test_options_are_checked_against_those_of_the_job(
    tmp_path: Path,
    plan: dict[str, Any],
    changes: dict[str, Any],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = json.loads(json.dumps(changes).replace("{tmp}", str(tmp_path)))
    plan["sources"][0].update(changes.pop("source", {}))
    plan["sources"][2].update(changes.pop("quality", {}))
    assert main(["batch", write(tmp_path, {**plan, **changes}), "--dry-run"]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "batch").exists()


def test_two_jobs_of_one_source_need_no_names(
    tmp_path: Path, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    source = plan["sources"][0]["file"]
    jobs = [{"file": source}, {"file": source, "job": "denoise", "options": {"precision": "fp32"}}]
    plan["sources"] = jobs
    assert main(["batch", write(tmp_path, plan), "--dry-run"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:3]]
    assert len(set(names)) == 2
    assert names[0].endswith("_extract-noise")
    assert names[1].endswith("_denoise")
    # names that a user gave stay, and one job twice is a mistake
    for wrong in ([{**job, "name": "mine"} for job in jobs], [jobs[0], jobs[0]]):
        assert main(["batch", write(tmp_path, {**plan, "sources": wrong}), "--dry-run"]) == 1
        assert "two sources have this name" in capsys.readouterr().err


def test_a_dry_run_tells_images_bytes_and_time_of_each_job(
    tmp_path: Path, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    del plan["sources"][1]
    assert main(["batch", write(tmp_path, plan), "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["source", "job", "input"]
    # 20 blocks and a label map of each of three micrographs, and one block that is needed at least
    size = (3 * (20 * 64 * 64 * 4 + 320 * 320) + 64 * 64 * 4) / 1e6
    assert lines[1].split()[:2] == ["good", "extract-noise"]
    assert lines[1].split()[3:7] == ["micrographs", "3", f"{size:.1f}", "MB"]
    assert lines[2].split()[:2] == ["quality", "evaluate"]
    assert lines[2].split()[3:5] == ["particles", "12"]
    assert lines[3].startswith("2 sources, 15 images")
    assert not (tmp_path / "batch").exists()


def test_noise_and_figures_of_sound_sources_arrive_though_one_is_broken(
    tmp_path: Path, plan: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, plan)
    assert main(["batch", path]) == 1
    error = capsys.readouterr().err
    assert "1 of 3 sources failed: broken. What is finished is kept: " in error
    assert error.endswith("batch retry-failed goes on from there.\n")
    batch = tmp_path / "batch"
    good, broken, quality = json.loads((batch / "batch.json").read_text())["items"]
    assert [item["state"] for item in (good, broken, quality)] == ["done", "failed", "done"]
    assert "m1.mrc" in broken["error"]
    assert "NaN" in broken["error"]
    assert "or give skip_bad. What" in broken["error"], "a plan has keys, not flags"
    assert len(read_stack(batch / "good" / "noise.mrcs")) == 60
    assert good["key_figures"]["blocks of noise"] == "60 of 64 x 64 px"
    assert Path(good["picture"]).parent == batch / "good" / "overlays" / "mics"
    assert {"logfile.pdf", "noise.star", "cryohush.json"} <= {p.name for p in (batch / "good").iterdir()}

    config = EvaluateConfig(
        denoised=tmp_path / "denoised.star", raw=tmp_path / "raw.star", twin=tmp_path / "twin.star", threads=1
    )
    run_evaluate(config, tmp_path / "alone")
    alone = json.loads((tmp_path / "alone" / "evaluation.json").read_text())
    found = json.loads((batch / "quality" / "evaluation.json").read_text())
    assert found["against_twin"] == alone["against_twin"]
    mean = found["against_twin"]["denoised"]["correlation"]["mean"]
    said = quality["key_figures"]["Against independent images: correlation"].split()
    # four digits are said
    assert said[0] == "denoised"
    assert float(said[1]) == pytest.approx(mean, abs=1e-4)
    assert (quality["n_done"], quality["n_images"]) == (12, 12)
    tables = {path.name: path for path in batch.rglob("*.star")}
    assert tables.keys() == {"noise.star", "evaluation_images.star"}
    for table in tables.values():
        read_alike(table)
    hidden = [path.name for path in (batch / "quality").iterdir() if path.name.startswith(".")]
    assert hidden == [JOURNAL_NAME]

    page = (batch / "batch.html").read_text()
    assert page.count("<img ") == 2
    assert "60 of 64 x 64 px" in page
    assert "Against independent images: correlation" in page
    assert main(["batch", "status", path]) == 0
    status = capsys.readouterr().out
    assert "2 done, 1 failed" in status
    assert "evaluate" in status

    write_micrographs(tmp_path / "broken")
    assert main(["batch", "retry-failed", path]) == 0
    assert (
        read_stack(batch / "broken" / "noise.mrcs").tobytes()
        == read_stack(batch / "good" / "noise.mrcs").tobytes()
    )
    assert main(["batch", "resume", path]) == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (OutputError("Free some space, then go on with --resume."), "failed", "with batch retry-failed."),
        (Aborted("stopped; --resume goes on"), "stopped", "batch resume goes on"),
        (InputError("Give --window-px, or --window-angstrom."), "failed", "window_px, or window_angstrom."),
        (InputError("Name it with --root."), "failed", "with root."),
    ],
)
def test_what_a_source_says_to_do_a_batch_can_do(
    plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch, error: Exception, state: str, said: str
) -> None:
    def fail(item: Item) -> None:
        raise error

    monkeypatch.setattr(driver, "job_of_item", fail)
    pool = SimpleNamespace(names=["no worker"], dashboard="")
    monkeypatch.setattr(driver, "open_pool", lambda *given: contextlib.nullcontext(pool))
    made = BatchPlan.model_validate({**plan, "sources": plan["sources"][:1]})
    (item,) = driver.run_batch(made, {"file": Files(made.output, "batch")})
    assert item.state == state
    assert item.error is not None
    assert item.error.endswith(said)


def test_a_batch_without_room_for_its_own_state_says_how_to_go_on(
    plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with BatchState.open(Path(plan["output"]), BatchPlan.model_validate(plan)) as state:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"batch\.json: the disk is full .* go on with batch resume\."):
            state.save()
