"""`cryosparc_cryohush` as a program of its own, as `watch` starts it, whose work is that of `fake_work`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cryohush.cryosparc_job import cli, guard, instance, job, place, worker

fake = str(Path(__file__).with_name("fake_work.py"))
worker.COMMAND = (sys.executable, fake, os.environ["CRYOHUSH_FAKE_WORK"])
instance.FIRST_PAUSE_SECONDS, instance.PATIENCE_SECONDS, guard.WATCH_SECONDS = 0.01, 120.0, 0.05
instance.ERROR_PATIENCE_SECONDS, job.CONFIRM_SECONDS = 10.0, 0.01
place.LOCK_PATIENCE_SECONDS = 0.5
sys.exit(cli.main())
