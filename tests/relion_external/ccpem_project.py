"""Run jobs in a project of the CCP-EM pipeliner: `ccpem_project.py FOLDER JOBS.json`.

JOBS.json lists jobs as mappings of options, `_rlnJobTypeLabel` among them; `{0}` in a value is the directory
of the first job. Prints as JSON what came of each, and the types of all jobs that the pipeliner knows.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeliner.api.manage_project import PipelinerProject
from pipeliner.job_factory import get_job_types


def main(folder: str, jobs: str) -> None:
    """Run them in turn, and print what came of them."""
    wanted: list[dict[str, str]] = json.loads(Path(jobs).read_text())
    os.chdir(folder)
    project = PipelinerProject(make_new_project=True)
    found: list[dict[str, Any]] = []
    for options in wanted:
        given = {name: value.format(*(one["directory"] for one in found)) for name, value in options.items()}
        job = project.run_job(given, run_in_foreground=True)
        directory = Path(job.output_dir)
        found.append(
            {
                "directory": job.output_dir,
                "status": [path.name for path in directory.glob("PIPELINER_JOB_EXIT_*")],
                "nodes": {node.name: node.type for node in job.output_nodes if Path(node.name).exists()},
                "missing": [node.name for node in job.output_nodes if not Path(node.name).exists()],
                "shown": [shown.dobj_type for shown in job.create_results_display()],
                "err": (directory / "run.err").read_text(),
                "out": (directory / "run.out").read_text(),
            }
        )
    types = {job.PROCESS_NAME: job.jobinfo.is_available for job in get_job_types("cryohush")}
    print(json.dumps({"types": types, "jobs": found}))


main(*sys.argv[1:])
