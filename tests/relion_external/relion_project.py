"""Running jobs in a project of the RELION that is installed, without a GUI, and reading its state."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path


def _major_version() -> int:
    """Return the major version of the RELION on the PATH; without one, that of the tests' own set-up."""
    if shutil.which("relion_pipeliner") is None:
        return 3
    told = subprocess.run(["relion_pipeliner", "--version"], capture_output=True, text=True, timeout=300)
    found = re.search(r"version:? *(\d+)", told.stdout + told.stderr)
    assert found is not None, told.stdout + told.stderr
    return int(found[1])


VERSION = _major_version()
EMPTY_PIPELINE = (
    f"\n# version {50001 if VERSION > 4 else 30001}\n\ndata_pipeline_general\n\n"
    "_rlnPipeLineJobCounter                       2\n \n"
)
SCHEDULED, SUCCEEDED, FAILED = ("1", "2", "3") if VERSION == 3 else ("Scheduled", "Succeeded", "Failed")
# Types of nodes.
PARTICLES, MICROGRAPHS, REPORT = {
    3: ("3", "1", "13"),
    4: ("ParticlesData.star.relion", "MicrographsData.star.relion", "LogFile.pdf.relion"),
    5: ("ParticleGroupMetadata.star.relion", "MicrographGroupMetadata.star.relion", "LogFile.pdf.relion"),
}[VERSION]
# The coordinates that AutoPick gives to the next job.
PICKS = "coords_suffix_autopick.star" if VERSION == 3 else "autopick.star"


def relion(project: Path, *arguments: str) -> None:
    """Run a RELION program in the project; `relion_cryohush` is found as a user's RELION would find it."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    result = subprocess.run(
        arguments,
        cwd=project,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    # RELION leaves its lock behind when it stops with an error, and would wait for it for minutes
    shutil.rmtree(project / ".relion_lock", ignore_errors=True)
    assert result.returncode == 0, result.stdout + result.stderr


def run_job(project: Path, kind: str, options: dict[str, str]) -> str:
    """Add a job, run it to its end and return its directory."""
    before = set(processes(project))
    text = ";".join(f"{name} == {value}" for name, value in options.items())
    relion(project, "relion_pipeliner", "--addJob", kind, "--addJobOptions", text)
    (name,) = set(processes(project)) - before
    schedule = name.rstrip("/").replace("/", "_")
    command = ["relion_pipeliner", "--RunJobs", name, "--schedule", schedule, "--sec_wait_after", "1"]
    relion(project, *command)
    return name


def rows(project: Path, table: str) -> list[list[str]]:
    """Return the rows of a table of `default_pipeline.star`."""
    text = (project / "default_pipeline.star").read_text()
    block = text.partition(f"data_pipeline_{table}\n")[2].partition("# version")[0]
    return [line.split() for line in block.splitlines() if line.strip() and line[0] not in "_#l"]


def processes(project: Path) -> dict[str, str]:
    """Return name to status of the jobs of the project."""
    return {row[0]: row[3] for row in rows(project, "processes")}


def nodes_of(project: Path) -> dict[str, str]:
    """Return name to type of the files that the project knows."""
    return {row[0]: row[1] for row in rows(project, "nodes")}
