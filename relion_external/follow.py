"""`relion_cryohush follow`: the External job by which RELION sees a source of a batch until its end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.batch.state import is_running
from ..core.errors import Aborted, ConfigurationError, CryohushError
from ..core.io.files import write_text

# In the job's folder: of which batch it is, and how it has ended there.
BATCH_NAME, END_NAME = ".cryohush-batch.json", ".cryohush-batch-end.json"
POLL_SECONDS = 0.5


def follow(directory: Path, should_stop: Callable[[], bool] = lambda: False) -> None:
    """Print the log of a source of a batch until it has ended.

    Raises
    ------
    ConfigurationError
        If the job belongs to no batch.
    CryohushError
        If the source has failed, or its batch was interrupted.
    Aborted
        If it, or this job, was stopped.
    """
    batch = _read(directory / BATCH_NAME)
    if batch is None:
        raise ConfigurationError(
            f"{directory} belongs to no batch. This command is for jobs that a batch makes."
        )
    printed = 0
    while True:
        # looked at before the end: a batch that ends now has left it
        is_alive = is_running(Path(batch["folder"]))
        end = _read(directory / END_NAME)
        printed += _print_log(Path(batch["log"]), printed)
        if end is not None:
            break
        if should_stop():
            raise Aborted("Stopped on request.")
        if not is_alive:
            raise CryohushError(f"the batch in {batch['folder']} was interrupted. Go on with batch resume.")
        time.sleep(POLL_SECONDS)
    if end["state"] == "stopped":
        raise Aborted("The batch was stopped.")
    if end["state"] != "done":
        raise CryohushError(str(end["error"]))


def write_note(path: Path, values: dict[str, Any]) -> None:
    """Write one of the two files for `follow`.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_text(path, json.dumps(values) + "\n")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return values


def _print_log(path: Path, printed: int) -> int:
    """Print what is new in the log, and return how many bytes that were."""
    try:
        with path.open("rb") as file:
            file.seek(printed)
            new = file.read()
    except OSError:
        return 0
    print(new.decode(errors="replace"), end="", flush=True)
    return len(new)
