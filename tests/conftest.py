"""What needs a program or device that is absent is skipped with the reason, or fails where it is required."""

import gc
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import warm
from hypothesis import HealthCheck, settings

# Modules that benchmarks share are tested, too; their names give way to all others.
sys.path.append(str(Path(__file__).parents[1] / "examples/benchmarks"))

# The same examples in each run, and no stopwatch. Others: --hypothesis-profile=further --hypothesis-seed=1
settings.register_profile(
    "same",
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("further", settings.get_profile("same"), derandomize=False)
settings.load_profile("same")

# Tests send these signals to themselves; started in the background or under nohup they would be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

HERE = Path(__file__).parent
# Files that take a minute or more begin first, of these the ones that wait for other programs: a long one
# that begins last would have a machine of several cores for itself.
LONG = (
    "relion_external/test_session.py",
    "relion_external/test_relion_batch.py",
    "core/batch/test_batch_faults.py",
    "core/batch/test_batch_kills.py",
    "core/jobs/test_kills.py",
    "cryosparc_job/test_cryosparc_batch.py",
    "cryosparc_job/test_watch.py",
    "relion_external/test_ccpem_pipeliner.py",
    "relion_external/test_real_relion.py",
    "relion_external/test_train_job.py",
    "cryosparc_job/test_other_commands.py",
    "test_user_tasks.py",
    "core/jobs/test_evaluate.py",
    "core/test_api.py",
)

RELION = shutil.which("relion_pipeliner")
PYTHON_47 = os.environ.get("CRYOHUSH_CRYOSPARC47_PYTHON")
# tests/slurm.sh starts one and says where it is
SLURM = os.environ.get("SLURM_CONF") if shutil.which("sbatch") else None


def pytest_configure() -> None:
    for name, found, missing in (
        ("RELION", RELION, "relion_pipeliner is not on the PATH"),
        ("CRYOSPARC47", PYTHON_47, "CRYOHUSH_CRYOSPARC47_PYTHON is not"),
        ("CCPEM", os.environ.get("CRYOHUSH_CCPEM_PYTHON"), "CRYOHUSH_CCPEM_PYTHON is not"),
        ("SLURM", SLURM, "there is no SLURM: use tests/slurm.sh"),
    ):
        if os.environ.get(f"CRYOHUSH_REQUIRE_{name}") and not found:
            pytest.exit(f"CRYOHUSH_REQUIRE_{name} is set and {missing}", returncode=1)


def pytest_collection_finish() -> None:
    """Leave what was imported out of all searches for garbage: they take half a second with it."""
    gc.freeze()


@pytest.fixture(autouse=True)
def nobody_is_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are read at once, though they are new and may end in mid-line."""
    monkeypatch.setattr("cryohush.core.io.star.SETTLING_SECONDS", 0.0)


@pytest.fixture(scope="module")
def warm_workers() -> Iterator[None]:
    """Batches that are run in the tests' own process start their workers quickly."""
    with warm.workers():
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {HERE / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
    without_47 = pytest.mark.skip(
        reason="CRYOHUSH_CRYOSPARC47_PYTHON does not name a Python with cryosparc-tools 4.7 and cryohush"
    )
    without_relion = pytest.mark.skip(reason="RELION is not installed (Debian: apt-get install relion)")
    without_slurm = pytest.mark.skip(reason="no SLURM: run it by tests/slurm.sh (Debian: slurm-wlm)")
    for item in items:
        if SLURM is None and item.get_closest_marker("slurm"):
            item.add_marker(without_slurm)
        if RELION is None and item.get_closest_marker("relion"):
            item.add_marker(without_relion)
        if PYTHON_47 is None and item.get_closest_marker("cryosparc47"):
            item.add_marker(without_47)
