"""Every end of a job, whatever brings it about, leaves exactly one marker."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from cryohush.relion_external.markers import (
    ABORT_NOW,
    EXIT_ABORTED,
    EXIT_FAILURE,
    EXIT_SUCCESS,
    find_job_directory,
)

MARKERS = {EXIT_SUCCESS, EXIT_FAILURE, EXIT_ABORTED}


def start(directory: Path, work: str, ignored: str = "") -> subprocess.Popen[str]:
    """Run `work`, the body of a function with the argument `should_stop`, as an External job.

    `ignored` is a signal that the starter ignores; the others are as at a terminal, however the tests run.
    """
    program = (
        "import os, signal, sys, time\n"
        "from pathlib import Path\n"
        "from cryohush.core.errors import Aborted, CryohushError\n"
        "from cryohush.relion_external.markers import run_as_external_job\n"
        "def work(should_stop):\n"
        f"{textwrap.indent(textwrap.dedent(work), '    ')}\n"
        "def ready():\n"
        f"    Path({str(directory / 'ready')!r}).touch()\n"
        "def wait(should_stop):\n"
        "    ready()\n"
        "    while not should_stop():\n"
        "        time.sleep(0.01)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"for name in {ignored.split()!r}: signal.signal(signal.Signals[name], signal.SIG_IGN)\n"
        f"sys.exit(run_as_external_job(Path({str(directory)!r}), work))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_until_ready(directory: Path) -> None:
    give_up = time.monotonic() + 300
    while not (directory / "ready").exists():
        assert time.monotonic() < give_up, "the job never started its work"
        time.sleep(0.02)


def finish(job: subprocess.Popen[str], directory: Path) -> tuple[set[str], int, str]:
    """Return the markers, the exit code and what the job said on stderr."""
    _, stderr = job.communicate(timeout=300)
    return {path.name for path in directory.iterdir()} & MARKERS, job.returncode, stderr


def test_success(tmp_path: Path) -> None:
    job = start(tmp_path / "job", "pass")
    assert finish(job, tmp_path / "job") == ({EXIT_SUCCESS}, 0, "")


def test_the_marker_comes_after_everything_that_the_work_writes(tmp_path: Path) -> None:
    job = start(tmp_path, f"time.sleep(0.3); Path({str(tmp_path / 'last')!r}).touch()")
    assert finish(job, tmp_path)[0] == {EXIT_SUCCESS}
    assert (tmp_path / EXIT_SUCCESS).stat().st_mtime_ns >= (tmp_path / "last").stat().st_mtime_ns


@pytest.mark.parametrize("stale", sorted(MARKERS))
def test_a_marker_of_an_earlier_run_is_gone_before_the_work_starts(tmp_path: Path, stale: str) -> None:
    (tmp_path / stale).touch()
    job = start(tmp_path, f"raise CryohushError(str(Path({str(tmp_path / stale)!r}).exists()))")
    assert finish(job, tmp_path) == ({EXIT_FAILURE}, 1, "ERROR: False\n")


@pytest.mark.parametrize(
    ("work", "code", "message"),
    [
        ("raise CryohushError('what is wrong')", 1, "ERROR: what is wrong\n"),
        ("raise CryohushError('Free some space, then go on with --resume.')", 1, "go on with Continue!.\n"),
        ("raise MemoryError", 1, "ERROR: out of memory."),
        ("raise type('OutOfMemoryError', (RuntimeError,), {})", 1, "ERROR: out of memory."),
        ("""raise RuntimeError("DefaultCPUAllocator: can't allocate memory")""", 1, "ERROR: out of memory."),
        ("import no_such_module_at_all", 1, "cannot import what cryohush needs: No module named 'no_such_"),
        ("sys.exit(2)", 2, ""),
        ("sys.exit(0)", 2, ""),
        ("os._exit(5)", 1, ""),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "ran out of memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", 1, "ERROR: the job crashed (SIGSEGV) in compiled code"),
        ("raise KeyboardInterrupt", 1, "ERROR: unexpected KeyboardInterrupt"),
    ],
)
def test_failure(tmp_path: Path, work: str, code: int, message: str) -> None:
    markers, found_code, stderr = finish(start(tmp_path, work), tmp_path)
    assert (markers, found_code) == ({EXIT_FAILURE}, code)
    assert message in stderr
    assert stderr.count("ERROR") <= 1
    assert "Traceback" not in stderr or "unexpected" in stderr


def test_an_unexpected_error_shows_its_traceback_and_ends_with_one_line(tmp_path: Path) -> None:
    stderr = finish(start(tmp_path, "1 / 0"), tmp_path)[2]
    assert stderr.startswith("Traceback")
    assert stderr.splitlines()[-1] == "ERROR: unexpected ZeroDivisionError: division by zero"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_aborts(tmp_path: Path, number: int) -> None:
    job = start(tmp_path, "wait(should_stop); raise Aborted")
    wait_until_ready(tmp_path)
    job.send_signal(number)
    assert finish(job, tmp_path) == ({EXIT_ABORTED}, 2, "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGHUP"])
def test_a_signal_that_the_starter_ignores_stays_ignored(tmp_path: Path, name: str) -> None:
    # `sh -c "command &"`, which is how RELION starts a job, ignores SIGINT, and nohup ignores SIGHUP
    go = tmp_path / "go"
    work = f"ready()\nwhile not Path({str(go)!r}).exists():\n    time.sleep(0.01)\nassert not should_stop()"
    job = start(tmp_path, work, ignored=name)
    wait_until_ready(tmp_path)
    job.send_signal(signal.Signals[name])
    go.touch()
    assert finish(job, tmp_path) == ({EXIT_SUCCESS}, 0, "")


def test_the_abort_file_aborts_and_is_obeyed_once(tmp_path: Path) -> None:
    job = start(tmp_path, "wait(should_stop); raise Aborted")
    wait_until_ready(tmp_path)
    (tmp_path / ABORT_NOW).touch()
    assert finish(job, tmp_path) == ({EXIT_ABORTED}, 2, "")
    assert not (tmp_path / ABORT_NOW).exists()


def test_work_that_does_not_look_for_a_stop_is_killed(tmp_path: Path) -> None:
    job = start(tmp_path, "ready(); time.sleep(600)")
    wait_until_ready(tmp_path)
    job.terminate()
    assert finish(job, tmp_path) == ({EXIT_ABORTED}, 2, "")


def test_work_that_is_done_when_it_is_asked_to_stop_is_a_success(tmp_path: Path) -> None:
    job = start(tmp_path, "wait(should_stop)")
    wait_until_ready(tmp_path)
    job.terminate()
    assert finish(job, tmp_path) == ({EXIT_SUCCESS}, 0, "")


def test_the_work_stops_when_its_parent_is_killed(tmp_path: Path) -> None:
    job = start(tmp_path, f"wait(should_stop); Path({str(tmp_path / 'stopped')!r}).touch()")
    wait_until_ready(tmp_path)
    job.kill()
    job.communicate(timeout=300)
    give_up = time.monotonic() + 300
    while not (tmp_path / "stopped").exists():
        assert time.monotonic() < give_up, "the orphan went on"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("work", "marker", "message"),
    [
        (
            "wait(should_stop); raise Aborted",
            EXIT_FAILURE,
            "the process that watched over this job was killed",
        ),
        ("wait(should_stop); raise CryohushError('a reason')", EXIT_FAILURE, "ERROR: a reason"),
        ("wait(should_stop)", EXIT_SUCCESS, ""),
    ],
)
def test_the_work_leaves_the_marker_when_its_parent_is_killed(
    tmp_path: Path, work: str, marker: str, message: str
) -> None:
    job = start(tmp_path, work)
    wait_until_ready(tmp_path)
    job.kill()
    # the pipes are closed when the orphan has ended, too
    _, stderr = job.communicate(timeout=300)
    assert {path.name for path in tmp_path.iterdir()} & MARKERS == {marker}
    assert message in stderr
    assert stderr.count("ERROR") == bool(message)


def test_a_job_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    job = start(tmp_path / "file" / "job001", "pass")
    _, stderr = job.communicate(timeout=300)
    assert job.returncode == 1
    assert stderr == f"ERROR: cannot use the job directory {tmp_path}/file/job001: Not a directory.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
def test_the_marker_is_written_when_no_message_can_be(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from cryohush.relion_external.markers import run_as_external_job\n"
        "def work(should_stop): raise ValueError('anything')\n"
        f"sys.exit(run_as_external_job(Path({str(tmp_path)!r}), work))"
    )
    with Path("/dev/full").open("w") as full:
        subprocess.run([sys.executable, "-c", program], stdout=full, stderr=full, timeout=300)
    assert {path.name for path in tmp_path.iterdir()} == {EXIT_FAILURE}


@pytest.mark.parametrize(
    ("arguments", "directory"),
    [
        (["denoise", "--o", "External/job001/", "--j", "1"], "External/job001"),
        (["denoise", "--o=External/job001/"], "External/job001"),
        (["denoise", "----o", "a"], "a"),
        (["denoise", "--output_dtype", "float32"], None),
        (["--o"], None),
        (["--o", "--j"], None),
        (["--o="], None),
        ([], None),
    ],
)
def test_the_job_directory_is_found_without_parsing(arguments: list[str], directory: str | None) -> None:
    assert find_job_directory(arguments) == (None if directory is None else Path(directory))
