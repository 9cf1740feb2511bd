"""After a crash the work goes on in the same job, where it stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryosparc_project import Run, process_at_work
from double_server import Fault
from double_store import Store
from double_v5 import Double5

from cryohush.cryosparc_job import place
from cryohush.cryosparc_job.cli import main


def resume(denoise: Run) -> int:
    return denoise("--resume", "J43", particles=None, workspace=None)


@pytest.mark.parametrize("needs_clear", [False, True])
@pytest.mark.parametrize("status", ["failed", "killed", "running", "building"])
def test_the_same_job_is_completed_with_what_it_had(
    denoise: Run, store: Store, child_does: Callable[[str], None], status: str, needs_clear: bool
) -> None:
    child_does("error")
    assert denoise() == 1
    made = store.directory / "J43/denoised/made"
    made.touch()
    store.jobs["J43"].status = status
    store.restart_needs_clear = needs_clear
    child_does("copy")
    assert resume(denoise) == 0
    assert [job.status for job in store.external] == ["completed"]
    assert made.exists(), "what was made is still there"
    assert not list(store.directory.glob("*_kept"))


def test_a_crash_between_setting_aside_and_going_on_loses_nothing(
    denoise: Run, store: Store, double: Double5, child_does: Callable[[str], None]
) -> None:
    child_does("error")
    assert denoise() == 1
    (store.directory / "J43/denoised").rename(store.directory / "J43_cryohush_kept")
    (store.directory / "J43_cryohush_kept/made").touch()
    child_does("copy")
    assert resume(denoise) == 0
    assert (store.directory / "J43/denoised/made").exists()


def test_a_driver_that_was_killed_leaves_a_job_to_go_on_with(
    denoise: Run,
    store: Store,
    double: Double5,
    weights: Path,
    child_does: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGKILL, which nothing can catch; a program of its own, as a user runs it."""
    script = (
        "import sys\n"
        "from cryohush.cryosparc_job import cli, worker\n"
        f"worker.COMMAND = ({sys.executable!r}, {str(Path(__file__).with_name('fake_work.py'))!r}, 'wait')\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    words = ["denoise", "--url", double.url, "--project", "P3", "--workspace", "W1"]
    driver = subprocess.Popen([sys.executable, "-c", script, *words, "--particles", "J42:particles"])
    child = process_at_work(store)
    driver.kill()
    driver.wait()
    assert store.jobs["J43"].status == "running"
    os.kill(child, signal.SIGTERM)
    monkeypatch.setattr(place, "LOCK_PATIENCE_SECONDS", 120.0)  # the child has the lock until it has ended
    child_does("copy")
    assert main(["denoise", "--url", double.url, "--project", "P3", "--resume", "J43"]) == 0
    assert [job.status for job in store.external] == ["completed"]


def test_a_job_that_was_made_and_not_yet_connected(
    denoise: Run, store: Store, double: Double5, copying: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    double.server.faults = [Fault("jobs.add_external_input", lambda: store.kill("J43"))]
    assert denoise() == 1
    store.jobs["J43"].inputs.clear()
    assert denoise("--resume", "J43", workspace=None) == 0
    assert store.jobs["J43"].inputs["particles"].connections == [("J42", "particles")]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ({"particles": None}, "completed", "J43 is completed: there is nothing to go on with"),
        ({"particles": "J42:others"}, "failed", "J42:others: J43 has J42:particles"),
    ],
)
def test_what_there_is_no_going_on_with(
    denoise: Run,
    store: Store,
    copying: None,
    capfd: pytest.CaptureFixture[str],
    words: dict[str, str | None],
    status: str,
    message: str,
) -> None:
    assert denoise() == 0
    store.jobs["J43"].status = status
    assert denoise("--resume", "J43", **words) == 1
    assert message in capfd.readouterr().err
    assert store.jobs["J43"].status == status


def test_a_lost_answer_to_a_clear_is_not_asked_again(
    denoise: Run, store: Store, double: Double5, child_does: Callable[[str], None]
) -> None:
    child_does("error")
    assert denoise() == 1
    store.restart_needs_clear = True
    double.server.faults = [Fault("jobs.clear", "drop after")]
    child_does("copy")
    assert resume(denoise) == 0
    assert double.server.operations.count("jobs.clear") == 1
