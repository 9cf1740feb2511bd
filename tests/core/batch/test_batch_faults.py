"""Two real workers, and what may happen to them: every image arrives, once, the same to the byte."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micrograph_files import empty_micrograph, table_of
from particle_files import noise, read_stack, write_stack, write_table

from cryohush.core.batch import retry
from cryohush.core.batch.workers import Pool, RangesFailed, open_pool
from cryohush.core.config.batch import EngineConfig
from cryohush.core.config.denoise import DenoiseOptions
from cryohush.core.config.extract_noise import ExtractNoiseOptions
from cryohush.core.errors import Aborted, OutputError
from cryohush.core.inference.devices import LocalDevices
from cryohush.core.io.journal import JOURNAL_NAME, RANGES_FOLDER
from cryohush.core.job_context import JobContext
from cryohush.core.jobs import parts
from cryohush.core.jobs.denoise import DenoiseJob, run_denoise
from cryohush.core.jobs.extract_noise import ExtractNoiseJob
from cryohush.core.jobs.job import Part
from cryohush.core.noise.summary import NoiseSummary
from cryohush.core.report.overlays import write_overlay

pytest.importorskip("distributed")

SIDE, COUNT = 64, 160
CONFIG = EngineConfig(
    device="cpu",
    workers=2,
    threads=1,
    memory="2GB",
    dashboard=None,
    range_mb=8 * 4 * SIDE * SIDE / 2**20,
    worker_timeout_seconds=8,
    attempts=5,  # a busy machine may starve a sound worker for eight seconds
)


@pytest.fixture(scope="module")
def pool(warm_workers: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    with open_pool(CONFIG, tmp_path_factory.mktemp("logs")) as pool:
        yield pool


@pytest.fixture(autouse=True)
def both_are_there(pool: Pool) -> None:
    """The test before may have cost a worker, which is being replaced."""
    deadline = time.monotonic() + 300
    while len(pool.client.nthreads()) < 2:
        assert time.monotonic() < deadline
        pool.replace_lost()
        time.sleep(0.1)


@pytest.fixture(autouse=True)
def only_the_frozen_are_given_up(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may starve a sound worker for longer than the test of frozen ones wants to wait."""
    monkeypatch.setattr(pool._cluster.scheduler, "worker_ttl", 300.0)


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "SMALLEST_PART_BYTES", 1)
    monkeypatch.setattr(parts, "FEWEST_PARTS", 1)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """One long stack, in twenty ranges."""
    write_stack(tmp_path / "x.mrcs", noise(COUNT, SIDE, SIDE))
    write_table(tmp_path / "particles.star", [f"{i + 1:06d}@x.mrcs" for i in range(COUNT)], box_px=SIDE)
    return tmp_path


def options(weights: Path, **given: Any) -> DenoiseOptions:
    return DenoiseOptions(**{"model": str(weights), "precision": "fp32", "batch_size": 4, **given})


@pytest.fixture
def expected(project: Path, weights: Path) -> bytes:
    """The stack of a run that nothing disturbs, without workers."""
    run_denoise(project / "particles.star", project / "whole", options(weights, device="cpu", threads=1))
    return (project / "whole" / "x.mrcs").read_bytes()


Strike = Callable[..., None]


@pytest.fixture
def strike(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Strike:
    """Have something done by the worker of a range, in the midst of it: as it syncs a file.

    It is that of the third range that is sent, once, or of one that is named, each time.
    """

    def arrange(what: Callable[[], object], named: str | None = None) -> None:
        submit, sent = pool.submit, list[str]()

        def in_its_midst(part: Part, devices: LocalDevices) -> None:
            fsync = os.fsync

            def struck(descriptor: int) -> None:
                os.fsync = fsync
                what()
                fsync(descriptor)

            os.fsync = struck
            part.do(devices)

        def counted(key: str, function: Callable[..., Any], *arguments: Any) -> Any:
            if function is retry._do:
                sent.append(key)
                is_struck = len(sent) == 3 if named is None else arguments[0].describe() == named
                function = in_its_midst if is_struck else function
            return submit(key, function, *arguments)

        monkeypatch.setattr(pool, "submit", counted)

    return arrange


def denoise(project: Path, weights: Path, pool: Pool, **given: Any) -> Path:
    output = project / "parts"
    job = DenoiseJob(project / "particles.star", options(weights))
    job.run(output, devices=pool, **{"earlier": "resume", **given})
    return output


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_frozen_loses_only_its_range(
    project: Path,
    weights: Path,
    pool: Pool,
    expected: bytes,
    strike: Strike,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    monkeypatch.setattr(pool._cluster.scheduler, "worker_ttl", CONFIG.worker_timeout_seconds)
    hit = project / "hit"

    def hurt() -> None:
        hit.write_text(str(os.getpid()))
        os.kill(os.getpid(), number)

    strike(hurt)
    try:
        output = denoise(project, weights, pool)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(hit.read_text()), signal.SIGCONT)
    assert (output / "x.mrcs").read_bytes() == expected
    assert not (output / RANGES_FOLDER).exists()


def test_a_worker_over_its_memory_limit_is_killed_and_loses_only_its_range(
    project: Path, weights: Path, pool: Pool, expected: bytes, strike: Strike
) -> None:
    hit = project / "hit"

    def overeat() -> None:
        hit.write_text(str(os.getpid()))
        eaten = b"x" * (2 * 10**9)  # CONFIG.memory, and torch
        time.sleep(600 if eaten else 0)

    strike(overeat)
    output = denoise(project, weights, pool)
    assert (output / "x.mrcs").read_bytes() == expected
    assert not (output / RANGES_FOLDER).exists()
    deadline = time.monotonic() + 300
    while Path(f"/proc/{hit.read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{hit.read_text()}").exists()  # nobody but its nanny has done that


def test_a_range_that_always_fails_is_named_and_the_others_are_finished(
    project: Path, weights: Path, pool: Pool, expected: bytes
) -> None:
    good = read_stack(project / "x.mrcs")
    bad = good.copy()
    bad[41] = np.inf
    write_stack(project / "x.mrcs", bad)
    with pytest.raises(RangesFailed, match=r"1 of 20 ranges .* images 41 to 48 of x.mrcs: .*image 42"):
        denoise(project, weights, pool)
    finished = list((project / "parts" / RANGES_FOLDER).glob("*/*/x.mrcs"))
    assert len(finished) == 14  # behind the gap; what is before it is already in the stack
    part = (project / "parts" / "x.mrcs.part").read_bytes()
    # all but the header, which comes last
    assert part[1024:] == expected[1024 : 1024 + 40 * 4 * SIDE * SIDE]


def test_a_range_that_kills_its_workers_is_set_aside_after_its_attempts(
    project: Path,
    weights: Path,
    pool: Pool,
    expected: bytes,
    strike: Strike,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fatal, hits = "images 41 to 48 of x.mrcs", project / "hits"

    def die() -> None:
        with hits.open("a") as file:
            file.write("x")
        if hits.stat().st_size <= 2:  # it lets its third worker live
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as once:
        once.setattr(pool, "config", CONFIG.model_copy(update={"attempts": 2}))
        strike(die, fatal)
        with pytest.raises(RangesFailed, match=rf"1 of 20 ranges .* {fatal}: the worker died"):
            denoise(project, weights, pool)
    assert hits.read_text() == "xx"
    output = denoise(project, weights, pool)
    assert (output / "x.mrcs").read_bytes() == expected


def test_a_stack_cut_short_during_the_run_fails_and_the_repaired_one_is_denoised(
    project: Path, weights: Path, pool: Pool, expected: bytes
) -> None:
    whole = (project / "x.mrcs").read_bytes()

    def cut(done: int, total: int) -> None:
        if done == total // 5:
            os.truncate(project / "x.mrcs", len(whole) // 2)

    with pytest.raises(RangesFailed, match="truncated"):
        denoise(project, weights, pool, context=JobContext(cut))
    (project / "x.mrcs").write_bytes(whole)
    output = denoise(project, weights, pool, earlier="anew")
    assert (output / "x.mrcs").read_bytes() == expected


def test_a_full_disk_stops_the_run_which_goes_on_when_there_is_room(
    project: Path, weights: Path, pool: Pool, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = project / "parts"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        # the check before the run would find it out
        monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 0, 2**40))
        with pytest.raises(OutputError, match="the disk is full"):
            denoise(project, weights, pool)
        subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
        output = denoise(project, weights, pool)
        assert (output / "x.mrcs").read_bytes() == expected
    finally:
        subprocess.run(["umount", disk], check=True)


def test_micrographs_go_through_the_pool_too(tmp_path: Path, weights: Path, pool: Pool) -> None:
    for number in range(3):
        write_stack(tmp_path / "mics" / f"m{number}.mrc", noise(1, 96, 80, seed=number))
    rows = "".join(f"mics/m{number}.mrc 1\n" for number in range(3))
    (tmp_path / "micrographs.star").write_text(
        "# version 30001\n\ndata_optics\n\nloop_\n_rlnOpticsGroup #1\n_rlnMicrographPixelSize #2\n1 2.0\n\n"
        f"# version 30001\n\ndata_micrographs\n\nloop_\n_rlnMicrographName #1\n_rlnOpticsGroup #2\n{rows}\n"
    )
    for name, engine in (("whole", None), ("parts", pool)):
        chosen = options(weights, **({} if engine else {"device": "cpu", "threads": 1}))
        DenoiseJob(tmp_path / "micrographs.star", chosen).run(tmp_path / name, devices=engine)
    for number in range(3):
        whole, parts = (tmp_path / name / "mics" / f"m{number}.mrc" for name in ("whole", "parts"))
        assert parts.read_bytes() == whole.read_bytes()


MICROGRAPHS = [f"mics/m{number}.mrc" for number in range(8)]


@pytest.fixture
def micrographs(tmp_path: Path) -> Path:
    """Eight empty micrographs, each a range of its own."""
    for seed, name in enumerate(MICROGRAPHS):
        write_stack(tmp_path / name, empty_micrograph(seed), 1.5)
    (tmp_path / "micrographs.star").write_text(table_of(MICROGRAPHS))
    return tmp_path / "micrographs.star"


def search(table: Path, name: str, pool: Pool | None = None, **given: Any) -> NoiseSummary:
    """Extract noise with the pool, or without workers."""
    # the network knows real noise, not white noise: half and half is strict enough here
    strictness = {"min_background": 0.5, "max_per_micrograph": 20, "window_px": 64}
    options = ExtractNoiseOptions(precision="fp32", device="cpu", threads=1, **strictness)
    job = ExtractNoiseJob(table, options, draw=write_overlay)
    return job.run(table.parent / name, devices=pool, earlier="anew", **given)


def files(summary: NoiseSummary) -> dict[str, bytes]:
    """What an extraction wrote, but for the record and the journal, which tell of the run itself."""
    folder = summary.stack.parent
    found = {}
    for path in folder.rglob("*"):
        name = str(path.relative_to(folder))
        if path.is_file() and path != summary.record and name != JOURNAL_NAME:
            found[name] = path.read_bytes().replace(f"@{folder.name}/".encode(), b"@")
    return found


def test_noise_is_the_same_to_the_byte_though_a_worker_was_killed(
    micrographs: Path, pool: Pool, strike: Strike
) -> None:
    hit = micrographs.parent / "hit"

    def die() -> None:
        hit.touch()
        os.kill(os.getpid(), signal.SIGKILL)

    strike(die)
    summary = search(micrographs, "parts", pool)
    assert hit.exists()
    whole = search(micrographs, "whole")
    assert [count.micrograph for count in summary.counts] == MICROGRAPHS
    assert summary.counts == whole.counts
    assert files(summary) == files(whole)


def test_an_extraction_that_was_stopped_goes_on(micrographs: Path, pool: Pool) -> None:
    done: list[int] = []
    with pytest.raises(Aborted):
        search(
            micrographs,
            "parts",
            pool,
            context=JobContext(lambda n, total: done.append(n), lambda: bool(done) and done[-1] >= 2),
        )
    summary = search(micrographs, "parts", pool)
    assert summary.n_resumed >= 2
    assert files(summary) == files(search(micrographs, "whole"))


def test_a_bad_micrograph_is_named_and_the_others_are_searched(micrographs: Path, pool: Pool) -> None:
    path = micrographs.parent / MICROGRAPHS[3]
    good = path.read_bytes()
    write_stack(path, np.full((1, 320, 320), np.nan, dtype=np.float32), 1.5)
    done: list[int] = []
    with pytest.raises(RangesFailed, match=r"1 of 8 ranges .* mics/m3.mrc: .*NaN"):
        search(micrographs, "parts", pool, context=JobContext(lambda n, total: done.append(n)))
    assert done[-1] == 7
    assert not (micrographs.parent / "parts" / RANGES_FOLDER).exists()
    path.write_bytes(good)
    assert files(search(micrographs, "parts", pool)) == files(search(micrographs, "whole"))
