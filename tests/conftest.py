"""What needs a program or device that is absent is skipped with the reason, or fails where it is required."""

import os
import shutil
import signal

import pytest

# Tests send these signals to themselves; started in the background or under nohup they would be ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    relion = shutil.which("relion_pipeliner")
    if relion is None and os.environ.get("CRYOHUSH_REQUIRE_RELION"):
        pytest.exit("CRYOHUSH_REQUIRE_RELION is set and relion_pipeliner is not on the PATH", returncode=1)
    python_47 = os.environ.get("CRYOHUSH_CRYOSPARC47_PYTHON")
    if python_47 is None and os.environ.get("CRYOHUSH_REQUIRE_CRYOSPARC47"):
        pytest.exit(
            "CRYOHUSH_REQUIRE_CRYOSPARC47 is set and CRYOHUSH_CRYOSPARC47_PYTHON is not", returncode=1
        )
    if os.environ.get("CRYOHUSH_REQUIRE_CCPEM") and not os.environ.get("CRYOHUSH_CCPEM_PYTHON"):
        pytest.exit("CRYOHUSH_REQUIRE_CCPEM is set and CRYOHUSH_CCPEM_PYTHON is not", returncode=1)
    without_47 = pytest.mark.skip(
        reason="CRYOHUSH_CRYOSPARC47_PYTHON does not name a Python with cryosparc-tools 4.7 and cryohush"
    )
    without_relion = pytest.mark.skip(reason="RELION is not installed (Debian: apt-get install relion)")
    # tests/slurm.sh starts one and says where it is
    slurm = os.environ.get("SLURM_CONF") if shutil.which("sbatch") else None
    if slurm is None and os.environ.get("CRYOHUSH_REQUIRE_SLURM"):
        pytest.exit("CRYOHUSH_REQUIRE_SLURM is set and there is no SLURM: use tests/slurm.sh", returncode=1)
    without_slurm = pytest.mark.skip(reason="no SLURM: run it by tests/slurm.sh (Debian: slurm-wlm)")
    for item in items:
        if slurm is None and item.get_closest_marker("slurm"):
            item.add_marker(without_slurm)
        if relion is None and item.get_closest_marker("relion"):
            item.add_marker(without_relion)
        if python_47 is None and item.get_closest_marker("cryosparc47"):
            item.add_marker(without_47)
