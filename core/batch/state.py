"""The state of a batch: how far each source has come, for `batch status` and for a driver that resumes it."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ... import __version__
from ..config.batch import OPTIONS, BatchPlan, Job, Options
from ..config.denoise import DenoiseOptions
from ..errors import ConfigurationError, InputError, OutputError
from ..io.files import part_path, rename_complete, writing_failed

STATE_NAME = "batch.json"
LOCK_NAME = ".cryohush-batch.lock"
LOG_FOLDER = "logs"
# While images are processed the state is written at most this often.
STATE_SECONDS = 1.0

State = Literal["waiting", "running", "done", "failed", "stopped"]


@dataclass
class Item:
    """One table, stack or micrograph of a batch, what is done to it, and how far it has come.

    Attributes
    ----------
    name
        Unique in the batch.
    job
        What is done.
    host
        What has the data: a name in `config.batch.HOSTS`.
    source
        The input.
    origin
        What the host calls it, if that is not the path of `source`.
    options
        Of the run; those of its job.
    root, passthrough
        See `run_denoise`.
    project
        The host's project.
    alias
        What the host is to call the job.
    output
        Where the results go; None until the host has made a job.
    state, error
        How it stands, and what went wrong.
    n_images, n_done
        Images in all, and denoised.
    begun, seconds
        When it was begun last, seconds since 1970, and how long it took.
    key_figures, picture
        What came out, in words, by name, and the file that shows it best; denoised images have a montage.
    details
        What the host wants to remember.
    """

    name: str
    host: str
    source: Path
    options: Options = field(default_factory=DenoiseOptions)
    job: Job = "denoise"
    origin: str | None = None
    root: Path | None = None
    passthrough: tuple[Path, ...] = ()
    project: Path | None = None
    alias: str | None = None
    output: Path | None = None
    state: State = "waiting"
    error: str | None = None
    n_images: int = 0
    n_done: int = 0
    n_done_before: int = 0
    begun: float | None = None
    seconds: float = 0.0
    key_figures: dict[str, str] = field(default_factory=dict)
    picture: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the entry in the state file."""
        values = {
            name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()
        }
        values["options"] = self.options.model_dump(mode="json")
        values["passthrough"] = [str(path) for path in self.passthrough]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Item:
        """Return the item of an entry."""
        item = cls(**{**values, "options": OPTIONS[values.get("job", "denoise")](**values["options"])})
        item.source, item.passthrough = Path(item.source), tuple(map(Path, item.passthrough))
        for name in ("root", "project", "output"):
            value = getattr(item, name)
            setattr(item, name, None if value is None else Path(value))
        return item

    @property
    def images_per_second(self) -> float:
        """Speed of the last run; 0 where nothing was done."""
        seconds = self.seconds or (time.time() - self.begun if self.begun else 0.0)
        return (self.n_done - self.n_done_before) / seconds if seconds > 0 else 0.0


class BatchState:
    """What is known of each source, in `batch.json`, for whoever asks and for the next driver.

    Only one driver has it at a time: made by `BatchState.open`, a context manager.
    """

    def __init__(self, folder: Path, plan: str, descriptor: int) -> None:
        self.folder, self.items = folder, list[Item]()
        self.dashboard = ""
        self._plan, self._descriptor = plan, descriptor
        self._lock, self._last = threading.Lock(), 0.0

    @classmethod
    def open(cls, folder: Path, plan: BatchPlan) -> BatchState:
        """Lock the batch, and read its state, if there is one.

        Raises
        ------
        OutputError
            If another driver has it, or it cannot be written.
        ConfigurationError
            If it belongs to another plan.
        """
        path = folder / LOCK_NAME
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise writing_failed(path, error) from error
        if not _locked(descriptor):
            who = os.read(descriptor, 200).decode(errors="replace").strip()
            os.close(descriptor)
            raise OutputError(
                f"{folder}: this batch is running already ({who}). Ask for its status, or wait for it."
            )
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        batch_state = cls(folder, _fingerprint(plan), descriptor)
        entries = read_state(folder)
        if entries is not None:
            if entries["plan"] != batch_state._plan:
                batch_state.close()
                raise ConfigurationError(
                    f"{folder} belongs to a plan with other sources or options. Choose another output, or "
                    "undo the change; the engine may change."
                )
            batch_state.items = [Item.from_json(entry) for entry in entries["items"]]
        return batch_state

    def save(self, *, now: bool = True) -> None:
        """Write the state, unless that was done a moment ago and it need not be now."""
        with self._lock:
            if not now and time.monotonic() - self._last < STATE_SECONDS:
                return
            self._last = time.monotonic()
            values = {
                "version": __version__,
                "plan": self._plan,
                "driver": f"process {os.getpid()} on {socket.gethostname()}",
                "dashboard": self.dashboard,
                "updated": time.time(),
                "items": [item.as_json() for item in self.items],
            }
            path = self.folder / STATE_NAME
            part = part_path(path)
            try:
                with part.open("w", encoding="utf-8") as file:
                    json.dump(values, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                rename_complete(part, path)
            except OSError as error:
                text = str(writing_failed(path, error)).replace("--resume", "batch resume")
                raise OutputError(text) from error

    def close(self) -> None:
        """Let another driver have the batch."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> BatchState:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _locked(descriptor: int) -> bool:
    """Lock the batch, and tell whether that was possible; who asks for its status has it for a moment."""
    for _ in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            return True  # some network file systems have no locks: then go on without
        else:
            return True
    return False


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return the state of a batch, whoever drives it; None where there is none.

    Raises
    ------
    InputError
        If they cannot be read.
    """
    path = folder / STATE_NAME
    try:
        batch_state = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"the state of the batch cannot be read: {error}.", path=path) from error
    if not isinstance(batch_state, dict) or not {"plan", "items"} <= batch_state.keys():
        raise InputError("this is not the state of a batch.", path=path)
    return batch_state


def is_running(folder: Path) -> bool:
    """Tell whether a driver is working on a batch."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _fingerprint(plan: BatchPlan) -> str:
    values = plan.model_dump_json(exclude={"engine", "sources_at_once"})
    return hashlib.sha256(values.encode()).hexdigest()


def log_path(folder: Path, name: str) -> Path:
    """Return the log of a source."""
    return folder / LOG_FOLDER / f"{name}.log"
