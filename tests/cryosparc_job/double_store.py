"""What a cryoSPARC instance keeps, as far as external jobs see it; the two doubles differ in how it is asked.

It is built from what the client's documentation and models say. It cannot know, and no test leans on:

- codes and texts of the server's errors;
- whether a failed or killed job can be started again or has to be cleared (`restart_needs_clear`), and if
  outputs are kept then;
- whether inputs can be connected while a job runs (the adapter does it before);
- what the server checks of a saved table: here its fields must be all there, and no uid twice;
- names of the files that it writes, of the rules for several connections, and of the registry of slots;
- whether the interface can kill an external job (`kill` is what such a thing would leave behind).
"""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PROJECT, WORKSPACE = "P3", "W1"
FIELDS = {
    "blob": [
        ("path", "O"),
        ("idx", "u4"),
        ("shape", "2u4"),
        ("psize_A", "f4"),
        ("sign", "f4"),
        ("import_sig", "u8"),
    ],
}
MICROGRAPH = [
    ("path", "O"),
    ("idx", "u4"),
    ("shape", "2u4"),
    ("psize_A", "f4"),
    ("format", "O"),
    ("is_background_subtracted", "u4"),
    ("vmin", "f4"),
    ("vmax", "f4"),
    ("import_sig", "u8"),
]
FIELDS |= {"micrograph_blob": MICROGRAPH, "micrograph_blob_denoised": MICROGRAPH}
BUILDABLE = ("building", "running", "waiting")


class Refused(Exception):
    """The server does not do it."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass
class Output:
    """An output; `files` holds its own table and that of what it passes through."""

    kind: str
    slots: list[tuple[str, str]]
    passthrough: str | None = None
    files: dict[bool, str] = field(default_factory=dict)
    passed: list[tuple[str, str]] = field(default_factory=list)
    n_rows: int = 0
    image: str | None = None


@dataclass
class Input:
    """An input and the outputs connected to it."""

    kind: str
    slots: list[str]
    connections: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Job:
    """A job."""

    uid: str
    kind: str
    title: str = ""
    description: str = ""
    workspace: str = WORKSPACE
    status: str = "building"
    inputs: dict[str, Input] = field(default_factory=dict)
    outputs: dict[str, Output] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    tile: str | None = None
    completed_at: float | None = None
    completed_count: int = 0
    updated_at: float = 0.0
    cloned_from: str | None = None
    tags: list[str] = field(default_factory=list)
    deleted: bool = False

    def texts(self, level: str | None = None) -> list[str]:
        """Return the event log's lines."""
        return [event["text"] for event in self.events if level in (None, event["level"])]


class Store:
    """One project, on disk below `root`, at first with one workspace."""

    def __init__(self, root: Path) -> None:
        self.directory = root / PROJECT
        self.directory.mkdir(parents=True)
        self.workspaces = [WORKSPACE]
        self.archived = False
        self.jobs: dict[str, Job] = {}
        self.assets: list[tuple[str, bytes]] = []
        self.restart_needs_clear = False
        # title to uid
        self.tags: dict[str, str] = {}
        self._now = 0.0

    def job(self, uid: str) -> Job:
        if uid not in self.jobs:
            raise Refused(404, f"no job {uid}")
        return self.jobs[uid]

    def output(self, uid: str, name: str) -> Output:
        outputs = self.job(uid).outputs
        if name not in outputs:
            raise Refused(404, f"{uid} has no output {name}")
        return outputs[name]

    @property
    def external(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.kind == "snowflake"]

    def create(self, kind: str, title: str = "", description: str = "", workspace: str = WORKSPACE) -> Job:
        uid = f"J{42 + len(self.jobs)}"
        (self.directory / uid).mkdir(exist_ok=True)
        self.jobs[uid] = Job(uid, kind, title, description, workspace)
        self.jobs[uid].updated_at = self.now()
        return self.jobs[uid]

    def add_source(self, kind: str, table: NDArray[Any], name: str = "particles") -> Job:
        """Make a native job that has finished, with one output."""
        job = self.create("extract_micrographs_multi")
        slots = dict.fromkeys(field.partition("/")[0] for field in table.dtype.names or () if "/" in field)
        job.outputs[name] = Output(kind, [(slot, slot) for slot in slots])
        self._write(job, name, table, passed=False)
        self._complete(job)
        return job

    def _complete(self, job: Job) -> None:
        job.status, job.completed_at = "completed", self.now()
        job.completed_count += 1
        job.updated_at = job.completed_at

    def now(self) -> float:
        """Return seconds since 1970 on the server's clock, never twice the same."""
        self._now = max(time.time(), self._now + 1e-3)
        return self._now

    def clone(self, uid: str) -> Job:
        """Make a job like another one, as the interface does: not run, connected to the same outputs."""
        old = self.job(uid)
        new = self.create(old.kind, old.title, old.description, old.workspace)
        new.inputs = copy.deepcopy(old.inputs)
        new.cloned_from = uid
        return new

    def tag(self, uid: str, title: str) -> None:
        """Tag a job, as the interface does."""
        self.tags.setdefault(title, f"T{len(self.tags) + 1}")
        job = self.job(uid)
        job.tags.append(self.tags[title])
        job.updated_at = self.now()

    def add_input(self, uid: str, name: str, kind: str, slots: list[str]) -> None:
        job = self.job(uid)
        if job.status not in BUILDABLE:
            raise Refused(400, f"{uid} is {job.status}")
        if name in job.inputs:
            raise Refused(409, f"{uid} has an input {name}")
        job.inputs[name] = Input(kind, slots)

    def connect(self, uid: str, name: str, source: str, output: str) -> None:
        job, found = self.job(uid), self.output(source, output)
        if job.inputs[name].kind != found.kind:
            raise Refused(422, f"{name} takes {job.inputs[name].kind}")
        job.inputs[name].connections.append((source, output))
        job.updated_at = self.now()

    def add_output(
        self, uid: str, name: str, kind: str, slots: list[tuple[str, str]], passthrough: str | None
    ) -> None:
        job = self.job(uid)
        if job.status not in BUILDABLE:
            raise Refused(400, f"{uid} is {job.status}")
        if name in job.outputs:
            raise Refused(409, f"{uid} has an output {name}")
        if passthrough is not None and job.inputs[passthrough].kind != kind:
            raise Refused(422, "Invalid External Job Spec: passthrough does not match output type")
        job.outputs[name] = Output(kind, slots, passthrough)

    def fields(self, uid: str, name: str) -> list[tuple[str, str]]:
        return [
            (f"{slot}/{field}", kind)
            for slot, dtype in self.output(uid, name).slots
            for field, kind in FIELDS[dtype]
        ]

    def mark(self, uid: str, status: str, error: str = "") -> None:
        job = self.job(uid)
        active = job.status in ("running", "waiting")
        if status == "running":
            allowed = job.status == "building" or (
                job.status in ("failed", "killed") and not self.restart_needs_clear
            )
        elif status == "completed":
            allowed = active or job.status in ("killed", "failed")
        else:
            allowed = active
        if not allowed:
            raise Refused(400, f"{uid} is {job.status} and cannot become {status}")
        if error:
            self.log(uid, error, "error")
        job.status, job.updated_at = status, self.now()
        if status == "completed":
            self._complete(job)
            self._pass_through(job)

    def kill(self, uid: str) -> None:
        self.job(uid).status = "killed"

    def clear(self, uid: str) -> None:
        """Empty the job's directory; inputs and their connections stay."""
        job = self.job(uid)
        job.status, job.outputs, job.updated_at = "building", {}, self.now()
        shutil.rmtree(self.directory / uid)
        (self.directory / uid).mkdir()

    def log(self, uid: str, text: str, level: str = "text", images: int = 0) -> str:
        events = self.job(uid).events
        events.append({"id": f"{uid}-{len(events)}", "text": text, "level": level, "images": images})
        return str(events[-1]["id"])

    def relog(self, uid: str, event: str, text: str) -> None:
        next(entry for entry in self.job(uid).events if entry["id"] == event)["text"] = text

    def add_asset(self, name: str, data: bytes) -> str:
        self.assets.append((name, data))
        return f"{len(self.assets):024d}"

    def save(self, uid: str, name: str, table: NDArray[Any]) -> None:
        job = self.job(uid)
        if job.status not in ("running", "waiting"):
            raise Refused(400, f"{uid} is {job.status}")
        missing = {field for field, _ in self.fields(uid, name)} - set(table.dtype.names or ())
        if missing or len(np.unique(table["uid"])) != len(table):
            raise Refused(422, f"bad dataset: {missing or 'repeated uids'}")
        self._write(job, name, table, passed=False)

    def load(self, uid: str, name: str, slots: list[str] | None = None) -> NDArray[Any]:
        """Return an output's own and passed fields, of some or all slots."""
        output = self.output(uid, name)
        tables = [np.load(self.directory / output.files[passed]) for passed in sorted(output.files)]
        rows = tables[0]["uid"]
        kinds: dict[str, Any] = {}
        columns: dict[str, NDArray[Any]] = {}
        for table in tables:
            order = np.argsort(table["uid"])
            place = order[np.searchsorted(table["uid"], rows, sorter=order)]
            for field_name in table.dtype.names:
                slot = field_name.partition("/")[0]
                if field_name not in kinds and (slots is None or slot in (*slots, "uid")):
                    kinds[field_name] = table.dtype[field_name]
                    columns[field_name] = table[field_name][place]
        joined = np.zeros(len(rows), list(kinds.items()))
        for field_name, column in columns.items():
            joined[field_name] = column
        return joined

    def upload(self, path: str, data: bytes, *, overwrite: bool) -> Path:
        target = self.directory / path
        if target.exists() and not overwrite:
            raise Refused(409, f"{path} exists")
        target.write_bytes(data)
        return target

    def _write(self, job: Job, name: str, table: NDArray[Any], *, passed: bool) -> None:
        path = f"{job.uid}/{job.uid}_{'passthrough_' if passed else ''}{name}.cs"
        with (self.directory / path).open("wb") as file:
            np.save(file, table)
        job.outputs[name].files[passed] = path
        job.outputs[name].n_rows = len(table)

    def _pass_through(self, job: Job) -> None:
        for name, output in job.outputs.items():
            if output.passthrough is None or False not in output.files:
                continue
            source = self.load(*job.inputs[output.passthrough].connections[0])
            own = {slot for slot, _ in output.slots}
            kept = [field for field in source.dtype.names or () if field.partition("/")[0] not in own]
            uids = np.load(self.directory / output.files[False])["uid"]
            order = np.argsort(source["uid"])
            rows = order[np.searchsorted(source["uid"], uids, sorter=order)]
            table = np.zeros(len(uids), [(field, source.dtype[field]) for field in kept])
            for field_name in kept:
                table[field_name] = source[field_name][rows]
            self._write(job, name, table, passed=True)
            slots = dict.fromkeys(field.partition("/")[0] for field in kept if "/" in field)
            output.passed = [(slot, slot) for slot in slots]
