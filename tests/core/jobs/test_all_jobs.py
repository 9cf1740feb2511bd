"""All jobs treat alike what an earlier run left in their folder, what is of somebody else, and the disk."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_kills
from particle_files import noise, write_stack
from simulated import settings, write_map

from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.evaluate import EvaluateConfig
from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.config.micrographs import MicrographsConfig
from cryohush.core.config.simulate import ParticlesConfig
from cryohush.core.config.training import TrainingConfig
from cryohush.core.errors import Aborted, InputError, OutputError
from cryohush.core.io.journal import JOURNAL_NAME, RECORD_NAME, Journal
from cryohush.core.job_context import JobContext
from cryohush.core.jobs import evaluation_files
from cryohush.core.jobs.denoise import DenoiseJob
from cryohush.core.jobs.evaluate import EvaluateJob
from cryohush.core.jobs.extract_noise import ExtractNoiseJob
from cryohush.core.jobs.job import BatchJob, Job
from cryohush.core.jobs.simulate import SimulateJob
from cryohush.core.jobs.train import TrainJob

Usage = namedtuple("Usage", "total used free")
STOP = JobContext(should_stop=lambda: True)


def denoise(folder: Path, weights: Path) -> Job[Any]:
    task = test_kills.denoise(folder, weights)
    return DenoiseJob(task["source"], DenoiseOptions(**task["options"]))


def extract_noise(folder: Path, weights: Path) -> Job[Any]:
    task = test_kills.extract_noise(folder, weights)
    return ExtractNoiseJob(task["source"], ExtractNoiseOptions(**task["options"]))


def evaluate(folder: Path, weights: Path) -> Job[Any]:
    denoise(folder, weights).run(folder / "denoised")
    write_stack(folder / "clean.mrcs", noise(18, 16, 16, seed=5))
    options = {"reference": folder / "clean.mrcs", "pair_by_order": True, "threads": 1}
    return EvaluateJob(EvaluateConfig(denoised=folder / "denoised/particles.star", **options))


def particles(folder: Path, weights: Path) -> Job[Any]:
    return SimulateJob(ParticlesConfig(**settings(write_map(folder / "cloud.mrc"))), "cpu")


def micrographs(folder: Path, weights: Path) -> Job[Any]:
    return SimulateJob(MicrographsConfig(**test_kills.simulate_micrographs(folder, weights)["options"]))


def train(folder: Path, weights: Path) -> Job[Any]:
    return TrainJob(TrainingConfig(**test_kills.train(folder, weights)["options"]))


JOBS = (denoise, extract_noise, evaluate, particles, micrographs, train)
Make = Callable[[Path, Path], Job[Any]]
each_job = pytest.mark.parametrize("make", JOBS, ids=lambda make: make.__name__)


@pytest.fixture(autouse=True)
def without_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pages of an evaluation show is of no concern here: a file that has their name."""

    def write_pages(path: Path, *_: object) -> Path:
        path.write_bytes(b"pages")
        return path

    monkeypatch.setattr(evaluation_files, "write_pages", write_pages)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of all files: what changes when one is written again."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != JOURNAL_NAME
    }


def test_every_job_is_tried_here(tmp_path: Path, weights: Path) -> None:
    def kinds(base: type[Any]) -> set[type[Any]]:
        return {one for kind in base.__subclasses__() for one in (kind, *kinds(kind))}

    ours = {kind for kind in kinds(Job) if kind.__module__.startswith("cryohush.core.jobs")}
    made = set()
    for make in JOBS:
        (tmp_path / make.__name__).mkdir()
        made.add(type(make(tmp_path / make.__name__, weights)))
    assert made == ours - {BatchJob}


@each_job
def test_an_earlier_run_is_refused_gone_on_with_or_replaced(
    make: Make, tmp_path: Path, weights: Path
) -> None:
    job, out = make(tmp_path, weights), tmp_path / "out"
    job.run(out)
    done = state(out)
    assert RECORD_NAME in done or isinstance(job, EvaluateJob)
    with pytest.raises(OutputError, match=r"out holds another run .*--resume.*--overwrite"):
        job.run(out)
    lines = list[str]()
    for earlier in ("resume", "anew"):
        job.run(out, JobContext(log=lines.append), earlier=earlier)
        assert state(out) == done, "a finished job resumed does nothing"
    assert lines.count("an earlier run is there and complete: nothing is left to do") == 2
    (out / "notes.txt").write_text("mine")
    job.run(out, earlier="replace")
    assert (out / "notes.txt").read_text() == "mine"
    with Journal(out / JOURNAL_NAME) as journal:
        assert journal.is_complete
        made = list(journal.results or ())
        with pytest.raises(OutputError, match="another run is writing to this directory"):
            job.run(out, earlier="resume")
    assert not {state(out)[name] for name in made} & set(done.values())


@each_job
def test_what_is_of_somebody_else_is_never_replaced(make: Make, tmp_path: Path, weights: Path) -> None:
    job, out = make(tmp_path, weights), tmp_path / "out"
    job.run(out)
    with Journal(out / JOURNAL_NAME) as journal:
        name = next(name for name in journal.results or () if "/" not in name)
    shutil.rmtree(out)
    out.mkdir()
    (out / name).write_text("mine")
    for earlier in ("refuse", "resume", "replace", "anew"):
        with pytest.raises(OutputError, match="files of your own"):
            job.run(out, earlier=earlier)
    assert [path.name for path in out.iterdir()] == [name]


@each_job
def test_a_disk_that_is_too_small_is_told_before_anything_is_made(
    make: Make, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, out = make(tmp_path, weights), tmp_path / "out"
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**6, 10**6, 10))
    remedy = {denoise: "write float16", train: "train a smaller network"}.get(make, "")
    with pytest.raises(OutputError, match=rf"too full: [0-9]+ bytes are needed, 10 are free.* or {remedy}"):
        job.run(out)
    assert list(out.iterdir()) == []


@each_job
def test_a_stopped_job_goes_on(make: Make, tmp_path: Path, weights: Path) -> None:
    job, out = make(tmp_path, weights), tmp_path / "out"
    with pytest.raises(Aborted):
        job.run(out, STOP)
    job.run(out, earlier="resume")
    with Journal(out / JOURNAL_NAME) as journal:
        assert journal.is_complete


def pairs(folder: Path, weights: Path, **changes: Any) -> TrainJob:
    """A training with a stack and a twin."""
    test_kills.denoise(folder, weights)
    options = test_kills.train(folder, weights)["options"]
    options.pop("data")
    options["pairs"] = {
        "noisy": folder / "a.mrcs",
        "target": folder / "b.mrcs",
        "pair_by_order": True,
    }
    return TrainJob(TrainingConfig(**options, **changes))


def test_a_training_does_not_go_on_with_other_images(tmp_path: Path, weights: Path) -> None:
    job, out = pairs(tmp_path, weights), tmp_path / "out"
    steps: list[int] = []
    # not before the first step: what was not begun leaves nothing to go on from
    with pytest.raises(Aborted):
        job.run(out, JobContext(progress=lambda done, _: steps.append(done), should_stop=lambda: bool(steps)))
    shutil.copy(tmp_path / "b.mrcs", tmp_path / "c.mrcs")
    (tmp_path / "c.mrcs").replace(tmp_path / "a.mrcs")
    with pytest.raises(OutputError, match=r"other settings \(inputs\)"):
        job.run(out, earlier="resume")


def test_a_training_does_not_remove_the_weights_that_it_begins_with(tmp_path: Path, weights: Path) -> None:
    out = tmp_path / "out"
    pairs(tmp_path, weights).run(out)
    again = pairs(tmp_path / "again", weights, initial_weights=out / "weights.safetensors")
    with pytest.raises(OutputError, match=r"weights.safetensors is an input of this run"):
        again.run(out, earlier="replace")
    assert (out / "weights.safetensors").exists()


def test_inputs_that_are_gone_are_named(tmp_path: Path, weights: Path) -> None:
    job = pairs(tmp_path, weights)
    (tmp_path / "a.mrcs").unlink()
    with pytest.raises(InputError, match=r"a\.mrcs"):
        job.run(tmp_path / "out")
    assert not (tmp_path / "out" / JOURNAL_NAME).exists()
