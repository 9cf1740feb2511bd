"""Browser only: tagged jobs and cloned cards become results, whatever happens to watcher or server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from cryosparc_project import MICROGRAPH_BLOB, Run, add_micrographs, add_particles, process_at_work
from double_server import Fault
from double_store import Job, Store
from double_v5 import Double5

from cryohush.core.io.mrc import StackWriter
from cryohush.cryosparc_job import drivers, watch
from cryohush.cryosparc_job.cli import main
from cryohush.cryosparc_job.lock import Holder
from cryohush.cryosparc_job.place import FOLDERS, Place
from cryohush.cryosparc_job.record import Record, new_mark
from cryohush.cryosparc_job.tags import Tag, read_tag

EVERY_SECONDS = 0.05
# How long a test waits for what is to happen.
PATIENCE_SECONDS = 300
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, signed_in: Path) -> pytest.MonkeyPatch:
    """Let a watcher and its drivers wait for a short while only, and the work be a copy."""
    monkeypatch.setattr(watch, "QUIET_SECONDS", 0.2)
    monkeypatch.setattr(watch, "CLAIM_SECONDS", 3.0)
    monkeypatch.setattr(watch, "POLL_SECONDS", EVERY_SECONDS)
    monkeypatch.setattr(watch, "LONGEST_PAUSE_SECONDS", 0.2)
    driver = Path(__file__).with_name("fake_driver.py")
    monkeypatch.setattr(drivers, "COMMAND", (sys.executable, str(driver)))
    monkeypatch.setenv("CRYOHUSH_FAKE_WORK", "copy")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return monkeypatch


@pytest.fixture
def watch_until(double: Double5, quick: pytest.MonkeyPatch) -> Until:
    """Run a watcher in this process until something is so."""

    def run(is_so: Callable[[], bool], *words: str) -> None:
        give_up = time.monotonic() + PATIENCE_SECONDS
        tend = watch.Watcher.tend

        def look(watcher: watch.Watcher) -> None:
            if is_so() or time.monotonic() > give_up:
                os.kill(os.getpid(), signal.SIGTERM)
            tend(watcher)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(watch.Watcher, "tend", look)
            assert main(watch_words(double, *words)) == 0
        assert is_so(), [(job.uid, job.status, job.texts()) for job in double.store.external]

    return run


def watch_words(double: Double5, *words: str) -> list[str]:
    return ["watch", "--url", double.url, "--project", "P3", "--every", str(EVERY_SECONDS), *words]


def done(store: Store, count: int) -> Callable[[], bool]:
    """Return whether there are so many external jobs, all ended."""
    return lambda: (
        len(store.external) == count and all(job.status in ("completed", "failed") for job in store.external)
    )


@pytest.mark.parametrize(
    ("title", "tag"),
    [
        ("cryohush", Tag("denoise", None, ())),
        (" Cryohush : ", Tag("denoise", None, ())),
        ("cryohush: model=J60", Tag("denoise", None, ("--model", "J60"))),
        (
            "cryohush: output=particles_selected, blend=0.2 skip_bad",
            Tag("denoise", "particles_selected", ("--blend", "0.2", "--skip-bad")),
        ),
        ("cryohush: restore", Tag("restore", None, ())),
        ("cryohush: new blend=0.2", Tag("denoise", None, ("--blend", "0.2"), only_new=True)),
        ("cryohush2", None),
        ("not cryohush", None),
        ("", None),
    ],
)
def test_what_a_tag_asks_for(title: str, tag: Tag | None) -> None:
    assert read_tag(title) == tag


def test_a_tagged_job_becomes_a_result(watch_until: Until, store: Store) -> None:
    store.tag("J42", "cryohush: blend=0.25")
    store.tag("J42", "for the paper")
    watch_until(done(store, 1))
    (job,) = store.external
    assert job.status == "completed", job.texts()
    assert job.inputs["particles"].connections == [("J42", "particles")]
    assert job.title == "Denoised J42:particles (general)"
    assert "--blend 0.25" in job.description
    assert any(text.startswith("cryohush watch (process ") for text in job.texts())
    # once: also by a watcher that knows nothing of the first, and if the card was deleted since
    job.deleted = True
    looks = Counter()
    watch_until(looks.at_least(3))
    assert len(store.external) == 1


class Counter:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.count = 0

    def at_least(self, count: int) -> Callable[[], bool]:
        def is_so() -> bool:
            self.count += 1
            return self.count > 20 * count

        return is_so


def test_a_cloned_card_runs_on_what_was_dragged_onto_it(
    watch_until: Until, denoise: Run, store: Store, copying: None
) -> None:
    other = add_particles(store)
    assert denoise("--blend", "0.5") == 0
    clone = store.clone("J44")
    clone.inputs["particles"].connections.clear()
    looks = Counter()
    watch_until(looks.at_least(2))
    assert clone.status == "building", "nothing was dragged onto it yet"
    store.connect(clone.uid, "particles", other.uid, "particles")
    watch_until(lambda: clone.status == "completed")
    paths = store.load(clone.uid, "particles")["blob/path"].tolist()
    assert all(path.startswith(f"{clone.uid}/denoised/{other.uid}/".encode()) for path in paths)
    assert any("--blend 0.5" in text for text in clone.texts())
    # the lost description of a clone is that of its original
    second = store.clone(clone.uid)
    second.description = ""
    watch_until(lambda: second.status == "completed")
    assert "--blend 0.5" in second.description


def test_others_jobs_are_never_touched(watch_until: Until, denoise: Run, store: Store, copying: None) -> None:
    foreign = store.create("snowflake", "cryoDRGN", "cryohush is nice")
    store.add_input(foreign.uid, "particles", "particle", ["blob"])
    store.connect(foreign.uid, "particles", "J42", "particles")
    running = store.create("snowflake", "somebody's", foreign.description)
    running.status = "running"
    assert denoise() == 0
    by_hand = store.clone(store.external[-1].uid)
    by_hand.status = "running"
    looks = Counter()
    watch_until(looks.at_least(3))
    assert (foreign.status, running.status, by_hand.status) == ("building", "running", "running")
    assert not foreign.texts() + running.texts() + by_hand.texts()


@pytest.mark.parametrize(
    ("title", "message"),
    [
        ("cryohush: modle=J60", "unrecognized arguments: --modle J60"),
        ("cryohush: blend=2", "blend"),
        ("cryohush: output=picks", "J42 has no output 'picks'"),
        ("cryohush: extract-noise", "has no output of type exposure"),
        ("cryohush: model=J42", "cannot find the external job J42"),
    ],
)
def test_what_is_wrong_with_a_tag_is_said_on_a_card(
    watch_until: Until, store: Store, title: str, message: str
) -> None:
    store.tag("J42", title)
    watch_until(done(store, 1))
    (job,) = store.external
    assert job.status == "failed"
    assert any(message in text for text in job.texts("error")), job.texts()


def test_a_card_cannot_name_a_text_outside_of_the_project(watch_until: Until, store: Store) -> None:
    line = "cryosparc_cryohush evaluate --project P3 --config /etc/passwd"
    job = store.create("snowflake", "A card", str(Record(line, new_mark())))
    for name in ("particles", "raw"):
        store.add_input(job.uid, name, "particle", ["blob"])
        store.connect(job.uid, name, "J42", "particles")
    watch_until(done(store, 1))
    assert job.status == "failed"
    assert "--config /etc/passwd: watch takes files of the project only" in job.texts("error")[-1]


def test_a_text_that_a_card_names_is_in_the_project(
    watch_until: Until, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not where the watcher runs."""
    (tmp_path / "mine.yaml").write_text("of_the_watcher: 1\n")
    (store.directory / "mine.yaml").write_text("of_the_project: 1\n")
    monkeypatch.chdir(tmp_path)
    line = "cryosparc_cryohush evaluate --project P3 --config mine.yaml"
    job = store.create("snowflake", "A card", str(Record(line, new_mark())))
    for name in ("particles", "raw"):
        store.add_input(job.uid, name, "particle", ["blob"])
        store.connect(job.uid, name, "J42", "particles")
    watch_until(done(store, 1))
    assert "unknown key 'of_the_project'" in job.texts("error")[-1]


def test_several_outputs_need_a_name(watch_until: Until, store: Store) -> None:
    outputs = store.jobs["J42"].outputs
    outputs["others"] = outputs["particles"]
    store.tag("J42", "cryohush")
    watch_until(done(store, 1))
    (job,) = store.external
    assert "has the outputs particles, others" in job.texts("error")[-1]
    assert "output=NAME" in job.texts("error")[-1]
    store.tag("J42", "cryohush: output=others")
    watch_until(done(store, 2))
    assert [job.status for job in store.external] == ["failed", "completed"]


def test_a_selection_gets_its_raw_images_by_a_tag(
    watch_until: Until, denoise: Run, store: Store, copying: None
) -> None:
    assert denoise() == 0
    selected = store.load("J43", "particles")[::2]
    selection = store.add_source("particle", selected, "particles_selected")
    store.tag(selection.uid, "cryohush: restore")
    watch_until(done(store, 2))
    job = store.external[-1]
    assert job.status == "completed", job.texts()
    paths = store.load(job.uid, "particles")["blob/path"].tolist()
    assert all(path.startswith(b"J42/extract/") for path in paths)


def test_odd_answers_are_survived(watch_until: Until, store: Store, double: Double5) -> None:
    store.tag("J42", "cryohush")
    double.server.faults = [
        Fault(operation, kind)
        for kind in (429, 500, 404, 403, "drop before", "garbage")
        for operation in ("jobs.find", "tags.find", "jobs.find_one", "jobs.add_event_log")
    ]
    watch_until(done(store, 1))
    assert [job.status for job in store.external] == ["completed"]


def test_requests_are_few(watch_until: Until, double: Double5, capfd: pytest.CaptureFixture[str]) -> None:
    looks = Counter()
    asked = len(double.server.operations)
    watch_until(looks.at_least(2))
    said = capfd.readouterr().out
    asked = len(double.server.operations) - asked
    assert f"stopped after {asked - 3} requests" in said, "all but those of signing in are counted"
    finds = double.server.operations.count("jobs.find")
    # a look is two requests: at 30 s between looks 240 an hour, and 60 with nothing to do
    assert asked - finds <= 4 + 2, double.server.operations


def start(double: Double5, *words: str, claim_seconds: float = 3.0) -> subprocess.Popen[bytes]:
    """Start a watcher as a program of its own."""
    script = (
        "import sys\n"
        "from cryohush.cryosparc_job import cli, drivers, watch\n"
        f"watch.QUIET_SECONDS, watch.CLAIM_SECONDS = 0.2, {claim_seconds}\n"
        f"watch.POLL_SECONDS = {EVERY_SECONDS}\n"
        f"drivers.COMMAND = {drivers.COMMAND!r}\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    return subprocess.Popen([sys.executable, "-c", script, *watch_words(double, *words)])


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_two_watchers_never_take_one_job(quick: pytest.MonkeyPatch, store: Store, double: Double5) -> None:
    for _ in range(3):
        store.tag(add_particles(store).uid, "cryohush")
    watchers = [start(double, "--gpus", name, claim_seconds=600.0) for name in "01"]
    wait_until(done(store, 3))
    for watcher in watchers:
        watcher.terminate()
        assert watcher.wait() == 0
    assert [job.status for job in store.external] == ["completed"] * 3
    assert len({job.inputs["particles"].connections[0] for job in store.external}) == 3
    begun = [text for job in store.external for text in job.texts() if text.startswith("cryohush 0")]
    assert len(begun) == 3, "each was begun once"


def test_what_another_watcher_takes_at_the_last_moment_gets_no_second_driver(
    watch_until: Until, store: Store, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    store.tag(add_particles(store).uid, "cryohush")
    has_room, start_driver, taken, started = drivers.Local.has_room, drivers.Local.start, [], []

    def take(local: drivers.Local) -> bool:
        """Do what another watcher does between the look at a card and its start here."""
        if not taken:
            (job,) = store.external
            taken.append(time.monotonic())
            with Place(store.directory, is_shared=True, name=FOLDERS["denoise"]).lock(job.uid) as lock:
                lock.note(Holder("process 1 of another machine", watched=True))
        return has_room(local)

    def note_start(local: drivers.Local, key: str, words: Sequence[str]) -> str:
        started.append(time.monotonic())
        return start_driver(local, key, words)

    monkeypatch.setattr(drivers.Local, "has_room", take)
    monkeypatch.setattr(drivers.Local, "start", note_start)
    watch_until(done(store, 1))
    # the other one's driver never came
    assert len(started) == 1
    assert started[0] - taken[0] > watch.CLAIM_SECONDS - 0.5
    assert "another watcher has taken it" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("operation", "skip"),
    [
        ("jobs.create", 0),
        ("jobs.find_one", 1),
        ("jobs.connect", 0),
        ("jobs.mark_running", 0),
        ("jobs.add_event_log", 2),
    ],
)
def test_a_watcher_killed_at_any_point_leaves_no_job_stuck(
    quick: pytest.MonkeyPatch,
    watch_until: Until,
    store: Store,
    double: Double5,
    operation: str,
    skip: int,
) -> None:
    """SIGKILL for it and, as the end of a machine does, for its drivers."""
    store.tag("J42", "cryohush")
    watch_until_killed(double, operation, skip)
    assert not done(store, 1)()
    watch_until(done(store, 1))
    assert [job.status for job in store.external] == ["completed"]


def watch_until_killed(double: Double5, operation: str, skip: int) -> None:
    """Start a watcher that gets SIGKILL, with its drivers, when it has asked for an operation."""
    watcher: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        for pid in children(watcher[0].pid):
            os.kill(pid, signal.SIGKILL)
        watcher[0].kill()

    double.server.faults = [Fault(operation, kill, skip)]
    watcher.append(start(double))
    assert watcher[0].wait(PATIENCE_SECONDS) == -signal.SIGKILL


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and theirs."""
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*found, *(below for child in found for below in children(child))]


def test_a_watcher_that_is_stopped_goes_on_the_next_time(
    quick: pytest.MonkeyPatch, watch_until: Until, store: Store, double: Double5
) -> None:
    store.tag("J42", "cryohush")
    quick.setenv("CRYOHUSH_FAKE_WORK", "wait")
    watcher = start(double)
    process_at_work(store)
    watcher.terminate()
    assert watcher.wait(PATIENCE_SECONDS) == 0
    (job,) = store.external
    assert job.status == "failed"
    assert "stopped by SIGTERM" in job.texts("error")[-1]
    quick.setenv("CRYOHUSH_FAKE_WORK", "copy")
    watch_until(lambda: job.status == "completed")
    # one that failed by itself stays so
    quick.setenv("CRYOHUSH_FAKE_WORK", "error")
    clone = store.clone(job.uid)
    watch_until(lambda: clone.status == "failed")
    quick.setenv("CRYOHUSH_FAKE_WORK", "copy")
    looks = Counter()
    watch_until(looks.at_least(2))
    assert clone.status == "failed"


def test_one_job_at_a_time_on_each_gpu(
    quick: pytest.MonkeyPatch, watch_until: Until, store: Store, double: Double5
) -> None:
    for _ in range(3):
        store.tag(add_particles(store).uid, "cryohush")
    at_once: list[int] = []

    def count() -> bool:
        at_once.append(sum(job.status == "running" for job in store.external))
        return done(store, 3)()

    watch_until(count)
    assert max(at_once) == 1
    waited = [any("waits for those before it" in text for text in job.texts()) for job in store.external]
    assert sum(waited) == 2


def test_slurm_gets_the_command_line(
    quick: pytest.MonkeyPatch, watch_until: Until, store: Store, tmp_path: Path
) -> None:
    """With stand-ins for sbatch, which runs the script at once, and squeue, which knows of none."""
    add_micrographs(store)
    store.tag("J43", "cryohush")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sbatch").write_text('#!/bin/sh\nshift\n"$@" </dev/null >/dev/null 2>&1 &\necho 17\n')
    (folder / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id' >&2\nexit 1\n")
    script = tmp_path / "cryohush.sbatch"
    script.write_text('#!/bin/sh\nexec "$@"\n')
    for path in (*folder.iterdir(), script):
        path.chmod(0o755)
    quick.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    quick.setenv("CRYOHUSH_FAKE_WORK", "report")
    quick.setattr(drivers, "ASK_SECONDS", 3600.0)

    def has_begun() -> bool:
        return any(job.status != "building" for job in store.external)

    watch_until(has_begun, "--sbatch", str(script))
    (job,) = store.external
    assert any("starts this SLURM job 17" in text for text in job.texts())
    wait_until(done(store, 1))


def test_what_cannot_be_watched(
    quick: pytest.MonkeyPatch, double: Double5, capfd: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (["--project", "P9"], "cannot find the project P9"),
        (["--every", "0"], "expected seconds above 0"),
        (["--sbatch", "nothing.sh"], "--sbatch nothing.sh: no such file"),
    ):
        assert main([*watch_words(double), *words]) == 1
        assert message in capfd.readouterr().err


def add_exposures(store: Store, count: int, job: Job | None = None) -> Job:
    """Add an export of so many exposures of a session, or export it again in the same job."""
    table = np.zeros(count, MICROGRAPH_BLOB)
    table["uid"], table["micrograph_blob/psize_A"] = np.arange(count) + 500, 1.5
    table["micrograph_blob/shape"] = (96, 96)
    for number in range(count):
        name = f"S1/m{number}.mrc"
        table["micrograph_blob/path"][number] = name.encode()
        path = store.directory / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            image = np.random.default_rng(number).normal(20, 3, (1, 96, 96)).astype(np.float32)
            with StackWriter(path, image.shape, pixel_size_angstrom=1.5, label="test") as writer:
                writer.write(image)
    if job is None:
        return store.add_source("exposure", table, "exposures")
    store._write(job, "exposures", table, passed=False)
    store._complete(job)
    return job


def uids(store: Store, job: Job) -> list[int]:
    return [int(uid) - 500 for uid in store.load(job.uid, "exposures")["uid"]]


def test_of_a_live_export_that_grows_only_what_is_new_is_denoised(watch_until: Until, store: Store) -> None:
    export = add_exposures(store, 2)
    store.tag(export.uid, "cryohush: new")
    watch_until(done(store, 1))
    # exported again, in the same job
    add_exposures(store, 5, export)
    watch_until(done(store, 2))
    # and in another job
    store.tag(add_exposures(store, 6).uid, "cryohush: new")
    watch_until(done(store, 3))
    assert [job.status for job in store.external] == ["completed"] * 3
    assert [uids(store, job) for job in store.external] == [[0, 1], [2, 3, 4], [5]]
    first, second, third = store.external
    assert f"--without {first.uid}" in second.description
    assert f"--without {first.uid} {second.uid}" in third.description
    assert "3 of 5 micrographs are new: the others were denoised before" in second.texts()
    # with nothing new there is nothing to denoise
    add_exposures(store, 5, export)
    watch_until(done(store, 4))
    last = store.external[-1]
    assert last.status == "failed"
    assert "all 5 micrographs were denoised before" in last.texts("error")[-1]
    # other options are other work
    store.tag(export.uid, "cryohush: new blend=0.5")
    watch_until(done(store, 5))
    assert uids(store, store.external[-1]) == [0, 1, 2, 3, 4]


def test_a_portion_waits_for_the_one_before_it(
    quick: pytest.MonkeyPatch, watch_until: Until, store: Store, double: Double5
) -> None:
    """Two watchers, and a session that goes on while the first portion is at work."""
    export = add_exposures(store, 2)
    store.tag(export.uid, "cryohush: new")
    quick.setenv("CRYOHUSH_FAKE_WORK", "wait")
    watchers = [start(double, "--gpus", name, claim_seconds=600.0) for name in "01"]
    child = process_at_work(store)
    add_exposures(store, 4, export)
    wait_until(lambda: len(store.external) == 2)
    time.sleep(1.0)
    first, second = store.external
    assert [first.status, second.status] == ["running", "building"]
    quick.setenv("CRYOHUSH_FAKE_WORK", "copy")
    # the one that waits first: it never sees that the other's job has ended
    watchers.sort(key=lambda watcher: child in children(watcher.pid))
    for watcher in watchers:
        watcher.terminate()
        assert watcher.wait(PATIENCE_SECONDS) == 0
    # the first was stopped with its watcher; taken up again it finds all that is there by now, and the
    # second, which has waited for it though another GPU is free, nothing
    watch_until(done(store, 2), "--gpus", "0", "1")
    assert (first.status, uids(store, first)) == ("completed", [0, 1, 2, 3])
    assert "all 4 micrographs were denoised before, by J44" in second.texts("error")[-1]


@pytest.mark.parametrize(("operation", "skip"), [("jobs.create", 0), ("jobs.mark_running", 0)])
def test_a_watcher_of_a_live_export_may_be_killed_and_the_server_be_away(
    quick: pytest.MonkeyPatch,
    watch_until: Until,
    store: Store,
    double: Double5,
    operation: str,
    skip: int,
) -> None:
    export = add_exposures(store, 2)
    store.tag(export.uid, "cryohush: new")
    watch_until(done(store, 1))
    add_exposures(store, 3, export)
    watch_until_killed(double, operation, skip)
    double.server.faults = [
        Fault(of, kind) for kind in (429, 500) for of in ("jobs.find", "tags.find", "jobs.load_output")
    ]
    watch_until(done(store, 2))
    assert [job.status for job in store.external] == ["completed"] * 2
    assert [uids(store, job) for job in store.external] == [[0, 1], [2]]


def test_a_live_export_asks_no_more_of_the_server(watch_until: Until, double: Double5, store: Store) -> None:
    store.tag(add_exposures(store, 2).uid, "cryohush: new")
    watch_until(done(store, 1))
    before, looks = len(double.server.operations), Counter()
    watch_until(looks.at_least(2))
    asked = double.server.operations[before:]
    # two a look, as without it: 240 an hour at 30 s between looks
    assert len(asked) - asked.count("jobs.find") <= 6, asked
