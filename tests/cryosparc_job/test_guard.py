"""However the work ends, the job ends in the right state: a short message, and the whole text in its log."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from cryosparc_project import Run, once_at_work
from double_server import Fault
from double_store import Job, Store
from double_v5 import Double5

from cryohush.cryosparc_job import guard, worker
from cryohush.cryosparc_job import run as run_module
from cryohush.cryosparc_job.worker import WorkFailed

Does = Callable[[str], None]


def failed(store: Store) -> Job:
    (job,) = store.external
    assert job.status == "failed"
    assert not job.outputs["particles"].files
    return job


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("error", "the image 3 is constant"),
        ("SIGKILL", "the memory was used up"),
        ("SIGSEGV", "crashed (SIGSEGV) in compiled code"),
        ("silent", "ended without a result (exit status 3)"),
        ("nothing", "ended without a result (exit status 0)"),
    ],
)
def test_work_that_ends_badly(denoise: Run, store: Store, child_does: Does, kind: str, message: str) -> None:
    child_does(kind)
    assert denoise() == 1
    job = failed(store)
    assert message in job.texts("error")[-1]
    if kind == "silent":
        assert "a warning of a library" in job.texts("error")[-2]


def test_a_long_traceback_is_in_the_log_as_a_whole_and_cut_in_the_reason(
    denoise: Run, store: Store, child_does: Does
) -> None:
    child_does("traceback")
    assert denoise() == 1
    *_, details, reason = failed(store).texts("error")
    assert details.count("x") >= 80000
    assert reason.startswith("unexpected ValueError: odd. Then go on with --resume J43")
    assert len(reason) < 200


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "out of memory"),
        (ZeroDivisionError("zero"), "unexpected ZeroDivisionError: zero"),
        (RuntimeError("y" * 100_000), "unexpected RuntimeError: yyy"),
        (SystemExit(3), "unexpected SystemExit: 3"),
    ],
)
def test_errors_of_the_adapter_itself(
    denoise: Run,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    message: str,
) -> None:
    def raise_it(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(run_module, "run_work", raise_it)
    assert denoise() == 1
    *_, details, reason = failed(store).texts("error")
    assert reason.startswith(message)
    assert len(reason) <= 2000
    assert "Traceback" in details
    assert type(error).__name__ in details


def test_a_remedy_is_said_once_and_names_the_job(
    denoise: Run, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise WorkFailed("The disk is full. Free some space, then go on with --resume.")

    monkeypatch.setattr(run_module, "run_work", fail)
    assert denoise() == 1
    said = "The disk is full. Free some space, then go on with --resume J43."
    assert failed(store).texts("error")[-1] == said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_work_and_fails_the_job(
    denoise: Run, store: Store, child_does: Does, number: signal.Signals
) -> None:
    child_does("wait")
    thread = once_at_work(store, lambda: os.kill(os.getpid(), number))
    assert denoise() == 2
    thread.join()
    assert f"stopped by {number.name}. Go on with --resume J43" in failed(store).texts("error")[-1]
    assert (store.directory / "J43/denoised/stopped").exists()


def test_a_signal_while_the_job_is_created_comes_after_it(
    denoise: Run, store: Store, double: Double5, child_does: Does
) -> None:
    child_does("wait")
    double.server.faults = [Fault("jobs.create", lambda: os.kill(os.getpid(), signal.SIGTERM))]
    assert denoise() == 2
    (job,) = store.external
    assert job.status == "failed"


def test_a_child_that_does_not_stop_is_killed(
    denoise: Run, store: Store, child_does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_does("deaf")
    monkeypatch.setattr(worker, "STOP_GRACE_SECONDS", 0.2)
    thread = once_at_work(store, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert denoise() == 2
    thread.join()
    failed(store)
    with pytest.raises(ProcessLookupError):
        os.kill(int((store.directory / "J43/denoised/ready").read_text()), 0)


@pytest.mark.parametrize("status", ["building", "killed", "deleted"])
def test_a_job_that_was_ended_in_cryosparc_stops_and_stays_as_it_is(
    denoise: Run,
    store: Store,
    child_does: Does,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    status: str,
) -> None:
    child_does("wait")
    assert guard.WATCH_SECONDS <= 15  # noticed within half a minute
    monkeypatch.setattr(guard, "WATCH_SECONDS", 0.05)

    def end() -> None:
        if status == "deleted":
            del store.jobs["J43"]
        else:
            store.jobs["J43"].status = status

    thread = once_at_work(store, end)
    assert denoise() == 2
    thread.join()
    assert (store.directory / "J43/denoised/stopped").exists()
    assert [job.status for job in store.external] == ([] if status == "deleted" else [status])
    assert "J43" in capfd.readouterr().err


def test_a_job_cleared_while_its_output_is_saved_is_not_failed(
    denoise: Run, store: Store, double: Double5, copying: None
) -> None:
    double.server.faults = [Fault("jobs.save_output", lambda: store.clear("J43"))]
    assert denoise() == 2
    assert store.jobs["J43"].status == "building"


def test_a_lost_connection_does_not_disturb_the_work(
    denoise: Run, store: Store, double: Double5, child_does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_does("copy")
    monkeypatch.setattr(guard, "WATCH_SECONDS", 0.0)

    def begin() -> None:
        for operation in ("jobs.find_one", "jobs.add_event_log"):
            double.server.faults += [Fault(operation, "drop before") for _ in range(3)]

    double.server.faults = [Fault("jobs.mark_running", begin)]
    assert denoise() == 0
    assert not double.server.faults


def test_a_server_that_stays_away_leaves_the_way_on(
    denoise: Run,
    store: Store,
    double: Double5,
    child_does: Does,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    child_does("copy")
    monkeypatch.setattr(guard, "LAST_WORD_SECONDS", 0.1)
    monkeypatch.setattr("cryohush.cryosparc_job.instance.PATIENCE_SECONDS", 0.3)
    double.server.faults = [
        Fault(name, "drop before") for name in ("jobs.save_output", "jobs.mark_failed") for _ in range(50)
    ]
    assert denoise() == 1
    assert "--resume J43" in capfd.readouterr().err
    assert store.jobs["J43"].status == "running"
    double.server.faults = []
    assert denoise("--resume", "J43", particles=None, workspace=None) == 0
    assert store.jobs["J43"].status == "completed"


def test_ignored_signals_stay_ignored(denoise: Run, store: Store, child_does: Does) -> None:
    earlier = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        child_does("copy")
        assert denoise() == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, earlier)


def test_the_folder_of_the_child_is_not_the_place_for_passwords(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import json, os, sys\njson.load(sys.stdin)\n"
        "print(json.dumps({'result': {'env': dict(os.environ)}}))\n"
    )
    monkeypatch.setattr(worker, "COMMAND", (worker.COMMAND[0], str(script)))
    monkeypatch.setenv("CRYOSPARC_PASSWORD", "secret")
    monkeypatch.setenv("CRYOSPARC_LICENSE_ID", "secret")
    result = worker.run_work({}, lambda message: None, lambda: None)
    assert "secret" not in str(result)
