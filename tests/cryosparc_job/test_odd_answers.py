"""One odd answer of the server, whatever it is and whatever it answers, ends no work of hours."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryosparc_project import Run, once_at_work, store_token
from double_server import Fault
from double_store import Store
from double_v5 import TOKEN, Double5

from cryohush.cryosparc_job import guard
from cryohush.cryosparc_job import instance as requests

Does = Callable[[str], None]
ODD = (302, 400, 401, 403, 404, 408, 422, 429, 500, 503, "garbage", "slow")
# What is asked for while the work goes on and as it ends.
OPERATIONS = (
    "jobs.find_one",
    "jobs.add_event_log",
    "jobs.update_event_log",
    "jobs.get_output_fields",
    "jobs.save_output",
    "assets.upload",
    "jobs.add_image_log",
    "jobs.set_tile_image",
    "jobs.set_output_image",
    "jobs.mark_completed",
)


@pytest.mark.parametrize("kind", ODD)
def test_one_odd_answer_while_the_work_goes_on(
    denoise: Run,
    store: Store,
    double: Double5,
    copying: None,
    monkeypatch: pytest.MonkeyPatch,
    kind: str | int,
) -> None:
    monkeypatch.setattr(guard, "WATCH_SECONDS", 0.0)

    def begin() -> None:
        double.server.faults = [Fault(operation, kind) for operation in OPERATIONS]

    double.server.faults = [Fault("jobs.mark_running", begin)]
    assert denoise() == 0
    left = [fault.operation for fault in double.server.faults]
    assert left in ([], ["jobs.update_event_log"]), "each but a late line of progress was asked for"
    (job,) = store.external
    assert job.status == "completed"
    assert job.outputs["particles"].files
    assert "version: fake" in job.texts(), "no line is lost"


@pytest.mark.parametrize("kind", [403, 404, 422, 500])
def test_odd_answers_while_the_work_is_begun(
    denoise: Run, store: Store, double: Double5, copying: None, kind: int
) -> None:
    # before the job is running a refusal is an answer; what passes by itself is waited for
    double.server.faults = [Fault("jobs.mark_running", 429), Fault("jobs.connect", 503)]
    double.server.faults += [Fault("jobs.add_event_log", kind)]
    assert denoise() == 0
    assert [job.status for job in store.external] == ["completed"]


def test_a_job_is_gone_only_if_it_is_gone_twice_and_its_project_is_there(
    denoise: Run, store: Store, double: Double5, child_does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_does("copy")
    monkeypatch.setattr(guard, "WATCH_SECONDS", 0.0)

    def begin() -> None:
        # the whole project cannot be found for a while
        double.server.faults = [Fault("jobs.find_one", 404) for _ in range(3)]
        double.server.faults += [Fault("projects.find_one", 404) for _ in range(2)]

    double.server.faults = [Fault("jobs.mark_running", begin)]
    assert denoise() == 0
    assert [job.status for job in store.external] == ["completed"]


def test_a_token_that_is_renewed_while_the_work_goes_on(
    denoise: Run,
    store: Store,
    double: Double5,
    signed_in: Path,
    child_does: Does,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child_does("copy")
    monkeypatch.setattr(guard, "WATCH_SECONDS", 0.0)
    asked: list[None] = []

    def expire() -> None:
        double.token = "the next token"

    def sign_in() -> None:
        asked.append(None)
        if len(asked) == 3:  # somebody has noticed
            store_token(signed_in.parents[1], double.url, "the next token")

    double.server.on_unauthorised = sign_in
    double.server.faults = [Fault("jobs.get_output_fields", expire)]
    assert denoise() == 0
    assert len(asked) >= 3
    assert [job.status for job in store.external] == ["completed"]


def test_a_token_that_is_not_renewed_is_told_with_the_remedy(
    denoise: Run,
    store: Store,
    double: Double5,
    copying: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(requests, "PATIENCE_SECONDS", 0.3)
    monkeypatch.setattr(guard, "LAST_WORD_SECONDS", 0.2)

    def expire() -> None:
        double.token = "the next token"

    double.server.faults = [Fault("jobs.get_output_fields", expire)]
    assert denoise() == 1
    error = capfd.readouterr().err
    assert f"cryosparc_cryohush login --url {double.url}" in error
    assert "--resume J43" in error
    assert "no longer there" not in error
    assert TOKEN not in error
    double.token = TOKEN
    assert denoise("--resume", "J43", particles=None, workspace=None) == 0


def test_a_server_that_hangs_does_not_hold_up_the_end(
    denoise: Run, store: Store, double: Double5, child_does: Does, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queue system kills what has not ended half a minute after SIGTERM."""
    child_does("wait")
    monkeypatch.setattr(guard, "LAST_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(guard, "LAST_WORD_SECONDS", 0.5)
    hanging, stopped = threading.Event(), list[float]()

    def stop() -> None:
        for operation in ("jobs.find_one", "jobs.add_event_log", "jobs.mark_failed"):
            double.server.faults += [Fault(operation, lambda: hanging.wait(600)) for _ in range(5)]
        stopped.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = once_at_work(store, stop)
    assert denoise() == 2
    seconds = time.monotonic() - stopped[0]
    thread.join()
    hanging.set()
    assert seconds < 120, "of which 0.7 are to be waited for an answer"
    assert (store.directory / "J43/denoised/stopped").exists()


def test_nobody_reads_the_output(
    denoise: Run, store: Store, copying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **more: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", broken)
    assert denoise() == 0
    assert [job.status for job in store.external] == ["completed"]


def test_the_lines_of_a_server_that_was_away_follow(
    denoise: Run, store: Store, double: Double5, copying: None
) -> None:
    double.server.faults = [Fault("jobs.add_event_log", 503, skip=1) for _ in range(3)]
    assert denoise() == 0
    texts = store.external[0].texts()
    assert texts.index("copying") < texts.index("version: fake")
    assert len(set(texts)) == len(texts), json.dumps(texts)
